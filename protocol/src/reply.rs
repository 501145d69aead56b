//! What the arbiter answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A deployment as `list`, `show` and `status` print it: schema 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentInfo {
    /// App name.
    pub app: String,
    /// Owner.
    pub uid: u32,
    /// Hook name.
    pub hook: String,
    /// Policy name.
    pub policy: String,
    /// SHA-256 of the policy's object, hex.
    pub policy_sha256: String,
    /// Kernel id of the policy's program.
    pub program_id: u32,
    /// Number of replacements.
    pub generation: u32,
    /// Seconds since 1970.
    pub deployed_at: u64,
    /// "udp" or "tcp".
    pub proto: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Process that owns the executors.
    pub pid: Option<i32>,
    /// Executors `schedule()` may name now.
    pub executors: u32,
    /// Registered, living threads.
    pub threads: Option<u32>,
    /// Cores; empty means all.
    pub cpus: Vec<u32>,
    /// "live", "degraded" or "ejected".
    pub state: String,
    /// Why, when it is not live; what it waits for, when it is and nothing reaches it yet.
    pub reason: Option<String>,
    /// Counter name and sum.
    pub counters: BTreeMap<String, u64>,
    /// Choices by executor index.
    pub verdicts: Vec<u64>,
}

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
    pub deployments: Vec<DeploymentInfo>,
    /// Its Maps.
    pub maps: Vec<MapInfo>,
}

/// `hooks`: a hook on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookInfo {
    /// Hook name.
    pub name: String,
    /// "packet" or "thread".
    pub input: String,
    /// What a verdict names.
    pub executor: String,
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
    /// "packet" or "thread".
    pub input: String,
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
    pub deployment: DeploymentInfo,
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
    pub deployments: Vec<DeploymentInfo>,
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
    /// In the order of their keys.
    pub entries: Vec<MapEntry>,
}

/// Reply of `RegisterSocket` and `RegisterThread`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registered {
    /// The index it has now.
    pub index: u32,
}
