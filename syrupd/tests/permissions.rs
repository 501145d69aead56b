//! Who may do what to whose app: real users, through the daemon's socket.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use rustix::process::Uid;
use serde_json::json;
use support::{
    Lab, MAPS, OTHER, OWNER, UNKNOWN, as_user, load, load_for, object, replace, reuseport, source,
};
use syrup_engine::Caller;
use syrup_protocol::Arbiter as _;
use syrup_protocol::call::DeploymentRef;
use syrup_protocol::{Client, Code, LoadRequest, PolicySource, Registration, Result, SetRequest};
use syrup_tests::{Need, require};

const HOOK: &str = "socket-select";

/// A request about the app `mine`; what it answers is dropped.
type Verb = fn(&Client, OwnedFd) -> Result<()>;

/// Each verb that only the owner and root may use, and what it says to them
/// while `mine` is deployed.
const VERBS: &[(&str, Verb, Option<Code>)] = &[
    ("load", |c, _| c.load(&load("mine", object(MAPS))).map(drop), Some(Code::Conflict)),
    ("replace", |c, _| c.replace(&replace("mine", object(MAPS))).map(drop), None),
    // What an object held is not kept.
    ("set", |c, _| c.set(&set_one("mine")).map(drop), Some(Code::Conflict)),
    ("map get", |c, _| c.map_get("mine", "counts", 0).map(drop), None),
    ("map set", |c, _| c.map_set("mine", "counts", 0, 1), None),
    ("map dump", |c, _| c.map_dump("mine", "counts", 0).map(drop), None),
    ("map open", |c, _| c.map_open("mine", "counts").map(drop), None),
    ("policy open", |c, _| c.policy_open("mine", HOOK).map(drop), None),
    (
        "register a socket",
        |c, fd| c.register("mine", None, Registration::Socket(fd), None).map(drop),
        None,
    ),
    (
        "register a thread",
        |c, _| c.register("mine", None, own_thread(), None).map(drop),
        // There is no sched_ext here, so no deployment to register it with.
        Some(Code::NotFound),
    ),
    ("let go of a socket", |c, fd| c.unregister("mine", None, Registration::Socket(fd)), None),
    ("let go of a thread", |c, _| c.unregister("mine", None, own_thread()), Some(Code::NotFound)),
    ("unload", |c, _| c.unload(HOOK, "mine"), None),
];

fn set_one(app: &str) -> SetRequest {
    let (hook, app) = (HOOK.to_owned(), app.to_owned());
    let params = vec![("ONE".to_owned(), "1".to_owned())];
    SetRequest { hook, app, params, target: Default::default() }
}

fn own_thread() -> Registration {
    Registration::Thread { tid: rustix::thread::gettid().as_raw_nonzero().get() }
}

#[test]
fn an_app_is_changed_and_read_by_its_owner_and_root_only() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (socket, second) = (reuseport(9000), reuseport(9000));
    for allowed in [OWNER, 0] {
        as_user(OWNER, || lab.client().load(&load("mine", object(MAPS)))).unwrap();
        lab.register(OWNER, "mine", &socket);
        let before = lab.state();
        for (verb, ask, _) in VERBS {
            for stranger in [OTHER, UNKNOWN] {
                let fd = second.try_clone().unwrap();
                let error = as_user(stranger, || ask(&lab.client(), fd)).unwrap_err();
                assert_eq!(error.code, Code::NotPermitted, "{verb} by {stranger}: {error}");
                assert!(error.message.contains("'mine' belongs to user 65534"), "{error}");
                assert_eq!(lab.state(), before, "{verb} by {stranger} changed something");
            }
        }
        for (verb, ask, refused) in VERBS {
            let fd = second.try_clone().unwrap();
            let said = as_user(allowed, || ask(&lab.client(), fd));
            assert_eq!(said.err().map(|error| error.code), *refused, "{verb} by {allowed}");
        }
        assert!(lab.client().list().unwrap().is_empty());
    }
}

