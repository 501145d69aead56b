//! Open-loop load generator: requests leave at the times of a Poisson process,
//! whether or not earlier ones were answered, and latency counts from the time
//! a request should have left.

mod arrivals;
mod summary;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::clock::{now_ns, sleep_until};
use crate::wire::{BYTES, Class, Message};
use crate::{interrupt, priority, socket};
pub use arrivals::{Arrival, poisson};
pub use summary::{ClassSummary, Cut, Fate, LoadSummary, Timekeeping, summarise, summarise_like};

/// Sends requests to a server at a fixed mean rate and prints latencies.
///
/// Arrivals are Poisson; latency counts from the intended send time, so neither
/// a server that falls behind nor a sender that is late is spared. How late the
/// sender was is printed; --exclude-late leaves out the windows in which it was,
/// or in which a sleeping server overslept, and the share that was kept is
/// printed. Do that only where lateness cannot be the server's doing: a server
/// that starves the client on the same machine would have its worst windows
/// left out.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  syrup-bench load --port 9000 --rps 2000 --scan-fraction 0.005 --duration 10
  syrup-bench load --port 9000 --rps 24 --scan-fraction 0.5 --duration 30 --fifo 40")]
pub struct Options {
    /// The server's UDP port on 127.0.0.1.
    #[arg(long, default_value_t = 9000)]
    pub port: u16,
    /// Mean requests per second.
    #[arg(long)]
    pub rps: f64,
    /// Source sockets, each with a port of its own.
    #[arg(long, default_value_t = 50)]
    pub flows: u32,
    /// Decides the source ports, and with them what a hash of them chooses;
    /// default: the kernel chooses.
    #[arg(long, value_name = "SEED")]
    pub ports_seed: Option<u64>,
    /// Share of SCAN requests, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    pub scan_fraction: f64,
    /// Counted seconds.
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    /// Seconds before them that are served but not counted.
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// Seconds without a reply, after the last request was sent, until those
    /// that are missing are drops.
    #[arg(long, default_value_t = 2.0)]
    pub grace: f64,
    /// User number in every request (token policies).
    #[arg(long, default_value_t = 0)]
    pub user: u32,
    /// Decides arrivals, mix, flows and keys.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The sender is late when it sends this much after the intended time, and a
    /// sleeping server when it sleeps this much too long.
    #[arg(long, default_value_t = 1000)]
    pub late_us: u64,
    /// Being late spoils this much time, and as much after it.
    #[arg(long, default_value_t = 100)]
    pub window_ms: u64,
    /// Leave out the latencies of spoiled windows.
    #[arg(long)]
    pub exclude_late: bool,
    /// Run sender and receiver on this CPU.
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Run sender and receiver as SCHED_FIFO with this priority (root).
    #[arg(long)]
    pub fifo: Option<i32>,
}

/// Requests of one user.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// User number in every request.
    pub user: u32,
    /// Mean requests per second.
    pub rps: f64,
    /// What they ask for.
    pub mix: Vec<Part>,
}

/// A class of the requests of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its name in summaries.
    pub name: String,
    /// What the requests ask for.
    pub class: Class,
    /// Share of the stream, 0 to 1.
    pub share: f64,
}

impl Stream {
    /// All requests of one class.
    #[must_use]
    pub fn of(name: &str, user: u32, rps: f64, class: Class) -> Self {
        Self { user, rps, mix: vec![Part { name: name.to_owned(), class, share: 1.0 }] }
    }

    /// GETs and SCANs of user 0.
    #[must_use]
    pub fn gets_and_scans(rps: f64, scan_fraction: f64) -> Self {
        let part = |name: &str, class, share| Part { name: name.to_owned(), class, share };
        Self {
            user: 0,
            rps,
            mix: vec![
                part("GET", Class::GET, 1.0 - scan_fraction),
                part("SCAN", Class::SCAN, scan_fraction),
            ],
        }
    }
}

/// A load, and how it is measured.
#[derive(Debug, Clone)]
pub struct Load {
    /// Who sends what.
    pub streams: Vec<Stream>,
    /// The server's UDP port on 127.0.0.1.
    pub port: u16,
    /// Source sockets, which all streams share.
    pub flows: u32,
    /// Decides their ports; `None`: the kernel chooses.
    pub ports_seed: Option<u64>,
    /// Decides arrivals, mix, flows and keys.
    pub seed: u64,
    /// Seconds that count.
    pub duration_s: f64,
    /// Seconds before them.
    pub warmup_s: f64,
    /// Seconds without a reply after which the missing ones are drops.
    pub grace_s: f64,
    /// More than this is late.
    pub late_us: u64,
    /// What being late spoils.
    pub window_ms: u64,
    /// Leave it out.
    pub exclude_late: bool,
    /// CPU of sender and receiver.
    pub cpu: Option<usize>,
    /// Their priority.
    pub fifo: Option<i32>,
}

