//! What costs memory and time.

use super::*;

/// A file of some KiB costs GiB of memory or minutes of time.
#[test]
fn sizes_and_counts() {
    refuses(&[
        (
            "2 GiB of zeros",
            |f| f.section(".bss").size = Some(2 << 30),
            "makes 2147483652 bytes of variables, the limit is 1048576",
        ),
        (
            "one more than 64 bits of them",
            |f| f.section(".bss").size = Some(u64::MAX),
            "the limit is 1048576",
        ),
        (
            "1 MiB of zeros, and others",
            |f| f.section(".bss").size = Some(1 << 20),
            "the limit is 1048576",
        ),
        ("constants", |f| f.section(".rodata").data.resize(1 << 20, 0), "the limit is 1048576"),
        (
            "an alignment of 1 GiB",
            |f| f.section(".data").align = 1 << 30,
            "is aligned to 1073741824 bytes, the limit is 4096",
        ),
        ("an alignment of 3", |f| f.section(".data").align = 3, "is aligned to 3 bytes"),
        (
            "sections",
            |f| {
                for number in 0..128 {
                    f.add(&format!(".debug_{number}"), PROGBITS, 0, &[]);
                }
            },
            "sections, the limit is 128",
        ),
        (
            "symbols",
            |f| f.section(".symtab").data.resize(24 << 16 | 24, 0),
            "65537 symbols, the limit is 65536",
        ),
        ("types", |f| f.add_types(&[0, 2 << 24, 0].repeat(65536)), "more than 65536 types"),
        (
            "a symbol's name",
            |f| {
                f.add_symbol(&"x".repeat(256), kind(0x02));
            },
            "a symbol has no name of at most 255 bytes",
        ),
        (
            "a section's name",
            |f| f.add(&format!(".debug_{}", "x".repeat(255)), PROGBITS, 0, &[]),
            "has no name of at most 255 bytes",
        ),
        (
            "a type's name",
            |f| {
                let name = f.add_string(&[b'x'; 256]);
                f.add_types(&[name, 14 << 24, 1, 1]);
            },
            "a type without a name of at most 255 bytes",
        ),
        (
            "a file's path",
            |f| {
                let (name, lines) = (f.add_string(&[b'x'; 4097]), f.lines());
                f.put(".BTF.ext", lines + 12 + 4, &name.to_le_bytes());
            },
            "names a file of more than 4096 bytes",
        ),
        (
            "lines",
            |f| {
                let lines = f.lines();
                f.put(".BTF.ext", lines + 8, &u32::MAX.to_le_bytes());
            },
            "its line table is cut off",
        ),
    ]);
}

#[test]
fn types_in_a_circle_end() {
    let section = |types: &[u32]| -> Vec<u8> {
        let bytes = types.len() as u32 * 4;
        let header = [0x0001_eb9f, 24, 0, bytes, bytes, 1];
        let words = header.iter().chain(types).flat_map(|word| word.to_le_bytes());
        words.chain([0]).collect()
    };
    const ARRAY: u32 = 3 << 24;
    const TYPEDEF: u32 = 8 << 24;
    for types in [
        &[0, TYPEDEF, 1][..],                   // of itself
        &[0, TYPEDEF, 2, 0, TYPEDEF, 1],        // of one another
        &[0, ARRAY, 0, 1, 1, 2],                // of itself
        &[0, TYPEDEF, 2, 0, ARRAY, 0, 1, 1, 2], // through a typedef
    ] {
        let section = section(types);
        let types = Btf::read(&section).unwrap();
        assert_eq!((types.bytes(1), types.bytes(2), types.bytes(3)), (None, None, None));
    }
    // 2^32 * 2^32 * 2^32 of them, of 4 bytes.
    let most = u32::MAX;
    let nested = [0, 1 << 24, 4, 32, 0, ARRAY, 0, 1, 1, most, 0, ARRAY, 0, 2, 1, most];
    let section = section(&[&nested[..], &[0, ARRAY, 0, 3, 1, most]].concat());
    let types = Btf::read(&section).unwrap();
    assert_eq!((types.bytes(2), types.bytes(4)), (Some(u64::from(most) * 4), None));
}
