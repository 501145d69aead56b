//! bpf(2) calls on fds, where libbpf-rs wants an object of its own instead.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::load::c_string;
use crate::{Error, Result};

/// Pins a program, map or link.
///
/// # Errors
/// [`Error::Kernel`] with the path.
pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let c_path = c_string(path)?;
    // SAFETY: fd is open and c_path NUL-terminated for the length of the call.
    let err = unsafe { libbpf_sys::bpf_obj_pin(fd.as_raw_fd(), c_path.as_ptr()) };
    check(err).map_err(|e| Error::kernel(format!("pin {}", path.display()), e)).map(drop)
}

/// Attaches a struct_ops map that was attached before, and is not now.
///
/// # Errors
/// What the kernel says.
pub fn struct_ops_link(map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: map is open, and no options are given.
    let fd = check(unsafe {
        libbpf_sys::bpf_link_create(
            map.as_raw_fd(),
            0,
            libbpf_sys::BPF_STRUCT_OPS,
            std::ptr::null(),
        )
    })?;
    // SAFETY: the kernel just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a pinned object; `None` when there is no such pin.
///
/// # Errors
/// [`Error::Kernel`] with the path.
pub fn obj_get(path: &Path) -> Result<Option<OwnedFd>> {
    let c_path = c_string(path)?;
    // SAFETY: c_path is NUL-terminated for the length of the call.
    let fd = unsafe { libbpf_sys::bpf_obj_get(c_path.as_ptr()) };
    match check(fd) {
        // SAFETY: the kernel just made this fd for us.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::kernel(format!("open the pin {}", path.display()), e)),
    }
}

/// Opens a pinned object that must be there.
///
/// # Errors
/// [`Error::Pin`] when it is not.
pub fn obj_get_required(path: &Path) -> Result<OwnedFd> {
    obj_get(path)?
        .ok_or_else(|| Error::Pin { path: path.to_owned(), reason: "the pin is gone".to_owned() })
}

/// Kernel id of a program.
///
/// # Errors
/// [`Error::Kernel`].
pub fn program_id(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: info is a zeroed bpf_prog_info and len its size.
    let err =
        unsafe { libbpf_sys::bpf_prog_get_info_by_fd(fd.as_raw_fd(), &raw mut info, &raw mut len) };
    check(err).map_err(|e| Error::kernel("read a program's id", e))?;
    Ok(info.id)
}

fn fits(what: &str, bytes: &[u8], size: usize) -> Result<()> {
    if bytes.len() == size {
        return Ok(());
    }
    Err(Error::Defect(format!("a {what} of this map has {size} bytes, not {}", bytes.len())))
}

/// A map by fd. Keys and values are bytes; none that are shorter or longer than the
/// kernel takes reach it.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    per_cpu: bool,
}

