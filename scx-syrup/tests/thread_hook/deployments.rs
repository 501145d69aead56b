//! Load, replace, remove; what dies in between; what is refused.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use syrup_hook::sys::Map;
use syrup_hook::{App, Counters, Deploy as _, Error, Health, Hook as _, Linked, Registration};
use syrup_scx::ScxSyrup;
use syrup_scx::Target;
use syrup_sdk::abi;
use syrup_tests::Numbers as _;

use crate::support::fixture::{Fixture, is_live, on_cpus, register, slot, sysfs};
use crate::support::policy::{Scripted, at, cores, policy, queues};
use crate::support::workers::{Crew, eventually};

#[test]
fn the_policy_decides_every_input_and_unload_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
    let crew = Crew::spinning(6);
    for (index, tid) in crew.tids().into_iter().enumerate() {
        let given = ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap();
        assert_eq!(given, index as u32);
    }
    crew.wait_for_progress();
    let seen = eventually("40 inputs", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.count(abi::SYRUP_INPUTS) >= 40).then_some(seen)
    });
    assert_eq!(seen.health, Health::LIVE);
    assert_eq!((seen.fact("threads"), seen.executors), (Some(6), 1));
    assert_eq!(seen.count(abi::SYRUP_NO_POLICY), 0);
    assert_eq!(seen.count(abi::SYRUP_OUT_OF_RANGE), 0);
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
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let crew = Crew::spinning(5);
    let script = Scripted::new();
    (0..5).for_each(|index| script.place(index, at(index as i32 % 2).slice_us(1000)));
    let two_queues = script.policy(queues(2));
    ScxSyrup.deploy(&app, &two_queues, &on_cpus(&[1])).unwrap();
    for tid in crew.tids() {
        ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap();
    }
    for round in 0..5 {
        // Threads that wait in queue 1 must not be forgotten by a policy with one queue.
        ScxSyrup.replace(&app, &policy("fifo")).unwrap();
        crew.wait_for_progress();
        ScxSyrup.replace(&app, &two_queues).unwrap();
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        assert_eq!(seen.generation, 2 * (round + 1));
        assert_eq!(seen.policy, "scripted");
    }
    crew.wait_for_progress();
    let seen = ScxSyrup.read(&app).unwrap().unwrap();
    assert_eq!(seen.count(abi::SYRUP_NO_POLICY), 0);
    assert_eq!(seen.count(abi::SYRUP_OUT_OF_RANGE), 0);
    assert_eq!(seen.count(abi::SYRUP_PASSED), 0);
    assert!(seen.count(abi::SYRUP_CHOSEN) > 100, "{:?}", seen.counters);
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
    assert_eq!((seen.policy.as_str(), is_live(&seen)), ("fifo", true));
    assert!(ScxSyrup.collect_garbage(fixture.bpffs()).unwrap().is_empty());
    let crew = Crew::spinning(2);
    ScxSyrup.register(&app, Registration::Thread { tid: crew.tids()[0] }, None).unwrap();
    eventually("inputs", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.count(abi::SYRUP_CHOSEN) > 0).then_some(())
    });
    ScxSyrup.replace(&app, &policy("vruntime")).unwrap();
    ScxSyrup.remove(&app).unwrap();
    fixture.assert_clean();
}

