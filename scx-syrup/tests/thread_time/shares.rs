//! Who gets how much of a core.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use syrup_hook::{Deploy as _, Health};
use syrup_scx::ScxSyrup;
use syrup_scx::Target;
use syrup_sdk::abi::{self, SYRUP_THREAD_EXPIRED};
use syrup_tests::Numbers as _;

use crate::latency::{eventually_woken, timed};
use crate::support::fixture::{on_cpus, register};
use crate::support::policy::{Scripted, at, policy, preempting, queues};
use crate::support::workers::{Crew, eventually};
use crate::{CORE, CORES, OTHER_CORE, fixture};

/// CPU time of each thread in a stretch of `time`, in seconds.
pub(crate) fn seconds_run(crews: &[&Crew], time: Duration) -> Vec<Vec<f64>> {
    let ran = |crew: &Crew| -> Vec<f64> {
        crew.workers.iter().map(|w| w.cpu_time().as_secs_f64()).collect()
    };
    let before: Vec<_> = crews.iter().map(|crew| ran(crew)).collect();
    std::thread::sleep(time);
    let since = |crew: &Crew, before: &Vec<f64>| -> Vec<f64> {
        ran(crew).into_iter().zip(before).map(|(now, then)| now - then).collect()
    };
    crews.iter().zip(&before).map(|(crew, before)| since(crew, before)).collect()
}

#[test]
fn apps_share_cores_by_weight() {
    let Some(fixture) = fixture() else { return };
    let (light, heavy) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    // Short turns: a measurement that ends amid one is off by little.
    (0..6).for_each(|index| script.place(index, at(0).slice_us(4000)));
    for (app, weight) in [(&light, 100), (&heavy, 300)] {
        let target = Target { weight: Some(weight), ..on_cpus(&CORES) };
        ScxSyrup.deploy(app, &script.policy(queues(1)), &target).unwrap();
    }
    // More threads must not mean more time.
    let (many, few) = (Crew::spinning(6), Crew::spinning(3));
    register(&light, &many, 0);
    register(&heavy, &few, 0);
    few.wait_for_progress();
    many.wait_for_progress();
    for _ in 0..3 {
        let ran = seconds_run(&[&many, &few], Duration::from_secs(2));
        let (many, few): (f64, f64) = (ran[0].iter().sum(), ran[1].iter().sum());
        println!("weight 300 ran {few:.3} s, weight 100 {many:.3} s: {:.3}", few / many);
        assert!((2.9..3.1).contains(&(few / many)), "{ran:.3?}");
        assert!(few + many > 3.9, "a core idled: {ran:.3?}");
    }
}

#[test]
fn vruntime_shares_a_core_by_nice_values() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("vruntime"), &on_cpus(&[CORE])).unwrap();
    let crew = Crew::spinning(3);
    crew.renice(2, 5);
    register(&app, &crew, 0);
    crew.wait_for_progress();
    // The kernel's weights: 100 at nice 0, 33 at nice 5.
    let weights = [100.0, 100.0, 33.0];
    let mut ran = [0.0; 3];
    for _ in 0..3 {
        let stretch = seconds_run(&[&crew], Duration::from_millis(1500)).remove(0);
        ran.iter_mut().zip(&stretch).for_each(|(ran, more)| *ran += more);
        println!("nice 0, 0, 5 ran {ran:.3?} s");
        let sum: f64 = ran.iter().sum();
        for (ran, weight) in ran.iter().zip(weights) {
            // At either end a thread can be one slice of 20 ms ahead or behind.
            let share = sum * weight / weights.iter().sum::<f64>();
            assert!((ran - share).abs() < 0.04, "{ran:.3} s where {share:.3} was its share");
        }
        assert!(stretch.iter().sum::<f64>() > 1.45, "the core idled: {stretch:.3?}");
    }
    let seen = ScxSyrup.read(&app).unwrap().unwrap();
    assert_eq!(seen.health, Health::LIVE);
    assert_eq!(seen.count(abi::SYRUP_PASSED), 0);
}

