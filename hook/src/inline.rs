//! `schedule()` in the place of its call.
//!
//! A policy is linked to its hook's trusted half as a function, and a call costs: the return
//! alone some 10 ns on machines whose returns are guarded (SRSO, retbleed). The trusted half
//! calls it in one place, so that the program can have it there, as a compiler would have
//! put it that saw both. Done on what libbpf is about to load: one list of instructions,
//! the main program first, then the functions it calls.
//!
//! Only of a program that the verifier accepted as it was (`load.rs`): that the function leaves
//! its caller's registers and frame alone is what it says, and what is taken for granted here.

use std::collections::BTreeSet;

/// An instruction as the kernel takes it (Documentation/bpf/standardization).
pub(crate) type Instruction = [u8; 8];

/// The kernel's limit.
const STACK_BYTES: i32 = 512;
/// The registers that a call keeps.
const KEPT: std::ops::RangeInclusive<u8> = 6..=9;
const FRAME: u8 = 10;

const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LD_IMM64: u8 = 0x18;
const JA: u8 = 0x05;
const JA32: u8 = 0x06;
const MOV64_X: u8 = 0xbf;
const ADD64_K: u8 = 0x07;
const STX_DW: u8 = 0x7b;
const LDX_DW: u8 = 0x79;
/// Of `src`: whose the immediate is.
const PSEUDO_CALL: u8 = 1;
const PSEUDO_FUNC: u8 = 4;

/// A program that is to be loaded: its functions, the main one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Code {
    pub(crate) instructions: Vec<Instruction>,
    /// Where a function begins, and what is said of it.
    pub(crate) functions: Vec<(usize, u32)>,
    /// Where a line of the source begins, and what is said of it.
    pub(crate) lines: Vec<(usize, [u32; 3])>,
}

fn src(instruction: Instruction) -> u8 {
    instruction[1] >> 4
}

fn dst(instruction: Instruction) -> u8 {
    instruction[1] & 15
}

fn offset(instruction: Instruction) -> i16 {
    i16::from_le_bytes([instruction[2], instruction[3]])
}

fn immediate(instruction: Instruction) -> i32 {
    let [.., a, b, c, d] = instruction;
    i32::from_le_bytes([a, b, c, d])
}

fn with_offset(mut instruction: Instruction, offset: i16) -> Instruction {
    instruction[2..4].copy_from_slice(&offset.to_le_bytes());
    instruction
}

fn with_immediate(mut instruction: Instruction, immediate: i32) -> Instruction {
    instruction[4..].copy_from_slice(&immediate.to_le_bytes());
    instruction
}

/// `*(u64 *)(r10 + at) = reg`
fn save(reg: u8, at: i16) -> Instruction {
    with_offset([STX_DW, reg << 4 | FRAME, 0, 0, 0, 0, 0, 0], at)
}

/// `reg = *(u64 *)(r10 + at)`
fn restore(reg: u8, at: i16) -> Instruction {
    with_offset([LDX_DW, FRAME << 4 | reg, 0, 0, 0, 0, 0, 0], at)
}

fn is_call(instruction: Instruction) -> bool {
    instruction[0] == CALL && src(instruction) == PSEUDO_CALL
}

/// How a jump says where it goes.
fn is_jump(instruction: Instruction) -> bool {
    let class = instruction[0] & 7;
    (class == 5 || class == 6) && instruction[0] != CALL && instruction[0] != EXIT
}

/// Where an instruction goes besides on.
fn target(at: usize, instruction: Instruction) -> Option<usize> {
    let by = match instruction {
        i if is_call(i) || i[0] == JA32 => immediate(i),
        i if is_jump(i) => offset(i).into(),
        _ => return None,
    };
    (at + 1).checked_add_signed(by as isize)
}

/// Which instructions are such, and not the second half of one.
fn heads(code: &[Instruction]) -> Vec<bool> {
    let mut heads = vec![true; code.len()];
    for at in 0..code.len() {
        if heads[at] && code[at][0] == LD_IMM64 && at + 1 < code.len() {
            heads[at + 1] = false;
        }
    }
    heads
}

/// The registers that a piece of code without jumps has written; `None` when it has any.
fn written(code: &[Instruction]) -> Option<BTreeSet<u8>> {
    let heads = heads(code);
    let mut written = BTreeSet::new();
    for (_, &i) in heads.iter().zip(code).filter(|(is_head, _)| **is_head) {
        match i[0] & 7 {
            _ if is_jump(i) => return None,
            // Stores, and calls.
            2 | 3 | 5 => {}
            _ => drop(written.insert(dst(i))),
        }
    }
    Some(written)
}

