//! The engine: one code path behind the daemon and behind `syrupctl` as root.
//!
//! It keeps no state. A call that changes something takes the lock, reads the pins, acts
//! through a hook, and reads the pins again for its answer; so a process that dies at
//! any moment leaves nothing that the next one does not understand.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::mount::MountFlags;
use syrup_hook::{
    App, Deployment, Error, Health, Hook, HookId, Input, Linked, POLICY_PROGRAM, Probe, Proto,
    Target, pin,
};
use syrup_protocol::{
    AppInfo, Arbiter, Code, DeploymentInfo, Failure, HookInfo, LoadRequest, MapEntry, PolicyInfo,
    PolicySource, Registration, ReplaceRequest, Result, names,
};
use syrup_sdk::abi;

use crate::hooks;
use crate::maps::{Maps, own};
use crate::policy::{self, Prepared, verifier};

/// Where everything is pinned unless a flag says otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/syrup";
const BPFFS_MOUNT: &str = "/sys/fs/bpf";

/// How long `load` watches a thread policy that already has threads, to say at
/// once when it never chooses a queue.
const OBSERVE: Duration = Duration::from_millis(500);

/// How long a call waits for another process that holds the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Who asks. Root may do everything; others act on their own apps only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// From the kernel: the peer's credentials, or our own.
    pub uid: u32,
    /// The asking process.
    pub pid: i32,
}

impl Caller {
    /// Root, in this process.
    pub const ROOT: Self = Self { uid: 0, pid: 0 };
}

/// What a start found: see [`Engine::recover`].
#[derive(Debug, Default)]
pub struct Recovery {
    /// Deployments read back from their pins.
    pub adopted: Vec<DeploymentInfo>,
    /// Leftovers of interrupted calls that were removed.
    pub removed: Vec<PathBuf>,
}

/// What [`Engine::check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// "packet" or "thread".
    pub input: String,
    /// Instructions of the policy alone.
    pub instructions: usize,
    /// Maps it names.
    pub maps: Vec<String>,
    /// Parameters it has.
    pub params: Vec<String>,
    /// Whether the kernel's verifier saw it; if not, why.
    pub verified: std::result::Result<(), String>,
}

/// The arbiter, in this process.
#[derive(Debug, Clone)]
pub struct Engine {
    bpffs: PathBuf,
}

/// The engine on behalf of a caller.
#[derive(Debug, Clone)]
pub struct AsCaller {
    engine: Engine,
    caller: Caller,
}

impl Engine {
    /// An engine whose pins live below `bpffs`. Makes nothing yet.
    ///
    /// # Errors
    /// [`Code::Unsupported`] when `bpffs` is not on a mounted BPF file system.
    pub fn new(bpffs: PathBuf) -> Result<Self> {
        let mount = bpffs.parent().unwrap_or(Path::new("/"));
        let is_bpffs = || -> Result<bool> {
            let stat = rustix::fs::statfs(mount).map_err(|e| {
                Failure::new(Code::Unsupported, format!("cannot look at {}: {e}", mount.display()))
                    .advise("mount -t bpf bpf /sys/fs/bpf")
            })?;
            Ok(stat.f_type == BPF_FS_MAGIC)
        };
        // Where every BPF tool expects it, root mounts it as they do: a machine
        // without an init that did so is no reason to refuse.
        if mount == Path::new(BPFFS_MOUNT) && !is_bpffs()? && rustix::process::geteuid().is_root() {
            rustix::mount::mount("bpf", mount, "bpf", MountFlags::empty(), None).map_err(|e| {
                Failure::new(Code::Unsupported, format!("cannot mount {BPFFS_MOUNT}: {e}"))
                    .advise("mount -t bpf bpf /sys/fs/bpf")
            })?;
            log::info!("mounted the BPF file system at {BPFFS_MOUNT}");
        }
        if !is_bpffs()? {
            return Err(Failure::new(
                Code::Unsupported,
                format!("{} is not a BPF file system", mount.display()),
            )
            .advise(format!("mount -t bpf bpf {}", mount.display())));
        }
        Ok(Self { bpffs })
    }

