//! Load, replace, remove; what dies in between; what is refused.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use syrup_abi::abi;
use syrup_hook::{App, Error, Executor, Health, Hook as _, HookId, Target};
use syrup_scx::ScxSyrup;

use crate::fixture::{Fixture, TestMap, compile, link, sysfs};
use crate::workers::{Crew, eventually};

#[test]
fn the_policy_decides_every_input_and_unload_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &fixture.builtin("fifo"), &Target::default()).unwrap();
    let crew = Crew::spinning(6);
    for (index, tid) in crew.tids().into_iter().enumerate() {
        let given = ScxSyrup.register(&app, Executor::Thread { tid }, None).unwrap();
        assert_eq!(given, index as u32);
    }
    crew.wait_for_progress();
    let seen = eventually("40 inputs", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.counters.get(abi::SYRUP_INPUTS) >= 40).then_some(seen)
    });
    assert_eq!(seen.health, Health::Live);
    assert_eq!((seen.nr_threads, seen.nr_executors), (Some(6), 1));
    assert_eq!(seen.counters.get(abi::SYRUP_NO_POLICY), 0);
    assert_eq!(seen.counters.get(abi::SYRUP_OUT_OF_RANGE), 0);
    assert!(seen.verdicts[0] >= 40, "{:?}", seen.verdicts);
    assert_ne!(seen.program_id, 0);

    ScxSyrup.remove(&app).unwrap();
    assert!(ScxSyrup.read(&app).unwrap().is_none());
    fixture.assert_clean();
    // The threads go on, under the kernel's default.
    assert!(crew.policies().iter().all(|&policy| policy == 0), "{:?}", crew.policies());
    crew.wait_for_progress();
}

#[test]
fn replacing_under_load_leaves_no_input_to_the_default() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let crew = Crew::spinning(5);
    let place = TestMap::new("queue_of", 64);
    for index in 0..5 {
        place.set(index, u64::from(index % 2));
    }
    let two_queues = compile(
        "#include <syrup/thread.h>\n\
         SYRUP_MAP(queue_of, 64);\n\
         SYRUP_THREAD_POLICY(.queues = 2);\n\
         __s32 schedule(struct syrup_thread *t)\n{\n\
         \t__u64 *queue = syrup_map_lookup(&queue_of, t->index);\n\
         \tt->slice_us = 1000;\n\
         \treturn queue ? *queue : SYRUP_PASS;\n}\n",
    );
    let two_queues = link("two-queues", &two_queues, &[("queue_of", &place)]);
    ScxSyrup.deploy(&app, &two_queues, &Target { cpus: vec![1], ..Default::default() }).unwrap();
    for tid in crew.tids() {
        ScxSyrup.register(&app, Executor::Thread { tid }, None).unwrap();
    }
    for round in 0..5 {
        // Threads that wait in queue 1 must not be forgotten by a policy with one queue.
        ScxSyrup.replace(&app, &fixture.builtin("fifo")).unwrap();
        crew.wait_for_progress();
        ScxSyrup.replace(&app, &two_queues).unwrap();
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        assert_eq!(seen.generation, 2 * (round + 1));
        assert_eq!(seen.policy, "two-queues");
    }
    crew.wait_for_progress();
    let seen = ScxSyrup.read(&app).unwrap().unwrap();
    assert_eq!(seen.counters.get(abi::SYRUP_NO_POLICY), 0);
    assert_eq!(seen.counters.get(abi::SYRUP_OUT_OF_RANGE), 0);
    assert_eq!(seen.counters.get(abi::SYRUP_PASSED), 0);
    assert!(seen.counters.get(abi::SYRUP_CHOSEN) > 100, "{:?}", seen.counters);
}

#[test]
fn a_deployment_outlives_its_loader() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "deployments::child_deploys_and_dies", "--ignored", "--nocapture"])
        .env("SYRUP_TEST_BPFFS", fixture.bpffs())
        .status()
        .unwrap();
    assert!(!status.success(), "the child was to be killed");
    let seen = ScxSyrup.read(&app).unwrap().unwrap();
    assert_eq!((seen.policy.as_str(), &seen.health), ("fifo", &Health::Live));
    assert!(ScxSyrup.collect_garbage(fixture.bpffs()).unwrap().is_empty());
    let crew = Crew::spinning(2);
    ScxSyrup.register(&app, Executor::Thread { tid: crew.tids()[0] }, None).unwrap();
    eventually("inputs", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.counters.get(abi::SYRUP_CHOSEN) > 0).then_some(())
    });
    ScxSyrup.replace(&app, &fixture.builtin("vruntime")).unwrap();
    ScxSyrup.remove(&app).unwrap();
    fixture.assert_clean();
}

