//! The thread hook on a real sched_ext kernel, as root: one binary, so that a
//! virtual machine boots once for all of it. Where sched_ext is missing each
//! test says so and passes.

#![allow(unused, dead_code)]
mod fixture;
mod workers;

use std::time::Duration;

use fixture::{Fixture, compile, link};
use syrup_abi::abi;
use syrup_hook::{Error, Executor, Health, Hook as _, Target};
use syrup_scx::ScxSyrup;
use workers::{Crew, eventually};

const QUEUE_BY_MAP: &str = "#include <syrup/thread.h>\n\
    SYRUP_MAP(queue_of, 64);\n\
    SYRUP_THREAD_POLICY(.queues = 2, .preempt = true);\n\
    __s32 schedule(struct syrup_thread *t)\n{\n\
    \t__u64 *queue = syrup_map_lookup(&queue_of, t->index);\n\
    \tt->slice_us = 100000;\n\
    \treturn queue ? *queue : SYRUP_PASS;\n}\n";

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
    assert_eq!(ScxSyrup.read(&app).unwrap().map(|d| d.policy), None);
    fixture.assert_clean();
    // The threads go on, under the kernel's default.
    assert!(crew.policies().iter().all(|&policy| policy == 0), "{:?}", crew.policies());
    crew.wait_for_progress();
}
