//! `syrupctl` and `syrupd` as a user runs them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;
use tempfile::TempDir;

use crate::{KernelObjects, binary, wait_for};

/// What a finished command printed and returned.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Asserts success and gives back the output.
    ///
    /// # Panics
    /// With everything the command printed, when it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// Asserts that it failed with `code` and that its message says `says` and
    /// what to do.
    ///
    /// # Panics
    /// With everything the command printed, when it did not.
    #[track_caller]
    pub fn fails(&self, code: i32, says: &str) {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(self.stderr.contains(says), "no '{says}' in: {}", self.stderr);
        assert!(self.stderr.contains("help:"), "no advice in: {}", self.stderr);
        assert!(self.stdout.is_empty(), "errors go to stderr, stdout has: {}", self.stdout);
    }
}

/// `syrupctl` with a BPF file system and a socket path of its own. Dropping it
/// unloads what is left and unmounts.
#[derive(Debug)]
pub struct Ctl {
    dir: TempDir,
    environment: Vec<(String, String)>,
}

impl Ctl {
    /// Mounts a fresh BPF file system (needs root).
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("syrup-test-").tempdir().unwrap();
        let mount = dir.path().join("bpf");
        std::fs::create_dir(&mount).unwrap();
        rustix::mount::mount("bpf", &mount, "bpf", MountFlags::empty(), None).unwrap();
        Self { dir, environment: Vec::new() }
    }

    /// Sets a variable for every command from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// The root of all pins.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpf/syrup")
    }

    /// Lets ordinary users reach the daemon's socket and their Maps' pins.
    ///
    /// # Panics
    /// When it cannot.
    pub fn let_users_in(&self) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(self.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Where the daemon listens, if one was started.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("syrupd.sock")
    }

    /// Writes a file for a command to read.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A command with this test's flags and variables, not yet started.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binary(program));
        command
            .arg("--bpffs")
            .arg(self.bpffs())
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `syrupctl` with `args`.
    ///
    /// # Panics
    /// When it cannot be started or is killed by a signal.
    pub fn run(&self, args: &[&str]) -> Ran {
        let output = self.command("syrupctl").args(args).output().unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs `syrupctl` with `args` and `-o json`.
    ///
    /// # Panics
    /// When it fails or prints no JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(args);
        let ran = self.run(&all);
        let value: Value = serde_json::from_str(&ran.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}{}", ran.stdout, ran.stderr));
        assert_eq!(value["schema"], 1);
        value
    }

    /// The one deployment of `app` at `hook`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn deployment(&self, app: &str, hook: &str) -> Value {
        let all = self.json(&["status"]);
        all["deployments"]
            .as_array()
            .unwrap()
            .iter()
            .find(|d| d["app"] == app && d["hook"] == hook)
            .unwrap_or_else(|| panic!("no {app} at {hook} in {all}"))
            .clone()
    }

    /// Asserts that nothing of ours is left: no deployment, no pin.
    ///
    /// # Panics
    /// When something is.
    #[track_caller]
    pub fn assert_empty(&self) {
        assert_eq!(self.json(&["list"])["deployments"], Value::Array(Vec::new()));
        assert!(!self.bpffs().exists(), "pins are left: {:?}", tree(&self.bpffs()));
    }

    /// The pins and folders that there are.
    #[must_use]
    pub fn pins(&self) -> BTreeSet<PathBuf> {
        tree(&self.bpffs()).into_iter().collect()
    }

    /// What is deployed now, as the kernel holds it.
    ///
    /// # Panics
    /// When a pin cannot be opened.
    #[must_use]
    pub fn kernel_objects(&self) -> KernelObjects {
        KernelObjects::pinned_below(&self.dir.path().join("bpf"))
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn daemon(&self) -> Daemon {
        let log = std::fs::File::create(self.dir.path().join("syrupd.log")).unwrap();
        let mut command = self.command("syrupd");
        command.args(["--group", &crate::GROUP.to_string()]);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let daemon = Daemon { child };
        wait_for("the daemon's answer", Duration::from_secs(20), || {
            // It listens before it has put in order what it found.
            syrup_protocol::Client::connect(&self.socket()).ok()
        });
        daemon
    }
}

impl Default for Ctl {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Ctl {
    fn drop(&mut self) {
        let left = self.run(&["unload", "--all"]);
        if left.code != 0 && !std::thread::panicking() {
            panic!("unload --all: {}", left.stderr);
        }
        let mount = self.dir.path().join("bpf");
        rustix::mount::unmount(&mount, UnmountFlags::DETACH).unwrap();
    }
}

/// A running daemon; dropped, it is asked to stop.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it was gone already.
    pub fn kill9(mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.path().is_dir() {
            found.extend(tree(&entry.path()));
        }
    }
    found
}
