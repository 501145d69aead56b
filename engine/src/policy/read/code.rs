//! The instructions of a policy: which there may be, and what they name.
//!
//! The list is of clang's output for `-mcpu=v1` to `v4`, field by field. The verifier would
//! refuse most of what is missing here, but not `may_goto`, with which a program runs for a
//! quarter of a second, nor loads by descriptor, which reach whatever this process has open.

use object::LittleEndian as LE;
use object::elf;
use object::pod::slice_from_all_bytes;

use super::super::checked::{Function, Instruction, Reference, Target};
use super::sections::{Role, Sections};
use super::symbols::{Place, Symbols};
use super::types::Maps;
use super::{Checks, Refusal};

/// Helpers a policy may call: number and name.
const HELPERS: &[(i32, &str)] = &[
    (1, "bpf_map_lookup_elem"),
    (5, "bpf_ktime_get_ns"),
    (7, "bpf_get_prandom_u32"),
    (8, "bpf_get_smp_processor_id"),
];

/// Classes: the low three bits of an opcode.
const LD: u8 = 0;
const LDX: u8 = 1;
const ST: u8 = 2;
const STX: u8 = 3;
const ALU32: u8 = 4;
const JMP: u8 = 5;
const JMP32: u8 = 6;
/// The second operand is a register.
const X: u8 = 0x08;

const LD_IMM64: u8 = 0x18;
const CALL: u8 = 0x85;
const CALLX: u8 = 0x8d;
const EXIT: u8 = 0x95;
const MAY_GOTO: u8 = 0xe5;
const FRAME_POINTER: u8 = 10;

const PSEUDO_CALL: u8 = 1;
const PSEUDO_KFUNC: u8 = 2;

/// add, or, and, xor, each also with the old value fetched; exchange, compare and exchange.
const ATOMICS: &[i32] = &[0x00, 0x40, 0x50, 0xa0, 0x01, 0x41, 0x51, 0xa1, 0xe1, 0xf1];

/// An instruction's fields.
#[derive(Clone, Copy)]
struct Fields {
    op: u8,
    dst: u8,
    src: u8,
    off: i16,
    imm: i32,
}

impl Fields {
    fn of([op, registers, off_low, off_high, imm @ ..]: Instruction) -> Self {
        Self {
            op,
            dst: registers & 0xf,
            src: registers >> 4,
            off: i16::from_le_bytes([off_low, off_high]),
            imm: i32::from_le_bytes(imm),
        }
    }

    /// What the opcode leaves unused, all of it.
    fn unused(self, dst: bool, src: bool, off: bool, imm: bool) -> bool {
        (!dst || self.dst == 0)
            && (!src || self.src == 0)
            && (!off || self.off == 0)
            && (!imm || self.imm == 0)
    }

    /// Apart from calls, and from loads of 64 bits.
    fn is_allowed(self) -> bool {
        if self.dst > FRAME_POINTER || self.src > FRAME_POINTER {
            return false;
        }
        let (mode, size) = (self.op & 0xe0, self.op & 0x18);
        match self.op & 0x07 {
            // Of memory; with sign extension, of less than 64 bits.
            LDX => (mode == 0x60 || mode == 0x80 && size != 0x18) && self.imm == 0,
            ST => mode == 0x60 && self.src == 0,
            STX if mode == 0xc0 => matches!(size, 0x00 | 0x18) && ATOMICS.contains(&self.imm),
            STX => mode == 0x60 && self.imm == 0,
            JMP | JMP32 => self.is_jump(),
            LD => false,
            class => self.is_arithmetic(class != ALU32),
        }
    }

    fn has_one_operand(self) -> bool {
        if self.op & X == 0 { self.src == 0 } else { self.imm == 0 }
    }

    fn is_arithmetic(self, wide: bool) -> bool {
        let register = self.op & X != 0;
        match self.op & 0xf0 {
            // add, sub, mul, or, and, lsh, rsh, xor, arsh
            0x00 | 0x10 | 0x20 | 0x40 | 0x50 | 0x60 | 0x70 | 0xa0 | 0xc0 => {
                self.off == 0 && self.has_one_operand()
            }
            // div, mod; signed
            0x30 | 0x90 => matches!(self.off, 0 | 1) && self.has_one_operand(),
            // neg
            0x80 => !register && self.unused(false, true, true, true),
            // mov; with sign extension. (Other offsets are for arenas and per-CPU addresses.)
            0xb0 => {
                let extends = register && (matches!(self.off, 8 | 16) || wide && self.off == 32);
                (self.off == 0 || extends) && self.has_one_operand()
            }
            // Byte order.
            0xd0 => {
                !(wide && register)
                    && self.unused(false, true, true, false)
                    && matches!(self.imm, 16 | 32 | 64)
            }
            _ => false,
        }
    }

