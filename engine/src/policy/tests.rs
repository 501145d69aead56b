//! The way of a policy from its source to a linked object.

use std::time::{Duration, Instant};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use syrup_hook::{POLICY_PROGRAM, PolicyObject};
use syrup_sdk::Compiler;
use syrup_tests::{Need, require};

use super::*;
use crate::hooks;

const POLICY: &str = "#include <syrup/packet.h>\n\
    SYRUP_MAP(load, 64);\n\
    SYRUP_PARAM(__u32, LIMIT, 3);\n\
    static __u32 next, calls = 7;\n\
    static __attribute__((noinline)) __u32 twice(__u32 n) { return n * 2 + calls++; }\n\
    __s32 schedule(void *s, void *e)\n{\n\
    \t__u64 *v = syrup_map_lookup(&load, next++ % 64);\n\
    \treturn v && *v > LIMIT ? SYRUP_PASS : twice(next) % syrup_num_executors();\n}\n";

fn compiled(file_name: &str, text: &str) -> Vec<u8> {
    Compiler::find().unwrap().compile(file_name, text).unwrap().object
}

fn source(text: &str) -> PolicySource {
    PolicySource::Source { file_name: "p.c".to_owned(), text: text.to_owned() }
}

fn spec(hook: &str) -> &'static Spec {
    hooks::SHIPPED.get(hook).unwrap().spec()
}

#[test]
fn what_a_policy_wants_of_its_hook_has_limits() {
    let with = |settings: &str| {
        let text = format!(
            "#include <syrup/thread.h>\n{settings}\n\
             __s32 schedule(struct syrup_thread *t) {{ return t->index; }}\n"
        );
        prepare(spec("scx-syrup"), &source(&text), &[]).map(|p| p.settings)
    };
    let words = |words: [u32; 4]| Ok(words.map(u32::to_ne_bytes).concat());
    assert_eq!(with(""), Ok(Vec::new()));
    assert_eq!(with("SYRUP_THREAD_POLICY(.rescue_ms = 70);"), words([0, 0, 0, 70]));
    let both = with("SYRUP_THREAD_POLICY(.queues = 8, .preempt = true);");
    assert_eq!(both, words([8, 1, 0, 0]));
    let refused = |settings: &str| {
        let failure = with(settings).unwrap_err();
        assert_eq!(failure.code, Code::SourceRejected, "{failure}");
        failure.message
    };
    assert!(refused("SYRUP_THREAD_POLICY(.queues = 9);").starts_with("p.c: "));
    assert!(refused("SYRUP_THREAD_POLICY(.queues = 9);").contains(".queues = 9"));
    assert!(refused("SYRUP_THREAD_POLICY(.preempt = 2);").contains(".preempt is true"));
    for words in [3, 5] {
        let settings =
            format!("const __u32 syrup_thread_policy[{words}] __attribute__((used)) = {{1}};");
        assert!(refused(&settings).contains("has the wrong size"), "{words} words");
    }
    let bytes = "const char syrup_thread_policy[17] __attribute__((used)) = {1};";
    assert!(refused(bytes).contains("has the wrong size"));
}

#[test]
fn the_same_source_makes_the_same_object_wherever_it_is_compiled() {
    // The compiler's own differ: they have the folders in them.
    let of = |file_name: &str, text: &str| canonical("p.o", &compiled(file_name, text)).unwrap();
    let first = of("p.c", POLICY);
    assert_eq!(first, of("p.c", POLICY));
    assert_eq!(first, of("/some/where/else/p.c", POLICY));
    assert_ne!(first, of("p.c", &POLICY.replace("* 2", "* 4")));

    let hash_of = |policy: &PolicySource, params: &[(String, String)]| {
        prepare(spec("socket-select"), policy, params).unwrap().sha256
    };
    let hash = |text: &str, params: &[(String, String)]| hash_of(&source(text), params);
    let image = compiled("elsewhere/p.c", POLICY);
    let object = PolicySource::Object { file_name: "mine.o".to_owned(), image };
    assert_eq!(hash_of(&object, &[]), hash(POLICY, &[]), "whoever compiles it");
    let set = [("LIMIT".to_owned(), "9".to_owned())];
    assert_eq!(hash(POLICY, &[]), hash(POLICY, &set), "of the policy, not of what it is set to");
    assert_ne!(hash(POLICY, &[]), hash(&POLICY.replace("LIMIT, 3", "LIMIT, 4"), &[]));
}

