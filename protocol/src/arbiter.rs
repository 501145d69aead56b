//! What can be asked of the arbiter. The engine implements it in-process, the
//! client over the daemon's socket; everything above sees this trait only.

use std::os::fd::OwnedFd;

use crate::deployment::{Deployment, Kind};
use crate::failure::Result;
use crate::reply::{AppInfo, Entries, HookInfo, MapEntry, PolicyInfo};
use crate::request::{LoadRequest, ReplaceRequest};

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

impl Registration {
    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Socket(_) => Kind::Socket,
            Self::Thread { .. } => Kind::Thread,
        }
    }
}

/// The arbiter. Every method returns after the effect was observed in the kernel.
pub trait Arbiter {
    /// Deploys a policy; the deployment is degraded (not an error here) when
    /// its state says so.
    fn load(&self, request: &LoadRequest) -> Result<Deployment>;
    /// Replaces a policy atomically.
    fn replace(&self, request: &ReplaceRequest) -> Result<Deployment>;
    /// Takes a deployment away.
    fn unload(&self, hook: &str, app: &str) -> Result<()>;
    /// Takes everything away; returns (app, hook) pairs that were there.
    fn unload_all(&self) -> Result<Vec<(String, String)>>;
    /// All deployments, read from the kernel.
    fn list(&self) -> Result<Vec<Deployment>>;
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
    /// Entries of a Map, from a key on: as many as one reply should hold, and where the
    /// next one begins.
    fn map_dump(&self, app: &str, map: &str, from: u32) -> Result<Entries>;
    /// An fd of a deployment's policy program: it names the deployment to the
    /// kernel (its id, its statistics) and lets nobody change it.
    fn policy_open(&self, app: &str, hook: &str) -> Result<OwnedFd>;
    /// An fd of a Map, for the app's processes.
    fn map_open(&self, app: &str, map: &str) -> Result<OwnedFd>;
    /// Registers a socket or a thread, where the app has a policy that takes it (`hook`
    /// names which, when several do); returns its index.
    fn register(
        &self,
        app: &str,
        hook: Option<&str>,
        what: Registration,
        index: Option<u32>,
    ) -> Result<u32>;
}
