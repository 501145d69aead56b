//! Discrete-event simulator of the policies, with the parameters of the
//! experiments: what they would give if nothing but queueing mattered.
//! Reports print its numbers beside the measured ones.
//!
//! Requests find an executor when they arrive (`packets`) or wait in one queue
//! for all (`central`). Executors have a core each, or are threads that share
//! cores under a thread policy (`machine`, `queues`, `eevdf`).

mod central;
mod eevdf;
mod executor;
mod machine;
mod packets;
mod queues;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod theory;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Exp1};

use crate::load::{Arrival, Cut, Fate, LoadSummary, Stream, poisson, summarise};
use crate::wire::Class;
pub use packets::hash_map;

/// How a request finds its executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Policy {
    /// The kernel's default, a hash of the flow (or the policy `hash`): see
    /// --flow-map.
    #[default]
    #[value(alias = "hash")]
    Vanilla,
    /// Each executor in turn.
    RoundRobin,
    /// An executor that serves no SCAN and has none steered to it: some random
    /// ones are tried, then each in turn.
    ScanAvoid,
    /// SCANs to the first executors, GETs to the others, in turn.
    Sita,
    /// Of two random executors, the one with fewer requests.
    Po2,
    /// The executor with the fewest requests.
    Jsq,
    /// Requests without a token are dropped; the kernel's default for the others.
    Token,
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

impl Policy {
    fn is_central(self) -> bool {
        matches!(self, Self::CentralFifo | Self::CentralGetFirst | Self::CentralReserved)
    }
}

/// Which thread runs, where threads share cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ThreadPolicy {
    /// First come, first served.
    #[default]
    Fifo,
    /// The kernel's default.
    Eevdf,
    /// Threads that serve a GET before those that serve a SCAN, which they
    /// preempt.
    GetPriority,
}

/// Distribution of service times, around the mean of the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Spread {
    /// All equal.
    #[default]
    Fixed,
    /// Exponential.
    Exponential,
}

/// Simulates one policy and prints the summary as JSON.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  syrup-bench simulate --policy scan-avoid --rps 150000 --scan-fraction 0.005
  syrup-bench simulate --policy central-reserved --reserved 4 --rps 300000 --scan-fraction 0.005
  syrup-bench simulate --policy token --tokens-per-s 350000 --be-share 0.5 --rps 500000 --scan-fraction 0
  syrup-bench simulate --policy scan-avoid --executors 12 --cores 2 --thread-policy get-priority \\
      --rps 20.5 --scan-fraction 0.5 --get-us 1600 --scan-us 96000 --slice-us 100000 --tick-us 4000")]
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
    /// Executors: server threads, each with a socket.
    #[arg(long, default_value_t = 6)]
    pub executors: usize,
    /// Cores that the executors share; default: each has its own.
    #[arg(long)]
    pub cores: Option<usize>,
    /// Which thread runs, where they share cores.
    #[arg(long, value_enum, default_value_t = ThreadPolicy::Fifo)]
    pub thread_policy: ThreadPolicy,
    /// Slice of threads, of those that serve SCANs with get-priority; default:
    /// the kernel's for that many cores with eevdf, else none: they run until
    /// they sleep.
    #[arg(long)]
    pub slice_us: Option<f64>,
    /// A slice that is over ends at a multiple of this (4000: a kernel of 250
    /// Hz); 0: at once.
    #[arg(long, default_value_t = 0.0)]
    pub tick_us: f64,
    /// With get-priority: a GET waits for the slice of a SCAN.
    #[arg(long)]
    pub no_preempt: bool,
    /// Flows, for the hash.
    #[arg(long, default_value_t = 50)]
    pub flows: u32,
    /// The executor of each flow, as in a measured run; default: one random
    /// draw of a hash.
    #[arg(long, value_delimiter = ',')]
    pub flow_map: Option<Vec<u16>>,
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
    /// the number of executors (central queues), beside those in service; more
    /// are dropped. A socket holds as many as its SO_RCVBUF has room for the
    /// kernel's size of one packet (`truesize`, 832 bytes for a request on
    /// Linux 6.18): 256 in the default's 212992 bytes.
    #[arg(long, default_value_t = 256)]
    pub buffer: usize,
    /// Executors that never take SCANs (central-reserved).
    #[arg(long, default_value_t = 4)]
    pub reserved: usize,
    /// Executors for SCANs (sita).
    #[arg(long, default_value_t = 1)]
    pub scan_executors: usize,
    /// Tokens a second, for all users together (token).
    #[arg(long, default_value_t = 0.0)]
    pub tokens_per_s: f64,
    /// Time between refills of tokens.
    #[arg(long, default_value_t = 1000.0)]
    pub token_period_us: f64,
    /// Share of the requests that best-effort users send. They get the tokens
    /// that the others did not spend in the period before (token).
    #[arg(long, default_value_t = 0.0)]
    pub be_share: f64,
    /// Requests that count; a tenth of that before them does not.
    #[arg(long, default_value_t = 1_000_000)]
    pub requests: u64,
    /// Decides everything random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Default for Options {
    /// As on the command line, with the kernel's default policy at 100 000
    /// requests a second.
    fn default() -> Self {
        Self {
            policy: Policy::Vanilla,
            rps: 100_000.0,
            scan_fraction: 0.005,
            executors: 6,
            cores: None,
            thread_policy: ThreadPolicy::Fifo,
            slice_us: None,
            tick_us: 0.0,
            no_preempt: false,
            flows: 50,
            flow_map: None,
            get_us: 11.0,
            scan_us: 700.0,
            spread: Spread::Fixed,
            overhead_us: 0.0,
            pull_us: 0.0,
            buffer: 256,
            reserved: 4,
            scan_executors: 1,
            tokens_per_s: 0.0,
            token_period_us: 1000.0,
            be_share: 0.0,
            requests: 1_000_000,
            seed: 1,
        }
    }
}

