//! `schedule()` in the place of its call.
//!
//! A policy is linked to its hook's trusted half as a function, and a call costs: the return
//! alone some 10 ns on machines whose returns are guarded (SRSO, retbleed). The trusted half
//! calls it in one place, so that the program can have it there, as a compiler would have
//! put it that saw both. Done on what libbpf is about to load: one list of instructions,
//! the main program first, then the functions it calls.
//!
//! The function is not trusted. That it leaves its caller's registers and frame alone is what
//! the verifier says of the program with the call; within the trusted half it could not tell.
//! So its instructions stay what they are, and it is the trusted half that makes room: the
//! function has the top of the frame, where its own would begin, and the trusted half's is
//! below. Then each step of the one program is one of the other's, on the same values, until
//! the function ends; what it does not read there it does not read here. How much room is a
//! guess from the code, and the verifier holds the function to it: in [`Inlined::apart`], the
//! program to be shown to it first, the trusted half takes all of the stack but that room.
//! (Where frames do not lie on one stack it would not: sched_ext's programs may have private
//! ones, `sk_reuseport`'s have not.)

use std::collections::BTreeSet;

/// An instruction as the kernel takes it (Documentation/bpf/standardization).
pub(crate) type Instruction = [u8; 8];

/// The kernel's limit.
const STACK_BYTES: i32 = 512;
/// Of a frame: the kernel rounds up to so many bytes, or to half of them.
const FRAME_STEP: i32 = 32;
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
const ST_DW: u8 = 0x7a;
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

/// Bytes of the trusted half's frame; `None` when it does with it what compilers do not.
fn frame(function: &[Instruction]) -> Option<i32> {
    let mut lowest = 0;
    let heads = heads(function);
    let targets = targets(function);
    for (at, &i) in function.iter().enumerate().filter(|(at, _)| heads[*at]) {
        let [is_src, is_dst] = [src(i) == FRAME, dst(i) == FRAME];
        let below = match i[0] & 7 {
            // Loads and stores.
            1 if is_src && !is_dst => offset(i).into(),
            2 | 3 if is_dst && !is_src => offset(i).into(),
            // rX = r10; rX += N
            7 if i[0] == MOV64_X && is_src && !is_dst => {
                let next = *function.get(at + 1)?;
                if next[0] != ADD64_K || dst(next) != dst(i) || targets.contains(&(at + 1)) {
                    return None;
                }
                immediate(next)
            }
            _ if is_src || is_dst => return None,
            _ => continue,
        };
        if !(-STACK_BYTES..0).contains(&below) {
            return None;
        }
        lowest = lowest.min(below);
    }
    Some((7 - lowest) / 8 * 8)
}

/// Where the jumps of a function go.
fn targets(function: &[Instruction]) -> BTreeSet<usize> {
    let heads = heads(function);
    let jumps = function.iter().enumerate().filter(|(at, i)| heads[*at] && is_jump(**i));
    jumps.filter_map(|(at, &i)| target(at, i)).collect()
}

/// Bytes that a function's frame has if a compiler wrote it, as the kernel counts them.
fn room(function: &[Instruction]) -> i32 {
    let heads = heads(function);
    let is_head = |at: &usize| heads[*at];
    let below = (0..function.len()).filter(is_head).map(|at| {
        let (i, next) = (function[at], function.get(at + 1));
        match (i[0] & 7, next) {
            (1, _) if src(i) == FRAME => offset(i).into(),
            (2 | 3, _) if dst(i) == FRAME => offset(i).into(),
            (7, Some(&next)) if i[0] == MOV64_X && src(i) == FRAME && next[0] == ADD64_K => {
                immediate(next)
            }
            _ => 0,
        }
    });
    let lowest = below.min().unwrap_or(0).clamp(-STACK_BYTES, -1);
    (FRAME_STEP - 1 - lowest) / FRAME_STEP * FRAME_STEP
}

/// The registers that a call keeps and a function touches.
fn kept_in(function: &[Instruction]) -> BTreeSet<u8> {
    let heads = heads(function);
    let own = function.iter().zip(heads).filter(|(_, is_head)| *is_head);
    own.flat_map(|(&i, _)| [src(i), dst(i)]).filter(|reg| KEPT.contains(reg)).collect()
}

