//! What apps get of the cores by `bpf/fairness.h`, against what they should get: a
//! simulated machine, on which the decisions are those of the root scheduler's own code.

// Clippy knows tests by their attribute, and helpers have none.
#![allow(clippy::unwrap_used)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use syrup_scx::fairness::{Claim, shares};

const MS: u64 = 1_000_000;
/// What a thread runs before its app competes again, and when the kernel looks at it.
const SLICE: u64 = 20 * MS;
const TICK: u64 = 4 * MS;
/// By how much an app must be behind for its wake-up to end a slice.
const WORTH: u64 = MS;

/// `struct syrup_scx_standings`.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Standings {
    clock_ns: u64,
    slice_ns: u64,
    seen_ns: u64,
    seen_clock_ns: u64,
    level: u64,
    offset_ns: [u64; 64],
}

unsafe extern "C" {
    static syrup_standings_size: usize;
    safe fn syrup_fair_standing(
        cpu: &Standings,
        slot: u32,
        vtime_ns: u64,
        weight: u32,
        running: u32,
    ) -> u64;
    safe fn syrup_fair_stand(cpu: &mut Standings, slot: u32, vtime_ns: u64, standing: u64);
    safe fn syrup_fair_choose(cpu: &mut Standings, standing: u64, weight: u32);
    safe fn syrup_fair_is_better(there: &mut Standings, here: &mut Standings, now_ns: u64) -> i32;
}

fn before(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) as i64) < 0
}

/// An app whose threads all do the same.
#[derive(Debug, Clone)]
struct App {
    weight: u32,
    cores: u64,
    threads: usize,
    /// How long each runs, and sleeps then; never when it is 0.
    run_ns: u64,
    sleep_ns: u64,
    starts_ns: u64,
    /// What it does next comes so long after it has done this, rather than at its time.
    is_closed: bool,
}

impl App {
    fn hogs(weight: u32, cores: u64, threads: usize) -> Self {
        Self { weight, cores, threads, run_ns: 0, sleep_ns: 0, starts_ns: 0, is_closed: false }
    }

    fn napper(weight: u32, cores: u64, run_ms: u64, sleep_ms: u64) -> Self {
        let (run_ns, sleep_ns) = (run_ms * MS, sleep_ms * MS);
        Self { run_ns, sleep_ns, ..Self::hogs(weight, cores, 1) }
    }

    fn claim(&self) -> Claim {
        let each = match self.sleep_ns {
            0 => 1.0,
            _ => self.run_ns as f64 / (self.run_ns + self.sleep_ns) as f64,
        };
        let weight = self.weight.into();
        Claim { weight, cores: self.cores, most: each * self.threads as f64 }
    }

    fn may_use(&self, cpu: usize) -> bool {
        self.cores >> cpu & 1 == 1
    }
}

#[derive(Debug)]
struct Thread {
    app: usize,
    /// Until it sleeps.
    left_ns: u64,
    /// When what it does now came.
    came_ns: u64,
    /// Of its slice.
    used_ns: u64,
    last_cpu: usize,
}

#[derive(Debug, Default)]
struct Account {
    vtime_ns: u64,
    got_ns: u64,
    running: u32,
    waiting: VecDeque<usize>,
}

#[derive(Debug)]
struct Cpu {
    standings: Standings,
    thread: Option<usize>,
    since_ns: u64,
    /// Tells the end of a run from that of an earlier one.
    run: u64,
}

/// At a time, in order of their coming.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wakes { thread: usize },
    Ends { cpu: usize, run: u64 },
}

struct Machine<'a> {
    apps: &'a [App],
    now_ns: u64,
    accounts: Vec<Account>,
    threads: Vec<Thread>,
    cpus: Vec<Cpu>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    nr_events: u64,
    random: StdRng,
}

impl<'a> Machine<'a> {
    fn new(apps: &'a [App], nr_cpus: usize) -> Self {
        let standings = Standings {
            clock_ns: 0,
            slice_ns: 0,
            seen_ns: 0,
            seen_clock_ns: 0,
            level: 0,
            offset_ns: [0; 64],
        };
        let cpu = |_| Cpu { standings, thread: None, since_ns: 0, run: 0 };
        let mut machine = Self {
            apps,
            now_ns: 0,
            accounts: apps.iter().map(|_| Account::default()).collect(),
            threads: Vec::new(),
            cpus: (0..nr_cpus).map(cpu).collect(),
            events: BinaryHeap::new(),
            nr_events: 0,
            random: StdRng::seed_from_u64(nr_cpus as u64),
        };
        for (number, app) in apps.iter().enumerate() {
            for _ in 0..app.threads {
                let thread = machine.threads.len();
                machine.threads.push(Thread {
                    app: number,
                    left_ns: app.run_ns,
                    came_ns: app.starts_ns,
                    used_ns: 0,
                    last_cpu: app.cores.trailing_zeros() as usize,
                });
                machine.at(app.starts_ns, Event::Wakes { thread });
            }
        }
        machine
    }

