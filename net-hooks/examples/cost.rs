//! What socket-select adds to a packet: the dispatcher, the policy and the
//! selection of the socket, as the kernel accounts them under real datagrams.
//!
//! `cargo run --release -p syrup-net-hooks --example cost [POLICY...]` as root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use support::*;
use syrup_net_hooks::{count_run_time, run_time};

const FLOWS: usize = 50;
const SOCKETS: usize = 6;
const DATAGRAMS_PER_ROUND: usize = 400 * FLOWS;
const ROUNDS: usize = 9;
const LIMIT_NS: f64 = 200.0;

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        names.push("round-robin".to_owned());
    }
    let mut over = false;
    for name in names {
        let ns = median(cost(&name));
        println!("socket-select {name}: {ns:.0} ns per packet (limit {LIMIT_NS})");
        over |= ns > LIMIT_NS;
    }
    std::process::exit(i32::from(over));
}

/// Nanoseconds per packet, one value per round; the first round is not counted.
fn cost(name: &str) -> Vec<f64> {
    // A namespace belongs to a thread.
    let name = name.to_owned();
    std::thread::spawn(move || {
        let lab = Lab::new();
        let (sockets, flows) = (udp_sockets(SOCKETS), flows(FLOWS));
        let mut policy = builtin(&name);
        // The requests are of user 0; other policies have no such Map.
        let tokens = share_map(&mut policy, "tokens");
        set(&tokens, 0, i64::MAX);
        lab.deploy(&policy, &sockets);
        let _accounting = count_run_time().unwrap();
        let mut rounds = Vec::new();
        for _ in 0..=ROUNDS {
            let before = run_time(&lab.app).unwrap();
            for _ in 0..DATAGRAMS_PER_ROUND / FLOWS / 10 {
                spread(&sockets, &flows, 10);
            }
            let round = run_time(&lab.app).unwrap().since(before);
            assert_eq!(round.runs, DATAGRAMS_PER_ROUND as u64);
            rounds.push(round.mean_ns().unwrap());
        }
        rounds.split_off(1)
    })
    .join()
    .unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
