//! Type information (Documentation/bpf/btf.rst), read without trusting any number in it.

use std::collections::BTreeMap;

use super::{Checks, MAX_NAME_BYTES, MAX_TYPES, Refusal, string, word};

/// Of a chain of typedefs and qualifiers, or of arrays of arrays.
const MAX_DEPTH: usize = 32;

const INT: u8 = 1;
const PTR: u8 = 2;
const ARRAY: u8 = 3;
const STRUCT: u8 = 4;
const UNION: u8 = 5;
const ENUM: u8 = 6;
const FWD: u8 = 7;
const TYPEDEF: u8 = 8;
const VOLATILE: u8 = 9;
const CONST: u8 = 10;
const RESTRICT: u8 = 11;
const FUNC: u8 = 12;
const FUNC_PROTO: u8 = 13;
const VAR: u8 = 14;
const DATASEC: u8 = 15;
const FLOAT: u8 = 16;
const DECL_TAG: u8 = 17;
const TYPE_TAG: u8 = 18;
const ENUM64: u8 = 19;

/// A type. Its number is its place, from 1 on; 0 is void.
#[derive(Debug, Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u8,
    /// A size, or another type, by kind.
    word: u32,
    /// What follows, by kind.
    rest: &'a [u8],
}

/// All types of an object.
#[derive(Debug)]
pub(super) struct Btf<'a> {
    types: Vec<Type<'a>>,
    pub(super) strings: &'a [u8],
    variables: BTreeMap<&'a [u8], u32>,
    functions: BTreeMap<&'a [u8], u32>,
}

/// What a type is, as far as a policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    Void,
    /// Bits, where they begin, and how they are read: 1 signed, 2 a character, 4 a bool.
    Int {
        bits: u8,
        shift: u8,
        encoding: u8,
    },
    /// To which type.
    Pointer(u32),
    /// Of so many elements.
    Array(u32),
    Struct(&'a [u8]),
    Other,
}

impl<'a> Btf<'a> {
    /// Reads the section `.BTF`.
    pub(super) fn read(section: &'a [u8]) -> Checks<Self> {
        let cut = || Refusal::new("its type information is cut off");
        let header = |at| word(section, at).ok_or_else(cut);
        // Magic number, version 1, no flags.
        if header(0)? != 0x0001_eb9f {
            return Err(Refusal::new("its type information is of another version"));
        }
        let (types, strings) =
            (part(section, header(8)?, header(12)?), part(section, header(16)?, header(20)?));
        let (mut rest, strings) = (types.ok_or_else(cut)?, strings.ok_or_else(cut)?);
        let mut this = Self {
            types: Vec::new(),
            strings,
            variables: BTreeMap::new(),
            functions: BTreeMap::new(),
        };
        while !rest.is_empty() {
            let (ty, after) = next(rest).ok_or_else(cut)?;
            if this.types.len() == MAX_TYPES {
                return Err(Refusal::new(format!("more than {MAX_TYPES} types")));
            }
            this.types.push(ty);
            rest = after;
            let names = match ty.kind {
                VAR => &mut this.variables,
                FUNC => &mut this.functions,
                _ => continue,
            };
            let name = string(strings, ty.name, MAX_NAME_BYTES)
                .ok_or_else(|| Refusal::new("a type without a name of at most 255 bytes"))?;
            if names.insert(name, this.types.len() as u32).is_some() {
                let name = super::shown(name);
                return Err(Refusal::new(format!("two types are given for '{name}'")));
            }
        }
        Ok(this)
    }

