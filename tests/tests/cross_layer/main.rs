//! The headline mechanism: both hooks, one app, one Map. A server registers
//! socket `i` and thread `i` under one index; scan-avoid labels the worker it
//! chose before that worker wakes, and get-priority reads the label. Needs a
//! kernel with sched_ext; CPU 1 runs the servers.

mod load;
mod server;

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use load::{Flows, GET, Load, SCAN};
use serde_json::Value;
use server::{Language, Server, Started, WORKERS};
use syrup::{App, Code};
use syrup_hook::sys;
use syrup_protocol::call::DeploymentRef;
use syrup_protocol::connection::Connection;
use syrup_protocol::varlink::Nothing;
use syrup_sdk::Compiler;
use syrup_tests::{
    CProgram, Ctl, KernelObjects, Need, SetOnDrop, ThreadClass, as_user, binary, maps_of_program,
    own_network, require, sched_class, wait_for,
};

const PORT: u16 = 7100;
const CPU: usize = 1;
const SOCKETS: &str = "socket-select";
const THREADS: &str = "scx-syrup";
/// Ordinary users.
const NOBODY: u32 = 65534;
const SOMEBODY: u32 = 65533;

/// A test's own pins, daemon socket and network, open to ordinary users.
fn machine() -> Ctl {
    // Nothing may be lost: without root's rights a buffer is at most this large.
    fs::write("/proc/sys/net/core/rmem_max", "16777216").unwrap();
    own_network();
    let ctl = Ctl::new();
    ctl.let_users_in();
    ctl
}

/// An app's deployments at both hooks, read in one call.
#[derive(Debug)]
struct Both {
    sockets: Value,
    threads: Value,
}

fn both(ctl: &Ctl, app: &str) -> Both {
    let all = ctl.json(&["status"]);
    let find = |hook: &str| {
        let mut deployments = all["deployments"].as_array().unwrap().iter();
        let found = deployments.find(|d| d["app"] == app && d["hook"] == hook);
        found.unwrap_or_else(|| panic!("no {app} at {hook} in {all}")).clone()
    };
    Both { sockets: find(SOCKETS), threads: find(THREADS) }
}

fn counter(deployment: &Value, name: &str) -> u64 {
    deployment["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {deployment}"))
}

fn verdicts(deployment: &Value) -> Vec<u64> {
    let verdicts = deployment["verdicts"].as_array().unwrap();
    verdicts.iter().map(|count| count.as_u64().unwrap()).collect()
}

fn program_id(deployment: &Value) -> i64 {
    deployment["program_id"].as_i64().unwrap()
}

fn maps_of(program: i64) -> Vec<u32> {
    maps_of_program(program as u32).unwrap_or_else(|| panic!("no program {program}"))
}

fn sched_ext_state() -> String {
    fs::read_to_string("/sys/kernel/sched_ext/state").unwrap().trim().to_owned()
}

/// Runs `f` while CPU `cpu` is taken by a thread of a class above all of ours:
/// whoever wakes there meanwhile waits in a queue.
fn while_cpu_is_taken<T>(cpu: usize, f: impl FnOnce() -> T) -> T {
    let (taken, release) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: a zeroed set is empty, and both structures live for their calls.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(cpu, &mut set);
                assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
                let param = libc::sched_param { sched_priority: 10 };
                assert_eq!(libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param), 0);
            }
            taken.store(true, Ordering::Release);
            while !release.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
        });
        let _released = SetOnDrop(&release);
        wait_for("the CPU", Duration::from_secs(20), || {
            taken.load(Ordering::Acquire).then_some(())
        });
        f()
    })
}

#[test]
fn a_failure_while_a_cpu_is_taken_gives_it_back() {
    if !require(&[Need::Root]) {
        return;
    }
    assert!(std::panic::catch_unwind(|| while_cpu_is_taken(CPU, || panic!("meant"))).is_err());
}

/// The labels of an app's workers, as the test itself maps them.
struct Labels {
    map: syrup::MappedMap,
    tids: Vec<i32>,
}

impl Labels {
    fn open(ctl: &Ctl, app: &str, tids: &[i32]) -> Self {
        let map = App::named(app).at_socket(ctl.socket()).open_map("request_type").unwrap();
        Self { map: map.mmap().unwrap(), tids: tids.to_vec() }
    }

