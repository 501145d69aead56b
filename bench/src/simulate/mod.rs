//! Discrete-event simulator of the policies, with the parameters of the
//! experiments: what they would give if nothing but queueing mattered.
//! Reports print its numbers beside the measured ones.

mod central;
mod early;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Exp, Exp1};

use crate::load::{Arrival, Cut, Fate, LoadSummary, summarise};
use crate::wire::Class;

/// How a request finds its executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// The kernel's default: a hash of the flow.
    Vanilla,
    /// Each executor in turn.
    RoundRobin,
    /// An executor that serves no SCAN and has none steered to it: some random
    /// ones are tried, then each in turn.
    ScanAvoid,
    /// SCANs to executor 0, GETs to the others in turn.
    Sita,
    /// The executor with the least work, known in advance: a bound for early
    /// binding.
    Oracle,
    /// One queue for all, first come first served.
    CentralFifo,
    /// One queue for all, GETs first.
    CentralGetFirst,
    /// The same, and some executors never take SCANs.
    CentralReserved,
}

/// Distribution of service times, around the mean of the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Spread {
    /// All equal.
    Fixed,
    /// Exponential.
    Exponential,
}

/// Simulates one policy and prints the summary as JSON.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  syrup-bench simulate --policy scan-avoid --rps 150000 --scan-fraction 0.005
  syrup-bench simulate --policy central-reserved --reserved 4 --rps 300000 --scan-fraction 0.005")]
pub struct Options {
    /// How a request finds its executor.
    #[arg(long, value_enum)]
    pub policy: Policy,
    /// Mean requests per second.
    #[arg(long)]
    pub rps: f64,
    /// Share of SCAN requests, 0 to 1.
    #[arg(long, default_value_t = 0.005)]
    pub scan_fraction: f64,
    /// Executors.
    #[arg(long, default_value_t = 6)]
    pub executors: usize,
    /// Flows, for the hash.
    #[arg(long, default_value_t = 50)]
    pub flows: u32,
    /// Mean service time of a GET.
    #[arg(long, default_value_t = 11.0)]
    pub get_us: f64,
    /// Mean service time of a SCAN.
    #[arg(long, default_value_t = 700.0)]
    pub scan_us: f64,
    /// Distribution of service times.
    #[arg(long, value_enum, default_value_t = Spread::Fixed)]
    pub spread: Spread,
    /// Added to each service: receive, reply, wake-up.
    #[arg(long, default_value_t = 0.0)]
    pub overhead_us: f64,
    /// Central queues: added to each service, the cost of pulling.
    #[arg(long, default_value_t = 0.0)]
    pub pull_us: f64,
    /// Requests that may wait at one executor (early binding), or in all times
    /// the number of executors (central queues); more are dropped. The default
    /// is what the kernel's default receive buffer holds.
    #[arg(long, default_value_t = 256)]
    pub buffer: usize,
    /// Executors that never take SCANs (central-reserved).
    #[arg(long, default_value_t = 4)]
    pub reserved: usize,
    /// Requests that count; a tenth of that before them does not.
    #[arg(long, default_value_t = 1_000_000)]
    pub requests: u64,
    /// Decides everything random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs the simulation and prints its summary as JSON.
pub fn run(options: &Options) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(&simulate(options)?)?);
    Ok(())
}

/// One request as the simulation knows it.
#[derive(Debug, Clone, Copy)]
struct Request {
    arrival: Arrival,
    service_ns: u64,
}

/// Simulates one run.
pub fn simulate(options: &Options) -> Result<LoadSummary> {
    ensure!(options.executors > 0, "--executors must be at least 1");
    ensure!(options.rps > 0.0, "--rps must be above 0");
    ensure!((0.0..=1.0).contains(&options.scan_fraction), "--scan-fraction must be 0 to 1");
    ensure!(options.requests <= 100_000_000, "--requests is at most 100000000");
    if options.policy == Policy::Sita && options.executors < 2 {
        bail!("sita needs at least 2 executors");
    }
    if options.policy == Policy::CentralReserved && options.reserved >= options.executors {
        bail!("--reserved must leave an executor for SCANs");
    }
    let mut random = StdRng::seed_from_u64(options.seed);
    let requests = requests(options, &mut random)?;
    let answered = match options.policy {
        Policy::CentralFifo | Policy::CentralGetFirst | Policy::CentralReserved => {
            central::run(options, &requests)
        }
        _ => early::run(options, &requests, &mut random),
    };
    let arrivals: Vec<Arrival> = requests.iter().map(|request| request.arrival).collect();
    let fates: Vec<Fate> = arrivals
        .iter()
        .zip(answered)
        .map(|(arrival, answered_ns)| Fate {
            sent_ns: arrival.at_ns,
            answered_ns: answered_ns.unwrap_or(0),
            overrun_ns: 0,
        })
        .collect();
    let end_ns = arrivals.last().map_or(1, |last| last.at_ns + 1);
    let cut =
        Cut { warmup_ns: end_ns / 11, end_ns, late_limit_ns: u64::MAX / 2, window_ns: end_ns };
    summarise(options.rps, cut, &arrivals, &fates)
}

