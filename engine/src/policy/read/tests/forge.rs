//! Objects taken apart and put together again, with whatever a tenant may put into them.

use syrup_sdk::Compiler;

/// `sh_type`.
pub(super) const PROGBITS: u32 = 1;
pub(super) const NOBITS: u32 = 8;
pub(super) const REL: u32 = 9;
/// `sh_flags`.
pub(super) const WRITE: u64 = 1;
pub(super) const ALLOC: u64 = 2;
pub(super) const EXEC: u64 = 4;
pub(super) const TLS: u64 = 0x400;

const HEADER_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const RELOCATION_BYTES: usize = 16;

/// A section with its header.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub(super) name: Vec<u8>,
    pub(super) kind: u32,
    pub(super) flags: u64,
    pub(super) link: u32,
    pub(super) info: u32,
    pub(super) align: u64,
    pub(super) entry: u64,
    pub(super) data: Vec<u8>,
    /// Instead of the length of the data.
    pub(super) size: Option<u64>,
    /// Instead of where the data is.
    pub(super) offset: Option<u64>,
}

/// An object in parts. Section headers follow the data, names are in `.strtab`.
#[derive(Debug, Clone)]
pub(super) struct Forge {
    pub(super) header: Vec<u8>,
    pub(super) sections: Vec<Section>,
}

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut word = [0; 8];
    word[..size].copy_from_slice(&bytes[at..at + size]);
    u64::from_le_bytes(word)
}

impl Forge {
    /// Takes apart what Syrup's compiler makes of a source.
    pub(super) fn compiled(source: &str) -> Self {
        Self::of(&Compiler::find().unwrap().compile("p.c", source).unwrap().object)
    }

    pub(super) fn of(object: &[u8]) -> Self {
        let headers = number(object, 40, 8) as usize;
        let count = number(object, 60, 2) as usize;
        let field =
            |index: usize, at: usize, size: usize| number(object, headers + index * 64 + at, size);
        let data = |index: usize| {
            let (from, size) = (field(index, 24, 8) as usize, field(index, 32, 8) as usize);
            if field(index, 4, 4) as u32 == NOBITS { &[][..] } else { &object[from..from + size] }
        };
        let names = data(number(object, 62, 2) as usize);
        let name = |index: usize| {
            let rest = &names[field(index, 0, 4) as usize..];
            rest[..rest.iter().position(|&byte| byte == 0).unwrap()].to_vec()
        };
        let sections = (0..count).map(|index| Section {
            name: name(index),
            kind: field(index, 4, 4) as u32,
            flags: field(index, 8, 8),
            link: field(index, 40, 4) as u32,
            info: field(index, 44, 4) as u32,
            align: field(index, 48, 8),
            entry: field(index, 56, 8),
            data: data(index).to_vec(),
            size: (field(index, 4, 4) as u32 == NOBITS).then(|| field(index, 32, 8)),
            offset: None,
        });
        Self { header: object[..HEADER_BYTES].to_vec(), sections: sections.collect() }
    }

    /// Puts the object together.
    pub(super) fn build(&self) -> Vec<u8> {
        let strings = self.index(".strtab");
        let mut sections = self.sections.clone();
        let mut names = Vec::new();
        for section in &self.sections {
            names.push(sections[strings].data.len() as u64);
            sections[strings].data.extend_from_slice(&section.name);
            sections[strings].data.push(0);
        }
        let mut object = self.header.clone();
        let mut headers = Vec::new();
        for (section, name) in sections.iter().zip(names) {
            object.resize(object.len().next_multiple_of(8), 0);
            let offset = section.offset.unwrap_or(object.len() as u64);
            object.extend_from_slice(&section.data);
            let size = section.size.unwrap_or(section.data.len() as u64);
            for (number, bytes) in [
                (name, 4),
                (section.kind.into(), 4),
                (section.flags, 8),
                (0, 8),
                (offset, 8),
                (size, 8),
                (section.link.into(), 4),
                (section.info.into(), 4),
                (section.align, 8),
                (section.entry, 8),
            ] {
                headers.extend_from_slice(&number.to_le_bytes()[..bytes]);
            }
        }
        object.resize(object.len().next_multiple_of(8), 0);
        let at = object.len() as u64;
        object[40..48].copy_from_slice(&at.to_le_bytes());
        object[60..62].copy_from_slice(&(sections.len() as u16).to_le_bytes());
        object[62..64].copy_from_slice(&(strings as u16).to_le_bytes());
        object.extend(headers);
        object
    }