#[test]
fn a_canonical_object_has_what_is_loaded_and_nothing_else() {
    let object = canonical("p.o", &compiled("p.c", POLICY)).unwrap();
    let elf = object::File::parse(&*object).unwrap();
    let mut sections: Vec<&str> = elf.sections().map(|section| section.name().unwrap()).collect();
    sections.sort_unstable();
    let expected = [
        ".BTF",
        ".BTF.ext",
        ".bss",
        ".data",
        ".maps",
        ".rel.text",
        ".rodata",
        ".shstrtab",
        ".strtab",
        ".symtab",
        ".text",
    ];
    assert_eq!(sections, expected);
    let mut symbols: Vec<&str> = elf.symbols().map(|symbol| symbol.name().unwrap()).collect();
    symbols.retain(|name| !name.is_empty() && !name.starts_with('.'));
    symbols.sort_unstable();
    assert_eq!(
        symbols,
        ["load", "schedule", "syrup_nr_executors", "syrup_nr_executors_here", "twice"]
    );
    // A header without a place for CO-RE relocations.
    let lines = elf.section_by_name(".BTF.ext").unwrap().data().unwrap();
    assert_eq!(lines[4..8], 24u32.to_le_bytes());
    let nothing = canonical(
        "p.o",
        &compiled(
            "p.c",
            "#include <syrup/packet.h>\n\
        __s32 schedule(void *s, void *e) { return 0; }\n",
        ),
    )
    .unwrap();
    let elf = object::File::parse(&*nothing).unwrap();
    for absent in [".maps", ".data", ".bss", ".rodata", ".rel.text"] {
        assert!(elf.section_by_name(absent).is_none(), "{absent}");
    }
}

#[test]
fn a_parameter_is_set_in_what_is_linked() {
    let with = |params: &[(String, String)]| {
        prepare(spec("socket-select"), &source(POLICY), params).unwrap().linked
    };
    let set = [("LIMIT".to_owned(), "0x12345678".to_owned())];
    let (before, after) = (with(&[]), with(&set));
    let rodata = |linked: &[u8]| {
        let elf = object::File::parse(linked).unwrap();
        elf.section_by_name(".rodata").unwrap().data().unwrap().to_vec()
    };
    assert_eq!(rodata(&before), 3u32.to_le_bytes());
    assert_eq!(rodata(&after), 0x1234_5678u32.to_le_bytes());
}