/// Reading waits for nobody, so a name that nobody has may be somebody's a moment later.
#[test]
fn whoever_asks_while_an_app_comes_and_goes_gets_nothing_of_it() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let policy = object(MAPS);
    let as_caller = |uid| lab.engine().as_caller(Caller { uid, pid: 0 });
    let over = AtomicBool::new(false);
    let opened = std::thread::scope(|scope| {
        let ask = || {
            let stranger = as_caller(OTHER);
            let mut opened = 0;
            while !over.load(Ordering::Relaxed) {
                opened += usize::from(stranger.map_open("mine", "counts").is_ok());
                opened += usize::from(stranger.policy_open("mine", HOOK).is_ok());
            }
            opened
        };
        let strangers = [scope.spawn(ask), scope.spawn(ask)];
        let owner = as_caller(OWNER);
        for _ in 0..100 {
            owner.load(&load("mine", policy.clone())).unwrap();
            owner.map_open("mine", "counts").unwrap();
            owner.unload(HOOK, "mine").unwrap();
        }
        over.store(true, Ordering::Relaxed);
        strangers.map(|stranger| stranger.join().unwrap())
    });
    assert_eq!(opened, [0, 0]);
}

/// The verifier allows root more.
#[test]
fn a_users_policy_gives_no_kernel_memory_away() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let (address, left) = (
        "({ __u64 *to = syrup_map_lookup(&told, 0); if (to) *to = (__u64)s; 0; })",
        "({ __u64 x; asm volatile(\"%0 = *(u64 *)(r10 - 400)\" : \"=r\"(x)); (int)(x & 1); })",
    );
    let policy = |verdict| object(&source("SYRUP_MAP(told, 1);", verdict));
    for (verdict, says) in [(address, "leaks addr into map"), (left, "invalid read from stack")] {
        let ask = || lab.client().load(&load("mine", policy(verdict)));
        let refused = as_user(OWNER, ask).unwrap_err();
        assert_eq!(refused.code, Code::VerifierRejected, "{refused}");
        assert!(refused.to_string().contains(says), "{says}: {refused}");
        // By root for a user it is the user's.
        let for_user = LoadRequest { owner: Some(OWNER), ..load("mine", policy(verdict)) };
        let refused = lab.client().load(&for_user).unwrap_err();
        assert!(refused.to_string().contains(says), "{says}: {refused}");
        lab.client().load(&load("roots", policy(verdict))).unwrap();
        lab.client().unload(HOOK, "roots").unwrap();
    }
    // What ships is for everybody, and root is root again afterwards.
    for shipped in lab
        .client()
        .policies()
        .unwrap()
        .into_iter()
        .filter(|shipped| shipped.hooks.iter().any(|hook| hook == HOOK))
    {
        let policy = PolicySource::Builtin { name: shipped.name };
        as_user(OWNER, || lab.client().load(&load("mine", policy))).unwrap();
        lab.client().unload(HOOK, "mine").unwrap();
    }
}

#[test]
fn what_is_deployed_is_no_secret() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    as_user(OWNER, || lab.client().load(&load("mine", object(MAPS)))).unwrap();
    for uid in [OWNER, OTHER, UNKNOWN, 0] {
        let (list, shown) =
            as_user(uid, || (lab.client().list().unwrap(), lab.client().show("mine").unwrap()));
        assert_eq!((list.len(), list[0].app.as_str(), list[0].uid), (1, "mine", OWNER));
        assert_eq!((shown.uid, shown.maps.len()), (OWNER, 1));
        as_user(uid, || lab.client().hooks().and(lab.client().policies())).unwrap();
    }
}

#[test]
fn unload_all_takes_what_is_the_callers() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let apps = [(OWNER, "mine"), (OTHER, "theirs"), (0, "roots")];
    for (uid, app) in apps {
        as_user(uid, || lab.client().load(&load(app, object(MAPS)))).unwrap();
    }
    let left = || -> Vec<String> {
        lab.client().list().unwrap().into_iter().map(|found| found.app).collect()
    };
    assert_eq!(as_user(UNKNOWN, || lab.client().unload_all()).unwrap().len(), 0);
    assert_eq!(left(), ["mine", "roots", "theirs"]);
    let gone = as_user(OTHER, || lab.client().unload_all()).unwrap();
    assert_eq!(gone, [DeploymentRef { app: "theirs".to_owned(), hook: HOOK.to_owned() }]);
    assert_eq!(left(), ["mine", "roots"]);
    assert_eq!(lab.client().unload_all().unwrap().len(), 2);
    assert!(!lab.bpffs().exists(), "root's leaves no folder");
}

