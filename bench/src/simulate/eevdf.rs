//! The kernel's default: EEVDF, for threads of equal weight and slice, as
//! `kernel/sched/fair.c` does it since Linux 6.12. Each core has a queue. In it
//!
//!  * a thread's virtual time is what it ran; the queue's is the mean of its
//!    threads'. A thread that is not ahead of the queue is eligible
//!    (`entity_eligible`);
//!  * a thread's deadline is a slice after its virtual time when it was placed
//!    or reached its last deadline (`update_deadline`). The eligible thread
//!    with the earliest one runs (`pick_eevdf`) until it reaches it
//!    (`RUN_TO_PARITY`), which the kernel sees when its tick comes;
//!  * a thread that was behind when it went to sleep is as far behind when it
//!    wakes (`PLACE_LAG`); one that was ahead still is, unless the queue has
//!    caught up with it (`DELAY_DEQUEUE`);
//!  * it preempts if it is the one to run and the running one is not eligible
//!    any more (`check_preempt_wakeup_fair`). If that one has reached its
//!    deadline, it gives way in any case (`update_curr`).
//!
//! Left out: weights, bandwidth, the part that threads asleep but ahead still
//! have in the mean, and the periodic load balancer: a thread wakes on the core
//! with the fewest threads, the one it ran on if that is one of them, and a core
//! without threads takes one that waits elsewhere.

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
    behind_ns: f64,
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
    /// No thread is further behind than this when it wakes.
    most_behind_ns: u64,
}

