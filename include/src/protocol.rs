//! What applications say to the daemon: varlink interface `org.syrup.Arbiter1`
//! (described in `syrupd/src/org.syrup.Arbiter1.varlink`).
//!
//! Only the part that applications need is here; the daemon adds the rest.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The varlink interface; the number rises when old clients would misread it.
pub const INTERFACE: &str = "org.syrup.Arbiter1";

/// Where the daemon listens unless a flag says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/syrup/syrupd.sock";

/// The one error of [`INTERFACE`]; its parameters are a [`Failure`].
pub const FAILED: &str = "org.syrup.Arbiter1.Failed";

/// Longest C source, in bytes.
pub const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Longest policy object, in bytes.
pub const MAX_OBJECT_BYTES: usize = 4 << 20;

/// Longest message, in bytes: an object of full size in base64, and the rest.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Most descriptors one message may carry.
pub const MAX_FDS: usize = 8;

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

/// Why the arbiter did not do what was asked: the one form of a failure, in the
/// engine, on the wire and in its clients.
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

/// A policy as the requester has it: bytes and names, never a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PolicySource {
    /// The name of a policy that ships with the hook.
    Builtin {
        /// Its name.
        name: String,
    },
    /// A C file.
    Source {
        /// For diagnostics; never opened.
        file_name: String,
        /// Its text.
        text: String,
    },
    /// A compiled policy object.
    Object {
        /// For messages; never opened.
        file_name: String,
        /// The ELF image.
        #[serde(with = "base64_bytes")]
        image: Vec<u8>,
    },
}

/// Parameters of `Load`: a policy for an app that has none at this hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadRequest {
    /// Hook name.
    pub hook: String,
    /// App name.
    pub app: String,
    /// The policy.
    pub policy: PolicySource,
    /// `--set NAME=VALUE`
    #[serde(default)]
    pub params: Vec<(String, String)>,
    /// Packet hooks: the port.
    #[serde(default)]
    pub port: Option<u16>,
    /// Packet hooks: "udp" or "tcp".
    #[serde(default)]
    pub proto: Option<String>,
    /// Adopt this process's executors.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Thread hook: the app's cores.
    #[serde(default)]
    pub cpus: Vec<u32>,
    /// Thread hook: share against other apps, 1..=10000, 100 is normal.
    #[serde(default)]
    pub weight: Option<u32>,
}

/// Parameters of `Replace`: another policy in the place of the live one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceRequest {
    /// Hook name.
    pub hook: String,
    /// App name.
    pub app: String,
    /// The new policy.
    pub policy: PolicySource,
    /// `--set NAME=VALUE`
    #[serde(default)]
    pub params: Vec<(String, String)>,
}

/// Parameters of `Show`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AppRef {
    /// App name.
    pub app: String,
}

/// Parameters of `PolicyOpen` and `Unload`: one deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeploymentRef {
    /// Hook name.
    pub hook: String,
    /// App name.
    pub app: String,
}

/// Parameters of `MapOpen` and `MapDump`: one Map. The reply of `MapOpen`
/// carries its descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MapRef {
    /// App name.
    pub app: String,
    /// Map name.
    pub map: String,
}

/// Parameters of `RegisterSocket`; the message carries the socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegisterSocket {
    /// App name.
    pub app: String,
    /// The executor index; none: the next free one.
    #[serde(default)]
    pub index: Option<u32>,
}

/// Parameters of `RegisterThread`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegisterThread {
    /// App name.
    pub app: String,
    /// Thread id in the daemon's pid namespace.
    pub tid: i32,
    /// The thread index; none: the next free one.
    #[serde(default)]
    pub index: Option<u32>,
}

/// Reply of `RegisterSocket` and `RegisterThread`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registered {
    /// The index it has now.
    pub index: u32,
}

/// A reply, or a request, without parameters.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Nothing {}

/// A varlink call as it is sent.
#[derive(Debug, Serialize)]
pub struct Call<'a, P> {
    /// Interface and method.
    pub method: &'a str,
    /// Its parameters.
    pub parameters: P,
}

/// A varlink call as it is received.
#[derive(Debug, Deserialize)]
pub struct ReceivedCall<'a> {
    /// Interface and method.
    pub method: String,
    /// Its parameters, not looked at yet.
    #[serde(borrow, default)]
    pub parameters: Option<&'a RawValue>,
    /// The caller wants no reply.
    #[serde(default)]
    pub oneway: bool,
}

/// A varlink reply as it is sent.
#[derive(Debug, Serialize)]
pub struct Reply<'a, P> {
    /// Set on failure: the error's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// The result, or the error's parameters.
    pub parameters: P,
}

/// A varlink reply as it is received.
#[derive(Debug, Deserialize)]
pub struct ReceivedReply<'a> {
    /// Set on failure: the error's name.
    #[serde(default)]
    pub error: Option<String>,
    /// The result, or the error's parameters, not looked at yet.
    #[serde(borrow, default)]
    pub parameters: Option<&'a RawValue>,
}

/// Bytes inside JSON.
mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(de::Error::custom)
    }
}