    fn get(&self, id: u32) -> Option<&Type<'a>> {
        self.types.get(usize::try_from(id.checked_sub(1)?).ok()?)
    }

    fn name(&self, at: u32) -> Option<&'a [u8]> {
        string(self.strings, at, MAX_NAME_BYTES)
    }

    /// Without typedefs and qualifiers; none when the chain is broken or too long.
    fn bare(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            match self.get(id) {
                Some(ty) if matches!(ty.kind, TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) => {
                    id = ty.word;
                }
                Some(_) => return Some(id),
                None => return (id == 0).then_some(0),
            }
        }
        None
    }

    /// What the type is, without typedefs and qualifiers.
    pub(super) fn kind(&self, id: u32) -> Option<Kind<'a>> {
        let id = self.bare(id)?;
        let Some(ty) = self.get(id) else { return Some(Kind::Void) };
        Some(match ty.kind {
            INT => {
                let [bits, _, shift, encoding] = *ty.rest.first_chunk()?;
                Kind::Int { bits, shift, encoding: encoding & 0x0f }
            }
            PTR => Kind::Pointer(ty.word),
            ARRAY => Kind::Array(word(ty.rest, 8)?),
            STRUCT | FWD => Kind::Struct(self.name(ty.name)?),
            _ => Kind::Other,
        })
    }

    /// Bytes of a value of the type; none when it has no size.
    pub(super) fn bytes(&self, mut id: u32) -> Option<u64> {
        let mut times: u64 = 1;
        for _ in 0..MAX_DEPTH {
            id = self.bare(id)?;
            let ty = self.get(id)?;
            let bytes = match ty.kind {
                INT | STRUCT | UNION | ENUM | ENUM64 | FLOAT => ty.word.into(),
                PTR => 8,
                ARRAY => {
                    times = times.checked_mul(word(ty.rest, 8)?.into())?;
                    id = word(ty.rest, 0)?;
                    continue;
                }
                _ => return None,
            };
            return times.checked_mul(bytes);
        }
        None
    }

    /// The type of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<u32> {
        Some(self.get(*self.variables.get(name.as_bytes())?)?.word)
    }

    /// The type of what a function returns, and of its parameters.
    pub(super) fn prototype(&self, name: &str) -> Option<(u32, Vec<u32>)> {
        let prototype = self.get(self.get(*self.functions.get(name.as_bytes())?)?.word)?;
        if prototype.kind != FUNC_PROTO {
            return None;
        }
        let (parameters, _) = prototype.rest.as_chunks::<8>();
        let parameters: Option<_> = parameters.iter().map(|p| word(p, 4)).collect();
        Some((prototype.word, parameters?))
    }

    /// Name and type of each member of a struct.
    pub(super) fn members(&self, id: u32) -> Option<Vec<(&'a [u8], u32)>> {
        let ty = self.get(self.bare(id)?).filter(|ty| ty.kind == STRUCT)?;
        let (members, _) = ty.rest.as_chunks::<12>();
        members
            .iter()
            .map(|member| Some((self.name(word(member, 0)?)?, word(member, 4)?)))
            .collect()
    }

    /// The variables that a section of that name has.
    pub(super) fn in_section(&self, section: &[u8]) -> Vec<&'a [u8]> {
        let is = |ty: &&Type<'_>| ty.kind == DATASEC && self.name(ty.name) == Some(section);
        let variables = self.types.iter().filter(is).flat_map(|ty| ty.rest.as_chunks::<12>().0);
        variables.filter_map(|variable| self.name(self.get(word(variable, 0)?)?.name)).collect()
    }
}

/// A part of the section, told by where it begins after the header.
fn part(section: &[u8], offset: u32, bytes: u32) -> Option<&[u8]> {
    let header = usize::try_from(word(section, 4)?).ok()?;
    let start = header.checked_add(usize::try_from(offset).ok()?)?;
    section.get(start..start.checked_add(usize::try_from(bytes).ok()?)?)
}

/// The first type of these bytes, and what follows it.
fn next(bytes: &[u8]) -> Option<(Type<'_>, &[u8])> {
    let (name, info) = (word(bytes, 0)?, word(bytes, 4)?);
    let kind = (info >> 24 & 0x1f) as u8;
    let of_each = match kind {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * (info as usize & 0xffff),
        ENUM | FUNC_PROTO => 8 * (info as usize & 0xffff),
        PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
        _ => return None,
    };
    let rest = bytes.get(12..12 + of_each)?;
    Some((Type { name, kind, word: word(bytes, 8)?, rest }, &bytes[12 + of_each..]))
}
