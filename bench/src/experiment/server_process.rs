//! The server as a process of its own, so that its scheduling class, its
//! registration and its end are those of a real application.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::stack::{Stack, dies_with_us, stop_child};
use super::temporary;
use crate::interrupt;
use crate::server::Summary;

/// A running server; stopped on drop.
pub struct ServerProcess {
    child: Child,
    _folder: tempfile::TempDir,
}

// Under emulation, opening and warming the database is most of this.
const READY_LIMIT: Duration = Duration::from_secs(180);
const STOP_LIMIT: Duration = Duration::from_secs(30);

impl ServerProcess {
    /// Starts `syrup-bench server` with these arguments and waits until every
    /// socket is bound and registered.
    pub fn start(arguments: &[String], stack: Option<&Stack>) -> Result<Self> {
        let folder = temporary::folder()?;
        let ready: PathBuf = folder.path().join("ready");
        // This very program, also when a newer one was built in its place.
        let mut command = Command::new("/proc/self/exe");
        command.arg("server").args(arguments).arg("--ready").arg(&ready);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(stack) = stack {
            command.env("SYRUP_SOCKET", stack.socket()).env("SYRUP_BPFFS", stack.bpffs());
        }
        let child = dies_with_us(&mut command).spawn().context("cannot start the server")?;
        let mut server = Self { child, _folder: folder };
        let deadline = Instant::now() + READY_LIMIT;
        while !ready.exists() {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended at once ({status}): {}", server.messages());
            }
            interrupt::check()?;
            ensure!(
                Instant::now() < deadline,
                "the server is not ready after {} s",
                READY_LIMIT.as_secs()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Ends the server; what it served.
    pub fn stop(mut self) -> Result<Summary> {
        stop_child(&mut self.child, STOP_LIMIT);
        let status = self.child.wait()?;
        ensure!(status.success(), "the server failed ({status}): {}", self.messages());
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text)?;
        }
        serde_json::from_str(&text).context("the server printed no summary")
    }

    fn messages(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut text);
        }
        text.trim().to_owned()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            stop_child(&mut self.child, STOP_LIMIT);
        }
    }
}
