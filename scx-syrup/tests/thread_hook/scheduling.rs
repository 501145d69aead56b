//! What the root scheduler does with verdicts.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use syrup_hook::{App, Deploy as _, Error, Health};
use syrup_scx::ScxSyrup;
use syrup_scx::Target;
use syrup_sdk::abi::{self, SYRUP_THREAD_EXPIRED, syrup_thread_policy};
use syrup_tests::Numbers as _;

use crate::support::fixture::{Fixture, on_cpus, register, sysfs};
use crate::support::order::Order;
use crate::support::policy::{Scripted, at, cores, policy, preempting, queues};
use crate::support::workers::{Crew, allow, eventually};

#[test]
fn queues_are_served_in_order_and_each_by_rank() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    // Queues 1 to 7 of 8, PASS and one too many, which mean queue 7; and a rank.
    let places = [
        (7, 60),
        (1, 20),
        (6, 50),
        (7, 10),
        (1, 10),
        (-1, 20), // PASS
        (8, 30),
        (3, u64::MAX / 4), // late, and still before queue 6
        (6, 40),
        (7, 40),
    ];
    for ((verdict, rank), index) in places.into_iter().zip(1..) {
        script.place(index, at(verdict).rank(rank));
    }
    script.place(0, at(0).slice_us(100_000));
    // The queues of a policy that replaced another with fewer.
    let attributes = |nr| syrup_thread_policy { rescue_ms: 2000, ..queues(nr) };
    ScxSyrup.deploy(&app, &script.policy(attributes(2)), &on_cpus(&[1])).unwrap();
    ScxSyrup.replace(&app, &script.policy(attributes(8))).unwrap();

    let (order, waiters) = Order::of_waiters(places.len());
    register(&app, &waiters, 1);
    // Queue 0 keeps the only core until all of them wait.
    let blocker = Crew::spinning(1);
    register(&app, &blocker, 0);
    blocker.wait_to_be_on(1 << 1);
    (0..places.len()).for_each(|number| waiters.unpark_one(number));
    eventually("the policy to place them", || {
        let told = script.told_since(0);
        (1..=places.len() as u32)
            .all(|index| told.iter().any(|told| told.thread.index == index))
            .then_some(())
    });
    assert_eq!(order.seen(), [0; 0], "a thread of a later queue ran before queue 0 was empty");
    drop(blocker);
    waiters.wait_for_turns();
    assert_eq!(order.seen(), [4, 1, 7, 8, 2, 3, 5, 6, 9, 0]);
}