#[test]
#[ignore = "run by a_deployment_outlives_its_loader"]
fn child_deploys_and_dies() {
    let Some(bpffs) = std::env::var_os("SYRUP_TEST_BPFFS") else { return };
    let app = App { name: "one".to_owned(), uid: 0, bpffs: bpffs.into() };
    ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
    // SAFETY: a plain system call on numbers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[test]
fn what_an_interrupted_load_leaves_is_cleared_by_the_next_call() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let crew = Crew::spinning(2);
    let deploy = || {
        ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
        ScxSyrup.register(&app, Registration::Thread { tid: crew.tids()[0] }, None).unwrap();
    };
    // Killed before the record was in place: the slot is in use and nobody's.
    deploy();
    fs::rename(app.hook_dir(&syrup_scx::SPEC), app.dir().join("_new_scx-syrup")).unwrap();
    assert!(ScxSyrup.read(&app).unwrap().is_none());
    assert!(!ScxSyrup.collect_garbage(fixture.bpffs()).unwrap().is_empty());
    fixture.assert_clean();
    assert_eq!(crew.policies(), [0, 0]);

    // Killed before the root's pins were in place: a scheduler runs from a
    // temporary folder. Loading again replaces it.
    deploy();
    fs::remove_dir_all(app.hook_dir(&syrup_scx::SPEC)).unwrap();
    fs::rename(fixture.bpffs().join("_scx"), fixture.bpffs().join("_new__scx")).unwrap();
    let before = sysfs("enable_seq");
    deploy();
    assert_ne!(sysfs("enable_seq"), before);
    assert!(is_live(&ScxSyrup.read(&app).unwrap().unwrap()));
    crew.wait_for_progress();
    ScxSyrup.remove(&app).unwrap();
    fixture.assert_clean();

    // Killed while the last app's unload took the pins away.
    deploy();
    fs::remove_dir_all(app.hook_dir(&syrup_scx::SPEC)).unwrap();
    let aside = fixture.bpffs().join("_new__scx");
    fs::rename(fixture.bpffs().join("_scx"), &aside).unwrap();
    for gone in ["link", "syrup_exit", "syrup_enqueue"] {
        fs::remove_file(aside.join(gone)).unwrap();
    }
    deploy();
    assert!(is_live(&ScxSyrup.read(&app).unwrap().unwrap()));
    // Which it does aside: in its place the folder is whole, or not there.
    let place = fixture.bpffs().join("_scx");
    let pins = || fs::read_dir(&place).map(Iterator::count);
    let (whole, removed) = (pins().unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            ScxSyrup.remove(&app).unwrap();
            removed.store(true, SeqCst);
        });
        // Without a pause: they would go in a few milliseconds. `remove` ends by itself.
        while !removed.load(SeqCst) {
            if let Ok(left) = pins()
                && place.exists()
            {
                assert_eq!(left, whole);
            }
        }
    });
    fixture.assert_clean();
}

#[test]
fn an_ejection_is_seen_with_its_reason_and_unload_recovers() {
    let Some(fixture) = Fixture::new() else { return };
    let (one, two) = (fixture.app("one"), fixture.app("two"));
    ScxSyrup.deploy(&one, &policy("fifo"), &Target::default()).unwrap();
    let crew = Crew::spinning(3);
    for tid in crew.tids() {
        ScxSyrup.register(&one, Registration::Thread { tid }, None).unwrap();
    }
    // sysrq-S is how an administrator stops any sched_ext scheduler.
    syrup_tests::expect_kernel_message("disabled by sysrq-S");
    fs::write("/proc/sysrq-trigger", "S").unwrap();
    let health = eventually("the ejection", || {
        let health = ScxSyrup.read(&one).unwrap().unwrap().health;
        (health != Health::LIVE).then_some(health)
    });
    let Health::Ejected(why) = health else { panic!("{health:?}") };
    assert!(why.to_lowercase().contains("sysrq"), "{why}");
    crew.wait_for_progress();

    let refused = ScxSyrup.deploy(&two, &policy("fifo"), &Target::default()).unwrap_err();
    assert!(
        matches!(&refused, Error::Conflict { what, .. } if what.contains("ended")),
        "{refused}"
    );
    // A scheduler of the same name that runs since is not this one.
    let elsewhere = App { bpffs: fixture.bpffs().join("three/root"), ..one.clone() };
    fs::create_dir_all(elsewhere.dir()).unwrap();
    ScxSyrup.deploy(&elsewhere, &policy("fifo"), &Target::default()).unwrap();
    let health = ScxSyrup.read(&one).unwrap().unwrap().health;
    assert!(matches!(health, Health::Ejected(_)), "{health:?}");
    assert!(is_live(&ScxSyrup.read(&elsewhere).unwrap().unwrap()));
    // First: Linux 7.0 ends whatever scheduler runs when the link of one that has
    // ended goes.
    ScxSyrup.remove(&elsewhere).unwrap();
    fs::remove_dir_all(fixture.bpffs().join("three")).unwrap();
    ScxSyrup.remove(&one).unwrap();
    fixture.assert_clean();
    assert_eq!(crew.policies(), [0, 0, 0]);
    ScxSyrup.deploy(&two, &policy("fifo"), &Target::default()).unwrap();
    assert!(is_live(&ScxSyrup.read(&two).unwrap().unwrap()));
    ScxSyrup.remove(&two).unwrap();
    fixture.assert_clean();
}

