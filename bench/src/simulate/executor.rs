//! A server thread with a socket: what waits there, what it serves, and the
//! mark by which policies know it.

use std::collections::VecDeque;

use crate::wire::Class;

/// An executor's entry of the Map `request_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mark {
    /// It serves nothing, and nothing was steered to it.
    #[default]
    Idle,
    /// A GET.
    Get,
    /// A SCAN: it serves one, or one waits there.
    Scan,
}

impl From<Class> for Mark {
    fn from(class: Class) -> Self {
        match class {
            Class::SCAN => Self::Scan,
            _ => Self::Get,
        }
    }
}

/// A request in a socket.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    pub number: usize,
    pub class: Class,
    pub service_ns: u64,
}

#[derive(Debug, Default)]
pub struct Executor {
    /// In its socket, in order.
    waiting: VecDeque<Waiting>,
    /// Service of all that waits.
    waiting_ns: u64,
    /// The request that it serves.
    pub serves: Option<usize>,
    /// Service that this one still needs.
    pub left_ns: u64,
    /// What policies see.
    pub mark: Mark,
    /// What it served before, unless it was idle since.
    last: Mark,
    /// Requests that found its socket full.
    pub lost: usize,
}

impl Executor {
    /// Requests that wait here or are served.
    pub fn outstanding(&self) -> usize {
        self.waiting.len() + usize::from(self.serves.is_some())
    }

    /// Service that those still need.
    pub fn work_ns(&self) -> u64 {
        self.waiting_ns + self.left_ns
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A request arrives; false: its socket holds `buffer` and loses it.
    pub fn accept(&mut self, request: Waiting, buffer: usize) -> bool {
        if self.waiting.len() >= buffer {
            self.lost += 1;
            return false;
        }
        self.waiting_ns += request.service_ns;
        self.waiting.push_back(request);
        true
    }

    /// A policy steers a request here, and says so before it is in the socket:
    /// a SCAN's mark stands.
    pub fn steered(&mut self, class: Class) {
        if self.mark != Mark::Scan {
            self.mark = class.into();
        }
    }

    /// Takes the next request, and marks it as the server does
    /// (`server::worker`): a SCAN always, a GET over its own mark only. True if
    /// a thread policy has decided about this thread on another mark.
    pub fn take(&mut self) -> bool {
        let Some(request) = self.waiting.pop_front() else { return false };
        self.waiting_ns -= request.service_ns;
        self.left_ns = request.service_ns;
        self.serves = Some(request.number);
        let mark = Mark::from(request.class);
        let decided_on = match (self.last, mark) {
            (Mark::Idle, Mark::Get) => mark,
            (Mark::Idle, _) => self.mark,
            (last, _) => last,
        };
        if mark == Mark::Scan || self.mark == self.last {
            self.mark = mark;
        }
        self.last = mark;
        decided_on != mark
    }

    /// The request is answered.
    pub fn done(&mut self) -> Option<usize> {
        self.serves.take()
    }

    /// Nothing waits: whatever the mark said is served, or was lost.
    pub fn becomes_idle(&mut self) {
        self.mark = Mark::Idle;
        self.last = Mark::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(class: Class) -> Waiting {
        Waiting { number: 7, class, service_ns: 5 }
    }

    fn with(waiting: &[Class]) -> Executor {
        let mut executor = Executor::default();
        for &class in waiting {
            assert!(executor.accept(request(class), 10));
        }
        executor
    }

    #[test]
    fn work_and_requests_are_counted_until_they_are_done() {
        let mut executor = with(&[Class::GET, Class::SCAN]);
        assert_eq!((executor.outstanding(), executor.work_ns()), (2, 10));
        executor.take();
        assert_eq!((executor.outstanding(), executor.work_ns(), executor.left_ns), (2, 10, 5));
        assert_eq!(executor.done(), Some(7));
        executor.left_ns = 0;
        assert_eq!((executor.outstanding(), executor.work_ns()), (1, 5));
        assert!(executor.has_waiting());
    }

    #[test]
    fn what_a_full_socket_loses_is_counted() {
        let mut executor = with(&[Class::GET, Class::GET]);
        assert!(!executor.accept(request(Class::GET), 2));
        assert!(!executor.accept(request(Class::GET), 2));
        assert_eq!((executor.outstanding(), executor.lost), (2, 2));
    }

    #[test]
    fn a_get_never_covers_the_mark_of_a_scan_that_waits() {
        let mut executor = with(&[Class::GET, Class::SCAN, Class::GET]);
        executor.steered(Class::GET);
        assert_eq!(executor.mark, Mark::Get);
        executor.take();
        executor.steered(Class::SCAN);
        executor.steered(Class::GET);
        assert_eq!(executor.mark, Mark::Scan);
        executor.take();
        assert_eq!(executor.mark, Mark::Scan);
        // The SCAN is served: its own mark may be covered.
        executor.take();
        assert_eq!(executor.mark, Mark::Get);
        executor.becomes_idle();
        assert_eq!(executor.mark, Mark::Idle);
    }

    #[test]
    fn a_get_taken_behind_the_mark_of_a_scan_leaves_it() {
        let mut executor = with(&[Class::GET]);
        executor.steered(Class::GET);
        executor.steered(Class::SCAN);
        assert!(!executor.take(), "it was woken by the GET");
        assert_eq!(executor.mark, Mark::Scan);
    }

    #[test]
    fn a_thread_policy_is_asked_again_when_it_decided_on_another_mark() {
        // Not marked before: woken as if for a GET.
        assert!(!with(&[Class::GET]).take());
        assert!(with(&[Class::SCAN]).take());
        // Marked before.
        let mut executor = with(&[Class::SCAN, Class::SCAN, Class::GET, Class::GET]);
        executor.steered(Class::SCAN);
        assert!(!executor.take());
        assert!(!executor.take());
        assert!(executor.take(), "a GET after a SCAN");
        assert!(!executor.take());
        // Idle since.
        let mut executor = with(&[Class::SCAN, Class::GET]);
        executor.take();
        executor.becomes_idle();
        assert!(!executor.take());
        assert_eq!(executor.mark, Mark::Get);
    }

    #[test]
    fn nothing_is_taken_from_an_empty_socket() {
        let mut executor = Executor::default();
        assert!(!executor.take());
        assert_eq!((executor.serves, executor.mark), (None, Mark::Idle));
    }
}
