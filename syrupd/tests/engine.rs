//! What the engine keeps: its lock, the Maps, the record, and what it clears away.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde_json::json;
use support::{Lab, MAPS, load, load_for, object, replace, reuseport, send, source};
use syrup_engine::{AsCaller, Engine};
use syrup_hook::record::RECORD;
use syrup_hook::{pin, sys};
use syrup_protocol::{
    Arbiter as _, Code, Facts, LoadRequest, PolicySource, Registration, Result, SetRequest,
};
use syrup_tests::{Need, own_network, require, wait_for};

const HOOK: &str = "socket-select";

fn builtin(name: &str) -> PolicySource {
    PolicySource::Builtin { name: name.to_owned() }
}

fn set(app: &str, params: &[(&str, &str)]) -> SetRequest {
    let param = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    SetRequest {
        hook: HOOK.to_owned(),
        app: app.to_owned(),
        params: params.iter().map(param).collect(),
        target: Facts::new(),
    }
}

fn facts(name: &str, value: impl Into<serde_json::Value>) -> Facts {
    Facts::from([(name.to_owned(), value.into())])
}

fn socket(fd: &OwnedFd) -> Registration {
    Registration::Socket(fd.try_clone().unwrap())
}

#[test]
fn one_changer_at_a_time() {
    if !require(&[Need::Root]) {
        return;
    }
    type Verb = fn(&AsCaller) -> Result<()>;
    const VERBS: &[(&str, Verb)] = &[
        ("load", |root| root.load(&load("other", builtin("hash"))).map(drop)),
        ("replace", |root| root.replace(&replace("mine", builtin("hash"))).map(drop)),
        ("set", |root| root.set(&set("mine", &[("X", "1")])).map(drop)),
        ("unload", |root| root.unload(HOOK, "gone")),
        ("unload all", |root| root.unload_all().map(drop)),
        ("register", |root| root.register("mine", None, socket(&reuseport(9000)), None).map(drop)),
        ("unregister", |root| root.unregister("mine", None, socket(&reuseport(9000)))),
    ];
    let lab = Lab::new();
    for app in ["mine", "gone"] {
        lab.root().load(&load(app, builtin("round-robin"))).unwrap();
    }
    // Another process that changes something.
    let folder = File::open(lab.bpffs()).unwrap();
    rustix::fs::flock(&folder, FlockOperation::LockExclusive).unwrap();
    // Who only looks waits for nobody.
    lab.root().list().unwrap();
    lab.root().show("mine").unwrap();
    lab.root().policy_open("mine", HOOK).unwrap();
    let (lab, done) = (&lab, &AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for (_, ask) in VERBS {
            scope.spawn(move || {
                let _ = ask(&lab.root());
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        scope.spawn(move || {
            lab.engine().recover().unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        });
        // Each of them takes milliseconds; nothing tells that all have come to
        // the lock, so that they are watched for a while.
        let until = Instant::now() + Duration::from_millis(400);
        while Instant::now() < until {
            assert_eq!(done.load(Ordering::SeqCst), 0, "somebody did not wait");
            std::thread::sleep(Duration::from_millis(10));
        }
        rustix::fs::flock(&folder, FlockOperation::Unlock).unwrap();
    });
    assert_eq!(done.load(Ordering::SeqCst), VERBS.len() + 1);
}

#[test]
fn a_lock_whose_folder_comes_and_goes_is_taken_by_one_after_the_other() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    // Each makes the folder, or finds another's, and removes it as it has nothing in it.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let engine = lab.engine();
                (0..1000).for_each(|_| drop(engine.recover().unwrap()));
            });
        }
    });
    assert!(!lab.bpffs().exists());
    // Made by one that died before it was everybody's to search.
    std::fs::DirBuilder::new().mode(0o700).create(lab.bpffs()).unwrap();
    lab.root().load(&load("mine", builtin("hash"))).unwrap();
    assert_eq!(lab.owner_and_mode(""), (0, 0o711));
}

