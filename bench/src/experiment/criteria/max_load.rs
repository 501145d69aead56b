//! The largest load under an objective.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::verdict::{Bound, Verdict};
use super::{Over, Slo};
use crate::experiment::distribution::Distribution;
use crate::experiment::points::{Point, Points};
use crate::experiment::results::thousands;

/// Load at which a configuration reaches an objective, between two measured
/// ones on a line in the logarithm of the latency. `None` if it is above from
/// the start; the last load, and false, if it never reaches it.
#[must_use]
pub fn max_load(curve: &[(f64, f64)], us: f64) -> Option<(f64, bool)> {
    let above = curve.iter().position(|(_, latency)| *latency > us);
    match above {
        None => curve.last().map(|(load, _)| (*load, false)),
        Some(0) => None,
        Some(place) => {
            let ((low, under), (high, over)) = (curve[place - 1], curve[place]);
            let part = (us / under).ln() / (over / under).ln();
            Some((low + part * (high - low), true))
        }
    }
}

/// Load and latency of a configuration, from these rounds (each as often as it
/// occurs).
pub fn curve(
    points: &[&Point],
    class: usize,
    quantile: f64,
    over: Over,
    rounds: Option<&[u32]>,
) -> Vec<(f64, f64)> {
    points
        .iter()
        .filter_map(|point| {
            let chosen: Vec<_> = match rounds {
                None => point.rounds.values().collect(),
                Some(rounds) => rounds.iter().filter_map(|round| point.rounds.get(round)).collect(),
            };
            let parts = || chosen.iter().filter_map(|round| round.latencies.get(class));
            let value = match over {
                Over::Pooled => Distribution::merged(parts()).quantile(quantile),
                over => over.of(parts().filter_map(|part| part.quantile(quantile)).collect()),
            };
            Some((point.load_rps, value?))
        })
        .collect()
}

/// Largest load of a configuration under an objective, with a 95 % interval from
/// a bootstrap over the rounds (Efron and Tibshirani, An Introduction to the
/// Bootstrap, section 13.3: percentiles of 1000 resamples).
#[must_use]
pub fn max_load_of(
    points: &Points,
    config: &str,
    slo: &Slo,
    over: Over,
) -> Option<(f64, bool, (f64, f64))> {
    let class = points.class(slo.class)?;
    let own = points.of_config(config);
    let (load, crossed) = max_load(&curve(&own, class, slo.quantile, over, None), slo.us)?;
    let resampled = resamples(&own, class, slo, over, config);
    let at = |share: f64| resampled.get((share * (resampled.len() as f64 - 1.0)).round() as usize);
    let interval = (*at(0.025).unwrap_or(&load), *at(0.975).unwrap_or(&load));
    Some((load, crossed, interval))
}

/// Largest loads in order, each from rounds drawn with replacement.
fn resamples(own: &[&Point], class: usize, slo: &Slo, over: Over, config: &str) -> Vec<f64> {
    const RESAMPLES: usize = 1000;
    let mut rounds: Vec<u32> = own.iter().flat_map(|point| point.rounds.keys()).copied().collect();
    rounds.sort_unstable();
    rounds.dedup();
    let seed = config.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte));
    let mut random = StdRng::seed_from_u64(seed);
    let mut loads: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let drawn: Vec<u32> =
                rounds.iter().map(|_| rounds[random.random_range(0..rounds.len())]).collect();
            let curve = curve(own, class, slo.quantile, over, Some(&drawn));
            max_load(&curve, slo.us).map(|(load, _)| load)
        })
        .collect();
    loads.sort_by(f64::total_cmp);
    loads
}

pub fn max_loads(
    points: &Points,
    above: &str,
    below: &str,
    slo: &Slo,
    over: Over,
    bound: Bound,
) -> Verdict {
    let of = |config: &str| max_load_of(points, config, slo, over);
    let (top, bottom) = (of(above), of(below));
    // Where the one below the line never reaches the objective, its largest
    // load is not known; where the one above does not, it is at least this.
    let ratio = match (top, bottom) {
        (Some((top, ..)), Some((bottom, true, _))) => Some(top / bottom),
        _ => None,
    };
    let mean = if over == Over::Mean { "mean " } else { "" };
    let show = |load: Option<(f64, bool, (f64, f64))>| match load {
        None => "none of the loads".to_owned(),
        Some((load, crossed, (low, high))) => format!(
            "{}{}/s [{}, {}]",
            if crossed { "" } else { "at least " },
            thousands(load),
            thousands(low),
            thousands(high)
        ),
    };
    Verdict::new(
        format!("max load with {mean}{}, {above} / {below}", slo.text()),
        ratio,
        bound,
        format!("{} / {}", show(top), show(bottom)),
    )
}
