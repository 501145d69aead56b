//! What can be asked of the arbiter: the one list of calls, what each takes and what it is
//! answered. The engine answers them in-process, the client over the daemon's socket, and
//! the daemon reads them from there; adding one is adding a line to the list.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::deployment::{Deployment, Facts, Kind};
use crate::failure::{Code, Failure, Result};
use crate::info::{AppInfo, HookInfo, MapEntry, PolicyInfo};
use crate::policy::PolicySource;
use crate::varlink::Nothing;

/// `QUEUED` are calls that wait for those before them: they change pins, or take their time.
macro_rules! calls {
    ($($(#[$doc:meta])* $turn:ident $method:ident($parameters:ty) -> $reply:ty;)*) => {
        /// One thing that is asked: a method of the varlink interface and its parameters.
        #[derive(Debug, Serialize)]
        #[serde(untagged)]
        pub enum Call {
            $($(#[$doc])* $method($parameters),)*
        }

        /// What is answered, each to the call of its name.
        #[derive(Debug, Serialize)]
        #[serde(untagged)]
        pub enum Reply {
            $(#[doc = concat!("To [`Call::", stringify!($method), "`].")] $method($reply),)*
        }

        impl Call {
            /// The methods of the interface.
            pub const METHODS: &[&str] = &[$(stringify!($method)),*];

            /// Its method.
            #[must_use]
            pub fn method(&self) -> &'static str {
                match self {
                    $(Self::$method(_) => stringify!($method),)*
                }
            }

            /// Whether `method` waits for the calls before it.
            #[must_use]
            pub fn is_queued(method: &str) -> bool {
                match method {
                    $(stringify!($method) => turn::$turn,)*
                    _ => false,
                }
            }

            /// Reads a call; `None` when there is no such method.
            #[must_use]
            pub fn read(method: &str, parameters: &str) -> Option<serde_json::Result<Self>> {
                match method {
                    $(stringify!($method) => {
                        Some(serde_json::from_str(parameters).map(Self::$method))
                    })*
                    _ => None,
                }
            }

            /// Reads what it was answered.
            ///
            /// # Errors
            /// When it is no reply to this call.
            pub fn read_reply(&self, parameters: &str) -> serde_json::Result<Reply> {
                match self {
                    $(Self::$method(_) => {
                        serde_json::from_str(parameters).map(Reply::$method)
                    })*
                }
            }
        }
    };
}

mod turn {
    pub(super) const QUEUED: bool = true;
    pub(super) const AT_ONCE: bool = false;
}

calls! {
    /// Deploys a policy for an app that has none at this hook.
    QUEUED Load(LoadRequest) -> Deployed;
    /// Puts another policy in the place of the live one, atomically.
    QUEUED Replace(ReplaceRequest) -> Deployed;
    /// Changes parameters and settings of a live deployment.
    QUEUED Set(SetRequest) -> Deployed;
    /// Takes a deployment away.
    QUEUED Unload(DeploymentRef) -> Nothing;
    /// Takes away everything of the caller's; everything there is when root asks.
    QUEUED UnloadAll(NoParameters) -> AllUnloaded;
    /// Brings what is deployed up to date, and removes what nobody needs.
    QUEUED Tidy(NoParameters) -> Tidied;
    /// Tells of all deployments.
    AT_ONCE List(NoParameters) -> Deployments;
    /// Tells of one app.
    AT_ONCE Show(AppRef) -> Shown;
    /// Tells of the hooks of this machine.
    AT_ONCE Hooks(NoParameters) -> Hooks;
    /// Tells of the policies that ship with them.
    AT_ONCE Policies(NoParameters) -> Policies;
    /// Gives a descriptor of a deployment's policy program: it names the deployment to the
    /// kernel (its id, its statistics) and lets nobody change it.
    AT_ONCE PolicyOpen(DeploymentRef) -> Opened;
    /// Reads an entry of a Map.
    AT_ONCE MapGet(MapKey) -> Entry;
    /// Writes an entry of a Map whose values have 8 bytes.
    AT_ONCE MapSet(MapSet) -> Nothing;
    /// Reads entries of a Map, as many as one message should hold.
    AT_ONCE MapDump(MapPage) -> Entries;
    /// Gives a descriptor of a Map, for the app's processes.
    AT_ONCE MapOpen(MapRef) -> Opened;
    /// Makes a socket or a thread the app's.
    QUEUED Register(Register) -> Registered;
    /// Lets go of a socket or a thread of the app.
    QUEUED Unregister(Unregister) -> Nothing;
}

impl Call {
    /// The descriptors that are sent beside it.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Register(Register { socket, .. })
            | Self::Unregister(Unregister { socket, .. }) => {
                socket.iter().map(AsFd::as_fd).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Gives it the descriptors that came beside it.
    pub fn attach(&mut self, descriptors: Vec<OwnedFd>) {
        match self {
            Self::Register(Register { socket, .. })
            | Self::Unregister(Unregister { socket, .. }) => {
                *socket = descriptors;
            }
            _ => {}
        }
    }
}

impl Reply {
    /// Takes out the descriptors that are sent beside it.
    pub fn detach(&mut self) -> Vec<OwnedFd> {
        match self {
            Self::PolicyOpen(opened) | Self::MapOpen(opened) => {
                opened.fd.take().into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Gives it the descriptors that came beside it.
    pub fn attach(&mut self, mut descriptors: Vec<OwnedFd>) {
        if let Self::PolicyOpen(opened) | Self::MapOpen(opened) = self {
            opened.fd = descriptors.pop();
        }
    }
}

/// A policy for an app that has none at this hook.
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
    /// The user whose app it is, if not the caller's; for root to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
}

/// Another policy in the place of the live one.
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

/// What of a live deployment changes; the rest stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRequest {
    /// Hook name.
    pub hook: String,
    /// App name.
    pub app: String,
    /// `--set NAME=VALUE`
    #[serde(default)]
    pub params: Vec<(String, String)>,
    /// Of what it is for, by flag: see [`HookInfo::changeable`](crate::HookInfo::changeable).
    #[serde(default)]
    pub target: Facts,
}

/// Of a call without any. What a newer client narrows a call down with is refused rather
/// than not heard.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

/// One app.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppRef {
    /// App name.
    pub app: String,
}

/// One deployment, there or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeploymentRef {
    /// App name.
    pub app: String,
    /// Hook name.
    pub hook: String,
}

/// One Map.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapRef {
    /// App name.
    pub app: String,
    /// Map name.
    pub map: String,
}

/// A Map from a key on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapPage {
    /// App name.
    pub app: String,
    /// Map name.
    pub map: String,
    /// The first key.
    #[serde(default)]
    pub from: u32,
}

/// One key of a Map.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapKey {
    /// App name.
    pub app: String,
    /// Map name.
    pub map: String,
    /// Index.
    pub key: u32,
}

/// A key of a Map and its new value.
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

    fn parts(self) -> (Option<i32>, Vec<OwnedFd>) {
        match self {
            Self::Socket(socket) => (None, vec![socket]),
            Self::Thread { tid } => (Some(tid), Vec::new()),
        }
    }
}