    pub(super) fn index(&self, name: &str) -> usize {
        let is = |section: &Section| section.name == name.as_bytes();
        self.sections.iter().position(is).unwrap_or_else(|| panic!("no section {name}"))
    }

    pub(super) fn section(&mut self, name: &str) -> &mut Section {
        let index = self.index(name);
        &mut self.sections[index]
    }

    /// Adds a section.
    pub(super) fn add(&mut self, name: &str, kind: u32, flags: u64, data: &[u8]) {
        self.sections.push(Section {
            name: name.into(),
            kind,
            flags,
            link: 0,
            info: 0,
            align: 8,
            entry: 0,
            data: data.to_vec(),
            size: None,
            offset: None,
        });
    }

    /// Adds another section like the first of that name.
    pub(super) fn duplicate(&mut self, name: &str) {
        let section = self.section(name).clone();
        self.sections.push(section);
    }

    /// Writes a little-endian number into a section.
    pub(super) fn put(&mut self, section: &str, at: usize, bytes: &[u8]) {
        self.section(section).data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Overwrites an instruction.
    pub(super) fn instruction(&mut self, at: usize, instruction: [u8; 8]) {
        self.put(".text", at * 8, &instruction);
    }

    /// The symbol of that name: its number.
    pub(super) fn symbol(&mut self, name: &str) -> usize {
        let names = self.section(".strtab").data.clone();
        let symbols = &self.section(".symtab").data;
        let is = |symbol: &[u8]| {
            let rest = &names[number(symbol, 0, 4) as usize..];
            rest.starts_with(name.as_bytes()) && rest[name.len()] == 0
        };
        symbols.chunks(SYMBOL_BYTES).position(is).unwrap_or_else(|| panic!("no symbol {name}"))
    }

    /// Sets fields of a symbol, where they are given.
    pub(super) fn set_symbol(&mut self, name: &str, fields: SymbolFields) {
        let number = self.symbol(name);
        self.set_symbol_at(number, fields);
    }

    fn set_symbol_at(&mut self, number: usize, fields: SymbolFields) {
        let at = number * SYMBOL_BYTES;
        let symbols = &mut self.section(".symtab").data[at..at + SYMBOL_BYTES];
        let SymbolFields { info, other, section, value, size } = fields;
        for (place, bytes) in [
            (4, info.map(|info| vec![info])),
            (5, other.map(|other| vec![other])),
            (6, section.map(|section| section.to_le_bytes().to_vec())),
            (8, value.map(|value| value.to_le_bytes().to_vec())),
            (16, size.map(|size| size.to_le_bytes().to_vec())),
        ] {
            if let Some(bytes) = bytes {
                symbols[place..place + bytes.len()].copy_from_slice(&bytes);
            }
        }
    }

    /// Adds a symbol of a new name; returns its number.
    pub(super) fn add_symbol(&mut self, name: &str, fields: SymbolFields) -> usize {
        let names = &mut self.section(".strtab").data;
        let at = names.len() as u32;
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        let symbols = &mut self.section(".symtab").data;
        symbols.extend_from_slice(&at.to_le_bytes());
        symbols.resize(symbols.len() + SYMBOL_BYTES - 4, 0);
        let number = symbols.len() / SYMBOL_BYTES - 1;
        self.set_symbol_at(number, fields);
        number
    }

    /// Makes relocation `index` of the code one at `offset`, of this type and symbol.
    pub(super) fn relocation(&mut self, index: usize, offset: u64, kind: u32, symbol: usize) {
        let mut bytes = offset.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(u64::from(kind) | (symbol as u64) << 32).to_le_bytes());
        let relocations = &mut self.section(".rel.text").data;
        if relocations.len() < (index + 1) * RELOCATION_BYTES {
            relocations.resize((index + 1) * RELOCATION_BYTES, 0);
        }
        self.put(".rel.text", index * RELOCATION_BYTES, &bytes);
    }

