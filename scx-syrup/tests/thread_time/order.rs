//! In which order threads run, where time could disturb it: who waits for two seconds is
//! rescued, and who leaves its core while there is no program loses its place.

use syrup_hook::Deploy as _;
use syrup_scx::ScxSyrup;
use syrup_sdk::abi::syrup_thread_policy;

use crate::support::fixture::{on_cpus, register, without_program};
use crate::support::order::Order;
use crate::support::policy::{Scripted, at, queues};
use crate::support::workers::{Crew, eventually};
use crate::{CORE, fixture};

#[test]
fn what_the_default_places_waits_in_the_last_queue_and_a_place_outlasts_its_queue() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    for (index, (queue, rank)) in (1..).zip([(3, 60), (1, 20), (3, u64::MAX / 4), (2, 50)]) {
        script.place(index, at(queue).rank(rank));
    }
    script.place(0, at(0).slice_us(100_000));
    let attributes = |nr| syrup_thread_policy { rescue_ms: 2000, ..queues(nr) };
    ScxSyrup.deploy(&app, &script.policy(attributes(4)), &on_cpus(&[CORE])).unwrap();

    let (order, waiters) = Order::of_waiters(6);
    register(&app, &waiters, 1);
    let blocker = Crew::spinning(1);
    register(&app, &blocker, 0);
    blocker.wait_to_be_on(1 << CORE);
    (0..4).for_each(|number| waiters.unpark_one(number));
    eventually("the policy to place them", || {
        let told = script.told_since(0);
        (1..=4).all(|index| told.iter().any(|told| told.thread.index == index)).then_some(())
    });
    // An ordinary thread holds the core meanwhile: the default would put the one of queue 0
    // behind all others when its slice ends.
    let keeper = Crew::spinning(1);
    keeper.pin_to(CORE as usize);
    keeper.wait_for_progress();
    without_program(&app, || {
        waiters.unpark_one(4);
        waiters.unpark_one(5);
        waiters.wait_to_be_runnable();
    });
    drop(keeper);
    // The new policy knows the first queue only.
    ScxSyrup.replace(&app, &script.policy(attributes(1))).unwrap();
    assert_eq!(order.seen(), [0; 0], "a thread of a later queue ran before queue 0 was empty");
    drop(blocker);
    waiters.wait_for_turns();
    // The rank of what the default places is the time: before one that is later still.
    assert_eq!(order.seen(), [1, 3, 0, 4, 5, 2]);
}