#[test]
fn two_who_load_at_once_get_one_deployment() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    for _ in 0..5 {
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| lab.root().load(&load("mine", object(MAPS))).map(drop)))
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let lost: Vec<Code> = results.into_iter().filter_map(|r| r.err()).map(|e| e.code).collect();
        assert_eq!(lost, [Code::Conflict; 3]);
        assert_eq!(lab.root().list().unwrap().len(), 1);
        lab.root().unload(HOOK, "mine").unwrap();
        assert!(!lab.bpffs().exists());
    }
}

#[test]
fn what_was_deployed_is_told_in_full() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = seconds();
    let request = load_for(&[("port", json!([9000]))], load("web", builtin("round-robin")));
    let told = lab.root().load(&request).unwrap();
    assert_eq!((told.app.as_str(), told.uid, told.hook.as_str()), ("web", 0, HOOK));
    assert_eq!((told.policy.as_str(), told.generation), ("round-robin", 0));
    assert_eq!((told.inputs.as_str(), told.executor.as_str()), ("udp/9000, tcp/9000", "socket"));
    let target = json!({"port": [9000]});
    assert_eq!((json!(told.target), told.executors), (target, 0));
    assert_eq!(told.health.state(), "live");
    let waits = told.health.reason().unwrap();
    assert!(waits.starts_with("it waits for its first socket"), "{waits}");
    assert!((before..=seconds()).contains(&told.deployed_at), "{}", told.deployed_at);
    assert_eq!(told.policy_sha256.len(), 64);
    assert!(told.verdicts.is_empty() && told.counters.values().all(|&n| n == 0));

    let sockets: Vec<OwnedFd> = (0..3).map(|_| reuseport(9000)).collect();
    for (index, fd) in (0..).zip(&sockets) {
        assert_eq!(lab.root().register("web", None, socket(fd), None).unwrap(), index);
    }
    for _ in 0..6 {
        send(9000);
    }
    let read = wait_for("six inputs", Duration::from_secs(10), || {
        let read = lab.root().list().unwrap().remove(0);
        (read.counters["inputs"] == 6).then_some(read)
    });
    assert_eq!((read.executors, &read.target["pid"]), (3, &json!(std::process::id())));
    assert_eq!(read.verdicts, [2, 2, 2]);
    assert_eq!(read.counters["chosen"], 6);
    let others =
        read.counters.iter().filter(|(name, _)| !["inputs", "chosen"].contains(&name.as_str()));
    assert!(others.map(|(_, n)| n).all(|&n| n == 0), "{:?}", read.counters);

    let replaced = lab.root().replace(&replace("web", builtin("hash"))).unwrap();
    assert_eq!((replaced.policy.as_str(), replaced.generation), ("hash", 1));
    assert_ne!(replaced.policy_sha256, read.policy_sha256);
    assert_ne!(replaced.program_id, read.program_id);
    assert_eq!(replaced.counters["inputs"], 6, "counters go on");
    let fd = lab.root().policy_open("web", HOOK).unwrap();
    assert_eq!(sys::program_id(fd.as_fd()).unwrap(), replaced.program_id);
}

#[test]
fn a_hash_tells_objects_apart_and_not_parameters() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    // Compiled once: the compiler notes the folder it worked in.
    let param = object(&source("SYRUP_PARAM(__u32, WHO, 0);", "(__s32)WHO"));
    let mut told = Vec::new();
    for (policy, value) in [(&param, "1"), (&param, "2"), (&object(&source("", "0")), "")] {
        let mut request = load("mine", policy.clone());
        if !value.is_empty() {
            request.params = vec![("WHO".to_owned(), value.to_owned())];
        }
        told.push(lab.root().load(&request).unwrap().policy_sha256);
        lab.root().unload(HOOK, "mine").unwrap();
    }
    assert_eq!(told[0], told[1]);
    assert_ne!(told[0], told[2]);
}

