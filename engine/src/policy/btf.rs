//! Type information of an object that is not linked yet.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use libbpf_rs::btf::Btf;
use object::{Object as _, ObjectSection as _};
use rustix::fs::MemfdFlags;

/// The types in `.BTF`. Through a file in memory, because libbpf-rs takes bytes
/// only as a whole object, and libbpf opens no object whose variables
/// (`syrup_nr_executors`) are still to be linked.
pub(crate) fn types(elf: &object::File<'_>) -> Option<Btf<'static>> {
    let section = elf.section_by_name(".BTF")?.data().ok()?;
    let mut file = File::from(rustix::fs::memfd_create("btf", MemfdFlags::CLOEXEC).ok()?);
    file.write_all(section).ok()?;
    Btf::from_path(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}
