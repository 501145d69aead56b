//! One server thread: one socket, one request at a time.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny};

use crate::clock::{now_ns, sleep_until};
use crate::wire::{BYTES, Message};
use crate::work::{Store, Work};

/// What serving a request is.
pub enum Service {
    /// RocksDB work: burns CPU.
    RocksDb {
        /// The database.
        store: Store,
        /// How much per request.
        work: Work,
    },
    /// A sleep to an absolute deadline, of this length per class: for
    /// time-dilated experiments with more threads than CPUs.
    Sleep {
        /// Length by `Class::index`.
        ns: [u64; 2],
    },
}

/// The value of a thread that serves nothing; else it is the `Class`'s number.
pub const IDLE: u64 = 0;

/// Requests served, by `Class::index`, and replies that the kernel refused.
#[derive(Default)]
pub struct Served {
    /// By class.
    pub by_class: [AtomicU64; 2],
    /// Replies not sent.
    pub lost_replies: AtomicU64,
    /// Datagrams that were no request.
    pub malformed: AtomicU64,
}

/// One server thread's view of the server.
pub struct Worker<'a> {
    /// Its index, the same at all hooks.
    pub index: u32,
    /// Its socket.
    pub socket: BorrowedFd<'a>,
    /// Set before receivers are woken for good.
    pub stop: &'a AtomicBool,
    /// What to do per request.
    pub service: &'a Service,
    /// This thread's entry of the shared Map `request_type`.
    pub request_type: &'a AtomicU64,
    /// Where to count.
    pub served: &'a Served,
}

impl Worker<'_> {
    /// Serves until told to stop.
    ///
    /// `request_type` tells policies what this thread is at. A socket policy
    /// writes it too, when it chooses this thread and before the thread wakes.
    /// So it is written at the start of a request, and left alone between two
    /// requests when the next one is queued already. It becomes idle only when
    /// the queue is empty and the value is still the one written here:
    /// otherwise a packet that was just steered here would lose its mark.
    /// A race remains, when the policy writes the same number between the look
    /// at the queue and the exchange: the thread then wakes with an idle mark
    /// and corrects it itself, a few microseconds late.
    pub fn run(&self) -> Result<()> {
        // When the service before this one was due to end, if the thread has
        // not been idle since.
        let mut busy_until_ns = None;
        let mut last = IDLE;
        loop {
            let Some((request, from)) = self.receive(last, &mut busy_until_ns)? else {
                return Ok(());
            };
            last = request.class as u64;
            self.request_type.store(request.class as u64, Ordering::Release);
            match self.service {
                Service::RocksDb { store, work } => {
                    std::hint::black_box(store.serve(request.class, request.key, *work)?);
                    busy_until_ns = Some(now_ns());
                }
                Service::Sleep { ns } => {
                    // A request that waited in the queue starts when the one
                    // before it was due to end, not when this thread woke:
                    // else every overshoot of a sleep would add up.
                    let start_ns = match busy_until_ns {
                        Some(before) => request.sent_ns.max(before).min(now_ns()),
                        None => now_ns(),
                    };
                    let deadline_ns = start_ns + ns[request.class.index()];
                    sleep_until(deadline_ns);
                    busy_until_ns = Some(deadline_ns);
                }
            }
            let reply = Message { served_by: self.index, ..request };
            let sent = rustix::net::sendto(self.socket, &reply.encode(), SendFlags::empty(), &from);
            if sent.is_err() {
                self.served.lost_replies.fetch_add(1, Ordering::Relaxed);
            }
            self.served.by_class[request.class.index()].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The next request, or `None` when the server stops. When the queue is
    /// empty, clears `busy_until_ns` and the mark `last` before it blocks.
    fn receive(
        &self,
        last: u64,
        busy_until_ns: &mut Option<u64>,
    ) -> Result<Option<(Message, SocketAddrAny)>> {
        let mut flags = RecvFlags::DONTWAIT;
        let mut bytes = [0; BYTES + 1];
        loop {
            match rustix::net::recvfrom(self.socket, &mut bytes, flags) {
                Ok(_) if self.stop.load(Ordering::Acquire) => return Ok(None),
                Ok((_, length, from)) => match (Message::decode(&bytes[..length]), from) {
                    (Some(request), Some(from)) => return Ok(Some((request, from))),
                    _ => {
                        self.served.malformed.fetch_add(1, Ordering::Relaxed);
                    }
                },
                Err(Errno::AGAIN) => {
                    if self.stop.load(Ordering::Acquire) {
                        return Ok(None);
                    }
                    *busy_until_ns = None;
                    flags = RecvFlags::empty();
                    // Fails when a policy has marked the next request: fine.
                    let _ = self.request_type.compare_exchange(
                        last,
                        IDLE,
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    );
                }
                Err(Errno::INTR) => {}
                // A client went away: the error belongs to an earlier reply.
                Err(Errno::CONNREFUSED) => {}
                Err(error) => {
                    return Err(error).context("cannot receive from the server's socket");
                }
            }
        }
    }
}

/// The sockets' receivers, which end when `stop` is set and they are woken.
pub fn stop_all(stop: &AtomicBool, sockets: &[OwnedFd]) {
    stop.store(true, Ordering::Release);
    for socket in sockets {
        crate::socket::wake_receivers(socket);
    }
}