/// Runs the simulation and prints its summary as JSON.
pub fn run(options: &Options) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(&simulate(options)?)?);
    Ok(())
}

/// What became of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// When each was answered, from the start of the run; `None`: dropped.
    pub answered_ns: Vec<Option<u64>>,
    /// How many each executor served; empty for central queues, whose
    /// executors are alike.
    pub served_by: Vec<u64>,
}

/// One request as the simulation knows it.
#[derive(Debug, Clone, Copy)]
struct Request {
    arrival: Arrival,
    service_ns: u64,
}

/// Simulates one run with arrivals of its own.
pub fn simulate(options: &Options) -> Result<LoadSummary> {
    ensure!(options.requests > 0, "--requests must be at least 1");
    ensure!(options.rps > 0.0, "--rps must be above 0");
    ensure!((0.0..=1.0).contains(&options.scan_fraction), "--scan-fraction must be 0 to 1");
    ensure!((0.0..=1.0).contains(&options.be_share), "--be-share must be 0 to 1");
    let counted_ns = options.requests as f64 / options.rps * 1e9;
    let end_ns = (counted_ns * 1.1) as u64;
    let stream = |user, share| Stream {
        user,
        ..Stream::gets_and_scans(options.rps * share, options.scan_fraction)
    };
    let streams = match options.be_share {
        0.0 => vec![stream(0, 1.0)],
        be => vec![stream(0, 1.0 - be), stream(1, be)],
    };
    let arrivals = poisson(&streams, end_ns, options.flows, options.seed)?;
    let cut = Cut {
        warmup_ns: end_ns - counted_ns as u64,
        end_ns,
        late_limit_ns: u64::MAX / 2,
        window_ns: end_ns,
        exclude_late: false,
    };
    twin(options, &streams, &arrivals, cut)
}

/// Simulates a run with given arrivals, those of a measured run: what
/// `options` says of arrivals does not matter.
pub fn twin(
    options: &Options,
    streams: &[Stream],
    arrivals: &[Arrival],
    cut: Cut,
) -> Result<LoadSummary> {
    let outcome = serve(options, arrivals)?;
    let fates: Vec<Fate> = arrivals
        .iter()
        .zip(outcome.answered_ns)
        .map(|(arrival, answered_ns)| Fate {
            sent_ns: arrival.at_ns,
            answered_ns: answered_ns.unwrap_or(0),
            overrun_ns: 0,
        })
        .collect();
    let summary = summarise(cut, streams, arrivals, &fates)?;
    Ok(LoadSummary { served_by: outcome.served_by, ..summary })
}

