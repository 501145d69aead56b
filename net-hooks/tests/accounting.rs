//! What is counted and what is told of it: each counter to the number, each
//! field of a deployment, and where the room for executors ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use rustix::net::SocketType;
use serde_json::json;
use support::*;
use syrup_hook::record::Record;
use syrup_hook::{Deploy as _, Error, Health, Linked, Proto, Registration, sys};
use syrup_net_hooks::Target;
use syrup_sdk::abi::{
    SYRUP_CHOSEN, SYRUP_DROPPED, SYRUP_ENFORCE_FAILED, SYRUP_INPUTS, SYRUP_MAX_EXECUTORS,
    SYRUP_NO_POLICY, SYRUP_NR_COUNTERS, SYRUP_OUT_OF_RANGE, SYRUP_PASSED,
};
use syrup_tests::{Need, Numbers as _, own_network, require};

/// The non-zero counters, by number.
fn counted(lab: &Lab) -> Vec<(u32, u64)> {
    let read = lab.read();
    (0..SYRUP_NR_COUNTERS).map(|c| (c, read.count(c))).filter(|(_, n)| *n > 0).collect()
}

fn expected(counts: &[(u32, u64)]) -> Vec<(u32, u64)> {
    let mut counts = counts.to_vec();
    counts.sort_unstable();
    counts
}

/// Deploys without a port, so that no socket is found: the first one brings it.
fn deploy(lab: &Lab, policy: &Linked, sockets: &[UdpSocket]) {
    lab.hook.deploy(&lab.app, policy, &Target::default()).unwrap();
    for (index, socket) in (0..).zip(sockets) {
        assert_eq!(lab.register(socket, None).unwrap(), index);
    }
}

/// A sender that hears nothing of drops.
fn send(n: usize) {
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..n {
        sender.send_to(&request(GET, 0), ("127.0.0.1", PORT)).unwrap();
    }
}

#[test]
fn every_input_is_counted_once_under_its_own_cause() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let mut sockets = udp_sockets(3);
    deploy(&lab, &constant("first", "0"), &sockets);
    send(3);
    lab.wait_for_inputs(3);
    assert_eq!(counted(&lab), expected(&[(SYRUP_INPUTS, 3), (SYRUP_CHOSEN, 3)]));
    assert_eq!(lab.read().verdicts, [3, 0, 0]);

    let mut sum = vec![(SYRUP_INPUTS, 3), (SYRUP_CHOSEN, 3)];
    for (n, verdict, cause) in [
        (2, "2", SYRUP_CHOSEN),
        (4, "SYRUP_PASS", SYRUP_PASSED),
        (5, "SYRUP_DROP", SYRUP_DROPPED),
        (6, "3", SYRUP_OUT_OF_RANGE),
        (1, "-3", SYRUP_OUT_OF_RANGE),
    ] {
        lab.hook.replace(&lab.app, &constant("next", verdict)).unwrap();
        send(n);
        sum[0].1 += n as u64;
        lab.wait_for_inputs(sum[0].1);
        match sum.iter_mut().find(|(c, _)| *c == cause) {
            Some((_, count)) => *count += n as u64,
            None => sum.push((cause, n as u64)),
        }
        assert_eq!(counted(&lab), expected(&sum), "after {n} times {verdict}");
    }
    assert_eq!(lab.read().verdicts, [3, 0, 2]);

    drop(sockets.remove(1));
    lab.hook.replace(&lab.app, &constant("closed", "1")).unwrap();
    send(7);
    sum[0].1 += 7;
    lab.wait_for_inputs(sum[0].1);
    sum.push((SYRUP_ENFORCE_FAILED, 7));
    assert_eq!(counted(&lab), expected(&sum));
    assert_eq!(lab.read().verdicts, [3, 0, 2], "what was not enforced is no choice");
}

