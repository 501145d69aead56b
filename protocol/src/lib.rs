//! All that is said to the arbiter: what can be asked and is answered ([`Call`],
//! [`Reply`]), the one form of a failure, and how they travel (varlink interface
//! `org.syrup.Arbiter1`, with descriptors beside the messages).
//!
//! The engine implements [`Arbiter`] in-process, [`Client`] over the daemon's
//! socket. Under terms that let applications link it.

pub mod call;
mod client;
pub mod connection;
mod deployment;
mod failure;
mod info;
pub mod names;
mod policy;
pub mod varlink;
pub mod wire;

pub use call::{
    Arbiter, Call, Entries, LoadRequest, Registration, ReplaceRequest, Reply, SetRequest,
};
pub use client::Client;
pub use deployment::{Deployment, Facts, Health, Input, Kind, Proto, Word};
pub use failure::{Code, Failure, Result};
pub use info::{AppInfo, HookInfo, MapEntry, MapInfo, PolicyInfo};
pub use policy::{MAX_OBJECT_BYTES, MAX_SOURCE_BYTES, PolicySource};
pub use varlink::DEFAULT_SOCKET;
