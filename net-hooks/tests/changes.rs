//! What tells that the sockets of a server have changed, on a kernel that can tell.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use support::*;
use syrup_engine::Engine;
use syrup_hook::{Deploy as _, Hook as _};
use syrup_tests::{Need, own_network, require, wait_for};

/// Groups of the whole machine are counted: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn what_happens_to_groups_is_counted_wherever_they_are() {
    if !require(&[Need::Root]) {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let changes = lab.hook.changes(Path::new("")).unwrap();
    let before = std::cell::Cell::new(0);
    let grown = || {
        let now = changes.count().unwrap();
        now - before.replace(now)
    };
    assert_eq!(grown(), 0);
    let sockets = udp_sockets(3);
    assert_eq!(grown(), 3, "the first of a group, and two others");
    drop(sockets);
    assert_eq!(grown(), 3, "they are closed");
    let sockets = listeners(2);
    assert_eq!(grown(), 2);
    drop(sockets);
    assert!(grown() >= 2, "each stops to listen, and leaves");
    let elsewhere = std::thread::spawn(|| {
        own_network();
        udp_sockets(2)
    });
    drop(elsewhere.join().unwrap());
    assert_eq!(grown(), 4, "in another network namespace");
    drop(flows(4));
    assert_eq!(grown(), 0, "sockets without a group");
}

#[test]
fn a_watch_is_quiet_until_a_server_opens_or_closes_sockets() {
    if !require(&[Need::Root]) {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let root = lab.bpffs.path().join("pins");
    let app = app(&root, "demo");
    let executors = || lab.hook.read(&app).unwrap().unwrap().executors;
    let first = udp_sockets(2);
    lab.hook.deploy(&app, &builtin("round-robin"), &Lab::target()).unwrap();
    let engine = Engine::new(root.clone()).unwrap();
    let mut watch = engine.watch();
    // Two questions of a watch that has seen nothing yet, and two after what the first changed.
    wait_for("nothing to be new", LIMIT, || (!watch.has_news()).then_some(()));
    assert!(!watch.has_news());
    let more = udp_sockets(2);
    assert!(watch.has_news());
    let changed = engine.follow().unwrap();
    assert_eq!(changed, [("demo".to_owned(), "socket-select")]);
    assert_eq!(executors(), 4);
    wait_for("nothing to be new", LIMIT, || (!watch.has_news()).then_some(()));
    drop(first);
    assert!(watch.has_news());
    assert_eq!(engine.follow().unwrap().len(), 1);
    assert_eq!(executors(), 2);
    drop(more);
}
