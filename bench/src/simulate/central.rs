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
        if until_ns < u64::MAX {
            serve(until_ns, free, busy, waiting);
        }
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