    /// Waits until no worker has, or is about to have, a request, and all sleep: one that is
    /// still on its way there takes the next without a wake-up.
    fn wait_until_idle(&self) {
        let sleeps = |tid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{tid}/task/{tid}/stat"));
            stat.unwrap_or_default().rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
        };
        wait_for("idle workers", Duration::from_secs(20), || {
            let unlabelled = (0..WORKERS).all(|worker| self.map.load(worker) == 0);
            (unlabelled && self.tids.iter().all(sleeps)).then_some(())
        });
    }
}

/// One request at a time, each to workers that are all idle: what scan-avoid
/// wrote for it is what its worker finds, and what get-priority decides on.
fn each_label_reaches_its_thread(ctl: &Ctl, app: &str, flows: &Flows, labels: &Labels) -> u64 {
    const EACH: u64 = 12;
    for (class, queue) in [(GET, 0), (SCAN, 1)] {
        let before = both(ctl, app);
        for _ in 0..EACH {
            labels.wait_until_idle();
            for reply in flows.one_by_one(class, 1, 200) {
                assert_eq!((reply.class, u64::from(reply.label)), (class, class), "{reply:?}");
            }
        }
        labels.wait_until_idle();
        let after = both(ctl, app);
        let more =
            |queue: usize| verdicts(&after.threads)[queue] - verdicts(&before.threads)[queue];
        assert!(more(queue) >= EACH, "{} verdicts for queue {queue}", more(queue));
        // A thread that lost its CPU between its answer and its sleep is asked
        // about once more, and serves nothing then.
        assert!(more(1 - queue) <= EACH / 4, "{} for the other queue", more(1 - queue));
    }
    2 * EACH
}

/// SCANs that wait for the CPU are overtaken by GETs that came later.
fn gets_overtake_scans(flows: &Flows, labels: &Labels) -> u64 {
    const EACH: u64 = 3;
    // By the rescue, threads that waited 200 ms run whatever their queue: a trial
    // in which the host let that happen says nothing.
    const RESCUE: Duration = Duration::from_millis(150);
    for trial in 1..=20 {
        labels.wait_until_idle();
        let waited = while_cpu_is_taken(CPU, || {
            let start = Instant::now();
            (0..EACH).for_each(|id| flows.send(SCAN, id, 500));
            (EACH..2 * EACH).for_each(|id| flows.send(GET, id, 50));
            start.elapsed()
        });
        let mut replies = flows.receive_all(2 * EACH as usize);
        if waited > RESCUE {
            continue;
        }
        replies.sort_by_key(|reply| reply.order);
        let classes: Vec<u64> = replies.iter().map(|reply| reply.class).collect();
        assert_eq!(classes, [GET, GET, GET, SCAN, SCAN, SCAN], "order of service: {replies:?}");
        return trial * 2 * EACH;
    }
    panic!("the CPU was taken for more than {RESCUE:?} each time");
}

