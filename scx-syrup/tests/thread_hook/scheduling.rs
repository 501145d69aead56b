//! What the root scheduler does with verdicts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use syrup_abi::abi;
use syrup_hook::{App, Executor, Hook as _, Target};
use syrup_scx::ScxSyrup;

use crate::fixture::{Fixture, TestMap, compile, link};
use crate::workers::{Crew, eventually, in_some_round, median};

/// The app says where each thread goes: queue in the upper half, rank in the lower.
fn placed(attributes: &str) -> Vec<u8> {
    compile(&format!(
        "#include <syrup/thread.h>\n\
         SYRUP_MAP(place, 64);\n\
         SYRUP_THREAD_POLICY(.queues = 2, {attributes});\n\
         __s32 schedule(struct syrup_thread *t)\n{{\n\
         \t__u64 *to = syrup_map_lookup(&place, t->index);\n\
         \tif (!to)\n\t\treturn SYRUP_PASS;\n\
         \tt->slice_us = 100000;\n\
         \tif (*to & 0xffffffff)\n\t\tt->rank = *to & 0xffffffff;\n\
         \treturn *to >> 32;\n}}\n"
    ))
}

const QUEUE_1: u64 = 1 << 32;

fn on_cpus(cpus: &[u32]) -> Target {
    Target { cpus: cpus.to_vec(), ..Default::default() }
}

/// The longest time for which one of the cores did not even run a real-time
/// thread: what a busy host takes from a virtual machine. Takes `time`.
fn noise(cpus: &[usize], time: Duration) -> Duration {
    let probes: Vec<Crew> = cpus
        .iter()
        .map(|&cpu| {
            let probe = Crew::of(1, |worker, stop| {
                while !stop.load(SeqCst) {
                    let before = Instant::now();
                    // Seldom: each look interrupts what is measured.
                    std::thread::sleep(Duration::from_millis(10));
                    worker.saw_gap(before.elapsed().saturating_sub(Duration::from_millis(10)));
                }
            });
            probe.pin_to(cpu);
            probe.become_fifo();
            probe.forget();
            probe
        })
        .collect();
    std::thread::sleep(time);
    probes.iter().map(|probe| probe.workers[0].gap()).max().unwrap_or_default()
}

fn register(app: &App, crew: &Crew, first_index: u32) {
    for (tid, index) in crew.tids().into_iter().zip(first_index..) {
        let given = ScxSyrup.register(app, Executor::Thread { tid }, Some(index)).unwrap();
        assert_eq!(given, index);
    }
}

/// How long a thread of queue 0 takes to run after it was woken, while a thread
/// of queue 1 with 100 ms slices has the only CPU.
fn wake_up_latency(fixture: &Fixture, preempt: bool) -> Duration {
    let app = fixture.app("one");
    let place = TestMap::new("place", 64);
    place.set(0, QUEUE_1);
    let policy = link("placed", &placed(&format!(".preempt = {preempt}")), &[("place", &place)]);
    ScxSyrup.deploy(&app, &policy, &on_cpus(&[1])).unwrap();
    let spinner = Crew::spinning(1);
    register(&app, &spinner, 0);
    let start = Instant::now();
    let woken_ns = Arc::new(AtomicU64::new(0));
    let shared = woken_ns.clone();
    let sleeper = Crew::of(1, move |worker, stop| {
        while !stop.load(SeqCst) {
            std::thread::park();
            shared.store(start.elapsed().as_nanos() as u64, SeqCst);
            worker.turn();
        }
    });
    register(&app, &sleeper, 1);
    let latencies = (0..15).map(|_| {
        eventually("the sleeper to sleep", || sleeper.sleeping().then_some(()));
        let turns = sleeper.workers[0].turns();
        let called = start.elapsed();
        sleeper.unpark();
        eventually("the sleeper to run", || (sleeper.workers[0].turns() > turns).then_some(()));
        Duration::from_nanos(woken_ns.load(SeqCst)).saturating_sub(called)
    });
    let latency = median(latencies.collect());
    drop((sleeper, spinner));
    ScxSyrup.remove(&app).unwrap();
    latency
}

#[test]
fn a_wake_up_in_queue_0_preempts_a_thread_of_queue_1() {
    let Some(fixture) = Fixture::new() else { return };
    let preempting = wake_up_latency(&fixture, true);
    let waiting = wake_up_latency(&fixture, false);
    println!("median latency: {preempting:?} with preemption, {waiting:?} without");
    assert!(preempting * 3 < waiting, "{preempting:?} and {waiting:?}");
    fixture.assert_clean();
}

