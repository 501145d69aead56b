//! The kernel's default: EEVDF, for threads of equal weight, as
//! `kernel/sched/fair.c` of Linux 6.12 to 7.2 does it. Each core has a queue of
//! its own. In it
//!
//!  * a thread's virtual time is what it ran; the queue's is the mean of its
//!    threads'. A thread that is not ahead of the queue is eligible
//!    (`entity_eligible`);
//!  * a thread's deadline is a slice after its virtual time when it was placed
//!    or reached its last deadline (`update_deadline`). The eligible thread
//!    with the earliest one runs (`pick_eevdf`) until it reaches it
//!    (`RUN_TO_PARITY`), which the kernel sees when its tick comes;
//!  * a thread that wakes keeps the lag it went to sleep with, if it was behind
//!    (`PLACE_LAG`); if it was ahead, the queue may have caught up with it
//!    (`DELAY_DEQUEUE`). It preempts if it is the one to run and the running
//!    one is not eligible any more, or at its deadline
//!    (`check_preempt_wakeup_fair`).
//!
//! Left out: weights, bandwidth, the part that threads asleep and ahead still
//! have in the mean, and the periodic load balancer: a thread wakes on the core
//! it ran on if that is idle, else on an idle one, else on the one with the
//! fewest threads, and a core without threads takes one that waits elsewhere.

use super::machine::{Now, Scheduler, Why};

/// The slice on one core (`sysctl_sched_base_slice`).
const BASE_SLICE_NS: u64 = 700_000;

/// What the kernel makes of it for more of them, of which it counts 8 at most
/// (`get_update_sysctl_factor`).
pub fn base_slice_ns(cores: usize) -> u64 {
    BASE_SLICE_NS * u64::from(1 + cores.clamp(1, 8).ilog2())
}

#[derive(Debug, Clone, Copy, Default)]
struct Thread {
    /// The core whose queue it is in, or was.
    core: usize,
    virtual_ns: f64,
    deadline_ns: f64,
    /// How far it was behind its queue when it went to sleep.
    lag_ns: f64,
}

#[derive(Debug, Clone, Default)]
struct RunQueue {
    /// Runnable threads, the running one included.
    threads: Vec<usize>,
    running: Option<usize>,
    /// Virtual time when it was last not empty.
    virtual_ns: f64,
}

pub struct Eevdf {
    threads: Vec<Thread>,
    queues: Vec<RunQueue>,
    slice_ns: u64,
}

impl Eevdf {
    /// Without a slice, the kernel's.
    pub fn new(threads: usize, cores: usize, slice_ns: Option<u64>) -> Self {
        Self {
            threads: vec![Thread::default(); threads],
            queues: vec![RunQueue::default(); cores],
            slice_ns: slice_ns.unwrap_or_else(|| base_slice_ns(cores)),
        }
    }

    /// Virtual time of a core's queue.
    fn virtual_ns(&self, core: usize) -> f64 {
        let queue = &self.queues[core];
        if queue.threads.is_empty() {
            return queue.virtual_ns;
        }
        let sum: f64 = queue.threads.iter().map(|&thread| self.threads[thread].virtual_ns).sum();
        sum / queue.threads.len() as f64
    }

    /// Puts a thread that is behind by `lag_ns` into a core's queue.
    fn place(&mut self, thread: usize, core: usize, lag_ns: f64) {
        let queue_ns = self.virtual_ns(core);
        let others = self.queues[core].threads.len() as f64;
        // The mean moves towards the newcomer: its lag is to be this after that.
        let virtual_ns =
            if others > 0.0 { queue_ns - lag_ns * (others + 1.0) / others } else { queue_ns };
        let deadline_ns = virtual_ns + self.slice_ns as f64;
        self.threads[thread] = Thread { core, virtual_ns, deadline_ns, lag_ns: 0.0 };
        self.queues[core].threads.push(thread);
    }

    fn remove(&mut self, thread: usize) {
        let core = self.threads[thread].core;
        let virtual_ns = self.virtual_ns(core);
        let queue = &mut self.queues[core];
        queue.virtual_ns = virtual_ns;
        queue.threads.retain(|&other| other != thread);
        queue.running = queue.running.filter(|&running| running != thread);
    }

