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

#[cfg(test)]
mod tests {
    use super::super::scenario::{assert_answered, get, scan, threads};
    use super::super::{Options, ThreadPolicy};

    fn get_priority(nr_threads: usize, cores: usize) -> Options {
        threads(nr_threads, cores, ThreadPolicy::GetPriority)
    }

    #[test]
    fn fifo_serves_threads_in_the_order_they_came() {
        let arrivals = [scan(0, 2), get(1, 1), get(2, 0)];
        assert_answered(&threads(3, 1, ThreadPolicy::Fifo), &arrivals, &[100.0, 110.0, 120.0]);
        let slices = Options { slice_us: Some(40.0), ..threads(3, 1, ThreadPolicy::Fifo) };
        assert_answered(&slices, &arrivals, &[120.0, 50.0, 60.0]);
        // A GET does not overtake SCANs. The second one yields at 40, when it
        // tells what it is; at 120 it is the GET's turn.
        let arrivals_later = [scan(0, 0), scan(1, 1), get(50, 2)];
        assert_answered(&slices, &arrivals_later, &[150.0, 210.0, 130.0]);
        assert_answered(&threads(3, 2, ThreadPolicy::Fifo), &arrivals, &[100.0, 11.0, 21.0]);
    }

    #[test]
    fn a_get_preempts_a_scan_which_keeps_its_place() {
        let arrivals = [scan(0, 0), scan(5, 1), get(20, 2)];
        assert_answered(&get_priority(3, 1), &arrivals, &[110.0, 210.0, 30.0]);
    }

    #[test]
    fn without_preemption_a_get_waits_for_the_end_of_a_slice() {
        let arrivals = [scan(0, 0), scan(5, 1), get(20, 2)];
        let options = Options { no_preempt: true, ..get_priority(3, 1) };
        assert_answered(&options, &arrivals, &[100.0, 210.0, 110.0]);
        let slices = Options { slice_us: Some(40.0), ..options };
        // The second SCAN tells what it is at 40, when the first goes to the end:
        // from 50 on 40 us each in turn.
        assert_answered(&slices, &arrivals, &[150.0, 210.0, 50.0]);
    }

    #[test]
    fn gets_are_served_in_order_and_do_not_preempt_each_other() {
        let arrivals = [get(0, 2), get(1, 1), get(2, 0), scan(3, 3)];
        assert_answered(&get_priority(4, 1), &arrivals, &[10.0, 20.0, 30.0, 130.0]);
    }

    #[test]
    fn gets_have_the_default_slice() {
        let options = Options { get_us: 30_000.0, slice_us: Some(1000.0), ..get_priority(2, 1) };
        assert_answered(&options, &[get(0, 0), get(1, 1)], &[50_000.0, 60_000.0]);
    }

    #[test]
    fn a_get_takes_an_idle_core_or_that_of_a_scan() {
        // Core 1 is idle: nobody is preempted.
        assert_answered(&get_priority(3, 2), &[scan(0, 0), get(1, 1)], &[100.0, 11.0]);
        // Core 0 serves a GET, core 1 a SCAN.
        let arrivals = [get(0, 0), scan(1, 1), get(2, 2)];
        assert_answered(&get_priority(3, 2), &arrivals, &[10.0, 109.0, 12.0]);
        // And the other way round; the SCAN goes on where the first GET ended.
        let arrivals = [scan(0, 0), get(1, 1), get(2, 2)];
        assert_answered(&get_priority(3, 2), &arrivals, &[109.0, 11.0, 12.0]);
        // Both serve SCANs: the first core's gives way and goes on there.
        let arrivals = [scan(0, 0), scan(1, 1), get(2, 2)];
        assert_answered(&get_priority(3, 2), &arrivals, &[110.0, 101.0, 12.0]);
        // Both serve GETs.
        let arrivals = [get(0, 0), get(1, 1), get(2, 2)];
        assert_answered(&get_priority(3, 2), &arrivals, &[10.0, 11.0, 20.0]);
    }
}
