//! The demo: one server under one load, with no policy, a packet policy, a
//! thread policy, and both. Runs inside a virtual machine whose kernel has
//! sched_ext, as root.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::criteria::demo_configs::{
    ALL, BOTH, GET_PRIORITY, SCAN_AVOID, SCAN_AVOID_LONG_SLICE, VANILLA,
};
use super::output::Details;
use super::progress::Progress;
use super::server_process::ServerProcess;
use super::stack::{Programs, Stack};
use super::{Point, latency, output};
use crate::load::{self, LoadSummary};
use crate::priority::{self, LONGEST_SLICE_US};
use crate::wire::Class;
use crate::work::{Store, Work};

const APP: &str = "rocksdb";
const PORT: u16 = 9000;
/// Above the server, so that the load does not wait for it.
const LOAD_PRIORITY: i32 = 50;

/// RocksDB under GETs and SCANs: vanilla, a packet policy, a thread policy, both.
///
/// Runs as root on a kernel with sched_ext; `make demo` starts it in a virtual
/// machine. Configurations are interleaved: each round runs every one of them
/// once, with the same arrivals. With three CPUs or more the last one is the
/// load generator's and the others are the server's.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vm/run --icount --cpus 3 --timeout 1800 -- target/release/syrup-bench demo --out target/demo
  syrup-bench demo --configs vanilla,scan-avoid --rounds 1")]
pub struct Options {
    /// Where results.json, details.json and report.html go.
    #[arg(long, default_value = "target/demo")]
    pub out: PathBuf,
    /// Runs of each configuration.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Counted seconds of a run.
    #[arg(long, default_value_t = 40.0)]
    pub duration: f64,
    /// Seconds before them.
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// Server threads; default: 6 per CPU, at least 12. With fewer, all of them
    /// hold a SCAN at once every now and then.
    #[arg(long)]
    pub threads: Option<u32>,
    /// Offered load, as a share of what the CPUs can serve.
    #[arg(long, default_value_t = 0.5)]
    pub load: f64,
    /// Share of SCANs.
    #[arg(long, default_value_t = 0.5)]
    pub scan_fraction: f64,
    /// CPU time of a GET, dilated: as much RocksDB work as takes this long.
    #[arg(long, default_value_t = 1600.0)]
    pub get_us: f64,
    /// CPU time of a SCAN, dilated.
    #[arg(long, default_value_t = 96_000.0)]
    pub scan_us: f64,
    /// The long slice of EEVDF, dilated like the service.
    #[arg(long, default_value_t = LONGEST_SLICE_US)]
    pub slice_us: u64,
    /// Folder of the database; built when it is not there.
    #[arg(long, default_value = "target/bench-db-demo")]
    pub db: PathBuf,
    /// Keys in the database.
    #[arg(long, default_value_t = 200_000)]
    pub keys: u64,
    /// Which configurations.
    #[arg(long, value_delimiter = ',', default_values = ALL, value_parser = ALL)]
    pub configs: Vec<String>,
    /// Decides the arrivals; round N adds N.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where syrupctl and syrupd are.
    #[command(flatten)]
    pub programs: Programs,
}

/// Who runs where. On few CPUs everybody does everywhere.
struct Cpus {
    server: Vec<usize>,
    generator: Option<usize>,
}

impl Cpus {
    fn split(mut all: Vec<usize>) -> Self {
        let generator = if all.len() >= 3 { all.pop() } else { None };
        Self { server: all, generator }
    }

    fn server_list(&self) -> String {
        self.server.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
    }
}

struct Demo<'a> {
    options: &'a Options,
    stack: Stack,
    cpus: Cpus,
    work: Work,
    threads: u32,
    rps: f64,
}

