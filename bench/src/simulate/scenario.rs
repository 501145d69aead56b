//! For tests: a few requests, and when they are answered.

use super::{Options, Policy, ThreadPolicy, serve};
use crate::load::Arrival;
use crate::wire::Class;

/// A GET of a flow.
pub fn get(at_us: u64, flow: u32) -> Arrival {
    Arrival { at_ns: at_us * 1000, flow, stream: 0, class: Class::GET, key: 0 }
}

/// A SCAN of a flow.
pub fn scan(at_us: u64, flow: u32) -> Arrival {
    Arrival { class: Class::SCAN, ..get(at_us, flow) }
}

/// GETs of 10 us and SCANs of 100 us, whose flows lead to the executor of the
/// same number.
pub fn executors(executors: usize) -> Options {
    Options {
        policy: Policy::Vanilla,
        executors,
        flows: executors as u32,
        flow_map: Some((0..executors as u16).collect()),
        get_us: 10.0,
        scan_us: 100.0,
        ..Options::default()
    }
}

/// The same, as threads that share cores.
pub fn threads(threads: usize, cores: usize, thread_policy: ThreadPolicy) -> Options {
    Options { cores: Some(cores), thread_policy, ..executors(threads) }
}

/// When each is answered; `None`: dropped.
pub fn answered_us(options: &Options, arrivals: &[Arrival]) -> Vec<Option<f64>> {
    let outcome = serve(options, arrivals).unwrap();
    outcome.answered_ns.iter().map(|ns| ns.map(|ns| ns as f64 / 1000.0)).collect()
}

/// All are answered, at these times.
#[track_caller]
pub fn assert_answered(options: &Options, arrivals: &[Arrival], expected_us: &[f64]) {
    let expected: Vec<_> = expected_us.iter().copied().map(Some).collect();
    assert_eq!(answered_us(options, arrivals), expected);
}
