//! The C functions, used by C programs as applications would use them. What the
//! thread hook adds is in `tests/tests/cross_layer`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use syrup_sdk::Compiler;
use syrup_tests::{CProgram, Ctl, Need, own_network, require};

const STEER: &str = "#include <syrup/packet.h>\n\
    SYRUP_MAP(steer, 2);\n\
    __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\
    \t__u64 *to = syrup_map_lookup(&steer, 0), *seen = syrup_map_lookup(&steer, 1);\n\
    \tif (!to || !seen)\n\t\treturn SYRUP_PASS;\n\
    \t__sync_fetch_and_add(seen, 1);\n\treturn *to;\n}\n";

const COUNT: &str = "#include <syrup/packet.h>\n\
    SYRUP_MAP(calls, 2);\n\
    __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\
    \t__u64 *seen = syrup_map_lookup(&calls, 0);\n\
    \tif (seen)\n\t\t__sync_fetch_and_add(seen, 1);\n\treturn 0;\n}\n";

const ENDLESS: &str = "#include <syrup/packet.h>\n\
    __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\
    \tvolatile __u32 n = 0;\n\twhile (n < 4000000000U)\n\t\tn += syrup_random() & 1;\n\
    \treturn 0;\n}\n";

const PARAM: &str = "#include <syrup/packet.h>\n\
    SYRUP_PARAM(__u32, WHO, 0);\n\
    __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\treturn WHO;\n}\n";

/// An ordinary user of every machine.
const NOBODY: u32 = 65534;

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn a_c_program_schedules_its_sockets_as(uid: u32) {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let program = CProgram::build(&source("app.c"));
    let policy = program.file("steer.c", STEER);
    let ctl = Ctl::new();
    ctl.let_users_in();
    let _daemon = ctl.daemon();

    let output = program.command(&ctl, "capp", uid).arg(policy).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"ok\n");

    let deployment = ctl.deployment("capp", "socket-select");
    assert_eq!(deployment["uid"], uid);
    assert_eq!(deployment["generation"], 1);
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
}

#[test]
fn a_c_program_of_root_schedules_its_sockets() {
    a_c_program_schedules_its_sockets_as(0);
}

/// Nothing of it needs privilege: the policy is compiled by the program itself,
/// the daemon proves the sockets' port and hands out the Map.
#[test]
fn a_c_program_of_an_ordinary_user_schedules_its_sockets() {
    a_c_program_schedules_its_sockets_as(NOBODY);
}

fn every_call_is_as_its_header_says_for(uid: u32) {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let program = CProgram::build(&source("calls.c"));
    let object = Compiler::find().unwrap().compile("count.c", COUNT).unwrap().object;
    program.file("count.c", COUNT);
    program.file("param.o", Compiler::find().unwrap().compile("param.c", PARAM).unwrap().object);
    program.file("count.o", object);
    program
        .file("broken.c", "#include <syrup/packet.h>\n__s32 schedule(void) { return nothing; }\n");
    program.file("endless.c", ENDLESS);
    program.file("garbage.o", [7; 4096]);
    let ctl = Ctl::new();
    ctl.let_users_in();
    let _daemon = ctl.daemon();

    let mut calls = program.command(&ctl, "capp", uid);
    let output = calls.arg("packet").arg(program.folder()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();
}

#[test]
fn every_call_is_as_its_header_says_for_root() {
    every_call_is_as_its_header_says_for(0);
}

#[test]
fn every_call_is_as_its_header_says_for_an_ordinary_user() {
    every_call_is_as_its_header_says_for(NOBODY);
}

/// Built as `pkg-config` says, it runs with a library of that version, and would refuse
/// another major one.
#[test]
fn an_installed_library_is_found_and_asked_for_by_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let build = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let (to, prefix) = (dir.path().to_str().unwrap(), "/opt/syrup");
    let mut install = Command::new(repository.join("scripts/install-library"));
    assert!(install.arg(build).args([to, prefix]).status().unwrap().success());

    let main = dir.path().join("main.c");
    let text = "#include <stdio.h>\n#include <syrup/syrup.h>\n\
                int main(void)\n{\n\tprintf(\"%d\\n\", syr_version() == SYRUP_VERSION);\n}\n";
    std::fs::write(&main, text).unwrap();
    let lib = dir.path().join("opt/syrup/lib");
    let run = |script: &str| {
        let output = Command::new("sh")
            .args(["-euc", script])
            .current_dir(dir.path())
            .env("PKG_CONFIG_PATH", lib.join("pkgconfig"))
            .env("PKG_CONFIG_SYSROOT_DIR", to)
            .env("LD_LIBRARY_PATH", &lib)
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run("pkg-config --modversion syrup").trim(), env!("CARGO_PKG_VERSION"));
    run("cc -Wall -Werror main.c -o main $(pkg-config --cflags --libs syrup)");
    assert_eq!(run("./main"), "1\n");
    let soname = concat!("libsyrup.so.", env!("CARGO_PKG_VERSION_MAJOR"));
    std::fs::remove_file(lib.join(soname)).unwrap();
    let status = Command::new(dir.path().join("main")).env("LD_LIBRARY_PATH", &lib).status();
    assert!(!status.unwrap().success(), "libsyrup.so alone is no {soname}");
}
