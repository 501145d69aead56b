//! How long a thread that woke waits for a core.

use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libbpf_rs::libbpf_sys;
use syrup_hook::{App, Deploy as _, Linked};
use syrup_scx::ScxSyrup;
use syrup_sdk::abi::{SYRUP_THREAD_PREEMPTED, syrup_thread_policy};

use crate::support::fixture::{Fixture, on_cpus, register};
use crate::support::policy::{Scripted, TestMap, at, cores, preempting, queues, with_maps};
use crate::support::workers::{Crew, allow, allow_all, eventually, now_ns};
use crate::{AT_ONCE, CORE, CORES, OTHER_CORE, fixture};

/// A thread that the test wakes, and that notes when it runs.
struct Sleeper {
    crew: Crew,
    /// Where it ran when it was woken last, and when.
    core: Arc<AtomicU32>,
    ran_ns: Arc<AtomicU64>,
    start: Instant,
}

impl Sleeper {
    fn new(app: &App, index: u32) -> Self {
        let (start, ran_ns) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let core = Arc::new(AtomicU32::new(u32::MAX));
        let (shared, at) = (ran_ns.clone(), core.clone());
        let crew = Crew::of(1, move |worker, stop| {
            while !stop.load(SeqCst) {
                std::thread::park();
                // SAFETY: a plain system call.
                at.store(unsafe { libc::sched_getcpu() } as u32, SeqCst);
                shared.store(start.elapsed().as_nanos() as u64, SeqCst);
                worker.turn();
            }
        });
        register(app, &crew, index);
        Self { crew, core, ran_ns, start }
    }

    /// From the call that wakes it until it runs.
    fn latency(&self) -> Duration {
        self.crew.wait_to_sleep();
        let turns = self.crew.workers[0].turns();
        let called = self.start.elapsed();
        self.crew.unpark();
        eventually("the sleeper to run", || (self.crew.workers[0].turns() > turns).then_some(()));
        Duration::from_nanos(self.ran_ns.load(SeqCst)).saturating_sub(called)
    }

    fn latencies(&self, count: usize) -> Vec<Duration> {
        (0..count).map(|_| self.latency()).collect()
    }
}

/// Latencies of thread 1 while thread 0 has the core.
fn beside_a_hog(fixture: &Fixture, policy: &Linked, count: usize) -> Vec<Duration> {
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, policy, &on_cpus(&[CORE])).unwrap();
    let hog = Crew::spinning(1);
    register(&app, &hog, 0);
    hog.wait_to_be_on(1 << CORE);
    let latencies = Sleeper::new(&app, 1).latencies(count);
    drop(hog);
    ScxSyrup.remove(&app).unwrap();
    latencies
}

#[test]
fn a_thread_that_joins_its_app_outside_its_cores_comes_at_once() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &Scripted::new().policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    for _ in 0..3 {
        let crew = Crew::spinning(1);
        crew.pin_to(OTHER_CORE as usize);
        crew.wait_to_be_on(1 << OTHER_CORE);
        crew.pin_to_all();
        crew.forget();
        register(&app, &crew, 0);
        let registered = Instant::now();
        eventually("the thread to come", || (crew.cpus() & 1 << CORE != 0).then_some(()));
        let took = registered.elapsed();
        println!("it came after {took:?}");
        assert!(took < Duration::from_millis(20), "{took:?}");
    }
}

#[test]
fn a_wake_up_in_queue_0_preempts_a_thread_of_queue_1() {
    let Some(fixture) = fixture() else { return };
    let script = Scripted::new();
    script.place(0, at(1).slice_us(100_000));
    let preempting = beside_a_hog(&fixture, &script.policy(preempting(2)), 12);
    let waiting = beside_a_hog(&fixture, &script.policy(queues(2)), 6);
    println!("with preemption {preempting:?}, without {waiting:?}");
    assert!(preempting.iter().all(|&l| l < AT_ONCE), "{preempting:?}");
    // Until the hog's 100 ms are over, from a moment somewhere in them.
    assert!(waiting.iter().all(|&l| l < Duration::from_millis(106)), "{waiting:?}");
    assert!(waiting.iter().any(|&l| l > Duration::from_millis(30)), "{waiting:?}");
}

