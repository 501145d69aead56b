//! The arbiter: the code that owns dispatchers, decides who may deploy what,
//! and keeps the record.
//!
//! * [`Arbiter`]: what can be asked; implemented by the engine in-process and
//!   by the client over the daemon's socket.
//! * [`Failure`]: one error with an exit code, for both.

mod btf;
mod check;
mod config;
mod daemon;
mod engine;
mod hooks;
mod lines;
mod link;
mod maps;
mod params;
mod policy;
mod service;
mod verifier;

pub use config::{Config, DEFAULT_CONFIG};
pub use daemon::Daemon;
pub use engine::{AsCaller, Caller, CheckReport, DEFAULT_BPFFS, Engine, Recovery};
pub use hooks::{infos as hooks, policies};
pub use link::link;
pub use policy::compile;
pub use service::Arbiters;
