//! An experiment is a table: who is served how, under which load, how often,
//! and what has to come out. Everything that runs, judges and draws reads it
//! from here; a new experiment is a file in `tables/`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::criteria::{Criterion, Slo};
use super::stack::Stack;
use crate::load;
use crate::simulate;
use crate::wire::Class;

/// What a table may depend on. Kept beside the runs: whoever judges them later,
/// perhaps on another machine, gets the same table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Args)]
pub struct Setting {
    /// Few and short runs, to see that it works; their numbers say little, so
    /// they go to a folder of their own and criteria on them do not decide.
    #[arg(long)]
    pub quick: bool,
    /// Decides arrivals, source ports and the order of the configurations.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Rounds: more than the experiment's own number.
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Folder of the database, for experiments that use one; built when it is
    /// not there [default: target/bench-db-demo].
    #[arg(long)]
    pub db: Option<PathBuf>,
    /// Keys in it [default: 200000].
    #[arg(long)]
    pub keys: Option<u64>,
    /// The demo: how many times longer than real ones its requests take; as little
    /// as the machine allows [default: 45, for emulated CPUs].
    #[arg(long)]
    pub dilation: Option<f64>,
    /// CPUs of the machine that ran it.
    #[arg(skip)]
    pub cpus: u32,
}

impl Setting {
    /// How many CPUs the server has where the load generator has its own.
    #[must_use]
    pub fn server_cpus(&self) -> u32 {
        if self.cpus >= 3 { self.cpus - 1 } else { self.cpus }
    }

    /// Folder of the database.
    #[must_use]
    pub fn db(&self) -> PathBuf {
        self.db.clone().unwrap_or_else(|| "target/bench-db-demo".into())
    }

    /// Keys in it.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.keys.unwrap_or(200_000)
    }
}

/// An experiment. What is not serialised may change without making the runs
/// that were measured before another experiment.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Its name on the command line and of its folder.
    #[serde(skip)]
    pub name: &'static str,
    /// Headline of the report.
    #[serde(skip)]
    pub title: String,
    /// What the numbers have to show, in words.
    #[serde(skip)]
    pub claim: String,
    /// What is compared.
    #[serde(skip)]
    pub configs: Vec<Config>,
    /// Who asks for what.
    pub streams: Vec<Stream>,
    /// The loads: requests per second of all streams, in undilated time.
    #[serde(skip)]
    pub loads: Vec<f64>,
    /// Fewest for its criteria to mean something; more may be asked for.
    #[serde(skip)]
    pub rounds: u32,
    /// Counted seconds of a run, as the clock shows them.
    pub seconds: f64,
    /// Seconds before them.
    pub warmup_s: f64,
    /// Seconds without a reply after which the missing ones are drops.
    pub grace_s: f64,
    /// How many times slower than what it stands for everything is; numbers are
    /// divided by it.
    pub scale: f64,
    /// How many times longer than real ones services take, whether or not numbers
    /// are divided by it.
    #[serde(skip)]
    pub dilation: f64,
    /// Source ports.
    pub flows: u32,
    /// Threads of the server, each with a socket.
    pub threads: u32,
    /// What a request takes.
    pub service: Service,
    /// Further flags of `syrup-bench server`.
    pub server: Vec<String>,
    /// Priority (SCHED_FIFO) of the load generator.
    pub load_fifo: i32,
    /// Beyond this a sender, or a service that slept, was late.
    pub late_us: u64,
    /// Being late spoils this much time, and as much after it.
    pub window_ms: u64,
    /// Leave out the windows in which one was: only where no policy can be the
    /// cause.
    pub exclude_late: bool,
    /// With three CPUs or more the last one is the load generator's, and the
    /// others are the server's: see [`Setting::server_cpus`].
    pub generator_cpu: bool,
    /// Run in a new network namespace.
    pub own_network: bool,
    /// Have the kernel account the time of the packet programs.
    pub count_run_time: bool,
    /// Measured once per round, without load.
    #[serde(skip)]
    pub probes: Vec<Probe>,
    /// What has to come out.
    #[serde(skip)]
    pub criteria: Vec<Criterion>,
    /// Drawn into the plots.
    #[serde(skip)]
    pub slo: Option<Slo>,
    /// Loads whose distributions are drawn.
    #[serde(skip)]
    pub closeups: Vec<f64>,
    /// How it was measured: paragraphs of the report.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// One of the things that are compared.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a line, with whatever favours it: slices above all.
    #[serde(skip)]
    pub what: String,
    /// Policies that are loaded for the server's app.
    pub policies: Vec<Policy>,
    /// Further flags of `syrup-bench server`.
    pub server: Vec<String>,
    /// Settings of the kernel while it runs: a file below /sys or /proc/sys, and
    /// what is written to it. Restored afterwards.
    pub kernel: Vec<(String, String)>,
    /// Its loads, where they are not the plan's in every round: the load, and in
    /// one of how many rounds it is met, the first included.
    #[serde(skip)]
    pub loads: Vec<(f64, u32)>,
    /// Its twin in the simulator: policy, cores and slices, in undilated time.
    /// Executors, services, flows and requests are those of the plan.
    #[serde(skip)]
    pub twin: Option<simulate::Options>,
    /// Its threads may starve, and that is what it shows: its thread policy is live
    /// although many of them had to be rescued.
    #[serde(skip)]
    pub may_starve: bool,
}