/// The whole life of an app at both hooks, under load from the middle on.
fn the_life_of_an_app_at_both_hooks(language: Language, uid: u32) {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = machine();
    let daemon = ctl.daemon();
    let mut server = Server::new(language, &ctl, "stack", uid, PORT, CPU);
    let mut programs =
        [server.deploy(SOCKETS, "scan-avoid"), server.deploy(THREADS, "get-priority")];
    let Started { map_id, tids } = server.start();
    for &tid in &tids {
        assert_eq!(sched_class(tid), ThreadClass::Ext);
    }
    let live = both(&ctl, "stack");
    for (deployment, program) in [(&live.sockets, programs[0]), (&live.threads, programs[1])] {
        assert_eq!(
            (deployment["uid"].as_u64(), &deployment["state"]),
            (Some(u64::from(uid)), &"live".into())
        );
        assert_eq!(program_id(deployment), program);
        assert!(maps_of(program).contains(&map_id), "another request_type: {deployment}");
    }
    assert_eq!(
        (&live.sockets["executors"], &live.threads["target"]["threads"]),
        (&WORKERS.into(), &WORKERS.into())
    );

    let flows = Flows::new(PORT, 8);
    let labels = Labels::open(&ctl, "stack", &tids);
    let mut sent = each_label_reaches_its_thread(&ctl, "stack", &flows, &labels);
    sent += gets_overtake_scans(&flows, &labels);

    let load = Load::start(PORT);
    load.wait_for_more(50);
    daemon.kill9();
    load.wait_for_more(50);
    let daemon = ctl.daemon();
    let adopted = both(&ctl, "stack");
    for (was, is) in [(&live.sockets, &adopted.sockets), (&live.threads, &adopted.threads)] {
        for field in ["policy", "policy_sha256", "program_id", "generation", "deployed_at"] {
            assert_eq!(was[field], is[field], "{field} after the daemon died");
        }
        assert!(counter(is, "chosen") >= counter(was, "chosen") + 50);
    }
    for (generation, policies) in (1..).zip([
        ["round-robin", "fifo"],
        ["scan-avoid", "vruntime"],
        ["scan-avoid", "get-priority"],
    ]) {
        for (at, hook) in [SOCKETS, THREADS].into_iter().enumerate() {
            let program = server.deploy(hook, policies[at]);
            assert!(program > 0 && !programs.contains(&program), "{hook}: {program}");
            let old = std::mem::replace(&mut programs[at], program);
            load.wait_for_more(20);
            wait_for("the kernel to free the old program", Duration::from_secs(30), || {
                maps_of_program(old as u32).is_none().then_some(())
            });
        }
        let now = both(&ctl, "stack");
        for (deployment, at) in [(&now.sockets, 0), (&now.threads, 1)] {
            assert_eq!(program_id(deployment), programs[at], "{deployment}");
            assert_eq!(deployment["generation"], generation);
            assert_eq!(deployment["policy"], policies[at]);
            assert_eq!(deployment["state"], "live", "{deployment}");
            let shares = maps_of(programs[at]).contains(&map_id);
            assert_eq!(shares, ["scan-avoid", "get-priority"].contains(&policies[at]));
        }
    }
    load.wait_for_more(100);
    let replies = load.stop();
    sent += replies.len() as u64;
    for worker in 0..WORKERS as u32 {
        assert!(replies.iter().any(|reply| reply.served_by == worker), "{worker} served nothing");
    }
    labels.wait_until_idle();
    let end = both(&ctl, "stack");
    assert_eq!((counter(&end.sockets, "inputs"), counter(&end.sockets, "chosen")), (sent, sent));
    assert_eq!(verdicts(&end.sockets).iter().sum::<u64>(), sent);
    assert_eq!(verdicts(&end.threads).iter().sum::<u64>(), counter(&end.threads, "chosen"));
    for deployment in [&end.sockets, &end.threads] {
        for cause in ["no_policy", "out_of_range", "passed", "dropped", "enforce_failed"] {
            assert_eq!(counter(deployment, cause), 0, "{cause}: {deployment}");
        }
        assert_eq!(counter(deployment, "inputs"), counter(deployment, "chosen"), "{deployment}");
    }

    // Under load again: unloaded, the app serves on.
    let load = Load::start(PORT);
    load.wait_for_more(20);
    let ours = KernelObjects::pinned_below(&ctl.bpffs());
    ctl.run(&["unload", SOCKETS, "--app", "stack"]).ok();
    load.wait_for_more(20);
    ctl.run(&["unload", THREADS, "--app", "stack"]).ok();
    for &tid in &tids {
        assert_eq!(sched_class(tid), ThreadClass::Fair);
    }
    assert_eq!(sched_ext_state(), "disabled");
    ctl.assert_empty();
    load.wait_for_more(50);
    load.stop();
    drop((server, labels, daemon));
    ours.assert_freed();
}

#[test]
fn a_server_in_rust_of_root_lives_at_both_hooks() {
    the_life_of_an_app_at_both_hooks(Language::Rust, 0);
}

#[test]
fn a_server_in_c_of_an_ordinary_user_lives_at_both_hooks() {
    the_life_of_an_app_at_both_hooks(Language::C, NOBODY);
}

