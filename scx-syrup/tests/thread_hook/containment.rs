//! What one app does to all: the scheduler's end, and how little of it others see.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use syrup_hook::{Deploy as _, Error, Health, Hook as _, Registration};
use syrup_scx::{ScxSyrup, Target};
use syrup_sdk::abi;
use syrup_tests::Numbers as _;

use crate::support::fixture::{Fixture, is_live, on_cpus, register, sysfs};
use crate::support::policy::{Scripted, cores, policy, queues};
use crate::support::workers::{Crew, eventually};

/// What the class has of a core beside threads of others: nothing, for as long as this lives.
struct NoServer(PathBuf, String);

impl NoServer {
    fn on(cpu: u32) -> Self {
        let _ = Command::new("mount")
            .args(["-t", "debugfs", "none", "/sys/kernel/debug"])
            .stderr(Stdio::null())
            .status();
        let path = PathBuf::from(format!("/sys/kernel/debug/sched/ext_server/cpu{cpu}/runtime"));
        let runtime = fs::read_to_string(&path).unwrap();
        fs::write(&path, "0").unwrap();
        Self(path, runtime)
    }
}

impl Drop for NoServer {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, &self.1);
    }
}

#[test]
fn a_scheduler_that_the_kernel_ended_comes_back_with_its_apps_and_threads() {
    let Some(fixture) = Fixture::new() else { return };
    let (one, two) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    ScxSyrup.deploy(&one, &script.policy(queues(2)), &on_cpus(&[1])).unwrap();
    ScxSyrup.deploy(&two, &script.policy(cores()), &on_cpus(&[2, 3])).unwrap();
    let crews = [Crew::spinning(2), Crew::spinning(2)];
    register(&one, &crews[0], 0);
    register(&two, &crews[1], 4);
    let many = Crew::parked(48);
    register(&two, &many, 100);
    crews[1].wait_for_progress();
    let apps = [one.clone(), two.clone()];
    // Whom it has it keeps.
    ScxSyrup.set(&one, &[("limit".to_owned(), 1.into())].into()).unwrap();
    assert!(ScxSyrup.lagging(&apps).is_empty());
    let inputs = || ScxSyrup.read(&two).unwrap().unwrap().count(abi::SYRUP_INPUTS);
    let before = inputs();

    // Nobody but the watchdog comes to the thread then.
    syrup_tests::expect_kernel_message("runnable task stall");
    let server = NoServer::on(1);
    let taker = Crew::spinning(1);
    taker.pin_to(1);
    // No daemon is there that would expel the app before.
    eventually("the ejection", || (sysfs("state") == "disabled").then_some(()));
    let health = ScxSyrup.read(&one).unwrap().unwrap().health;
    assert!(matches!(&health, Health::Ejected(why) if why.contains("stall")), "{health:?}");
    drop((taker, server));
    let lagging: Vec<String> = ScxSyrup.lagging(&apps).into_iter().map(|app| app.name).collect();
    assert_eq!(lagging, ["one", "two"]);
    assert!(ScxSyrup.catch_up(&one).unwrap());
    assert!(!ScxSyrup.catch_up(&two).unwrap());
    assert!(ScxSyrup.lagging(&apps).is_empty());

    for (tid, index) in many.tids().into_iter().zip(100..) {
        let had = ScxSyrup.register(&two, Registration::Thread { tid }, None).unwrap();
        assert_eq!(had, index);
    }
    for ((app, crew), threads) in apps.iter().zip(&crews).zip([2, 50]) {
        let calls = script.calls();
        crew.wait_for_progress();
        let seen = ScxSyrup.read(app).unwrap().unwrap();
        let Health::Degraded(said) = &seen.health else { panic!("{:?}", seen.health) };
        assert!(said.contains("stall") && said.contains("put back"), "{said}");
        assert_eq!(seen.target["threads"], threads);
        eventually("the policy to be asked", || (script.calls() > calls).then_some(()));
    }
    crews.iter().for_each(Crew::forget);
    crews.iter().for_each(Crew::wait_for_progress);
    assert_eq!(crews[0].cpus(), 1 << 1);
    assert_eq!(crews[1].cpus(), 1 << 2);
    let told = script.told_since(0).into_iter();
    let mut indices: Vec<u32> = told.map(|told| told.thread.index).collect();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices, [0, 1, 4, 5]);
    assert!(inputs() > before);

    // Who takes it off wants it off.
    syrup_tests::expect_kernel_message("disabled by sysrq-S");
    fs::write("/proc/sysrq-trigger", "S").unwrap();
    eventually("the end", || {
        let health = ScxSyrup.read(&one).unwrap().unwrap().health;
        matches!(health, Health::Ejected(_)).then_some(())
    });
    assert!(ScxSyrup.lagging(&apps).is_empty());
    assert!(!ScxSyrup.catch_up(&one).unwrap());
    ScxSyrup.remove(&one).unwrap();
    ScxSyrup.remove(&two).unwrap();
    fixture.assert_clean();
    assert!(crews.iter().all(|crew| crew.policies() == [0, 0]));
}

