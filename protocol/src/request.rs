//! What is asked of the arbiter.

use serde::{Deserialize, Serialize};

use crate::deployment::{Facts, Kind};

/// Longest C source, in bytes.
pub const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Longest policy object, in bytes.
pub const MAX_OBJECT_BYTES: usize = 4 << 20;

/// A policy as the requester has it: bytes and names, never a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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
    /// What it is for, by flag: see [`HookInfo::takes`](crate::HookInfo::takes).
    #[serde(default)]
    pub target: Facts,
    /// Where the app has a policy already: put this one in its place, instead of refusing.
    #[serde(default)]
    pub or_replace: bool,
}

/// Parameters of `Replace`: another policy in the place of the live one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
pub struct AppRef {
    /// App name.
    pub app: String,
}

/// Parameters of `PolicyOpen` and `Unload`: one deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeploymentRef {
    /// Hook name.
    pub hook: String,
    /// App name.
    pub app: String,
}

/// Parameters of `MapDump`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapDump {
    /// App name.
    pub app: String,
    /// Map name.
    pub map: String,
    /// The first key.
    #[serde(default)]
    pub from: u32,
}

/// Parameters of `MapOpen`: one Map. The reply carries its descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapRef {
    /// App name.
    pub app: String,
    /// Map name.
    pub map: String,
}

/// Parameters of `MapGet`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapGet {
    /// App name.
    pub app: String,
    /// Map name.
    pub map: String,
    /// Index.
    pub key: u32,
}

/// Parameters of `MapSet`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSet {
    /// App name.
    pub app: String,
    /// Map name.
    pub map: String,
    /// Index.
    pub key: u32,
    /// The new value.
    pub value: u64,
}

/// Parameters of `Register`. Of a socket, the message carries the descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// App name.
    pub app: String,
    /// Hook name; none: the one where the app has a policy that takes such a thing.
    #[serde(default)]
    pub hook: Option<String>,
    /// What is registered.
    pub kind: Kind,
    /// The thread's id in the daemon's pid namespace.
    #[serde(default)]
    pub tid: Option<i32>,
    /// The index; none: the one it has, else the next free one.
    #[serde(default)]
    pub index: Option<u32>,
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