#[test]
fn a_second_scheduler_is_refused_by_name() {
    let Some(fixture) = Fixture::new() else { return };
    ScxSyrup.deploy(&fixture.app("one"), &policy("fifo"), &Target::default()).unwrap();
    let elsewhere = fixture.bpffs().join("two").join("root");
    let app = App { name: "one".to_owned(), uid: 0, bpffs: elsewhere };
    fs::create_dir_all(app.dir()).unwrap();
    let refused = ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap_err();
    assert!(
        matches!(&refused, Error::Conflict { what, .. } if what.contains("'syrup'")),
        "{refused}"
    );
    assert_eq!(fs::read_dir(&app.bpffs).unwrap().count(), 1, "only the app's own folder");
}

#[test]
fn loading_adopts_the_threads_of_a_process() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    // A process of its own: this one has the test's own threads.
    let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let pid = child.id() as i32;
    let target = Target { pid: Some(pid), ..Default::default() };
    ScxSyrup.deploy(&app, &policy("fifo"), &target).unwrap();
    let seen = eventually("inputs", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.count(abi::SYRUP_CHOSEN) > 0).then_some(seen)
    });
    assert_eq!((seen.pid(), seen.fact("threads")), (Some(pid), Some(1)));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the thread to be gone", || {
        (ScxSyrup.read(&app).unwrap().unwrap().fact("threads") == Some(0)).then_some(())
    });
}

/// Its first thread has ended, and has an id for as long as the process lives.
#[test]
fn loading_adopts_what_is_left_of_a_process() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    // Of a thread alone, where libc's ends the process.
    let program = "import ctypes, threading, time\n\
                   for _ in range(3): threading.Thread(target=time.sleep, args=(1000,)).start()\n\
                   ctypes.CDLL(None).syscall(60, 0)";
    let mut child = Command::new("python3").args(["-c", program]).spawn().unwrap();
    let pid = child.id() as i32;
    let policy_of_leader = || {
        // SAFETY: a plain system call.
        unsafe { libc::sched_getscheduler(pid) }
    };
    eventually("its first thread's end", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().starts_with(" Z").then_some(())
    });
    let target = Target { pid: Some(pid), ..Default::default() };
    ScxSyrup.deploy(&app, &policy("fifo"), &target).unwrap();
    assert_eq!(ScxSyrup.read(&app).unwrap().unwrap().fact("threads"), Some(3));
    let refused = ScxSyrup.register(&app, Registration::Thread { tid: pid }, None).unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused:?}");
    assert_eq!(policy_of_leader(), 0);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let out_of_bounds = policy("out-of-bounds");
    let refused = ScxSyrup.verify(&out_of_bounds).unwrap_err();
    assert!(
        matches!(&refused, Error::Verifier { log, .. } if log.contains("out-of-bounds.c:9")),
        "{refused:?}"
    );
    let refused = ScxSyrup.deploy(&app, &out_of_bounds, &Target::default()).unwrap_err();
    assert!(matches!(refused, Error::Verifier { .. }), "{refused:?}");
    let cpus = Target { cpus: vec![500], ..Default::default() };
    let refused = ScxSyrup.deploy(&app, &policy("fifo"), &cpus).unwrap_err();
    assert!(matches!(refused, Error::Usage(_)), "{refused:?}");
    fixture.assert_clean();

    let tid = std::process::id() as i32;
    let refused = ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused:?}");
    let cpus = Target { cpus: vec![1], ..Default::default() };
    ScxSyrup.deploy(&app, &policy("fifo"), &cpus).unwrap();
    let refused =
        ScxSyrup.register(&app, Registration::Thread { tid: i32::MAX }, None).unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused:?}");
    let crew = Crew::spinning(1);
    crew.pin_to(2);
    let refused =
        ScxSyrup.register(&app, Registration::Thread { tid: crew.tids()[0] }, None).unwrap_err();
    assert!(matches!(refused, Error::Usage(_)), "{refused:?}");
    let kthreadd = Registration::Thread { tid: 2 };
    let refused = ScxSyrup.register(&app, kthreadd, None).unwrap_err();
    assert!(matches!(&refused, Error::Usage(why) if why.contains("kernel's own")), "{refused:?}");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let refused = ScxSyrup.register(&app, Registration::Socket(socket.into()), None).unwrap_err();
    assert!(matches!(refused, Error::Usage(_)), "{refused:?}");
}