#[test]
fn a_parameter_reaches_the_policy_that_was_loaded_or_put_in_its_place() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let policy = || object(&source("SYRUP_PARAM(__u32, WHO, 0);", "(__s32)WHO"));
    let set = |value: &str| vec![("WHO".to_owned(), value.to_owned())];
    let sockets: Vec<OwnedFd> = (0..3).map(|_| reuseport(9000)).collect();
    lab.root().load(&LoadRequest { params: set("2"), ..load("mine", policy()) }).unwrap();
    for fd in &sockets {
        lab.root().register("mine", None, socket(fd), None).unwrap();
    }
    let chosen = |n: usize| {
        send(9000);
        wait_for("the input", Duration::from_secs(10), || {
            let read = lab.root().list().unwrap().remove(0);
            (read.counters["inputs"] == n as u64).then_some(read.verdicts)
        })
    };
    assert_eq!(chosen(1), [0, 0, 1]);
    let request = syrup_protocol::ReplaceRequest { params: set("1"), ..replace("mine", policy()) };
    lab.root().replace(&request).unwrap();
    assert_eq!(chosen(2), [0, 1, 1]);
    let mut wrong = request;
    wrong.params = vec![("WHOM".to_owned(), "1".to_owned())];
    let error = lab.root().replace(&wrong).unwrap_err();
    assert_eq!(error.code, Code::Usage);
    assert!(error.advice.unwrap().contains("WHO"));
    assert_eq!(chosen(3), [0, 2, 1]);
}

#[test]
fn parameters_of_a_shipped_policy_are_set_while_it_is_live() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let root = lab.root();
    let params = |value: &str| json!({ "NR_SCAN_EXECUTORS": value });
    let before = root.load(&load("mine", builtin("sita"))).unwrap();
    assert!(before.params.is_empty());
    let sockets: Vec<OwnedFd> = (0..3).map(|_| reuseport(9000)).collect();
    for fd in &sockets {
        root.register("mine", None, socket(fd), None).unwrap();
    }
    let told = root.set(&set("mine", &[("NR_SCAN_EXECUTORS", "2")])).unwrap();
    assert_eq!((told.generation, told.executors, json!(told.params)), (1, 3, params("2")));
    assert_eq!(told.policy_sha256, before.policy_sha256);
    assert_ne!(told.program_id, before.program_id);
    for (request, says) in [
        (set("mine", &[("NO_SUCH", "1")]), "no such parameter"),
        (set("mine", &[("NR_SCAN_EXECUTORS", "x")]), "not a number"),
        (set("mine", &[]), "nothing was named"),
        (SetRequest { target: facts("port", vec![9001]), ..set("mine", &[]) }, "--port of a live"),
        (SetRequest { target: facts("weight", 9), ..set("mine", &[]) }, "--weight means nothing"),
    ] {
        let error = root.set(&request).unwrap_err();
        assert_eq!(error.code, Code::Usage, "{error}");
        assert!(error.message.contains(says), "{says}: {error}");
    }
    assert_eq!(root.list().unwrap(), [told]);
    assert_eq!(root.set(&set("none", &[("X", "1")])).unwrap_err().code, Code::NotFound);

    // A replacement has what it names; what a file held is not kept.
    let replaced = root.replace(&replace("mine", builtin("sita"))).unwrap();
    assert!(replaced.params.is_empty());
    let two = "SYRUP_PARAM(__u32, ONE, 0);\nSYRUP_PARAM(__u32, OTHER, 0);";
    let mut own = replace("mine", object(&source(two, "(__s32)(ONE + OTHER)")));
    own.params = vec![("ONE".to_owned(), "1".to_owned())];
    assert_eq!(json!(root.replace(&own).unwrap().params), json!({"ONE": "1"}));
    let error = root.set(&set("mine", &[("OTHER", "2")])).unwrap_err();
    assert_eq!(error.code, Code::Conflict, "{error}");
    let advice = error.advice.unwrap();
    assert!(advice.contains("replace socket-select --app mine"), "{advice}");
    assert!(advice.contains("--set ONE=1 --set OTHER=2"), "{advice}");
    // A file of a shipped policy's name is not that policy.
    let PolicySource::Object { image, .. } = object(&source(two, "(__s32)(ONE + OTHER)")) else {
        panic!("no object");
    };
    let named = PolicySource::Object { file_name: "sita.o".to_owned(), image };
    root.replace(&replace("mine", named)).unwrap();
    let error = root.set(&set("mine", &[("NR_SCAN_EXECUTORS", "2")])).unwrap_err();
    assert_eq!(error.code, Code::Conflict, "{error}");
}

