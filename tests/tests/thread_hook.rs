//! The hook `scx-syrup` end to end; needs a kernel with sched_ext.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use syrup_tests::{Ctl, Need, ThreadClass, require, sched_class, syscalls, wait_for};

/// A real multi-threaded process that computes and sleeps: bounded, and ended
/// with the value.
struct Program(Child);

impl Program {
    fn start() -> Self {
        // Sleeping threads, so that each wake-up is an input.
        let script = "import threading, time\n\
            def work():\n    end = time.time() + 300\n    while time.time() < end:\n\
            \x20       sum(range(500)); time.sleep(0.02)\n\
            ts = [threading.Thread(target=work) for _ in range(4)]\n\
            [t.start() for t in ts]; [t.join() for t in ts]\n";
        Self::run(script)
    }

    /// Of Python, until it has five threads.
    fn run(script: &str) -> Self {
        let child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::null())
            .spawn()
            .expect("python3");
        let program = Self(child);
        wait_for("the program's threads", Duration::from_secs(30), || {
            (program.threads().len() >= 5).then_some(())
        });
        program
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn threads(&self) -> Vec<i32> {
        std::fs::read_dir(format!("/proc/{}/task", self.0.id()))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn inputs(ctl: &Ctl) -> u64 {
    ctl.deployment("calc", "scx-syrup")["counters"]["inputs"].as_u64().unwrap()
}

fn wait_for_inputs(ctl: &Ctl, more: u64) {
    let goal = inputs(ctl) + more;
    wait_for("thread inputs", Duration::from_secs(60), || (inputs(ctl) >= goal).then_some(()));
}

fn load(ctl: &Ctl, policy: &str, program: &Program) -> syrup_tests::Ran {
    ctl.run(&["load", "scx-syrup", "--policy", policy, "--app", "calc", "--pid", &program.pid()])
}

#[test]
fn get_priority_loads_on_a_bare_machine_and_unload_restores_it() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    ctl.run(&["load", "scx-syrup", "--policy", "get-priority"]).ok();
    assert_eq!(std::fs::read_to_string("/sys/kernel/sched_ext/state").unwrap().trim(), "enabled");
    let ours = ctl.kernel_objects();
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
    wait_for("sched_ext to be disabled", Duration::from_secs(20), || {
        let state = std::fs::read_to_string("/sys/kernel/sched_ext/state").unwrap();
        (state.trim() == "disabled").then_some(())
    });
    ours.assert_freed();
}

#[test]
fn the_policy_schedules_a_running_program_and_gives_its_threads_back() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let program = Program::start();
    load(&ctl, "fifo", &program).ok();
    for tid in program.threads() {
        assert_eq!(sched_class(tid), ThreadClass::Ext);
    }
    wait_for_inputs(&ctl, 50);
    ctl.run(&["unload", "scx-syrup", "--app", "calc"]).ok();
    for tid in program.threads() {
        assert_eq!(sched_class(tid), ThreadClass::Fair);
    }
    ctl.assert_empty();
}

#[test]
fn killing_the_daemon_keeps_the_policy_and_the_next_one_adopts() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let program = Program::start();
    let daemon = ctl.daemon();
    load(&ctl, "get-priority", &program).ok();
    let before = ctl.deployment("calc", "scx-syrup");
    daemon.kill9();
    wait_for_inputs(&ctl, 50);
    let next = ctl.daemon();
    let after = ctl.deployment("calc", "scx-syrup");
    for field in ["policy", "policy_sha256", "program_id", "generation"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    assert_eq!(after["counters"]["no_policy"], 0, "an input fell to the default");
    assert_eq!(after["state"], "live");
    drop(next);
}

/// Starves sched_ext on a core.
struct Starved {
    hog: Child,
    server: &'static str,
    runtime: String,
}

impl Starved {
    fn core_1() -> Self {
        let debugfs = ["-t", "debugfs", "none", "/sys/kernel/debug"];
        let _ = Command::new("mount").args(debugfs).stderr(Stdio::null()).status();
        let server = "/sys/kernel/debug/sched/ext_server/cpu1/runtime";
        let runtime = std::fs::read_to_string(server).expect("the class's deadline server");
        std::fs::write(server, "0").unwrap();
        let mut hog = Command::new("taskset");
        let hog = hog.args(["-c", "1", "sh", "-c", "while :; do :; done"]).spawn();
        Self { hog: hog.expect("taskset"), server, runtime }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        let _ = self.hog.kill();
        let _ = self.hog.wait();
        let _ = std::fs::write(self.server, &self.runtime);
    }
}

