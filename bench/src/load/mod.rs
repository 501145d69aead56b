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
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::clock::{now_ns, sleep_until};
use crate::wire::{BYTES, Message};
use crate::{priority, socket};
pub use arrivals::{Arrival, poisson};
pub use summary::{ClassSummary, Cut, Fate, LoadSummary, summarise};

/// Sends requests to a server at a fixed mean rate and prints latencies.
///
/// Arrivals are Poisson; latency counts from the intended send time, so a
/// server that falls behind is not spared. Windows in which the sender itself
/// was late, or a sleeping server overslept, are left out; the share that was
/// kept is printed.
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
    /// Share of SCAN requests, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    pub scan_fraction: f64,
    /// Counted seconds.
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    /// Seconds before them that are not counted.
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// Seconds to wait for the last replies; what has not come then is a drop.
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
    /// Run sender and receiver on this CPU.
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Run sender and receiver as SCHED_FIFO with this priority (root).
    #[arg(long)]
    pub fifo: Option<i32>,
}

/// Runs the load and prints its summary as JSON.
pub fn run(options: &Options) -> Result<()> {
    let summary = generate(options)?;
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
    options: &'a Options,
    arrivals: &'a [Arrival],
    slots: &'a [Slot],
    flows: &'a [OwnedFd],
    start_ns: u64,
    /// Sender done; then the receiver stops at `deadline_ns`.
    deadline_ns: &'a AtomicU64,
    failed: &'a AtomicBool,
}

/// What the receiver alone knows.
#[derive(Default)]
struct Received {
    served_by: Vec<u64>,
    unexpected: u64,
}

/// Runs the load.
pub fn generate(options: &Options) -> Result<LoadSummary> {
    ensure!(options.duration > 0.0, "--duration must be above 0");
    ensure!(options.window_ms > 0, "--window-ms must be above 0");
    let nanoseconds = |seconds: f64| (seconds.max(0.0) * 1e9) as u64;
    let cut = Cut {
        warmup_ns: nanoseconds(options.warmup),
        end_ns: nanoseconds(options.warmup + options.duration),
        late_limit_ns: options.late_us * 1000,
        window_ns: options.window_ms * 1_000_000,
    };
    let arrivals =
        poisson(options.rps, cut.end_ns, options.flows, options.scan_fraction, options.seed)?;
    let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, options.port);
    let flows: Vec<OwnedFd> = (0..options.flows)
        .map(|_| socket::connect(server))
        .collect::<Result<_, _>>()
        .context("cannot open a socket per flow: fewer --flows, or raise `ulimit -n`")?;
    let slots: Vec<Slot> = arrivals.iter().map(|_| Slot::default()).collect();
    let run = Run {
        options,
        arrivals: &arrivals,
        slots: &slots,
        flows: &flows,
        // The receiver is up by then.
        start_ns: now_ns() + 20_000_000,
        deadline_ns: &AtomicU64::new(u64::MAX),
        failed: &AtomicBool::new(false),
    };
    let (send_errors, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| run.receive().inspect_err(|_| run.fail()));
        let sender = scope.spawn(|| run.send().inspect_err(|_| run.fail()));
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"));
        // Whatever happened to it, the receiver must end.
        let last = now_ns() + nanoseconds(options.grace);
        run.deadline_ns.store(last, Ordering::Release);
        let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"));
        anyhow::Ok((sent??, received??))
    })?;
    let fates: Vec<Fate> = slots
        .iter()
        .map(|slot| Fate {
            sent_ns: slot.sent_ns.load(Ordering::Relaxed),
            answered_ns: slot.answered_ns.load(Ordering::Relaxed),
            overrun_ns: slot.overrun_ns.load(Ordering::Relaxed),
        })
        .collect();
    let summary = summarise(options.rps, cut, &arrivals, &fates)?;
    Ok(LoadSummary {
        served_by: received.served_by,
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
        if let Some(cpu) = self.options.cpu {
            priority::set_cpus(&[cpu])
                .with_context(|| format!("cannot run on CPU {cpu} (--cpu)"))?;
        }
        if let Some(priority) = self.options.fifo {
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
            if self.failed.load(Ordering::Relaxed) {
                break;
            }
            let sent_ns = now_ns();
            let request = Message {
                class: arrival.class,
                id,
                user: self.options.user,
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
        let mut received = Received::default();
        let mut missing = self.slots.len();
        let step = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: Duration::from_millis(50).as_nanos() as i64,
        };
        while missing > 0 && now_ns() < self.deadline_ns.load(Ordering::Acquire) {
            events.clear();
            match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&step)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for replies"),
            }
            for event in &events {
                self.drain(&self.flows[event.data.u64() as usize], &mut received, &mut missing);
            }
        }
        Ok(received)
    }

    fn drain(&self, flow: &OwnedFd, received: &mut Received, missing: &mut usize) {
        let mut bytes = [0; BYTES + 1];
        loop {
            let length = match rustix::net::recv(flow, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((_, length)) => length,
                // Reported once per refused request; it stays unanswered.
                Err(Errno::CONNREFUSED | Errno::INTR) => continue,
                Err(_) => return,
            };
            let answered_ns = now_ns() - self.start_ns;
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
