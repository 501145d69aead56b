//! What `syrupctl` says to people who typed something else than they meant,
//! or lack rights. Run as a user would run it; nothing is loaded.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::{as_nobody, syrupctl};
use syrup_tests::wait_for;

/// Every command, with its subcommands, as the help lists them.
fn commands() -> Vec<Vec<String>> {
    let below = |command: &[String]| -> Vec<Vec<String>> {
        let help = syrupctl().args(command).arg("--help").output().unwrap();
        let help = stdout(&help);
        let list = help.split_once("\nCommands:\n").map_or("", |(_, list)| list);
        let names = list.lines().take_while(|line| !line.is_empty());
        let names = names.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        let names = names.filter(|name| !["", "help"].contains(name));
        names.map(|name| [command, &[name.to_owned()]].concat()).collect()
    };
    let verbs = below(&[]);
    assert!(verbs.len() > 10, "{verbs:?}");
    verbs.iter().flat_map(|verb| [vec![verb.clone()], below(verb)].concat()).collect()
}

fn run(args: &[&str]) -> Output {
    syrupctl().args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn fails(output: &Output, code: i32, says: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty(), "stdout carries data only: {}", stdout(output));
    assert!(text.contains("error:") && text.contains("help:"), "{text}");
    for part in says {
        assert!(text.contains(part), "no '{part}' in: {text}");
    }
}

#[test]
fn every_command_shows_an_example() {
    for command in commands() {
        let output = syrupctl().args(&command).arg("--help").output().unwrap();
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(text.contains("Example"), "{command:?}: {text}");
        assert!(text.contains(&format!("  syrupctl {}", command.join(" "))), "{command:?}: {text}");
    }
    let text = stdout(&run(&["--help"]));
    assert!(text.contains("Exit codes:"), "{text}");
}

#[test]
fn a_misspelt_command_or_hook_is_answered_with_the_right_one() {
    fails(&run(&["lod"]), 2, &["'load'"]);
    fails(&run(&["load", "socket-selekt", "--policy", "hash"]), 2, &["'socket-select'"]);
    fails(&run(&["run", "--load", "scx=fifo", "--", "true"]), 2, &["scx-syrup, socket-select"]);
}

#[test]
fn arguments_that_make_no_sense_are_refused_before_anything_happens() {
    for args in [
        &["load", "socket-select"][..],
        &["load", "socket-select", "--policy", "hash", "--port", "0"],
        &["load", "socket-select", "--policy", "hash", "--port", "70000"],
        &["load", "socket-select", "--policy", "hash", "--proto", "icmp"],
        &["load", "socket-select", "--policy", "hash", "--set", "NOVALUE"],
        &["load", "socket-select", "--policy", "hash", "--app", "_scx"],
        &["load", "scx-syrup", "--policy", "fifo", "--cpus", "3-1"],
        &["load", "scx-syrup", "--policy", "fifo", "--weight", "0"],
        &["load", "socket-select", "--policy", "hash", "--user", "no such user"],
        &["run", "--load", "scx-syrup=fifo", "--user", "-1", "--", "true"],
        &["unload"],
        &["unload", "socket-select", "--all"],
        &["map", "get", "app", "map", "x"],
        &["map", "set", "app", "map", "0", "0x10000000000000000"],
        &["check", "./p.c"],
        &["run", "--load", "scx-syrup=fifo"],
        &["run", "--load", "socket-select=hash", "--", "true"],
        &["run", "--load", "scx-syrup=fifo", "--load", "scx-syrup=fifo", "--", "true"],
        &["list", "-o", "yaml"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        fails(&output, 2, &[]);
    }
}

#[test]
fn no_arguments_show_the_help_and_are_a_usage_error() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Examples:"));
}

#[test]
fn a_missing_file_is_told_before_the_arbiter_is_asked() {
    // No daemon is there: the file must come first.
    for command in ["load", "replace"] {
        let args = [command, "--socket", "/nowhere/s", "socket-select", "--policy", "./absent.c"];
        fails(&run(&args), 2, &["./absent.c", "No such file or directory"]);
    }
    fails(&run(&["check", "./absent.c", "--hook", "socket-select"]), 2, &["No such file"]);
}

