//! Which line of the user's file an instruction came from: `.BTF.ext` of an
//! object (Documentation/bpf/btf.rst, ".BTF.ext section").

use object::{Object as _, ObjectSection as _};

/// Lines of `.text`, by byte offset.
#[derive(Debug, Default)]
pub(crate) struct LineTable {
    /// (byte offset, file, line), ascending.
    lines: Vec<(u32, String, u32)>,
}

impl LineTable {
    /// Reads the table of `.text`; empty when the object has none.
    pub(crate) fn of(elf: &object::File<'_>) -> Self {
        Self { lines: read(elf).unwrap_or_default() }
    }

    /// `file:line` of the instruction at `offset`, or just the file.
    pub(crate) fn place(&self, offset: usize, file_name: &str) -> String {
        self.lines
            .iter()
            .rev()
            .find(|(at, _, _)| *at as usize <= offset)
            .map_or_else(|| file_name.to_owned(), |(_, file, line)| format!("{file}:{line}"))
    }
}

/// Little-endian words of a section, read without trusting any length in it.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn usize(&self, at: usize) -> Option<usize> {
        usize::try_from(self.u32(at)?).ok()
    }
}

fn read(elf: &object::File<'_>) -> Option<Vec<(u32, String, u32)>> {
    let btf = elf.section_by_name(".BTF")?.data().ok()?;
    let ext = elf.section_by_name(".BTF.ext")?.data().ok()?;
    let header = Words(btf);
    let strings = btf.get(header.usize(4)?.checked_add(header.usize(16)?)?..)?;
    let string = |offset: u32| {
        let from = strings.get(usize::try_from(offset).ok()?..)?;
        let end = from.iter().position(|&byte| byte == 0)?;
        Some(String::from_utf8_lossy(&from[..end]).into_owned())
    };

    let words = Words(ext);
    let start = words.usize(4)?.checked_add(words.usize(16)?)?;
    let end = start.checked_add(words.usize(20)?)?;
    let record_size = words.usize(start)?;
    if record_size < 16 {
        return None;
    }
    let mut lines = Vec::new();
    let mut at = start + 4;
    while at + 8 <= end {
        let section = string(words.u32(at)?)?;
        let records = words.usize(at + 4)?;
        at += 8;
        for _ in 0..records {
            if section == ".text" {
                let file = string(words.u32(at + 4)?)?;
                lines.push((words.u32(at)?, file, words.u32(at + 12)? >> 10));
            }
            at = at.checked_add(record_size)?;
            if at > end {
                return None;
            }
        }
    }
    lines.sort_by_key(|(offset, _, _)| *offset);
    Some(lines)
}
