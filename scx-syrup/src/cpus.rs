//! An app's cores.

use std::fs;

use syrup_hook::{Error, Result};
use syrup_sdk::abi::SYRUP_MAX_CPUS;

use crate::layout::{SYRUP_SCX_ALL_CPUS, SYRUP_SCX_NAMED_CPUS, syrup_scx_app};

/// Checks a list of cores; the result is sorted and without repetitions.
pub(crate) fn checked(cpus: &[u32], nr_cpus: u32, online: &[u32]) -> Result<Vec<u32>> {
    let mut cpus = cpus.to_vec();
    cpus.sort_unstable();
    cpus.dedup();
    match (cpus.last(), cpus.iter().find(|cpu| !online.contains(cpu))) {
        (Some(&last), _) if last >= nr_cpus => Err(Error::Usage(format!(
            "there is no core {last}: this machine has cores 0 to {}",
            nr_cpus - 1
        ))),
        (_, Some(cpu)) => Err(Error::Usage(format!(
            "core {cpu} is offline: 'echo 1 > /sys/devices/system/cpu/cpu{cpu}/online' brings it \
             back, --cpus names others"
        ))),
        _ => Ok(cpus),
    }
}

/// The cores that run, in order.
pub(crate) fn online() -> Result<Vec<u32>> {
    let file = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(file).map_err(|e| Error::kernel(format!("read {file}"), e))?;
    Ok(listed(&text))
}

/// Of a list as the kernel writes them: `0-2,5`.
fn listed(text: &str) -> Vec<u32> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    let cpus = text.trim().split(',').filter_map(range).flatten();
    cpus.filter(|&cpu| cpu < SYRUP_MAX_CPUS).collect()
}

/// Writes them into the app's settings; none means all.
pub(crate) fn set(app: &mut syrup_scx_app, cpus: &[u32]) {
    app.masked = if cpus.is_empty() { SYRUP_SCX_ALL_CPUS } else { SYRUP_SCX_NAMED_CPUS };
    app.cpus = Default::default();
    for &cpu in cpus.iter().filter(|&&cpu| cpu < SYRUP_MAX_CPUS) {
        app.cpus[cpu as usize / 64] |= 1 << (cpu % 64);
    }
}

/// Reads them back; empty means all.
pub(crate) fn get(app: &syrup_scx_app) -> Vec<u32> {
    if app.masked == SYRUP_SCX_ALL_CPUS {
        return Vec::new();
    }
    (0..SYRUP_MAX_CPUS).filter(|cpu| app.cpus[*cpu as usize / 64] >> (cpu % 64) & 1 == 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_come_back_sorted_from_the_mask() {
        let mut app = syrup_scx_app::default();
        let online: Vec<u32> = (0..128).collect();
        set(&mut app, &checked(&[70, 3, 3, 0], 128, &online).unwrap());
        assert_eq!(get(&app), [0, 3, 70]);
    }

    #[test]
    fn no_cores_means_all() {
        let mut app = syrup_scx_app::default();
        set(&mut app, &[1]);
        set(&mut app, &[]);
        assert_eq!((app.masked, get(&app)), (0, vec![]));
    }

    #[test]
    fn a_core_the_machine_lacks_is_refused() {
        let checked = |cpus: &[u32]| checked(cpus, 4, &[0, 1, 3]);
        let error = checked(&[1, 4]).unwrap_err().to_string();
        assert!(error.contains("no core 4") && error.contains("0 to 3"), "{error}");
        let error = checked(&[1, 2]).unwrap_err().to_string();
        assert!(error.contains("core 2 is offline"), "{error}");
        assert_eq!(checked(&[3, 1]).unwrap(), [1, 3]);
        assert!(checked(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_list_of_the_kernel_is_read() {
        assert_eq!(listed("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(listed("7\n"), [7]);
        assert_eq!(listed("\n"), Vec::<u32>::new());
        assert_eq!(listed("510-600\n"), [510, 511]);
        // SAFETY: no memory is passed.
        let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        assert_eq!(online().unwrap().len(), count as usize);
    }

    #[test]
    fn each_core_has_a_bit_of_its_own_up_to_the_last() {
        let last = SYRUP_MAX_CPUS - 1;
        for cpu in [0, 1, 63, 64, 65, last] {
            let mut app = syrup_scx_app::default();
            set(&mut app, &[cpu]);
            assert_eq!((app.masked, get(&app)), (1, vec![cpu]));
            let set: u32 = app.cpus.iter().map(|word| word.count_ones()).sum();
            assert_eq!((set, app.cpus[cpu as usize / 64]), (1, 1 << (cpu % 64)));
        }
        let all: Vec<u32> = (0..SYRUP_MAX_CPUS).collect();
        let mut app = syrup_scx_app::default();
        set(&mut app, &all);
        assert_eq!(get(&app), all);
        // Cores that the mask cannot hold are left out.
        set(&mut app, &[2, SYRUP_MAX_CPUS]);
        assert_eq!(get(&app), [2]);
    }
}