#[test]
fn a_slice_is_as_long_as_the_policy_says_within_limits() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    ScxSyrup.deploy(&app, &script.policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    let crew = Crew::spinning(2);
    register(&app, &crew, 0);
    crew.wait_to_be_on(1 << CORE);
    let default = 0;
    for (asked_us, least_ms, count) in
        [(12_000, 12, 8), (default, 20, 6), (u32::MAX, 100, 4), (5_000, 5, 8)]
    {
        (0..2).for_each(|index| script.place(index, at(0).slice_us(asked_us)));
        // Slices that were granted before end first.
        let granted_before = script.calls() + 3;
        let calls = eventually("slices", || Some(script.calls()).filter(|&n| n >= granted_before));
        std::thread::sleep(Duration::from_millis((least_ms + 4) * (count + 2)));
        let told = script.told_since(calls);
        // The two take turns: from end to end is the other's slice, unless the kernel's
        // own threads interrupted it.
        let slices_us: Vec<u64> = told
            .windows(2)
            .filter(|pair| pair.iter().all(|told| told.thread.flags == SYRUP_THREAD_EXPIRED))
            .map(|pair| (pair[1].now_ns - pair[0].now_ns) / 1000)
            .collect();
        println!("asked for {asked_us} us, {least_ms} ms is granted: {slices_us:?}");
        assert!(slices_us.len() as u64 >= count / 2, "{slices_us:?}");
        // The kernel looks at its tick, every 4 ms.
        let granted = least_ms * 1000 - 300..least_ms * 1000 + 4700;
        assert!(slices_us.iter().all(|us| granted.contains(us)), "{slices_us:?}");
    }
}

#[test]
fn a_preempted_thread_goes_on_with_the_rest_of_its_slice() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (1..3).for_each(|index| script.place(index, at(1).slice_us(20_000)));
    ScxSyrup.deploy(&app, &script.policy(preempting(2)), &on_cpus(&[CORE])).unwrap();
    let two = Crew::spinning(2);
    register(&app, &two, 1);
    // It preempts them several times in each slice.
    let (napper, woken) = timed(1, Duration::from_millis(3), None);
    register(&app, &napper, 0);
    eventually_woken(&woken, 10);
    two.forget();
    eventually_woken(&woken, 100);
    let gaps: Vec<Duration> = two.workers.iter().map(|w| w.gap()).collect();
    println!("under preemption they wait {gaps:?}");
    // For each other's slice, which ends at a tick of the kernel.
    assert!(gaps.iter().all(|&gap| gap < Duration::from_millis(35)), "{gaps:?}");
}

#[test]
fn a_thread_that_registers_again_keeps_its_place_and_its_past() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (0..2).for_each(|index| script.place(index, at(0).slice_us(20_000)));
    ScxSyrup.deploy(&app, &script.policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    let two = Crew::spinning(2);
    register(&app, &two, 0);
    two.wait_to_be_on(1 << CORE);
    let calls = script.calls();
    for _ in 0..10 {
        register(&app, &two, 0);
    }
    eventually("turns", || (script.calls() >= calls + 6).then_some(()));
    let told = script.told_since(calls);
    for index in 0..2 {
        let its = told.iter().filter(|told| told.thread.index == index);
        let ran_ns: Vec<u64> = its.map(|told| told.thread.runtime_ns).collect();
        println!("thread {index} had run {ran_ns:?} ns");
        assert!(ran_ns.len() >= 2 && ran_ns.is_sorted(), "{ran_ns:?}");
    }
}

