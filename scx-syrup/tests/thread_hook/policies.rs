//! The policies that ship with the hook.

use std::time::Duration;

use syrup_abi::abi;
use syrup_hook::{Executor, Hook as _, Target};
use syrup_scx::ScxSyrup;

use crate::fixture::{Fixture, TestMap, link};
use crate::workers::{Crew, eventually, in_some_round};

fn one_core() -> Target {
    Target { cpus: vec![1], ..Default::default() }
}

#[test]
fn every_policy_passes_the_verifier() {
    let Some(fixture) = Fixture::new() else { return };
    assert_eq!(ScxSyrup.policies().len(), 3);
    for policy in ScxSyrup.policies() {
        ScxSyrup.verify(&fixture.builtin(policy.name)).unwrap();
    }
    fixture.assert_clean();
}

/// CPU time of each thread in a stretch of `time`.
fn seconds_run(crew: &Crew, time: Duration) -> Vec<f64> {
    let before: Vec<Duration> = crew.workers.iter().map(|w| w.cpu_time()).collect();
    std::thread::sleep(time);
    crew.workers
        .iter()
        .zip(before)
        .map(|(w, before)| (w.cpu_time() - before).as_secs_f64())
        .collect()
}

#[test]
fn get_priority_gives_the_core_to_gets() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let types = TestMap::new("request_type", 65536);
    let object = ScxSyrup.policies().iter().find(|p| p.name == "get-priority").unwrap().object;
    let policy = link("get-priority", object, &[("request_type", &types)]);
    ScxSyrup.deploy(&app, &policy, &one_core()).unwrap();
    let crew = Crew::spinning(2);
    types.set(0, 1);
    types.set(1, 2);
    for (tid, index) in crew.tids().into_iter().zip(0..) {
        ScxSyrup.register(&app, Executor::Thread { tid }, Some(index)).unwrap();
    }
    let share_of_gets = |crew: &Crew| {
        let ran = seconds_run(crew, Duration::from_secs(1));
        ran[0] / (ran[0] + ran[1])
    };
    eventually("the core to be full", || {
        let seen = ScxSyrup.read(&app).unwrap().unwrap();
        (seen.verdicts.iter().all(|&n| n > 0)).then_some(())
    });
    in_some_round(|| match share_of_gets(&crew) {
        share if share > 0.9 => Ok(()),
        share => Err(format!("the GET thread had {share:.2} of the core")),
    });
    // The application's next request on that thread is a SCAN: the same thread, the other way.
    types.set(0, 2);
    types.set(1, 1);
    in_some_round(|| match share_of_gets(&crew) {
        share if share < 0.2 => Ok(()),
        share => Err(format!("the SCAN thread had {share:.2} of the core")),
    });
}

#[test]
fn vruntime_shares_a_core_by_nice_values() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &fixture.builtin("vruntime"), &one_core()).unwrap();
    let crew = Crew::spinning(3);
    crew.renice(2, 5);
    for tid in crew.tids() {
        ScxSyrup.register(&app, Executor::Thread { tid }, None).unwrap();
    }
    crew.wait_for_progress();
    in_some_round(|| {
        let ran = seconds_run(&crew, Duration::from_secs(3));
        println!("nice 0, 0, 5 ran {ran:.3?} s");
        // The kernel gives nice 5 a third of the weight of nice 0.
        let fair =
            (0.8..1.25).contains(&(ran[0] / ran[1])) && (2.4..3.8).contains(&(ran[0] / ran[2]));
        if fair { Ok(()) } else { Err(format!("{ran:.3?}")) }
    });
    let seen = ScxSyrup.read(&app).unwrap().unwrap();
    assert_eq!(seen.counters.get(abi::SYRUP_PASSED), 0);
}