#[test]
fn a_maps_size_has_a_limit_that_is_allowed_itself() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let policy = |entries: u64| {
        let map = format!("SYRUP_MAP(big, {entries});");
        object(&source(&map, "syrup_map_lookup(&big, 0) ? 0 : 1"))
    };
    // 64 MiB.
    lab.root().load(&load("mine", policy(8 << 20))).unwrap();
    assert_eq!(lab.root().show("mine").unwrap().maps[0].entries, 8 << 20);
    lab.root().unload(HOOK, "mine").unwrap();
    for entries in [0, (8 << 20) + 1] {
        let error = lab.root().load(&load("mine", policy(entries))).unwrap_err();
        assert_eq!(error.code, Code::SourceRejected, "{entries}: {error}");
        assert!(!lab.bpffs().exists(), "{entries}: pins are left");
    }
}

#[test]
fn a_maps_keys_end_where_its_entries_do() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let both = source(
        "SYRUP_MAP(counts, 4);\nSYRUP_MAP_OF(small, __u32, 2);",
        "syrup_map_lookup(&counts, 0) && syrup_map_lookup(&small, 0)",
    );
    let root = lab.root();
    root.load(&load("mine", object(&both))).unwrap();
    let maps = root.show("mine").unwrap().maps;
    let told: Vec<_> =
        maps.iter().map(|map| (map.name.as_str(), map.entries, map.value_bytes)).collect();
    assert_eq!(told, [("counts", 4, 8), ("small", 2, 4)]);
    assert_eq!(maps[0].path, lab.bpffs().join("mine/maps/counts").to_str().unwrap());

    root.map_set("mine", "counts", 3, 0x0102).unwrap();
    let entry = root.map_get("mine", "counts", 3).unwrap();
    assert_eq!((entry.key, entry.value), (3, Some(0x0102)));
    assert_eq!(entry.bytes, "0201000000000000");
    for error in [
        root.map_set("mine", "counts", 4, 1).unwrap_err(),
        root.map_get("mine", "counts", 4).unwrap_err(),
    ] {
        assert_eq!(error.code, Code::Usage);
        assert!(error.advice.unwrap().contains("0..3"));
    }
    let dump = root.map_dump("mine", "counts", 0).unwrap();
    assert_eq!(dump.next, None);
    let values: Vec<_> = dump.entries.iter().map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(values, [(0, Some(0)), (1, Some(0)), (2, Some(0)), (3, Some(0x0102))]);

    // Values of another size are read as bytes, and not written.
    let entry = root.map_get("mine", "small", 1).unwrap();
    assert_eq!((entry.value, entry.bytes.as_str()), (None, "00000000"));
    assert_eq!(root.map_set("mine", "small", 1, 1).unwrap_err().code, Code::Usage);

    let unknown = root.map_open("mine", "absent").unwrap_err();
    assert_eq!(unknown.code, Code::NotFound);
    assert!(unknown.advice.unwrap().contains("counts, small"));
    for name in ["../record", "", "a-b"] {
        assert_eq!(root.map_open("mine", name).unwrap_err().code, Code::Usage, "{name}");
    }
}

