//! What dead calls and broken pins leave: who clears it, and whom it hinders.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use serde_json::json;
use support::{Lab, MAPS, OWNER, as_user, load, load_for, object, reuseport};
use syrup_hook::record::Record;
use syrup_hook::{pin, sys};
use syrup_protocol::{Arbiter as _, Code, PolicySource};
use syrup_tests::{Need, require};

const HOOK: &str = "socket-select";

fn hash() -> PolicySource {
    PolicySource::Builtin { name: "hash".to_owned() }
}

fn deploy(lab: &Lab, apps: &[&str]) {
    for app in apps {
        lab.root().load(&load(app, hash())).unwrap();
    }
}

fn apps(lab: &Lab) -> Vec<String> {
    lab.root().list().unwrap().into_iter().map(|found| found.app).collect()
}

/// As a call leaves it that dies while it takes the deployment down.
fn put_aside(lab: &Lab, app: &str) -> PathBuf {
    pin::put_aside(&lab.bpffs().join(app).join(HOOK)).unwrap()
}

/// Pins a plain array.
fn pin_array(path: PathBuf) {
    let _ = fs::remove_file(&path);
    sys::obj_pin(pin::create_array("test", 4, 4).unwrap().as_fd(), &path).unwrap();
}

/// Whether the socket's group has a program. The kernel tells it only to who detaches it.
fn had_dispatcher(socket: &OwnedFd) -> bool {
    let none = 0u32;
    // SAFETY: the option takes a number of four bytes, which lives for the call.
    let err = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            (&raw const none).cast(),
            4,
        )
    };
    err == 0
}

#[test]
fn what_is_broken_keeps_nobody_from_the_rest() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    deploy(&lab, &["a", "b", "c", "d"]);
    // What its slot is in is no PROG_ARRAY, so that it cannot be emptied.
    pin_array(lab.bpffs().join("b").join(HOOK).join("policies"));
    // A record whose hook's own part is another version's.
    let folder = lab.bpffs().join("c").join(HOOK);
    let record = Record::read(&folder).unwrap().unwrap();
    Record { state: json!("later"), ..record }.write(&folder).unwrap();

    let found = lab.engine().recover().unwrap();
    assert_eq!((found.adopted.len(), found.removed.len()), (4, 0));
    let aside = put_aside(&lab, "b");
    let found = lab.engine().recover().unwrap();
    assert_eq!((found.adopted.len(), found.removed.len()), (3, 0));
    deploy(&lab, &["e"]);
    assert_eq!(apps(&lab), ["a", "c", "d", "e"]);

    fs::rename(&aside, lab.bpffs().join("b").join(HOOK)).unwrap();
    let error = lab.root().unload_all().unwrap_err();
    assert!(error.message.starts_with("app 'b' stays at socket-select: cannot"), "{error}");
    assert_eq!(apps(&lab), ["b"]);
    put_aside(&lab, "b");
    lab.root().unload_all().unwrap_err();
    assert_eq!(apps(&lab), Vec::<String>::new());
    fs::remove_dir_all(lab.bpffs().join("b")).unwrap();
    lab.root().unload_all().unwrap();
    assert!(!lab.bpffs().exists());
}

#[test]
fn unloading_all_clears_what_a_start_would() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let socket = reuseport(9000);
    for app in ["dead", "mine"] {
        lab.root().load(&load(app, object(MAPS))).unwrap();
    }
    lab.register(0, "dead", &socket);
    put_aside(&lab, "dead");
    // A load that died before it came to the hook.
    fs::create_dir_all(lab.bpffs().join("half/maps")).unwrap();
    pin_array(lab.bpffs().join("half/maps/counts"));
    let gone = lab.root().unload_all().unwrap();
    let gone: Vec<_> = gone.iter().map(|it| (it.app.as_str(), it.hook.as_str())).collect();
    assert_eq!(gone, [("mine", HOOK)]);
    assert!(!lab.bpffs().exists(), "{:?}", lab.pins());
    assert!(!had_dispatcher(&socket));
}

#[test]
fn an_unload_that_died_can_be_done_again() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let socket = reuseport(9000);
    let unload = || as_user(OWNER, || lab.client().unload(HOOK, "mine"));
    as_user(OWNER, || lab.client().load(&load("mine", object(MAPS)))).unwrap();
    lab.register(OWNER, "mine", &socket);
    put_aside(&lab, "mine");
    unload().unwrap();
    assert!(!had_dispatcher(&socket));
    assert!(!lab.bpffs().exists(), "{:?}", lab.pins());
    assert_eq!(unload().unwrap_err().code, Code::NotFound);
}

#[test]
fn what_lies_aside_is_detached_before_the_folder_of_its_app_goes() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let socket = reuseport(9000);
    let mine = lab.bpffs().join("mine");
    deploy(&lab, &["keeps"]);

    // With the last deployment, at another hook.
    lab.root().load(&load("mine", object(MAPS))).unwrap();
    lab.register(0, "mine", &socket);
    put_aside(&lab, "mine");
    fs::create_dir(mine.join("scx-syrup")).unwrap();
    lab.root().unload("scx-syrup", "mine").unwrap();
    assert!(!mine.exists());
    assert!(!had_dispatcher(&socket));

    // With a load that is refused.
    lab.root().load(&load("mine", object(MAPS))).unwrap();
    lab.register(0, "mine", &socket);
    put_aside(&lab, "mine");
    let nobodys = load_for(&[("pid", json!(i32::MAX))], load("mine", hash()));
    lab.root().load(&nobodys).unwrap_err();
    assert!(!mine.exists());
    assert!(!had_dispatcher(&socket));
}

#[test]
fn an_unload_that_is_done_is_no_failure_for_what_is_left_elsewhere() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    deploy(&lab, &["keeps"]);
    // All that could be left of a root scheduler, and is none.
    pin_array(lab.bpffs().join("_new__scx"));
    let mine = lab.bpffs().join("mine");
    fs::create_dir_all(mine.join("scx-syrup")).unwrap();
    fs::create_dir(mine.join("maps")).unwrap();
    pin_array(mine.join("maps/counts"));
    lab.root().unload("scx-syrup", "mine").unwrap();
    assert!(!mine.exists());
    assert_eq!(lab.engine().recover().unwrap().adopted.len(), 1);
    lab.root().unload_all().unwrap_err();
    fs::remove_file(lab.bpffs().join("_new__scx")).unwrap();
    lab.root().unload_all().unwrap();
    assert!(!lab.bpffs().exists(), "{:?}", lab.pins());
}
