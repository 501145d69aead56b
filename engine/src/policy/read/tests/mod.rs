//! What reading lets pass and what it refuses, and with which words.

mod forge;
mod hostile;

use object::{Object as _, ObjectSection as _};
use syrup_hook::Input;
use syrup_sdk::Compiler;

use super::*;

fn compile(source: &str) -> Vec<u8> {
    Compiler::find().unwrap().compile("p.c", source).unwrap().object
}

fn map_names(policy: &Checked) -> Vec<&str> {
    policy.maps.iter().map(|map| map.name.as_str()).collect()
}

fn param_names(policy: &Checked) -> Vec<&str> {
    policy.params.iter().map(|param| param.name.as_str()).collect()
}

fn refused(source: &str) -> String {
    let error = read("p.c", &compile(source)).unwrap_err();
    assert_eq!(error.code, Code::SourceRejected, "{error:?}");
    error.message
}

const PACKET: &str = "#include <syrup/packet.h>\n";
const BODY: &str = "__s32 schedule(void *a, void *b)\n{\n(void)a; (void)b;\n";

#[test]
fn what_a_policy_declares_is_found() {
    let checked = read(
        "p.c",
        &compile(
            "#include <syrup/thread.h>\nSYRUP_MAP(request_type, 8);\nSYRUP_PARAM(__u32, LIMIT, 3);\n\
             SYRUP_THREAD_POLICY(.queues = 2, .preempt = true);\n\
             __s32 schedule(struct syrup_thread *t)\n{\n\
             if (t->index > syrup_num_executors()) return 0;\n\
             __u64 *v = syrup_map_lookup(&request_type, t->index);\n\
             return v && *v > LIMIT ? 1 : 0;\n}\n",
        ),
    )
    .unwrap();
    assert_eq!(checked.input, Input::Thread);
    assert_eq!(map_names(&checked), ["request_type"]);
    assert_eq!(param_names(&checked), ["LIMIT"]);
}

#[test]
fn a_kernel_function_is_refused_with_its_line() {
    let message = refused(&format!(
        "{PACKET}extern void scx_bpf_kick_cpu(__s32 cpu, __u64 flags) \
         __attribute__((section(\".ksyms\"), visibility(\"default\")));\n{BODY}\
         scx_bpf_kick_cpu(0, 0);\nreturn 0;\n}}\n"
    ));
    assert!(message.contains("p.c:6: calls 'scx_bpf_kick_cpu'"), "{message}");
}

#[test]
fn a_helper_off_the_list_is_refused_with_its_line() {
    let message = refused(&format!(
        "{PACKET}static long (*const trace)(const char *f, __u32 n, ...) = (void *)6;\n{BODY}\
         trace(\"x\", 2);\nreturn 0;\n}}\n"
    ));
    assert!(message.contains("p.c:6: calls BPF helper 6"), "{message}");
}

#[test]
fn sections_and_pins_of_their_own_are_refused() {
    let section = refused(&format!(
        "{PACKET}__attribute__((section(\"xdp\"), visibility(\"default\"), used)) \
         int prog(void *ctx) {{ (void)ctx; return 2; }}\n{BODY}return 0;\n}}\n"
    ));
    assert!(section.contains("section 'xdp'"), "{section}");
    let pinned = refused(&format!(
        "{PACKET}struct {{ int (*type)[2]; __u32 *key; __u64 *value; int (*max_entries)[1]; \
         int (*map_flags)[1024]; int (*pinning)[1]; }} mine \
         __attribute__((section(\".maps\"), visibility(\"default\"), used));\n{BODY}return 0;\n}}\n"
    ));
    assert!(pinned.contains("'pinning'"), "{pinned}");
}

#[test]
fn names_of_the_sdk_cannot_be_taken() {
    let message = refused(&format!("{PACKET}__u32 syrup_nr_executors = 7;\n{BODY}return 0;\n}}\n"));
    assert!(message.contains("defines 'syrup_nr_executors'"), "{message}");
}

