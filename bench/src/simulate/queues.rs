//! The thread policies of `scx-syrup/policies` that sort threads into queues:
//! fifo and get-priority.

use super::executor::Mark;
use super::machine::{Now, Scheduler, Why};

/// The slice of threads that a policy gives none, in nanoseconds
/// (`SYRUP_SCX_SLICE_US`).
const DEFAULT_SLICE_NS: u64 = 20_000_000;

/// Queues in which cores look in turn, each in the order in which its threads
/// became runnable. A preempted thread keeps its place, an expired one goes to
/// the end; both start a new slice.
pub struct Queues {
    /// Queue, since when it is runnable, thread.
    waiting: Vec<(usize, u64, usize)>,
    /// Of each thread.
    runnable_since_ns: Vec<u64>,
    /// In which queue each thread was put last.
    queue: Vec<usize>,
    by_mark: bool,
    preempt: bool,
    slice_ns: [u64; 2],
}

impl Queues {
    /// One queue. Without a slice, threads run until they sleep.
    pub fn fifo(threads: usize, slice_ns: Option<u64>) -> Self {
        Self {
            waiting: Vec::new(),
            runnable_since_ns: vec![0; threads],
            queue: vec![0; threads],
            by_mark: false,
            preempt: false,
            slice_ns: [slice_ns.unwrap_or(u64::MAX); 2],
        }
    }

    /// Threads marked SCAN in the second queue, with this slice; the first one
    /// preempts it.
    pub fn get_priority(threads: usize, slice_ns: Option<u64>, preempt: bool) -> Self {
        let slice_ns = [DEFAULT_SLICE_NS, slice_ns.unwrap_or(u64::MAX)];
        Self { by_mark: true, preempt, slice_ns, ..Self::fifo(threads, None) }
    }
}

impl Scheduler for Queues {
    fn waits(&mut self, thread: usize, why: Why, now: &Now) -> Option<usize> {
        let queue = usize::from(self.by_mark && now.executors[thread].mark == Mark::Scan);
        if why != Why::Preempted {
            self.runnable_since_ns[thread] = now.ns;
        }
        self.queue[thread] = queue;
        self.waiting.push((queue, self.runnable_since_ns[thread], thread));
        if let Some(idle) = now.running.iter().position(Option::is_none) {
            return Some(idle);
        }
        // The core of the last queue, if that is after the thread's.
        let victim = |&core: &usize| now.running[core].map(|running| self.queue[running]);
        let core = (0..now.running.len()).rev().max_by_key(victim)?;
        (self.preempt && victim(&core) > Some(queue)).then_some(core)
    }

    fn pick(&mut self, _core: usize) -> Option<(usize, u64)> {
        let first = (0..self.waiting.len()).min_by_key(|&place| self.waiting[place])?;
        let (queue, _, thread) = self.waiting.swap_remove(first);
        Some((thread, self.slice_ns[queue]))
    }

    fn ran(&mut self, _thread: usize, _ns: u64) {}

    fn sleeps(&mut self, _thread: usize) {}

    fn yields(&self) -> bool {
        true
    }
}