#[test]
fn a_policy_that_names_no_queue_is_degraded_and_its_threads_run() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (0..2).for_each(|index| script.place(index, at(8)));
    ScxSyrup.deploy(&app, &script.policy(queues(1)), &Target::default()).unwrap();
    let crew = Crew::spinning(2);
    for tid in crew.tids() {
        ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap();
    }
    crew.wait_for_progress();
    let health = eventually("verdicts", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.count(abi::SYRUP_OUT_OF_RANGE) > 0).then_some(seen.health)
    });
    assert!(matches!(&health, Health::Degraded(why) if why.contains("out of range")), "{health:?}");

    // A replacement starts with a clean slate, though the counters go on.
    ScxSyrup.replace(&app, &policy("fifo")).unwrap();
    crew.wait_for_progress();
    let seen = eventually("verdicts", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.count(abi::SYRUP_CHOSEN) > 0).then_some(seen)
    });
    assert_eq!(seen.health, Health::LIVE);
    assert!(seen.count(abi::SYRUP_OUT_OF_RANGE) > 0);
}

#[test]
fn a_deployment_reads_back_as_what_was_deployed() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = App { uid: 1234, ..fixture.app("one") };
    let script = Scripted::new();
    let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = seconds();
    let deployed = Linked { sha256: [3; 32], ..script.policy(queues(3)) };
    ScxSyrup.deploy(&app, &deployed, &on_cpus(&[3, 1, 3])).unwrap();
    let first = ScxSyrup.read(&app).unwrap().unwrap();
    assert_eq!((first.app.as_str(), first.uid, first.hook.as_str()), ("one", 1234, "scx-syrup"));
    assert_eq!((first.policy.as_str(), first.policy_sha256.clone()), ("scripted", "03".repeat(32)));
    assert_eq!((first.generation, first.executors, first.fact("threads")), (0, 3, Some(0)));
    assert_eq!((first.inputs.as_str(), first.pid(), first.cpus()), ("0 threads", None, vec![1, 3]));
    assert_eq!(first.fact("weight"), Some(100));
    assert_eq!(
        (first.counters.clone(), &first.verdicts[..]),
        (Counters::default().by_name(), &[0, 0, 0][..])
    );
    assert!((before..=seconds()).contains(&first.deployed_at), "{}", first.deployed_at);
    let waits = Health::waiting(
        "it waits for its first thread; let the application register its \
         threads (syr_register_thread), or 'syrupctl unload scx-syrup --app one' and load it again \
         with --pid"
            .to_owned(),
    );
    assert_eq!(first.health, waits);
    let refused = ScxSyrup.deploy(&app, &policy("fifo"), &on_cpus(&[3])).unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused:?}");

    ScxSyrup.replace(&app, &policy("get-priority")).unwrap();
    let second = ScxSyrup.read(&app).unwrap().unwrap();
    assert_eq!((second.policy.as_str(), &second.policy_sha256), ("get-priority", &"07".repeat(32)));
    assert_eq!((second.generation, second.executors), (1, 2));
    assert_eq!((second.uid, second.cpus()), (1234, vec![1, 3]), "what was not replaced stays");
    assert!(second.deployed_at >= first.deployed_at);
    assert_ne!(second.program_id, first.program_id);

    // Executors that are cores stay those that were online when they were chosen.
    let all = fixture.app("three");
    ScxSyrup.deploy(&all, &policy("fifo"), &Target::default()).unwrap();
    assert!(ScxSyrup.read(&all).unwrap().unwrap().cpus().is_empty());
    ScxSyrup.replace(&all, &script.policy(cores())).unwrap();
    let third = ScxSyrup.read(&all).unwrap().unwrap();
    assert_eq!((third.executors, third.cpus()), (4, vec![0, 1, 2, 3]));
    // For as long as a policy chooses cores; those that a user named stay (above).
    ScxSyrup.replace(&all, &policy("fifo")).unwrap();
    assert!(ScxSyrup.read(&all).unwrap().unwrap().cpus().is_empty());

    let nobody = fixture.app("two");
    for refused in [
        ScxSyrup.replace(&nobody, &policy("fifo")).unwrap_err(),
        ScxSyrup.register(&nobody, Registration::Thread { tid: 1 }, None).unwrap_err(),
    ] {
        assert!(matches!(&refused, Error::NotFound { what, .. } if what.contains("'two'")));
    }
}