#[test]
#[ignore = "run by a_deployment_outlives_its_loader"]
fn child_deploys_and_dies() {
    let Some(bpffs) = std::env::var_os("SYRUP_TEST_BPFFS") else { return };
    let app = App { name: "one".to_owned(), uid: 0, bpffs: bpffs.into() };
    let policy = Fixture::linked("fifo");
    ScxSyrup.deploy(&app, &policy, &Target::default()).unwrap();
    // SAFETY: a plain system call on numbers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[test]
fn what_an_interrupted_load_leaves_is_cleared_by_the_next_call() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let crew = Crew::spinning(2);
    let deploy = || {
        ScxSyrup.deploy(&app, &fixture.builtin("fifo"), &Target::default()).unwrap();
        ScxSyrup.register(&app, Executor::Thread { tid: crew.tids()[0] }, None).unwrap();
    };
    // Killed before the record was in place: the slot is in use and nobody's.
    deploy();
    fs::rename(app.hook_dir(HookId::ScxSyrup), app.dir().join("_new_scx-syrup")).unwrap();
    assert!(ScxSyrup.read(&app).unwrap().is_none());
    assert!(!ScxSyrup.collect_garbage(fixture.bpffs()).unwrap().is_empty());
    fixture.assert_clean();
    assert_eq!(crew.policies(), [0, 0]);

    // Killed before the root's pins were in place: a scheduler runs from a
    // temporary folder. Loading again replaces it.
    deploy();
    fs::remove_dir_all(app.hook_dir(HookId::ScxSyrup)).unwrap();
    fs::rename(fixture.bpffs().join("_scx"), fixture.bpffs().join("_new__scx")).unwrap();
    let before = sysfs("enable_seq");
    deploy();
    assert_ne!(sysfs("enable_seq"), before);
    assert_eq!(ScxSyrup.read(&app).unwrap().unwrap().health, Health::Live);
    crew.wait_for_progress();
    ScxSyrup.remove(&app).unwrap();
    fixture.assert_clean();
}

#[test]
fn an_ejection_is_seen_with_its_reason_and_unload_recovers() {
    let Some(fixture) = Fixture::new() else { return };
    let (one, two) = (fixture.app("one"), fixture.app("two"));
    ScxSyrup.deploy(&one, &fixture.builtin("fifo"), &Target::default()).unwrap();
    let crew = Crew::spinning(3);
    for tid in crew.tids() {
        ScxSyrup.register(&one, Executor::Thread { tid }, None).unwrap();
    }
    // sysrq-S is how an administrator stops any sched_ext scheduler.
    syrup_tests::expect_kernel_message("disabled by sysrq-S");
    fs::write("/proc/sysrq-trigger", "S").unwrap();
    let health = eventually("the ejection", || {
        let health = ScxSyrup.read(&one).unwrap().unwrap().health;
        (health != Health::Live).then_some(health)
    });
    let Health::Ejected(why) = health else { panic!("{health:?}") };
    assert!(why.to_lowercase().contains("sysrq"), "{why}");
    crew.wait_for_progress();

    let refused = ScxSyrup.deploy(&two, &fixture.builtin("fifo"), &Target::default()).unwrap_err();
    assert!(
        matches!(&refused, Error::Conflict { what, .. } if what.contains("ended")),
        "{refused}"
    );
    ScxSyrup.remove(&one).unwrap();
    fixture.assert_clean();
    assert_eq!(crew.policies(), [0, 0, 0]);
    ScxSyrup.deploy(&two, &fixture.builtin("fifo"), &Target::default()).unwrap();
    assert_eq!(ScxSyrup.read(&two).unwrap().unwrap().health, Health::Live);
    ScxSyrup.remove(&two).unwrap();
    fixture.assert_clean();
}

#[test]
fn a_second_scheduler_is_refused_by_name() {
    let Some(fixture) = Fixture::new() else { return };
    ScxSyrup.deploy(&fixture.app("one"), &fixture.builtin("fifo"), &Target::default()).unwrap();
    let elsewhere = fixture.bpffs().join("two").join("root");
    let app = App { name: "one".to_owned(), uid: 0, bpffs: elsewhere };
    fs::create_dir_all(app.dir()).unwrap();
    let refused = ScxSyrup.deploy(&app, &fixture.builtin("fifo"), &Target::default()).unwrap_err();
    assert!(
        matches!(&refused, Error::Conflict { what, .. } if what.contains("'syrup'")),
        "{refused}"
    );
    assert_eq!(fs::read_dir(&app.bpffs).unwrap().count(), 1, "only the app's own folder");
}

