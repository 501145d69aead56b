//! For tests: what queueing theory says of the same systems.
//!
//! Times in microseconds, rates per microsecond. The books: Kleinrock, Queueing
//! Systems, volumes 1 (M/M/c, Pollaczek-Khinchine) and 2 (priorities, processor
//! sharing).

use super::{Options, Policy, Spread, ThreadPolicy, simulate};
use crate::wire::Class;

// So long that it does not matter that whole microseconds are counted.
const GET_US: f64 = 100.0;
const SCAN_US: f64 = 1000.0;
const SCANS: f64 = 0.1;

/// Mean time in the system, of GETs and of SCANs.
fn mean_us(options: &Options) -> [f64; 2] {
    let summary = simulate(options).unwrap();
    assert_eq!(summary.drops(), 0);
    [Class::GET, Class::SCAN].map(|class| summary.class(class).mean_us)
}

#[track_caller]
fn assert_close(value: f64, expected: f64, tolerance: f64) {
    assert!((value / expected - 1.0).abs() < tolerance, "{value:.2} instead of {expected:.2}");
}

/// One core, GETs alone, at this load.
fn gets(load: f64, spread: Spread) -> Options {
    Options {
        policy: Policy::Jsq,
        rps: load / GET_US * 1e6,
        scan_fraction: 0.0,
        executors: 1,
        get_us: GET_US,
        scan_us: SCAN_US,
        spread,
        buffer: 1_000_000,
        requests: 200_000,
        seed: 3,
        ..Options::default()
    }
}

/// One core, both classes, at this load.
fn mixed(load: f64) -> Options {
    let service_us = GET_US * (1.0 - SCANS) + SCAN_US * SCANS;
    Options { rps: load / service_us * 1e6, scan_fraction: SCANS, ..gets(load, Spread::Fixed) }
}

/// So many threads that each request has one of its own.
fn threads(cores: usize, thread_policy: ThreadPolicy, options: Options) -> Options {
    Options { executors: 150, cores: Some(cores), thread_policy, ..options }
}

/// Half of the rate times the second moment, of each class: what is left on
/// average of the service an arrival finds.
fn residual_us(options: &Options) -> [f64; 2] {
    let rate = options.rps / 1e6;
    [(1.0 - SCANS) * GET_US * GET_US, SCANS * SCAN_US * SCAN_US].map(|moment| rate * moment / 2.0)
}

/// Load of the GETs alone.
fn get_load(options: &Options) -> f64 {
    options.rps / 1e6 * (1.0 - SCANS) * GET_US
}

#[test]
fn one_exponential_executor_is_m_m_1() {
    let options = gets(0.7, Spread::Exponential);
    assert_close(mean_us(&options)[0], GET_US / 0.3, 0.04);
    // The time in the system is exponential: p99 is ln(100) means.
    let p99_us = simulate(&options).unwrap().class(Class::GET).p99_us;
    assert_close(p99_us, GET_US / 0.3 * 100f64.ln(), 0.05);
}

#[test]
fn one_fixed_executor_is_m_d_1() {
    let expected_us = GET_US + 0.7 * GET_US / (2.0 * 0.3);
    assert_close(mean_us(&gets(0.7, Spread::Fixed))[0], expected_us, 0.03);
}

#[test]
fn several_executors_of_one_queue_are_m_m_c() {
    let cores = 4;
    let load = 0.8;
    // Erlang C by Erlang B.
    let offered = load * cores as f64;
    let blocked = (1..=cores).fold(1.0, |b, servers| offered * b / (servers as f64 + offered * b));
    let waits = blocked / (1.0 - load * (1.0 - blocked));
    let expected_us = GET_US + waits * GET_US / (cores as f64 * (1.0 - load));
    let one = gets(load, Spread::Exponential);
    let options = Options { rps: one.rps * cores as f64, ..one };
    let central = Options { policy: Policy::CentralFifo, executors: cores, ..options.clone() };
    assert_close(mean_us(&central)[0], expected_us, 0.03);
    assert_close(mean_us(&threads(cores, ThreadPolicy::Fifo, options))[0], expected_us, 0.03);
}

#[test]
fn one_executor_with_both_classes_is_m_g_1() {
    let options = mixed(0.6);
    let [gets, scans] = residual_us(&options);
    let wait_us = (gets + scans) / (1.0 - 0.6);
    let [get_us, scan_us] = mean_us(&options);
    assert_close(get_us, wait_us + GET_US, 0.04);
    assert_close(scan_us, wait_us + SCAN_US, 0.04);
}

#[test]
fn gets_first_is_priority_without_preemption() {
    let options = Options { policy: Policy::CentralGetFirst, ..mixed(0.7) };
    let residual_us: f64 = residual_us(&options).iter().sum();
    let wait_us = residual_us / (1.0 - get_load(&options));
    let expected = [GET_US + wait_us, SCAN_US + wait_us / (1.0 - 0.7)];
    let mean_us = mean_us(&options);
    assert_close(mean_us[0], expected[0], 0.03);
    assert_close(mean_us[1], expected[1], 0.05);
    // Threads that are not preempted do the same.
    let threads = threads(1, ThreadPolicy::GetPriority, Options { no_preempt: true, ..mixed(0.7) });
    let mean_us = self::mean_us(&threads);
    assert_close(mean_us[0], expected[0], 0.03);
    assert_close(mean_us[1], expected[1], 0.05);
}

#[test]
fn get_priority_is_priority_with_preemption() {
    let options = threads(1, ThreadPolicy::GetPriority, mixed(0.7));
    let [gets, scans] = residual_us(&options);
    let left = 1.0 - get_load(&options);
    let [get_us, scan_us] = mean_us(&options);
    assert_close(get_us, GET_US + gets / left, 0.02);
    assert_close(scan_us, SCAN_US / left + (gets + scans) / (left * (1.0 - 0.7)), 0.05);
}

#[test]
fn small_slices_are_processor_sharing() {
    // Each class takes its service over what is idle, whatever the others are.
    for thread_policy in [ThreadPolicy::Fifo, ThreadPolicy::Eevdf] {
        let options = Options { slice_us: Some(5.0), requests: 80_000, ..mixed(0.6) };
        let [get_us, scan_us] = mean_us(&threads(1, thread_policy, options));
        assert_close(get_us, GET_US / 0.4, 0.05);
        assert_close(scan_us, SCAN_US / 0.4, 0.05);
    }
}

#[test]
fn early_binding_with_an_oracle_is_the_central_queue() {
    for (load, executors) in [(0.4, 6), (0.9, 6), (0.8, 1)] {
        let one = mixed(load);
        let options =
            Options { rps: one.rps * executors as f64, executors, requests: 50_000, ..one };
        let run = |policy| simulate(&Options { policy, ..options.clone() }).unwrap();
        assert_eq!(run(Policy::Oracle).classes, run(Policy::CentralFifo).classes);
    }
}

#[test]
fn threads_share_cores_as_the_central_queue_shares_executors() {
    // Each request has its thread, first come first served.
    for cores in [1, 3] {
        let one = gets(0.8, Spread::Exponential);
        let options = Options { rps: one.rps * cores as f64, requests: 50_000, ..one };
        let central = Options { policy: Policy::CentralFifo, executors: cores, ..options.clone() };
        let threads = threads(cores, ThreadPolicy::Fifo, options);
        assert_eq!(simulate(&threads).unwrap().classes, simulate(&central).unwrap().classes);
    }
}
