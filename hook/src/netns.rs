//! Network namespaces: which one a thread is in, and how to look into another.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Result, process};

/// Names the network namespace a socket lives in.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.14.
pub fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: cookie has len bytes.
    let err = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if err < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Names the network namespace of the calling thread.
///
/// # Errors
/// [`Error::Kernel`].
pub fn own_cookie() -> Result<u64> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| Error::kernel("make a socket", e))?;
    cookie_of(socket.as_fd()).map_err(|e| Error::kernel("read the network namespace's cookie", e))
}

/// The network namespace of a process.
///
/// # Errors
/// [`Error::NotFound`] when there is no such process, [`Error::Kernel`] when we may not look.
pub fn of_process(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/net");
    match File::open(&path) {
        Ok(file) => Ok(file.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(process::no_such(pid)),
        Err(e) => Err(Error::kernel(format!("open {path}"), e)),
    }
}

/// Runs `f` in a network namespace, on a thread of its own.
///
/// # Errors
/// [`Error::Kernel`] when we may not enter it.
pub fn within<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> Result<T> {
    let entered = || {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .map_err(|e| Error::kernel("enter a network namespace", e))?;
        Ok(f())
    };
    thread::scope(|scope| {
        let entered = thread::Builder::new()
            .spawn_scoped(scope, entered)
            .map_err(|e| Error::kernel("start a thread", e))?;
        entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `f` in the network namespace of that cookie; `None` when no process that we may
/// look into is in it. `hint` may be one of its processes.
///
/// # Errors
/// [`Error::Kernel`].
pub fn within_cookie<T: Send>(
    cookie: u64,
    hint: Option<i32>,
    f: impl FnOnce() -> T + Send,
) -> Result<Option<T>> {
    if own_cookie()? == cookie {
        return Ok(Some(f()));
    }
    let is_it = |netns: &OwnedFd| matches!(within(netns.as_fd(), own_cookie), Ok(Ok(found)) if found == cookie);
    let hinted = hint.and_then(|pid| of_process(pid).ok()).filter(is_it);
    let Some(netns) = hinted.or_else(|| all().into_iter().find(is_it)) else { return Ok(None) };
    within(netns.as_fd(), f).map(Some)
}

/// The network namespaces of all processes that we may look into, each once.
#[must_use]
pub fn all() -> Vec<OwnedFd> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for pid in process::all() {
        let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
        if seen.insert(link)
            && let Ok(netns) = of_process(pid)
        {
            found.push(netns);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_is_found_by_its_cookie() {
        let own = own_cookie().unwrap();
        assert_eq!(within_cookie(own, None, || 7).unwrap(), Some(7));
        assert_ne!(own, 0);
        assert!(matches!(of_process(i32::MAX), Err(Error::NotFound { .. })));
    }
}