/// The states a replacer that dies between two steps can leave: what decides is
/// what is told, its program can be had, and the next daemon tidies up.
#[test]
fn an_interrupted_replace_of_a_thread_policy_is_read_as_the_kernel_has_it() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = machine();
    let app = App::named("torn").at_socket(ctl.socket());
    let dir = ctl.bpffs().join("torn").join(THREADS);
    let next = dir.join("_new_policy");
    let mut daemon = ctl.daemon();
    drop(app.deploy_policy("get-priority", THREADS).unwrap());
    for (generation, died_after) in (1..).zip(["switching", "moving the record", "pinning"]) {
        let old = ["policy", "record"].map(|name| sys::obj_get_required(&dir.join(name)).unwrap());
        drop(app.deploy_policy("fifo", THREADS).unwrap());
        // Back by the last steps.
        fs::create_dir(&next).unwrap();
        for (name, old) in ["policy", "record"].into_iter().zip(&old) {
            if (died_after, name) != ("moving the record", "record") {
                fs::rename(dir.join(name), next.join(name)).unwrap();
                sys::obj_pin(old.as_fd(), &dir.join(name)).unwrap();
            }
        }
        if died_after == "pinning" {
            let policies = sys::Map::open(&ctl.bpffs().join("_scx/syrup_enqueue")).unwrap();
            policies.update(&1u32.to_ne_bytes(), &old[0].as_raw_fd().to_ne_bytes()).unwrap();
        }
        drop(old);
        for settled in [false, true] {
            // A daemon listens before it tidies up, and answers after that.
            let told = ctl.deployment("torn", THREADS);
            assert_eq!(next.exists(), !settled, "{died_after}");
            // The last one was undone, the others count.
            let expected = generation - i32::from(died_after == "pinning");
            assert_eq!((&told["policy"], &told["generation"]), (&"fifo".into(), &expected.into()));
            let what = DeploymentRef { hook: THREADS.to_owned(), app: "torn".to_owned() };
            let (Nothing {}, fds) = Connection::open(&ctl.socket())
                .unwrap()
                .call("PolicyOpen", &what, &[], Duration::from_secs(60))
                .unwrap();
            let program = sys::program_id(fds[0].as_fd()).unwrap();
            assert_eq!(i64::from(program), program_id(&told), "{died_after}");
            if !settled {
                daemon.kill9();
                daemon = ctl.daemon();
            }
        }
    }
    drop(daemon);
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
}

/// What `uid` may not do to an app that is not its own.
fn meddle(ctl: &Ctl, uid: u32, app: &str, port: u16, tid: i32) {
    let theirs = App::named(app).at_socket(ctl.socket());
    let own = App::named("own").at_socket(ctl.socket());
    let pin = ctl.bpffs().join(app).join("maps/request_type");
    as_user(uid, || {
        let refused = |what: &str, error: syrup::Error| {
            assert_eq!(error.code(), Code::NotPermitted, "{what}: {error:#}");
        };
        refused("replace", theirs.deploy_policy("round-robin", SOCKETS).unwrap_err());
        refused("replace", theirs.deploy_policy("fifo", THREADS).unwrap_err());
        refused("register", theirs.register_thread(0, None).unwrap_err());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        refused("register", theirs.register_socket(&socket, None).unwrap_err());
        refused("open", theirs.open_map("request_type").unwrap_err());
        refused("open", syrup::Map::open(&pin).unwrap_err());
        for hook in [SOCKETS, THREADS] {
            let what = DeploymentRef { hook: hook.to_owned(), app: app.to_owned() };
            for method in ["Unload", "PolicyOpen"] {
                let error = Connection::open(&ctl.socket())
                    .unwrap()
                    .call::<Nothing>(method, &what, &[], Duration::from_secs(60))
                    .unwrap_err();
                refused(method, syrup_protocol::Failure::from(error).into());
            }
        }
        // Nor take what the app has into an app of its own.
        drop(own.deploy_policy("fifo", THREADS).unwrap());
        drop(own.deploy_policy("round-robin", SOCKETS).unwrap());
        refused("register", own.register_thread(tid, None).unwrap_err());
        let error = own.register_socket(reuseport_socket(port), None).unwrap_err();
        assert_eq!(error.code(), Code::Conflict, "{error:#}");
        for hook in [SOCKETS, THREADS] {
            let what = DeploymentRef { hook: hook.to_owned(), app: "own".to_owned() };
            Connection::open(&ctl.socket())
                .unwrap()
                .call::<Nothing>("Unload", &what, &[], Duration::from_secs(60))
                .unwrap();
        }
    });
}

