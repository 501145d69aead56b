//! What the shipped policies decide, with real sockets and real packets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;

use support::*;
use syrup_hook::{Deploy as _, Error};
use syrup_net_hooks::POLICIES;
use syrup_sdk::abi::{SYRUP_CHOSEN, SYRUP_DROPPED, SYRUP_INPUTS, SYRUP_PASSED};
use syrup_tests::{Need, require, wait_for};

#[test]
fn round_robin_spreads_50_flows_over_6_sockets_evenly_and_the_default_does_not() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flows) = (udp_sockets(6), flows(50));
    let default = max_over_mean(&spread(&sockets, &flows, 12));
    lab.deploy(&builtin("round-robin"), &sockets);
    let counts = spread(&sockets, &flows, 12);
    assert!(max_over_mean(&counts) <= 1.02, "{counts:?}");
    assert!(default > max_over_mean(&counts), "default {default}");
    assert_eq!(lab.read().verdicts, counts);
    assert_eq!(lab.count(SYRUP_CHOSEN), 600);
    println!("max/mean: default {default:.2}, round-robin {:.3}", max_over_mean(&counts));
}

#[test]
fn hash_keeps_a_flow_at_its_socket_and_uses_all_of_them() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flows) = (udp_sockets(4), flows(64));
    lab.deploy(&builtin("hash"), &sockets);
    for flow in &flows {
        let first = goes_to(&sockets, flow, b"x");
        assert_eq!(goes_to(&sockets, flow, b"x"), first);
    }
    let verdicts = lab.read().verdicts;
    assert!(verdicts.iter().all(|&count| count > 0), "{verdicts:?}");
    assert_eq!(lab.count(SYRUP_CHOSEN), 128);
}

#[test]
fn scan_avoid_labels_the_executor_it_chose_and_avoids_scans_at_once() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flow) = (udp_sockets(4), flows(1).remove(0));
    let mut policy = builtin("scan-avoid");
    let label = share_map(&mut policy, "request_type");
    lab.deploy(&policy, &sockets);

    let busy = goes_to(&sockets, &flow, &request(SCAN, 0));
    assert_eq!(get(&label, busy as u32), SCAN as i64, "labelled before the server saw it");
    for _ in 0..64 {
        let chosen = goes_to(&sockets, &flow, &request(GET, 0));
        assert_ne!(chosen, busy);
        assert_eq!(get(&label, chosen as u32), GET as i64);
    }
    // One is left that serves no SCAN: it gets everything.
    for index in 0..4 {
        set(&label, index, if index == 2 { 0 } else { SCAN as i64 });
    }
    for _ in 0..16 {
        assert_eq!(goes_to(&sockets, &flow, &request(GET, 0)), 2);
    }
    // None is left: any gets it, and no label changes.
    set(&label, 2, SCAN as i64);
    for _ in 0..64 {
        goes_to(&sockets, &flow, &request(GET, 0));
    }
    assert!((0..4).all(|index| get(&label, index) == SCAN as i64));
    assert!(lab.read().verdicts.iter().all(|&count| count > 0), "{:?}", lab.read().verdicts);
}

#[test]
fn sita_keeps_scans_and_gets_apart() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flow) = (udp_sockets(4), flows(1).remove(0));
    lab.deploy(&builtin("sita"), &sockets);
    let mut gets = [0; 4];
    for _ in 0..30 {
        assert_eq!(goes_to(&sockets, &flow, &request(SCAN, 0)), 0);
        gets[goes_to(&sockets, &flow, &request(GET, 0))] += 1;
    }
    assert_eq!(gets, [0, 10, 10, 10]);
    // Too short to have a type: the default decides.
    goes_to(&sockets, &flow, b"x");
    assert_eq!(lab.count(SYRUP_PASSED), 1);
}