/// A [`Registration`] as it travels.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// App name.
    pub app: String,
    /// Hook name; none: the one where the app has a policy that takes such a thing.
    #[serde(default)]
    pub hook: Option<String>,
    /// What is registered.
    pub kind: Kind,
    /// The thread's id in the caller's pid namespace.
    #[serde(default)]
    pub tid: Option<i32>,
    /// The index; none: the one it has, else the next free one.
    #[serde(default)]
    pub index: Option<u32>,
    /// The socket, beside the text.
    #[serde(skip)]
    pub socket: Vec<OwnedFd>,
}

impl Register {
    /// What is registered.
    ///
    /// # Errors
    /// [`Code::Usage`] when it is not one socket or one thread.
    pub fn take(&mut self) -> Result<Registration> {
        arrived(self.kind, self.tid, &mut self.socket)
    }
}

/// A [`Registration`] that ends, as it travels.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unregister {
    /// App name.
    pub app: String,
    /// Hook name; none: the one where the app has a policy that takes such a thing.
    #[serde(default)]
    pub hook: Option<String>,
    /// What was registered.
    pub kind: Kind,
    /// The thread's id in the caller's pid namespace.
    #[serde(default)]
    pub tid: Option<i32>,
    /// The socket, beside the text.
    #[serde(skip)]
    pub socket: Vec<OwnedFd>,
}

