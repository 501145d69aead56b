//! Types and lines of a canonical object (Documentation/bpf/btf.rst).
//!
//! The linker and libbpf want types of whatever has a name: functions, Maps, what the
//! trusted half defines. Variables need none. The kernel wants lines of every function or
//! of none, and the verifier quotes them.

use std::collections::HashMap;

use syrup_hook::Input;

use super::checked::{Checked, Line, NR_EXECUTORS, NR_EXECUTORS_HERE, SCHEDULE, Target};
use super::write::Source;

/// The section in which libbpf looks for definitions of Maps.
pub(crate) const MAPS: &str = ".maps";

/// A definition is a row of pointers, whose types say all.
pub(crate) const MAP_BYTES: u64 = 5 * 8;

const MAGIC: u32 = 0x0001_eb9f;
const HEADER_BYTES: u32 = 24;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const FWD: u32 = 7;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;

/// Of an integer's description.
const SIGNED: u32 = 1 << 24;

/// Linkage of functions and variables.
const STATIC: u32 = 0;
const GLOBAL: u32 = 1;
const EXTERN: u32 = 2;

/// The longest line that is quoted.
const MAX_LINE_CHARS: usize = 160;

#[derive(Default)]
struct Types {
    bytes: Vec<u8>,
    count: u32,
    strings: Vec<u8>,
    known: HashMap<String, u32>,
}

