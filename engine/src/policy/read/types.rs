//! What the types of an object say: its Maps, its parameters, what `schedule()` takes.

use syrup_hook::Input;
use syrup_protocol::names;

use super::super::checked::{Constant, Function, Integer, MapShape, SCHEDULE};
use super::btf::{Btf, Kind};
use super::symbols::{Named, Symbols};
use super::{Checks, MAX_MAPS, Refusal, shown};
use crate::maps::{MAX_APP_BYTES, MAX_MAP_BYTES};

/// A policy's Maps, and where its object has them.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) shapes: Vec<MapShape>,
    /// First byte of each in `.maps`.
    at: Vec<u64>,
}

impl Maps {
    /// The Map that begins at a byte of `.maps`.
    pub(super) fn at(&self, byte: u64) -> Option<usize> {
        self.at.iter().position(|&at| at == byte)
    }
}

/// The Maps: their definitions may say type, key, value, max_entries and map_flags; no
/// pinning, no inner maps.
pub(super) fn maps(symbols: &Symbols, types: &Btf<'_>) -> Checks<Maps> {
    if symbols.maps.len() > MAX_MAPS {
        let count = symbols.maps.len();
        return Err(Refusal::new(format!("names {count} Maps, the limit is {MAX_MAPS}")));
    }
    let shapes = symbols.maps.iter().map(|named| {
        shape(named, types).map_err(|why| {
            Refusal::new(format!("Map '{}': {why}", shown(named.name.as_bytes()))).advise(
                "declare Maps with SYRUP_MAP(name, entries) or SYRUP_MAP_OF(name, type, entries)",
            )
        })
    });
    let shapes = shapes.collect::<Checks<Vec<MapShape>>>()?;
    let bytes: u64 = shapes.iter().map(MapShape::bytes).sum();
    if bytes > MAX_APP_BYTES {
        return Err(Refusal::new(format!(
            "its Maps take {bytes} bytes together, the limit is {MAX_APP_BYTES}"
        )));
    }
    Ok(Maps { shapes, at: symbols.maps.iter().map(|map| map.at).collect() })
}

fn shape(named: &Named, types: &Btf<'_>) -> Result<MapShape, String> {
    if !names::is_map(&named.name) {
        return Err("its name is not a C identifier of at most 15 characters".to_owned());
    }
    if named.bytes == 0 {
        return Err("its definition has no size".to_owned());
    }
    let members = types.variable(&named.name).and_then(|id| types.members(id));
    let members = members.ok_or("it has no type information")?;
    const ATTRIBUTES: [&str; 5] = ["type", "key", "value", "max_entries", "map_flags"];
    let mut pointees = [None; 5];
    for (name, ty) in members {
        let attribute = ATTRIBUTES.iter().position(|attribute| attribute.as_bytes() == name);
        let attribute =
            attribute.ok_or_else(|| format!("the attribute '{}' is not allowed", shown(name)))?;
        let Some(Kind::Pointer(to)) = types.kind(ty) else {
            return Err(format!("the attribute '{}' is no pointer", shown(name)));
        };
        if pointees[attribute].replace(to).is_some() {
            return Err(format!("the attribute '{}' is there twice", shown(name)));
        }
    }
    // Numbers are lengths of arrays.
    let number = |attribute: usize| match types.kind(pointees[attribute]?) {
        Some(Kind::Array(length)) => Some(length),
        _ => None,
    };
    let bytes = |attribute: usize| types.bytes(pointees[attribute]?);
    let is_ours = number(0) == Some(libbpf_sys::BPF_MAP_TYPE_ARRAY)
        && bytes(1) == Some(4)
        && number(4) == Some(libbpf_sys::BPF_F_MMAPABLE);
    if !is_ours {
        return Err("it is not a memory-mappable array with u32 keys".to_owned());
    }
    let value_bytes = bytes(2).ok_or("its values have no size")?;
    let entries = number(3).ok_or("it does not say how many entries it has")?;
    let total = value_bytes.checked_next_multiple_of(8).and_then(|b| b.checked_mul(entries.into()));
    match (total, u32::try_from(value_bytes)) {
        (Some(1..=MAX_MAP_BYTES), Ok(value_bytes)) => {
            Ok(MapShape { name: named.name.clone(), value_bytes, entries })
        }
        (total, _) => {
            let total = total.map_or("too many".to_owned(), |total| total.to_string());
            Err(format!("{total} bytes; 1 to {MAX_MAP_BYTES} are allowed"))
        }
    }
}

/// What `schedule()` takes.
pub(super) fn input(functions: &[Function], types: &Btf<'_>) -> Checks<Input> {
    let missing = || {
        Refusal::new("does not define schedule()").advise(
            "include <syrup/packet.h> or <syrup/thread.h> and define the schedule() it declares",
        )
    };
    if !functions.iter().any(|function| function.name == SCHEDULE) {
        return Err(missing());
    }
    let (returned, parameters) = types.prototype(SCHEDULE).ok_or_else(missing)?;
    let returns = matches!(types.kind(returned), Some(Kind::Int { bits: 32, .. }));
    let pointees: Vec<Option<Kind<'_>>> = parameters
        .iter()
        .map(|&ty| match types.kind(ty)? {
            Kind::Pointer(to) => types.kind(to),
            _ => None,
        })
        .collect();
    match pointees.as_slice() {
        [Some(Kind::Void), Some(Kind::Void)] if returns => Ok(Input::Packet),
        [Some(Kind::Struct(b"syrup_thread"))] if returns => Ok(Input::Thread),
        _ => Err(Refusal::new("schedule() has an unknown prototype").advise(
            "it takes (void *pkt_start, void *pkt_end) or (struct syrup_thread *t), and returns __s32",
        )),
    }
}

/// Constants with their types.
pub(super) fn constants(named: Vec<Named>, types: &Btf<'_>) -> Vec<Constant> {
    let constant = |Named { name, at, bytes }| {
        let (at, bytes) = (at as usize, bytes as usize);
        let integer = types.variable(&name).and_then(|ty| match types.kind(ty)? {
            Kind::Int { bits: bits @ (8 | 16 | 32 | 64), shift: 0, encoding } => {
                Some(Integer { bits, signed: encoding == 1, bool: encoding == 4 })
            }
            _ => None,
        });
        let integer = integer.filter(|integer| usize::from(integer.bits) == bytes * 8);
        Constant { name, at, bytes, integer }
    };
    named.into_iter().map(constant).collect()
}
