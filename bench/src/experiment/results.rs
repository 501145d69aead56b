//! What an experiment leaves behind: the table on stdout, `results.json` and
//! `report.html`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::criteria::{self, Verdict};
use super::distribution::{Interval, LEAST_FOR_P999};
use super::environment::Environment;
use super::journal::{Journal, Measured, REPORT, RESULTS, Run, put, remove};
use super::latency;
use super::plan::{Config, Plan, Probe, Setting};
use super::points::{Point, Points, Spread};
use crate::report;

/// `results.json`. Latencies are in microseconds from the intended send time,
/// divided by `scale`; percentiles are those of all samples of all rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Which experiment.
    pub experiment: String,
    /// What the numbers have to show, and in which units they are.
    pub criterion: String,
    /// Rounds; a row may be of some of them.
    pub rounds: u32,
    /// The numbers.
    pub rows: Vec<Row>,
    /// How many times slower than what it stands for it was run; loads are
    /// multiplied, and times divided, by it.
    pub scale: f64,
    /// How many times longer than real ones the services took: numbers of which
    /// less is divided out are dilated themselves.
    pub dilation: f64,
    /// What the services were calibrated to.
    pub calibrations: Vec<String>,
    /// Whether the runs were few and short.
    pub quick: bool,
    /// Decides arrivals, ports and order.
    pub seed: u64,
    /// Where it was measured.
    pub environment: Environment,
    /// Further commits that runs were made with.
    pub further_commits: Vec<String>,
    /// SHA-256 of each policy's object, by hook and policy.
    pub policies: BTreeMap<String, String>,
    /// What has to come out, and whether it did.
    pub criteria: Vec<Judged>,
}

/// A verdict as others read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// What is compared.
    pub text: String,
    /// What was measured.
    pub measured: Option<f64>,
    /// Whether it may be more, for all that is known.
    pub at_least: bool,
    /// 95 % interval.
    pub interval: Option<(f64, f64)>,
    /// Where it must lie, in words.
    pub bound: String,
    /// What the lower end of the interval must reach.
    pub low_end: Option<f64>,
    /// Whether it does; also where nothing is asked for.
    pub holds: bool,
    /// Both terms, the points, what was found.
    pub detail: String,
}

/// A configuration, a class and a load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the configuration.
    pub config: String,
    /// Name of the class, like "GET".
    pub class: String,
    /// Offered load of all classes.
    pub load_rps: f64,
    /// Median latency.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile; see `p999_supported`.
    pub p999_us: f64,
    /// Replies per second; median of the rounds.
    pub throughput_rps: f64,
    /// Requests without a reply; median of the rounds.
    pub drops: f64,
    /// The same of all rounds together.
    pub drops_total: u64,
    /// What the configuration is: policies and slices.
    pub what: String,
    /// Rounds.
    pub rounds: u32,
    /// Latency samples, all rounds together.
    pub n: u64,
    /// Shortest latency.
    pub min_us: f64,
    /// Longest.
    pub max_us: f64,
    /// 95 % confidence interval of p99 from its order statistics; an end is
    /// missing where the samples are too few for it, both where rounds are draws
    /// of a hash.
    pub p99_low_us: Option<f64>,
    /// Its upper end.
    pub p99_high_us: Option<f64>,
    /// Smallest p99 of a round.
    pub p99_min_us: f64,
    /// Largest.
    pub p99_max_us: f64,
    /// Mean of the rounds' p99.
    pub p99_mean_us: f64,
    /// Whether there are samples enough for p99.9 to say something.
    pub p999_supported: bool,
    /// Share of the requests whose latencies count.
    pub kept_share: f64,
    /// Share in windows in which the sender was late.
    pub late_sender_share: f64,
    /// Share in windows in which a sleeping service overslept.
    pub overslept_share: f64,
    /// Whether those were left out.
    pub excluded: bool,
    /// p99 of the simulated twin.
    pub simulated_p99_us: Option<f64>,
    /// Mean of the twins' p99 by round.
    pub simulated_p99_mean_us: Option<f64>,
    /// Rounds in which the simulator says that more is asked for than can be
    /// served.
    pub saturated_rounds: u32,
    /// Requests of the busiest executor over the mean's; median of the rounds.
    pub max_over_mean: Option<f64>,
    /// Mean time of the packet program; median of the rounds.
    pub packet_ns: Option<f64>,
    /// Runs of which too little counted, and that were made again.
    pub repeated: u32,
    /// Threads that a policy left waiting too long; all rounds together.
    pub rescued: u64,
    /// Huge pages that khugepaged made meanwhile, on the whole machine.
    pub huge_pages_made: u64,
    /// Of the arrivals, by round.
    pub seeds: Vec<u64>,
}

