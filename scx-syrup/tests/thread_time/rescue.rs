//! A thread that its policy starves.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use syrup_hook::{Deploy as _, Health};
use syrup_scx::{ScxSyrup, Target};
use syrup_sdk::abi::{self, SYRUP_THREAD_PREEMPTED, SYRUP_THREAD_WAKEUP, syrup_thread_policy};
use syrup_tests::Numbers as _;

use crate::shares::seconds_run;
use crate::support::fixture::{on_cpus, register, sysfs};
use crate::support::policy::{Scripted, at, cores, preempting, queues};
use crate::support::workers::{Crew, allow, eventually};
use crate::{CORE, CORES, OTHER_CORE, fixture};

#[test]
fn a_starved_thread_runs_every_200_ms_and_costs_little() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (4..8).for_each(|index| script.place(index, at(1)));
    ScxSyrup.deploy(&app, &script.policy(preempting(2)), &on_cpus(&[CORE])).unwrap();
    let favoured = Crew::spinning(4);
    register(&app, &favoured, 0);
    let starved = Crew::spinning(4);
    register(&app, &starved, 4);
    // One that joined beside an ordinary thread had a slice first.
    starved.wait_for_progress();
    let calls = script.calls();
    let rescued = || ScxSyrup.read(&app).unwrap().unwrap().count(abi::SYRUP_RESCUED);
    for round in 0..3 {
        let slices = |crew: &Crew| crew.workers.iter().map(|w| w.nr_slices()).sum::<u64>();
        let before = (favoured.active(), starved.active(), slices(&starved), rescued());
        starved.forget();
        std::thread::sleep(Duration::from_millis(2000)); // the time that is measured
        let rescues = rescued() - before.3;
        let slices = slices(&starved) - before.2;
        let starved_ran = starved.active() - before.1;
        let favoured_ran = favoured.active() - before.0;
        let gaps: Vec<Duration> = starved.workers.iter().map(|w| w.gap()).collect();
        println!(
            "round {round}: gaps {gaps:?}; {rescues} rescues, {slices} slices; queue 0 ran \
             {favoured_ran:?}, the starved {starved_ran:?}"
        );
        let (soon, late) = (Duration::from_millis(190), Duration::from_millis(250));
        assert!(gaps.iter().all(|gap| (soon..late).contains(gap)), "{gaps:?}");
        // Each time a starved thread ran it was a rescue; one may be under way. The
        // kernel's own threads cut one in two now and then.
        let cut = rescues / 8 + 1;
        assert!(
            (rescues..=rescues + cut).contains(&(slices + 1)),
            "{rescues} rescues, {slices} slices"
        );
        // Each thread ten times, and again where an interrupt took the rescue's time.
        assert!((36..=52).contains(&rescues), "four threads for 2 s: {rescues} rescues");
        // Half a millisecond each, which the next look of the timer ends.
        let each = starved_ran / rescues as u32;
        let half = Duration::from_micros(350)..Duration::from_micros(1100);
        assert!(half.contains(&each), "a rescue lasts {each:?}");
        assert!(starved_ran * 20 < favoured_ran, "{starved_ran:?} of {favoured_ran:?}");
        assert!(starved_ran + favoured_ran > Duration::from_millis(1900), "the core idled");
    }
    // The end of a rescue is not that of a slice: a starved thread keeps its place.
    for index in 4..8 {
        let told = script.told_since(calls).into_iter();
        let told = told.filter(|told| told.thread.index == index);
        let places: Vec<_> =
            told.map(|told| (told.thread.flags, told.thread.runnable_at_ns)).collect();
        for pair in places.windows(2) {
            let ((_, before), (flags, now)) = (pair[0], pair[1]);
            let woke = flags == SYRUP_THREAD_WAKEUP; // after a page fault
            assert!(woke || flags == SYRUP_THREAD_PREEMPTED && now == before, "{places:?}");
        }
    }
}

/// The longest gap of a thread in a stretch of `time`.
fn gap_in(crew: &Crew, time: Duration) -> Duration {
    crew.wait_for_progress();
    crew.forget();
    std::thread::sleep(time);
    crew.workers.iter().map(|worker| worker.gap()).max().unwrap()
}

