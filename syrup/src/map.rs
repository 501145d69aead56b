//! Maps: u32 keys from 0, values of one size, shared with the app's policies.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Pod;
use aya::maps::{Array, Map as AyaMap, MapData, MapError, MapType};
use rustix::mm::{MapFlags, ProtFlags};
use syrup_protocol::Code;

use crate::App;
use crate::error::{Error, Result};

/// BPF_F_MMAPABLE of linux/bpf.h.
const MMAPABLE: u32 = 1 << 10;

/// A Map of an app. Threads may share it.
pub struct Map {
    name: String,
    // aya writes through `&mut`; the kernel does not mind, and the lock costs
    // little beside the system call.
    map: Mutex<AyaMap>,
    fd: OwnedFd,
    entries: u32,
    value_bytes: u32,
    mmapable: bool,
}

impl Map {
    /// Opens a Map: by its name in the policy, for this process's app; or by
    /// the path of its pin. A pin that this process may not open is asked of
    /// the daemon, which knows whose it is.
    ///
    /// # Errors
    /// [`Error::Daemon`] when there is no such Map, or it is another app's.
    pub fn open(name_or_path: impl AsRef<Path>) -> Result<Self> {
        let path = name_or_path.as_ref();
        let text = path.to_string_lossy();
        if text.contains('/') { Self::open_pin(path) } else { App::current().open_map(&text) }
    }

    fn open_pin(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let refused = match MapData::from_pin(path) {
            Ok(data) => return Self::new(name, data),
            Err(e) => Error::Map { what: format!("open the Map {name}"), source: io_error(e) },
        };
        let denied = refused.code() == Code::NotPermitted;
        match owner(path).filter(|_| denied) {
            Some((app, map)) => match App::named(app).map_descriptor(map) {
                Ok(fd) => Self::from_fd(fd),
                // Then the pin's own refusal is what matters.
                Err(error) if error.code() == Code::Unreachable => Err(refused),
                Err(error) => Err(error),
            },
            None => Err(refused),
        }
    }

    /// Takes a Map's descriptor, for one that was passed by another process.
    ///
    /// # Errors
    /// [`Error::Map`] when it is none.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let name = "of a descriptor".to_owned();
        let data = MapData::from_fd(fd).map_err(|e| Error::Map {
            what: "use the descriptor as a Map".to_owned(),
            source: io_error(e),
        })?;
        Self::new(name, data)
    }

    fn new(name: String, data: MapData) -> Result<Self> {
        let failed = |source| Error::Map { what: format!("open the Map {name}"), source };
        let info = data.info().map_err(|e| failed(io_error(e)))?;
        let is_array = info.map_type().is_ok_and(|kind| kind == MapType::Array);
        if !is_array || info.key_size() != 4 {
            return Err(Error::Map {
                what: format!("use the Map {name}, which is no array with u32 keys"),
                source: rustix::io::Errno::INVAL.into(),
            });
        }
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Self {
            map: Mutex::new(AyaMap::Array(data)),
            fd,
            entries: info.max_entries(),
            value_bytes: info.value_size(),
            mmapable: info.map_flags() & MMAPABLE != 0,
            name,
        })
    }

    /// Number of entries; keys are below it.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Bytes of one value.
    #[must_use]
    pub fn value_bytes(&self) -> u32 {
        self.value_bytes
    }

    /// Reads one value, by a system call (some 300 ns; see [`Map::mmap`]).
    ///
    /// # Errors
    /// [`Error::Map`]: ENOENT when `key` is out of range, EINVAL when values
    /// are not of `V`'s size.
    pub fn lookup<V: Pod>(&self, key: u32) -> Result<V> {
        let map = self.lock();
        Array::<_, V>::try_from(&*map)
            .and_then(|array| array.get(&key, 0))
            .map_err(|e| self.failed("read", key, e))
    }

    /// Writes one value, by a system call (some 300 ns; see [`Map::mmap`]).
    ///
    /// # Errors
    /// As [`Map::lookup`].
    pub fn update<V: Pod>(&self, key: u32, value: V) -> Result<()> {
        let mut map = self.lock();
        Array::<_, V>::try_from(&mut *map)
            .and_then(|mut array| array.set(key, value, 0))
            .map_err(|e| self.failed("write", key, e))
    }

    /// Maps it into memory: loads and stores without system calls.
    ///
    /// # Errors
    /// [`Error::Map`]: EINVAL when the Map was not made for it.
    pub fn mmap(&self) -> Result<MappedMap> {
        let failed = |source: io::Error| Error::Map {
            what: format!("map the Map {} into memory", self.name),
            source,
        };
        if !self.mmapable {
            return Err(failed(rustix::io::Errno::INVAL.into()));
        }
        let words_per_entry = (self.value_bytes as usize).div_ceil(8);
        let words = words_per_entry * self.entries as usize;
        // The kernel rounds it up to whole pages.
        let len = words * 8;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &self.fd,
                0,
            )
        };
        let address = address.map_err(|e| failed(e.into()))?;
        let base = NonNull::new(address.cast()).ok_or_else(|| failed(io::Error::other("at 0")))?;
        Ok(MappedMap { base, words, words_per_entry, len })
    }

    fn lock(&self) -> MutexGuard<'_, AyaMap> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, verb: &str, key: u32, error: MapError) -> Error {
        Error::Map {
            what: format!("{verb} entry {key} of the Map {}", self.name),
            source: io_error(error),
        }
    }
}