#[test]
fn schedule_must_be_there_with_a_known_prototype() {
    let refused = |source: &str| refused(&(of_abi(abi::SYRUP_ABI_VERSION) + source));
    assert!(refused("int other(void) { return 0; }\n").contains("does not define schedule()"));
    let message = refused("int schedule(int x) { return x; }\n");
    assert!(message.contains("unknown prototype"), "{message}");
}

#[test]
fn rubbish_is_refused_without_a_panic() {
    let object = compile(&format!("{PACKET}{BODY}return 0;\n}}\n"));
    for len in (0..object.len()).step_by(7) {
        let _ = read("p.o", &object[..len]);
    }
    for at in (0..object.len()).step_by(3) {
        let mut broken = object.clone();
        broken[at] ^= 0xff;
        let _ = read("p.o", &broken);
    }
    assert!(read("p.o", b"").is_err());
}

fn packet(declarations: &str, body: &str) -> Vec<u8> {
    compile(&format!("{PACKET}{declarations}\n{BODY}{body}\n}}\n"))
}

fn says(object: &[u8]) -> String {
    let error = read("p.o", object).unwrap_err();
    assert_eq!(error.code, Code::SourceRejected, "{error:?}");
    error.message
}

/// An object whose code is these instructions: a policy of as many, overwritten.
fn with_code(code: &[[u8; 8]]) -> Vec<u8> {
    let filler = format!("asm volatile(\".rept {}; r1 = 0; .endr\");return 0;", code.len());
    let mut object = packet("", &filler);
    overwrite(&mut object, code);
    object
}

