//! What `doctor` looks at. Readings are apart from judgements, so that the
//! judgements can be tested on any machine.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use syrup_engine::DEFAULT_BPFFS;
use syrup_protocol::{Code, HookInfo};
use syrup_sdk::Compiler;

use super::Check;
use crate::backend::{Place, is_root};
use crate::context::{Context, SeenHooks};

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Names of our scheduler in `/sys/kernel/sched_ext/root/ops` start like this.
const OUR_SCHEDULER: &str = "syrup";

/// Bits of `/proc/self/status`'s `CapEff`, and what needs them.
const CAPABILITIES: [(u32, &str); 5] = [
    (39, "CAP_BPF"),
    (38, "CAP_PERFMON"),
    (21, "CAP_SYS_ADMIN"),
    (12, "CAP_NET_ADMIN"),
    (19, "CAP_SYS_PTRACE"),
];

/// The kernel's release.
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Everything, in the order of a reader's questions: what works, then what it needs.
pub fn all(context: &Context, seen: &SeenHooks) -> Vec<Check> {
    let mut checks: Vec<Check> = seen.hooks.iter().map(hook).collect();
    if let Some(doubt) = seen.doubt() {
        checks.push(Check::warning("view of the hooks", "an ordinary user's", doubt));
    }
    checks.push(scheduler(
        &read("/sys/kernel/sched_ext/state"),
        &read("/sys/kernel/sched_ext/root/ops"),
    ));
    let arbiter = arbiter(context);
    checks.push(type_information(Path::new("/sys/kernel/btf/vmlinux")));
    checks.push(bpf_file_system(context.bpffs.as_deref()));
    checks.push(compiler());
    checks.push(capabilities(&read("/proc/self/status"), arbiter.status == super::Status::Ok));
    checks.push(arbiter);
    checks.push(locked_memory());
    checks.push(jit(&read("/proc/sys/net/core/bpf_jit_enable")));
    checks.push(jit_hardening(&read("/proc/sys/net/core/bpf_jit_harden")));
    checks.push(unprivileged_bpf(&read("/proc/sys/kernel/unprivileged_bpf_disabled")));
    checks.extend(lockdown(&read("/sys/kernel/security/lockdown")));
    checks.extend(adoption(&read("/proc/sys/kernel/yama/ptrace_scope")));
    checks
}

/// A file's text without the newline; the error says "not there" or "not allowed".
fn read(path: &str) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned())
}

fn hook(hook: &HookInfo) -> Check {
    let name = format!("hook {}", hook.name);
    if hook.available {
        return Check::ok(&name, format!("available: {} to {}", hook.input, hook.executor));
    }
    let missing = hook.missing.as_deref().unwrap_or("not available");
    let advice = hook.advice.as_deref().unwrap_or("use a kernel that has it");
    Check::missing(&name, missing, advice)
}

fn scheduler(state: &io::Result<String>, ops: &io::Result<String>) -> Check {
    const NAME: &str = "other scheduler";
    match (state.as_deref(), ops.as_deref()) {
        (Err(_), _) => Check::ok(NAME, "none: this kernel has no sched_ext"),
        (Ok("enabled"), Ok(ops)) if ops.starts_with(OUR_SCHEDULER) => {
            Check::ok(NAME, format!("none: '{ops}' is Syrup's"))
        }
        (Ok("enabled"), ops) => Check::missing(
            NAME,
            format!("'{}' is active", ops.unwrap_or("a sched_ext scheduler")),
            "the kernel runs one sched_ext scheduler at a time: stop that one before loading a \
             policy at scx-syrup",
        ),
        (Ok(state), _) => Check::ok(NAME, format!("none: sched_ext is {state}")),
    }
}

fn type_information(path: &Path) -> Check {
    const NAME: &str = "kernel type information";
    match fs::metadata(path) {
        Ok(btf) => Check::ok(NAME, format!("{} ({} KiB)", path.display(), btf.len() / 1024)),
        Err(e) => Check::missing(
            NAME,
            format!("{}: {e}", path.display()),
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y; those of Debian, Fedora and Ubuntu are",
        ),
    }
}

fn bpf_file_system(bpffs: Option<&Path>) -> Check {
    const NAME: &str = "BPF file system";
    let root = bpffs.unwrap_or(Path::new(DEFAULT_BPFFS));
    let mount = root.parent().unwrap_or(Path::new("/"));
    if let Err(e) = syrup_engine::pins_last(mount) {
        return Check::missing(NAME, e.message, e.advice.unwrap_or_default());
    }
    match rustix::fs::statfs(mount) {
        Ok(stat) if stat.f_type == BPF_FS_MAGIC => {
            Check::ok(NAME, format!("mounted at {}", mount.display()))
        }
        Ok(_) => Check::missing(
            NAME,
            format!("not mounted at {}", mount.display()),
            match bpffs {
                None => format!("as root: mount -t bpf bpf {}", mount.display()),
                Some(_) => "leave --bpffs out, or name a folder of one".to_owned(),
            },
        ),
        Err(e) => Check::missing(
            NAME,
            format!("{}: {e}", mount.display()),
            format!(
                "name another folder with --bpffs, or as root: mount -t bpf bpf {}",
                mount.display()
            ),
        ),
    }
}