    fn at(&mut self, ns: u64, event: Event) {
        self.nr_events += 1;
        self.events.push(Reverse((ns, self.nr_events, event)));
    }

    fn standing(&self, cpu: usize, app: usize) -> u64 {
        let Account { vtime_ns, running, .. } = self.accounts[app];
        let standings = &self.cpus[cpu].standings;
        syrup_fair_standing(standings, app as u32, vtime_ns, self.apps[app].weight, running)
    }

    fn charge(&mut self, cpu: usize) {
        let Some(thread) = self.cpus[cpu].thread else { return };
        let ran = self.now_ns - std::mem::replace(&mut self.cpus[cpu].since_ns, self.now_ns);
        let thread = &mut self.threads[thread];
        thread.used_ns += ran;
        thread.left_ns = thread.left_ns.saturating_sub(ran);
        let account = &mut self.accounts[thread.app];
        account.got_ns += ran;
        account.vtime_ns += ran * 100 / u64::from(self.apps[thread.app].weight);
    }

    fn start(&mut self, cpu: usize, number: usize) {
        let thread = &mut self.threads[number];
        let app = &self.apps[thread.app];
        thread.last_cpu = cpu;
        let slice = SLICE.saturating_sub(thread.used_ns).max(MS / 10);
        let mut until = (self.now_ns + slice).next_multiple_of(TICK);
        if app.sleep_ns > 0 {
            until = until.min(self.now_ns + thread.left_ns);
        }
        self.accounts[thread.app].running += 1;
        let (now, on) = (self.now_ns, &mut self.cpus[cpu]);
        (on.thread, on.since_ns, on.run) = (Some(number), now, on.run + 1);
        let run = on.run;
        self.at(until, Event::Ends { cpu, run });
    }

    fn stop(&mut self, cpu: usize) {
        self.charge(cpu);
        if let Some(thread) = self.cpus[cpu].thread.take() {
            self.accounts[self.threads[thread].app].running -= 1;
        }
    }

    fn idle_cpu(&self, app: usize) -> Option<usize> {
        let is_idle = |&cpu: &usize| self.cpus[cpu].thread.is_none() && self.apps[app].may_use(cpu);
        (0..self.cpus.len()).find(is_idle)
    }

    fn app_on(&self, cpu: usize) -> Option<usize> {
        self.cpus[cpu].thread.map(|thread| self.threads[thread].app)
    }

    /// Any other CPU that the app may use; the same when it is none.
    fn any_other(&mut self, app: usize, cpu: usize) -> usize {
        if self.cpus.len() == 1 {
            return cpu;
        }
        let away = self.random.random_range(1..self.cpus.len());
        let other = (cpu + away) % self.cpus.len();
        if self.apps[app].may_use(other) { other } else { cpu }
    }

    fn is_better(&mut self, there: usize, here: usize) -> bool {
        let Ok([there, here]) = self.cpus.get_disjoint_mut([there, here]) else { return false };
        syrup_fair_is_better(&mut there.standings, &mut here.standings, self.now_ns) != 0
    }

    fn is_owed(&mut self, app: usize, cpu: usize) -> bool {
        let Some(there) = self.app_on(cpu).filter(|&there| there != app) else { return false };
        self.charge(cpu);
        let worth = WORTH * 100 / u64::from(self.apps[app].weight);
        before(self.standing(cpu, app) + worth, self.standing(cpu, there))
    }

    fn wake(&mut self, number: usize) {
        let Thread { app, last_cpu, .. } = self.threads[number];
        self.accounts[app].waiting.push_back(number);
        self.call_cpu(app, last_cpu);
    }

    /// Has a CPU look that should come for a thread of the app that was queued from there.
    fn call_cpu(&mut self, app: usize, mut cpu: usize) {
        if let Some(cpu) = self.idle_cpu(app) {
            return self.choose(cpu);
        }
        let other = self.any_other(app, cpu);
        if other != cpu
            && self.app_on(other) != Some(app)
            && (self.app_on(cpu) == Some(app) || self.is_better(other, cpu))
        {
            cpu = other;
        }
        if self.is_owed(app, cpu) {
            self.choose(cpu);
        }
    }

