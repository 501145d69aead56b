//! What a deployment costs: the kernel's own account of the dispatcher's time.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use syrup_hook::{App, Error, Result};

use super::SPEC;
use super::pins;

/// Time and number of runs since accounting was turned on, with what was
/// tail-called included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunTime {
    /// Sum over all runs.
    pub total_ns: u64,
    /// Number of runs.
    pub runs: u64,
}

impl RunTime {
    /// The runs since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            total_ns: self.total_ns.saturating_sub(earlier.total_ns),
            runs: self.runs.saturating_sub(earlier.runs),
        }
    }

    /// Mean time of a run; `None` without runs.
    #[must_use]
    pub fn mean_ns(self) -> Option<f64> {
        (self.runs > 0).then(|| self.total_ns as f64 / self.runs as f64)
    }
}

/// Has the kernel account every BPF program's time until the fd is closed. The
/// accounting reads the clock twice per run, some 20 to 40 ns.
///
/// # Errors
/// [`Error::Kernel`] without CAP_SYS_ADMIN.
pub fn count_run_time() -> Result<OwnedFd> {
    // SAFETY: a plain call; it returns an fd or a negative errno.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    if fd < 0 {
        let reason = std::io::Error::from_raw_os_error(-fd);
        return Err(Error::kernel("turn on the accounting of BPF run times", reason));
    }
    // SAFETY: the kernel just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the app's dispatchers at socket-select, with its policy, have used.
///
/// # Errors
/// [`Error::Kernel`] when the app has no deployment there.
pub fn run_time(app: &App) -> Result<RunTime> {
    let mut sum = RunTime::default();
    for dispatcher in pins::dispatchers(&app.hook_dir(&SPEC))? {
        let used = program_run_time(dispatcher.as_fd())?;
        sum.total_ns += used.total_ns;
        sum.runs += used.runs;
    }
    Ok(sum)
}

/// What a BPF program has used.
///
/// # Errors
/// [`Error::Kernel`] when the fd is no program's.
pub fn program_run_time(program: BorrowedFd<'_>) -> Result<RunTime> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: info is a zeroed bpf_prog_info and len its size.
    let err = unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut len)
    };
    if err < 0 {
        let reason = std::io::Error::from_raw_os_error(-err);
        return Err(Error::kernel("read the run time of a BPF program", reason));
    }
    Ok(RunTime { total_ns: info.run_time_ns, runs: info.run_cnt })
}
