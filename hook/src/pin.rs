//! Pin folders: built aside, renamed into place, read back.
//!
//! bpffs forbids '.' in names and supports rename(2), also of folders. So a
//! deployment's pins appear all at once, and what an interrupted call leaves
//! is a folder whose name starts with [`TEMPORARY`].
//!
//! A deployment's folder holds the `record` and the program (`policy`) of the
//! policy that decides, and what else its hook pins. While a policy is being
//! replaced it also holds `_new_policy/` with the next `policy` and `record`;
//! which of the two is true is decided by the program in the PROG_ARRAY (`live`
//! below, its kernel id; 0 for an empty slot), so a process that dies between
//! any two steps leaves no doubt.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use libbpf_rs::{MapHandle, MapType};
use rustix::fs::{CWD, RenameFlags};

use crate::record::{RECORD, Record};
use crate::sys::{self, Map};
use crate::{Error, Result};

/// Prefix of folders that are not in place yet; no app or hook name can have it.
pub const TEMPORARY: &str = "_new_";
/// The pinned program of the policy.
pub const POLICY: &str = "policy";

/// A folder under construction: removed again unless [`Staged::commit`] is called.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl Staged {
    /// Starts a folder that shall become `target`. What an earlier attempt
    /// left is removed: the caller holds the engine's lock, so nobody is using it.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the path.
    pub fn new(target: &Path) -> Result<Self> {
        if target.file_name().is_none() {
            return Err(Error::Defect(format!("{} is no pin folder", target.display())));
        }
        let path = aside(target);
        remove_tree(&path)?;
        fs::create_dir(&path)
            .map_err(|e| Error::kernel(format!("make the folder {}", path.display()), e))?;
        Ok(Self { path, target: target.to_owned(), committed: false })
    }

    /// The folder to pin into.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder into place.
    ///
    /// # Errors
    /// [`Error::Kernel`]: `EEXIST`/`ENOTEMPTY` when the target is there.
    pub fn commit(&mut self) -> Result<()> {
        fs::rename(&self.path, &self.target).map_err(|e| {
            Error::kernel(format!("rename {} to {}", self.path.display(), self.target.display()), e)
        })?;
        self.committed = true;
        Ok(())
    }

    /// Renames the folder into the place of the one that is there, which is at
    /// [`Staged::path`] then: one step.
    ///
    /// # Errors
    /// [`Error::Kernel`]: `EINVAL` before Linux 5.16.
    pub fn exchange(&mut self) -> Result<()> {
        let (path, target) = (&self.path, &self.target);
        rustix::fs::renameat_with(CWD, path, CWD, target, RenameFlags::EXCHANGE).map_err(|e| {
            let what = format!("exchange {} and {}", path.display(), target.display());
            Error::kernel(what, e)
        })?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed
            && let Err(e) = remove_tree(&self.path)
        {
            log::warn!("{e}");
        }
    }
}

/// Where a folder is built, and where it goes before it is taken down.
#[must_use]
pub fn aside(dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    dir.with_file_name(format!("{TEMPORARY}{name}"))
}

/// Puts a folder aside, in one step: whoever dies while he takes it down leaves garbage
/// rather than a deployment that is listed and does nothing. A folder that is not there is
/// no error.
///
/// # Errors
/// [`Error::Kernel`] with both paths; so when something lies there already.
pub fn put_aside(dir: &Path) -> Result<PathBuf> {
    let aside = aside(dir);
    match fs::rename(dir, &aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            let what = format!("rename {} to {}", dir.display(), aside.display());
            Err(Error::kernel(what, e))
        }
        _ => Ok(aside),
    }
}

/// Puts a folder back that was put aside, if it is there.
pub(crate) fn put_back(aside: &Path, dir: &Path) {
    match fs::rename(aside, dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot rename {} to {}: {e}", aside.display(), dir.display());
        }
        _ => {}
    }
}

/// The folders of apps below the root of all pins, by name; none when nothing was ever
/// deployed there.
///
/// # Errors
/// [`Error::Kernel`] with the path.
pub fn app_folders(bpffs: &Path) -> Result<Vec<PathBuf>> {
    let cannot = |e| Error::kernel(format!("read {}", bpffs.display()), e);
    let entries = match fs::read_dir(bpffs) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(cannot(e)),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(cannot)?;
        // No app's name starts with `_`, as TEMPORARY and the folders of hooks do.
        if !entry.file_name().to_string_lossy().starts_with('_') && entry.path().is_dir() {
            folders.push(entry.path());
        }
    }
    folders.sort();
    Ok(folders)
}