/// A socket that shares nothing with the app of `port` but the number.
fn reuseport_socket(port: u16) -> std::net::UdpSocket {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    sockopt::set_socket_reuseport(&socket, true).unwrap();
    rustix::net::bind(&socket, &std::net::SocketAddr::from(([127, 0, 0, 2], port))).unwrap();
    socket.into()
}

#[test]
fn two_apps_do_not_touch_each_other_and_one_restarts() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = machine();
    let _daemon = ctl.daemon();
    let start = |language, app, uid, port| {
        let mut server = Server::new(language, &ctl, app, uid, port, CPU);
        assert!(server.deploy(SOCKETS, "scan-avoid") > 0);
        assert!(server.deploy(THREADS, "get-priority") > 0);
        let started = server.start();
        (server, started)
    };
    let (_users, users_started) = start(Language::Rust, "users", NOBODY, PORT);
    let (roots, roots_started) = start(Language::C, "roots", 0, PORT + 1);
    assert_ne!(users_started.map_id, roots_started.map_id);
    let loads = [Load::start(PORT), Load::start(PORT + 1)];
    let identity = |app: &str| {
        let Both { sockets, threads } = both(&ctl, app);
        [sockets, threads].map(|d| {
            let fields = ["uid", "policy", "program_id", "generation", "executors"];
            (fields.map(|f| d[f].clone()), d["target"]["threads"].clone())
        })
    };
    let (users, roots_before) = (identity("users"), identity("roots"));
    meddle(&ctl, NOBODY, "roots", PORT + 1, roots_started.tids[0]);
    meddle(&ctl, SOMEBODY, "users", PORT, users_started.tids[0]);
    assert_eq!((identity("users"), identity("roots")), (users, roots_before.clone()));
    loads.iter().for_each(|load| load.wait_for_more(20));
    let [users_load, roots_load] = loads;
    roots_load.stop();

    // The server of one dies and comes again: what is deployed awaits it.
    drop(roots);
    let mut roots = Server::new(Language::Rust, &ctl, "roots", 0, PORT + 1, CPU);
    let again = roots.start();
    assert_eq!(again.map_id, roots_started.map_id);
    assert_eq!(identity("roots"), roots_before);
    let labels = Labels::open(&ctl, "roots", &again.tids);
    let flows = Flows::new(PORT + 1, 8);
    let was = both(&ctl, "roots");
    let sent = each_label_reaches_its_thread(&ctl, "roots", &flows, &labels);
    let is = both(&ctl, "roots");
    assert_eq!(counter(&is.sockets, "chosen"), counter(&was.sockets, "chosen") + sent);
    for &tid in &again.tids {
        assert_eq!(sched_class(tid), ThreadClass::Ext);
    }

    // One app goes, the other stays.
    users_load.wait_for_more(20);
    for hook in [SOCKETS, THREADS] {
        ctl.run(&["unload", hook, "--app", "roots"]).ok();
    }
    for &tid in &again.tids {
        assert_eq!(sched_class(tid), ThreadClass::Fair);
    }
    users_load.wait_for_more(20);
    let sent = users_load.stop().len() as u64;
    let end = both(&ctl, "users");
    assert_eq!(counter(&end.sockets, "chosen"), sent);
    assert_eq!(counter(&end.threads, "no_policy"), 0);
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
    assert_eq!(sched_ext_state(), "disabled");
}

