//! Commands of an ordinary user, whom the daemon serves.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{SERVER, as_nobody};
use syrup_engine::Engine;
use syrup_tests::{Ctl, GROUP, Need, own_network, require, wait_for};
use syrupd::Daemon;
use tempfile::TempDir;
use tokio::sync::oneshot;

const PORT: &str = "7412";

/// A daemon in this process, at a socket that everybody reaches.
struct Served {
    dir: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    fn start(bpffs: PathBuf) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let socket = dir.path().join("s");
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let daemon = Daemon::bind(&socket, Some(GROUP)).unwrap();
                ready.send(()).unwrap();
                let stopped = async { drop(stopped.await) };
                daemon.serve(Arc::new(Engine::new(bpffs).unwrap()), stopped).await;
            });
        });
        listening.recv().unwrap();
        Self { dir, stop: Some(stop), thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// A file that everybody may read.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn nobody(socket: &Path) -> (Command, Option<TempDir>) {
    let (mut command, dir) = as_nobody();
    command.arg("--socket").arg(socket);
    (command, dir)
}

fn list(socket: &Path) -> Value {
    let mut command = support::syrupctl();
    let output = command.args(["list", "-o", "json", "--socket"]).arg(socket).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_ordinary_user_runs_a_server_under_a_policy_of_its_own() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let served = Served::start(ctl.bpffs());
    let socket = served.socket();
    // C that the daemon would not compile for this user.
    let source = "#include <syrup/packet.h>\n\
                  __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\
                  \treturn syrup_random() % syrup_num_executors();\n}\n";
    let load = format!("socket-select={}", served.file("dice.c", source));
    let (mut command, _dir) = nobody(&socket);
    let child = command
        .args(["run", "--app", "mine", "--load", &load, "--port", PORT, "--"])
        .args(["python3", "-c", SERVER, PORT, "3", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let found = wait_for("the registered sockets", Duration::from_secs(30), || {
        let found = list(&socket)["deployments"][0].clone();
        (found["executors"] == 3).then_some(found)
    });
    assert_eq!((&found["app"], &found["policy"]), (&"mine".into(), &"dice".into()));
    assert_eq!(found["uid"], 65534);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("dice is live at socket-select for app mine"), "{stderr}");
    assert_eq!(list(&socket)["deployments"], Value::Array(vec![]));
}

#[test]
fn an_ordinary_user_may_not_take_a_port_and_is_told_what_it_may() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let served = Served::start(ctl.bpffs());
    let (mut command, _dir) = nobody(&served.socket());
    let load = ["load", "socket-select", "--policy", "hash", "--port", PORT];
    let output = command.args(load).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("help:") && stderr.contains("syr_register_socket"), "{stderr}");
    ctl.assert_empty();
}

/// Passes calls on to the daemon and replies back, but for that to `Load`: it hangs up.
fn pass_on(client: &UnixStream, daemon: &Path) -> io::Result<()> {
    let daemon = &UnixStream::connect(daemon)?;
    let [mut calls, mut replies] = [client, daemon].map(BufReader::new);
    loop {
        let (mut call, mut reply) = (Vec::new(), Vec::new());
        if calls.read_until(0, &mut call)? == 0 {
            return Ok(());
        }
        { daemon }.write_all(&call)?;
        replies.read_until(0, &mut reply)?;
        if String::from_utf8_lossy(&call).contains(".Load\"") {
            return Ok(());
        }
        { client }.write_all(&reply)?;
    }
}

/// A daemon's socket that does so, until the test's process ends.
fn without_reply_to_load(daemon: PathBuf, socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let daemon = daemon.clone();
            std::thread::spawn(move || pass_on(&client.unwrap(), &daemon));
        }
    });
}

#[test]
fn a_policy_whose_load_was_not_answered_goes_with_the_command() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let served = Served::start(ctl.bpffs());
    let socket = served.dir.path().join("mute");
    without_reply_to_load(served.socket(), &socket);
    let run = || {
        let mut command = support::syrupctl();
        command.arg("--socket").arg(&socket);
        command.args(["run", "--app", "web", "--load", "socket-select=hash", "--port", PORT]);
        command.args(["--", "python3", "-c", SERVER, PORT, "2", "0"]).output().unwrap()
    };
    let output = run();
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    assert_eq!(list(&served.socket())["deployments"], Value::Array(vec![]), "{output:?}");
    // What was there before is not ours to unload.
    let load = ["load", "socket-select", "--app", "web", "--policy", "hash"];
    ctl.run(&load).ok();
    assert_eq!(run().status.code(), Some(8));
    assert_eq!(list(&served.socket())["deployments"][0]["app"], "web");
}

#[test]
fn a_daemon_that_dies_under_run_leaves_the_policy_and_the_user_knows() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let served = Served::start(ctl.bpffs());
    let child = support::syrupctl()
        .arg("--socket")
        .arg(served.socket())
        .args(["run", "--app", "web", "--load", "socket-select=hash", "--port", PORT, "--"])
        .args(["python3", "-c", SERVER, PORT, "2", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the adopted sockets", Duration::from_secs(30), || {
        (ctl.json(&["list"])["deployments"][0]["executors"] == 2).then_some(())
    });
    drop(served);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "the command's own code: {stderr}");
    assert!(stderr.contains("socket-select of app web is still loaded"), "{stderr}");
    assert!(stderr.contains("help: "), "{stderr}");
    ctl.run(&["unload", "socket-select", "--app", "web"]).ok();
    ctl.assert_empty();
}
