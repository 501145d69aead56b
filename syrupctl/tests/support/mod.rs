//! Commands as a test starts them, and a server for them to run.
#![allow(dead_code)]

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use syrup_tests::GROUP;
use tempfile::TempDir;

/// The built binary, deaf to the machine's settings.
pub fn syrupctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_syrupctl"));
    command
        .env_remove("SYRUP_SOCKET")
        .env_remove("SYRUP_BPFFS")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// The command as an ordinary user, and the folder it is in.
pub fn as_nobody() -> (Command, Option<TempDir>) {
    if Command::new("id").arg("-u").output().unwrap().stdout != b"0\n" {
        return (syrupctl(), None);
    }
    // The build folder may be closed to others: run a copy. Another process
    // makes it, because a file that this one has open for writing while
    // another thread starts a program is busy for as long as that takes.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("syrupctl");
    let copied =
        Command::new("cp").arg(env!("CARGO_BIN_EXE_syrupctl")).arg(&copy).status().unwrap();
    assert!(copied.success());
    for path in [dir.path(), &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", &format!("--regid={GROUP}")])
        .args(["--clear-groups", "--inh-caps=-all"])
        .arg(&copy)
        .env_remove("SYRUP_SOCKET")
        .env_remove("SYRUP_BPFFS")
        .stdin(Stdio::null());
    (command, Some(dir))
}

/// A server with a socket per thread that ends with code 3 when asked to.
/// Arguments: port, sockets, seconds between them.
pub const SERVER: &str = "
import os, signal, socket, sys, threading, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
port, n, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def serve(s):
    while True:
        data, peer = s.recvfrom(2048)
        s.sendto(data, peer)
for _ in range(n):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(('127.0.0.1', port))
    threading.Thread(target=serve, args=(s,), daemon=True).start()
    time.sleep(pause)
print('up', os.environ['SYRUP_APP'], flush=True)
time.sleep(1000)
";
