//! What the kernel has, asked of the kernel.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

type NextId = unsafe extern "C" fn(u32, *mut u32) -> i32;

/// Walks the ids of one kind of object.
fn ids(next: NextId) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut id = 0;
    // SAFETY: `next` is one of libbpf's get_next_id calls, which write one u32.
    while unsafe { next(id, &raw mut id) } == 0 {
        found.insert(id);
    }
    found
}

/// BPF programs, maps and links that belong together: what is pinned below one
/// folder, the programs that use those maps, the maps those programs use, and
/// the links of either. What other tests and other programs of the machine load
/// meanwhile is none of it, so tests may run side by side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelObjects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl KernelObjects {
    /// Everything that hangs together with the pins below `dir`.
    ///
    /// # Panics
    /// When a pin cannot be opened.
    #[must_use]
    pub fn pinned_below(dir: &Path) -> Self {
        let mut found = Self::default();
        found.add_pins(dir);
        while found.add_users() {}
        found
    }

    /// Takes ids from the kernel's own description of each pinned object: a
    /// link's names its program or map too.
    fn add_pins(&mut self, dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.add_pins(&path);
                continue;
            }
            // The kernel's own files (`progs.debug`): no pin has a '.' in its name.
            if path.extension().is_some() {
                continue;
            }
            let name = CString::new(path.as_os_str().as_bytes()).unwrap();
            // SAFETY: the name is NUL-terminated and lives for the call.
            let fd = unsafe { libbpf_sys::bpf_obj_get(name.as_ptr()) };
            assert!(fd >= 0, "{}: {}", path.display(), std::io::Error::from_raw_os_error(-fd));
            // SAFETY: the kernel just made this fd for us.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let about = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
            for line in std::fs::read_to_string(about).unwrap().lines() {
                let Some((field, value)) = line.split_once(':') else { continue };
                let ids = match field {
                    "prog_id" => &mut self.programs,
                    "map_id" => &mut self.maps,
                    "link_id" => &mut self.links,
                    _ => continue,
                };
                ids.insert(value.trim().parse().unwrap());
            }
        }
    }

    /// Adds the programs and links of the machine that use what was found; true
    /// when there was a new one. Maps are never opened by id: a PROG_ARRAY that
    /// the kernel is emptying meanwhile (seen on 6.18) is then never freed.
    fn add_users(&mut self) -> bool {
        let before = self.clone();
        for id in ids(libbpf_sys::bpf_prog_get_next_id) {
            // One that is gone by now is nobody's.
            let Some(maps) = maps_of_program(id) else { continue };
            if self.programs.contains(&id) || maps.iter().any(|map| self.maps.contains(map)) {
                self.programs.insert(id);
                self.maps.extend(maps);
            }
        }
        for id in ids(libbpf_sys::bpf_link_get_next_id) {
            let Some((program, map)) = target_of_link(id) else { continue };
            if self.programs.contains(&program) || map.is_some_and(|map| self.maps.contains(&map)) {
                self.links.insert(id);
            }
        }
        *self != before
    }

    /// Those of them that the kernel still has.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let still = |kind: &str, ours: &BTreeSet<u32>, next: NextId| {
            ids(next).intersection(ours).map(|id| format!("{kind} {id}")).collect::<Vec<_>>()
        };
        let mut left = still("program", &self.programs, libbpf_sys::bpf_prog_get_next_id);
        left.extend(still("map", &self.maps, libbpf_sys::bpf_map_get_next_id));
        left.extend(still("link", &self.links, libbpf_sys::bpf_link_get_next_id));
        left
    }

    /// Waits until the kernel has freed all of them, which takes it some grace
    /// periods.
    ///
    /// # Panics
    /// When some stay, or when there was no program and no map to begin with.
    #[track_caller]
    pub fn assert_freed(&self) {
        assert!(!self.programs.is_empty() && !self.maps.is_empty(), "nothing was pinned: {self:?}");
        self.assert_none_left("");
    }

    /// The same, also where there was nothing.
    ///
    /// # Panics
    /// When some stay, with `after` what.
    #[track_caller]
    pub fn assert_none_left(&self, after: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.left().is_empty() {
            assert!(Instant::now() < deadline, "{after} left in the kernel: {:?}", self.left());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Ids of the maps that program `id` uses; `None` when there is no such program.
///
/// # Panics
/// When the kernel does not say.
#[must_use]
pub fn maps_of_program(id: u32) -> Option<Vec<u32>> {
    // SAFETY: takes a number, gives an fd or a negative errno.
    let fd = unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) };
    // SAFETY: the kernel just made this fd for us.
    let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })?;
    // A program uses at most 64 maps (MAX_USED_MAPS).
    let mut maps = vec![0u32; 64];
    let mut info = libbpf_sys::bpf_prog_info {
        nr_map_ids: maps.len() as u32,
        map_ids: maps.as_mut_ptr() as u64,
        ..Default::default()
    };
    let mut len = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: info has the size in len and points to as many ids as it says.
    let err =
        unsafe { libbpf_sys::bpf_prog_get_info_by_fd(fd.as_raw_fd(), &raw mut info, &raw mut len) };
    assert_eq!(err, 0, "program {id}: {}", std::io::Error::from_raw_os_error(-err));
    maps.truncate(info.nr_map_ids as usize);
    Some(maps)
}

