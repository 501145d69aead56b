//! The check of a user's object before it is linked: everything not on a list
//! is refused, because what the kernel allows a scheduler program is more than
//! a policy may do. (With free kfuncs and the task pointer one policy made a
//! 0.1 s test take 44 s without the watchdog noticing.)

use libbpf_rs::btf::{Btf, BtfType, ReferencesType as _, types};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind, SymbolKind,
    SymbolScope, SymbolSection,
};
use syrup_hook::Input;
use syrup_protocol::{Code, Failure, Result};
use syrup_sdk::abi;

use super::btf;
use super::lines::LineTable;
use crate::hooks;

/// Helpers a policy may call: number and name.
const HELPERS: &[(i32, &str)] = &[
    (1, "bpf_map_lookup_elem"),
    (5, "bpf_ktime_get_ns"),
    (7, "bpf_get_prandom_u32"),
    (8, "bpf_get_smp_processor_id"),
];

/// Where an object says of which version its headers were.
const ABI_SECTION: &str = ".syrup.abi";

/// What the trusted half defines for policies.
const SDK_SYMBOLS: &[&str] = &["syrup_nr_executors", "syrup_nr_executors_here"];

/// Instructions of one policy: far above any policy, far below what hurts.
const MAX_INSTRUCTIONS: usize = 16 * 1024;

const BPF_CALL: u8 = 0x85;
const BPF_CALLX: u8 = 0x8d;
const PSEUDO_CALL: u8 = 1;
const PSEUDO_KFUNC: u8 = 2;

/// What the check found in an object it accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What `schedule()` takes.
    pub input: Input,
    /// The Maps it names.
    pub maps: Vec<String>,
    /// Its parameters (`SYRUP_PARAM`).
    pub params: Vec<String>,
    /// Number of its instructions.
    pub instructions: usize,
}

/// Checks a user's object. `file_name` is for messages.
///
/// # Errors
/// [`Code::SourceRejected`], naming the user's line where there is one.
pub fn check(file_name: &str, image: &[u8]) -> Result<Checked> {
    let elf = object::File::parse(image)
        .map_err(|e| refuse(format!("{file_name} is not a BPF object: {e}")))?;
    if elf.architecture() != object::Architecture::Bpf || !elf.is_little_endian() {
        return Err(refuse(format!("{file_name} is not a little-endian BPF object")));
    }
    syrup_hook::route_libbpf_messages();
    let btf = btf::types(&elf).ok_or_else(|| {
        refuse(format!("{file_name} has no type information"))
            .advise("compile it with -g, or give the C file and let Syrup compile it")
    })?;
    let lines = LineTable::of(&elf);

    check_abi(file_name, &elf)?;
    check_sections(file_name, &elf)?;
    let instructions = check_code(file_name, &elf, &lines)?;
    check_symbols(file_name, &elf)?;
    let maps = check_maps(file_name, &elf, &btf)?;
    Ok(Checked {
        input: input_of(file_name, &elf, &btf)?,
        maps,
        params: params_of(&elf),
        instructions,
    })
}

fn refuse(message: String) -> Failure {
    Failure::new(Code::SourceRejected, message)
}

/// The SDK's headers leave their version in each object (`policy.h`).
fn check_abi(file_name: &str, elf: &object::File<'_>) -> Result<()> {
    let ours = abi::SYRUP_ABI_VERSION;
    let theirs = elf.section_by_name(ABI_SECTION).and_then(|section| section.data().ok());
    let what = match theirs.map(<[u8; 4]>::try_from) {
        Some(Ok(version)) if u32::from_le_bytes(version) == ours => return Ok(()),
        Some(Ok(version)) => {
            format!("is an object of SDK ABI {}", u32::from_le_bytes(version))
        }
        Some(Err(_)) => format!("has a {ABI_SECTION} section of the wrong size"),
        None => "does not say of which SDK ABI it is".to_owned(),
    };
    Err(refuse(format!("{file_name} {what}; this Syrup speaks {ours}")).advise(
        "compile it again with this Syrup's headers: it must include <syrup/packet.h> or \
         <syrup/thread.h>",
    ))
}

