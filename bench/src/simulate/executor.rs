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
            Class::Get => Self::Get,
            Class::Scan => Self::Scan,
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
        if mark == Mark::Scan || self.mark == self.last || self.mark == Mark::Idle {
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
