//! What an experiment has to show: pure functions of what was measured. A number
//! that is missing satisfies nothing.

use std::collections::BTreeMap;

mod max_load;
mod ratio;
mod twin;
mod verdict;

use super::latency;
use super::points::Points;
use super::results::thousands;
use crate::work::median;
use max_load::max_loads;
pub use max_load::{MaxLoad, max_load_of};
use ratio::ratio;
pub use twin::{Exception, TwinCriterion};
pub use verdict::{Bound, Verdict, number, percentile};

/// Something that has to come out.
#[derive(Debug, Clone)]
pub enum Criterion {
    /// One number over another, round by round where both have it in a round.
    Ratio {
        /// Above the line.
        above: Cell,
        /// Below it.
        below: Cell,
        /// Where the ratio must lie.
        bound: Bound,
        /// Where the lower end of its 95 % interval must lie.
        low_end: Option<f64>,
    },
    /// A number by itself.
    Value(Cell, Bound),
    /// The largest load under an objective, of one configuration over another.
    MaxLoad {
        /// Above the line.
        above: &'static str,
        /// Below it.
        below: &'static str,
        /// The objective.
        slo: Slo,
        /// How the latencies of the rounds make one.
        over: Over,
        /// Where the ratio must lie.
        bound: Bound,
    },
    /// Latency over that of the simulated twin, for each load below saturation.
    Twin(TwinCriterion),
    /// No request is lost where the load is below saturation in each round.
    NoDrops,
    /// At least this share of the requests counts in each run; the runner makes one of
    /// which less does again.
    Kept(f64),
    /// Every policy of a configuration was live at the end of each run, and chose.
    Live,
    /// What the server served is what the load generator saw answered.
    AddsUp,
}

/// A number of a point.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Configuration.
    pub config: &'static str,
    /// Load.
    pub load_rps: f64,
    /// Which number.
    pub number: Number,
    /// How the rounds make one.
    pub over: Over,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A latency: class and quantile; of a request without a reply it is infinite.
    Latency(&'static str, f64),
    /// Mean time of the packet program, in ns.
    PacketNs,
    /// Requests of the busiest executor over the mean's.
    MaxOverMean,
    /// What a probe measured under this name (configuration and load do not
    /// matter).
    Probe(&'static str),
}

/// How the numbers of the rounds make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Quantile of all samples of all rounds.
    Pooled,
    /// Mean of the rounds' numbers.
    Mean,
    /// Median of them.
    Median,
    /// The largest of them.
    Largest,
}

/// An objective: this quantile of this class below so many microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slo {
    /// Name of the class.
    pub class: &'static str,
    /// Which quantile.
    pub quantile: f64,
    /// Undilated.
    pub us: f64,
}

impl Slo {
    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {} < {}", self.class, percentile(self.quantile), latency(self.us))
    }
}

/// All verdicts; the first says whether anything is missing.
#[must_use]
pub fn judge(criteria: &[Criterion], points: &Points) -> Vec<Verdict> {
    let mut verdicts = vec![complete(points)];
    verdicts.extend(criteria.iter().flat_map(|criterion| criterion.judge(points)));
    verdicts
}

fn complete(points: &Points) -> Verdict {
    let missing: Vec<String> = points
        .all
        .iter()
        .filter(|point| point.rounds.len() < point.planned as usize)
        .map(|point| {
            format!(
                "{} at {}/s has {} of {} rounds",
                point.config,
                thousands(point.load_rps),
                point.rounds.len(),
                point.planned
            )
        })
        .collect();
    let empty = points.all.iter().flat_map(|point| {
        let of = |(class, name): (usize, &&str)| {
            let none = !point.rounds.is_empty() && point.pooled(class).samples() == 0;
            none.then(|| {
                format!("{} at {}/s has no {name}", point.config, thousands(point.load_rps))
            })
        };
        points.classes.iter().enumerate().filter_map(of).collect::<Vec<_>>()
    });
    let found: Vec<String> = missing.into_iter().chain(empty).collect();
    Verdict::none("rows that are missing".to_owned(), &found)
}

impl Criterion {
    fn judge(&self, points: &Points) -> Vec<Verdict> {
        match self {
            Self::Ratio { above, below, bound, low_end } => {
                vec![ratio(points, above, below, *bound, *low_end)]
            }
            Self::Value(cell, bound) => {
                let rounds = cell.by_round(points);
                let detail = match cell.over {
                    Over::Pooled => String::new(),
                    _ => range(rounds.values().copied(), cell.number),
                };
                vec![Verdict::new(cell.text(), cell.value(points), *bound, detail)]
            }
            Self::MaxLoad { above, below, slo, over, bound } => {
                vec![max_loads(points, above, below, slo, *over, *bound)]
            }
            Self::Twin(criterion) => criterion.judge(points),
            Self::NoDrops => vec![no_drops(points)],
            Self::Kept(least) => vec![kept(points, *least)],
            Self::Live => {
                let runs = points.all.iter().flat_map(|point| point.rounds.values());
                let found: Vec<String> = runs.flat_map(|round| round.not_live()).collect();
                vec![Verdict::none("policies that were not live to the end".to_owned(), &found)]
            }
            Self::AddsUp => {
                let runs = points.all.iter().flat_map(|point| point.rounds.values());
                let found: Vec<String> = runs
                    .filter(|round| !round.adds_up())
                    .map(|round| {
                        let run = &round.run;
                        format!(
                            "{} at {}/s in round {} (served {}, answered {}, replies lost {}, \
                             malformed {}, not sent {}, unexpected {})",
                            run.config,
                            thousands(run.load_rps),
                            run.round,
                            run.server.served,
                            run.load.answered,
                            run.server.lost_replies,
                            run.server.malformed,
                            run.load.send_errors,
                            run.load.unexpected
                        )
                    })
                    .collect();
                vec![Verdict::none("runs in which served is not answered".to_owned(), &found)]
            }
        }
    }
}