#[test]
fn ownership_lasts_as_long_as_the_deployment_whoever_replaces_the_policy() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    as_user(OWNER, || lab.client().load(&load("mine", object(MAPS)))).unwrap();
    let more = source(
        "SYRUP_MAP(counts, 4);\nSYRUP_MAP(more, 4);",
        "syrup_map_lookup(&more, 0) && syrup_map_lookup(&counts, 0)",
    );
    assert_eq!(lab.client().replace(&replace("mine", object(&more))).unwrap().uid, OWNER);
    // A Map that root's policy brought is the owner's all the same.
    assert_eq!(lab.owner_and_mode("mine/maps/more"), (OWNER, 0o600));
    as_user(OWNER, || lab.client().map_set("mine", "more", 1, 7)).unwrap();
    as_user(OWNER, || lab.client().unload(HOOK, "mine")).unwrap();

    // The name is free again, for anybody.
    let error = as_user(OTHER, || lab.client().unload(HOOK, "mine")).unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
    as_user(OTHER, || lab.client().load(&load("mine", object(MAPS)))).unwrap();
    let error = as_user(OWNER, || lab.client().unload(HOOK, "mine")).unwrap_err();
    assert_eq!(error.code, Code::NotPermitted, "{error}");
}

#[test]
fn root_deploys_for_a_user_whose_it_is_then() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let of = |owner: u32| LoadRequest { owner: Some(owner), ..load("mine", object(MAPS)) };
    // Nobody else may, whatever there is; saying who one is anyway is no claim.
    let error = as_user(OTHER, || lab.client().load(&of(OWNER))).unwrap_err();
    assert_eq!(error.code, Code::NotPermitted, "{error}");
    assert!(error.message.contains("only root may deploy for another user"), "{error}");
    assert!(!lab.bpffs().exists());
    as_user(OTHER, || lab.client().load(&of(OTHER))).unwrap();
    as_user(OTHER, || lab.client().unload(HOOK, "mine")).unwrap();

    assert_eq!(lab.client().load(&of(OWNER)).unwrap().uid, OWNER);
    assert_eq!(lab.owner_and_mode("mine/maps/counts"), (OWNER, 0o600));
    let other = as_user(OTHER, || lab.client().replace(&replace("mine", object(MAPS))));
    assert_eq!(other.unwrap_err().code, Code::NotPermitted);
    as_user(OWNER, || -> Result<()> {
        lab.client().map_set("mine", "counts", 1, 7)?;
        lab.client().replace(&replace("mine", object(MAPS)))?;
        let socket = Registration::Socket(reuseport(9000));
        lab.client().register("mine", None, socket, None).map(drop)
    })
    .unwrap();

    // Applied again it is the same; an app has one owner.
    let apply = |owner| LoadRequest { or_replace: true, ..of(owner) };
    assert_eq!(lab.client().load(&apply(OWNER)).unwrap().generation, 2);
    let error = lab.client().load(&apply(OTHER)).unwrap_err();
    assert_eq!(error.code, Code::Conflict, "{error}");
    assert!(error.message.contains("'mine' belongs to user 65534"), "{error}");
    // Root without a word leaves it whose it is.
    let apply = LoadRequest { owner: None, ..apply(0) };
    assert_eq!(lab.client().load(&apply).unwrap().uid, OWNER);
    as_user(OWNER, || lab.client().unload(HOOK, "mine")).unwrap();
    assert!(!lab.bpffs().exists());
    // chown(2) would leave the owner as it is.
    let error = lab.client().load(&of(u32::MAX)).unwrap_err();
    assert_eq!(error.code, Code::Usage, "{error}");
}

#[test]
fn pins_have_the_modes_that_keep_strangers_out() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    as_user(OWNER, || lab.client().load(&load("mine", object(MAPS)))).unwrap();
    for folder in ["", "mine", "mine/maps"] {
        assert_eq!(lab.owner_and_mode(folder), (0, 0o711), "{folder}");
    }
    assert_eq!(lab.owner_and_mode("mine/maps/counts"), (OWNER, 0o600));
    // What the hook pins is root's: an owner with a PROG_ARRAY could put any
    // program into it.
    for entry in std::fs::read_dir(lab.bpffs().join("mine/socket-select")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (uid, mode) = lab.owner_and_mode(&format!("mine/socket-select/{name}"));
        assert_eq!((uid, mode & 0o077), (0, 0), "{name}: {mode:o}");
    }
}

