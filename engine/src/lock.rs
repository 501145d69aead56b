//! One process at a time changes what is pinned.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW};
use syrup_protocol::{Code, Failure, Result};

/// How long a call waits for another process that holds the lock.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Root's, so that others cannot fill it; searchable, so that they reach their Maps.
const MODE: u32 = 0o711;

/// The right to change what is pinned below a root of all pins. One that is empty in the end
/// goes; else its time tells when somebody last had the right.
#[derive(Debug)]
pub(crate) struct Lock<'a> {
    bpffs: &'a Path,
    folder: OwnedFd,
}

impl<'a> Lock<'a> {
    /// Takes it. The lock is on the folder itself, which is made for it, and which root alone
    /// can open; the kernel drops it when the holder dies.
    pub(crate) fn take(bpffs: &'a Path) -> Result<Self> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(folder) = try_take(bpffs)? {
                return Ok(Self { bpffs, folder });
            }
            if Instant::now() >= deadline {
                let held = format!("another process holds the lock on {}", bpffs.display());
                return Err(Failure::new(Code::Timeout, held)
                    .advise(format!("find it with: fuser -v {}", bpffs.display())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Fails while anything is in it, which is the point.
        if fs::remove_dir(self.bpffs).is_err() {
            // What is pinned below it may be other than before.
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            let times = Timestamps { last_access: now, last_modification: now };
            let _ = rustix::fs::futimens(&self.folder, &times);
        }
    }
}

/// `None` while somebody else has it, or just removed the folder.
fn try_take(bpffs: &Path) -> Result<Option<OwnedFd>> {
    let failed = |what: &str, e: io::Error| {
        let code = match e.kind() {
            io::ErrorKind::PermissionDenied => Code::NotPermitted,
            _ => Code::Internal,
        };
        Failure::new(code, format!("cannot {what} {}: {e}", bpffs.display()))
    };
    // Nobody else opens it before it has its mode.
    match fs::DirBuilder::new().mode(0o700).create(bpffs) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make", e)),
        _ => {}
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::open(bpffs, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        other => other.map_err(|e| failed("open", e.into()))?,
    };
    let stat = rustix::fs::fstat(&folder).map_err(|e| failed("look at", e.into()))?;
    refuse_foreign(bpffs, &stat)?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        other => other.map_err(|e| failed("lock", e.into()))?,
    }
    let identity = |stat: &Stat| (stat.st_dev, stat.st_ino);
    if !rustix::fs::lstat(bpffs).is_ok_and(|there| identity(&there) == identity(&stat)) {
        return Ok(None);
    }
    // Whoever made it may have died before this.
    if stat.st_mode & 0o777 != MODE {
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(MODE))
            .map_err(|e| failed("set the mode of", e.into()))?;
    }
    Ok(Some(folder))
}

/// Refuses a root of pins that others could have filled: what is in it would be taken for
/// ours.
pub(crate) fn refuse_foreign(bpffs: &Path, root: &Stat) -> Result<()> {
    if root.st_uid == 0 && root.st_mode & 0o022 == 0 {
        return Ok(());
    }
    let path = bpffs.display();
    let message = format!(
        "{path} belongs to user {} with mode {:o}: others could have put pins there",
        root.st_uid,
        root.st_mode & 0o7777
    );
    Err(Failure::new(Code::Conflict, message)
        .advise(format!("look at what is in it, then 'rm -r {path}'")))
}
