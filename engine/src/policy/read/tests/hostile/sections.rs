//! What is a section to one reader and none to another.

use super::*;

/// One reader takes the first, another the last, a third all of them.
#[test]
fn sections_that_are_there_twice() {
    refuses(&[
        ("code", |f| f.duplicate(".text"), "section '.text' is there twice"),
        ("types", |f| f.duplicate(".BTF"), "section '.BTF' is there twice"),
        ("lines", |f| f.duplicate(".BTF.ext"), "section '.BTF.ext' is there twice"),
        ("Maps", |f| f.duplicate(".maps"), "section '.maps' is there twice"),
        ("symbols", |f| f.duplicate(".symtab"), "section '.symtab' is there twice"),
        ("names", |f| f.duplicate(".strtab"), "section '.strtab' is there twice"),
        ("relocations", |f| f.duplicate(".rel.text"), "section '.rel.text' is there twice"),
        ("constants", |f| f.duplicate(".rodata"), "section '.rodata' is there twice"),
        ("variables", |f| f.duplicate(".data"), "section '.data' is there twice"),
        ("the SDK's version", |f| f.duplicate(".syrup.abi"), "'.syrup.abi' is there twice"),
        ("an empty one", |f| f.add(".text", PROGBITS, ALLOC | EXEC, &[]), "'.text' is there twice"),
        (
            "a symbol",
            |f| {
                let maps = f.index(".maps") as u16;
                f.add_symbol(
                    "load",
                    SymbolFields { info: Some(0x11), size: Some(8), ..section(maps) },
                );
            },
            "the symbol 'load' is defined twice",
        ),
        (
            "a variable's type",
            |f| {
                let name = f.name_in_types("load");
                f.add_types(&[name, 14 << 24, 1, 1]);
            },
            "two types are given for 'load'",
        ),
        (
            "a function's type",
            |f| {
                let name = f.name_in_types("schedule");
                f.add_types(&[name, 12 << 24, 1]);
            },
            "two types are given for 'schedule'",
        ),
    ]);
}

/// What is no code to one reader is a program to another.
#[test]
fn sections_of_other_names_and_kinds() {
    refuses(&[
        (
            "a program, not loaded",
            |f| f.add("xdp", PROGBITS, EXEC, &[0; 8]),
            "'xdp' is not allowed",
        ),
        ("thread-local", |f| f.add("kprobe/x", PROGBITS, EXEC | TLS, &[0; 8]), "'kprobe/x' is not"),
        ("empty", |f| f.add("struct_ops/enqueue", PROGBITS, ALLOC | EXEC, &[]), "'struct_ops/enq"),
        ("ops", |f| f.add(".struct_ops.link", PROGBITS, 0, &[0; 8]), "'.struct_ops.link' is not"),
        ("an arena", |f| f.add(".addr_space.1", NOBITS, WRITE | ALLOC, &[]), "'.addr_space.1' is"),
        ("jump tables", |f| f.add(".jumptables", PROGBITS, ALLOC, &[0; 8]), "'.jumptables' is not"),
        ("the configuration", |f| f.add(".kconfig", PROGBITS, WRITE | ALLOC, &[]), "'.kconfig' is"),
        ("kernel symbols", |f| f.add(".ksyms", PROGBITS, 0, &[]), "'.ksyms' is not allowed"),
        (
            "an empty licence",
            |f| f.add("license", PROGBITS, WRITE | ALLOC, &[]),
            "'license' is not",
        ),
        ("more variables", |f| f.add(".data.x", PROGBITS, WRITE | ALLOC, &[]), "'.data.x' is not"),
        ("more zeros", |f| f.add(".bss.x", NOBITS, WRITE | ALLOC, &[]), "'.bss.x' is not allowed"),
        ("a group", |f| f.add(".group", 17, 0, &[0; 8]), "'.group' is not allowed"),
        ("no name", |f| f.add("", PROGBITS, 0, &[]), "section '' is not allowed"),
        ("a terminal's", |f| f.add("\u{1b}[2J\n", PROGBITS, 0, &[]), r"'\u{1b}[2J\n' is not"),
        ("code, not loaded", |f| f.section(".text").flags = EXEC, "'.text' is not what its name"),
        ("code to write", |f| f.section(".text").flags |= WRITE, "'.text' is not what its name"),
        ("code of zeros", |f| f.section(".text").kind = NOBITS, "'.text' is not what its name"),
        ("variables as code", |f| f.section(".data").flags |= EXEC, "'.data' is not what its name"),
        ("constants to write", |f| f.section(".rodata").flags |= WRITE, "'.rodata' is not what"),
        ("zeros with bytes", |f| f.section(".bss").kind = PROGBITS, "'.bss' is not what its name"),
        (
            "Maps of zeros",
            |f| f.section(".maps").kind = NOBITS,
            "'.maps' is not what its name says",
        ),
        (
            "types in memory",
            |f| f.section(".BTF").flags = ALLOC,
            "'.BTF' is not what its name says",
        ),
        ("debug code", |f| f.add(".debug_x", PROGBITS, ALLOC | EXEC, &[0; 8]), "'.debug_x' is not"),
    ]);
}

/// They patch instructions, and not only the tenant's.
#[test]
fn co_re_relocations() {
    refuses(&[(
        "a record",
        |f| {
            f.put(".BTF.ext", 28, &4u32.to_le_bytes());
        },
        "has CO-RE relocations",
    )]);
    let source = "#include <syrup/packet.h>\n\
        struct task { int pid; } __attribute__((preserve_access_index));\n\
        __s32 schedule(void *s, void *e) { return ((struct task *)s)->pid; }\n";
    assert!(refused(source).contains("has CO-RE relocations"));
}
