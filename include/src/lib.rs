//! What kernel-side programs, the engine and applications agree on.
//!
//! * [`abi`]: the layouts and numbers of `syrup/abi.h`, through bindgen.
//! * [`HEADERS`]: the policy SDK, carried inside every binary that compiles policies.
//! * [`build`]: what the build scripts of hook crates share.
//! * [`compile`]: the one way a policy's C file becomes an object.

pub mod abi;
pub mod build;
mod compile;

pub use compile::{CompileError, Compiled, Compiler};

/// The policy SDK: file name below the include folder, and its text.
pub const HEADERS: &[(&str, &str)] = &[
    ("syrup/abi.h", include_str!("../syrup/abi.h")),
    ("syrup/policy.h", include_str!("../syrup/policy.h")),
    ("syrup/packet.h", include_str!("../syrup/packet.h")),
    ("syrup/thread.h", include_str!("../syrup/thread.h")),
];
