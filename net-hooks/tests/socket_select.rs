//! The life of a deployment at socket-select: what is enforced, who is
//! refused, and what is left when something dies.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::net::SocketType;
use support::*;
use syrup_hook::{Deploy as _, Error, Health, Hook as _, Linked, Probe, Proto, Registration, sys};
use syrup_net_hooks::SocketSelect;
use syrup_net_hooks::Target;
use syrup_sdk::abi::{
    SYRUP_CHOSEN, SYRUP_DROPPED, SYRUP_ENFORCE_FAILED, SYRUP_INPUTS, SYRUP_NO_POLICY,
    SYRUP_OUT_OF_RANGE, SYRUP_PASSED,
};
use syrup_tests::{Need, Numbers as _, SetOnDrop, own_network, require, wait_for};

#[test]
fn this_kernel_can_host_the_hook() {
    if !require(&[Need::Root]) {
        return;
    }
    assert_eq!(SocketSelect.probe(), Probe::Available);
}

#[test]
fn a_policy_can_be_verified_without_a_deployment() {
    if !require(&[Need::Root]) {
        return;
    }
    SocketSelect.verify(&builtin("scan-avoid")).unwrap();
    let reads_beyond = source(
        "reads-beyond",
        "__s32 schedule(void *s, void *e)\n{\n\treturn *(__u32 *)(s + 64);\n}\n",
    );
    let Err(Error::Verifier { program, log, .. }) = SocketSelect.verify(&reads_beyond) else {
        panic!("a read without a bounds check was accepted");
    };
    assert_eq!(program, "syrup_policy");
    assert!(log.contains("invalid access to packet"), "{log}");
}

#[test]
fn pass_leaves_the_choice_to_the_kernel() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flows) = (udp_sockets(4), flows(40));
    let before = spread(&sockets, &flows, 1);
    lab.deploy(&constant("pass", "SYRUP_PASS"), &sockets);
    assert_eq!(spread(&sockets, &flows, 1), before, "the same hash as without us");
    assert_eq!(lab.count(SYRUP_PASSED), 40);
    assert_eq!(lab.count(SYRUP_INPUTS), 40);
    assert_eq!(lab.read().health, Health::LIVE);
}

#[test]
fn drop_discards_and_is_counted() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    lab.deploy(&constant("drop", "SYRUP_DROP"), &sockets);
    // Not connected, so the sender hears nothing of the drops.
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..20 {
        sender.send_to(b"x", ("127.0.0.1", PORT)).unwrap();
    }
    lab.wait_for_inputs(20);
    assert_eq!(lab.count(SYRUP_DROPPED), 20);
    assert!(sockets.iter().all(|socket| socket.recv(&mut [0; 8]).is_err()));
}

#[test]
fn a_verdict_out_of_range_is_counted_and_the_packet_arrives() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flows) = (udp_sockets(3), flows(10));
    for (round, verdict) in [(1, "3"), (2, "-3"), (3, "0x7fffffff")] {
        let policy = constant("wild", verdict);
        if round == 1 {
            lab.deploy(&policy, &sockets);
        } else {
            lab.hook.replace(&lab.app, &policy).unwrap();
        }
        spread(&sockets, &flows, 1);
        assert_eq!(lab.count(SYRUP_OUT_OF_RANGE), 10 * round);
    }
    let Health::Degraded(reason) = lab.read().health else { panic!("not degraded") };
    // Of the third policy: those of the others are not held against it.
    assert!(reason.starts_with("10 verdicts named no executor"), "{reason}");
}

