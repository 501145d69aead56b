//! Joining a checked policy with a hook's trusted half (libbpf's static linker).

use libbpf_rs::Linker;

use crate::error::{Code, Error, Result};

/// Links the user's object with the trusted half; the result is an ELF image.
///
/// # Errors
/// [`Code::SourceRejected`] when they do not fit: a `schedule()` of another
/// prototype, or a name that both define.
pub fn link(policy: &[u8], trusted_half: &[u8]) -> Result<Vec<u8>> {
    let dir = tempfile::Builder::new()
        .prefix("syrup-link-")
        .tempdir()
        .map_err(|e| Error::new(Code::Internal, format!("cannot make a temporary folder: {e}")))?;
    let output = dir.path().join("linked.o");
    let refused = |step: &str, e: &libbpf_rs::Error| {
        Error::new(
            Code::SourceRejected,
            format!("the policy does not link with the hook's trusted half ({step}): {e:#}"),
        )
        .advise(
            "check that schedule() has the prototype of <syrup/packet.h> or <syrup/thread.h>, \
             and that the policy defines no name starting with syrup_",
        )
    };
    let mut linker = Linker::new(&output).map_err(|e| refused("start", &e))?;
    // The trusted half first: its licence and program sections lead the object.
    linker.add_buf(trusted_half).map_err(|e| refused("trusted half", &e))?;
    linker.add_buf(policy).map_err(|e| refused("policy", &e))?;
    linker.link().map_err(|e| refused("finish", &e))?;
    drop(linker);
    std::fs::read(&output)
        .map_err(|e| Error::new(Code::Internal, format!("cannot read the linked object: {e}")))
}