#[test]
fn replacing_the_policy_keeps_the_maps_and_a_refused_one_leaves_none() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let root = lab.root();
    root.load(&load("mine", object(MAPS))).unwrap();
    root.map_set("mine", "counts", 2, 77).unwrap();
    let id = |name: &str| sys::map_info(root.map_open("mine", name).unwrap().as_fd()).unwrap().id;
    let before = id("counts");
    root.replace(&replace("mine", object(MAPS))).unwrap();
    assert_eq!(id("counts"), before);
    assert_eq!(root.map_get("mine", "counts", 2).unwrap().value, Some(77));

    // A Map of its own and one that does not fit, in either order of names.
    for fresh in ["another", "zebra"] {
        let policy = source(
            &format!("SYRUP_MAP({fresh}, 1);\nSYRUP_MAP(counts, 5);"),
            &format!("syrup_map_lookup(&{fresh}, 0) && syrup_map_lookup(&counts, 0)"),
        );
        let error = root.replace(&replace("mine", object(&policy))).unwrap_err();
        assert_eq!(error.code, Code::Conflict);
        assert!(error.message.contains("4 entries of 8 bytes") && error.message.contains("5 of 8"));
        // And one that fits, with code that the verifier refuses.
        let policy = source(
            &format!("SYRUP_MAP({fresh}, 1);"),
            &format!("syrup_map_lookup(&{fresh}, 0) ? *(__s32 *)(s + 64) : 0"),
        );
        let error = root.replace(&replace("mine", object(&policy))).unwrap_err();
        assert_eq!(error.code, Code::VerifierRejected);
        let maps = root.show("mine").unwrap().maps;
        assert_eq!(maps.iter().map(|map| map.name.as_str()).collect::<Vec<_>>(), ["counts"]);
    }
    // The policy may stop naming it; the app's Map stays for the next.
    root.replace(&replace("mine", builtin("hash"))).unwrap();
    assert_eq!(root.map_get("mine", "counts", 2).unwrap().value, Some(77));
    root.unload(HOOK, "mine").unwrap();
    assert!(!lab.bpffs().exists());
}

#[test]
fn flags_that_mean_nothing_at_a_hook_and_values_out_of_range_are_refused() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let packet = load("mine", builtin("hash"));
    let thread = LoadRequest { hook: "scx-syrup".to_owned(), ..load("mine", builtin("fifo")) };
    let wrong = [
        ("--cpus", load_for(&[("cpus", json!([0]))], packet.clone())),
        ("--weight", load_for(&[("weight", json!(100))], packet.clone())),
        ("--port", load_for(&[("port", json!([1]))], thread.clone())),
        ("--proto", load_for(&[("proto", json!("udp"))], thread.clone())),
        ("--iface", load_for(&[("iface", json!("lo"))], thread.clone())),
        ("--weight", load_for(&[("weight", json!(0))], thread.clone())),
        ("--weight", load_for(&[("weight", json!(10_001))], thread.clone())),
        ("--cpus", load_for(&[("cpus", json!([1, 1]))], thread.clone())),
        ("--pid", load_for(&[("pid", json!(-1))], thread.clone())),
        ("--port", load_for(&[("port", json!([65536]))], packet.clone())),
        ("--port", load_for(&[("port", json!(["80"]))], packet.clone())),
        ("sctp", load_for(&[("proto", json!("sctp"))], packet.clone())),
        ("no-such-hook", LoadRequest { hook: "no-such-hook".to_owned(), ..packet.clone() }),
        ("no app name", LoadRequest { app: "../x".to_owned(), ..packet.clone() }),
        ("no policy 'x'", LoadRequest { policy: builtin("x"), ..packet.clone() }),
    ];
    for (says, request) in wrong {
        let error = lab.root().load(&request).unwrap_err();
        assert_eq!(error.code, Code::Usage, "{says}: {error}");
        assert!(error.message.contains(says), "{says}: {error}");
    }
    // At the edge they are taken: what is missing then is the kernel's part.
    for (app, weight) in [("least", 1), ("most", 10_000)] {
        let request = LoadRequest { app: app.to_owned(), ..thread.clone() };
        let request = load_for(&[("weight", json!(weight))], request);
        if let Err(error) = lab.root().load(&request) {
            assert_eq!(error.code, Code::Unsupported, "{error}");
        }
    }
    lab.root().unload_all().unwrap();
    assert!(!lab.bpffs().exists());
}

