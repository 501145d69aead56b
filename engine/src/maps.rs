//! The app's Maps: made once, pinned, shared by every policy that names them.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use libbpf_rs::{MapHandle, MapType};
use syrup_hook::{App, sys};
use syrup_protocol::{Code, Entries, Failure, MapEntry, MapInfo, Result, names};

use crate::policy::checked::MapShape;

/// The pin folder of Maps inside an app's folder; no hook has that name.
const FOLDER: &str = "maps";

/// Most bytes one Map may take.
pub(crate) const MAX_MAP_BYTES: u64 = 64 << 20;

/// Most Maps that one app may have, and most bytes of all of them: they are the kernel's
/// memory, which no limit of the tenant's counts.
const MAX_APP_MAPS: usize = 256;
pub(crate) const MAX_APP_BYTES: u64 = 256 << 20;

/// Bytes of text in a page of a dump, about; and of a value that is shown at all.
const PAGE_BYTES: usize = 4 << 20;
const MAX_SHOWN_BYTES: u32 = 1 << 20;

/// An app's Maps.
#[derive(Debug)]
pub(crate) struct Maps {
    dir: PathBuf,
    uid: u32,
}

/// Maps a load created: unpinned again unless the load succeeded.
#[derive(Debug, Default)]
pub(crate) struct Created {
    paths: Vec<PathBuf>,
}

impl Created {
    /// The load succeeded: the Maps stay.
    pub(crate) fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        for path in &self.paths {
            if let Err(e) = fs::remove_file(path) {
                log::warn!("cannot remove {}: {e}", path.display());
            }
        }
    }
}

impl Maps {
    pub(crate) fn of(app: &App) -> Self {
        Self { dir: app.dir().join(FOLDER), uid: app.uid }
    }

    /// Opens or creates the Maps that a policy names.
    pub(crate) fn ensure(
        &self,
        shapes: &[MapShape],
    ) -> Result<(BTreeMap<String, OwnedFd>, Created)> {
        let mut fds = BTreeMap::new();
        let mut created = Created::default();
        let mut room = None;
        for shape in shapes {
            let path = self.dir.join(&shape.name);
            let fd = match sys::obj_get(&path)? {
                Some(fd) => {
                    check_shape(shape, &fd)?;
                    fd
                }
                None => {
                    if room.is_none() {
                        room = Some(self.room()?);
                    }
                    if let Some(room) = &mut room {
                        room.take(shape)?;
                    }
                    let fd = create(shape)?;
                    self.make_folder()?;
                    sys::obj_pin(fd.as_fd(), &path)?;
                    created.paths.push(path.clone());
                    own(&path, self.uid, 0o600)?;
                    fd
                }
            };
            fds.insert(shape.name.clone(), fd);
        }
        Ok((fds, created))
    }

    /// What the app may still have.
    fn room(&self) -> Result<Room> {
        let mut room = Room::default();
        for map in self.list()? {
            room.maps += 1;
            let MapInfo { name, value_bytes, entries, .. } = map;
            room.bytes += MapShape { name, value_bytes, entries }.bytes();
        }
        Ok(room)
    }

    /// The app's Maps by name.
    pub(crate) fn list(&self) -> Result<Vec<MapInfo>> {
        let mut maps = Vec::new();
        let Ok(entries) = fs::read_dir(&self.dir) else { return Ok(maps) };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(fd) = sys::obj_get(&entry.path())? else { continue };
            let info = sys::map_info(fd.as_fd())?;
            maps.push(MapInfo {
                name,
                entries: info.max_entries,
                value_bytes: info.value_size,
                path: entry.path().display().to_string(),
            });
        }
        maps.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(maps)
    }

    /// An fd of the Map `name`.
    pub(crate) fn open(&self, app: &str, name: &str) -> Result<OwnedFd> {
        names::check_map(name)?;
        sys::obj_get(&self.dir.join(name))?.ok_or_else(|| {
            let known: Vec<String> =
                self.list().unwrap_or_default().into_iter().map(|map| map.name).collect();
            Failure::new(Code::NotFound, format!("app '{app}' has no Map '{name}'")).advise(
                if known.is_empty() {
                    "the app has no Maps: a policy declares them with SYRUP_MAP".to_owned()
                } else {
                    format!("its Maps: {}", known.join(", "))
                },
            )
        })
    }

    fn make_folder(&self) -> Result<()> {
        match fs::create_dir(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(Failure::new(
                Code::Internal,
                format!("cannot make {}: {e}", self.dir.display()),
            )),
            // Searchable, so that the owner reaches a pin whose name it knows.
            _ => own(&self.dir, 0, 0o711),
        }
    }
}

/// An entry of the opened Map `name`.
pub(crate) fn get(map: OwnedFd, name: &str, key: u32) -> Result<MapEntry> {
    let map = sys::Map::new(map)?;
    refuse_large(name, &map)?;
    let bytes = map
        .lookup(&key.to_ne_bytes())?
        .ok_or_else(|| out_of_range(name, key, map.max_entries()))?;
    Ok(entry(key, &bytes))
}

