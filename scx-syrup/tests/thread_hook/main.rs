//! The thread hook on a real sched_ext kernel, as root: one binary, so that a
//! virtual machine boots once for all of it. It wants four cores that run side
//! by side, whose time an emulator does not keep: what is asserted is counts,
//! order and shares. Times are the business of the target `thread_time`.

// Clippy knows tests by their attribute, and helpers have none.
#![allow(clippy::unwrap_used)]

mod containment;
mod deployments;
mod identity;
mod policies;
mod scheduling;
mod slots;
#[path = "../support/mod.rs"]
mod support;
mod told;