impl Cell {
    /// A latency of a configuration at a load, of all samples of all rounds.
    #[must_use]
    pub fn latency(config: &'static str, load_rps: f64, class: &'static str, q: f64) -> Self {
        Self { config, load_rps, number: Number::Latency(class, q), over: Over::Pooled }
    }

    /// The same with the numbers of the rounds put together otherwise.
    #[must_use]
    pub fn over(self, over: Over) -> Self {
        Self { over, ..self }
    }

    fn by_round(&self, points: &Points) -> BTreeMap<u32, f64> {
        if let Number::Probe(name) = self.number {
            let values = points.probed.get(name).into_iter().flatten().copied();
            return (1..).zip(values).collect();
        }
        let Some(point) = points.get(self.config, self.load_rps) else { return BTreeMap::new() };
        match self.number {
            Number::Latency(class, quantile) => match points.class(class) {
                Some(class) => {
                    point.by_round(|round| round.latencies.get(class)?.quantile_of_all(quantile))
                }
                None => BTreeMap::new(),
            },
            Number::PacketNs => point.by_round(|round| round.run.packet_ns),
            Number::MaxOverMean => point.by_round(super::points::Round::max_over_mean),
            Number::Probe(_) => BTreeMap::new(),
        }
    }

    /// The number.
    #[must_use]
    pub fn value(&self, points: &Points) -> Option<f64> {
        match (self.over, self.number) {
            (Over::Pooled, Number::Latency(class, quantile)) => points
                .get(self.config, self.load_rps)?
                .pooled(points.class(class)?)
                .quantile_of_all(quantile),
            (over, _) => over.of(self.by_round(points).into_values().collect()),
        }
    }

    fn what(&self) -> String {
        let over = match self.over {
            Over::Pooled | Over::Median => "",
            Over::Mean => "mean ",
            Over::Largest => "largest ",
        };
        let what = match self.number {
            Number::Latency(class, quantile) => format!("{class} {}", percentile(quantile)),
            Number::PacketNs => "time per packet".to_owned(),
            Number::MaxOverMean => "requests per executor, max/mean".to_owned(),
            Number::Probe(name) => name.to_owned(),
        };
        format!("{over}{what}")
    }

    fn text(&self) -> String {
        match self.number {
            Number::Probe(_) => self.what(),
            _ => format!("{}, {} at {}/s", self.what(), self.config, thousands(self.load_rps)),
        }
    }
}

impl Number {
    fn show(self, value: f64) -> String {
        match self {
            Self::Latency(..) => latency(value),
            Self::PacketNs => format!("{value:.0} ns"),
            Self::MaxOverMean | Self::Probe(_) => number(value),
        }
    }
}

impl Over {
    /// One number from those of the rounds; `None` from none.
    #[must_use]
    pub fn of(self, mut values: Vec<f64>) -> Option<f64> {
        if values.is_empty() {
            return None;
        }
        let count = values.len() as f64;
        Some(match self {
            Self::Mean => values.iter().sum::<f64>() / count,
            Self::Largest => values.iter().copied().fold(f64::MIN, f64::max),
            Self::Pooled | Self::Median => median(&mut values),
        })
    }
}

fn range(values: impl Iterator<Item = f64>, number: Number) -> String {
    let (mut low, mut high, mut count) = (f64::INFINITY, f64::NEG_INFINITY, 0);
    for value in values {
        (low, high, count) = (low.min(value), high.max(value), count + 1);
    }
    match count {
        0 => String::new(),
        _ => format!("{}..{} in {count} rounds", number.show(low), number.show(high)),
    }
}

fn no_drops(points: &Points) -> Verdict {
    let mut found = Vec::new();
    for point in &points.all {
        for (class, name) in points.classes.iter().enumerate() {
            // A load at which some rounds are saturated is at the edge in the others, and
            // sockets that are full of one class lose the other too.
            let is_below = (0..points.classes.len())
                .all(|any| point.below_saturation(any).rounds.len() == point.rounds.len());
            let drops = point.drops(class);
            if is_below && drops > 0 {
                let load = thousands(point.load_rps);
                found.push(format!("{} at {load}/s lost {drops} {name}", point.config));
            }
        }
    }
    Verdict::none("points below saturation with drops".to_owned(), &found)
}

fn kept(points: &Points, least: f64) -> Verdict {
    let runs = points.all.iter().flat_map(|point| point.rounds.values()).map(|round| &round.run);
    let worst = runs.min_by(|one, other| one.load.kept_share.total_cmp(&other.load.kept_share));
    let detail = worst.map_or(String::new(), |run| {
        format!("{} at {}/s in round {}", run.config, thousands(run.load_rps), run.round)
    });
    let text = "share of the requests that counts, in the worst run".to_owned();
    Verdict::new(text, worst.map(|run| run.load.kept_share), Bound::AtLeast(least), detail)
}

#[cfg(test)]
mod tests;
