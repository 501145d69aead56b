//! What is not ours stays as it is: programs that others attached to a reuseport group.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use libbpf_rs::MapType;
use support::*;
use syrup_hook::{Deploy as _, Error, pin};
use syrup_net_hooks::Target;
use syrup_tests::{Need, require};

/// A program for reuseport groups that drops everything.
fn drops() -> OwnedFd {
    let instruction = |code| libbpf_sys::bpf_insn { code, ..Default::default() };
    // r0 = 0 (SK_DROP); exit
    let code = [instruction(0xb7), instruction(0x95)];
    // SAFETY: the strings and `code` live during the call, which is told its length; the
    // fd that it returns is nobody else's.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SK_REUSEPORT,
            c"foreign".as_ptr(),
            c"GPL".as_ptr(),
            code.as_ptr(),
            code.len() as libbpf_sys::size_t,
            std::ptr::null_mut(),
        );
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

fn attach(socket: &UdpSocket, program: &OwnedFd) {
    let value = program.as_raw_fd();
    // SAFETY: value is read for its size during the call.
    let err = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            (&raw const value).cast(),
            4,
        )
    };
    assert_eq!(err, 0, "{}", io::Error::last_os_error());
}

/// Whether a datagram reaches a socket; one that a program drops is gone when send() returns.
fn reaches(sockets: &[UdpSocket]) -> bool {
    for flow in flows(8) {
        // A sender of its own hears of a drop at its next call.
        let _ = flow.send(&request(GET, 0));
    }
    let mut buffer = [0; 64];
    let arrived =
        |socket: &UdpSocket| (0..).take_while(|_| socket.recv(&mut buffer).is_ok()).count();
    sockets.iter().map(arrived).sum::<usize>() > 0
}

#[test]
fn a_registration_that_fails_leaves_a_foreign_program_where_it_is() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    let (program, theirs) = (drops(), pin::create_map(MapType::ReuseportSockarray, "theirs", 8, 4));
    let theirs = theirs.unwrap();
    for (index, socket) in (0u32..).zip(&sockets) {
        let fd = socket.as_raw_fd() as u64;
        theirs.update(&index.to_ne_bytes(), &fd.to_ne_bytes()).unwrap();
    }
    assert!(reaches(&sockets), "nothing is attached yet");
    attach(&sockets[0], &program);
    assert!(!reaches(&sockets));

    lab.hook.deploy(&lab.app, &builtin("round-robin"), &Target::default()).unwrap();
    let refused = lab.register(&sockets[0], None).unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused:?}");
    assert!(!reaches(&sockets), "their program was detached");
    lab.hook.remove(&lab.app).unwrap();
    assert!(!reaches(&sockets), "their program was detached");
}

#[test]
fn a_load_that_fails_leaves_a_foreign_program_where_it_is() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    let (program, theirs) = (drops(), pin::create_map(MapType::ReuseportSockarray, "theirs", 8, 4));
    let fd = sockets[1].as_raw_fd() as u64;
    theirs.as_ref().unwrap().update(&0u32.to_ne_bytes(), &fd.to_ne_bytes()).unwrap();
    attach(&sockets[0], &program);
    let target = Target { pid: Some(std::process::id() as i32), ..Lab::target() };
    // The first socket is taken before the second is refused.
    let refused = lab.hook.deploy(&lab.app, &builtin("round-robin"), &target).unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused:?}");
    assert!(!reaches(&sockets), "their program was detached");
    assert!(!lab.app.dir().join("socket-select").exists());
    drop(theirs);
}

#[test]
fn what_has_the_port_after_our_sockets_closed_is_not_detached() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let sockets = udp_sockets(2);
    lab.deploy(&builtin("round-robin"), &sockets);
    drop(sockets);
    // The next server has a program of its own.
    let next = udp_sockets(2);
    let program = drops();
    attach(&next[0], &program);
    lab.hook.remove(&lab.app).unwrap();
    assert!(!reaches(&next), "their program was detached");

    // Nor by a start that finds the deployment's process gone.
    drop(next);
    let mut server = Server::python("group", 2);
    lab.hook.deploy(&lab.app, &builtin("round-robin"), &Target::default()).unwrap();
    for (_, fd) in syrup_hook::process::sockets(server.pid(), |_| true).unwrap() {
        lab.register(fd, None).unwrap();
    }
    server.stop_now();
    let next = udp_sockets(2);
    attach(&next[0], &program);
    let removed = lab.hook.collect_garbage(&lab.bpffs.path()).unwrap();
    assert_eq!(removed, [lab.app.dir().join("socket-select")]);
    assert!(!reaches(&next), "their program was detached");
}

#[test]
fn a_deployment_whose_process_has_ended_makes_room() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    for _ in 0..2 {
        let mut server = Server::python("group", 2);
        let target = Target { pid: Some(server.pid()), ..Default::default() };
        lab.hook.deploy(&lab.app, &builtin("round-robin"), &target).unwrap();
        assert_eq!(lab.read().executors, 2);
        assert!(!lab.hook.has_ended(&lab.app));
        let error = lab.hook.deploy(&lab.app, &builtin("hash"), &target).unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
        server.stop_now();
        wait_for("its sockets to close", || lab.hook.has_ended(&lab.app).then_some(()));
    }
}

fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    syrup_tests::wait_for(what, LIMIT, condition)
}
