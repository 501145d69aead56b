//! What is left of calls at `scx-syrup` that are killed, or fail, at any of their steps.

mod killed;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use syrup_hook::process;
use syrup_protocol::{Deployment, Facts, Registration};
use syrup_tests::{Need, ThreadClass, require, sched_class};

use self::killed::{Next, Operation, Policy, Scene, Stage, State};

const PID: &str = "SYRUP_TEST_KILLED_PID";

/// A process of two threads, of which one naps and one sleeps.
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
        let threads = Self { process: Some(child), tids: process::threads(pid).unwrap() };
        assert_eq!(threads.tids.len(), 2);
        threads
    }

    /// Those of the parent, in a child.
    fn of_parent() -> Self {
        let pid = std::env::var(PID).unwrap().parse().unwrap();
        Self { process: None, tids: process::threads(pid).unwrap() }
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
        state.0.map(|(_, members)| members).filter(|&members| members > 0)
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

/// So many steps of an operation are killed, and as many others refused, evenly spread:
/// emulated, one of a load takes 10 s or more. All of them where the environment says so.
const TRIES: usize = 4;

/// Which of the tries this step is: each is killed in the middle of its share of the steps, and
/// refused at the end.
fn nth_try(step: usize, of: usize, refused: bool) -> Option<usize> {
    let every = std::env::var_os("SYRUP_TEST_EVERY_STEP").is_some();
    let tries = if every { of } else { TRIES.min(of) };
    let at = |nth: usize| match refused {
        false => (2 * nth + 1) * of / (2 * tries),
        true => (nth + 1) * of / tries - 1,
    };
    (0..tries).find(|&nth| at(nth) == step)
}

/// Killed before an operation's steps, of which there are so many at least, and refused them.
fn leaves_the_old_or_the_new(operation: Operation, least: usize) {
    if !require(&[Need::Root, Need::SchedExt]) {
        return;
    }
    let mut stage = Stage::new(Threads::new());
    // Each of those who may come meets other steps of other operations.
    let next = |nth: usize| &Next::ALL[(operation as usize + nth) % Next::ALL.len()];
    stage.play(operation, least, |step, of| {
        nth_try(step, of, false).map_or(&[], |nth| std::slice::from_ref(next(nth)))
    });
    stage.play_refused(operation, least, |step, of| nth_try(step, of, true).is_some());
}

#[test]
fn a_load_that_is_killed_or_refused_leaves_nothing_or_all() {
    leaves_the_old_or_the_new(Operation::Load, 50);
}

#[test]
fn a_replacement_that_is_killed_or_refused_leaves_the_old_or_the_new() {
    leaves_the_old_or_the_new(Operation::Replace, 12);
}

#[test]
fn a_thread_that_a_killed_or_refused_call_registers_or_lets_go_is_in_or_out() {
    leaves_the_old_or_the_new(Operation::Register, 4);
    leaves_the_old_or_the_new(Operation::Unregister, 3);
    leaves_the_old_or_the_new(Operation::UnregisterLast, 3);
}

#[test]
fn an_unload_that_is_killed_or_refused_leaves_all_or_nothing() {
    leaves_the_old_or_the_new(Operation::Unload, 20);
}

#[test]
#[ignore = "run by leaves_the_old_or_the_new"]
fn child_makes_a_call() {
    killed::make_a_call(Threads::of_parent);
}

#[test]
#[ignore = "run by leaves_the_old_or_the_new"]
fn child_of_two_threads() {
    // The other one is the test runner's, which waits for this.
    println!("ready");
    loop {
        std::thread::sleep(Duration::from_millis(5));
    }
}