#[test]
fn what_is_not_deployed_can_be_neither_changed_nor_read() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let root = lab.root();
    root.load(&load("mine", builtin("hash"))).unwrap();
    let before = lab.state();
    let told = [
        root.replace(&replace("absent", builtin("hash"))).map(drop),
        root.unload(HOOK, "absent"),
        root.unload("scx-syrup", "mine"),
        root.show("absent").map(drop),
        root.map_get("absent", "counts", 0).map(drop),
        root.map_dump("absent", "counts", 0).map(drop),
        root.policy_open("absent", HOOK).map(drop),
        root.register("absent", None, socket(&reuseport(9000)), None).map(drop),
    ];
    for (n, result) in told.into_iter().enumerate() {
        let error = result.unwrap_err();
        assert_eq!(error.code, Code::NotFound, "{n}: {error}");
        assert!(error.advice.is_some(), "{n}: {error}");
    }
    let again = root.load(&load("mine", builtin("round-robin"))).unwrap_err();
    assert_eq!((again.code, again.advice.is_some()), (Code::Conflict, true), "{again}");
    assert_eq!(lab.state(), before);
}

#[test]
fn a_port_of_one_protocol_is_not_the_others() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let root = lab.root();
    let on = |app: &str, proto: &str, port: u16| {
        load_for(&[("port", json!([port])), ("proto", json!([proto]))], load(app, builtin("hash")))
    };
    root.load(&on("a", "udp", 9000)).unwrap();
    let error = root.load(&on("b", "udp", 9000)).unwrap_err();
    assert_eq!(error.code, Code::Conflict);
    assert!(error.message.contains("udp port 9000 belongs to app 'a'"), "{error}");
    for (app, proto, port) in [("c", "tcp", 9000), ("d", "udp", 9001)] {
        let told = root.load(&on(app, proto, port)).unwrap();
        assert_eq!(told.inputs, format!("{proto}/{port}"));
    }
    // A lease ends with the deployment.
    root.unload(HOOK, "a").unwrap();
    root.load(&on("b", "udp", 9000)).unwrap();
    // The same port of another network is another port.
    let engine = lab.engine();
    std::thread::spawn(move || {
        own_network();
        engine.as_caller(syrup_engine::Caller::ROOT).load(&on("e", "udp", 9000)).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(root.list().unwrap().len(), 4);
}

#[test]
fn a_start_clears_what_interrupted_calls_left_and_nothing_else() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    lab.root().load(&load("mine", object(MAPS))).unwrap();
    lab.root().map_set("mine", "counts", 1, 5).unwrap();
    let before = lab.pins();
    // A load that died before its deployment was in place.
    let (dead, half) = (lab.bpffs().join("dead"), lab.bpffs().join("half"));
    std::fs::create_dir(&half).unwrap();
    std::fs::create_dir(half.join("maps")).unwrap();
    let map = pin::create_array("counts", 8, 1).unwrap();
    sys::obj_pin(map.as_fd(), &half.join("maps/counts")).unwrap();
    // One while it was taken down, with a socket, and one that died before it attached.
    let socket = reuseport(9000);
    lab.root().load(&load("dead", builtin("hash"))).unwrap();
    lab.register(0, "dead", &socket);
    let aside = pin::put_aside(&dead.join(HOOK)).unwrap();
    std::fs::create_dir(lab.bpffs().join("mine/_new_socket-select")).unwrap();
    let found = lab.engine().recover().unwrap();
    assert_eq!(found.adopted.len(), 1);
    assert_eq!((found.adopted[0].app.as_str(), found.adopted[0].policy.as_str()), ("mine", "p"));
    let mut removed = found.removed;
    removed.sort();
    assert_eq!(removed, [dead, aside, half, lab.bpffs().join("mine/_new_socket-select")]);
    assert_eq!(lab.pins(), before);
    assert_eq!(lab.root().map_get("mine", "counts", 1).unwrap().value, Some(5));
    let again = lab.engine().recover().unwrap();
    assert!(again.removed.is_empty(), "{again:?}");
    // A socket is in one map at a time.
    assert_eq!(lab.register(0, "mine", &socket), 0);

    lab.root().unload_all().unwrap();
    std::fs::create_dir(lab.bpffs()).unwrap();
    lab.engine().recover().unwrap();
    assert!(!lab.bpffs().exists(), "an empty folder of ours goes too");
}