#[test]
fn fifo_gives_each_thread_its_slice_in_turn_and_a_yield_ends_one() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (0..3).for_each(|index| script.place(index, at(0).slice_us(100)));
    let attributes = syrup_thread_policy { rescue_ms: 2000, ..queues(1) };
    ScxSyrup.deploy(&app, &script.policy(attributes), &on_cpus(&[1])).unwrap();
    let hogs = Crew::spinning(3);
    register(&app, &hogs, 0);
    hogs.wait_to_be_on(1 << 1);
    let ends_of_slices = |from: u64| -> Vec<u32> {
        script
            .told_since(from)
            .iter()
            .filter(|told| told.thread.flags == SYRUP_THREAD_EXPIRED)
            .map(|told| told.thread.index)
            .collect()
    };
    let calls = script.calls();
    let turns = eventually("thirty slices", || {
        let turns = ends_of_slices(calls);
        (turns.len() >= 30).then_some(turns)
    });
    for three in turns.windows(4) {
        assert!(three[0] == three[3] && three[0] != three[1] && three[1] != three[2], "{turns:?}");
        assert_ne!(three[0], three[2], "{turns:?}");
    }
    drop(hogs);

    // A smaller rank goes on past the end of its slices; equal queues do not mean turns.
    let hogs = Crew::spinning(2);
    script.place(4, at(0).slice_us(100).rank(1));
    script.place(5, at(0).slice_us(100).rank(2));
    register(&app, &hogs, 4);
    hogs.workers[0].wait_for_turn();
    let calls = eventually("the second to wait", || {
        let told = script.told_since(0);
        let placed = told.iter().position(|told| told.thread.index == 5);
        placed.map(|_| script.calls())
    });
    let ran = || [hogs.workers[0].cpu_time(), hogs.workers[1].cpu_time()];
    let before = ran();
    eventually("thirty slices of the first", || {
        (ends_of_slices(calls).iter().filter(|&&index| index == 4).count() >= 30).then_some(())
    });
    // It is taken while the policy is asked about the first, and gives way at once.
    let [first, second] = ran();
    let (first, second) = (first - before[0], second - before[1]);
    println!("the smaller rank ran for {first:?}, the larger for {second:?}");
    assert!(second * 4 < first, "the larger rank had turns: {second:?} beside {first:?}");
    let told = script.told_since(calls);
    assert!(told.iter().all(|told| told.thread.index == 4), "asked again though it kept its place");
    drop(hogs);

    // 100 ms slices: a thread that yields is over long before.
    (8..10).for_each(|index| script.place(index, at(0).slice_us(100_000)));
    let order = Arc::new(Order::new());
    let noted = order.clone();
    let go = Arc::new(AtomicBool::new(false));
    let gate = go.clone();
    let polite = Crew::of(2, move |worker, stop| {
        std::thread::park();
        while !stop.load(SeqCst) {
            if gate.load(SeqCst) {
                noted.note(worker.number());
                worker.turn();
            }
            std::thread::yield_now();
        }
    });
    polite.wait_to_sleep();
    register(&app, &polite, 8);
    polite.unpark();
    eventually("both to be in turns", || {
        let seen: Vec<u32> = ends_of_slices(0).into_iter().filter(|&index| index >= 8).collect();
        (seen.ends_with(&[8, 9]) || seen.ends_with(&[9, 8])).then_some(())
    });
    go.store(true, SeqCst);
    let turns = eventually("forty turns", || {
        let turns = order.seen();
        (turns.len() >= 40).then_some(turns)
    });
    assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
    assert_eq!(ScxSyrup.read(&app).unwrap().unwrap().count(abi::SYRUP_RESCUED), 0);
}

#[test]
fn the_rescue_of_many_threads_stays_on_the_cores_of_their_app() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (2..26).for_each(|index| script.place(index, at(1).slice_us(100_000)));
    let attributes = syrup_thread_policy { rescue_ms: 50, ..preempting(2) };
    ScxSyrup.deploy(&app, &script.policy(attributes), &on_cpus(&[1, 2])).unwrap();
    let favoured = Crew::spinning(2);
    register(&app, &favoured, 0);
    let starved = Crew::spinning(24);
    register(&app, &starved, 2);
    let rescued_so_far = || ScxSyrup.read(&app).unwrap().unwrap().count(abi::SYRUP_RESCUED);
    let rescue_more = |count: u64| {
        let goal = rescued_so_far() + count;
        eventually("the rescues", || (rescued_so_far() >= goal).then_some(()));
    };
    // Each has left the core on which it was when it registered, and noted what it saw there.
    let turns: Vec<u64> = starved.workers.iter().map(|worker| worker.turns()).collect();
    eventually("each to be rescued", || {
        let mut workers = starved.workers.iter().zip(&turns);
        workers.all(|(worker, turns)| worker.turns() > turns + 1).then_some(())
    });
    starved.forget();
    rescue_more(72);
    let seen: Vec<_> = starved.workers.iter().map(|w| (w.cpus(), w.gap())).collect();
    assert_eq!(
        starved.cpus(),
        0b0110,
        "cores 1 and 2, as a mask; of each, with its wait: {seen:?}"
    );
    drop(favoured);
}