impl Unregister {
    /// What was registered.
    ///
    /// # Errors
    /// [`Code::Usage`] when it is not one socket or one thread.
    pub fn take(&mut self) -> Result<Registration> {
        arrived(self.kind, self.tid, &mut self.socket)
    }
}

fn arrived(kind: Kind, tid: Option<i32>, socket: &mut Vec<OwnedFd>) -> Result<Registration> {
    let wrong = match (kind, tid, socket.len()) {
        (Kind::Socket, None, 1) => match socket.pop() {
            Some(socket) => return Ok(Registration::Socket(socket)),
            None => "no descriptor",
        },
        (Kind::Thread, Some(tid), 0) => return Ok(Registration::Thread { tid }),
        (Kind::Socket, ..) => "a socket is named by one descriptor beside the call",
        (Kind::Thread, ..) => "a thread is named by its tid, without descriptors",
    };
    Err(Failure::new(Code::Usage, wrong))
}

/// What became of a policy.
#[derive(Debug, Serialize, Deserialize)]
pub struct Deployed {
    /// As it is now.
    pub deployment: Deployment,
}

/// What was unloaded.
#[derive(Debug, Serialize, Deserialize)]
pub struct AllUnloaded {
    /// What was there.
    pub unloaded: Vec<DeploymentRef>,
}

/// What was put in order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tidied {
    /// Deployments whose executors changed.
    pub changed: Vec<DeploymentRef>,
    /// Paths that were removed: leftovers of interrupted calls, and deployments of ended apps.
    pub removed: Vec<String>,
}

/// Deployments.
#[derive(Debug, Serialize, Deserialize)]
pub struct Deployments {
    /// Of all apps.
    pub deployments: Vec<Deployment>,
}

/// An app.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shown {
    /// As it is now.
    pub app: AppInfo,
}

/// Hooks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hooks {
    /// All of them.
    pub hooks: Vec<HookInfo>,
}

/// Shipped policies.
#[derive(Debug, Serialize, Deserialize)]
pub struct Policies {
    /// Of all hooks.
    pub policies: Vec<PolicyInfo>,
}

/// A descriptor.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Opened {
    /// Beside the text.
    #[serde(skip)]
    pub fd: Option<OwnedFd>,
}

/// An entry of a Map.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The entry.
    pub entry: MapEntry,
}

/// Entries of a Map.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entries {
    /// In the order of their keys, as many as one message should hold.
    pub entries: Vec<MapEntry>,
    /// The key to go on with; none after the last.
    #[serde(default)]
    pub next: Option<u32>,
}

/// What was registered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registered {
    /// The index it has now.
    pub index: u32,
}

/// Asks, and takes the reply out of its enum.
macro_rules! ask {
    ($arbiter:expr, $method:ident($parameters:expr)) => {
        match $arbiter.answer(Call::$method($parameters)) {
            Ok(Reply::$method(reply)) => Ok(reply),
            Ok(_) => {
                let other = concat!("another call than ", stringify!($method), " was answered");
                Err(Failure::new(Code::Internal, other))
            }
            Err(failure) => Err(failure),
        }
    };
}

/// The arbiter: what answers calls. The other methods ask one each, in the words of who asks.
pub trait Arbiter {
    /// Does what is asked; answers after the effect was observed in the kernel.
    ///
    /// # Errors
    /// Why it was not done.
    fn answer(&self, call: Call) -> Result<Reply>;

    /// Deploys a policy; the deployment is degraded (not an error here) when its state says so.
    fn load(&self, request: &LoadRequest) -> Result<Deployment> {
        ask!(self, Load(request.clone())).map(|reply| reply.deployment)
    }

    /// Replaces a policy atomically.
    fn replace(&self, request: &ReplaceRequest) -> Result<Deployment> {
        ask!(self, Replace(request.clone())).map(|reply| reply.deployment)
    }

