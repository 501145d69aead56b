//! Where runs were measured: numbers of different machines are not mixed.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::socket;
use crate::wire::BYTES;

/// What the numbers of a run may depend on beside its configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Release of the kernel.
    pub kernel: String,
    /// "none" on the machine itself, "kvm", "tcg" (emulated), "icount"
    /// (emulated, its time counts instructions), or another hypervisor's name.
    pub accelerator: String,
    /// What else whoever started it says of the machine.
    pub machine: String,
    /// Number of CPUs.
    pub cpus: u32,
    /// Their model.
    pub cpu: String,
    /// EEVDF's base slice, where the kernel tells.
    pub base_slice_us: Option<f64>,
    /// Transparent huge pages: the selected mode.
    pub huge_pages: String,
    /// Requests that wait in a socket before the kernel drops one.
    pub socket_holds: u32,
    /// The source in whose folder it ran, with "+" for changes.
    pub commit: String,
    /// SHA-256 of the programs, by name.
    pub programs: BTreeMap<String, String>,
}

impl Environment {
    /// This machine's; no programs.
    #[must_use]
    pub fn here(machine: &str, cpus: u32) -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let huge_pages = text("/sys/kernel/mm/transparent_hugepage/enabled");
        Self {
            kernel: text("/proc/sys/kernel/osrelease"),
            accelerator: accelerator(),
            machine: machine.to_owned(),
            cpus,
            cpu: text("/proc/cpuinfo")
                .lines()
                .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
                .map_or(String::new(), |(_, model)| model.to_owned()),
            base_slice_us: text("/sys/kernel/debug/sched/base_slice_ns")
                .parse::<f64>()
                .ok()
                .map(|ns| ns / 1000.0),
            huge_pages: selected(&huge_pages).to_owned(),
            socket_holds: socket::holds(BYTES).unwrap_or(0) as u32,
            commit: commit(),
            programs: BTreeMap::new(),
        }
    }

    /// Why numbers of `before` may not stand in one table with those of here. Not
    /// because of the commit: it changes with every word of documentation, and is
    /// that of the folder, not of the programs.
    #[must_use]
    pub fn apart(&self, before: &Self) -> Option<String> {
        let machine = |one: &Self| {
            let (commit, programs) = (String::new(), BTreeMap::new());
            Self { commit, programs, ..one.clone() }
        };
        if machine(self) != machine(before) {
            return Some(format!(
                "another machine ({}; this is {})",
                before.sentence(),
                self.sentence()
            ));
        }
        let names: BTreeSet<&String> = self.programs.keys().chain(before.programs.keys()).collect();
        let other: Vec<&str> = names
            .into_iter()
            .filter(|name| self.programs.get(*name) != before.programs.get(*name))
            .map(String::as_str)
            .collect();
        (!other.is_empty())
            .then(|| format!("another build of {} (source {})", other.join(", "), before.commit))
    }

    /// In a line.
    #[must_use]
    pub fn sentence(&self) -> String {
        let accelerator = match self.accelerator.as_str() {
            "none" => String::new(),
            "tcg" => ", an emulated machine (TCG)".to_owned(),
            "icount" => ", an emulated machine whose time counts instructions".to_owned(),
            name => format!(", a virtual machine ({name})"),
        };
        let slice = self
            .base_slice_us
            .map_or(String::new(), |us| format!("; EEVDF's base slice {:.1} ms", us / 1000.0));
        format!(
            "Linux {}, {} CPUs ({}){accelerator}{}{}{slice}; transparent huge pages: {}; a socket \
             holds {} requests; source {}",
            self.kernel,
            self.cpus,
            self.cpu,
            if self.machine.is_empty() { "" } else { ", " },
            self.machine,
            self.huge_pages,
            self.socket_holds,
            self.commit,
        )
    }
}

/// The word in brackets, as sysfs marks the selected one of several.
pub fn selected(text: &str) -> &str {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(text, |(word, _)| word)
}

/// Huge pages that khugepaged has made since the machine started.
#[must_use]
pub fn huge_pages_made() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = |line: &str| line.strip_prefix("thp_collapse_alloc ")?.trim().parse().ok();
    text.lines().find_map(count).unwrap_or(0)
}

/// Who runs this machine, from the leaf of CPUID that hypervisors answer.
fn accelerator() -> String {
    // `vm/run` knows it better: TCG may count instructions.
    if let Ok(accelerator) = std::env::var("SYRUP_VM") {
        return accelerator;
    }
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        if __cpuid(1).ecx & (1 << 31) == 0 {
            return "none".to_owned();
        }
        let leaf = __cpuid(0x4000_0000);
        let name: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx]
            .iter()
            .flat_map(|register| register.to_le_bytes())
            .filter(|byte| byte.is_ascii_graphic())
            .collect();
        match name.as_slice() {
            b"KVMKVMKVM" => "kvm".to_owned(),
            b"TCGTCGTCGTCG" => "tcg".to_owned(),
            other => String::from_utf8_lossy(other).into_owned(),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    "unknown".to_owned()
}

/// The commit of the working folder.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        // Root in a guest, or under sudo, is not the owner of the checkout.
        let output = Command::new("git").args(["-c", "safe.directory=*"]).args(arguments).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    match changed.is_some_and(|files| !files.is_empty()) {
        true => format!("{commit}+"),
        false => commit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selected_mode_stands_in_brackets() {
        assert_eq!(selected("always [madvise] never"), "madvise");
        assert_eq!(selected("never"), "never");
    }

    #[test]
    fn another_kernel_or_build_is_apart_and_another_commit_is_not() {
        let build = |hash: &str| [("syrupd".to_owned(), hash.to_owned())].into();
        let here = Environment { programs: build("00"), ..Environment::here("", 2) };
        assert!(!here.kernel.is_empty() && !here.accelerator.is_empty());
        assert!(here.socket_holds > 0);
        assert!(here.sentence().contains(&here.kernel));
        let apart = |before: Environment| here.apart(&before);
        assert_eq!(apart(Environment { commit: "other".to_owned(), ..here.clone() }), None);
        let other = apart(Environment { kernel: "7.0".to_owned(), ..here.clone() });
        assert!(other.unwrap().starts_with("another machine (Linux 7.0"));
        assert!(apart(Environment { cpus: 3, ..here.clone() }).is_some());
        let other = apart(Environment { programs: build("01"), ..here.clone() });
        assert!(other.unwrap().starts_with("another build of syrupd"));
        assert!(apart(Environment { programs: BTreeMap::new(), ..here.clone() }).is_some());
    }
}
