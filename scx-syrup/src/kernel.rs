//! What the kernel says of sched_ext: is it there, is it usable, who runs.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Func, FuncProto};
use syrup_hook::{Error, Probe, Result};

const SYSFS: &str = "/sys/kernel/sched_ext";
const CAP_SYS_ADMIN: u32 = 21;

/// The scheduler the kernel runs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scheduler {
    /// "disabled", "enabling", "enabled" or "disabling".
    pub state: String,
    /// Its name; empty when there is none.
    pub ops: String,
    /// Counts schedulers since boot.
    pub enable_seq: u64,
}

impl Scheduler {
    /// Reads it. All empty on a kernel without sched_ext.
    pub fn now() -> Self {
        let read = |name: &str| {
            fs::read_to_string(Path::new(SYSFS).join(name))
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        Self {
            state: read("state"),
            ops: read("root/ops"),
            enable_seq: read("enable_seq").parse().unwrap_or_default(),
        }
    }

    /// The same, after a change that is under way has ended.
    pub fn settled() -> Self {
        let now = Self::now();
        match now.state.as_str() {
            "enabling" => Self::wait_for("enabled").unwrap_or(now),
            "disabling" => Self::wait_for("disabled").unwrap_or(now),
            _ => now,
        }
    }

    /// Waits until the kernel says `state`.
    pub fn wait_for(state: &str) -> Result<Self> {
        // Disabling waits for every thread to leave the class; seconds only on
        // a machine that is itself in trouble.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = Self::now();
            if now.state == state {
                return Ok(now);
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout(format!(
                    "sched_ext to become '{state}'; it is '{}'",
                    now.state
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether the kernel runs none now, which one without sched_ext never does.
pub(crate) fn runs_none() -> bool {
    fs::read(Path::new(SYSFS).join("state")).unwrap_or_default() == b"disabled\n"
}

/// Can the root scheduler be loaded here?
pub(crate) fn probe() -> Probe {
    if !Path::new(SYSFS).exists() {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        return Probe::Missing {
            what: format!(
                "Linux {} has no sched_ext (CONFIG_SCHED_CLASS_EXT is not set; {SYSFS} is not there)",
                release.trim()
            ),
            advice: "boot a kernel with CONFIG_SCHED_CLASS_EXT=y, Linux 7.0 or later: Debian \
                     has it in the kernels of trixie-backports and sid"
                .to_owned(),
        };
    }
    if !privileged() {
        return Probe::Missing {
            what: "loading a scheduler needs root (CAP_SYS_ADMIN)".to_owned(),
            advice: "run as root, or ask the daemon".to_owned(),
        };
    }
    match Btf::from_vmlinux() {
        Err(e) => Probe::Missing {
            what: format!("the kernel's type information cannot be read: {e:#}"),
            advice: "boot a kernel with CONFIG_DEBUG_INFO_BTF=y".to_owned(),
        },
        Ok(btf) => match malformed_kfunc(&btf) {
            Some(name) => Probe::Missing {
                what: format!(
                    "this kernel's BTF is malformed: the prototype of {name}() still has the \
                     hidden argument 'aux', so the kernel refuses every scheduler (\"func_proto \
                     incompatible with vmlinux\")"
                ),
                advice: "the kernel was built with pahole (dwarves) older than 1.31: install a \
                         kernel built with 1.31 or later, such as Debian sid's"
                    .to_owned(),
            },
            None => Probe::Available,
        },
    }
}

/// A kfunc of sched_ext whose public prototype carries the argument that only
/// its `_impl` twin may have.
fn malformed_kfunc(btf: &Btf<'_>) -> Option<String> {
    btf.type_by_kind::<Func<'_>>().find_map(|func| {
        let name = func.name()?.to_str()?.to_owned();
        if !name.starts_with("scx_bpf_") || name.ends_with("_impl") {
            return None;
        }
        let proto: FuncProto<'_> = func.next_type()?.try_into().ok()?;
        let last = proto.iter().last()?.name?;
        (last == "aux").then_some(name)
    })
}

fn privileged() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> CAP_SYS_ADMIN & 1 == 1)
}
