//! Threads to schedule, and what they saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Polls until there is an answer; fails after ten seconds.
pub fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(answer) = poll() {
            return answer;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What one thread shares with the test.
#[derive(Default)]
pub struct Worker {
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

    /// CPU time so far.
    pub fn cpu_time(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.tid()))
            .unwrap_or_default();
        Duration::from_nanos(text.split(' ').next().unwrap_or("").parse().unwrap_or(0))
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
                worker.gap_ns.fetch_max((now - last).as_nanos() as u64, Relaxed);
                last = now;
                // SAFETY: no arguments, no memory.
                let cpu = unsafe { libc::sched_getcpu() };
                worker.cpus.fetch_or(1 << (cpu as u64 & 63), Relaxed);
                worker.turns.fetch_add(1, Relaxed);
                for _ in 0..200 {
                    std::hint::spin_loop();
                }
            }
        })
    }

    pub fn of(count: usize, body: impl Fn(&Worker, &AtomicBool) + Send + Sync + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let body = Arc::new(body);
        let mut workers = Vec::new();
        let mut handles = Vec::new();
        for _ in 0..count {
            let worker = Arc::new(Worker::default());
            let (shared, stop, body) = (worker.clone(), stop.clone(), body.clone());
            handles.push(thread::spawn(move || {
                // SAFETY: no arguments, no memory.
                shared.tid.store(unsafe { libc::gettid() }, Relaxed);
                body(&shared, &stop);
            }));
            workers.push(worker);
        }
        eventually("the threads to start", || {
            workers.iter().all(|w| w.tid() != 0).then_some(())
        });
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

    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}
