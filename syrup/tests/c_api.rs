//! The C functions, used by a C program as an application would use them.

#![allow(clippy::unwrap_used)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use syrup_tests::{Ctl, Need, own_network, require};

const STEER: &str = "#include <syrup/packet.h>\n\
    SYRUP_MAP(steer, 2);\n\
    __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\
    \t__u64 *to = syrup_map_lookup(&steer, 0), *seen = syrup_map_lookup(&steer, 1);\n\
    \tif (!to || !seen)\n\t\treturn SYRUP_PASS;\n\
    \t__sync_fetch_and_add(seen, 1);\n\treturn *to;\n}\n";

/// A folder that any user may read, with the library and the C program in it.
struct Built {
    dir: tempfile::TempDir,
}

impl Built {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let test = std::env::current_exe().unwrap();
        let built = test.parent().unwrap().join("libsyrup.so");
        std::fs::copy(&built, dir.path().join("libsyrup.so"))
            .unwrap_or_else(|e| panic!("{}: {e}", built.display()));
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let compiled = Command::new("cc")
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-o"])
            .arg(dir.path().join("app"))
            .arg(here.join("tests/app.c"))
            .arg("-I")
            .arg(here.join("../include"))
            .arg("-L")
            .arg(dir.path())
            .arg("-lsyrup")
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        std::fs::write(dir.path().join("steer.c"), STEER).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, ctl: &Ctl, uid: u32) -> Output {
        Command::new(self.path("app"))
            .arg(self.path("steer.c"))
            .env("LD_LIBRARY_PATH", self.dir.path())
            .env("SYRUP_SOCKET", ctl.socket())
            .env("SYRUP_APP", "capp")
            .uid(uid)
            .gid(uid)
            .output()
            .unwrap()
    }
}

fn a_c_program_schedules_its_sockets_as(uid: u32) {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let built = Built::new();
    let ctl = Ctl::new();
    let folder = ctl.socket().parent().unwrap().to_owned();
    std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let _daemon = ctl.daemon();

    let output = built.run(&ctl, uid);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
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
    a_c_program_schedules_its_sockets_as(65534);
}