    /// What a CPU does when it looks for something to run.
    fn choose(&mut self, cpu: usize) {
        self.charge(cpu);
        let mut prev = self.cpus[cpu].thread;
        if let Some(number) = prev {
            let thread = &mut self.threads[number];
            let app = &self.apps[thread.app];
            if app.sleep_ns > 0 && thread.left_ns == 0 {
                thread.came_ns += app.run_ns + app.sleep_ns;
                thread.left_ns = app.run_ns;
                if app.is_closed {
                    thread.came_ns = self.now_ns + app.sleep_ns;
                }
                let at = thread.came_ns;
                if at > self.now_ns {
                    thread.used_ns = 0;
                    self.at(at, Event::Wakes { thread: number });
                    self.stop(cpu);
                    prev = None;
                }
            }
        }
        let prev_app = prev.map(|thread| self.threads[thread].app);
        let waits =
            |&app: &usize| self.apps[app].may_use(cpu) && !self.accounts[app].waiting.is_empty();
        let candidates: Vec<usize> =
            (0..self.apps.len()).filter(|app| prev_app == Some(*app) || waits(app)).collect();
        for &app in &candidates {
            let (standing, vtime) = (self.standing(cpu, app), self.accounts[app].vtime_ns);
            syrup_fair_stand(&mut self.cpus[cpu].standings, app as u32, vtime, standing);
        }
        let clock = self.cpus[cpu].standings.clock_ns;
        let lowest = |among: &mut dyn Iterator<Item = usize>| {
            among.min_by_key(|&app| self.standing(cpu, app).wrapping_sub(clock) as i64)
        };
        let next = lowest(&mut candidates.iter().copied().filter(|&app| Some(app) != prev_app));
        // Who runs goes on when it is as low as any.
        let Some(mut app) = lowest(&mut prev_app.into_iter().chain(next)) else { return };
        let mut calls = None;
        if Some(app) == prev_app
            && let Some(next) = next
        {
            let other = self.any_other(app, cpu);
            if self.idle_cpu(app).is_some() {
                app = next;
            } else if other != cpu
                && self.app_on(other).is_some_and(|there| there != next)
                && self.is_better(other, cpu)
                && self.is_owed(app, other)
            {
                (app, calls) = (next, Some(other));
            }
        }
        let standing = self.standing(cpu, app);
        let weight = self.apps[app].weight;
        syrup_fair_choose(&mut self.cpus[cpu].standings, standing, weight);
        self.stop(cpu);
        if let Some(number) = prev {
            let thread = &mut self.threads[number];
            let (its, ended) = (thread.app, thread.used_ns >= SLICE);
            if ended {
                thread.used_ns = 0;
            }
            let waiting = &mut self.accounts[its].waiting;
            if ended { waiting.push_back(number) } else { waiting.push_front(number) }
        }
        let thread = self.accounts[app].waiting.pop_front().unwrap();
        self.start(cpu, thread);
        if let Some(other) = calls {
            self.choose(other);
        }
        if let Some(app) = prev_app
            && !self.accounts[app].waiting.is_empty()
        {
            self.call_cpu(app, cpu);
        }
    }

    fn run_until(&mut self, ns: u64) {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= ns) {
            let Reverse((at, _, event)) = self.events.pop().unwrap();
            self.now_ns = at;
            match event {
                Event::Wakes { thread } => self.wake(thread),
                Event::Ends { cpu, run } if self.cpus[cpu].run == run => self.choose(cpu),
                Event::Ends { .. } => {}
            }
        }
        self.now_ns = ns;
        (0..self.cpus.len()).for_each(|cpu| self.charge(cpu));
    }
}

/// Cores that each app gets, of what it should.
fn of_its_share(apps: &[App], nr_cpus: usize) -> Vec<(f64, f64)> {
    let claims: Vec<Claim> = apps.iter().map(App::claim).collect();
    let mut machine = Machine::new(apps, nr_cpus);
    let got = |machine: &Machine<'_>| -> Vec<u64> {
        machine.accounts.iter().map(|account| account.got_ns).collect()
    };
    let (settled, time) = (5_000 * MS, 60_000 * MS);
    machine.run_until(settled);
    let already = got(&machine);
    machine.run_until(settled + time);
    let got = got(&machine).into_iter().zip(already).map(|(got, already)| got - already);
    got.zip(shares(&claims)).map(|(got, share)| (got as f64 / time as f64, share)).collect()
}

#[test]
fn the_struct_is_the_roots() {
    // SAFETY: a constant.
    assert_eq!(size_of::<Standings>(), unsafe { syrup_standings_size });
}

