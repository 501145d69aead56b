//! The thread hook on a real sched_ext kernel, as root: one binary, so that a
//! virtual machine boots once for all of it. Where sched_ext is missing each
//! test says so and passes.

// Clippy knows tests by their attribute, and helpers have none.
#![allow(clippy::unwrap_used)]

mod deployments;
mod fixture;
mod policies;
mod scheduling;
mod workers;
