//! What the arbiter answers.

use serde::{Deserialize, Serialize};

use crate::deployment::{Deployment, Input, Kind};

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
    pub input: Input,
    /// What its apps register.
    pub registers: Kind,
    /// What a verdict names.
    pub executor: String,
    /// What a request's target may say: the flags of `load`.
    pub takes: Vec<String>,
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
    pub input: Input,
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

/// Reply of `Load` and `Replace`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Deployed {
    /// As it is now.
    pub deployment: Deployment,
}

/// One (app, hook) pair.
#[derive(Debug, Serialize, Deserialize)]
pub struct Unloaded {
    /// App name.
    pub app: String,
    /// Hook name.
    pub hook: String,
}

/// Reply of `UnloadAll`.
#[derive(Debug, Serialize, Deserialize)]
pub struct AllUnloaded {
    /// What was there.
    pub unloaded: Vec<Unloaded>,
}

/// Reply of `List`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Deployments {
    /// Of all apps.
    pub deployments: Vec<Deployment>,
}

/// Reply of `Show`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shown {
    /// The app.
    pub app: AppInfo,
}

/// Reply of `Hooks`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hooks {
    /// All of them.
    pub hooks: Vec<HookInfo>,
}

/// Reply of `Policies`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Policies {
    /// Of all hooks.
    pub policies: Vec<PolicyInfo>,
}

/// Reply of `MapGet`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The entry.
    pub entry: MapEntry,
}

/// Reply of `MapDump`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entries {
    /// In the order of their keys, as many as one message should hold.
    pub entries: Vec<MapEntry>,
    /// The key to go on with; none after the last.
    #[serde(default)]
    pub next: Option<u32>,
}

/// Reply of `Register`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registered {
    /// The index it has now.
    pub index: u32,
}
