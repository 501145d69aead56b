//! Maps from Rust: typed, mapped, and by way of the daemon.

#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use syrup::{App, Code, Error, Map};
use syrup_tests::{Ctl, Need, own_network, require};

const ENTRIES: usize = 4096;

const POLICY: &str = "#include <syrup/packet.h>\n\
    struct pair { __u64 a; __u32 b; __u32 c; __u32 d; };\n\
    SYRUP_MAP(words, 4096);\n\
    SYRUP_MAP_OF(pairs, struct pair, 8);\n\
    struct triple { __u32 a; __u32 b; __u32 c; };\n\
    SYRUP_MAP_OF(triples, struct triple, 8);\n\
    SYRUP_MAP_OF(halves, __u32, 8);\n\
    __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\
    \treturn syrup_map_lookup(&words, 0) && syrup_map_lookup(&pairs, 0) &&\n\
    \t       syrup_map_lookup(&triples, 0) && syrup_map_lookup(&halves, 0) ? 0 : SYRUP_PASS;\n}\n";

/// `struct pair` of the policy: 20 bytes, rounded up to 24 by its alignment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pair {
    a: u64,
    b: u32,
    c: u32,
    d: u32,
    _pad: u32,
}

// SAFETY: plain integers without padding.
unsafe impl syrup::Pod for Pair {}

fn deployed(ctl: &Ctl) -> App {
    let app = App::named("maps").at_socket(ctl.socket());
    let policy = ctl.file("maps.c", POLICY);
    let deployment = app.deploy_policy(policy, "socket-select").unwrap();
    assert_eq!(deployment.hook(), "socket-select");
    app
}

#[test]
fn a_map_is_read_and_written_typed_and_mapped() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let _daemon = ctl.daemon();
    let app = deployed(&ctl);

    let words = app.open_map("words").unwrap();
    assert_eq!((words.entries() as usize, words.value_bytes()), (ENTRIES, 8));
    words.update(7, 11u64).unwrap();
    assert_eq!(words.lookup::<u64>(7).unwrap(), 11);
    let out_of_range = words.lookup::<u64>(ENTRIES as u32).unwrap_err();
    assert_eq!(out_of_range.errno(), libc_enoent(), "{out_of_range}");
    assert!(matches!(words.lookup::<u32>(7), Err(Error::Map { .. })), "of another size");

    let mapped = words.mmap().unwrap();
    assert_eq!(mapped.len(), ENTRIES);
    assert_eq!(mapped.load(7), 11);
    mapped.store(ENTRIES - 1, 5);
    assert_eq!(mapped.fetch_add(ENTRIES - 1, 2), 5);
    assert_eq!(words.lookup::<u64>(ENTRIES as u32 - 1).unwrap(), 7);

    let pairs = app.open_map("pairs").unwrap();
    let pair = Pair { a: 1, b: 2, c: 3, d: 4, _pad: 0 };
    pairs.update(5, pair).unwrap();
    assert_eq!(pairs.lookup::<Pair>(5).unwrap(), pair);
    let mapped = pairs.mmap().unwrap();
    assert_eq!(mapped.words_per_entry(), 3);
    assert_eq!(mapped.entry(5)[0].load(Relaxed), 1);

    // Root reaches the pin without the daemon.
    let pin = ctl.bpffs().join("maps/maps/words");
    assert_eq!(Map::open(pin).unwrap().lookup::<u64>(7).unwrap(), 11);
}

#[test]
fn an_entry_begins_at_a_word_of_its_own_whatever_its_size() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let _daemon = ctl.daemon();
    let app = deployed(&ctl);

    // The kernel rounds 12 bytes up to two words, and 4 to one.
    let triples = app.open_map("triples").unwrap();
    let mapped = triples.mmap().unwrap();
    assert_eq!((triples.value_bytes(), mapped.words_per_entry(), mapped.len()), (12, 2, 16));
    let halves = app.open_map("halves").unwrap();
    let half = halves.mmap().unwrap();
    assert_eq!((halves.value_bytes(), half.words_per_entry(), half.len()), (4, 1, 8));
    for key in 0..8u32 {
        triples.update(key, [key, 10 + key, 20 + key]).unwrap();
        halves.update(key, 30 + key).unwrap();
    }
    for key in 0..8u32 {
        let entry: Vec<u64> =
            mapped.entry(key as usize).iter().map(|word| word.load(Relaxed)).collect();
        let [a, b, c] = [key, 10 + key, 20 + key].map(u64::from);
        assert_eq!(entry[0], u64::from_ne_bytes(two(a, b)), "entry {key}");
        assert_eq!(entry[1], u64::from_ne_bytes(two(c, 0)), "entry {key}");
        assert_eq!(half.load(key as usize), u64::from_ne_bytes(two(30 + u64::from(key), 0)));
    }
}