#[test]
fn a_thread_whose_core_is_taken_for_good_has_what_the_deadline_server_gives_and_no_other() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let attributes = syrup_thread_policy { rescue_ms: 20, ..queues(2) };
    ScxSyrup.deploy(&app, &Scripted::new().policy(attributes), &on_cpus(&[1])).unwrap();
    let crew = Crew::spinning(1);
    register(&app, &crew, 0);
    crew.wait_to_be_on(1 << 1);
    let taker = Crew::spinning(1);
    taker.pin_to(1);
    taker.become_fifo();
    taker.wait_for_progress();
    crew.forget();
    // Many deadlines each.
    for _ in 0..3 {
        crew.wait_for_progress();
    }
    assert_eq!(crew.cpus(), 1 << 1);
    assert!(crew.workers[0].gap() > Duration::from_millis(400), "it was not taken");
}

/// Threads that run for a millisecond at a time.
fn napping(count: usize) -> Crew {
    Crew::of(count, |worker, stop| {
        while !stop.load(SeqCst) {
            let until = worker.cpu_time() + Duration::from_millis(1);
            while worker.cpu_time() < until {}
            worker.saw_cpu();
            worker.turn();
            std::thread::sleep(Duration::from_millis(3));
        }
    })
}

#[test]
fn ordinary_threads_that_never_sleep_leave_an_app_what_the_deadline_server_gives() {
    let Some(fixture) = Fixture::resident() else { return };
    // Where ordinary threads take all cores, an app has what the kernel's deadline
    // server gives the class: 50 ms of each second.
    let taken = |cores: std::ops::Range<usize>| -> Vec<Crew> {
        let pinned = |cpu| {
            let crew = Crew::spinning(1);
            crew.pin_to(cpu);
            crew
        };
        cores.map(pinned).collect()
    };
    // Longer than the kernel's watchdog waits.
    let keeps_running = |app: &App, crews: &[&Crew]| {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(12) {
            crews.iter().for_each(|crew| crew.wait_for_progress());
        }
        let seen = ScxSyrup.read(app).unwrap().unwrap();
        assert!(!matches!(seen.health, Health::Ejected(_)), "{:?}", seen.health);
    };

    let one = fixture.app("one");
    ScxSyrup.deploy(&one, &policy("get-priority"), &Target::default()).unwrap();
    let (spinning, napping) = (Crew::spinning(2), napping(4));
    register(&one, &spinning, 0);
    register(&one, &napping, 2);
    // Threads of another wait elsewhere when its only core is taken; one was pinned there.
    let two = fixture.app("two");
    ScxSyrup.deploy(&two, &policy("fifo"), &on_cpus(&[1])).unwrap();
    let core = taken(1..2);
    let (confined, outside) = (Crew::spinning(2), Crew::spinning(1));
    confined.tids().into_iter().for_each(|tid| allow(tid, [1, 2]));
    register(&two, &confined, 0);
    register(&two, &outside, 2);
    outside.pin_to(2);
    // And some have a core of their own.
    let three = fixture.app("three");
    ScxSyrup.deploy(&three, &Scripted::new().policy(cores()), &on_cpus(&[3])).unwrap();
    let others = [taken(0..1), taken(2..4)];
    let bound = Crew::spinning(2);
    register(&three, &bound, 0);
    bound.forget();
    let crews = [&spinning, &napping, &confined, &outside, &bound];
    let (since, before) = (Instant::now(), crews.map(|crew| crew.cpu_time()));
    keeps_running(&one, &crews);
    // On its core, not only where the rescue takes those that are far behind.
    assert!(bound.cpus() & 1 << 3 != 0, "{:#b}", bound.cpus());
    let ran: Duration =
        crews.iter().zip(before).map(|(crew, before)| crew.cpu_time() - before).sum();
    println!("{ran:?} in {:?} on four cores", since.elapsed());
    assert!(ran > since.elapsed() * 4 / 40, "of the 50 ms in each second of a core: {ran:?}");
    drop((core, others));
    // Nobody waits any more. Rescues there were, more or fewer.
    let health = ScxSyrup.read(&two).unwrap().unwrap().health;
    println!("then: {health:?}");
    assert!(!matches!(&health, Health::Ejected(_)));
    assert!(!matches!(&health, Health::Degraded(why) if why.contains("one has waited")));
    drop((spinning, napping, confined, outside, bound));
}

/// A core that is offline until the value goes.
struct Offline(u32);

