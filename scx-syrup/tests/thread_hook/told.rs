//! What `schedule()` is told, and what is counted of its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use syrup_hook::{App, Deploy as _, Deployment, Health, Registration};
use syrup_scx::ScxSyrup;
use syrup_scx::Target;
use syrup_sdk::abi::{
    SYRUP_CHOSEN, SYRUP_DROPPED, SYRUP_ENFORCE_FAILED, SYRUP_INDEX_NONE, SYRUP_INPUTS,
    SYRUP_NO_POLICY, SYRUP_OUT_OF_RANGE, SYRUP_PASSED, SYRUP_RESCUED, SYRUP_THREAD_EXPIRED,
    SYRUP_THREAD_PREEMPTED, SYRUP_THREAD_WAKEUP, syrup_thread_policy,
};
use syrup_tests::Numbers as _;

use crate::support::fixture::{Fixture, on_cpus, register, take_program_away};
use crate::support::policy::{Scripted, Told, at, cores, preempting, queues};
use crate::support::workers::{Crew, eventually, now_ns};

fn seen(app: &App) -> Deployment {
    ScxSyrup.read(app).unwrap().unwrap()
}

fn of_index(told: &[Told], index: u32) -> Vec<Told> {
    told.iter().filter(|told| told.thread.index == index).copied().collect()
}

/// Of all that was told, what is about the thread of an index, once there are `count`.
fn eventually_told(script: &Scripted, index: u32, count: usize) -> Vec<Told> {
    eventually("the policy to be asked", || {
        let told = of_index(&script.told_since(0), index);
        (told.len() >= count).then_some(told)
    })
}

#[test]
fn a_policy_is_told_who_woke_and_since_when_it_waits() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    script.place(7, at(1).slice_us(5000).rank(3));
    ScxSyrup.deploy(&app, &script.policy(queues(3)), &on_cpus(&[2])).unwrap();
    let crew = Crew::parked(1);
    let worker = &crew.workers[0];
    crew.renice(0, 5);
    let ran_before = worker.cpu_time();
    register(&app, &crew, 7);
    for wake_up in 0..5 {
        let calls = script.calls();
        let (ran, called) = (worker.cpu_time() - ran_before, now_ns());
        crew.wake(0);
        // A busy host may interrupt its turn: then it is asked again.
        let told = script.told_since(calls)[0];
        let t = told.thread;
        assert_eq!((t.index, t.tid, t.tgid), (7, worker.tid() as u32, std::process::id()));
        assert_eq!(t.flags, SYRUP_THREAD_WAKEUP);
        assert_eq!(t.weight, 33, "the kernel's weight of nice 5, of 100");
        assert!(wake_up == 0 || t.cpu == 2, "it ran on core 2, and the policy hears {}", t.cpu);
        assert_eq!(Duration::from_nanos(t.runtime_ns), ran, "CPU time since it registered");
        assert_eq!(t.ran_ns, 0, "it has just woken");
        assert!((called..=told.now_ns).contains(&t.runnable_at_ns), "{told:?} after {called}");
        // What the root scheduler proposes; the answers before are no part of it.
        assert_eq!((t.rank, t.slice_us, t._pad), (t.runnable_at_ns, 20_000, 0));
        assert_eq!(told.nr_executors, 3);
    }
}