/// Runs the demo and writes its report.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    ensure!(options.load > 0.0, "--load must be above 0");
    ensure!(rustix::process::geteuid().is_root(), "the demo deploys policies: run it as root");
    let runs = options.rounds * options.configs.len() as u32;
    let mut progress = Progress::new("demo", runs);

    let cpus = Cpus::split(priority::cpus()?);
    priority::set_cpus(&cpus.server)?;
    progress.say("opening the database and calibrating");
    let store = Store::open(&options.db, options.keys)?;
    let cost = store.calibrate()?;
    let work = cost.work_for(options.get_us, options.scan_us);
    let [get_us, scan_us] = Class::ALL.map(|class| cost.service_us(work, class));
    drop(store);
    let nr_cpus = cpus.server.len() as u32;
    let mean_us = get_us * (1.0 - options.scan_fraction) + scan_us * options.scan_fraction;
    let rps = options.load * f64::from(nr_cpus) * 1e6 / mean_us;
    let threads = options.threads.unwrap_or((6 * nr_cpus).max(12));
    let calibration = format!(
        "A RocksDB GET takes {:.1} us of CPU time here and a scanned key {:.3} us, so a GET \
         request is {} GETs ({}) and a SCAN request {} keys ({}).",
        cost.get_ns / 1000.0,
        cost.scan_key_ns / 1000.0,
        work.gets,
        latency(get_us),
        work.scan_keys,
        latency(scan_us),
    );
    progress.say(&calibration);
    progress.say(&format!(
        "{runs} runs of {} s: {threads} threads on {nr_cpus} CPU{}, {rps:.1} requests/s ({:.0} % load)",
        options.duration,
        if nr_cpus == 1 { "" } else { "s" },
        options.load * 100.0,
    ));

    // From here on this process, the daemon included, does its own work where the
    // generator does.
    if let Some(generator) = cpus.generator {
        priority::set_cpus(&[generator])?;
    }
    let stack = Stack::start(&options.programs)?;
    let demo = Demo { options, stack, cpus, work, threads, rps };
    let mut points: Vec<Point> = options
        .configs
        .iter()
        .map(|config| Point { config: config.clone(), load_rps: rps, runs: Vec::new() })
        .collect();
    for round in 1..=options.rounds {
        for point in &mut points {
            let summary = demo
                .run_once(&point.config, round)
                .with_context(|| format!("round {round}, {}", point.config))?;
            progress.run_done(&format!(
                "round {round} {}: p99 of GET {}, of SCAN {}, {:.1} replies/s, {} drops",
                point.config,
                latency(summary.class(Class::Get).p99_us),
                latency(summary.class(Class::Scan).p99_us),
                summary.throughput_rps(),
                summary.drops(),
            ));
            point.runs.push(summary);
        }
    }
    let details = Details {
        title: "Syrup: RocksDB with policies at two layers".to_owned(),
        method: demo.method(nr_cpus, &calibration),
        further_verdicts: Vec::new(),
        points,
        simulated: Vec::new(),
    };
    drop(demo);
    output::write(
        &options.out,
        "demo",
        "GET p99 of both layers: at least 10x below vanilla, 2x below scan-avoid alone, 10x below \
         scan-avoid with EEVDF's slice dilated like the service; SCAN p99 and throughput of both \
         layers within 15 % of the best of the others. Latencies from the intended send time, in \
         dilated time.",
        options.rounds,
        &details,
    )
}

