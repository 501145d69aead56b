//! What can be asked of the arbiter. The engine implements it in-process, the
//! client over the daemon's socket; everything above sees this trait only.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use syrup_abi::protocol::Result;

pub use syrup_abi::protocol::{LoadRequest, PolicySource, ReplaceRequest};

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
    pub counters: std::collections::BTreeMap<String, u64>,
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

/// An entry of a Map: key and the value's bytes, hex unless it is a `u64`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEntry {
    /// Index.
    pub key: u32,
    /// The value when Map values have 8 bytes.
    pub value: Option<u64>,
    /// The value's bytes, hex.
    pub bytes: String,
}

/// What an app registers.
#[derive(Debug)]
pub enum Registration {
    /// A bound socket of a reuseport group.
    Socket(OwnedFd),
    /// A thread of the caller, or one the caller may schedule.
    Thread {
        /// Its id.
        tid: i32,
    },
}

/// The arbiter. Every method returns after the effect was observed in the kernel.
pub trait Arbiter {
    /// Deploys a policy; the deployment is degraded (not an error here) when
    /// its state says so.
    fn load(&self, request: &LoadRequest) -> Result<DeploymentInfo>;
    /// Replaces a policy atomically.
    fn replace(&self, request: &ReplaceRequest) -> Result<DeploymentInfo>;
    /// Takes a deployment away.
    fn unload(&self, hook: &str, app: &str) -> Result<()>;
    /// Takes everything away; returns (app, hook) pairs that were there.
    fn unload_all(&self) -> Result<Vec<(String, String)>>;
    /// All deployments, read from the kernel.
    fn list(&self) -> Result<Vec<DeploymentInfo>>;
    /// One app.
    fn show(&self, app: &str) -> Result<AppInfo>;
    /// The hooks of this machine.
    fn hooks(&self) -> Result<Vec<HookInfo>>;
    /// The shipped policies.
    fn policies(&self) -> Result<Vec<PolicyInfo>>;
    /// One entry of a Map.
    fn map_get(&self, app: &str, map: &str, key: u32) -> Result<MapEntry>;
    /// Writes one entry of a Map whose values have 8 bytes.
    fn map_set(&self, app: &str, map: &str, key: u32, value: u64) -> Result<()>;
    /// All entries of a Map.
    fn map_dump(&self, app: &str, map: &str) -> Result<Vec<MapEntry>>;
    /// An fd of a deployment's policy program: it names the deployment to the
    /// kernel (its id, its statistics) and lets nobody change it.
    fn policy_open(&self, app: &str, hook: &str) -> Result<OwnedFd>;
    /// An fd of a Map, for the app's processes.
    fn map_open(&self, app: &str, map: &str) -> Result<OwnedFd>;
    /// Registers a socket or a thread; returns its index.
    fn register(&self, app: &str, what: Registration, index: Option<u32>) -> Result<u32>;
}