/// Nobody comes to threads of the class on core 1.
fn blocked() -> (Crew, NoServer) {
    let server = NoServer::on(1);
    let taker = Crew::spinning(1);
    taker.pin_to(1);
    (taker, server)
}

const EXT: i32 = 7;

#[test]
fn an_app_that_the_rescue_cannot_help_is_expelled_alone() {
    let Some(fixture) = Fixture::resident() else { return };
    let (one, two) = (fixture.app("one"), fixture.app("two"));
    ScxSyrup.deploy(&one, &policy("fifo"), &on_cpus(&[1])).unwrap();
    ScxSyrup.deploy(&two, &policy("fifo"), &on_cpus(&[2])).unwrap();
    let crews = [Crew::spinning(2), Crew::spinning(2)];
    register(&one, &crews[0], 0);
    register(&two, &crews[1], 0);
    let apps = [one.clone(), two.clone()];
    assert!(ScxSyrup.lagging(&apps).is_empty());
    let lagging = || ScxSyrup.lagging(&apps).into_iter().map(|app| app.name).collect::<Vec<_>>();
    let why = |app| match ScxSyrup.read(app).unwrap().unwrap().health {
        Health::Ejected(why) => why,
        health => health.state().to_owned(),
    };
    let counts = ScxSyrup.changes(fixture.bpffs()).unwrap();
    let count = counts.count().unwrap();

    let taken = blocked();
    eventually("the expulsion", || (!lagging().is_empty()).then_some(()));
    assert_eq!(lagging(), ["one"]);
    assert_ne!(counts.count().unwrap(), count);
    assert!(why(&one).contains("takes its 2 threads out of sched_ext"), "{}", why(&one));
    let newcomer = Registration::Thread { tid: crews[1].tids()[0] };
    let refused = ScxSyrup.register(&one, newcomer, None).unwrap_err();
    assert!(
        matches!(&refused, Error::Conflict { what, .. } if what == "app 'one' is expelled from sched_ext"),
        "{refused}"
    );
    assert!(ScxSyrup.catch_up(&one).unwrap());
    assert!(ScxSyrup.lagging(&apps).is_empty());
    assert_eq!(crews[0].policies(), [0, 0]);
    assert!(why(&one).starts_with("expelled ") && !why(&one).contains("gc"), "{}", why(&one));
    drop(taken);
    crews[0].wait_for_progress();

    // The others do not notice.
    assert_eq!(sysfs("state"), "enabled");
    assert!(is_live(&ScxSyrup.read(&two).unwrap().unwrap()));
    assert_eq!(crews[1].policies(), [EXT, EXT]);
    crews[1].wait_for_progress();

    // Who comes back by himself is nobody's, and is taken out again.
    let inputs = || ScxSyrup.read(&one).unwrap().unwrap().count(abi::SYRUP_INPUTS);
    let before = inputs();
    crews[0].become_ext();
    crews[0].wait_for_progress();
    assert_eq!(inputs(), before);
    assert_eq!(lagging(), ["one"]);
    assert!(ScxSyrup.catch_up(&one).unwrap());
    assert_eq!(crews[0].policies(), [0, 0]);

    // Loaded again it is an app like any other.
    ScxSyrup.remove(&one).unwrap();
    ScxSyrup.deploy(&one, &policy("fifo"), &on_cpus(&[1])).unwrap();
    register(&one, &crews[0], 0);
    crews[0].wait_for_progress();
    assert!(is_live(&ScxSyrup.read(&one).unwrap().unwrap()));
    assert!(ScxSyrup.lagging(&apps).is_empty());
}

#[test]
fn threads_of_nobody_that_the_rescue_cannot_help_leave() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &on_cpus(&[2])).unwrap();
    let (crew, outside, nobodys) = (Crew::spinning(1), Crew::spinning(1), Crew::spinning(2));
    register(&app, &crew, 0);
    register(&app, &outside, 1);
    outside.pin_to(1);
    nobodys.pin_to(1);
    nobodys.become_ext();
    let apps = [app.clone()];
    let taken = blocked();
    eventually("the expulsion", || (!ScxSyrup.lagging(&apps).is_empty()).then_some(()));
    ScxSyrup.catch_up(&app).unwrap();
    assert_eq!(nobodys.policies(), [0, 0]);
    assert_eq!(outside.policies(), [0], "no core of its app's is its own");
    assert_eq!(crew.policies(), [EXT]);
    assert!(is_live(&ScxSyrup.read(&app).unwrap().unwrap()));
    // Once they have left, nobody's may come again.
    eventually("the end of it", || ScxSyrup.lagging(&apps).is_empty().then_some(()));
    drop(taken);
    nobodys.become_ext();
    nobodys.wait_for_progress();
    assert_eq!(nobodys.policies(), [EXT, EXT]);
    assert!(ScxSyrup.lagging(&apps).is_empty());
}

