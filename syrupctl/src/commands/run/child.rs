//! The command: started, signalled, ended.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{cell::RefCell, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::backend::Handle;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use syrup_protocol::{Code, Failure, Result};

/// How long the command gets to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// Signals that end programs, held back for the command from now on.
pub struct Signals(SignalsInfo<WithOrigin>);

impl Signals {
    pub fn listen() -> Result<Self> {
        SignalsInfo::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])
            .map(Self)
            .map_err(|e| Failure::new(Code::Internal, format!("cannot listen for signals: {e}")))
    }
}

/// A running command. Ended, if it still runs, when this goes out of scope.
pub struct Child {
    process: RefCell<std::process::Child>,
    pidfd: Arc<OwnedFd>,
    ended: Cell<Option<u8>>,
    forwarding: Option<(Handle, JoinHandle<()>)>,
}

impl Child {
    pub fn start(
        command: &[OsString],
        environment: &[(&str, OsString)],
        signals: Signals,
    ) -> Result<Self> {
        let [program, arguments @ ..] = command else {
            return Err(Failure::new(Code::Usage, "no command was given"));
        };
        let mut process = Command::new(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .spawn()
            .map_err(|e| cannot_start(program, &e))?;
        // Ids come from the kernel: positive, and in use until this process waits.
        let pidfd = Pid::from_raw(process.id().cast_signed())
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = match pidfd {
            Ok(pidfd) => Arc::new(pidfd),
            Err(e) => {
                // A command that cannot be watched must not stay behind.
                let _ = process.kill().and_then(|()| process.wait());
                return Err(Failure::new(Code::Internal, format!("cannot watch the command: {e}")));
            }
        };
        let forwarding = Some(forward(signals, Arc::clone(&pidfd)));
        Ok(Self { process: process.into(), pidfd, ended: Cell::new(None), forwarding })
    }

    pub fn pid(&self) -> i32 {
        self.process.borrow().id().cast_signed()
    }

    /// Its exit code as a shell tells it, if it ends within this time.
    pub fn ended_within(&self, time: Duration) -> Result<Option<u8>> {
        if let Some(code) = self.ended.get() {
            return Ok(Some(code));
        }
        let failed = |e: io::Error| {
            Failure::new(Code::Internal, format!("cannot wait for the command: {e}"))
        };
        let timeout = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(e) => return Err(failed(e.into())),
        }
        let status = self.process.borrow_mut().wait().map_err(failed)?;
        self.ended.set(Some(exit_code(status)));
        Ok(self.ended.get())
    }

    /// SIGTERM, then SIGKILL.
    fn end(&self) {
        let running = |time| matches!(self.ended_within(time), Ok(None));
        if !running(Duration::ZERO) {
            return;
        }
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        if running(GRACE) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = self.process.borrow_mut().wait();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
        if let Some((handle, thread)) = self.forwarding.take() {
            handle.close();
            let _ = thread.join();
        }
    }
}

/// Passes signals on. The terminal's keys (Ctrl-C) reach the whole foreground
/// group: the command has those already, and a second one would mean "at once".
fn forward(signals: Signals, pidfd: Arc<OwnedFd>) -> (Handle, JoinHandle<()>) {
    let mut signals = signals.0;
    let handle = signals.handle();
    let thread = thread::spawn(move || {
        for origin in &mut signals {
            let signal = match origin.signal {
                SIGINT => Signal::INT,
                SIGHUP => Signal::HUP,
                SIGQUIT => Signal::QUIT,
                _ => Signal::TERM,
            };
            if origin.process.is_some() {
                // It may have ended meanwhile.
                let _ = pidfd_send_signal(&pidfd, signal);
            }
        }
    });
    (handle, thread)
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(1)
}

fn cannot_start(program: &OsStr, error: &io::Error) -> Failure {
    let message = format!("cannot start {}: {error}", program.display());
    Failure::new(Code::Usage, message).advise("give a program that exists and may be executed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        let command = ["sh", "-c", script].map(OsString::from);
        Child::start(&command, &[("SYRUP_APP", "a".into())], Signals::listen().unwrap()).unwrap()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn the_exit_code_is_told_as_a_shell_tells_it() {
        assert_eq!(shell("exit 7").ended_within(LONG), Ok(Some(7)));
        assert_eq!(shell("kill -9 $$").ended_within(LONG), Ok(Some(137)));
        assert_eq!(shell("test \"$SYRUP_APP\" = a").ended_within(LONG), Ok(Some(0)));
    }

    #[test]
    fn a_command_that_goes_out_of_scope_is_ended() {
        let child = shell("exec sleep 1000");
        let pid = child.pid();
        assert_eq!(child.ended_within(Duration::from_millis(1)), Ok(None));
        drop(child);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_command_that_does_not_exist_is_a_usage_error() {
        let error =
            Child::start(&["/does/not/exist".into()], &[], Signals::listen().unwrap()).err();
        assert_eq!(error.unwrap().code, Code::Usage);
    }
}