/// A policy of a configuration.
#[derive(Debug, Clone, Serialize)]
pub struct Policy {
    /// Where.
    pub hook: &'static str,
    /// `syrupctl load HOOK --policy` takes it.
    pub policy: String,
    /// NAME=VALUE, as `--set` takes them.
    pub settings: Vec<String>,
}

/// Requests of one user.
#[derive(Debug, Clone, Serialize)]
pub struct Stream {
    /// User number in its requests.
    pub user: u32,
    /// How much of the load it is.
    pub rate: Rate,
    /// What its requests ask for, and how often.
    pub mix: Vec<Part>,
}

/// How many requests a stream sends.
#[derive(Debug, Clone, Copy, Serialize)]
pub enum Rate {
    /// This share of the load.
    Share(f64),
    /// So many that with the load they are this many per second.
    RestOf(f64),
}

/// A class of requests: a row of the results.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// Its name, unique in the plan.
    pub name: &'static str,
    /// Its number on the wire.
    pub number: u8,
    /// Share of the stream, 0 to 1.
    pub share: f64,
}

/// What a request takes.
#[derive(Debug, Clone, Serialize)]
pub enum Service {
    /// A sleep of so many undilated microseconds, by class number from 1.
    Sleep {
        /// Microseconds.
        us: Vec<f64>,
    },
    /// RocksDB work of so much CPU time, calibrated on the machine.
    RocksDb {
        /// Of a GET, in undilated microseconds.
        get_us: f64,
        /// Of a SCAN.
        scan_us: f64,
    },
}

/// What a [`Probe`] measured: names and numbers.
pub type Readings = Vec<(String, f64)>;

/// Something that is measured once per round, with nothing deployed before.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Its name.
    pub name: &'static str,
    /// Measures: names and numbers.
    pub measure: fn(&Stack) -> Result<Readings>,
}

impl Config {
    /// A configuration with nothing but its name.
    #[must_use]
    pub fn new(name: &'static str, what: &str) -> Self {
        Self {
            name,
            what: what.to_owned(),
            policies: Vec::new(),
            server: Vec::new(),
            kernel: Vec::new(),
            loads: Vec::new(),
            twin: None,
            may_starve: false,
        }
    }

    /// With a policy at `hook`; `settings` are NAME=VALUE.
    #[must_use]
    pub fn policy(mut self, hook: &'static str, policy: &str, settings: &[&str]) -> Self {
        self.policies.push(Policy {
            hook,
            policy: policy.to_owned(),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
        });
        self
    }

    /// With a twin in the simulator, whose executors have a core each.
    #[must_use]
    pub fn twin(self, policy: simulate::Policy) -> Self {
        self.twin_with(simulate::Options { policy, ..simulate::Options::default() })
    }

    /// With a twin in the simulator.
    #[must_use]
    pub fn twin_with(mut self, twin: simulate::Options) -> Self {
        self.twin = Some(twin);
        self
    }

