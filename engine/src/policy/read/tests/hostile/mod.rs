//! What hostile objects are refused with. Each case changes one thing in an object that is
//! accepted; they are sorted by what a tenant gained before it was refused.

mod instructions;
mod maps;
mod relocations;
mod sections;
mod sizes;
mod tables;

use super::forge::{ALLOC, EXEC, Forge, NOBITS, PROGBITS, REL, SymbolFields, TLS, WRITE};
use super::*;

/// A policy with something of everything, and room for instructions of a case's own.
const SOURCE: &str = "#include <syrup/packet.h>\n\
    SYRUP_MAP(load, 64);\n\
    SYRUP_PARAM(__u32, LIMIT, 3);\n\
    static __u32 next, calls = 7;\n\
    static __attribute__((noinline)) __u32 room(__u32 n)\n{\n\
    asm volatile(\".rept 8; r0 = 0; .endr\" : : : \"r0\");\n\treturn n + calls++;\n}\n\
    __s32 schedule(void *s, void *e)\n{\n\
    \t__u64 *v = syrup_map_lookup(&load, next++ % 64);\n\
    \treturn v && *v > LIMIT ? SYRUP_PASS : room(next) % syrup_num_executors();\n}\n";

/// A case: what is done to the object, and what is said of it.
type Case = (&'static str, fn(&mut Forge), &'static str);

#[track_caller]
fn refuses(cases: &[Case]) {
    let sound = Forge::compiled(SOURCE);
    read("p.o", &sound.build()).unwrap();
    for (what, change, says) in cases {
        let mut forged = sound.clone();
        change(&mut forged);
        let error = match read("p.o", &forged.build()) {
            Ok(_) => panic!("{what}: accepted"),
            Err(error) => error,
        };
        assert_eq!(error.code, Code::SourceRejected, "{what}: {error}");
        assert!(error.message.contains(says), "{what}: {error}");
        assert!(!error.message.contains('\n'), "{what}: {error}");
    }
}

/// `r_type` of a load of 64 bits, and of a call.
const LOAD: u32 = 1;
const CALL: u32 = 10;

const NOWHERE: SymbolFields =
    SymbolFields { info: None, other: None, section: None, value: None, size: None };

fn section(section: u16) -> SymbolFields {
    SymbolFields { section: Some(section), ..NOWHERE }
}

fn kind(info: u8) -> SymbolFields {
    SymbolFields { info: Some(info), ..NOWHERE }
}

/// Makes the relocation of the Map one of another symbol.
fn renamed(forge: &mut Forge, symbol: usize) {
    let (index, at) = forge.relocation_of("load");
    forge.relocation(index, at as u64 * 8, LOAD, symbol);
}
