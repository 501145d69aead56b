//! The sections of an object: which there may be, of what kind, each once.

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::{FileHeader as _, SectionHeader as _};
use syrup_protocol::Result;

use super::super::checked::Segment;
use super::{
    MAX_ALIGN, MAX_INSTRUCTIONS, MAX_NAME_BYTES, MAX_SECTIONS, MAX_VARIABLE_BYTES, refuse, shown,
    string,
};

/// What a section is to a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Text,
    Maps,
    Variables(Segment),
    /// Which SDK it was compiled with.
    Abi,
    Types,
    Lines,
    /// Of `.text`.
    Relocations,
    Symbols,
    Strings,
    /// Debug information, and relocations of what has none that count. Never loaded.
    Unread,
}

const PROGBITS: u32 = elf::SHT_PROGBITS.0;
const NOBITS: u32 = elf::SHT_NOBITS.0;
const REL: u32 = elf::SHT_REL.0;
const STRTAB: u32 = elf::SHT_STRTAB.0;
const LLVM_ADDRSIG: u32 = 0x6fff_4c03;

const A: u64 = elf::SHF_ALLOC.0;
const WA: u64 = elf::SHF_WRITE.0 | A;
const AX: u64 = elf::SHF_EXECINSTR.0 | A;
const M: u64 = elf::SHF_MERGE.0;
const MS: u64 = M | elf::SHF_STRINGS.0;
const I: u64 = elf::SHF_INFO_LINK.0;

/// What may be there: name (`*`: and what begins so), type, flags, what it is.
const ALLOWED: &[(&str, u32, &[u64], Role)] = &[
    (".text", PROGBITS, &[AX], Role::Text),
    (".maps", PROGBITS, &[WA], Role::Maps),
    (".data", PROGBITS, &[WA], Role::Variables(Segment::Data)),
    (".bss", NOBITS, &[WA], Role::Variables(Segment::Bss)),
    (".rodata", PROGBITS, &[A], Role::Variables(Segment::Rodata)),
    (".rodata.*", PROGBITS, &[A, A | M, A | MS], Role::Variables(Segment::Rodata)),
    (".syrup.abi", PROGBITS, &[A], Role::Abi),
    (".BTF", PROGBITS, &[0], Role::Types),
    (".BTF.ext", PROGBITS, &[0], Role::Lines),
    (".rel.text", REL, &[0, I], Role::Relocations),
    (".symtab", elf::SHT_SYMTAB.0, &[0], Role::Symbols),
    (".strtab", STRTAB, &[0], Role::Strings),
    (".shstrtab", STRTAB, &[0], Role::Strings),
    (".rel.BTF", REL, &[0, I], Role::Unread),
    (".rel.BTF.ext", REL, &[0, I], Role::Unread),
    (".rel.debug_*", REL, &[0, I], Role::Unread),
    (".debug_*", PROGBITS, &[0, MS], Role::Unread),
    (".comment", PROGBITS, &[0, MS], Role::Unread),
    (".llvm_addrsig", LLVM_ADDRSIG, &[elf::SHF_EXCLUDE.0], Role::Unread),
];

/// A section that may be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    pub(super) role: Role,
    pub(super) data: &'a [u8],
    /// Where in its segment it begins, if it is one of variables.
    pub(super) base: u32,
    pub(super) bytes: u64,
    pub(super) link: u32,
    pub(super) info: u32,
    pub(super) name: &'a [u8],
}

/// All of them, by their index; and the variables, put together.
#[derive(Debug, Default)]
pub(super) struct Sections<'a> {
    pub(super) all: Vec<Option<Section<'a>>>,
    pub(super) data: Vec<u8>,
    pub(super) bss_bytes: usize,
    pub(super) rodata: Vec<u8>,
    pub(super) align: u64,
}

impl<'a> Sections<'a> {
    pub(super) fn read(file_name: &str, image: &'a [u8]) -> Result<Self> {
        let broken = |e: &dyn std::fmt::Display| {
            refuse(format!("{file_name} is not a BPF object: {e}"))
                .advise("give a C file, or what clang -target bpf made of one")
        };
        let header =
            elf::FileHeader64::<object::Endianness>::parse(image).map_err(|e| broken(&e))?;
        let little = header.endian().is_ok_and(|endian| endian == object::Endianness::Little);
        if !little || header.e_machine(object::Endianness::Little) != elf::EM_BPF {
            return Err(refuse(format!("{file_name} is not a little-endian BPF object")));
        }
        let header = elf::FileHeader64::<LE>::parse(image).map_err(|e| broken(&e))?;
        if header.e_type(LE) != elf::ET_REL {
            return Err(broken(&"it is not relocatable"));
        }
        let headers = header.section_headers(LE, image).map_err(|e| broken(&e))?;
        if headers.len() > MAX_SECTIONS {
            return Err(refuse(format!(
                "{file_name}: {} sections, the limit is {MAX_SECTIONS}",
                headers.len()
            )));
        }
        let names = header.shstrndx(LE, image).ok().and_then(|at| headers.get(at as usize));
        let names = names.and_then(|names| names.data(LE, image).ok());
        let names = names.ok_or_else(|| broken(&"its sections have no names"))?;

        let mut this = Self { all: vec![None], align: 1, ..Self::default() };
        for (index, header) in headers.iter().enumerate().skip(1) {
            let name = string(names, header.sh_name(LE), MAX_NAME_BYTES).ok_or_else(|| {
                refuse(format!("{file_name}: section {index} has no name of at most 255 bytes"))
            })?;
            this.add(image, header, name).map_err(|why| {
                refuse(format!("{file_name}: section '{}' {why}", shown(name))).advise(
                    "a policy holds schedule(), its Maps and its parameters only; \
                     remove SEC(...) and the licence line, Syrup adds what the hook needs",
                )
            })?;
        }
        if let Some(text) = this.get(Role::Text) {
            check_text(file_name, text.data)?;
        }
        Ok(this)
    }