fn check_sections(file_name: &str, elf: &object::File<'_>) -> Result<()> {
    for section in elf.sections() {
        let name = section.name().unwrap_or("?");
        let known = match section.kind() {
            SectionKind::Text => name == ".text",
            SectionKind::Data
            | SectionKind::ReadOnlyData
            | SectionKind::ReadOnlyString
            | SectionKind::UninitializedData => {
                matches!(name, ".maps" | ".data" | ".bss" | ".BTF" | ".BTF.ext" | ABI_SECTION)
                    || name == ".rodata"
                    || name.starts_with(".rodata.")
            }
            // Debug information, symbols, relocations: never loaded.
            _ => name != "license" && name != "version",
        };
        if !known && section.size() > 0 {
            return Err(refuse(format!("{file_name}: section '{name}' is not allowed")).advise(
                "a policy holds schedule(), its Maps and its parameters only; \
                 remove SEC(...) and the licence line, Syrup adds what the hook needs",
            ));
        }
    }
    Ok(())
}

fn check_code(file_name: &str, elf: &object::File<'_>, lines: &LineTable) -> Result<usize> {
    let text = elf.section_by_name(".text").and_then(|s| s.data().ok()).unwrap_or_default();
    let (instructions, rest) = text.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(refuse(format!("{file_name}: .text is cut off")));
    }
    if instructions.len() > MAX_INSTRUCTIONS {
        return Err(refuse(format!(
            "{file_name}: {} instructions, the limit is {MAX_INSTRUCTIONS}",
            instructions.len()
        )));
    }
    let relocated = relocated_calls(elf);
    for (index, instruction) in instructions.iter().enumerate() {
        let offset = index * 8;
        let place = || lines.place(offset, file_name);
        let [op, regs, _, _, imm @ ..] = *instruction;
        let imm = i32::from_le_bytes(imm);
        match (op, regs >> 4) {
            (BPF_CALLX, _) => {
                return Err(refuse(format!("{}: an indirect call is not allowed", place())));
            }
            (BPF_CALL, PSEUDO_CALL) => {
                // Calls inside .text are relocated; there is no other function.
                if imm == -1 && !relocated.contains(&offset) {
                    return Err(refuse(format!("{}: a call to nowhere", place())));
                }
                if let Some(name) = undefined_callee(elf, offset) {
                    return Err(refuse(format!(
                        "{}: calls '{name}', which a policy may not",
                        place()
                    ))
                    .advise(allowed_calls()));
                }
            }
            (BPF_CALL, PSEUDO_KFUNC) => {
                return Err(
                    refuse(format!("{}: calls a kernel function", place())).advise(allowed_calls())
                );
            }
            (BPF_CALL, 0) if !HELPERS.iter().any(|&(number, _)| number == imm) => {
                return Err(
                    refuse(format!("{}: calls BPF helper {imm}", place())).advise(allowed_calls())
                );
            }
            (BPF_CALL, kind) if kind > PSEUDO_KFUNC => {
                return Err(refuse(format!("{}: a call of unknown kind {kind}", place())));
            }
            _ => {}
        }
    }
    Ok(instructions.len())
}

fn allowed_calls() -> String {
    let helpers: Vec<&str> = HELPERS.iter().map(|&(_, name)| name).collect();
    format!(
        "a policy only chooses, the hook enforces; it may call the functions of the policy SDK \
         and the helpers {}",
        helpers.join(", ")
    )
}

fn relocated_calls(elf: &object::File<'_>) -> Vec<usize> {
    let Some(text) = elf.section_by_name(".text") else { return Vec::new() };
    text.relocations().filter_map(|(offset, _)| usize::try_from(offset).ok()).collect()
}

/// The name of the undefined symbol, none of the SDK's, that the instruction at `offset`
/// calls.
fn undefined_callee(elf: &object::File<'_>, offset: usize) -> Option<String> {
    let text = elf.section_by_name(".text")?;
    text.relocations().find(|(at, _)| usize::try_from(*at).is_ok_and(|at| at == offset)).and_then(
        |(_, relocation)| match relocation.target() {
            RelocationTarget::Symbol(index) => {
                let symbol = elf.symbol_by_index(index).ok()?;
                let name = symbol.name().unwrap_or("?");
                (symbol.is_undefined() && !SDK_SYMBOLS.contains(&name)).then(|| name.to_owned())
            }
            _ => None,
        },
    )
}