/// Everything there is to say of an experiment.
pub struct Outcome {
    /// What was planned.
    pub plan: Plan,
    /// What was measured.
    pub points: Points,
    /// As `results.json` has it.
    pub results: Results,
    /// What came out.
    pub verdicts: Vec<Verdict>,
}

/// What the plan has and was not measured, runs and probes.
#[must_use]
pub fn missing(plan: &Plan, measured: &Measured) -> usize {
    (1..=plan.rounds).map(|round| missing_in(plan, measured, round)).sum()
}

/// The same of one round.
#[must_use]
pub fn missing_in(plan: &Plan, measured: &Measured, round: u32) -> usize {
    let made = |load_rps: f64, config: &Config| {
        let same =
            |run: &Run| run.config == config.name && run.load_rps == load_rps && run.round == round;
        measured.runs.iter().any(same)
    };
    let probed = |probe: &Probe| {
        measured.probed.iter().any(|one| one.probe == probe.name && one.round == round)
    };
    let runs = plan.round(round, 0).into_iter();
    runs.filter(|(load_rps, config)| !made(*load_rps, config)).count()
        + plan.probes.iter().filter(|probe| !probed(probe)).count()
}

/// Judges what was measured.
pub fn outcome(plan: &Plan, setting: &Setting, measured: &Measured) -> Result<Outcome> {
    let environment = measured
        .environments
        .first()
        .context("nothing was measured yet: `syrup-bench run` measures")?
        .clone();
    for other in &measured.environments {
        if let Some(why) = environment.apart(other) {
            bail!("these runs do not go into one table: some are of {why}");
        }
    }
    let points = Points::of(plan, measured)?;
    let verdicts = criteria::judge(&plan.criteria, &points);
    let mut further_commits: Vec<String> =
        measured.environments.iter().map(|one| one.commit.clone()).collect();
    further_commits.sort();
    further_commits.dedup();
    further_commits.retain(|commit| *commit != environment.commit);
    let mut calibrations: Vec<String> =
        measured.runs.iter().map(|run| run.calibration.clone()).collect();
    calibrations.sort();
    calibrations.dedup();
    calibrations.retain(|text| !text.is_empty());
    let results = Results {
        experiment: plan.name.to_owned(),
        criterion: plan.claim.clone(),
        rounds: plan.rounds,
        rows: points.all.iter().flat_map(|point| rows(plan, &points, point)).collect(),
        scale: plan.scale,
        dilation: plan.dilation,
        calibrations,
        quick: setting.quick,
        seed: setting.seed,
        environment,
        further_commits,
        policies: policies(measured)?,
        criteria: verdicts.iter().map(Judged::of).collect(),
    };
    Ok(Outcome { plan: plan.clone(), points, results, verdicts })
}

impl Judged {
    fn of(verdict: &Verdict) -> Self {
        Self {
            text: verdict.text.clone(),
            measured: verdict.measured,
            at_least: verdict.at_least,
            interval: verdict.interval,
            bound: verdict.bound.text(),
            low_end: verdict.low_end,
            holds: verdict.holds(),
            detail: verdict.detail.clone(),
        }
    }
}

/// Hash of each policy; it must be one.
fn policies(measured: &Measured) -> Result<BTreeMap<String, String>> {
    let mut policies: BTreeMap<String, String> = BTreeMap::new();
    for one in measured.runs.iter().flat_map(|run| &run.deployments) {
        let name = format!("{}/{}", one.hook, one.policy);
        let hash = policies.entry(name.clone()).or_insert_with(|| one.policy_sha256.clone());
        ensure!(
            *hash == one.policy_sha256,
            "{name} changed between the runs: `syrup-bench run --fresh` starts anew"
        );
    }
    Ok(policies)
}

