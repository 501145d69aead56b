//! Why something was not done: one form of it, in the engine, on the wire and in
//! its clients.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Kinds of failure, and exit codes of `syrupctl`; a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[non_exhaustive]
pub enum Code {
    /// A defect, or the system refused something unexpected.
    Internal = 1,
    /// The request makes no sense.
    Usage = 2,
    /// The policy's source or object was refused before the kernel saw it.
    SourceRejected = 3,
    /// The kernel's verifier refused it.
    VerifierRejected = 4,
    /// The caller may not do this.
    NotPermitted = 5,
    /// The kernel, or something installed, lacks a feature.
    Unsupported = 6,
    /// Something else has it already, or what was named is not there.
    Conflict = 7,
    /// No daemon answers.
    Unreachable = 8,
    /// It did not happen in time.
    Timeout = 9,
    /// Loaded, but the default decides, or the kernel threw it out.
    Degraded = 10,
}

/// Shorthand for what the arbiter answers.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why the arbiter did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub code: Code,
    /// One line: what failed, on which object, in the kernel's own words.
    pub message: String,
    /// Longer text for people: compiler diagnostics, the verifier's last lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What the user can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
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
