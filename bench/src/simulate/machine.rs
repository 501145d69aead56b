//! Early binding: a request goes to an executor when it arrives and waits in
//! its socket; executors are threads that share cores.

use rand::rngs::StdRng;

use super::eevdf::Eevdf;
use super::executor::{Executor, Waiting};
use super::packets::Chooser;
use super::queues::Queues;
use super::{Options, Outcome, Policy, Request, ThreadPolicy};

/// Why a thread waits for a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It slept.
    Woken,
    /// Another one took its core.
    Preempted,
    /// Its slice ended, or it yielded.
    Expired,
}

/// A thread policy: who runs on which core, and for how long.
pub trait Scheduler {
    /// A thread waits for a core. Its mark and the threads on the cores are
    /// those of now. Returns a core that must choose again, if it was woken.
    fn waits(&mut self, thread: usize, why: Why, at: &Now) -> Option<usize>;
    /// The thread for a core, and how long it may run; it waits no longer.
    fn pick(&mut self, core: usize) -> Option<(usize, u64)>;
    /// A thread on a core ran for so long.
    fn ran(&mut self, thread: usize, ns: u64);
    /// A thread on a core goes to sleep.
    fn sleeps(&mut self, thread: usize);
    /// Whether threads yield when they take a request of another class.
    fn yields(&self) -> bool;
}

/// What a scheduler may look at.
pub struct Now<'a> {
    pub ns: u64,
    pub executors: &'a [Executor],
    /// By core.
    pub running: &'a [Option<usize>],
}

struct Machine<'a> {
    options: &'a Options,
    executors: Vec<Executor>,
    scheduler: Box<dyn Scheduler>,
    /// By core.
    running: Vec<Option<usize>>,
    /// When the thread of each core has used its slice up.
    slice_ends_ns: Vec<u64>,
    /// Until when everything is accounted for.
    now_ns: u64,
    tick_ns: u64,
    outcome: Outcome,
}

/// When each request is answered, and by whom.
pub fn run(options: &Options, requests: &[Request], random: &mut StdRng) -> Outcome {
    let cores = options.cores.unwrap_or(options.executors);
    let tick_ns = (options.tick_us * 1000.0) as u64;
    let mut machine = Machine {
        options,
        executors: (0..options.executors).map(|_| Executor::default()).collect(),
        scheduler: scheduler(options, cores, tick_ns),
        running: vec![None; cores],
        slice_ends_ns: vec![u64::MAX; cores],
        now_ns: 0,
        tick_ns,
        outcome: Outcome {
            answered_ns: vec![None; requests.len()],
            served_by: vec![0; options.executors],
        },
    };
    let mut chooser = Chooser::new(options, random);
    for (number, request) in requests.iter().enumerate() {
        machine.run_until(request.arrival.at_ns);
        let chosen = chooser.choose(&request.arrival, &machine.executors, random);
        if let Some(thread) = chosen {
            let class = request.arrival.class;
            machine.arrives(thread, Waiting { number, class, service_ns: request.service_ns });
        }
    }
    machine.run_until(u64::MAX);
    machine.outcome
}

fn scheduler(options: &Options, cores: usize, tick_ns: u64) -> Box<dyn Scheduler> {
    let slice_ns = options.slice_us.map(|us| (us * 1000.0) as u64);
    match options.thread_policy {
        ThreadPolicy::Fifo => Box::new(Queues::fifo(options.executors, slice_ns)),
        ThreadPolicy::GetPriority => {
            Box::new(Queues::get_priority(options.executors, slice_ns, !options.no_preempt))
        }
        ThreadPolicy::Eevdf => Box::new(Eevdf::new(options.executors, cores, slice_ns, tick_ns)),
    }
}

