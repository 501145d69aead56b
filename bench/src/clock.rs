//! Clocks. Everything that is compared is CLOCK_MONOTONIC in nanoseconds.

use rustix::thread::ClockId;
use rustix::time::{Timespec, clock_gettime};

/// Now.
#[must_use]
pub fn now_ns() -> u64 {
    nanoseconds(clock_gettime(rustix::time::ClockId::Monotonic))
}

/// CPU time that the calling thread has used.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(clock_gettime(rustix::time::ClockId::ThreadCPUTime))
}

/// Sleeps until `deadline_ns`; returns at once when it is past.
pub fn sleep_until(deadline_ns: u64) {
    let deadline = Timespec {
        tv_sec: (deadline_ns / 1_000_000_000) as i64,
        tv_nsec: (deadline_ns % 1_000_000_000) as i64,
    };
    while now_ns() < deadline_ns {
        // A signal ends the sleep early: go on until the deadline.
        if rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &deadline).is_ok() {
            return;
        }
    }
}

fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_ends_after_its_deadline() {
        let deadline = now_ns() + 2_000_000;
        sleep_until(deadline);
        assert!(now_ns() >= deadline);
        sleep_until(0);
    }
}