fn rows(plan: &Plan, points: &Points, point: &Point) -> Vec<Row> {
    let of_rounds = |number: &dyn Fn(&super::points::Round) -> Option<f64>| {
        Spread::of(point.by_round(number).into_values().collect())
    };
    let mean = |number: &dyn Fn(&super::points::Round) -> f64| {
        let values = point.by_round(|round| Some(number(round)));
        values.values().sum::<f64>() / values.len().max(1) as f64
    };
    let rescued = point.rounds.values().flat_map(|round| &round.run.deployments);
    let rescued = rescued.filter_map(|one| one.counters.get("rescued")).sum();
    let config = plan.config(point.config);
    let what = config.map_or(String::new(), |config| config.what.clone());
    let draws = config.is_some_and(Config::rounds_are_draws);
    let rows = points.classes.iter().enumerate().filter_map(|(class, name)| {
        let all = point.pooled(class);
        let p99s: Vec<f64> = point.quantiles(class, 0.99).into_values().collect();
        let p99_mean_us = p99s.iter().sum::<f64>() / p99s.len() as f64;
        let p99s = Spread::of(p99s)?;
        let interval = match draws {
            true => Interval { low: None, high: None },
            false => all.interval(0.99),
        };
        let run = |number: fn(&crate::load::ClassSummary) -> f64| {
            of_rounds(&|round| round.run.load.classes.get(class).map(number))
        };
        Some(Row {
            config: point.config.to_owned(),
            class: (*name).to_owned(),
            load_rps: point.load_rps,
            p50_us: all.quantile(0.5)?,
            p99_us: all.quantile(0.99)?,
            p999_us: all.quantile(0.999)?,
            throughput_rps: run(|class| class.throughput_rps)?.median * plan.scale,
            drops: run(|class| class.drops as f64)?.median,
            drops_total: point.drops(class),
            what: what.clone(),
            rounds: point.rounds.len() as u32,
            n: all.samples(),
            min_us: all.quantile(0.0)?,
            max_us: all.quantile(1.0)?,
            p99_low_us: interval.low,
            p99_high_us: interval.high,
            p99_min_us: p99s.min,
            p99_max_us: p99s.max,
            p99_mean_us,
            p999_supported: all.samples() >= LEAST_FOR_P999,
            kept_share: point.kept()?,
            late_sender_share: mean(&|round| round.run.load.timekeeping.sender_late),
            overslept_share: mean(&|round| round.run.load.timekeeping.service_overslept),
            excluded: plan.exclude_late,
            simulated_p99_us: point.pooled_twin(class).and_then(|twin| twin.quantile(0.99)),
            simulated_p99_mean_us: mean_of(
                point.by_round(|round| round.twin.as_ref()?.latencies.get(class)?.quantile(0.99)),
            ),
            saturated_rounds: (point.rounds.len() - point.below_saturation(class).rounds.len())
                as u32,
            max_over_mean: of_rounds(&super::points::Round::max_over_mean).map(|s| s.median),
            packet_ns: of_rounds(&|round| round.run.packet_ns).map(|spread| spread.median),
            repeated: point.rounds.values().map(|round| round.run.spoiled.len() as u32).sum(),
            rescued,
            huge_pages_made: point.rounds.values().map(|one| one.run.huge_pages_made).sum(),
            seeds: point.rounds.values().map(|round| round.run.seed).collect(),
        })
    });
    rows.collect()
}

fn mean_of(values: BTreeMap<u32, f64>) -> Option<f64> {
    let count = values.len() as f64;
    (!values.is_empty()).then(|| values.into_values().sum::<f64>() / count)
}

/// Writes results and report beside the runs, and shows the table.
pub fn write(journal: &Journal, plan: &Plan, setting: &Setting, measured: &Measured) -> Result<()> {
    let outcome = outcome(plan, setting, measured)?;
    let folder = journal.folder();
    put(folder, REPORT, report::html(&outcome)?.as_bytes())?;
    let missing = missing(plan, measured);
    // Who finds results.json finds an experiment that is finished.
    match missing {
        0 => put(folder, RESULTS, &serde_json::to_vec_pretty(&outcome.results)?)?,
        _ => remove(&folder.join(RESULTS))?,
    }
    println!("{}", table(&outcome));
    show(&outcome.verdicts);
    println!("report: {}", folder.join(REPORT).display());
    if missing > 0 {
        println!("{missing} measurements are still to be made: there is no {RESULTS} yet");
    }
    Ok(())
}