/// The slots that the root scheduler serves, a bit each.
fn served(fixture: &Fixture) -> u64 {
    let root = Map::open(&fixture.bpffs().join("_scx/syrup_root")).unwrap();
    let bytes = root.lookup(&0u32.to_ne_bytes()).unwrap().unwrap();
    u64::from_ne_bytes(*bytes.first_chunk().unwrap())
}

#[test]
fn an_app_that_leaves_takes_nothing_from_others_and_leaves_nothing_to_the_next() {
    let Some(fixture) = Fixture::resident() else { return };
    let (one, two) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    // Cores first: the queues of cores stay, and the next app of the slot may want them too.
    ScxSyrup.deploy(&one, &script.policy(cores()), &on_cpus(&[1, 2])).unwrap();
    ScxSyrup.deploy(&two, &policy("fifo"), &Target::default()).unwrap();
    let (ones, twos) = (Crew::parked(2), Crew::parked(2));
    for (app, crew) in [(&one, &ones), (&two, &twos)] {
        register(app, crew, 0);
        (0..2).for_each(|number| crew.wake(number));
    }
    let before = ScxSyrup.read(&two).unwrap().unwrap();
    assert_eq!(before.fact("threads"), Some(2));
    let slot = slot(&one);
    ScxSyrup.remove(&one).unwrap();
    let programs = Map::open(&fixture.bpffs().join("_scx/syrup_enqueue")).unwrap();
    assert_eq!(programs.lookup(&slot.to_ne_bytes()).unwrap(), None, "its program is gone");
    assert_eq!(served(&fixture) >> slot & 1, 0, "its queues are served no longer");
    assert_eq!((ones.policies(), twos.policies()), (vec![0, 0], vec![7, 7]));
    (0..2).for_each(|number| twos.wake(number));
    let after = ScxSyrup.read(&two).unwrap().unwrap();
    assert_eq!((&after.health, after.fact("threads")), (&Health::LIVE, Some(2)));
    assert!(after.count(abi::SYRUP_CHOSEN) >= before.count(abi::SYRUP_CHOSEN) + 2);

    // The same slot: what was counted, and who was registered, is forgotten.
    ones.become_ext();
    ScxSyrup.deploy(&one, &script.policy(cores()), &on_cpus(&[1, 2])).unwrap();
    (0..2).for_each(|number| ones.wake(number));
    let fresh = ScxSyrup.read(&one).unwrap().unwrap();
    assert_eq!((fresh.fact("threads"), &fresh.counters), (Some(0), &Counters::default().by_name()));
    assert_eq!((&fresh.verdicts[..], is_live(&fresh)), (&[0, 0][..], true));
    ones.become_other();
    register(&one, &ones, 0);
    (0..2).for_each(|number| ones.wake(number));
    let fresh = ScxSyrup.read(&one).unwrap().unwrap();
    assert!(fresh.count(abi::SYRUP_CHOSEN) >= 2, "{:?}", fresh.counters);
    assert_eq!(fresh.count(abi::SYRUP_RESCUED), 0);
}

