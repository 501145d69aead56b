//! What the kernel has, asked of the kernel.

use std::collections::BTreeSet;

/// Walks the ids of one kind of object. Ids only: opening a PROG_ARRAY while the
/// kernel is still emptying it (seen on 6.18) keeps it from ever being freed.
fn ids(next: unsafe extern "C" fn(u32, *mut u32) -> i32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut id = 0;
    // SAFETY: `next` is one of libbpf's get_next_id calls, which write one u32.
    while unsafe { next(id, &raw mut id) } == 0 {
        found.insert(id);
    }
    found
}

/// Ids of all BPF programs, maps and links: taken before and after, equal when
/// nothing was left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelObjects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl KernelObjects {
    /// All objects there are now.
    #[must_use]
    pub fn now() -> Self {
        Self {
            programs: ids(libbpf_sys::bpf_prog_get_next_id),
            maps: ids(libbpf_sys::bpf_map_get_next_id),
            links: ids(libbpf_sys::bpf_link_get_next_id),
        }
    }

    /// Objects that are here and were not in `before`. The kernel frees some
    /// of them after a grace period, so callers poll.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        let new = |kind: &str, now: &BTreeSet<u32>, then: &BTreeSet<u32>| {
            now.difference(then).map(|id| format!("{kind} {id}")).collect::<Vec<_>>()
        };
        let mut left = new("program", &self.programs, &before.programs);
        left.extend(new("map", &self.maps, &before.maps));
        left.extend(new("link", &self.links, &before.links));
        left
    }
}

/// Scheduling class of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadClass {
    /// EEVDF.
    Fair,
    /// sched_ext.
    Ext,
    /// Something else.
    Other(i32),
}

/// The class of thread `tid`.
///
/// # Panics
/// When there is no such thread.
#[must_use]
pub fn sched_class(tid: i32) -> ThreadClass {
    // SAFETY: the call takes a number and touches no memory of ours.
    match unsafe { libc::sched_getscheduler(tid) } {
        0 => ThreadClass::Fair,
        7 => ThreadClass::Ext,
        -1 => panic!("thread {tid}: {}", std::io::Error::last_os_error()),
        other => ThreadClass::Other(other),
    }
}
