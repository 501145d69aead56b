//! What the arbiter tells of apps, hooks, policies and Maps.

use serde::{Deserialize, Serialize};

use crate::deployment::{Deployment, Input, Kind, Word};

/// A Map of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapInfo {
    /// Its name in the policy.
    pub name: String,
    /// Number of entries.
    pub entries: u32,
    /// Bytes of one value.
    pub value_bytes: u32,
    /// Where it is pinned.
    pub path: String,
}

/// `show`: one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInfo {
    /// App name.
    pub app: String,
    /// Owner.
    pub uid: u32,
    /// Its deployments.
    pub deployments: Vec<Deployment>,
    /// Its Maps.
    pub maps: Vec<MapInfo>,
}

/// `hooks`: a hook on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookInfo {
    /// Hook name.
    pub name: String,
    /// What it schedules.
    pub input: Word<Input>,
    /// What its apps register.
    pub registers: Word<Kind>,
    /// What a verdict names.
    pub executor: String,
    /// What a request's target may say: the flags of `load`.
    pub takes: Vec<String>,
    /// What of it may change while a policy is live: the flags of `set`.
    #[serde(default)]
    pub changeable: Vec<String>,
    /// Whether this kernel can host it.
    pub available: bool,
    /// Why not.
    pub missing: Option<String>,
    /// What to do about it.
    pub advice: Option<String>,
}

/// `policies`: a policy that ships with a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// The name users type.
    pub name: String,
    /// What it schedules.
    pub input: Word<Input>,
    /// Hooks it fits.
    pub hooks: Vec<String>,
    /// What it does.
    pub summary: String,
}

/// An entry of a Map: its key, and its value in hex and, if it is one, as a `u64`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEntry {
    /// Index.
    pub key: u32,
    /// The value when Map values have 8 bytes.
    pub value: Option<u64>,
    /// The value's bytes, hex.
    pub bytes: String,
}