#[test]
fn the_daemon_puts_back_a_scheduler_that_the_kernel_has_ended() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let program = Program::start();
    let daemon = ctl.daemon();
    let pid = program.pid();
    let flags = ["--app", "calc", "--pid", &pid, "--cpus", "1"];
    ctl.run(&[&["load", "scx-syrup", "--policy", "fifo"], &flags[..]].concat()).ok();
    let before = ctl.deployment("calc", "scx-syrup");
    syrup_tests::expect_kernel_message("runnable task stall");
    // Or it would expel the app before the watchdog comes.
    let signal = |signal| {
        let daemon = rustix::process::Pid::from_raw(daemon.pid() as i32).unwrap();
        rustix::process::kill_process(daemon, signal).unwrap();
    };
    signal(rustix::process::Signal::STOP);
    let starved = Starved::core_1();
    wait_for("the watchdog", Duration::from_secs(60), || {
        let state = std::fs::read_to_string("/sys/kernel/sched_ext/state").unwrap();
        (state.trim() == "disabled").then_some(())
    });
    drop(starved);
    signal(rustix::process::Signal::CONT);
    let said = wait_for("the scheduler to come back", Duration::from_secs(60), || {
        let now = ctl.deployment("calc", "scx-syrup");
        let said = now["reason"].as_str().unwrap_or_default().to_owned();
        said.contains("put back").then_some(said)
    });
    assert!(said.contains("stall"), "{said}");
    wait_for_inputs(&ctl, 50);
    let after = ctl.deployment("calc", "scx-syrup");
    for field in ["policy", "program_id", "generation"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    for tid in program.threads() {
        assert_eq!(sched_class(tid), ThreadClass::Ext);
    }
    assert_eq!(ctl.run(&["status"]).code, 10);
    drop(daemon);
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
}

#[test]
fn the_daemon_expels_an_app_that_the_rescue_cannot_help() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let (program, other) = (Program::start(), Program::start());
    let daemon = ctl.daemon();
    for (app, program, cpu) in [("calc", &program, "1"), ("other", &other, "2")] {
        let flags = ["--app", app, "--pid", &program.pid(), "--cpus", cpu];
        ctl.run(&[&["load", "scx-syrup", "--policy", "fifo"], &flags[..]].concat()).ok();
    }
    let starved = Starved::core_1();
    wait_for("the expulsion", Duration::from_secs(60), || {
        let calc = ctl.deployment("calc", "scx-syrup");
        (calc["state"] == "ejected" && calc["target"]["threads"] == 0).then_some(())
    });
    drop(starved);
    for tid in program.threads() {
        assert_eq!(sched_class(tid), ThreadClass::Fair);
    }
    for tid in other.threads() {
        assert_eq!(sched_class(tid), ThreadClass::Ext);
    }
    assert_eq!(ctl.deployment("other", "scx-syrup")["state"], "live");
    let status = ctl.run(&["status"]);
    assert_eq!(status.code, 10);
    assert!(status.stdout.contains("expelled"), "{}{}", status.stdout, status.stderr);
    // What its message says to do.
    ctl.run(&["unload", "scx-syrup", "--app", "calc"]).ok();
    load(&ctl, "fifo", &program).ok();
    assert_eq!(ctl.deployment("calc", "scx-syrup")["state"], "live");
    drop(daemon);
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
}

#[test]
fn status_costs_the_same_however_many_threads_the_machine_has() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let program = Program::start();
    load(&ctl, "fifo", &program).ok();
    assert_eq!(ctl.deployment("calc", "scx-syrup")["target"]["threads"], program.threads().len());

    let cost = || syscalls(ctl.command("syrupctl").arg("status"));
    let few = cost();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let ended = std::sync::Mutex::new(ended);
    let many = std::thread::scope(|scope| {
        let end = end;
        for _ in 0..2000 {
            let nap = || ended.lock().unwrap().recv().is_ok();
            std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, nap).unwrap();
        }
        let many = cost();
        drop(end);
        many
    });
    println!("syrupctl status: {few} system calls; {many} beside 2000 more threads");
    // Most of them start the program. A lock that another process holds is asked
    // for again.
    assert!((100..1000).contains(&few), "{few} system calls");
    assert!(many <= few + 50, "{few} system calls, {many} beside 2000 more threads");
}

#[test]
fn replace_under_load_lets_the_old_or_the_new_policy_decide_every_input() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let program = Program::start();
    load(&ctl, "fifo", &program).ok();
    for policy in ["get-priority", "vruntime", "fifo", "get-priority"] {
        wait_for_inputs(&ctl, 20);
        ctl.run(&["replace", "scx-syrup", "--app", "calc", "--policy", policy]).ok();
        assert_eq!(ctl.deployment("calc", "scx-syrup")["policy"], policy);
    }
    wait_for_inputs(&ctl, 20);
    let deployment = ctl.deployment("calc", "scx-syrup");
    assert_eq!(deployment["counters"]["no_policy"], 0, "the default decided");
    assert_eq!(deployment["state"], "live");
}

#[test]
fn a_policy_that_never_chooses_a_queue_is_reported_as_degraded() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let program = Program::start();
    let source = "#include <syrup/thread.h>\nSYRUP_THREAD_POLICY(.queues = 2);\n\
        __s32 schedule(struct syrup_thread *t)\n{\n\treturn 9;\n}\n";
    let ran = load(&ctl, &ctl.file("nowhere.c", source), &program);
    assert_eq!(ran.code, 10, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("help:"), "{}", ran.stderr);
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
    for tid in program.threads() {
        assert_eq!(sched_class(tid), ThreadClass::Fair);
    }
}