#[test]
fn a_thread_that_starves_in_the_queue_of_a_core_is_run_at_the_policys_deadline() {
    let Some(fixture) = fixture() else { return };
    let (app, other) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    // The same core, and rank decides for ever.
    script.place(0, at(0).rank(1));
    script.place(1, at(0).rank(2));
    let attributes = syrup_thread_policy { rescue_ms: 50, ..cores() };
    ScxSyrup.deploy(&app, &script.policy(attributes), &on_cpus(&[CORE])).unwrap();
    ScxSyrup.deploy(&other, &script.policy(queues(1)), &on_cpus(&[OTHER_CORE])).unwrap();
    let (favoured, starved) = (Crew::spinning(1), Crew::spinning(1));
    register(&app, &favoured, 0);
    register(&app, &starved, 1);
    let gap = gap_in(&starved, Duration::from_millis(500));
    println!("with a deadline of 50 ms: {gap:?}");
    assert!((Duration::from_millis(45)..Duration::from_millis(70)).contains(&gap), "{gap:?}");
    let rescued = |app| ScxSyrup.read(app).unwrap().unwrap().count(abi::SYRUP_RESCUED);
    assert!(rescued(&app) >= 8, "{}", rescued(&app));
    assert_eq!(rescued(&other), 0);
    drop(favoured);
}

#[test]
fn an_app_with_more_starved_threads_than_can_be_rescued_takes_no_rescue_from_another() {
    let Some(fixture) = fixture() else { return };
    // In the order of their slots.
    let (many, few) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    // What it has no place for is in the last queue.
    for app in [&many, &few] {
        ScxSyrup.deploy(app, &script.policy(preempting(2)), &on_cpus(&CORES)).unwrap();
    }
    let favoured = [Crew::spinning(2), Crew::spinning(2)];
    register(&many, &favoured[0], 0);
    register(&few, &favoured[1], 2);
    // Two cores rescue some 50 within a deadline, and a near look reaches 64 on each. Of the few
    // one is tried at the end of each slice, and remembered for that; nobody remembers the others.
    let starved = [Crew::spinning(400), Crew::spinning(3)];
    register(&many, &starved[0], 100);
    register(&few, &starved[1], 300);
    let rescued = |app| ScxSyrup.read(app).unwrap().unwrap().count(abi::SYRUP_RESCUED);
    for round in 0..3 {
        let before = [rescued(&many), rescued(&few)];
        let gap = gap_in(&starved[1], Duration::from_millis(1500));
        let rescues = [rescued(&many) - before[0], rescued(&few) - before[1]];
        println!("round {round}: gap {gap:?}, rescues {rescues:?}");
        // Two deadlines: with so many overdue the timer's own look takes the time of a
        // rescue now and then, where a core is emulated. By slots it is two seconds.
        assert!(gap < Duration::from_millis(450), "{gap:?}");
        // There was no end of what else was to be done.
        assert!(rescues[0] > 120 && rescues[1] >= 6, "{rescues:?}");
    }
}

/// With deadlines as short as this one they took nearly half of the core.
#[test]
fn rescues_take_a_sixteenth_of_a_core_at_most() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let attributes = syrup_thread_policy { rescue_ms: 20, ..preempting(2) };
    let policy = Scripted::new().policy(attributes);
    ScxSyrup.deploy(&app, &policy, &on_cpus(&[CORE])).unwrap();
    let (favoured, starved) = (Crew::spinning(1), Crew::spinning(60));
    register(&app, &favoured, 0);
    register(&app, &starved, 100);
    starved.wait_for_progress();
    for round in 0..2 {
        let ran = seconds_run(&[&favoured, &starved], Duration::from_secs(2));
        let ran: Vec<f64> = ran.iter().map(|crew| crew.iter().sum()).collect();
        println!("round {round}: favoured, starved {ran:.3?}");
        assert!((0.05..0.15).contains(&ran[1]), "{ran:.3?}");
        assert!(ran[0] > 1.8, "{ran:.3?}");
    }
}

