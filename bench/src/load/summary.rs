//! From what happened to each request to the numbers that are reported.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2Serializer};
use serde::{Deserialize, Serialize};

use super::arrivals::Arrival;
use super::{Part, Stream};
use crate::wire::Class;

/// Latencies above this are counted as this.
const LONGEST_US: u64 = 600_000_000;

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
    /// Leave requests in spoiled windows out of the latencies.
    pub exclude_late: bool,
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
    /// Its name in the load, like "GET".
    pub class: String,
    /// Requests of the counted part.
    pub requests: u64,
    /// Those without a reply.
    pub drops: u64,
    /// Of these, those that were not left out: they stand beside the samples.
    pub lost: u64,
    /// Replies that came per second of the counted part.
    pub throughput_rps: f64,
    /// Latency samples: answered requests, without those that were left out.
    pub samples: u64,
    /// Microseconds.
    pub mean_us: f64,
    /// Shortest.
    pub min_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Longest.
    pub max_us: f64,
    /// All samples in microseconds: an HdrHistogram in its V2 format, base64.
    pub histogram: String,
}

impl ClassSummary {
    /// The samples, decoded.
    pub fn histogram(&self) -> Result<Histogram<u64>> {
        let bytes = BASE64.decode(&self.histogram).context("the histogram is not base64")?;
        Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| anyhow::anyhow!("the histogram cannot be read: {error}"))
    }
}

/// How well sender and server kept time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timekeeping {
    /// Share of the counted requests in windows in which the sender was late.
    pub sender_late: f64,
    /// Share in windows in which a sleeping service overslept.
    pub service_overslept: f64,
    /// 99th percentile of how much after the intended time requests were sent.
    pub sender_p99_us: f64,
    /// The largest such.
    pub sender_max_us: f64,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadSummary {
    /// Requests per second that were asked for.
    pub rps: f64,
    /// Of all counted requests, the share whose latency counts; 1 unless
    /// late windows were left out.
    pub kept_share: f64,
    /// Lateness, whether or not it was left out.
    pub timekeeping: Timekeeping,
    /// By stream and class, in the order of the load.
    pub classes: Vec<ClassSummary>,
    /// Requests sent, warm-up included.
    pub sent: u64,
    /// Requests answered, warm-up included.
    pub answered: u64,
    /// Replies by index of the thread that sent them, warm-up included.
    pub served_by: Vec<u64>,
    /// By flow, the one thread that answered it; none if several did, or none.
    pub flow_served_by: Vec<Option<u32>>,
    /// Windows whose requests were left out, by number.
    pub left_out: Vec<u32>,
    /// Sends that the kernel refused.
    pub send_errors: u64,
    /// Replies that came twice or belonged to nothing.
    pub unexpected: u64,
}

impl LoadSummary {
    /// The numbers of one class, of a load that has one stream with this class
    /// at its place.
    #[must_use]
    pub fn class(&self, class: Class) -> &ClassSummary {
        &self.classes[class.index()]
    }

    /// Replies per second of all classes.
    #[must_use]
    pub fn throughput_rps(&self) -> f64 {
        self.classes.iter().map(|class| class.throughput_rps).sum()
    }

    /// Requests without a reply, of all classes.
    #[must_use]
    pub fn drops(&self) -> u64 {
        self.classes.iter().map(|class| class.drops).sum()
    }
}

/// What is counted of one class of one stream.
struct Count {
    requests: u64,
    drops: u64,
    lost: u64,
    answered_in_time: u64,
    latencies_us: Histogram<u64>,
}

/// The numbers of a run; `arrivals` and `fates` go together, and belong to
/// `streams`.
pub fn summarise(
    cut: Cut,
    streams: &[Stream],
    arrivals: &[Arrival],
    fates: &[Fate],
) -> Result<LoadSummary> {
    let late = Late::windows(cut, arrivals, fates);
    let left_out = if cut.exclude_late { late.spoiled() } else { Vec::new() };
    summarise_without(cut, streams, arrivals, fates, &late, left_out)
}

/// The same with the windows that another run of the same arrivals left out.
pub fn summarise_like(
    cut: Cut,
    streams: &[Stream],
    arrivals: &[Arrival],
    fates: &[Fate],
    other: &LoadSummary,
) -> Result<LoadSummary> {
    let late = Late::windows(cut, arrivals, fates);
    summarise_without(cut, streams, arrivals, fates, &late, other.left_out.clone())
}

