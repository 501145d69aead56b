//! Commands that act on the kernel, with the engine in-process: needs root and
//! nothing but a network namespace and a BPF file system of the test's own.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::SERVER;
use syrup_tests::{Ctl, Need, own_network, require, udp_group, wait_for};

const PORT: u16 = 7411;

fn start_server(ctl: &Ctl, sockets: &str, pause: &str) -> Child {
    ctl.command("syrupctl")
        .args(["run", "--app", "web", "--load", "socket-select=round-robin"])
        .args(["--port", &PORT.to_string(), "--", "python3", "-c", SERVER])
        .args([&PORT.to_string(), sockets, pause])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for_sockets(ctl: &Ctl, sockets: u64) {
    wait_for("the adopted sockets", Duration::from_secs(30), || {
        let list = ctl.json(&["list"]);
        (list["deployments"][0]["executors"] == sockets).then_some(())
    });
}

#[test]
fn an_empty_list_is_an_empty_list() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let ran = ctl.run(&["list", "-o", "json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "{\"schema\":1,\"deployments\":[]}\n"));
    assert_eq!(ran.stderr, "");
    let ran = ctl.run(&["list"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert_eq!(ran.stderr, "no policy is loaded\n");
    ctl.run(&["show", "nobody"]).fails(7, "nobody");
}

#[test]
fn a_parameter_is_set_while_its_policy_is_live() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let set = |args: &[&str]| ctl.run(&[&["set", "socket-select", "--app", "web"], args].concat());
    set(&["--set", "NR_SCAN_EXECUTORS=2"]).fails(7, "no policy at socket-select");
    let load = ["load", "socket-select", "--app", "web", "--policy", "sita", "--port", "7413"];
    ctl.run(&load).ok();
    let said = set(&["--set", "NR_SCAN_EXECUTORS=2"]).ok();
    assert!(said.starts_with("sita is live at socket-select for app web"), "{said}");
    let show = ctl.run(&["show", "web"]).ok();
    assert!(show.contains("params     NR_SCAN_EXECUTORS=2"), "{show}");
    let params = ctl.deployment("web", "socket-select")["params"].clone();
    assert_eq!(params, serde_json::json!({"NR_SCAN_EXECUTORS": "2"}));
    set(&[]).fails(2, "nothing was named");
    set(&["--weight", "200"]).fails(2, "--weight means nothing");
    set(&["--port", "1"]).fails(2, "--port");
}

#[test]
fn root_loads_and_runs_for_another_user() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let uid = |app: &str| ctl.json(&["show", app])["uid"].clone();
    let load = |verb, user| {
        let app = [verb, "socket-select", "--policy", "hash", "--app", "web", "--user", user];
        ctl.run(&[&app[..], &["--port", "7413"]].concat())
    };
    load("load", "65534").ok();
    assert_eq!(uid("web"), 65534);
    load("apply", "65534").ok();
    load("apply", "root").fails(7, "app 'web' belongs to user 65534");
    ctl.run(&["unload", "--all"]).ok();
    load("apply", "root").ok();
    assert_eq!(uid("web"), 0);
    ctl.run(&["unload", "--all"]).ok();

    let port = PORT.to_string();
    let child = ctl
        .command("syrupctl")
        .args(["run", "--app", "web", "--user", "65534", "--load", "socket-select=hash"])
        .args(["--port", &port, "--", "python3", "-c", SERVER, &port, "2", "0"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the deployment", Duration::from_secs(30), || {
        (ctl.json(&["list"])["deployments"][0]["executors"] == 2).then_some(())
    });
    assert_eq!(uid("web"), 65534);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(3));
    ctl.assert_empty();
}

