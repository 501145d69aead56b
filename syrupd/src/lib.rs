//! The arbiter: the code that owns dispatchers, decides who may deploy what,
//! and keeps the record.
//!
//! * [`Arbiter`]: what can be asked; implemented by the engine in-process and
//!   by the client over the daemon's socket.
//! * [`Error`]: one error with an exit code, for both.

mod arbiter;
mod base64;
mod check;
mod engine;
mod error;
mod hooks;
mod lines;
mod link;
mod maps;
mod names;
mod params;
mod policy;
mod verifier;

pub use arbiter::{
    AppInfo, Arbiter, DeploymentInfo, HookInfo, LoadRequest, MapEntry, MapInfo, PolicyInfo,
    PolicySource, Registration, ReplaceRequest,
};
pub use engine::{AsCaller, Caller, CheckReport, DEFAULT_BPFFS, Engine, Recovery};
pub use error::{Code, Error, Result};
pub use hooks::{infos as hooks, policies};
pub use link::link;
pub use policy::compile;