/// Half of the time that the kernel's watchdog gives them was not enough for as many.
#[test]
fn an_app_that_starves_a_thousand_threads_troubles_nobody() {
    let Some(fixture) = fixture() else { return };
    let apps = ["one", "two", "three"].map(|name| fixture.app(name));
    let script = Scripted::new();
    let deadline = |queues| syrup_thread_policy { rescue_ms: 20, ..preempting(queues) };
    for (app, core) in apps.iter().zip([CORE, CORE, OTHER_CORE]) {
        ScxSyrup.deploy(app, &script.policy(deadline(2)), &on_cpus(&[core])).unwrap();
    }
    let hogs = [Crew::spinning(1), Crew::spinning(1), Crew::spinning(1)];
    for (index, (app, hog)) in apps.iter().zip(&hogs).enumerate() {
        register(app, hog, index as u32);
    }
    let starved = Crew::of(1000, |worker, stop| {
        std::thread::park();
        while !stop.load(SeqCst) {
            worker.turn();
        }
    });
    register(&apps[0], &starved, 100);
    starved.unpark();
    let [favoured, beside, elsewhere] = &hogs;
    let turns: Vec<u64> = starved.workers.iter().map(|worker| worker.turns()).collect();
    // Longer than the watchdog waits.
    let ran = seconds_run(&[favoured, beside, elsewhere], Duration::from_secs(11));
    let ran: Vec<f64> = ran.into_iter().flatten().collect();
    let waited = starved.workers.iter().zip(&turns);
    let waited = waited.filter(|(worker, turns)| worker.turns() == **turns).count();
    let seen = ScxSyrup.read(&apps[0]).unwrap().unwrap();
    println!(
        "favoured, beside, elsewhere {ran:.3?}; {waited} of 1000 have not run, {} rescues, {:?}",
        seen.count(abi::SYRUP_RESCUED),
        seen.health
    );
    assert!(!matches!(seen.health, Health::Ejected(_)), "{:?}", seen.health);
    assert_eq!(waited, 0);
    assert!(ran[1] > 5.2 && ran[2] > 10.5, "{ran:.3?}");
    assert!(ran[0] > 1.5, "{ran:.3?}");
}

/// As a fork bomb does it: one thread is registered, and its children come along.
#[test]
fn an_app_of_next_to_no_share_with_thousands_of_threads_on_a_core_ends_nobody() {
    const MANY: usize = 3000;
    let Some(fixture) = fixture() else { return };
    let apps = ["one", "two"].map(|name| fixture.app(name));
    let script = Scripted::new();
    for (app, weight) in apps.iter().zip([1, 10_000]) {
        let target = Target { weight: Some(weight), ..on_cpus(&[CORE]) };
        ScxSyrup.deploy(app, &script.policy(queues(1)), &target).unwrap();
    }
    // All read from a pipe until it ends, and so are runnable at once.
    let (end, ended) = std::io::pipe().unwrap();
    let (ran, there) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let bomb = {
        let (ran, there) = (ran.clone(), there.clone());
        Crew::of(1, move |_, stop| {
            std::thread::park();
            let burn = || {
                there.fetch_add(1, SeqCst);
                let _ = (&end).read(&mut [0]);
                ran.fetch_add(1, SeqCst);
                while !stop.load(SeqCst) {
                    std::hint::spin_loop();
                }
            };
            std::thread::scope(|scope| {
                for _ in 0..MANY {
                    let small = std::thread::Builder::new().stack_size(64 << 10);
                    small.spawn_scoped(scope, burn).unwrap();
                }
            });
        })
    };
    register(&apps[0], &bomb, 1);
    bomb.unpark();
    eventually("the threads", || (there.load(SeqCst) == MANY).then_some(()));
    let beside = Crew::spinning(1);
    register(&apps[1], &beside, 0);
    beside.wait_for_progress();
    drop(ended);
    // The watchdog looks every five seconds for those that have waited for ten.
    let ran_beside = seconds_run(&[&beside], Duration::from_secs(16))[0][0];
    let seen = ScxSyrup.read(&apps[0]).unwrap().unwrap();
    println!(
        "beside it {ran_beside:.3} of 16 s; {} of {MANY} have run, {} rescues, {:?}",
        ran.load(SeqCst),
        seen.count(abi::SYRUP_RESCUED),
        seen.health
    );
    // A sixteenth is the rescue's; what is more is for those that have waited for 7 s, and for
    // switching, which is emulated. A daemon would have taken them out by then.
    assert!(ran_beside > 13.0, "{ran_beside}");
    assert!(matches!(seen.health, Health::Ejected(_)), "{:?}", seen.health);
    assert_eq!(ran.load(SeqCst), MANY);
    assert_eq!(sysfs("state"), "enabled");
    bomb.stop();
}