#[test]
fn inputs_that_find_no_policy_are_counted_and_told() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    deploy(&lab, &constant("first", "0"), &sockets);
    let policies = sys::Map::open(&lab.app.dir().join("socket-select/policies")).unwrap();
    policies.delete(&[0; 4]).unwrap();
    assert_eq!(spread(&sockets, &flows(10), 1).iter().sum::<u64>(), 10, "none is lost");
    assert_eq!(counted(&lab), expected(&[(SYRUP_INPUTS, 10), (SYRUP_NO_POLICY, 10)]));
    let read = lab.read();
    assert_eq!(read.program_id, 0);
    let Health::Degraded(reason) = read.health else { panic!("not degraded") };
    assert!(reason.contains("its policy is gone"), "{reason}");
    assert!(reason.contains("10 inputs found no policy"), "{reason}");
    // Another policy mends it.
    lab.hook.replace(&lab.app, &constant("second", "1")).unwrap();
    assert_eq!(spread(&sockets, &flows(4), 1), [0, 4]);
    assert_eq!(lab.read().health, Health::LIVE);
}

#[test]
fn connections_are_counted_and_go_where_the_policy_says() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let listeners = listeners(3);
    let target = Target { proto: vec![Proto::Tcp], ..Lab::target() };
    lab.hook.deploy(&lab.app, &constant("last", "2"), &target).unwrap();
    let read = lab.read();
    assert_eq!((read.executors, read.inputs.as_str()), (3, "tcp/9000"));
    assert_eq!(connect(&listeners, 5), [0, 0, 5]);
    assert_eq!(counted(&lab), expected(&[(SYRUP_INPUTS, 5), (SYRUP_CHOSEN, 5)]));
    assert_eq!(lab.read().verdicts, [0, 0, 5]);
}

#[test]
fn a_policy_knows_how_many_executors_there_are() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let policy = constant("last", "syrup_num_executors() - 1");
    let sockets = udp_sockets(4);
    lab.hook.deploy(&lab.app, &policy, &Target::default()).unwrap();
    let flow = flows(1);
    for n in 1..=3 {
        assert_eq!(lab.register(&sockets[n - 1], None).unwrap(), n as u32 - 1);
        let mut goes = vec![0; 4];
        goes[n - 1] = 2;
        assert_eq!(spread(&sockets, &flow, 2), goes, "{n} executors");
    }
    // Beyond a hole: indexes below the last one may be named.
    assert_eq!(lab.register(&sockets[3], Some(9)).unwrap(), 9);
    assert_eq!(spread(&sockets, &flow, 2), [0, 0, 0, 2]);
    lab.hook.replace(&lab.app, &constant("hole", "5")).unwrap();
    spread(&sockets, &flow, 3);
    assert_eq!(lab.count(SYRUP_ENFORCE_FAILED), 3);
    assert_eq!(lab.count(SYRUP_OUT_OF_RANGE), 0);
    let read = lab.read();
    assert_eq!((read.executors, read.verdicts.len()), (4, 10));
    assert_eq!(read.verdicts, [2, 2, 2, 0, 0, 0, 0, 0, 0, 2]);
}

#[test]
fn there_is_room_for_256_executors() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    lab.hook.deploy(&lab.app, &constant("last", "255"), &Target::default()).unwrap();
    let sockets = udp_sockets(257);
    assert_eq!(lab.register(&sockets[255], Some(255)).unwrap(), 255);
    for (index, socket) in (0..).zip(&sockets[..255]) {
        assert_eq!(lab.register(socket, None).unwrap(), index);
    }
    for index in [None, Some(256), Some(u32::MAX)] {
        let Err(Error::Usage(why)) = lab.register(&sockets[256], index) else {
            panic!("{index:?}")
        };
        assert!(why.contains("256"), "{why}");
    }
    let read = lab.read();
    assert_eq!(read.executors, 256);
    let Health::Degraded(reason) = read.health else {
        panic!("one is left out: {:?}", read.health)
    };
    assert!(
        reason.starts_with("1 socket of its ports is no executor (udp 127.0.0.1:9000)"),
        "{reason}"
    );
    let mut goes = vec![0; 257];
    goes[255] = 3;
    assert_eq!(spread(&sockets, &flows(1), 3), goes);
    // The one that is too many may take the place of another.
    assert_eq!(lab.register(&sockets[256], Some(255)).unwrap(), 255);
    goes.swap(255, 256);
    assert_eq!(spread(&sockets, &flows(1), 3), goes);
    assert_eq!(SYRUP_MAX_EXECUTORS, 256);
    lab.hook.remove(&lab.app).unwrap();

    // Found at a port they are as many, or none.
    let Err(Error::Conflict { what: why, .. }) =
        lab.hook.deploy(&lab.app, &constant("a", "0"), &Lab::target())
    else {
        panic!("257 sockets were taken")
    };
    assert!(why.contains("more than 256 sockets of udp 127.0.0.1:9000"), "{why}");
    assert!(lab.hook.read(&lab.app).unwrap().is_none());
    drop(sockets.into_iter().next());
}

