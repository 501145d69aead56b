//! How fast and how fairly the thread hook schedules, and in which order where time would
//! disturb that, all where time is exact: in a
//! guest whose clock counts instructions (`vm/run --icount --cpus 3`), or with KVM.
//! Each bound holds in each round. Cores 1 and 2 are measured; core 0 has
//! everything else, the test's own thread included.

// Clippy knows tests by their attribute, and helpers have none.
#![allow(clippy::unwrap_used)]

mod cost;
mod latency;
mod neighbours;
mod order;
mod registering;
mod rescue;
mod shares;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::sync::Once;
use std::time::Duration;

use support::fixture::Fixture;
use support::workers::{self, allow, time_is_exact};

/// The cores that are measured.
const CORES: [u32; 2] = [1, 2];
/// The one of them that is measured where one does.
const CORE: u32 = CORES[0];
const OTHER_CORE: u32 = CORES[1];

/// Before this a thread runs that has not to wait for the end of a slice, or for a tick of 4 ms.
/// Most do after 0.12 ms. But the emulator runs one core at a time: a wake-up that comes from
/// another core waits for each that spins and is asked before, which has a third of a tick
/// (1.42 ms; measured of the kernel's own threads).
const AT_ONCE: Duration = Duration::from_millis(3);

/// A fixture; the caller stays on core 0 from now on.
fn fixture() -> Option<Fixture> {
    assert!(
        time_is_exact(),
        "bounds of time mean nothing here: run this in vm/run --icount --cpus 3 (SYRUP_VM tells)"
    );
    static QUIET: Once = Once::new();
    QUIET.call_once(|| keep_everything_off(&CORES));
    workers::confine_to(&CORES);
    allow(0, [0]);
    Fixture::resident()
}

/// Moves what is not the test's to the other cores, as far as the kernel lets it:
/// an ordinary thread outranks what is measured, for milliseconds when it is
/// emulated. (`isolcpus=` would do it, but sched_ext refuses to start beside it.)
fn keep_everything_off(cores: &[u32]) {
    // Of the machine: an earlier run may have moved this process as well.
    // SAFETY: no memory is passed.
    let nr_cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } as u32;
    let others: Vec<u32> = (0..nr_cpus).filter(|cpu| !cores.contains(cpu)).collect();
    assert!(others.contains(&0) && nr_cpus as usize == others.len() + cores.len(), "needs 3 CPUs");
    let mask = format!("{:x}", others.iter().fold(0_u64, |mask, cpu| mask | 1 << cpu));
    // Whoever is bound to a core, or has ended, stays where it is.
    let _ = fs::write("/sys/devices/virtual/workqueue/cpumask", &mask);
    for irq in fs::read_dir("/proc/irq").into_iter().flatten().flatten() {
        let _ = fs::write(irq.path().join("smp_affinity"), &mask);
    }
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let tasks = fs::read_dir(process.path().join("task"));
        for task in tasks.into_iter().flatten().flatten() {
            if let Some(tid) = task.file_name().to_str().and_then(|tid| tid.parse().ok()) {
                let _ = workers::try_allow(tid, others.iter().map(|&cpu| cpu as usize));
            }
        }
    }
}