/// Bytes of its frame, and which of the kept registers a function uses; `None` when it does
/// with its frame what compilers do not.
fn frame(function: &[Instruction]) -> Option<(i32, BTreeSet<u8>)> {
    let (mut lowest, mut used) = (0, BTreeSet::new());
    let heads = heads(function);
    for (at, &i) in function.iter().enumerate().filter(|(at, _)| heads[*at]) {
        used.extend([src(i), dst(i)].into_iter().filter(|reg| KEPT.contains(reg)));
        let [is_src, is_dst] = [src(i) == FRAME, dst(i) == FRAME];
        let below = match i[0] & 7 {
            // Loads and stores.
            1 if is_src && !is_dst => offset(i).into(),
            2 | 3 if is_dst && !is_src => offset(i).into(),
            // rX = r10; rX += N
            7 if i[0] == MOV64_X && is_src && !is_dst => {
                let next = *function.get(at + 1)?;
                if next[0] != ADD64_K || dst(next) != dst(i) {
                    return None;
                }
                immediate(next)
            }
            _ if is_src || is_dst => return None,
            _ => 0,
        };
        lowest = lowest.min(below);
    }
    Some(((7 - lowest) / 8 * 8, used))
}

impl Code {
    fn end_of(&self, function: usize) -> usize {
        self.functions.get(function + 1).map_or(self.instructions.len(), |next| next.0)
    }

