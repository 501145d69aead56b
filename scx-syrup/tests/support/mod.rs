//! What both targets of the thread hook's tests use, `thread_hook` and `thread_time`.

// Each target uses a part.
#![allow(dead_code)]

pub mod fixture;
pub mod order;
pub mod policy;
pub mod workers;
