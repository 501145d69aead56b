//! One number over another.

use super::verdict::{Bound, Verdict};
use super::{Cell, Number, Over, range};
use crate::experiment::points::Points;
use crate::experiment::results::thousands;

pub fn ratio(
    points: &Points,
    above: &Cell,
    below: &Cell,
    bound: Bound,
    low_end: Option<f64>,
) -> Verdict {
    let (top, bottom) = (above.by_round(points), below.by_round(points));
    let by_round: Vec<f64> = top
        .iter()
        .filter_map(|(round, value)| Some(value / bottom.get(round)?))
        .filter(|ratio| *ratio > 0.0)
        .collect();
    let terms = above.value(points).zip(below.value(points));
    // Rounds are pairs (the same arrivals, the same ports) unless all samples
    // are to be looked at together.
    let measured = match above.over {
        Over::Median if !by_round.is_empty() => above.over.of(by_round.clone()),
        _ => terms.map(|(above, below)| above / below),
    };
    let at = match above.load_rps == below.load_rps {
        true => format!(" at {}/s", thousands(above.load_rps)),
        false => format!(" ({}/s, {}/s)", thousands(above.load_rps), thousands(below.load_rps)),
    };
    let text = format!("{}{at}, {} / {}", above.what(), above.config, below.config);
    let terms = terms.map_or(String::new(), |(one, other)| {
        format!("{} / {}", above.number.show(one), below.number.show(other))
    });
    let rounds = match by_round.len() {
        0 | 1 => String::new(),
        _ => format!(", {}", range(by_round.iter().copied(), Number::MaxOverMean)),
    };
    Verdict {
        interval: student(&by_round),
        low_end,
        ..Verdict::new(text, measured, bound, format!("{terms}{rounds}"))
    }
}

/// 95 % interval of a ratio from its values in the rounds: Student's t on their
/// logarithms. `None` with less than 3 rounds, or where
/// a term is infinite.
pub fn student(ratios: &[f64]) -> Option<(f64, f64)> {
    // Two-sided 95 % for 2, 3, ... degrees of freedom.
    const T: [f64; 19] = [
        4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    ];
    if ratios.len() < 3 || ratios.iter().any(|ratio| ratio.is_infinite()) {
        return None;
    }
    let count = ratios.len() as f64;
    let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
    let mean = logs.iter().sum::<f64>() / count;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let half = T[(ratios.len() - 3).min(T.len() - 1)] * (variance / count).sqrt();
    Some(((mean - half).exp(), (mean + half).exp()))
}
