//! In which order threads ran.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::workers::Crew;

/// In which order threads take turns. Noting one neither waits for another thread
/// nor for memory: what comes between two notes is the scheduler's doing.
pub struct Order {
    next: AtomicUsize,
    numbers: [AtomicUsize; 4096],
}

impl Order {
    const NOBODY: usize = usize::MAX;

    pub fn new() -> Self {
        let numbers = [const { AtomicUsize::new(Self::NOBODY) }; 4096];
        Self { next: AtomicUsize::new(0), numbers }
    }

    /// Threads that sleep, and note it when they are woken and run.
    pub fn of_waiters(count: usize) -> (Arc<Self>, Crew) {
        let order = Arc::new(Self::new());
        let noted = order.clone();
        let waiters = Crew::of(count, move |worker, _| {
            std::thread::park();
            noted.note(worker.number());
            worker.turn();
        });
        waiters.wait_to_sleep();
        (order, waiters)
    }

    pub fn note(&self, number: usize) {
        let next = self.next.fetch_add(1, SeqCst);
        if let Some(place) = self.numbers.get(next) {
            place.store(number, SeqCst);
        }
    }

    pub fn seen(&self) -> Vec<usize> {
        let numbers = self.numbers.iter().map(|number| number.load(SeqCst));
        numbers.take_while(|&number| number != Self::NOBODY).collect()
    }
}
