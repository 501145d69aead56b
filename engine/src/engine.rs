//! The engine: one code path behind the daemon and behind `syrupctl` as root.
//!
//! It keeps no state. A call that changes something takes the lock, reads the pins, acts
//! through a hook, and reads the pins again for its answer; so a process that dies at
//! any moment leaves nothing that the next one does not understand. Reading waits for
//! nobody: pins change by renames, so a reader sees what was, or what is.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;
use syrup_hook::record::Record;
use syrup_hook::{App, Deploy as _, Error, Hook, Linked, POLICY_PROGRAM, Probe, Who, pin};
use syrup_protocol::{
    AppInfo, Arbiter, Code, Deployment, Entries, Facts, Failure, Health, HookInfo, Input,
    LoadRequest, MapEntry, PolicyInfo, PolicySource, Registration, ReplaceRequest, Result, names,
};

use crate::hooks::{self, Hooks};
use crate::lock::{self, Lock};
use crate::maps::{self, Maps, own};
use crate::policy::{self, Prepared, verifier};

/// Where everything is pinned unless a flag says otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/syrup";
const BPFFS_MOUNT: &str = "/sys/fs/bpf";

/// How long `load` watches a thread policy that already has threads, to say at
/// once when it never chooses a queue.
const OBSERVE: Duration = Duration::from_millis(500);

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
    pub adopted: Vec<Deployment>,
    /// Leftovers of interrupted calls that were removed.
    pub removed: Vec<PathBuf>,
}

