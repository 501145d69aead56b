//! Numbers that lead out of the file, and symbols of other kinds.

use super::*;

/// Numbers that lead out of the file, in a circle, or to what is something else.
#[test]
fn tables_that_lead_elsewhere() {
    let line: fn(&mut Forge, usize, u32) = |f, at, word| {
        let lines = f.lines();
        f.put(".BTF.ext", lines + at, &word.to_le_bytes());
    };
    let sound = Forge::compiled(SOURCE);
    for (at, word, says) in [
        (0, 8, "records of another size"),
        (0, u32::MAX, "records of another size"),
        (4, 0, "of another section than .text"),
        (12, 8 << 14, "out of order"),
        (12, 4, "out of order"),
        (16, u32::MAX, "names a file of more than"),
        (28, 0, "out of order"),
    ] {
        let mut forged = sound.clone();
        line(&mut forged, at, word);
        let message = super::says(&forged.build());
        assert!(message.contains(says), "{at}: {message}");
    }
    refuses(&[
        ("an executable", |f| f.header[16] = 2, "is not a BPF object: it is not relocatable"),
        ("section names nowhere", |f| f.section(".strtab").offset = Some(1 << 50), "have no names"),
        ("code beyond the file", |f| f.section(".text").size = Some(1 << 17), "lies outside the"),
        (
            "code nowhere",
            |f| f.section(".text").offset = Some(u64::MAX - 7),
            "lies outside the file",
        ),
        ("types cut off", |f| f.section(".BTF").data.truncate(40), "information is cut off"),
        ("types of another version", |f| f.put(".BTF", 2, &[2]), "is of another version"),
        ("types beyond", |f| f.put(".BTF", 12, &[0xff; 4]), "its type information is cut off"),
        ("a header beyond", |f| f.put(".BTF", 4, &[0xff; 4]), "its type information is cut off"),
        ("types of an unknown kind", |f| f.add_types(&[0, 31 << 24, 0]), "information is cut off"),
        ("a type of 65535 members", |f| f.add_types(&[0, 4 << 24 | 0xffff, 0]), "is cut off"),
        ("a line table of another version", |f| f.put(".BTF.ext", 2, &[9]), "of another version"),
        ("a line table beyond", |f| f.put(".BTF.ext", 20, &[0xff; 4]), "line table is cut off"),
        ("symbols without names", |f| f.section(".symtab").link = 0, "its symbols have no names"),
        (
            "no symbols",
            |f| {
                let symbols = f.index(".symtab");
                f.sections[symbols].name = b".comment".to_vec();
                f.sections[symbols].kind = PROGBITS;
            },
            "it has no symbols",
        ),
        (
            "a symbol table cut off",
            |f| {
                f.section(".symtab").data.pop();
            },
            "its symbol table is cut off",
        ),
        (
            "a common symbol",
            |f| {
                f.add_symbol("c", SymbolFields { info: Some(0x11), ..section(0xfff2) });
            },
            "'c' is in no section",
        ),
        (
            "a thread-local symbol",
            |f| {
                let data = f.index(".data") as u16;
                f.add_symbol("t", SymbolFields { info: Some(0x06), ..section(data) });
            },
            "'t' is of a kind",
        ),
        ("an indirect function", |f| f.set_symbol("room", kind(0x0a)), "'room' is of a kind"),
        (
            "a function of variables",
            |f| {
                let data = f.index(".data") as u16;
                f.add_symbol("f", SymbolFields { info: Some(0x02), ..section(data) });
            },
            "'f' is of a kind",
        ),
        (
            "a function beyond the code",
            |f| {
                f.set_symbol("room", SymbolFields { size: Some(1 << 40), ..NOWHERE });
            },
            "'room' reaches beyond its section",
        ),
        (
            "a function in another",
            |f| {
                let text = f.index(".text") as u16;
                let fields = SymbolFields { info: Some(2), size: Some(8), ..section(text) };
                f.add_symbol("inner", fields);
            },
            "does not begin where the code before it ends",
        ),
        (
            "half an instruction",
            |f| {
                f.set_symbol("room", SymbolFields { size: Some(12), ..NOWHERE });
            },
            "or ends within an instruction",
        ),
        (
            "a function of nothing",
            |f| {
                f.set_symbol("room", SymbolFields { size: Some(0), ..NOWHERE });
            },
            "does not begin where the code before it ends",
        ),
        (
            "code of no function",
            |f| {
                f.section(".text").data.extend([0xb7, 0, 0, 0, 0, 0, 0, 0]);
            },
            "the end of its code belongs to no function",
        ),
        (
            "no schedule()",
            |f| {
                let names = &mut f.section(".strtab").data;
                let at = names.windows(10).position(|name| name == b"\0schedule\0").unwrap();
                names[at + 1] = b'S';
            },
            "does not define schedule()",
        ),
        (
            "our own name",
            |f| {
                let names = &mut f.section(".strtab").data;
                let at = names.windows(10).position(|name| name == b"\0schedule\0").unwrap();
                names[at + 1..][..8].copy_from_slice(b"syrup_xy");
            },
            "defines 'syrup_xy'",
        ),
        (
            "a name that is none",
            |f| {
                let names = &mut f.section(".strtab").data;
                let at = names.windows(6).position(|name| name == b"\0room\0").unwrap();
                names[at + 1] = 0xff;
            },
            "is no name",
        ),
        (
            "a name for terminals",
            |f| {
                let names = &mut f.section(".strtab").data;
                let at = names.windows(6).position(|name| name == b"\0room\0").unwrap();
                names[at + 1] = 0x1b;
            },
            r"the symbol '\u{1b}oom' is no name",
        ),
    ]);
}
