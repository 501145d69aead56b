//! What was measured, by configuration and load: the numbers that criteria,
//! tables and plots are made of.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::distribution::Distribution;
use super::journal::{Measured, Run};
use super::plan::{Config, Plan};
use super::twin::{Simulated, twin};
use crate::load::LoadSummary;
use crate::work::median;

/// A configuration at a load.
#[derive(Debug, Clone)]
pub struct Point {
    /// Name of the configuration.
    pub config: &'static str,
    /// Requests per second, undilated.
    pub load_rps: f64,
    /// How many rounds there should be.
    pub planned: u32,
    /// By round.
    pub rounds: BTreeMap<u32, Round>,
}

/// One run, undilated.
#[derive(Debug, Clone)]
pub struct Round {
    /// As it was written down, dilated.
    pub run: Run,
    /// Latencies by class.
    pub latencies: Vec<Distribution>,
    /// Latencies of the simulated twin by class.
    pub twin: Option<Twin>,
    /// Hooks of the configuration's policies, each of which has to be live.
    pub hooks: Vec<&'static str>,
    /// Whether a thread policy under which threads starve is live all the same.
    pub may_starve: bool,
}

/// What the simulator gives for a run.
#[derive(Debug, Clone)]
pub struct Twin {
    /// Latencies by class.
    pub latencies: Vec<Distribution>,
    /// Share of the requests of each class that were answered before the end.
    pub answered: Vec<f64>,
    /// Requests that a fuller buffer would lose, by class.
    pub drops: Vec<u64>,
}

/// All points of an experiment, in the order of the plan.
#[derive(Debug, Clone)]
pub struct Points {
    /// By configuration, then by load.
    pub all: Vec<Point>,
    /// Names of the classes.
    pub classes: Vec<&'static str>,
    /// Of the probes: name, and a value per round.
    pub probed: BTreeMap<String, Vec<f64>>,
}

/// Median, smallest and largest of several numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these numbers; `None` of none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        let median = median(&mut values);
        Some(Self { median, min: *values.first()?, max: *values.last()? })
    }
}

impl Points {
    /// From what was measured; with the simulated twins.
    pub fn of(plan: &Plan, measured: &Measured) -> Result<Self> {
        let mut all = Vec::new();
        let socket_holds = measured.environments.first().map_or(0, |one| one.socket_holds);
        for config in &plan.configs {
            for load_rps in plan.loads_of(config) {
                let rounds = measured
                    .runs
                    .iter()
                    .filter(|run| run.config == config.name && run.load_rps == load_rps)
                    .map(|run| {
                        let round =
                            Round::of(plan, config, run, socket_holds).with_context(|| {
                                format!("{} at {load_rps}/s, round {}", run.config, run.round)
                            })?;
                        Ok((run.round, round))
                    })
                    .collect::<Result<_>>()?;
                let planned = plan.rounds_of(config, load_rps);
                all.push(Point { config: config.name, load_rps, planned, rounds });
            }
        }
        let mut probed: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (name, number) in measured.probed.iter().flat_map(|probed| &probed.numbers) {
            probed.entry(name.clone()).or_default().push(*number);
        }
        Ok(Self { all, classes: plan.classes(), probed })
    }

    /// A point; loads are compared with a tolerance, they may come from JSON.
    #[must_use]
    pub fn get(&self, config: &str, load_rps: f64) -> Option<&Point> {
        self.all.iter().find(|point| {
            point.config == config && (point.load_rps - load_rps).abs() <= load_rps.abs() * 1e-9
        })
    }

    /// Points of a configuration, by load.
    #[must_use]
    pub fn of_config(&self, config: &str) -> Vec<&Point> {
        let mut points: Vec<&Point> =
            self.all.iter().filter(|point| point.config == config).collect();
        points.sort_by(|one, other| one.load_rps.total_cmp(&other.load_rps));
        points
    }

    /// Place of a class in a run.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<usize> {
        self.classes.iter().position(|class| *class == name)
    }
}

impl Round {
    fn of(plan: &Plan, config: &Config, run: &Run, socket_holds: u32) -> Result<Self> {
        let latencies = distributions(&run.load, plan.scale)?;
        let twin = twin(plan, config, run, socket_holds)?.map(|simulated| {
            let Simulated { summaries, drops } = simulated;
            let each: Vec<Vec<Distribution>> = summaries
                .iter()
                .map(|summary| distributions(summary, plan.scale))
                .collect::<Result<_>>()?;
            let merged = |class: usize| Distribution::merged(each.iter().map(|one| &one[class]));
            let share = |class: usize| {
                let shares = summaries.iter().map(|summary| match &summary.classes[class] {
                    none if none.requests == 0 => 1.0,
                    some => some.throughput_rps * plan.seconds / some.requests as f64,
                });
                shares.sum::<f64>() / summaries.len() as f64
            };
            let classes = 0..drops.len();
            anyhow::Ok(Twin {
                latencies: classes.clone().map(merged).collect(),
                answered: classes.map(share).collect(),
                drops,
            })
        });
        let hooks = config.policies.iter().map(|policy| policy.hook).collect();
        let may_starve = config.may_starve;
        Ok(Self { run: run.clone(), latencies, twin: twin.transpose()?, hooks, may_starve })
    }

