//! The symbols of an object: its functions, Maps and constants, and what relocations name.

use std::collections::BTreeSet;

use object::LittleEndian as LE;
use object::elf;
use object::pod::slice_from_all_bytes;

use super::super::checked::{Function, NR_EXECUTORS, NR_EXECUTORS_HERE, Segment};
use super::sections::{Role, Section, Sections};
use super::{Checks, MAX_NAME_BYTES, MAX_SYMBOLS, Refusal, shown, string};
use crate::hooks;

/// What a relocation that names a symbol means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing that code may name.
    Nothing,
    /// Byte of `.text`.
    Text(u64),
    /// Byte of `.maps`.
    Maps(u64),
    /// Byte of a segment.
    Variable(Segment, u64),
    NrExecutors,
    NrExecutorsHere,
    /// Defined nowhere.
    Undefined(String),
}

/// A constant or a Map: its name, its first byte, its size.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) at: u64,
    pub(super) bytes: u64,
}

/// What the symbols say.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// By symbol.
    pub(super) places: Vec<Place>,
    /// In order of their code, which they cover.
    pub(super) functions: Vec<Function>,
    pub(super) maps: Vec<Named>,
    pub(super) params: Vec<Named>,
    pub(super) settings: Vec<Named>,
}

/// Functions while they are read: where they end, too.
#[derive(Default)]
struct Seen {
    names: BTreeSet<String>,
    functions: Vec<(u64, u64, String)>,
}

impl Symbols {
    pub(super) fn read(sections: &Sections<'_>) -> Checks<Self> {
        let table = sections.get(Role::Symbols).ok_or_else(|| Refusal::new("it has no symbols"))?;
        let strings = usize::try_from(table.link).ok().and_then(|at| sections.at(at));
        let strings = strings
            .filter(|section| section.role == Role::Strings)
            .ok_or_else(|| Refusal::new("its symbols have no names"))?;
        let symbols: &[elf::Sym64<LE>] = slice_from_all_bytes(table.data)
            .map_err(|()| Refusal::new("its symbol table is cut off"))?;
        if symbols.len() > MAX_SYMBOLS {
            let count = symbols.len();
            return Err(Refusal::new(format!("{count} symbols, the limit is {MAX_SYMBOLS}")));
        }
        let mut this = Self::default();
        let mut seen = Seen::default();
        for symbol in symbols {
            let place = this.add(sections, strings.data, symbol, &mut seen)?;
            this.places.push(place);
        }
        this.functions = in_order(seen.functions, sections)?;
        for named in [&mut this.maps, &mut this.params, &mut this.settings] {
            named.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(this)
    }

    fn add(
        &mut self,
        sections: &Sections<'_>,
        strings: &[u8],
        symbol: &elf::Sym64<LE>,
        seen: &mut Seen,
    ) -> Checks<Place> {
        let (kind, bind) = (symbol.st_type(), symbol.st_bind());
        let (at, bytes) = (symbol.st_value.get(LE), symbol.st_size.get(LE));
        let name = string(strings, symbol.st_name.get(LE), MAX_NAME_BYTES).ok_or_else(|| {
            Refusal::new(format!("a symbol has no name of at most {MAX_NAME_BYTES} bytes"))
        })?;
        let bad = |why: &str| Refusal::new(format!("the symbol '{}' {why}", shown(name)));

        let shndx = symbol.st_shndx.get(LE);
        if shndx == elf::SHN_UNDEF {
            return match name {
                b"" => Ok(Place::Nothing),
                _ if name == NR_EXECUTORS.as_bytes() => Ok(Place::NrExecutors),
                _ if name == NR_EXECUTORS_HERE.as_bytes() => Ok(Place::NrExecutorsHere),
                _ => Ok(Place::Undefined(shown(name))),
            };
        }
        if kind == elf::STT_FILE {
            return Ok(Place::Nothing);
        }
        let section = shndx.index().and_then(|index| sections.at(usize::from(index)));
        let section = section.ok_or_else(|| bad("is in no section"))?;
        let place = place(section, at);
        match (kind, section.role) {
            (elf::STT_SECTION, _) if at == 0 => return Ok(place),
            // Labels.
            (elf::STT_NOTYPE, Role::Text | Role::Unread) if bind == elf::STB_LOCAL => {
                return Ok(place);
            }
            (elf::STT_OBJECT, Role::Abi) => return Ok(Place::Nothing),
            (elf::STT_FUNC, Role::Text) | (elf::STT_OBJECT, Role::Maps | Role::Variables(_)) => {}
            _ => return Err(bad("is of a kind that a policy has not")),
        }

        // People read it, on terminals.
        let letter = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '$');
        let name = std::str::from_utf8(name).ok().filter(|name| name.chars().all(letter));
        let name = name.ok_or_else(|| bad("is no name"))?;
        let is_setting = hooks::specs()
            .any(|spec| spec.settings.as_ref().is_some_and(|constant| constant.name == name));
        if name.starts_with("syrup_") && !is_setting {
            return Err(Refusal::new(format!("defines '{}'", shown(name.as_bytes())))
                .advise("names starting with syrup_ belong to Syrup: rename it"));
        }
        if !seen.names.insert(name.to_owned()) {
            return Err(bad("is defined twice"));
        }
        let end = at.checked_add(bytes).filter(|&end| end <= section.bytes);
        let end = end.ok_or_else(|| bad("reaches beyond its section"))?;
        match section.role {
            Role::Text if bind == elf::STB_GLOBAL && symbol.st_visibility() != elf::STV_HIDDEN => {
                // The verifier would check it apart from its caller, and find its
                // arguments wanting in words that do not say why.
                return Err(Refusal::new(format!("the function '{}' is global", name)).advise(
                    "compile it with -fvisibility=hidden, or give the C file and let Syrup \
                         compile it",
                ));
            }
            Role::Text => seen.functions.push((at, end, name.to_owned())),
            Role::Maps => self.maps.push(Named { name: name.to_owned(), at, bytes }),
            Role::Variables(Segment::Rodata) if bytes > 0 => {
                let named =
                    Named { name: name.to_owned(), at: at + u64::from(section.base), bytes };
                if is_setting {
                    self.settings.push(named);
                } else if section.name == b".rodata" && !name.contains('.') {
                    self.params.push(named);
                }
            }
            _ => {}
        }
        Ok(place)
    }

