//! Writing the canonical object of a policy: the sections, symbols and types that linking
//! and loading need, no byte that was not checked, and the same bytes for the same policy.

use std::collections::BTreeMap;

use object::write::{Object, Relocation, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionFlags, SectionKind,
    SymbolFlags, SymbolKind, SymbolScope, elf,
};
use syrup_protocol::{Code, Failure, Result};

use super::btf;
use super::checked::{
    Checked, MapShape, NR_EXECUTORS, NR_EXECUTORS_HERE, SCHEDULE, Segment, Target, Variables,
};

/// The user's file, to quote lines of it in the verifier's log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) file_name: &'a str,
    pub(crate) text: &'a str,
}

/// The canonical object of a policy.
///
/// # Errors
/// [`Code::Internal`]: it cannot be written.
pub(crate) fn write(policy: &Checked, source: Option<Source<'_>>) -> Result<Vec<u8>> {
    let failed = |e: object::write::Error| {
        Failure::new(Code::Internal, format!("cannot write the canonical object: {e}"))
    };
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let text = object.add_section(Vec::new(), b".text".into(), SectionKind::Text);
    object.append_section_data(text, &code(policy), 8);
    for (index, function) in policy.functions.iter().enumerate() {
        // Hidden, for the linker to find and for the verifier to check where it is called.
        let is_schedule = function.name == SCHEDULE;
        let scope = if is_schedule { SymbolScope::Linkage } else { SymbolScope::Compilation };
        let size = (policy.end_of(index) - function.start) as u64 * 8;
        let place = (SymbolSection::Section(text), function.start as u64 * 8, size);
        symbol(&mut object, &function.symbol(), SymbolKind::Text, scope, place);
    }

    let segments = add_variables(&mut object, policy);
    let maps = add_maps(&mut object, policy);
    let undefined = |object: &mut Object<'_>, name| {
        let nowhere = (SymbolSection::Undefined, 0, 0);
        symbol(object, name, SymbolKind::Unknown, SymbolScope::Dynamic, nowhere)
    };
    let (mut nr_executors, mut nr_executors_here) = (None, None);
    for reference in &policy.references {
        let symbol = match reference.to {
            Target::Map(map) => maps[map],
            Target::Variable(segment, _) => segments[&segment],
            Target::NrExecutors => {
                *nr_executors.get_or_insert_with(|| undefined(&mut object, NR_EXECUTORS))
            }
            Target::NrExecutorsHere => {
                *nr_executors_here.get_or_insert_with(|| undefined(&mut object, NR_EXECUTORS_HERE))
            }
        };
        let is_call = reference.to == Target::NrExecutorsHere;
        let r_type = if is_call { elf::R_BPF_64_32 } else { elf::R_BPF_64_64 };
        let flags = RelocationFlags::Elf { r_type };
        // What is added to the symbol stands in the instruction.
        let relocation = Relocation { offset: reference.at as u64 * 8, symbol, addend: 0, flags };
        object.add_relocation(text, relocation).map_err(failed)?;
    }

    let (types, lines) = btf::of(policy, source);
    for (name, bytes) in [(".BTF", types), (".BTF.ext", lines)] {
        let id = object.add_section(Vec::new(), name.into(), SectionKind::Other);
        object.section_mut(id).flags =
            SectionFlags::Elf { sh_type: elf::SHT_PROGBITS, sh_flags: elf::SectionFlags(0) };
        object.append_section_data(id, &bytes, 4);
    }
    object.write().map_err(failed)
}

/// The instructions, with where in its segment a variable lies.
fn code(policy: &Checked) -> Vec<u8> {
    let mut code = policy.code.clone();
    for reference in &policy.references {
        if let Target::Variable(_, at) = reference.to {
            code[reference.at][4..].copy_from_slice(&at.to_le_bytes());
        }
    }
    code.into_flattened()
}

fn symbol(
    object: &mut Object<'_>,
    name: &str,
    kind: SymbolKind,
    scope: SymbolScope,
    (section, value, size): (SymbolSection, u64, u64),
) -> SymbolId {
    let name = name.as_bytes().to_vec();
    let flags = SymbolFlags::None;
    object.add_symbol(Symbol { name, value, size, kind, scope, weak: false, section, flags })
}

/// A section for each segment that is not empty: libbpf would make a map of it. Returns their
/// symbols.
fn add_variables(object: &mut Object<'_>, policy: &Checked) -> BTreeMap<Segment, SymbolId> {
    let Variables { data, bss_bytes, rodata, align } = &policy.variables;
    let mut symbols = BTreeMap::new();
    let segments = [
        (Segment::Data, ".data", SectionKind::Data, &data[..]),
        (Segment::Rodata, ".rodata", SectionKind::ReadOnlyData, rodata),
    ];
    for (segment, name, kind, bytes) in segments {
        if !bytes.is_empty() {
            let id = object.add_section(Vec::new(), name.into(), kind);
            object.append_section_data(id, bytes, *align);
            symbols.insert(segment, object.section_symbol(id));
        }
    }
    if *bss_bytes > 0 {
        let kind = SectionKind::UninitializedData;
        let id = object.add_section(Vec::new(), b".bss".into(), kind);
        object.append_section_bss(id, *bss_bytes as u64, *align);
        symbols.insert(Segment::Bss, object.section_symbol(id));
    }
    symbols
}

/// The definitions of Maps; returns their symbols.
fn add_maps(object: &mut Object<'_>, policy: &Checked) -> Vec<SymbolId> {
    if policy.maps.is_empty() {
        return Vec::new();
    }
    let section = object.add_section(Vec::new(), btf::MAPS.into(), SectionKind::Data);
    let size = btf::MAP_BYTES;
    let mut add = |map: &MapShape| {
        let at = object.append_section_data(section, &[0; btf::MAP_BYTES as usize], 8);
        let place = (SymbolSection::Section(section), at, size);
        symbol(object, &map.name, SymbolKind::Data, SymbolScope::Dynamic, place)
    };
    policy.maps.iter().map(&mut add).collect()
}
