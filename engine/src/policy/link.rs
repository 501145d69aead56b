//! Joining a canonical object with a hook's trusted half (libbpf's static linker), and
//! looking at what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;

use libbpf_rs::Linker;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, SectionKind, SymbolKind, elf,
};
use rustix::fs::MemfdFlags;
use syrup_protocol::{Code, Failure};

use super::read;

/// More than any gap between the two parts of a section.
const MAX_ALIGN: u64 = 4096;

type Result<T, E = Failure> = std::result::Result<T, E>;

/// Links a canonical object with the trusted half; the result is an ELF image with the
/// programs and Maps of the two, and no others.
///
/// Into a file in memory, which a daemon that is killed does not leave behind.
///
/// # Errors
/// [`Code::SourceRejected`] when they do not fit: a `schedule()` of another
/// prototype, or a name that both define.
pub(crate) fn link(policy: &[u8], trusted_half: &[u8]) -> Result<Vec<u8>> {
    let internal = |verb: &str, e: std::io::Error| {
        Failure::new(Code::Internal, format!("cannot {verb} the linked object: {e}"))
    };
    let mut output = in_memory().map_err(|e| internal("make", e.into()))?;
    let refused = |step: &str, e: &libbpf_rs::Error| {
        Failure::new(
            Code::SourceRejected,
            format!("the policy does not link with the hook's trusted half ({step}): {e:#}"),
        )
        .advise(
            "check that schedule() has the prototype of <syrup/packet.h> or <syrup/thread.h>, \
             and that the policy defines no name starting with syrup_",
        )
    };
    let path = format!("/proc/self/fd/{}", output.as_raw_fd());
    let mut linker = Linker::new(path).map_err(|e| {
        Failure::new(Code::Internal, format!("cannot start libbpf's linker: {e:#}"))
    })?;
    // The trusted half first: its licence and program sections lead the object.
    linker.add_buf(trusted_half).map_err(|e| refused("trusted half", &e))?;
    linker.add_buf(policy).map_err(|e| refused("policy", &e))?;
    linker.link().map_err(|e| refused("finish", &e))?;
    drop(linker);
    let mut linked = Vec::new();
    output.read_to_end(&mut linked).map_err(|e| internal("read", e))?;
    assert_sum(&linked, trusted_half, policy).map_err(|why| {
        let message = format!("the linked object is not what was checked: {why}");
        Failure::new(Code::Internal, message)
            .advise("a defect of Syrup, or of the libbpf it was built with: please report it")
    })?;
    Ok(linked)
}

/// What the kernel would be given of an object.
#[derive(Debug, PartialEq, Eq)]
struct Contents<'a> {
    /// Programs and functions: section and name.
    functions: BTreeSet<(String, String)>,
    /// What libbpf makes Maps of.
    maps: BTreeSet<String>,
    /// Sections that are loaded, by name.
    sections: BTreeMap<String, Part<'a>>,
}

/// A section: its size, and its bytes where the object has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Part<'a> {
    size: u64,
    data: &'a [u8],
}

impl<'a> Contents<'a> {
    fn of(image: &'a [u8]) -> Result<Self, String> {
        let elf = object::File::parse(image).map_err(|e| e.to_string())?;
        let mut sections = BTreeMap::new();
        for section in elf.sections() {
            let name = section.name().map_err(|e| e.to_string())?;
            let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
            let is_loaded =
                sh_flags.contains(elf::SHF_ALLOC) || section.kind() == SectionKind::Text;
            // The linker leaves what the SDK's headers put into the trusted half, too.
            if !is_loaded || section.size() == 0 || name == ".syrup.abi" {
                continue;
            }
            let data = section.data().map_err(|e| e.to_string())?;
            let part = Part { size: section.size(), data };
            if sections.insert(name.to_owned(), part).is_some() {
                return Err(format!("two sections {name}"));
            }
        }
        let mut functions = BTreeSet::new();
        for symbol in elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
            let section = symbol.section_index().and_then(|at| elf.section_by_index(at).ok());
            let Some(section) = section else { continue };
            let (section, name) = (section.name().unwrap_or("?"), symbol.name().unwrap_or("?"));
            functions.insert((section.to_owned(), name.to_owned()));
        }
        let types = elf.section_by_name(".BTF").and_then(|section| section.data().ok());
        Ok(Self { functions, maps: read::map_names(types.unwrap_or_default())?, sections })
    }
}

/// Whether `linked` is the sum of the two: of functions and Maps both have theirs and
/// there are no others, the trusted half's sections stand unchanged, and the policy's behind
/// them, but for where its variables begin.
pub(super) fn assert_sum(linked: &[u8], trusted_half: &[u8], policy: &[u8]) -> Result<(), String> {
    let (linked, trusted, policy) =
        (Contents::of(linked)?, Contents::of(trusted_half)?, Contents::of(policy)?);
    let union = &trusted.functions | &policy.functions;
    if let Some((section, name)) = linked.functions.symmetric_difference(&union).next() {
        return Err(format!("the function '{name}' in {section} is too much, or missing"));
    }
    let union = &trusted.maps | &policy.maps;
    if let Some(name) = linked.maps.symmetric_difference(&union).next() {
        return Err(format!("the Map '{name}' is too much, or missing"));
    }
    let names = trusted.sections.keys().chain(policy.sections.keys()).chain(linked.sections.keys());
    for name in names.collect::<BTreeSet<_>>() {
        let [sum, first, second] = [&linked, &trusted, &policy]
            .map(|object| object.sections.get(name).copied().unwrap_or_default());
        let tail = sum.data.len().checked_sub(second.data.len());
        let is_sum = (first.size + second.size..first.size + second.size + MAX_ALIGN)
            .contains(&sum.size)
            && sum.data.starts_with(first.data)
            && tail.is_some_and(|at| same(name, &sum.data[at..], second.data));
        if !is_sum {
            return Err(format!("the section {name} is not the sum of its halves"));
        }
        if matches!(name.as_str(), ".data" | ".bss") && first.size > 0 && second.size > 0 {
            // One map: a policy's pointers reach all of it.
            return Err(format!("a policy and the trusted half share {name}"));
        }
    }
    Ok(())
}

/// The linker adds to a load of 64 bits where the section begins that it names.
fn same(section: &str, linked: &[u8], policy: &[u8]) -> bool {
    if section != ".text" {
        return linked == policy;
    }
    const LD_IMM64: u8 = 0x18;
    let (linked, policy) = (linked.as_chunks::<8>().0, policy.as_chunks::<8>().0);
    linked.iter().zip(policy).all(|(linked, policy)| {
        linked == policy || policy[0] == LD_IMM64 && linked[..4] == policy[..4]
    })
}

/// Not to be executed: some kernels give no other (vm.memfd_noexec).
fn in_memory() -> rustix::io::Result<File> {
    let make = |flags| rustix::fs::memfd_create("linked.o", MemfdFlags::CLOEXEC | flags);
    match make(MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(rustix::io::Errno::INVAL) => make(MemfdFlags::empty()),
        made => made,
    }
    .map(File::from)
}