    /// The lag with which a thread that slept comes back.
    fn lag_after_sleep_ns(&self, thread: usize, core: usize) -> f64 {
        let Thread { core: last, virtual_ns, lag_ns, .. } = self.threads[thread];
        if lag_ns >= 0.0 || last != core {
            return lag_ns.max(0.0);
        }
        (self.virtual_ns(core) - virtual_ns).min(0.0)
    }

    fn eligible(&self, thread: usize) -> bool {
        // Rounding must not make all of them ineligible.
        self.threads[thread].virtual_ns <= self.virtual_ns(self.threads[thread].core) + 1.0
    }

    /// The eligible one with the earliest deadline.
    fn best(&self, core: usize) -> Option<usize> {
        let deadline_ns = |thread: &usize| self.threads[*thread].deadline_ns;
        let threads = self.queues[core].threads.iter().copied();
        threads
            .filter(|&thread| self.eligible(thread))
            .min_by(|a, b| deadline_ns(a).total_cmp(&deadline_ns(b)))
    }

    /// The core that a thread wakes on.
    fn core_for(&self, thread: usize) -> usize {
        let last = self.threads[thread].core;
        let load = |core: usize| (self.queues[core].threads.len(), core != last, core);
        (0..self.queues.len()).min_by_key(|&core| load(core)).unwrap_or(last)
    }

    /// A core without threads takes one that waits where most do.
    fn steal(&mut self, core: usize) {
        let waiting = |queue: &RunQueue| {
            queue.threads.iter().copied().filter(|&thread| queue.running != Some(thread)).next()
        };
        let from = self.queues.iter().max_by_key(|queue| queue.threads.len());
        if let Some(thread) = from.and_then(waiting) {
            let lag_ns =
                self.virtual_ns(self.threads[thread].core) - self.threads[thread].virtual_ns;
            self.remove(thread);
            self.place(thread, core, lag_ns);
        }
    }

    /// A thread that reached its deadline gets a new one.
    fn renew(&mut self, thread: usize) -> bool {
        let thread = &mut self.threads[thread];
        let reached = thread.virtual_ns >= thread.deadline_ns;
        if reached {
            thread.deadline_ns = thread.virtual_ns + self.slice_ns as f64;
        }
        reached
    }
}

impl Scheduler for Eevdf {
    fn waits(&mut self, thread: usize, why: Why, _now: &Now) -> Option<usize> {
        if why != Why::Woken {
            // It stays in its queue.
            self.renew(thread);
            self.queues[self.threads[thread].core].running = None;
            return None;
        }
        let core = self.core_for(thread);
        let lag_ns = self.lag_after_sleep_ns(thread, core);
        self.place(thread, core, lag_ns);
        let Some(running) = self.queues[core].running else { return Some(core) };
        let protected = !self.renew(running) && self.eligible(running);
        (!protected && self.best(core) != Some(running)).then_some(core)
    }

    fn pick(&mut self, core: usize) -> Option<(usize, u64)> {
        if self.queues[core].threads.is_empty() {
            self.steal(core);
        }
        let thread = self.best(core)?;
        self.queues[core].running = Some(thread);
        let Thread { virtual_ns, deadline_ns, .. } = self.threads[thread];
        Some((thread, (deadline_ns - virtual_ns).max(1.0) as u64))
    }

    fn ran(&mut self, thread: usize, ns: u64) {
        self.threads[thread].virtual_ns += ns as f64;
    }

    fn sleeps(&mut self, thread: usize) {
        let core = self.threads[thread].core;
        // The kernel's bounds (`update_entity_lag`).
        let most_ns = 2.0 * self.slice_ns as f64;
        let lag_ns = self.virtual_ns(core) - self.threads[thread].virtual_ns;
        self.threads[thread].lag_ns = lag_ns.clamp(-most_ns, most_ns);
        self.remove(thread);
    }

    fn yields(&self) -> bool {
        false
    }
}