#[test]
fn a_wake_up_of_an_app_that_is_owed_the_core_does_not_wait_for_a_slice_of_another() {
    let Some(fixture) = fixture() else { return };
    let batch = fixture.app("two");
    let script = Scripted::new();
    script.place(0, at(0).slice_us(100_000));
    ScxSyrup.deploy(&batch, &script.policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    let hog = Crew::spinning(1);
    register(&batch, &hog, 0);
    // Its threads wait in a queue, or for the core that their policy chose.
    for attributes in [queues(1), cores()] {
        let server = fixture.app("one");
        ScxSyrup.deploy(&server, &script.policy(attributes), &on_cpus(&[CORE])).unwrap();
        hog.wait_to_be_on(1 << CORE);
        let latencies = Sleeper::new(&server, 1).latencies(20);
        println!("beside slices of 100 ms of another app: {latencies:?}");
        // Its own work is next to nothing, so it is owed half the core; the hog may keep what
        // it has had for less than a millisecond.
        assert!(latencies.iter().all(|&l| l < Duration::from_millis(2)), "{latencies:?}");
        ScxSyrup.remove(&server).unwrap();
    }
    drop(hog);
}

#[test]
fn get_priority_runs_a_get_at_once_and_a_scan_when_no_get_wants_the_core() {
    let Some(fixture) = fixture() else { return };
    let (get, scan) = (1, 2);
    let types = TestMap::new("request_type", 65536);
    let policy = with_maps("get-priority", &[("request_type", &types)]);
    types.set(0, scan);
    types.set(1, get);
    let gets = beside_a_hog(&fixture, &policy, 12);
    println!("a GET beside a SCAN waits {gets:?}");
    assert!(gets.iter().all(|&l| l < AT_ONCE), "{gets:?}");
    // The application's next request on that thread is a SCAN: the same thread, the other way.
    types.set(0, get);
    types.set(1, scan);
    let scans = beside_a_hog(&fixture, &policy, 3);
    println!("a SCAN beside a GET waits {scans:?}");
    let rescued = Duration::from_millis(190)..Duration::from_millis(250);
    assert!(scans.iter().all(|l| rescued.contains(l)), "{scans:?}");
}

/// Has the kernel count the runs of BPF programs, until that is dropped.
fn count_runs() -> OwnedFd {
    // SAFETY: a plain call.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    assert!(fd >= 0, "{}", std::io::Error::from_raw_os_error(-fd));
    // SAFETY: the kernel just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// How often a core has looked for a thread to run, since runs are counted.
fn dispatches() -> u64 {
    let programs = libbpf_rs::query::ProgInfoIter::default();
    programs
        .filter(|program| program.name == *"syrup_dispatch")
        .map(|program| program.run_cnt)
        .sum()
}

#[test]
fn an_arrival_leaves_a_thread_of_its_own_queue_alone() {
    const ARRIVALS: u64 = 48;
    let Some(fixture) = fixture() else { return };
    let _stats = count_runs();
    let beside_a_hog = |policy: fn(u32) -> _| {
        let script = Scripted::new();
        (0..2).for_each(|index| script.place(index, at(1).slice_us(10_000)));
        let before = dispatches();
        let waiting = beside_a_hog(&fixture, &script.policy(policy(3)), ARRIVALS as usize);
        let looked = dispatches() - before;
        let preempted = script.told_since(0).iter().fold(0, |count, told| {
            count + u32::from((told.thread.index, told.thread.flags) == (0, SYRUP_THREAD_PREEMPTED))
        });
        println!("{preempted} preemptions of the hog, {looked} dispatches: {waiting:?}");
        assert!(waiting.iter().any(|&l| l > Duration::from_millis(5)), "{waiting:?}");
        // The kernel's own threads now and then.
        assert!(preempted <= ARRIVALS as u32 / 2, "{preempted} in {ARRIVALS} arrivals");
        looked
    };
    let (asked_to_preempt, never) = (beside_a_hog(preempting), beside_a_hog(queues));
    // Nor is the core called for nothing.
    assert!(asked_to_preempt < never + ARRIVALS / 2, "{asked_to_preempt} against {never}");
    // It looks when its thread sleeps, wakes or comes to the end of a slice: 240 were seen.
    assert!(never < 6 * ARRIVALS, "{never}");
}

/// How late a thread woke, and on which core.
pub type Woken = Arc<Mutex<Vec<(Duration, i32)>>>;

/// A thread that sleeps, wakes by a timer of the core where it went to sleep, and
/// notes how late that was and where it runs.
pub fn timed(count: usize, nap: Duration, on: Option<usize>) -> (Crew, Woken) {
    let woken = Arc::new(Mutex::new(Vec::new()));
    let noted = woken.clone();
    let crew = Crew::of(count, move |worker, stop| {
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        while !stop.load(SeqCst) {
            if let Some(core) = on {
                allow(0, [core]);
                allow_all(0);
            }
            let called = Instant::now();
            std::thread::sleep(nap);
            let late = called.elapsed().saturating_sub(nap);
            // SAFETY: no arguments, no memory.
            noted.lock().unwrap().push((late, unsafe { libc::sched_getcpu() }));
            worker.turn();
        }
    });
    (crew, woken)
}

/// What `timed` threads noted in `count` naps from now on.
pub fn eventually_woken(woken: &Mutex<Vec<(Duration, i32)>>, count: usize) -> Vec<(Duration, i32)> {
    let from = woken.lock().unwrap().len() + 1;
    eventually("the naps", || {
        let woken = woken.lock().unwrap();
        (woken.len() >= from + count).then(|| woken[from..].to_vec())
    })
}

#[test]
fn a_thread_that_wakes_on_a_busy_core_runs_on_an_idle_one_at_once() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    for cpus in [&CORES[..], &[]] {
        ScxSyrup.deploy(&app, &script.policy(queues(1)), &on_cpus(cpus)).unwrap();
        let hog = Crew::spinning(1);
        hog.pin_to(CORE as usize);
        register(&app, &hog, 0);
        let (sleeper, woken) = timed(1, Duration::from_millis(7), Some(CORE as usize));
        register(&app, &sleeper, 1);
        let registered = eventually_woken(&woken, 6);
        ScxSyrup.remove(&app).unwrap();
        println!("on {cpus:?}: {registered:?}");
        for (late, cpu) in registered {
            assert!(late < AT_ONCE, "{late:?} late");
            assert_ne!(cpu, CORE as i32);
        }
        drop((sleeper, hog));
    }
    // So do threads that nobody registered.
    ScxSyrup.deploy(&app, &script.policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    let hog = Crew::spinning(1);
    register(&app, &hog, 0);
    hog.wait_to_be_on(1 << CORE);
    let (stranger, woken) = timed(1, Duration::from_millis(7), Some(CORE as usize));
    stranger.become_ext();
    let nobodys = eventually_woken(&woken, 6);
    println!("of nobody: {nobodys:?}");
    assert!(nobodys.iter().all(|(late, _)| *late < AT_ONCE), "{nobodys:?}");
    stranger.become_other();
}

#[test]
fn a_core_that_the_policy_chose_comes_at_once() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    script.place(0, at(1));
    ScxSyrup.deploy(&app, &script.policy(cores()), &on_cpus(&CORES)).unwrap();
    let (sleeper, woken) = timed(1, Duration::from_millis(7), Some(CORE as usize));
    register(&app, &sleeper, 0);
    let woken = eventually_woken(&woken, 8);
    println!("{woken:?}");
    for (late, cpu) in woken {
        assert!(late < AT_ONCE, "{late:?} late");
        assert_eq!(cpu, OTHER_CORE as i32);
    }
}

#[test]
fn a_core_that_an_ordinary_thread_keeps_comes_when_the_deadline_server_makes_it() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    script.place(0, at(1));
    let attributes = syrup_thread_policy { rescue_ms: 2000, ..cores() };
    ScxSyrup.deploy(&app, &script.policy(attributes), &on_cpus(&CORES)).unwrap();
    let sleeper = Sleeper::new(&app, 0);
    let hog = Crew::spinning(1);
    hog.pin_to(OTHER_CORE as usize);
    hog.wait_to_be_on(1 << OTHER_CORE);
    // It sleeps on the one core and is wanted on the other, which never comes by itself:
    // within the server's period of a second, before the rescue looks.
    for _ in 0..2 {
        sleeper.crew.pin_to(CORE as usize);
        sleeper.latency();
        sleeper.crew.pin_to_all();
        let latency = sleeper.latency();
        let core = sleeper.core.load(SeqCst);
        println!("it came to core {core} after {latency:?}");
        assert_eq!(core, OTHER_CORE);
        assert!(latency < Duration::from_millis(1500), "{latency:?}");
    }
}