#[test]
fn a_closed_sockets_slot_stays_empty_and_its_packets_go_by_the_default() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (mut sockets, flows) = (udp_sockets(3), flows(10));
    lab.deploy(&constant("second", "1"), &sockets);
    assert_eq!(spread(&sockets, &flows, 1), [0, 10, 0]);
    drop(sockets.remove(1));
    spread(&sockets, &flows, 1);
    assert_eq!(lab.count(SYRUP_ENFORCE_FAILED), 10);
    let read = lab.read();
    assert_eq!(read.executors, 2);
    let Health::Degraded(reason) = read.health else { panic!("not degraded") };
    assert!(reason.contains("1 of 3 sockets are closed"), "{reason}");
    // Others keep their indexes; a new socket takes the free one.
    lab.hook.replace(&lab.app, &constant("third", "2")).unwrap();
    assert_eq!(spread(&sockets, &flows, 1), [0, 10]);
    let fresh = udp_sockets(1).remove(0);
    assert_eq!(lab.register(&fresh, None).unwrap(), 1);
    lab.hook.replace(&lab.app, &constant("second", "1")).unwrap();
    assert_eq!(spread(&[fresh], &flows, 1), [10]);
}

#[test]
fn a_socket_that_is_let_go_is_chosen_no_more_and_its_index_is_free() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flows) = (udp_sockets(3), flows(10));
    lab.deploy(&constant("second", "1"), &sockets);
    let let_go = |number: usize| {
        let fd = sockets[number].as_fd().try_clone_to_owned().unwrap();
        lab.hook.unregister(&lab.app, &Registration::Socket(fd))
    };
    assert_eq!(spread(&sockets, &flows, 1), [0, 10, 0]);
    let_go(1).unwrap();
    let read = lab.read();
    assert_eq!((read.executors, &read.health), (2, &Health::LIVE));
    let again = let_go(1).unwrap_err();
    assert!(matches!(&again, Error::NotFound { what, .. } if what.contains("not registered")));
    // Nobody has the index: the kernel's choice, and a count.
    spread(&sockets, &flows, 1);
    assert_eq!(lab.count(SYRUP_ENFORCE_FAILED), 10);
    assert_eq!(lab.register(&sockets[1], None).unwrap(), 1);
    assert_eq!(spread(&sockets, &flows, 1), [0, 10, 0]);
    // From the end: what schedule() may name shrinks.
    lab.hook.replace(&lab.app, &constant("last", "syrup_num_executors() - 1")).unwrap();
    assert_eq!(spread(&sockets, &flows, 1), [0, 0, 10]);
    let_go(2).unwrap();
    assert_eq!(spread(&sockets, &flows, 1), [0, 10, 0]);
    // Without any, its group is the kernel's alone, until the next one comes.
    let_go(1).unwrap();
    let_go(0).unwrap();
    let before = lab.count(SYRUP_INPUTS);
    spread(&sockets, &flows, 1);
    assert_eq!(lab.count(SYRUP_INPUTS), before);
    let Health::Degraded(why) = lab.read().health else { panic!("not degraded") };
    assert!(why.contains("are not registered"), "{why}");
    assert_eq!(lab.register(&sockets[2], None).unwrap(), 0);
    assert_eq!(spread(&sockets, &flows, 1), [0, 0, 10]);
}

#[test]
fn sockets_are_registered_at_the_index_they_ask_for() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    // Before there are sockets: those of the port would be adopted.
    lab.hook.deploy(&lab.app, &constant("fifth", "5"), &Lab::target()).unwrap();
    let waiting = lab.read();
    assert_eq!((waiting.executors, waiting.inputs.as_str()), (0, "udp/9000, tcp/9000"));
    assert!(waits(&lab).starts_with("it waits for its first socket"));
    let (sockets, flow) = (udp_sockets(3), flows(1));
    // Nothing is attached yet.
    spread(&sockets, &flow, 1);
    assert_eq!(lab.count(SYRUP_INPUTS), 0);

    assert_eq!(lab.register(&sockets[0], Some(5)).unwrap(), 5);
    assert_eq!(lab.register(&sockets[1], None).unwrap(), 0);
    assert_eq!(lab.register(&sockets[1], None).unwrap(), 0, "again is no change");
    assert_eq!(spread(&sockets, &flow, 8), [8, 0, 0]);
    // Another socket takes the index over, and one moves.
    assert_eq!(lab.register(&sockets[2], Some(5)).unwrap(), 5);
    assert_eq!(spread(&sockets, &flow, 8), [0, 0, 8]);
    assert_eq!(lab.register(&sockets[1], Some(5)).unwrap(), 5);
    assert_eq!(spread(&sockets, &flow, 8), [0, 8, 0]);
    assert_eq!(lab.read().executors, 1);
    assert_eq!(lab.read().pid(), Some(std::process::id() as i32));
}

