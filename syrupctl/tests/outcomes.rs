//! Exit codes and what stands on which stream: the contract with scripts. Every
//! code but those of the thread hook, which needs a guest.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{SERVER, as_nobody, syrupctl};
use syrup_tests::{Ctl, Need, own_network, require, wait_for};

const PORT: &str = "7413";
const MAPS: &str = "#include <syrup/packet.h>\nSYRUP_MAP(counts, 4);\n\
    __s32 schedule(void *s, void *e)\n{\n\treturn syrup_map_lookup(&counts, 0) ? 0 : 1;\n}\n";

fn reuseport() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None).unwrap();
    sockopt::set_socket_reuseport(&socket, true).unwrap();
    let address: SocketAddr = format!("127.0.0.1:{PORT}").parse().unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    socket
}

/// A process with two sockets, which ends with the value.
struct Server(Child);

impl Server {
    fn start() -> Self {
        let mut child = Command::new("python3")
            .args(["-c", SERVER, PORT, "2", "0"])
            .env("SYRUP_APP", "")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn what_is_loaded_but_does_not_decide_everything_is_code_10() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let mut sockets: Vec<OwnedFd> = (0..3).map(|_| reuseport()).collect();
    let pid = std::process::id().to_string();
    let load = ["load", "socket-select", "--policy", "hash", "--port", PORT, "--pid", &pid];
    ctl.run(&load).ok();
    for command in [&["list"][..], &["status"], &["show", "default"]] {
        assert_eq!(ctl.run(command).code, 0, "{command:?}");
    }
    drop(sockets.remove(1));
    let replaced = ctl.run(&["-o", "json", "replace", "socket-select", "--policy", "round-robin"]);
    assert_eq!(replaced.code, 10, "{}", replaced.stderr);
    // It was done, so stdout says what is there; stderr says what is wrong.
    let body = json(&replaced.stdout);
    assert_eq!(body["deployment"]["policy"], "round-robin");
    assert_eq!(body["deployment"]["state"], "degraded");
    assert!(replaced.stderr.contains("1 of 3 sockets are closed"), "{}", replaced.stderr);
    assert!(replaced.stderr.contains("help:"), "{}", replaced.stderr);
    ctl.run(&["unload", "socket-select"]).ok();
    ctl.assert_empty();
}

/// Each command's advice in a state without sockets is one that ends it.
#[test]
fn advice_leads_out_of_a_deployment_without_sockets() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let load = || ctl.run(&["load", "socket-select", "--policy", "hash", "--port", PORT]);
    let replace = || ctl.run(&["replace", "socket-select", "--policy", "round-robin"]);
    let out = "syrupctl unload socket-select --app default";
    let loaded = load();
    assert_eq!(loaded.code, 0, "{}", loaded.stderr);
    assert!(loaded.stderr.contains("waits for its first socket"), "{}", loaded.stderr);
    assert!(loaded.stderr.contains("start the server while syrupd runs"), "{}", loaded.stderr);
    let status = ctl.run(&["status"]).ok();
    assert!(status.contains("hash of app default is live at socket-select: it waits"), "{status}");

    // A server that does not know of Syrup.
    let server = Server::start();
    let status = ctl.run(&["status"]);
    assert_eq!(status.code, 10, "{}", status.stdout);
    assert!(status.stdout.contains("are not registered"), "{}", status.stdout);
    load().fails(7, out);
    let replaced = replace();
    assert_eq!(replaced.code, 10, "{}", replaced.stderr);
    assert!(replaced.stderr.contains("syrupctl gc"), "{}", replaced.stderr);
    let done = ctl.run(&["gc"]).ok();
    assert!(done.contains("socket-select of app default"), "{done}");
    assert_eq!(ctl.deployment("default", "socket-select")["executors"], 2);
    assert_eq!(ctl.run(&["gc"]).ok(), "there was nothing to do\n");
    // With sockets, 'replace' is what one wants.
    load().fails(7, "syrupctl replace socket-select");
    replace().ok();
    drop(server);
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
}

#[test]
fn each_refusal_has_its_code_and_leaves_stdout_empty() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let typo = ctl.file("typo.c", "#include <syrup/packet.h>\nint x = y;\n");
    let wild = ctl.file(
        "wild.c",
        "#include <syrup/packet.h>\n\
         __s32 schedule(void *s, void *e)\n{\n\treturn *(__u32 *)(s + 100);\n}\n",
    );
    let load = |policy: &str| ctl.run(&["load", "socket-select", "--app", "a", "--policy", policy]);
    load(&typo).fails(3, "typo.c");
    load(&wild).fails(4, "invalid access to packet");
    load("no-such-policy").fails(2, "no-such-policy");
    ctl.assert_empty();
    load("hash").ok();
    load("hash").fails(7, "already");
    ctl.run(&["replace", "socket-select", "--app", "b", "--policy", "hash"]).fails(7, "no policy");
    ctl.run(&["unload", "socket-select", "--app", "b"]).fails(7, "no policy");
    ctl.run(&["show", "b"]).fails(7, "no app 'b'");
    ctl.run(&["map", "get", "a", "m", "0"]).fails(7, "no Map 'm'");
    ctl.run(&["unload", "socket-select", "--app", "a"]).ok();
    ctl.assert_empty();
    let nowhere = syrupctl().args(["list", "--socket", "/nowhere/s"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(8), "{nowhere:?}");
    assert!(nowhere.stdout.is_empty());
    // Somebody listens and says nothing.
    let dir = tempfile::tempdir().unwrap();
    let silent = dir.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let silent = syrupctl().arg("list").arg("--socket").arg(&silent).output().unwrap();
    assert_eq!(silent.status.code(), Some(9), "{silent:?}");
}

