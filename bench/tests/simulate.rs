//! `syrup-bench simulate` as a process.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use syrup_bench::load::LoadSummary;
use syrup_bench::simulate::{Options, Policy, ThreadPolicy, simulate};

fn run(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_syrup-bench"))
        .arg("simulate")
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn it_prints_its_summary_as_json() {
    let line = "--policy scan-avoid --executors 12 --cores 2 --thread-policy get-priority --rps 20 \
                --scan-fraction 0.5 --get-us 1600 --scan-us 96000 --slice-us 100000 --tick-us 4000 \
                --flow-map 0,5,11 --flows 3 --requests 5000 --seed 7";
    let (done, stdout, stderr) = run(&line.split_whitespace().collect::<Vec<_>>());
    assert!(done, "{stderr}");
    let printed: LoadSummary = serde_json::from_str(&stdout).unwrap();
    let simulated = simulate(&Options {
        policy: Policy::ScanAvoid,
        executors: 12,
        cores: Some(2),
        thread_policy: ThreadPolicy::GetPriority,
        rps: 20.0,
        scan_fraction: 0.5,
        get_us: 1600.0,
        scan_us: 96_000.0,
        slice_us: Some(100_000.0),
        tick_us: 4000.0,
        flow_map: Some(vec![0, 5, 11]),
        flows: 3,
        requests: 5000,
        seed: 7,
        ..Options::default()
    })
    .unwrap();
    assert_eq!(printed.served_by, simulated.served_by);
    for (printed, simulated) in printed.classes.iter().zip(&simulated.classes) {
        assert_eq!(printed.class, simulated.class);
        assert_eq!(printed.requests, simulated.requests);
        assert_eq!(printed.p99_us, simulated.p99_us);
    }
}

#[test]
fn it_says_what_is_wrong() {
    let (done, stdout, stderr) = run(&["--policy", "token", "--rps", "1000"]);
    assert!(!done);
    assert_eq!(stdout, "");
    assert_eq!(stderr.trim(), "syrup-bench: token needs --tokens-per-s");
    let (done, _, stderr) = run(&["--policy", "vanilla", "--rps", "1000", "--flow-map", "1,2"]);
    assert!(!done && stderr.contains("--flow-map needs an executor per flow"), "{stderr}");
}