#[test]
fn a_loaded_policy_is_shown_until_it_is_unloaded() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let _group = udp_group(PORT, 3);
    let (port, pid) = (PORT.to_string(), std::process::id().to_string());
    let load = ["load", "socket-select", "--policy", "scan-avoid", "--app", "web"];
    let said = ctl.run(&[&load[..], &["--port", &port, "--pid", &pid]].concat()).ok();
    let id = ctl.deployment("web", "socket-select")["program_id"].to_string();
    assert_eq!(
        said,
        format!(
            "scan-avoid is live at socket-select for app web \
             (udp/{PORT}, 3 sockets, program {id})\n"
        )
    );
    let list = ctl.run(&["list"]).ok();
    let (header, row) = list.trim_end().split_once('\n').unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(header), ["APP", "HOOK", "POLICY", "TARGET", "EXECUTORS", "PROGRAM", "STATE"]);
    let udp = format!("udp/{PORT}");
    assert_eq!(
        words(row),
        ["web", "socket-select", "scan-avoid", &udp, "3", "sockets", &id, "live"]
    );
    let show = ctl.run(&["show", "web"]).ok();
    assert!(show.contains("policy     scan-avoid (object "), "{show}");
    assert!(show.contains("\nMAP  ") && show.contains("request_type"), "{show}");

    assert_eq!(ctl.run(&["map", "dump", "web", "request_type"]).ok(), "");
    let said = ctl.run(&["map", "set", "web", "request_type", "0x2", "0x10"]).ok();
    assert_eq!(said, "request_type[2] = 16\n");
    assert_eq!(ctl.run(&["map", "get", "web", "request_type", "2"]).ok(), "16\n");
    let dump = ctl.run(&["map", "dump", "web", "request_type"]).ok();
    assert_eq!(dump, "KEY  VALUE\n2    16\n");
    let all = ctl.json(&["map", "dump", "web", "request_type", "--all"]);
    assert!(all["entries"].as_array().unwrap().len() > 100, "zeros, too");

    let said = ctl.run(&["unload", "socket-select", "--app", "web"]).ok();
    assert_eq!(said, "unloaded socket-select of app web\n");
    assert_eq!(ctl.run(&["unload", "--all"]).ok(), "nothing was loaded\n");
    ctl.assert_empty();
}

#[test]
fn run_adopts_the_commands_sockets_and_ends_with_it() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let child = start_server(&ctl, "4", "0");
    wait_for_sockets(&ctl, 4);
    assert_eq!(ctl.deployment("web", "socket-select")["state"], "live");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "the command's own code: {stderr}");
    assert_eq!(output.stdout, b"up web\n", "standard output is the command's");
    assert!(stderr.contains("round-robin is live at socket-select"), "{stderr}");
    ctl.assert_empty();
}

#[test]
fn run_adopts_sockets_that_are_bound_after_the_load() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let child = start_server(&ctl, "3", "2.0");
    wait_for_sockets(&ctl, 3);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(!stderr.contains("3 sockets"), "loaded before the last one was bound: {stderr}");
    ctl.assert_empty();
}

#[test]
fn run_passes_the_commands_code_on_and_leaves_nothing() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let run = |script: &str, wait: &str| {
        let port = PORT.to_string();
        let load = ["run", "--load", "socket-select=hash", "--port", &port, "--wait", wait, "--"];
        ctl.run(&[&load[..], &["sh", "-c", script]].concat())
    };
    assert_eq!(run("exit 7", "30").code, 7);
    assert_eq!(run("kill -9 $$", "30").code, 137);
    run("exec sleep 1000", "0").fails(9, "did not bind port 7411");
    ctl.assert_empty();
}

#[test]
fn run_refuses_a_faulty_policy_before_the_command_starts() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let file = ctl.file("typo.c", "#include <syrup/packet.h>\nint x = y;\n");
    let mark = ctl.file("mark", "");
    for (policy, code) in [(file.as_str(), 3), ("./absent.c", 2), ("round-robbin", 2)] {
        let load = format!("socket-select={policy}");
        let script = format!("echo started > {mark}");
        let ran = ctl.run(&["run", "--load", &load, "--port", "7411", "--", "sh", "-c", &script]);
        ran.fails(code, "");
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), "", "the command ran");
    }
    ctl.assert_empty();
}

#[test]
fn check_asks_the_verifier_and_leaves_nothing() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let source = "#include <syrup/packet.h>\nSYRUP_MAP(seen, 8);\n\
                  SYRUP_PARAM(__u32, LIMIT, 3);\n\
                  __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\
                  \t__u64 *n = syrup_map_lookup(&seen, 0);\n\
                  \treturn n && *n < LIMIT ? 0 : SYRUP_PASS;\n}\n";
    let file = ctl.file("mine.c", source);
    let report = ctl.json(&["check", &file, "--hook", "socket-select"]);
    let done = |name: &str| {
        let steps = report["steps"].as_array().unwrap();
        steps.iter().find(|step| step["name"] == name).unwrap()["done"] == true
    };
    for step in ["compile", "object", "link", "verifier"] {
        assert!(done(step), "{step}: {report}");
    }
    assert_eq!(report["maps"][0], "seen");
    assert_eq!(report["params"][0], "LIMIT");

    let wild = "#include <syrup/packet.h>\n\
                __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\
                \treturn *(__u32 *)(pkt_start + 100);\n}\n";
    let ran = ctl.run(&["check", &ctl.file("wild.c", wild), "--hook", "socket-select"]);
    ran.fails(4, "wild.c:4");
    ctl.assert_empty();
}
