//! The messages only the daemon and its own client exchange; those that
//! applications send are in [`syrup_abi::protocol`].

use serde::{Deserialize, Serialize};

use crate::arbiter::{AppInfo, DeploymentInfo, HookInfo, MapEntry, PolicyInfo};

/// The interface in varlink's own language, for `varlinkctl` and its like.
pub(crate) const DESCRIPTION: &str = include_str!("org.syrup.Arbiter1.varlink");

/// The interface every varlink service has.
pub(crate) const SERVICE: &str = "org.varlink.service";

/// Reply of `Load` and `Replace`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Deployed {
    pub(crate) deployment: DeploymentInfo,
}

/// One (app, hook) pair.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Unloaded {
    pub(crate) app: String,
    pub(crate) hook: String,
}

/// Reply of `UnloadAll`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AllUnloaded {
    pub(crate) unloaded: Vec<Unloaded>,
}

/// Reply of `List`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Deployments {
    pub(crate) deployments: Vec<DeploymentInfo>,
}

/// Reply of `Show`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) app: AppInfo,
}

/// Reply of `Hooks`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hooks {
    pub(crate) hooks: Vec<HookInfo>,
}

/// Reply of `Policies`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Policies {
    pub(crate) policies: Vec<PolicyInfo>,
}

/// Parameters of `MapGet`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MapGet {
    pub(crate) app: String,
    pub(crate) map: String,
    pub(crate) key: u32,
}

/// Parameters of `MapSet`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MapSet {
    pub(crate) app: String,
    pub(crate) map: String,
    pub(crate) key: u32,
    pub(crate) value: u64,
}

/// Reply of `MapGet`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) entry: MapEntry,
}

/// Reply of `MapDump`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entries {
    pub(crate) entries: Vec<MapEntry>,
}

/// Reply of `org.varlink.service.GetInfo`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServiceInfo {
    pub(crate) vendor: String,
    pub(crate) product: String,
    pub(crate) version: String,
    pub(crate) url: String,
    pub(crate) interfaces: Vec<String>,
}

/// Parameters of `org.varlink.service.GetInterfaceDescription`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InterfaceRef {
    pub(crate) interface: String,
}

/// Its reply.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InterfaceText {
    pub(crate) description: String,
}
