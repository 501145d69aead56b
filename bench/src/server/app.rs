//! The server as an app of Syrup: registers its sockets and threads, and
//! shares the type of the request that each thread serves.

use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;

use anyhow::Result;

/// Name of the Map that policies read the request types from.
pub const REQUEST_TYPE: &str = "request_type";

/// The app, or none.
pub struct App {
    private: Vec<AtomicU64>,
}

impl App {
    /// Opens what `name` shares.
    pub fn open(_name: Option<&str>, threads: u32) -> Result<Self> {
        Ok(Self { private: (0..threads).map(|_| AtomicU64::new(0)).collect() })
    }

    /// The entry of thread `index`.
    #[must_use]
    pub fn request_type(&self, index: u32) -> &AtomicU64 {
        &self.private[index as usize]
    }

    /// Registers a socket.
    pub fn register_socket(&self, _socket: BorrowedFd<'_>, _index: u32) -> Result<()> {
        Ok(())
    }

    /// Registers the calling thread.
    pub fn register_this_thread(&self, _index: u32) -> Result<()> {
        Ok(())
    }

    /// What is registered where.
    #[must_use]
    pub fn describe(&self) -> String {
        "no app".to_owned()
    }
}