impl App {
    /// Opens the app's Map `name`. Without a daemon, root finds its pin.
    ///
    /// # Errors
    /// [`Error::Daemon`] when there is no such Map.
    pub fn open_map(&self, name: &str) -> Result<Map> {
        let fd = match self.map_descriptor(name) {
            Ok(fd) => fd,
            Err(error) if error.code() == Code::Unreachable => {
                let pin = MapData::from_pin(self.map_pin(name)).map_err(|_| error)?;
                return Map::new(name.to_owned(), pin);
            }
            Err(error) => return Err(error),
        };
        let data = MapData::from_fd(fd).map_err(|e| Error::Map {
            what: format!("open the Map {name}"),
            source: io_error(e),
        })?;
        Map::new(name.to_owned(), data)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Map> for OwnedFd {
    fn from(map: Map) -> Self {
        map.fd
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("name", &self.name)
            .field("entries", &self.entries)
            .field("value_bytes", &self.value_bytes)
            .finish_non_exhaustive()
    }
}

/// A Map in this process's memory. Policies and other processes see each store
/// at once; each 8-byte word is written and read whole.
///
/// It is a slice of words. Entry `i` begins at word `i * words_per_entry()`,
/// which is word `i` for the usual 8-byte values.
pub struct MappedMap {
    base: NonNull<AtomicU64>,
    words: usize,
    words_per_entry: usize,
    len: usize,
}

// SAFETY: the mapping belongs to the value alone and is only accessed atomically.
unsafe impl Send for MappedMap {}
// SAFETY: as above.
unsafe impl Sync for MappedMap {}

impl MappedMap {
    /// Words (8 bytes each) of one value, rounded up.
    #[must_use]
    pub fn words_per_entry(&self) -> usize {
        self.words_per_entry
    }

    /// The words of one entry.
    ///
    /// # Panics
    /// When `entry` is out of range.
    #[must_use]
    pub fn entry(&self, entry: usize) -> &[AtomicU64] {
        &self[entry * self.words_per_entry..][..self.words_per_entry]
    }

    /// Reads word `index`.
    ///
    /// # Panics
    /// When it is out of range.
    #[inline]
    #[must_use]
    pub fn load(&self, index: usize) -> u64 {
        self[index].load(Ordering::Acquire)
    }

    /// Writes word `index`. What was written before it is visible to whoever
    /// reads this value.
    ///
    /// # Panics
    /// When it is out of range.
    #[inline]
    pub fn store(&self, index: usize, value: u64) {
        self[index].store(value, Ordering::Release);
    }

    /// Adds to word `index` and returns what was there; wraps around.
    ///
    /// # Panics
    /// When it is out of range.
    #[inline]
    pub fn fetch_add(&self, index: usize, value: u64) -> u64 {
        self[index].fetch_add(value, Ordering::AcqRel)
    }

    /// Where it is, for C.
    pub(crate) fn into_raw(self) -> (*mut libc::c_void, usize) {
        let this = std::mem::ManuallyDrop::new(self);
        (this.base.as_ptr().cast(), this.len)
    }
}

impl Deref for MappedMap {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds `words` words as long as self lives, and
        // every bit pattern is an AtomicU64.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for MappedMap {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length; no reference outlives self.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl fmt::Debug for MappedMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedMap").field("words", &self.words).finish_non_exhaustive()
    }
}

/// App and Map of a pin `.../APP/maps/MAP`.
fn owner(path: &Path) -> Option<(&str, &str)> {
    let mut parts = path.iter().rev().map(|part| part.to_str());
    let map = parts.next()??;
    let folder = parts.next()??;
    let app = parts.next()??;
    (folder == "maps").then_some((app, map))
}

/// The errno inside aya's error.
fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(e) => e.io_error,
        MapError::IoError(e) => e,
        MapError::OutOfBounds { .. } | MapError::KeyNotFound => rustix::io::Errno::NOENT.into(),
        _ => rustix::io::Errno::INVAL.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_path_names_app_and_map() {
        let path = Path::new("/sys/fs/bpf/syrup/rocks/maps/request_type");
        assert_eq!(owner(path), Some(("rocks", "request_type")));
        for other in ["/sys/fs/bpf/syrup/rocks/scx-syrup/record", "maps/m", "/"] {
            assert_eq!(owner(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_map_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Map::from_fd(file.into()), Err(Error::Map { .. })));
        let error = Map::open("/nowhere/maps/m").unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT, "{error}");
    }
}
