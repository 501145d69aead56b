//! Waiting until the kernel has freed what nobody holds any more, which takes some RCU
//! grace periods.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

/// Kernel ids of what a folder pins.
#[derive(Debug, Default)]
pub struct Held {
    programs: Vec<u32>,
    maps: Vec<u32>,
}

impl Held {
    /// What is pinned in `dir` under these names; what is not there is not held.
    #[must_use]
    pub fn of(dir: &Path, programs: &[&str], maps: &[&str]) -> Self {
        let open = |name: &&str| sys::obj_get(&dir.join(name)).ok().flatten();
        let program = |name| sys::program_id(open(name)?.as_fd()).ok();
        let map = |name| Some(sys::map_info(open(name)?.as_fd()).ok()?.id);
        Self {
            programs: programs.iter().filter_map(program).collect(),
            maps: maps.iter().filter_map(map).collect(),
        }
    }

    /// Waits until they are gone, for `limit` at most. Those that stay have another
    /// user: no failure, so it is only said to the log, of `what`.
    pub fn wait_until_freed(&self, limit: Duration, what: &str) {
        let deadline = Instant::now() + limit;
        loop {
            let programs = self.programs.iter().filter(|&&id| program_exists(id)).count();
            let maps = self.maps.iter().filter(|&&id| map_exists(id)).count();
            if programs + maps == 0 {
                return;
            }
            if Instant::now() > deadline {
                log::warn!(
                    "{what}: {programs} programs and {maps} maps are still in use by others"
                );
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether a program that we let go of has another user after `limit` still.
#[must_use]
pub fn program_in_use(program: u32, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while program_exists(program) {
        if Instant::now() > deadline {
            return true;
        }
        thread::sleep(Duration::from_millis(2));
    }
    false
}

/// Asked by walking the ids, not by opening the object: a PROG_ARRAY that gets
/// a new user while the kernel is still emptying it for want of users is never
/// freed (its deferred clearing takes a reference per time the users are gone,
/// and drops one per run; seen on 6.18).
fn program_exists(id: u32) -> bool {
    let mut next = 0;
    // SAFETY: the kernel writes an id to next.
    let err = unsafe { libbpf_sys::bpf_prog_get_next_id(id.wrapping_sub(1), &raw mut next) };
    err == 0 && next == id
}

fn map_exists(id: u32) -> bool {
    let mut next = 0;
    // SAFETY: the kernel writes an id to next.
    let err = unsafe { libbpf_sys::bpf_map_get_next_id(id.wrapping_sub(1), &raw mut next) };
    err == 0 && next == id
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

    use syrup_tests::{Need, require};

    use super::*;

    /// A program that accepts every packet.
    fn program() -> OwnedFd {
        let instruction = |code| libbpf_sys::bpf_insn { code, ..Default::default() };
        // r0 = 0; exit
        let code = [instruction(0xb7), instruction(0x95)];
        // SAFETY: the strings and `code` live during the call, which is told its length; the
        // fd that it returns is nobody else's.
        unsafe {
            let fd = libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER,
                c"test".as_ptr(),
                c"GPL".as_ptr(),
                code.as_ptr(),
                code.len() as libbpf_sys::size_t,
                std::ptr::null_mut(),
            );
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        }
    }

    #[test]
    fn what_somebody_holds_exists_and_else_it_does_not() {
        if !require(&[Need::Root]) {
            return;
        }
        let (held, map) = (program(), crate::pin::create_array("test", 8, 1).unwrap());
        assert!(program_exists(sys::program_id(held.as_fd()).unwrap()));
        assert!(map_exists(sys::map_info(map.as_fd()).unwrap().id));
        // Ids count from 1, and not so far in the life of a machine.
        assert!(!program_exists(u32::MAX) && !map_exists(u32::MAX));
    }
}