/// The record that came with `live`, where that is the next policy of an interrupted
/// [`replace`].
///
/// # Errors
/// As [`Record::read`].
pub fn next_record(dir: &Path, live: u32) -> Result<Option<Record>> {
    let next = next(dir);
    if is_program(&next, live)? { Record::read(&next) } else { Ok(None) }
}

/// The program that decides now. By its pin: opening by id would need
/// CAP_SYS_ADMIN.
///
/// # Errors
/// [`Error::Pin`] when it is not pinned here.
pub fn live_program(dir: &Path, live: u32) -> Result<OwnedFd> {
    for dir in [&next(dir), dir] {
        if let Some(program) = program(dir)?
            && sys::program_id(program.as_fd())? == live
        {
            return Ok(program);
        }
    }
    let reason = match live {
        0 => "no policy is in the PROG_ARRAY".to_owned(),
        id => format!("program {id} of the PROG_ARRAY has no pin"),
    };
    Err(Error::Pin { path: dir.join(POLICY), reason })
}

/// Finishes or undoes what an interrupted [`replace`] left.
///
/// # Errors
/// [`Error::Kernel`] with the path; then which of the two is live is still known.
pub fn settle(dir: &Path, live: u32) -> Result<()> {
    let next = next(dir);
    if is_program(&next, live)? {
        // The program goes last: while it is there, the rest is known to be true.
        for name in [RECORD, POLICY] {
            match fs::rename(next.join(name), dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::kernel(format!("rename {}", next.join(name).display()), e));
                }
                _ => {}
            }
        }
    }
    remove_tree(&next)
}

/// Makes `program`, described by `record`, decide instead of `live`; `set` puts
/// it into the PROG_ARRAY. An error means that nothing changed.
///
/// # Errors
/// [`Error::Kernel`] with the path, or what `set` says.
pub fn replace(
    dir: &Path,
    live: u32,
    program: BorrowedFd<'_>,
    record: &Record,
    set: impl FnOnce() -> Result<()>,
) -> Result<()> {
    settle(dir, live)?;
    let next = next(dir);
    fs::create_dir(&next)
        .map_err(|e| Error::kernel(format!("make the folder {}", next.display()), e))?;
    let prepared = sys::program_id(program).and_then(|id| {
        sys::obj_pin(program, &next.join(POLICY))?;
        record.write(&next)?;
        set()?;
        Ok(id)
    });
    match prepared {
        Ok(id) => {
            // It decides already, and the folder says so as it is.
            if let Err(e) = settle(dir, id) {
                log::warn!("{e}");
            }
            Ok(())
        }
        Err(e) => {
            if let Err(e) = remove_tree(&next) {
                log::warn!("{e}");
            }
            Err(e)
        }
    }
}

/// Where the next policy of a deployment is pinned.
fn next(dir: &Path) -> PathBuf {
    aside(&dir.join(POLICY))
}

fn program(dir: &Path) -> Result<Option<OwnedFd>> {
    sys::obj_get(&dir.join(POLICY))
}

/// Whether the policy pinned in `dir` is the program `id`.
fn is_program(dir: &Path, id: u32) -> Result<bool> {
    match program(dir)? {
        Some(program) => Ok(sys::program_id(program.as_fd())? == id),
        None => Ok(false),
    }
}

/// Removes a pin; one that is not there is no error.
///
/// # Errors
/// [`Error::Kernel`] with the path.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::kernel(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

/// Removes a pin folder with all it holds; one that is not there is no error.
///
/// # Errors
/// [`Error::Kernel`] with the path.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::kernel(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

/// Makes a map with keys of four bytes, not pinned yet.
///
/// # Errors
/// [`Error::Kernel`].
pub fn create_map(type_: MapType, name: &str, value_size: usize, entries: u32) -> Result<Map> {
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let map = MapHandle::create(type_, Some(name), 4, value_size as u32, entries, &opts)
        .map_err(|e| Error::bpf(format!("create the map {name}"), &e))?;
    let fd = map.as_fd().try_clone_to_owned();
    Map::new(fd.map_err(|e| Error::kernel(format!("keep the map {name}"), e))?)
}

/// Makes an array map, not pinned yet.
///
/// # Errors
/// [`Error::Kernel`].
pub fn create_array(name: &str, value_size: usize, entries: u32) -> Result<Map> {
    create_map(MapType::Array, name, value_size, entries)
}