    /// Requests of the executor that got most, over those of the mean one.
    #[must_use]
    pub fn max_over_mean(&self) -> Option<f64> {
        let by_thread = self.run.server.by_thread.iter().map(|classes| classes.iter().sum::<u64>());
        let counts: Vec<u64> = by_thread.collect();
        let all = counts.iter().sum::<u64>();
        let max = *counts.iter().max()?;
        (all > 0).then(|| max as f64 * counts.len() as f64 / all as f64)
    }

    /// Whether the simulator says that more of a class is asked for than can be
    /// served: requests find full buffers, or the queue grows until the end.
    #[must_use]
    pub fn saturated(&self, class: usize) -> bool {
        self.twin.as_ref().is_some_and(|twin| {
            twin.drops.get(class).is_some_and(|drops| *drops > 0)
                || twin.answered.get(class).is_some_and(|share| *share < 0.98)
        })
    }

    /// Whether server and load generator agree on what was served.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        let Run { load, server, .. } = &self.run;
        load.answered + server.lost_replies == server.served
            && server.malformed == 0
            && load.send_errors == 0
            && load.unexpected == 0
    }

    /// Policies that were gone or not live at the end, or never chose: in words.
    #[must_use]
    pub fn not_live(&self) -> Vec<String> {
        let Run { deployments, config, round, .. } = &self.run;
        let of_hook = |hook: &&'static str| {
            let Some(one) = deployments.iter().find(|one| one.hook == *hook) else {
                return Some(format!("{config} at {hook} in round {round} (gone)"));
            };
            let chosen = one.counters.get("chosen").copied().unwrap_or(0);
            let why = match (&*one.state, chosen) {
                ("live", 0) => "never chose".to_owned(),
                ("live", _) => return None,
                (state, _) => {
                    let reason = one.reason.as_deref().unwrap_or("no reason");
                    if self.may_starve && reason.starts_with("threads starve") {
                        return None;
                    }
                    format!("{state}: {reason}")
                }
            };
            Some(format!("{} at {hook} in round {round} ({why})", one.policy))
        };
        self.hooks.iter().filter_map(of_hook).collect()
    }
}

fn distributions(summary: &LoadSummary, scale: f64) -> Result<Vec<Distribution>> {
    summary.classes.iter().map(|class| Distribution::of(class, scale)).collect()
}

impl Point {
    /// Latencies of a class, of all rounds.
    #[must_use]
    pub fn pooled(&self, class: usize) -> Distribution {
        Distribution::merged(self.rounds.values().filter_map(|round| round.latencies.get(class)))
    }

    /// Simulated latencies of a class, of all rounds.
    #[must_use]
    pub fn pooled_twin(&self, class: usize) -> Option<Distribution> {
        let twins: Vec<&Twin> =
            self.rounds.values().filter_map(|round| round.twin.as_ref()).collect();
        let parts = twins.iter().filter_map(|twin| twin.latencies.get(class));
        (!twins.is_empty()).then(|| Distribution::merged(parts))
    }

    /// A number of each round.
    #[must_use]
    pub fn by_round(&self, number: impl Fn(&Round) -> Option<f64>) -> BTreeMap<u32, f64> {
        self.rounds.iter().filter_map(|(round, run)| Some((*round, number(run)?))).collect()
    }

    /// A quantile of a class in each round.
    #[must_use]
    pub fn quantiles(&self, class: usize, quantile: f64) -> BTreeMap<u32, f64> {
        self.by_round(|round| round.latencies.get(class)?.quantile(quantile))
    }

    /// Requests of a class without a reply.
    #[must_use]
    pub fn drops(&self, class: usize) -> u64 {
        let of = |round: &Round| round.run.load.classes.get(class).map_or(0, |class| class.drops);
        self.rounds.values().map(of).sum()
    }

    /// Share of the requests whose latencies count.
    #[must_use]
    pub fn kept(&self) -> Option<f64> {
        let shares = self.by_round(|round| Some(round.run.load.kept_share));
        let count = shares.len() as f64;
        (!shares.is_empty()).then(|| shares.values().sum::<f64>() / count)
    }