impl Map {
    /// Wraps a map's fd.
    ///
    /// # Errors
    /// [`Error::Kernel`] when fd is no map.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let info = map_info(fd.as_fd())?;
        let per_cpu = matches!(
            info.type_,
            libbpf_sys::BPF_MAP_TYPE_PERCPU_ARRAY | libbpf_sys::BPF_MAP_TYPE_PERCPU_HASH
        );
        Ok(Self {
            fd,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            per_cpu,
        })
    }

    /// Opens a pinned map that must be there.
    ///
    /// # Errors
    /// [`Error::Pin`] when it is not.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(obj_get_required(path)?)
    }

    /// Number of entries the map can hold.
    #[must_use]
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Bytes of one value.
    #[must_use]
    pub fn value_size(&self) -> u32 {
        self.value_size
    }

    /// The value's bytes, or `None` when there is no such key.
    ///
    /// # Errors
    /// [`Error::Kernel`], or [`Error::Defect`] for a key of another size.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        fits("key", key, self.key_size as usize)?;
        let mut value = vec![0u8; self.buffer_len()?];
        // SAFETY: the key's size was checked, the value has the map's (buffer_len
        // covers the per-CPU case).
        let err = unsafe {
            libbpf_sys::bpf_map_lookup_elem(
                self.fd.as_raw_fd(),
                key.as_ptr().cast(),
                value.as_mut_ptr().cast(),
            )
        };
        match check(err) {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed("read an entry of", e)),
        }
    }

    /// Writes a value.
    ///
    /// # Errors
    /// [`Error::Kernel`], or [`Error::Defect`] for a key or a value of another size.
    pub fn update(&self, key: &[u8], value: &[u8]) -> Result<()> {
        fits("key", key, self.key_size as usize)?;
        fits("value", value, self.buffer_len()?)?;
        // SAFETY: both sizes were checked.
        let err = unsafe {
            libbpf_sys::bpf_map_update_elem(
                self.fd.as_raw_fd(),
                key.as_ptr().cast(),
                value.as_ptr().cast(),
                0,
            )
        };
        check(err).map_err(|e| self.failed("write an entry of", e)).map(drop)
    }

    /// Deletes a key; a key that is not there is no error.
    ///
    /// # Errors
    /// [`Error::Kernel`], or [`Error::Defect`] for a key of another size.
    pub fn delete(&self, key: &[u8]) -> Result<()> {
        fits("key", key, self.key_size as usize)?;
        // SAFETY: the key's size was checked.
        let err =
            unsafe { libbpf_sys::bpf_map_delete_elem(self.fd.as_raw_fd(), key.as_ptr().cast()) };
        match check(err) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(self.failed("delete an entry of", e)),
        }
    }

    fn failed(&self, action: &str, e: io::Error) -> Error {
        let name = map_info(self.fd.as_fd()).map(|info| {
            let name = info.name.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0);
            String::from_utf8_lossy(&name.collect::<Vec<u8>>()).into_owned()
        });
        Error::kernel(format!("{action} the map '{}'", name.unwrap_or_default()), e)
    }

    fn are_counters(&self) -> Result<()> {
        if self.value_size == 8 && self.per_cpu {
            return Ok(());
        }
        Err(Error::Defect("these are not counters per CPU".to_owned()))
    }

    /// Sum over all CPUs of a per-CPU `u64` entry.
    ///
    /// # Errors
    /// [`Error::Kernel`], or [`Error::Defect`] when values are not `u64`.
    pub fn sum(&self, key: u32) -> Result<u64> {
        self.are_counters()?;
        let bytes = self.lookup(&key.to_ne_bytes())?.unwrap_or_default();
        Ok(bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_ne_bytes(*chunk)).sum())
    }

    /// The same of every entry of an array, in one system call.
    ///
    /// # Errors
    /// As [`Map::sum`].
    pub fn sums(&self) -> Result<Vec<u64>> {
        self.are_counters()?;
        let per_entry = self.buffer_len()?;
        let mut keys = vec![0u32; self.max_entries as usize];
        let mut values = vec![0u8; per_entry * keys.len()];
        let (mut next, mut count) = (0u32, self.max_entries);
        // SAFETY: keys and values have room for max_entries entries, next for a key.
        let err = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::from_mut(&mut next).cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &raw mut count,
                std::ptr::null(),
            )
        };
        match check(err) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::kernel("read all entries of a map", e));
            }
            // ENOENT: that was all.
            _ => {}
        }
        let mut sums = vec![0; keys.len()];
        for (key, value) in keys.into_iter().zip(values.chunks(per_entry)).take(count as usize) {
            let (of_cpus, _) = value.as_chunks::<8>();
            sums[key as usize] = of_cpus.iter().map(|chunk| u64::from_ne_bytes(*chunk)).sum();
        }
        Ok(sums)
    }

    fn buffer_len(&self) -> Result<usize> {
        let size = self.value_size as usize;
        if !self.per_cpu {
            return Ok(size);
        }
        let cpus = libbpf_rs::num_possible_cpus()
            .map_err(|e| Error::bpf("count the possible CPUs", &e))?;
        Ok(size.next_multiple_of(8) * cpus)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until every BPF program that runs now has ended: one that was taken out
/// of a PROG_ARRAY may still decide an input. They run in RCU read sections, and
/// membarrier's global command waits for those. It is refused with `nohz_full=`;
/// then nothing is waited for.
pub fn wait_for_running_programs() {
    // SAFETY: membarrier takes numbers.
    unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

/// What the kernel says of a map.
///
/// # Errors
/// [`Error::Kernel`] when fd is no map.
pub fn map_info(fd: BorrowedFd<'_>) -> Result<libbpf_sys::bpf_map_info> {
    let mut info = libbpf_sys::bpf_map_info::default();
    let mut len = size_of::<libbpf_sys::bpf_map_info>() as u32;
    // SAFETY: info is a zeroed bpf_map_info and len its size.
    let err =
        unsafe { libbpf_sys::bpf_map_get_info_by_fd(fd.as_raw_fd(), &raw mut info, &raw mut len) };
    check(err).map_err(|e| Error::kernel("read a map's properties", e))?;
    Ok(info)
}

/// libbpf returns a negative errno; so do its fd-returning calls.
fn check(ret: i32) -> io::Result<i32> {
    if ret < 0 { Err(io::Error::from_raw_os_error(-ret)) } else { Ok(ret) }
}
