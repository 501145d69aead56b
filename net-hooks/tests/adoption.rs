//! Servers that run already: whose sockets are taken in, and given back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use libbpf_rs::MapType;
use rustix::net::SocketType;
use support::*;
use syrup_hook::record::Record;
use syrup_hook::{Deploy as _, Error, Health, Proto, pin};
use syrup_net_hooks::Target;
use syrup_tests::{Need, Numbers as _, own_network, require, wait_for};

fn lags(lab: &Lab) -> bool {
    !lab.hook.lagging(std::slice::from_ref(&lab.app)).is_empty()
}

#[test]
fn a_running_server_is_adopted_and_given_back() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let mut server = Server::python("udp", 6);
    let flows = flows(50);
    let target = Target { pid: Some(server.pid()), ..Default::default() };
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &target).unwrap();
    let read = lab.read();
    assert_eq!(read.pid(), Some(server.pid()));
    assert_eq!((read.executors, read.inputs.as_str()), (6, "udp/9000"));
    let mut counts = vec![0; 6];
    for _ in 0..6 {
        for flow in &flows {
            counts[server.ask(flow).parse::<usize>().unwrap()] += 1;
        }
    }
    assert_eq!(counts, [50; 6], "in the order of its fds");
    let ids = Ids::of(&lab);
    lab.hook.remove(&lab.app).unwrap();
    ids.wait_until_gone();
    server.ask(&flows[0]);
    // Adopted a second time at once, and collected after its death.
    lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap();
    assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
    server.stop();
    wait_for("its sockets to close", LIMIT, || (lab.read().executors == 0).then_some(()));
    assert_eq!(lab.read().pid(), None);
    assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty(), "it may return");
    // Whoever loads again does not wait for it.
    lab.hook.deploy(&lab.app, &builtin("hash"), &Lab::target()).unwrap();
}

#[test]
fn sockets_that_a_dead_load_of_another_app_holds_go_to_the_next() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let mut server = Server::python("udp", 3);
    let target = Target { pid: Some(server.pid()), ..Lab::target() };
    let (place, aside) =
        ["socket-select", "_new_socket-select"].map(|name| lab.app.dir().join(name)).into();
    // Killed before its folder was in place, or while it was taken down.
    lab.hook.deploy(&lab.app, &constant("first", "1"), &target).unwrap();
    std::fs::rename(&place, &aside).unwrap();
    let next = app(&lab.bpffs.path(), "next");
    lab.hook.deploy(&next, &constant("second", "2"), &target).unwrap();
    assert!(!aside.exists());
    let flow = flows(1);
    assert_eq!(server.ask(&flow[0]), "2");
    assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
    assert_eq!(server.ask(&flow[0]), "2");
}

#[test]
fn a_deployment_is_the_process_of_the_app_that_was_started_again() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let first = Server::python("udp", 2);
    let target = Target { pid: Some(first.pid()), ..Default::default() };
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &target).unwrap();
    first.stop();
    wait_for("its sockets to close", LIMIT, || (lab.read().executors == 0).then_some(()));
    assert_eq!(lab.read().pid(), None);
    let second = Server::python("udp", 2);
    assert!(lags(&lab));
    assert!(matches!(lab.read().health, Health::Degraded(_)), "it is left out: {:?}", lab.read());
    assert!(lab.hook.catch_up(&lab.app).unwrap());
    assert!(!lags(&lab) && !lab.hook.catch_up(&lab.app).unwrap());
    let read = lab.read();
    assert_eq!((read.pid(), read.executors), (Some(second.pid()), 2));
    assert_eq!(read.health, Health::LIVE);
    second.stop();
    wait_for("its sockets to close", LIMIT, || (lab.read().executors == 0).then_some(()));
    assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty(), "it may return");
}

#[test]
fn a_process_in_several_namespaces_is_adopted_in_the_callers() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    let elsewhere = std::thread::spawn(|| {
        own_network();
        udp_sockets(3)
    });
    let elsewhere = elsewhere.join().unwrap();
    let own = std::process::id() as i32;
    let target = Target { pid: Some(own), ..Lab::target() };
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &target).unwrap();
    assert_eq!(spread(&sockets, &flows(1), 4), [2, 2]);
    drop(elsewhere);
}

