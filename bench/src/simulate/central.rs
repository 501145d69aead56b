//! Late binding: requests wait in one queue and executors take one when they
//! become free.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::{Options, Outcome, Policy, Request};
use crate::wire::Class;

/// Executors by what they may take.
struct Free {
    /// Any request.
    general: usize,
    /// GETs only.
    reserved: usize,
}

/// When each request is answered; `None` if it was dropped.
pub fn run(options: &Options, requests: &[Request]) -> Outcome {
    let reserved = if options.policy == Policy::CentralReserved { options.reserved } else { 0 };
    let mut free = Free { general: options.executors - reserved, reserved };
    // Busy executors: when they become free, and whether they are reserved.
    let mut busy: BinaryHeap<Reverse<(u64, bool)>> = BinaryHeap::new();
    // Waiting requests by number: all in the first queue where order is FIFO.
    let mut waiting = [VecDeque::new(), VecDeque::new()];
    let queue_of = |class: Class| match options.policy {
        Policy::CentralFifo => 0,
        _ => class.index(),
    };
    let capacity = options.buffer.saturating_mul(options.executors);
    let pull_ns = (options.pull_us * 1000.0) as u64;
    let mut answered = vec![None; requests.len()];

    let mut serve = |now_ns: u64,
                     free: &mut Free,
                     busy: &mut BinaryHeap<Reverse<(u64, bool)>>,
                     waiting: &mut [VecDeque<usize>; 2]| {
        loop {
            // GETs take a reserved executor first: general ones serve both.
            let (queue, on_reserved) = if !waiting[0].is_empty() && free.reserved > 0 {
                (0, true)
            } else if !waiting[0].is_empty() && free.general > 0 {
                (0, false)
            } else if !waiting[1].is_empty() && free.general > 0 {
                (1, false)
            } else {
                return;
            };
            let Some(number) = waiting[queue].pop_front() else { return };
            if on_reserved {
                free.reserved -= 1;
            } else {
                free.general -= 1;
            }
            let ends_ns = now_ns + pull_ns + requests[number].service_ns;
            answered[number] = Some(ends_ns);
            busy.push(Reverse((ends_ns, on_reserved)));
        }
    };

    let mut release = |until_ns: u64,
                       free: &mut Free,
                       busy: &mut BinaryHeap<Reverse<(u64, bool)>>,
                       waiting: &mut [VecDeque<usize>; 2]| {
        while let Some(&Reverse((ends_ns, on_reserved))) = busy.peek() {
            if ends_ns > until_ns {
                break;
            }
            busy.pop();
            if on_reserved {
                free.reserved += 1;
            } else {
                free.general += 1;
            }
            serve(ends_ns, free, busy, waiting);
        }
        serve(until_ns, free, busy, waiting);
    };

    for (number, request) in requests.iter().enumerate() {
        let now_ns = request.arrival.at_ns;
        release(now_ns, &mut free, &mut busy, &mut waiting);
        if waiting[0].len() + waiting[1].len() < capacity {
            waiting[queue_of(request.arrival.class)].push_back(number);
            release(now_ns, &mut free, &mut busy, &mut waiting);
        }
    }
    release(u64::MAX, &mut free, &mut busy, &mut waiting);
    Outcome { answered_ns: answered, served_by: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{answered_us, assert_answered, executors, get, scan};
    use super::*;

    fn central(policy: Policy, count: usize, reserved: usize) -> Options {
        Options { policy, reserved, ..executors(count) }
    }

    #[test]
    fn first_come_is_first_served_by_whoever_is_free() {
        let options = central(Policy::CentralFifo, 2, 0);
        let arrivals = [scan(0, 0), get(1, 0), scan(2, 0), get(3, 0), get(105, 0)];
        assert_answered(&options, &arrivals, &[100.0, 11.0, 111.0, 110.0, 120.0]);
        let pull = Options { pull_us: 2.0, overhead_us: 1.0, ..options };
        assert_answered(&pull, &arrivals[..3], &[103.0, 14.0, 117.0]);
    }

    #[test]
    fn gets_are_served_first() {
        let options = central(Policy::CentralGetFirst, 1, 0);
        let arrivals = [scan(0, 0), scan(1, 0), get(2, 0), get(3, 0)];
        assert_answered(&options, &arrivals, &[100.0, 220.0, 110.0, 120.0]);
    }

    #[test]
    fn a_reserved_executor_takes_no_scan_and_is_the_first_to_take_a_get() {
        let options = central(Policy::CentralReserved, 2, 1);
        let arrivals = [scan(0, 0), scan(1, 0), get(2, 0), get(3, 0)];
        assert_answered(&options, &arrivals, &[100.0, 200.0, 12.0, 22.0]);
        // The GET leaves the other one to the SCAN.
        assert_answered(&options, &[get(0, 0), scan(1, 0)], &[10.0, 101.0]);
        // But takes it when it must.
        assert_answered(&options, &[get(0, 0), get(1, 0), get(2, 0)], &[10.0, 11.0, 20.0]);
        // Whoever is done first takes what waits, in its place.
        let arrivals = [get(0, 0), get(1, 0), scan(2, 0), get(3, 0), get(4, 0), get(5, 0)];
        assert_answered(&options, &arrivals, &[10.0, 11.0, 121.0, 20.0, 21.0, 30.0]);
    }

    #[test]
    fn reserved_executors_exist_only_where_asked_for() {
        let options = central(Policy::CentralGetFirst, 2, 1);
        assert_answered(&options, &[scan(0, 0), scan(1, 0)], &[100.0, 101.0]);
    }

    #[test]
    fn all_executors_together_bound_what_waits() {
        for policy in [Policy::CentralFifo, Policy::CentralGetFirst] {
            let options = Options { buffer: 1, ..central(policy, 2, 0) };
            let arrivals = [scan(0, 0), scan(0, 0), get(1, 0), scan(1, 0), get(2, 0), get(100, 0)];
            let answered = answered_us(&options, &arrivals);
            assert_eq!(answered[..5], [Some(100.0), Some(100.0), Some(110.0), Some(200.0), None]);
            assert_eq!(answered[5], Some(120.0));
        }
    }
}
