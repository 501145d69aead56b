//! The hook `socket-select` end to end: `syrupctl`, `syrupd`, real sockets.

use std::io::Read as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use syrup_tests::{Ctl, Need, Sender, binary, own_network, require, udp_group, wait_for};

const PORT: u16 = 7100;

fn counter(ctl: &Ctl, name: &str) -> u64 {
    ctl.deployment("web", "socket-select")["counters"][name].as_u64().unwrap()
}

fn verdicts(ctl: &Ctl) -> Vec<u64> {
    let deployment = ctl.deployment("web", "socket-select");
    deployment["verdicts"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
}

fn load(ctl: &Ctl, policy: &str) -> syrup_tests::Ran {
    let (port, pid) = (PORT.to_string(), std::process::id().to_string());
    ctl.run(&[
        "load",
        "socket-select",
        "--policy",
        policy,
        "--app",
        "web",
        "--port",
        &port,
        "--pid",
        &pid,
    ])
}

fn replace(ctl: &Ctl, policy: &str) {
    ctl.run(&["replace", "socket-select", "--policy", policy, "--app", "web"]).ok();
}

#[test]
fn round_robin_spreads_the_flows_of_a_running_program_evenly() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let group = udp_group(PORT, 6);
    load(&ctl, "round-robin").ok();
    let sender = Sender::start(PORT, 50);
    sender.wait_for_more(3000);
    let (sent, answered) = sender.stop();
    assert_eq!(sent, answered);

    let counts: Vec<u64> =
        group.received.iter().map(|c| c.load(std::sync::atomic::Ordering::Relaxed)).collect();
    let mean = counts.iter().sum::<u64>() as f64 / 6.0;
    let max = *counts.iter().max().unwrap() as f64;
    assert!(max / mean <= 1.02, "{counts:?}");
    assert_eq!(verdicts(&ctl)[..6], counts, "status tells what the sockets saw");
    assert_eq!(counter(&ctl, "inputs"), sent);
}

#[test]
fn naming_the_port_alone_finds_the_program_that_serves_it() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    // A process of its own: the search goes by the namespace of whole processes.
    let mut server = Command::new("python3")
        .args(["-c", SERVER, &PORT.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0u8; 6];
    server.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();

    let port = PORT.to_string();
    let load = ["load", "socket-select", "--policy", "hash", "--app", "web", "--port", &port];
    ctl.run(&load).ok();
    let deployment = ctl.deployment("web", "socket-select");
    drop(server.stdin.take());
    server.wait().unwrap();
    assert_eq!(deployment["executors"], 3, "{deployment}");
    assert_eq!(deployment["target"]["pid"], server.id(), "{deployment}");
}

/// Three sockets of one group, held until standard input ends.
const SERVER: &str = "import socket, sys\n\
    held = []\n\
    for _ in range(3):\n    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
    \x20   s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
    \x20   s.bind(('127.0.0.1', int(sys.argv[1])))\n    held.append(s)\n\
    print('ready', flush=True)\n\
    sys.stdin.read()\n";

#[test]
fn killing_the_daemon_under_load_loses_nothing_and_the_next_one_adopts() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let group = udp_group(PORT, 4);
    let daemon = ctl.daemon();
    load(&ctl, "round-robin").ok();
    let before = ctl.json(&["list"])["deployments"][0].clone();

    let sender = Sender::start(PORT, 20);
    sender.wait_for_more(500);
    daemon.kill9();
    sender.wait_for_more(2000);
    let next = ctl.daemon();
    sender.wait_for_more(500);
    let (sent, answered) = sender.stop();

    assert_eq!(sent, answered, "a datagram was lost");
    assert_eq!(group.total(), sent);
    assert_eq!(counter(&ctl, "no_policy"), 0, "an input fell to the default");
    assert_eq!(verdicts(&ctl).iter().sum::<u64>(), sent, "an input was not decided by the policy");
    let after = ctl.json(&["list"])["deployments"][0].clone();
    for field in ["app", "hook", "policy", "policy_sha256", "program_id", "generation", "target"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    drop(next);
}

#[test]
fn replace_under_load_lets_the_old_or_the_new_policy_decide_every_input() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let first = ctl.file("first.c", FIRST);
    let second = ctl.file("second.c", SECOND);
    let group = udp_group(PORT, 2);
    load(&ctl, &first).ok();
    let sender = Sender::start(PORT, 8);
    for round in 0..10 {
        sender.wait_for_more(100);
        replace(&ctl, if round % 2 == 0 { &second } else { &first });
    }
    sender.wait_for_more(100);
    let (sent, answered) = sender.stop();
    assert_eq!(sent, answered);
    assert_eq!(group.total(), sent);
    assert_eq!(counter(&ctl, "no_policy"), 0, "the default decided");
    let verdicts = verdicts(&ctl);
    assert_eq!(verdicts.iter().sum::<u64>(), sent);
    assert!(verdicts[0] >= 500 && verdicts[1] >= 500, "both decided: {verdicts:?}");
    assert_eq!(ctl.deployment("web", "socket-select")["generation"], 10);
}