#[test]
fn a_policy_is_told_of_the_end_of_a_slice_and_of_a_preemption() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    script.place(1, at(1).slice_us(100));
    ScxSyrup.deploy(&app, &script.policy(preempting(2)), &on_cpus(&[1])).unwrap();
    // One that is alone goes on, and nobody is asked.
    let hog = Crew::spinning(1);
    hog.pin_to(1);
    register(&app, &hog, 1);
    let other = Crew::spinning(1);
    script.place(2, at(1).slice_us(100));
    register(&app, &other, 2);

    // A sixth slice: what is told at its start is of five that ended.
    let told = eventually_told(&script, 1, 6);
    let first = told[0].thread;
    assert_eq!(first.flags, SYRUP_THREAD_WAKEUP, "it came to the app: {first:?}");
    for pair in told.windows(2) {
        let (before, t) = (pair[0].thread, pair[1].thread);
        assert!(t.runtime_ns > before.runtime_ns, "{before:?} {t:?}");
        assert_eq!(t.rank, t.runnable_at_ns);
        if t.flags == SYRUP_THREAD_WAKEUP {
            // It waited for a page of its program.
            assert_eq!(t.ran_ns, 0);
            continue;
        }
        assert_eq!(t.ran_ns - before.ran_ns, t.runtime_ns - before.runtime_ns);
        if t.flags == SYRUP_THREAD_EXPIRED {
            assert!(t.runtime_ns - before.runtime_ns >= 100_000, "{before:?} {t:?}");
            assert!(t.runnable_at_ns >= pair[0].now_ns, "the end of a slice starts a new wait");
        } else {
            // The host's other threads outrank the class.
            assert_eq!(t.flags, SYRUP_THREAD_PREEMPTED);
            assert_eq!(t.runnable_at_ns, before.runnable_at_ns, "it keeps its place");
        }
    }
    let expired = told.iter().filter(|told| told.thread.flags == SYRUP_THREAD_EXPIRED).count();
    assert!(expired >= 3, "{told:?}");

    drop(other);

    // Slices that never end: whatever interrupts it now is a preemption.
    script.place(1, at(1).slice_us(u32::MAX));
    let sleeper = Crew::parked(1);
    register(&app, &sleeper, 0);
    hog.wait_for_progress();
    let calls = script.calls();
    let preempted = eventually("a preemption", || {
        sleeper.wake(0);
        let told = of_index(&script.told_since(calls), 1);
        told.windows(2).find(|pair| pair[1].thread.flags == SYRUP_THREAD_PREEMPTED).map(|pair| {
            let (before, t) = (pair[0].thread, pair[1].thread);
            (before, t)
        })
    });
    let (before, t) = preempted;
    assert_eq!(t.runnable_at_ns, before.runnable_at_ns, "it keeps its place");
    assert_eq!(t.rank, t.runnable_at_ns, "and the rank that goes with it");
    assert_eq!(t.ran_ns - before.ran_ns, t.runtime_ns - before.runtime_ns);
    assert!(t.runtime_ns > before.runtime_ns);
}

#[test]
fn a_thread_that_was_started_by_another_has_no_index_and_the_apps_policy() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    ScxSyrup.deploy(&app, &script.policy(queues(2)), &Target::default()).unwrap();
    let go = Arc::new(AtomicBool::new(false));
    let gate = go.clone();
    let parent = Crew::of(1, move |worker, stop| {
        while !gate.load(SeqCst) {
            std::thread::park();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    std::thread::park_timeout(Duration::from_millis(5));
                    worker.turn();
                }
            });
        });
    });
    // A thread that is nobody's has children that are nobody's.
    let stranger = Crew::parked(1);
    stranger.become_ext();
    register(&app, &parent, 3);
    go.store(true, SeqCst);
    parent.unpark();
    let told = eventually_told(&script, SYRUP_INDEX_NONE, 3);
    assert!(told.iter().all(|t| t.thread.tgid == std::process::id()), "{told:?}");
    assert!(told.iter().all(|t| t.thread.tid as i32 != parent.tids()[0]), "{told:?}");
    assert_eq!(told[0].thread.flags, SYRUP_THREAD_WAKEUP);
    assert_eq!(seen(&app).fact("threads"), Some(2));
    // What has no index takes none: the next one to register gets the first free one.
    let other = Crew::parked(1);
    let tid = other.tids()[0];
    assert_eq!(ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap(), 0);
    stranger.become_other();
}

