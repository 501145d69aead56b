//! Servers that nobody here wrote, adopted by their port while they serve: nsd, knot,
//! unbound and nginx as Debian packages them, on IPv4 and IPv6.

mod clients;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use syrup_tests::{Ctl, Need, own_network, require, wait_for};

use clients::{Asks, Load};

const PORT: u16 = 5353;
const HOOK: &str = "socket-select";
const LIMIT: Duration = Duration::from_secs(20);
/// Within it, what a server opens or closes has joined or left, and is told.
const SECOND: Duration = Duration::from_secs(1);

/// A server that runs in the calling thread's network namespace.
struct Server {
    dir: tempfile::TempDir,
    child: Option<Child>,
    start: fn(&Path) -> Command,
}

impl Server {
    fn start(start: fn(&Path) -> Command) -> Self {
        let dir = tempfile::Builder::new().prefix("syrup-server-").tempdir().unwrap();
        let mut server = Self { dir, child: None, start };
        server.start_again();
        server
    }

    fn start_again(&mut self) {
        let mut command = (self.start)(self.dir.path());
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // A process group of its own, to be ended as a whole.
        self.child = Some(command.process_group(0).spawn().unwrap());
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// At once, with all it started.
    fn kill(&mut self) {
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_child(&child);
            let _ = kill_process(pid, Signal::TERM);
            let deadline = Instant::now() + LIMIT;
            while child.try_wait().unwrap().is_none() {
                if Instant::now() > deadline {
                    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text.replace("DIR", dir.to_str().unwrap())).unwrap();
    path
}

const ZONE: &str = "$ORIGIN example.\n$TTL 60\n@ IN SOA ns.example. admin.example. 1 60 60 60 60\n\
                    @ IN NS ns.example.\nns IN A 127.0.0.1\nwww IN A 192.0.2.1\n";

fn nsd(dir: &Path) -> Command {
    write(dir, "zone", ZONE);
    let config = write(
        dir,
        "nsd.conf",
        "server:\n ip-address: 127.0.0.1\n ip-address: ::1\n port: 5353\n server-count: 4\n \
         reuseport: yes\n username: \"\"\n zonesdir: \"DIR\"\n database: \"\"\n \
         pidfile: \"DIR/pid\"\n xfrdfile: \"DIR/xfrd\"\n zonelistfile: \"DIR/list\"\n \
         rrl-ratelimit: 0\nremote-control:\n control-enable: no\n\
         zone:\n name: example.\n zonefile: zone\n",
    );
    let mut command = Command::new("/usr/sbin/nsd");
    command.arg("-d").arg("-c").arg(config);
    command
}

/// TCP with more workers than UDP, as it is by default.
fn knot(dir: &Path) -> Command {
    write(dir, "zone", ZONE);
    let config = write(
        dir,
        "knot.conf",
        "server:\n rundir: DIR\n listen: [ 127.0.0.1@5353, ::1@5353 ]\n udp-workers: 4\n \
         tcp-workers: 6\n background-workers: 1\n tcp-reuseport: on\n\
         database:\n storage: DIR/db\nlog:\n - target: stderr\n   any: warning\n\
         zone:\n - domain: example.\n   storage: DIR\n   file: zone\n   zonefile-sync: -1\n",
    );
    fs::create_dir_all(dir.join("db")).unwrap();
    let mut command = Command::new("/usr/sbin/knotd");
    command.arg("-c").arg(config);
    command
}

fn unbound(dir: &Path) -> Command {
    let config = write(
        dir,
        "unbound.conf",
        "server:\n interface: 127.0.0.1@5353\n interface: ::1@5353\n num-threads: 4\n \
         so-reuseport: yes\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n \
         directory: \"DIR\"\n pidfile: \"DIR/pid\"\n use-syslog: no\n \
         local-zone: \"example.\" static\n local-data: \"www.example. A 192.0.2.1\"\n\
         remote-control:\n control-enable: no\n",
    );
    let mut command = Command::new("/usr/sbin/unbound");
    command.arg("-d").arg("-c").arg(config);
    command
}

fn nginx(dir: &Path) -> Command {
    let config = nginx_with(dir, 4);
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(config);
    command
}

fn nginx_with(dir: &Path, workers: u32) -> PathBuf {
    let text = format!(
        "daemon off;\nworker_processes {workers};\npid DIR/pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 512; }}\nhttp {{ access_log off; server {{\n\
         listen 127.0.0.1:5353 reuseport; listen [::1]:5353 reuseport;\n\
         location / {{ return 200 \"ok\\n\"; }} }} }}\n"
    );
    write(dir, "nginx.conf", &text)
}

fn status(ctl: &Ctl) -> Value {
    ctl.deployment("web", HOOK)
}

fn load(ctl: &Ctl, target: &[&str]) {
    let mut args = vec!["load", HOOK, "--policy", "round-robin", "--app", "web"];
    args.extend(target);
    ctl.run(&args).ok();
}

fn verdicts(ctl: &Ctl) -> Vec<u64> {
    status(ctl)["verdicts"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
}

/// Asserts that the queries of such clients go to `workers` executors, evenly, by the policy
/// alone.
fn is_even(ctl: &Ctl, load: &Load, workers: usize) {
    let before = verdicts(ctl);
    load.wait_for_more(2400);
    let after = status(ctl);
    let chosen: Vec<u64> = verdicts(ctl)
        .iter()
        .enumerate()
        .map(|(index, count)| count - before.get(index).copied().unwrap_or(0))
        .collect();
    let mean = chosen.iter().sum::<u64>() as f64 / workers as f64;
    let most = *chosen.iter().max().unwrap() as f64;
    assert!(most / mean <= 1.05, "{chosen:?}: {after}");
    assert_eq!(chosen[workers..].iter().sum::<u64>(), 0, "{chosen:?}: {after}");
    assert_eq!(after["state"], "live", "{after}");
}

/// Sockets of the largest of the server's reuseport groups, as the kernel tells of them. Not by
/// /proc/net, which lists every connection that was closed lately: that takes a second.
fn sockets() -> u64 {
    let group = |family: &str, protocol: &str| {
        let ss = Command::new("ss")
            .args(["-H", "-n", "-l", family, protocol, &format!("sport = :{PORT}")])
            .output()
            .unwrap();
        assert!(ss.status.success(), "{}", String::from_utf8_lossy(&ss.stderr));
        String::from_utf8(ss.stdout).unwrap().lines().count() as u64
    };
    let groups = ["-4", "-6"].map(|family| group(family, "-u").max(group(family, "-t")));
    groups.into_iter().max().unwrap()
}

/// Waits until the server in this network has so many sockets in its largest group and
/// the deployment is live with all of them, which is within a second, and asserts that it never
/// says that it is live for more than a second while a socket is left out.
fn has_followed(ctl: &Ctl, workers: u64) {
    let (mut hides_since, mut there_since) = (None, None);
    wait_for("the deployment to follow", LIMIT, || {
        let (asked, before) = (Instant::now(), sockets());
        let now = status(ctl);
        let there = before.min(sockets());
        let executors = now["executors"].as_u64().unwrap();
        let has_followed = now["state"] == "live" && executors == workers;
        if there != workers {
            there_since = None;
        } else if !has_followed {
            let late = asked - *there_since.get_or_insert(asked);
            assert!(late < SECOND, "{late:?}: {there} sockets in a group: {now}");
        }
        if now["state"] != "live" || executors >= there {
            hides_since = None;
            return (has_followed && there == workers).then_some(());
        }
        let hides = hides_since.get_or_insert_with(Instant::now).elapsed();
        assert!(hides < SECOND, "{hides:?}: {there} sockets in a group: {now}");
        None
    });
}

/// Adopted, replaced 100 times, given back: no query fails.
fn serves_through_a_life(server: fn(&Path) -> Command, asks: &[Asks], workers: &[u64]) {
    own_network();
    let ctl = Ctl::new();
    let mut server = Server::start(server);
    clients::wait_until_served(PORT, asks);
    let _daemon = ctl.daemon();
    let queries = Load::start(PORT, asks);
    queries.wait_for_more(200);
    load(&ctl, &["--port", &PORT.to_string()]);
    let most = *workers.iter().max().unwrap();
    let told = status(&ctl);
    assert_eq!(told["executors"], most, "{told}");
    assert_eq!(told["target"]["address"].as_array().unwrap().len(), 2 * asks.len(), "{told}");
    assert_eq!(queries.failed(), 0, "{}", queries.why());
    drop(queries);
    for (&asks, &workers) in asks.iter().zip(workers) {
        is_even(&ctl, &Load::start(PORT, &[asks]), workers as usize);
    }
    let queries = Load::start(PORT, asks);
    for round in 0..100 {
        let policy = if round % 2 == 0 { "hash" } else { "round-robin" };
        ctl.run(&["replace", HOOK, "--policy", policy, "--app", "web"]).ok();
    }
    queries.wait_for_more(200);
    let told = status(&ctl);
    assert_eq!((&told["state"], &told["generation"]), (&"live".into(), &100.into()), "{told}");
    for fault in ["out_of_range", "enforce_failed", "no_policy"] {
        assert_eq!(told["counters"][fault], 0, "{told}");
    }
    assert_eq!(queries.failed(), 0, "{}", queries.why());
    drop(queries);

    // Started again, by whatever new processes: the deployment lives on.
    server.stop();
    wait_for("its sockets to close", LIMIT, || (status(&ctl)["executors"] == 0).then_some(()));
    server.start_again();
    clients::wait_until_served(PORT, asks);
    has_followed(&ctl, most);
    let queries = Load::start(PORT, asks);
    queries.wait_for_more(200);
    ctl.run(&["unload", HOOK, "--app", "web"]).ok();
    queries.wait_for_more(200);
    assert_eq!(queries.failed(), 0, "{}", queries.why());
    ctl.assert_empty();
}

#[test]
fn nsd_is_served() {
    if require(&[Need::Root, Need::Program("/usr/sbin/nsd")]) {
        // Its processes share one listener for TCP.
        serves_through_a_life(nsd, &[Asks::DnsUdp, Asks::DnsTcp], &[4, 1]);
    }
}

#[test]
fn knot_is_served_with_more_tcp_workers_than_udp_workers() {
    if require(&[Need::Root, Need::Program("/usr/sbin/knotd")]) {
        serves_through_a_life(knot, &[Asks::DnsUdp, Asks::DnsTcp], &[4, 6]);
    }
}

#[test]
fn unbound_is_served() {
    if require(&[Need::Root, Need::Program("/usr/sbin/unbound")]) {
        serves_through_a_life(unbound, &[Asks::DnsUdp, Asks::DnsTcp], &[4, 4]);
    }
}

#[test]
fn nginx_is_served() {
    if require(&[Need::Root, Need::Program("/usr/sbin/nginx")]) {
        serves_through_a_life(nginx, &[Asks::Http], &[4]);
    }
}

#[test]
fn nginx_is_followed_when_it_changes_its_workers() {
    if !require(&[Need::Root, Need::Program("/usr/sbin/nginx")]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let server = Server::start(nginx);
    clients::wait_until_served(PORT, &[Asks::Http]);
    let daemon = ctl.daemon();
    load(&ctl, &["--port", &PORT.to_string()]);
    let requests = Load::start(PORT, &[Asks::Http]);
    for workers in [6, 2, 4] {
        nginx_with(server.dir.path(), workers);
        kill_process(server.pid(), Signal::HUP).unwrap();
        has_followed(&ctl, workers.into());
        is_even(&ctl, &requests, workers as usize);
    }
    assert_eq!(requests.failed(), 0, "{}", requests.why());
    // A worker that dies is replaced by one that inherits its sockets.
    let children = format!("/proc/{pid}/task/{pid}/children", pid = server.pid().as_raw_nonzero());
    let worker = fs::read_to_string(children).unwrap();
    let worker = worker.split_whitespace().next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    has_followed(&ctl, 4);
    is_even(&ctl, &requests, 4);
    // What the worker had accepted went with it: one connection of each client at most.
    assert!(requests.failed() <= 2, "{}", requests.why());

    // Without the daemon nobody follows, and the state says so.
    drop(daemon);
    nginx_with(server.dir.path(), 6);
    kill_process(server.pid(), Signal::HUP).unwrap();
    // The last of them: it opens them one by one, two for each worker.
    wait_for("the state to tell of all", LIMIT, || {
        let now = status(&ctl);
        let tells = |reason: &str| reason.contains("4 sockets of its ports are no executors");
        (now["state"] == "degraded" && now["reason"].as_str().is_some_and(tells)).then_some(())
    });
    assert_eq!(ctl.run(&["status"]).code, 10);
    let _next = ctl.daemon();
    has_followed(&ctl, 6);
}

/// A server in network and process namespaces of its own, from outside.
#[test]
fn a_server_in_a_container_is_adopted_by_its_process() {
    if !require(&[Need::Root, Need::Program("/usr/sbin/nginx")]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let contained = |dir: &Path| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"]);
        command.arg("ip link set lo up; exec /usr/sbin/nginx -c \"$1\"").arg("sh");
        command.arg(nginx_with(dir, 4));
        command
    };
    let mut server = Server::start(contained);
    let inside = |server: &Server| {
        let pid = server.pid().as_raw_nonzero();
        wait_for("the server inside", LIMIT, || {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            let nginx: i32 = children.split_whitespace().next()?.parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{nginx}/comm")).ok()?;
            (name.trim() == "nginx").then_some(nginx)
        })
    };
    let _daemon = ctl.daemon();
    let nginx = inside(&server);
    let (pid, port) = (nginx.to_string(), PORT.to_string());
    wait_for("its sockets", LIMIT, || {
        let ran = ctl.run(&[
            "load",
            HOOK,
            "--policy",
            "round-robin",
            "--app",
            "web",
            "--pid",
            &pid,
            "--port",
            &port,
        ]);
        (ran.code == 0).then_some(())
    });
    let within = clients::Namespace::of(nginx);
    let requests = within.run(|| Load::start(PORT, &[Asks::Http]));
    is_even(&ctl, &requests, 4);
    for workers in [6, 2, 4] {
        nginx_with(server.dir.path(), workers);
        kill_process(Pid::from_raw(nginx).unwrap(), Signal::HUP).unwrap();
        within.run(|| has_followed(&ctl, workers.into()));
        is_even(&ctl, &requests, workers as usize);
    }
    assert_eq!(requests.failed(), 0, "{}", requests.why());
    ctl.run(&["unload", HOOK, "--app", "web"]).ok();
    requests.wait_for_more(200);
    assert_eq!(requests.failed(), 0, "{}", requests.why());

    // Asked from inside: the port of its network, and the process as it is numbered there.
    let from_inside = |target: &[&str]| {
        let mut load = Command::new("nsenter");
        load.args(["-t", &pid, "--net", "--pid"]).arg(syrup_tests::binary("syrupctl"));
        load.arg("--socket").arg(ctl.socket());
        load.args(["load", HOOK, "--policy", "round-robin", "--app", "web"]).args(target);
        let ran = load.output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let told = status(&ctl);
        assert_eq!((&told["executors"], &told["target"]["pid"]), (&4.into(), &nginx.into()));
        is_even(&ctl, &requests, 4);
        ctl.run(&["unload", HOOK, "--app", "web"]).ok();
    };
    from_inside(&["--port", &port]);
    from_inside(&["--pid", "1"]);
    drop(requests);
    server.kill();
    ctl.assert_empty();
}
