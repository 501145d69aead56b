//! What the experiments have to show: pure functions of their results.

use serde::{Deserialize, Serialize};

use super::{Results, Row};
use crate::wire::Class;

/// Configurations of the demo, as they are named everywhere.
pub mod demo_configs {
    /// Plain Linux.
    pub const VANILLA: &str = "vanilla";
    /// A packet policy.
    pub const SCAN_AVOID: &str = "scan-avoid";
    /// The same with EEVDF's slice dilated like the service.
    pub const SCAN_AVOID_LONG_SLICE: &str = "scan-avoid-long-slice";
    /// A thread policy.
    pub const GET_PRIORITY: &str = "get-priority";
    /// Packet policy and thread policy.
    pub const BOTH: &str = "both";
    /// All, in the order they run and are printed.
    pub const ALL: [&str; 5] = [VANILLA, SCAN_AVOID, SCAN_AVOID_LONG_SLICE, GET_PRIORITY, BOTH];
}

/// Configurations of the native experiment.
pub mod native_configs {
    /// The kernel's hash.
    pub const VANILLA: &str = "vanilla";
    /// Each socket in turn.
    pub const ROUND_ROBIN: &str = "round-robin";
    /// Away from SCANs.
    pub const SCAN_AVOID: &str = "scan-avoid";
    /// SCANs on a socket of their own.
    pub const SITA: &str = "sita";
    /// All, in the order they run and are printed.
    pub const ALL: [&str; 4] = [VANILLA, ROUND_ROBIN, SCAN_AVOID, SITA];
    /// Loads, in requests per second of undilated time.
    pub const LOADS: [f64; 2] = [150_000.0, 300_000.0];
}

/// A criterion and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What is compared with what.
    pub text: String,
    /// What was measured; `None` when the rows for it are missing.
    pub measured: Option<f64>,
    /// "at least 10" or "at most 1.15", as numbers.
    pub bound: Bound,
}

/// Where a measured number must lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Not below this.
    AtLeast(f64),
    /// Not above this.
    AtMost(f64),
}

impl Verdict {
    /// A criterion with its measured number.
    #[must_use]
    pub fn new(text: &str, measured: Option<f64>, bound: Bound) -> Self {
        let measured = measured.filter(|number| number.is_finite());
        Self { text: text.to_owned(), measured, bound }
    }

    /// Whether it holds; a number that is missing does not.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.measured.is_some_and(|number| match self.bound {
            Bound::AtLeast(bound) => number >= bound,
            Bound::AtMost(bound) => number <= bound,
        })
    }

    /// One line: mark, text, number, bound.
    #[must_use]
    pub fn line(&self) -> String {
        let bound = match self.bound {
            Bound::AtLeast(bound) => format!("at least {bound}"),
            Bound::AtMost(bound) => format!("at most {bound}"),
        };
        let measured = self.measured.map_or("not measured".to_owned(), |m| format!("{m:.2}"));
        format!("{} {}: {measured} ({bound})", self.mark(), self.text)
    }

    /// "ok" or "short".
    #[must_use]
    pub fn mark(&self) -> &'static str {
        if self.holds() { "ok   " } else { "short" }
    }
}

/// What the results of an experiment have to show; empty for one that has no
/// criteria on its rows.
#[must_use]
pub fn of(results: &Results) -> Vec<Verdict> {
    match results.experiment.as_str() {
        "demo" => demo(&results.rows),
        "native" => native(&results.rows),
        _ => Vec::new(),
    }
}

fn row<'a>(rows: &'a [Row], config: &str, class: Class) -> Option<&'a Row> {
    rows.iter().find(|row| row.config == config && row.class == class.name())
}

fn demo(rows: &[Row]) -> Vec<Verdict> {
    use demo_configs::{ALL, BOTH, SCAN_AVOID, SCAN_AVOID_LONG_SLICE, VANILLA};

    let p99 = |config: &str, class| row(rows, config, class).map(|row| row.p99_us);
    let get_ratio = |config: &str| Some(p99(config, Class::Get)? / p99(BOTH, Class::Get)?);
    let others = || ALL.iter().filter(|&&config| config != BOTH);
    let best_scan = others().filter_map(|config| p99(config, Class::Scan)).reduce(f64::min);
    let throughput = |config: &str| {
        Some(
            row(rows, config, Class::Get)?.throughput_rps
                + row(rows, config, Class::Scan)?.throughput_rps,
        )
    };
    let best_throughput = others().filter_map(|config| throughput(config)).reduce(f64::max);
    vec![
        Verdict::new("GET p99, vanilla / both layers", get_ratio(VANILLA), Bound::AtLeast(10.0)),
        Verdict::new(
            "GET p99, scan-avoid with EEVDF's default slice / both layers",
            get_ratio(SCAN_AVOID),
            Bound::AtLeast(2.0),
        ),
        Verdict::new(
            "GET p99, scan-avoid with the slice dilated like the service / both layers",
            get_ratio(SCAN_AVOID_LONG_SLICE),
            Bound::AtLeast(10.0),
        ),
        Verdict::new(
            "SCAN p99, both layers / the best of the others",
            p99(BOTH, Class::Scan).zip(best_scan).map(|(both, best)| both / best),
            Bound::AtMost(1.15),
        ),
        Verdict::new(
            "throughput, both layers / the best of the others",
            throughput(BOTH).zip(best_throughput).map(|(both, best)| both / best),
            Bound::AtLeast(0.85),
        ),
    ]
}

