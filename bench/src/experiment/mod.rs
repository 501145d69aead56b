//! Experiments: what they share. Runs are grouped into points (a configuration
//! at a load); every number that is published is the median over a point's
//! runs, with the smallest and largest beside it.

pub mod check;
pub mod criteria;
pub mod demo;
pub mod native;
mod output;
mod progress;
mod server_process;
mod stack;

use serde::{Deserialize, Serialize};

use crate::load::{ClassSummary, LoadSummary};
use crate::wire::Class;
use crate::work::median;

pub use output::{Details, RenderOptions, latency, render, simulated};
pub use server_process::ServerProcess;
pub use stack::{Programs, Stack};

/// A configuration at a load, and its runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Point {
    /// Name of the configuration.
    pub config: String,
    /// Offered load, in the unit of the report.
    pub load_rps: f64,
    /// Its runs.
    pub runs: Vec<LoadSummary>,
}

/// Median and range over the runs of a point.
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
    /// Of these values; zeros for none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        let median = median(&mut values);
        Self {
            median,
            min: values.first().copied().unwrap_or(0.0),
            max: values.last().copied().unwrap_or(0.0),
        }
    }
}

impl Point {
    /// One number of a class, over the runs.
    #[must_use]
    pub fn spread(&self, class: Class, number: impl Fn(&ClassSummary) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(|run| number(run.class(class))).collect())
    }

    /// The rows of `results.json`.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        Class::ALL
            .iter()
            .filter(|&&class| self.runs.iter().any(|run| run.class(class).requests > 0))
            .map(|&class| {
                let of = |number: fn(&ClassSummary) -> f64| self.spread(class, number).median;
                Row {
                    config: self.config.clone(),
                    class: class.name().to_owned(),
                    load_rps: self.load_rps,
                    p50_us: of(|numbers| numbers.p50_us),
                    p99_us: of(|numbers| numbers.p99_us),
                    p999_us: of(|numbers| numbers.p999_us),
                    throughput_rps: of(|numbers| numbers.throughput_rps),
                    drops: of(|numbers| numbers.drops as f64),
                }
            })
            .collect()
    }

    /// The median distribution of a class: quantile and microseconds.
    #[must_use]
    pub fn distribution(&self, class: Class) -> Vec<(f64, f64)> {
        let runs: Vec<_> = self
            .runs
            .iter()
            .map(|run| &run.class(class).distribution)
            .filter(|distribution| !distribution.is_empty())
            .collect();
        let Some(first) = runs.first() else { return Vec::new() };
        first
            .iter()
            .enumerate()
            .map(|(place, &(quantile, _))| {
                let mut values: Vec<f64> = runs.iter().map(|run| run[place].1).collect();
                (quantile, median(&mut values))
            })
            .collect()
    }
}

/// `results.json`: what others check by program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Which experiment.
    pub experiment: String,
    /// What the numbers have to show, and in which units they are.
    pub criterion: String,
    /// Rounds the medians are taken over.
    pub rounds: u32,
    /// Medians.
    pub rows: Vec<Row>,
}

/// A configuration, a class and a load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the configuration.
    pub config: String,
    /// "GET" or "SCAN".
    pub class: String,
    /// Offered load of both classes.
    pub load_rps: f64,
    /// Median latency.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Replies per second.
    pub throughput_rps: f64,
    /// Requests without a reply.
    pub drops: f64,
}

impl LoadSummary {
    /// The same run in a time `scale` times as fast: what a dilated run stands for.
    #[must_use]
    pub fn undilated(mut self, scale: f64) -> Self {
        self.rps *= scale;
        for class in &mut self.classes {
            class.throughput_rps *= scale;
            for us in [&mut class.mean_us, &mut class.p50_us, &mut class.p99_us, &mut class.p999_us]
            {
                *us /= scale;
            }
            for (_, us) in &mut class.distribution {
                *us /= scale;
            }
        }
        self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn run(get_p99_us: f64, scan_p99_us: f64) -> LoadSummary {
        let class = |class: Class, p99_us: f64| ClassSummary {
            class: class.name().to_owned(),
            requests: 100,
            drops: 0,
            throughput_rps: 10.0,
            samples: 100,
            mean_us: p99_us / 3.0,
            p50_us: p99_us / 2.0,
            p99_us,
            p999_us: p99_us * 1.5,
            distribution: vec![(0.5, p99_us / 2.0), (0.99, p99_us), (1.0, p99_us * 2.0)],
        };
        LoadSummary {
            rps: 20.0,
            kept_share: 1.0,
            classes: vec![class(Class::Get, get_p99_us), class(Class::Scan, scan_p99_us)],
            served_by: vec![50, 50],
            send_errors: 0,
            unexpected: 0,
        }
    }

    pub fn point(config: &str, runs: &[(f64, f64)]) -> Point {
        Point {
            config: config.to_owned(),
            load_rps: 24.0,
            runs: runs.iter().map(|&(get, scan)| run(get, scan)).collect(),
        }
    }

    #[test]
    fn rows_are_medians_over_runs() {
        let point = point("both", &[(3.0, 30.0), (1.0, 10.0), (2.0, 20.0)]);
        let rows = point.rows();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].class.as_str(), rows[0].p99_us), ("GET", 2.0));
        assert_eq!((rows[1].class.as_str(), rows[1].p50_us), ("SCAN", 10.0));
        let spread = point.spread(Class::Get, |class| class.p99_us);
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(point.distribution(Class::Get)[1], (0.99, 2.0));
    }

    #[test]
    fn undilated_runs_are_faster_and_shorter() {
        let run = run(500.0, 5000.0).undilated(50.0);
        assert_eq!(run.rps, 1000.0);
        assert_eq!(run.class(Class::Get).p99_us, 10.0);
        assert_eq!(run.class(Class::Scan).throughput_rps, 500.0);
        assert_eq!(run.class(Class::Get).distribution[1], (0.99, 10.0));
    }

    #[test]
    fn results_have_the_published_fields() {
        let results = Results {
            experiment: "demo".to_owned(),
            criterion: "words".to_owned(),
            rounds: 1,
            rows: point("both", &[(2.0, 20.0)]).rows(),
        };
        let json: serde_json::Value = serde_json::to_value(&results).unwrap();
        let mut fields: Vec<&str> =
            json["rows"][0].as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            [
                "class",
                "config",
                "drops",
                "load_rps",
                "p50_us",
                "p999_us",
                "p99_us",
                "throughput_rps"
            ]
        );
        assert_eq!(json.as_object().unwrap().len(), 4);
    }
}
