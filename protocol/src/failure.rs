//! Why something was not done: one form of it, in the engine, on the wire and in
//! its clients.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::deployment::Word;

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// A defect, or the system refused something unexpected.
    Internal,
    /// The request makes no sense.
    Usage,
    /// The policy's source or object was refused before the kernel saw it.
    SourceRejected,
    /// The kernel's verifier refused it.
    VerifierRejected,
    /// The caller may not do this.
    NotPermitted,
    /// The kernel, or something installed, lacks a feature.
    Unsupported,
    /// Something else has it already.
    Conflict,
    /// What was named is not there.
    NotFound,
    /// No daemon answers; or it went away during a call, of which nobody knows what became.
    Unreachable,
    /// It did not happen in time.
    Timeout,
    /// Loaded, but the default decides, or the kernel threw it out.
    Degraded,
}

impl Code {
    /// The exit code of `syrupctl`: a contract.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::SourceRejected => 3,
            Self::VerifierRejected => 4,
            Self::NotPermitted => 5,
            Self::Unsupported => 6,
            Self::Conflict | Self::NotFound => 7,
            Self::Unreachable => 8,
            Self::Timeout => 9,
            Self::Degraded => 10,
        }
    }
}

/// Shorthand for what the arbiter answers.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why the arbiter did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Received")]
pub struct Failure {
    /// Its kind.
    pub code: Code,
    /// One line: what failed, on which object, in the kernel's own words.
    pub message: String,
    /// Longer text for people: compiler diagnostics, the verifier's last lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What the user can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// A [`Failure`] as it arrives.
#[derive(Deserialize)]
struct Received {
    code: Word<Code>,
    message: String,
    detail: Option<String>,
    advice: Option<String>,
}

impl From<Received> for Failure {
    fn from(Received { code, message, detail, advice }: Received) -> Self {
        let (code, message) = match code {
            Word::Known(code) => (code, message),
            // A newer arbiter's: said, and otherwise the kind of failure nothing is known of.
            Word::Other(word) => (Code::Internal, format!("{word}: {message}")),
        };
        Self { code, message, detail, advice }
    }
}

impl Failure {
    /// A failure without detail and advice.
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

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
