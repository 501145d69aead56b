//! Policies to deploy, and Maps to speak with them. All were compiled on the host.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use libbpf_rs::{Linker, MapCore as _, MapFlags, MapHandle, MapType};
use syrup_hook::{Builtin, Linked};
use syrup_scx::SPEC;
use syrup_sdk::abi::{self, syrup_thread, syrup_thread_policy};

const OF_TESTS: &[Builtin] = include!(concat!(env!("OUT_DIR"), "/tests/policies.rs"));
/// Entries of the ring in `scripted.c`.
const RING: u64 = 16384;

/// A policy that ships with the hook, or one in `tests/policies`, with Maps of its own.
pub fn policy(name: &str) -> Linked {
    with_maps(name, &[])
}

/// The same with Maps of the test's.
pub fn with_maps(name: &str, maps: &[(&str, &TestMap)]) -> Linked {
    let found = SPEC.policies.iter().chain(OF_TESTS).find(|p| p.name == name).unwrap();
    link(name, found.object, maps)
}

/// Links it as the engine does.
fn link(name: &str, object: &[u8], maps: &[(&str, &TestMap)]) -> Linked {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("linked.o");
    let mut linker = Linker::new(&output).unwrap();
    linker.add_buf(SPEC.trusted_half).unwrap();
    linker.add_buf(object).unwrap();
    linker.link().unwrap();
    drop(linker);
    let settings = syrup_hook::constant(object, "syrup_thread_policy").unwrap();
    Linked {
        name: name.to_owned(),
        sha256: [7; 32],
        params: BTreeMap::new(),
        object: fs::read(&output).unwrap(),
        maps: maps
            .iter()
            .map(|(name, map)| ((*name).to_owned(), map.fd()))
            .collect::<BTreeMap<_, _>>(),
        settings: settings.unwrap_or_default(),
    }
}

/// A Map of an app.
pub struct TestMap(MapHandle);

impl TestMap {
    /// As `SYRUP_MAP` makes it.
    pub fn new(name: &str, entries: u32) -> Self {
        Self::of(name, 8, entries)
    }

    /// As `SYRUP_MAP_OF` makes it.
    fn of(name: &str, value_size: u32, entries: u32) -> Self {
        let opts = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            map_flags: libbpf_sys::BPF_F_MMAPABLE,
            ..Default::default()
        };
        let map = MapHandle::create(MapType::Array, Some(name), 4, value_size, entries, &opts);
        Self(map.unwrap())
    }

    pub fn set(&self, key: u32, value: u64) {
        self.write(key, &value.to_ne_bytes());
    }

    fn write(&self, key: u32, value: &[u8]) {
        self.0.update(&key.to_ne_bytes(), value, MapFlags::ANY).unwrap();
    }

    fn read(&self, key: u32) -> Vec<u8> {
        self.0.lookup(&key.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap()
    }

    fn fd(&self) -> OwnedFd {
        self.0.as_fd().try_clone_to_owned().unwrap()
    }
}

/// What `scripted` answers for a thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    pub verdict: i32,
    /// 0 leaves what the root scheduler proposes; so does a rank of 0.
    pub slice_us: u32,
    pub rank: u64,
}

/// A place in a queue, or on a core.
pub fn at(verdict: i32) -> Place {
    Place { verdict, ..Default::default() }
}

impl Place {
    pub fn rank(self, rank: u64) -> Self {
        Self { rank, ..self }
    }

    pub fn slice_us(self, slice_us: u32) -> Self {
        Self { slice_us, ..self }
    }
}

/// One call of `schedule()`.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    pub thread: syrup_thread,
    pub now_ns: u64,
    pub nr_executors: u32,
    pub verdict: i32,
}

/// The policy `scripted` and its Maps.
pub struct Scripted {
    place: TestMap,
    told: TestMap,
    next: TestMap,
}

impl Scripted {
    pub fn new() -> Self {
        Self {
            place: TestMap::of("place", 16, 64),
            told: TestMap::of("told", size_of::<syrup_thread>() as u32 + 16, RING as u32),
            next: TestMap::new("told_next", 1),
        }
    }

    /// Says where the thread of an index goes from its next call on; at first it
    /// is queue (or core) 0.
    pub fn place(&self, index: u32, place: Place) {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend_from_slice(&place.verdict.to_ne_bytes());
        bytes.extend_from_slice(&place.slice_us.to_ne_bytes());
        bytes.extend_from_slice(&place.rank.to_ne_bytes());
        self.place.write(index, &bytes);
    }

    /// The policy with attributes of the test's.
    pub fn policy(&self, thread: syrup_thread_policy) -> Linked {
        let maps = [("place", &self.place), ("told", &self.told), ("told_next", &self.next)];
        let syrup_thread_policy { queues, preempt, executors, rescue_ms } = thread;
        let settings = [queues, preempt, executors, rescue_ms].map(u32::to_ne_bytes).concat();
        Linked { settings, ..with_maps("scripted", &maps) }
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        u64::from_ne_bytes(self.next.read(0).try_into().unwrap())
    }

    /// What it was told from call `from` on.
    pub fn told_since(&self, from: u64) -> Vec<Told> {
        let calls = self.calls();
        assert!(calls - from <= RING, "{} calls do not fit into the ring", calls - from);
        (from..calls)
            .map(|call| {
                let bytes = self.told.read((call % RING) as u32);
                let half = |at: usize| u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
                let word = |at: usize| u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
                Told {
                    thread: syrup_thread {
                        index: half(0),
                        tid: half(4),
                        tgid: half(8),
                        flags: half(12),
                        cpu: half(16) as i32,
                        weight: half(20),
                        runtime_ns: word(24),
                        ran_ns: word(32),
                        runnable_at_ns: word(40),
                        rank: word(48),
                        slice_us: half(56),
                        _pad: half(60),
                    },
                    now_ns: word(64),
                    nr_executors: half(72),
                    verdict: half(76) as i32,
                }
            })
            .collect()
    }
}

/// Attributes for [`Scripted::policy`].
pub fn queues(queues: u32) -> syrup_thread_policy {
    syrup_thread_policy { queues, ..Default::default() }
}

/// The same, where arrivals preempt threads of later queues.
pub fn preempting(queues: u32) -> syrup_thread_policy {
    syrup_thread_policy { queues, preempt: 1, ..Default::default() }
}

/// The executors are the cores of the app.
pub fn cores() -> syrup_thread_policy {
    syrup_thread_policy { executors: abi::SYRUP_CORES, ..Default::default() }
}
