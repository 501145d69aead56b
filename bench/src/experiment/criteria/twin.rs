//! What was measured beside its simulated twin.

use super::verdict::{Bound, Verdict, percentile};
use crate::experiment::points::{Point, Points};
use crate::experiment::results::thousands;

/// Each point's latency over that of its twin.
#[derive(Debug, Clone)]
pub struct TwinCriterion {
    /// Name of the class.
    pub class: &'static str,
    /// Which quantile.
    pub quantile: f64,
    /// Where each ratio must lie.
    pub ratio: Bound,
    /// Points of which something else is asked.
    pub exceptions: Vec<Exception>,
}

/// Points that are not judged by the ratio.
#[derive(Debug, Clone)]
pub struct Exception {
    /// Configuration.
    pub config: &'static str,
    /// Loads; none: all.
    pub loads: Vec<f64>,
    /// Where what was measured less the twin's must lie, in us.
    pub excess_us: Bound,
    /// A configuration and a load at which next to nothing waits: what was measured there
    /// beyond its twin is the host's, of which a point may have all or, where its service
    /// does not sleep, nothing.
    pub unloaded: Option<(&'static str, f64)>,
    /// Why.
    pub reason: &'static str,
}

impl Exception {
    /// The same, and as much more as the host adds where nothing waits.
    #[must_use]
    pub fn beyond(self, config: &'static str, load_rps: f64) -> Self {
        Self { unloaded: Some((config, load_rps)), ..self }
    }

    fn covers(&self, point: &Point) -> bool {
        let load = |load: &f64| (load - point.load_rps).abs() < 1e-6;
        self.config == point.config && (self.loads.is_empty() || self.loads.iter().any(load))
    }
}

impl TwinCriterion {
    /// A verdict for each configuration with a twin, and for each exception.
    pub fn judge(&self, points: &Points) -> Vec<Verdict> {
        let mut configs: Vec<&str> = points.all.iter().map(|point| point.config).collect();
        configs.dedup();
        let Some(class) = points.class(self.class) else { return Vec::new() };
        let name = format!("{} {}", self.class, percentile(self.quantile));
        let mut verdicts = Vec::new();
        for config in configs {
            let own = points.of_config(config);
            if !own.iter().any(|p| p.rounds.values().any(|round| round.twin.is_some())) {
                continue;
            }
            let plain: Vec<&Point> = own
                .iter()
                .filter(|point| !self.exceptions.iter().any(|one| one.covers(point)))
                .copied()
                .collect();
            if !plain.is_empty() {
                let text = format!("{name} over its simulated twin's, worst, {config}");
                let ratio = |measured: f64, twin: f64| measured / twin;
                verdicts.push(self.worst(text, &plain, class, self.ratio, &ratio));
            }
            for one in self.exceptions.iter().filter(|one| one.config == config) {
                let covered: Vec<&Point> =
                    own.iter().filter(|point| one.covers(point)).copied().collect();
                let text = format!("{name} less its simulated twin's");
                let (text, host_us) = match one.unloaded {
                    None => (text, Some(0.0)),
                    Some((config, load_rps)) => {
                        let host_us = self.excess(points, config, load_rps, class);
                        let shown =
                            host_us.map_or("not measured".to_owned(), |us| format!("{us:.2}"));
                        let load = thousands(load_rps);
                        let text = format!("{text}, which for {config} at {load}/s is {shown},");
                        (text, host_us)
                    }
                };
                let text = format!("{text} in us, worst, {config} ({})", one.reason);
                match host_us {
                    Some(host_us) => {
                        let excess = |measured: f64, twin: f64| measured - twin;
                        let bound = one.excess_us.or_more_by(host_us);
                        verdicts.push(self.worst(text, &covered, class, bound, &excess));
                    }
                    None => verdicts.push(Verdict::new(text, None, one.excess_us, String::new())),
                }
            }
        }
        verdicts
    }

    /// What was measured at a point less its twin's, in us.
    fn excess(&self, points: &Points, config: &str, load_rps: f64, class: usize) -> Option<f64> {
        let own = points.of_config(config);
        let point = own.iter().find(|point| (point.load_rps - load_rps).abs() < 1e-6)?;
        let judged = point.below_saturation(class);
        let measured = judged.pooled(class).quantile_of_all(self.quantile)?;
        Some(measured - judged.pooled_twin(class)?.quantile(self.quantile)?)
    }

    /// The point that is farthest outside the bound, or nearest to its ends.
    fn worst(
        &self,
        text: String,
        points: &[&Point],
        class: usize,
        bound: Bound,
        compare: &dyn Fn(f64, f64) -> f64,
    ) -> Verdict {
        let (mut found, mut shown) = (Vec::new(), Vec::new());
        for point in points {
            let load = thousands(point.load_rps);
            let judged = point.below_saturation(class);
            let full = point.rounds.len() - judged.rounds.len();
            let terms = judged
                .pooled(class)
                .quantile_of_all(self.quantile)
                .zip(judged.pooled_twin(class).and_then(|twin| twin.quantile(self.quantile)));
            match terms.map(|(measured, twin)| compare(measured, twin)) {
                Some(number) if full == 0 => shown.push(format!("{load}: {number:.2}")),
                Some(number) => {
                    shown.push(format!("{load}: {number:.2} ({full} rounds saturated)"))
                }
                None if full > 0 => shown.push(format!("{load}: saturated")),
                None => {}
            }
            found.extend(terms.map(|(measured, twin)| compare(measured, twin)));
        }
        let worst = found
            .into_iter()
            .max_by(|one, other| bound.beyond(*one).total_cmp(&bound.beyond(*other)));
        Verdict::new(text, worst, bound, shown.join(", "))
    }
}