    /// Changes parameters and settings of a live deployment.
    fn set(&self, request: &SetRequest) -> Result<Deployment> {
        ask!(self, Set(request.clone())).map(|reply| reply.deployment)
    }

    /// Takes a deployment away.
    fn unload(&self, hook: &str, app: &str) -> Result<()> {
        ask!(self, Unload(DeploymentRef { app: app.into(), hook: hook.into() })).map(drop)
    }

    /// Takes everything away that is the caller's; returns what was there.
    fn unload_all(&self) -> Result<Vec<DeploymentRef>> {
        ask!(self, UnloadAll(NoParameters {})).map(|reply| reply.unloaded)
    }

    /// Brings what is deployed up to date, and removes what nobody needs; for root to ask.
    fn tidy(&self) -> Result<Tidied> {
        ask!(self, Tidy(NoParameters {}))
    }

    /// All deployments, read from the kernel.
    fn list(&self) -> Result<Vec<Deployment>> {
        ask!(self, List(NoParameters {})).map(|reply| reply.deployments)
    }

    /// One app.
    fn show(&self, app: &str) -> Result<AppInfo> {
        ask!(self, Show(AppRef { app: app.into() })).map(|reply| reply.app)
    }

    /// The hooks of this machine.
    fn hooks(&self) -> Result<Vec<HookInfo>> {
        ask!(self, Hooks(NoParameters {})).map(|reply| reply.hooks)
    }

    /// The shipped policies.
    fn policies(&self) -> Result<Vec<PolicyInfo>> {
        ask!(self, Policies(NoParameters {})).map(|reply| reply.policies)
    }

    /// A descriptor of a deployment's policy program.
    fn policy_open(&self, app: &str, hook: &str) -> Result<OwnedFd> {
        ask!(self, PolicyOpen(DeploymentRef { app: app.into(), hook: hook.into() }))
            .and_then(|reply| reply.fd.ok_or_else(no_descriptor))
    }

    /// One entry of a Map.
    fn map_get(&self, app: &str, map: &str, key: u32) -> Result<MapEntry> {
        ask!(self, MapGet(MapKey { app: app.into(), map: map.into(), key }))
            .map(|reply| reply.entry)
    }

    /// Writes one entry of a Map whose values have 8 bytes.
    fn map_set(&self, app: &str, map: &str, key: u32, value: u64) -> Result<()> {
        ask!(self, MapSet(MapSet { app: app.into(), map: map.into(), key, value })).map(drop)
    }

    /// Entries of a Map, from a key on: as many as one reply should hold, and where the
    /// next one begins.
    fn map_dump(&self, app: &str, map: &str, from: u32) -> Result<Entries> {
        ask!(self, MapDump(MapPage { app: app.into(), map: map.into(), from }))
    }

    /// A descriptor of a Map.
    fn map_open(&self, app: &str, map: &str) -> Result<OwnedFd> {
        ask!(self, MapOpen(MapRef { app: app.into(), map: map.into() }))
            .and_then(|reply| reply.fd.ok_or_else(no_descriptor))
    }

    /// Registers a socket or a thread, where the app has a policy that takes it (`hook`
    /// names which, when several do); returns its index.
    fn register(
        &self,
        app: &str,
        hook: Option<&str>,
        what: Registration,
        index: Option<u32>,
    ) -> Result<u32> {
        let (app, hook, kind) = (app.into(), hook.map(str::to_owned), what.kind());
        let (tid, socket) = what.parts();
        ask!(self, Register(Register { app, hook, kind, tid, index, socket }))
            .map(|reply| reply.index)
    }

    /// Lets go of a socket or a thread: no verdict reaches it any more, the kernel's default
    /// has it, and its index is free.
    fn unregister(&self, app: &str, hook: Option<&str>, what: Registration) -> Result<()> {
        let (app, hook, kind) = (app.into(), hook.map(str::to_owned), what.kind());
        let (tid, socket) = what.parts();
        ask!(self, Unregister(Unregister { app, hook, kind, tid, socket })).map(drop)
    }
}

fn no_descriptor() -> Failure {
    Failure::new(Code::Internal, "the reply carries no descriptor")
}