/// The server and the load of the benchmarks, whose rules for labels are those of
/// `bench/src/server/worker.rs`.
#[test]
fn the_benchmarks_server_answers_everything_at_both_hooks() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = machine();
    let folder = tempfile::tempdir().unwrap();
    let (db, ready) = (folder.path().join("db"), folder.path().join("ready"));
    let _daemon = ctl.daemon();
    let port = PORT.to_string();
    ctl.run(&["load", SOCKETS, "--policy", "scan-avoid", "--app", "bench", "--port", &port]).ok();
    ctl.run(&["load", THREADS, "--policy", "get-priority", "--app", "bench"]).ok();
    let mut server = Command::new(binary("syrup-bench"))
        .args(["server", "--port", &port, "--threads", "6", "--app", "bench", "--keys", "5000"])
        .args(["--gets", "10", "--scan-keys", "1000", "--rcvbuf-bytes", "8388608"])
        .args([Path::new("--db"), &db, Path::new("--ready"), &ready])
        .env("SYRUP_SOCKET", ctl.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the server", Duration::from_secs(60), || {
        assert!(server.try_wait().unwrap().is_none(), "the server ended");
        ready.exists().then_some(())
    });
    let load = Command::new(binary("syrup-bench"))
        .args(["load", "--port", &port, "--rps", "100", "--duration", "3", "--warmup", "0"])
        .args(["--grace", "60", "--scan-fraction", "0.1"])
        .output()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let served = server.wait_with_output().unwrap();
    assert!(load.status.success(), "{}", String::from_utf8_lossy(&load.stderr));
    let (load, served): (Value, Value) = (
        serde_json::from_slice(&load.stdout).unwrap(),
        serde_json::from_slice(&served.stdout).unwrap(),
    );
    let end = both(&ctl, "bench");
    let mut sent = 0;
    for (class, name) in [(0, "get"), (1, "scan")] {
        let class = &load["classes"][class];
        assert_eq!((&class["drops"], &class["requests"]), (&0.into(), &served[name]), "{load}");
        sent += served[name].as_u64().unwrap();
    }
    assert!(sent > 100, "{served}");
    assert_eq!(counter(&end.sockets, "chosen"), sent);
    assert_eq!(counter(&end.sockets, "inputs"), sent);
    assert!(verdicts(&end.threads).iter().all(|&count| count > 0), "{end:?}");
    for deployment in [&end.sockets, &end.threads] {
        assert_eq!(deployment["state"], "live", "{deployment}");
    }
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
}

const COUNT: &str = "#include <syrup/thread.h>\n\
    SYRUP_MAP(calls, 2);\n\
    __s32 schedule(struct syrup_thread *t)\n{\n\
    \t__u64 *seen = syrup_map_lookup(&calls, 0);\n\
    \tif (seen)\n\t\t__sync_fetch_and_add(seen, 1);\n\treturn 0;\n}\n";

const ENDLESS: &str = "#include <syrup/thread.h>\n\
    __s32 schedule(struct syrup_thread *t)\n{\n\
    \tvolatile __u32 n = 0;\n\twhile (n < 4000000000U)\n\t\tn += syrup_random() & 1;\n\
    \treturn 0;\n}\n";

/// `syrup/tests/c_api.rs` has the packet hook's part.
fn every_call_is_as_its_header_says_for(uid: u32) {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = machine();
    let _daemon = ctl.daemon();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../syrup/tests/calls.c");
    let program = CProgram::build(&source);
    let compile = |name, text| Compiler::find().unwrap().compile(name, text).unwrap().object;
    program.file("count.c", COUNT);
    program.file("count.o", compile("count.c", COUNT));
    program.file("endless.o", compile("endless.c", ENDLESS));
    program.file("garbage.o", [7; 4096]);
    let mut calls = program.command(&ctl, "capp", uid);
    let output = calls.arg("thread").arg(program.folder()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let deployment = ctl.deployment("capp", THREADS);
    assert_eq!((&deployment["uid"], &deployment["state"]), (&uid.into(), &"live".into()));
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
}

#[test]
fn every_call_is_as_its_header_says_for_root() {
    every_call_is_as_its_header_says_for(0);
}

#[test]
fn every_call_is_as_its_header_says_for_an_ordinary_user() {
    every_call_is_as_its_header_says_for(NOBODY);
}

/// As `ip netns exec` has one: what is pinned there would go with the command.
#[test]
fn a_bpf_file_system_that_goes_with_the_command_is_refused() {
    if !require(&[Need::Root]) {
        return;
    }
    for mounts in ["mount -t bpf bpf", "mount -t tmpfs tmpfs"] {
        let ctl = |what: &str| {
            let script = format!("{mounts} /sys/fs/bpf && exec \"$0\" {what}");
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", &script]).arg(binary("syrupctl"));
            command.output().unwrap()
        };
        let status = ctl("status");
        let said = String::from_utf8_lossy(&status.stderr);
        assert_eq!(status.status.code(), Some(6), "{mounts}: {said}");
        assert!(said.contains("nsenter --net"), "{mounts}: {said}");
        let doctor = ctl("doctor");
        let said = String::from_utf8_lossy(&doctor.stdout);
        assert!(said.contains("nsenter --net"), "{mounts}: {said}");
    }
}
