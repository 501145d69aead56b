//! Other processes' sockets and threads.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Once;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, getrlimit, setrlimit};

use crate::{Error, Result};

/// A pidfd: names this process even after its id was recycled.
///
/// # Errors
/// [`Error::NotFound`] when there is no such process.
pub fn open(pid: i32) -> Result<OwnedFd> {
    let no_such = || no_such(pid);
    let id = Pid::from_raw(pid).ok_or_else(no_such)?;
    match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
        Ok(fd) => Ok(fd),
        Err(rustix::io::Errno::SRCH) => Err(no_such()),
        Err(e) => Err(Error::kernel(format!("open process {pid}"), e)),
    }
}

pub(crate) fn no_such(pid: i32) -> Error {
    Error::NotFound {
        what: format!("there is no process {pid}"),
        advice: "give the id of a running process".to_owned(),
    }
}

/// A thread, and nobody who gets its id when it ends. One that calls exec takes the id of its
/// process: then this is of whoever has that by now.
#[derive(Debug)]
pub struct Thread {
    tid: i32,
    pidfd: OwnedFd,
}

impl Thread {
    /// `None` when there is no thread of that id.
    ///
    /// # Errors
    /// [`Error::Kernel`], so before Linux 6.9.
    pub fn open(tid: i32) -> Result<Option<Self>> {
        // PIDFD_THREAD: of a single thread.
        let flags = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());
        match Pid::from_raw(tid.max(0)).map(|id| rustix::process::pidfd_open(id, flags)) {
            Some(Ok(pidfd)) => Ok(Some(Self { tid, pidfd })),
            None | Some(Err(rustix::io::Errno::SRCH)) => Ok(None),
            Some(Err(e)) => Err(Error::kernel(format!("open thread {tid}"), e)),
        }
    }

    /// Its id, while it has not ended.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Whether it has: what was done by its id before may have been done to another one.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn has_ended(&self) -> Result<bool> {
        let mut ends = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ended = poll(&mut ends, Some(&Timespec::default()));
        ended.map(|n| n > 0).map_err(|e| Error::kernel(format!("look at thread {}", self.tid), e))
    }
}

impl AsFd for Thread {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// All processes, by id.
#[must_use]
pub fn all() -> BTreeSet<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The thread (or process) that has `id` in the process namespace of `of`, by its id in
/// ours. `None` when there is none, or none that we see.
#[must_use]
pub fn from_namespace_of(of: i32, id: i32) -> Option<i32> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    let theirs = namespace(&of.to_string())?;
    if Some(&theirs) == namespace("self").as_ref() {
        return Some(id);
    }
    let has_id = |path: String| {
        let status = fs::read_to_string(path).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        // The last is the one in its own namespace.
        ids.and_then(|ids| ids.split_whitespace().last()?.parse().ok()) == Some(id)
    };
    let thread_of = |pid: i32| {
        let threads = threads(pid).unwrap_or_default();
        threads.into_iter().find(|tid| has_id(format!("/proc/{pid}/task/{tid}/status")))
    };
    // Whoever asks mostly asks for itself.
    thread_of(of).or_else(|| {
        let others =
            all().into_iter().filter(|pid| namespace(&pid.to_string()).as_ref() == Some(&theirs));
        others.into_iter().find_map(thread_of)
    })
}

/// Has this process open as many files as it may at most: all sockets of a server pass through
/// its hands at once. The soft limit is kept low for select(2), which nobody here uses; what is
/// started from then on inherits it.
///
/// # Errors
/// The kernel's.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// The sockets of a process whose inodes are `wanted`, by fd number, duplicated into
/// ours (pidfd_getfd: needs ptrace rights over it). Raises the limit of open files
/// ([`raise_descriptor_limit`]).
///
/// # Errors
/// [`Error::NotFound`] when there is no such process, [`Error::Kernel`] without the right
/// or when they are more than we may have open.
pub fn sockets(pid: i32, wanted: impl Fn(u64) -> bool) -> Result<Vec<(i32, OwnedFd)>> {
    static RAISE: Once = Once::new();
    RAISE.call_once(|| {
        if let Err(e) = raise_descriptor_limit() {
            log::info!("cannot raise the number of open files: {e}");
        }
    });
    let pidfd = open(pid)?;
    let dir = format!("/proc/{pid}/fd");
    let mut numbers = Vec::new();
    for entry in fs::read_dir(&dir).map_err(|e| Error::kernel(format!("read {dir}"), e))? {
        let entry = entry.map_err(|e| Error::kernel(format!("read {dir}"), e))?;
        let inode = fs::read_link(entry.path()).ok().and_then(|target| socket_inode(&target));
        if inode.is_some_and(&wanted)
            && let Ok(number) = entry.file_name().to_string_lossy().parse::<i32>()
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    let mut sockets = Vec::new();
    for number in numbers {
        match rustix::process::pidfd_getfd(pidfd.as_fd(), number, PidfdGetfdFlags::empty()) {
            Ok(fd) => sockets.push((number, fd)),
            // Closed meanwhile.
            Err(rustix::io::Errno::BADF) => {}
            Err(e) => {
                return Err(Error::kernel(format!("take socket {number} of process {pid}"), e));
            }
        }
    }
    Ok(sockets)
}

/// The inodes of the sockets a process holds; none when it ended or may not be looked into.
#[must_use]
pub fn socket_inodes(pid: i32) -> BTreeSet<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    entries.filter_map(|entry| socket_inode(&fs::read_link(entry.ok()?.path()).ok()?)).collect()
}

/// Of the target of a link in /proc/PID/fd; `None` when it is no socket.
#[must_use]
pub fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The threads of a process, in order of their ids (the leader first).
///
/// # Errors
/// [`Error::NotFound`] when there is no such process.
pub fn threads(pid: i32) -> Result<Vec<i32>> {
    let dir = format!("/proc/{pid}/task");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(no_such(pid));
        }
        Err(e) => return Err(Error::kernel(format!("read {dir}"), e)),
    };
    let mut tids: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_string_lossy().parse().ok())
        .collect();
    tids.sort_unstable();
    Ok(tids)
}

/// Whether a thread is one of a process's.
#[must_use]
pub fn has_thread(pid: i32, tid: i32) -> bool {
    fs::exists(format!("/proc/{pid}/task/{tid}")).unwrap_or(false)
}

/// Is there such a process? One that ended and was not waited for still is.
#[must_use]
pub fn is_running(pid: i32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// The process a thread belongs to.
#[must_use]
pub fn tgid_of(tid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}