impl Machine<'_> {
    /// Lets everything happen that is due by then.
    fn run_until(&mut self, until_ns: u64) {
        while let Some((at_ns, core)) = self.next_event() {
            if at_ns > until_ns {
                break;
            }
            self.pass(at_ns);
            self.event(core);
        }
        if until_ns < u64::MAX {
            self.pass(until_ns);
        }
    }

    /// When a request is done or a slice ends, and on which core.
    fn next_event(&self) -> Option<(u64, usize)> {
        self.running
            .iter()
            .enumerate()
            .filter_map(|(core, &thread)| {
                let done_ns = self.now_ns + self.executors[thread?].left_ns;
                Some((done_ns.min(self.slice_ends_ns[core]), core))
            })
            .min()
    }

    fn pass(&mut self, until_ns: u64) {
        let ns = until_ns - self.now_ns;
        self.now_ns = until_ns;
        for thread in self.running.iter().copied().flatten() {
            self.executors[thread].left_ns -= ns;
            self.scheduler.ran(thread, ns);
        }
    }

    fn event(&mut self, core: usize) {
        let Some(thread) = self.running[core] else { return };
        let executor = &mut self.executors[thread];
        if executor.left_ns > 0 {
            self.gives_up(core, Why::Expired);
            return;
        }
        if let Some(number) = executor.done() {
            self.outcome.answered_ns[number] = Some(self.now_ns);
            self.outcome.served_by[thread] += 1;
        }
        if executor.has_waiting() {
            if executor.take() && self.scheduler.yields() {
                self.gives_up(core, Why::Expired);
            }
            return;
        }
        executor.becomes_idle();
        self.scheduler.sleeps(thread);
        self.running[core] = None;
        self.dispatch(core);
    }

    fn arrives(&mut self, thread: usize, request: Waiting) {
        let executor = &mut self.executors[thread];
        // Only scan-avoid writes marks.
        if self.options.policy == Policy::ScanAvoid {
            executor.steered(request.class);
        }
        let asleep = executor.outstanding() == 0;
        if executor.accept(request, self.options.buffer)
            && asleep
            && let Some(core) = self.waits(thread, Why::Woken)
        {
            if self.running[core].is_some() {
                self.gives_up(core, Why::Preempted);
            } else {
                self.dispatch(core);
            }
        }
    }

    fn waits(&mut self, thread: usize, why: Why) -> Option<usize> {
        let now = Now { ns: self.now_ns, executors: &self.executors, running: &self.running };
        self.scheduler.waits(thread, why, &now)
    }

    fn gives_up(&mut self, core: usize, why: Why) {
        if let Some(thread) = self.running[core].take() {
            self.waits(thread, why);
        }
        self.dispatch(core);
    }

    /// The core chooses a thread. One that takes a request on which its
    /// scheduler had not decided yields at once.
    fn dispatch(&mut self, core: usize) {
        while let Some((thread, slice_ns)) = self.scheduler.pick(core) {
            let executor = &mut self.executors[thread];
            if executor.serves.is_none() && executor.take() && self.scheduler.yields() {
                self.waits(thread, Why::Expired);
                continue;
            }
            self.running[core] = Some(thread);
            // The kernel looks at slices when its tick comes.
            let ends_ns = self.now_ns.saturating_add(slice_ns);
            self.slice_ends_ns[core] = match self.tick_ns {
                0 => ends_ns,
                tick_ns => ends_ns.checked_next_multiple_of(tick_ns).unwrap_or(u64::MAX),
            };
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{answered_us, assert_answered, executors, get, scan, threads};
    use super::super::serve;
    use super::*;

    #[test]
    fn an_executor_serves_in_order() {
        let arrivals = [get(0, 0), get(5, 0), scan(6, 0), get(200, 0)];
        assert_answered(&executors(1), &arrivals, &[10.0, 20.0, 120.0, 210.0]);
        let overhead = Options { overhead_us: 2.5, ..executors(1) };
        assert_answered(&overhead, &arrivals, &[12.5, 25.0, 127.5, 212.5]);
    }

    #[test]
    fn executors_with_a_core_each_do_not_wait_for_each_other() {
        let options = executors(2);
        let outcome = serve(&options, &[scan(0, 0), get(1, 1), get(2, 1)]).unwrap();
        assert_eq!(outcome.answered_ns, [Some(100_000), Some(11_000), Some(21_000)]);
        assert_eq!(outcome.served_by, [1, 2]);
    }

    #[test]
    fn a_full_socket_loses_what_comes_and_takes_more_when_it_has_room() {
        let options = Options { buffer: 2, ..executors(1) };
        let arrivals = [get(0, 0), get(1, 0), get(2, 0), get(3, 0), get(11, 0), get(12, 0)];
        let expected = [Some(10.0), Some(20.0), Some(30.0), None, Some(40.0), None];
        assert_eq!(answered_us(&options, &arrivals), expected);
    }

    #[test]
    fn a_thread_without_a_core_takes_nothing_from_its_socket() {
        let options = Options { buffer: 1, ..threads(2, 1, ThreadPolicy::Fifo) };
        let arrivals = [scan(0, 0), get(1, 1), get(2, 1), get(101, 1)];
        assert_eq!(answered_us(&options, &arrivals), [Some(100.0), Some(110.0), None, Some(120.0)]);
    }

    #[test]
    fn a_request_that_comes_when_one_ends_finds_its_core_free() {
        let options = Options { buffer: 1, ..executors(1) };
        assert_answered(&options, &[get(0, 0), get(5, 0), get(10, 0)], &[10.0, 20.0, 30.0]);
    }

    #[test]
    fn a_slice_ends_at_the_tick() {
        let options =
            Options { slice_us: Some(4.0), tick_us: 5.0, ..threads(2, 1, ThreadPolicy::Fifo) };
        assert_answered(&options, &[get(0, 0), get(1, 1)], &[15.0, 20.0]);
        let at_once = Options { tick_us: 0.0, ..options };
        assert_answered(&at_once, &[get(0, 0), get(1, 1)], &[18.0, 20.0]);
    }

    #[test]
    fn a_slice_lasts_over_requests_and_a_thread_alone_goes_on() {
        let options = Options { slice_us: Some(15.0), ..threads(2, 1, ThreadPolicy::Fifo) };
        // The first thread's second GET is cut after 5 us.
        assert_answered(&options, &[get(0, 0), get(1, 0), get(2, 1)], &[10.0, 30.0, 25.0]);
        assert_answered(&options, &[scan(0, 0), get(200, 1)], &[100.0, 210.0]);
    }

    #[test]
    fn a_thread_that_takes_a_request_of_another_class_yields() {
        let options = threads(2, 1, ThreadPolicy::Fifo);
        assert_answered(&options, &[scan(0, 0), get(1, 0), get(2, 1)], &[100.0, 120.0, 110.0]);
        // Of the same class: it goes on.
        assert_answered(&options, &[get(0, 0), get(1, 0), get(2, 1)], &[10.0, 20.0, 30.0]);
        // The kernel's default asks for nothing of the kind.
        let options = Options { slice_us: Some(1000.0), ..threads(2, 1, ThreadPolicy::Eevdf) };
        assert_answered(&options, &[scan(0, 0), get(1, 0), get(2, 1)], &[100.0, 110.0, 120.0]);
    }

    #[test]
    fn a_thread_woken_without_a_mark_tells_its_class_when_it_runs() {
        // Nobody marks the SCAN of thread 1 before it runs: it preempts that of
        // thread 0, then says what it serves and waits behind it.
        let options = threads(3, 1, ThreadPolicy::GetPriority);
        assert_answered(&options, &[scan(0, 0), scan(10, 1)], &[100.0, 200.0]);
        // With scan-avoid the mark is there before.
        let options = Options { policy: Policy::ScanAvoid, ..options };
        assert_answered(&options, &[scan(0, 0), scan(10, 1)], &[100.0, 200.0]);
    }

    #[test]
    fn scan_avoid_marks_a_scan_before_it_is_taken() {
        for seed in 0..20 {
            let options = Options { policy: Policy::ScanAvoid, seed, ..executors(2) };
            // Wherever the SCAN waits or is served, the second GET goes elsewhere.
            let answered = answered_us(&options, &[get(0, 0), scan(1, 0), get(2, 0)]);
            assert!(answered[2] == Some(12.0) || answered[2] == Some(20.0), "{answered:?}");
        }
    }

    #[test]
    fn what_is_served_and_what_is_dropped_is_what_came() {
        for policy in [Policy::Vanilla, Policy::ScanAvoid, Policy::Po2, Policy::Sita] {
            for thread_policy in
                [ThreadPolicy::Fifo, ThreadPolicy::Eevdf, ThreadPolicy::GetPriority]
            {
                let options = Options {
                    policy,
                    flow_map: None,
                    slice_us: Some(30.0),
                    buffer: 3,
                    ..threads(5, 2, thread_policy)
                };
                let arrivals: Vec<_> = (0..2000u64)
                    .map(|n| {
                        if n % 7 == 0 {
                            scan(n * 11, n as u32 % 5)
                        } else {
                            get(n * 11, n as u32 % 5)
                        }
                    })
                    .collect();
                let outcome = serve(&options, &arrivals).unwrap();
                let served: Vec<_> = outcome.answered_ns.iter().flatten().collect();
                assert_eq!(served.len() as u64, outcome.served_by.iter().sum::<u64>());
                // Two cores are never busier than all of the time; and nearly
                // as busy, but for sita, whose SCANs use one of them alone.
                let service_ns = [10_000, 100_000];
                let work_ns: u64 = arrivals
                    .iter()
                    .zip(&outcome.answered_ns)
                    .filter(|(_, answered)| answered.is_some())
                    .map(|(arrival, _)| service_ns[arrival.class.index()])
                    .sum();
                let end_ns = **served.iter().max().unwrap();
                let busy = work_ns as f64 / (2 * end_ns) as f64;
                let least = if policy == Policy::Sita { 0.85 } else { 0.95 };
                assert!((least..=1.0).contains(&busy), "{policy:?} {thread_policy:?}: {busy}");
                assert!(served.len() < arrivals.len(), "{policy:?}: this is overload");
                for (arrival, answered) in arrivals.iter().zip(&outcome.answered_ns) {
                    assert!(answered.is_none_or(|ns| ns >= arrival.at_ns + 10_000));
                }
            }
        }
    }
}
