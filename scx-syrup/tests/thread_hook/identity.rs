//! Which thread is which: its index, and the class that it came from.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use libbpf_rs::libbpf_sys;
use syrup_hook::process::Thread;
use syrup_hook::{App, Deploy as _, Error, Registration, sys};
use syrup_scx::ScxSyrup;
use syrup_scx::Target;
use syrup_sdk::abi;
use syrup_tests::{Numbers as _, SetOnDrop};

use crate::support::fixture::{Fixture, register, slot};
use crate::support::policy::{Scripted, policy, queues};
use crate::support::workers::{Crew, eventually};

const EXT: i32 = 7;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    policy: i32,
    priority: i32,
}

const OTHER: Class = Class { policy: libc::SCHED_OTHER, priority: 0 };

fn set_class(tid: i32, class: Class) {
    let param = libc::sched_param { sched_priority: class.priority };
    // SAFETY: param lives for the call.
    let set = unsafe { libc::sched_setscheduler(tid, class.policy, &raw const param) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn class_of(tid: i32) -> Class {
    let mut param = libc::sched_param { sched_priority: 0 };
    // SAFETY: param is writable for the calls.
    let (policy, got) =
        unsafe { (libc::sched_getscheduler(tid), libc::sched_getparam(tid, &raw mut param)) };
    assert!(policy >= 0 && got == 0, "{}", std::io::Error::last_os_error());
    Class { policy, priority: param.sched_priority }
}

#[test]
fn an_index_belongs_to_one_thread_at_a_time() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    ScxSyrup.deploy(&app, &script.policy(queues(1)), &Target::default()).unwrap();
    let crew = Crew::parked(4);
    let tids = crew.tids();
    let give = |number: usize, index: Option<u32>| {
        ScxSyrup.register(&app, Registration::Thread { tid: tids[number] }, index)
    };
    // The policy hears who it is.
    let told_as = |number: usize| {
        let calls = script.calls();
        crew.wake(number);
        let thread = script.told_since(calls)[0].thread;
        assert_eq!(thread.tid as i32, tids[number]);
        thread.index
    };
    assert_eq!(give(0, None).unwrap(), 0);
    assert_eq!(give(1, Some(2)).unwrap(), 2);
    assert_eq!(give(2, None).unwrap(), 1, "the first that is free");
    assert_eq!(give(3, None).unwrap(), 3);
    assert_eq!([0, 1, 2, 3].map(told_as), [0, 2, 1, 3]);
    // Taken over: its former owner goes on without one.
    assert_eq!(give(3, Some(0)).unwrap(), 0);
    assert_eq!([3, 0].map(told_as), [0, abi::SYRUP_INDEX_NONE]);
    assert_eq!(ScxSyrup.read(&app).unwrap().unwrap().fact("threads"), Some(4));
    // Once more: it takes what it asks for, or keeps what it has.
    assert_eq!(give(1, Some(9)).unwrap(), 9);
    assert_eq!(give(1, None).unwrap(), 9);
    assert_eq!(told_as(1), 9);
    // A thread that cannot be registered, as it is the kernel's own, takes nobody's.
    let kthreadd = Registration::Thread { tid: 2 };
    ScxSyrup.register(&app, kthreadd, Some(9)).unwrap_err();
    assert_eq!(told_as(1), 9);
    let refused = give(0, Some(abi::SYRUP_INDEX_NONE)).unwrap_err();
    assert!(matches!(refused, Error::Usage(_)), "{refused:?}");
    assert_eq!(told_as(0), abi::SYRUP_INDEX_NONE);
    // A thread that ends gives its index back.
    drop(crew);
    eventually("the threads to be gone", || {
        (ScxSyrup.read(&app).unwrap().unwrap().fact("threads") == Some(0)).then_some(())
    });
    let other = Crew::parked(1);
    let tid = other.tids()[0];
    assert_eq!(ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap(), 0);
}

#[test]
fn a_thread_that_comes_back_by_itself_has_its_index_if_nobody_else_has() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    ScxSyrup.deploy(&app, &script.policy(queues(1)), &Target::default()).unwrap();
    let crew = Crew::parked(3);
    let tids = crew.tids();
    let give = |number: usize, index: Option<u32>| {
        ScxSyrup.register(&app, Registration::Thread { tid: tids[number] }, index).unwrap()
    };
    let told_as = |number: usize| {
        let calls = script.calls();
        crew.wake(number);
        script.told_since(calls)[0].thread.index
    };
    let leaves_and = |number: usize, meanwhile: &dyn Fn()| {
        set_class(tids[number], OTHER);
        meanwhile();
        set_class(tids[number], Class { policy: EXT, priority: 0 });
    };
    assert_eq!([give(0, None), give(1, Some(5))], [0, 5]);
    leaves_and(0, &|| ());
    assert_eq!(told_as(0), 0);
    leaves_and(0, &|| assert_eq!(give(2, None), 0));
    assert_eq!([0, 2].map(told_as), [abi::SYRUP_INDEX_NONE, 0]);
    // Not the one that it lost, nor a new one.
    ScxSyrup.unregister(&app, &Registration::Thread { tid: tids[2] }).unwrap();
    assert_eq!(told_as(0), abi::SYRUP_INDEX_NONE);
    assert_eq!(give(1, Some(0)), 0);
    leaves_and(0, &|| ());
    assert_eq!([0, 1].map(told_as), [abi::SYRUP_INDEX_NONE, 0]);
    // Both that were given up are free.
    assert_eq!([give(0, None), give(2, Some(5))], [1, 5]);
}

