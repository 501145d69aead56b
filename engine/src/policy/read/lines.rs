//! Which line of the user's file an instruction came from: `.BTF.ext` of an object
//! (Documentation/bpf/btf.rst, ".BTF.ext section").

use std::collections::BTreeMap;

use super::super::checked::{Function, Instruction, Line};
use super::btf::Btf;
use super::sections::{Role, Sections};
use super::{Checks, MAX_NAME_BYTES, MAX_PATH_BYTES, Refusal, string, word};

/// Offset, file, text, line and column.
const RECORD_BYTES: usize = 16;

/// Lines of `.text`, ascending. An object may have none.
pub(super) fn read(sections: &Sections<'_>, types: &Btf<'_>) -> Checks<Vec<Line>> {
    let Some(section) = sections.get(Role::Lines) else { return Ok(Vec::new()) };
    let code_bytes = sections.get(Role::Text).map_or(0, |text| text.bytes);
    let cut = || Refusal::new("its line table is cut off");
    let header = |at| word(section.data, at).ok_or_else(cut);
    // Magic number, version 1, no flags.
    if header(0)? != 0x0001_eb9f {
        return Err(Refusal::new("its line table is of another version"));
    }
    let header_bytes = header(4)?;
    let part = |offset: u32, bytes: u32| {
        let start = usize::try_from(header_bytes.checked_add(offset)?).ok()?;
        section.data.get(start..start.checked_add(usize::try_from(bytes).ok()?)?)
    };
    // A version without them has a shorter header.
    if header_bytes >= 32 && header(28)? > 0 {
        return Err(Refusal::new("has CO-RE relocations, which are for structs of the kernel").advise(
            "a policy sees its input and its Maps only: leave __builtin_preserve_access_index out",
        ));
    }
    let mut rest = part(header(16)?, header(20)?).ok_or_else(cut)?;
    let mut lines = Vec::new();
    if rest.is_empty() {
        return Ok(lines);
    }
    let record_bytes = word(rest, 0).ok_or_else(cut)? as usize;
    if record_bytes != RECORD_BYTES {
        return Err(Refusal::new("its line table has records of another size"));
    }
    rest = &rest[4..];
    let mut files = BTreeMap::new();
    while !rest.is_empty() {
        let (name, records) = (word(rest, 0).ok_or_else(cut)?, word(rest, 4).ok_or_else(cut)?);
        let bytes = (records as usize).checked_mul(RECORD_BYTES).and_then(|b| b.checked_add(8));
        let (these, after) = bytes.and_then(|b| rest.split_at_checked(b)).ok_or_else(cut)?;
        rest = after;
        if string(types.strings, name, MAX_NAME_BYTES) != Some(b".text") {
            return Err(Refusal::new("its line table is of another section than .text"));
        }
        for record in these[8..].as_chunks::<RECORD_BYTES>().0 {
            let field = |at| word(record, at).ok_or_else(cut);
            let (offset, place) = (field(0)?, field(12)?);
            let after_last = lines.last().is_none_or(|last: &Line| last.at < offset as usize / 8);
            if offset % 8 != 0 || u64::from(offset) >= code_bytes || !after_last {
                return Err(Refusal::new("its line table is out of order"));
            }
            let at = field(4)?;
            let file = match files.get(&at) {
                Some(file) => file,
                None => files.entry(at).or_insert(base_name(types, at)?),
            };
            lines.push(Line {
                at: offset as usize / 8,
                file: String::clone(file),
                number: place >> 10,
                column: place & 0x3ff,
            });
        }
    }
    Ok(lines)
}

/// The last part of a path; what a terminal would obey in it is left out.
fn base_name(types: &Btf<'_>, at: u32) -> Checks<String> {
    let path = string(types.strings, at, MAX_PATH_BYTES).ok_or_else(|| {
        Refusal::new(format!("its line table names a file of more than {MAX_PATH_BYTES} bytes"))
    })?;
    let base = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    let base = String::from_utf8_lossy(&base[..base.len().min(MAX_NAME_BYTES)]);
    Ok(base.chars().filter(|c| !c.is_control()).collect())
}

/// The same with a line at the start of each function, which the kernel asks for, and none
/// in the second half of an instruction, where it refuses one.
pub(super) fn at_starts(
    mut lines: Vec<Line>,
    functions: &[Function],
    code: &[Instruction],
) -> Checks<Vec<Line>> {
    if lines.iter().any(|line| code.get(line.at).is_none_or(|instruction| instruction[0] == 0)) {
        return Err(Refusal::new("its line table names half an instruction"));
    }
    let has = |start: &usize| lines.binary_search_by_key(start, |line| line.at).is_ok();
    let missing: Vec<usize> =
        functions.iter().map(|function| function.start).filter(|start| !has(start)).collect();
    lines.extend(missing.into_iter().map(|at| Line {
        at,
        file: String::new(),
        number: 0,
        column: 0,
    }));
    lines.sort_by_key(|line| line.at);
    Ok(lines)
}
