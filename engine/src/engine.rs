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
use syrup_hook::{App, Deploy as _, Error, Hook, Linked, POLICY_PROGRAM, Probe, pin};
use syrup_protocol::{Code, Deployment, Failure, Health, Input, PolicySource, Result, names};

use crate::as_caller::{AsCaller, Caller};
use crate::hooks::{self, Hooks};
use crate::lock::{self, Lock};
use crate::maps::own;
use crate::policy::{self, Prepared, verifier};

/// Where everything is pinned unless a flag says otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/syrup";
const BPFFS_MOUNT: &str = "/sys/fs/bpf";

/// How long `load` watches a thread policy that already has threads, to say at
/// once when it never chooses a queue.
const OBSERVE: Duration = Duration::from_millis(500);

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

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
    pub(crate) bpffs: PathBuf,
    pub(crate) hooks: Hooks,
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
        pins_last(mount)?;
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
            .advise(if mount == Path::new(BPFFS_MOUNT) {
                "as root: mount -t bpf bpf /sys/fs/bpf"
            } else {
                "leave --bpffs out, or name a folder of one: 'mount -t bpf bpf FOLDER' makes an \
                 empty FOLDER one"
            }));
        }
        Ok(Self { bpffs, hooks })
    }

    /// The engine on behalf of `caller`.
    #[must_use]
    pub fn as_caller(&self, caller: Caller) -> AsCaller {
        AsCaller::new(self.clone(), caller)
    }

    /// Reads back what is deployed and removes what interrupted calls left, as far as that
    /// is possible: what is broken keeps nobody from the rest.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn recover(&self) -> Result<Recovery> {
        let removed = self.remove_garbage()?;
        Ok(Recovery { adopted: self.read_all()?, removed })
    }

    /// Removes what interrupted calls left and what ended apps had, as far as that is
    /// possible; what fails is in the log.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn remove_garbage(&self) -> Result<Vec<PathBuf>> {
        let _lock = self.lock()?;
        Ok(self.collect_garbage()?.0)
    }

    /// Brings every deployment up to date with what it is for: a server's new sockets join,
    /// those it closed leave. Takes no lock while nothing changed; whoever calls it again and
    /// again asks a [`Watch`] whether there is a reason to. Returns the apps and hooks where
    /// something had changed; what fails is said to the log, and the next call tries again.
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
    pub(crate) fn collect_garbage(&self) -> Result<(Vec<PathBuf>, Result<()>)> {
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

    /// Compiles and checks a policy for `hook`, one of those that ship, and has the
    /// verifier look at it where this process may; deploys nothing.
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
            let linked = prepared.link_with(0, Default::default());
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

    pub(crate) fn lock(&self) -> Result<Lock<'_>> {
        Lock::take(&self.bpffs)
    }

    pub(crate) fn app_names(&self) -> Result<Vec<String>> {
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
    pub(crate) fn app(&self, name: &str) -> App {
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
    pub(crate) fn hooks_of(&self, app: &App) -> Vec<&'static dyn Hook> {
        self.hooks.all().filter(|hook| app.hook_dir(hook.spec()).is_dir()).collect()
    }

    pub(crate) fn read_all(&self) -> Result<Vec<Deployment>> {
        let mut all = Vec::new();
        for name in self.app_names()? {
            all.extend(self.read_app(&self.app(&name))?);
        }
        Ok(all)
    }

    pub(crate) fn read_app(&self, app: &App) -> Result<Vec<Deployment>> {
        let mut deployments = Vec::new();
        for hook in self.hooks_of(app) {
            deployments.extend(hook.read(app)?);
        }
        Ok(deployments)
    }

    pub(crate) fn read_one(&self, hook: &dyn Hook, app: &App) -> Result<Deployment> {
        hook.read(app)?.ok_or_else(|| not_deployed(hook, app))
    }

    /// Tells the folder of an app from that of the name's next one: an app keeps its owner
    /// for as long as its folder is there.
    pub(crate) fn folder_of(&self, app: &str) -> Option<(u64, u64)> {
        rustix::fs::lstat(self.bpffs.join(app)).ok().map(|stat| (stat.st_dev, stat.st_ino))
    }

    /// Removes an app's folder: it has no deployment left, but for what dead calls put aside.
    pub(crate) fn forget(&self, app: &App) -> Result<()> {
        for hook in self.hooks.all() {
            hook.clear(app)?;
        }
        Ok(pin::remove_tree(&app.dir())?)
    }

    pub(crate) fn make_app_folder(&self, app: &App) -> Result<()> {
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

    pub(crate) fn unload_locked(&self, app: &App, hook: &dyn Hook) -> Result<()> {
        hook.remove(app)?;
        if self.hooks_of(app).is_empty() {
            // Without a deployment it is nobody's: the next call clears it.
            self.forget(app).unwrap_or_else(|e| {
                log::warn!("app '{}': what is left of it stays: {e}", app.name)
            });
        }
        Ok(())
    }

    /// Waits until a thread policy with threads has seen inputs, which come by themselves, so
    /// that `load` can say that it decides nothing.
    pub(crate) fn observe(&self, hook: &dyn Hook, app: &App) -> Result<Deployment> {
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

/// Whether other mounts are seen here than by the first process, as far as that can be told.
fn is_in_own_mount_namespace() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    matches!((namespace("self"), namespace("1")), (Ok(own), Ok(first)) if own != first)
}

/// Whether what is pinned in the BPF file system at `mount` is there for the next command: where
/// that is the usual place, and as far as it can be told. 'ip netns exec' gives its command mounts
/// of its own.
///
/// # Errors
/// [`Code::Unsupported`] where it is not.
pub fn pins_last(mount: &Path) -> Result<()> {
    let device = |root: &str| {
        rustix::fs::stat(format!("{root}{BPFFS_MOUNT}").as_str()).map(|stat| stat.st_dev)
    };
    let is_anothers =
        || matches!((device(""), device("/proc/1/root")), (Ok(own), Ok(first)) if own != first);
    let is_there = || rustix::fs::statfs(BPFFS_MOUNT).is_ok_and(|stat| stat.f_type == BPF_FS_MAGIC);
    let is_elsewhere = match (rustix::fs::stat(mount), device("")) {
        (Ok(stat), Ok(usual)) => stat.st_dev != usual,
        _ => mount != Path::new(BPFFS_MOUNT),
    };
    if is_elsewhere || !is_in_own_mount_namespace() || is_there() && !is_anothers() {
        return Ok(());
    }
    let what = format!(
        "what is pinned at {BPFFS_MOUNT} here ends with this mount namespace, which sees another \
         file system there than the first process does, or none"
    );
    Err(Failure::new(Code::Unsupported, what).advise(
        "'ip netns exec' makes such a namespace: use 'nsenter --net=/run/netns/NAME' instead, or \
         --pid from outside. Where it is meant so, name a folder of another BPF file system with \
         --bpffs",
    ))
}

impl Prepared {
    /// What a hook needs, with the Maps of an app of this user's.
    pub(crate) fn link_with(
        &self,
        owner: u32,
        maps: std::collections::BTreeMap<String, OwnedFd>,
    ) -> Linked {
        Linked {
            name: self.name.clone(),
            sha256: self.sha256,
            params: self.params.clone(),
            object: self.linked.clone(),
            maps,
            settings: self.settings.clone(),
            owner,
        }
    }

    /// A hook's error, with the user's file in the verifier's words.
    pub(crate) fn explain(&self, error: syrup_hook::Error) -> Failure {
        match error {
            syrup_hook::Error::Verifier { program, log, .. } if program == POLICY_PROGRAM => {
                verifier::error(&self.file_name, &log, self.source.as_deref())
            }
            other => other.into(),
        }
    }
}

pub(crate) fn not_deployed(hook: &dyn Hook, app: &App) -> Failure {
    Error::not_deployed(&app.name, hook.spec().name).into()
}
