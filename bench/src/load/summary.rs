//! From what happened to each request to the numbers that are reported.

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::arrivals::Arrival;
use crate::wire::Class;

/// Latencies above this are counted as this.
const LONGEST_US: u64 = 600_000_000;

/// Quantiles of the published distribution, for plots.
const QUANTILES: [f64; 25] = [
    0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96,
    0.97, 0.98, 0.985, 0.99, 0.995, 0.998, 0.999, 1.0,
];

/// How a run is cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Requests before this are not counted.
    pub warmup_ns: u64,
    /// End of the counted requests.
    pub end_ns: u64,
    /// The sender is late when it sends later than this; so is a service that
    /// overran by as much.
    pub late_limit_ns: u64,
    /// Being late spoils the window it happened in and the one after.
    pub window_ns: u64,
}

/// What happened to one request, from the start of the run; 0: never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fate {
    /// When it was really sent.
    pub sent_ns: u64,
    /// When its reply came.
    pub answered_ns: u64,
    /// How much longer than it should its service took, where that is known.
    pub overrun_ns: u64,
}

/// One class of requests in one run. Latencies count from the intended send time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassSummary {
    /// "GET" or "SCAN".
    pub class: String,
    /// Requests of the counted part.
    pub requests: u64,
    /// Those without a reply.
    pub drops: u64,
    /// Replies that came per second of the counted part.
    pub throughput_rps: f64,
    /// Latency samples: answered requests in windows where time was kept.
    pub samples: u64,
    /// Microseconds.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Quantile and latency, for plots.
    pub distribution: Vec<(f64, f64)>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadSummary {
    /// Requests per second that were asked for.
    pub rps: f64,
    /// Of all counted requests, the share in windows where time was kept.
    pub kept_share: f64,
    /// GET, then SCAN.
    pub classes: Vec<ClassSummary>,
    /// Replies by index of the thread that sent them, warm-up included.
    pub served_by: Vec<u64>,
    /// Sends that the kernel refused.
    pub send_errors: u64,
    /// Replies that came twice or belonged to nothing.
    pub unexpected: u64,
}

impl LoadSummary {
    /// The numbers of one class.
    #[must_use]
    pub fn class(&self, class: Class) -> &ClassSummary {
        &self.classes[class.index()]
    }

    /// Replies per second of both classes.
    #[must_use]
    pub fn throughput_rps(&self) -> f64 {
        self.classes.iter().map(|class| class.throughput_rps).sum()
    }

    /// Requests without a reply, of both classes.
    #[must_use]
    pub fn drops(&self) -> u64 {
        self.classes.iter().map(|class| class.drops).sum()
    }
}

/// The numbers of a run; `arrivals` and `fates` go together.
pub fn summarise(rps: f64, cut: Cut, arrivals: &[Arrival], fates: &[Fate]) -> Result<LoadSummary> {
    let spoiled = spoiled_windows(cut, arrivals, fates);
    let counted = |arrival: &Arrival| (cut.warmup_ns..cut.end_ns).contains(&arrival.at_ns);
    let mut histograms = [histogram()?, histogram()?];
    let mut requests = [0u64; 2];
    let mut drops = [0u64; 2];
    let mut answered_in_time = [0u64; 2];
    let mut kept = 0u64;
    for (arrival, fate) in arrivals.iter().zip(fates) {
        let class = arrival.class.index();
        if (cut.warmup_ns..cut.end_ns).contains(&fate.answered_ns) {
            answered_in_time[class] += 1;
        }
        if !counted(arrival) {
            continue;
        }
        requests[class] += 1;
        let clean = !spoiled[(arrival.at_ns / cut.window_ns) as usize];
        kept += u64::from(clean);
        if fate.answered_ns == 0 {
            drops[class] += 1;
        } else if clean {
            let latency_us = fate.answered_ns.saturating_sub(arrival.at_ns) / 1000;
            histograms[class].saturating_record(latency_us.max(1));
        }
    }
    let seconds = (cut.end_ns - cut.warmup_ns) as f64 / 1e9;
    let classes = Class::ALL
        .iter()
        .map(|class| {
            let histogram = &histograms[class.index()];
            let at = |quantile| histogram.value_at_quantile(quantile) as f64;
            ClassSummary {
                class: class.name().to_owned(),
                requests: requests[class.index()],
                drops: drops[class.index()],
                throughput_rps: answered_in_time[class.index()] as f64 / seconds,
                samples: histogram.len(),
                mean_us: histogram.mean(),
                p50_us: at(0.5),
                p99_us: at(0.99),
                p999_us: at(0.999),
                distribution: if histogram.is_empty() {
                    Vec::new()
                } else {
                    QUANTILES.iter().map(|&quantile| (quantile, at(quantile))).collect()
                },
            }
        })
        .collect();
    let all: u64 = requests.iter().sum();
    Ok(LoadSummary {
        rps,
        kept_share: if all == 0 { 1.0 } else { kept as f64 / all as f64 },
        classes,
        served_by: Vec::new(),
        send_errors: 0,
        unexpected: 0,
    })
}

