//! How many system calls a command makes.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Runs a command, its output thrown away, and counts its system calls and those
/// of the threads and processes it starts.
///
/// # Panics
/// When it cannot be started or traced, or fails.
#[must_use]
pub fn syscalls(command: &mut Command) -> u64 {
    const FOLLOW: i32 = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_EXITKILL;
    command.stdout(std::process::Stdio::null());
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    #[allow(clippy::zombie_processes, reason = "waitpid below takes it")]
    let child = command.spawn().expect("the command starts").id() as i32;
    // It stops after its exec.
    wait(child);
    ptrace(libc::PTRACE_SETOPTIONS, child, FOLLOW);
    ptrace(libc::PTRACE_SYSCALL, child, 0);
    let mut stops = 0;
    loop {
        let (tid, status) = wait(-1);
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            if tid == child {
                assert_eq!(status, 0, "{command:?} failed");
                // Each call stops at its entry and at its return.
                return stops / 2;
            }
            continue;
        }
        let signal = match libc::WSTOPSIG(status) {
            at_syscall if at_syscall == libc::SIGTRAP | 0x80 => {
                stops += 1;
                0
            }
            // A new thread's first stop, or the event of its start.
            libc::SIGTRAP | libc::SIGSTOP => 0,
            other => other,
        };
        ptrace(libc::PTRACE_SYSCALL, tid, signal);
    }
}

/// A tracee that stopped or ended, and its wait status. Only those of this
/// thread: tests beside this one have children of their own.
fn wait(pid: i32) -> (i32, i32) {
    let mut status = 0;
    // SAFETY: status lives for the call.
    let tid = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    assert!(tid > 0, "waitpid: {}", std::io::Error::last_os_error());
    (tid, status)
}

fn ptrace(request: libc::c_uint, tid: i32, data: i32) {
    // SAFETY: these requests take numbers.
    let done = unsafe { libc::ptrace(request, tid, 0_usize, data as libc::c_long) };
    // ESRCH: killed meanwhile; waitpid tells.
    let error = std::io::Error::last_os_error();
    assert!(done == 0 || error.raw_os_error() == Some(libc::ESRCH), "ptrace {request}: {error}");
}