    /// With further flags of the server.
    #[must_use]
    pub fn server(mut self, flags: &[&str]) -> Self {
        self.server.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// With a setting of the kernel while it runs.
    #[must_use]
    pub fn kernel(mut self, file: &str, value: &str) -> Self {
        self.kernel.push((file.to_owned(), value.to_owned()));
        self
    }

    /// Whose threads may starve.
    #[must_use]
    pub fn may_starve(self) -> Self {
        Self { may_starve: true, ..self }
    }

    /// At these loads in one of `every` rounds; loads that are never named are not
    /// met.
    #[must_use]
    pub fn at(mut self, loads: &[f64], every: u32) -> Self {
        self.loads.extend(loads.iter().map(|&load| (load, every)));
        self
    }

    /// Whether the kernel's hash chooses the sockets: each round is then another
    /// draw, and the requests of several are no samples of one distribution.
    #[must_use]
    pub fn rounds_are_draws(&self) -> bool {
        !self.policies.iter().any(|policy| policy.hook == "socket-select")
            && !self.server.iter().any(|flag| flag == "--bare")
    }
}

impl Stream {
    /// GETs and this share of SCANs, of one user.
    #[must_use]
    pub fn gets_and_scans(scan_fraction: f64) -> Self {
        let part = |name, class: Class, share| Part { name, number: class.number() as u8, share };
        let mut mix = vec![part("GET", Class::GET, 1.0 - scan_fraction)];
        if scan_fraction > 0.0 {
            mix.push(part("SCAN", Class::SCAN, scan_fraction));
        }
        Self { user: 0, rate: Rate::Share(1.0), mix }
    }

    /// Its requests per second when the load is `load_rps`.
    #[must_use]
    pub fn rps(&self, load_rps: f64) -> f64 {
        match self.rate {
            Rate::Share(share) => share * load_rps,
            Rate::RestOf(total) => (total - load_rps).max(0.0),
        }
    }
}

impl Service {
    /// Undilated microseconds of a class.
    #[must_use]
    pub fn us(&self, class: Class) -> f64 {
        match self {
            Self::Sleep { us } => us.get(class.index()).copied().unwrap_or(0.0),
            Self::RocksDb { get_us, .. } if class == Class::GET => *get_us,
            Self::RocksDb { scan_us, .. } => *scan_us,
        }
    }
}

impl Plan {
    /// Configuration by name.
    #[must_use]
    pub fn config(&self, name: &str) -> Option<&Config> {
        self.configs.iter().find(|config| config.name == name)
    }

    /// Names of the classes, in the order of a run's summary.
    #[must_use]
    pub fn classes(&self) -> Vec<&'static str> {
        self.streams.iter().flat_map(|stream| &stream.mix).map(|part| part.name).collect()
    }

    /// Loads of a configuration, and in one of how many rounds it meets each.
    fn turns(&self, config: &Config) -> Vec<(f64, u32)> {
        match config.loads.is_empty() {
            true => self.loads.iter().map(|&load| (load, 1)).collect(),
            false => config.loads.clone(),
        }
    }

    /// Loads of a configuration, in order.
    #[must_use]
    pub fn loads_of(&self, config: &Config) -> Vec<f64> {
        let mut loads: Vec<f64> = self.turns(config).into_iter().map(|(load, _)| load).collect();
        loads.sort_by(f64::total_cmp);
        loads
    }

    /// The runs of a round: load by load, the configurations in an order that the
    /// seed shuffles.
    #[must_use]
    pub fn round(&self, round: u32, seed: u64) -> Vec<(f64, &Config)> {
        let mut runs = Vec::new();
        for load_rps in self.all_loads() {
            let turn = |turn: (f64, u32)| turn.0 == load_rps && (round - 1).is_multiple_of(turn.1);
            let mut configs: Vec<&Config> = self
                .configs
                .iter()
                .filter(|config| self.turns(config).into_iter().any(turn))
                .collect();
            let seed = mixed(&[seed, u64::from(round), load_rps.to_bits(), 1]);
            configs.shuffle(&mut StdRng::seed_from_u64(seed));
            runs.extend(configs.into_iter().map(|config| (load_rps, config)));
        }
        runs
    }

    /// Number of runs of a configuration at a load.
    #[must_use]
    pub fn rounds_of(&self, config: &Config, load_rps: f64) -> u32 {
        let turns = self.turns(config).into_iter().filter(|(load, _)| *load == load_rps);
        turns.map(|(_, every)| self.rounds.div_ceil(every)).sum()
    }

    /// All loads of all configurations, in order.
    #[must_use]
    pub fn all_loads(&self) -> Vec<f64> {
        let mut loads: Vec<f64> =
            self.configs.iter().flat_map(|config| self.loads_of(config)).collect();
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        loads
    }

    /// Mean service of a request at a load, in undilated microseconds.
    #[must_use]
    pub fn mean_service_us(&self, load_rps: f64) -> f64 {
        let (mut us, mut all) = (0.0, 0.0);
        for stream in &self.streams {
            let rps = stream.rps(load_rps);
            for part in &stream.mix {
                let class = Class::of(part.number.into()).map_or(0.0, |c| self.service.us(c));
                us += rps * part.share * class;
            }
            all += rps;
        }
        if all > 0.0 { us / all } else { 0.0 }
    }

