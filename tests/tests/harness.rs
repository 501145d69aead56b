//! What other tests rely on, tested itself.

use std::ffi::CString;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::Command;

use syrup_tests::{Ctl, Need, own_network, require, syscalls, udp_group};

const PORT: u16 = 7300;

fn load(ctl: &Ctl) {
    let (port, pid) = (PORT.to_string(), std::process::id().to_string());
    let load = ["load", "socket-select", "--policy", "round-robin", "--app", "web"];
    ctl.run(&[load.as_slice(), &["--port", &port, "--pid", &pid]].concat()).ok();
}

#[test]
fn a_leaked_program_is_told_from_what_a_neighbour_has_loaded() {
    if !require(&[Need::Root]) {
        return;
    }
    own_network();
    let _group = udp_group(PORT, 2);
    let ctl = Ctl::new();
    load(&ctl);
    let ours = ctl.kernel_objects();
    // Somebody holds a program that the pins no longer show.
    let pin = ctl.bpffs().join("web/socket-select/dispatcher_0");
    let pin = CString::new(pin.to_str().unwrap()).unwrap();
    // SAFETY: the path is NUL-terminated and lives for the call.
    let fd = unsafe { libbpf_sys::bpf_obj_get(pin.as_ptr()) };
    assert!(fd >= 0, "{}", std::io::Error::from_raw_os_error(-fd));
    // SAFETY: the kernel just made this fd for us.
    let leak = unsafe { OwnedFd::from_raw_fd(fd) };
    ctl.run(&["unload", "--all"]).ok();
    ctl.assert_empty();

    let neighbour = Ctl::new();
    load(&neighbour);
    assert!(ours.left().iter().any(|left| left.starts_with("program")), "{:?}", ours.left());
    drop(leak);
    ours.assert_freed();
    assert!(!neighbour.kernel_objects().left().is_empty());
}

#[test]
fn the_system_calls_of_a_command_and_of_its_children_are_counted() {
    let calls = |script: &str| syscalls(Command::new("sh").args(["-c", script]));
    let none = calls("true");
    let ten = calls("for i in 1 2 3 4 5 6 7 8 9 10; do (umask) & done; wait");
    assert!(ten >= none + 40, "{none} and {ten}");
    assert!(none >= 20, "{none}");
    let same = calls("true");
    assert!(same.abs_diff(none) <= 2, "{none} and {same}");
}
