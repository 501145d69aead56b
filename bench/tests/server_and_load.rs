//! The server and the load generator as processes, without Syrup: plain Linux.

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::net::UdpSocket;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_syrup-bench");

/// A running server; killed on drop.
struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let port = free_port();
        let mut child = Command::new(BENCH)
            .args(["server", "--port", &port.to_string(), "--ready"])
            .arg(&ready)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !ready.exists() {
            if let Some(status) = child.try_wait().unwrap() {
                let mut text = String::new();
                child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
                panic!("the server ended at once ({status}): {text}");
            }
            assert!(Instant::now() < deadline, "the server is not ready");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, port, _folder: folder }
    }

    /// SIGTERM, and what it printed.
    fn stop(mut self) -> (Value, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "SIGTERM did not end the server");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(self.child.wait().unwrap().success());
        let (mut out, mut err) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (serde_json::from_str(&out).unwrap(), err)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn load(port: u16, arguments: &[&str]) -> Value {
    let output = bench(
        &[&["load", "--port", &port.to_string(), "--warmup", "0", "--grace", "10"], arguments]
            .concat(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(BENCH).args(arguments).output().unwrap()
}

fn count(load: &Value, class: usize, field: &str) -> u64 {
    load["classes"][class][field].as_u64().unwrap()
}

fn error_of(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_request_is_served_by_rocksdb_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("db");
    let db = db.to_str().unwrap();
    let server = Server::start(&[
        "--threads",
        "3",
        "--db",
        db,
        "--keys",
        "2000",
        "--get-us",
        "20",
        "--scan-us",
        "100",
    ]);
    let summary = load(server.port, &["--rps", "300", "--duration", "1", "--scan-fraction", "0.3"]);
    let (gets, scans) = (count(&summary, 0, "requests"), count(&summary, 1, "requests"));
    assert!(gets > 100 && scans > 30, "{gets} {scans}");
    assert_eq!((count(&summary, 0, "drops"), count(&summary, 1, "drops")), (0, 0));
    let (served, messages) = server.stop();
    assert_eq!((served["get"].as_u64(), served["scan"].as_u64()), (Some(gets), Some(scans)));
    assert_eq!(served["by_thread"].as_array().unwrap().len(), 3);
    assert!(messages.contains("calibrated"), "{messages}");
}

#[test]
fn a_sleeping_server_takes_as_long_as_it_was_told() {
    let server = Server::start(&[
        "--threads",
        "4",
        "--service",
        "sleep",
        "--get-us",
        "2000",
        "--scan-us",
        "20000",
    ]);
    let summary = load(server.port, &["--rps", "40", "--duration", "1", "--scan-fraction", "0.2"]);
    for (class, least_us) in [(0, 2000.0), (1, 20_000.0)] {
        let fastest = summary["classes"][class]["min_us"].as_f64().unwrap_or(0.0);
        assert!(fastest >= least_us * 0.99, "class {class}: {fastest} us");
    }
    server.stop();
}

#[test]
fn requests_to_nobody_are_drops() {
    let summary = bench(&[
        "load",
        "--port",
        &free_port().to_string(),
        "--rps",
        "100",
        "--duration",
        "0.5",
        "--warmup",
        "0",
        "--grace",
        "0.1",
    ]);
    let summary: Value = serde_json::from_slice(&summary.stdout).unwrap();
    let requests = count(&summary, 0, "requests");
    assert!(requests > 10);
    assert_eq!(count(&summary, 0, "drops"), requests);
}

#[test]
fn a_full_socket_drops_and_the_sender_goes_on() {
    let server = Server::start(&[
        "--threads",
        "1",
        "--service",
        "sleep",
        "--get-us",
        "100000",
        "--scan-us",
        "100000",
    ]);
    let output = bench(&[
        "load",
        "--port",
        &server.port.to_string(),
        "--rps",
        "1000",
        "--duration",
        "1",
        "--warmup",
        "0",
        "--grace",
        "0.2",
    ]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(count(&summary, 0, "requests") > 800);
    assert!(count(&summary, 0, "drops") > 700);
    server.stop();
}

#[test]
fn wrong_uses_say_what_to_do() {
    let output = bench(&["server", "--service", "sleep"]);
    assert!(error_of(&output).contains("--get-us"), "{output:?}");
    let output = bench(&["load", "--rps", "1000000", "--duration", "3600"]);
    assert!(error_of(&output).contains("lower --rps"), "{output:?}");
    let output = bench(&["check", "/nowhere"]);
    assert!(error_of(&output).contains("run the experiment first"), "{output:?}");
    let output = Command::new(BENCH)
        .args(["server", "--service", "sleep", "--get-us", "1", "--scan-us", "1", "--app", "a"])
        .env("SYRUP_SOCKET", "/nowhere/syrupd.sock")
        .env("SYRUP_BPFFS", "/nowhere")
        .output()
        .unwrap();
    assert!(error_of(&output).contains("/nowhere/syrupd.sock"), "{output:?}");
}

#[test]
fn every_subcommand_has_an_example() {
    let help = bench(&["--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        // Long descriptions go on below, indented further.
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|&command| command != "help")
        .collect();
    assert!(commands.len() >= 9, "{commands:?}");
    for command in commands {
        let help = bench(&[command, "--help"]);
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(help.contains("Example"), "{command}");
    }
}
