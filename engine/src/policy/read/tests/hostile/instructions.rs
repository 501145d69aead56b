//! What a policy may not do.

use super::*;

/// May one instruction stand in a policy, if the others are as they were?
fn accepts(forge: &Forge, at: usize, instruction: [u8; 8]) -> bool {
    let mut forged = forge.clone();
    forged.instruction(at, instruction);
    read("p.o", &forged.build()).is_ok()
}

/// With some the kernel runs for a quarter of a second; what is not known is not let pass.
#[test]
fn instructions_are_of_a_list() {
    let mut forge = Forge::compiled(SOURCE);
    let at = forge.room();
    // Registers 1 and 2, or 1 alone, and an immediate that the opcode asks for.
    let accepted: Vec<u8> = (0..=255)
        .filter(|&op| {
            let forms = [(0x01, 0), (0x21, 0), (0x00, 0), (0x01, 16), (0x00, 1)];
            forms.iter().any(|&(regs, imm)| accepts(&forge, at, [op, regs, 0, 0, imm, 0, 0, 0]))
        })
        .collect();
    let mut expected: Vec<u8> = Vec::new();
    for class in [0x04, 0x07] {
        let operations = [0x0, 0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x9, 0xa, 0xb, 0xc];
        expected.extend(operations.iter().flat_map(|op| [op << 4 | class, op << 4 | 8 | class]));
        expected.extend([0x80 | class, 0xd0 | class]);
    }
    expected.push(0xdc); // byte order, to big endian
    for class in [0x05, 0x06] {
        let conditions = [0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0xa, 0xb, 0xc, 0xd];
        expected.extend(conditions.iter().flat_map(|op| [op << 4 | class, op << 4 | 8 | class]));
    }
    expected.extend([0x05, 0x06, 0x85, 0x95]);
    expected.extend([0x61, 0x69, 0x71, 0x79]); // loads
    expected.extend([0x81, 0x89, 0x91]); // with sign extension
    expected.extend([0x62, 0x6a, 0x72, 0x7a, 0x63, 0x6b, 0x73, 0x7b]); // stores
    expected.extend([0xc3, 0xdb]); // atomic
    expected.sort_unstable();
    assert_eq!(accepted, expected, "{accepted:02x?}");
}