#[test]
fn the_thread_of_the_last_queue_is_the_one_that_is_preempted() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (1..3).for_each(|index| script.place(index, at(index as i32).slice_us(100_000)));
    ScxSyrup.deploy(&app, &script.policy(preempting(3)), &on_cpus(&CORES)).unwrap();
    let hogs = [Crew::spinning(1), Crew::spinning(1)];
    for (index, (core, hog)) in CORES.into_iter().zip(&hogs).enumerate() {
        hog.pin_to(core as usize);
        register(&app, hog, index as u32 + 1);
    }
    let (sleeper, woken) = timed(1, Duration::from_millis(7), None);
    register(&app, &sleeper, 0);
    sleeper.workers[0].wait_for_turn();
    for (first, second) in [(1, 2), (2, 1)] {
        script.place(1, at(first).slice_us(100_000));
        script.place(2, at(second).slice_us(100_000));
        // Slices that were granted before end first.
        std::thread::sleep(Duration::from_millis(210));
        let (calls, naps) = (script.calls(), woken.lock().unwrap().len());
        std::thread::sleep(Duration::from_millis(200));
        let told = script.told_since(calls);
        let woken = woken.lock().unwrap()[naps..].to_vec();
        let preempted = |index: u32| {
            let its = told.iter().filter(|told| told.thread.index == index);
            its.filter(|told| told.thread.flags == SYRUP_THREAD_PREEMPTED).count()
        };
        let in_last = if first == 2 { 1 } else { 2 };
        println!("queues {first} and {second}: {} and {}; {woken:?}", preempted(1), preempted(2));
        assert!(woken.len() >= 15 && preempted(in_last) >= 15);
        // The kernel's own threads now and then.
        assert!(preempted(3 - in_last) <= 4, "{} preemptions", preempted(3 - in_last));
        assert!(woken.iter().all(|(late, _)| *late < AT_ONCE), "{woken:?}");
    }
}

