//! Which requests are sent, and when: fixed before the run, by the seed alone,
//! so that every configuration of an experiment meets the same arrivals.

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::Exp;
use rand_distr::weighted::WeightedIndex;

use super::Stream;
use crate::wire::Class;

/// More requests than this in one run are refused: each takes 40 bytes of memory.
pub const MOST_REQUESTS: f64 = 20e6;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// When it is to be sent, from the start of the run.
    pub at_ns: u64,
    /// Which flow sends it.
    pub flow: u32,
    /// Which stream it belongs to.
    pub stream: u32,
    /// What it asks for.
    pub class: Class,
    /// Of which key.
    pub key: u64,
}

/// Poisson arrivals of all streams for `length_ns`, over `flows` flows that they
/// share.
pub fn poisson(streams: &[Stream], length_ns: u64, flows: u32, seed: u64) -> Result<Vec<Arrival>> {
    let kinds: Vec<(u32, Class, f64)> = (0..)
        .zip(streams)
        .flat_map(|(number, stream)| {
            stream.mix.iter().map(move |part| (number, part.class, part.share * stream.rps))
        })
        .collect();
    let rps: f64 = kinds.iter().map(|(_, _, rps)| rps).sum();
    ensure!(rps > 0.0 && rps.is_finite(), "the rate of requests must be above 0");
    ensure!(flows > 0, "--flows must be at least 1");
    let expected = rps * length_ns as f64 / 1e9;
    ensure!(
        expected < MOST_REQUESTS,
        "{expected:.0} requests in one run are too many (at most {MOST_REQUESTS:.0}): lower --rps \
         or --duration"
    );
    let mut random = StdRng::seed_from_u64(seed);
    let gap = Exp::new(rps / 1e9)?;
    let kind = WeightedIndex::new(kinds.iter().map(|(_, _, rps)| rps))?;
    let mut arrivals = Vec::with_capacity((expected * 1.1) as usize);
    let mut at = 0.0f64;
    loop {
        at += random.sample(gap);
        if at >= length_ns as f64 {
            return Ok(arrivals);
        }
        let flow = random.random_range(0..flows);
        let (stream, class, _) = kinds[random.sample(&kind)];
        arrivals.push(Arrival { at_ns: at as u64, flow, stream, class, key: random.random() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_poisson_with_the_mix_and_flows_asked_for() {
        let streams = [Stream::gets_and_scans(1000.0, 0.25)];
        let arrivals = poisson(&streams, 100_000_000_000, 50, 1).unwrap();
        let count = arrivals.len() as f64;
        assert!((98_500.0..101_500.0).contains(&count), "{count}");
        let scans = arrivals.iter().filter(|a| a.class == Class::SCAN).count() as f64;
        assert!((0.24..0.26).contains(&(scans / count)));
        // Exponential gaps: mean and standard deviation are equal.
        let gaps: Vec<f64> =
            arrivals.windows(2).map(|pair| (pair[1].at_ns - pair[0].at_ns) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count;
        assert!((0.97..1.03).contains(&(variance.sqrt() / mean)));
        let mut per_flow = [0u32; 50];
        for arrival in &arrivals {
            per_flow[arrival.flow as usize] += 1;
        }
        assert!(per_flow.iter().all(|&count| (1700..2300).contains(&count)), "{per_flow:?}");
    }

    #[test]
    fn streams_keep_their_rates() {
        let stream = |rps, user| Stream { user, ..Stream::gets_and_scans(rps, 0.0) };
        let arrivals =
            poisson(&[stream(300.0, 0), stream(100.0, 1)], 100_000_000_000, 5, 1).unwrap();
        let first = arrivals.iter().filter(|arrival| arrival.stream == 0).count() as f64;
        let second = arrivals.len() as f64 - first;
        assert!((29_400.0..30_600.0).contains(&first), "{first}");
        assert!((9_600.0..10_400.0).contains(&second), "{second}");
    }

    #[test]
    fn the_seed_decides_everything() {
        let run =
            |seed| poisson(&[Stream::gets_and_scans(500.0, 0.5)], 1_000_000_000, 5, seed).unwrap();
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn a_run_without_bounds_is_refused() {
        let refused =
            |rps| poisson(&[Stream::gets_and_scans(rps, 0.5)], 60_000_000_000, 5, 1).is_err();
        assert!(refused(1e6));
        assert!(refused(0.0));
    }
}