    /// The engine on behalf of `caller`.
    #[must_use]
    pub fn as_caller(&self, caller: Caller) -> AsCaller {
        AsCaller { engine: self.clone(), caller }
    }

    /// Reads back what is deployed and removes what interrupted calls left.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn recover(&self) -> Result<Recovery> {
        let _lock = self.lock()?;
        let mut removed = Vec::new();
        for hook in hooks::all() {
            removed.extend(hook.collect_garbage(&self.bpffs)?);
        }
        for app in self.app_names()? {
            let app = self.app(&app);
            if self.deployed_hooks(&app).is_empty() {
                removed.push(app.dir());
                self.forget(&app)?;
            }
        }
        self.remove_root_if_empty();
        Ok(Recovery { adopted: self.read_all()?, removed })
    }

    /// Compiles and checks a policy for `hook`, and has the verifier look at it
    /// where this process may; deploys nothing.
    ///
    /// # Errors
    /// What `load` would say of the policy.
    pub fn check(
        policy: &PolicySource,
        hook: &str,
        params: &[(String, String)],
    ) -> Result<CheckReport> {
        let hook = hooks::get(hook)?;
        let prepared = policy::prepare(hook, policy, params)?;
        let verified = if !rustix::process::geteuid().is_root() {
            Err("only root can ask the verifier".to_owned())
        } else if let Probe::Missing { what, .. } = hook.probe() {
            Err(format!("this kernel cannot: {what}"))
        } else {
            let linked = prepared.link_with(Default::default());
            hook.verify(&linked).map_err(|e| prepared.explain(e))?;
            Ok(())
        };
        let checked = prepared.checked;
        Ok(CheckReport {
            input: checked.input.to_string(),
            instructions: checked.instructions,
            maps: checked.maps,
            params: checked.params,
            verified,
        })
    }

    /// One process at a time. The lock is on the folder above ours, which no
    /// call removes; the kernel drops it when the holder dies.
    fn lock(&self) -> Result<File> {
        let path = self.bpffs.parent().unwrap_or(Path::new("/"));
        let failed = |e: io::Error| {
            Failure::new(Code::Internal, format!("cannot lock {}: {e}", path.display()))
        };
        let file = File::open(path).map_err(failed)?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(Failure::new(
                        Code::Timeout,
                        format!("another process holds the lock on {}", path.display()),
                    )
                    .advise("find it with: fuser -v /sys/fs/bpf"));
                }
                Err(e) => return Err(failed(e.into())),
            }
        }
    }

    fn app_names(&self) -> Result<Vec<String>> {
        let folders = pin::app_folders(&self.bpffs)?;
        Ok(folders
            .iter()
            .filter_map(|folder| folder.file_name()?.to_str())
            .filter(|name| names::check_app(name).is_ok())
            .map(str::to_owned)
            .collect())
    }

    /// An app with the owner its records name; root when it has none yet.
    fn app(&self, name: &str) -> App {
        let mut app = App { name: name.to_owned(), uid: 0, bpffs: self.bpffs.clone() };
        for &hook in HookId::ALL {
            if let Ok(Some(record)) = pin::read_record(&app.hook_dir(hook)) {
                app.uid = record.uid;
                break;
            }
        }
        app
    }

    /// Hooks at which the app has a pin folder, broken or not.
    fn deployed_hooks(&self, app: &App) -> Vec<HookId> {
        HookId::ALL.iter().copied().filter(|&hook| app.hook_dir(hook).is_dir()).collect()
    }

    fn read_all(&self) -> Result<Vec<DeploymentInfo>> {
        let mut all = Vec::new();
        for name in self.app_names()? {
            all.extend(self.read_app(&self.app(&name))?);
        }
        Ok(all)
    }

    fn read_app(&self, app: &App) -> Result<Vec<DeploymentInfo>> {
        let mut deployments = Vec::new();
        for id in self.deployed_hooks(app) {
            let hook = hooks::get(id.name())?;
            if let Some(deployment) = hook.read(app)? {
                deployments.push(info(deployment));
            }
        }
        Ok(deployments)
    }

    fn read_one(&self, hook: &dyn Hook, app: &App) -> Result<Deployment> {
        hook.read(app)?.ok_or_else(|| Error::not_deployed(&app.name, hook.id()).into())
    }

    /// Removes an app's folder: it has no deployment left.
    fn forget(&self, app: &App) -> Result<()> {
        pin::remove_tree(&app.dir())?;
        Ok(())
    }

    fn remove_root_if_empty(&self) {
        // Fails while anything is in it, which is the point.
        let _ = fs::remove_dir(&self.bpffs);
    }

    fn make_app_folder(&self, app: &App) -> Result<()> {
        for dir in [&self.bpffs, &app.dir()] {
            match fs::create_dir(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    let code = if e.kind() == io::ErrorKind::PermissionDenied {
                        Code::NotPermitted
                    } else {
                        Code::Internal
                    };
                    return Err(Failure::new(code, format!("cannot make {}: {e}", dir.display())));
                }
                // Root's, so that a tenant cannot move pins; searchable, so
                // that it reaches its Maps.
                _ => own(dir, 0, 0o711)?,
            }
        }
        Ok(())
    }

    fn unload_locked(&self, app: &App, hook: &dyn Hook) -> Result<()> {
        hook.remove(app)?;
        if self.deployed_hooks(app).is_empty() {
            self.forget(app)?;
        }
        self.remove_root_if_empty();
        Ok(())
    }

    /// Waits until a thread policy with threads has seen inputs, so that `load`
    /// can say that it decides nothing.
    fn observe(&self, hook: &dyn Hook, app: &App) -> Result<Deployment> {
        let deadline = Instant::now() + OBSERVE;
        loop {
            let deployment = self.read_one(hook, app)?;
            let watched = hook.input() == Input::Thread && deployment.nr_threads.unwrap_or(0) > 0;
            let seen = deployment.counters.get(abi::SYRUP_CHOSEN) > 0;
            if !watched || seen || deployment.health != Health::Live || Instant::now() >= deadline {
                return Ok(deployment);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Prepared {
    /// What a hook needs, with the app's Maps.
    fn link_with(&self, maps: std::collections::BTreeMap<String, OwnedFd>) -> Linked {
        Linked {
            name: self.name.clone(),
            sha256: self.sha256,
            object: self.linked.clone(),
            maps,
            thread: self.checked.thread,
        }
    }

    /// A hook's error, with the user's file in the verifier's words.
    fn explain(&self, error: syrup_hook::Error) -> Failure {
        match error {
            syrup_hook::Error::Verifier { program, log, .. } if program == POLICY_PROGRAM => {
                verifier::error(&self.file_name, &log, self.source.as_deref())
            }
            other => other.into(),
        }
    }
}

impl AsCaller {
    fn is_root(&self) -> bool {
        self.caller.uid == 0
    }

    /// An app the caller may change. A name nobody uses is free for anybody.
    fn own_app(&self, name: &str) -> Result<App> {
        names::check_app(name)?;
        let mut app = self.engine.app(name);
        if self.engine.deployed_hooks(&app).is_empty() {
            app.uid = self.caller.uid;
        }
        if !self.is_root() && app.uid != self.caller.uid {
            return Err(Failure::new(
                Code::NotPermitted,
                format!("app '{name}' belongs to user {}", app.uid),
            )
            .advise("choose another app name, or ask its owner or root"));
        }
        Ok(app)
    }

    fn may_bring(&self, policy: &PolicySource) -> Result<()> {
        match policy {
            // clang reads any file its user can read into the object or its
            // diagnostics, so the daemon compiles for root only.
            PolicySource::Source { file_name, .. } if !self.is_root() => Err(Failure::new(
                Code::NotPermitted,
                format!("{file_name}: the daemon compiles C for root only"),
            )
            .advise("give a compiled policy object (FILE.o) or a built-in policy's name")),
            _ => Ok(()),
        }
    }

    fn target(&self, hook: &dyn Hook, request: &LoadRequest) -> Result<Target> {
        let proto = match &request.proto {
            Some(text) => Some(text.parse::<Proto>().map_err(|e| Failure::new(Code::Usage, e))?),
            None => None,
        };
        let wrong = |flag: &str| {
            Failure::new(Code::Usage, format!("{flag} means nothing at hook {}", hook.id()))
        };
        match hook.input() {
            Input::Thread if request.port.is_some() => return Err(wrong("--port")),
            Input::Thread if proto.is_some() => return Err(wrong("--proto")),
            Input::Packet if !request.cpus.is_empty() => return Err(wrong("--cpus")),
            Input::Packet if request.weight.is_some() => return Err(wrong("--weight")),
            _ => {}
        }
        if !self.is_root() && (request.pid.is_some() || request.port.is_some()) {
            return Err(Failure::new(
                Code::NotPermitted,
                "only root may name a port or a process".to_owned(),
            )
            .advise("let the application register its sockets and threads: syr_register_socket(), syr_register_thread()"));
        }
        if request.weight.is_some_and(|weight| !(1..=10_000).contains(&weight)) {
            return Err(Failure::new(Code::Usage, "--weight is 1 to 10000 (100 is normal)"));
        }
        Ok(Target {
            port: request.port,
            proto,
            pid: request.pid,
            cpus: request.cpus.clone(),
            weight: request.weight,
        })
    }
}

impl Arbiter for AsCaller {
    fn load(&self, request: &LoadRequest) -> Result<DeploymentInfo> {
        let hook = hooks::get(&request.hook)?;
        names::check_app(&request.app)?;
        self.may_bring(&request.policy)?;
        let target = self.target(hook, request)?;
        // The source's faults come first: they show on any kernel.
        let prepared = policy::prepare(hook, &request.policy, &request.params)?;
        if let Probe::Missing { what, advice } = hook.probe() {
            return Err(Failure::new(
                Code::Unsupported,
                format!("hook {} is not available: {what}", hook.id()),
            )
            .advise(advice));
        }

        let _lock = self.engine.lock()?;
        let app = self.own_app(&request.app)?;
        if app.hook_dir(hook.id()).is_dir() {
            return Err(already(&app, hook));
        }
        self.engine.make_app_folder(&app)?;
        let deployed = (|| -> Result<()> {
            let (maps, created) =
                Maps::of(&app).ensure(&prepared.linked, &prepared.checked.maps)?;
            hook.deploy(&app, &prepared.link_with(maps), &target)
                .map_err(|e| prepared.explain(e))?;
            created.keep();
            Ok(())
        })();
        if deployed.is_err() && self.engine.deployed_hooks(&app).is_empty() {
            self.engine.forget(&app)?;
            self.engine.remove_root_if_empty();
        }
        deployed?;
        self.engine.observe(hook, &app).map(info).map_err(|e| live_but(&app, hook, e))
    }

    fn replace(&self, request: &ReplaceRequest) -> Result<DeploymentInfo> {
        let hook = hooks::get(&request.hook)?;
        names::check_app(&request.app)?;
        self.may_bring(&request.policy)?;
        let prepared = policy::prepare(hook, &request.policy, &request.params)?;

        let _lock = self.engine.lock()?;
        let app = self.own_app(&request.app)?;
        if !app.hook_dir(hook.id()).is_dir() {
            return Err(Error::not_deployed(&app.name, hook.id()).into());
        }
        let (maps, created) = Maps::of(&app).ensure(&prepared.linked, &prepared.checked.maps)?;
        hook.replace(&app, &prepared.link_with(maps)).map_err(|e| prepared.explain(e))?;
        created.keep();
        self.engine.read_one(hook, &app).map(info).map_err(|e| live_but(&app, hook, e))
    }

    fn unload(&self, hook: &str, app: &str) -> Result<()> {
        let hook = hooks::get(hook)?;
        let _lock = self.engine.lock()?;
        let app = self.own_app(app)?;
        if !app.hook_dir(hook.id()).is_dir() {
            return Err(Error::not_deployed(&app.name, hook.id()).into());
        }
        self.engine.unload_locked(&app, hook)
    }

    fn unload_all(&self) -> Result<Vec<(String, String)>> {
        let _lock = self.engine.lock()?;
        let mut gone = Vec::new();
        for name in self.engine.app_names()? {
            let app = self.engine.app(&name);
            if !self.is_root() && app.uid != self.caller.uid {
                continue;
            }
            for id in self.engine.deployed_hooks(&app) {
                self.engine.unload_locked(&app, hooks::get(id.name())?)?;
                gone.push((name.clone(), id.to_string()));
            }
        }
        if self.is_root() {
            for hook in hooks::all() {
                hook.collect_garbage(&self.engine.bpffs)?;
            }
            self.engine.remove_root_if_empty();
        }
        Ok(gone)
    }

    fn list(&self) -> Result<Vec<DeploymentInfo>> {
        let _lock = self.engine.lock()?;
        self.engine.read_all()
    }

    fn show(&self, app: &str) -> Result<AppInfo> {
        names::check_app(app)?;
        let _lock = self.engine.lock()?;
        let app = self.engine.app(app);
        let deployments = self.engine.read_app(&app)?;
        if deployments.is_empty() {
            return Err(no_app(&app.name));
        }
        Ok(AppInfo { maps: Maps::of(&app).list()?, uid: app.uid, app: app.name, deployments })
    }

    fn hooks(&self) -> Result<Vec<HookInfo>> {
        Ok(hooks::infos())
    }

    fn policies(&self) -> Result<Vec<PolicyInfo>> {
        Ok(hooks::policies())
    }

    fn map_get(&self, app: &str, map: &str, key: u32) -> Result<MapEntry> {
        let app = self.deployed_app(app)?;
        Maps::of(&app).get(&app.name, map, key)
    }

    fn map_set(&self, app: &str, map: &str, key: u32, value: u64) -> Result<()> {
        let app = self.deployed_app(app)?;
        Maps::of(&app).set(&app.name, map, key, value)
    }

    fn map_dump(&self, app: &str, map: &str) -> Result<Vec<MapEntry>> {
        let app = self.deployed_app(app)?;
        Maps::of(&app).dump(&app.name, map)
    }

    fn policy_open(&self, app: &str, hook: &str) -> Result<OwnedFd> {
        let hook = hooks::get(hook)?;
        let _lock = self.engine.lock()?;
        let app = self.deployed_app(app)?;
        if !app.hook_dir(hook.id()).is_dir() {
            return Err(Error::not_deployed(&app.name, hook.id()).into());
        }
        Ok(hook.program(&app)?)
    }

    fn map_open(&self, app: &str, map: &str) -> Result<OwnedFd> {
        let app = self.deployed_app(app)?;
        Maps::of(&app).open(&app.name, map)
    }

    fn register(&self, app: &str, what: Registration, index: Option<u32>) -> Result<u32> {
        let _lock = self.engine.lock()?;
        let app = self.deployed_app(app)?;
        if let Registration::Thread { tid } = what {
            self.may_schedule(tid)?;
        }
        let kind = what.kind();
        let (mut deployed, missing): (Vec<_>, Vec<_>) = hooks::all()
            .into_iter()
            .filter(|hook| hook.registers() == kind)
            .partition(|hook| app.hook_dir(hook.id()).is_dir());
        match (deployed.pop(), missing.last()) {
            (Some(hook), _) => Ok(hook.register(&app, what, index)?),
            (None, Some(hook)) => Err(Error::not_deployed(&app.name, hook.id()).into()),
            (None, None) => {
                Err(Failure::new(Code::Internal, format!("no hook takes a {kind:?} by itself")))
            }
        }
    }
}

impl AsCaller {
    /// An app that exists and is the caller's.
    fn deployed_app(&self, name: &str) -> Result<App> {
        let app = self.own_app(name)?;
        if self.engine.deployed_hooks(&app).is_empty() {
            return Err(no_app(name));
        }
        Ok(app)
    }

    /// A thread of the caller's own process or user; root may schedule any.
    fn may_schedule(&self, tid: i32) -> Result<()> {
        let owner = owner_of(tid).ok_or_else(|| {
            Failure::new(Code::Conflict, format!("there is no thread {tid}"))
                .advise("register a thread while it runs, from its own process")
        })?;
        if self.is_root() || owner == self.caller.uid {
            return Ok(());
        }
        Err(Failure::new(Code::NotPermitted, format!("thread {tid} belongs to user {owner}")))
    }
}

/// The effective user of a thread.
fn owner_of(tid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

/// A second `load`: for another policy, or for executors that were not there before.
fn already(app: &App, hook: &dyn Hook) -> Failure {
    let what = format!("app '{}' has a policy at {} already", app.name, hook.id());
    let replace = format!("syrupctl replace {} --app {} --policy ...", hook.id(), app.name);
    let unload = format!("syrupctl unload {} --app {}", hook.id(), app.name);
    let without_executors =
        hook.read(app).ok().flatten().is_some_and(|deployment| {
            deployment.nr_executors == 0 || deployment.nr_threads == Some(0)
        });
    Failure::new(Code::Conflict, what).advise(if without_executors {
        format!(
            "'{replace}' changes the policy; it has no executors, and adopts some when it is loaded \
             again after '{unload}'"
        )
    } else {
        format!("{replace}, or {unload}")
    })
}

/// What failed after a policy became live, which it stays.
fn live_but(app: &App, hook: &dyn Hook, error: Failure) -> Failure {
    let Failure { message, .. } = &error;
    Failure {
        message: format!(
            "the policy of app '{}' is live at {}, but cannot be read back: {message}",
            app.name,
            hook.id()
        ),
        ..error
    }
}

fn no_app(app: &str) -> Failure {
    Failure::new(Code::Conflict, format!("there is no app '{app}'"))
        .advise("an app exists while it has a deployment: 'syrupctl list' shows them")
}

fn info(deployment: Deployment) -> DeploymentInfo {
    let (state, reason) = match deployment.health {
        Health::Live => ("live", None),
        Health::Waiting(what) => ("live", Some(what)),
        Health::Degraded(why) => ("degraded", Some(why)),
        Health::Ejected(why) => ("ejected", Some(why)),
    };
    DeploymentInfo {
        app: deployment.app,
        uid: deployment.uid,
        hook: deployment.hook.to_string(),
        policy: deployment.policy,
        policy_sha256: deployment.sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
        program_id: deployment.program_id,
        generation: deployment.generation,
        deployed_at: deployment
            .deployed_at
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        proto: deployment.port.map(|(proto, _)| proto.to_string()),
        port: deployment.port.map(|(_, port)| port),
        pid: deployment.pid,
        executors: deployment.nr_executors,
        threads: deployment.nr_threads,
        cpus: deployment.cpus,
        state: state.to_owned(),
        reason,
        counters: abi::COUNTER_NAMES
            .iter()
            .zip(deployment.counters.0)
            .map(|(name, sum)| ((*name).to_owned(), sum))
            .collect(),
        verdicts: deployment.verdicts,
    }
}