fn requests(options: &Options, random: &mut StdRng) -> Result<Vec<Request>> {
    let gap = Exp::new(options.rps / 1e9)?;
    let mut at = 0.0;
    Ok((0..options.requests + options.requests / 10)
        .map(|_| {
            at += gap.sample(random);
            let scan = random.random_bool(options.scan_fraction);
            let flow = random.random_range(0..options.flows.max(1));
            let spread = match options.spread {
                Spread::Fixed => 1.0,
                Spread::Exponential => Exp1.sample(random),
            };
            let mean_us = if scan { options.scan_us } else { options.get_us };
            Request {
                arrival: Arrival {
                    at_ns: at as u64,
                    flow,
                    class: if scan { Class::Scan } else { Class::Get },
                    key: 0,
                },
                service_ns: ((mean_us * spread + options.overhead_us) * 1000.0) as u64,
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(policy: Policy, rps: f64) -> Options {
        Options {
            policy,
            rps,
            scan_fraction: 0.005,
            executors: 6,
            flows: 50,
            get_us: 11.0,
            scan_us: 700.0,
            spread: Spread::Fixed,
            overhead_us: 0.0,
            pull_us: 0.0,
            buffer: 256,
            reserved: 4,
            requests: 400_000,
            seed: 1,
        }
    }

    fn one_executor(spread: Spread) -> Options {
        Options {
            executors: 1,
            scan_fraction: 0.0,
            get_us: 10.0,
            spread,
            buffer: usize::MAX,
            requests: 1_000_000,
            ..options(Policy::RoundRobin, 70_000.0)
        }
    }

    fn close(value: f64, expected: f64, tolerance: f64) {
        assert!((value / expected - 1.0).abs() < tolerance, "{value} instead of {expected}");
    }

    #[test]
    fn one_exponential_executor_is_m_m_1() {
        // Mean time in the system: service / (1 - load).
        let summary = simulate(&one_executor(Spread::Exponential)).unwrap();
        close(summary.class(Class::Get).mean_us, 10.0 / 0.3, 0.05);
        // The time in the system is exponential: p99 is ln(100) means.
        close(summary.class(Class::Get).p99_us, 10.0 / 0.3 * 100f64.ln(), 0.06);
    }

    #[test]
    fn one_fixed_executor_is_m_d_1() {
        // Mean wait: load * service / (2 (1 - load)).
        let summary = simulate(&one_executor(Spread::Fixed)).unwrap();
        close(summary.class(Class::Get).mean_us, 10.0 + 0.7 * 10.0 / (2.0 * 0.3), 0.05);
    }

    #[test]
    fn early_binding_with_an_oracle_is_the_central_queue() {
        for (rps, scan_fraction) in [(200_000.0, 0.005), (400_000.0, 0.005), (15_000.0, 0.5)] {
            let run = |policy| {
                simulate(&Options { scan_fraction, buffer: 1_000_000, ..options(policy, rps) })
                    .unwrap()
            };
            assert_eq!(run(Policy::Oracle), run(Policy::CentralFifo));
        }
    }

    #[test]
    fn the_seed_decides_everything() {
        let run = |seed| simulate(&Options { seed, ..options(Policy::ScanAvoid, 2e5) }).unwrap();
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    /// Simulated GET p99 at the two loads that reports quote, with the ranges
    /// that an independent simulation gave.
    #[test]
    fn the_published_order_of_policies_is_reproduced() {
        let p99 = |policy, rps| {
            let mut runs: Vec<f64> = (0..5)
                .map(|seed| {
                    simulate(&Options { seed, ..options(policy, rps) })
                        .unwrap()
                        .class(Class::Get)
                        .p99_us
                })
                .collect();
            crate::work::median(&mut runs)
        };
        let vanilla = p99(Policy::Vanilla, 150_000.0);
        let avoid = p99(Policy::ScanAvoid, 150_000.0);
        let sita = p99(Policy::Sita, 150_000.0);
        assert!((500.0..1300.0).contains(&vanilla), "{vanilla}");
        assert!((550.0..850.0).contains(&p99(Policy::RoundRobin, 150_000.0)));
        assert!(avoid < vanilla / 10.0, "{avoid}");
        assert!(sita < avoid, "{sita}");
        let avoid = p99(Policy::ScanAvoid, 300_000.0);
        let late = p99(Policy::CentralReserved, 300_000.0);
        assert!(p99(Policy::Sita, 300_000.0) < avoid / 5.0);
        assert!(late < avoid / 5.0 && late < 150.0, "{late}");
    }

    #[test]
    fn a_full_buffer_drops() {
        let summary =
            simulate(&Options { requests: 100_000, ..options(Policy::Sita, 600_000.0) }).unwrap();
        assert!(summary.class(Class::Scan).drops > 0);
        for policy in [Policy::CentralFifo, Policy::Vanilla] {
            let over = simulate(&Options { requests: 200_000, ..options(policy, 900_000.0) });
            assert!(over.unwrap().drops() > 0);
        }
    }

    #[test]
    fn impossible_parameters_are_refused() {
        let refused = |options: &Options| simulate(options).is_err();
        assert!(refused(&Options { executors: 1, ..options(Policy::Sita, 1.0) }));
        assert!(refused(&Options { reserved: 6, ..options(Policy::CentralReserved, 1.0) }));
        assert!(refused(&options(Policy::Vanilla, 0.0)));
    }
}