#[test]
fn instructions_have_no_other_fields_than_they_need() {
    let room: fn(&mut Forge, [u8; 8]) = |f, instruction| {
        let room = f.room();
        f.instruction(room, instruction);
    };
    let sound = Forge::compiled(SOURCE);
    for (what, instruction, says) in [
        ("may_goto", [0xe5, 0, 1, 0, 0, 0, 0, 0], "p.c:7: may_goto is not allowed"),
        ("call of a register", [0x8d, 0, 0, 0, 0, 0, 0, 0], "an indirect call"),
        ("call of a kernel function", [0x85, 0x20, 0, 0, 9, 0, 0, 0], "calls a kernel function"),
        ("probe_read_kernel", [0x85, 0, 0, 0, 113, 0, 0, 0], "calls BPF helper 113"),
        ("call with a register", [0x85, 0x01, 0, 0, 1, 0, 0, 0], "a call with operands"),
        ("kernel function of a module", [0x85, 0x20, 1, 0, 9, 0, 0, 0], "a call with operands"),
        ("legacy packet load", [0x20, 0, 0, 0, 0, 0, 0, 0], "not allowed: 0x20"),
        ("the same by a register", [0x40, 0x10, 0, 0, 0, 0, 0, 0], "not allowed: 0x40"),
        ("address space cast", [0xbf, 0x11, 1, 0, 1, 0, 0, 0], "not allowed: 0xbf"),
        ("per-CPU address", [0xbf, 0x11, 0xff, 0xff, 0, 0, 0, 0], "not allowed: 0xbf"),
        ("register 11", [0xbf, 0x1b, 0, 0, 0, 0, 0, 0], "not allowed: 0xbf"),
        ("from register 12", [0xbf, 0xc1, 0, 0, 0, 0, 0, 0], "not allowed: 0xbf"),
        ("two operands", [0xbf, 0x10, 0, 0, 1, 0, 0, 0], "not allowed: 0xbf"),
        ("acquire", [0xdb, 0x10, 0, 0, 0, 1, 0, 0], "not allowed: 0xdb"),
        ("release", [0xdb, 0x10, 0, 0, 0x10, 1, 0, 0], "not allowed: 0xdb"),
        ("atomic of a byte", [0xd3, 0x10, 0, 0, 0, 0, 0, 0], "not allowed: 0xd3"),
        ("atomic of no kind", [0xdb, 0x10, 0, 0, 0x70, 0, 0, 0], "not allowed: 0xdb"),
        ("order of 24 bits", [0xd4, 0, 0, 0, 24, 0, 0, 0], "not allowed: 0xd4"),
        ("exit with a value", [0x95, 0, 0, 0, 1, 0, 0, 0], "not allowed: 0x95"),
        ("jump with a register", [0x05, 1, 0, 0, 0, 0, 0, 0], "not allowed: 0x05"),
        ("jump out", [0x05, 0, 0xff, 0x7f, 0, 0, 0, 0], "a jump out of its function"),
        ("jump back, out", [0x05, 0, 0xf0, 0xff, 0, 0, 0, 0], "a jump out of its function"),
        ("long jump out", [0x06, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f], "a jump out of its function"),
        ("condition, out", [0x15, 0, 0xff, 0x7f, 0, 0, 0, 0], "a jump out of its function"),
        ("call of a middle", [0x85, 0x10, 0, 0, 1, 0, 0, 0], "into the middle of a function"),
        ("call out of the code", [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0x7f], "or out of the code"),
        ("call of itself", [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff], "a call to nowhere"),
        ("call of kind 3", [0x85, 0x30, 0, 0, 0, 0, 0, 0], "a call of unknown kind 3"),
    ] {
        let mut forged = sound.clone();
        room(&mut forged, instruction);
        let message = super::says(&forged.build());
        assert!(message.contains(says), "{what}: {message}");
    }
    refuses(&[
        (
            "a helper that is relocated",
            |f| {
                let (room, symbol) = (f.room(), f.symbol("room"));
                f.instruction(room, [0x85, 0, 0, 0, 7, 0, 0, 0]);
                f.add_relocation(room as u64 * 8, CALL, symbol);
            },
            "that names nothing",
        ),
        (
            "a call of a Map",
            |f| {
                let (room, symbol) = (f.room(), f.symbol("load"));
                f.instruction(room, [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff]);
                f.add_relocation(room as u64 * 8, CALL, symbol);
            },
            "calls something else than a function",
        ),
        (
            "a call by a load's relocation",
            |f| {
                let (room, symbol) = (f.room(), f.symbol("room"));
                f.instruction(room, [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff]);
                f.add_relocation(room as u64 * 8, LOAD, symbol);
            },
            "calls something else than a function",
        ),
        (
            "a kernel function by name",
            |f| {
                let symbol = f.add_symbol("bpf_kick", SymbolFields { info: Some(0x20), ..NOWHERE });
                let room = f.room();
                f.instruction(room, [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff]);
                f.add_relocation(room as u64 * 8, CALL, symbol);
            },
            "p.c:7: calls 'bpf_kick', which a policy may not",
        ),
        (
            "a variable of the kernel",
            |f| {
                let symbol = f.add_symbol("jiffies", SymbolFields { info: Some(0x10), ..NOWHERE });
                renamed(f, symbol);
            },
            "'jiffies' is not defined",
        ),
        (
            "one that nobody names",
            |f| {
                f.add_symbol("jiffies", SymbolFields { info: Some(0x10), ..NOWHERE });
            },
            "'jiffies' is not defined",
        ),
    ]);
}

#[test]
fn jumps_stay_in_their_function() {
    let mut forge = Forge::compiled(SOURCE);
    let (at, size) = (forge.room(), forge.room_size() as i16);
    let jumps = |distance: i16| {
        let [low, high] = distance.to_le_bytes();
        accepts(&forge, at, [0x05, 0, low, high, 0, 0, 0, 0])
    };
    assert!(jumps(-1) && !jumps(-2), "to its first instruction");
    assert!(jumps(size - 2) && !jumps(size - 1), "to its last");
}
