//! A private pin root, and what "nothing is left" means.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use syrup_hook::record::Record;
use syrup_hook::sys::Map;
use syrup_hook::{App, Deploy as _, Deployment, Hook as _, Probe, Registration};
use syrup_scx::Target;
use syrup_scx::{SPEC, ScxSyrup};
use syrup_tests::{Need, require};

use super::policy::policy;
use super::workers::Crew;

/// The kernel runs one scheduler, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The pin root of the resident scheduler, while there is one.
static RESIDENT: Mutex<Option<PathBuf>> = Mutex::new(None);

/// A pin root of its own, removed with everything in it.
pub struct Fixture {
    bpffs: PathBuf,
    resident: bool,
    _turn: MutexGuard<'static, ()>,
}

/// It runs, whether or not it has a thread.
pub fn is_live(deployment: &Deployment) -> bool {
    deployment.health.is_live()
}

impl Fixture {
    /// No scheduler is loaded. `None`, after noting the skip, where the hook
    /// cannot be hosted.
    pub fn new() -> Option<Self> {
        let turn = turn()?;
        dismiss();
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/syrup-test-{}", std::process::id()));
        let _ = fs::remove_dir_all(&bpffs);
        fs::create_dir(&bpffs).unwrap();
        Some(Self { bpffs, resident: false, _turn: turn })
    }

    /// The scheduler is loaded, by an app 'keeper' that has no threads, and stays
    /// for the next such test: a load takes seconds in an emulated guest.
    pub fn resident() -> Option<Self> {
        let turn = turn()?;
        let mut resident = RESIDENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bpffs) = resident.clone() {
            let kept = ScxSyrup.read(&keeper(&bpffs)).ok().flatten();
            if kept.as_ref().is_some_and(is_live) {
                return Some(Self { bpffs, resident: true, _turn: turn });
            }
            let _ = ScxSyrup.remove(&keeper(&bpffs));
        }
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/syrup-kept-{}", std::process::id()));
        let _ = fs::remove_dir_all(&bpffs);
        fs::create_dir_all(keeper(&bpffs).dir()).unwrap();
        ScxSyrup.deploy(&keeper(&bpffs), &policy("fifo"), &Target::default()).unwrap();
        if resident.replace(bpffs.clone()).is_none() {
            // SAFETY: a function that lives as long as the process and does not unwind.
            assert_eq!(unsafe { libc::atexit(dismiss) }, 0);
        }
        Some(Self { bpffs, resident: true, _turn: turn })
    }

    pub fn app(&self, name: &str) -> App {
        let app = App { name: name.to_owned(), uid: 0, bpffs: self.bpffs.clone() };
        fs::create_dir_all(app.dir()).unwrap();
        app
    }

    pub fn bpffs(&self) -> &Path {
        &self.bpffs
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
        for name in ["one", "two", "three", "four"] {
            let app = App { name: name.to_owned(), uid: 0, bpffs: self.bpffs.clone() };
            let _ = ScxSyrup.remove(&app);
        }
        for entry in fs::read_dir(&self.bpffs).into_iter().flatten().flatten() {
            let path = entry.path();
            // Of what is resident only folders that are empty by now go.
            let _ = if self.resident { fs::remove_dir(path) } else { fs::remove_dir_all(path) };
        }
        let _ = fs::remove_dir(&self.bpffs);
    }
}

/// The turn of a test; `None` where the hook cannot be hosted.
fn turn() -> Option<MutexGuard<'static, ()>> {
    let _ = env_logger::builder().is_test(false).try_init();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !require(&[Need::Root, Need::SchedExt]) {
        return None;
    }
    assert_eq!(ScxSyrup.probe(), Probe::Available);
    Some(turn)
}

fn keeper(bpffs: &Path) -> App {
    App { name: "keeper".to_owned(), uid: 0, bpffs: bpffs.to_owned() }
}

/// Unloads the resident scheduler.
extern "C" fn dismiss() {
    let mut resident = RESIDENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(bpffs) = resident.take() {
        let _ = ScxSyrup.remove(&keeper(&bpffs));
        let _ = fs::remove_dir_all(&bpffs);
    }
}

pub fn sysfs(name: &str) -> String {
    fs::read_to_string(Path::new("/sys/kernel/sched_ext").join(name))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

pub fn on_cpus(cpus: &[u32]) -> Target {
    Target { cpus: cpus.to_vec(), ..Default::default() }
}

/// Registers each thread under the next index.
pub fn register(app: &App, crew: &Crew, first_index: u32) {
    for (tid, index) in crew.tids().into_iter().zip(first_index..) {
        let given = ScxSyrup.register(app, Registration::Thread { tid }, Some(index)).unwrap();
        assert_eq!(given, index);
    }
}

/// The app's slot in the root scheduler.
pub fn slot(app: &App) -> u32 {
    let record = Record::read(&app.hook_dir(&SPEC)).unwrap().unwrap();
    record.state["slot"].as_u64().unwrap() as u32
}

/// Does something while the app's slot is empty.
pub fn without_program(app: &App, what: impl FnOnce()) {
    let program = ScxSyrup.program(app).unwrap();
    let programs = Map::open(&app.bpffs.join("_scx/syrup_enqueue")).unwrap();
    let slot = slot(app).to_ne_bytes();
    programs.delete(&slot).unwrap();
    what();
    programs.update(&slot, &program.as_raw_fd().to_ne_bytes()).unwrap();
}

/// Empties the app's slot, as nothing but the hook itself should.
pub fn take_program_away(app: &App) {
    let programs = Map::open(&app.bpffs.join("_scx/syrup_enqueue")).unwrap();
    programs.delete(&slot(app).to_ne_bytes()).unwrap();
}