/// What [`Engine::check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// What it schedules.
    pub input: Input,
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
    hooks: Hooks,
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
        Self::of(bpffs, hooks::SHIPPED)
    }

    /// The same with other hooks than those that ship.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn with_hooks(bpffs: PathBuf, hooks: &'static [&'static dyn Hook]) -> Result<Self> {
        Self::of(bpffs, Hooks(hooks))
    }

    fn of(bpffs: PathBuf, hooks: Hooks) -> Result<Self> {
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
            rustix::mount::mount("bpf", mount, "bpf", MountFlags::empty(), Some(c"mode=0755"))
                .map_err(|e| {
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
        Ok(Self { bpffs, hooks })
    }

    /// The engine on behalf of `caller`.
    #[must_use]
    pub fn as_caller(&self, caller: Caller) -> AsCaller {
        AsCaller { engine: self.clone(), caller }
    }

    /// Reads back what is deployed and removes what interrupted calls left, as far as that
    /// is possible: what is broken keeps nobody from the rest.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn recover(&self) -> Result<Recovery> {
        let _lock = self.lock()?;
        let (removed, _) = self.collect_garbage()?;
        Ok(Recovery { adopted: self.read_all()?, removed })
    }

    /// Brings every deployment up to date with what it is for: a server's new sockets join,
    /// those it closed leave. Cheap while nothing changed, and then without the lock. Returns
    /// the apps and hooks where something had; what fails is said to the log, and the next
    /// call tries again.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn follow(&self) -> Result<Vec<(String, &'static str)>> {
        let mut changed = Vec::new();
        let apps: Vec<App> = self.app_names()?.iter().map(|name| self.app(name)).collect();
        for hook in self.hooks.all() {
            for app in hook.lagging(&apps) {
                let _lock = self.lock()?;
                match hook.catch_up(&app) {
                    Ok(true) => changed.push((app.name, hook.spec().name)),
                    Ok(false) | Err(Error::NotFound { .. }) => {}
                    Err(e) => log::warn!("app {} at {}: {e}", app.name, hook.spec().name),
                }
            }
        }
        Ok(changed)
    }

    /// Removes what interrupted calls left: deployments, and the folders of apps without
    /// one. Returns the first failure beside what was removed; all are in the log.
    fn collect_garbage(&self) -> Result<(Vec<PathBuf>, Result<()>)> {
        let (mut removed, mut done) = (Vec::new(), Ok(()));
        for hook in self.hooks.all() {
            match hook.collect_garbage(&self.bpffs) {
                Ok(paths) => removed.extend(paths),
                Err(e) => done = done.and(Err(e.into())),
            }
        }
        for app in self.app_names()? {
            let app = self.app(&app);
            if !self.hooks_of(&app).is_empty() {
                continue;
            }
            match self.forget(&app) {
                Ok(()) => removed.push(app.dir()),
                Err(e) => {
                    log::warn!("{e}");
                    done = done.and(Err(e));
                }
            }
        }
        Ok((removed, done))
    }

    /// Compiles and checks a policy for `hook`, one of those that ship, and has the verifier look at it
    /// where this process may; deploys nothing.
    ///
    /// # Errors
    /// What `load` would say of the policy.
    pub fn check(
        policy: &PolicySource,
        hook: &str,
        params: &[(String, String)],
    ) -> Result<CheckReport> {
        let hook = hooks::SHIPPED.get(hook)?;
        let prepared = policy::prepare(hook.spec(), policy, params)?;
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
            input: checked.input,
            instructions: checked.code.len(),
            maps: checked.maps.into_iter().map(|map| map.name).collect(),
            params: checked.params.into_iter().map(|param| param.name).collect(),
            verified,
        })
    }

    fn lock(&self) -> Result<Lock<'_>> {
        Lock::take(&self.bpffs)
    }

    fn app_names(&self) -> Result<Vec<String>> {
        if let Ok(root) = rustix::fs::lstat(&self.bpffs) {
            lock::refuse_foreign(&self.bpffs, &root)?;
        }
        let folders = pin::app_folders(&self.bpffs)?;
        Ok(folders
            .iter()
            .filter_map(|folder| folder.file_name()?.to_str())
            .filter(|name| names::check_app(name).is_ok())
            .map(str::to_owned)
            .collect())
    }

    /// An app with the owner its records name; root when it has none yet, or when none can
    /// be read.
    fn app(&self, name: &str) -> App {
        let mut app = App { name: name.to_owned(), uid: 0, bpffs: self.bpffs.clone() };
        for hook in self.hooks.all() {
            if let Ok(Some(record)) = Record::read(&app.hook_dir(hook.spec())) {
                app.uid = record.uid;
                break;
            }
        }
        app
    }

    /// Hooks at which the app has a pin folder, broken or not.
    fn hooks_of(&self, app: &App) -> Vec<&'static dyn Hook> {
        self.hooks.all().filter(|hook| app.hook_dir(hook.spec()).is_dir()).collect()
    }

    fn read_all(&self) -> Result<Vec<Deployment>> {
        let mut all = Vec::new();
        for name in self.app_names()? {
            all.extend(self.read_app(&self.app(&name))?);
        }
        Ok(all)
    }

    fn read_app(&self, app: &App) -> Result<Vec<Deployment>> {
        let mut deployments = Vec::new();
        for hook in self.hooks_of(app) {
            deployments.extend(hook.read(app)?);
        }
        Ok(deployments)
    }

    fn read_one(&self, hook: &dyn Hook, app: &App) -> Result<Deployment> {
        hook.read(app)?.ok_or_else(|| not_deployed(hook, app))
    }

    /// Tells the folder of an app from that of the name's next one: an app keeps its owner
    /// for as long as its folder is there.
    fn folder_of(&self, app: &str) -> Option<(u64, u64)> {
        rustix::fs::lstat(self.bpffs.join(app)).ok().map(|stat| (stat.st_dev, stat.st_ino))
    }

    /// Removes an app's folder: it has no deployment left, but for what dead calls put aside.
    fn forget(&self, app: &App) -> Result<()> {
        for hook in self.hooks.all() {
            hook.clear(app)?;
        }
        Ok(pin::remove_tree(&app.dir())?)
    }

    fn make_app_folder(&self, app: &App) -> Result<()> {
        let dir = app.dir();
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(Failure::new(Code::Internal, format!("cannot make {}: {e}", dir.display())))
            }
            // Root's, so that a tenant cannot move pins; searchable, so
            // that it reaches its Maps.
            _ => own(&dir, 0, 0o711),
        }
    }

    fn unload_locked(&self, app: &App, hook: &dyn Hook) -> Result<()> {
        hook.remove(app)?;
        if self.hooks_of(app).is_empty() {
            self.forget(app)?;
        }
        Ok(())
    }

    /// Waits until a thread policy with threads has seen inputs, which come by themselves, so
    /// that `load` can say that it decides nothing.
    fn observe(&self, hook: &dyn Hook, app: &App) -> Result<Deployment> {
        let deadline = Instant::now() + OBSERVE;
        loop {
            let deployment = self.read_one(hook, app)?;
            let comes = hook.spec().input == Input::Thread && deployment.health == Health::LIVE;
            let seen = deployment.counters.get("chosen").is_some_and(|&chosen| chosen > 0);
            if !comes || seen || Instant::now() >= deadline {
                return Ok(deployment);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Prepared {
    /// What a hook needs, with the app's Maps.
    pub(crate) fn link_with(&self, maps: std::collections::BTreeMap<String, OwnedFd>) -> Linked {
        Linked {
            name: self.name.clone(),
            sha256: self.sha256,
            object: self.linked.clone(),
            maps,
            settings: self.settings.clone(),
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

    /// An app the caller may change. A name nobody uses is free for anybody, and stays so
    /// under the lock only.
    fn own_app(&self, name: &str) -> Result<App> {
        names::check_app(name)?;
        let mut app = self.engine.app(name);
        if self.engine.hooks_of(&app).is_empty() {
            app.uid = self.caller.uid;
        }
        self.may_use(&app)?;
        Ok(app)
    }

    /// An app that exists and is the caller's.
    fn deployed_app(&self, name: &str) -> Result<App> {
        names::check_app(name)?;
        let app = self.engine.app(name);
        if self.engine.hooks_of(&app).is_empty() {
            return Err(no_app(name));
        }
        self.may_use(&app)?;
        Ok(app)
    }

    /// Opens something of an app that exists and is the caller's. Nobody is waited for, so
    /// that the name may become another user's meanwhile: with another folder.
    fn open_of<T>(&self, name: &str, open: impl FnOnce(&App) -> Result<T>) -> Result<T> {
        names::check_app(name)?;
        let folder = self.engine.folder_of(name);
        let app = self.deployed_app(name)?;
        let opened = open(&app);
        if folder.is_none() || self.engine.folder_of(name) != folder {
            return Err(no_app(name));
        }
        opened
    }

    fn may_use(&self, app: &App) -> Result<()> {
        if self.is_root() || app.uid == self.caller.uid {
            return Ok(());
        }
        let message = format!("app '{}' belongs to user {}", app.name, app.uid);
        Err(Failure::new(Code::NotPermitted, message)
            .advise("choose another app name, or ask its owner or root"))
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

    /// Checks what a deployment is told.
    fn may_say(&self, hook: &dyn Hook, target: &Facts) -> Result<()> {
        let spec = hook.spec();
        for (name, value) in target {
            let Some(flag) = spec.takes.iter().find(|flag| flag.name == name) else {
                let message = format!("--{name} means nothing at hook {}", spec.name);
                return Err(Failure::new(Code::Usage, message));
            };
            if flag.who == Who::Root && !self.is_root() {
                let message = format!("only root may say --{name}");
                return Err(Failure::new(Code::NotPermitted, message).advise(
                    "let the application register its sockets and threads: \
                     syr_register_socket(), syr_register_thread()",
                ));
            }
            flag.check(value)
                .map_err(|why| Failure::new(Code::Usage, format!("--{name}: {why}")))?;
        }
        Ok(())
    }
}

impl Arbiter for AsCaller {
    fn load(&self, request: &LoadRequest) -> Result<Deployment> {
        let hook = self.engine.hooks.get(&request.hook)?;
        names::check_app(&request.app)?;
        self.may_bring(&request.policy)?;
        self.may_say(hook, &request.target)?;
        // The source's faults come first: they show on any kernel.
        let prepared = policy::prepare(hook.spec(), &request.policy, &request.params)?;
        if let Probe::Missing { what, advice } = hook.probe() {
            return Err(Failure::new(
                Code::Unsupported,
                format!("hook {} is not available: {what}", hook.spec().name),
            )
            .advise(advice));
        }

        let lock = self.engine.lock()?;
        let app = self.own_app(&request.app)?;
        if app.hook_dir(hook.spec()).is_dir() && !hook.has_ended(&app) {
            if !request.or_replace {
                return Err(already(&app, hook));
            }
            same_target(&self.engine.read_one(hook, &app)?, &request.target)?;
            return self.replace_by(hook, &app, &prepared);
        }
        if self.engine.hooks_of(&app).is_empty() {
            // Of a load that died: not for whoever takes the name next.
            self.engine.forget(&app)?;
        }
        self.engine.make_app_folder(&app)?;
        let deployed = (|| -> Result<()> {
            let (maps, created) = Maps::of(&app).ensure(&prepared.checked.maps)?;
            hook.deploy(&app, &prepared.link_with(maps), &request.target)
                .map_err(|e| prepared.explain(e))?;
            created.keep();
            Ok(())
        })();
        if deployed.is_err()
            && self.engine.hooks_of(&app).is_empty()
            && let Err(e) = self.engine.forget(&app)
        {
            log::warn!("{e}");
        }
        deployed?;
        // What is watched from here on changes nothing.
        drop(lock);
        self.engine.observe(hook, &app).map_err(|e| live_but(&app, hook, e))
    }

    fn replace(&self, request: &ReplaceRequest) -> Result<Deployment> {
        let hook = self.engine.hooks.get(&request.hook)?;
        names::check_app(&request.app)?;
        self.may_bring(&request.policy)?;
        let prepared = policy::prepare(hook.spec(), &request.policy, &request.params)?;

        let _lock = self.engine.lock()?;
        let app = self.own_app(&request.app)?;
        if !app.hook_dir(hook.spec()).is_dir() {
            return Err(not_deployed(hook, &app));
        }
        self.replace_by(hook, &app, &prepared)
    }

    fn unload(&self, hook: &str, app: &str) -> Result<()> {
        let hook = self.engine.hooks.get(hook)?;
        let _lock = self.engine.lock()?;
        let app = self.own_app(app)?;
        let folder = app.hook_dir(hook.spec());
        // One that a dead call put aside may decide still.
        if !folder.is_dir() && !pin::aside(&folder).is_dir() {
            return Err(not_deployed(hook, &app));
        }
        self.engine.unload_locked(&app, hook)
    }

    fn unload_all(&self) -> Result<Vec<(String, String)>> {
        let _lock = self.engine.lock()?;
        let (mut gone, mut done) = (Vec::new(), Ok(()));
        for name in self.engine.app_names()? {
            let app = self.engine.app(&name);
            if !self.is_root() && app.uid != self.caller.uid {
                continue;
            }
            for hook in self.engine.hooks_of(&app) {
                // One that stays keeps no other.
                match self.engine.unload_locked(&app, hook) {
                    Ok(()) => gone.push((name.clone(), hook.spec().name.to_owned())),
                    Err(e) => {
                        let message =
                            format!("app '{name}' stays at {}: {}", hook.spec().name, e.message);
                        log::warn!("{message}");
                        done = done.and(Err(Failure { message, ..e }));
                    }
                }
            }
        }
        if self.is_root() {
            done = done.and(self.engine.collect_garbage()?.1);
        }
        done.map(|()| gone)
    }

    fn list(&self) -> Result<Vec<Deployment>> {
        self.engine.read_all()
    }

    fn show(&self, app: &str) -> Result<AppInfo> {
        names::check_app(app)?;
        let app = self.engine.app(app);
        let deployments = self.engine.read_app(&app)?;
        if deployments.is_empty() {
            return Err(no_app(&app.name));
        }
        Ok(AppInfo { maps: Maps::of(&app).list()?, uid: app.uid, app: app.name, deployments })
    }

    fn hooks(&self) -> Result<Vec<HookInfo>> {
        Ok(self.engine.hooks.infos())
    }

    fn policies(&self) -> Result<Vec<PolicyInfo>> {
        Ok(self.engine.hooks.policies())
    }

    fn map_get(&self, app: &str, map: &str, key: u32) -> Result<MapEntry> {
        maps::get(self.map_open(app, map)?, map, key)
    }

    fn map_set(&self, app: &str, map: &str, key: u32, value: u64) -> Result<()> {
        maps::set(self.map_open(app, map)?, map, key, value)
    }

    fn map_dump(&self, app: &str, map: &str, from: u32) -> Result<Entries> {
        maps::dump(self.map_open(app, map)?, map, from)
    }

    fn policy_open(&self, app: &str, hook: &str) -> Result<OwnedFd> {
        let hook = self.engine.hooks.get(hook)?;
        self.open_of(app, |app| Ok(hook.program(app)?))
    }

    fn map_open(&self, app: &str, map: &str) -> Result<OwnedFd> {
        self.open_of(app, |app| Maps::of(app).open(&app.name, map))
    }

    fn register(
        &self,
        app: &str,
        hook: Option<&str>,
        what: Registration,
        index: Option<u32>,
    ) -> Result<u32> {
        let named = hook.map(|name| self.engine.hooks.get(name)).transpose()?;
        let _lock = self.engine.lock()?;
        let app = self.deployed_app(app)?;
        if let Registration::Thread { tid } = what {
            self.may_schedule(tid)?;
        }
        let hook = match named {
            Some(hook) => hook,
            None => self.only_hook(&app, &what)?,
        };
        Ok(hook.register(&app, what, index)?)
    }
}

impl AsCaller {
    /// Puts a policy in the place of the app's live one; under the lock.
    fn replace_by(&self, hook: &dyn Hook, app: &App, prepared: &Prepared) -> Result<Deployment> {
        let (maps, created) = Maps::of(app).ensure(&prepared.checked.maps)?;
        hook.replace(app, &prepared.link_with(maps)).map_err(|e| prepared.explain(e))?;
        created.keep();
        self.engine.read_one(hook, app).map_err(|e| live_but(app, hook, e))
    }

    /// The hook at which the app has a policy that takes such a thing.
    fn only_hook(&self, app: &App, what: &Registration) -> Result<&'static dyn Hook> {
        let kind = what.kind();
        let takes = self.engine.hooks.all().filter(|hook| hook.spec().registers == kind);
        let is_deployed = |hook: &&dyn Hook| app.hook_dir(hook.spec()).is_dir();
        let (deployed, missing): (Vec<_>, Vec<_>) = takes.partition(is_deployed);
        match (deployed.as_slice(), missing.as_slice()) {
            ([hook], _) => Ok(*hook),
            ([], [hook, ..]) => Err(not_deployed(*hook, app)),
            ([], []) => Err(Failure::new(Code::Internal, format!("no hook takes a {kind}"))),
            (several, _) => {
                let names: Vec<&str> = several.iter().map(|hook| hook.spec().name).collect();
                let message = format!(
                    "app '{}' has policies for {kind}s at several hooks: {}",
                    app.name,
                    names.join(", ")
                );
                Err(Failure::new(Code::Usage, message).advise("name the hook"))
            }
        }
    }

    /// A thread of the caller's own process or user; root may schedule any.
    fn may_schedule(&self, tid: i32) -> Result<()> {
        let owner = owner_of(tid).ok_or_else(|| {
            Failure::new(Code::NotFound, format!("there is no thread {tid}"))
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
    let name = hook.spec().name;
    let what = format!("app '{}' has a policy at {name} already", app.name);
    let replace = format!("syrupctl replace {name} --app {} --policy ...", app.name);
    let unload = format!("syrupctl unload {name} --app {}", app.name);
    let without_executors = hook.read(app).ok().flatten().is_some_and(|deployment| {
        deployment.executors == 0 || matches!(deployment.health, Health::Live(Some(_)))
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

/// A replacement changes the policy, and nothing of what it is for.
fn same_target(deployment: &Deployment, asked: &Facts) -> Result<()> {
    for (name, value) in asked {
        let is = deployment.target.get(name);
        let same = |is: &serde_json::Value| match (is, value) {
            // Of a list of names, the order says nothing.
            (serde_json::Value::Array(is), serde_json::Value::Array(asked)) => {
                is.len() == asked.len() && asked.iter().all(|one| is.contains(one))
            }
            (is, asked) => is == asked,
        };
        if is.is_some_and(same) {
            continue;
        }
        let Deployment { app, hook, .. } = deployment;
        let is = is.map_or("none".to_owned(), ToString::to_string);
        let message = format!("--{name} {value}: the deployment of app '{app}' at {hook} has {is}");
        return Err(Failure::new(Code::Conflict, message)
            .advise(format!("leave --{name} out, or 'syrupctl unload {hook} --app {app}' first")));
    }
    Ok(())
}

/// What failed after a policy became live, which it stays.
fn live_but(app: &App, hook: &dyn Hook, error: Failure) -> Failure {
    let Failure { message, .. } = &error;
    Failure {
        message: format!(
            "the policy of app '{}' is live at {}, but cannot be read back: {message}",
            app.name,
            hook.spec().name
        ),
        ..error
    }
}

fn not_deployed(hook: &dyn Hook, app: &App) -> Failure {
    Error::not_deployed(&app.name, hook.spec().name).into()
}

fn no_app(app: &str) -> Failure {
    Failure::new(Code::NotFound, format!("there is no app '{app}'"))
        .advise("an app exists while it has a deployment: 'syrupctl list' shows them")
}