#[test]
fn a_server_of_several_processes_is_adopted_whole() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let mut servers = [Server::python("udp", 3), Server::python("udp", 2)];
    let pids = [servers[0].pid(), servers[1].pid()];
    let target = Target { pid: Some(pids[0]), ..Lab::target() };
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &target).unwrap();
    assert_eq!(lab.read().executors, 5, "the whole group of the one that was named");
    lab.hook.remove(&lab.app).unwrap();
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &Lab::target()).unwrap();
    assert_eq!(lab.read().executors, 5);
    assert_eq!(lab.read().pid(), Some(pids[0]));
    let flow = flows(1);
    for _ in 0..10 {
        servers[0].ask(&flow[0]);
    }
    assert_eq!(lab.read().verdicts, [2; 5]);
    // The one we remember ends; the other's sockets still lead to the group.
    let [first, mut second] = servers;
    first.stop();
    wait_for("its sockets to close", LIMIT, || (lab.read().executors == 2).then_some(()));
    assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
    let ids = Ids::of(&lab);
    lab.hook.remove(&lab.app).unwrap();
    ids.wait_until_gone();
    second.ask(&flow[0]);
}

#[test]
fn a_server_that_cannot_be_adopted_is_refused_with_the_reason() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let refused = |target: Target| {
        let error = lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap_err();
        assert!(lab.hook.read(&lab.app).unwrap().is_none());
        error
    };
    let mut both = Server::python("both", 2);
    let pid = Some(both.pid());
    lab.hook.deploy(&lab.app, &builtin("hash"), &Target { pid, ..Default::default() }).unwrap();
    assert_eq!(lab.read().inputs.as_str(), "udp/9000, tcp/9000");
    lab.hook.remove(&lab.app).unwrap();
    let other = refused(Target { pid, port: vec![9001], ..Default::default() });
    assert!(matches!(other, Error::NotFound { .. }), "{other:?}");
    // With the protocol it is clear.
    let target = Target { pid, proto: vec![Proto::Tcp], ..Default::default() };
    lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap();
    assert_eq!(lab.read().inputs.as_str(), "tcp/9000");
    lab.hook.remove(&lab.app).unwrap();
    both.stop_now();
    let mut single = Server::python("single", 1);
    let error = refused(Target { pid: Some(single.pid()), ..Default::default() });
    assert!(error.to_string().contains("only udp 127.0.0.1:9000 without it"), "{error}");
    let tcp = refused(Target { pid: Some(single.pid()), proto: vec![Proto::Tcp], ..Lab::target() });
    assert!(!tcp.to_string().contains("udp"), "its datagrams are not asked for: {tcp}");
    single.stop_now();
    let listeners = listeners(1);
    let pid = Some(std::process::id() as i32);
    let udp = refused(Target { pid, proto: vec![Proto::Udp], ..Lab::target() });
    let Error::NotFound { what, advice } = udp else { panic!("{udp:?}") };
    assert!(what.contains("bound to udp port 9000, only tcp 127.0.0.1:9000"), "{what}");
    assert!(advice.contains("--proto tcp"), "{advice}");
    drop(listeners);
    let bound = reuseport(&format!("127.0.0.1:{PORT}"), SocketType::STREAM);
    let deaf = refused(Target { pid, proto: vec![Proto::Tcp], ..Lab::target() });
    assert!(deaf.to_string().contains("tcp 127.0.0.1:9000 that does not listen"), "{deaf}");
    drop(bound);
    let error = refused(Target { pid: Some(i32::MAX), ..Default::default() });
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
}

/// `--port` alone does not say whose: the policy is loaded, and its state tells why it
/// got no socket.
#[test]
fn a_port_without_a_socket_to_adopt_says_who_has_it() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let deployed = |target: Target| {
        lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap();
        let read = lab.read();
        assert_eq!(read.executors, 0);
        lab.hook.remove(&lab.app).unwrap();
        read.health
    };
    let health = deployed(Lab::target());
    assert!(matches!(health, Health::Live(Some(_))), "nobody has the port: {health:?}");

    let mut single = Server::python("single", 1);
    let health = deployed(Lab::target());
    let Health::Degraded(reason) = health else { panic!("{health:?}") };
    let unfit = format!(
        "process {} cannot be adopted: it is bound to udp 127.0.0.1:9000 without \
         SO_REUSEPORT",
        single.pid()
    );
    assert!(reason.contains(&unfit), "{reason}");
    single.stop_now();

    let own = std::process::id();
    let _listeners = listeners(1);
    let health = deployed(Target { proto: vec![Proto::Udp], ..Lab::target() });
    let Health::Live(Some(what)) = health else { panic!("{health:?}") };
    assert!(what.contains(&format!("process {own} has tcp port 9000")), "{what}");
    // Without a word, both.
    let sockets = udp_sockets(2);
    lab.hook.deploy(&lab.app, &builtin("hash"), &Lab::target()).unwrap();
    assert_eq!((lab.read().executors, lab.read().health), (2, Health::LIVE));
    assert_eq!(lab.read().inputs, "udp/9000, tcp/9000");
    drop(sockets);
}

