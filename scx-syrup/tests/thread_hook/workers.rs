//! Threads to schedule, and what they saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Polls until there is an answer; fails after ten seconds.
pub fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = poll() {
            return answer;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Measures until a round is as it should be, four times at most: a busy host
/// takes cores away from a virtual machine now and then, a defect spoils each round.
pub fn in_some_round(mut measure: impl FnMut() -> Result<(), String>) {
    let missed: Vec<String> = (0..4).map_while(|_| measure().err()).collect();
    for miss in &missed {
        println!("missed: {miss}");
    }
    assert!(missed.len() < 4, "every round missed: {missed:?}");
}

/// The one in the middle.
pub fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

/// What one thread shares with the test.
#[derive(Default)]
pub struct Worker {
    number: usize,
    tid: AtomicI32,
    turns: AtomicU64,
    /// Longest time between two turns, in nanoseconds.
    gap_ns: AtomicU64,
    /// Bit per CPU on which it was seen.
    cpus: AtomicU64,
}

impl Worker {
    pub fn tid(&self) -> i32 {
        self.tid.load(Relaxed)
    }

    /// Its place in the crew.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Counts a turn.
    pub fn turn(&self) {
        self.turns.fetch_add(1, Relaxed);
    }

    /// Remembers the longest.
    pub fn saw_gap(&self, gap: Duration) {
        self.gap_ns.fetch_max(gap.as_nanos() as u64, Relaxed);
    }

    pub fn turns(&self) -> u64 {
        self.turns.load(Relaxed)
    }

    pub fn gap(&self) -> Duration {
        Duration::from_nanos(self.gap_ns.load(Relaxed))
    }

    pub fn cpus(&self) -> u64 {
        self.cpus.load(Relaxed)
    }

    /// Forgets gaps and CPUs, e.g. those from before it was registered.
    pub fn forget(&self) {
        self.gap_ns.store(0, Relaxed);
        self.cpus.store(0, Relaxed);
    }

    /// The state letter of its `stat`: S sleeps, R runs or waits for a CPU.
    fn state(&self) -> char {
        let path = format!("/proc/self/task/{}/stat", self.tid());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?')
    }

    /// CPU time so far.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_nanos(self.schedstat(0))
    }

    /// How often it was given a CPU.
    pub fn nr_slices(&self) -> u64 {
        self.schedstat(2)
    }

    fn schedstat(&self, field: usize) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.tid()))
            .unwrap_or_default();
        text.split_whitespace().nth(field).and_then(|n| n.parse().ok()).unwrap_or(0)
    }
}

/// Threads that end when the value goes.
pub struct Crew {
    pub workers: Vec<Arc<Worker>>,
    stop: Arc<AtomicBool>,
    handles: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Threads that burn CPU.
    pub fn spinning(count: usize) -> Self {
        Self::of(count, |worker, stop| {
            let mut last = Instant::now();
            while !stop.load(Relaxed) {
                let now = Instant::now();
                worker.saw_gap(now - last);
                last = now;
                // SAFETY: no arguments, no memory.
                let cpu = unsafe { libc::sched_getcpu() };
                worker.cpus.fetch_or(1 << (cpu as u64 & 63), Relaxed);
                worker.turn();
                // Short, as a rescue is; and no pause instruction, at each of which an
                // emulator leaves the virtual core.
                for n in 0..50 {
                    std::hint::black_box(n);
                }
            }
        })
    }

    pub fn of(count: usize, body: impl Fn(&Worker, &AtomicBool) + Send + Sync + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let body = Arc::new(body);
        let mut workers = Vec::new();
        let mut handles = Vec::new();
        for number in 0..count {
            let worker = Arc::new(Worker { number, ..Default::default() });
            let (shared, stop, body) = (worker.clone(), stop.clone(), body.clone());
            handles.push(thread::spawn(move || {
                // SAFETY: no arguments, no memory.
                shared.tid.store(unsafe { libc::gettid() }, Relaxed);
                body(&shared, &stop);
            }));
            workers.push(worker);
        }
        eventually("the threads to start", || workers.iter().all(|w| w.tid() != 0).then_some(()));
        Self { workers, stop, handles }
    }

    pub fn tids(&self) -> Vec<i32> {
        self.workers.iter().map(|w| w.tid()).collect()
    }

    /// Every thread takes a turn.
    pub fn wait_for_progress(&self) {
        let before: Vec<u64> = self.workers.iter().map(|w| w.turns()).collect();
        eventually("every thread to run", || {
            self.workers.iter().zip(&before).all(|(w, &n)| w.turns() > n).then_some(())
        });
    }

    /// Their scheduling policies.
    pub fn policies(&self) -> Vec<i32> {
        // SAFETY: a plain system call on numbers.
        self.tids().into_iter().map(|tid| unsafe { libc::sched_getscheduler(tid) }).collect()
    }

    /// Every thread has taken a turn.
    pub fn wait_for_turns(&self) {
        eventually("every thread to have run", || {
            self.workers.iter().all(|w| w.turns() > 0).then_some(())
        });
    }

    pub fn sleeping(&self) -> bool {
        self.workers.iter().all(|w| w.state() == 'S')
    }

    pub fn runnable(&self) -> bool {
        self.workers.iter().all(|w| w.state() == 'R')
    }

    /// Wakes threads that `std::thread::park()`.
    pub fn unpark(&self) {
        for handle in &self.handles {
            handle.thread().unpark();
        }
    }

    /// CPU time of all so far.
    pub fn cpu_time(&self) -> Duration {
        self.workers.iter().map(|w| w.cpu_time()).sum()
    }

    /// Bit per CPU on which one of them was seen.
    pub fn cpus(&self) -> u64 {
        self.workers.iter().fold(0, |cpus, w| cpus | w.cpus())
    }

    pub fn forget(&self) {
        self.workers.iter().for_each(|w| w.forget());
    }

    pub fn pin_to(&self, cpu: usize) {
        for tid in self.tids() {
            // SAFETY: the set is initialised and lives for the call.
            let err = unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(cpu, &mut set);
                libc::sched_setaffinity(tid, size_of_val(&set), &raw const set)
            };
            assert_eq!(err, 0);
        }
    }

    pub fn renice(&self, number: usize, nice: i32) {
        let tid = self.workers[number].tid() as libc::id_t;
        // SAFETY: a plain system call on numbers.
        assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, tid, nice) }, 0);
    }

    /// What any thread may do: enter the class without registering.
    pub fn become_ext(&self) {
        self.set_policy(7, 0);
    }

    /// Real time, above everything that is tested.
    pub fn become_fifo(&self) {
        self.set_policy(libc::SCHED_FIFO, 50);
    }

    pub fn become_other(&self) {
        self.set_policy(0, 0);
    }

    fn set_policy(&self, policy: i32, priority: i32) {
        let param = libc::sched_param { sched_priority: priority };
        for tid in self.tids() {
            // SAFETY: param lives for the call.
            assert_eq!(unsafe { libc::sched_setscheduler(tid, policy, &raw const param) }, 0);
        }
    }

    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
        self.unpark();
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}
