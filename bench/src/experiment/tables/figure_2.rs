//! Figure 2 of the paper: GETs only, so nothing but the spread of requests over
//! executors matters. 50 flows over 6 sockets are uneven under a hash.

use super::native;
use crate::experiment::criteria::{Bound, Cell, Criterion, Number, Over, Slo};
use crate::experiment::plan::{Config, Plan, Setting, Stream};
use crate::simulate::Policy;

const SLO: Slo = Slo { class: "GET", quantile: 0.99, us: 200.0 };
/// Requests per second: where the default leaves the objective, and where round
/// robin does. The steps of the former are small where a draw begins to lose requests:
/// from there on its mean is no number to draw a line to.
const VANILLA: [f64; 5] = [200e3, 250e3, 290e3, 310e3, 330e3];
const ROUND_ROBIN: [f64; 7] = [200e3, 250e3, 330e3, 400e3, 480e3, 510e3, 540e3];

pub fn plan(setting: &Setting) -> Plan {
    // Round robin 3 times, spread over the draws.
    let (rounds, every) = if setting.quick { (1, 1) } else { (26, 9) };
    let some = |loads: &'static [f64]| if setting.quick { &loads[..2] } else { loads };
    let round_robin = Config::new("round-robin", "socket-select with round-robin")
        .policy("socket-select", "round-robin", &[])
        .twin(Policy::RoundRobin);
    let vanilla = Config::new("vanilla", "the kernel's default: a hash of the flow");
    let spread = |config, over, bound| {
        let number = Number::MaxOverMean;
        Criterion::Value(Cell { config, load_rps: 250e3, number, over }, bound)
    };
    Plan {
        title: "Figure 2: GETs only, round robin against the kernel's default".to_owned(),
        claim: "Max load of round-robin under GET p99 < 200 us at least 1.6 times that of the \
                kernel's default, for the mean over its hash draws. Each p99 within 0.85 to 1.2 of \
                its simulated twin's below saturation, or within 5 us where it is little more than \
                one service. Loads and latencies in undilated time."
            .to_owned(),
        configs: vec![
            vanilla.twin(Policy::Vanilla).at(some(&VANILLA), 1),
            round_robin.at(some(&ROUND_ROBIN), every),
        ],
        streams: vec![Stream::gets_and_scans(0.0)],
        rounds,
        criteria: vec![
            Criterion::MaxLoad {
                above: "round-robin",
                below: "vanilla",
                slo: SLO,
                over: Over::Mean,
                bound: Bound::AtLeast(1.6),
            },
            native::twins("GET", vec![native::few_services("round-robin", &[200e3, 250e3])]),
            spread("round-robin", Over::Largest, Bound::AtMost(1.02)),
            spread("vanilla", Over::Median, Bound::AtLeast(1.2)),
            Criterion::NoDrops,
            Criterion::Kept(0.5),
            Criterion::Live,
            Criterion::AddsUp,
        ],
        slo: Some(SLO),
        closeups: vec![250e3],
        ..native::plan("figure-2", setting)
    }
}