/// Writes one.
pub(crate) fn set(map: OwnedFd, name: &str, key: u32, value: u64) -> Result<()> {
    let map = sys::Map::new(map)?;
    if map.value_size() != 8 {
        return Err(Failure::new(
            Code::Usage,
            format!("values of Map '{name}' have {} bytes", map.value_size()),
        )
        .advise("'map set' writes u64 values; write others from the application"));
    }
    if key >= map.max_entries() {
        return Err(out_of_range(name, key, map.max_entries()));
    }
    Ok(map.update(&key.to_ne_bytes(), &value.to_ne_bytes())?)
}

/// Entries from a key on, in order: a page of them.
pub(crate) fn dump(map: OwnedFd, name: &str, from: u32) -> Result<Entries> {
    let map = sys::Map::new(map)?;
    refuse_large(name, &map)?;
    // In hex, with what stands around it.
    let bytes_of_one = map.value_size() as usize * 2 + 64;
    let count = (PAGE_BYTES / bytes_of_one).max(1) as u32;
    let end = from.saturating_add(count).min(map.max_entries());
    let mut entries = Vec::new();
    for key in from..end {
        if let Some(bytes) = map.lookup(&key.to_ne_bytes())? {
            entries.push(entry(key, &bytes));
        }
    }
    Ok(Entries { entries, next: (end < map.max_entries()).then_some(end) })
}

/// Gives a pin an owner and a mode.
pub(crate) fn own(path: &Path, uid: u32, mode: u32) -> Result<()> {
    let failed = |e| {
        Failure::new(Code::Internal, format!("cannot set the owner of {}: {e}", path.display()))
    };
    std::os::unix::fs::chown(path, Some(uid), None).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// What the app has already.
#[derive(Debug, Default)]
struct Room {
    maps: usize,
    bytes: u64,
}

impl Room {
    /// For one more Map.
    fn take(&mut self, shape: &MapShape) -> Result<()> {
        self.maps += 1;
        self.bytes += shape.bytes();
        let over = |what: String| {
            Failure::new(Code::SourceRejected, format!("Map '{}': {what}", shape.name)).advise(
                "declare fewer entries; Maps of earlier policies stay until the app's last \
                 deployment is unloaded",
            )
        };
        if self.maps > MAX_APP_MAPS {
            return Err(over(format!(
                "the app's Map number {}, the limit is {MAX_APP_MAPS}",
                self.maps
            )));
        }
        if self.bytes > MAX_APP_BYTES {
            let bytes = self.bytes;
            return Err(over(format!(
                "the app's Maps take {bytes} bytes, the limit is {MAX_APP_BYTES}"
            )));
        }
        Ok(())
    }
}

/// Two policies share a Map only if they mean one of the same sizes.
fn check_shape(wanted: &MapShape, fd: &OwnedFd) -> Result<()> {
    let MapShape { name, value_bytes, entries } = wanted;
    let info = sys::map_info(fd.as_fd())?;
    if (info.value_size, info.max_entries) == (*value_bytes, *entries) {
        return Ok(());
    }
    Err(Failure::new(
        Code::Conflict,
        format!(
            "Map '{name}' exists with {} entries of {} bytes; this policy wants {entries} of \
             {value_bytes}",
            info.max_entries, info.value_size
        ),
    )
    .advise("policies of one app that name the same Map share it: declare it alike, or rename it"))
}

fn create(shape: &MapShape) -> Result<OwnedFd> {
    let MapShape { name, value_bytes, entries } = shape;
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags: libbpf_sys::BPF_F_MMAPABLE,
        ..Default::default()
    };
    let failed = |e: &dyn std::fmt::Display| {
        Failure::new(Code::Internal, format!("cannot create Map '{name}': {e:#}"))
    };
    let map = MapHandle::create(MapType::Array, Some(name), 4, *value_bytes, *entries, &options)
        .map_err(|e| failed(&e))?;
    map.as_fd().try_clone_to_owned().map_err(|e| failed(&e))
}

fn entry(key: u32, bytes: &[u8]) -> MapEntry {
    MapEntry {
        key,
        value: bytes.try_into().ok().map(u64::from_ne_bytes),
        bytes: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// A value must fit into a message.
fn refuse_large(name: &str, map: &sys::Map) -> Result<()> {
    if map.value_size() <= MAX_SHOWN_BYTES {
        return Ok(());
    }
    Err(Failure::new(
        Code::Usage,
        format!(
            "values of Map '{name}' have {} bytes, the limit is {MAX_SHOWN_BYTES}",
            map.value_size()
        ),
    )
    .advise("read it from the application, which can map it into memory: syr_map_mmap()"))
}

fn out_of_range(name: &str, key: u32, entries: u32) -> Failure {
    Failure::new(Code::Usage, format!("Map '{name}' has no key {key}"))
        .advise(format!("its keys are 0..{}", entries.saturating_sub(1)))
}
