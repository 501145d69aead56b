//! Which requests are sent, and when: fixed before the run, by the seed alone,
//! so that every configuration of an experiment meets the same arrivals.

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::Exp;

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
    /// What it asks for.
    pub class: Class,
    /// Of which key.
    pub key: u64,
}

/// Poisson arrivals at `rps` for `length_ns`, over `flows` flows.
pub fn poisson(
    rps: f64,
    length_ns: u64,
    flows: u32,
    scan_fraction: f64,
    seed: u64,
) -> Result<Vec<Arrival>> {
    ensure!(rps > 0.0 && rps.is_finite(), "--rps must be above 0");
    ensure!((0.0..=1.0).contains(&scan_fraction), "--scan-fraction must be 0 to 1");
    ensure!(flows > 0, "--flows must be at least 1");
    let expected = rps * length_ns as f64 / 1e9;
    ensure!(
        expected < MOST_REQUESTS,
        "{expected:.0} requests in one run are too many (at most {MOST_REQUESTS:.0}): lower --rps \
         or --duration"
    );
    let mut random = StdRng::seed_from_u64(seed);
    let gap = Exp::new(rps / 1e9)?;
    let mut arrivals = Vec::with_capacity((expected * 1.1) as usize);
    let mut at = 0.0f64;
    loop {
        at += random.sample(gap);
        if at >= length_ns as f64 {
            return Ok(arrivals);
        }
        arrivals.push(Arrival {
            at_ns: at as u64,
            flow: random.random_range(0..flows),
            class: if random.random_bool(scan_fraction) { Class::Scan } else { Class::Get },
            key: random.random(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_poisson_with_the_mix_and_flows_asked_for() {
        let arrivals = poisson(1000.0, 100_000_000_000, 50, 0.25, 1).unwrap();
        let count = arrivals.len() as f64;
        assert!((98_500.0..101_500.0).contains(&count), "{count}");
        let scans = arrivals.iter().filter(|a| a.class == Class::Scan).count() as f64;
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
    fn the_seed_decides_everything() {
        let run = |seed| poisson(500.0, 1_000_000_000, 5, 0.5, seed).unwrap();
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn a_run_without_bounds_is_refused() {
        assert!(poisson(1e6, 60_000_000_000, 5, 0.5, 1).is_err());
        assert!(poisson(0.0, 1, 5, 0.5, 1).is_err());
    }
}
