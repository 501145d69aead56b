//! What the mechanism costs, in undilated time: added time per packet at
//! socket-select, and access to a Map from the application.

use std::hint::black_box;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use syrup_hook::App;
use syrup_net_hooks::{count_run_time, run_time};

use crate::clock::now_ns;
use crate::experiment::criteria::{Bound, Verdict};
use crate::experiment::{Programs, ServerProcess, Stack};
use crate::load;
use crate::server::app::REQUEST_TYPE;
use crate::work::median;

const APP: &str = "cost";
const POLICIES: [&str; 3] = ["round-robin", "scan-avoid", "sita"];
const BURSTS: u64 = 7;

/// Measures what Syrup adds to a packet, and what access to a Map costs.
///
/// The time per packet is the kernel's own account (BPF_ENABLE_STATS) of the
/// dispatcher with the policy it calls, under a load of real packets, in the
/// quietest of several bursts; it includes two readings of the clock, some 20 to
/// 40 ns. Runs as root, in a
/// network namespace of its own.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  syrup-bench cost")]
pub struct Options {
    /// Where syrupctl and syrupd are.
    #[command(flatten)]
    pub programs: Programs,
}

/// Nanoseconds.
#[derive(Debug, Clone)]
pub struct Cost {
    /// Per packet, by policy.
    pub per_packet: Vec<(&'static str, f64)>,
    /// Reading an entry of a Map that is mapped into memory.
    pub mmap_load: f64,
    /// Writing it.
    pub mmap_store: f64,
    /// Reading it by a system call.
    pub syscall_lookup: f64,
}

impl Cost {
    /// The bounds on them.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Verdict> {
        let packets = self.per_packet.iter().map(|(policy, ns)| {
            Verdict::new(
                &format!("added per packet by socket-select with {policy}, in ns"),
                Some(*ns),
                Bound::AtMost(200.0),
            )
        });
        let accesses = [("load", self.mmap_load), ("store", self.mmap_store)];
        let accesses = accesses.into_iter().map(|(access, ns)| {
            Verdict::new(&format!("Map {access} by mmap, in ns"), Some(ns), Bound::AtMost(5.0))
        });
        packets.chain(accesses).collect()
    }

    /// In words.
    #[must_use]
    pub fn sentence(&self) -> String {
        let packets: Vec<String> =
            self.per_packet.iter().map(|(policy, ns)| format!("{policy} {ns:.0} ns")).collect();
        format!(
            "per packet, dispatcher and policy: {}; access to a Map: load {:.1} ns and store {:.1} \
             ns by mmap, {:.0} ns by bpf()",
            packets.join(", "),
            self.mmap_load,
            self.mmap_store,
            self.syscall_lookup,
        )
    }
}

/// Prints the costs and their bounds; fails when one is above.
pub fn run(options: &Options) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "policies are deployed: run it as root");
    crate::namespace::enter_new().context("cannot make a network namespace")?;
    let stack = Stack::start(&options.programs)?;
    let cost = measure(&stack, 9000)?;
    drop(stack);
    let verdicts = cost.verdicts();
    for verdict in &verdicts {
        println!("{}", verdict.line());
    }
    println!("      Map lookup by bpf(), in ns: {:.0}", cost.syscall_lookup);
    ensure!(
        verdicts.iter().all(Verdict::holds),
        "a cost is above its bound: is the machine busy? run it again"
    );
    Ok(())
}

/// Measures with a stack that has nothing deployed.
pub fn measure(stack: &Stack, port: u16) -> Result<Cost> {
    let (mmap_load, mmap_store, syscall_lookup) = map_access_ns(stack, port)?;
    // Counts until it is closed.
    let _accounting = count_run_time()?;
    let per_packet = POLICIES
        .iter()
        .map(|&policy| Ok((policy, packet_ns(stack, policy, port)?)))
        .collect::<Result<_>>()?;
    Ok(Cost { per_packet, mmap_load, mmap_store, syscall_lookup })
}

/// Load, store and lookup of the Map that scan-avoid and the server share,
/// through the application library.
fn map_access_ns(stack: &Stack, port: u16) -> Result<(f64, f64, f64)> {
    const ENTRIES: usize = 64;
    stack.unload_all()?;
    stack.load("socket-select", "scan-avoid", APP, &["--port", &port.to_string()])?;
    let map = syrup::App::named(APP)
        .at_socket(stack.socket())
        .open_map(REQUEST_TYPE)
        .map_err(|error| anyhow!("{error:#}"))?;
    let mapped = map.mmap()?;
    let load = per_call_ns(1_000_000, |call| {
        black_box(mapped.load(black_box(call % ENTRIES)));
    });
    let store = per_call_ns(1_000_000, |call| mapped.store(black_box(call % ENTRIES), call as u64));
    let mut failure = None;
    let lookup = per_call_ns(20_000, |call| {
        if let Err(error) = map.lookup::<u64>((call % ENTRIES) as u32) {
            failure = Some(error);
        }
    });
    failure.map_or(Ok(()), |error| Err(anyhow!("{error:#}")))?;
    stack.unload_all()?;
    Ok((load, store, lookup))
}

/// The median over batches.
fn per_call_ns(calls: usize, mut call: impl FnMut(usize)) -> f64 {
    let mut batches: Vec<f64> = (0..9)
        .map(|_| {
            let start = now_ns();
            for number in 0..calls {
                call(number);
            }
            (now_ns() - start) as f64 / calls as f64
        })
        .collect();
    median(&mut batches)
}

/// Of the quietest burst: what else the machine does only ever adds.
fn packet_ns(stack: &Stack, policy: &str, port: u16) -> Result<f64> {
    stack.unload_all()?;
    stack.load("socket-select", policy, APP, &["--port", &port.to_string()])?;
    let arguments = ["--port", &port.to_string(), "--threads", "6", "--app", APP]
        .iter()
        .chain(&["--service", "sleep", "--get-us", "1", "--scan-us", "1"])
        .map(|&text| text.to_owned())
        .collect::<Vec<_>>();
    let server = ServerProcess::start(&arguments, Some(stack))?;
    let app = App { name: APP.to_owned(), uid: 0, bpffs: stack.bpffs().to_owned() };
    let mut bursts = Vec::new();
    for seed in 0..BURSTS {
        let before = run_time(&app)?;
        load::generate(&load::Options {
            port,
            rps: 15_000.0,
            flows: 50,
            scan_fraction: 0.005,
            duration: 1.0,
            warmup: 0.0,
            grace: 0.5,
            user: 0,
            seed,
            late_us: 1000,
            window_ms: 100,
            cpu: None,
            fifo: None,
        })?;
        let burst = run_time(&app)?.since(before);
        bursts.push(burst.mean_ns().context("no packet reached the dispatcher")?);
    }
    server.stop()?;
    stack.unload_all()?;
    Ok(bursts.into_iter().fold(f64::INFINITY, f64::min))
}