fn compiler() -> Check {
    const NAME: &str = "compiler";
    match Compiler::find() {
        Ok(compiler) => Check::ok(NAME, compiler.path().display().to_string()),
        Err(e) => Check::warning(
            NAME,
            e.to_string(),
            "policies that ship with Syrup and compiled objects (FILE.o) work without; for C files \
             install clang 17 or newer (Debian: apt-get install clang-19) or set BPF_CLANG to it",
        ),
    }
}

fn capabilities(status: &io::Result<String>, arbiter_works: bool) -> Check {
    const NAME: &str = "capabilities";
    let effective = status.as_deref().ok().and_then(|text| {
        let hex = text.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(hex.trim(), 16).ok()
    });
    let Some(effective) = effective else {
        return Check::warning(
            NAME,
            "/proc/self/status does not tell them",
            "mount /proc: mount -t proc proc /proc",
        );
    };
    let absent: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if absent.is_empty() {
        Check::ok(NAME, "all that loading policies needs")
    } else if arbiter_works && !is_root() {
        Check::ok(NAME, "none needed: the daemon has them")
    } else {
        Check::missing(
            NAME,
            format!("without {}", absent.join(", ")),
            "run as root (in a container: with these capabilities), or start syrupd as root and \
             ask it",
        )
    }
}

fn arbiter(context: &Context) -> Check {
    const NAME: &str = "daemon";
    match context.arbiter() {
        Ok(arbiter) => match &arbiter.place {
            Place::Daemon(socket) => Check::ok(NAME, format!("answers at {}", socket.display())),
            Place::InProcess(_) => Check::ok(NAME, "not running; root needs none"),
        },
        Err(error) => {
            let advice = error.advice.clone().unwrap_or_else(|| "start syrupd".to_owned());
            // The file system has a line of its own.
            if error.code == Code::Unsupported && is_root() {
                Check::ok(NAME, "not running; root needs none")
            } else {
                Check::missing(NAME, error.message, advice)
            }
        }
    }
}

fn locked_memory() -> Check {
    const NAME: &str = "locked memory";
    if kernel_at_least(&kernel(), 5, 11) {
        return Check::ok(NAME, "no limit: BPF memory is accounted to the memory cgroup");
    }
    match getrlimit(Resource::Memlock).current {
        None => Check::ok(NAME, "unlimited"),
        Some(bytes) => Check::warning(
            NAME,
            format!("limited to {} KiB", bytes / 1024),
            "before Linux 5.11 Maps count against it: ulimit -l unlimited",
        ),
    }
}

fn kernel_at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(this_major)), Some(Ok(this_minor))) => (this_major, this_minor) >= (major, minor),
        _ => false,
    }
}

fn jit(value: &io::Result<String>) -> Check {
    const NAME: &str = "BPF JIT";
    match value.as_deref() {
        Ok("0") => Check::warning(
            NAME,
            "off: policies are interpreted",
            "as root: sysctl -w net.core.bpf_jit_enable=1",
        ),
        Ok("2") => Check::warning(
            NAME,
            "on, and writes every program to the kernel log",
            "as root: sysctl -w net.core.bpf_jit_enable=1",
        ),
        Ok(_) => Check::ok(NAME, "on"),
        Err(e) => unreadable(NAME, e, "net.core.bpf_jit_enable"),
    }
}

fn jit_hardening(value: &io::Result<String>) -> Check {
    const NAME: &str = "BPF JIT hardening";
    match value.as_deref() {
        Ok("0") => Check::ok(NAME, "off"),
        Ok("1") => Check::ok(NAME, "for unprivileged programs only"),
        Ok(_) => Check::warning(
            NAME,
            "on for all programs: tail calls and constants cost more",
            "as root: sysctl -w net.core.bpf_jit_harden=1",
        ),
        Err(e) => unreadable(NAME, e, "net.core.bpf_jit_harden"),
    }
}

fn unprivileged_bpf(value: &io::Result<String>) -> Check {
    const NAME: &str = "unprivileged BPF";
    match value.as_deref() {
        Ok("0") => Check::warning(
            NAME,
            "allowed: any user may load BPF programs",
            "Syrup does not need it; as root: sysctl -w kernel.unprivileged_bpf_disabled=2",
        ),
        Ok(_) => Check::ok(NAME, "disabled, as it should be"),
        Err(e) => unreadable(NAME, e, "kernel.unprivileged_bpf_disabled"),
    }
}