/// Runs the load and prints its summary as JSON.
pub fn run(options: &Options) -> Result<()> {
    ensure!((0.0..=1.0).contains(&options.scan_fraction), "--scan-fraction must be 0 to 1");
    let stream = Stream::gets_and_scans(options.rps, options.scan_fraction);
    let summary = generate(&Load {
        streams: vec![Stream { user: options.user, ..stream }],
        port: options.port,
        flows: options.flows,
        ports_seed: options.ports_seed,
        seed: options.seed,
        duration_s: options.duration,
        warmup_s: options.warmup,
        grace_s: options.grace,
        late_us: options.late_us,
        window_ms: options.window_ms,
        exclude_late: options.exclude_late,
        cpu: options.cpu,
        fifo: options.fifo,
    })?;
    println!("{}", serde_json::to_string_pretty(&summary)?);
    Ok(())
}

/// Times of one request, written by sender and receiver.
#[derive(Default)]
struct Slot {
    sent_ns: AtomicU64,
    answered_ns: AtomicU64,
    overrun_ns: AtomicU64,
}

struct Run<'a> {
    load: &'a Load,
    arrivals: &'a [Arrival],
    slots: &'a [Slot],
    flows: &'a [OwnedFd],
    start_ns: u64,
    /// When the sender was done; [`u64::MAX`] before.
    all_sent_ns: &'a AtomicU64,
    failed: &'a AtomicBool,
}

/// What the receiver alone knows.
#[derive(Default)]
struct Received {
    served_by: Vec<u64>,
    by_flow: Vec<Server>,
    unexpected: u64,
    last_reply_ns: u64,
}

/// Who answers a flow.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Server {
    Nobody,
    Thread(u32),
    Several,
}

impl Load {
    /// How its run is cut.
    #[must_use]
    pub fn cut(&self) -> Cut {
        Cut {
            warmup_ns: nanoseconds(self.warmup_s),
            end_ns: nanoseconds(self.warmup_s + self.duration_s),
            late_limit_ns: self.late_us * 1000,
            window_ns: self.window_ms * 1_000_000,
            exclude_late: self.exclude_late,
        }
    }

    /// Its requests.
    pub fn arrivals(&self) -> Result<Vec<Arrival>> {
        poisson(&self.streams, self.cut().end_ns, self.flows, self.seed)
    }

    fn sockets(&self) -> Result<Vec<OwnedFd>> {
        let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port);
        match self.ports_seed {
            None => (0..self.flows)
                .map(|_| socket::connect(server, 0))
                .collect::<Result<_, _>>()
                .context("cannot open a socket per flow: fewer --flows, or raise `ulimit -n`"),
            Some(seed) => source_ports(self.flows, self.port, seed)?
                .into_iter()
                .map(|port| {
                    socket::connect(server, port).with_context(|| {
                        format!(
                            "cannot send from UDP port {port}: does another program use it? \
                             choose another seed for the ports"
                        )
                    })
                })
                .collect(),
        }
    }
}

/// Different ports, none of them the server's or one that the kernel gives to
/// others by default.
fn source_ports(flows: u32, server: u16, seed: u64) -> Result<Vec<u16>> {
    let range = 10_000..32_768u16;
    ensure!(
        (flows as usize) < range.len() / 2,
        "{flows} flows with ports of their own are too many (at most {})",
        range.len() / 2
    );
    let mut random = StdRng::seed_from_u64(seed);
    let mut ports = Vec::new();
    while ports.len() < flows as usize {
        let port = random.random_range(range.clone());
        if port != server && !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1e9) as u64
}

/// Runs the load.
pub fn generate(load: &Load) -> Result<LoadSummary> {
    ensure!(load.duration_s > 0.0, "--duration must be above 0");
    ensure!(load.window_ms > 0, "--window-ms must be above 0");
    let cut = load.cut();
    let arrivals = load.arrivals()?;
    let flows = load.sockets()?;
    let slots: Vec<Slot> = arrivals.iter().map(|_| Slot::default()).collect();
    let run = Run {
        load,
        arrivals: &arrivals,
        slots: &slots,
        flows: &flows,
        // The receiver is up by then.
        start_ns: now_ns() + 20_000_000,
        all_sent_ns: &AtomicU64::new(u64::MAX),
        failed: &AtomicBool::new(false),
    };
    let (send_errors, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| run.receive().inspect_err(|_| run.fail()));
        let sender = scope.spawn(|| run.send().inspect_err(|_| run.fail()));
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"));
        // Whatever happened to it, the receiver must end.
        run.all_sent_ns.store(now_ns(), Ordering::Release);
        let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"));
        anyhow::Ok((sent??, received??))
    })?;
    interrupt::check()?;
    let fates: Vec<Fate> = slots
        .iter()
        .map(|slot| Fate {
            sent_ns: slot.sent_ns.load(Ordering::Relaxed),
            answered_ns: slot.answered_ns.load(Ordering::Relaxed),
            overrun_ns: slot.overrun_ns.load(Ordering::Relaxed),
        })
        .collect();
    let summary = summarise(cut, &load.streams, &arrivals, &fates)?;
    let by_flow = received.by_flow.into_iter();
    Ok(LoadSummary {
        served_by: received.served_by,
        flow_served_by: by_flow
            .map(|server| match server {
                Server::Thread(index) => Some(index),
                Server::Nobody | Server::Several => None,
            })
            .collect(),
        unexpected: received.unexpected,
        send_errors,
        ..summary
    })
}