#[test]
fn an_endless_loop_is_refused_by_the_verifier_and_leaves_no_scheduler() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let source = "#include <syrup/thread.h>\n\
        __s32 schedule(struct syrup_thread *t)\n{\n\
        \tvolatile __u32 n = 0;\n\twhile (n < 4000000000U)\n\t\tn += syrup_random() & 1;\n\treturn 0;\n}\n";
    ctl.run(&["load", "scx-syrup", "--policy", &ctl.file("endless.c", source)])
        .fails(4, "endless.c:");
    ctl.assert_empty();
    let state = std::fs::read_to_string("/sys/kernel/sched_ext/state").unwrap();
    assert_ne!(state.trim(), "enabled");
}

#[test]
fn the_threads_of_another_app_are_refused_by_its_name() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let daemon = ctl.daemon();
    let program = Program::start();
    load(&ctl, "fifo", &program).ok();
    let threads = program.threads().len();
    let thief = || {
        ctl.run(&[
            "load",
            "scx-syrup",
            "--policy",
            "fifo",
            "--app",
            "thief",
            "--pid",
            &program.pid(),
        ])
    };
    let refused = thief();
    refused.fails(7, "is scheduled for app 'calc'");
    assert!(refused.stderr.contains("unload scx-syrup --app calc"), "{}", refused.stderr);
    assert_eq!(ctl.json(&["list"])["deployments"].as_array().unwrap().len(), 1);
    assert_eq!(ctl.deployment("calc", "scx-syrup")["target"]["threads"], threads);
    // One by one, too; and its own app may.
    ctl.run(&["load", "scx-syrup", "--policy", "fifo", "--app", "thief"]).ok();
    let register = |app: &str, tid: i32| {
        let app = syrup::App::named(app).at_socket(ctl.socket());
        app.register_thread(tid, None)
    };
    let tid = program.threads()[1];
    let refused = register("thief", tid).unwrap_err();
    assert!(refused.to_string().contains("is scheduled for app 'calc'"), "{refused}");
    register("calc", tid).unwrap();
    assert_eq!(ctl.deployment("calc", "scx-syrup")["target"]["threads"], threads);
    assert_eq!(ctl.deployment("thief", "scx-syrup")["target"]["threads"], 0);
    // What the advice says: one of them, then all.
    let chrt = Command::new("chrt").args(["--other", "--pid", "0", &tid.to_string()]).status();
    assert!(chrt.unwrap().success());
    register("thief", tid).unwrap();
    assert_eq!(ctl.deployment("calc", "scx-syrup")["target"]["threads"], threads - 1);
    assert_eq!(ctl.deployment("thief", "scx-syrup")["target"]["threads"], 1);
    ctl.run(&["unload", "scx-syrup", "--app", "calc"]).ok();
    ctl.run(&["unload", "scx-syrup", "--app", "thief"]).ok();
    thief().ok();
    assert_eq!(ctl.deployment("thief", "scx-syrup")["target"]["threads"], threads);
    drop(daemon);
}

#[test]
fn a_process_that_starts_threads_meanwhile_is_adopted_whole() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    // The one that starts others comes last, when the first are registered already.
    let program = Program::run(
        "import threading, time\n\
         def sleeper():\n\
         \x20   threading.Thread(target=time.sleep, args=[60], daemon=True).start()\n\
         def start():\n\
         \x20   for _ in range(1000): sleeper(); time.sleep(0.01)\n\
         for _ in range(150): sleeper()\n\
         last = threading.Thread(target=start); last.start(); last.join()\n",
    );
    wait_for("its first threads", Duration::from_secs(30), || {
        (program.threads().len() >= 152).then_some(())
    });
    let before = program.threads().len();
    load(&ctl, "fifo", &program).ok();
    let after = program.threads();
    println!("{before} threads before the load, {} after it", after.len());
    assert!(after.len() > before + 3, "it started none meanwhile");
    for tid in after {
        assert_eq!(sched_class(tid), ThreadClass::Ext);
    }
}

#[test]
fn a_process_that_ended_is_not_named() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let program = Program::start();
    load(&ctl, "fifo", &program).ok();
    let pid: u32 = program.pid().parse().unwrap();
    assert_eq!(ctl.deployment("calc", "scx-syrup")["target"]["pid"], pid);
    drop(program);
    let deployment = ctl.deployment("calc", "scx-syrup");
    assert_eq!(deployment["target"]["pid"], serde_json::Value::Null);
    let show = ctl.run(&["show", "calc"]).ok();
    assert!(!show.contains("process"), "{show}");
    wait_for("its threads to be gone", Duration::from_secs(30), || {
        (ctl.deployment("calc", "scx-syrup")["target"]["threads"] == 0).then_some(())
    });
    ctl.run(&["load", "scx-syrup", "--policy", "fifo", "--app", "calc"]).fails(
        7,
        "adopts some when it is loaded again after 'syrupctl unload scx-syrup --app calc'",
    );
    let status = ctl.run(&["status"]).ok();
    assert!(status.contains("it waits for its first thread"), "{status}");
}