#[test]
fn a_server_in_another_network_namespace_is_named() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let server = std::thread::spawn(|| {
        own_network();
        Server::python("udp", 3)
    });
    let server = server.join().unwrap();
    lab.hook.deploy(&lab.app, &builtin("hash"), &Lab::target()).unwrap();
    let health = lab.read().health;
    let Health::Live(Some(what)) = health else { panic!("{health:?}") };
    let pid = server.pid();
    assert!(
        what.contains(&format!("process {pid} has udp port 9000 in another network")),
        "{what}"
    );
    assert!(what.contains(&format!("--pid {pid}")), "{what}");
    lab.hook.remove(&lab.app).unwrap();
    let target = Target { pid: Some(pid), ..Lab::target() };
    lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap();
    assert_eq!((lab.read().executors, lab.read().health), (3, Health::LIVE));
    // It is followed there, too.
    let ids = Ids::of(&lab);
    assert!(!lags(&lab));
    lab.hook.remove(&lab.app).unwrap();
    ids.wait_until_gone();
    // Its namespace goes with it, and who has the port here has nothing to do with that.
    lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap();
    let another = udp_sockets(1);
    drop(server);
    wait_for("its sockets to close", LIMIT, || (lab.read().executors == 0).then_some(()));
    let health = lab.read().health;
    let Health::Live(Some(what)) = health else { panic!("{health:?}") };
    assert!(what.contains("no process that can be looked into"), "{what}");
    drop(another);
}

/// A server that closes some sockets and opens others has no hole in its indexes, and what
/// went wrong before anybody looked is over.
#[test]
fn what_leaves_is_let_go_and_what_joins_takes_its_place() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (mut sockets, flow) = (udp_sockets(4), flows(1));
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &Lab::target()).unwrap();
    assert_eq!(spread(&sockets, &flow, 8), [2, 2, 2, 2]);
    assert!(!lags(&lab));
    sockets.drain(..2);
    spread(&sockets, &flow, 8);
    let Health::Degraded(reason) = lab.read().health else { panic!("{:?}", lab.read()) };
    assert!(reason.contains("2 of 4 sockets are closed"), "{reason}");
    assert!(reason.contains("4 verdicts named a closed socket"), "{reason}");
    assert!(lab.hook.catch_up(&lab.app).unwrap());
    assert_eq!((lab.read().executors, lab.read().health), (2, Health::LIVE));
    assert_eq!(spread(&sockets, &flow, 8), [4, 4]);
    assert_eq!(lab.read().health, Health::LIVE);

    sockets.extend(udp_sockets(3));
    assert!(matches!(lab.read().health, Health::Degraded(_)), "three are left out");
    assert!(lab.hook.catch_up(&lab.app).unwrap());
    assert_eq!(spread(&sockets, &flow, 10), [2, 2, 2, 2, 2]);
    assert_eq!((lab.read().executors, lab.read().health), (5, Health::LIVE));
    // A group that was not there before, of the other protocol.
    let listeners = listeners(2);
    assert!(lab.hook.catch_up(&lab.app).unwrap());
    assert_eq!(lab.read().inputs, "udp/9000, tcp/9000");
    drop(listeners);
    // Whoever numbers its sockets itself is left alone.
    lab.register(&sockets[0], Some(9)).unwrap();
    sockets.drain(1..);
    assert!(!lags(&lab));
    assert!(matches!(lab.read().health, Health::Degraded(_)));
}

