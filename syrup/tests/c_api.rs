//! The C functions, used by C programs as applications would use them. What the
//! thread hook adds is in `tests/tests/cross_layer`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

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