fn check_symbols(file_name: &str, elf: &object::File<'_>) -> Result<()> {
    for symbol in elf.symbols() {
        let name = symbol.name().unwrap_or("?");
        match symbol.section() {
            SymbolSection::Undefined if name.is_empty() => {}
            SymbolSection::Undefined if !SDK_SYMBOLS.contains(&name) => {
                return Err(
                    refuse(format!("{file_name}: '{name}' is not defined")).advise(allowed_calls())
                );
            }
            SymbolSection::Section(_) if name.starts_with("syrup_") && !is_setting(name) => {
                return Err(refuse(format!("{file_name}: defines '{name}'"))
                    .advise("names starting with syrup_ belong to Syrup: rename it"));
            }
            SymbolSection::Section(_)
                if symbol.kind() == SymbolKind::Text && symbol.scope() == SymbolScope::Dynamic =>
            {
                // The verifier would check it apart from its caller, and find its
                // arguments wanting in words that do not say why.
                return Err(refuse(format!("{file_name}: the function '{name}' is global"))
                    .advise(
                        "compile it with -fvisibility=hidden, or give the C file and let Syrup \
                         compile it",
                    ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Map definitions may say type, key, value, max_entries and map_flags: no
/// pinning, no inner maps, no initial values.
fn check_maps(file_name: &str, elf: &object::File<'_>, btf: &Btf<'_>) -> Result<Vec<String>> {
    let Some(section) = elf.section_by_name(".maps") else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for symbol in elf.symbols().filter(|s| s.section_index() == Some(section.index())) {
        let name = symbol.name().unwrap_or("?");
        if symbol.size() == 0 {
            continue; // the section's own symbol
        }
        let bad = |why: &str| {
            refuse(format!("{file_name}: Map '{name}': {why}")).advise(
                "declare Maps with SYRUP_MAP(name, entries) or SYRUP_MAP_OF(name, type, entries)",
            )
        };
        if !syrup_protocol::names::is_map(name) {
            return Err(bad("its name is not a C identifier of at most 15 characters"));
        }
        let definition = btf
            .type_by_name::<types::Var<'_>>(name)
            .map(|var| var.referenced_type().skip_mods_and_typedefs())
            .and_then(|ty| types::Struct::try_from(ty).ok())
            .ok_or_else(|| bad("it has no type information"))?;
        for member in definition.iter() {
            let field = member.name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if !matches!(field.as_str(), "type" | "key" | "value" | "max_entries" | "map_flags") {
                return Err(bad(&format!("the attribute '{field}' is not allowed")));
            }
        }
        names.push(name.to_owned());
    }
    names.sort();
    Ok(names)
}

fn input_of(file_name: &str, elf: &object::File<'_>, btf: &Btf<'_>) -> Result<Input> {
    let missing = || {
        refuse(format!("{file_name} does not define schedule()")).advise(
            "include <syrup/packet.h> or <syrup/thread.h> and define the schedule() it declares",
        )
    };
    let defined = elf
        .symbols()
        .any(|s| s.name() == Ok("schedule") && s.kind() == SymbolKind::Text && !s.is_undefined());
    if !defined {
        return Err(missing());
    }
    let prototype = btf
        .type_by_name::<types::Func<'_>>("schedule")
        .and_then(|f| types::FuncProto::try_from(f.referenced_type()).ok())
        .ok_or_else(missing)?;
    let pointees: Vec<Option<String>> = prototype
        .iter()
        .map(|param| {
            btf.type_by_id::<BtfType<'_>>(param.ty)
                .map(|ty| ty.skip_mods_and_typedefs())
                .and_then(|ty| types::Ptr::try_from(ty).ok())
                .map(|ptr| {
                    let to = ptr.referenced_type().skip_mods_and_typedefs();
                    to.name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
                })
        })
        .collect();
    match pointees.as_slice() {
        [Some(from), Some(to)] if from.is_empty() && to.is_empty() => Ok(Input::Packet),
        [Some(thread)] if thread == "syrup_thread" => Ok(Input::Thread),
        _ => Err(refuse(format!("{file_name}: schedule() has an unknown prototype")).advise(
            "it takes (void *pkt_start, void *pkt_end) or (struct syrup_thread *t), and returns __s32",
        )),
    }
}

/// Whether it is how policies of some hook say what they want of it.
fn is_setting(name: &str) -> bool {
    hooks::specs().any(|spec| spec.settings.as_ref().is_some_and(|constant| constant.name == name))
}

fn params_of(elf: &object::File<'_>) -> Vec<String> {
    let Some(rodata) = elf.section_by_name(".rodata") else { return Vec::new() };
    let mut names: Vec<String> = elf
        .symbols()
        .filter(|s| s.section_index() == Some(rodata.index()) && s.size() > 0)
        .filter_map(|s| s.name().ok())
        .filter(|name| !is_setting(name) && !name.is_empty() && !name.contains('.'))
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
