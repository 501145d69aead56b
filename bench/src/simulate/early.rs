//! Early binding: the policy chooses an executor when the request arrives, and
//! each executor serves its own queue in order.

use std::collections::VecDeque;

use rand::Rng;
use rand::rngs::StdRng;

use super::{Options, Policy, Request};
use crate::wire::Class;

/// Random executors that scan-avoid tries before it tries all in turn.
const RANDOM_TRIES: usize = 8;

/// A request at an executor.
struct Bound {
    ends_ns: u64,
    class: Class,
}

#[derive(Default)]
struct Executor {
    /// In service, then waiting, in order; finished ones leave at the next look.
    queue: VecDeque<Bound>,
    /// SCANs among them.
    scans: usize,
    free_at_ns: u64,
}

impl Executor {
    fn finish(&mut self, now_ns: u64) {
        while let Some(first) = self.queue.front().filter(|first| first.ends_ns <= now_ns) {
            self.scans -= usize::from(first.class == Class::Scan);
            self.queue.pop_front();
        }
    }

    fn take(&mut self, request: &Request) -> u64 {
        let starts_ns = self.free_at_ns.max(request.arrival.at_ns);
        self.free_at_ns = starts_ns + request.service_ns;
        let class = request.arrival.class;
        self.scans += usize::from(class == Class::Scan);
        self.queue.push_back(Bound { ends_ns: self.free_at_ns, class });
        self.free_at_ns
    }
}

/// When each request is answered; `None` if it was dropped.
pub fn run(options: &Options, requests: &[Request], random: &mut StdRng) -> Vec<Option<u64>> {
    let count = options.executors;
    let mut executors: Vec<Executor> = (0..count).map(|_| Executor::default()).collect();
    // One draw of the hash: where each flow leads.
    let hash: Vec<usize> =
        (0..options.flows.max(1)).map(|_| random.random_range(0..count)).collect();
    let mut turn = 0;
    requests
        .iter()
        .map(|request| {
            let arrival = &request.arrival;
            for executor in &mut executors {
                executor.finish(arrival.at_ns);
            }
            let chosen = match options.policy {
                Policy::RoundRobin => {
                    turn += 1;
                    turn % count
                }
                Policy::ScanAvoid => {
                    let start = random.random_range(0..count);
                    (0..RANDOM_TRIES)
                        .map(|_| random.random_range(0..count))
                        .chain((0..count).map(|step| (start + step) % count))
                        .find(|&index| executors[index].scans == 0)
                        .unwrap_or(start)
                }
                Policy::Sita if arrival.class == Class::Scan => 0,
                Policy::Sita => {
                    turn += 1;
                    1 + turn % (count - 1)
                }
                Policy::Oracle => (0..count)
                    .min_by_key(|&index| executors[index].free_at_ns.max(arrival.at_ns))
                    .unwrap_or(0),
                _ => hash[arrival.flow as usize],
            };
            let executor = &mut executors[chosen];
            // The one in service is not in the buffer.
            if executor.queue.len() > options.buffer {
                return None;
            }
            Some(executor.take(request))
        })
        .collect()
}
