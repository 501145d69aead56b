//! One server thread: one socket, one request at a time.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny};

use crate::clock::{now_ns, sleep_until};
use crate::wire::{BYTES, Class, Message};
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
        ns: Vec<u64>,
    },
}

/// The value of a thread that serves nothing; else it is the `Class`'s number.
pub const IDLE: u64 = 0;

/// Requests served, by `Class::index`, and replies that the kernel refused.
#[derive(Default)]
pub struct Served {
    /// By class.
    pub by_class: [AtomicU64; Class::MOST],
    /// Replies not sent.
    pub lost_replies: AtomicU64,
    /// Datagrams that were no request.
    pub malformed: AtomicU64,
}

/// What a sleep overran by is taken off the services that were queued behind
/// it, up to this much: beyond it the host did not run this thread at all, and a
/// burst of services that take no time would be another experiment.
const MOST_COMPENSATED_NS: u64 = 5_000_000;

/// How long a marked packet may take to reach the queue.
const MARK_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// What a thread remembers between requests.
#[derive(Default)]
struct State {
    /// The mark of the request before, or [`IDLE`] if the thread was idle since.
    last: u64,
    /// When the service before was due to end, unless the thread was idle since.
    busy_until_ns: Option<u64>,
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
    /// Requests that a policy steered here, if one counts them.
    pub outstanding: Option<&'a AtomicU64>,
    /// A thread policy schedules this thread: yield when the mark changed
    /// while it ran.
    pub yields: bool,
    /// Where to count.
    pub served: &'a Served,
}

