//! The packet policies: which executor a request goes to when it arrives.
//! Each chooses as the program of its name in `net-hooks/policies` does.

use rand::Rng;
use rand::rngs::StdRng;

use super::executor::{Executor, Mark};
use super::{Options, Policy};
use crate::load::Arrival;
use crate::wire::Class;

/// `TRIES` of scan-avoid.c: random executors before it tries each in turn.
const TRIES: usize = 8;

/// The multiplier of hash.c.
const HASH_MULTIPLIER: u32 = 0x9e37_79b1;

/// Where each flow leads under the policy `hash`, by the flows' source ports.
#[must_use]
pub fn hash_map(source_ports: &[u16], server_port: u16, executors: u16) -> Vec<u16> {
    source_ports
        .iter()
        .map(|source| {
            let [a, b] = source.to_be_bytes();
            let [c, d] = server_port.to_be_bytes();
            let ports = u32::from_le_bytes([a, b, c, d]).wrapping_mul(HASH_MULTIPLIER);
            ((u64::from(ports) * u64::from(executors)) >> 32) as u16
        })
        .collect()
}

/// A packet policy and what it remembers.
pub struct Chooser<'a> {
    options: &'a Options,
    /// Where each flow leads by default.
    flow_map: Vec<u16>,
    /// Requests chosen for in turn, by class where the policy tells classes apart.
    turns: [usize; 2],
    tokens: Tokens,
}

impl<'a> Chooser<'a> {
    pub fn new(options: &'a Options, random: &mut StdRng) -> Self {
        let executors = options.executors as u16;
        let flow_map = options.flow_map.clone().unwrap_or_else(|| {
            // One draw of the kernel's hash.
            (0..options.flows).map(|_| random.random_range(0..executors)).collect()
        });
        Self { options, flow_map, turns: [0; 2], tokens: Tokens::new(options) }
    }

    /// The executor; `None`: the policy drops the request.
    pub fn choose(
        &mut self,
        arrival: &Arrival,
        executors: &[Executor],
        random: &mut StdRng,
    ) -> Option<usize> {
        let count = executors.len();
        let default = usize::from(self.flow_map[arrival.flow as usize]);
        let split = self.options.scan_executors;
        Some(match self.options.policy {
            Policy::RoundRobin => self.turn(Class::Get) % count,
            Policy::ScanAvoid => scan_avoid(executors, random),
            Policy::Sita if split == 0 || split >= count => default,
            Policy::Sita if arrival.class == Class::Scan => self.turn(Class::Scan) % split,
            Policy::Sita => split + self.turn(Class::Get) % (count - split),
            Policy::Po2 => {
                let [a, b] = [(); 2].map(|()| random.random_range(0..count));
                // A lost request was counted and never done.
                let load = |index: usize| executors[index].outstanding() + executors[index].lost;
                if load(b) < load(a) { b } else { a }
            }
            Policy::Jsq => least(executors, |executor| executor.outstanding() as u64),
            Policy::Oracle => least(executors, Executor::work_ns),
            Policy::Token => {
                let best_effort = arrival.flow >= self.options.flows - self.options.be_flows;
                return self.tokens.spend(arrival.at_ns, best_effort).then_some(default);
            }
            Policy::Vanilla
            | Policy::CentralFifo
            | Policy::CentralGetFirst
            | Policy::CentralReserved => default,
        })
    }

    fn turn(&mut self, class: Class) -> usize {
        let turn = &mut self.turns[class.index()];
        *turn += 1;
        *turn - 1
    }
}

/// The first of those with the least.
fn least(executors: &[Executor], key: impl Fn(&Executor) -> u64) -> usize {
    (0..executors.len()).min_by_key(|&index| key(&executors[index])).unwrap_or(0)
}

fn scan_avoid(executors: &[Executor], random: &mut StdRng) -> usize {
    let count = executors.len();
    let mut index = 0;
    for tried in 0..TRIES + count {
        index = if tried < TRIES { random.random_range(0..count) } else { (index + 1) % count };
        if executors[index].mark != Mark::Scan {
            break;
        }
    }
    index
}

/// The token agent's Map: latency-sensitive users get the rate, best-effort
/// ones what those left in the period before; unspent tokens do not outlive it.
struct Tokens {
    per_s: f64,
    period_ns: u64,
    /// Refills so far.
    periods: u64,
    /// Of latency-sensitive, of best-effort users.
    left: [u64; 2],
}

impl Tokens {
    fn new(options: &Options) -> Self {
        let period_ns = (options.token_period_us * 1000.0) as u64;
        Self { per_s: options.tokens_per_s, period_ns, periods: 0, left: [0; 2] }
    }

    /// Whole tokens that the rate has brought by the end of a period.
    fn brought(&self, periods: u64) -> u64 {
        ((periods * self.period_ns) as f64 * self.per_s / 1e9) as u64
    }

    fn spend(&mut self, now_ns: u64, best_effort: bool) -> bool {
        while self.periods < now_ns / self.period_ns {
            let due = self.brought(self.periods + 1) - self.brought(self.periods);
            self.periods += 1;
            self.left = [due, self.left[0]];
        }
        let left = &mut self.left[usize::from(best_effort)];
        let spent = *left > 0;
        *left -= u64::from(spent);
        spent
    }
}
