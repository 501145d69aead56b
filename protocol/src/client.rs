//! The arbiter behind a daemon's socket.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::arbiter::{Arbiter, Registration};
use crate::deployment::Deployment;
use crate::failure::{Code, Failure, Result};
use crate::reply::{
    AllUnloaded, AppInfo, Deployed, Deployments, Entries, Entry, HookInfo, Hooks, MapEntry,
    Policies, PolicyInfo, Registered, Shown,
};
use crate::request::{
    AppRef, DeploymentRef, LoadRequest, MapDump, MapGet, MapRef, MapSet, Register, ReplaceRequest,
};
use crate::varlink::{Nothing, SERVICE, ServiceInfo};
use crate::wire::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a call may take: it can wait behind loads of others, each of which
/// compiles, links and is verified; slow under software emulation.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a daemon may take to say what it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A daemon. Each call has a connection of its own: a connection costs some
/// 20 us, and no call ever meets what an earlier one left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// The daemon that listens at `path`, if one does: the first call tells.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), timeout: CALL_TIMEOUT }
    }

    /// Finds out whether a daemon answers at `path`.
    ///
    /// # Errors
    /// [`Code::Unreachable`] when nobody listens there, [`Code::Timeout`] when
    /// somebody does but says nothing.
    pub fn connect(path: &Path) -> Result<Self> {
        let hello = Connection::open(path).and_then(|connection| {
            let method = format!("{SERVICE}.GetInfo");
            connection.call_method::<ServiceInfo>(&method, Nothing {}, &[], HELLO_TIMEOUT)
        });
        hello?;
        Ok(Self::at(path))
    }

    /// Limits how long each call may take (120 s otherwise).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn call<R: DeserializeOwned>(&self, method: &str, parameters: impl Serialize) -> Result<R> {
        self.call_with(method, parameters, &[]).map(|(reply, _)| reply)
    }

    fn call_with<R: DeserializeOwned>(
        &self,
        method: &str,
        parameters: impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(R, Vec<OwnedFd>)> {
        Ok(Connection::open(&self.path)?.call(method, parameters, fds, self.timeout)?)
    }

    fn descriptor(&self, method: &str, parameters: impl Serialize) -> Result<OwnedFd> {
        let (Nothing {}, mut fds) = self.call_with(method, parameters, &[])?;
        fds.pop().ok_or_else(|| {
            Failure::new(Code::Internal, format!("the reply of {method} carries no descriptor"))
        })
    }
}

impl Arbiter for Client {
    fn load(&self, request: &LoadRequest) -> Result<Deployment> {
        self.call("Load", request).map(|Deployed { deployment }| deployment)
    }

    fn replace(&self, request: &ReplaceRequest) -> Result<Deployment> {
        self.call("Replace", request).map(|Deployed { deployment }| deployment)
    }

    fn unload(&self, hook: &str, app: &str) -> Result<()> {
        let target = DeploymentRef { hook: hook.to_owned(), app: app.to_owned() };
        self.call("Unload", target).map(|Nothing {}| ())
    }

    fn unload_all(&self) -> Result<Vec<(String, String)>> {
        let AllUnloaded { unloaded } = self.call("UnloadAll", Nothing {})?;
        Ok(unloaded.into_iter().map(|gone| (gone.app, gone.hook)).collect())
    }

    fn list(&self) -> Result<Vec<Deployment>> {
        self.call("List", Nothing {}).map(|Deployments { deployments }| deployments)
    }

    fn show(&self, app: &str) -> Result<AppInfo> {
        self.call("Show", AppRef { app: app.to_owned() }).map(|Shown { app }| app)
    }

    fn hooks(&self) -> Result<Vec<HookInfo>> {
        self.call("Hooks", Nothing {}).map(|Hooks { hooks }| hooks)
    }

    fn policies(&self) -> Result<Vec<PolicyInfo>> {
        self.call("Policies", Nothing {}).map(|Policies { policies }| policies)
    }

    fn map_get(&self, app: &str, map: &str, key: u32) -> Result<MapEntry> {
        let what = MapGet { app: app.to_owned(), map: map.to_owned(), key };
        self.call("MapGet", what).map(|Entry { entry }| entry)
    }

    fn map_set(&self, app: &str, map: &str, key: u32, value: u64) -> Result<()> {
        let what = MapSet { app: app.to_owned(), map: map.to_owned(), key, value };
        self.call("MapSet", what).map(|Nothing {}| ())
    }

    fn map_dump(&self, app: &str, map: &str, from: u32) -> Result<Entries> {
        self.call("MapDump", MapDump { app: app.to_owned(), map: map.to_owned(), from })
    }

    fn policy_open(&self, app: &str, hook: &str) -> Result<OwnedFd> {
        let what = DeploymentRef { hook: hook.to_owned(), app: app.to_owned() };
        self.descriptor("PolicyOpen", what)
    }

    fn map_open(&self, app: &str, map: &str) -> Result<OwnedFd> {
        self.descriptor("MapOpen", MapRef { app: app.to_owned(), map: map.to_owned() })
    }

    fn register(
        &self,
        app: &str,
        hook: Option<&str>,
        what: Registration,
        index: Option<u32>,
    ) -> Result<u32> {
        let (tid, socket) = match &what {
            Registration::Socket(socket) => (None, Some(socket.as_fd())),
            Registration::Thread { tid } => (Some(*tid), None),
        };
        let (app, hook) = (app.to_owned(), hook.map(str::to_owned));
        let request = Register { app, hook, kind: what.kind(), tid, index };
        self.call_with("Register", request, socket.as_slice())
            .map(|(Registered { index }, _)| index)
    }
}
