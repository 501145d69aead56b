//! The native experiment: the packet policies on this machine's own kernel, in
//! dilated time. Six executors cannot burn CPU on two cores, so a service is a
//! sleep to an absolute deadline; packets, UDP stack, BPF programs and Maps are
//! the real ones.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::criteria::native_configs::{ALL, LOADS, ROUND_ROBIN, SCAN_AVOID, SITA, VANILLA};
use super::criteria::{Bound, Verdict};
use super::output::Details;
use super::progress::Progress;
use super::server_process::ServerProcess;
use super::stack::{Programs, Stack};
use super::{Point, Spread, latency, output};
use crate::cost;
use crate::load::{self, LoadSummary};
use crate::simulate::{self, Policy, simulate};
use crate::wire::Class;

const APP: &str = "bench";
const PORT: u16 = 9000;
const EXECUTORS: u32 = 6;
const FLOWS: u32 = 50;
/// Undilated.
const GET_US: f64 = 11.0;
const SCAN_US: f64 = 700.0;
const SCAN_FRACTION: f64 = 0.005;
const SERVER_PRIORITY: i32 = 40;
/// Above the server: a late sender spoils a window.
const LOAD_PRIORITY: i32 = 50;

/// Packet policies on this kernel, in dilated time; measured and simulated.
///
/// Runs as root, in a network namespace of its own. Six server threads sleep
/// where real ones would work, so that two cores are enough; everything is
/// reported in undilated time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  syrup-bench native
  syrup-bench native --quick --out /tmp/native")]
pub struct Options {
    /// Where results.json, details.json and report.html go.
    #[arg(long, default_value = "target/native")]
    pub out: PathBuf,
    /// How much slower than real time; 50 is the smallest faithful one.
    #[arg(long, default_value_t = 50.0)]
    pub scale: f64,
    /// Runs of each configuration but vanilla at the low load.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Runs of vanilla at the low load: each is a new draw of the hash.
    #[arg(long, default_value_t = 20)]
    pub draws: u32,
    /// Counted seconds of a run.
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    /// Counted seconds of a hash draw.
    #[arg(long, default_value_t = 5.0)]
    pub draw_duration: f64,
    /// One round, six draws, shorter runs: to see that it works.
    #[arg(long)]
    pub quick: bool,
    /// Decides the arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where syrupctl and syrupd are.
    #[command(flatten)]
    pub programs: Programs,
}

struct Plan {
    rounds: u32,
    draws: u32,
    duration: f64,
    draw_duration: f64,
}

impl Plan {
    fn of(options: &Options) -> Self {
        if options.quick {
            Self { rounds: 1, draws: 6, duration: 5.0, draw_duration: 3.0 }
        } else {
            Self {
                rounds: options.rounds,
                draws: options.draws,
                duration: options.duration,
                draw_duration: options.draw_duration,
            }
        }
    }

    /// Runs of a point in a round, so that draws are spread over the rounds.
    fn runs(&self, config: &str, load: f64, round: u32) -> u32 {
        if config == VANILLA && load == LOADS[0] {
            (round + 1) * self.draws / self.rounds - round * self.draws / self.rounds
        } else {
            1
        }
    }

    fn seconds(&self, config: &str, load: f64) -> f64 {
        if config == VANILLA && load == LOADS[0] { self.draw_duration } else { self.duration }
    }
}