/// Kernels without lockdown have no such file.
fn lockdown(value: &io::Result<String>) -> Option<Check> {
    const NAME: &str = "kernel lockdown";
    let text = value.as_deref().ok()?;
    Some(if text.contains("[confidentiality]") {
        Check::warning(
            NAME,
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity, or without Secure Boot, to use scx-syrup",
        )
    } else {
        Check::ok(NAME, if text.contains("[integrity]") { "integrity" } else { "none" })
    })
}

/// Kernels without Yama have no such file.
fn adoption(ptrace_scope: &io::Result<String>) -> Option<Check> {
    const NAME: &str = "adoption of programs";
    Some(match ptrace_scope.as_deref().ok()? {
        "3" => Check::warning(
            NAME,
            "kernel.yama.ptrace_scope is 3: nobody may take over another process's sockets",
            "applications must register their sockets themselves; the setting lasts until reboot",
        ),
        "2" if !is_root() => Check::warning(
            NAME,
            "kernel.yama.ptrace_scope is 2: root only",
            "run 'syrupctl load --pid' and 'syrupctl run' as root",
        ),
        scope => Check::ok(NAME, format!("allowed (kernel.yama.ptrace_scope is {scope})")),
    })
}

/// Root of another network namespace does not see these, others may not read
/// them; neither is a fault.
fn unreadable(name: &str, error: &io::Error, sysctl: &str) -> Check {
    let why = match error.kind() {
        io::ErrorKind::PermissionDenied => "only root may read it".to_owned(),
        io::ErrorKind::NotFound => "not shown in this network namespace".to_owned(),
        _ => error.to_string(),
    };
    Check::ok(name, format!("unknown ({sysctl}: {why})"))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn file(text: &str) -> io::Result<String> {
        Ok(text.to_owned())
    }

    fn absent() -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn a_foreign_scheduler_is_told_from_ours_and_from_none() {
        assert_eq!(scheduler(&absent(), &absent()).status, Status::Ok);
        assert_eq!(scheduler(&file("disabled"), &absent()).status, Status::Ok);
        assert_eq!(scheduler(&file("enabled"), &file("syrup_1.0")).status, Status::Ok);
        let foreign = scheduler(&file("enabled"), &file("lavd"));
        assert_eq!(foreign.status, Status::Missing);
        assert!(foreign.found.contains("'lavd'"), "{foreign:?}");
    }

    #[test]
    fn missing_capabilities_are_named() {
        let all = capabilities(&file("Name:\tx\nCapEff:\t000001ffffffffff\n"), false);
        assert_eq!(all.status, Status::Ok);
        let without_bpf = capabilities(&file("CapEff:\t0000007fffffffff"), false);
        assert_eq!(without_bpf.status, Status::Missing);
        assert_eq!(without_bpf.found, "without CAP_BPF");
    }

    #[test]
    fn settings_that_cost_speed_or_safety_are_warnings() {
        assert_eq!(jit(&file("0")).status, Status::Warning);
        assert_eq!(jit(&file("1")).status, Status::Ok);
        assert_eq!(jit_hardening(&file("2")).status, Status::Warning);
        assert_eq!(jit_hardening(&file("1")).status, Status::Ok);
        assert_eq!(unprivileged_bpf(&file("0")).status, Status::Warning);
        assert_eq!(unprivileged_bpf(&file("2")).status, Status::Ok);
        assert_eq!(jit(&Err(io::ErrorKind::PermissionDenied.into())).status, Status::Ok);
        assert_eq!(lockdown(&absent()), None);
        let lockdown = |text| lockdown(&file(text)).unwrap().status;
        assert_eq!(lockdown("none integrity [confidentiality]"), Status::Warning);
        assert_eq!(lockdown("[none] integrity confidentiality"), Status::Ok);
        assert_eq!(adoption(&file("3")).unwrap().status, Status::Warning);
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert!(kernel_at_least("6.18.0-rc1", 5, 11));
        assert!(kernel_at_least("5.11.0", 5, 11));
        assert!(!kernel_at_least("5.4.0-200-generic", 5, 11));
        assert!(!kernel_at_least("", 5, 11));
    }

    #[test]
    fn a_missing_hook_carries_the_kernels_reason_and_what_to_do() {
        let info = HookInfo {
            name: "scx-syrup".to_owned(),
            input: syrup_protocol::Input::Thread.into(),
            registers: syrup_protocol::Kind::Thread.into(),
            takes: vec![],
            changeable: vec![],
            executor: "a core".to_owned(),
            available: false,
            missing: Some("no sched_ext".to_owned()),
            advice: Some("boot 7.0".to_owned()),
        };
        assert_eq!(hook(&info), Check::missing("hook scx-syrup", "no sched_ext", "boot 7.0"));
    }
}