#[test]
fn shares_are_those_of_max_min_fairness() {
    let claim = |weight: f64, cores, most| Claim { weight, cores, most };
    let cases = [
        // By weight; no more than its threads can use.
        (vec![claim(1.0, 3, 9.0), claim(3.0, 3, 9.0)], vec![0.5, 1.5]),
        (
            vec![claim(1.0, 3, 1.0), claim(2.0, 3, 1.0), claim(4.0, 3, 1.0)],
            vec![1.0 / 3.0, 2.0 / 3.0, 1.0],
        ),
        // Who has a core of its own leaves the other one alone, until it is taken.
        (vec![claim(1.0, 3, 9.0), claim(1.0, 1, 9.0)], vec![1.0, 1.0]),
        (vec![claim(1.0, 3, 9.0), claim(1.0, 1, 9.0), claim(1.0, 2, 9.0)], vec![2.0 / 3.0; 3]),
        (vec![claim(1.0, 3, 9.0), claim(1.0, 1, 0.25)], vec![1.75, 0.25]),
        // Nothing to do with each other.
        (vec![claim(1.0, 2, 2.0), claim(1.0, 1, 1.0), claim(1.0, 1, 0.5)], vec![1.0, 0.5, 0.5]),
        (vec![], vec![]),
    ];
    for (claims, expected) in cases {
        let got = shares(&claims);
        let is_close = got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(is_close && got.len() == expected.len(), "{claims:?}: {got:?}");
    }
}

/// One wake-up of an app on another core was enough to starve it for ever.
#[test]
fn an_app_that_naps_has_its_share_whatever_runs_elsewhere() {
    let apps = [App::hogs(100, 0b10, 2), App::hogs(100, 0b01, 1), App::napper(100, 0b01, 20, 20)];
    let got = of_its_share(&apps, 2);
    println!("{got:.3?}");
    assert!(got.iter().all(|(got, share)| *got >= 0.9 * share), "{got:?}");
}

/// What a lighter app had of the core while it slept is not forgiven at each nap.
#[test]
fn a_heavy_app_that_naps_has_its_share_beside_a_light_one() {
    for weight in [1000, 10_000] {
        let napper = App { sleep_ns: MS / 10, is_closed: true, ..App::napper(weight, 0b1, 45, 0) };
        let got = of_its_share(&[napper, App::hogs(100, 0b1, 1)], 1);
        println!("{weight}: {got:.3?}");
        assert!(got[0].0 > 0.9 * got[0].1, "{got:?}");
    }
}

/// One that had much more than others somewhere is not behind them for long when it has less.
#[test]
fn what_an_app_had_is_soon_forgotten() {
    // For 5 s it has two cores more than the one on which it competes.
    let mut late = App::hogs(10_000, 0b110, 9);
    late.starts_ns = 5_000 * MS;
    let apps = [App::hogs(100, 0b111, 9), App::hogs(100, 0b001, 1), late];
    let mut machine = Machine::new(&apps, 3);
    machine.run_until(5_000 * MS);
    let already = machine.accounts[0].got_ns;
    assert!(already > 9_000 * MS, "{already}");
    machine.run_until(7_000 * MS);
    let got = machine.accounts[0].got_ns - already;
    assert!((700 * MS..1_100 * MS).contains(&got), "{got} ns of 2 s");
}

#[test]
fn nearly_every_app_has_nine_tenths_of_its_share() {
    let mut least: Vec<(f64, u64, String)> = Vec::new();
    for seed in 0..300 {
        let random = &mut StdRng::seed_from_u64(seed);
        let nr_cpus = [2, 4][random.random_range(0..2)];
        let all = (1 << nr_cpus) - 1;
        let apps: Vec<App> = (0..random.random_range(1..=12))
            .map(|_| {
                let weight = [50, 100, 100, 100, 200, 400, 1000][random.random_range(0..7)];
                let cores = if random.random() { all } else { random.random_range(1..=all) };
                let mut app = match random.random_range(0..3) {
                    0 => App::napper(
                        weight,
                        cores,
                        random.random_range(1..=20),
                        random.random_range(1..=40),
                    ),
                    _ => App::hogs(weight, cores, [1, 2, 8, 50][random.random_range(0..4)]),
                };
                app.starts_ns = random.random_range(0..4_000) * MS;
                app
            })
            .collect();
        for ((got, share), app) in of_its_share(&apps, nr_cpus).into_iter().zip(&apps) {
            least.push((got / share, seed, format!("{got:.3} of {share:.3}: {app:?}")));
        }
    }
    least.sort_by(|a, b| a.0.total_cmp(&b.0));
    let below = least.iter().filter(|least| least.0 < 0.9).count();
    println!("{below} of {} have less than nine tenths", least.len());
    for (ratio, seed, app) in &least[..10] {
        println!("{ratio:.3} in case {seed}: {app}");
    }
    // Those that are left have to share cores to the last hundredth: what all may have together
    // is all there is, and no other division of it is as good.
    assert!(below * 300 <= least.len() && least[0].0 > 0.8);
}
