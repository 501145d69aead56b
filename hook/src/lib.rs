//! What all hooks share: how each is described ([`Spec`]), what it must do ([`Hook`]), what
//! is done with its deployments ([`Deploy`]), and the few steps by which a linked policy
//! becomes a loaded program.
//!
//! Hooks keep no state of their own. Whatever they must know later is pinned
//! below the app's folder in bpffs and read back from there, so that a process
//! that dies at any moment leaves nothing that the next one cannot understand.

mod deploy;
mod error;
mod freed;
mod hook;
mod inline;
mod load;
pub mod netns;
pub mod pin;
mod policy;
pub mod process;
pub mod record;
pub mod spec;
pub mod sys;

pub use deploy::{Deploy, Dir, hex};
pub use error::{Error, Result, verifier_lines, verifier_tail};
pub use freed::{Held, program_in_use};
pub use hook::{App, Changes, Counters, End, Hook, Observed, Probe, target};
pub use load::{LoadedProgram, PolicyObject, inline_schedule, set_constant};
pub use policy::{Builtin, Linked, POLICY_PROGRAM};
pub use spec::{Constant, Flag, Spec, Syntax, Who};
pub use syrup_protocol::{Deployment, Facts, Health, Input, Kind, Proto, Registration};