impl Worker<'_> {
    /// Serves until told to stop.
    ///
    /// `request_type` tells policies what this thread is at. A socket policy
    /// writes it too, for the thread it chooses and before that thread wakes,
    /// so the rules are those of the scan-avoid policy:
    ///  * a SCAN is stored at its start; a GET never covers the mark of a SCAN
    ///    that was steered here and waits behind it;
    ///  * between two requests the mark does not become idle when the next one
    ///    is queued already: a GET could be steered behind a SCAN meanwhile;
    ///  * a mark that is not this thread's own, with nothing in the queue, is a
    ///    packet on its way here, or lost: see [`Self::become_idle`].
    pub fn run(&self) -> Result<()> {
        let mut state = State::default();
        loop {
            let Some((request, from)) = self.receive(&mut state)? else {
                // Told to stop before the queue was seen empty.
                let _ = self.swap(state.last, IDLE);
                return Ok(());
            };
            self.take(request.class, &mut state);
            let overrun_ns = match self.service {
                Service::RocksDb { store, work } => {
                    std::hint::black_box(store.serve(request.class, request.key, *work)?);
                    state.busy_until_ns = Some(now_ns());
                    0
                }
                Service::Sleep { ns } => {
                    let taken_ns = now_ns();
                    let start_ns = start_ns(taken_ns, request.sent_ns, state.busy_until_ns);
                    let deadline_ns = start_ns + ns[request.class.index()];
                    sleep_until(deadline_ns);
                    state.busy_until_ns = Some(deadline_ns);
                    // What it overslept itself: a service that was due before
                    // it was taken did not sleep, the one before it told.
                    now_ns() - deadline_ns.max(taken_ns)
                }
            };
            let reply = Message { served_by: self.index, overrun_ns, ..request };
            let sent = rustix::net::sendto(self.socket, &reply.encode(), SendFlags::empty(), &from);
            if sent.is_err() {
                self.served.lost_replies.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(outstanding) = self.outstanding {
                outstanding.fetch_sub(1, Ordering::AcqRel);
            }
            self.served.by_class[request.class.index()].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Marks the request that is about to be served, and lets a thread policy
    /// decide again when it decided on something else.
    fn take(&self, class: Class, state: &mut State) {
        let mark = class.number();
        let decided_on = decided_on(state.last, self.request_type.load(Ordering::Acquire), class);
        if class == Class::SCAN {
            self.request_type.store(mark, Ordering::Release);
        } else if self.swap(state.last, mark).is_err() {
            // A policy's mark: a SCAN's stays.
            let _ = self.swap(IDLE, mark);
        }
        if self.yields && decided_on != mark {
            rustix::thread::sched_yield();
        }
        state.last = mark;
    }

    fn swap(&self, from: u64, to: u64) -> Result<u64, u64> {
        self.request_type.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }

    /// The queue is empty. True if the thread may block; false to look again,
    /// because a policy has marked a packet that is not in the queue yet.
    fn become_idle(&self, state: &mut State) -> bool {
        state.busy_until_ns = None;
        let last = std::mem::replace(&mut state.last, IDLE);
        let stale = match self.swap(last, IDLE) {
            Ok(_) | Err(IDLE) => return true,
            Err(other) => other,
        };
        // Such a packet takes microseconds from the policy to the queue.
        let mut wait = [PollFd::new(&self.socket, PollFlags::IN)];
        let arrived = poll(&mut wait, Some(&MARK_TIMEOUT)).is_ok_and(|ready| ready > 0);
        if !arrived {
            // It found the queue full and was lost.
            let _ = self.swap(stale, IDLE);
        }
        !arrived
    }

    fn serves(&self, class: Class) -> bool {
        match self.service {
            Service::RocksDb { .. } => [Class::GET, Class::SCAN].contains(&class),
            Service::Sleep { ns } => class.index() < ns.len(),
        }
    }

    /// The next request, or `None` when the server stops.
    fn receive(&self, state: &mut State) -> Result<Option<(Message, SocketAddrAny)>> {
        let mut flags = RecvFlags::DONTWAIT;
        let mut bytes = [0; BYTES + 1];
        loop {
            match rustix::net::recvfrom(self.socket, &mut bytes, flags) {
                Ok(_) if self.stop.load(Ordering::Acquire) => return Ok(None),
                Ok((_, length, from)) => match (Message::decode(&bytes[..length]), from) {
                    (Some(request), Some(from)) if self.serves(request.class) => {
                        return Ok(Some((request, from)));
                    }
                    _ => {
                        self.served.malformed.fetch_add(1, Ordering::Relaxed);
                    }
                },
                Err(Errno::AGAIN) => {
                    if self.stop.load(Ordering::Acquire) {
                        return Ok(None);
                    }
                    if self.become_idle(state) {
                        flags = RecvFlags::empty();
                    }
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

/// When the service of a request starts that was sent at `sent_ns` and taken at
/// `taken_ns`. One that waited in the queue starts when the one before was due
/// to end, not when this thread woke: else every overshoot of a sleep would add
/// up. At most [`MOST_COMPENSATED_NS`] are made good in this way.
fn start_ns(taken_ns: u64, sent_ns: u64, busy_until_ns: Option<u64>) -> u64 {
    match busy_until_ns {
        None => taken_ns,
        Some(before_ns) => {
            let earliest_ns = taken_ns.saturating_sub(MOST_COMPENSATED_NS);
            sent_ns.max(before_ns).clamp(earliest_ns, taken_ns)
        }
    }
}

/// The mark on which a thread policy last decided about a thread that takes a
/// request of `class`, was at `last` before, and is marked `mark` now.
fn decided_on(last: u64, mark: u64, class: Class) -> u64 {
    match (last, class) {
        // Woken by this GET. If the mark is a SCAN's, it came after the policy
        // had decided; asking again would put the GET among the SCANs.
        (IDLE, Class::GET) => class.number(),
        (IDLE, Class::SCAN) => mark,
        (last, _) => last,
    }
}

/// The sockets' receivers, which end when `stop` is set and they are woken.
pub fn stop_all(stop: &AtomicBool, sockets: &[OwnedFd]) {
    stop.store(true, Ordering::Release);
    for socket in sockets {
        crate::socket::wake_receivers(socket);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::os::fd::AsFd;

    use super::*;

    const GET: u64 = 1;
    const SCAN: u64 = 2;

    struct Bench {
        socket: OwnedFd,
        stop: AtomicBool,
        service: Service,
        mark: AtomicU64,
        outstanding: AtomicU64,
        served: Served,
    }

    impl Bench {
        fn new() -> Self {
            let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
            Self {
                socket: crate::socket::bind_shared(any, None).unwrap(),
                stop: AtomicBool::new(false),
                service: Service::Sleep { ns: vec![1000, 1000] },
                mark: AtomicU64::new(IDLE),
                outstanding: AtomicU64::new(3),
                served: Served::default(),
            }
        }

        fn worker(&self) -> Worker<'_> {
            Worker {
                index: 0,
                socket: self.socket.as_fd(),
                stop: &self.stop,
                service: &self.service,
                request_type: &self.mark,
                outstanding: Some(&self.outstanding),
                yields: false,
                served: &self.served,
            }
        }

        fn mark(&self) -> u64 {
            self.mark.load(Ordering::Relaxed)
        }
    }

    fn serving(last: u64) -> State {
        State { last, busy_until_ns: Some(1) }
    }

    #[test]
    fn a_queued_service_starts_when_the_one_before_was_due_within_bounds() {
        const MS: u64 = 1_000_000;
        // Idle before.
        assert_eq!(start_ns(100 * MS, 98 * MS, None), 100 * MS);
        // The one before was due at 97: it waited since 98, or since 97.
        assert_eq!(start_ns(100 * MS, 98 * MS, Some(97 * MS)), 98 * MS);
        assert_eq!(start_ns(100 * MS, 90 * MS, Some(97 * MS)), 97 * MS);
        // The thread slept 30 ms too long.
        assert_eq!(start_ns(100 * MS, 60 * MS, Some(70 * MS)), 95 * MS);
        assert_eq!(start_ns(100 * MS, 101 * MS, Some(70 * MS)), 100 * MS);
    }

    #[test]
    fn a_get_never_covers_the_mark_of_a_waiting_scan() {
        let bench = Bench::new();
        bench.mark.store(SCAN, Ordering::Relaxed);
        let mut state = serving(GET);
        bench.worker().take(Class::GET, &mut state);
        assert_eq!(bench.mark(), SCAN);
        // Woken by the packet of a policy that marked it.
        bench.worker().take(Class::GET, &mut State::default());
        assert_eq!(bench.mark(), SCAN);
    }

    #[test]
    fn a_thread_policy_is_asked_again_only_when_it_decided_on_something_else() {
        assert_eq!(decided_on(IDLE, SCAN, Class::GET), GET, "a SCAN waits behind this GET");
        assert_eq!(decided_on(IDLE, GET, Class::GET), GET);
        assert_eq!(decided_on(IDLE, SCAN, Class::SCAN), SCAN);
        assert_ne!(decided_on(IDLE, IDLE, Class::SCAN), SCAN, "no socket policy marked it");
        assert_ne!(decided_on(GET, SCAN, Class::SCAN), SCAN, "it ran among the GETs");
        assert_ne!(decided_on(SCAN, SCAN, Class::GET), GET, "it ran among the SCANs");
    }

    #[test]
    fn a_get_after_a_scan_replaces_the_scans_own_mark() {
        let bench = Bench::new();
        bench.worker().take(Class::SCAN, &mut State::default());
        assert_eq!(bench.mark(), SCAN);
        bench.worker().take(Class::GET, &mut serving(SCAN));
        assert_eq!(bench.mark(), GET);
        assert!(bench.worker().become_idle(&mut serving(GET)));
        assert_eq!(bench.mark(), IDLE);
    }

    #[test]
    fn the_mark_of_a_lost_packet_is_cleared_and_one_on_its_way_is_awaited() {
        let bench = Bench::new();
        bench.mark.store(SCAN, Ordering::Relaxed);
        assert!(bench.worker().become_idle(&mut serving(GET)));
        assert_eq!(bench.mark(), IDLE);

        bench.mark.store(SCAN, Ordering::Relaxed);
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to: SocketAddrV4 = rustix::net::getsockname(&bench.socket).unwrap().try_into().unwrap();
        sender.send_to(b"on its way", to).unwrap();
        assert!(!bench.worker().become_idle(&mut serving(GET)));
        assert_eq!(bench.mark(), SCAN);
    }

    /// Or a failed assertion would wait for the worker, and that for the stop.
    struct StopOnDrop<'a>(&'a Bench);

    impl Drop for StopOnDrop<'_> {
        fn drop(&mut self) {
            stop_all(&self.0.stop, std::slice::from_ref(&self.0.socket));
        }
    }

    #[test]
    fn a_worker_answers_and_stops() {
        let bench = Bench::new();
        let to: SocketAddrV4 = rustix::net::getsockname(&bench.socket).unwrap().try_into().unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| bench.worker().run());
            let stopped = StopOnDrop(&bench);
            let request = Message {
                class: Class::SCAN,
                id: 4,
                user: 0,
                served_by: 9,
                key: 0,
                intended_ns: 0,
                sent_ns: 0,
                overrun_ns: 0,
            };
            client.send_to(b"no request", to).unwrap();
            client.send_to(&request.encode(), to).unwrap();
            let mut bytes = [0; BYTES];
            client.recv(&mut bytes).unwrap();
            let reply = Message::decode(&bytes).unwrap();
            assert_eq!(reply, Message { served_by: 0, overrun_ns: reply.overrun_ns, ..request });
            drop(stopped);
            worker.join().unwrap().unwrap();
        });
        assert_eq!(bench.served.by_class[1].load(Ordering::Relaxed), 1);
        assert_eq!(bench.outstanding.load(Ordering::Relaxed), 2);
        assert_eq!(bench.served.malformed.load(Ordering::Relaxed), 1);
        assert_eq!(bench.mark(), IDLE);
    }
}