/// The name of map `id`; `None` when there is no such map. Not for a PROG_ARRAY that may be
/// going: see [`KernelObjects`].
pub(crate) fn map_name(id: u32) -> Option<String> {
    // SAFETY: takes a number, gives an fd or a negative errno.
    let fd = unsafe { libbpf_sys::bpf_map_get_fd_by_id(id) };
    // SAFETY: the kernel just made this fd for us.
    let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })?;
    let mut info = libbpf_sys::bpf_map_info::default();
    let mut len = size_of::<libbpf_sys::bpf_map_info>() as u32;
    // SAFETY: info has the size in len.
    let err =
        unsafe { libbpf_sys::bpf_map_get_info_by_fd(fd.as_raw_fd(), &raw mut info, &raw mut len) };
    assert_eq!(err, 0, "map {id}: {}", std::io::Error::from_raw_os_error(-err));
    let name = info.name.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0);
    Some(String::from_utf8_lossy(&name.collect::<Vec<u8>>()).into_owned())
}

/// The program, and for a scheduler the map, that a link attaches.
fn target_of_link(id: u32) -> Option<(u32, Option<u32>)> {
    // SAFETY: takes a number, gives an fd or a negative errno.
    let fd = unsafe { libbpf_sys::bpf_link_get_fd_by_id(id) };
    // SAFETY: the kernel just made this fd for us.
    let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })?;
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut len = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: info has the size in len.
    let err =
        unsafe { libbpf_sys::bpf_link_get_info_by_fd(fd.as_raw_fd(), &raw mut info, &raw mut len) };
    assert_eq!(err, 0, "link {id}: {}", std::io::Error::from_raw_os_error(-err));
    let map = match info.type_ {
        // SAFETY: the type says which member of the union the kernel filled in.
        libbpf_sys::BPF_LINK_TYPE_STRUCT_OPS => unsafe {
            Some(info.__bindgen_anon_1.struct_ops.map_id)
        },
        _ => None,
    };
    Some((info.prog_id, map))
}

/// Scheduling class of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadClass {
    /// EEVDF.
    Fair,
    /// sched_ext.
    Ext,
    /// Something else.
    Other(i32),
}

/// The class of thread `tid`.
///
/// # Panics
/// When there is no such thread.
#[must_use]
pub fn sched_class(tid: i32) -> ThreadClass {
    // SAFETY: the call takes a number and touches no memory of ours.
    match unsafe { libc::sched_getscheduler(tid) } {
        0 => ThreadClass::Fair,
        7 => ThreadClass::Ext,
        -1 => panic!("thread {tid}: {}", std::io::Error::last_os_error()),
        other => ThreadClass::Other(other),
    }
}

/// Announces that this test makes the kernel of its guest complain, once, with a
/// message that contains `text`: an ejection, a warning. `vm/run` fails a guest
/// with a complaint that nobody announced, and one whose announced complaint
/// never came (vm/README.md).
///
/// Elsewhere nobody judges the log: then this does nothing.
///
/// # Panics
/// When the log of the guest cannot be written.
pub fn expect_kernel_message(text: &str) {
    if std::env::var_os("SYRUP_VM").is_none() {
        return;
    }
    // The runner says so too, but perhaps only after this.
    if let Some(test) = std::thread::current().name() {
        announce("begin", test);
    }
    announce("expect", text);
}

fn announce(what: &str, text: &str) {
    // One write is one record.
    OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(format!("syrup-test: {what} {text}").as_bytes()))
        .unwrap_or_else(|e| panic!("/dev/kmsg: {e}"));
}
