//! All that is said to the arbiter: what can be asked ([`Arbiter`]), the requests
//! and replies, the one form of a failure, and how they travel (varlink interface
//! `org.syrup.Arbiter1`, with descriptors beside the messages).
//!
//! The engine implements [`Arbiter`] in-process, [`Client`] over the daemon's
//! socket. Under terms that let applications link it.

mod arbiter;
mod client;
mod deployment;
mod failure;
pub mod names;
pub mod reply;
pub mod request;
pub mod varlink;
pub mod wire;

pub use arbiter::{Arbiter, Registration};
pub use client::Client;
pub use deployment::{Deployment, Facts, Health, Input, Kind, Proto};
pub use failure::{Code, Failure, Result};
pub use reply::{AppInfo, Entries, HookInfo, MapEntry, MapInfo, PolicyInfo};
pub use request::{LoadRequest, PolicySource, ReplaceRequest};
pub use varlink::DEFAULT_SOCKET;