#[test]
fn token_drops_who_has_none_left_and_never_admits_more_than_issued() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flow) = (udp_sockets(2), flows(1).remove(0));
    let mut policy = builtin("token");
    let tokens = share_map(&mut policy, "tokens");
    lab.deploy(&policy, &sockets);
    // User 1 has 5 tokens, user 2 has none, user 70000 is no user.
    set(&tokens, 1, 5);
    let mut refused = 0;
    let mut inputs = 0;
    for user in [1, 2, 70_000] {
        for _ in 0..10 {
            match flow.send(&request(GET, user)) {
                Ok(_) => inputs += 1,
                // A drop looks like a closed port; the error belongs to the
                // datagram before, and this one was not sent.
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => refused += 1,
                Err(e) => panic!("{e}"),
            }
        }
    }
    lab.wait_for_inputs(inputs);
    assert!(refused > 0);
    assert_eq!(received(&sockets, 5).iter().sum::<u64>(), 5);
    assert_eq!(lab.count(SYRUP_PASSED), 5);
    assert_eq!(lab.count(SYRUP_DROPPED), inputs - 5);
    assert_eq!(get(&tokens, 1), 0);
    // The agent's refill.
    set(&tokens, 2, 1);
    wait_for("the admitted datagram", LIMIT, || {
        let _ = flow.send(&request(GET, 2));
        (lab.count(SYRUP_PASSED) == 6).then_some(())
    });
}

#[test]
fn po2_counts_what_it_hands_out_and_prefers_the_idle() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flow) = (udp_sockets(2), flows(1).remove(0));
    let mut policy = builtin("po2");
    let load = share_map(&mut policy, "load");
    lab.deploy(&policy, &sockets);
    set(&load, 0, 1000);
    for _ in 0..100 {
        goes_to(&sockets, &flow, &request(GET, 0));
    }
    // With two executors half of the draws see both, a quarter only the busy one.
    let verdicts = lab.read().verdicts;
    assert!(verdicts[1] > verdicts[0], "{verdicts:?}");
    assert_eq!(get(&load, 0) - 1000, verdicts[0] as i64);
    assert_eq!(get(&load, 1), verdicts[1] as i64);
}

#[test]
fn every_policy_decides_about_tcp_connections_too() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let listeners = listeners(4);
    for policy in POLICIES.iter().filter(|policy| policy.name != "token") {
        let linked = builtin(policy.name);
        let target =
            syrup_net_hooks::Target { proto: vec![syrup_hook::Proto::Tcp], ..Lab::target() };
        lab.hook.deploy(&lab.app, &linked, &target).unwrap();
        for listener in &listeners {
            lab.register(listener, None).unwrap();
        }
        let counts = connect(&listeners, 40);
        assert_eq!(lab.count(SYRUP_INPUTS), 40, "{}", policy.name);
        assert_eq!(lab.count(SYRUP_CHOSEN), 40, "{}", policy.name);
        assert_eq!(lab.read().verdicts, counts, "{}", policy.name);
        match policy.name {
            "round-robin" => assert_eq!(counts, [10, 10, 10, 10]),
            // 40 SYNs without a type are GETs: executor 0 waits for SCANs.
            "sita" => assert_eq!(counts, [0, 14, 13, 13]),
            _ => {}
        }
        lab.hook.remove(&lab.app).unwrap();
    }
}

#[test]
fn no_policy_is_longer_than_the_papers_or_checks_bounds_by_hand() {
    for policy in POLICIES {
        let code = policy.source.split("*/\n#include").nth(1).expect(policy.name);
        let lines = code
            .lines()
            .skip(1)
            .filter(|line| !line.trim().is_empty() && !line.trim().starts_with("/*"))
            .count();
        let limit = match policy.name {
            "round-robin" => 6,
            "scan-avoid" => 21,
            _ => 16,
        };
        println!("{}: {lines} lines of {limit}", policy.name);
        assert!(lines <= limit, "{}: {lines} lines", policy.name);
        assert!(!code.replace("SYRUP_READ(pkt_start, pkt_end", "").contains("pkt_end)\n\t\t"));
        assert_eq!(code.matches("pkt_end").count(), 1 + code.matches("SYRUP_READ(").count());
        assert!(policy.source.contains(" * A bad idea"), "{}", policy.name);
        assert!(policy.source.contains(" * Maps: "), "{}", policy.name);
        assert!(policy.summary.ends_with('.'), "{}: {}", policy.name, policy.summary);
    }
}

