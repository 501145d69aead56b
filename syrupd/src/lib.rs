//! The arbiter: the code that owns dispatchers, decides who may deploy what,
//! and keeps the record.
//!
//! * [`Arbiter`]: what can be asked; implemented by the engine in-process and
//!   by the client over the daemon's socket.
//! * [`Error`]: one error with an exit code, for both.

mod arbiter;
mod base64;
mod error;

pub use arbiter::{
    AppInfo, Arbiter, DeploymentInfo, HookInfo, LoadRequest, MapEntry, MapInfo, PolicyInfo,
    PolicySource, Registration, ReplaceRequest,
};
pub use error::{Code, Error, Result};
