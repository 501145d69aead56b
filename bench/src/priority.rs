//! How, and where, the calling thread is scheduled by the kernel's own classes.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// EEVDF grants slices up to this (`sched_setattr(2)`).
pub const LONGEST_SLICE_US: u64 = 100_000;

/// SCHED_FIFO at `priority` (1..=99) for the calling thread. Needs root.
pub fn set_fifo(priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` lives across the call; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps the calling thread, and those it starts from now on, on these CPUs.
pub fn set_cpus(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::other(format!("there is no CPU {cpu}")));
        }
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// The CPUs on which the calling thread may run.
pub fn cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// EEVDF's slice of the calling thread, 100 us to 100 ms (Linux 6.12).
pub fn set_slice_us(slice_us: u64) -> io::Result<()> {
    if !(100..=LONGEST_SLICE_US).contains(&slice_us) {
        return Err(io::Error::other(format!(
            "EEVDF slices are 100 to {LONGEST_SLICE_US} us, not {slice_us}"
        )));
    }
    // SAFETY: sched_attr is plain numbers; all zero is SCHED_OTHER, nice 0.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = size_of::<libc::sched_attr>() as u32;
    attr.sched_runtime = slice_us * 1000;
    // SAFETY: `attr` lives across the call, its size is in it; 0 is the
    // calling thread, the flags are none.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attr, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Timers of the calling thread fire when they are due, not up to 50 us later.
pub fn set_timer_slack_ns(slack_ns: u64) -> io::Result<()> {
    // SAFETY: PR_SET_TIMERSLACK takes a number.
    match unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack_ns, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_outside_eevdfs_range_are_refused() {
        assert!(set_slice_us(99).is_err());
        assert!(set_slice_us(100_001).is_err());
    }

    #[test]
    fn a_thread_stays_where_it_was_put() {
        std::thread::spawn(|| {
            let last = *cpus().unwrap().last().unwrap();
            set_cpus(&[last]).unwrap();
            assert_eq!(cpus().unwrap(), [last]);
            assert_eq!(std::thread::available_parallelism().unwrap().get(), 1);
            let child = std::thread::spawn(|| cpus().unwrap()).join().unwrap();
            assert_eq!(child, [last]);
            assert!(set_cpus(&[]).is_err());
            assert!(set_cpus(&[usize::MAX]).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn any_thread_may_take_a_slice_and_exact_timers() {
        std::thread::spawn(|| {
            set_slice_us(10_000).unwrap();
            set_timer_slack_ns(1).unwrap();
        })
        .join()
        .unwrap();
    }
}