    /// Everything that code may call was looked for by then.
    pub(super) fn refuse_undefined(&self) -> Checks<()> {
        for place in &self.places {
            if let Place::Undefined(name) = place {
                return Err(Refusal::new(format!("'{name}' is not defined"))
                    .advise(super::code::allowed_calls()));
            }
        }
        Ok(())
    }
}

fn place(section: &Section<'_>, at: u64) -> Place {
    match section.role {
        Role::Text => Place::Text(at),
        Role::Maps => Place::Maps(at),
        Role::Variables(segment) => {
            Place::Variable(segment, at.saturating_add(u64::from(section.base)))
        }
        _ => Place::Nothing,
    }
}

/// Functions must cover the code: libbpf takes apart and moves what belongs to one.
fn in_order(
    mut functions: Vec<(u64, u64, String)>,
    sections: &Sections<'_>,
) -> Checks<Vec<Function>> {
    functions.sort();
    let mut covered = 0;
    let mut in_order = Vec::new();
    for (at, end, name) in functions {
        if at != covered || end == at || end % 8 != 0 {
            return Err(Refusal::new(format!(
                "the function '{}' does not begin where the code before it ends, or ends within \
                 an instruction",
                shown(name.as_bytes())
            )));
        }
        covered = end;
        in_order.push(Function { name, start: (at / 8) as usize });
    }
    if covered != sections.get(Role::Text).map_or(0, |text| text.bytes) {
        return Err(Refusal::new("the end of its code belongs to no function"));
    }
    Ok(in_order)
}