#[test]
fn sockets_that_can_be_no_executor_are_refused_with_the_reason() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    lab.deploy(&builtin("round-robin"), &udp_sockets(1));
    let refusal = |fd: std::os::fd::OwnedFd| {
        let error = lab.hook.register(&lab.app, Registration::Socket(fd), None).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error:?}");
        error.to_string()
    };
    let plain = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(refusal(plain.into()).contains("without SO_REUSEPORT"));
    let unbound = udp_socket();
    assert!(refusal(unbound).contains("not bound"));
    let other_port = reuseport("127.0.0.1:9001", SocketType::DGRAM);
    assert!(refusal(other_port).contains("port 9001"));
    let tcp = reuseport(&format!("127.0.0.1:{PORT}"), SocketType::STREAM);
    assert!(refusal(tcp).contains("does not listen"));
    let late = udp_socket();
    let free: std::net::SocketAddr = "127.0.0.1:9002".parse().unwrap();
    rustix::net::bind(&late, &free).unwrap();
    rustix::net::sockopt::set_socket_reuseport(&late, true).unwrap();
    assert!(refusal(late).contains("port 9002"));

    let member = udp_sockets(1).remove(0);
    lab.register(&member, Some(0)).unwrap();
    let thread = lab.hook.register(&lab.app, Registration::Thread { tid: 1 }, None).unwrap_err();
    assert!(matches!(thread, Error::Usage(_)));
    let index = lab.register(&member, Some(256)).unwrap_err();
    assert!(matches!(index, Error::Usage(_)));
}

#[test]
fn a_port_belongs_to_one_app() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    let target = Target { proto: vec![Proto::Udp], ..Lab::target() };
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &target).unwrap();
    let rival = app(&lab.bpffs.path(), "rival");
    let conflict = |result: syrup_hook::Result<()>| {
        let Err(Error::Conflict { what, advice }) = result else { panic!("{result:?}") };
        assert!(what.contains("udp port 9000") && what.contains("'demo'"), "{what}");
        assert!(advice.contains("unload socket-select --app demo"), "{advice}");
    };
    conflict(lab.hook.deploy(&rival, &builtin("hash"), &Lab::target()));
    assert!(lab.hook.read(&rival).unwrap().is_none());
    assert!(!rival.dir().join("_new_socket-select").exists(), "nothing is left behind");
    // The port is only known with the first socket.
    lab.hook.deploy(&rival, &builtin("hash"), &Target::default()).unwrap();
    let fd = sockets[0].as_fd().try_clone_to_owned().unwrap();
    conflict(lab.hook.register(&rival, Registration::Socket(fd), None).map(drop));
    // The same app again, the other protocol, another port.
    let again = lab.hook.deploy(&lab.app, &builtin("hash"), &Lab::target()).unwrap_err();
    assert!(matches!(again, Error::Conflict { .. }));
    for (name, target) in [
        ("tcp", Target { proto: vec![Proto::Tcp], ..Lab::target() }),
        ("port", Target { port: vec![9001], ..Default::default() }),
    ] {
        let other = app(&lab.bpffs.path(), name);
        lab.hook.deploy(&other, &builtin("hash"), &target).unwrap();
    }
}

