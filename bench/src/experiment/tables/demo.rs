//! The demo: one RocksDB server with no policy, a packet policy, a thread policy,
//! and both. Needs a kernel with sched_ext: `make demo` starts it in a virtual
//! machine.

use crate::experiment::criteria::{Bound, Cell, Criterion, Over, Slo};
use crate::experiment::plan::{Config, Plan, Service, Setting, Stream};
use crate::experiment::policies::NO_PREEMPTION;
use crate::priority::LONGEST_SLICE_US;

/// The paper's GET and SCAN.
const GET_US: f64 = 11.0;
const SCAN_US: f64 = 700.0;
/// Kernel code takes as long as ever, but an emulated CPU makes it some 25 times
/// slower: below this dilation it would show in a GET.
const DILATION: f64 = 45.0;
/// Of the kernel's one-CPU base slice: EEVDF multiplies it by 1 + log2 of the CPUs,
/// of which it counts 8 at most.
const BASE_SLICE_US: f64 = 700.0;
const THREADS_PER_CPU: u32 = 20;
const HALF: f64 = 0.5;
/// A row that is compared at half load only is measured in one of two rounds.
const SOME: u32 = 2;
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

pub fn plan(setting: &Setting) -> Plan {
    let dilation = setting.dilation.unwrap_or(DILATION);
    let (get_us, scan_us) = (GET_US * dilation, SCAN_US * dilation);
    let cpus = setting.server_cpus();
    let at = |share: f64| share * f64::from(cpus) * 1e6 / ((get_us + scan_us) / 2.0);
    let half = at(HALF);

    let eevdf_us = BASE_SLICE_US * f64::from(1 + setting.cpus.clamp(1, 8).ilog2());
    let long_us = ((eevdf_us * dilation) as u64).min(LONGEST_SLICE_US);
    let eevdf = format!("EEVDF's default slice of {:.1} ms", eevdf_us / 1000.0);
    let ext_long = format!("SLICE_US={LONGEST_SLICE_US}");
    let ext = format!("SCANs' slice {} ms, longer than a SCAN", LONGEST_SLICE_US / 1000);
    let scan_avoid =
        |name, what: &str| Config::new(name, what).policy("socket-select", "scan-avoid", &[]);
    let slo = Slo { class: "GET", quantile: 0.99, us: 10.0 * get_us };
    let get_over_both = |config, bound, low_end| Criterion::Ratio {
        above: Cell::latency(config, half, "GET", 0.99),
        below: Cell::latency("both", half, "GET", 0.99),
        bound: Bound::AtLeast(bound),
        low_end,
    };
    let max_load =
        |below, bound| Criterion::MaxLoad { above: "both", below, slo, over: Over::Pooled, bound };
    Plan {
        name: "demo",
        title: "Demo: RocksDB with policies at two layers".to_owned(),
        claim: format!(
            "At half load, GET p99 of both layers is at least 10x below vanilla, 2x below \
             scan-avoid alone, 10x below scan-avoid with EEVDF's slice dilated like the service. \
             Under {}, both layers carry at least 1.4x the load of scan-avoid with the dilated \
             slice, which stands for a real machine; the ratio to scan-avoid with the default slice \
             is shown beside it and not judged. Latencies from the intended send time, in dilated \
             time.",
            slo.text()
        ),
        configs: vec![
            Config::new("vanilla", &format!("no policy; {eevdf}")),
            scan_avoid("scan-avoid", &format!("socket-select with scan-avoid; {eevdf}"))
                .at(&[at(0.3), half, at(0.7)], 1),
            scan_avoid(
                "scan-avoid-long-slice",
                &format!("the same; EEVDF's slice {} ms: the default, dilated", long_us / 1000),
            )
            .server(&["--slice-us", &long_us.to_string()])
            .at(&[at(0.2), half], 1),
            Config::new("get-priority", &format!("scx-syrup with get-priority; {ext}"))
                .policy("scx-syrup", "get-priority", &[&ext_long])
                .may_starve()
                .at(&[half], SOME),
            scan_avoid(
                "both",
                &format!("scan-avoid and get-priority, sharing the Map request_type; {ext}"),
            )
            .policy("scx-syrup", "get-priority", &[&ext_long])
            .at(&[half, at(0.7), at(0.8)], 1),
            scan_avoid("both-default-slice", "both; SCANs' slice 20 ms, get-priority's default")
                .policy("scx-syrup", "get-priority", &[])
                .at(&[half], SOME),
            scan_avoid(
                "both-no-preemption",
                &format!("both, but GETs wait for the end of a SCAN's slice; {ext}"),
            )
            .policy("scx-syrup", NO_PREEMPTION, &[&ext_long])
            .at(&[half], SOME),
            scan_avoid(
                "both-huge-pages",
                &format!("both; khugepaged collapses the server's memory meanwhile; {ext}"),
            )
            .policy("scx-syrup", "get-priority", &[&ext_long])
            .kernel(HUGE_PAGES, "always")
            .at(&[half], SOME),
        ]
        .into_iter()
        // Whatever the machine's choice is.
        .map(|config| match config.kernel.is_empty() {
            true => config.kernel(HUGE_PAGES, "never"),
            false => config,
        })
        .collect(),
        streams: vec![Stream::gets_and_scans(0.5)],
        loads: vec![half],
        rounds: if setting.quick { 1 } else { 4 },
        seconds: if setting.quick { 3.0 } else { 16.0 },
        warmup_s: 1.0,
        // A SCAN that waits for its turn.
        grace_s: 5.0,
        scale: 1.0,
        dilation,
        flows: 50,
        // So many that they hardly ever hold a SCAN all at once: then a GET has to
        // wait in a socket, whatever the policies.
        threads: THREADS_PER_CPU * cpus,
        service: Service::RocksDb { get_us, scan_us },
        server: Vec::new(),
        load_fifo: 50,
        generator_cpu: true,
        late_us: 2000,
        window_ms: 200,
        exclude_late: false,
        own_network: false,
        count_run_time: false,
        probes: Vec::new(),
        criteria: vec![
            get_over_both("vanilla", 10.0, Some(5.0)),
            get_over_both("scan-avoid", 2.0, Some(1.5)),
            get_over_both("scan-avoid-long-slice", 10.0, None),
            get_over_both("both-no-preemption", 2.0, None),
            max_load("scan-avoid-long-slice", Bound::AtLeast(1.4)),
            max_load("scan-avoid", Bound::Shown),
            Criterion::NoDrops,
            Criterion::Live,
            Criterion::AddsUp,
        ],
        slo: Some(slo),
        closeups: vec![half],
        notes: vec![
            format!(
                "A RocksDB server of {} threads on {cpus} CPUs, each thread with a SO_REUSEPORT \
                 socket of its own; the load generator on a CPU of its own where there are three. \
                 Open-loop Poisson load over 50 flows, half GETs and half SCANs; half load is \
                 {half:.1} requests/s, half of what the server's CPUs could serve if the network \
                 cost nothing. In each round all configurations meet the same requests from the \
                 same ports. Latency counts from the time a request should have been sent; nothing \
                 is left out.",
                THREADS_PER_CPU * cpus,
            ),
            format!(
                "Services are dilated: a GET is multiplied by so many RocksDB GETs, and a SCAN reads \
                 so many keys, that they take {:.2} and {:.1} ms, {dilation:.0} times the paper's 11 \
                 and 700 us. That is the paper's proportion, not this database's. The kernel's tick \
                 (4 ms) and slices are not dilated, which favours EEVDF: a real SCAN ends before \
                 EEVDF's slice does, a dilated one does not, and EEVDF then rescues GETs by \
                 time-slicing. So scan-avoid is measured twice, with the default slice and with one \
                 dilated like the service; the second stands for a real machine, and max loads are \
                 judged against it. Where its first load is above the objective already, or both \
                 layers never reach it, the ratio is at least what is shown.",
                get_us / 1000.0,
                scan_us / 1000.0,
            ),
            "Both layers are measured up to 80 % load. Beyond it some SCANs wait longer for a CPU \
             than the 200 ms after which scx-syrup runs a thread that its policy leaves waiting; \
             that deadline is not dilated either, and from then on the policy is truthfully \
             'degraded'."
                .to_owned(),
            "There is no simulated twin: the simulator knows neither kernel code that is slow, nor \
             CPUs that share a host's thread."
                .to_owned(),
            "Thread scheduling alone cannot help: GETs wait in the sockets, behind SCANs; and as \
             nobody says what a request is before its thread has read it, SCANs start as GETs and \
             may then starve, which the row shows as rescues. Without \
             preemption a GET waits for a SCAN's slice. Transparent huge pages are off in all rows \
             but one; there a GET waits, now \
             and then, for khugepaged to move the memory it touches (docs/scx-syrup.md)."
                .to_owned(),
            "Where the host has no KVM, the guest's time counts instructions, so that it does not \
             depend on what else the host does. Its CPUs then take turns of microseconds on one \
             thread of the host and share its speed, like hardware threads of one core: each is \
             faster while others sleep; the calibration is of CPUs that are all busy. Kernel code \
             looks slow in such a guest: these numbers compare schedulers, they are no measure of \
             overhead."
                .to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_says_which_slices_it_had() {
        let plan = plan(&Setting { cpus: 3, ..Setting::default() });
        for config in &plan.configs {
            assert!(config.what.contains("slice"), "{}: {}", config.name, config.what);
            assert!(config.what.contains(" ms"), "{}: {}", config.name, config.what);
        }
        let long = plan.config("scan-avoid-long-slice").unwrap();
        // 45 times the 1.4 ms that EEVDF gives on three CPUs.
        assert_eq!(long.server, ["--slice-us", "63000"]);
    }

    #[test]
    fn huge_pages_are_off_in_all_rows_but_one() {
        for config in plan(&Setting { cpus: 3, ..Setting::default() }).configs {
            let mode = if config.name == "both-huge-pages" { "always" } else { "never" };
            assert_eq!(config.kernel, [(HUGE_PAGES.to_owned(), mode.to_owned())]);
        }
    }

    #[test]
    fn the_objective_and_the_load_follow_the_dilation() {
        let plan = |dilation| plan(&Setting { cpus: 3, dilation, ..Setting::default() });
        let (default, tenth) = (plan(None), plan(Some(4.5)));
        assert_eq!(default.slo.unwrap().us, 4950.0);
        assert_eq!(tenth.slo.unwrap().us, 495.0);
        let load = |plan: &Plan| plan.closeups[0];
        assert!((load(&tenth) / load(&default) - 10.0).abs() < 1e-9);
        // Half of what two CPUs can serve of 16 ms each.
        assert!((load(&default) - 62.5).abs() < 0.1, "{}", load(&default));
    }
}