#[test]
fn a_named_daemon_that_does_not_answer_is_not_replaced_by_the_machines_pins() {
    for args in [&["list"][..], &["unload", "--all"], &["hooks"]] {
        let output = run(&[args, &["--socket", "/nowhere/syrupd.sock"]].concat());
        fails(&output, 8, &["/nowhere/syrupd.sock", "start syrupd"]);
    }
}

#[test]
fn the_environment_names_the_daemon_and_the_pins_and_flags_go_first() {
    let at = |variable: &str, place: &str, args: &[&str]| {
        syrupctl().env(variable, place).args(args).output().unwrap()
    };
    let output = at("SYRUP_SOCKET", "/nowhere/syrupd.sock", &["list"]);
    fails(&output, 8, &["/nowhere/syrupd.sock", "start syrupd"]);
    let output = at("SYRUP_SOCKET", "/other/s", &["list", "--socket", "/nowhere/syrupd.sock"]);
    fails(&output, 8, &["/nowhere/syrupd.sock"]);
    // A file system is mounted above the pins.
    let text = stdout(&at("SYRUP_BPFFS", "/nowhere/pins", &["doctor"]));
    assert!(text.contains("/nowhere: No such file"), "{text}");
    let text = stdout(&at("SYRUP_BPFFS", "/other/pins", &["doctor", "--bpffs", "/nowhere/pins"]));
    assert!(text.contains("/nowhere: No such file"), "{text}");
}

#[test]
fn an_ordinary_user_without_a_daemon_is_told_what_to_start() {
    let (mut command, _dir) = as_nobody();
    let output = command
        .args(["--socket", "/nowhere/s", "--bpffs", "/nowhere/pins", "list"])
        .output()
        .unwrap();
    fails(&output, 8, &["start syrupd, or run this command as root"]);
}

#[test]
fn an_ordinary_user_sees_hooks_and_policies_and_may_check_a_file() {
    let (mut command, _dir) = as_nobody();
    let output = command.args(["--bpffs", "/nowhere/pins", "policies", "-o", "json"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("{\"schema\":1,\"policies\":["), "{}", stdout(&output));

    let (mut command, _dir) = as_nobody();
    let output =
        command.args(["check", "round-robin", "--hook", "socket-select"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("only root can ask the verifier"), "{}", stdout(&output));
}

#[test]
fn the_compilers_words_reach_the_user_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("typo.c");
    let source = "#include <syrup/packet.h>\n\
                  __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\treturn nxt++;\n}\n";
    std::fs::write(&path, source).unwrap();
    let path = path.to_str().unwrap();
    let output = run(&["check", path, "--hook", "socket-select"]);
    fails(&output, 3, &[&format!("{path}:4:"), "nxt"]);
}

#[test]
fn an_interrupted_command_takes_the_compiler_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("p.c"), "#include <syrup/packet.h>\n").unwrap();
    std::fs::write(at("script"), "#!/bin/sh\necho $$ >\"$0.pid\"\nexec sleep 1000\n").unwrap();
    // Another process makes it: see `support::as_nobody`.
    let (script, clang) = (at("script"), at("clang"));
    let made = Command::new("install").args(["-m", "755"]).args([script, clang]).status();
    assert!(made.unwrap().success());
    let mut child = syrupctl()
        .env("BPF_CLANG", at("clang"))
        // What it had there stays, as after any other end by a signal.
        .env("TMPDIR", dir.path())
        .args(["check", "--hook", "socket-select"])
        .arg(at("p.c"))
        .spawn()
        .unwrap();
    let limit = Duration::from_secs(20);
    let pid: i32 = wait_for("the compiler", limit, || {
        std::fs::read_to_string(at("clang.pid")).ok()?.trim().parse().ok()
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    child.wait().unwrap();
    wait_for("the compiler's end", limit, || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Gone, or dead and not waited for.
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = syrupctl()
        .args(["policies", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn doctor_names_every_hook_and_what_it_looked_at() {
    let output = run(&["doctor", "-o", "json"]);
    let text = stdout(&output);
    assert!(text.starts_with("{\"schema\":1,\"kernel\":\""), "{text}");
    for name in ["hook socket-select", "BPF file system", "compiler", "daemon", "BPF JIT"] {
        assert!(text.contains(&format!("\"name\":\"{name}\"")), "no '{name}' in {text}");
    }
    let expected = if text.contains("\"status\":\"missing\"") { 6 } else { 0 };
    assert_eq!(output.status.code(), Some(expected), "{text}");
}