#[test]
fn a_deployment_that_cannot_be_read_is_told_of_and_the_others_work() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let root = lab.root();
    for app in ["broken", "mine"] {
        root.load(&load(app, builtin("hash"))).unwrap();
    }
    // Another version's, or another's.
    let dir = lab.bpffs().join("broken/socket-select");
    std::fs::remove_file(dir.join(RECORD)).unwrap();
    let map = pin::create_array("syrup_record", 288, 1).unwrap();
    map.update(&0u32.to_ne_bytes(), &[3; 288]).unwrap();
    sys::obj_pin(map.as_fd(), &dir.join(RECORD)).unwrap();

    let found = lab.engine().recover().unwrap();
    assert_eq!((found.adopted.len(), found.removed.len()), (2, 0));
    for list in [root.list().unwrap(), found.adopted] {
        let told: Vec<_> = list.iter().map(|d| (d.app.as_str(), d.health.state())).collect();
        assert_eq!(told, [("broken", "broken"), ("mine", "live")]);
        let reason = list[0].health.reason().unwrap();
        assert!(reason.contains("broken/socket-select/record: not this version's"), "{reason}");
    }
    root.show("broken").unwrap();
    root.replace(&replace("mine", builtin("round-robin"))).unwrap();
    root.replace(&replace("broken", builtin("hash"))).unwrap_err();
    root.unload(HOOK, "broken").unwrap();
    assert_eq!(root.list().unwrap().len(), 1);
    root.load(&load("broken", builtin("hash"))).unwrap();
    root.unload_all().unwrap();
    assert!(!lab.bpffs().exists());
}

#[test]
fn a_root_of_pins_that_others_could_have_filled_is_refused() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let root = lab.root();
    for (uid, mode) in [(65534, 0o755), (0, 0o777), (0, 0o775)] {
        std::fs::create_dir(lab.bpffs()).unwrap();
        std::os::unix::fs::chown(lab.bpffs(), Some(uid), None).unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(lab.bpffs(), permissions).unwrap();
        for refused in [
            root.load(&load("mine", builtin("hash"))).map(drop),
            root.list().map(drop),
            root.unload_all().map(drop),
            lab.engine().recover().map(drop),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.code, Code::Conflict, "{error}");
            assert!(error.message.contains("others could have put pins there"), "{error}");
        }
        std::fs::remove_dir(lab.bpffs()).unwrap();
    }
}

#[test]
fn maps_that_a_dead_load_left_are_not_for_whoever_takes_the_name_next() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    lab.root().load(&load("keeps", builtin("hash"))).unwrap();
    let maps = lab.bpffs().join("mine/maps");
    std::fs::create_dir_all(&maps).unwrap();
    let map = pin::create_array("counts", 8, 4).unwrap();
    map.update(&1u32.to_ne_bytes(), &4242u64.to_ne_bytes()).unwrap();
    sys::obj_pin(map.as_fd(), &maps.join("counts")).unwrap();
    lab.root().load(&load("mine", object(MAPS))).unwrap();
    assert_eq!(lab.root().map_get("mine", "counts", 1).unwrap().value, Some(0));
}

#[test]
fn an_engine_wants_a_bpf_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let error = Engine::new(dir.path().join("pins")).unwrap_err();
    assert_eq!(error.code, Code::Unsupported);
    assert!(error.message.contains("not a BPF file system"), "{error}");
    let error = Engine::new("/nowhere/at/all".into()).unwrap_err();
    assert_eq!(error.code, Code::Unsupported);
}