#[test]
fn an_arrival_preempts_only_where_it_may_run_and_only_if_it_must() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    script.place(1, at(1).slice_us(100_000));
    script.place(2, at(2).slice_us(100_000));
    let naps = |pinned: Option<usize>| {
        let (sleeper, woken) = timed(1, Duration::from_millis(7), None);
        if let Some(core) = pinned {
            sleeper.pin_to(core);
        }
        register(&app, &sleeper, 0);
        let calls = script.calls();
        let woken = eventually_woken(&woken, 12);
        let told = script.told_since(calls);
        let preempted = |index: u32| {
            let its = told.iter().filter(|told| told.thread.index == index);
            its.filter(|told| told.thread.flags == SYRUP_THREAD_PREEMPTED).count()
        };
        println!("pinned to {pinned:?}: {woken:?}");
        assert!(woken.iter().all(|(late, _)| *late < AT_ONCE), "{woken:?}");
        (preempted(1), preempted(2))
    };
    // The only core of the app is busy; the idle one is none of its business.
    ScxSyrup.deploy(&app, &script.policy(preempting(3)), &on_cpus(&[CORE])).unwrap();
    let hog = Crew::spinning(1);
    hog.pin_to(CORE as usize);
    register(&app, &hog, 1);
    assert!(naps(None).0 >= 10);
    ScxSyrup.remove(&app).unwrap();

    // One that idles is taken; one that is pinned to the busy core cannot use it.
    ScxSyrup.deploy(&app, &script.policy(preempting(3)), &on_cpus(&CORES)).unwrap();
    register(&app, &hog, 1);
    let preempted = naps(None).0;
    assert!(preempted <= 3, "{preempted} preemptions beside an idle core");
    assert!(naps(Some(CORE as usize)).0 >= 10);

    // A later queue on the other core is no reason to leave this one alone.
    let other = Crew::spinning(1);
    other.pin_to(OTHER_CORE as usize);
    register(&app, &other, 2);
    other.wait_to_be_on(1 << OTHER_CORE);
    assert!(naps(Some(CORE as usize)).0 >= 10);
}

