//! What is left of calls at `scx-syrup` that are killed at any of their steps.

mod killed;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use syrup_protocol::{Deployment, Facts, Registration};
use syrup_tests::{Need, ThreadClass, require, sched_class};

use self::killed::{Next, Operation, Policy, Scene, Stage, State};

const PID: &str = "SYRUP_TEST_KILLED_PID";

/// A process of two threads that nap.
struct Threads {
    process: Option<Child>,
    tids: Vec<i32>,
}

impl Threads {
    fn new() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_of_two_threads", "--ignored", "--nocapture"])
            .arg("--test-threads=1")
            .env(PID, "")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next().unwrap().unwrap().contains("ready") {}
        let pid = child.id() as i32;
        Self { process: Some(child), tids: syrup_hook::process::threads(pid).unwrap() }
    }

    /// Those of the parent, in a child.
    fn of_parent() -> Self {
        let pid = std::env::var(PID).unwrap().parse().unwrap();
        Self { process: None, tids: syrup_hook::process::threads(pid).unwrap() }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Scene for Threads {
    const HOOK: &'static str = "scx-syrup";

    fn source(policy: Policy, map: &str) -> String {
        let queue = match policy {
            Policy::First => 0,
            Policy::Second => 1,
        };
        format!(
            "#include <syrup/thread.h>\nSYRUP_THREAD_POLICY(.queues = 2);\nSYRUP_MAP({map}, 4);\n\
             __s32 schedule(struct syrup_thread *t)\n{{\n\t(void)t;\n\
             \treturn syrup_map_lookup(&{map}, 0) ? {queue} : -1;\n}}\n"
        )
    }

    fn target(&self) -> Facts {
        Facts::from([("pid".into(), self.tids[0].into())])
    }

    fn member(&self, number: usize) -> Registration {
        Registration::Thread { tid: self.tids[number] }
    }

    fn members(deployment: &Deployment) -> usize {
        let digits = deployment.inputs.split_whitespace().next().unwrap();
        digits.parse().unwrap_or_else(|e| panic!("{}: {e}", deployment.inputs))
    }

    fn expected(state: State) -> Option<usize> {
        state.0.map(|(_, members)| members)
    }

    /// Threads come and go one by one.
    fn possible(ends: [State; 2]) -> Vec<Option<usize>> {
        let [a, b] = ends.map(Self::expected);
        let all = [None, Some(1), Some(2)];
        all.into_iter().filter(|x| (a.min(b)..=a.max(b)).contains(x)).collect()
    }

    fn decides(&self) -> Option<usize> {
        let ext = self.tids.iter().filter(|&&tid| sched_class(tid) == ThreadClass::Ext).count();
        (ext > 0).then_some(ext)
    }

    fn tell(&self, child: &mut Command) {
        child.env(PID, self.tids[0].to_string());
    }

    /// Those that are nobody's run as ever.
    fn assert_foreign_untouched(&self) {
        for &tid in &self.tids {
            assert_eq!(sched_class(tid), ThreadClass::Fair);
        }
    }
}

#[test]
fn whoever_is_killed_at_any_step_leaves_the_old_or_the_new_and_nothing_in_the_end() {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let mut stage = Stage::new(Threads::new());
    let mut steps = 0;
    for operation in Operation::ALL {
        // Emulated, all three at each step would take half an hour.
        steps += stage.play(operation, |step| std::slice::from_ref(&Next::ALL[step % 3]));
    }
    println!("{steps} steps");
    assert!(steps >= 30, "{steps}");
}

#[test]
#[ignore = "run by whoever_is_killed_at_any_step_leaves_the_old_or_the_new_and_nothing_in_the_end"]
fn child_makes_a_call() {
    killed::make_a_call(Threads::of_parent);
}

#[test]
#[ignore = "run by whoever_is_killed_at_any_step_leaves_the_old_or_the_new_and_nothing_in_the_end"]
fn child_of_two_threads() {
    let nap = || loop {
        std::thread::sleep(Duration::from_millis(5));
    };
    std::thread::spawn(nap);
    println!("ready");
    nap();
}