#[test]
fn replacing_a_bad_policy_ends_the_degradation() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let bad = ctl.file("bad.c", &FIRST.replace("return 0", "return 77"));
    let _group = udp_group(PORT, 2);
    load(&ctl, &bad).ok();
    let sender = Sender::start(PORT, 4);
    sender.wait_for_more(100);
    let degraded = ctl.run(&["status"]);
    assert_eq!(degraded.code, 10, "{}", degraded.stdout);
    assert!(degraded.stdout.contains("named no executor"), "{}", degraded.stdout);

    replace(&ctl, "round-robin");
    sender.wait_for_more(100);
    ctl.run(&["status"]).ok();
    assert!(counter(&ctl, "out_of_range") >= 100, "counters go on");
    assert_eq!(ctl.deployment("web", "socket-select")["state"], "live");
}

const FIRST: &str = "#include <syrup/packet.h>\n\
    __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\treturn 0;\n}\n";
const SECOND: &str = "#include <syrup/packet.h>\n\
    __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\treturn 1;\n}\n";

#[test]
fn unload_all_leaves_the_kernel_as_it_was_while_the_program_runs_on() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let group = udp_group(PORT, 3);
    load(&ctl, "scan-avoid").ok();
    let ours = ctl.kernel_objects();
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
    ours.assert_freed();

    let sender = Sender::start(PORT, 20);
    sender.wait_for_more(200);
    let (sent, answered) = sender.stop();
    assert_eq!(sent, answered);
    assert_eq!(group.total(), sent, "the kernel's hash decides again");
}

#[test]
fn maps_are_read_and_written_from_the_command_line() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let _group = udp_group(PORT, 3);
    load(&ctl, "scan-avoid").ok();
    ctl.run(&["map", "set", "web", "request_type", "2", "7"]).ok();
    let got = ctl.json(&["map", "get", "web", "request_type", "2"]);
    assert_eq!(got["entries"][0]["value"], 7, "{got}");
    ctl.run(&["map", "get", "web", "request_type", "65536"]).fails(2, "no key 65536");
    ctl.run(&["map", "get", "web", "nothing", "0"]).fails(7, "no Map 'nothing'");
}

/// A user of the token policy, who counts what was admitted.
struct User {
    socket: UdpSocket,
    request: [u8; 64],
    sent: u64,
    answered: u64,
}

impl User {
    fn new(user: u32) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut request = [0; 64];
        request[16..20].copy_from_slice(&user.to_ne_bytes());
        Self { socket, request, sent: 0, answered: 0 }
    }

    fn send(&mut self) {
        self.socket.send_to(&self.request, (Ipv4Addr::LOCALHOST, PORT)).unwrap();
        self.sent += 1;
    }

    fn take_answers(&mut self) -> u64 {
        while self.socket.recv(&mut [0; 64]).is_ok() {
            self.answered += 1;
        }
        self.answered
    }
}

/// A token agent for users 3 (LS) and 5 (BE); killed on drop.
struct Agent(Child);

impl Agent {
    fn start(ctl: &Ctl) -> Self {
        let child = Command::new(binary("syrup-bench"))
            .args(["token-agent", "--app", "web", "--rate", "2000", "--period-us", "20000"])
            .args(["--ls", "3", "--be", "5"])
            .env("SYRUP_BPFFS", ctl.bpffs())
            .env("SYRUP_SOCKET", ctl.socket())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// SIGTERM, and what it printed.
    fn stop(mut self) -> Value {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_token_agent_admits_its_rate_and_leaves_to_others_what_the_first_do_not_use() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let _group = udp_group(PORT, 2);
    load(&ctl, "token").ok();
    let (mut first, mut other) = (User::new(3), User::new(5));
    // 40 tokens a period: less than `other` wants, and for `first` enough for
    // two seconds in which a busy host keeps the agent from refilling.
    let started = Instant::now();
    let agent = Agent::start(&ctl);
    wait_for("the first tokens", Duration::from_secs(20), || {
        first.send();
        (first.take_answers() > 0).then_some(())
    });
    (first.sent, first.answered) = (0, 0);
    for turn in 0..100 {
        std::thread::sleep(Duration::from_millis(10));
        if turn % 5 == 0 {
            first.send();
        }
        (0..100).for_each(|_| other.send());
        first.take_answers();
        other.take_answers();
    }
    let granted = agent.stop();
    let most = started.elapsed().as_millis() as u64 * 2;
    let (ls, be) =
        (granted["granted_ls"].as_u64().unwrap(), granted["granted_be"].as_u64().unwrap());

    assert!(ls <= most, "{ls} tokens where the rate allows {most}");
    assert!(be < ls, "what `first` used was granted again: {granted}");
    // Both sockets' threads answer at once; the rest of the answers is on its way.
    wait_for("the answers of the first user", Duration::from_secs(20), || {
        (first.take_answers() * 100 >= first.sent * 95).then_some(())
    });
    let admitted = other.take_answers();
    assert!(admitted * 10 > be * 5, "the others got {admitted}: {granted}");
    assert!(admitted <= be, "the others got {admitted}: {granted}");
    assert!(admitted < other.sent / 2, "who had no tokens was not held back: {admitted}");

    // Nobody refills, and what was left is gone: delivery on loopback is part of
    // the call that sends, so both are decided when it returns.
    let dropped = counter(&ctl, "dropped");
    first.send();
    other.send();
    assert_eq!(counter(&ctl, "dropped"), dropped + 2);
}
