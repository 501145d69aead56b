//! The demo: one RocksDB server under one load, with no policy, a packet policy,
//! a thread policy, and both. Needs a kernel with sched_ext: `make demo` starts
//! it in a virtual machine.

use crate::experiment::criteria::{Bound, Cell, Criterion};
use crate::experiment::plan::{Config, Plan, Service, Setting, Stream};
use crate::priority::LONGEST_SLICE_US;

/// Dilated: real ones take 11 and 700 us.
const GET_US: f64 = 1600.0;
const SCAN_US: f64 = 96_000.0;

pub fn plan(setting: &Setting) -> Plan {
    let cpus = f64::from(setting.server_cpus());
    let at = |share: f64| share * cpus * 1e6 / ((GET_US + SCAN_US) / 2.0);
    let half = at(0.5);
    let scan_avoid =
        |name, what| Config::new(name, what).policy("socket-select", "scan-avoid", &[]);
    let long_slice = LONGEST_SLICE_US.to_string();
    let get_over_both = |config, bound, low_end| Criterion::Ratio {
        above: Cell::latency(config, half, "GET", 0.99),
        below: Cell::latency("both", half, "GET", 0.99),
        bound: Bound::AtLeast(bound),
        low_end,
    };
    Plan {
        name: "demo",
        title: "Demo: RocksDB with policies at two layers".to_owned(),
        claim: "GET p99 of both layers: at least 10x below vanilla, 2x below scan-avoid alone, 10x \
                below scan-avoid with EEVDF's slice dilated like the service. Latencies from the \
                intended send time, in dilated time."
            .to_owned(),
        configs: vec![
            Config::new("vanilla", "no policy; EEVDF's default slice"),
            scan_avoid("scan-avoid", "socket-select with scan-avoid; EEVDF's default slice"),
            scan_avoid("scan-avoid-long-slice", "the same; EEVDF's slice 100 ms")
                .server(&["--slice-us", &long_slice]),
            Config::new("get-priority", "scx-syrup with get-priority; its own slice")
                .policy("scx-syrup", "get-priority", &[]),
            scan_avoid("both", "scan-avoid and get-priority, sharing the Map request_type")
                .policy("scx-syrup", "get-priority", &[]),
        ],
        streams: vec![Stream::gets_and_scans(0.5)],
        loads: vec![half],
        rounds: if setting.quick { 1 } else { 3 },
        seconds: if setting.quick { 5.0 } else { 40.0 },
        warmup_s: 2.0,
        // A SCAN that waits for its turn, and the queue that built up.
        grace_s: 5.0,
        scale: 1.0,
        flows: 50,
        // With fewer, all of them hold a SCAN at once every now and then.
        threads: (6 * setting.server_cpus()).max(12),
        service: Service::RocksDb { get_us: GET_US, scan_us: SCAN_US },
        server: Vec::new(),
        load_fifo: 50,
        late_us: 2000,
        window_ms: 200,
        exclude_late: false,
        generator_cpu: true,
        own_network: false,
        count_run_time: false,
        probes: Vec::new(),
        criteria: vec![
            get_over_both("vanilla", 10.0, Some(5.0)),
            get_over_both("scan-avoid", 2.0, Some(1.5)),
            get_over_both("scan-avoid-long-slice", 10.0, None),
            Criterion::NoDrops,
            Criterion::Live,
            Criterion::AddsUp,
        ],
        slo: None,
        closeups: vec![half],
        notes: vec![
            "A RocksDB server, each thread with a SO_REUSEPORT socket of its own, on a virtual \
             machine; open-loop Poisson load over 50 flows, half GETs and half SCANs. In each round \
             all configurations meet the same requests from the same ports. Latency counts from the \
             time a request should have been sent; nothing is left out."
                .to_owned(),
            "Services are dilated to 1.6 ms and 96 ms: as much RocksDB work as takes that long. That \
             is the paper's proportion of GET and SCAN (11 and 700 us), not this database's. A \
             dilated service needs a dilated slice: real SCANs end before EEVDF's slice does, dilated \
             ones do not, and EEVDF then rescues GETs by time-slicing. So scan-avoid is measured with \
             both."
                .to_owned(),
            "Thread scheduling alone cannot help: GETs wait in the sockets, behind SCANs.".to_owned(),
            "Where the host has no KVM, the guest's time counts instructions, so that it does not \
             depend on what else the host does. Kernel code looks slow in such a guest: these numbers \
             compare schedulers, they are no measure of overhead."
                .to_owned(),
        ],
    }
}
