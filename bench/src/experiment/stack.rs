//! Syrup itself, as an experiment uses it: a daemon of its own, on its own
//! socket and pin folder, and `syrupctl` as a user would type it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::temporary;

/// Where the programs are.
#[derive(Debug, Clone, Args)]
pub struct Programs {
    /// syrupctl; default: beside this program.
    #[arg(long, value_name = "PATH")]
    pub syrupctl: Option<PathBuf>,
    /// syrupd; default: beside this program.
    #[arg(long, value_name = "PATH")]
    pub syrupd: Option<PathBuf>,
}

impl Programs {
    fn find(named: Option<&PathBuf>, name: &str) -> Result<PathBuf> {
        let path = match named {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name(name),
        };
        ensure!(
            path.exists(),
            "{} is missing: run `cargo build --release -p {name}`, or name it with --{name}",
            path.display()
        );
        Ok(path)
    }

    /// SHA-256 of all programs of an experiment, this one included.
    pub fn hashes(&self) -> Result<BTreeMap<String, String>> {
        let files = [
            ("syrup-bench", PathBuf::from("/proc/self/exe")),
            ("syrupctl", Self::find(self.syrupctl.as_ref(), "syrupctl")?),
            ("syrupd", Self::find(self.syrupd.as_ref(), "syrupd")?),
        ];
        let hash = |(name, path): (&str, PathBuf)| {
            let mut hash = Sha256::new();
            let mut file = std::fs::File::open(&path)?;
            std::io::copy(&mut file, &mut hash)?;
            let text = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            anyhow::Ok((name.to_owned(), text))
        };
        files.into_iter().map(hash).collect::<Result<_>>().context("cannot read the programs")
    }
}

/// A running daemon; stopped, and all it deployed removed, on drop.
pub struct Stack {
    syrupctl: PathBuf,
    bpffs: PathBuf,
    socket: PathBuf,
    daemon: Child,
    // Removed last.
    _folder: tempfile::TempDir,
}

/// Folder of an experiment's pins, before its process id.
const PINS: &str = "/sys/fs/bpf/syrup-bench-";
const DAEMON_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

