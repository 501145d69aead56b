//! Helpers of the integration tests: the built binaries, run as a user would
//! run them, against a BPF file system of the test's own.
//!
//! The same test binaries run natively as root and in the virtual machine. A
//! test that lacks something calls [`require`], the one way to skip.

mod c_program;
mod ctl;
mod kernel;
mod numbers;
mod syscalls;
mod traffic;
mod users;

pub use c_program::CProgram;
pub use ctl::{Ctl, Daemon, Ran};
pub use kernel::{KernelObjects, ThreadClass, expect_kernel_message, maps_of_program, sched_class};
pub use numbers::Numbers;
pub use syscalls::{changes, kill_before, refuse, syscalls};
pub use traffic::{Group, Sender, own_network, udp_group};
pub use users::{GROUP, as_user};

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a test may need beyond a plain user on any kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root, to load BPF programs and to make namespaces.
    Root,
    /// A kernel with sched_ext.
    SchedExt,
    /// A kernel without it.
    NoSchedExt,
    /// A kernel whose type information is malformed, as `vm/run` says of its
    /// kernels (`SYRUP_TEST_KERNEL`).
    MalformedBtf,
    /// A program at this path, of the distribution's.
    Program(&'static str),
}

/// True when everything is there; else notes the skip, naming what is missing,
/// and the test returns at once. `tests/run` fails on a skip that `tests/skips`
/// does not name; for `cargo test`, `SYRUP_TEST_STRICT=1` fails on any.
#[must_use]
pub fn require(needs: &[Need]) -> bool {
    for need in needs {
        let missing = match need {
            Need::Root => (!rustix::process::geteuid().is_root()).then_some("root"),
            Need::SchedExt => {
                (!sched_ext()).then_some("a kernel with sched_ext (run it with vm/run)")
            }
            Need::NoSchedExt => {
                sched_ext().then_some("a kernel without sched_ext (vm/run --kernel no-scx)")
            }
            Need::MalformedBtf => (std::env::var("SYRUP_TEST_KERNEL").as_deref()
                != Ok("malformed-btf"))
            .then_some("a kernel with malformed BTF (vm/run --kernel malformed-btf)"),
            Need::Program(path) => (!PathBuf::from(path).exists()).then_some(*path),
        };
        if let Some(missing) = missing {
            note_skip(missing);
            return false;
        }
    }
    true
}

fn sched_ext() -> bool {
    PathBuf::from("/sys/kernel/sched_ext/state").exists()
}

fn note_skip(missing: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("?");
    assert!(
        std::env::var_os("SYRUP_TEST_STRICT").is_none(),
        "{test}: would be skipped for want of {missing}, and SYRUP_TEST_STRICT is set"
    );
    // libtest has no skip: the runner counts these lines (tests/run).
    if let Some(path) = std::env::var_os("SYRUP_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: needs {missing}").unwrap();
    }
    eprintln!("SKIP {test}: needs {missing}");
}

/// Waits until `condition` gives a value.
///
/// # Panics
/// After `limit`, naming what was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sets a flag when it goes out of scope, by a failed assertion too: for the
/// threads of a scope, which would otherwise wait for it, and the test for them.
#[derive(Debug)]
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The built binary `name`, beside the test's own.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(|deps| deps.parent()).unwrap().join(name);
    assert!(path.is_file(), "{} is not built: cargo build --workspace", path.display());
    path
}
