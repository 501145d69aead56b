//! `syrup/abi.h` as Rust sees it; the header carries the documentation.
#![allow(missing_docs, non_camel_case_types, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/abi.rs"));

/// Names of [`syrup_counter`] values, in order, as status and metrics print them.
pub const COUNTER_NAMES: [&str; SYRUP_NR_COUNTERS as usize] = [
    "inputs",
    "chosen",
    "passed",
    "dropped",
    "out_of_range",
    "enforce_failed",
    "no_policy",
    "rescued",
];