/// Two 32-bit values, one after the other.
fn two(first: u64, second: u64) -> [u8; 8] {
    let [first, second] = [first, second].map(|value| (value as u32).to_ne_bytes());
    [first, second].concat().try_into().unwrap()
}

/// Run by the test below, with the environment of a process of the app.
#[test]
#[ignore = "run by the test below"]
fn app_child() {
    let words = App::current().open_map("words").unwrap();
    assert_eq!(words.lookup::<u64>(7).unwrap(), 11);
}

#[test]
fn the_environment_says_where_the_daemon_listens_and_pins() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let _daemon = ctl.daemon();
    deployed(&ctl).open_map("words").unwrap().update(7, 11u64).unwrap();
    let finds = |name: &str, socket: &Path, bpffs: &Path| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "app_child", "--ignored"])
            .env("SYRUP_APP", name)
            .env("SYRUP_SOCKET", socket)
            .env("SYRUP_BPFFS", bpffs)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).contains("1 passed")
    };
    let (socket, bpffs, nowhere) = (ctl.socket(), ctl.bpffs(), Path::new("/nowhere"));
    assert!(finds("maps", &socket, nowhere), "by way of the daemon");
    assert!(finds("maps", nowhere, &bpffs), "by its pin, without one");
    assert!(!finds("maps", nowhere, nowhere));
    assert!(!finds("other", &socket, &bpffs));
}

#[test]
fn what_is_not_there_is_told_apart_from_what_failed() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let _daemon = ctl.daemon();
    let app = deployed(&ctl);

    let error = app.register_thread(0, None).unwrap_err();
    assert!(
        matches!(error, Error::NotDeployed { what: syrup_protocol::Kind::Thread, .. }),
        "{error:?}"
    );
    let error = App::named("nobody")
        .at_socket(ctl.socket())
        .register_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), None)
        .unwrap_err();
    assert!(
        matches!(error, Error::NotDeployed { what: syrup_protocol::Kind::Socket, .. }),
        "{error:?}"
    );
    let error = app.open_map("sentences").unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.advice().unwrap().contains("words"), "{error:#}");
    // A socket without SO_REUSEPORT is refused for what it is.
    let error =
        app.register_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), None).unwrap_err();
    assert_eq!(error.code(), Code::Usage, "{error:?}");
}

#[test]
fn a_mapped_access_costs_a_fortieth_of_a_system_call_at_most() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let _daemon = ctl.daemon();
    let map = deployed(&ctl).open_map("words").unwrap();
    let mapped = map.mmap().unwrap();

    // The best of many short rounds: what the access costs, not what the
    // machine was busy with.
    let ns_each = |mut access: Box<dyn FnMut(usize) -> u64>, count: usize| {
        (0..200)
            .map(|_| {
                let start = Instant::now();
                for i in 0..count {
                    black_box(access(black_box(i % ENTRIES)));
                }
                start.elapsed().as_nanos() as f64 / count as f64
            })
            .fold(f64::MAX, f64::min)
    };
    let mapped = std::sync::Arc::new(mapped);
    let (one, two, three) = (mapped.clone(), mapped.clone(), mapped);
    let load = ns_each(Box::new(move |i| one.load(i)), 10_000);
    let store = ns_each(
        Box::new(move |i| {
            two.store(i, 1);
            0
        }),
        10_000,
    );
    let add = ns_each(Box::new(move |i| three.fetch_add(i, 1)), 10_000);
    let call = ns_each(Box::new(move |i| map.lookup(i as u32).unwrap()), 200);
    println!("ns: load {load:.1}, store {store:.1}, add {add:.1}; by system call {call:.0}");
    // Not in ns: an emulated processor takes ten for what another does in one.
    assert!(load.max(store) * 40.0 <= call, "load {load:.1}, store {store:.1}, call {call:.0} ns");
}

fn libc_enoent() -> i32 {
    rustix::io::Errno::NOENT.raw_os_error()
}