    fn is_jump(self) -> bool {
        match (self.op & 0xf0, self.op & 0x07) {
            (0x00, JMP) => self.op & X == 0 && self.unused(true, true, false, true),
            (0x00, _) => self.op & X == 0 && self.unused(true, true, true, false),
            (0x90, JMP) => self.op == EXIT && self.unused(true, true, true, true),
            // Equal, set, not equal, and the four orders, unsigned and signed.
            (0x10..=0x70 | 0xa0..=0xd0, _) => self.has_one_operand(),
            _ => false,
        }
    }

    /// Where a jump goes, from the instruction after it.
    fn jumps(self) -> Option<i64> {
        match (self.op & 0x07, self.op) {
            (JMP, CALL | EXIT) => None,
            (JMP32, 0x06) => Some(self.imm.into()),
            (JMP | JMP32, _) => Some(self.off.into()),
            _ => None,
        }
    }
}

/// What a policy may call, for people.
pub(super) fn allowed_calls() -> String {
    let helpers: Vec<&str> = HELPERS.iter().map(|&(_, name)| name).collect();
    format!(
        "a policy only chooses, the hook enforces; it may call the functions of the policy SDK \
         and the helpers {}",
        helpers.join(", ")
    )
}

/// A relocation: its type, and what it names.
type Relocation<'a> = (u32, &'a Place);

/// The code being read.
struct Code<'a> {
    instructions: Vec<Instruction>,
    functions: &'a [Function],
    /// By instruction. What is left at the end names nothing.
    relocations: Vec<Option<Relocation<'a>>>,
    sections: &'a Sections<'a>,
    maps: &'a Maps,
    references: Vec<Reference>,
}

/// Reads `.text` and its relocations.
pub(super) fn read(
    sections: &Sections<'_>,
    symbols: &Symbols,
    maps: &Maps,
) -> Checks<(Vec<Instruction>, Vec<Reference>)> {
    let text = sections.get(Role::Text).map_or(&[][..], |section| section.data);
    let (instructions, _) = text.as_chunks::<8>();
    let mut code = Code {
        instructions: instructions.to_vec(),
        functions: &symbols.functions,
        relocations: relocations(sections, symbols, instructions.len())?,
        sections,
        maps,
        references: Vec::new(),
    };
    let ends = symbols.functions.iter().skip(1).map(|next| next.start);
    let ends: Vec<usize> = ends.chain([instructions.len()]).collect();
    for (function, &end) in symbols.functions.iter().zip(&ends) {
        let mut at = function.start;
        while at < end {
            at += code.check(at, function.start, end).map_err(|refusal| refusal.at(at))?;
        }
    }
    if let Some(at) = code.relocations.iter().position(Option::is_some) {
        return Err(Refusal::new("a relocation of an instruction that names nothing").at(at));
    }
    Ok((code.instructions, code.references))
}

/// Relocations of `.text`, by instruction.
fn relocations<'a>(
    sections: &Sections<'_>,
    symbols: &'a Symbols,
    nr_instructions: usize,
) -> Checks<Vec<Option<Relocation<'a>>>> {
    let mut all = vec![None; nr_instructions];
    let Some(section) = sections.get(Role::Relocations) else { return Ok(all) };
    let is = |index: u32, role| sections.at(index as usize).is_some_and(|of| of.role == role);
    if !is(section.info, Role::Text) || !is(section.link, Role::Symbols) {
        return Err(Refusal::new("the section '.rel.text' relocates something else than .text"));
    }
    let records: &[elf::Rel64<LE>] = slice_from_all_bytes(section.data)
        .map_err(|()| Refusal::new("the section '.rel.text' is cut off"))?;
    for record in records {
        let offset = record.r_offset.get(LE);
        let bad =
            |why: &str| Refusal::new(format!("a relocation at byte {offset:#x} of .text {why}"));
        let at = usize::try_from(offset / 8).ok().filter(|_| offset % 8 == 0);
        let entry = at.and_then(|at| all.get_mut(at));
        let entry = entry.ok_or_else(|| bad("is of no instruction"))?;
        let symbol = usize::try_from(record.r_sym(LE)).ok();
        let place = symbol.and_then(|symbol| symbols.places.get(symbol));
        let place = place.ok_or_else(|| bad("names no symbol"))?;
        if entry.replace((record.r_type(LE).0, place)).is_some() {
            return Err(bad("is the second of its instruction"));
        }
    }
    Ok(all)
}