impl Eevdf {
    /// Without a slice, the kernel's.
    pub fn new(threads: usize, cores: usize, slice_ns: Option<u64>, tick_ns: u64) -> Self {
        let slice_ns = slice_ns.unwrap_or_else(|| base_slice_ns(cores));
        Self {
            threads: vec![Thread::default(); threads],
            queues: vec![RunQueue::default(); cores],
            slice_ns,
            // As `update_entity_lag` has it.
            most_behind_ns: tick_ns.max(2 * slice_ns),
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

    /// Puts a thread into a core's queue.
    fn place(&mut self, thread: usize, core: usize, virtual_ns: f64) {
        let deadline_ns = virtual_ns + self.slice_ns as f64;
        self.threads[thread] = Thread { core, virtual_ns, deadline_ns, behind_ns: 0.0 };
        self.queues[core].threads.push(thread);
    }

    /// Virtual time of a thread that wakes on a core.
    fn woken_ns(&self, thread: usize, core: usize) -> f64 {
        let Thread { core: last, virtual_ns, behind_ns, .. } = self.threads[thread];
        let queue_ns = self.virtual_ns(core);
        let others = self.queues[core].threads.len() as f64;
        if others == 0.0 {
            queue_ns
        } else if behind_ns > 0.0 {
            // The mean moves towards the newcomer: it is to be behind by as
            // much after that.
            queue_ns - behind_ns * (others + 1.0) / others
        } else if last == core {
            queue_ns.max(virtual_ns)
        } else {
            queue_ns
        }
    }

    fn remove(&mut self, thread: usize) {
        let core = self.threads[thread].core;
        let virtual_ns = self.virtual_ns(core);
        let queue = &mut self.queues[core];
        queue.virtual_ns = virtual_ns;
        queue.threads.retain(|&other| other != thread);
        queue.running = queue.running.filter(|&running| running != thread);
    }

    fn eligible(&self, thread: usize) -> bool {
        // Rounding must not make all of them ineligible.
        self.threads[thread].virtual_ns <= self.virtual_ns(self.threads[thread].core) + 1.0
    }

    /// The eligible one with the earliest deadline; of equals, not the one that
    /// runs.
    fn best(&self, core: usize) -> Option<usize> {
        let queue = &self.queues[core];
        let rank =
            |thread: usize| (self.threads[thread].deadline_ns, queue.running == Some(thread));
        queue.threads.iter().copied().filter(|&thread| self.eligible(thread)).min_by(|&a, &b| {
            let (a, b) = (rank(a), rank(b));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
        })
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
            queue.threads.iter().copied().find(|&thread| queue.running != Some(thread))
        };
        let from = self.queues.iter().max_by_key(|queue| queue.threads.len());
        if let Some(thread) = from.and_then(waiting) {
            self.remove(thread);
            self.place(thread, core, self.queues[core].virtual_ns);
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
            return None;
        }
        let core = self.core_for(thread);
        self.place(thread, core, self.woken_ns(thread, core));
        let Some(running) = self.queues[core].running else { return Some(core) };
        let ends =
            self.renew(running) || (!self.eligible(running) && self.best(core) == Some(thread));
        ends.then_some(core)
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
        let behind_ns = self.virtual_ns(core) - self.threads[thread].virtual_ns;
        self.threads[thread].behind_ns = behind_ns.clamp(0.0, self.most_behind_ns as f64);
        self.remove(thread);
    }

    fn yields(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{assert_answered, get, scan, threads};
    use super::super::{Options, ThreadPolicy};
    use super::*;

    fn eevdf(nr_threads: usize, cores: usize, slice_us: f64) -> Options {
        Options { slice_us: Some(slice_us), ..threads(nr_threads, cores, ThreadPolicy::Eevdf) }
    }

    #[test]
    fn the_base_slice_grows_with_the_cores() {
        let us = [1, 2, 3, 4, 8, 64].map(|cores| base_slice_ns(cores) / 1000);
        assert_eq!(us, [700, 1400, 1400, 2100, 2800, 2800]);
        assert_eq!(Eevdf::new(1, 4, None, 0).slice_ns, 2_100_000);
    }

    #[test]
    fn equals_take_turns() {
        let arrivals = [get(0, 0), get(1, 1)];
        assert_answered(&eevdf(2, 1, 4.0), &arrivals, &[18.0, 20.0]);
        // Seen at ticks, and when the second wakes: it runs from 1 to 4, then
        // each 4 us in turn.
        let ticks = Options { tick_us: 4.0, ..eevdf(2, 1, 1.0) };
        assert_answered(&ticks, &arrivals, &[20.0, 19.0]);
    }

    #[test]
    fn a_thread_that_wakes_waits_for_the_slice_of_one_that_is_not_ahead() {
        // Deadlines of the one that runs: 10, 20, 30.
        assert_answered(&eevdf(2, 1, 10.0), &[scan(0, 0), get(25, 1)], &[110.0, 40.0]);
    }

    #[test]
    fn of_the_eligible_the_earliest_deadline_comes_first() {
        // At 25 the first SCAN has run 15 and the second 10: the queue is at
        // 12.5, and so is the GET, which is due at 22.5; the second at 20. So
        // the first one keeps its slice until 30, then the second runs, then the
        // GET.
        let arrivals = [scan(0, 0), scan(0, 1), get(25, 2)];
        assert_answered(&eevdf(3, 1, 10.0), &arrivals, &[200.0, 210.0, 50.0]);
    }

    #[test]
    fn a_thread_that_wakes_preempts_one_that_is_ahead() {
        // At 15 the first SCAN has run 10 (due at 20), the second 5 (due at 10):
        // it is behind and goes on. At 25 the first has run 15 and is ahead.
        let arrivals = [scan(0, 0), get(1, 1), get(25, 1)];
        // GET 1: placed at 1, runs 10 to 20, is then at 11 beside 10. At 25 the
        // SCAN is at 15: the GET was not behind, so it waits until 30.
        assert_answered(&eevdf(2, 1, 10.0), &arrivals, &[120.0, 20.0, 40.0]);
        // One that was behind when it slept: it ran from 20 to 25 only.
        let options = Options { get_us: 5.0, ..eevdf(2, 1, 20.0) };
        let arrivals = [scan(0, 0), get(1, 1), get(30, 1)];
        // Placed at 1, runs 20 to 25, is at 6 beside 20: 7 behind. At 30 the
        // SCAN is at 25, due at 40, and the GET comes in 14 below it.
        assert_answered(&options, &arrivals, &[110.0, 25.0, 35.0]);
    }

    #[test]
    fn no_thread_is_further_behind_than_two_slices_or_a_tick() {
        assert_eq!(Eevdf::new(1, 1, Some(10), 21).most_behind_ns, 21);
        let mut eevdf = Eevdf::new(3, 1, Some(10), 0);
        eevdf.place(0, 0, 1000.0);
        eevdf.place(1, 0, 100.0);
        eevdf.place(2, 0, 1000.0);
        eevdf.sleeps(1);
        assert_eq!(eevdf.threads[1].behind_ns, 20.0);
        assert_eq!(eevdf.queues[0].threads, [0, 2]);
        // With it the mean is 990, 20 above it.
        assert_eq!(eevdf.woken_ns(1, 0), 970.0);
    }

    #[test]
    fn one_that_was_ahead_still_is_until_the_queue_has_caught_up() {
        let mut eevdf = Eevdf::new(2, 2, Some(10), 0);
        eevdf.place(0, 0, 100.0);
        eevdf.place(1, 0, 130.0);
        eevdf.sleeps(1);
        assert_eq!(eevdf.threads[1].behind_ns, 0.0);
        assert_eq!(eevdf.woken_ns(1, 0), 130.0);
        eevdf.ran(0, 50);
        assert_eq!(eevdf.woken_ns(1, 0), 150.0);
        // Times of other queues, and of empty ones, mean nothing.
        eevdf.place(0, 1, 7.0);
        assert_eq!(eevdf.woken_ns(1, 1), 7.0);
    }

    #[test]
    fn an_empty_queue_keeps_its_time() {
        let mut eevdf = Eevdf::new(1, 1, Some(10), 0);
        eevdf.place(0, 0, 40.0);
        eevdf.ran(0, 2);
        eevdf.sleeps(0);
        assert_eq!(eevdf.woken_ns(0, 0), 42.0);
    }

    #[test]
    fn a_deadline_that_was_reached_ends_protection() {
        // The tick comes at 100 only, but the wake-up at 25 sees that the slice
        // of 10 is over: the GET, which is level, is due earlier.
        let options = Options { tick_us: 100.0, ..eevdf(2, 1, 10.0) };
        assert_answered(&options, &[scan(0, 0), get(25, 1)], &[110.0, 35.0]);
        // Before the slice is over it is not.
        assert_answered(&options, &[scan(0, 0), get(5, 1)], &[100.0, 110.0]);
    }

    #[test]
    fn a_thread_wakes_where_there_are_fewest_and_rather_where_it_was() {
        let mut eevdf = Eevdf::new(5, 3, Some(10), 0);
        assert_eq!(eevdf.core_for(0), 0);
        eevdf.threads[0].core = 2;
        assert_eq!(eevdf.core_for(0), 2);
        eevdf.place(1, 2, 0.0);
        assert_eq!(eevdf.core_for(0), 0);
        eevdf.place(2, 0, 0.0);
        assert_eq!(eevdf.core_for(0), 1);
        eevdf.place(3, 1, 0.0);
        assert_eq!(eevdf.core_for(0), 2);
    }

    #[test]
    fn a_core_without_threads_takes_one_that_waits() {
        let arrivals = [scan(0, 0), get(1, 1), get(2, 2)];
        // The third waits on core 0 until core 1 is free at 11.
        assert_answered(&eevdf(3, 2, 1000.0), &arrivals, &[100.0, 11.0, 21.0]);
        // It never takes the one that runs.
        assert_answered(&eevdf(3, 2, 1000.0), &arrivals[..2], &[100.0, 11.0]);
    }

    #[test]
    fn a_core_takes_from_where_most_wait() {
        let mut eevdf = Eevdf::new(4, 3, Some(10), 0);
        for (thread, core) in [(0, 0), (1, 2), (2, 2), (3, 2)] {
            eevdf.place(thread, core, 0.0);
        }
        eevdf.queues[2].running = Some(1);
        assert_eq!(eevdf.pick(1), Some((2, 10)));
        assert_eq!(eevdf.queues[1].running, Some(2));
        assert_eq!(eevdf.queues[2].threads, [1, 3]);
        assert_eq!(eevdf.queues[2].running, Some(1));
    }

    #[test]
    fn what_is_left_of_a_slice_counts() {
        let mut eevdf = Eevdf::new(2, 1, Some(10), 0);
        eevdf.place(0, 0, 0.0);
        eevdf.place(1, 0, 0.0);
        eevdf.ran(0, 4);
        // The second is due at 10, as the first, which is ahead.
        assert_eq!(eevdf.pick(0), Some((1, 10)));
        eevdf.ran(1, 8);
        assert_eq!(eevdf.pick(0), Some((0, 6)));
    }
}