#[test]
fn two_threads_that_wake_together_preempt_two_cores() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let script = Scripted::new();
    (0..2).for_each(|index| script.place(index, at(1).slice_us(100_000)));
    ScxSyrup.deploy(&app, &script.policy(preempting(2)), &on_cpus(&CORES)).unwrap();
    let hogs = [Crew::spinning(1), Crew::spinning(1)];
    for (index, (core, hog)) in CORES.into_iter().zip(&hogs).enumerate() {
        hog.pin_to(core as usize);
        register(&app, hog, index as u32);
    }
    let (target_ns, late) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (until, noted) = (target_ns.clone(), late.clone());
    let woken = Crew::of(2, move |worker, stop| {
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        while !stop.load(SeqCst) {
            std::thread::park();
            worker.turn();
            let until_ns = until.load(SeqCst);
            sleep_until(until_ns);
            let began_ns = now_ns();
            noted.lock().unwrap().push(Duration::from_nanos(began_ns - until_ns));
            while now_ns() < began_ns + 15_000_000 {
                std::hint::spin_loop();
            }
        }
    });
    register(&app, &woken, 2);
    for _ in 0..5 {
        woken.wait_to_sleep();
        // Both go to sleep on one core, so that one interrupt wakes both, and may then
        // run anywhere.
        woken.pin_to(OTHER_CORE as usize);
        target_ns.store(now_ns() + 60_000_000, SeqCst);
        let turns: Vec<u64> = woken.workers.iter().map(|w| w.turns()).collect();
        woken.unpark();
        eventually("the threads to come", || {
            woken.workers.iter().zip(&turns).all(|(w, &n)| w.turns() > n).then_some(())
        });
        woken.wait_to_sleep();
        woken.pin_to_all();
        assert!(now_ns() + 5_000_000 < target_ns.load(SeqCst), "too late to measure");
        std::thread::sleep(Duration::from_millis(100)); // until both have woken
    }
    let late = late.lock().unwrap().clone();
    println!("{late:?} late");
    assert_eq!(late.len(), 10);
    assert!(late.iter().all(|&late| late < AT_ONCE), "{late:?}");
}

fn sleep_until(monotonic_ns: u64) {
    let until = libc::timespec {
        tv_sec: (monotonic_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (monotonic_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: `until` lives for the call, and nothing is written.
    unsafe {
        libc::clock_nanosleep(
            libc::CLOCK_MONOTONIC,
            libc::TIMER_ABSTIME,
            &raw const until,
            std::ptr::null_mut(),
        )
    };
}

#[test]
fn a_thread_whose_core_is_taken_goes_on_on_an_idle_one() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &Scripted::new().policy(queues(1)), &on_cpus(&CORES)).unwrap();
    let thief = Crew::of(1, |worker, _| {
        std::thread::park();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(120) {
            std::hint::spin_loop();
        }
        worker.turn();
    });
    thief.wait_to_sleep();
    thief.pin_to(CORE as usize);
    thief.become_fifo();
    let hog = Crew::spinning(1);
    hog.pin_to(CORE as usize);
    register(&app, &hog, 0);
    hog.wait_to_be_on(1 << CORE);
    hog.pin_to_all();
    hog.forget();
    hog.workers[0].wait_for_turn();
    assert_eq!(hog.cpus(), 1 << CORE, "it has no reason to leave its core");
    thief.unpark();
    thief.wait_for_turns();
    let gap = hog.workers[0].gap();
    println!("a real-time thread took its core for 120 ms: {gap:?}");
    assert!(gap < Duration::from_millis(10), "{gap:?}");
}
