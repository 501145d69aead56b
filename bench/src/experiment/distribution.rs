//! Latencies of many requests: merged over runs, with the uncertainty of their
//! percentiles.

use crate::load::ClassSummary;
use anyhow::Result;

/// Fewest samples behind a p99.9: with fewer it rests on less than five values.
pub const LEAST_FOR_P999: u64 = 5000;

/// Values in order, how often each occurred, and how many there should be more:
/// requests that were never answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    counts: Vec<(f64, u64)>,
    samples: u64,
    lost: u64,
}

/// A range that holds the true value with 95 %; an end is missing where no
/// number of samples this small can give it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
}

impl Distribution {
    /// What one run measured of a class, `scale` times as fast.
    pub fn of(class: &ClassSummary, scale: f64) -> Result<Self> {
        let histogram = class.histogram()?;
        let counts: Vec<(f64, u64)> = histogram
            .iter_recorded()
            .map(|bin| (bin.value_iterated_to() as f64 / scale, bin.count_at_value()))
            .collect();
        Ok(Self { lost: class.lost, ..Self::from(counts) })
    }

    /// All samples of all of them.
    #[must_use]
    pub fn merged<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let (mut counts, mut lost) = (Vec::new(), 0);
        for part in parts {
            counts.extend_from_slice(&part.counts);
            lost += part.lost;
        }
        Self { lost, ..Self::from(counts) }
    }

    /// Number of samples.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The sample of this rank, from 1.
    fn ranked(&self, rank: u64) -> Option<f64> {
        let mut seen = 0;
        self.counts
            .iter()
            .find(|(_, count)| {
                seen += count;
                seen >= rank
            })
            .map(|(value, _)| *value)
    }

    /// The smallest sample that at least this share of the samples does not
    /// exceed; `None` without samples.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        self.ranked(rank(quantile, self.samples))
    }

    /// The same of all requests: one that was never answered took infinitely long.
    #[must_use]
    pub fn quantile_of_all(&self, quantile: f64) -> Option<f64> {
        let all = self.samples + self.lost;
        let rank = rank(quantile, all);
        if all > 0 && rank > self.samples { Some(f64::INFINITY) } else { self.ranked(rank) }
    }

    /// 95 % confidence interval of a quantile from the order statistics: the
    /// number of samples above the true quantile is binomial, whatever the
    /// distribution (David and Nagaraja, Order Statistics, 3rd ed., section
    /// 7.1). It takes the samples for independent, which those of one queue are
    /// not quite: the range over the rounds stands beside it.
    #[must_use]
    pub fn interval(&self, quantile: f64) -> Interval {
        let all = self.samples;
        let above = 1.0 - quantile;
        if all == 0 {
            return Interval { low: None, high: None };
        }
        // P(K <= k) for K ~ Binomial(samples, above), k = 0, 1, ...
        let mut log = all as f64 * (-above).ln_1p();
        let mut below = 0.0;
        let (mut low, mut high) = (None, None);
        for k in 0..=all {
            let until = below + log.exp();
            if until <= 0.025 {
                high = Some(all - k);
            }
            if until >= 0.975 {
                low = (k < all).then_some(all - k);
                break;
            }
            below = until;
            log += ((all - k) as f64 / (k + 1) as f64 * above / quantile).ln();
        }
        let sample = |rank: Option<u64>| rank.and_then(|rank| self.ranked(rank));
        Interval { low: sample(low), high: sample(high) }
    }

    /// Points of the curve of what is longer: value, and share of the samples
    /// above it.
    #[must_use]
    pub fn exceedance(&self) -> Vec<(f64, f64)> {
        let mut seen = 0;
        self.counts
            .iter()
            .map(|(value, count)| {
                seen += count;
                (*value, 1.0 - seen as f64 / self.samples as f64)
            })
            .collect()
    }
}

impl From<Vec<(f64, u64)>> for Distribution {
    fn from(mut counts: Vec<(f64, u64)>) -> Self {
        counts.sort_by(|one, other| one.0.total_cmp(&other.0));
        counts.dedup_by(|next, before| {
            let same = next.0 == before.0;
            before.1 += if same { next.1 } else { 0 };
            same
        });
        Self { samples: counts.iter().map(|(_, count)| count).sum(), counts, lost: 0 }
    }
}