impl Code<'_> {
    /// Checks the instruction at `at` of a function from `start` to `end`; says how many
    /// places it takes.
    fn check(&mut self, at: usize, start: usize, end: usize) -> Checks<usize> {
        let fields = Fields::of(self.instructions[at]);
        match fields.op {
            CALL => return self.call(at, fields).map(|()| 1),
            LD_IMM64 => return self.load(at, end, fields).map(|()| 2),
            CALLX => return Err(Refusal::new("an indirect call is not allowed")),
            MAY_GOTO => {
                return Err(Refusal::new("may_goto is not allowed")
                    .advise("give every loop a constant upper bound"));
            }
            op if !fields.is_allowed() => {
                return Err(Refusal::new(format!(
                    "an instruction that is not allowed: {op:#04x}, registers {} and {}, offset {}, \
                     immediate {:#x}",
                    fields.dst, fields.src, fields.off, fields.imm
                ))
                .advise("compile it with clang -target bpf -mcpu=v3, or give the C file"));
            }
            _ => {}
        }
        if let Some(distance) = fields.jumps() {
            let to = at as i64 + 1 + distance;
            if to < start as i64 || to >= end as i64 {
                return Err(Refusal::new("a jump out of its function"));
            }
        }
        Ok(1)
    }

    fn call(&mut self, at: usize, fields: Fields) -> Checks<()> {
        let Fields { src, imm, .. } = fields;
        if !fields.unused(true, false, true, false) {
            return Err(Refusal::new("a call with operands"));
        }
        match src {
            0 if !HELPERS.iter().any(|&(number, _)| number == imm) => {
                return Err(Refusal::new(format!("calls BPF helper {imm}")).advise(allowed_calls()));
            }
            0 => return Ok(()),
            PSEUDO_CALL => {}
            PSEUDO_KFUNC => {
                return Err(Refusal::new("calls a kernel function").advise(allowed_calls()));
            }
            kind => return Err(Refusal::new(format!("a call of unknown kind {kind}"))),
        }
        let from = match self.relocations[at].take() {
            None if imm == -1 => return Err(Refusal::new("a call to nowhere")),
            None => at as i64,
            Some((kind, Place::Text(to))) if kind == elf::R_BPF_64_32.0 && to % 8 == 0 => {
                (to / 8) as i64
            }
            Some((kind, Place::NrExecutorsHere)) if kind == elf::R_BPF_64_32.0 && imm == -1 => {
                self.references.push(Reference { at, to: Target::NrExecutorsHere });
                return Ok(());
            }
            Some((_, Place::Undefined(name))) => {
                return Err(Refusal::new(format!("calls '{name}', which a policy may not"))
                    .advise(allowed_calls()));
            }
            Some(_) => return Err(Refusal::new("calls something else than a function")),
        };
        let to = from + i64::from(imm) + 1;
        if self.functions.binary_search_by_key(&to, |function| function.start as i64).is_err() {
            return Err(Refusal::new("a call into the middle of a function, or out of the code"));
        }
        let relative = to - at as i64 - 1;
        self.instructions[at][4..].copy_from_slice(&(relative as i32).to_le_bytes());
        Ok(())
    }

    /// Of 64 bits: a number, or an address, which a relocation names.
    fn load(&mut self, at: usize, end: usize, fields: Fields) -> Checks<()> {
        let second = Some(at + 1).filter(|&second| second < end);
        let second = second.map(|second| Fields::of(self.instructions[second]));
        let second = second
            .filter(|second| second.op == 0 && second.unused(true, true, true, false))
            .ok_or_else(|| Refusal::new("a load of 64 bits without its second half"))?;
        if fields.src != 0 {
            // By a descriptor, a map's place in a list, a kernel variable's id, a function.
            return Err(Refusal::new(format!(
                "loads an address of kind {}: a policy names Maps and variables of its own only",
                fields.src
            )));
        }
        if fields.dst > FRAME_POINTER || fields.off != 0 {
            return Err(Refusal::new("a load of 64 bits with other operands than a register"));
        }
        let Some((kind, place)) = self.relocations[at].take() else { return Ok(()) };
        if kind != elf::R_BPF_64_64.0 {
            return Err(Refusal::new(format!("a relocation of type {kind} on a load of 64 bits")));
        }
        let addend = u64::try_from(fields.imm).ok().filter(|_| second.imm == 0);
        let addend = addend.ok_or_else(|| Refusal::new("an address before what it is of"))?;
        let to = match place {
            Place::Maps(byte) => {
                let map = byte.checked_add(addend).and_then(|byte| self.maps.at(byte));
                map.map(Target::Map)
                    .ok_or_else(|| Refusal::new("an address in .maps that is no Map's"))?
            }
            Place::Variable(segment, byte) => {
                let byte = byte.saturating_add(addend);
                let inside =
                    usize::try_from(byte).is_ok_and(|byte| byte < self.sections.bytes_of(*segment));
                if !inside {
                    return Err(Refusal::new("an address beyond the policy's variables"));
                }
                Target::Variable(*segment, byte as u32)
            }
            Place::NrExecutors if addend == 0 => Target::NrExecutors,
            Place::NrExecutors => {
                return Err(Refusal::new("an address beyond syrup_nr_executors"));
            }
            Place::Undefined(name) => {
                return Err(
                    Refusal::new(format!("'{name}' is not defined")).advise(allowed_calls())
                );
            }
            Place::Text(_) | Place::NrExecutorsHere => {
                return Err(Refusal::new("takes the address of a function"));
            }
            Place::Nothing => return Err(Refusal::new("the address of nothing")),
        };
        self.instructions[at][4..].fill(0);
        self.references.push(Reference { at, to });
        Ok(())
    }
}