impl Offline {
    fn take(core: u32) -> Self {
        Self::set(core, "0");
        Self(core)
    }

    fn set(core: u32, online: &str) {
        fs::write(format!("/sys/devices/system/cpu/cpu{core}/online"), online).unwrap();
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        Self::set(self.0, "1");
    }
}

#[test]
fn threads_whose_core_goes_offline_go_on_elsewhere_and_come_back() {
    let Some(fixture) = Fixture::resident() else { return };
    let read = |app| ScxSyrup.read(app).unwrap().unwrap();
    let ran_in_a_second = |crew: &Crew| {
        crew.wait_for_progress();
        let before = crew.cpu_time();
        std::thread::sleep(Duration::from_secs(1)); // the time that is measured
        crew.cpu_time() - before
    };
    // One that its policy places there, and one whose only core it is.
    let (one, two) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    (0..2).for_each(|index| script.place(index, at(2)));
    ScxSyrup.deploy(&one, &script.policy(cores()), &on_cpus(&[1, 2, 3])).unwrap();
    ScxSyrup.deploy(&two, &policy("fifo"), &on_cpus(&[3])).unwrap();
    let (placed, confined) = (napping(2), Crew::spinning(2));
    register(&one, &placed, 0);
    register(&two, &confined, 0);
    for crew in [&placed, &confined] {
        crew.wait_to_be_on(1 << 3);
    }
    let offline = Offline::take(3);
    for (app, crew) in [(&one, &placed), (&two, &confined)] {
        // Before the rescue's next time, once it has come out of the queue.
        let rescued = eventually("it to run freely", || {
            let before = read(app).count(abi::SYRUP_RESCUED);
            (ran_in_a_second(crew) > Duration::from_millis(200)).then_some(before)
        });
        let more = read(app).count(abi::SYRUP_RESCUED) - rescued;
        assert!(more < 3, "{more} rescues");
    }
    let why = |app| match read(app).health {
        Health::Degraded(why) => why,
        health => panic!("{health:?}"),
    };
    assert!(why(&one).contains("were for cores that are offline ([3])"), "{}", why(&one));
    assert!(why(&two).contains("no core of the app is online (its cores: [3])"), "{}", why(&two));
    let three = fixture.app("three");
    let refused = ScxSyrup.deploy(&three, &policy("fifo"), &on_cpus(&[2, 3])).unwrap_err();
    assert!(
        matches!(&refused, Error::Usage(why) if why.contains("core 3 is offline")),
        "{refused}"
    );
    // Whoever names no cores has those that are there.
    ScxSyrup.deploy(&three, &script.policy(cores()), &Target::default()).unwrap();
    assert_eq!((read(&three).executors, read(&three).cpus()), (3, vec![0, 1, 2]));
    ScxSyrup.remove(&three).unwrap();
    drop(offline);
    for crew in [&placed, &confined] {
        crew.wait_to_be_on(1 << 3);
    }
    // Also where nothing else waits, so that none would have to make room.
    drop(placed);
    let offline = Offline::take(3);
    eventually("it to run freely", || {
        (ran_in_a_second(&confined) > Duration::from_millis(1500)).then_some(())
    });
    drop(offline);
    confined.wait_to_be_on(1 << 3);
}

#[test]
fn an_app_stays_on_its_cores_and_uses_all_of_them() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &on_cpus(&[2, 3])).unwrap();
    let crew = Crew::spinning(4);
    register(&app, &crew, 0);
    eventually("the threads to come to cores 2 and 3", || {
        crew.wait_for_progress();
        crew.forget();
        crew.wait_for_progress();
        (crew.cpus() & !0b1100 == 0).then_some(())
    });
    eventually("both cores to be used", || (crew.cpus() & 0b1100 == 0b1100).then_some(()));
    assert_eq!(crew.cpus() & !0b1100, 0, "{:#b}", crew.cpus());
    assert_eq!(ScxSyrup.read(&app).unwrap().unwrap().cpus(), [2, 3]);
}