/// A program with a function in the place of its call, and what has to be accepted before it
/// may be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inlined {
    /// The program with the call, in which the function has the room that it has in the other.
    pub(crate) apart: Code,
    pub(crate) code: Code,
}

impl Code {
    fn end_of(&self, function: usize) -> usize {
        self.functions.get(function + 1).map_or(self.instructions.len(), |next| next.0)
    }

    /// The same program with a function in the place of its only call, which is in the main
    /// one; `None` when there is no such function, or something that this cannot follow.
    pub(crate) fn inlined(&self) -> Option<Inlined> {
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

        let main_frame = frame(&code[main.clone()])?;
        let has_set = written(&code[..call])?;
        // What is set behind the call would have to be kept when it comes back to it.
        if targets(&code[main.clone()]).iter().any(|&to| to <= call) {
            return None;
        }
        // All that the function calls has to fit as well: at most each of the others once.
        let rooms = (1..self.functions.len())
            .map(|n| room(&code[self.functions[n].0..self.end_of(n)]))
            .sum::<i32>();
        let saved: Vec<(u8, i16)> = (1..)
            .zip(has_set.intersection(&kept_in(&code[body.clone()])))
            .map(|(n, &reg)| (reg, -(rooms + main_frame + 8 * n) as i16))
            .collect();
        if rooms + main_frame + 8 * saved.len() as i32 > STACK_BYTES {
            return None;
        }

        // Old places of the instructions in their new order; none for those that are new.
        let mut order: Vec<(Option<usize>, Instruction)> = Vec::new();
        let old = |range: std::ops::Range<usize>| range.map(|at| (Some(at), code[at]));
        order.extend(old(0..call));
        order.extend(saved.iter().map(|&(reg, at)| (None, save(reg, at))));
        order.extend(old(body.clone()));
        let after = order.len();
        let is_body = |old: usize| body.contains(&old);
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
                if i[0] == EXIT && is_body(old) {
                    let by = i16::try_from(after as i64 - from).ok()?;
                    i = with_offset([JA, 0, 0, 0, 0, 0, 0, 0], by);
                }
                if main.contains(&old) {
                    i = lowered(i, old.checked_sub(1).map(|at| code[at]), rooms);
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
        let code = Self { instructions, functions, lines };
        Some(Inlined { apart: self.with_frame(STACK_BYTES - rooms), code })
    }

    /// The same program, whose main function has a frame of so many bytes.
    fn with_frame(&self, bytes: i32) -> Self {
        let mut code = self.clone();
        if bytes <= 0 {
            return code;
        }
        let store = with_offset([ST_DW, FRAME, 0, 0, 0, 0, 0, 0], -bytes as i16);
        code.instructions.insert(0, store);
        // The first of each begins with the program.
        code.functions.iter_mut().skip(1).for_each(|function| function.0 += 1);
        code.lines.iter_mut().skip(1).for_each(|line| line.0 += 1);
        code
    }
}

/// An instruction of the trusted half, whose frame is so many bytes lower.
fn lowered(i: Instruction, before: Option<Instruction>, by: i32) -> Instruction {
    let is_store = matches!(i[0] & 7, 2 | 3) && dst(i) == FRAME;
    let is_load = i[0] & 7 == 1 && src(i) == FRAME;
    match before {
        _ if is_load || is_store => with_offset(i, offset(i) - by as i16),
        Some(before) if before[0] == MOV64_X && src(before) == FRAME => {
            with_immediate(i, immediate(i) - by)
        }
        _ => i,
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
        (registers[1], registers[10]) = (argument, 1 << 20);
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
                ST_DW => drop(memory.insert(registers[dst] + off, imm)),
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
        let Inlined { apart, code: inlined } = plain.inlined().unwrap();
        assert_eq!(inlined.functions, [(0, 0)]);
        assert!(!inlined.instructions.iter().any(|&i| is_call(i)));
        for argument in [3, 4, -107] {
            assert_eq!(run(&inlined, argument), run(&plain, argument), "{argument}");
            assert_eq!(run(&apart, argument), run(&plain, argument), "{argument}");
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
        let inlined = plain.inlined().unwrap().code;
        assert_eq!(inlined.functions.len(), 2);
        let start = inlined.functions[1].0;
        assert_eq!(inlined.instructions[start..], third);
        assert!(inlined.lines.contains(&(start, [2, 0, 0])));
        for argument in [3, 4] {
            assert_eq!(run(&inlined, argument), run(&plain, argument), "{argument}");
        }
    }

    /// Whoever wrote it knows how it is put there.
    #[test]
    fn the_function_itself_is_left_as_it_is() {
        // One add, of the frame's address or of a number: they differ by what is added.
        let telling = [
            mov(2, 0),
            skip_if(1, 3, 1),
            copy(2, 10),
            add(2, -8),
            skip_if(2, -8, 2),
            mov(0, 1),
            exit(),
            mov(0, 2),
            exit(),
        ];
        let plain = program(&[&caller(7), &telling]);
        let Inlined { apart, code } = plain.inlined().unwrap();
        let is_same = |&(at, _): &(usize, _)| code.instructions[at..at + 6] == telling[..6];
        assert!(code.lines.iter().any(is_same), "{code:?}");
        for argument in [-4, 3] {
            assert_eq!(run(&code, argument), run(&plain, argument), "{argument}");
        }
        // It is held to 32 bytes, which the other program has free above the trusted half's.
        assert_eq!(apart.instructions[0], op(ST_DW, 10, 0, -480, 0));
        assert_eq!(apart.instructions[1..], plain.instructions);
        assert_eq!(apart.functions, [(0, 0), (plain.functions[1].0 + 1, 1)]);
        assert!(code.instructions.contains(&op(STX_DW, 10, 6, -48, 0)));
        // However deep it says it goes.
        for bytes in [i32::MIN, -513, i32::MAX] {
            let deep = [copy(2, 10), add(2, bytes), mov(0, 1), exit()];
            let inlined = program(&[&caller(7), &deep]).inlined();
            assert_eq!(inlined.is_some(), bytes > 0, "{bytes}");
        }
    }

    #[test]
    fn the_trusted_halfs_addresses_go_where_its_frame_goes() {
        let first = [
            copy(6, 1),
            copy(3, 10),
            add(3, -16),
            op(STX_DW, 3, 6, 0, 0),
            call(3),
            load(2, 10, -16),
            plus(0, 2),
            exit(),
        ];
        let plain = program(&[&first, &callee(None)]);
        let inlined = plain.inlined().unwrap().code;
        for argument in [3, 4] {
            assert_eq!(run(&inlined, argument), run(&plain, argument), "{argument}");
        }
    }

    #[test]
    fn what_it_cannot_follow_stays_as_it_is() {
        let plain = |first: &[Instruction], second: &[Instruction]| program(&[first, second]);
        let (first, second) = (caller(7), callee(None));
        assert!(plain(&first, &second).inlined().is_some());
        // Called twice; jumps before the call, or back to it; an address in the trusted half's
        // frame that goes elsewhere, or comes from elsewhere as well; frames that are too large
        // for one; a function that only others call.
        let mut twice = first.clone();
        twice[4] = call(6);
        assert_eq!(plain(&twice, &second).inlined(), None);
        let mut jumps = first.clone();
        jumps[1] = skip_if(6, 7, 0);
        assert_eq!(plain(&jumps, &second).inlined(), None);
        let mut again = first.clone();
        again[9] = op(JA, 0, 0, -7, 0);
        assert_eq!(plain(&again, &second).inlined(), None);
        let with_address = |next: Instruction, by: i16| {
            let mut first = caller(10);
            first.splice(4..4, [copy(3, 10), next, op(JA, 0, 0, by, 0)]);
            plain(&first, &second).inlined()
        };
        assert!(with_address(add(3, -8), 0).is_some());
        assert_eq!(with_address(add(2, -8), 0), None);
        assert_eq!(with_address(add(3, -8), -2), None);
        assert_eq!(with_address(add(3, 8), 0), None);
        assert_eq!(with_address(add(3, i32::MIN), 0), None);
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
