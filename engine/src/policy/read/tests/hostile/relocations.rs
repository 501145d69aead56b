//! Addresses that lead elsewhere.

use super::*;

/// Moves the relocation that names the Map.
fn moved(forge: &mut Forge, offset: impl Fn(u64) -> u64) {
    let (index, at) = forge.relocation_of("load");
    let symbol = forge.symbol("load");
    forge.relocation(index, offset(at as u64 * 8), LOAD, symbol);
}

/// libbpf's linker adds to whatever is at the offset, in a process of root's.
#[test]
fn relocations_outside_the_code_and_of_nothing() {
    refuses(&[
        ("far beyond", |f| moved(f, |_| 1 << 40), "at byte 0x10000000000 of .text is of no"),
        ("a page beyond", |f| moved(f, |at| at + 65536), "is of no instruction"),
        ("before", |f| moved(f, |_| 4096_u64.wrapping_neg()), "at byte 0xfffffffffffff000"),
        (
            "right behind",
            |f| {
                let end = f.section(".text").data.len() as u64;
                moved(f, |_| end);
            },
            "is of no instruction",
        ),
        ("within an instruction", |f| moved(f, |at| at + 4), "is of no instruction"),
        ("in a second half", |f| moved(f, |at| at + 8), "that names nothing"),
        (
            "of what is no load",
            |f| {
                let room = f.room() as u64;
                moved(f, |_| room * 8);
            },
            "that names nothing",
        ),
        (
            "two of one",
            |f| {
                let (symbol, (_, at)) = (f.symbol("load"), f.relocation_of("load"));
                f.add_relocation(at as u64 * 8, LOAD, symbol);
            },
            "is the second of its instruction",
        ),
        ("no such symbol", |f| renamed(f, 1 << 20), "names no symbol"),
        (
            "of another type",
            |f| {
                let ((index, at), symbol) = (f.relocation_of("load"), f.symbol("load"));
                f.relocation(index, at as u64 * 8, 3, symbol);
            },
            "of type 3 on a load",
        ),
        (
            "a call's",
            |f| {
                let ((index, at), symbol) = (f.relocation_of("load"), f.symbol("load"));
                f.relocation(index, at as u64 * 8, CALL, symbol);
            },
            "of type 10 on a load",
        ),
        (
            "of an absolute section",
            |f| {
                let symbol = f.add_symbol("abs", SymbolFields { info: Some(3), ..section(0xfff1) });
                renamed(f, symbol);
            },
            "the symbol 'abs' is in no section",
        ),
        (
            "of a section that is not there",
            |f| {
                let symbol = f.add_symbol("far", SymbolFields { info: Some(3), ..section(0x7fff) });
                renamed(f, symbol);
            },
            "is in no section",
        ),
        (
            "of a section's middle",
            |f| {
                let bss = f.index(".bss") as u16;
                let fields = SymbolFields { info: Some(3), value: Some(8), ..section(bss) };
                f.add_symbol("middle", fields);
            },
            "the symbol 'middle' is of a kind",
        ),
        ("of the null symbol", |f| renamed(f, 0), "the address of nothing"),
        (
            "a function's address",
            |f| {
                let symbol = f.symbol("room");
                renamed(f, symbol);
            },
            "takes the address of a function",
        ),
        (
            "the SDK's version",
            |f| {
                let symbol = f.symbol("__syrup_abi_version");
                renamed(f, symbol);
            },
            "the address of nothing",
        ),
        (
            "a Map's middle",
            |f| {
                let (_, at) = f.relocation_of("load");
                f.put(".text", at * 8 + 4, &8u32.to_le_bytes());
            },
            "an address in .maps that is no Map's",
        ),
        (
            "before a variable",
            |f| {
                let (_, at) = f.relocation_of("load");
                f.put(".text", at * 8 + 4, &(-8i32).to_le_bytes());
            },
            "an address before what it is of",
        ),
        (
            "beyond the variables",
            |f| {
                let (_, at) = f.relocation_of("load");
                let symbol = f.symbol("LIMIT");
                renamed(f, symbol);
                f.put(".text", at * 8 + 4, &4096u32.to_le_bytes());
            },
            "beyond the policy's variables",
        ),
        (
            "beside what the trusted half defines",
            |f| {
                let (_, at) = f.relocation_of("syrup_nr_executors");
                f.put(".text", at * 8 + 4, &4u32.to_le_bytes());
            },
            "beyond syrup_nr_executors",
        ),
        (
            "of 64 bits",
            |f| {
                let (_, at) = f.relocation_of("load");
                f.put(".text", at * 8 + 12, &1u32.to_le_bytes());
            },
            "an address before what it is of",
        ),
        (
            "another section's",
            |f| {
                let other = f.index(".maps") as u32;
                f.section(".rel.text").info = other;
            },
            "relocates something else than .text",
        ),
        ("by other symbols", |f| f.section(".rel.text").link = 1, "relocates something else"),
        ("cut off", |f| f.section(".rel.text").data.truncate(24), "'.rel.text' is cut off"),
        ("of variables", |f| f.add(".rel.data", REL, 0, &[0; 16]), "'.rel.data' is not allowed"),
        ("of Maps", |f| f.add(".rel.maps", REL, 0, &[0; 16]), "'.rel.maps' is not allowed"),
        ("with addends", |f| f.add(".rela.text", 4, 0, &[0; 24]), "'.rela.text' is not allowed"),
    ]);
}

/// They reach what the loading process has open: counters, other tenants' Maps.
#[test]
fn loads_that_name_no_symbol() {
    let of_kind = |kind: u8| [0x18, kind << 4, 0, 0, 13, 0, 0, 0];
    let sound = Forge::compiled(SOURCE);
    for kind in 1..=15 {
        let mut forged = sound.clone();
        let room = forged.room();
        forged.instruction(room, of_kind(kind));
        forged.instruction(room + 1, [0; 8]);
        let message = says(&forged.build());
        assert!(message.contains(&format!("p.c:7: loads an address of kind {kind}")), "{message}");
    }
    refuses(&[
        (
            "of another offset",
            |f| {
                let room = f.room();
                f.instruction(room, [0x18, 0, 1, 0, 0, 0, 0, 0]);
                f.instruction(room + 1, [0; 8]);
            },
            "with other operands",
        ),
        (
            "of a register that is none",
            |f| {
                let room = f.room();
                f.instruction(room, [0x18, 0x0b, 0, 0, 0, 0, 0, 0]);
                f.instruction(room + 1, [0; 8]);
            },
            "with other operands",
        ),
        (
            "without its second half",
            |f| {
                let room = f.room();
                f.instruction(room, [0x18, 0, 0, 0, 0, 0, 0, 0]);
            },
            "without its second half",
        ),
        (
            "at the end",
            |f| {
                let last = f.section(".text").data.len() / 8 - 1;
                f.instruction(last, [0x18, 0, 0, 0, 0, 0, 0, 0]);
            },
            "without its second half",
        ),
        (
            "whose second half has registers",
            |f| {
                let room = f.room();
                f.instruction(room, [0x18, 0, 0, 0, 0, 0, 0, 0]);
                f.instruction(room + 1, [0, 0x10, 0, 0, 0, 0, 0, 0]);
            },
            "without its second half",
        ),
        (
            "a second half alone",
            |f| {
                let room = f.room();
                f.instruction(room, [0; 8]);
            },
            "not allowed: 0x00",
        ),
    ]);
}