impl Demo<'_> {
    fn run_once(&self, config: &str, round: u32) -> Result<LoadSummary> {
        self.stack.unload_all()?;
        let packets = [SCAN_AVOID, SCAN_AVOID_LONG_SLICE, BOTH].contains(&config);
        let threads = [GET_PRIORITY, BOTH].contains(&config);
        let port = PORT.to_string();
        let cpus = self.cpus.server_list();
        if packets {
            self.stack.load("socket-select", "scan-avoid", APP, &["--port", &port])?;
        }
        if threads {
            self.stack.load("scx-syrup", "get-priority", APP, &["--cpus", &cpus])?;
        }
        let mut arguments: Vec<String> = [
            ("--port", port.clone()),
            ("--cpus", cpus.clone()),
            ("--threads", self.threads.to_string()),
            ("--db", self.options.db.display().to_string()),
            ("--keys", self.options.keys.to_string()),
            ("--gets", self.work.gets.to_string()),
            ("--scan-keys", self.work.scan_keys.to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        if config != VANILLA && (packets || threads) {
            arguments.extend(["--app".to_owned(), APP.to_owned()]);
        }
        if config == SCAN_AVOID_LONG_SLICE {
            arguments.extend(["--slice-us".to_owned(), self.options.slice_us.to_string()]);
        }
        let server = ServerProcess::start(&arguments, Some(&self.stack))?;
        let summary = load::generate(&load::Options {
            port: PORT,
            rps: self.rps,
            flows: 50,
            scan_fraction: self.options.scan_fraction,
            duration: self.options.duration,
            warmup: self.options.warmup,
            // A queue of SCANs that built up is served, not dropped.
            grace: 10.0,
            user: 0,
            seed: self.options.seed + u64::from(round),
            late_us: 2000,
            window_ms: 200,
            cpu: self.cpus.generator,
            fifo: Some(LOAD_PRIORITY),
        })?;
        // A number that no policy had a hand in would say nothing.
        for (hook, used) in [("socket-select", packets), ("scx-syrup", threads)] {
            if used {
                let chosen = self.stack.counter(hook, APP, "chosen")?;
                ensure!(chosen > 0, "the policy at {hook} never chose anything");
            }
        }
        server.stop()?;
        Ok(summary)
    }

    fn method(&self, cpus: u32, calibration: &str) -> Vec<String> {
        let options = self.options;
        let slice = std::fs::read_to_string("/sys/kernel/debug/sched/base_slice_ns")
            .ok()
            .and_then(|text| text.trim().parse::<f64>().ok())
            .map_or("the kernel's default".to_owned(), |ns| format!("{:.1} ms", ns / 1e6));
        vec![
            format!(
                "A RocksDB server with {} threads, each with a SO_REUSEPORT socket of its own, on \
                 {cpus} CPU{} of a virtual machine with Linux {}. Open-loop Poisson load of {:.1} \
                 requests/s over 50 flows ({:.0} % of what the CPUs can serve), {:.0} % SCANs, {} s \
                 a run after {} s of warm-up; {} rounds, each with its own arrivals, in which all \
                 configurations meet the same ones. Latency counts from the time a request should \
                 have been sent. The share of requests in windows where the sender kept time \
                 stands under 'kept'; others are left out.",
                self.threads,
                if cpus == 1 { "" } else { "s" },
                output::kernel_release(),
                self.rps,
                options.load * 100.0,
                options.scan_fraction * 100.0,
                options.duration,
                options.warmup,
                options.rounds,
            ),
            calibration.to_owned(),
            format!(
                "Services are dilated: they are longer than real ones, in the proportion of real \
                 ones. A dilated service needs a dilated slice: real SCANs (0.7 ms) end before \
                 EEVDF's slice does, dilated ones do not, and EEVDF then rescues GETs by \
                 time-slicing. So scan-avoid is measured twice: with EEVDF's default slice ({slice}) \
                 and with {} ms, the longest that sched_setattr grants.",
                options.slice_us / 1000,
            ),
            "vanilla: no policy. scan-avoid: `syrupctl load socket-select --policy scan-avoid`. \
             get-priority: `syrupctl load scx-syrup --policy get-priority`. both: both, sharing the \
             Map request_type, in which the socket policy writes the type of a request before the \
             thread that will serve it wakes. Thread scheduling alone cannot help: GETs wait in \
             the sockets, behind SCANs."
                .to_owned(),
            "The machine of `make demo` collapses no huge pages: khugepaged is an ordinary kernel \
             thread, which outranks every sched_ext thread and, emulated, holds the CPU for a \
             tenth of a second at a time."
                .to_owned(),
            "Where the host has no KVM, the guest's time counts instructions, so that it does not \
             depend on what else the host does. Its CPUs then take turns of microseconds on one \
             thread of the host and share its speed: each is faster while others sleep. The \
             calibration is of CPUs that are all busy. Kernel code looks slow in such a guest: these numbers compare schedulers, they \
             are no measure of overhead."
                .to_owned(),
        ]
    }
}
