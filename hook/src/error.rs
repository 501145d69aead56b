//! One error for all hooks. The engine turns each variant into an exit code
//! and adds what to do (`syrupd/src/error.rs`).

use std::io;
use std::path::PathBuf;

/// Shorthand for results of hook operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a hook could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel's verifier refused the program. `log` is its whole log.
    #[error("the verifier refused {program}: {source}")]
    Verifier {
        /// The program's name.
        program: String,
        /// The verifier's log.
        log: String,
        /// The errno of the load.
        #[source]
        source: io::Error,
    },
    /// The kernel, or something installed, lacks a feature.
    #[error("{missing}")]
    Unsupported {
        /// What is missing, and on what.
        missing: String,
        /// What the user can do.
        advice: String,
    },
    /// Something else already has what was asked for.
    #[error("{what}")]
    Conflict {
        /// Who has it.
        what: String,
        /// What the user can do.
        advice: String,
    },
    /// What was named does not exist.
    #[error("{what}")]
    NotFound {
        /// What was looked for, and where.
        what: String,
        /// What the user can do.
        advice: String,
    },
    /// The request itself makes no sense at this hook.
    #[error("{0}")]
    Usage(String),
    /// A kernel operation failed.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was being done, on which object.
        action: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A pin is there but is not what this version writes.
    #[error("{}: {reason}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It did not happen in time.
    #[error("timed out waiting for {0}")]
    Timeout(String),
}

impl Error {
    /// A failed kernel operation with errno kept: `action` reads after "cannot".
    pub fn kernel(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Kernel { action: action.into(), source: source.into() }
    }

    /// The same for the error of libbpf-rs, whose chain is flattened into one text
    /// while its kind is kept.
    pub fn bpf(action: impl Into<String>, source: &libbpf_rs::Error) -> Self {
        Self::Kernel { action: action.into(), source: io_error(source) }
    }
}

/// libbpf-rs hides its errno in a source chain: find it, else keep the text.
fn io_error(error: &libbpf_rs::Error) -> io::Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(errno) = this.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(errno);
        }
        cause = this.source();
    }
    io::Error::other(format!("{error:#}"))
}
