//! Syrup for applications: deploy policies, register executors, share Maps.
//!
//! ```no_run
//! use std::net::UdpSocket;
//!
//! # fn main() -> Result<(), syrup::Error> {
//! # let socket = UdpSocket::bind("127.0.0.1:9000").unwrap();
//! // A worker: its socket and itself under one index, so that a packet policy
//! // can name the thread it wakes.
//! let index = syrup::register_socket(&socket, None)?;
//! match syrup::register_thread(0, Some(index)) {
//!     Err(syrup::Error::NotDeployed { .. }) => {} // no thread policy: EEVDF schedules it
//!     other => drop(other?),
//! }
//! // What the policies read, in nanoseconds.
//! let request_type = syrup::Map::open("request_type")?.mmap()?;
//! request_type.store(index as usize, 2);
//! # Ok(())
//! # }
//! ```
//!
//! The library speaks to the daemon `syrupd` and needs no privilege. It loads
//! no BPF program, starts no thread, and links neither libbpf nor libelf. The
//! same as C functions: `include/syrup/syrup.h`, `libsyrup.so`.
//!
//! | variable | meaning | else |
//! |---|---|---|
//! | `SYRUP_APP` | the app's name | the executable's name |
//! | `SYRUP_SOCKET` | where the daemon listens | `/run/syrup/syrupd.sock` |
//! | `SYRUP_BPFFS` | where the daemon pins | `/sys/fs/bpf/syrup` |

mod app;
mod error;
mod ffi;
mod map;

use std::os::fd::AsFd;
use std::path::Path;

pub use app::{App, Deployment};
pub use aya::Pod;
pub use error::{Error, Result};
pub use map::{Map, MappedMap};
pub use syrup_protocol::Code;

/// [`App::deploy_policy`] for this process's app.
///
/// # Errors
/// See there.
pub fn deploy_policy(policy: impl AsRef<Path>, hook: &str) -> Result<Deployment> {
    App::current().deploy_policy(policy, hook)
}

/// [`App::register_socket`] for this process's app.
///
/// # Errors
/// See there.
pub fn register_socket(socket: impl AsFd, index: Option<u32>) -> Result<u32> {
    App::current().register_socket(socket, index)
}

/// [`App::register_thread`] for this process's app.
///
/// # Errors
/// See there.
pub fn register_thread(tid: i32, index: Option<u32>) -> Result<u32> {
    App::current().register_thread(tid, index)
}

/// [`App::unregister_socket`] for this process's app.
///
/// # Errors
/// See there.
pub fn unregister_socket(socket: impl AsFd) -> Result<()> {
    App::current().unregister_socket(socket)
}

/// [`App::unregister_thread`] for this process's app.
///
/// # Errors
/// See there.
pub fn unregister_thread(tid: i32) -> Result<()> {
    App::current().unregister_thread(tid)
}