impl Run<'_> {
    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    fn prepare(&self) -> Result<()> {
        if let Some(cpu) = self.load.cpu {
            priority::set_cpus(&[cpu])
                .with_context(|| format!("cannot run on CPU {cpu} (--cpu)"))?;
        }
        if let Some(priority) = self.load.fifo {
            priority::set_fifo(priority).context("cannot become SCHED_FIFO (--fifo needs root)")?;
        }
        priority::set_timer_slack_ns(1)?;
        Ok(())
    }

    /// Sends everything; returns how many the kernel refused.
    fn send(&self) -> Result<u64> {
        self.prepare()?;
        let mut refused = 0;
        for (id, (arrival, slot)) in (0..).zip(self.arrivals.iter().zip(self.slots)) {
            sleep_until(self.start_ns + arrival.at_ns);
            if self.failed.load(Ordering::Relaxed) || interrupt::seen() {
                break;
            }
            let sent_ns = now_ns();
            let request = Message {
                class: arrival.class,
                id,
                user: self.load.streams[arrival.stream as usize].user,
                served_by: 0,
                key: arrival.key,
                intended_ns: self.start_ns + arrival.at_ns,
                sent_ns,
                overrun_ns: 0,
            }
            .encode();
            // Before the send: the reply may come before the next line.
            slot.sent_ns.store(sent_ns - self.start_ns, Ordering::Relaxed);
            let flow = &self.flows[arrival.flow as usize];
            let mut sent = rustix::net::send(flow, &request, SendFlags::empty());
            if sent == Err(Errno::CONNREFUSED) {
                // An earlier packet of this flow was refused; this one was not
                // sent yet.
                sent = rustix::net::send(flow, &request, SendFlags::empty());
            }
            refused += u64::from(sent.is_err());
        }
        Ok(refused)
    }

    /// Takes replies until all came or the deadline passed.
    fn receive(&self) -> Result<Received> {
        self.prepare()?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (flow, number) in self.flows.iter().zip(0..) {
            epoll::add(&poll, flow, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        }
        let mut events = Vec::with_capacity(self.flows.len());
        let mut received =
            Received { by_flow: vec![Server::Nobody; self.flows.len()], ..Received::default() };
        let mut missing = self.slots.len();
        let step = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: Duration::from_millis(50).as_nanos() as i64,
        };
        let grace_ns = nanoseconds(self.load.grace_s);
        // A queue that is still being served is not lost, however long it is.
        let waits = |last_reply_ns: u64| {
            let all_sent_ns = self.all_sent_ns.load(Ordering::Acquire);
            now_ns() < all_sent_ns.max(last_reply_ns).saturating_add(grace_ns)
        };
        while missing > 0 && !interrupt::seen() && waits(received.last_reply_ns) {
            events.clear();
            match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&step)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for replies"),
            }
            for event in &events {
                self.drain(event.data.u64() as usize, &mut received, &mut missing);
            }
        }
        Ok(received)
    }

    fn drain(&self, flow: usize, received: &mut Received, missing: &mut usize) {
        let mut bytes = [0; BYTES + 1];
        loop {
            let length = match rustix::net::recv(&self.flows[flow], &mut bytes, RecvFlags::DONTWAIT)
            {
                Ok((_, length)) => length,
                // Reported once per refused request; it stays unanswered.
                Err(Errno::CONNREFUSED | Errno::INTR) => continue,
                Err(_) => return,
            };
            received.last_reply_ns = now_ns();
            let answered_ns = received.last_reply_ns - self.start_ns;
            let Some(reply) = Message::decode(&bytes[..length]) else {
                received.unexpected += 1;
                continue;
            };
            let Some(slot) = self.slots.get(reply.id as usize) else {
                received.unexpected += 1;
                continue;
            };
            if slot.answered_ns.swap(answered_ns, Ordering::Relaxed) != 0 {
                received.unexpected += 1;
                continue;
            }
            slot.overrun_ns.store(reply.overrun_ns, Ordering::Relaxed);
            *missing -= 1;
            received.by_flow[flow] = match received.by_flow[flow] {
                Server::Nobody => Server::Thread(reply.served_by),
                Server::Thread(index) if index == reply.served_by => Server::Thread(index),
                _ => Server::Several,
            };
            let thread = reply.served_by as usize;
            if thread < 4096 {
                if received.served_by.len() <= thread {
                    received.served_by.resize(thread + 1, 0);
                }
                received.served_by[thread] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_are_the_seeds_all_different_and_not_the_servers() {
        let ports = source_ports(5000, 10_001, 7).unwrap();
        assert_eq!(ports, source_ports(5000, 10_001, 7).unwrap());
        assert_ne!(ports, source_ports(5000, 10_001, 8).unwrap());
        let mut distinct = ports.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 5000);
        assert!(!ports.contains(&10_001));
        assert!(ports.iter().all(|port| (10_000..32_768).contains(port)));
        assert!(source_ports(50_000, 1, 7).is_err());
    }
}