/// Of sockets that join, one is in another program's map: the others join.
#[test]
fn one_that_cannot_join_keeps_no_other_out() {
    if !require(&[Need::Root]) {
        return;
    }
    for (joining, busy) in [(2, 0), (2, 1), (1, 0)] {
        let lab = Lab::new();
        let first = udp_sockets(1);
        lab.hook.deploy(&lab.app, &constant("far", "99"), &Lab::target()).unwrap();
        let more = udp_sockets(joining);
        let theirs = pin::create_map(MapType::ReuseportSockarray, "theirs", 8, 4).unwrap();
        let fd = u64::try_from(more[busy].as_raw_fd()).unwrap();
        theirs.update(&0u32.to_ne_bytes(), &fd.to_ne_bytes()).unwrap();
        assert_eq!(lab.hook.catch_up(&lab.app).unwrap(), joining > 1);
        assert_eq!(lab.read().executors as usize, joining);
        // It was looked at, and is not looked at again and again; the state tells.
        assert!(!lags(&lab), "socket {busy} of {joining}");
        let Health::Degraded(reason) = lab.read().health else { panic!("{:?}", lab.read()) };
        assert!(reason.starts_with("1 sockets of its ports could not be taken in"), "{reason}");
        // Until somebody asks for it, whom the policy's faults are told all the same.
        flows(1)[0].send(b"x").unwrap();
        lab.wait_for_inputs(1);
        let faults = lab.read().health;
        assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
        assert!(lags(&lab), "socket {busy} of {joining}");
        assert!(!lab.hook.catch_up(&lab.app).unwrap(), "nothing has changed");
        assert_eq!(lab.read().health, faults);
        drop(theirs);
        wait_for("the kernel to free their map", LIMIT, || {
            assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
            lab.hook.catch_up(&lab.app).unwrap().then_some(())
        });
        assert_eq!((lab.read().executors as usize, lab.read().health), (joining + 1, Health::LIVE));
        drop((first, more));
    }
}

#[test]
fn a_registration_that_fails_hides_no_socket_that_was_closed() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let mut sockets = udp_sockets(3);
    lab.deploy(&builtin("round-robin"), &sockets);
    sockets.extend(udp_sockets(1));
    let theirs = pin::create_map(MapType::ReuseportSockarray, "theirs", 8, 4).unwrap();
    let fd = u64::try_from(sockets[3].as_raw_fd()).unwrap();
    theirs.update(&0u32.to_ne_bytes(), &fd.to_ne_bytes()).unwrap();
    sockets.remove(1);
    // What the closed one would have got, any of the others may get.
    spread(&sockets, &flows(1), 6);
    let health = lab.read().health;
    let Health::Degraded(reason) = &health else { panic!("{health:?}") };
    assert!(reason.contains("1 of 3 sockets are closed"), "{reason}");
    for index in [None, Some(1), Some(7)] {
        lab.register(&sockets[2], index).unwrap_err();
        assert_eq!(lab.read().health, health, "{index:?}");
    }
}

/// What a dead registration counted is not what is there.
#[test]
fn a_registration_that_fails_after_one_that_died_names_no_socket_that_is_not_there() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let mut sockets = udp_sockets(1);
    lab.deploy(&builtin("round-robin"), &sockets);
    let folder = lab.app.dir().join("socket-select");
    let mut record = Record::read(&folder).unwrap().unwrap();
    record.state["changing"] = true.into();
    record.state["groups"][0]["end"] = 4.into();
    record.write(&folder).unwrap();
    sockets.extend(udp_sockets(1));
    let theirs = pin::create_map(MapType::ReuseportSockarray, "theirs", 8, 4).unwrap();
    let fd = u64::try_from(sockets[1].as_raw_fd()).unwrap();
    theirs.update(&0u32.to_ne_bytes(), &fd.to_ne_bytes()).unwrap();
    lab.register(&sockets[1], None).unwrap_err();
    spread(&sockets, &flows(1), 8);
    let health = lab.read().health;
    let Health::Degraded(reason) = &health else { panic!("{health:?}") };
    assert!(reason.contains("1 socket of its ports is no executor"), "{reason}");
    assert!(!reason.contains("named"), "{reason}");
}