#[test]
fn threads_of_a_queue_run_in_the_order_of_their_rank() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let place = TestMap::new("place", 64);
    let ranks = [60, 20, 50, 10, 40, 30];
    for (rank, index) in ranks.into_iter().zip(1..) {
        place.set(index, QUEUE_1 | rank);
    }
    let policy = link("placed", &placed(".rescue_ms = 2000"), &[("place", &place)]);
    ScxSyrup.deploy(&app, &policy, &on_cpus(&[1])).unwrap();

    let order: Arc<[AtomicUsize; 6]> = Arc::default();
    let next = Arc::new(AtomicUsize::new(0));
    let (ordered, counter) = (order.clone(), next.clone());
    let go = Arc::new(AtomicBool::new(false));
    let gate = go.clone();
    let waiters = Crew::of(6, move |worker, _| {
        while !gate.load(SeqCst) {
            std::thread::park();
        }
        ordered[counter.fetch_add(1, SeqCst)].store(worker.number(), SeqCst);
        worker.turn();
    });
    eventually("the threads to sleep", || waiters.sleeping().then_some(()));
    register(&app, &waiters, 1);
    // Queue 0 keeps the only CPU until all of them wait.
    let blocker = Crew::spinning(1);
    register(&app, &blocker, 0);
    eventually("the blocker to come to core 1", || {
        blocker.forget();
        blocker.wait_for_progress();
        (blocker.cpus() == 1 << 1).then_some(())
    });
    go.store(true, SeqCst);
    waiters.unpark();
    eventually("six threads to wait", || waiters.runnable().then_some(()));
    assert_eq!(next.load(SeqCst), 0, "a thread of queue 1 ran before queue 0 was empty");
    drop(blocker);
    waiters.wait_for_turns();
    let order: Vec<u64> = order.iter().map(|n| ranks[n.load(SeqCst)]).collect();
    assert_eq!(order, [10, 20, 30, 40, 50, 60]);
}

#[test]
fn a_thread_that_its_policy_starves_is_run_at_the_deadline() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let place = TestMap::new("place", 64);
    for index in 4..8 {
        place.set(index, QUEUE_1);
    }
    let policy = link("placed", &placed(".preempt = true"), &[("place", &place)]);
    ScxSyrup.deploy(&app, &policy, &on_cpus(&[1, 2])).unwrap();
    let favoured = Crew::spinning(4);
    register(&app, &favoured, 0);
    let starved = Crew::spinning(4);
    register(&app, &starved, 4);
    starved.wait_for_progress();
    in_some_round(|| {
        starved.forget();
        let before = (favoured.cpu_time(), starved.cpu_time());
        let slices = |crew: &Crew| crew.workers.iter().map(|w| w.nr_slices()).collect::<Vec<_>>();
        let slices_before = slices(&starved);
        let noise = noise(&[0, 1, 2, 3], Duration::from_secs(4));
        let (favoured_ran, starved_ran) =
            (favoured.cpu_time() - before.0, starved.cpu_time() - before.1);
        let gaps: Vec<Duration> = starved.workers.iter().map(|w| w.gap()).collect();
        let slices: Vec<u64> = slices(&starved)
            .iter()
            .zip(slices_before)
            .map(|(after, before)| after - before)
            .collect();
        let measured = format!(
            "gaps {gaps:?} and {slices:?} slices in 4 s, on cores that stood still for \
             {noise:?}; queue 0 ran {favoured_ran:?}, the starved {starved_ran:?}"
        );
        println!("{measured}");
        // A host that stops a virtual core for longer than a rescue lasts lets
        // whole rescues pass without an instruction. What the scheduler gave
        // still counts: a slice per deadline, and room for what the host took.
        let in_time = if noise < Duration::from_millis(5) {
            gaps.iter().all(|&gap| gap < Duration::from_millis(250))
        } else {
            slices.iter().all(|&nr| nr >= 10)
        };
        let starved = gaps.iter().all(|&gap| gap > Duration::from_millis(150));
        // Time in which the host had stopped the core is charged to who was on it.
        let cheap = starved_ran < favoured_ran / 20 || noise > Duration::from_millis(50);
        if in_time && starved && cheap { Ok(()) } else { Err(measured) }
    });
    let seen = ScxSyrup.read(&app).unwrap().unwrap();
    assert!(seen.counters.get(abi::SYRUP_RESCUED) >= 20, "{:?}", seen.counters);
}

