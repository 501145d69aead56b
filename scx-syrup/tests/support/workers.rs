//! Threads to schedule, and what they saw.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Polls until there is an answer; fails after thirty seconds.
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

/// The one in the middle.
pub fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Does guest time count instructions, or is it the processor's own?
pub fn time_is_exact() -> bool {
    matches!(std::env::var("SYRUP_VM").as_deref(), Ok("icount" | "kvm"))
}

/// CLOCK_MONOTONIC, as `syrup_now_ns()` reads it.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) }, 0);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sets the cores on which a thread may run; 0 is the caller.
pub fn allow(tid: i32, cpus: impl IntoIterator<Item = usize>) {
    try_allow(tid, cpus).unwrap();
}

/// The same where the kernel may refuse.
pub fn try_allow(tid: i32, cpus: impl IntoIterator<Item = usize>) -> io::Result<()> {
    // SAFETY: an empty set is all zeros.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        // SAFETY: CPU_SET ignores a number behind the set's end.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the set lives for the call.
    match unsafe { libc::sched_setaffinity(tid, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where workers may run; all cores unless somebody said otherwise.
static HOME: OnceLock<Vec<usize>> = OnceLock::new();

/// From now on workers run on these cores, unless they are pinned.
pub fn confine_to(cores: &[u32]) {
    HOME.get_or_init(|| cores.iter().map(|&core| core as usize).collect());
}

/// Lets a thread run wherever workers may; 0 is the caller.
pub fn allow_all(tid: i32) {
    match HOME.get() {
        Some(cores) => allow(tid, cores.iter().copied()),
        None => allow(tid, 0..libc::CPU_SETSIZE as usize),
    }
}

/// What one thread shares with the test.
#[derive(Default)]
pub struct Worker {
    number: usize,
    tid: AtomicI32,
    turns: AtomicU64,
    /// Longest time between two turns, in nanoseconds.
    gap_ns: AtomicU64,
    /// Sum of the times between two turns that were too short to be waits.
    active_ns: AtomicU64,
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
    fn saw_gap(&self, gap: Duration) {
        let gap_ns = gap.as_nanos() as u64;
        self.gap_ns.fetch_max(gap_ns, Relaxed);
        if gap < Duration::from_micros(100) {
            self.active_ns.fetch_add(gap_ns, Relaxed);
        }
    }

    /// For how long it ran, by the clock. The kernel's own sums take a turn's
    /// start from the last tick now and then.
    pub fn active(&self) -> Duration {
        Duration::from_nanos(self.active_ns.load(Relaxed))
    }

    pub fn turns(&self) -> u64 {
        self.turns.load(Relaxed)
    }

    pub fn wait_for_turn(&self) {
        let turns = self.turns();
        eventually("the thread to take a turn", || (self.turns() > turns).then_some(()));
    }

    pub fn gap(&self) -> Duration {
        Duration::from_nanos(self.gap_ns.load(Relaxed))
    }

    pub fn cpus(&self) -> u64 {
        self.cpus.load(Relaxed)
    }

    /// Notes where it runs.
    pub fn saw_cpu(&self) {
        // SAFETY: no arguments, no memory.
        let cpu = unsafe { libc::sched_getcpu() };
        self.cpus.fetch_or(1 << (cpu as u64 & 63), Relaxed);
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
        // At a pause an emulator leaves the virtual core: with one thread for all
        // of them that is how they take turns, and with a thread each it costs
        // a rescue's time.
        let pause = time_is_exact();
        Self::of(count, move |worker, stop| {
            let mut last = Instant::now();
            while !stop.load(Relaxed) {
                let now = Instant::now();
                worker.saw_gap(now - last);
                last = now;
                worker.saw_cpu();
                worker.turn();
                // Short, as a rescue is.
                for n in 0..50 {
                    std::hint::black_box(n);
                }
                if pause {
                    std::hint::spin_loop();
                }
            }
        })
    }

    /// Threads that sleep until they are woken, and then take one turn.
    pub fn parked(count: usize) -> Self {
        let crew = Self::of(count, |worker, stop| {
            while !stop.load(Relaxed) {
                thread::park();
                worker.turn();
            }
        });
        crew.wait_to_sleep();
        crew
    }

    /// Wakes a thread and waits until it sleeps again.
    pub fn wake(&self, number: usize) {
        let worker = &self.workers[number];
        let turns = worker.turns();
        self.unpark_one(number);
        eventually("the thread to take its turn", || {
            (worker.turns() > turns && worker.state() == 'S').then_some(())
        });
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
                // The test's own thread may be confined.
                allow_all(0);
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

    /// All run on these cores (a bit each) and nowhere else.
    pub fn wait_to_be_on(&self, cpus: u64) {
        eventually("the threads to come to their cores", || {
            self.wait_for_progress();
            self.forget();
            self.wait_for_progress();
            (self.cpus() & !cpus == 0).then_some(())
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

    pub fn wait_to_sleep(&self) {
        eventually("the threads to sleep", || {
            self.workers.iter().all(|w| w.state() == 'S').then_some(())
        });
    }

    pub fn wait_to_be_runnable(&self) {
        eventually("the threads to wait", || {
            self.workers.iter().all(|w| w.state() == 'R').then_some(())
        });
    }

    /// Wakes threads that `std::thread::park()`.
    pub fn unpark(&self) {
        for handle in &self.handles {
            handle.thread().unpark();
        }
    }

    pub fn unpark_one(&self, number: usize) {
        self.handles[number].thread().unpark();
    }

    /// CPU time of all so far.
    pub fn cpu_time(&self) -> Duration {
        self.workers.iter().map(|w| w.cpu_time()).sum()
    }

    /// For how long they ran, by the clock.
    pub fn active(&self) -> Duration {
        self.workers.iter().map(|w| w.active()).sum()
    }

    /// Bit per CPU on which one of them was seen.
    pub fn cpus(&self) -> u64 {
        self.workers.iter().fold(0, |cpus, w| cpus | w.cpus())
    }

    pub fn forget(&self) {
        self.workers.iter().for_each(|w| w.forget());
    }

    pub fn pin_to(&self, cpu: usize) {
        self.tids().into_iter().for_each(|tid| allow(tid, [cpu]));
    }

    pub fn pin_to_all(&self) {
        self.tids().into_iter().for_each(allow_all);
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
