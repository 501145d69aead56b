//! Kernels that cannot host the thread hook: run in a machine of each kind,
//! named by `SYRUP_TEST_KERNEL` (the role given to `vm/run --kernel`).

use syrup_tests::{Ctl, Need, require};

fn role() -> Option<String> {
    std::env::var("SYRUP_TEST_KERNEL").ok()
}

#[test]
fn without_sched_ext_load_and_doctor_say_so() {
    // Most development machines have none either: no virtual machine needed then.
    let lacks = !std::path::Path::new("/sys/kernel/sched_ext").exists();
    if !lacks || !require(&[Need::Root]) {
        return;
    }
    let ctl = Ctl::new();
    let ran = ctl.run(&["load", "scx-syrup", "--policy", "get-priority"]);
    ran.fails(6, "sched_ext");
    assert!(ran.stderr.contains("6.12"), "says which kernels have it: {}", ran.stderr);
    let doctor = ctl.run(&["doctor"]);
    assert_eq!(doctor.code, 6, "{}", doctor.stdout);
    assert!(doctor.stdout.contains("sched_ext"), "{}", doctor.stdout);
    ctl.assert_empty();
}

#[test]
fn malformed_type_information_is_diagnosed_before_the_load() {
    if role().as_deref() != Some("malformed-btf") || !require(&[Need::Root, Need::SchedExt]) {
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