#[test]
fn the_rescue_of_many_threads_stays_on_the_cores_of_their_app() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let place = TestMap::new("place", 64);
    for index in 2..26 {
        place.set(index, QUEUE_1);
    }
    let policy = link("placed", &placed(".preempt = true"), &[("place", &place)]);
    ScxSyrup.deploy(&app, &policy, &on_cpus(&[1, 2])).unwrap();
    let favoured = Crew::spinning(2);
    register(&app, &favoured, 0);
    let starved = Crew::spinning(24);
    register(&app, &starved, 2);
    let rescued_so_far = || ScxSyrup.read(&app).unwrap().unwrap().counters.get(abi::SYRUP_RESCUED);
    let rescue_more = |count: u64| {
        let goal = rescued_so_far() + count;
        eventually("the rescues", || (rescued_so_far() >= goal).then_some(()));
    };
    // Each has left the core on which it was when it registered.
    rescue_more(48);
    starved.forget();
    rescue_more(100);
    assert_eq!(starved.cpus(), 0b0110, "cores 1 and 2, as a mask");
    drop(favoured);
}

#[test]
fn a_thread_whose_cores_are_taken_for_good_is_rescued_on_another() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let place = TestMap::new("place", 64);
    let policy = link("placed", &placed(".rescue_ms = 20"), &[("place", &place)]);
    ScxSyrup.deploy(&app, &policy, &on_cpus(&[1])).unwrap();
    let crew = Crew::spinning(1);
    register(&app, &crew, 0);
    eventually("the thread to come to core 1", || {
        crew.forget();
        crew.wait_for_progress();
        (crew.cpus() == 1 << 1).then_some(())
    });
    let taker = Crew::spinning(1);
    taker.pin_to(1);
    taker.become_fifo();
    eventually("the thread to run elsewhere", || (crew.cpus() & !(1 << 1) != 0).then_some(()));
}

#[test]
fn apps_share_cores_by_weight() {
    let Some(fixture) = Fixture::new() else { return };
    let (light, heavy) = (fixture.app("one"), fixture.app("two"));
    for (app, weight) in [(&light, 100), (&heavy, 300)] {
        let target = Target { weight: Some(weight), ..on_cpus(&[1, 2]) };
        ScxSyrup.deploy(app, &fixture.builtin("fifo"), &target).unwrap();
    }
    // More threads must not mean more time.
    let (many, few) = (Crew::spinning(6), Crew::spinning(3));
    register(&light, &many, 0);
    register(&heavy, &few, 0);
    few.wait_for_progress();
    many.wait_for_progress();
    in_some_round(|| {
        let before = (many.cpu_time(), few.cpu_time());
        std::thread::sleep(Duration::from_secs(4)); // the time that is measured
        let (many, few) = (many.cpu_time() - before.0, few.cpu_time() - before.1);
        let ratio = few.as_secs_f64() / many.as_secs_f64();
        println!("weight 300 ran {few:?}, weight 100 {many:?}: {ratio:.2}");
        if (2.6..3.4).contains(&ratio) { Ok(()) } else { Err(format!("{ratio:.2}")) }
    });
}

#[test]
fn an_app_stays_on_its_cores_and_uses_all_of_them() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &fixture.builtin("fifo"), &on_cpus(&[2, 3])).unwrap();
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
    assert_eq!(ScxSyrup.read(&app).unwrap().unwrap().cpus, [2, 3]);
}

#[test]
fn executors_can_be_cores() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    let policy = compile(
        "#include <syrup/thread.h>\n\
         SYRUP_THREAD_POLICY(.executors = SYRUP_CORES);\n\
         __s32 schedule(struct syrup_thread *t)\n{\n\
         \treturn t->index % syrup_num_executors();\n}\n",
    );
    ScxSyrup.deploy(&app, &link("by-core", &policy, &[]), &on_cpus(&[1, 3])).unwrap();
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
    assert_eq!((seen.nr_executors, seen.verdicts.len()), (2, 2));
    assert!(seen.verdicts.iter().all(|&n| n > 0), "{:?}", seen.verdicts);
    assert_eq!(seen.counters.get(abi::SYRUP_ENFORCE_FAILED), 0);
    // A policy with queues takes over threads that wait for a core.
    ScxSyrup.replace(&app, &fixture.builtin("fifo")).unwrap();
    crew.wait_for_progress();
    assert_eq!(ScxSyrup.read(&app).unwrap().unwrap().nr_executors, 1);
}

#[test]
fn threads_that_nobody_registered_run_beside_an_app() {
    let Some(fixture) = Fixture::new() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &fixture.builtin("fifo"), &on_cpus(&[1])).unwrap();
    let (ours, nobodys) = (Crew::spinning(2), Crew::spinning(6));
    register(&app, &ours, 0);
    nobodys.become_ext();
    ours.wait_for_progress();
    nobodys.wait_for_progress();
    nobodys.become_other();
}
