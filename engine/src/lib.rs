//! The arbiter: the code that owns dispatchers, decides who may deploy what,
//! and keeps the record.
//!
//! [`Engine`] is one code path, behind the daemon and behind `syrupctl` as root;
//! what can be asked of it is [`syrup_protocol::Arbiter`].

mod as_caller;
mod engine;
mod hooks;
mod lock;
mod maps;
mod policy;
mod watch;

pub use as_caller::{AsCaller, Caller};
pub use engine::{CheckReport, DEFAULT_BPFFS, Engine, Recovery, pins_last};
pub use hooks::{flags, infos as hooks, policies, specs};
pub use policy::{canonical, compile, linked};
pub use syrup_hook::process::raise_descriptor_limit;
pub use watch::Watch;