    fn add(
        &mut self,
        image: &'a [u8],
        header: &elf::SectionHeader64<LE>,
        name: &'a [u8],
    ) -> std::result::Result<(), String> {
        let (kind, flags) = (header.sh_type(LE).0, header.sh_flags(LE).0);
        let (_, known, allowed, role) =
            *ALLOWED.iter().find(|(pattern, ..)| matches(pattern, name)).ok_or("is not allowed")?;
        if kind != known || !allowed.contains(&flags) {
            return Err(format!("is not what its name says: type {kind:#x}, flags {flags:#x}"));
        }
        if self.all.iter().flatten().any(|section| section.name == name) {
            return Err("is there twice".to_owned());
        }
        let data = header.data(LE, image).map_err(|_| "lies outside the file")?;
        let mut section = Section {
            role,
            data,
            base: 0,
            bytes: header.sh_size(LE),
            link: header.sh_link(LE),
            info: header.sh_info(LE),
            name,
        };
        if let Role::Variables(segment) = role {
            section.base = self.put(segment, &section, header.sh_addralign(LE))?;
        }
        self.all.push(Some(section));
        Ok(())
    }

    /// The section of a role that one alone can have.
    pub(super) fn get(&self, role: Role) -> Option<&Section<'a>> {
        self.all.iter().flatten().find(|section| section.role == role)
    }

    pub(super) fn at(&self, index: usize) -> Option<&Section<'a>> {
        self.all.get(index)?.as_ref()
    }

    /// Bytes of a segment.
    pub(super) fn bytes_of(&self, segment: Segment) -> usize {
        match segment {
            Segment::Data => self.data.len(),
            Segment::Bss => self.bss_bytes,
            Segment::Rodata => self.rodata.len(),
        }
    }

    /// Puts a section behind those of its segment; says where it begins there.
    fn put(
        &mut self,
        segment: Segment,
        section: &Section<'a>,
        align: u64,
    ) -> std::result::Result<u32, String> {
        let align = align.max(1);
        if !align.is_power_of_two() || align > MAX_ALIGN {
            return Err(format!("is aligned to {align} bytes, the limit is {MAX_ALIGN}"));
        }
        self.align = self.align.max(align);
        let start = (self.bytes_of(segment) as u64).next_multiple_of(align);
        let others: usize = [Segment::Data, Segment::Bss, Segment::Rodata]
            .into_iter()
            .filter(|&other| other != segment)
            .map(|other| self.bytes_of(other))
            .sum();
        let end = start.saturating_add(section.bytes);
        let all = end.saturating_add(others as u64);
        if all > MAX_VARIABLE_BYTES {
            return Err(format!(
                "makes {all} bytes of variables, the limit is {MAX_VARIABLE_BYTES}: large state \
                 belongs into a Map"
            ));
        }
        let (start, end) = (start as usize, end as usize);
        match segment {
            Segment::Bss => self.bss_bytes = end,
            Segment::Data | Segment::Rodata => {
                let bytes =
                    if segment == Segment::Data { &mut self.data } else { &mut self.rodata };
                bytes.resize(start, 0);
                bytes.extend_from_slice(section.data);
            }
        }
        Ok(start as u32)
    }
}

fn matches(pattern: &str, name: &[u8]) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix.as_bytes()),
        None => name == pattern.as_bytes(),
    }
}

fn check_text(file_name: &str, text: &[u8]) -> Result<()> {
    if !text.len().is_multiple_of(8) {
        return Err(refuse(format!("{file_name}: .text is cut off")));
    }
    if text.len() / 8 > MAX_INSTRUCTIONS {
        let message = format!(
            "{file_name}: {} instructions, the limit is {MAX_INSTRUCTIONS}",
            text.len() / 8
        );
        return Err(refuse(message));
    }
    Ok(())
}