#[test]
fn a_deployment_of_one_protocol_or_port_takes_no_socket_of_another() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let tcp = listeners(1).remove(0);
    let (udp, elsewhere) =
        (udp_sockets(1).remove(0), reuseport("127.0.0.1:9001", SocketType::DGRAM));
    let refused = |result: syrup_hook::Result<u32>| {
        let Err(Error::Usage(why)) = result else { panic!("{result:?}") };
        why
    };
    // A protocol without a port.
    let target = Target { proto: vec![Proto::Tcp], ..Default::default() };
    lab.hook.deploy(&lab.app, &constant("first", "0"), &target).unwrap();
    assert!(refused(lab.register(&udp, None)).contains("the deployment is for tcp sockets"));
    assert_eq!(lab.read().inputs, "none");
    lab.register(&tcp, None).unwrap();
    assert_eq!(lab.read().inputs.as_str(), "tcp/9000");
    assert!(refused(lab.register(&udp, None)).contains("the deployment is for tcp/9000"));
    lab.hook.remove(&lab.app).unwrap();
    // Neither: the first socket decides about the port.
    lab.hook.deploy(&lab.app, &constant("first", "0"), &Target::default()).unwrap();
    lab.register(&udp, None).unwrap();
    assert_eq!(lab.read().inputs.as_str(), "udp/9000");
    assert!(refused(lab.register(&elsewhere, None)).contains("port 9001"));
    lab.register(&tcp, None).unwrap();
    assert_eq!(lab.read().inputs.as_str(), "udp/9000, tcp/9000");
    assert_eq!(lab.read().executors, 1, "one in each group");
    lab.hook.remove(&lab.app).unwrap();
    // A port alone means all that is there.
    lab.hook.deploy(&lab.app, &constant("first", "0"), &Lab::target()).unwrap();
    assert_eq!(lab.read().inputs.as_str(), "udp/9000, tcp/9000");
}

#[test]
fn groups_that_differ_in_anything_are_other_groups() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    lab.hook.deploy(&lab.app, &constant("first", "0"), &Target::default()).unwrap();
    let open = |only: bool| {
        let family = rustix::net::AddressFamily::INET6;
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(family, SocketType::DGRAM, flags, None).unwrap();
        rustix::net::sockopt::set_socket_reuseport(&fd, true).unwrap();
        rustix::net::sockopt::set_ipv6_v6only(&fd, only).unwrap();
        fd
    };
    let bind = |fd: &std::os::fd::OwnedFd, address: &str| {
        rustix::net::bind(fd, &address.parse::<std::net::SocketAddr>().unwrap()).unwrap();
    };
    let v6 = move |only: bool, address: &str| {
        let fd = open(only);
        bind(&fd, address);
        fd
    };
    // Before it is bound: later, the kernel would take it out of its group.
    let on_interface = open(true);
    bind_to_loopback(&on_interface);
    bind(&on_interface, "[::]:9000");
    // At one address the kernel makes every socket v6only.
    let sockets = [
        v6(true, "[::]:9000"),
        reuseport("127.0.0.1:9000", SocketType::DGRAM),
        v6(true, "[::1]:9000"),
        v6(false, "[::]:9000"),
        on_interface,
    ];
    for socket in &sockets {
        assert_eq!(lab.register(socket, None).unwrap(), 0, "the first of its group");
    }
    let groups = || {
        let record = Record::read(&lab.app.dir().join("socket-select")).unwrap().unwrap();
        record.state["groups"].as_array().unwrap().len()
    };
    assert_eq!((groups(), lab.read().executors, lab.read().health), (5, 1, Health::LIVE));
    // One more of a group that is there.
    let second = v6(true, "[::1]:9000");
    assert_eq!(lab.register(&second, None).unwrap(), 1);
    assert_eq!((groups(), lab.read().executors), (5, 2));
    // From another network, under the same address and port.
    let far = std::thread::spawn(move || {
        own_network();
        v6(true, "[::]:9000")
    });
    let Err(Error::Usage(why)) = lab.register(far.join().unwrap(), None) else { panic!("a netns") };
    assert!(why.contains("of another network namespace"), "{why}");
}

