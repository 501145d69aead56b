//! A private pin root, policies, and what "nothing is left" means.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libbpf_rs::{Linker, MapCore as _, MapFlags, MapHandle, MapType};
use syrup_abi::{Compiler, abi};
use syrup_hook::{App, Hook as _, Linked, Probe};
use syrup_scx::ScxSyrup;
use syrup_tests::{Need, require};

/// The kernel runs one scheduler, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// A pin root of its own, removed with everything in it.
pub struct Fixture {
    bpffs: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Fixture {
    /// `None`, after noting the skip, where the hook cannot be hosted.
    pub fn new() -> Option<Self> {
        let _ = env_logger::builder().is_test(false).try_init();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        if !require(&[Need::Root, Need::SchedExt]) {
            return None;
        }
        assert_eq!(ScxSyrup.probe(), Probe::Available);
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/syrup-test-{}", std::process::id()));
        let _ = fs::remove_dir_all(&bpffs);
        fs::create_dir(&bpffs).unwrap();
        Some(Self { bpffs, _turn: turn })
    }

    pub fn app(&self, name: &str) -> App {
        let app = App { name: name.to_owned(), uid: 0, bpffs: self.bpffs.clone() };
        fs::create_dir_all(app.dir()).unwrap();
        app
    }

    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// A policy that ships with the hook, with Maps of its own.
    pub fn builtin(&self, name: &str) -> Linked {
        Self::linked(name)
    }

    /// The same without a fixture.
    pub fn linked(name: &str) -> Linked {
        let builtin = ScxSyrup.policies().iter().find(|p| p.name == name).unwrap();
        link(name, builtin.object, &[])
    }

    /// No scheduler, pin, program or map of ours.
    pub fn assert_clean(&self) {
        assert_eq!(sysfs("state"), "disabled");
        for entry in fs::read_dir(&self.bpffs).unwrap() {
            let entry = entry.unwrap();
            assert!(!entry.file_name().to_string_lossy().starts_with('_'), "{entry:?} is left");
            assert_eq!(fs::read_dir(entry.path()).unwrap().count(), 0, "pins left in {entry:?}");
        }
        // The kernel frees programs and maps after a grace period.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left in the kernel: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Programs and maps of ours.
fn left() -> Vec<String> {
    let programs = libbpf_rs::query::ProgInfoIter::default()
        .map(|info| format!("program {} {}", info.id, info.name.to_string_lossy()));
    let maps = libbpf_rs::query::MapInfoIter::default()
        .map(|info| format!("map {} {}", info.id, info.name.to_string_lossy()));
    programs.chain(maps).filter(|name| name.contains(" syrup")).collect()
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Also after a failed assertion: the next test starts on a clean machine.
        for name in ["one", "two", "three"] {
            let app = App { name: name.to_owned(), uid: 0, bpffs: self.bpffs.clone() };
            let _ = ScxSyrup.remove(&app);
        }
        let _ = fs::remove_dir_all(&self.bpffs);
    }
}

pub fn sysfs(name: &str) -> String {
    fs::read_to_string(Path::new("/sys/kernel/sched_ext").join(name))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Compiles a policy as the engine does.
pub fn compile(source: &str) -> Vec<u8> {
    Compiler::find().unwrap().compile("test.c", source).unwrap().object
}

/// Links it as the engine does.
pub fn link(name: &str, object: &[u8], maps: &[(&str, &TestMap)]) -> Linked {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("linked.o");
    let mut linker = Linker::new(&output).unwrap();
    linker.add_buf(ScxSyrup.trusted_half()).unwrap();
    linker.add_buf(object).unwrap();
    linker.link().unwrap();
    drop(linker);
    let thread = match syrup_hook::constant(object, "syrup_thread_policy").unwrap() {
        Some(bytes) => {
            let word = |i: usize| u32::from_ne_bytes(*bytes[i * 4..].first_chunk().unwrap());
            abi::syrup_thread_policy {
                queues: word(0),
                preempt: word(1),
                executors: word(2),
                rescue_ms: word(3),
            }
        }
        None => abi::syrup_thread_policy::default(),
    };
    Linked {
        name: name.to_owned(),
        sha256: [7; 32],
        object: fs::read(&output).unwrap(),
        maps: maps
            .iter()
            .map(|(name, map)| ((*name).to_owned(), map.fd()))
            .collect::<BTreeMap<_, _>>(),
        thread,
    }
}

/// A Map of an app.
pub struct TestMap(MapHandle);

impl TestMap {
    pub fn new(name: &str, entries: u32) -> Self {
        let opts = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            map_flags: libbpf_sys::BPF_F_MMAPABLE,
            ..Default::default()
        };
        Self(MapHandle::create(MapType::Array, Some(name), 4, 8, entries, &opts).unwrap())
    }

    pub fn set(&self, key: u32, value: u64) {
        self.0.update(&key.to_ne_bytes(), &value.to_ne_bytes(), MapFlags::ANY).unwrap();
    }

    fn fd(&self) -> OwnedFd {
        self.0.as_fd().try_clone_to_owned().unwrap()
    }
}
