//! The simulated twin of a run: the same requests at the same times, the flows on
//! the sockets they had, and nothing but queueing.

use anyhow::{Context, Result};

use super::journal::Run;
use super::plan::{Config, Plan};
use crate::load::{Fate, Load, LoadSummary, summarise_like};
use crate::simulate::{Options, serve};
use crate::wire::Class;

/// How often a run is simulated: policies that choose at random choose otherwise
/// each time.
const TIMES: u64 = 5;

/// What the simulator gives for a run, in dilated time.
pub struct Simulated {
    /// As the generator would have seen it, each time.
    pub summaries: Vec<LoadSummary>,
    /// Requests of each class that a socket of three quarters of the size loses.
    /// The kernel gives the memory of what was received back in portions of up to
    /// a quarter of the buffer (`udp_rmem_release`), so a busy socket may hold as
    /// few as that.
    pub drops: Vec<u64>,
}

/// What the simulator gives for the requests of a run; `None` for a
/// configuration without a twin.
pub fn twin(
    plan: &Plan,
    config: &Config,
    run: &Run,
    socket_holds: u32,
) -> Result<Option<Simulated>> {
    let Some(twin) = &config.twin else { return Ok(None) };
    let load = Load { seed: run.seed, ..plan.load(run.load_rps, run.round, 0, 0)? };
    let arrivals = load.arrivals()?;
    let simulate = |buffer: usize, time: u64| {
        let outcome = serve(&options(plan, twin, run, buffer, time), &arrivals)?;
        let fates: Vec<Fate> = arrivals
            .iter()
            .zip(outcome.answered_ns)
            .map(|(arrival, answered_ns)| Fate {
                sent_ns: arrival.at_ns,
                answered_ns: answered_ns.unwrap_or(0),
                overrun_ns: 0,
            })
            .collect();
        summarise_like(load.cut(), &load.streams, &arrivals, &fates, &run.load)
            .with_context(|| format!("the simulated twin of {}", config.name))
    };
    let holds = socket_holds.max(4) as usize;
    let drops = simulate(holds * 3 / 4, 0)?.classes.iter().map(|class| class.drops).collect();
    let summaries = (0..TIMES).map(|time| simulate(holds, time)).collect::<Result<_>>()?;
    Ok(Some(Simulated { summaries, drops }))
}

fn options(plan: &Plan, twin: &Options, run: &Run, buffer: usize, time: u64) -> Options {
    let us = |class| plan.service.us(class) * plan.scale;
    Options {
        executors: plan.threads as usize,
        flows: plan.flows,
        flow_map: flow_map(run),
        get_us: us(Class::GET),
        scan_us: us(Class::SCAN),
        slice_us: twin.slice_us.map(|us| us * plan.scale),
        overhead_us: twin.overhead_us * plan.scale,
        pull_us: twin.pull_us * plan.scale,
        buffer,
        seed: run.seed.wrapping_add(time),
        ..twin.clone()
    }
}

/// The executor of each flow that had one of its own; others do not matter.
fn flow_map(run: &Run) -> Option<Vec<u16>> {
    let map = &run.load.flow_served_by;
    (!map.is_empty()).then(|| map.iter().map(|server| server.unwrap_or(0) as u16).collect())
}