/// A thread that starts others until that fails; returns how many there are then, and why.
fn multiply(app: &syrup_hook::App, index: u32) -> (usize, Option<i32>) {
    let (ready, wait) = std::sync::mpsc::channel();
    let (go, start) = std::sync::mpsc::channel::<()>();
    let parent = std::thread::spawn(move || {
        // SAFETY: no arguments, no memory.
        ready.send(unsafe { libc::gettid() }).unwrap();
        start.recv().unwrap();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = std::sync::Mutex::new(ended);
        std::thread::scope(|scope| {
            let _end = end;
            for number in 1..100 {
                let nap = || ended.lock().unwrap().recv().is_ok();
                if let Err(e) = std::thread::Builder::new().spawn_scoped(scope, nap) {
                    return (number, e.raw_os_error());
                }
            }
            (100, None)
        })
    });
    let tid = wait.recv().unwrap();
    ScxSyrup.register(app, Registration::Thread { tid }, Some(index)).unwrap();
    go.send(()).unwrap();
    parent.join().unwrap()
}

#[test]
fn an_app_and_a_user_have_as_many_threads_as_they_may() {
    let Some(fixture) = Fixture::resident() else { return };
    let users = |name| syrup_hook::App { uid: 1000, ..fixture.app(name) };
    let (one, two, small) = (users("one"), users("two"), users("four"));
    let other = fixture.app("three");
    let limited = |limit| Target { limit: Some(limit), ..Default::default() };
    for (app, limit) in [(&one, 5), (&two, 4), (&small, 1), (&other, 4)] {
        ScxSyrup.deploy(app, &policy("fifo"), &limited(limit)).unwrap();
    }
    assert_eq!(multiply(&one, 0), (5, Some(libc::EAGAIN)));
    let seen = ScxSyrup.read(&one).unwrap().unwrap();
    assert!(
        matches!(&seen.health, Health::Degraded(why) if why.contains("(1 more were refused")),
        "{:?}",
        seen.health
    );
    assert_eq!(seen.fact("limit"), Some(5));
    // What was refused is not counted as starting, nor are those that have ended.
    assert_eq!(multiply(&one, 0), (5, Some(libc::EAGAIN)));

    // Nor has it more by children of a thread that left, which enter by themselves.
    let children = std::thread::spawn({
        let one = one.clone();
        move || {
            // SAFETY: no arguments, no memory.
            let tid = unsafe { libc::gettid() };
            ScxSyrup.register(&one, Registration::Thread { tid }, Some(1)).unwrap();
            ScxSyrup.unregister(&one, &Registration::Thread { tid }).unwrap();
            Crew::parked(7)
        }
    });
    let children = children.join().unwrap();
    children.become_ext();
    let threads = || ScxSyrup.read(&one).unwrap().unwrap().fact("threads");
    assert_eq!(threads(), Some(5));
    drop(children);
    eventually("their end", || (threads() == Some(0)).then_some(()));

    let crews = [Crew::parked(5), Crew::parked(4), Crew::parked(4), Crew::parked(2)];
    register(&one, &crews[0], 0);
    let add = |app, crew: &Crew, number| {
        ScxSyrup.register(app, Registration::Thread { tid: crew.tids()[number] }, None)
    };
    let refused = add(&one, &crews[1], 0).unwrap_err();
    assert!(
        matches!(&refused, Error::Conflict { what, .. } if what.contains("5 threads")),
        "{refused}"
    );
    // One that it has may come again, and has its index changed.
    assert!(add(&one, &crews[0], 0).is_ok());
    // Twice five for a user of whom one app may have five, whatever his others may have.
    register(&two, &crews[1], 0);
    add(&small, &crews[3], 0).unwrap();
    ScxSyrup.set(&small, &[("limit".to_owned(), 2.into())].into()).unwrap();
    let refused = add(&small, &crews[3], 1).unwrap_err();
    assert!(
        matches!(&refused, Error::Conflict { what, .. } if what.contains("the apps of user 1000")),
        "{refused}"
    );
    assert_eq!(crews[3].policies(), [EXT, 0]);
    // Another user's is none of theirs.
    register(&other, &crews[2], 0);
    // Whoever leaves makes room.
    ScxSyrup.unregister(&one, &Registration::Thread { tid: crews[0].tids()[0] }).unwrap();
    assert!(add(&small, &crews[3], 1).is_ok());
    ScxSyrup.set(&two, &[("limit".to_owned(), 10.into())].into()).unwrap();
    assert_eq!(multiply(&two, 4), (6, Some(libc::EAGAIN)));
}