/// Every policy of the tree, and every page's.
#[test]
fn shipped_and_documented_policies_are_linked() {
    for spec in hooks::specs() {
        for policy in spec.policies {
            linked(spec, &PolicySource::Builtin { name: policy.name.to_owned() }).unwrap();
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut texts = Vec::new();
    for page in ["README.md", "docs/add-a-policy.md", "docs/socket-select.md", "docs/scx-syrup.md"]
    {
        let page = std::fs::read_to_string(root.join(page)).unwrap();
        let blocks = page.split("```c\n").skip(1).filter_map(|rest| rest.split("```").next());
        texts.extend(blocks.filter(|text| text.contains("schedule(")).map(str::to_owned));
    }
    assert!(texts.len() >= 2, "{}", texts.len());
    for path in std::fs::read_dir(root.join("scx-syrup/tests/policies")).unwrap() {
        texts.push(std::fs::read_to_string(path.unwrap().path()).unwrap());
    }
    for text in texts {
        let hook = if text.contains("thread.h") { "scx-syrup" } else { "socket-select" };
        linked(spec(hook), &source(&text)).unwrap_or_else(|e| panic!("{e}: {text}"));
    }
}

#[test]
fn what_was_linked_is_the_sum_of_its_halves() {
    let trusted = spec("socket-select").trusted_half;
    let object = |text: &str| canonical("p.o", &compiled("p.c", text)).unwrap();
    let policy = object(POLICY);
    let linked = link::link(&policy, trusted).unwrap();
    let says =
        |linked: &[u8], policy: &[u8]| link::assert_sum(linked, trusted, policy).unwrap_err();
    assert_eq!(link::assert_sum(&linked, trusted, &policy), Ok(()));
    for (from, to, why) in [
        ("twice", "thrice", "the function 't"),
        ("load", "work", "the Map '"),
        ("* 2", "* 4", "the section .text is not"),
        ("LIMIT, 3", "LIMIT, 4", "the section .rodata is not"),
        ("calls = 7", "calls = 8", "the section .data is not"),
        ("static __u32 next,", "static __u64 next; static __u32", "the section .bss is not"),
    ] {
        let why_not = says(&linked, &object(&POLICY.replace(from, to)));
        assert!(why_not.contains(why), "{from}: {why_not}");
    }
    // A byte of the trusted half.
    let mut broken = linked.clone();
    let elf = object::File::parse(&*linked).unwrap();
    let (at, _) = elf.section_by_name("sk_reuseport/migrate").unwrap().file_range().unwrap();
    broken[at as usize + 4] ^= 1;
    assert!(says(&broken, &policy).contains("the section sk_reuseport/migrate is not"));
}

/// libbpf makes one map of a section: a policy's pointers would reach the trusted half's.
#[test]
fn variables_are_shared_with_no_trusted_half() {
    let half = |variable: &str| {
        let text = format!(
            "#include <syrup/packet.h>\n#define SEC(name) __attribute__((section(name), \
             visibility(\"default\"), used))\n{variable};\n\
             __u32 syrup_nr_executors SEC(\".data.executors\") = 1;\n\
             __u32 syrup_nr_executors_here(void) {{ return 1; }}\n\
             SEC(\"xdp\") int syrup_policy(void *c) {{ return schedule(c, c) + mine++; }}\n\
             char _license[] SEC(\"license\") = \"GPL\";\n"
        );
        compiled("half.bpf.c", &text)
    };
    let policy = canonical("p.o", &compiled("p.c", POLICY)).unwrap();
    for (variable, section) in [("static int mine", ".bss"), ("static int mine = 1", ".data")] {
        let error = link::link(&policy, &half(variable)).unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert!(error.message.contains(&format!("share {section}")), "{error}");
    }
    let own = "static int mine __attribute__((section(\".data.mine\"))) = 1";
    link::link(&policy, &half(own)).unwrap();
}

/// The kernel that tests run on need not have the thread hook; the verifier is the same.
#[test]
fn thread_policies_are_verified_wherever_they_are_called() {
    if !require(&[Need::Root]) {
        return;
    }
    let half = "#include <syrup/thread.h>\n#define SEC(name) __attribute__((section(name), \
        visibility(\"default\"), used))\n\
        struct { int (*type)[6]; __u32 *key; struct syrup_thread *value; int (*max_entries)[1]; } \
        syrup_input SEC(\".maps\");\n\
        __u32 syrup_nr_executors SEC(\".data.executors\") = 1;\n\
        SEC(\"xdp\") int syrup_policy(void *c)\n{\n\
        \tstruct syrup_thread *in = __syrup_map_lookup(&syrup_input, 0);\n\
        \treturn in ? schedule(in) : 0;\n}\n\
        char _license[] SEC(\"license\") = \"GPL\";\n";
    let half = compiled("half.bpf.c", half);
    let load = |image: &[u8]| {
        let policy = canonical("p.o", image).unwrap();
        let linked = link::link(&policy, &half).unwrap();
        PolicyObject::open_bytes(&linked, "policy").unwrap().load(POLICY_PROGRAM).map(drop)
    };
    for policy in spec("scx-syrup").policies {
        load(policy.object).unwrap_or_else(|e| panic!("{}: {e}", policy.name));
    }
    let beyond = "#include <syrup/thread.h>\n\
        __s32 schedule(struct syrup_thread *t) { return ((__u32 *)t)[16]; }\n";
    let error = load(&compiled("beyond.c", beyond)).unwrap_err();
    let syrup_hook::Error::Verifier { log, .. } = error else { panic!("{error}") };
    assert!(log.contains("@ beyond.c:2"), "{log}");
}

/// A deterministic walk through what tenants might send; `make fuzz` goes further.
#[test]
fn mutated_objects_are_read_quickly_and_what_is_accepted_links() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let seeds = hooks::specs().flat_map(|spec| spec.policies.iter().map(move |p| (spec, p.object)));
    let (mut accepted, mut slowest) = (0, Duration::ZERO);
    for (spec, seed) in seeds {
        for _ in 0..400 {
            let mut object = seed.to_vec();
            for _ in 0..=random(4) {
                let at = random(object.len());
                match random(4) {
                    0 => object[at] ^= 1 << random(8),
                    1 => object[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                    2 => {
                        let from = random(object.len());
                        let count = random(64).min(object.len() - at.max(from));
                        object.copy_within(from..from + count, at);
                    }
                    _ => object.truncate(at.max(64)),
                }
            }
            let before = Instant::now();
            let read = canonical("p.o", &object);
            slowest = slowest.max(before.elapsed());
            if let Ok(policy) = read {
                accepted += 1;
                // Of another input it does not fit.
                let _ = link::link(&policy, spec.trusted_half);
            }
        }
    }
    // What is changed most often is debug information, which nobody reads.
    assert!(accepted > 100, "{accepted}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}