impl Types {
    fn string(&mut self, text: &str) -> u32 {
        if let Some(&at) = self.known.get(text) {
            return at;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        self.known.insert(text.to_owned(), at);
        at
    }

    /// Adds a type: its name, its kind, how many members it has (or its linkage), its size
    /// (or what it refers to), and what follows. Returns its number.
    fn add(&mut self, name: &str, kind: u32, members: u32, word: u32, rest: &[u32]) -> u32 {
        let name = self.string(name);
        put(&mut self.bytes, &[name, kind << 24 | members, word]);
        put(&mut self.bytes, rest);
        self.count += 1;
        self.count
    }

    /// A number, as definitions of Maps have them: a pointer to an array of so many.
    fn number(&mut self, int: u32, number: u32) -> u32 {
        let array = self.add("", ARRAY, 0, 0, &[int, int, number]);
        self.add("", PTR, 0, array, &[])
    }
}

fn put(bytes: &mut Vec<u8>, words: &[u32]) {
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

/// The sections `.BTF` and `.BTF.ext` of a policy.
pub(crate) fn of(policy: &Checked, source: Option<Source<'_>>) -> (Vec<u8>, Vec<u8>) {
    let mut types = Types::default();
    types.string("");
    let int = types.add("int", INT, 0, 4, &[SIGNED | 32]);
    let functions = functions(&mut types, policy, int);
    let names = |target| policy.references.iter().any(|reference| reference.to == target);
    if names(Target::NrExecutors) || names(Target::NrExecutorsHere) {
        let unsigned = types.add("unsigned int", INT, 0, 4, &[32]);
        if names(Target::NrExecutors) {
            types.add(NR_EXECUTORS, VAR, 0, unsigned, &[EXTERN]);
        }
        if names(Target::NrExecutorsHere) {
            let prototype = types.add("", FUNC_PROTO, 0, unsigned, &[]);
            types.add(NR_EXECUTORS_HERE, FUNC, EXTERN, prototype, &[]);
        }
    }
    maps(&mut types, policy, int);
    let lines = lines(&mut types, policy, &functions, source);

    let mut section = Vec::new();
    let (type_bytes, string_bytes) = (types.bytes.len() as u32, types.strings.len() as u32);
    put(&mut section, &[MAGIC, HEADER_BYTES, 0, type_bytes, type_bytes, string_bytes]);
    section.extend(types.bytes);
    section.extend(types.strings);
    (section, lines)
}

/// Types of the functions, in their order.
fn functions(types: &mut Types, policy: &Checked, int: u32) -> Vec<u32> {
    let parameters = match policy.input {
        Input::Packet => {
            let pointer = types.add("", PTR, 0, 0, &[]);
            vec![("pkt_start", pointer), ("pkt_end", pointer)]
        }
        Input::Thread => {
            let thread = types.add("syrup_thread", FWD, 0, 0, &[]);
            vec![("thread", types.add("", PTR, 0, thread, &[]))]
        }
    };
    let named: Vec<u32> =
        parameters.iter().flat_map(|(name, ty)| [types.string(name), *ty]).collect();
    let schedule = types.add("", FUNC_PROTO, parameters.len() as u32, int, &named);
    // The verifier follows a static function from its callers, whatever its type.
    let other = types.add("", FUNC_PROTO, 0, 0, &[]);
    let mut add = |function: &super::checked::Function| match function.name.as_str() {
        SCHEDULE => types.add(SCHEDULE, FUNC, GLOBAL, schedule, &[]),
        _ => types.add(&function.symbol(), FUNC, STATIC, other, &[]),
    };
    policy.functions.iter().map(&mut add).collect()
}

fn maps(types: &mut Types, policy: &Checked, int: u32) {
    let mut variables = Vec::new();
    for (index, map) in policy.maps.iter().enumerate() {
        let members = [
            ("type", libbpf_sys::BPF_MAP_TYPE_ARRAY),
            ("key_size", 4),
            ("value_size", map.value_bytes),
            ("max_entries", map.entries),
            ("map_flags", libbpf_sys::BPF_F_MMAPABLE),
        ];
        let mut rest = Vec::new();
        for (place, (name, number)) in members.into_iter().enumerate() {
            rest.extend([types.string(name), types.number(int, number), place as u32 * 64]);
        }
        let definition = types.add("", STRUCT, members.len() as u32, MAP_BYTES as u32, &rest);
        let variable = types.add(&map.name, VAR, 0, definition, &[GLOBAL]);
        variables.extend([variable, index as u32 * MAP_BYTES as u32, MAP_BYTES as u32]);
    }
    if !policy.maps.is_empty() {
        let count = policy.maps.len() as u32;
        types.add(MAPS, DATASEC, count, count * MAP_BYTES as u32, &variables);
    }
}

/// `.BTF.ext`: the type of each function, and the lines. No third part: CO-RE relocations
/// patch instructions, of the trusted half, too.
fn lines(
    types: &mut Types,
    policy: &Checked,
    functions: &[u32],
    source: Option<Source<'_>>,
) -> Vec<u8> {
    let text = types.string(".text");
    let mut function_part = Vec::new();
    put(&mut function_part, &[8, text, functions.len() as u32]);
    for (function, &ty) in policy.functions.iter().zip(functions) {
        put(&mut function_part, &[function.start as u32 * 8, ty]);
    }
    let mut line_part = Vec::new();
    put(&mut line_part, &[16, text, policy.lines.len() as u32]);
    let quotes = Quotes::of(source);
    for line in &policy.lines {
        let (file, quote) = (types.string(&line.file), types.string(&quotes.of_line(line)));
        let place = line.number << 10 | line.column;
        put(&mut line_part, &[line.at as u32 * 8, file, quote, place]);
    }
    let (functions, lines) = (function_part.len() as u32, line_part.len() as u32);
    let mut section = Vec::new();
    put(&mut section, &[MAGIC, HEADER_BYTES, 0, functions, functions, lines]);
    section.extend(function_part);
    section.extend(line_part);
    section
}

/// The lines of the user's file.
struct Quotes<'a> {
    file: &'a str,
    lines: Vec<&'a str>,
}

impl<'a> Quotes<'a> {
    fn of(source: Option<Source<'a>>) -> Self {
        let Some(Source { file_name, text }) = source else {
            return Self { file: "", lines: Vec::new() };
        };
        let file = file_name.rsplit('/').next().unwrap_or(file_name);
        Self { file, lines: text.lines().collect() }
    }

    fn of_line(&self, line: &Line) -> String {
        if line.file != self.file {
            return String::new();
        }
        let text = (line.number as usize).checked_sub(1).and_then(|at| self.lines.get(at));
        let text = text.map_or("", |text| text.trim());
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        text.chars().map(visible).take(MAX_LINE_CHARS).collect()
    }
}