#[test]
fn another_users_app_answers_each_command_with_code_5() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let daemon = ctl.daemon();
    // Its folder is closed to others; a socket is reached by way of a link too.
    let open = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(open.path(), mode).unwrap();
    let socket = open.path().join("s");
    std::fs::hard_link(ctl.socket(), &socket).unwrap();
    let policy = ctl.file("maps.c", MAPS);
    ctl.run(&["load", "socket-select", "--app", "roots", "--policy", &policy]).ok();
    ctl.run(&["map", "set", "roots", "counts", "1", "5"]).ok();
    let nobody = |args: &[&str]| -> Output {
        let (mut command, _dir) = as_nobody();
        command.arg("--socket").arg(&socket).args(args).output().unwrap()
    };
    for args in [
        &["load", "socket-select", "--app", "roots", "--policy", "hash"][..],
        &["replace", "socket-select", "--app", "roots", "--policy", "hash"],
        &["unload", "socket-select", "--app", "roots"],
        &["map", "get", "roots", "counts", "1"],
        &["map", "set", "roots", "counts", "1", "6"],
        &["map", "dump", "roots", "counts"],
    ] {
        let output = nobody(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{args:?}: {stderr}");
        assert!(
            stderr.contains("'roots' belongs to user 0") && stderr.contains("help:"),
            "{stderr}"
        );
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    // To look is everybody's; to unload all is one's own.
    for args in [&["list"][..], &["status"], &["show", "roots"], &["unload", "--all"]] {
        assert_eq!(nobody(args).status.code(), Some(0), "{args:?}");
    }
    assert_eq!(ctl.deployment("roots", "socket-select")["generation"], 0);
    assert_eq!(ctl.json(&["map", "get", "roots", "counts", "1"])["entries"][0]["value"], 5);
    ctl.run(&["unload", "socket-select", "--app", "roots"]).ok();
    drop(daemon);
    ctl.assert_empty();
}

#[test]
fn unload_all_names_what_it_took() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    for (app, port) in [("web", "7414"), ("dns", "7415")] {
        ctl.run(&["load", "socket-select", "--app", app, "--policy", "hash", "--port", port]).ok();
    }
    let gone = ctl.json(&["unload", "--all"]);
    let names: Vec<&str> = gone["unloaded"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gone| gone["app"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["dns", "web"]);
    assert_eq!(ctl.json(&["unload", "--all"])["unloaded"], Value::Array(Vec::new()));
    ctl.assert_empty();
}

#[test]
fn run_tells_the_command_its_app_and_passes_signals_on() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let mut child = ctl
        .command("syrupctl")
        .args(["run", "--app", "web", "--load", "socket-select=hash", "--port", PORT, "--"])
        .args(["python3", "-c", SERVER, PORT, "2", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the adopted sockets", Duration::from_secs(30), || {
        let found = ctl.json(&["list"])["deployments"][0].clone();
        (found["executors"] == 2 && found["app"] == "web").then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(said, "up web\n");
    // The server ends with 3 when it is asked to; unasked it would not end.
    assert_eq!(child.wait().unwrap().code(), Some(3));
    ctl.assert_empty();

    let run = |command: &[&str]| {
        let load = ["run", "--load", "socket-select=hash", "--port", PORT, "--"];
        ctl.run(&[&load[..], command].concat())
    };
    assert_eq!(run(&["sh", "-c", "kill -TERM $$"]).code, 143);
    run(&["/does/not/exist"]).fails(2, "/does/not/exist");
    ctl.assert_empty();
}

const BUSY_SERVER: &str = r#"
import select, socket, sys
def listener():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", int(sys.argv[1])))
    s.listen()
    return s
listeners = [listener(), listener()]
connections = []
for _ in range(200):
    connections.append(socket.create_connection(listeners[0].getsockname()))
    connections.append(select.select(listeners, [], [])[0][0].accept()[0])
print("up", flush=True)
sys.stdin.read()
"#;

#[test]
fn a_server_of_many_connections_takes_as_many_files_as_it_has_listening_sockets() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let mut server = Command::new("python3")
        .args(["-c", BUSY_SERVER, PORT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(server.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    let pid = server.id().to_string();
    // Fewer than the server has connections.
    let few_files = |args: &[&str]| {
        let command = ctl.command("syrupctl");
        let ran = Command::new("prlimit")
            .arg("--nofile=128")
            .arg(command.get_program())
            .args(command.get_args())
            .args(args)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    };
    for more in [&[][..], &["--pid", pid.as_str()]] {
        let target = ["--app", "web", "--proto", "tcp", "--port", PORT];
        few_files(&[&["load", "socket-select", "--policy", "hash"], &target[..], more].concat());
        let found = ctl.deployment("web", "socket-select");
        assert_eq!((&found["executors"], &found["state"]), (&2.into(), &"live".into()), "{more:?}");
        few_files(&["unload", "--all"]);
        ctl.assert_empty();
    }
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
}
