//! Joining a checked policy with a hook's trusted half (libbpf's static linker).

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;

use libbpf_rs::Linker;
use rustix::fs::MemfdFlags;
use syrup_protocol::{Code, Failure, Result};

/// Links the user's object with the trusted half; the result is an ELF image.
///
/// Into a file in memory, which a daemon that is killed does not leave behind.
///
/// # Errors
/// [`Code::SourceRejected`] when they do not fit: a `schedule()` of another
/// prototype, or a name that both define.
pub fn link(policy: &[u8], trusted_half: &[u8]) -> Result<Vec<u8>> {
    let internal = |verb: &str, e: std::io::Error| {
        Failure::new(Code::Internal, format!("cannot {verb} the linked object: {e}"))
    };
    let mut output = in_memory().map_err(|e| internal("make", e.into()))?;
    let refused = |step: &str, e: &libbpf_rs::Error| {
        Failure::new(
            Code::SourceRejected,
            format!("the policy does not link with the hook's trusted half ({step}): {e:#}"),
        )
        .advise(
            "check that schedule() has the prototype of <syrup/packet.h> or <syrup/thread.h>, \
             and that the policy defines no name starting with syrup_",
        )
    };
    let path = format!("/proc/self/fd/{}", output.as_raw_fd());
    let mut linker = Linker::new(path).map_err(|e| {
        Failure::new(Code::Internal, format!("cannot start libbpf's linker: {e:#}"))
    })?;
    // The trusted half first: its licence and program sections lead the object.
    linker.add_buf(trusted_half).map_err(|e| refused("trusted half", &e))?;
    linker.add_buf(policy).map_err(|e| refused("policy", &e))?;
    linker.link().map_err(|e| refused("finish", &e))?;
    drop(linker);
    let mut linked = Vec::new();
    output.read_to_end(&mut linked).map_err(|e| internal("read", e))?;
    Ok(linked)
}

/// Not to be executed: some kernels give no other (vm.memfd_noexec).
fn in_memory() -> rustix::io::Result<File> {
    let make = |flags| rustix::fs::memfd_create("linked.o", MemfdFlags::CLOEXEC | flags);
    match make(MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(rustix::io::Errno::INVAL) => make(MemfdFlags::empty()),
        made => made,
    }
    .map(File::from)
}