/// Runs the experiment and writes its report.
pub fn run(options: &Options) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the experiment deploys policies: run it as root"
    );
    ensure!(options.scale >= 1.0, "--scale must be at least 1");
    ensure!(options.rounds > 0 && options.draws > 0, "--rounds and --draws must be at least 1");
    let plan = Plan::of(options);
    crate::namespace::enter_new().context("cannot make a network namespace")?;
    let runs: u32 = (0..plan.rounds)
        .flat_map(|round| ALL.iter().map(move |config| (round, config)))
        .map(|(round, config)| {
            LOADS.iter().map(|&load| plan.runs(config, load, round)).sum::<u32>()
        })
        .sum();
    let mut progress = Progress::new("native", runs);
    let stack = Stack::start(&options.programs)?;

    let mut points: Vec<Point> = LOADS
        .iter()
        .flat_map(|&load_rps| {
            ALL.iter().map(move |config| Point {
                config: (*config).to_owned(),
                load_rps,
                runs: Vec::new(),
            })
        })
        .collect();
    let mut seed = options.seed;
    for round in 0..plan.rounds {
        for config in ALL {
            stack.unload_all()?;
            let server = start(options, &stack, config)?;
            for point in points.iter_mut().filter(|point| point.config == config) {
                for _ in 0..plan.runs(config, point.load_rps, round) {
                    seed += 1;
                    let seconds = plan.seconds(config, point.load_rps);
                    let summary = load_once(options, point.load_rps, seconds, seed)?;
                    progress.run_done(&format!(
                        "round {} {config} at {:.0} K: p99 of GET {}, of SCAN {}, {} drops, \
                         {:.0} % kept",
                        round + 1,
                        point.load_rps / 1000.0,
                        latency(summary.class(Class::Get).p99_us),
                        latency(summary.class(Class::Scan).p99_us),
                        summary.drops(),
                        summary.kept_share * 100.0,
                    ));
                    point.runs.push(summary);
                }
            }
            if config != VANILLA {
                let chosen = stack.counter("socket-select", APP, "chosen")?;
                ensure!(chosen > 0, "{config} never chose anything");
            }
            server.stop()?;
        }
    }
    stack.unload_all()?;
    progress.say("measuring what the mechanism costs in undilated time");
    let cost = cost::measure(&stack, PORT)?;
    drop(stack);
    progress.say("simulating the same");
    let simulated = simulated(options, &plan, &points)?;

    let hash = spread_over_executors(&points, VANILLA);
    let in_turn = spread_over_executors(&points, ROUND_ROBIN);
    let mut further_verdicts = vec![
        Verdict::new(
            "requests per socket, max/mean, round-robin (50 flows over 6 sockets)",
            Some(in_turn.max),
            Bound::AtMost(1.02),
        ),
        Verdict::new(
            "requests per socket, max/mean, the default hash (median of the draws)",
            Some(hash.median),
            Bound::AtLeast(1.2),
        ),
    ];
    further_verdicts.extend(cost.verdicts());
    let details = Details {
        title: "Syrup: packet policies on this kernel, in dilated time".to_owned(),
        method: method(options, &plan, hash, &cost),
        further_verdicts,
        points,
        simulated,
    };
    output::write(
        &options.out,
        "native",
        "At 150 K: GET p99 of scan-avoid at least 10x below vanilla; at 300 K: GET p99 of sita \
         below scan-avoid (look at both tails). Round-robin spreads 50 flows over 6 sockets with \
         max/mean <= 1.02, the default hash with >= 1.2. Loads and latencies in undilated time, \
         latencies from the intended send time.",
        plan.rounds,
        &details,
    )
}