fn summarise_without(
    cut: Cut,
    streams: &[Stream],
    arrivals: &[Arrival],
    fates: &[Fate],
    late: &Late,
    left_out: Vec<u32>,
) -> Result<LoadSummary> {
    let parts: Vec<(u32, &Part)> = (0..)
        .zip(streams)
        .flat_map(|(number, stream)| stream.mix.iter().map(move |part| (number, part)))
        .collect();
    let mut counts: Vec<Count> = parts
        .iter()
        .map(|_| {
            Ok(Count {
                requests: 0,
                drops: 0,
                lost: 0,
                answered_in_time: 0,
                latencies_us: histogram()?,
            })
        })
        .collect::<Result<_>>()?;
    let mut sender_late_us = histogram()?;
    let (mut requests, mut kept, mut late_sends, mut overslept) = (0u64, 0u64, 0u64, 0u64);
    for (arrival, fate) in arrivals.iter().zip(fates) {
        let place = parts
            .iter()
            .position(|(stream, part)| *stream == arrival.stream && part.class == arrival.class)
            .context("a request of no stream")?;
        let count = &mut counts[place];
        if (cut.warmup_ns..cut.end_ns).contains(&fate.answered_ns) {
            count.answered_in_time += 1;
        }
        if !(cut.warmup_ns..cut.end_ns).contains(&arrival.at_ns) {
            continue;
        }
        requests += 1;
        count.requests += 1;
        let window = (arrival.at_ns / cut.window_ns) as usize;
        late_sends += u64::from(late.sender[window]);
        overslept += u64::from(late.service[window]);
        let clean = left_out.binary_search(&(window as u32)).is_err();
        kept += u64::from(clean);
        if fate.sent_ns > 0 {
            sender_late_us.saturating_record(fate.sent_ns.saturating_sub(arrival.at_ns) / 1000);
        }
        if fate.answered_ns == 0 {
            count.drops += 1;
            count.lost += u64::from(clean);
        } else if clean {
            let latency_us = fate.answered_ns.saturating_sub(arrival.at_ns) / 1000;
            count.latencies_us.saturating_record(latency_us.max(1));
        }
    }
    let seconds = (cut.end_ns - cut.warmup_ns) as f64 / 1e9;
    let share = |part: u64, of_none: f64| match requests {
        0 => of_none,
        all => part as f64 / all as f64,
    };
    Ok(LoadSummary {
        rps: streams.iter().map(|stream| stream.rps).sum(),
        kept_share: share(kept, 1.0),
        timekeeping: Timekeeping {
            sender_late: share(late_sends, 0.0),
            service_overslept: share(overslept, 0.0),
            sender_p99_us: sender_late_us.value_at_quantile(0.99) as f64,
            sender_max_us: sender_late_us.max() as f64,
        },
        classes: parts
            .iter()
            .zip(&counts)
            .map(|((_, part), count)| class_summary(&part.name, count, seconds))
            .collect::<Result<_>>()?,
        sent: fates.iter().filter(|fate| fate.sent_ns > 0).count() as u64,
        answered: fates.iter().filter(|fate| fate.answered_ns > 0).count() as u64,
        served_by: Vec::new(),
        flow_served_by: Vec::new(),
        left_out,
        send_errors: 0,
        unexpected: 0,
    })
}

fn class_summary(name: &str, count: &Count, seconds: f64) -> Result<ClassSummary> {
    let histogram = &count.latencies_us;
    let at = |quantile| histogram.value_at_quantile(quantile) as f64;
    let mut bytes = Vec::new();
    V2Serializer::new()
        .serialize(histogram, &mut bytes)
        .map_err(|error| anyhow::anyhow!("cannot write the histogram: {error}"))?;
    Ok(ClassSummary {
        class: name.to_owned(),
        requests: count.requests,
        drops: count.drops,
        lost: count.lost,
        throughput_rps: count.answered_in_time as f64 / seconds,
        samples: histogram.len(),
        mean_us: histogram.mean(),
        min_us: histogram.min() as f64,
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: histogram.max() as f64,
        histogram: BASE64.encode(bytes),
    })
}

/// Windows of a run that somebody was late in.
struct Late {
    sender: Vec<bool>,
    service: Vec<bool>,
}

