//! One error for all hooks, and how it is told to whoever asked.

use std::io;
use std::path::PathBuf;

use syrup_protocol::{Code, Failure};

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
    /// What is ours does not fit together.
    #[error("{0}: a defect of Syrup")]
    Defect(String),
    /// It did not happen in time.
    #[error("timed out waiting for {0}")]
    Timeout(String),
}

impl Error {
    /// A failed kernel operation with errno kept: `action` reads after "cannot".
    pub fn kernel(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Kernel { action: action.into(), source: source.into() }
    }

    /// We may not do this.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Kernel { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// An app has no policy at a hook.
    #[must_use]
    pub fn not_deployed(app: &str, hook: &str) -> Self {
        Self::NotFound {
            what: format!("app '{app}' has no policy at {hook}"),
            advice: format!(
                "syrupctl load {hook} --app {app} --policy ...; 'syrupctl list' shows what is \
                 deployed"
            ),
        }
    }

    /// What was to be let go is none of an app's.
    #[must_use]
    pub fn not_registered(what: &str, app: &str) -> Self {
        Self::NotFound {
            what: format!("{what} is not registered for app '{app}'"),
            advice: "name a socket or thread that the app has registered".to_owned(),
        }
    }

    /// A failed kernel operation by the error of libbpf-rs, whose chain is flattened into one text
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

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        if error.is_permission() {
            return Self::new(Code::NotPermitted, message)
                .advise("run as root, or ask syrupd (it must run as root)");
        }
        match error {
            // A user's program is explained where its file is known; this one is ours.
            Error::Verifier { log, .. } => {
                Self::new(Code::Internal, format!("{message}; it is a part of Syrup"))
                    .detail(verifier_tail(&log))
                    .advise("this kernel's verifier does not take Syrup's own program: report it with the lines above and 'uname -r'")
            }
            Error::Unsupported { advice, .. } => {
                Self::new(Code::Unsupported, message).advise(advice)
            }
            Error::Conflict { advice, .. } => Self::new(Code::Conflict, message).advise(advice),
            Error::NotFound { advice, .. } => Self::new(Code::NotFound, message).advise(advice),
            Error::Usage(_) => Self::new(Code::Usage, message),
            Error::Timeout(_) => Self::new(Code::Timeout, message),
            Error::Defect(_) => Self::new(Code::Internal, message)
                .advise("is all of Syrup of one build? Else report it with 'syrupctl --version'"),
            Error::Pin { .. } => Self::new(Code::Internal, message)
                .advise("'syrupctl unload --all' removes what is left of a broken deployment"),
            _ => Self::new(Code::Internal, message),
        }
    }
}

/// Lines of the log's end that are worth showing.
const TAIL: usize = 12;

/// The lines of a verifier's log that say something.
pub fn verifier_lines(log: &str) -> Vec<&str> {
    log.lines().filter(|line| !line.starts_with("processed ") && !line.trim().is_empty()).collect()
}

/// The last of them, indented.
pub fn verifier_tail(log: &str) -> String {
    let lines = verifier_lines(log);
    lines[lines.len().saturating_sub(TAIL)..].iter().map(|line| format!("  {line}\n")).collect()
}
