//! The process `syrupd`: how it starts and how it ends.
#![allow(clippy::unwrap_used)]

use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use syrup_tests::{Ctl, Need, own_network, require, wait_for};

#[test]
fn it_says_when_it_is_ready_and_a_stop_leaves_what_is_deployed() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let notify = ctl.socket().with_file_name("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let said = || {
        let mut buffer = [0; 64];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let start = || {
        let mut command = ctl.command("syrupd");
        command.env("NOTIFY_SOCKET", &notify).stderr(Stdio::null()).spawn().unwrap()
    };

    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = start();
        assert_eq!(said(), "READY=1");
        UnixStream::connect(ctl.socket()).unwrap();
        if signal == Signal::TERM {
            ctl.run(&["load", "socket-select", "--app", "web", "--policy", "round-robin"]).ok();
        }
        // The first answers, so the second must not start.
        let second = ctl.command("syrupd").output().unwrap();
        assert_eq!(second.status.code(), Some(7), "{second:?}");
        assert!(String::from_utf8_lossy(&second.stderr).contains("already"));

        kill_process(Pid::from_child(&daemon), signal).unwrap();
        assert_eq!(said(), "STOPPING=1");
        let status = wait_for("its end", Duration::from_secs(20), || daemon.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
        assert!(!ctl.socket().exists());
        assert_eq!(ctl.deployment("web", "socket-select")["policy"], "round-robin");
    }
}

#[test]
fn a_daemon_that_was_killed_does_not_keep_the_next_from_starting() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    for _ in 0..3 {
        let daemon = ctl.daemon();
        kill_process(Pid::from_raw(daemon.pid() as i32).unwrap(), Signal::KILL).unwrap();
        wait_for("its end", Duration::from_secs(20), || {
            UnixStream::connect(ctl.socket()).is_err().then_some(())
        });
        assert!(ctl.socket().exists(), "killed, it cannot clean up");
    }
    let _last = ctl.daemon();
    assert_eq!(ctl.json(&["list"])["deployments"].as_array().unwrap().len(), 0);
}