#[test]
fn every_input_is_counted_once_under_its_cause() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    // Of two queues: both, PASS, DROP, one too many, and nonsense.
    let verdicts = [0, 1, -1, -2, 2, -7];
    for (index, verdict) in (0..).zip(verdicts) {
        script.place(index, at(verdict));
    }
    ScxSyrup.deploy(&app, &script.policy(queues(2)), &Target::default()).unwrap();
    let crew = Crew::parked(6);
    register(&app, &crew, 0);
    for (number, wake_ups) in (0..6).zip(3..) {
        (0..wake_ups).for_each(|_| crew.wake(number));
    }
    let told = script.told_since(0);
    // Each wake-up, and more where the host interrupted a turn.
    let calls: Vec<u64> = (0..6).map(|index| of_index(&told, index).len() as u64).collect();
    assert!(calls.iter().zip(3..).all(|(&calls, wake_ups)| calls >= wake_ups), "{calls:?}");
    let now = seen(&app);
    let counted = |counter| now.count(counter);
    assert_eq!(counted(SYRUP_INPUTS), told.len() as u64);
    assert_eq!(counted(SYRUP_CHOSEN), calls[0] + calls[1]);
    assert_eq!(counted(SYRUP_PASSED), calls[2]);
    assert_eq!(counted(SYRUP_OUT_OF_RANGE), calls[3] + calls[4] + calls[5]);
    for never in [SYRUP_DROPPED, SYRUP_ENFORCE_FAILED, SYRUP_NO_POLICY, SYRUP_RESCUED] {
        assert_eq!(counted(never), 0, "{:?}", now.counters);
    }
    assert_eq!(now.verdicts, [calls[0], calls[1]]);
    assert_eq!(now.health, Health::LIVE);

    // Without a program the default decides, and says so.
    take_program_away(&app);
    (0..4).for_each(|_| crew.wake(0));
    let without = seen(&app);
    assert_eq!(script.calls(), told.len() as u64, "the policy was taken away");
    let defaulted = without.count(SYRUP_NO_POLICY);
    assert!(defaulted >= 4, "{:?}", without.counters);
    assert_eq!(without.count(SYRUP_INPUTS), told.len() as u64 + defaulted);
    assert_eq!(without.verdicts, now.verdicts);
    assert_eq!(without.program_id, 0);
    assert!(matches!(&without.health, Health::Degraded(why) if why.contains("no program")));

    // A policy that takes its place is judged by what comes then; the sums go on.
    script.place(0, at(0));
    ScxSyrup.replace(&app, &script.policy(queues(1))).unwrap();
    crew.wake(0);
    let after = seen(&app);
    assert_eq!(after.health, Health::LIVE);
    assert_eq!((after.generation, after.verdicts.len()), (1, 1));
    assert_ne!(after.program_id, 0);
    assert!(after.count(SYRUP_CHOSEN) > now.count(SYRUP_CHOSEN));
    assert_eq!(after.count(SYRUP_NO_POLICY), defaulted);
}

#[test]
fn a_core_that_the_threads_affinity_excludes_is_counted_and_the_thread_runs() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    script.place(0, at(1)); // core 3
    script.place(1, at(2)); // one too many
    ScxSyrup.deploy(&app, &script.policy(cores()), &on_cpus(&[1, 3])).unwrap();
    let crew = Crew::parked(2);
    register(&app, &crew, 0);
    crew.wake(0);
    let calls = |index| of_index(&script.told_since(0), index).len() as u64;
    let chosen = calls(0);
    assert_eq!(seen(&app).count(SYRUP_CHOSEN), chosen);
    assert_eq!(seen(&app).verdicts, [0, chosen]);
    crew.pin_to(1);
    (0..3).for_each(|_| crew.wake(0));
    crew.wake(1);
    let now = seen(&app);
    assert_eq!(now.count(SYRUP_ENFORCE_FAILED), calls(0) - chosen);
    assert_eq!(now.count(SYRUP_CHOSEN), chosen);
    assert_eq!(now.count(SYRUP_OUT_OF_RANGE), calls(1));
    assert_eq!(now.verdicts, [0, chosen]);
    assert_eq!(now.count(SYRUP_RESCUED), 0, "it did not wait for core 3");
    // The same where the policy has always chosen so.
    let attributes = syrup_thread_policy { rescue_ms: 2000, ..cores() };
    ScxSyrup.replace(&app, &script.policy(attributes)).unwrap();
    crew.wake(0);
    let health = seen(&app).health;
    assert!(matches!(&health, Health::Degraded(why) if why.contains("affinity")), "{health:?}");
}
