//! What `.maps` may not say.

use super::*;

fn map(definition: &str) -> String {
    format!(
        "#include <syrup/packet.h>\nstruct {{ {definition} }} mine \
         __attribute__((section(\".maps\"), visibility(\"default\"), used));\n\
         __s32 schedule(void *s, void *e) {{ return 0; }}\n"
    )
}

/// libbpf makes whatever `.maps` and its types say, and takes over what is pinned.
#[test]
fn maps_of_other_kinds_and_sizes() {
    refuses(&[
        (
            "of no size",
            |f| f.set_symbol("load", SymbolFields { size: Some(0), ..NOWHERE }),
            "Map 'load': its definition has no size",
        ),
        ("a function", |f| f.set_symbol("load", kind(0x12)), "'load' is of a kind"),
        ("a label", |f| f.set_symbol("load", kind(0x00)), "'load' is of a kind"),
        (
            "beyond the section",
            |f| {
                f.set_symbol("load", SymbolFields { value: Some(1 << 40), ..NOWHERE });
            },
            "'load' reaches beyond its section",
        ),
        (
            "without types",
            |f| {
                let maps = f.index(".maps") as u16;
                f.add_symbol(
                    "hidden",
                    SymbolFields { info: Some(0x11), size: Some(8), ..section(maps) },
                );
            },
            "Map 'hidden': it has no type information",
        ),
    ]);
    let ours = "int (*type)[2]; __u32 *key; __u64 *value; int (*max_entries)[1]; \
                int (*map_flags)[1 << 10];";
    read("p.o", &compile(&map(ours))).unwrap();
    let not_ours = "it is not a memory-mappable array with u32 keys";
    for (from, to, says) in [
        ("[2]", "[1]", not_ours),  // a hash table
        ("[2]", "[3]", not_ours),  // of programs
        ("[2]", "[6]", not_ours),  // per CPU
        ("[2]", "[27]", not_ours), // a ring buffer
        ("int (*type)[2];", "", not_ours),
        ("__u32 *key", "__u64 *key", not_ours),
        ("__u32 *key;", "", not_ours),
        ("1 << 10", "0", not_ours),
        ("1 << 10", "1 << 12", not_ours),
        ("int (*map_flags)[1 << 10];", "", not_ours),
        ("__u64 *value", "void *value", "its values have no size"),
        ("__u64 *value", "int (*value)(void)", "its values have no size"),
        ("__u64 *value", "__u64 value", "the attribute 'value' is no pointer"),
        ("(*max_entries)[1];", "*max_entries;", "it does not say how many entries"),
        ("(*max_entries)[1]", "(*max_entries)[0]", "0 bytes; 1 to 67108864 are allowed"),
        ("(*max_entries)[1]", "(*max_entries)[2000000000]", "16000000000 bytes; 1 to 67108864"),
        ("__u64 *value", "char (*value)[0x7fffffff]", "2147483648 bytes; 1 to 67108864"),
        ("__u64 *value", "__u64 (*value)[1 << 20][1 << 20]", "8796093022208 bytes; 1 to"),
        (
            "(*map_flags)[1 << 10];",
            "(*map_flags)[1 << 10]; int (*pinning)[1];",
            "the attribute 'pinning' is not allowed",
        ),
        (
            "(*map_flags)[1 << 10];",
            "(*map_flags)[1 << 10]; int (*numa_node)[1];",
            "the attribute 'numa_node' is not allowed",
        ),
        (
            "(*map_flags)[1 << 10];",
            "(*map_flags)[1 << 10]; int (*map_extra)[1];",
            "the attribute 'map_extra' is not allowed",
        ),
        (
            "(*map_flags)[1 << 10];",
            "(*map_flags)[1 << 10]; void *values[];",
            "the attribute 'values' is not allowed",
        ),
    ] {
        let source = map(&ours.replace(from, to));
        assert_ne!(source, map(ours), "{from}");
        let message = super::says(&compile(&source));
        assert!(message.contains(&format!("Map 'mine': {says}")), "{to}: {message}");
    }
    let many = |n: usize, entries: &str| {
        let maps: String = (0..n).map(|i| format!("SYRUP_MAP(m{i}, {entries});\n")).collect();
        compile(&format!("{PACKET}{maps}{BODY}return 0;\n}}\n"))
    };
    assert_eq!(read("p.o", &many(64, "1")).unwrap().maps.len(), 64);
    assert!(says(&many(65, "1")).contains("names 65 Maps, the limit is 64"));
    assert_eq!(read("p.o", &many(4, "8 << 20")).unwrap().maps.len(), 4);
    let message = says(&many(5, "8 << 20"));
    assert!(message.contains("take 335544320 bytes together, the limit is 268435456"), "{message}");
}