impl Stack {
    /// Starts the daemon and waits until it answers.
    pub fn start(programs: &Programs) -> Result<Self> {
        let syrupctl = Programs::find(programs.syrupctl.as_ref(), "syrupctl")?;
        let syrupd = Programs::find(programs.syrupd.as_ref(), "syrupd")?;
        let folder = temporary::folder()?;
        let socket = folder.path().join("syrupd.sock");
        let bpffs = PathBuf::from(format!("{PINS}{}", std::process::id()));
        // The server asks at every hook: "no policy there" is no news here.
        let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned());
        remove_pins_of_the_dead();
        let mut daemon = Command::new(&syrupd);
        daemon.env("RUST_LOG", log).arg("--socket").arg(&socket).arg("--bpffs").arg(&bpffs);
        daemon.stdin(Stdio::null()).stdout(Stdio::null());
        let daemon = dies_with_us(&mut daemon)
            .spawn()
            .with_context(|| format!("cannot start {}", syrupd.display()))?;
        let mut stack = Self { syrupctl, bpffs, socket, daemon, _folder: folder };
        stack.wait_until_up()?;
        Ok(stack)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + DAEMON_LIMIT;
        loop {
            if let Some(status) = self.daemon.try_wait()? {
                bail!("syrupd ended at once ({status}): its messages are above");
            }
            if std::os::unix::net::UnixStream::connect(&self.socket).is_ok() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "syrupd does not answer on {} after {} s",
                self.socket.display(),
                DAEMON_LIMIT.as_secs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Socket of the daemon, for the app library.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The pin folder of this stack.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// `syrupctl load HOOK --policy POLICY --app APP [more]`
    pub fn load(&self, hook: &str, policy: &str, app: &str, more: &[&str]) -> Result<()> {
        let mut arguments = vec!["load", hook, "--policy", policy, "--app", app];
        arguments.extend(more);
        self.syrupctl(arguments).map(|_| ())
    }

    /// `syrupctl unload --all`
    pub fn unload_all(&self) -> Result<()> {
        self.syrupctl(["unload", "--all"]).map(|_| ())
    }

    /// What is deployed, from `syrupctl list`.
    pub fn deployments(&self) -> Result<Vec<Deployment>> {
        let text = self.syrupctl(["list", "-o", "json"])?;
        let list: List = serde_json::from_str(&text).context("syrupctl list printed no list")?;
        Ok(list.deployments)
    }

    fn syrupctl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        let mut command = Command::new(&self.syrupctl);
        command.args(arguments).arg("--socket").arg(&self.socket).stdin(Stdio::null());
        dies_with_us(&mut command);
        let output =
            command.output().with_context(|| format!("cannot run {}", self.syrupctl.display()))?;
        ensure!(
            output.status.success(),
            "{} failed ({}): {}",
            shown(&command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Err(error) = self.unload_all() {
            eprintln!("syrup-bench: {error:#}");
        }
        stop_child(&mut self.daemon, STOP_LIMIT);
        remove_pins(&self.bpffs);
    }
}

/// A policy as `syrupctl list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Where.
    pub hook: String,
    /// Whose.
    pub app: String,
    /// Which.
    pub policy: String,
    /// Its object.
    pub policy_sha256: String,
    /// "live", or what else became of it.
    pub state: String,
    /// Why it is not live.
    pub reason: Option<String>,
    /// What it decided, by kind.
    pub counters: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct List {
    deployments: Vec<Deployment>,
}

/// SIGTERM, then SIGKILL after `limit`.
pub fn stop_child(child: &mut Child, limit: Duration) {
    let deadline = Instant::now() + limit;
    let pid = Pid::from_child(child);
    let _ = kill_process(pid, Signal::TERM);
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            _ => return,
        }
    }
    eprintln!("syrup-bench: process {} ignored SIGTERM: killed", child.id());
    let _ = child.kill();
    let _ = child.wait();
}

/// A process that ends when this one is killed: an experiment that goes on must
/// not meet the server of the one before. Not when a terminal interrupts this one,
/// which then ends it in its turn: hence a process group of its own.
pub fn dies_with_us(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: prctl is async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    }
}

/// What experiments that were killed left: their process is no more. A thread
/// scheduler goes with its pin.
fn remove_pins_of_the_dead() {
    let Some((folder, prefix)) = PINS.rsplit_once('/') else { return };
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_pins(&entry.path());
        }
    }
}

/// bpffs has no remove_dir_all for pins that other code may look at: files
/// first, then the folders.
fn remove_pins(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            remove_pins(&path);
        } else {
            let _ = std::fs::remove_file(&path);
        }
    }
    let _ = std::fs::remove_dir(folder);
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_ignores_sigterm_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 2];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        stop_child(&mut child, Duration::from_millis(50));
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn a_missing_program_says_how_to_build_it() {
        let error =
            Programs::find(Some(&PathBuf::from("/nowhere/syrupctl")), "syrupctl").unwrap_err();
        assert!(error.to_string().contains("cargo build --release -p syrupctl"), "{error}");
    }

    #[test]
    fn deployments_are_read_from_what_syrupctl_prints() {
        let text = r#"{"schema": 1, "deployments": [{"app": "a", "uid": 0, "hook": "socket-select",
            "policy": "sita", "policy_sha256": "00", "state": "degraded", "reason": "because",
            "counters": {"chosen": 3}, "verdicts": []}]}"#;
        let list: List = serde_json::from_str(text).unwrap();
        assert_eq!(list.deployments[0].reason.as_deref(), Some("because"));
        assert_eq!(list.deployments[0].counters["chosen"], 3);
    }
}