fn overwrite(object: &mut [u8], code: &[[u8; 8]]) {
    let (start, _) = {
        let elf = object::File::parse(&*object).unwrap();
        elf.section_by_name(".text").unwrap().file_range().unwrap()
    };
    let bytes = code.as_flattened();
    object[start as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn call(kind: u8, imm: i32) -> [u8; 8] {
    let [a, b, c, d] = imm.to_le_bytes();
    [BPF_CALL, kind << 4, 0, 0, a, b, c, d]
}

/// What the SDK's headers leave in an object, for sources without them.
fn of_abi(version: u32) -> String {
    format!(
        "static const unsigned abi __attribute__((section(\".syrup.abi\"), used)) = {version};\n"
    )
}

#[test]
fn an_object_of_another_sdk_is_told_to_be_compiled_again() {
    let bare = "int schedule(void *s, void *e) { return s == e; }\n";
    let with = |abi: &str| read("p.o", &compile(&format!("{abi}{bare}")));
    let ours = abi::SYRUP_ABI_VERSION;
    with(&of_abi(ours)).unwrap();
    // By the headers, once, however many of them are included.
    read("p.o", &packet("#include <syrup/policy.h>", "return 0;")).unwrap();
    for (abi, says) in [
        (of_abi(ours + 1), format!("p.o is an object of SDK ABI {}", ours + 1)),
        (of_abi(ours - 1), format!("p.o is an object of SDK ABI {}", ours - 1)),
        (String::new(), "p.o does not say of which SDK ABI it is".to_owned()),
        (of_abi(ours).replace("unsigned", "char"), "of the wrong size".to_owned()),
    ] {
        let error = with(&abi).unwrap_err();
        assert_eq!(error.code, Code::SourceRejected);
        assert!(error.message.contains(&says), "{error}");
        assert!(error.message.ends_with(&format!("; this Syrup speaks {ours}")), "{error}");
        assert!(error.advice.unwrap().contains("compile it again"));
    }
}

/// Opcodes and kinds of calls, as the kernel's headers number them.
const BPF_CALL: u8 = 0x85;
const BPF_CALLX: u8 = 0x8d;
const PSEUDO_CALL: u8 = 1;
const PSEUDO_KFUNC: u8 = 2;

const HIDDEN: &str = "-fvisibility=hidden";

/// clang with arguments that are not Syrup's.
fn clang(args: &[&str], source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("p.c"), dir.path().join("p.o"));
    std::fs::write(&from, source).unwrap();
    let status = std::process::Command::new(Compiler::find().unwrap().path())
        .args(["-O2", "-ffreestanding", "-c"])
        .args(args)
        .arg(&from)
        .arg("-o")
        .arg(&to)
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::read(to).unwrap()
}

#[test]
fn objects_of_another_machine_or_without_types_are_refused() {
    let source =
        of_abi(abi::SYRUP_ABI_VERSION) + "int schedule(void *s, void *e) { return s == e; }\n";
    let source = source.as_str();
    assert_eq!(
        read("p.o", &clang(&["-target", "bpf", "-g", HIDDEN], source)).unwrap().input,
        Input::Packet
    );
    // The verifier would refuse a global function of void pointers, in words of its own.
    let global = read("p.o", &clang(&["-target", "bpf", "-g"], source)).unwrap_err();
    assert!(global.message.contains("function 'schedule' is global"), "{global}");
    assert!(global.advice.unwrap().contains(HIDDEN));
    let host = clang(&["-g"], source);
    assert!(says(&host).contains("not a little-endian BPF object"));
    let big = clang(&["-target", "bpfeb", "-g"], source);
    assert!(says(&big).contains("not a little-endian BPF object"));
    let bare = clang(&["-target", "bpf"], source);
    assert!(says(&bare).contains("no type information"));
    assert!(says(b"not ELF").contains("not a BPF object"));
}

#[test]
fn whatever_clang_makes_of_a_policy_is_read() {
    let source = of_abi(abi::SYRUP_ABI_VERSION)
        + "typedef NUMBER num; static long calls = 3, next; static const int table[4] = {1, 2, 3, 4};\n\
           static __attribute__((noinline)) num of(int x, num y) {\n\
           num n = 0; for (int i = 0; i < x; i++) n += table[i & 3] * y / (n | 1) % 7; return n; }\n\
           static __attribute__((noinline)) short of_short(signed char *c) { return *c; }\n\
           int schedule(void *s, void *e) {\n\
           signed char c = next++ + __builtin_bswap32(calls);\n\
           __sync_fetch_and_add(&calls, 1); __sync_fetch_and_add(&next, 2);\n\
           return s < e ? of(next, calls - 5) / 3 : -of_short(&c) >> 2; }\n";
    for cpu in ["v1", "v2", "v3", "v4"] {
        for level in ["-O1", "-O2", "-Os", "-O3"] {
            let mcpu = format!("-mcpu={cpu}");
            // What earlier ones have not: signed division, other atomics.
            let number = if cpu == "v4" { "long" } else { "unsigned long" };
            let mut source = source.replace("NUMBER", number);
            if cpu > "v2" {
                source = source.replace("fetch_and_add(&next", "fetch_and_or(&next");
            }
            let object = clang(&["-target", "bpf", &mcpu, "-g", HIDDEN, level], &source);
            let policy = read("p.o", &object).unwrap_or_else(|e| panic!("{cpu} {level}: {e}"));
            assert_eq!(policy.functions.len(), 3, "{cpu} {level}");
        }
    }
}

#[test]
fn exactly_the_listed_helpers_may_be_called() {
    let mut object = with_code(&[call(0, 1)]);
    for helper in -1..=220 {
        let allowed = [1, 5, 7, 8].contains(&helper);
        overwrite(&mut object, &[call(0, helper)]);
        let checked = read("p.o", &object);
        assert_eq!(checked.is_ok(), allowed, "helper {helper}: {checked:?}");
        if let Err(error) = checked {
            assert!(error.message.contains(&format!("calls BPF helper {helper}")), "{error}");
            assert!(error.advice.unwrap().contains("bpf_map_lookup_elem, bpf_ktime_get_ns"));
        }
    }
}

#[test]
fn calls_of_other_kinds_are_refused_by_name() {
    let kinds = [
        ([BPF_CALLX, 0, 0, 0, 0, 0, 0, 0], "an indirect call"),
        (call(PSEUDO_KFUNC, 1), "calls a kernel function"),
        (call(PSEUDO_CALL, -1), "a call to nowhere"),
        (call(3, 1), "unknown kind 3"),
        (call(15, 1), "unknown kind 15"),
    ];
    for (instruction, what) in kinds {
        // In second place, so that the line of the right one is told.
        let message = says(&with_code(&[[0xb7, 1, 0, 0, 0, 0, 0, 0], instruction]));
        assert!(message.contains(what), "{what}: {message}");
        assert!(message.contains("p.c:"), "{message}");
    }
    // Within the policy's own code, and to the SDK.
    let own = "static __attribute__((noinline)) int twice(int x) { return x * 2; }";
    read("p.o", &packet(own, "return twice((int)(long)a);")).unwrap();
    read("p.o", &packet(own, "return twice(syrup_num_executors());")).unwrap();
    assert!(says(&with_code(&[call(PSEUDO_CALL, 1)])).contains("into the middle of a function"));
}

#[test]
fn a_policy_has_at_most_16384_instructions() {
    // With the two that return.
    let of = |n: usize| with_code(&vec![[0xb7, 1, 0, 0, 0, 0, 0, 0]; n - 2]);
    assert_eq!(read("p.o", &of(16384)).unwrap().code.len(), 16384);
    assert!(says(&of(16385)).contains("16385 instructions, the limit is 16384"));
}

#[test]
fn code_that_is_cut_off_is_refused() {
    let mut object = packet("", "return 0;");
    let index = {
        let elf = object::File::parse(&*object).unwrap();
        elf.section_by_name(".text").unwrap().index().0
    };
    // Of an ELF header: where the section headers are; of one of these: its size.
    let headers = u64::from_le_bytes(object[40..48].try_into().unwrap()) as usize;
    object[headers + index * 64 + 32] -= 1;
    assert!(says(&object).contains(".text is cut off"));
}

#[test]
fn only_the_sections_of_a_policy_are_let_in() {
    let own = |section: &str, what: &str| {
        packet(
            &format!(
                "__attribute__((section(\"{section}\"), visibility(\"default\"), used)) {what};"
            ),
            "return 0;",
        )
    };
    for (section, what) in [
        (".data", "int x = 1"),
        (".bss", "int x"),
        (".rodata", "const int x = 1"),
        (".rodata.str1.1", "const char x[] = \"x\""),
        (".rodata.mine", "const int x = 1"),
    ] {
        read("p.o", &own(section, what)).unwrap_or_else(|e| panic!("{section}: {e}"));
    }
    for (section, what) in [
        ("license", "char x[] = \"GPL\""),
        ("version", "int x = 1"),
        (".data.mine", "int x = 1"),
        (".rodatax", "const int x = 1"),
        (".struct_ops.link", "int x = 1"),
        ("maps", "int x = 1"),
        (".kconfig", "int x = 1"),
        (".text.mine", "int f(void) { return 1; } int x"),
    ] {
        let message = says(&own(section, what));
        assert!(message.contains(&format!("section '{section}' is not allowed")), "{message}");
    }
}

#[test]
fn what_is_not_defined_or_not_the_users_to_define_is_refused() {
    let undefined =
        packet("extern int other __attribute__((visibility(\"default\")));", "return other;");
    assert!(says(&undefined).contains("'other' is not defined"));
    let function =
        packet("int other(void) __attribute__((visibility(\"default\")));", "return other();");
    assert!(says(&function).contains("calls 'other', which a policy may not"));
    for (declaration, name) in
        [("int syrup_x = 1; ", "syrup_x"), ("SYRUP_MAP(syrup_executors, 1);", "syrup_executors")]
    {
        let message = says(&packet(declaration, "return 0;"));
        assert!(message.contains(&format!("defines '{name}'")), "{message}");
    }
    read("p.o", &packet("int syrupy = 1;", "return syrupy;")).unwrap();
}

#[test]
fn a_maps_name_and_definition_are_checked() {
    let named = |name: &str| packet(&format!("SYRUP_MAP({name}, 1);"), "return 0;");
    read("p.o", &named("fifteen_letters")).unwrap();
    assert!(says(&named("sixteen_letters_")).contains("Map 'sixteen_letters_': its name"));
    let typeless = packet(
        "int odd __attribute__((section(\".maps\"), visibility(\"default\"), used)) = 1;",
        "return 0;",
    );
    assert!(says(&typeless).contains("Map 'odd': it has no type information"));
    for attribute in ["numa_node", "map_extra", "values", "key_size"] {
        let message = says(&packet(
            &format!(
                "struct {{ int (*type)[2]; __u32 *key; __u64 *value; int (*max_entries)[1]; \
                 int (*{attribute})[1]; }} mine \
                 __attribute__((section(\".maps\"), visibility(\"default\"), used));"
            ),
            "return 0;",
        ));
        assert!(message.contains(&format!("'{attribute}' is not allowed")), "{message}");
    }
    let two = packet("SYRUP_MAP(zebra, 1);\nSYRUP_MAP(ape, 1);", "return 0;");
    let checked = read("p.o", &two).unwrap();
    assert_eq!(map_names(&checked), ["ape", "zebra"]);
    assert!(read("p.o", &packet("", "return 0;")).unwrap().maps.is_empty());
}

#[test]
fn schedule_takes_a_packet_or_a_thread_and_nothing_else() {
    let with = |declarations: &str, parameters: &str| {
        let abi = of_abi(abi::SYRUP_ABI_VERSION);
        let source = format!("{abi}{declarations}\nint schedule({parameters}) {{ return 1; }}\n");
        read("p.c", &compile(&source)).map(|checked| checked.input)
    };
    assert_eq!(with("", "void *s, void *e"), Ok(Input::Packet));
    assert_eq!(with("", "const void *s, void *const e"), Ok(Input::Packet));
    let thread = "struct syrup_thread { int x; };\ntypedef struct syrup_thread T;";
    assert_eq!(with(thread, "struct syrup_thread *t"), Ok(Input::Thread));
    assert_eq!(with(thread, "const T *t"), Ok(Input::Thread));
    for (declarations, parameters) in [
        ("", "void"),
        ("", "void *s"),
        ("", "void *s, int e"),
        ("", "int s, void *e"),
        ("", "char *s, void *e"),
        ("", "void *s, char *e"),
        ("", "void *s, void *e, void *x"),
        ("struct other { int x; };", "struct other *t"),
        (thread, "struct syrup_thread *t, void *e"),
        (thread, "struct syrup_thread t"),
    ] {
        let error = with(declarations, parameters).unwrap_err();
        assert!(error.message.contains("unknown prototype"), "{parameters}: {error}");
    }
    for returned in ["void", "long", "void *", "enum { A }"] {
        let abi = of_abi(abi::SYRUP_ABI_VERSION);
        let body = if returned == "void" { "" } else { "return 0;" };
        let source = format!("{abi}{returned} schedule(void *s, void *e) {{ {body} }}\n");
        let error = read("p.c", &compile(&source)).unwrap_err();
        assert!(error.message.contains("unknown prototype"), "{returned}: {error}");
    }
    let variable = of_abi(abi::SYRUP_ABI_VERSION) + "int schedule = 1;\n";
    let variable = read("p.c", &compile(&variable)).unwrap_err();
    assert!(variable.message.contains("does not define schedule()"), "{variable}");
}

#[test]
fn parameters_are_told_by_name() {
    let object = packet(
        "SYRUP_PARAM(__u32, Z, 1);\nSYRUP_PARAM(__u64, A, 2);\nstatic int hidden = 3;\n\
         __attribute__((section(\".rodata.mine\"), used)) const int other = 4;",
        "return Z + A + hidden;",
    );
    assert_eq!(param_names(&read("p.o", &object).unwrap()), ["A", "Z"]);
    assert!(read("p.o", &packet("", "return 0;")).unwrap().params.is_empty());
}