/// In the place of its call it would be in the trusted half's frame.
#[test]
fn a_policy_that_reaches_for_what_is_its_callers_is_refused() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    let schedule = |body: &str| {
        let code = format!("__s32 schedule(void *s, void *e)\n{{\n\t{body}\n}}\n");
        lab.hook.deploy(&lab.app, &source("hostile", &code), &Lab::target())
    };
    let reads = |register: u32| {
        format!("__u64 x;\n\tasm volatile(\"%0 = r{register}\" : \"=r\"(x));\n\treturn x & 1;")
    };
    let writes =
        |code: &str| format!("asm volatile(\"{code}\" :: \"r\"(0ull) : \"r2\");\n\treturn 0;");
    let refused =
        (6..=9).map(|register| (reads(register), format!("R{register} !read_ok"))).chain([
            (writes("*(u64 *)(r10 + 0) = %0"), "stack".to_owned()),
            (writes("r2 = r10; r2 += -8; r2 += 16; *(u64 *)(r2 + 0) = %0"), "stack".to_owned()),
        ]);
    for (body, says) in refused {
        match schedule(&body) {
            Err(Error::Verifier { log, .. }) => assert!(log.contains(&says), "{body}: {log}"),
            other => panic!("{body}: {other:?}"),
        }
    }

    // What may be done does no harm: the context is in one of these registers.
    let clobbers = "asm volatile(\"r6 = 5; r7 = 5; r8 = 5; r9 = 5\" ::: \"r6\", \"r7\", \"r8\", \
                    \"r9\");\n\treturn 1;";
    // Reads the context if it finds itself elsewhere than where it was checked: an add of the
    // frame's address or of a number, whose sum tells what was made of the constant; and its
    // own frame by it.
    let tells = "__u64 elsewhere = 0;\n\tasm volatile(\"call 7; r2 = 0; if r0 == 0 goto 1f; goto \
                 2f; 1: r2 = r10; 2: r2 += -8; if r0 == 0 goto 3f; if r2 == -8 goto 3f; %0 = \
                 *(u32 *)(r7 + 32); 3:\" : \"+r\"(elsewhere) :: \"r0\", \"r1\", \"r2\", \"r3\", \
                 \"r4\", \"r5\", \"r7\");\n\treturn elsewhere ? 0 : 1;";
    for (body, runs_in_place) in [
        (clobbers, true),
        (tells, true),
        // Deeper than it looks: it keeps a frame of its own.
        (
            "asm volatile(\"r2 = r10; r2 += -8; r2 += -392; *(u64 *)(r2 + 0) = %0\" :: \"r\"(0ull) \
             : \"r2\");\n\treturn 1;",
            false,
        ),
    ] {
        let code = format!("__s32 schedule(void *s, void *e)\n{{\n\t{body}\n}}\n");
        lab.deploy(&source("hostile", &code), &sockets);
        assert_eq!(nr_functions(&lab) == 1, runs_in_place, "{body}");
        for flow in flows(3) {
            assert_eq!(goes_to(&sockets, &flow, &request(GET, 0)), 1, "{body}");
        }
        lab.hook.remove(&lab.app).unwrap();
    }
}

/// Of the program that decides.
fn nr_functions(lab: &Lab) -> u32 {
    let program = lab.hook.program(&lab.app).unwrap();
    let (mut info, mut size) =
        (libbpf_sys::bpf_prog_info::default(), size_of::<libbpf_sys::bpf_prog_info>() as u32);
    // SAFETY: info has so many bytes.
    let err = unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut size)
    };
    assert_eq!(err, 0);
    info.nr_func_info
}

/// What a call costs at each packet: see `syrup_hook::inline_schedule`.
#[test]
fn the_schedule_of_each_policy_runs_in_the_place_of_its_call() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    for policy in POLICIES {
        lab.deploy(&builtin(policy.name), &sockets);
        // Besides it has but the trusted half's, where it asks for the number of its group.
        let least = u32::from(policy.source.contains("syrup_num_executors"));
        assert_eq!(nr_functions(&lab), 1 + least, "{}", policy.name);
        lab.hook.remove(&lab.app).unwrap();
    }
}