#[test]
fn a_thread_that_enters_and_leaves_while_it_is_registered_is_counted_where_it_is() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
    let crew = Crew::parked(1);
    let tid = crew.tids()[0];
    let threads = sys::obj_get_required(&fixture.bpffs().join("_scx/syrup_threads")).unwrap();
    let threads = sys::Map::new(threads).unwrap();
    let thread = Thread::open(tid).unwrap().unwrap();
    // struct syrup_scx_register: of the slot's first app, with index 0.
    let ask = || call(&fixture, "syrup_register", &[tid as u32, slot(&app), 1, 0]);
    toggling(tid, OTHER, || {
        // It may be refused, or be out again already.
        for _ in 0..100 {
            let _ = ScxSyrup.register(&app, Registration::Thread { tid }, None);
        }
        // What it is while it is registered is not what it was before: it could not be given
        // back. struct syrup_scx_thread: was_policy is its 76th byte.
        let key = thread.as_fd().as_raw_fd().to_ne_bytes();
        for _ in 0..5000 {
            ask();
            assert_ne!(i32::from(threads.lookup(&key).unwrap().unwrap()[76]), EXT);
        }
        // struct syrup_scx_set_index: of the slot's first app, not by force.
        for index in [0, 1, 2].into_iter().cycle().take(5000) {
            call(&fixture, "syrup_set_index", &[tid as u32, slot(&app), 1, index, 0]);
        }
    });
    assert_eq!(crew.policies(), [0]);
    // No index is lost: before it enters once more, and gives back what it has.
    let others = Crew::parked(3);
    let given = others
        .tids()
        .into_iter()
        .map(|tid| ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap());
    assert_eq!(given.collect::<Vec<_>>(), [0, 1, 2]);
    // What a registration that comes just then finds.
    set_class(tid, Class { policy: EXT, priority: 0 });
    assert_eq!(ask(), -libc::EBUSY);
    set_class(tid, OTHER);
    let threads = || ScxSyrup.read(&app).unwrap().unwrap().fact("threads");
    assert_eq!(threads(), Some(3));
    register(&app, &crew, 20);
    assert_eq!(threads(), Some(4));
}

