//! The app's Maps: made once, pinned, shared by every policy that names them.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use libbpf_rs::{MapHandle, MapType};
use syrup_hook::{App, PolicyObject, sys};
use syrup_protocol::{Code, Failure, MapEntry, MapInfo, Result, names};

/// The pin folder of Maps inside an app's folder; no hook has that name.
const FOLDER: &str = "maps";

/// Most bytes one Map may take.
const MAX_BYTES: u64 = 64 << 20;

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

/// Type and sizes of a Map; two policies share one only if these are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    value_bytes: u32,
    entries: u32,
}

impl Maps {
    pub(crate) fn of(app: &App) -> Self {
        Self { dir: app.dir().join(FOLDER), uid: app.uid }
    }

    /// Opens or creates the Maps `names` of a linked policy.
    pub(crate) fn ensure(
        &self,
        linked: &[u8],
        names: &[String],
    ) -> Result<(BTreeMap<String, OwnedFd>, Created)> {
        let mut fds = BTreeMap::new();
        let mut created = Created::default();
        for (name, shape) in shapes(linked, names)? {
            let path = self.dir.join(&name);
            let fd = match sys::obj_get(&path)? {
                Some(fd) => {
                    self.check_shape(&name, &fd, shape)?;
                    fd
                }
                None => {
                    let fd = create(&name, shape)?;
                    self.make_folder()?;
                    sys::obj_pin(fd.as_fd(), &path)?;
                    created.paths.push(path.clone());
                    own(&path, self.uid, 0o600)?;
                    fd
                }
            };
            fds.insert(name, fd);
        }
        Ok((fds, created))
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

    fn check_shape(&self, name: &str, fd: &OwnedFd, wanted: Shape) -> Result<()> {
        let info = sys::map_info(fd.as_fd())?;
        let found = Shape { value_bytes: info.value_size, entries: info.max_entries };
        if found == wanted {
            return Ok(());
        }
        Err(Failure::new(
            Code::Conflict,
            format!(
                "Map '{name}' exists with {} entries of {} bytes; this policy wants {} of {}",
                found.entries, found.value_bytes, wanted.entries, wanted.value_bytes
            ),
        )
        .advise(
            "policies of one app that name the same Map share it: declare it alike, or rename it",
        ))
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

/// All entries, in order of their keys.
pub(crate) fn dump(map: OwnedFd) -> Result<Vec<MapEntry>> {
    let map = sys::Map::new(map)?;
    let mut entries = Vec::new();
    for key in 0..map.max_entries() {
        if let Some(bytes) = map.lookup(&key.to_ne_bytes())? {
            entries.push(entry(key, &bytes));
        }
    }
    Ok(entries)
}

/// Gives a pin an owner and a mode.
pub(crate) fn own(path: &Path, uid: u32, mode: u32) -> Result<()> {
    let failed = |e| {
        Failure::new(Code::Internal, format!("cannot set the owner of {}: {e}", path.display()))
    };
    std::os::unix::fs::chown(path, Some(uid), None).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

fn shapes(linked: &[u8], names: &[String]) -> Result<Vec<(String, Shape)>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut object = PolicyObject::open_bytes(linked, "policy")?;
    let mut shapes = Vec::new();
    for map in object.object_mut().maps() {
        let name = map.name().to_string_lossy().into_owned();
        if !names.contains(&name) {
            continue;
        }
        let bad = |why: String| {
            Failure::new(Code::SourceRejected, format!("Map '{name}': {why}")).advise(
                "declare Maps with SYRUP_MAP(name, entries) or SYRUP_MAP_OF(name, type, entries)",
            )
        };
        let shape = Shape { value_bytes: map.value_size(), entries: map.max_entries() };
        let bytes = u64::from(shape.value_bytes.next_multiple_of(8)) * u64::from(shape.entries);
        if map.map_type() != MapType::Array
            || map.key_size() != 4
            || map.map_flags() != libbpf_sys::BPF_F_MMAPABLE
        {
            return Err(bad("it is not a memory-mappable array with u32 keys".to_owned()));
        }
        if shape.entries == 0 || shape.value_bytes == 0 || bytes > MAX_BYTES {
            return Err(bad(format!("{bytes} bytes; 1 to {MAX_BYTES} are allowed")));
        }
        shapes.push((name, shape));
    }
    Ok(shapes)
}

fn create(name: &str, shape: Shape) -> Result<OwnedFd> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags: libbpf_sys::BPF_F_MMAPABLE,
        ..Default::default()
    };
    let failed = |e: &dyn std::fmt::Display| {
        Failure::new(Code::Internal, format!("cannot create Map '{name}': {e:#}"))
    };
    let map = MapHandle::create(
        MapType::Array,
        Some(name),
        4,
        shape.value_bytes,
        shape.entries,
        &options,
    )
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

fn out_of_range(name: &str, key: u32, entries: u32) -> Failure {
    Failure::new(Code::Usage, format!("Map '{name}' has no key {key}"))
        .advise(format!("its keys are 0..{}", entries.saturating_sub(1)))
}
