//! Packet hooks: where policies choose who gets a packet or a connection.
//!
//! * [`SocketSelect`]: the socket of a reuseport group, for UDP datagrams and
//!   TCP connections.
//! * [`run_time`]: what a deployment costs per packet.

mod socket_select;

use syrup_hook::Builtin;

pub use socket_select::run_time::{RunTime, count_run_time, program_run_time, run_time};
pub use socket_select::{SPEC as SOCKET_SELECT, SocketSelect, Target};

/// Policies for packets. One source fits every packet hook.
pub const POLICIES: &[Builtin] = include!(concat!(env!("OUT_DIR"), "/policies.rs"));