/// Serves given arrivals, in order of time. Those of the first stream are of
/// latency-sensitive users, the others of best-effort ones.
pub fn serve(options: &Options, arrivals: &[Arrival]) -> Result<Outcome> {
    check(options)?;
    ensure!(
        arrivals.iter().all(|arrival| arrival.flow < options.flows),
        "an arrival's flow is beyond --flows"
    );
    // Not the numbers that decided the arrivals.
    let mut random = StdRng::seed_from_u64(options.seed ^ 0x7477_696e);
    let requests: Vec<Request> = arrivals
        .iter()
        .map(|&arrival| {
            let spread = match options.spread {
                Spread::Fixed => 1.0,
                Spread::Exponential => Exp1.sample(&mut random),
            };
            let mean_us = match arrival.class {
                Class::SCAN => options.scan_us,
                _ => options.get_us,
            };
            let service_ns = ((mean_us * spread + options.overhead_us) * 1000.0) as u64;
            Request { arrival, service_ns }
        })
        .collect();
    Ok(if options.policy.is_central() {
        central::run(options, &requests)
    } else {
        machine::run(options, &requests, &mut random)
    })
}

fn check(options: &Options) -> Result<()> {
    let Options { policy, executors, .. } = *options;
    ensure!((1..=65535).contains(&executors), "--executors must be 1 to 65535");
    ensure!(options.cores != Some(0), "--cores must be at least 1");
    ensure!(
        options.cores.is_none() || !policy.is_central(),
        "the executors of a central queue have a core each: leave --cores out"
    );
    ensure!(options.buffer > 0, "--buffer must be at least 1: a socket takes a packet when empty");
    ensure!(
        policy != Policy::Sita || (1..executors).contains(&options.scan_executors),
        "--scan-executors must be at least 1 and leave an executor for GETs"
    );
    ensure!(
        policy != Policy::CentralReserved || options.reserved < executors,
        "--reserved must leave an executor for SCANs"
    );
    if policy == Policy::Token {
        ensure!(options.tokens_per_s > 0.0, "token needs --tokens-per-s");
        ensure!(options.token_period_us >= 1.0, "--token-period-us must be at least 1");
    }
    if let Some(slice_us) = options.slice_us {
        ensure!(slice_us >= 1.0, "--slice-us must be at least 1");
    }
    if let Some(map) = &options.flow_map {
        ensure!(map.len() == options.flows as usize, "--flow-map needs an executor per flow");
        ensure!(
            map.iter().all(|&executor| usize::from(executor) < executors),
            "--flow-map names an executor beyond --executors"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(policy: Policy, rps: f64) -> Options {
        Options { policy, rps, requests: 100_000, ..Options::default() }
    }

    #[test]
    fn the_seed_decides_everything() {
        let run = |seed| {
            simulate(&Options { seed, requests: 20_000, ..options(Policy::ScanAvoid, 2e5) })
                .unwrap()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn each_seed_is_a_draw_of_its_own() {
        let arrivals: Vec<Arrival> = (0..50).map(|flow| scenario::get(100, flow)).collect();
        let mut draws: Vec<Vec<u64>> = (0..16)
            .map(|seed| {
                let options = Options { seed, ..options(Policy::Vanilla, 1e5) };
                serve(&options, &arrivals).unwrap().served_by
            })
            .collect();
        draws.sort();
        draws.dedup();
        assert_eq!(draws.len(), 16);
    }

    #[test]
    fn as_many_requests_count_as_were_asked_for() {
        let summary = simulate(&options(Policy::RoundRobin, 1e5)).unwrap();
        let counted: u64 = summary.classes.iter().map(|class| class.requests).sum();
        assert!((99_000..101_000).contains(&counted), "{counted}");
        let scans = summary.class(Class::SCAN).requests;
        assert!((400..600).contains(&scans), "{scans}");
        // And a tenth before them.
        let served: u64 = summary.served_by.iter().sum();
        assert!((109_000..111_000).contains(&served), "{served}");
        assert!((99_000.0..101_000.0).contains(&summary.throughput_rps()));
    }

    #[test]
    fn a_twin_serves_the_arrivals_that_it_is_given() {
        use scenario::{executors, get, scan};
        let cut = Cut {
            warmup_ns: 50_000,
            end_ns: 300_000,
            late_limit_ns: 1,
            window_ns: 300_000,
            exclude_late: false,
        };
        let arrivals = [get(0, 0), scan(60, 0), get(100, 0), get(110, 1)];
        let summary =
            twin(&executors(2), &[Stream::gets_and_scans(1.0, 0.5)], &arrivals, cut).unwrap();
        let get = summary.class(Class::GET);
        assert_eq!((get.requests, get.drops, get.mean_us), (2, 0, (70.0 + 10.0) / 2.0));
        assert_eq!(summary.class(Class::SCAN).mean_us, 100.0);
        assert_eq!(summary.served_by, [3, 1]);
    }

    #[test]
    fn services_are_spread_as_asked_for() {
        let mean = |spread| {
            // No request ever waits.
            let options =
                Options { spread, executors: 100, overhead_us: 5.0, ..options(Policy::Jsq, 1e4) };
            let summary = simulate(&Options { scan_fraction: 0.0, ..options }).unwrap();
            (summary.class(Class::GET).mean_us, summary.class(Class::GET).p99_us)
        };
        assert_eq!(mean(Spread::Fixed), (16.0, 16.0));
        let (mean_us, p99_us) = mean(Spread::Exponential);
        // Whole microseconds are counted.
        assert!((15.2..15.8).contains(&mean_us), "{mean_us}");
        assert!((53.0..58.0).contains(&p99_us), "{p99_us}");
    }

    /// Simulated GET p99 at the two loads that reports quote, with the ranges
    /// that an independent simulation gave.
    #[test]
    fn the_published_order_of_policies_is_reproduced() {
        let p99 = |policy, rps| {
            let mut runs: Vec<f64> = (0..5)
                .map(|seed| {
                    let summary = simulate(&Options { seed, ..options(policy, rps) }).unwrap();
                    summary.class(Class::GET).p99_us
                })
                .collect();
            crate::work::median(&mut runs)
        };
        let vanilla = p99(Policy::Vanilla, 150_000.0);
        let avoid = p99(Policy::ScanAvoid, 150_000.0);
        let sita = p99(Policy::Sita, 150_000.0);
        let jsq = p99(Policy::Jsq, 150_000.0);
        let po2 = p99(Policy::Po2, 150_000.0);
        assert!((500.0..1300.0).contains(&vanilla), "{vanilla}");
        let round_robin = p99(Policy::RoundRobin, 150_000.0);
        assert!((550.0..850.0).contains(&round_robin), "{round_robin}");
        assert!(avoid < vanilla / 10.0, "{avoid}");
        assert!(sita < avoid, "{sita}");
        assert!(jsq < po2 && po2 < round_robin, "{jsq} {po2}");
        let avoid = p99(Policy::ScanAvoid, 300_000.0);
        let late = p99(Policy::CentralReserved, 300_000.0);
        assert!(p99(Policy::Sita, 300_000.0) < avoid / 5.0);
        assert!(late < avoid / 5.0 && late < 150.0, "{late}");
    }

    /// GET p99 at 39 % load, as an early demo measured it in a guest with two CPUs
    /// whose time counted instructions.
    #[test]
    fn threads_that_share_cores_do_as_was_measured_in_a_guest() {
        let p99_ms = |policy, thread_policy, slice_us| {
            let mut runs: Vec<f64> = (1..=3)
                .map(|seed| {
                    let options = Options {
                        policy,
                        thread_policy,
                        slice_us,
                        rps: 0.39 * 2e6 / 48_800.0,
                        scan_fraction: 0.5,
                        executors: 12,
                        cores: Some(2),
                        get_us: 1600.0,
                        scan_us: 96_000.0,
                        // Of the kernel, whose code is slow in such a guest.
                        overhead_us: 900.0,
                        tick_us: 4000.0,
                        requests: 5_000,
                        seed,
                        ..Options::default()
                    };
                    simulate(&options).unwrap().class(Class::GET).p99_us / 1000.0
                })
                .collect();
            crate::work::median(&mut runs)
        };
        for (policy, threads, slice_us, measured_ms) in [
            (Policy::Vanilla, ThreadPolicy::Eevdf, None, 120.0),
            (Policy::ScanAvoid, ThreadPolicy::Eevdf, None, 8.2),
            (Policy::ScanAvoid, ThreadPolicy::Eevdf, Some(1e5), 87.0),
            (Policy::Vanilla, ThreadPolicy::GetPriority, Some(2e4), 121.0),
            (Policy::ScanAvoid, ThreadPolicy::GetPriority, Some(2e4), 2.5),
        ] {
            let ratio = p99_ms(policy, threads, slice_us) / measured_ms;
            assert!((0.75..1.33).contains(&ratio), "{policy:?} {threads:?} {slice_us:?}: {ratio}");
        }
    }

    #[test]
    fn overload_drops_and_what_is_not_dropped_is_served() {
        for (policy, rps) in
            [(Policy::Sita, 6e5), (Policy::CentralFifo, 9e5), (Policy::Vanilla, 9e5)]
        {
            let summary = simulate(&options(policy, rps)).unwrap();
            assert!(summary.drops() > 0);
            for class in &summary.classes {
                assert_eq!(class.samples + class.drops, class.requests);
            }
        }
    }

    #[test]
    fn best_effort_requests_are_a_stream_of_their_own() {
        let options =
            Options { be_share: 0.75, tokens_per_s: 50_000.0, ..options(Policy::Token, 1e5) };
        let summary = simulate(&options).unwrap();
        let [ls_gets, _, be_gets, _] = &summary.classes[..] else { panic!("{summary:?}") };
        assert!((24_000..25_800).contains(&ls_gets.requests), "{}", ls_gets.requests);
        assert!((73_500..76_000).contains(&be_gets.requests), "{}", be_gets.requests);
        // Twice the tokens that they need; what they leave is a third of what
        // the others need.
        assert_eq!(ls_gets.drops, 0);
        let kept = 1.0 - be_gets.drops as f64 / be_gets.requests as f64;
        assert!((0.30..0.36).contains(&kept), "{kept}");
    }

    #[test]
    fn defaults_are_those_of_the_command_line() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: Options,
        }
        let line = ["simulate", "--policy", "hash", "--rps", "100000"];
        let parsed = <Cli as clap::Parser>::parse_from(line).options;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Options::default()));
    }

    #[test]
    fn impossible_parameters_are_refused() {
        let few = |policy| Options { requests: 10, ..options(policy, 1e5) };
        let token = || Options { tokens_per_s: 1.0, ..few(Policy::Token) };
        let cores = |policy| Options { cores: Some(2), ..few(policy) };
        let map = |flow_map| Options { flows: 2, flow_map: Some(flow_map), ..few(Policy::Vanilla) };
        let sita = |scan_executors| Options { scan_executors, ..few(Policy::Sita) };
        for good in [
            few(Policy::Vanilla),
            token(),
            cores(Policy::Vanilla),
            few(Policy::CentralGetFirst),
            map(vec![5, 0]),
            sita(5),
            Options { executors: 65_535, ..few(Policy::RoundRobin) },
            Options { reserved: 5, ..few(Policy::CentralReserved) },
            Options { be_share: 1.0, ..token() },
            Options { slice_us: Some(1.0), ..few(Policy::Vanilla) },
            Options { token_period_us: 1.0, ..token() },
            Options { executors: 1, ..few(Policy::Jsq) },
            Options { reserved: 6, scan_executors: 6, ..few(Policy::Vanilla) },
        ] {
            assert!(simulate(&good).is_ok(), "{good:?}");
        }
        for bad in [
            Options { rps: 0.0, ..few(Policy::Vanilla) },
            Options { requests: 0, ..few(Policy::Vanilla) },
            Options { executors: 0, ..few(Policy::Vanilla) },
            Options { executors: 65_536, ..few(Policy::Vanilla) },
            Options { buffer: 0, ..few(Policy::Vanilla) },
            Options { cores: Some(0), ..few(Policy::Vanilla) },
            Options { slice_us: Some(0.5), ..few(Policy::Vanilla) },
            Options { reserved: 6, ..few(Policy::CentralReserved) },
            Options { be_share: 1.1, ..token() },
            Options { token_period_us: 0.5, ..token() },
            few(Policy::Token),
            cores(Policy::CentralFifo),
            cores(Policy::CentralGetFirst),
            cores(Policy::CentralReserved),
            sita(0),
            sita(6),
            map(vec![0]),
            map(vec![0, 6]),
        ] {
            assert!(simulate(&bad).is_err(), "{bad:?}");
        }
        let beyond = [scenario::get(0, 50)];
        assert!(serve(&few(Policy::Vanilla), &beyond).is_err());
    }
}