#[test]
fn threads_that_starve_on_every_core_are_rescued_again_and_again() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (4..16).for_each(|index| script.place(index, at(1)));
    ScxSyrup.deploy(&app, &script.policy(preempting(2)), &on_cpus(&[0, 1, 2, 3])).unwrap();
    let (favoured, starved) = (Crew::spinning(4), Crew::spinning(12));
    register(&app, &favoured, 0);
    register(&app, &starved, 4);
    // More than there are cores to rescue them at a time.
    let rescued = || ScxSyrup.read(&app).unwrap().unwrap().count(abi::SYRUP_RESCUED);
    for _ in 0..4 {
        let before = rescued();
        starved.wait_for_progress();
        favoured.wait_for_progress();
        eventually("a rescue of each", || (rescued() >= before + 12).then_some(()));
    }
    assert_eq!(sysfs("state"), "enabled");
}

#[test]
fn executors_can_be_cores() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (0..4).for_each(|index| script.place(index, at(index as i32 % 2)));
    // A rescue would use the other core as well.
    let attributes = syrup_thread_policy { rescue_ms: 2000, ..cores() };
    ScxSyrup.deploy(&app, &script.policy(attributes), &on_cpus(&[1, 3])).unwrap();
    let crew = Crew::spinning(4);
    register(&app, &crew, 0);
    eventually("each thread on the core its policy chose", || {
        crew.wait_for_progress();
        crew.forget();
        crew.wait_for_progress();
        let cpus: Vec<u64> = crew.workers.iter().map(|w| w.cpus()).collect();
        (cpus == [1 << 1, 1 << 3, 1 << 1, 1 << 3]).then_some(())
    });
    let seen = ScxSyrup.read(&app).unwrap().unwrap();
    assert_eq!((seen.executors, seen.verdicts.len()), (2, 2));
    assert!(seen.verdicts.iter().all(|&n| n > 0), "{:?}", seen.verdicts);
    assert_eq!(seen.count(abi::SYRUP_ENFORCE_FAILED), 0);
    // One that is taken too early goes back to its core, not to another.
    let tried =
        |index: u32, rank| script.place(index, at(index as i32 % 2).slice_us(100).rank(rank));
    (0..2).for_each(|index| tried(index, 1));
    (2..4).for_each(|index| tried(index, u64::MAX / 4));
    let calls = script.calls();
    crew.forget();
    let taken = || [crew.workers[2].nr_slices(), crew.workers[3].nr_slices()];
    let before = taken();
    eventually("the larger ranks to be taken on trial", || {
        let [two, three] = taken();
        (two >= before[0] + 20 && three >= before[1] + 20).then_some(())
    });
    let told = script.told_since(calls);
    let asked = |index| told.iter().filter(|told| told.thread.index == index).count();
    assert!(asked(0) >= 20 && asked(1) >= 20, "{} and {}", asked(0), asked(1));
    // Once, when the slice ended that they had before.
    assert!(asked(2) <= 2 && asked(3) <= 2, "{} and {}", asked(2), asked(3));
    // What is on trial runs no code of its own: core 3 is left to whoever waits there.
    script.place(1, at(0).slice_us(100).rank(1));
    (0..3).for_each(|_| crew.workers[3].wait_for_turn());
    crew.workers[0].wait_for_turn();
    let cpus = [crew.workers[2].cpus(), crew.workers[3].cpus()];
    assert!(cpus[0] & !(1 << 1) == 0 && cpus[1] == 1 << 3, "{cpus:?}");
    // A policy with queues takes over threads that wait for a core.
    ScxSyrup.replace(&app, &policy("fifo")).unwrap();
    crew.wait_for_progress();
    assert_eq!(ScxSyrup.read(&app).unwrap().unwrap().executors, 1);
}

#[test]
fn threads_that_nobody_registered_run_beside_an_app() {
    let Some(fixture) = Fixture::resident() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &on_cpus(&[1])).unwrap();
    let (ours, nobodys) = (Crew::spinning(2), Crew::spinning(6));
    register(&app, &ours, 0);
    nobodys.become_ext();
    ours.wait_for_progress();
    nobodys.wait_for_progress();
    nobodys.become_other();
}
