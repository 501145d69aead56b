//! The trait every hook implements.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::SystemTime;

use syrup_protocol::{Kind, Registration};
use syrup_sdk::abi;

use crate::{Builtin, HookId, Input, Linked, Proto, Result};

/// The tenant a deployment belongs to.
#[derive(Debug, Clone)]
pub struct App {
    /// `[a-z0-9][a-z0-9-]{0,62}`
    pub name: String,
    /// Owner.
    pub uid: u32,
    /// The root of all pins, e.g. `/sys/fs/bpf/syrup`; hooks keep objects
    /// shared by all apps in a folder of their own below it, whose name starts
    /// with `_` and so is no app's.
    pub bpffs: PathBuf,
}

impl App {
    /// The app's pin folder.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.bpffs.join(&self.name)
    }

    /// Where this app's deployment at `hook` is pinned.
    #[must_use]
    pub fn hook_dir(&self, hook: HookId) -> PathBuf {
        self.dir().join(hook.name())
    }
}

/// Whether this kernel can host the hook now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// It can.
    Available,
    /// It cannot.
    Missing {
        /// What is missing, e.g. "CONFIG_SCHED_CLASS_EXT is not set in 6.12.9".
        what: String,
        /// What to do about it.
        advice: String,
    },
}

/// What a deployment is for: the inputs, and the executors known at load.
#[derive(Debug, Default)]
pub struct Target {
    /// Packet hooks: the port whose inputs the policy gets.
    pub port: Option<u16>,
    /// Packet hooks: the protocol; UDP when nothing else is known.
    pub proto: Option<Proto>,
    /// Adopt the executors of this running process (root only).
    pub pid: Option<i32>,
    /// Thread hook: the cores of the app; empty means all.
    pub cpus: Vec<u32>,
    /// Thread hook: share against other apps; 100 is normal.
    pub weight: Option<u32>,
}

/// Sums of the per-CPU counters of one deployment, by [`abi::syrup_counter`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters(pub [u64; abi::SYRUP_NR_COUNTERS as usize]);

impl Counters {
    /// The sum for one cause.
    #[must_use]
    pub fn get(&self, counter: abi::syrup_counter) -> u64 {
        self.0[counter as usize]
    }

    /// What was counted after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_sub(before.0[i])))
    }
}

/// How often each executor was chosen, by index.
pub type Verdicts = Vec<u64>;

/// Does the deployment do what it should?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The policy decides.
    Live,
    /// It is in order and nothing reaches it yet: what it waits for.
    Waiting(String),
    /// It is deployed but the default decides some or all inputs.
    Degraded(String),
    /// The kernel threw it out.
    Ejected(String),
}

/// One policy of one app, live at one hook: what the kernel says of it now.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The app's name.
    pub app: String,
    /// Owner.
    pub uid: u32,
    /// Where it runs.
    pub hook: HookId,
    /// The policy's name.
    pub policy: String,
    /// SHA-256 of the policy's object.
    pub sha256: [u8; 32],
    /// Kernel id of the policy's program.
    pub program_id: u32,
    /// How often it was replaced.
    pub generation: u32,
    /// When this policy became live.
    pub deployed_at: SystemTime,
    /// Packet hooks: protocol and port.
    pub port: Option<(Proto, u16)>,
    /// Process that owns the executors, if known.
    pub pid: Option<i32>,
    /// Executors `schedule()` may name now.
    pub nr_executors: u32,
    /// Thread hook: registered threads that are alive.
    pub nr_threads: Option<u32>,
    /// Thread hook: cores; empty means all.
    pub cpus: Vec<u32>,
    /// Counters since the first deployment of this app here.
    pub counters: Counters,
    /// Choices per executor.
    pub verdicts: Verdicts,
    /// Its state.
    pub health: Health,
}

/// A place in the stack where policies run. Implementations hold no state:
/// each call reads the pins, acts, and leaves pins that describe the result.
///
/// The caller holds the engine's lock, has checked names and permissions, and
/// has made `app.dir()`. Each method either did what it says or left the
/// kernel as it was.
pub trait Hook: Send + Sync {
    /// Its name.
    fn id(&self) -> HookId;

    /// What `schedule()` gets here.
    fn input(&self) -> Input;

    /// What a verdict names here, for people: "a socket of the reuseport group".
    fn executor(&self) -> &'static str;

    /// What its apps register.
    fn registers(&self) -> Kind;

    /// Can this kernel host it? Separate from [`Hook::deploy`] so that `doctor`
    /// and `hooks` can ask without a policy.
    fn probe(&self) -> Probe;

    /// The object with prologue, `extern schedule()` and epilogue, against
    /// which the engine links a policy.
    fn trusted_half(&self) -> &'static [u8];

    /// Policies that ship with this hook.
    fn policies(&self) -> &'static [Builtin];

    /// Shows `policy` to the verifier and lets it go: what `check` says of a
    /// policy, without a deployment and without pins.
    fn verify(&self, policy: &Linked) -> Result<()>;

    /// Makes `policy` live for an app that has none here. Everything is built
    /// under a temporary pin folder first and renamed into place last.
    fn deploy(&self, app: &App, policy: &Linked, target: &Target) -> Result<()>;

    /// Puts `policy` in the slot of the live one: one PROG_ARRAY update, so
    /// each input is decided by the old or the new one. An error means that the
    /// old one still does.
    fn replace(&self, app: &App, policy: &Linked) -> Result<()>;

    /// Takes the deployment away; inputs get the kernel's default again.
    /// Succeeds on what is left of a deployment that broke.
    fn remove(&self, app: &App) -> Result<()>;

    /// Adds a socket or a thread to a live deployment and returns its index. `index`
    /// `None` means the one it has, else the next free one; taking one that is in
    /// use replaces it.
    fn register(&self, app: &App, what: Registration, index: Option<u32>) -> Result<u32>;

    /// The program of the live policy: for its id and its statistics.
    fn program(&self, app: &App) -> Result<OwnedFd>;

    /// Reads a deployment back from its pins. `None` when the app has none here.
    fn read(&self, app: &App) -> Result<Option<Deployment>>;

    /// Removes what interrupted calls left behind (temporary folders, stale
    /// roots, objects of apps that are gone) and nothing else. Returns what was removed.
    fn collect_garbage(&self, bpffs: &std::path::Path) -> Result<Vec<PathBuf>>;
}
