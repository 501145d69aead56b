//! The largest load under an objective.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::verdict::{Bound, Verdict};
use super::{Over, Slo};
use crate::experiment::distribution::Distribution;
use crate::experiment::plan::mixed;
use crate::experiment::points::{Point, Points};
use crate::experiment::results::thousands;

/// The largest load under an objective, as far as the measured ones tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaxLoad {
    /// It is at least this; 0 if the smallest load was too much already.
    pub low: f64,
    /// It is at most this; infinite if the largest load was not too much.
    pub high: f64,
}

impl MaxLoad {
    /// Load at which a curve reaches an objective: between two measured ones on a
    /// line in the logarithm of the latency, anywhere between them if the second
    /// latency is infinite. `None` without measured ones.
    #[must_use]
    pub fn of(curve: &[(f64, f64)], us: f64) -> Option<Self> {
        let above = curve.iter().position(|(_, latency)| *latency > us);
        Some(match above {
            None => Self { low: curve.last()?.0, high: f64::INFINITY },
            Some(0) => Self { low: 0.0, high: curve[0].0 },
            Some(place) => {
                let ((low, under), (high, over)) = (curve[place - 1], curve[place]);
                if over.is_infinite() {
                    return Some(Self { low, high });
                }
                let load = low + (us / under).ln() / (over / under).ln() * (high - low);
                Self { low: load, high: load }
            }
        })
    }

    /// The smallest ratio of the two that is possible: 0 where nothing is known.
    #[must_use]
    pub fn over(self, below: Self) -> f64 {
        self.low / below.high
    }

    fn is_exact(self) -> bool {
        self.low == self.high
    }

    fn text(self) -> String {
        let (low, high) = (thousands(self.low), thousands(self.high));
        match self {
            _ if self.is_exact() => format!("{low}/s"),
            _ if self.low == 0.0 => format!("below {high}/s"),
            _ if self.high.is_infinite() => format!("at least {low}/s"),
            _ => format!("{low}/s to {high}/s"),
        }
    }
}

/// Load and latency of a configuration, from these rounds (each as often as it
/// occurs).
fn curve(
    points: &[&Point],
    class: usize,
    quantile: f64,
    over: Over,
    rounds: &[u32],
) -> Vec<(f64, f64)> {
    points
        .iter()
        .filter_map(|point| {
            let chosen: Vec<_> =
                rounds.iter().filter_map(|round| point.rounds.get(round)).collect();
            let parts = || chosen.iter().filter_map(|round| round.latencies.get(class));
            let value = match over {
                Over::Pooled => Distribution::merged(parts()).quantile_of_all(quantile),
                over => {
                    over.of(parts().filter_map(|part| part.quantile_of_all(quantile)).collect())
                }
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
) -> Option<(MaxLoad, (MaxLoad, MaxLoad))> {
    let (load, mut resampled) = resampled(points, config, slo, over)?;
    resampled
        .sort_by(|one, other| one.low.total_cmp(&other.low).then(one.high.total_cmp(&other.high)));
    Some((load, ends(&resampled)?))
}

/// What 95 % of sorted resamples lie between.
fn ends<T: Copy>(sorted: &[T]) -> Option<(T, T)> {
    let at =
        |share: f64| sorted.get((share * (sorted.len() as f64 - 1.0)).round() as usize).copied();
    Some((at(0.025)?, at(0.975)?))
}

/// The largest load, and one for each of many draws of rounds with replacement.
/// Only rounds in which every load was met are looked at.
fn resampled(
    points: &Points,
    config: &str,
    slo: &Slo,
    over: Over,
) -> Option<(MaxLoad, Vec<MaxLoad>)> {
    const RESAMPLES: usize = 1000;
    let class = points.class(slo.class)?;
    let own = points.of_config(config);
    let mut rounds: Vec<u32> = own.first()?.rounds.keys().copied().collect();
    rounds.retain(|round| own.iter().all(|point| point.rounds.contains_key(round)));
    let of = |rounds: &[u32]| MaxLoad::of(&curve(&own, class, slo.quantile, over, rounds), slo.us);
    let seed = mixed(&config.bytes().map(u64::from).collect::<Vec<_>>());
    let mut random = StdRng::seed_from_u64(seed);
    let load = of(&rounds)?;
    let draws = (0..RESAMPLES).filter_map(|_| {
        let drawn: Vec<u32> =
            rounds.iter().map(|_| rounds[random.random_range(0..rounds.len())]).collect();
        of(&drawn)
    });
    Some((load, draws.collect()))
}

pub fn max_loads(
    points: &Points,
    above: &str,
    below: &str,
    slo: &Slo,
    over: Over,
    bound: Bound,
) -> Verdict {
    let of = |config: &str| resampled(points, config, slo, over);
    let show = |config: &str| match max_load_of(points, config, slo, over) {
        None => "not measured".to_owned(),
        Some((load, (low, high))) => format!("{} [{}, {}]", load.text(), low.text(), high.text()),
    };
    let (mut ratio, mut interval, mut at_least) = (None, None, false);
    if let Some(((top, tops), (bottom, bottoms))) = of(above).zip(of(below)) {
        // 0: the one below the line never gets there, or the one above is never
        // under the objective.
        ratio = Some(top.over(bottom)).filter(|ratio| *ratio > 0.0);
        at_least = !(top.is_exact() && bottom.is_exact());
        let mut ratios: Vec<f64> =
            tops.into_iter().zip(bottoms).map(|(top, bottom)| top.over(bottom)).collect();
        ratios.sort_by(f64::total_cmp);
        interval = ratio.and(ends(&ratios));
    }
    let mean = if over == Over::Mean { "mean " } else { "" };
    let text = format!("max load with {mean}{}, {above} / {below}", slo.text());
    let detail = format!("{} / {}", show(above), show(below));
    Verdict { interval, at_least, ..Verdict::new(text, ratio, bound, detail) }
}
