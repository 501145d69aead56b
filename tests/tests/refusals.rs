//! What is refused: each with its exit code, a message that points at the
//! fault, advice, and nothing left behind.

use syrup_tests::{Ctl, Need, own_network, require, udp_group};

const PACKET: &str = "#include <syrup/packet.h>\n\n\
    __s32 schedule(void *pkt_start, void *pkt_end)\n{\n";

fn packet_policy(body: &str) -> String {
    format!("{PACKET}{body}}}\n")
}

fn load(ctl: &Ctl, file: &str) -> syrup_tests::Ran {
    ctl.run(&["load", "socket-select", "--app", "web", "--policy", file])
}

#[test]
fn a_typo_points_at_the_line() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let ran = load(&ctl, &ctl.file("typo.c", &packet_policy("\treturn SYRUP_PAS;\n")));
    ran.fails(3, "does not compile");
    assert!(ran.stderr.contains("typo.c:5:"), "{}", ran.stderr);
    ctl.assert_empty();
}

#[test]
fn an_endless_loop_is_refused_by_the_verifier() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let source = packet_policy(
        "\tvolatile __u32 n = 0;\n\twhile (n < 4000000000U)\n\t\tn += syrup_random() & 1;\n\treturn 0;\n",
    );
    let ran = load(&ctl, &ctl.file("endless.c", &source));
    ran.fails(4, "endless.c:");
    assert!(ran.stderr.contains("constant upper bound"), "{}", ran.stderr);
    ctl.assert_empty();
}

#[test]
fn a_read_out_of_bounds_is_refused_with_its_line() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let source = packet_policy("\treturn *(__u32 *)(pkt_start + 100) & 1;\n");
    let ran = load(&ctl, &ctl.file("peek.c", &source));
    ran.fails(4, "peek.c:5: the kernel's verifier refused it");
    assert!(ran.stderr.contains("SYRUP_READ"), "{}", ran.stderr);
    ctl.assert_empty();
}

#[test]
fn a_kernel_function_is_refused_before_the_kernel_sees_it() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let source = "#include <syrup/thread.h>\n\
        extern void scx_bpf_kick_cpu(__s32 cpu, __u64 flags)\n\
        \t__attribute__((section(\".ksyms\"), visibility(\"default\")));\n\
        __s32 schedule(struct syrup_thread *t)\n{\n\
        \tscx_bpf_kick_cpu(t->cpu, 0);\n\treturn 0;\n}\n";
    let file = ctl.file("kick.c", source);
    ctl.run(&["load", "scx-syrup", "--policy", &file])
        .fails(3, "kick.c:6: calls 'scx_bpf_kick_cpu'");
    ctl.assert_empty();
}

#[test]
fn a_map_larger_than_the_machine_is_refused_before_it_is_made() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let source = format!(
        "#include <syrup/packet.h>\nSYRUP_MAP(m, 2000000000);\n{}",
        packet_policy("\treturn syrup_map_lookup(&m, 0) ? 0 : 1;\n")
    );
    let file = ctl.file("huge.c", &source);
    let said = "Map 'm': 16000000000 bytes; 1 to 67108864 are allowed";
    ctl.run(&["check", &file, "--hook", "socket-select"]).fails(3, said);
    load(&ctl, &file).fails(3, said);
    ctl.assert_empty();
}

#[test]
fn a_packet_policy_does_not_fit_the_thread_hook() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let file = ctl.file("packet.c", &packet_policy("\treturn 0;\n"));
    ctl.run(&["load", "scx-syrup", "--policy", &file]).fails(3, "schedules packets");
    ctl.assert_empty();
}

#[test]
fn a_taken_port_names_the_app_that_has_it() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    let _group = udp_group(7200, 2);
    let pid = std::process::id().to_string();
    let load = |app: &str| {
        ctl.run(&[
            "load",
            "socket-select",
            "--policy",
            "round-robin",
            "--app",
            app,
            "--port",
            "7200",
            "--pid",
            &pid,
        ])
    };
    load("first").ok();
    load("second").fails(7, "first");
    let apps = ctl.json(&["list"]);
    assert_eq!(apps["deployments"].as_array().unwrap().len(), 1, "{apps}");
    load("first").fails(7, "has a policy at socket-select already");
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
}

#[test]
fn without_clang_a_c_file_is_refused_and_a_builtin_still_loads() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let mut ctl = Ctl::new();
    ctl.set_env("BPF_CLANG", "/nowhere/clang");
    let ran = load(&ctl, &ctl.file("rr.c", &packet_policy("\treturn 0;\n")));
    ran.fails(6, "no clang found");
    assert!(ran.stderr.contains("apt-get install clang"), "{}", ran.stderr);
    ctl.assert_empty();
    load(&ctl, "round-robin").ok();
}

#[test]
fn unknown_names_list_the_known_ones() {
    if !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    load(&ctl, "scan-avoyd").fails(2, "scan-avoid");
    ctl.run(&["load", "socket-selekt", "--policy", "hash"]).fails(2, "socket-select");
    load(&ctl, "./missing.c").fails(2, "missing.c");
    ctl.run(&["unload", "socket-select", "--app", "nobody"]).fails(7, "nobody");
    ctl.run(&["load", "socket-select", "--policy", "sita", "--set", "NOPE=1"]).fails(2, "NOPE");
    ctl.assert_empty();
}

#[test]
fn a_map_of_another_shape_is_a_conflict_and_leaves_the_first_alone() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let ctl = Ctl::new();
    load(&ctl, "scan-avoid").ok();
    let source = format!(
        "#include <syrup/packet.h>\nSYRUP_MAP(request_type, 8);\n{}",
        packet_policy("\t__u64 *v = syrup_map_lookup(&request_type, 0);\n\treturn v ? *v : 0;\n")
    );
    let file = ctl.file("other.c", &source);
    ctl.run(&["replace", "socket-select", "--app", "web", "--policy", &file])
        .fails(7, "request_type");
    assert_eq!(ctl.deployment("web", "socket-select")["policy"], "scan-avoid");
}
