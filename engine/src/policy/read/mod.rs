//! Reading a tenant's object. Whatever is not on a list here is refused: what the kernel
//! allows a scheduler program is more than a policy may do, and what C code makes of a
//! hostile file is anybody's guess, so that none of its bytes goes further than this folder.
//!
//! Nothing is done twice for one record and no string is searched far, so that time and
//! memory are bounded by the object's size.

mod btf;
mod code;
mod lines;
mod sections;
mod symbols;
mod types;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::BTreeSet;

use syrup_protocol::{Code, Failure, Result};
use syrup_sdk::abi;

use self::btf::Btf;
use self::sections::{Role, Sections};
use self::symbols::Symbols;
use super::checked::{Checked, Line, Variables};

/// Instructions: far above any policy, far below what hurts.
const MAX_INSTRUCTIONS: usize = 16 * 1024;
/// Sections, those of debug information included.
const MAX_SECTIONS: usize = 128;
/// Symbols, labels included.
const MAX_SYMBOLS: usize = 64 * 1024;
/// Types in `.BTF`.
const MAX_TYPES: usize = 64 * 1024;
/// Bytes of variables and constants together: larger state belongs into a Map.
const MAX_VARIABLE_BYTES: u64 = 1 << 20;
/// Maps that one policy names.
const MAX_MAPS: usize = 64;
/// Bytes of a name of a section, a symbol or a type.
const MAX_NAME_BYTES: usize = 255;
/// Bytes of a source file's path.
const MAX_PATH_BYTES: usize = 4096;
/// Alignment of variables.
const MAX_ALIGN: u64 = 4096;

/// Why an object is refused.
#[derive(Debug)]
struct Refusal {
    /// The instruction at fault, if one is.
    at: Option<usize>,
    why: String,
    advice: Option<String>,
}

type Checks<T> = std::result::Result<T, Refusal>;

impl Refusal {
    fn new(why: impl Into<String>) -> Self {
        Self { at: None, why: why.into(), advice: None }
    }

    fn at(mut self, instruction: usize) -> Self {
        self.at = Some(instruction);
        self
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    fn of(self, file_name: &str, lines: &[Line]) -> Failure {
        let place = match self.at {
            Some(at) => Checked::place(lines, at, file_name),
            None => file_name.to_owned(),
        };
        let failure = refuse(format!("{place}: {}", self.why));
        match self.advice {
            Some(advice) => failure.advise(advice),
            None => failure,
        }
    }
}

fn refuse(message: String) -> Failure {
    Failure::new(Code::SourceRejected, message)
}

/// Reads and checks an object. `file_name` is for messages.
///
/// # Errors
/// [`Code::SourceRejected`], naming the user's line where there is one.
pub(crate) fn read(file_name: &str, image: &[u8]) -> Result<Checked> {
    let sections = Sections::read(file_name, image)?;
    check_abi(file_name, &sections)?;
    let Some(types) = sections.get(Role::Types) else {
        return Err(refuse(format!("{file_name} has no type information"))
            .advise("compile it with -g, or give the C file and let Syrup compile it"));
    };
    let refused = |refusal: Refusal| refusal.of(file_name, &[]);
    let types = Btf::read(types.data).map_err(refused)?;
    let lines = lines::read(&sections, &types).map_err(refused)?;
    check(&sections, &types, lines.clone()).map_err(|refusal| refusal.of(file_name, &lines))
}

fn check(sections: &Sections<'_>, types: &Btf<'_>, lines: Vec<Line>) -> Checks<Checked> {
    let symbols = Symbols::read(sections)?;
    let maps = types::maps(&symbols, types)?;
    let (code, references) = code::read(sections, &symbols, &maps)?;
    symbols.refuse_undefined()?;
    let functions = symbols.functions;
    let lines = lines::at_starts(lines, &functions, &code)?;
    Ok(Checked {
        input: types::input(&functions, types)?,
        functions,
        code,
        references,
        params: types::constants(symbols.params, types),
        settings: types::constants(symbols.settings, types),
        maps: maps.shapes,
        variables: Variables {
            data: sections.data.clone(),
            bss_bytes: sections.bss_bytes,
            rodata: sections.rodata.clone(),
            align: sections.align,
        },
        lines,
    })
}

/// The SDK's headers leave their version in each object (`policy.h`): layouts of another
/// would be misread without a word.
fn check_abi(file_name: &str, sections: &Sections<'_>) -> Result<()> {
    let ours = abi::SYRUP_ABI_VERSION;
    let theirs = sections.get(Role::Abi).map(|section| <[u8; 4]>::try_from(section.data));
    let what = match theirs {
        Some(Ok(version)) if u32::from_le_bytes(version) == ours => return Ok(()),
        Some(Ok(version)) => format!("is an object of SDK ABI {}", u32::from_le_bytes(version)),
        Some(Err(_)) => "has a .syrup.abi section of the wrong size".to_owned(),
        None => "does not say of which SDK ABI it is".to_owned(),
    };
    Err(refuse(format!("{file_name} {what}; this Syrup speaks {ours}")).advise(
        "compile it again with this Syrup's headers: it must include <syrup/packet.h> or \
         <syrup/thread.h>",
    ))
}

/// The Maps that libbpf would make of an object with these types.
pub(crate) fn map_names(types: &[u8]) -> std::result::Result<BTreeSet<String>, String> {
    let types = Btf::read(types).map_err(|refusal| refusal.why)?;
    let names = types.in_section(b".maps");
    Ok(names.into_iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

/// The string at `at` in a table of strings; none when it is longer than `most`.
fn string(table: &[u8], at: u32, most: usize) -> Option<&[u8]> {
    let rest = table.get(usize::try_from(at).ok()?..)?;
    let window = rest.get(..=most).unwrap_or(rest);
    window.iter().position(|&byte| byte == 0).map(|end| &window[..end])
}

/// A tenant's name in a message: terminals would obey control characters.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// A little-endian word.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