fn spoiled_windows(cut: Cut, arrivals: &[Arrival], fates: &[Fate]) -> Vec<bool> {
    let windows = (cut.end_ns / cut.window_ns) as usize + 2;
    let mut spoiled = vec![false; windows];
    let mut spoil = |from_ns: u64, to_ns: u64| {
        let first = (from_ns / cut.window_ns) as usize;
        // The burst that follows is still served in the next window.
        let last = (to_ns / cut.window_ns) as usize + 1;
        if first < windows {
            spoiled[first..=last.min(windows - 1)].fill(true);
        }
    };
    for (arrival, fate) in arrivals.iter().zip(fates) {
        if fate.sent_ns > arrival.at_ns + cut.late_limit_ns {
            spoil(arrival.at_ns, fate.sent_ns);
        }
        if fate.overrun_ns > cut.late_limit_ns {
            spoil(fate.answered_ns.saturating_sub(fate.overrun_ns), fate.answered_ns);
        }
    }
    spoiled
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LONGEST_US, 3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const CUT: Cut =
        Cut { warmup_ns: 100 * MS, end_ns: 1000 * MS, late_limit_ns: MS, window_ns: 100 * MS };

    fn get(at_ms: u64) -> Arrival {
        Arrival { at_ns: at_ms * MS, flow: 0, class: Class::Get, key: 0 }
    }

    fn answered(sent_ms: u64, answered_ms: u64) -> Fate {
        Fate { sent_ns: sent_ms * MS, answered_ns: answered_ms * MS, overrun_ns: 0 }
    }

    #[test]
    fn latency_counts_from_the_intended_time_and_drops_are_the_unanswered() {
        let arrivals = [get(50), get(150), get(250), get(350)];
        let fates = [
            answered(50, 51),
            answered(150, 153),
            answered(250, 254),
            Fate { sent_ns: 350 * MS, ..Fate::default() },
        ];
        let summary = summarise(4.0, CUT, &arrivals, &fates).unwrap();
        let get = summary.class(Class::Get);
        assert_eq!((get.requests, get.drops, get.samples), (3, 1, 2));
        assert!((3000.0..3010.0).contains(&get.p50_us), "{}", get.p50_us);
        assert!((4000.0..4010.0).contains(&get.p99_us));
        assert_eq!(summary.kept_share, 1.0);
        assert!((get.throughput_rps - 2.0 / 0.9).abs() < 1e-9);
        assert_eq!(summary.class(Class::Scan).samples, 0);
    }

    #[test]
    fn a_late_sender_spoils_its_window_and_the_next() {
        let arrivals = [get(150), get(250), get(350), get(450)];
        // The second one left 5 ms late: windows 2 and 3 do not count.
        let fates =
            [answered(150, 151), answered(255, 256), answered(350, 351), answered(450, 459)];
        let summary = summarise(4.0, CUT, &arrivals, &fates).unwrap();
        assert_eq!(summary.kept_share, 0.5);
        let get = summary.class(Class::Get);
        assert_eq!((get.requests, get.samples, get.drops), (4, 2, 0));
        assert!(get.p99_us >= 9000.0);
    }

    #[test]
    fn a_sender_late_over_several_windows_spoils_them_all() {
        let arrivals = [get(150), get(350), get(550), get(850)];
        let fates =
            [answered(450, 451), answered(450, 451), answered(550, 551), answered(850, 851)];
        let summary = summarise(4.0, CUT, &arrivals, &fates).unwrap();
        assert_eq!(summary.class(Class::Get).samples, 1);
    }

    #[test]
    fn a_service_that_overran_spoils_the_time_it_took_too_long() {
        let arrivals = [get(150), get(250), get(350), get(450)];
        let mut fates =
            [answered(150, 151), answered(250, 268), answered(350, 351), answered(450, 451)];
        fates[1].overrun_ns = 5 * MS;
        let summary = summarise(4.0, CUT, &arrivals, &fates).unwrap();
        assert_eq!(summary.kept_share, 0.5);
        assert!(summary.class(Class::Get).p99_us < 2000.0);
    }
}
