//! What the kernel has, asked of the kernel.

use std::collections::BTreeSet;

use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};

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
            programs: ProgInfoIter::default().map(|program| program.id).collect(),
            maps: MapInfoIter::default().map(|map| map.id).collect(),
            links: LinkInfoIter::default().map(|link| link.id).collect(),
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