#[test]
fn an_ordinary_user_brings_no_source_no_port_and_no_process() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let c = || PolicySource::Source { file_name: "p.c".to_owned(), text: source("", "0") };
    let requests = [
        ("source", load("mine", c())),
        ("a port", load_for(&[("port", json!([9000]))], load("mine", object(MAPS)))),
        ("a process", load_for(&[("pid", json!(std::process::id()))], load("mine", object(MAPS)))),
    ];
    for (what, request) in &requests {
        for uid in [OWNER, UNKNOWN] {
            let error = as_user(uid, || lab.client().load(request)).unwrap_err();
            assert_eq!(error.code, Code::NotPermitted, "{what} by {uid}: {error}");
            assert!(!lab.bpffs().exists(), "{what} by {uid} left something");
        }
    }
    as_user(OWNER, || lab.client().load(&load("mine", object(MAPS)))).unwrap();
    let before = lab.state();
    let error = as_user(OWNER, || lab.client().replace(&replace("mine", c()))).unwrap_err();
    assert_eq!(error.code, Code::NotPermitted, "{error}");
    assert_eq!(lab.state(), before);
    // Root may do all three.
    lab.client().unload_all().unwrap();
    lab.client().load(&requests[0].1).unwrap();
    lab.client().replace(&replace("mine", c())).unwrap();
    lab.client().unload_all().unwrap();
    let _socket = reuseport(9000);
    for (what, request) in &requests[1..] {
        lab.client().load(request).unwrap_or_else(|error| panic!("{what}: {error}"));
        lab.client().unload_all().unwrap();
    }
}

#[test]
fn a_thread_is_scheduled_by_its_own_user_and_root_only() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    as_user(OWNER, || lab.client().load(&load("mine", object(MAPS)))).unwrap();
    let roots = std::process::id() as i32;
    let register = |uid: u32, tid: Option<i32>| {
        as_user(uid, || {
            let thread = tid.map_or_else(own_thread, |tid| Registration::Thread { tid });
            lab.client().register("mine", None, thread, None).unwrap_err()
        })
    };
    let error = register(OWNER, Some(roots));
    assert_eq!(error.code, Code::NotPermitted, "{error}");
    assert!(error.message.contains("belongs to user 0"), "{error}");
    // Past the permission there is no deployment for it here.
    for (uid, tid) in [(OWNER, None), (0, None), (0, Some(roots))] {
        let error = register(uid, tid);
        assert_eq!(error.code, Code::NotFound, "{uid}: {error}");
        assert!(error.message.contains("no policy at scx-syrup"), "{error}");
    }
    let error = register(0, Some(i32::MAX));
    assert!(error.message.contains("there is no thread"), "{error}");
}

#[test]
fn a_threads_user_is_the_one_whose_rights_it_has() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    as_user(OWNER, || lab.client().load(&load("mine", object(MAPS)))).unwrap();
    // A set-user-ID program of root's that OWNER started; a server of root's that
    // works for OWNER at the moment. Their saved user is the real one.
    for (real, effective) in [(OWNER, 0), (0, OWNER)] {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let [user, rights] = [real, effective].map(Uid::from_raw);
            rustix::thread::set_thread_res_uid(user, rights, user).unwrap();
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            ended.recv().unwrap_err();
        });
        let tid = told.recv().unwrap();
        let error = as_user(OWNER, || {
            lab.client().register("mine", None, Registration::Thread { tid }, None).unwrap_err()
        });
        // Past the permission there is no deployment for it here.
        let expected = if effective == OWNER { Code::NotFound } else { Code::NotPermitted };
        assert_eq!(error.code, expected, "{real}, {effective}: {error}");
        drop(end);
        thread.join().unwrap();
    }
}

#[test]
fn whoever_the_socket_does_not_let_in_is_told_whom_to_ask_for_what() {
    use std::os::unix::fs::PermissionsExt as _;
    if !require(&[Need::Root]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (folder_mode, socket_mode, says) in [
        (0o700, 0o660, "chmod o+x"),
        (0o755, 0o660, "usermod -aG 0 USER"),
        (0o755, 0o600, "groupadd"),
    ] {
        for (path, mode) in [(folder.path(), folder_mode), (socket.as_path(), socket_mode)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let error = as_user(OTHER, || Client::connect(&socket)).unwrap_err();
        assert_eq!(error.code, Code::NotPermitted, "{error}");
        assert!(error.advice.as_deref().unwrap().contains(says), "{error:?}");
    }
}
