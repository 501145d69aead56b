//! What the mechanism costs, in undilated time: a policy through Syrup over the
//! same policy as a bare program of the group, and a Map that is shared with the
//! kernel over plain memory. Ratios of interleaved runs: they hold on any
//! machine, nanoseconds do not.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, anyhow};

use super::native;
use crate::clock::now_ns;
use crate::experiment::Stack;
use crate::experiment::criteria::{Bound, Cell, Criterion, Number, Over};
use crate::experiment::plan::{Config, Plan, Probe, Readings, Service, Setting, Stream};
use crate::server::app::REQUEST_TYPE;
use crate::work::median;

/// Packets per second: few, so that each finds cold caches, and many.
const FEW: f64 = 15_000.0;
const MANY: f64 = 80_000.0;
/// Through Syrup, and bare.
const POLICIES: [[&str; 2]; 3] =
    [["round-robin", "round-robin-bare"], ["scan-avoid", "scan-avoid-bare"], ["sita", "sita-bare"]];
const LOAD_RATIO: &str = "Map load by mmap / a plain load";
const STORE_RATIO: &str = "Map store by mmap / a plain store";

pub fn plan(setting: &Setting) -> Plan {
    let packet_ns =
        |config, load_rps| Cell { config, load_rps, number: Number::PacketNs, over: Over::Median };
    let ratio = |[syrup, bare]: [&'static str; 2], load_rps, bound| Criterion::Ratio {
        above: packet_ns(syrup, load_rps),
        below: packet_ns(bare, load_rps),
        bound,
        low_end: None,
    };
    let mut criteria: Vec<Criterion> =
        POLICIES.into_iter().map(|pair| ratio(pair, MANY, Bound::AtMost(1.3))).collect();
    criteria.extend(POLICIES.into_iter().map(|pair| ratio(pair, FEW, Bound::Shown)));
    let probe = |name| {
        let cell =
            Cell { config: "", load_rps: 0.0, number: Number::Probe(name), over: Over::Median };
        Criterion::Value(cell, Bound::AtMost(2.0))
    };
    criteria.extend([
        probe(LOAD_RATIO),
        probe(STORE_RATIO),
        // Requests may be lost at this rate: packets are what is measured.
        Criterion::Live,
        Criterion::AddsUp,
    ]);
    Plan {
        title: "Cost: policies through Syrup over bare programs".to_owned(),
        claim:
            "At 80 K packets/s, where caches are warm: time of the packet program, dispatcher and \
                policy together, at most 1.3 times that of the same policy as a bare sk_reuseport \
                program (BPF run time, median of the rounds' ratios). At 15 K/s, where each packet \
                finds cold caches, it is shown and not judged. Access to a Map that is mapped into memory at most twice a plain \
                one."
                .to_owned(),
        configs: POLICIES
            .into_iter()
            .flat_map(|[name, bare]| {
                [
                    Config::new(name, &format!("socket-select with {name}")).policy(
                        "socket-select",
                        name,
                        &[],
                    ),
                    Config::new(bare, &format!("{name} as a program of the server's own"))
                        .server(&["--bare", name]),
                ]
            })
            .collect(),
        streams: vec![Stream::gets_and_scans(0.005)],
        loads: vec![FEW, MANY],
        rounds: if setting.quick { 1 } else { 9 },
        seconds: if setting.quick { 0.5 } else { 2.0 },
        warmup_s: 0.2,
        scale: 1.0,
        dilation: 1.0,
        // As short as can be: the cores are for the packets.
        service: Service::Sleep { us: vec![0.001, 0.001] },
        server: Vec::new(),
        late_us: 1000,
        exclude_late: false,
        count_run_time: true,
        probes: vec![Probe { name: "Map access", measure: map_access }],
        criteria,
        slo: None,
        closeups: Vec::new(),
        notes: vec![
            "The time per packet is the kernel's own account (BPF_ENABLE_STATS), the mean over the \
             real datagrams of a run; it includes two readings of the clock, some 20 to 40 ns, in \
             both terms of a ratio, which pulls it towards 1. Bare programs choose as the policies do and have the same Map; \
             they count nothing, check no verdict and cannot be replaced."
                .to_owned(),
        ],
        ..native::plan("cost", setting)
    }
}

/// Load, store and lookup of the Map that scan-avoid and the server share,
/// through the application library, and of plain memory.
fn map_access(stack: &Stack) -> Result<Readings> {
    const ENTRIES: usize = 64;
    const APP: &str = "cost";
    stack.unload_all()?;
    stack.load("socket-select", "scan-avoid", APP, &["--port", "9000"])?;
    let map = syrup::App::named(APP)
        .at_socket(stack.socket())
        .open_map(REQUEST_TYPE)
        .map_err(|error| anyhow!("{error:#}"))?;
    let mapped = map.mmap()?;
    let plain: Vec<AtomicU64> = (0..ENTRIES).map(|_| AtomicU64::new(0)).collect();
    let mut calls: [(&str, f64, Vec<f64>); 5] = [
        ("plain load, ns", 1e6, Vec::new()),
        ("Map load by mmap, ns", 1e6, Vec::new()),
        ("plain store, ns", 1e6, Vec::new()),
        ("Map store by mmap, ns", 1e6, Vec::new()),
        ("Map lookup by bpf(), ns", 2e4, Vec::new()),
    ];
    let mut failure = None;
    // Batches are interleaved: the machine's speed changes.
    for _ in 0..9 {
        for (number, (_, count, batches)) in calls.iter_mut().enumerate() {
            let count = *count as usize;
            let start = now_ns();
            for call in 0..count {
                let entry = black_box(call % ENTRIES);
                match number {
                    0 => drop(black_box(plain[entry].load(Ordering::Acquire))),
                    1 => drop(black_box(mapped.load(entry))),
                    2 => plain[entry].store(call as u64, Ordering::Release),
                    3 => mapped.store(entry, call as u64),
                    _ => failure = map.lookup::<u64>(entry as u32).err().or(failure),
                }
            }
            batches.push((now_ns() - start) as f64 / count as f64);
        }
    }
    failure.map_or(Ok(()), |error| Err(anyhow!("{error:#}")))?;
    stack.unload_all()?;
    let mut numbers: Vec<(String, f64)> = calls
        .into_iter()
        .map(|(name, _, mut batches)| (name.to_owned(), median(&mut batches)))
        .collect();
    let ratios =
        [(LOAD_RATIO, numbers[1].1 / numbers[0].1), (STORE_RATIO, numbers[3].1 / numbers[2].1)];
    numbers.extend(ratios.map(|(name, ratio)| (name.to_owned(), ratio)));
    Ok(numbers)
}