fn bind_to_loopback(socket: impl std::os::fd::AsFd) {
    use std::os::fd::AsRawFd as _;
    let name = c"lo";
    // SAFETY: the name is read for its length during the call.
    let err = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            3,
        )
    };
    assert_eq!(err, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn the_record_holds_what_a_later_version_would_have_to_know() {
    if !require(&[Need::Root]) {
        return;
    }
    let mut lab = Lab::new();
    lab.app.uid = 65534;
    let dir = lab.app.dir().join("socket-select");
    let target = Target { port: vec![PORT], proto: vec![Proto::Tcp], ..Default::default() };
    lab.hook.deploy(&lab.app, &constant("one", "0"), &target).unwrap();
    let record = Record::read(&dir).unwrap().unwrap();
    assert_eq!((record.uid, record.generation, record.policy.as_str()), (65534, 0, "one"));
    let state = &record.state;
    assert_eq!((&state["ports"], &state["protos"]), (&json!([PORT]), &json!(["tcp"])));
    assert_eq!((&state["pid"], &state["groups"]), (&json!(null), &json!([])));
    assert_ne!(state["netns_cookie"], 0);
    let listeners = listeners(2);
    for listener in &listeners {
        lab.register(listener, None).unwrap();
    }
    let before = Record::read(&dir).unwrap().unwrap();
    let group = &before.state["groups"][0];
    assert_eq!(group["key"]["address"], json!(format!("127.0.0.1:{PORT}")));
    assert_eq!((&group["end"], &group["count"]), (&json!(2), &json!(2)));
    assert_eq!(group["attached"], json!(true));
    assert_eq!(before.state["pid"], std::process::id());
    connect(&listeners, 3);
    lab.hook.replace(&lab.app, &constant("two", "1")).unwrap();
    let after = Record::read(&dir).unwrap().unwrap();
    assert_eq!((after.generation, after.policy.as_str()), (1, "two"));
    assert_eq!((after.uid, &after.state), (65534, &before.state));
    assert!(after.deployed_at_ns > before.deployed_at_ns);
    assert_eq!((after.counted_before["inputs"], before.counted_before.len()), (3, 0));
}

#[test]
fn a_thread_is_no_executor_and_a_socket_moves_rather_than_being_there_twice() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    deploy(&lab, &constant("first", "0"), &sockets);
    let error = lab.hook.register(&lab.app, Registration::Thread { tid: 1 }, None).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error:?}");
    assert_eq!(lab.register(&sockets[0], Some(4)).unwrap(), 4);
    let read = lab.read();
    assert_eq!((read.executors, read.verdicts.len()), (2, 5));
    assert_eq!(lab.register(&sockets[0], None).unwrap(), 4, "where it is");
    let executors = sys::Map::open(&lab.app.dir().join("socket-select/executors")).unwrap();
    assert_eq!(executors.lookup(&0u32.to_ne_bytes()).unwrap(), None);
    let fd = sockets[1].as_fd().try_clone_to_owned().unwrap();
    assert_eq!(lab.hook.register(&lab.app, Registration::Socket(fd), Some(0)).unwrap(), 0);
    assert_eq!(lab.read().executors, 2);
    assert_eq!(spread(&sockets, &flows(1), 2), [0, 2]);
}