/// Place of a quantile among so many samples, from 1.
fn rank(quantile: f64, samples: u64) -> u64 {
    // 0.99 * 100 is a little more than 99.
    ((quantile * samples as f64 - 1e-6).ceil() as u64).clamp(1, samples.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(values: impl Iterator<Item = u32>) -> Distribution {
        Distribution::from(values.map(|value| (f64::from(value), 1)).collect::<Vec<_>>())
    }

    #[test]
    fn quantiles_are_samples() {
        let hundred = numbers(1..=100);
        assert_eq!(hundred.quantile(0.5), Some(50.0));
        assert_eq!(hundred.quantile(0.99), Some(99.0));
        assert_eq!(hundred.quantile(1.0), Some(100.0));
        assert_eq!(hundred.quantile(0.0), Some(1.0));
        assert_eq!(Distribution::default().quantile(0.5), None);
    }

    #[test]
    fn what_was_never_answered_took_infinitely_long() {
        let with = |lost| Distribution { lost, ..numbers(1..=99) };
        assert_eq!(with(1).quantile_of_all(0.99), Some(99.0));
        assert_eq!(with(2).quantile_of_all(0.99), Some(f64::INFINITY));
        assert_eq!(with(2).quantile(0.99), Some(99.0), "of the replies");
        let twice = Distribution::merged([&with(0), &with(2)]);
        assert_eq!((twice.samples(), twice.quantile_of_all(0.99)), (198, Some(99.0)));
        assert_eq!(
            Distribution::merged([&with(2), &with(2)]).quantile_of_all(0.99),
            Some(f64::INFINITY)
        );
        assert_eq!(Distribution::default().quantile_of_all(0.5), None);
    }

    #[test]
    fn what_was_never_answered_is_no_sample() {
        let answered = Distribution::from(vec![(1.0, 2), (2.0, 1), (4.0, 1)]);
        let lossy = Distribution { lost: 4, ..answered.clone() };
        for all in [&answered, &lossy] {
            assert_eq!(all.exceedance(), [(1.0, 0.5), (2.0, 0.25), (4.0, 0.0)]);
            assert_eq!((all.samples(), all.quantile(0.75)), (4, Some(2.0)));
        }
        let median = |lost| Distribution { lost, ..numbers(1..=100) }.interval(0.5);
        assert_eq!(median(100), median(0));
    }

    #[test]
    fn merging_counts_every_sample_of_every_run() {
        let merged = Distribution::merged([&numbers(1..=3), &numbers(2..=4), &numbers(9..=9)]);
        assert_eq!(merged.samples(), 7);
        assert_eq!(merged.quantile(0.5), Some(3.0));
        assert_eq!(merged.exceedance().len(), 5);
        assert_eq!(merged.exceedance()[4], (9.0, 0.0));
    }

    #[test]
    fn an_interval_of_order_statistics_is_the_textbooks() {
        // Binomial tables: of 100 samples the 40th and the 61st enclose the
        // median with 95 %.
        let interval = numbers(1..=100).interval(0.5);
        assert_eq!((interval.low, interval.high), (Some(40.0), Some(61.0)));
        // p99 of 205: nothing above the largest sample, P(none is) = 12.7 %.
        assert_eq!(numbers(1..=205).interval(0.99).high, None);
        assert!(numbers(1..=205).interval(0.99).low.is_some());
        let pooled = numbers(1..=630).interval(0.99);
        let (low, high) = (pooled.low.unwrap(), pooled.high.unwrap());
        assert!((610.0..624.0).contains(&low) && (625.0..=630.0).contains(&high), "{pooled:?}");
    }

    #[test]
    fn many_samples_make_a_narrow_interval() {
        let interval = numbers(1..=1_000_000).interval(0.99);
        assert!((989_700.0..989_900.0).contains(&interval.low.unwrap()), "{interval:?}");
        assert!((990_100.0..990_300.0).contains(&interval.high.unwrap()), "{interval:?}");
    }
}