impl Late {
    /// By number, in order.
    fn spoiled(&self) -> Vec<u32> {
        let late = self.sender.iter().zip(&self.service);
        (0..)
            .zip(late)
            .filter(|(_, (sender, service))| **sender || **service)
            .map(|(n, _)| n)
            .collect()
    }

    fn windows(cut: Cut, arrivals: &[Arrival], fates: &[Fate]) -> Self {
        let windows = (cut.end_ns / cut.window_ns) as usize + 2;
        let spoil = |spoiled: &mut [bool], from_ns: u64, to_ns: u64| {
            let first = (from_ns / cut.window_ns) as usize;
            // The burst that follows is still served in the next window.
            let last = (to_ns / cut.window_ns) as usize + 1;
            if first < windows {
                spoiled[first..=last.min(windows - 1)].fill(true);
            }
        };
        let mut late = Self { sender: vec![false; windows], service: vec![false; windows] };
        for (arrival, fate) in arrivals.iter().zip(fates) {
            if fate.sent_ns > arrival.at_ns + cut.late_limit_ns {
                spoil(&mut late.sender, arrival.at_ns, fate.sent_ns);
            }
            if fate.overrun_ns > cut.late_limit_ns {
                let due_ns = fate.answered_ns.saturating_sub(fate.overrun_ns);
                spoil(&mut late.service, due_ns, fate.answered_ns);
            }
        }
        late
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LONGEST_US, 3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const CUT: Cut = Cut {
        warmup_ns: 100 * MS,
        end_ns: 1000 * MS,
        late_limit_ns: MS,
        window_ns: 100 * MS,
        exclude_late: true,
    };

    fn get(at_ms: u64) -> Arrival {
        Arrival { at_ns: at_ms * MS, flow: 0, stream: 0, class: Class::GET, key: 0 }
    }

    fn answered(sent_ms: u64, answered_ms: u64) -> Fate {
        Fate { sent_ns: sent_ms * MS, answered_ns: answered_ms * MS, overrun_ns: 0 }
    }

    fn summary(cut: Cut, arrivals: &[Arrival], fates: &[Fate]) -> LoadSummary {
        summarise(cut, &[Stream::gets_and_scans(4.0, 0.5)], arrivals, fates).unwrap()
    }

    #[test]
    fn latency_counts_from_the_intended_time_and_drops_are_the_unanswered() {
        let arrivals = [get(50), get(150), get(250), get(350)];
        let fates = [
            answered(50, 51),
            answered(150, 153),
            // Sent late, within the limit: its lateness is charged all the same.
            Fate { sent_ns: 250 * MS + MS / 2, ..answered(250, 254) },
            Fate { sent_ns: 350 * MS, ..Fate::default() },
        ];
        let summary = summary(CUT, &arrivals, &fates);
        let get = summary.class(Class::GET);
        assert_eq!((get.requests, get.drops, get.samples), (3, 1, 2));
        assert!((3000.0..3010.0).contains(&get.p50_us), "{}", get.p50_us);
        assert!((4000.0..4010.0).contains(&get.p99_us));
        assert_eq!((get.min_us, get.max_us), (3000.0, 4001.0));
        assert_eq!(summary.kept_share, 1.0);
        assert_eq!((summary.sent, summary.answered), (4, 3));
        assert_eq!(summary.timekeeping.sender_max_us, 500.0);
        assert!((get.throughput_rps - 2.0 / 0.9).abs() < 1e-9);
        assert_eq!(summary.class(Class::SCAN).samples, 0);
    }

    #[test]
    fn requests_of_the_warm_up_do_not_count_and_what_comes_after_the_end_is_late_not_lost() {
        let arrivals = [get(99), get(100), get(999)];
        let fates = [answered(99, 190), answered(100, 110), answered(999, 1800)];
        let summary = summary(CUT, &arrivals, &fates);
        let get = summary.class(Class::GET);
        assert_eq!((get.requests, get.drops, get.samples), (2, 0, 2));
        // The reply of 1800 ms is no throughput of the run; that of the request
        // of the warm-up is, it took the server's time in it.
        assert!((get.throughput_rps - 2.0 / 0.9).abs() < 1e-9, "{}", get.throughput_rps);
        assert!(get.max_us >= 800_000.0);
    }

    #[test]
    fn histograms_can_be_stored_and_merged() {
        let one = summary(CUT, &[get(150)], &[answered(150, 153)]);
        let other = summary(CUT, &[get(150)], &[answered(150, 157)]);
        let mut merged = one.class(Class::GET).histogram().unwrap();
        merged.add(other.class(Class::GET).histogram().unwrap()).unwrap();
        assert_eq!((merged.len(), merged.min()), (2, 3000));
        assert!((7000..7010).contains(&merged.max()));
        let broken = ClassSummary { histogram: "AAAA".to_owned(), ..one.classes[0].clone() };
        assert!(broken.histogram().is_err());
    }

    #[test]
    fn a_loss_counts_beside_the_samples_where_they_do() {
        // Late: windows 2 and 3 do not count.
        let arrivals = [get(150), get(250), get(350), get(450)];
        let fates = [Fate::default(), answered(255, 256), Fate::default(), answered(450, 459)];
        let excluded = summary(CUT, &arrivals, &fates);
        let get = excluded.class(Class::GET);
        assert_eq!((get.drops, get.lost, get.samples), (2, 1, 1));
        let all = summary(Cut { exclude_late: false, ..CUT }, &arrivals, &fates);
        assert_eq!((all.class(Class::GET).lost, all.class(Class::GET).samples), (2, 2));
    }

    #[test]
    fn streams_are_summed_up_apart() {
        let streams =
            ["LS", "BE"].map(|name| Stream::of(name, u32::from(name == "BE"), 2.0, Class::GET));
        let arrivals = [get(150), Arrival { stream: 1, ..get(250) }];
        let fates = [answered(150, 153), answered(250, 259)];
        let summary = summarise(CUT, &streams, &arrivals, &fates).unwrap();
        let classes: Vec<_> =
            summary.classes.iter().map(|class| (class.class.as_str(), class.min_us)).collect();
        assert_eq!(classes, [("LS", 3000.0), ("BE", 9000.0)]);
    }

    #[test]
    fn a_late_sender_spoils_its_window_and_the_next() {
        let arrivals = [get(150), get(250), get(350), get(450)];
        // The second one left 5 ms late: windows 2 and 3 do not count.
        let fates =
            [answered(150, 151), answered(255, 256), answered(350, 351), answered(450, 459)];
        let excluded = summary(CUT, &arrivals, &fates);
        assert_eq!(excluded.kept_share, 0.5);
        let get = excluded.class(Class::GET);
        assert_eq!((get.requests, get.samples, get.drops), (4, 2, 0));
        assert!(get.p99_us >= 9000.0);
        assert_eq!(excluded.timekeeping.sender_late, 0.5);
        assert_eq!(excluded.timekeeping.service_overslept, 0.0);
        // Another run of the same requests, of which the same windows are taken.
        let streams = [Stream::gets_and_scans(4.0, 0.5)];
        let on_time =
            [answered(150, 151), answered(250, 254), answered(350, 351), answered(450, 452)];
        let like = summarise_like(CUT, &streams, &arrivals, &on_time, &excluded).unwrap();
        assert_eq!((like.kept_share, like.class(Class::GET).samples), (0.5, 2));
        assert_eq!(like.class(Class::GET).max_us, 2000.0);
        // Unless told so, everything counts, and lateness is reported.
        let all = summary(Cut { exclude_late: false, ..CUT }, &arrivals, &fates);
        assert_eq!((all.kept_share, all.class(Class::GET).samples), (1.0, 4));
        assert_eq!(all.timekeeping, excluded.timekeeping);
    }

    #[test]
    fn a_sender_late_over_several_windows_spoils_them_all() {
        let arrivals = [get(150), get(350), get(550), get(850)];
        let fates =
            [answered(450, 451), answered(450, 451), answered(550, 551), answered(850, 851)];
        assert_eq!(summary(CUT, &arrivals, &fates).class(Class::GET).samples, 1);
    }

    #[test]
    fn a_service_that_overran_spoils_the_time_it_took_too_long() {
        let arrivals = [get(150), get(250), get(350), get(450)];
        let mut fates =
            [answered(150, 151), answered(250, 268), answered(350, 351), answered(450, 451)];
        fates[1].overrun_ns = 5 * MS;
        let summary = summary(CUT, &arrivals, &fates);
        assert_eq!(summary.kept_share, 0.5);
        assert_eq!(summary.timekeeping.service_overslept, 0.5);
        assert_eq!(summary.timekeeping.sender_late, 0.0);
        assert!(summary.class(Class::GET).p99_us < 2000.0);
    }
}