#[test]
fn a_thread_of_nobody_whose_cores_change_all_the_time_has_its_turn() {
    let Some(fixture) = fixture() else { return };
    ScxSyrup
        .deploy(&fixture.app("one"), &Scripted::new().policy(queues(1)), &on_cpus(&[CORE]))
        .unwrap();
    // Each change has the kernel queue it anew.
    let hogs = CORES.map(|core| {
        let hogs = Crew::spinning(4);
        hogs.become_ext();
        hogs.pin_to(core as usize);
        hogs
    });
    let moved = Crew::spinning(1);
    moved.become_ext();
    hogs.iter().for_each(Crew::wait_for_progress);
    let before = moved.cpu_time();
    let start = std::time::Instant::now();
    let cores = CORES.map(|core| core as usize);
    while start.elapsed() < Duration::from_secs(2) {
        for allowed in [&cores[..1], &cores[..]] {
            allow(moved.tids()[0], allowed.iter().copied());
            std::thread::sleep(Duration::from_millis(5)); // how often it is changed
        }
    }
    let ran = moved.cpu_time() - before;
    println!("of 2 s of a core with four others it ran {ran:?}");
    assert!(ran > Duration::from_millis(200), "{ran:?}");
}

#[test]
fn threads_of_nobody_do_not_compete_as_an_app() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &Scripted::new().policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    let crew = Crew::spinning(1);
    register(&app, &crew, 0);
    // As any user may.
    let nobodys = Crew::spinning(120);
    nobodys.become_ext();
    nobodys.pin_to(CORE as usize);
    nobodys.wait_for_progress();
    let mut shares = Vec::new();
    for round in 0..3 {
        let before = [crew.active(), nobodys.cpu_time()];
        std::thread::sleep(Duration::from_secs(2)); // the time that is measured
        let ran = [crew.active() - before[0], nobodys.cpu_time() - before[1]];
        println!("round {round}: of 2 s it ran {:?}, 120 threads of nobody {:?}", ran[0], ran[1]);
        shares.push(ran);
    }
    // A hundredth for all of them, and a sixteenth for the rescue; and the timer's looks, which
    // in an emulator take as much.
    assert!(shares.iter().all(|ran| ran[0] > Duration::from_millis(1700)), "{shares:?}");
    assert!(shares.iter().all(|ran| ran[1] < Duration::from_millis(160)), "{shares:?}");
}

#[test]
fn a_thread_that_was_pinned_outside_its_apps_cores_is_there_a_thread_of_nobody() {
    let Some(fixture) = fixture() else { return };
    let (app, other) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    (0..2).for_each(|index| script.place(index, at(0).slice_us(4000)));
    ScxSyrup.deploy(&app, &script.policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    ScxSyrup.deploy(&other, &script.policy(queues(1)), &on_cpus(&[OTHER_CORE])).unwrap();
    let (crew, theirs) = (Crew::spinning(1), Crew::spinning(1));
    register(&app, &crew, 0);
    register(&other, &theirs, 1);
    crew.wait_to_be_on(1 << CORE);
    // Time that the apps have had, and threads of nobody have not.
    std::thread::sleep(Duration::from_millis(1500));
    crew.pin_to(OTHER_CORE as usize);
    crew.wait_to_be_on(1 << OTHER_CORE);
    let before = [crew.cpu_time(), theirs.cpu_time()];
    std::thread::sleep(Duration::from_secs(4)); // the time that is measured
    let ran = [crew.cpu_time() - before[0], theirs.cpu_time() - before[1]];
    println!("outside its app's cores it ran {:?}, whose core it is {:?}", ran[0], ran[1]);
    // A hundredth, two slices of 20 ms at most, and what the rescue gives it.
    let little = Duration::from_millis(5)..Duration::from_millis(120);
    assert!(little.contains(&ran[0]), "{ran:?}");
    assert!(ran[1] > Duration::from_millis(3800), "{ran:?}");
    assert_eq!(crew.cpus(), 1 << OTHER_CORE);
    drop(theirs);
    let gap = gap_in(&crew, Duration::from_millis(100));
    assert!(gap < Duration::from_millis(10), "alone there it waits {gap:?}");
    // Back, it is an ordinary thread of the app again.
    crew.pin_to(CORE as usize);
    crew.wait_to_be_on(1 << CORE);
    let gap = gap_in(&crew, Duration::from_millis(100));
    assert!(gap < Duration::from_millis(10), "{gap:?}");
}