    /// Adds a relocation of the code.
    pub(super) fn add_relocation(&mut self, offset: u64, kind: u32, symbol: usize) {
        let index = self.section(".rel.text").data.len() / RELOCATION_BYTES;
        self.relocation(index, offset, kind, symbol);
    }

    /// The first relocation that names a symbol: its index, and the instruction.
    pub(super) fn relocation_of(&mut self, symbol: &str) -> (usize, usize) {
        let symbol = self.symbol(symbol) as u64;
        let relocations = &self.section(".rel.text").data;
        let is = |entry: &[u8]| number(entry, 12, 4) == symbol;
        let index = relocations.chunks(RELOCATION_BYTES).position(is).unwrap();
        (index, number(relocations, index * RELOCATION_BYTES, 8) as usize / 8)
    }

    /// First of the instructions that the source keeps for tests.
    pub(super) fn room(&mut self) -> usize {
        let at = self.symbol("room") * SYMBOL_BYTES + 8;
        number(&self.section(".symtab").data, at, 8) as usize / 8
    }

    /// How many instructions its function has.
    pub(super) fn room_size(&mut self) -> usize {
        let at = self.symbol("room") * SYMBOL_BYTES + 16;
        number(&self.section(".symtab").data, at, 8) as usize / 8
    }

    /// Adds types to `.BTF`, behind the others.
    pub(super) fn add_types(&mut self, words: &[u32]) {
        let types = &mut self.section(".BTF").data;
        let word = |types: &[u8], at| number(types, at, 4) as u32;
        let (header, length, strings) = (word(types, 4), word(types, 12), word(types, 16));
        let at = (header + length) as usize;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let more = bytes.len() as u32;
        types.splice(at..at, bytes);
        self.put(".BTF", 12, &(length + more).to_le_bytes());
        self.put(".BTF", 16, &(strings + more).to_le_bytes());
    }

    /// Where in `.BTF` the name of a type is.
    pub(super) fn name_in_types(&mut self, name: &str) -> u32 {
        let types = &self.section(".BTF").data;
        let strings = (number(types, 4, 4) + number(types, 16, 4)) as usize;
        let name = [b"\0", name.as_bytes(), b"\0"].concat();
        let find = |window: &[u8]| window == name;
        types[strings..].windows(name.len()).position(find).unwrap() as u32 + 1
    }

    /// Adds a string to `.BTF`; returns where it is.
    pub(super) fn add_string(&mut self, string: &[u8]) -> u32 {
        let types = &mut self.section(".BTF").data;
        let length = number(types, 20, 4) as u32;
        types.extend_from_slice(string);
        types.push(0);
        let more = length + string.len() as u32 + 1;
        self.put(".BTF", 20, &more.to_le_bytes());
        length
    }

    /// Where in `.BTF.ext` the line table begins: the size of its records, then a section's
    /// name and number of records, then these.
    pub(super) fn lines(&mut self) -> usize {
        let table = &self.section(".BTF.ext").data;
        (number(table, 4, 4) + number(table, 16, 4)) as usize
    }
}

/// Fields of a symbol.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SymbolFields {
    /// Binding (0 local, 1 global, 2 weak) * 16 + type (0 none, 1 object, 2 function, 3
    /// section, 5 common, 6 thread-local, 10 indirect function).
    pub(super) info: Option<u8>,
    pub(super) other: Option<u8>,
    pub(super) section: Option<u16>,
    pub(super) value: Option<u64>,
    pub(super) size: Option<u64>,
}
