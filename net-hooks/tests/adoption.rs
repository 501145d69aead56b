//! Servers that run already: whose sockets are taken in, and given back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::*;
use syrup_hook::{Error, Executor, Hook as _, Proto, Target};
use syrup_net_hooks::{owners, reuseport_sockets};
use syrup_tests::{Need, own_network, require, wait_for};

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
    assert_eq!(read.pid, Some(server.pid()));
    assert_eq!((read.nr_executors, read.port), (6, Some((Proto::Udp, PORT))));
    let mut counts = vec![0; 6];
    for _ in 0..6 {
        for flow in &flows {
            counts[server.ask(flow).parse::<usize>().unwrap()] += 1;
        }
    }
    assert_eq!(counts, [50; 6], "in the order of its fds");
    let ids = Ids::of(&lab);
    lab.hook.remove(&lab.app).unwrap();
    assert_eq!(ids.left(), 0);
    server.ask(&flows[0]);
    // Adopted a second time at once, and collected after its death.
    lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap();
    assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
    server.stop();
    wait_for("its sockets to close", LIMIT, || (lab.read().nr_executors == 0).then_some(()));
    assert_eq!(lab.read().pid, None);
    assert_eq!(
        lab.hook.collect_garbage(&lab.bpffs.path()).unwrap(),
        [lab.app.dir().join("socket-select")]
    );
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
        lab.hook.register(&lab.app, Executor::Socket(fd), None).unwrap();
    }
    assert_eq!(lab.read().nr_executors, 5);
    assert_eq!(lab.read().pid, Some(pids[0]));
    let flow = flows(1);
    for _ in 0..10 {
        servers[0].ask(&flow[0]);
    }
    assert_eq!(lab.read().verdicts, [2; 5]);
    // The one we remember ends; the other's sockets still lead to the group.
    let [first, mut second] = servers;
    first.stop();
    wait_for("its sockets to close", LIMIT, || (lab.read().nr_executors == 2).then_some(()));
    assert!(lab.hook.collect_garbage(&lab.bpffs.path()).unwrap().is_empty());
    let ids = Ids::of(&lab);
    lab.hook.remove(&lab.app).unwrap();
    assert_eq!(ids.left(), 0);
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
    assert_eq!(lab.read().port, Some((Proto::Tcp, PORT)));
    lab.hook.remove(&lab.app).unwrap();
    both.stop_now();
    let single = Server::python("single", 1);
    let error = refused(Target { pid: Some(single.pid()), ..Default::default() });
    assert!(error.to_string().contains("only udp 127.0.0.1:9000 without it"), "{error}");
    let error = refused(Target { pid: Some(i32::MAX), ..Default::default() });
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
}