#[test]
fn a_thread_that_left_the_class_is_none_of_the_slots_next_app() {
    let Some(fixture) = Fixture::resident() else { return };
    let (one, two) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    ScxSyrup.deploy(&one, &script.policy(queues(1)), &Target::default()).unwrap();
    let (left, own) = (Crew::parked(1), Crew::parked(1));
    register(&one, &left, 0);
    left.become_other();
    let had = slot(&one);
    ScxSyrup.remove(&one).unwrap();
    ScxSyrup.deploy(&two, &script.policy(queues(1)), &Target::default()).unwrap();
    assert_eq!(slot(&two), had);
    register(&two, &own, 0);
    // As any thread may do by itself.
    left.become_ext();
    let calls = script.calls();
    left.wake(0);
    own.wake(0);
    let told: Vec<i32> = script.told_since(calls).iter().map(|t| t.thread.tid as i32).collect();
    assert!(!told.is_empty() && told.iter().all(|tid| *tid == own.tids()[0]), "{told:?}");
    assert_eq!(ScxSyrup.read(&two).unwrap().unwrap().fact("threads"), Some(1));
    // It is nobody's, and may be registered.
    register(&two, &left, 1);
    assert_eq!(ScxSyrup.read(&two).unwrap().unwrap().fact("threads"), Some(2));
    let calls = script.calls();
    left.wake(0);
    assert_eq!(script.told_since(calls)[0].thread.index, 1);
}

#[test]
fn threads_that_start_while_their_app_goes_are_given_back_too() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let starting = Crew::of(2, |worker, stop| {
        while !stop.load(SeqCst) {
            let child = std::thread::spawn(|| std::thread::sleep(Duration::from_millis(100)));
            worker.turn();
            std::thread::sleep(Duration::from_millis(2));
            drop(child);
        }
    });
    let in_class = || -> Vec<i32> {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let tids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
        // SAFETY: a plain system call on numbers.
        tids.filter(|&tid| unsafe { libc::sched_getscheduler(tid) } == 7).collect()
    };
    for _ in 0..5 {
        ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
        register(&app, &starting, 0);
        eventually("children in the class", || (in_class().len() > 6).then_some(()));
        ScxSyrup.remove(&app).unwrap();
        assert_eq!(in_class(), Vec::<i32>::new());
    }
}

#[test]
fn a_thread_that_enters_the_class_again_and_again_does_not_keep_its_app() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
    let crew = Crew::of(2, |worker, stop| {
        let param = libc::sched_param { sched_priority: 0 };
        while !stop.load(SeqCst) {
            worker.turn();
            // SAFETY: param lives for the call.
            unsafe { libc::sched_setscheduler(0, 7, &raw const param) };
        }
    });
    register(&app, &crew, 0);
    crew.wait_for_progress();
    ScxSyrup.remove(&app).unwrap();
    assert!(ScxSyrup.read(&app).unwrap().is_none());
    crew.wait_for_progress();
}

