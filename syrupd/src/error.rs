//! The engine's error: one exit code, what failed, the details, what to do.

use std::fmt;

use syrup_abi::protocol::Failure;

/// Shorthand for results of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub use syrup_abi::protocol::Code;

/// Why the engine did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The exit code.
    pub code: Code,
    /// One line: what failed, on which object, in the kernel's own words.
    pub message: String,
    /// Longer text for people: compiler diagnostics, the verifier's last lines.
    pub detail: Option<String>,
    /// What the user can do.
    pub advice: Option<String>,
}

impl Error {
    /// An error with its code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None, advice: None }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Adds longer text.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Failure> for Error {
    fn from(Failure { code, message, detail, advice }: Failure) -> Self {
        Self { code, message, detail, advice }
    }
}

impl From<Error> for Failure {
    fn from(Error { code, message, detail, advice }: Error) -> Self {
        Self { code, message, detail, advice }
    }
}

impl From<syrup_hook::Error> for Error {
    fn from(error: syrup_hook::Error) -> Self {
        use syrup_hook::Error as Hook;
        let message = error.to_string();
        match error {
            // A user's program is explained where its file is known; this one is ours.
            Hook::Verifier { log, .. } => {
                Self::new(Code::Internal, format!("{message}; it is a part of Syrup"))
                    .detail(crate::verifier::tail(&log))
                    .advise("this kernel's verifier does not take Syrup's own program: report it with the lines above and 'uname -r'")
            }
            Hook::Unsupported { advice, .. } => {
                Self::new(Code::Unsupported, message).advise(advice)
            }
            Hook::Conflict { advice, .. } | Hook::NotFound { advice, .. } => {
                Self::new(Code::Conflict, message).advise(advice)
            }
            Hook::Usage(_) => Self::new(Code::Usage, message),
            Hook::Timeout(_) => Self::new(Code::Timeout, message),
            Hook::Kernel { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Self::new(Code::NotPermitted, message)
                    .advise("run as root, or ask syrupd (it must run as root)")
            }
            Hook::Pin { .. } => Self::new(Code::Internal, message)
                .advise("'syrupctl unload --all' removes what is left of a broken deployment"),
            _ => Self::new(Code::Internal, message),
        }
    }
}