#[test]
fn a_port_of_another_network_namespace_is_another_port() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    lab.deploy(&builtin("round-robin"), &sockets);
    let bpffs = lab.bpffs.path();
    std::thread::spawn(move || {
        own_network();
        let neighbour = app(&bpffs, "neighbour");
        SocketSelect.deploy(&neighbour, &builtin("hash"), &Lab::target()).unwrap();
        SocketSelect.remove(&neighbour).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(spread(&sockets, &flows(1), 4), [2, 2], "the first app's is untouched");
}

#[test]
fn replace_under_load_leaves_no_input_to_the_default() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flows) = (udp_sockets(6), flows(50));
    let (first, second) = (constant("first", "0"), constant("second", "1"));
    lab.deploy(&first, &sockets);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                spread(&sockets, &flows, 1);
                sent.fetch_add(50, Ordering::Relaxed);
            }
        });
        let stopped = SetOnDrop(&stop);
        for generation in 1..=100 {
            let policy = if generation % 2 == 0 { &first } else { &second };
            lab.hook.replace(&lab.app, policy).unwrap();
            let read = lab.read();
            assert_eq!((read.generation, &read.policy), (generation, &policy.name));
        }
        wait_for("both to decide", LIMIT, || {
            let verdicts = lab.read().verdicts;
            (verdicts[0] > 0 && verdicts[1] > 0).then_some(())
        });
        drop(stopped);
    });
    let read = lab.read();
    let sent = sent.into_inner();
    assert_eq!(read.verdicts[0] + read.verdicts[1], sent, "{read:?}");
    assert_eq!(read.verdicts[2..], [0, 0, 0, 0]);
    assert_eq!(read.count(SYRUP_INPUTS), sent);
    assert_eq!(read.count(SYRUP_CHOSEN), sent);
    assert_eq!(read.count(SYRUP_NO_POLICY), 0);
    assert_eq!(read.health, Health::LIVE);
}

#[test]
fn a_policy_the_verifier_refuses_changes_nothing() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    let bad = source("bad", "__s32 schedule(void *s, void *e)\n{\n\treturn *(char *)s;\n}\n");
    let error = lab.hook.deploy(&lab.app, &bad, &Lab::target()).unwrap_err();
    assert!(matches!(error, Error::Verifier { .. }), "{error:?}");
    assert_eq!(std::fs::read_dir(lab.app.dir()).unwrap().count(), 0);
    lab.deploy(&constant("first", "0"), &sockets);
    let before = lab.read();
    lab.hook.replace(&lab.app, &bad).unwrap_err();
    assert_eq!(lab.read().program_id, before.program_id);
    assert_eq!(spread(&sockets, &flows(1), 4), [4, 0]);
}

#[test]
fn remove_leaves_nothing_in_the_kernel_while_the_app_lives_on() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (sockets, flows) = (udp_sockets(4), flows(40));
    let before = spread(&sockets, &flows, 1);
    for _ in 0..3 {
        lab.deploy(&constant("first", "0"), &sockets);
        assert_eq!(spread(&sockets, &flows, 1), [40, 0, 0, 0]);
        let ids = Ids::of(&lab);
        assert_eq!(ids.left(), ids.0.len());
        lab.hook.remove(&lab.app).unwrap();
        ids.wait_until_gone();
        assert!(lab.hook.read(&lab.app).unwrap().is_none());
        assert_eq!(std::fs::read_dir(lab.app.dir()).unwrap().count(), 0);
        assert_eq!(spread(&sockets, &flows, 1), before, "the hash decides again");
    }
    lab.hook.remove(&lab.app).unwrap();
}

#[test]
fn a_deployment_is_known_from_its_pins_alone() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(3);
    let mut policy = builtin("round-robin");
    policy.sha256 = [0xab; 32];
    lab.deploy(&policy, &sockets);
    spread(&sockets, &flows(3), 4);
    let read = SocketSelect.read(&app(&lab.bpffs.path(), "demo")).unwrap().unwrap();
    assert_eq!(read.policy, "round-robin");
    assert_eq!(read.policy_sha256, "ab".repeat(32));
    assert_eq!(read.inputs.as_str(), "udp/9000");
    assert_eq!(read.verdicts, [4, 4, 4]);
    assert_eq!(read.executors, 3);
    assert!(read.program_id > 0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!((now - 60..=now).contains(&read.deployed_at), "{}", read.deployed_at);
}