fn start(options: &Options, stack: &Stack, config: &str) -> Result<ServerProcess> {
    let port = PORT.to_string();
    if config != VANILLA {
        stack.load("socket-select", config, APP, &["--port", &port])?;
    }
    let mut arguments: Vec<String> = [
        ("--port", port),
        ("--threads", EXECUTORS.to_string()),
        ("--service", "sleep".to_owned()),
        ("--get-us", (GET_US * options.scale).to_string()),
        ("--scan-us", (SCAN_US * options.scale).to_string()),
        ("--fifo", SERVER_PRIORITY.to_string()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect();
    if config != VANILLA {
        arguments.extend(["--app".to_owned(), APP.to_owned()]);
    }
    ServerProcess::start(&arguments, Some(stack))
}

fn load_once(options: &Options, load_rps: f64, seconds: f64, seed: u64) -> Result<LoadSummary> {
    let summary = load::generate(&load::Options {
        port: PORT,
        rps: load_rps / options.scale,
        flows: FLOWS,
        scan_fraction: SCAN_FRACTION,
        duration: seconds,
        warmup: 0.5,
        // The longest queue that a socket's buffer holds is served by then.
        grace: 3.0,
        user: 0,
        seed,
        // As much as one undilated GET.
        late_us: (GET_US * options.scale) as u64,
        window_ms: 100,
        cpu: None,
        fifo: Some(LOAD_PRIORITY),
    })?;
    Ok(summary.undilated(options.scale))
}

/// Requests per executor, largest over mean, in the runs at the low load,
/// where nothing is dropped.
fn spread_over_executors(points: &[Point], config: &str) -> Spread {
    let runs = points
        .iter()
        .filter(|point| point.config == config && point.load_rps == LOADS[0])
        .flat_map(|point| &point.runs);
    Spread::of(runs.map(|run| max_over_mean(&run.served_by, EXECUTORS as usize)).collect())
}

fn max_over_mean(served_by: &[u64], executors: usize) -> f64 {
    let max = served_by.iter().copied().max().unwrap_or(0) as f64;
    let mean = served_by.iter().sum::<u64>() as f64 / executors as f64;
    max / mean
}

/// The same points, with queueing alone.
fn simulated(options: &Options, plan: &Plan, points: &[Point]) -> Result<Vec<Point>> {
    points
        .iter()
        .map(|point| {
            let policy = match point.config.as_str() {
                ROUND_ROBIN => Policy::RoundRobin,
                SCAN_AVOID => Policy::ScanAvoid,
                SITA => Policy::Sita,
                _ => Policy::Vanilla,
            };
            // As many requests as were measured: a longer run of an overloaded
            // executor would be another experiment.
            let seconds = plan.seconds(&point.config, point.load_rps);
            let requests = (point.load_rps / options.scale * seconds) as u64;
            let runs = (0..point.runs.len() as u64)
                .map(|run| {
                    simulate(&simulate::Options {
                        policy,
                        rps: point.load_rps,
                        scan_fraction: SCAN_FRACTION,
                        executors: EXECUTORS as usize,
                        flows: FLOWS,
                        get_us: GET_US,
                        scan_us: SCAN_US,
                        requests,
                        seed: options.seed + run,
                        ..simulate::Options::default()
                    })
                })
                .collect::<Result<_>>()?;
            Ok(Point { runs, ..point.clone() })
        })
        .collect()
}

fn method(options: &Options, plan: &Plan, hash: Spread, cost: &cost::Cost) -> Vec<String> {
    vec![
        format!(
            "Linux {} on this machine, {EXECUTORS} server threads with a SO_REUSEPORT socket each, \
             in a network namespace of their own; {:.1} % SCANs; a GET is {GET_US} us, a SCAN \
             {SCAN_US} us. Time is dilated {} times: a service is a sleep to an absolute deadline \
             that many times as long, arrivals are as much slower, and all numbers here are \
             divided by it again. A service that follows another starts at the deadline of the one \
             before, so that sleeping too long does not add up. Threads are SCHED_FIFO.",
            output::kernel_release(),
            SCAN_FRACTION * 100.0,
            options.scale,
        ),
        format!(
            "Open-loop Poisson load over {FLOWS} flows, latency from the intended send time. \
             Windows of 100 ms in which the sender was late by a GET, or a service slept as much too \
             long, and the one after, are left out; the share kept stands under 'kept'. {} rounds of {} s, interleaved; vanilla at \
             150 K is a lottery over the hash, so it has {} draws of {} s. The hash's max/mean \
             was {:.2} to {:.2}.",
            plan.rounds, plan.duration, plan.draws, plan.draw_duration, hash.min, hash.max,
        ),
        format!(
            "Dilation makes the mechanism look {} times cheaper than it is. Undilated: {}. It \
             shows nothing about preemption or contention for cores.",
            options.scale,
            cost.sentence(),
        ),
        "Simulated: the same policies, services, flows and buffers with nothing but queueing, as \
         many requests as were measured."
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_spread_over_the_rounds() {
        let plan = Plan { rounds: 3, draws: 20, duration: 10.0, draw_duration: 5.0 };
        let draws: Vec<u32> = (0..3).map(|round| plan.runs(VANILLA, LOADS[0], round)).collect();
        assert_eq!(draws, [6, 7, 7]);
        assert_eq!(plan.runs(VANILLA, LOADS[1], 0), 1);
        assert_eq!(plan.runs(SITA, LOADS[0], 2), 1);
    }

    #[test]
    fn an_even_spread_is_one_and_idle_executors_count() {
        assert_eq!(max_over_mean(&[10, 10, 10], 3), 1.0);
        assert_eq!(max_over_mean(&[30], 3), 3.0);
        assert_eq!(max_over_mean(&[20, 10, 30], 3), 1.5);
    }
}