    /// The same program with a function in the place of its only call, which is in the main
    /// one; `None` when there is no such function, or it does what this cannot follow.
    pub(crate) fn inlined(&self) -> Option<Self> {
        let code = &self.instructions;
        let is_head = heads(code);
        let calls = |from: usize, to: usize| {
            (from..to).filter(|&at| is_head[at] && is_call(code[at])).collect::<Vec<_>>()
        };
        let main = 0..self.end_of(0);
        let &[call] = calls(0, main.end).as_slice() else { return None };
        let start = target(call, code[call])?;
        let callee = self.functions.iter().position(|function| function.0 == start)?;
        let body = start..self.end_of(callee);
        let others = calls(main.end, code.len());
        if callee == 0 || others.iter().any(|&at| target(at, code[at]) == Some(start)) {
            return None;
        }
        if (0..code.len())
            .any(|at| is_head[at] && code[at][0] == LD_IMM64 && src(code[at]) == PSEUDO_FUNC)
        {
            return None;
        }

        let main_frame = frame(&code[main.clone()])?.0;
        let has_set = written(&code[..call])?;
        let (body_frame, body_uses) = frame(&code[body.clone()])?;
        let saved: Vec<(u8, i16)> = (1..)
            .zip(has_set.intersection(&body_uses))
            .map(|(n, &reg)| (reg, -(main_frame + 8 * n) as i16))
            .collect();
        let below = main_frame + 8 * saved.len() as i32;
        if below + body_frame > STACK_BYTES {
            return None;
        }

        // Old places of the instructions in their new order; none for those that are new.
        let mut order: Vec<(Option<usize>, Instruction)> = Vec::new();
        let old = |range: std::ops::Range<usize>| range.map(|at| (Some(at), code[at]));
        order.extend(old(0..call));
        order.extend(saved.iter().map(|&(reg, at)| (None, save(reg, at))));
        let body_at = order.len();
        order.extend(old(body.clone()));
        let after = order.len();
        order.extend(saved.iter().map(|&(reg, at)| (None, restore(reg, at))));
        order.extend(old(call + 1..main.end));
        order.extend(old(main.end..body.start));
        order.extend(old(body.end..code.len()));

        let mut new_place = vec![0; code.len()];
        // Whoever jumps to the call saves first.
        new_place[call] = call;
        for (new, (old, _)) in order.iter().enumerate() {
            if let Some(old) = *old {
                new_place[old] = new;
            }
        }
        let mut instructions = Vec::with_capacity(order.len());
        let mut adds = false;
        for (new, &(old, instruction)) in order.iter().enumerate() {
            let mut i = instruction;
            let from = new as i64 + 1;
            if let Some(old) = old.filter(|&old| is_head[old]) {
                if let Some(to) = target(old, i) {
                    let by = *new_place.get(to)? as i64 - from;
                    i = match is_call(i) || i[0] == JA32 {
                        true => with_immediate(i, i32::try_from(by).ok()?),
                        false => with_offset(i, i16::try_from(by).ok()?),
                    };
                }
                if (body_at..after).contains(&new) {
                    if i[0] == EXIT {
                        let by = i16::try_from(after as i64 - from).ok()?;
                        i = with_offset([JA, 0, 0, 0, 0, 0, 0, 0], by);
                    }
                    let is_store = matches!(i[0] & 7, 2 | 3) && dst(i) == FRAME;
                    if i[0] & 7 == 1 && src(i) == FRAME || is_store {
                        i = with_offset(i, i16::try_from(i32::from(offset(i)) - below).ok()?);
                    }
                    if adds {
                        i = with_immediate(i, immediate(i) - below);
                    }
                    adds = i[0] == MOV64_X && src(i) == FRAME;
                }
            }
            instructions.push(i);
        }

        let functions = self.functions.iter().enumerate().filter(|(n, _)| *n != callee);
        let functions = functions.map(|(_, &(at, about))| (new_place[at], about)).collect();
        let mut lines: Vec<(usize, [u32; 3])> = self
            .lines
            .iter()
            // Where nothing is saved, what is in its place is at the call's.
            .filter(|line| line.0 != call || !saved.is_empty())
            .map(|&(at, about)| (new_place[at], about))
            .collect();
        lines.sort_unstable_by_key(|line| line.0);
        Some(Self { instructions, functions, lines })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// `opcode`, registers, offset and immediate.
    fn op(opcode: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
        with_immediate(with_offset([opcode, src << 4 | dst, 0, 0, 0, 0, 0, 0], offset), immediate)
    }

    fn mov(dst: u8, immediate: i32) -> Instruction {
        op(0xb7, dst, 0, 0, immediate)
    }

    fn copy(dst: u8, src: u8) -> Instruction {
        op(MOV64_X, dst, src, 0, 0)
    }

    fn add(dst: u8, immediate: i32) -> Instruction {
        op(ADD64_K, dst, 0, 0, immediate)
    }

    fn plus(dst: u8, src: u8) -> Instruction {
        op(0x0f, dst, src, 0, 0)
    }

    fn skip_if(dst: u8, immediate: i32, by: i16) -> Instruction {
        op(0x15, dst, 0, by, immediate)
    }

    fn load(dst: u8, src: u8, at: i16) -> Instruction {
        op(LDX_DW, dst, src, at, 0)
    }

    fn call(by: i32) -> Instruction {
        op(CALL, 0, PSEUDO_CALL, 0, by)
    }

    fn exit() -> Instruction {
        op(EXIT, 0, 0, 0, 0)
    }

    /// A line at each function, and at each instruction of the second.
    fn program(functions: &[&[Instruction]]) -> Code {
        let mut code = Code { instructions: vec![], functions: vec![], lines: vec![] };
        for (number, function) in (0u32..).zip(functions) {
            let start = code.instructions.len();
            code.functions.push((start, number));
            let lines = if number == 1 { function.len() } else { 1 };
            code.lines.extend((0..lines).map(|n| (start + n, [number, n as u32, 0])));
            code.instructions.extend_from_slice(function);
        }
        code
    }

    /// What a program gives for an argument, as the kernel would run it.
    fn run(code: &Code, argument: i64) -> i64 {
        let (mut at, mut registers, mut calls) = (0, [0; 11], Vec::new());
        let mut memory: HashMap<i64, i64> = HashMap::new();
        registers[1] = argument;
        for _ in 0..1000 {
            let i = code.instructions[at];
            let (dst, src) = (dst(i) as usize, src(i) as usize);
            let (off, imm) = (i64::from(offset(i)), i64::from(immediate(i)));
            let mut next = at + 1;
            match i[0] {
                0xb7 => registers[dst] = imm,
                MOV64_X => registers[dst] = registers[src],
                ADD64_K => registers[dst] += imm,
                0x0f => registers[dst] += registers[src],
                LDX_DW => registers[dst] = memory[&(registers[src] + off)],
                STX_DW => drop(memory.insert(registers[dst] + off, registers[src])),
                0x15 if registers[dst] != imm => {}
                0x15 | JA | JA32 => next = target(at, i).unwrap(),
                CALL => {
                    calls.push((next, registers));
                    registers[10] -= 512;
                    next = target(at, i).unwrap();
                }
                EXIT => match calls.pop() {
                    Some((back, before)) => {
                        next = back;
                        registers[6..].copy_from_slice(&before[6..]);
                    }
                    None => return registers[0],
                },
                other => panic!("{other:#x}"),
            }
            at = next;
        }
        panic!("it does not end");
    }

    /// Keeps something in a register and in its frame, jumps back and forth behind the call.
    fn caller(by: i32) -> Vec<Instruction> {
        vec![
            copy(6, 1),
            add(6, 7),
            op(STX_DW, 10, 6, -16, 0),
            call(by),
            plus(0, 6),
            load(2, 10, -16),
            plus(0, 2),
            skip_if(0, 1000, 1),
            op(JA, 0, 0, 1, 0),
            op(JA, 0, 0, -3, 0),
            exit(),
        ]
    }

    /// Overwrites the register, has a frame, an address in it, two ends and a jump between.
    fn callee(to_third: Option<i32>) -> Vec<Instruction> {
        let mut code = vec![
            copy(6, 1),
            op(STX_DW, 10, 6, -8, 0),
            copy(2, 10),
            add(2, -8),
            load(3, 2, 0),
            skip_if(3, 3, 2),
            mov(0, 100),
            exit(),
            copy(0, 3),
            add(0, 10),
            exit(),
        ];
        if let Some(by) = to_third {
            code[6] = call(by);
        }
        code
    }

    #[test]
    fn a_function_in_the_place_of_its_call_does_the_same() {
        let first = caller(7);
        let plain = program(&[&first, &callee(None)]);
        let inlined = plain.inlined().unwrap();
        assert_eq!(inlined.functions, [(0, 0)]);
        assert!(!inlined.instructions.iter().any(|&i| is_call(i)));
        for argument in [3, 4, -107] {
            assert_eq!(run(&inlined, argument), run(&plain, argument), "{argument}");
        }
        assert_eq!((run(&plain, 3), run(&plain, 4)), (33, 122));
        // One line at a place, in order; the function's with it.
        assert!(inlined.lines.is_sorted_by(|a, b| a.0 < b.0), "{:?}", inlined.lines);
        let at = |n| inlined.lines.iter().find(|line| line.1 == [1, n, 0]).unwrap().0;
        assert_eq!(inlined.instructions[at(4)], load(3, 2, 0));
        // There is nothing to inline any more.
        assert_eq!(inlined.inlined(), None);
    }

    #[test]
    fn functions_of_the_function_are_called_as_before() {
        let first = caller(7);
        let third = [mov(0, 50), plus(0, 1), exit()];
        // From its seventh instruction behind the end of it.
        let plain = program(&[&first, &callee(Some(4)), &third]);
        let inlined = plain.inlined().unwrap();
        assert_eq!(inlined.functions.len(), 2);
        let start = inlined.functions[1].0;
        assert_eq!(inlined.instructions[start..], third);
        assert!(inlined.lines.contains(&(start, [2, 0, 0])));
        for argument in [3, 4] {
            assert_eq!(run(&inlined, argument), run(&plain, argument), "{argument}");
        }
    }

    #[test]
    fn what_it_cannot_follow_stays_as_it_is() {
        let plain = |first: &[Instruction], second: &[Instruction]| program(&[first, second]);
        let (first, second) = (caller(7), callee(None));
        assert!(plain(&first, &second).inlined().is_some());
        // Called twice; jumps before the call; an address of the frame that goes elsewhere; a
        // frame that is too large for both; a function that only others call.
        let mut twice = first.clone();
        twice[4] = call(6);
        assert_eq!(plain(&twice, &second).inlined(), None);
        let mut jumps = first.clone();
        jumps[1] = skip_if(6, 7, 0);
        assert_eq!(plain(&jumps, &second).inlined(), None);
        let mut leaks = second.clone();
        leaks[3] = add(3, -8);
        assert_eq!(plain(&first, &leaks).inlined(), None);
        let mut large = second.clone();
        large[1] = op(STX_DW, 10, 6, -496, 0);
        assert_eq!(plain(&first, &large).inlined(), None);
        let others = [mov(0, 1), exit()];
        let third = [call(-12), exit()];
        assert_eq!(program(&[&others, &second, &third]).inlined(), None);
        let recursive = [call(-12), exit()];
        assert_eq!(program(&[&first, &second, &recursive]).inlined(), None);
        assert_eq!(program(&[&others]).inlined(), None);
    }
}