/// The three states a replacer that dies between two steps can leave.
#[test]
fn an_interrupted_replace_is_read_as_the_kernel_has_it_and_finished() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    let dir = lab.app.dir().join("socket-select");
    for died_after in ["pinning", "switching", "moving the record"] {
        lab.deploy(&constant("old", "0"), &sockets);
        let old_policy = sys::obj_get_required(&dir.join("policy")).unwrap();
        let old_record = sys::obj_get_required(&dir.join("record")).unwrap();
        lab.hook.replace(&lab.app, &constant("new", "1")).unwrap();
        // Back by the last steps.
        let next = dir.join("_new_policy");
        std::fs::create_dir(&next).unwrap();
        std::fs::rename(dir.join("policy"), next.join("policy")).unwrap();
        sys::obj_pin(old_policy.as_fd(), &dir.join("policy")).unwrap();
        if died_after != "moving the record" {
            std::fs::rename(dir.join("record"), next.join("record")).unwrap();
            sys::obj_pin(old_record.as_fd(), &dir.join("record")).unwrap();
        }
        let (expected, generation, executor) =
            if died_after == "pinning" { ("old", 0, 0) } else { ("new", 1, 1) };
        if died_after == "pinning" {
            use std::os::fd::AsRawFd as _;
            let policies = sys::Map::open(&dir.join("policies")).unwrap();
            policies.update(&[0; 4], &old_policy.as_raw_fd().to_ne_bytes()).unwrap();
        }
        drop((old_policy, old_record));
        for settled in [false, true] {
            let read = lab.read();
            assert_eq!((read.policy.as_str(), read.generation), (expected, generation));
            let program = lab.hook.program(&lab.app).unwrap();
            assert_eq!(sys::program_id(program.as_fd()).unwrap(), read.program_id, "{died_after}");
            drop(program);
            assert_eq!(next.exists(), !settled, "{died_after}");
            assert_eq!(goes_to(&sockets, &flows(1)[0], b"x"), executor, "{died_after}");
            assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
        }
        lab.hook.remove(&lab.app).unwrap();
    }
}

/// Run by the test below in a process of its own, and killed.
#[test]
#[ignore = "run by the test below"]
fn changer_child() {
    let bpffs = std::env::var_os("SYRUP_TEST_CHANGER").expect("SYRUP_TEST_CHANGER");
    let app = app(Path::new(&bpffs), "demo");
    let pid = std::env::var("SYRUP_TEST_PID").unwrap().parse().unwrap();
    let objects = std::env::var("SYRUP_TEST_OBJECTS").unwrap();
    let policies = ["first", "second"].map(|name| Linked {
        object: std::fs::read(Path::new(&objects).join(name)).unwrap(),
        name: name.to_owned(),
        ..builtin("hash")
    });
    let target = Target { pid: Some(pid), ..Lab::target() };
    println!("ready");
    std::io::stdout().flush().unwrap();
    loop {
        SocketSelect.deploy(&app, &policies[0], &target).unwrap();
        for policy in policies.iter().cycle().skip(1).take(3) {
            SocketSelect.replace(&app, policy).unwrap();
        }
        SocketSelect.remove(&app).unwrap();
    }
}