    /// The load of a run, as it is sent.
    pub fn load(&self, load_rps: f64, round: u32, seed: u64, port: u16) -> Result<load::Load> {
        let streams = self
            .streams
            .iter()
            .map(|stream| {
                let mix = stream
                    .mix
                    .iter()
                    .map(|part| {
                        let class = Class::of(part.number.into()).with_context(|| {
                            format!("class {} has a number beyond {}", part.name, Class::MOST)
                        })?;
                        Ok(load::Part { name: part.name.to_owned(), class, share: part.share })
                    })
                    .collect::<Result<_>>()?;
                let rps = stream.rps(load_rps) / self.scale;
                Ok(load::Stream { user: stream.user, rps, mix })
            })
            .collect::<Result<_>>()?;
        Ok(load::Load {
            streams,
            port,
            flows: self.flows,
            // The same hash draw at every load and in every configuration.
            ports_seed: Some(mixed(&[seed, u64::from(round)])),
            seed: mixed(&[seed, u64::from(round), load_rps.to_bits()]),
            duration_s: self.seconds,
            warmup_s: self.warmup_s,
            grace_s: self.grace_s,
            late_us: self.late_us,
            window_ms: self.window_ms,
            exclude_late: self.exclude_late,
            cpu: None,
            fifo: Some(self.load_fifo),
        })
    }

    /// What decides the outcome of a run of `config`, as a short hash: runs with
    /// different ones are different experiments.
    pub fn fingerprint(&self, config: &Config, setting: &Setting) -> Result<String> {
        let text = serde_json::to_vec(&(self, config, setting.seed, setting.keys()))?;
        let hash = Sha256::digest(&text);
        Ok(hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Share of the requests that has to count in a run.
    #[must_use]
    pub fn kept_floor(&self) -> f64 {
        let floor = self.criteria.iter().find_map(|criterion| match criterion {
            Criterion::Kept(least) => Some(*least),
            _ => None,
        });
        floor.unwrap_or(0.0)
    }

    /// Refuses a table that makes no sense.
    pub fn check(&self) -> Result<()> {
        let mut classes = self.classes();
        classes.sort_unstable();
        let mut names: Vec<&str> = self.configs.iter().map(|config| config.name).collect();
        names.sort_unstable();
        ensure!(!names.is_empty() && !classes.is_empty(), "{}: an empty table", self.name);
        for list in [&classes, &names] {
            ensure!(
                list.windows(2).all(|pair| pair[0] != pair[1]),
                "{}: a name stands for two things: {list:?}",
                self.name
            );
        }
        for stream in &self.streams {
            let shares: f64 = stream.mix.iter().map(|part| part.share).sum();
            ensure!((shares - 1.0).abs() < 1e-9, "{}: shares that are not 1", self.name);
        }
        ensure!(self.scale >= 1.0 && self.rounds > 0, "{}: scale or rounds below 1", self.name);
        Ok(())
    }
}

/// Numbers to one number, well mixed.
#[must_use]
pub fn mixed(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |seed, number| crate::work::scattered(seed ^ number))
}

#[cfg(test)]
mod tests {
    use super::super::tables;
    use super::*;

    fn setting(seed: u64) -> Setting {
        Setting { seed, cpus: 2, ..Setting::default() }
    }

    #[test]
    fn every_table_makes_sense_quick_or_not() {
        for name in tables::NAMES {
            for quick in [false, true] {
                let plan = tables::plan(name, &Setting { quick, ..setting(1) }).unwrap();
                assert_eq!(plan.name, name);
                for config in &plan.configs {
                    assert!(!plan.loads_of(config).is_empty(), "{name}: {}", config.name);
                    let once = plan.loads_of(config);
                    assert!(once.windows(2).all(|pair| pair[0] < pair[1]), "{name}: {once:?}");
                }
            }
        }
        let error = tables::plan("figure-9", &setting(1)).unwrap_err();
        assert!(error.to_string().contains("figure-2"), "{error}");
    }

