//! Kernels that cannot host the thread hook. The runner boots a machine with
//! each kind and selects its tests by the start of their names (tests/run).

use syrup_tests::{Ctl, Need, require};

#[test]
fn no_scx_load_and_doctor_say_so() {
    if !require(&[Need::Root, Need::NoSchedExt]) {
        return;
    }
    let ctl = Ctl::new();
    let ran = ctl.run(&["load", "scx-syrup", "--policy", "get-priority"]);
    ran.fails(6, "sched_ext");
    assert!(ran.stderr.contains("7.0"), "says which kernels have it: {}", ran.stderr);
    let doctor = ctl.run(&["doctor"]);
    assert_eq!(doctor.code, 6, "{}", doctor.stdout);
    assert!(doctor.stdout.contains("sched_ext"), "{}", doctor.stdout);
    ctl.assert_empty();
}

#[test]
fn malformed_btf_is_diagnosed_before_the_load() {
    if !require(&[Need::Root, Need::SchedExt, Need::MalformedBtf]) {
        return;
    }
    let ctl = Ctl::new();
    let ran = ctl.run(&["load", "scx-syrup", "--policy", "get-priority"]);
    ran.fails(6, "BTF");
    assert!(ran.stderr.contains("1.31"), "names the pahole that mends it: {}", ran.stderr);
    let doctor = ctl.run(&["doctor"]);
    assert_eq!(doctor.code, 6, "{}", doctor.stdout);
    assert!(doctor.stdout.contains("BTF"), "{}", doctor.stdout);
    ctl.assert_empty();
}