#[test]
fn whoever_is_killed_while_changing_things_leaves_nothing_the_next_cannot_clear() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let flow = flows(1);
    let mut server = Server::python("udp", 3);
    // Compiled once: a compiler per child would be most of the time.
    let objects = tempfile::tempdir().unwrap();
    for policy in [constant("first", "0"), constant("second", "1")] {
        std::fs::write(objects.path().join(&policy.name), &policy.object).unwrap();
    }
    let next = app(&lab.bpffs.path(), "next");
    let target = Target { pid: Some(server.pid()), ..Lab::target() };
    let mut states = BTreeMap::new();
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "changer_child", "--ignored", "--nocapture"])
            .env("SYRUP_TEST_CHANGER", lab.bpffs.path())
            .env("SYRUP_TEST_OBJECTS", objects.path())
            .env("SYRUP_TEST_PID", server.pid().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next().unwrap().unwrap().contains("ready") {}
        let die_at = Instant::now() + Duration::from_micros(500 + 7_300 * round);
        while Instant::now() < die_at {
            std::hint::spin_loop();
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();

        let read = lab.hook.read(&lab.app).unwrap();
        *states.entry(read.as_ref().map(|read| read.policy.clone())).or_insert(0) += 1;
        if read.is_none() && round % 2 == 0 {
            // What a dead call holds is the next app's.
            lab.hook.deploy(&next, &builtin("hash"), &target).unwrap();
            lab.hook.remove(&next).unwrap();
        }
        let garbage = lab.hook.collect_garbage(&lab.bpffs.path()).unwrap();
        assert!(garbage.len() <= 1, "{garbage:?}");
        match lab.hook.read(&lab.app).unwrap() {
            Some(read) => {
                let executor = if read.policy == "first" { "0" } else { "1" };
                assert_eq!(server.ask(&flow[0]), executor, "after {:?}", states);
                lab.hook.remove(&lab.app).unwrap();
            }
            None => assert_eq!(std::fs::read_dir(lab.app.dir()).unwrap().count(), 0),
        }
    }
    println!("found after a kill: {states:?}");
}

#[test]
fn a_dead_apps_deployment_makes_room_for_its_next_one() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    for _ in 0..2 {
        let server = Server::python("udp", 2);
        let target = Target { pid: Some(server.pid()), ..Default::default() };
        lab.hook.deploy(&lab.app, &builtin("round-robin"), &target).unwrap();
        assert_eq!(lab.read().pid(), Some(server.pid()));
        server.stop();
        wait_for("its sockets to close", LIMIT, || (lab.read().executors == 0).then_some(()));
        // A load that fails takes it from nobody.
        let before = lab.read();
        let nobody = Target { pid: Some(i32::MAX), ..Default::default() };
        let failed = lab.hook.deploy(&lab.app, &builtin("hash"), &nobody);
        assert!(matches!(failed, Err(Error::NotFound { .. })), "{failed:?}");
        assert_eq!(lab.read(), before);
    }
}

#[test]
fn a_restarted_app_registers_again() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let flow = flows(1);
    let sockets = udp_sockets(4);
    lab.deploy(&builtin("round-robin"), &sockets);
    drop(sockets);
    assert_eq!(lab.read().executors, 0);
    assert!(waits(&lab).starts_with("it waits for sockets: all it had are closed"));
    // Its process runs: it is no garbage, nor in the way of a second deployment.
    assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
    let again = lab.hook.deploy(&lab.app, &builtin("hash"), &Lab::target());
    assert!(matches!(again, Err(Error::Conflict { .. })), "{again:?}");
    let sockets = udp_sockets(2);
    for (index, socket) in (0..).zip(&sockets) {
        assert_eq!(lab.register(socket, None).unwrap(), index);
    }
    assert_eq!(spread(&sockets, &flow, 10), [5, 5], "two executors, not four");
}

/// No dispatcher is in the group of the new sockets, so nothing is counted.
#[test]
fn a_server_that_came_back_without_registering_is_degraded() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (mut sockets, flow) = (udp_sockets(2), flows(1));
    lab.deploy(&builtin("round-robin"), &sockets);
    // What went wrong while they closed, one after another, does not hide what is wrong now.
    drop(sockets.pop());
    spread(&sockets, &flow, 4);
    assert_eq!(lab.count(SYRUP_ENFORCE_FAILED), 2);
    drop(sockets);
    let sockets = udp_sockets(2);
    spread(&sockets, &flow, 4);
    assert_eq!(lab.count(SYRUP_INPUTS), 4, "those before");
    let Health::Degraded(reason) = lab.read().health else { panic!("not degraded") };
    let own = std::process::id();
    let what = format!("the sockets of process {own} at udp port {PORT} are not registered");
    assert!(reason.starts_with(&what), "{reason}");
    assert!(reason.contains("'syrupctl unload socket-select --app demo'"), "{reason}");
    assert!(reason.contains(&format!("load it again with --port {PORT}")), "{reason}");
    assert!(reason.contains("2 verdicts named a closed socket"), "{reason}");
    // The way out that it names.
    for socket in &sockets {
        lab.register(socket, None).unwrap();
    }
    let Health::Degraded(reason) = lab.read().health else { panic!("nothing went wrong") };
    assert!(reason.starts_with("2 verdicts named a closed socket:"), "{reason}");
}