    /// Its rounds in which no more of a class is asked for than can be served:
    /// another draw of a hash may overload one socket.
    #[must_use]
    pub fn below_saturation(&self, class: usize) -> Self {
        let rounds = self.rounds.iter().filter(|(_, round)| !round.saturated(class));
        Self { rounds: rounds.map(|(number, round)| (*number, round.clone())).collect(), ..*self }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::experiment::Deployment;
    use crate::experiment::plan::{Service, Stream};
    use crate::load::{Arrival, Cut, Fate, summarise};
    use crate::server;
    use crate::wire::Class;

    /// A run as tests make it.
    #[derive(Debug, Clone)]
    pub struct Made {
        pub config: &'static str,
        pub load_rps: f64,
        pub round: u32,
        pub gets_us: Vec<u64>,
        pub twin_us: Option<u64>,
        pub twin_drops: u64,
        pub drops: u64,
        pub kept: f64,
        pub deployed: Option<(&'static str, u64)>,
        pub served: Option<u64>,
    }

    impl Default for Made {
        fn default() -> Self {
            Self {
                config: "a",
                load_rps: 100.0,
                round: 1,
                gets_us: Vec::new(),
                twin_us: None,
                twin_drops: 0,
                drops: 0,
                kept: 1.0,
                deployed: None,
                served: None,
            }
        }
    }

    /// GETs only, three rounds.
    pub fn plan(configs: &[&'static str], loads: &[f64]) -> Plan {
        let setting = crate::experiment::plan::Setting { cpus: 2, ..Default::default() };
        let other = crate::experiment::tables::plan("figure-2", &setting).unwrap();
        Plan {
            configs: configs.iter().map(|name| Config::new(name, "a test")).collect(),
            loads: loads.to_vec(),
            rounds: 3,
            scale: 1.0,
            streams: vec![Stream::gets_and_scans(0.0)],
            service: Service::Sleep { us: vec![1.0, 1.0] },
            ..other
        }
    }

    pub fn run(made: &Made) -> Run {
        const S: u64 = 1_000_000_000;
        let cut = Cut {
            warmup_ns: 0,
            end_ns: 10 * S,
            late_limit_ns: S,
            window_ns: S,
            exclude_late: false,
        };
        let arrival = Arrival { at_ns: S, flow: 0, stream: 0, class: Class::GET, key: 0 };
        let fates: Vec<Fate> = made
            .gets_us
            .iter()
            .map(|us| Fate { sent_ns: S, answered_ns: S + us * 1000, overrun_ns: 0 })
            .collect();
        let streams = [crate::load::Stream::of("GET", 0, 1.0, Class::GET)];
        let mut load = summarise(cut, &streams, &vec![arrival; fates.len()], &fates).unwrap();
        load.kept_share = made.kept;
        load.classes[0].drops = made.drops;
        load.classes[0].lost = made.drops;
        let served = made.served.unwrap_or(load.answered);
        let deployments = made.deployed.map(|(state, chosen)| Deployment {
            hook: "socket-select".to_owned(),
            app: "bench".to_owned(),
            policy: "sita".to_owned(),
            policy_sha256: "00".to_owned(),
            state: state.to_owned(),
            reason: (state == "degraded").then(|| "threads starve, 9 rescues".to_owned()),
            counters: [("chosen".to_owned(), chosen)].into(),
        });
        Run {
            fingerprint: String::new(),
            config: made.config.to_owned(),
            load_rps: made.load_rps,
            round: made.round,
            seed: 1,
            ports_seed: 1,
            load,
            server: server::Summary {
                served,
                by_thread: vec![[4, 0, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0]],
                ..Default::default()
            },
            deployments: deployments.into_iter().collect(),
            packet_ns: None,
            huge_pages_made: 0,
            calibration: String::new(),
            spoiled: Vec::new(),
        }
    }

    /// What such runs come to.
    pub fn points(plan: &Plan, made: Vec<Made>) -> Points {
        let runs = made.iter().map(run).collect();
        let measured = Measured { runs, ..Measured::default() };
        let mut points = Points::of(plan, &measured).unwrap();
        for made in made {
            let Some(us) = made.twin_us else { continue };
            let own =
                |point: &&mut Point| point.config == made.config && point.load_rps == made.load_rps;
            let point = points.all.iter_mut().find(own).unwrap();
            point.rounds.get_mut(&made.round).unwrap().twin = Some(Twin {
                latencies: vec![Distribution::from(vec![(us as f64, 1)])],
                answered: vec![1.0],
                drops: vec![made.twin_drops],
            });
        }
        points
    }

    #[test]
    fn runs_are_pooled_by_configuration_and_load() {
        let made = |config, load_rps, round, us: &[u64]| Made {
            config,
            load_rps,
            round,
            gets_us: us.to_vec(),
            ..Made::default()
        };
        let points = points(
            &plan(&["a", "b"], &[100.0, 200.0]),
            vec![
                made("a", 100.0, 1, &[10, 20]),
                made("a", 100.0, 2, &[30]),
                made("a", 200.0, 1, &[500]),
                made("b", 100.0, 1, &[7]),
            ],
        );
        let a = points.get("a", 100.0).unwrap();
        assert_eq!((a.pooled(0).samples(), a.pooled(0).quantile(0.99)), (3, Some(30.0)));
        assert_eq!(a.quantiles(0, 0.99), [(1, 20.0), (2, 30.0)].into());
        assert_eq!(points.of_config("a").len(), 2);
        assert!(points.get("b", 200.0).unwrap().rounds.is_empty());
        assert_eq!(a.rounds[&1].max_over_mean(), Some(4.0 / 3.0));
    }
}
