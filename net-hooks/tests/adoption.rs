//! Servers that run already: whose sockets are taken in, and given back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use rustix::net::SocketType;
use support::*;
use syrup_hook::{Deploy as _, Error, Health, Proto, Registration};
use syrup_net_hooks::Target;
use syrup_net_hooks::{owners, reuseport_sockets};
use syrup_tests::{Need, Numbers as _, own_network, require, wait_for};

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
    assert_eq!(
        lab.hook.collect_garbage(&lab.bpffs.path()).unwrap(),
        [lab.app.dir().join("socket-select")]
    );
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
    for fd in reuseport_sockets(second.pid(), Proto::Udp, PORT).unwrap() {
        lab.hook.register(&lab.app, Registration::Socket(fd), None).unwrap();
    }
    assert_eq!(lab.read().pid(), Some(second.pid()));
    assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
    second.stop();
    wait_for("its sockets to close", LIMIT, || (lab.read().executors == 0).then_some(()));
    assert_eq!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().len(), 1);
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
    assert_eq!(owners(Proto::Udp, PORT).unwrap(), [own]);
    assert_eq!(reuseport_sockets(own, Proto::Udp, PORT).unwrap().len(), 2);
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
    assert_eq!(owners(Proto::Udp, PORT).unwrap(), pids, "most sockets first");
    assert!(owners(Proto::Tcp, PORT).unwrap().is_empty());
    assert!(owners(Proto::Udp, PORT + 1).unwrap().is_empty());
    let target = Target { pid: Some(pids[0]), ..Lab::target() };
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &target).unwrap();
    for fd in reuseport_sockets(pids[1], Proto::Udp, PORT).unwrap() {
        lab.hook.register(&lab.app, Registration::Socket(fd), None).unwrap();
    }
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
    let several = refused(Target { pid, ..Default::default() });
    assert!(matches!(several, Error::Usage(_)), "{several:?}");
    let text = several.to_string();
    assert!(text.contains("udp 127.0.0.1:9000, tcp 127.0.0.1:9000"), "{text}");
    let other = refused(Target { pid, port: Some(9001), ..Default::default() });
    assert!(matches!(other, Error::NotFound { .. }), "{other:?}");
    // With the protocol it is clear.
    let target = Target { pid, proto: Some(Proto::Tcp), ..Default::default() };
    lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap();
    assert_eq!(lab.read().inputs.as_str(), "tcp/9000");
    lab.hook.remove(&lab.app).unwrap();
    both.stop_now();
    let mut single = Server::python("single", 1);
    let error = refused(Target { pid: Some(single.pid()), ..Default::default() });
    assert!(error.to_string().contains("only udp 127.0.0.1:9000 without it"), "{error}");
    let tcp = refused(Target { pid: Some(single.pid()), proto: Some(Proto::Tcp), ..Lab::target() });
    assert!(!tcp.to_string().contains("udp"), "its datagrams are not asked for: {tcp}");
    single.stop_now();
    let listeners = listeners(1);
    let pid = Some(std::process::id() as i32);
    let udp = refused(Target { pid, proto: Some(Proto::Udp), ..Lab::target() });
    let Error::NotFound { what, advice } = udp else { panic!("{udp:?}") };
    assert!(what.contains("bound to udp port 9000, only tcp 127.0.0.1:9000"), "{what}");
    assert!(advice.contains("--proto tcp"), "{advice}");
    drop(listeners);
    let bound = reuseport(&format!("127.0.0.1:{PORT}"), SocketType::STREAM);
    let deaf = refused(Target { pid, proto: Some(Proto::Tcp), ..Lab::target() });
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

    // What the default, UDP, leaves open.
    let own = std::process::id();
    let _listeners = listeners(1);
    let refused = lab.hook.deploy(&lab.app, &builtin("hash"), &Lab::target()).unwrap_err();
    let Error::Conflict { what, advice } = refused else { panic!("{refused:?}") };
    assert!(what.contains("port 9000") && what.contains(&format!("process {own}")), "{what}");
    assert!(advice.contains("--proto tcp") && advice.contains("--proto udp"), "{advice}");
    let health = deployed(Target { proto: Some(Proto::Udp), ..Lab::target() });
    let Health::Live(Some(what)) = health else { panic!("{health:?}") };
    assert!(what.contains(&format!("process {own} has tcp port 9000")), "{what}");
    // With UDP sockets beside it there is no doubt.
    let sockets = udp_sockets(2);
    lab.hook.deploy(&lab.app, &builtin("hash"), &Lab::target()).unwrap();
    assert_eq!((lab.read().executors, lab.read().health), (2, Health::LIVE));
    drop(sockets);
}

#[test]
fn a_server_in_another_network_namespace_is_named() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    // No other test's: these run in namespaces of their own, too.
    let port = 9077;
    let elsewhere = std::thread::spawn(move || {
        own_network();
        [0; 3].map(|_| reuseport(&format!("127.0.0.1:{port}"), SocketType::DGRAM))
    });
    let _elsewhere = elsewhere.join().unwrap();
    let target = || Target { port: Some(port), ..Default::default() };
    lab.hook.deploy(&lab.app, &builtin("hash"), &target()).unwrap();
    let health = lab.read().health;
    let Health::Live(Some(what)) = health else { panic!("{health:?}") };
    let own = std::process::id();
    assert!(
        what.contains(&format!("process {own} has udp port {port} in another network")),
        "{what}"
    );
    assert!(what.contains(&format!("--pid {own}")), "{what}");
    lab.hook.remove(&lab.app).unwrap();
    let target = Target { pid: Some(own as i32), ..target() };
    lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap();
    assert_eq!((lab.read().executors, lab.read().health), (3, Health::LIVE));
}
