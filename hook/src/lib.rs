//! What all hooks share: their names, the trait they implement, and the few
//! steps by which a linked policy becomes a loaded program.
//!
//! Hooks keep no state of their own. Whatever they must know later is pinned
//! below the app's folder in bpffs and read back from there, so that a process
//! that dies at any moment leaves nothing that the next one cannot understand.

mod error;
mod freed;
mod hook;
mod id;
mod load;
pub mod pin;
mod policy;
pub mod process;
pub mod sys;

pub use error::{Error, Result, verifier_lines, verifier_tail};
pub use freed::Held;
pub use hook::{App, Counters, Deployment, Health, Hook, Probe, Target, Verdicts};
pub use id::{HookId, Input, Proto, UnknownHook};
pub use load::{LoadedProgram, PolicyObject, constant, route_libbpf_messages, set_constant};
pub use policy::{Builtin, Linked, POLICY_PROGRAM};
pub use syrup_protocol::{Kind, Registration};