    #[test]
    fn what_is_met_in_one_of_several_rounds_is_spread_over_them_all() {
        let plan = Plan {
            configs: vec![
                Config::new("a", "").at(&[100.0], 1).at(&[50.0], 3),
                Config::new("b", ""),
            ],
            loads: vec![100.0],
            rounds: 7,
            ..tables::plan("figure-2", &setting(1)).unwrap()
        };
        let rounds = |name: &str, load: f64| -> Vec<u32> {
            let there = |round: &u32| {
                let runs = plan.round(*round, 1);
                runs.into_iter().any(|(rps, config)| rps == load && config.name == name)
            };
            (1..=plan.rounds).filter(there).collect()
        };
        assert_eq!(rounds("a", 100.0), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(rounds("a", 50.0), [1, 4, 7]);
        assert_eq!(plan.rounds_of(&plan.configs[0], 50.0), 3);
        assert_eq!((rounds("b", 100.0).len(), rounds("b", 50.0).len()), (7, 0));
        assert_eq!(plan.loads_of(&plan.configs[0]), [50.0, 100.0]);
        // More rounds are more of everything.
        let more = Plan { rounds: 14, ..plan.clone() };
        assert_eq!(more.rounds_of(&more.configs[0], 50.0), 5);
    }

    #[test]
    fn fewer_rounds_than_an_experiment_needs_are_refused() {
        let with = |rounds, quick| {
            let setting = Setting { rounds: Some(rounds), quick, ..setting(1) };
            tables::plan("figure-2", &setting)
        };
        let error = with(1, false).unwrap_err().to_string();
        assert!(error.contains("26 rounds") && error.contains("--quick"), "{error}");
        assert_eq!(with(30, false).unwrap().rounds, 30);
        assert_eq!(with(2, true).unwrap().rounds, 2);
    }

    #[test]
    fn what_an_experiment_does_not_depend_on_is_refused() {
        let refused = |name, setting| tables::plan(name, &setting).unwrap_err().to_string();
        let database = Setting { db: Some("a".into()), ..setting(1) };
        assert!(refused("figure-2", database.clone()).contains("figure-2 uses no database"));
        assert!(refused("cost", Setting { keys: Some(1), ..setting(1) }).contains("--keys"));
        let dilated = Setting { dilation: Some(10.0), ..database };
        assert!(tables::plan("demo", &dilated).is_ok());
        let dilated = Setting { dilation: Some(10.0), ..setting(1) };
        assert!(refused("figure-6", dilated).contains("--dilation is for the demo"));
    }

    #[test]
    fn a_round_has_the_same_ports_at_every_load_and_other_requests() {
        let plan = tables::plan("figure-6", &setting(1)).unwrap();
        let of = |load_rps, round, seed| {
            let load = plan.load(load_rps, round, seed, 9000).unwrap();
            (load.ports_seed, load.seed)
        };
        assert_eq!(of(1.0, 1, 1), of(1.0, 1, 1));
        assert_eq!(of(1.0, 1, 1).0, of(2.0, 1, 1).0);
        assert_ne!(of(1.0, 1, 1).1, of(2.0, 1, 1).1);
        assert_ne!(of(1.0, 1, 1).0, of(1.0, 2, 1).0);
        assert_ne!(of(1.0, 1, 1).0, of(1.0, 1, 2).0);
    }

    #[test]
    fn a_load_is_dilated_and_split_into_streams() {
        let plan = tables::plan("figure-6", &setting(1)).unwrap();
        let load = plan.load(150_000.0, 1, 1, 9000).unwrap();
        assert_eq!(load.streams[0].rps, 3000.0);
        assert_eq!(plan.classes(), ["GET", "SCAN"]);
        assert!((plan.mean_service_us(1.0) - (0.995 * 11.0 + 0.005 * 700.0)).abs() < 1e-9);
        let user = |user, rate| Stream { user, rate, ..Stream::gets_and_scans(0.0) };
        let split = Plan {
            streams: vec![user(0, Rate::Share(1.0)), user(1, Rate::RestOf(400_000.0))],
            ..plan
        };
        let load = split.load(150_000.0, 1, 1, 9000).unwrap();
        assert_eq!((load.streams[0].rps, load.streams[1].rps), (3000.0, 5000.0));
        // Two rows of one name could not be told apart.
        assert!(split.check().is_err());
    }

    #[test]
    fn words_do_not_change_an_experiment_and_numbers_do() {
        let plan = tables::plan("figure-2", &setting(1)).unwrap();
        let print = |plan: &Plan, seed| plan.fingerprint(&plan.configs[0], &setting(seed)).unwrap();
        let words = Plan { title: "other".to_owned(), rounds: 99, ..plan.clone() };
        assert_eq!(print(&plan, 1), print(&words, 1));
        assert_ne!(print(&plan, 1), print(&plan, 2));
        assert_ne!(print(&plan, 1), print(&Plan { flows: 49, ..plan.clone() }, 1));
    }
}