#[test]
fn an_app_that_slept_has_saved_up_one_slice_and_no_more() {
    let Some(fixture) = fixture() else { return };
    let (busy, idle) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    (0..2).for_each(|index| script.place(index, at(0).slice_us(4000)));
    for app in [&busy, &idle] {
        ScxSyrup.deploy(app, &script.policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    }
    let hog = Crew::spinning(1);
    register(&busy, &hog, 0);
    let ran_us = Arc::new(AtomicU64::new(0));
    let shared = ran_us.clone();
    let napper = Crew::of(1, move |worker, stop| {
        while !stop.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(300));
            let (start, mut ran) = (Instant::now(), Duration::ZERO);
            let mut last = start;
            while last - start < Duration::from_millis(100) {
                let now = Instant::now();
                if now - last < Duration::from_micros(100) {
                    ran += now - last;
                }
                last = now;
                std::hint::spin_loop();
            }
            shared.store(ran.as_micros() as u64, SeqCst);
            worker.turn();
        }
    });
    register(&idle, &napper, 1);
    napper.workers[0].wait_for_turn();
    for _ in 0..3 {
        napper.workers[0].wait_for_turn();
        let ran_us = ran_us.load(SeqCst);
        println!("of its first 100 ms it had {ran_us} us");
        // Half of them, and half of the 20 ms that it is ahead.
        assert!((54_000..68_000).contains(&ran_us), "{ran_us}");
    }
}

#[test]
fn equal_apps_take_turns() {
    let Some(fixture) = fixture() else { return };
    let script = Scripted::new();
    (0..2).for_each(|index| script.place(index, at(0).slice_us(4000)));
    let crews: Vec<Crew> = ["one", "two"]
        .into_iter()
        .zip(0..)
        .map(|(name, index)| {
            let app = fixture.app(name);
            ScxSyrup.deploy(&app, &script.policy(queues(1)), &on_cpus(&[CORE])).unwrap();
            let crew = Crew::spinning(1);
            register(&app, &crew, index);
            crew
        })
        .collect();
    crews.iter().for_each(|crew| crew.wait_for_progress());
    let calls = script.calls();
    std::thread::sleep(Duration::from_millis(400));
    // Who had less comes next: some lead of one app over the other parts the choices.
    let mut ran_ns: [Option<u64>; 2] = [None, None];
    let mut leads: [Vec<i64>; 2] = [Vec::new(), Vec::new()];
    let told = script.told_since(calls);
    for pair in told.windows(2) {
        ran_ns[pair[0].thread.index as usize] = Some(pair[0].thread.runtime_ns);
        if let [Some(zero), Some(one)] = ran_ns {
            leads[pair[1].thread.index as usize].push(zero as i64 - one as i64);
        }
    }
    println!("leads of app 0 before its turns, and before those of app 1, in ns: {leads:?}");
    assert!(leads.iter().all(|leads| leads.len() >= 20), "too few turns");
    let (most, least) = (leads[0].iter().max().unwrap(), leads[1].iter().min().unwrap());
    // What runs between the choice and the end of a turn.
    assert!(most - least < 100_000, "{most} ns ahead it came again, {least} ns behind it did not");
}

#[test]
fn an_app_whose_threads_may_not_use_a_core_leaves_it_to_the_others() {
    let Some(fixture) = fixture() else { return };
    let (pinned, other) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    ScxSyrup.deploy(&pinned, &script.policy(queues(1)), &on_cpus(&CORES)).unwrap();
    ScxSyrup.deploy(&other, &script.policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    // Half a core each, so their app has always had less than the other; one waits.
    let two = Crew::spinning(2);
    two.pin_to(OTHER_CORE as usize);
    two.wait_to_be_on(1 << OTHER_CORE);
    let hogs = Crew::spinning(2);
    register(&pinned, &two, 0);
    register(&other, &hogs, 0);
    hogs.wait_to_be_on(1 << CORE);
    two.wait_for_progress();
    let rescued = || ScxSyrup.read(&other).unwrap().unwrap().count(abi::SYRUP_RESCUED);
    let rescued_before = rescued();
    let ran = seconds_run(&[&two, &hogs], Duration::from_millis(500));
    println!("{ran:.3?}");
    for crew in &ran {
        assert!(crew.iter().sum::<f64>() > 0.47, "a core idled: {ran:.3?}");
    }
    assert_eq!(two.cpus() & !(1 << OTHER_CORE), 0);
    assert_eq!(rescued(), rescued_before);
}