#[test]
fn loading_adopts_the_threads_of_a_process() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    // A process of its own: this one has the test's own threads.
    let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let pid = child.id() as i32;
    let target = Target { pid: Some(pid), ..Default::default() };
    ScxSyrup.deploy(&app, &fixture.builtin("fifo"), &target).unwrap();
    let seen = eventually("inputs", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.counters.get(abi::SYRUP_CHOSEN) > 0).then_some(seen)
    });
    assert_eq!((seen.pid, seen.nr_threads), (Some(pid), Some(1)));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ScxSyrup.read(&app).unwrap().unwrap().nr_threads, Some(0));
}

#[test]
fn a_thread_that_a_registered_thread_starts_belongs_to_the_app() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &fixture.builtin("fifo"), &Target::default()).unwrap();
    let go = Arc::new(AtomicBool::new(false));
    let gate = go.clone();
    let parent = Crew::of(1, move |worker, stop| {
        while !gate.load(SeqCst) && !stop.load(SeqCst) {
            std::thread::yield_now();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    worker.turn();
                }
            });
        });
    });
    ScxSyrup.register(&app, Executor::Thread { tid: parent.tids()[0] }, None).unwrap();
    go.store(true, SeqCst);
    parent.wait_for_progress();
    let seen = ScxSyrup.read(&app).unwrap().unwrap();
    assert_eq!(seen.nr_threads, Some(2));
    // It has no index: the next one to register gets the first free one.
    let other = Crew::spinning(1);
    let tid = other.tids()[0];
    assert_eq!(ScxSyrup.register(&app, Executor::Thread { tid }, None).unwrap(), 1);
    ScxSyrup.remove(&app).unwrap();
    parent.wait_for_progress();
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let out_of_bounds = compile(
        "#include <syrup/thread.h>\n\
         __s32 schedule(struct syrup_thread *t)\n{\n\
         \treturn ((__u32 *)t)[16];\n}\n",
    );
    let out_of_bounds = link("out-of-bounds", &out_of_bounds, &[]);
    let refused = ScxSyrup.verify(&out_of_bounds).unwrap_err();
    assert!(
        matches!(&refused, Error::Verifier { log, .. } if log.contains("test.c:4")),
        "{refused:?}"
    );
    let refused = ScxSyrup.deploy(&app, &out_of_bounds, &Target::default()).unwrap_err();
    assert!(matches!(refused, Error::Verifier { .. }), "{refused:?}");
    let cpus = Target { cpus: vec![500], ..Default::default() };
    let refused = ScxSyrup.deploy(&app, &fixture.builtin("fifo"), &cpus).unwrap_err();
    assert!(matches!(refused, Error::Usage(_)), "{refused:?}");
    fixture.assert_clean();

    let tid = std::process::id() as i32;
    let refused = ScxSyrup.register(&app, Executor::Thread { tid }, None).unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused:?}");
    let cpus = Target { cpus: vec![1], ..Default::default() };
    ScxSyrup.deploy(&app, &fixture.builtin("fifo"), &cpus).unwrap();
    let refused = ScxSyrup.register(&app, Executor::Thread { tid: i32::MAX }, None).unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused:?}");
    let crew = Crew::spinning(1);
    crew.pin_to(2);
    let refused =
        ScxSyrup.register(&app, Executor::Thread { tid: crew.tids()[0] }, None).unwrap_err();
    assert!(matches!(refused, Error::Usage(_)), "{refused:?}");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let refused = ScxSyrup.register(&app, Executor::Socket(socket.into()), None).unwrap_err();
    assert!(matches!(refused, Error::Usage(_)), "{refused:?}");
}

#[test]
fn a_policy_that_names_no_queue_is_degraded_and_its_threads_run() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let policy = compile(
        "#include <syrup/thread.h>\n\
         __s32 schedule(struct syrup_thread *t)\n{\n\t(void)t;\n\treturn 8;\n}\n",
    );
    ScxSyrup.deploy(&app, &link("nowhere", &policy, &[]), &Target::default()).unwrap();
    let crew = Crew::spinning(2);
    for tid in crew.tids() {
        ScxSyrup.register(&app, Executor::Thread { tid }, None).unwrap();
    }
    crew.wait_for_progress();
    let health = eventually("inputs", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.counters.get(abi::SYRUP_INPUTS) > 0).then_some(seen.health)
    });
    assert!(matches!(&health, Health::Degraded(why) if why.contains("out of range")), "{health:?}");

    // A replacement starts with a clean slate, though the counters go on.
    ScxSyrup.replace(&app, &fixture.builtin("fifo")).unwrap();
    crew.wait_for_progress();
    let seen = eventually("verdicts", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.counters.get(abi::SYRUP_CHOSEN) > 0).then_some(seen)
    });
    assert_eq!(seen.health, Health::Live);
    assert!(seen.counters.get(abi::SYRUP_OUT_OF_RANGE) > 0);
}
