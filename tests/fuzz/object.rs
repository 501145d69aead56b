//! Any bytes as a policy object: they are refused with a reason, or a canonical object is
//! written of them. Never a panic, never much memory; libFuzzer watches the time.

#![no_main]

mod memory;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|object: &[u8]| {
    memory::bounded(|| {
        if let Err(refusal) = syrup_engine::canonical("p.o", object) {
            let text = &refusal.message;
            assert!(text.starts_with("p.o") || text.contains(": "), "says not where: {text}");
            assert!(!text.chars().any(char::is_control), "would reach a terminal: {text:?}");
        }
    });
});
