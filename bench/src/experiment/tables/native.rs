//! What the experiments share that run natively, on a machine with fewer CPUs
//! than executors: a service is a sleep to an absolute deadline, in dilated
//! time; packets, UDP stack, BPF programs and Maps are the real ones.

use crate::experiment::criteria::{Bound, Criterion, Exception, TwinCriterion};
use crate::experiment::plan::{Plan, Service, Setting};

/// The smallest faithful one: at 20 the host's wake-ups already show in p99.
const SCALE: f64 = 50.0;
/// Undilated.
const GET_US: f64 = 11.0;
const SCAN_US: f64 = 700.0;

/// A plan without configurations, streams and criteria.
pub fn plan(name: &'static str, setting: &Setting) -> Plan {
    Plan {
        name,
        title: String::new(),
        claim: String::new(),
        configs: Vec::new(),
        streams: Vec::new(),
        loads: Vec::new(),
        rounds: 1,
        seconds: if setting.quick { 1.0 } else { 10.0 },
        warmup_s: 0.5,
        grace_s: 1.0,
        scale: SCALE,
        dilation: SCALE,
        flows: 50,
        threads: 6,
        service: Service::Sleep { us: vec![GET_US, SCAN_US] },
        server: ["--fifo", "40"].map(str::to_owned).to_vec(),
        // Above the server: a late sender spoils a window.
        load_fifo: 50,
        // As much as one undilated GET.
        late_us: (GET_US * SCALE) as u64,
        window_ms: 50,
        exclude_late: true,
        generator_cpu: false,
        own_network: true,
        count_run_time: false,
        probes: Vec::new(),
        criteria: Vec::new(),
        slo: None,
        closeups: Vec::new(),
        notes: vec![
            format!(
                "Natively, 6 server threads with a SO_REUSEPORT socket each, in a network namespace \
                 of their own; a GET is {GET_US} us, a SCAN {SCAN_US} us. Time is dilated {SCALE} \
                 times: a service is a sleep to an absolute deadline that many times as long, \
                 arrivals are as much slower, and all numbers here are divided by it again. A \
                 service that follows another starts at the deadline of the one before, so that \
                 sleeping too long does not add up (at most 5 ms are made good in this way). Server \
                 and load generator are SCHED_FIFO, the generator above the server."
            ),
            "Open-loop Poisson load over 50 flows, latency from the intended send time. In each \
             round all configurations meet the same requests at the same times from the same source \
             ports, so that the kernel's hash draws alike for all of them; their order is shuffled. \
             What it draws is not the seed's: its key is the kernel's, new with each boot and network \
             namespace, so a round is made in one go. \
             Windows of 50 ms in which the sender was late by a GET, or a service slept as much too \
             long, and the one after, are left out; the share kept stands under 'kept'. A policy can \
             hardly cause either: the server sleeps, and all that runs within the sender's send() is \
             the packet program, some 100 ns."
                .to_owned(),
            format!(
                "Dilation makes the mechanism look {SCALE} times cheaper than it is; its own cost is \
                 the experiment 'cost'. It shows nothing about preemption or contention for cores."
            ),
            "Simulated: the same requests through the same queues, with the flows on the sockets \
             they had, and nothing but queueing. A point is saturated where the simulated twin loses \
             requests (with three quarters of the socket's buffer: the kernel gives back up to a \
             quarter late) or leaves 2 % of them unanswered at the end; it is not compared."
                .to_owned(),
        ],
    }
}

/// The criterion on simulated twins.
pub fn twins(class: &'static str, exceptions: Vec<Exception>) -> Criterion {
    let ratio = Bound::Within(0.85, 1.2);
    Criterion::Twin(TwinCriterion { class, quantile: 0.99, ratio, exceptions })
}

/// Points whose p99 is one or two services: what the host adds is judged by itself
/// there, not as a share of it.
pub fn few_services(config: &'static str, loads: &[f64]) -> Exception {
    Exception {
        config,
        loads: loads.to_vec(),
        excess_us: Bound::Within(-5.0, 5.0),
        unloaded: None,
        reason: "p99 is one or two services, to which sleeping and waking add some us",
    }
}
