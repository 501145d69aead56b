//! The envelopes of varlink, and what every varlink service answers.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The varlink interface; the number rises when old clients would misread it.
pub const INTERFACE: &str = "org.syrup.Arbiter1";

/// Where the daemon listens unless a flag says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/syrup/syrupd.sock";

/// The one error of [`INTERFACE`]; its parameters are a [`Failure`].
pub const FAILED: &str = "org.syrup.Arbiter1.Failed";

/// Longest message, in bytes: an object of full size in base64, and the rest.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Most descriptors one message may carry.
pub const MAX_FDS: usize = 8;

/// The interface in varlink's own language, for `varlinkctl` and its like.
pub const DESCRIPTION: &str = include_str!("org.syrup.Arbiter1.varlink");

/// The interface every varlink service has.
pub const SERVICE: &str = "org.varlink.service";

/// A reply, or a request, without parameters.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Nothing {}

/// A varlink call as it is sent.
#[derive(Debug, Serialize)]
pub struct SentCall<'a, P> {
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
pub struct SentReply<'a, P> {
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

/// Reply of `org.varlink.service.GetInfo`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Who made it.
    pub vendor: String,
    /// Which program it is.
    pub product: String,
    /// Of the program.
    pub version: String,
    /// Where to read more.
    pub url: String,
    /// Their names.
    pub interfaces: Vec<String>,
}

/// Parameters of `org.varlink.service.GetInterfaceDescription`.
#[derive(Debug, Serialize, Deserialize)]
pub struct InterfaceRef {
    /// Its name.
    pub interface: String,
}

/// Its reply.
#[derive(Debug, Serialize, Deserialize)]
pub struct InterfaceText {
    /// In varlink's own language.
    pub description: String,
}
