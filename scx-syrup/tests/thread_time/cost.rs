//! What a decision costs, beside the least that a sched_ext scheduler can be: whole operations,
//! their system calls included.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore as _, ObjectBuilder};
use syrup_hook::Deploy as _;
use syrup_scx::{ScxSyrup, Target};

use crate::support::fixture::{Fixture, register, sysfs};
use crate::support::policy::policy;
use crate::support::workers::{Crew, eventually};
use crate::{CORE, fixture};

/// Threads of a ring, each of which waits for the one before it.
struct Ring {
    crew: Crew,
    first: Mutex<PipeWriter>,
    last: Mutex<PipeReader>,
}

impl Ring {
    fn of(count: usize) -> Self {
        let (mut reader, first) = std::io::pipe().unwrap();
        let mut pipes = Vec::new();
        for _ in 0..count {
            let (next, writer) = std::io::pipe().unwrap();
            pipes.push(Mutex::new(Some((reader, writer))));
            reader = next;
        }
        let pipes = Arc::new(pipes);
        let crew = Crew::of(count, move |worker, _| {
            let (mut from, mut to) = pipes[worker.number()].lock().unwrap().take().unwrap();
            let mut byte = [0];
            while from.read(&mut byte).unwrap() == 1 {
                if to.write(&byte).is_err() {
                    return;
                }
            }
        });
        Self { crew, first: Mutex::new(first), last: Mutex::new(reader) }
    }

    /// So many rounds; how long one takes.
    fn round(&self, rounds: u32) -> Duration {
        let (mut first, mut last) = (self.first.lock().unwrap(), self.last.lock().unwrap());
        let start = Instant::now();
        for _ in 0..rounds {
            first.write_all(b"x").unwrap();
            last.read_exact(&mut [0]).unwrap();
        }
        start.elapsed() / rounds
    }
}

/// How long it takes to wake a thread for which a core is idle, and hear from it; a hop in a ring
/// of threads on one core; a yield of two there.
fn measure(into_class: &dyn Fn(&Crew)) -> [Duration; 3] {
    let idle = Ring::of(1);
    into_class(&idle.crew);
    idle.round(200);
    let wake = idle.round(2000);
    drop(idle.first);
    drop(idle.crew);

    let ring = Ring::of(8);
    into_class(&ring.crew);
    ring.crew.pin_to(CORE as usize);
    ring.round(50);
    let hop = ring.round(400) / 8;
    drop(ring.first);
    drop(ring.crew);

    let yielding = Crew::of(2, |worker, stop| {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::yield_now();
            worker.turn();
        }
    });
    into_class(&yielding);
    yielding.pin_to(CORE as usize);
    yielding.wait_for_progress();
    let turns = || yielding.workers.iter().map(|worker| worker.turns()).sum::<u64>();
    let (start, before) = (Instant::now(), turns());
    std::thread::sleep(Duration::from_millis(500)); // the time that is measured
    let each = start.elapsed() / (turns() - before) as u32;
    [wake, hop, each]
}

#[test]
fn what_a_decision_costs_beside_a_minimal_scheduler() {
    if fixture().is_none() {
        return;
    }
    let Some(fixture) = Fixture::new() else { return };
    let mut object = ObjectBuilder::default()
        .open_memory(include_bytes!(concat!(env!("OUT_DIR"), "/fifo.o")))
        .unwrap()
        .load()
        .unwrap();
    let link = object.maps_mut().find(|map| map.name() == "fifo").unwrap().attach_struct_ops();
    let link = link.unwrap();
    let fifo = measure(&|crew| crew.become_ext());
    drop((link, object));
    eventually("its end", || (sysfs("state") == "disabled").then_some(()));
    let app = fixture.app("one");
    ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
    let ours = measure(&|crew| register(&app, crew, 0));
    let eevdf = measure(&|_| ());
    let bounds = [("wake to idle", 1.55), ("hop", 1.55), ("yield", 2.04)];
    for ((what, bound), at) in bounds.into_iter().zip(0..) {
        let ratio = ours[at].as_secs_f64() / fifo[at].as_secs_f64();
        println!(
            "{what}: minimal {:?}, ours {:?} ({ratio:.2}), EEVDF {:?}",
            fifo[at], ours[at], eevdf[at]
        );
        assert!(ratio < bound, "{what}: {ratio:.2}");
    }
    ScxSyrup.remove(&app).unwrap();
}