#[test]
fn a_fork_that_outlasts_its_app_is_given_back_by_the_next_call() {
    let Some(fixture) = Fixture::resident() else { return };
    let (app, next) = (fixture.app("one"), fixture.app("two"));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "deployments::child_forks_when_told", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tell = child.stdin.take().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut wait_for = |word: &str| -> i32 {
        let number = |line: String| line.strip_prefix(word)?.trim().parse().ok();
        said.find_map(|line| number(line.unwrap())).unwrap_or_else(|| panic!("no '{word}'"))
    };
    // SAFETY: a plain system call on numbers.
    let in_class = |tid| unsafe { libc::sched_getscheduler(tid) } == 7;
    let tid = wait_for("ready");
    eventually("a fork that outlasts its app", || {
        ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
        ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap();
        writeln!(tell, "fork").unwrap();
        wait_for("forking");
        ScxSyrup.remove(&app).unwrap();
        let forked = wait_for("forked");
        let stray = in_class(forked);
        ScxSyrup.deploy(&next, &policy("fifo"), &Target::default()).unwrap();
        assert!(!in_class(forked));
        ScxSyrup.remove(&next).unwrap();
        // SAFETY: a plain system call on numbers; the child does not wait for what it forks.
        unsafe { libc::kill(forked, libc::SIGKILL) };
        stray.then_some(())
    });
    drop(tell);
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "run by a_fork_that_outlasts_its_app_is_given_back_by_the_next_call"]
fn child_forks_when_told() {
    let _mappings = Mappings::new();
    // SAFETY: no arguments, no memory.
    eprintln!("ready {}", unsafe { libc::gettid() });
    for _ in std::io::stdin().lines() {
        eprintln!("forking 0");
        eprintln!("forked {}", fork_sleeper());
    }
}

/// So many mappings, each with a page that is written, that a fork takes a while.
struct Mappings {
    start: *mut libc::c_void,
}

impl Mappings {
    const PAGE: usize = 4096;
    /// Below the kernel's limit, vm.max_map_count.
    const COUNT: usize = 60_000;

    fn new() -> Self {
        let (length, private) = (Self::COUNT * Self::PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let write = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: new memory, at a place that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, write, private, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // SAFETY: that memory.
        unsafe { libc::memset(start, 1, length) };
        for page in (1..Self::COUNT).step_by(2) {
            // SAFETY: a page of that memory, which nothing refers to.
            let err = unsafe {
                libc::mprotect(start.byte_add(page * Self::PAGE), Self::PAGE, libc::PROT_READ)
            };
            assert_eq!(err, 0, "{}", std::io::Error::last_os_error());
        }
        Self { start }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        // SAFETY: the memory of `new`, which nothing refers to.
        unsafe { libc::munmap(self.start, Self::COUNT * Self::PAGE) };
    }
}

/// A child that sleeps until it is killed, or the thread that forked it ends.
fn fork_sleeper() -> i32 {
    // SAFETY: the child calls nothing but plain system calls.
    unsafe {
        match libc::fork() {
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
            pid => pid,
        }
    }
}

#[test]
fn share_and_cores_change_while_the_policy_goes_on() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &on_cpus(&[0, 1])).unwrap();
    let crew = Crew::parked(2);
    register(&app, &crew, 0);
    let set =
        |facts: serde_json::Value| ScxSyrup.set(&app, &serde_json::from_value(facts).unwrap());
    let told = || {
        let read = ScxSyrup.read(&app).unwrap().unwrap();
        (read.target["weight"].clone(), read.target["cpus"].clone(), read.program_id)
    };
    let (_, _, program) = told();
    set(serde_json::json!({"weight": 300})).unwrap();
    assert_eq!(told(), (300.into(), vec![0, 1].into(), program));
    set(serde_json::json!({"cpus": [1]})).unwrap();
    assert_eq!(told(), (300.into(), vec![1].into(), program));
    // They run, on the core that is left.
    crew.wake(0);
    crew.wake(1);
    for bad in [serde_json::json!({"weight": 0}), serde_json::json!({"cpus": [511]})] {
        let refused = set(bad).unwrap_err();
        assert!(matches!(refused, Error::Usage(_)), "{refused:?}");
    }
    assert_eq!(told(), (300.into(), vec![1].into(), program));
    set(serde_json::json!({"cpus": []})).unwrap();
    assert_eq!(told(), (300.into(), Vec::<u32>::new().into(), program));
    ScxSyrup.remove(&app).unwrap();
    drop(crew);

    // A policy that names cores by number keeps those that it was loaded with.
    let script = Scripted::new();
    ScxSyrup.deploy(&app, &script.policy(cores()), &on_cpus(&[0, 1])).unwrap();
    let refused = set(serde_json::json!({"cpus": [1]})).unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused:?}");
    set(serde_json::json!({"weight": 5})).unwrap();
}