/// Has the thread enter and leave the class again and again meanwhile, and then be `last`.
fn toggling(tid: i32, last: Class, meanwhile: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = SetOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                set_class(tid, Class { policy: EXT, priority: 0 });
                set_class(tid, OTHER);
            }
            set_class(tid, last);
        });
        meanwhile();
    });
}

/// Runs the root's program of that name; returns what it said.
fn call(fixture: &Fixture, program: &str, args: &[u32]) -> i32 {
    let path = fixture.bpffs().join("_scx").join(program);
    let program = sys::obj_get_required(&path).unwrap();
    let mut args = args.to_vec();
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        ctx_in: args.as_mut_ptr().cast(),
        ctx_size_in: size_of_val(args.as_slice()) as u32,
        ..Default::default()
    };
    // SAFETY: opts and what it points to live for the call.
    let run = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut opts) };
    assert_eq!(run, 0);
    opts.retval as i32
}

/// A program of two threads, of which the second becomes another program.
#[test]
#[ignore = "run by the test below"]
fn execs_child() {
    let second = std::thread::spawn(|| {
        // SAFETY: no arguments, no memory.
        println!("@ {}", unsafe { libc::gettid() });
        std::io::stdin().read_line(&mut String::new()).unwrap();
        Command::new("sleep").arg("1000").exec()
    });
    panic!("{}", second.join().unwrap());
}

#[test]
fn exec_changes_the_id_of_a_thread_and_not_who_has_its_index() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "identity::execs_child", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let tid = lines.find_map(|line| line.unwrap().strip_prefix("@ ")?.parse().ok()).unwrap();
    let (leader, crew) = (child.id() as i32, Crew::parked(3));
    let tids = crew.tids();
    let give = |tid: i32, index: Option<u32>| {
        ScxSyrup.register(&app, Registration::Thread { tid }, index).unwrap()
    };
    assert_eq!(give(tid, None), 0);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    eventually("the program to be another", || {
        let name = fs::read_to_string(format!("/proc/{leader}/comm")).unwrap();
        (name.trim() == "sleep").then_some(())
    });
    // It has the leader's id, and its own index, until somebody takes that.
    assert_eq!([give(tids[0], None), give(leader, None)], [1, 0]);
    assert_eq!(give(tids[1], Some(0)), 0);
    assert_eq!(give(leader, None), 2);
    assert_eq!(give(leader, Some(7)), 7);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the index to be free", || {
        (ScxSyrup.read(&app).unwrap().unwrap().fact("threads") == Some(2)).then_some(())
    });
    assert_eq!(give(tids[2], None), 2);
    assert_eq!(give(tids[2], Some(7)), 7);
    assert_eq!(give(tids[0], None), 1);
}

#[test]
fn a_thread_is_given_back_in_the_class_that_it_came_from() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
    let crew = Crew::parked(4);
    let tids = crew.tids();
    let real_time = Class { policy: libc::SCHED_FIFO, priority: 7 };
    let batch = Class { policy: libc::SCHED_BATCH, priority: 0 };
    let flagged = Class { policy: libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, priority: 3 };
    let came_from = [real_time, batch, flagged, OTHER];
    for (&tid, class) in tids.iter().zip(came_from) {
        set_class(tid, class);
    }
    // SAFETY: plain system calls on numbers.
    assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, tids[3] as u32, -5) }, 0);
    register(&app, &crew, 0);
    let classes = || tids.iter().map(|&tid| class_of(tid)).collect::<Vec<_>>();
    assert!(classes().iter().all(|class| class.policy & !libc::SCHED_RESET_ON_FORK == EXT));
    assert_eq!(class_of(tids[2]).policy & libc::SCHED_RESET_ON_FORK, libc::SCHED_RESET_ON_FORK);
    // Another app's, and this one's again: what it came from stays.
    let other = fixture.app("two");
    ScxSyrup.deploy(&other, &policy("fifo"), &Target::default()).unwrap();
    ScxSyrup.unregister(&app, &Registration::Thread { tid: tids[0] }).unwrap();
    assert_eq!(class_of(tids[0]), real_time);
    ScxSyrup.register(&other, Registration::Thread { tid: tids[0] }, None).unwrap();
    // One that somebody took out of the class is what that one made it.
    set_class(tids[1], OTHER);
    set_class(tids[1], Class { policy: EXT, priority: 0 });
    ScxSyrup.remove(&app).unwrap();
    ScxSyrup.remove(&other).unwrap();
    assert_eq!(classes(), [real_time, OTHER, flagged, OTHER]);
    // SAFETY: a plain system call on numbers.
    assert_eq!(unsafe { libc::getpriority(libc::PRIO_PROCESS, tids[3] as u32) }, -5);
}