fn native(rows: &[Row]) -> Vec<Verdict> {
    use native_configs::{LOADS, SCAN_AVOID, SITA, VANILLA};

    let p99 = |config: &str, load: f64| {
        rows.iter()
            .find(|row| {
                row.config == config && row.class == Class::Get.name() && row.load_rps == load
            })
            .map(|row| row.p99_us)
    };
    let ratio = |above: Option<f64>, below: Option<f64>| Some(above? / below?);
    vec![
        Verdict::new(
            "GET p99 at 150 K, vanilla / scan-avoid",
            ratio(p99(VANILLA, LOADS[0]), p99(SCAN_AVOID, LOADS[0])),
            Bound::AtLeast(10.0),
        ),
        Verdict::new(
            "GET p99 at 300 K, sita / scan-avoid",
            ratio(p99(SITA, LOADS[1]), p99(SCAN_AVOID, LOADS[1])),
            Bound::AtMost(1.0),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::point;
    use super::*;

    fn demo_results(get: [f64; 5], scan: [f64; 5]) -> Results {
        Results {
            experiment: "demo".to_owned(),
            criterion: String::new(),
            rounds: 3,
            rows: demo_configs::ALL
                .iter()
                .zip(get.iter().zip(scan))
                .flat_map(|(config, (&get, scan))| point(config, &[(get, scan)]).rows())
                .collect(),
        }
    }

    #[test]
    fn the_reference_results_satisfy_the_demos_criteria() {
        let results =
            demo_results([120e3, 8.2e3, 87e3, 121e3, 2.5e3], [400e3, 390e3, 395e3, 400e3, 400e3]);
        let verdicts = of(&results);
        assert_eq!(verdicts.len(), 5);
        assert!(verdicts.iter().all(Verdict::holds), "{verdicts:#?}");
    }

    #[test]
    fn each_criterion_can_fall_short() {
        let good = [120e3, 8.2e3, 87e3, 121e3, 2.5e3];
        let same = [400e3; 5];
        let short = |get, scan| -> Vec<bool> {
            of(&demo_results(get, scan)).iter().map(|verdict| !verdict.holds()).collect()
        };
        let with = |place: usize, value| {
            let mut get = good;
            get[place] = value;
            get
        };
        assert_eq!(short(with(0, 24e3), same), [true, false, false, false, false]);
        assert_eq!(short(with(1, 4e3), same), [false, true, false, false, false]);
        assert_eq!(short(with(2, 24e3), same), [false, false, true, false, false]);
        assert_eq!(
            short(good, [400e3, 300e3, 400e3, 400e3, 400e3]),
            [false, false, false, true, false]
        );
    }

    #[test]
    fn missing_rows_do_not_satisfy_anything() {
        let mut results = demo_results([1.0; 5], [1.0; 5]);
        results.rows.clear();
        assert!(of(&results).iter().all(|verdict| !verdict.holds()));
        assert!(of(&results)[0].line().starts_with("short"), "{}", of(&results)[0].line());
    }

    #[test]
    fn native_criteria_compare_at_their_loads() {
        let at = |config: &str, load_rps, p99_us| {
            let mut point = point(config, &[(p99_us, 1000.0)]);
            point.load_rps = load_rps;
            point.rows()
        };
        let results = |sita| Results {
            experiment: "native".to_owned(),
            criterion: String::new(),
            rounds: 3,
            rows: [
                at("vanilla", 150e3, 866.0),
                at("scan-avoid", 150e3, 49.0),
                at("scan-avoid", 300e3, 919.0),
                at("sita", 300e3, sita),
            ]
            .concat(),
        };
        assert!(of(&results(36.0)).iter().all(Verdict::holds));
        assert!(!of(&results(1000.0)).iter().all(Verdict::holds));
    }
}
