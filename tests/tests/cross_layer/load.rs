//! Open-loop load: when each request is sent was decided before the first was,
//! and nobody waits for answers.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use syrup_tests::wait_for;

/// Bytes of a request and of a reply: the layout of `bench/src/wire.rs`.
pub const BYTES: usize = 56;
pub const GET: u64 = 1;
pub const SCAN: u64 = 2;

/// What the server says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    pub class: u64,
    pub id: u64,
    /// What the worker found in `request_type` under its index when it took the request.
    pub label: u32,
    pub served_by: u32,
    /// How many requests were taken before it.
    pub order: u64,
}

/// A request of `class` that takes `cpu_us` to serve.
pub fn request(class: u64, id: u64, cpu_us: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (offset, field) in [(0, class), (8, id), (24, cpu_us)] {
        bytes[offset..offset + 8].copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}

fn reply(bytes: &[u8; BYTES]) -> Reply {
    let long = |at: usize| u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
    let short = |at: usize| u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
    Reply { class: long(0), id: long(8), label: short(16), served_by: short(20), order: long(24) }
}

/// Many flows to one port.
pub struct Flows(Vec<UdpSocket>);

impl Flows {
    pub fn new(port: u16, count: usize) -> Self {
        let open = |_| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            socket.set_nonblocking(true).unwrap();
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 1 << 20).unwrap();
            socket
        };
        Self((0..count).map(open).collect())
    }

    /// Sends from the flow that is next for `id`.
    pub fn send(&self, class: u64, id: u64, cpu_us: u64) {
        let socket = &self.0[id as usize % self.0.len()];
        // Delivery on loopback is part of the call: no more than one attempt.
        assert_eq!(socket.send(&request(class, id, cpu_us)).unwrap(), BYTES);
    }

    /// What arrives within `patience`.
    pub fn receive(&self, patience: Duration) -> Vec<Reply> {
        let mut waiting: Vec<_> =
            self.0.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        poll(&mut waiting, Some(&Timespec::try_from(patience).unwrap())).unwrap();
        let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut replies = Vec::new();
        for (socket, _) in self.0.iter().zip(ready).filter(|(_, ready)| *ready) {
            let mut bytes = [0; BYTES];
            while let Ok(len) =
                rustix::net::recv(socket.as_fd(), &mut bytes, rustix::net::RecvFlags::DONTWAIT)
            {
                assert_eq!(len.0, BYTES, "an answer of another length");
                replies.push(reply(&bytes));
            }
        }
        replies
    }

    /// Waits for `count` answers.
    pub fn receive_all(&self, count: usize) -> Vec<Reply> {
        let mut replies = Vec::new();
        wait_for("every answer", Duration::from_secs(60), || {
            replies.extend(self.receive(Duration::from_millis(50)));
            (replies.len() >= count).then_some(())
        });
        replies
    }

    /// Sends one request at a time and waits for its answer.
    pub fn one_by_one(&self, class: u64, count: u64, cpu_us: u64) -> Vec<Reply> {
        (0..count)
            .flat_map(|id| {
                self.send(class, id, cpu_us);
                self.receive_all(1)
            })
            .collect()
    }
}

/// Service times of the load, in us of CPU.
const GET_US: u64 = 200;
const SCAN_US: u64 = 4000;
/// One request in so many is a SCAN.
const SCAN_EVERY: u64 = 16;
const INTERVAL: Duration = Duration::from_millis(8);

/// A load that goes on until it is stopped.
pub struct Load {
    flows: Arc<Flows>,
    sent: Arc<AtomicU64>,
    replies: Arc<Mutex<Vec<Reply>>>,
    sending: Arc<AtomicBool>,
    receiving: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(port: u16) -> Self {
        let mut load = Self {
            flows: Arc::new(Flows::new(port, 64)),
            sent: Arc::default(),
            replies: Arc::default(),
            sending: Arc::new(AtomicBool::new(true)),
            receiving: Arc::new(AtomicBool::new(true)),
            threads: Vec::new(),
        };
        let (flows, sent, sending) = (load.flows.clone(), load.sent.clone(), load.sending.clone());
        load.threads.push(std::thread::spawn(move || {
            let start = Instant::now();
            for id in 0.. {
                let due = start + INTERVAL * id as u32;
                // A sender that is late catches up.
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if !sending.load(Ordering::Relaxed) {
                    return;
                }
                let (class, cpu_us) =
                    if id % SCAN_EVERY == 0 { (SCAN, SCAN_US) } else { (GET, GET_US) };
                flows.send(class, id, cpu_us);
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let (flows, replies, receiving) =
            (load.flows.clone(), load.replies.clone(), load.receiving.clone());
        load.threads.push(std::thread::spawn(move || {
            while receiving.load(Ordering::Relaxed) {
                let arrived = flows.receive(Duration::from_millis(20));
                replies.lock().unwrap().extend(arrived);
            }
        }));
        load
    }

    fn answered(&self) -> u64 {
        self.replies.lock().unwrap().len() as u64
    }

    /// Waits until `more` requests that are sent from now on were answered.
    pub fn wait_for_more(&self, more: u64) {
        let goal = self.sent.load(Ordering::Relaxed) + more;
        wait_for("answers", Duration::from_secs(60), || (self.answered() >= goal).then_some(()));
    }

    /// Sends no more and waits until everything was answered, each request once.
    pub fn stop(mut self) -> Vec<Reply> {
        self.sending.store(false, Ordering::Relaxed);
        self.threads.remove(0).join().unwrap();
        let sent = self.sent.load(Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.answered() < sent && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.end();
        let mut replies = std::mem::take(&mut *self.replies.lock().unwrap());
        replies.sort_by_key(|reply| reply.id);
        let ids: Vec<u64> = replies.iter().map(|reply| reply.id).collect();
        assert_eq!(ids, (0..sent).collect::<Vec<_>>(), "sent and answered");
        replies
    }

    fn end(&mut self) {
        self.sending.store(false, Ordering::Relaxed);
        self.receiving.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}