#[test]
fn what_a_thread_starts_is_given_back_in_the_class_that_it_would_have() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let real_time = Class { policy: libc::SCHED_FIFO, priority: 7 };
    let flagged = Class { policy: libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, priority: 7 };
    for (class, childs) in [(real_time, real_time), (flagged, OTHER)] {
        ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
        let parent = std::thread::spawn({
            let app = app.clone();
            move || {
                // SAFETY: no arguments, no memory.
                let tid = unsafe { libc::gettid() };
                set_class(tid, class);
                ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap();
                Crew::parked(1)
            }
        });
        let child = parent.join().unwrap();
        assert_eq!(child.policies(), [EXT]);
        ScxSyrup.remove(&app).unwrap();
        assert_eq!(class_of(child.tids()[0]), childs);
    }
}

#[test]
fn a_thread_that_has_a_deadline_keeps_it() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
    let crew = Crew::parked(1);
    let tid = crew.tids()[0];
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_DEADLINE as u32,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 1_000_000,
        sched_deadline: 10_000_000,
        sched_period: 10_000_000,
    };
    // SAFETY: attr lives for the call.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    let refused = ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap_err();
    assert!(
        matches!(&refused, Error::Usage(what) if what.contains("SCHED_DEADLINE")),
        "{refused:?}"
    );
    assert_eq!(class_of(tid).policy, libc::SCHED_DEADLINE);
    set_class(tid, OTHER);
}

#[test]
fn a_thread_that_is_let_go_is_the_kernels_again_and_its_index_is_free() {
    let Some(fixture) = Fixture::resident() else { return };
    let (app, other) = (fixture.app("one"), fixture.app("two"));
    for app in [&app, &other] {
        ScxSyrup.deploy(app, &policy("fifo"), &Target::default()).unwrap();
    }
    let crew = Crew::parked(2);
    let tids = crew.tids();
    register(&app, &crew, 0);
    // SAFETY: a plain system call on numbers.
    let class = |number: usize| unsafe { libc::sched_getscheduler(tids[number]) };
    let let_go = |app: &App, number: usize| {
        ScxSyrup.unregister(app, &Registration::Thread { tid: tids[number] })
    };
    let not_its = |refused: syrup_hook::Result<()>| {
        let refused = refused.unwrap_err();
        assert!(
            matches!(&refused, Error::NotFound { what, .. } if what.contains("not registered"))
        );
    };
    not_its(let_go(&other, 0));
    assert_eq!([0, 1].map(class), [7, 7]);
    let_go(&app, 0).unwrap();
    assert_eq!([0, 1].map(class), [0, 7]);
    not_its(let_go(&app, 0));
    eventually("one thread to be left", || {
        (ScxSyrup.read(&app).unwrap().unwrap().fact("threads") == Some(1)).then_some(())
    });
    // It may go elsewhere, and its index to others.
    ScxSyrup.register(&other, Registration::Thread { tid: tids[0] }, None).unwrap();
    assert_eq!([0, 1].map(class), [7, 7]);
    let next = Crew::parked(1);
    let tid = next.tids()[0];
    assert_eq!(ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap(), 0);
}
