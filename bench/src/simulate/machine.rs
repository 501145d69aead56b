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
    let mut machine = Machine {
        options,
        executors: (0..options.executors).map(|_| Executor::default()).collect(),
        scheduler: scheduler(options, cores),
        running: vec![None; cores],
        slice_ends_ns: vec![u64::MAX; cores],
        now_ns: 0,
        tick_ns: (options.tick_us * 1000.0) as u64,
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

fn scheduler(options: &Options, cores: usize) -> Box<dyn Scheduler> {
    let slice_ns = options.slice_us.map(|us| (us * 1000.0) as u64);
    match options.thread_policy {
        ThreadPolicy::Fifo => Box::new(Queues::fifo(options.executors, slice_ns)),
        ThreadPolicy::GetPriority => {
            Box::new(Queues::get_priority(options.executors, slice_ns, !options.no_preempt))
        }
        ThreadPolicy::Eevdf => Box::new(Eevdf::new(options.executors, cores, slice_ns)),
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