/// More addresses than a deployment has groups: refused at a load, told of one that follows.
#[test]
fn what_is_beyond_the_limits_is_never_live() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let open = |range: std::ops::Range<u8>| -> Vec<_> {
        let addresses = range.map(|n| format!("127.0.1.{n}:{PORT}"));
        addresses.map(|address| reuseport(&address, SocketType::DGRAM)).collect()
    };
    let first = open(1..66);
    let refused = lab.hook.deploy(&lab.app, &builtin("hash"), &Lab::target()).unwrap_err();
    assert!(matches!(&refused, Error::Conflict { what, .. } if what.contains("64")), "{refused:?}");
    drop(first);
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &Lab::target()).unwrap();
    let mut all = open(1..71);
    assert!(lab.hook.catch_up(&lab.app).unwrap());
    let Health::Degraded(reason) = lab.read().health else { panic!("{:?}", lab.read().health) };
    assert!(reason.starts_with("6 sockets of its ports could not be taken in"), "{reason}");
    assert!(!lags(&lab));
    // One of them that closed is no trouble any more.
    all.pop();
    let Health::Degraded(reason) = lab.read().health else { panic!("{:?}", lab.read().health) };
    assert!(reason.starts_with("5 sockets of its ports could not be taken in"), "{reason}");
    // With room they are.
    all.drain(..6);
    assert!(lab.hook.catch_up(&lab.app).unwrap());
    assert_eq!(lab.read().health, Health::LIVE);
    for index in [7, 40, 69] {
        let flow = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        flow.send_to(b"?", format!("127.0.1.{index}:{PORT}")).unwrap();
    }
    lab.wait_for_inputs(3);
    assert_eq!((lab.read().verdicts, lab.read().health), (vec![3], Health::LIVE));
}

/// Anybody may bind to the port at another address; what is deployed is not about that.
#[test]
fn another_users_socket_at_the_port_is_not_taken_in() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &Lab::target()).unwrap();
    let stranger = std::thread::spawn(|| {
        // A socket is of the user by whom its thread opens files.
        // SAFETY: a number, and of this thread only.
        unsafe { libc::setfsuid(65534) };
        reuseport("127.0.0.9:9000", SocketType::DGRAM)
    });
    let stranger = stranger.join().unwrap();
    assert!(!lags(&lab));
    assert_eq!((lab.read().executors, lab.read().health), (2, Health::LIVE));
    drop(sockets);
    assert!(lab.hook.catch_up(&lab.app).unwrap(), "its own are closed");
    let Health::Live(Some(reason)) = lab.read().health else { panic!("{:?}", lab.read()) };
    assert!(reason.contains("another user's (65534)"), "{reason}");
    // Of an app that is a user's, from the start.
    lab.hook.remove(&lab.app).unwrap();
    let theirs = syrup_hook::App { uid: 65533, ..lab.app.clone() };
    lab.hook.deploy(&theirs, &builtin("round-robin"), &Lab::target()).unwrap();
    assert_eq!(lab.read().executors, 0);
    drop(stranger);
}

/// A socket on its way from one process to another is in no process's table.
#[test]
fn a_socket_that_nobody_holds_is_told_and_not_looked_for_for_ever() {
    if !require(&[Need::Root]) {
        return;
    }
    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    };
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &Lab::target()).unwrap();
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let travels = udp_sockets(1);
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let fds = [std::os::fd::AsFd::as_fd(&travels[0])];
    assert!(beside.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&ours, &[std::io::IoSlice::new(b"x")], &mut beside, SendFlags::empty()).unwrap();
    drop(travels);
    assert!(lags(&lab));
    lab.hook.catch_up(&lab.app).unwrap();
    assert!(!lags(&lab));
    let Health::Degraded(reason) = lab.read().health else { panic!("{:?}", lab.read()) };
    assert!(reason.starts_with("1 sockets of its ports are held by no process"), "{reason}");
    // It is looked for again, less and less often, and in vain.
    let mut looks = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        looks += u32::from(lags(&lab));
        assert!(!lab.hook.catch_up(&lab.app).unwrap());
        std::thread::sleep(Duration::from_millis(20)); // as the daemon between two looks
    }
    assert!((1..=4).contains(&looks), "{looks}");
    // Until it has arrived.
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0u8; 1];
    let into = &mut [std::io::IoSliceMut::new(&mut bytes)];
    recvmsg(&theirs, into, &mut beside, RecvFlags::empty()).unwrap();
    let arrived = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    wait_for("it to be taken in", LIMIT, || lab.hook.catch_up(&lab.app).unwrap().then_some(()));
    assert_eq!((lab.read().executors, lab.read().health), (3, Health::LIVE));
    drop((sockets, arrived));
}