/// The kernel would reset it; a server that reloads with fewer workers closes some listeners.
#[test]
fn a_connection_that_waits_outlives_its_listener() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let mut listeners = listeners(2);
    let target = Target { proto: vec![Proto::Tcp], ..Lab::target() };
    lab.hook.deploy(&lab.app, &constant("first", "0"), &target).unwrap();
    let mut client = std::net::TcpStream::connect(("127.0.0.1", PORT)).unwrap();
    assert_eq!(lab.read().verdicts, [1, 0]);
    drop(listeners.remove(0));
    listeners[0].set_nonblocking(true).unwrap();
    let (mut accepted, _) = wait_for("the connection", LIMIT, || listeners[0].accept().ok());
    std::io::Write::write_all(&mut client, b"x").unwrap();
    accepted.set_nonblocking(false).unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(&mut accepted, &mut byte).unwrap();
    // It was decided about when it came.
    assert_eq!(lab.count(SYRUP_INPUTS), 1);
}

#[test]
fn a_restarted_app_may_bind_to_another_address() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    lab.deploy(&builtin("round-robin"), &udp_sockets(2));
    assert_eq!(lab.read().executors, 0);
    let sockets: Vec<std::net::UdpSocket> =
        (0..2).map(|_| reuseport("127.0.0.2:9000", SocketType::DGRAM).into()).collect();
    for (index, socket) in (0..).zip(&sockets) {
        socket.set_nonblocking(true).unwrap();
        assert_eq!(lab.register(socket, None).unwrap(), index);
    }
    let flow = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    flow.connect("127.0.0.2:9000").unwrap();
    assert_eq!(spread(&sockets, &[flow], 10), [5, 5]);
    assert_eq!(lab.read().target["address"], serde_json::json!(["127.0.0.2:9000"]));
    let ids = Ids::of(&lab);
    lab.hook.remove(&lab.app).unwrap();
    ids.wait_until_gone();
}

#[test]
fn ipv6_sockets_are_executors_too() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets: Vec<std::net::UdpSocket> =
        (0..2).map(|_| reuseport("[::1]:9000", SocketType::DGRAM).into()).collect();
    for socket in &sockets {
        socket.set_nonblocking(true).unwrap();
    }
    lab.deploy(&builtin("round-robin"), &sockets);
    let flow = std::net::UdpSocket::bind("[::1]:0").unwrap();
    flow.connect("[::1]:9000").unwrap();
    assert_eq!(spread(&sockets, &[flow], 10), [5, 5]);
    let ids = Ids::of(&lab);
    lab.hook.remove(&lab.app).unwrap();
    ids.wait_until_gone();
}

#[test]
fn half_a_deployment_can_still_be_removed() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    lab.deploy(&builtin("round-robin"), &sockets);
    std::fs::remove_file(lab.app.dir().join("socket-select/record")).unwrap();
    assert_eq!(lab.read().health.state(), "broken");
    lab.hook.remove(&lab.app).unwrap();
    assert_eq!(std::fs::read_dir(lab.app.dir()).unwrap().count(), 0);
    // The dispatcher could not be detached without knowing its group, and
    // finds its slot empty.
    assert_eq!(spread(&sockets, &flows(40), 1).iter().sum::<u64>(), 40);
}

/// What a deployment that is in order waits for.
fn waits(lab: &Lab) -> String {
    let health = lab.read().health;
    let Health::Live(Some(what)) = health else { panic!("{health:?}") };
    what
}

/// A socket that is not bound.
fn udp_socket() -> std::os::fd::OwnedFd {
    let (family, flags) = (rustix::net::AddressFamily::INET, rustix::net::SocketFlags::CLOEXEC);
    rustix::net::socket_with(family, SocketType::DGRAM, flags, None).unwrap()
}