/// The criteria, a line each.
pub fn show(verdicts: &[Verdict]) {
    for verdict in verdicts {
        println!("{}", verdict.line());
    }
}

/// p99.9, or what stands for it where the samples are too few.
#[must_use]
pub fn p999(row: &Row) -> String {
    if row.p999_supported { latency(row.p999_us) } else { "-".to_owned() }
}

/// The interval of p99, an end open where the samples are too few for it.
#[must_use]
pub fn p99_interval(row: &Row) -> String {
    let end = |us: Option<f64>| us.map_or("?".to_owned(), latency);
    match (row.p99_low_us, row.p99_high_us) {
        (None, None) => "-".to_owned(),
        (low, high) => format!("{}..{}", end(low), end(high)),
    }
}

/// One line per configuration, load and class.
fn table(outcome: &Outcome) -> String {
    let rows = &outcome.results.rows;
    let twins = rows.iter().any(|row| row.simulated_p99_us.is_some());
    let packets = rows.iter().any(|row| row.packet_ns.is_some());
    let rescues = rows.iter().any(|row| row.rescued > 0);
    let mut lines = vec![format!(
        "{:<22} {:>8} {:<5} {:>8} {:>8} {:>17} {:>17} {:>8} {:>9} {:>6} {:>5}{}{}{}",
        "config",
        "load/s",
        "class",
        "p50",
        "p99",
        "95 % of p99",
        "rounds' p99",
        "p99.9",
        "n",
        "drops",
        "kept",
        if twins { "  simulated p99" } else { "" },
        if packets { "  ns/packet" } else { "" },
        if rescues { "  rescued" } else { "" },
    )];
    for row in rows {
        let twin = row.simulated_p99_us.map_or(String::new(), |us| {
            format!("{}{}", latency(us), if row.saturated_rounds > 0 { " (full)" } else { "" })
        });
        lines.push(format!(
            "{:<22} {:>8} {:<5} {:>8} {:>8} {:>17} {:>17} {:>8} {:>9} {:>6} {:>4.0}%{}{}{}",
            row.config,
            thousands(row.load_rps),
            row.class,
            latency(row.p50_us),
            latency(row.p99_us),
            p99_interval(row),
            format!("{}..{}", latency(row.p99_min_us), latency(row.p99_max_us)),
            p999(row),
            row.n,
            row.drops_total,
            row.kept_share * 100.0,
            if twins { format!("  {twin:>13}") } else { String::new() },
            match row.packet_ns {
                Some(ns) => format!("  {ns:>9.0}"),
                None if packets => " ".repeat(11),
                None => String::new(),
            },
            if rescues { format!("  {:>7}", row.rescued) } else { String::new() },
        ));
    }
    lines.push(format!(
        "Latencies of all rounds together; p99.9 where there are at least {LEAST_FOR_P999} samples."
    ));
    for config in outcome.plan.configs.iter().filter(|config| !config.what.is_empty()) {
        lines.push(format!("{:<22} {}", config.name, config.what));
    }
    for (name, hash) in &outcome.results.policies {
        lines.push(format!("{name:<35} {}", &hash[..hash.len().min(12)]));
    }
    for (name, values) in &outcome.points.probed {
        let spread = Spread::of(values.clone());
        let (Some(spread), count) = (spread, values.len()) else { continue };
        let show = criteria::number;
        lines.push(format!(
            "{name}: {} ({}..{} in {count} rounds)",
            show(spread.median),
            show(spread.min),
            show(spread.max)
        ));
    }
    lines.join("\n")
}

/// A number with its thousands apart.
#[must_use]
pub fn thousands(number: f64) -> String {
    if number.abs() < 1000.0 {
        let text = format!("{number:.1}");
        return text.strip_suffix(".0").map_or(text.clone(), str::to_owned);
    }
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    if number < 0.0 {
        text.push('-');
    }
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}
