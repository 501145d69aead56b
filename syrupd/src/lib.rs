//! The daemon's parts: the arbiter behind a Unix socket.

mod config;
mod daemon;
pub mod group;
mod service;

pub use config::{Config, DEFAULT_CONFIG};
pub use daemon::Daemon;
pub use service::Arbiters;
