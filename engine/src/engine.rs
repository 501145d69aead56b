//! The engine: one code path behind the daemon and behind `syrupctl` as root.
//!
//! It keeps no state. A call that changes something takes the lock, reads the pins, acts
//! through a hook, and reads the pins again for its answer; so a process that dies at
//! any moment leaves nothing that the next one does not understand. Reading waits for
//! nobody: pins change by renames, so a reader sees what was, or what is.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::MountFlags;
use syrup_hook::record::Record;
use syrup_hook::{App, Deploy as _, Error, Hook, Linked, POLICY_PROGRAM, Probe, pin};
use syrup_protocol::{Code, Deployment, Failure, Health, Input, PolicySource, Result, names};

use crate::as_caller::{AsCaller, Caller};
use crate::hooks::{self, Hooks};
use crate::maps::own;
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

/// The right to change what is pinned. A root of all pins that is empty in the end goes.
pub(crate) struct Lock<'a> {
    engine: &'a Engine,
    _folder: OwnedFd,
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Fails while anything is in it, which is the point.
        let _ = fs::remove_dir(&self.engine.bpffs);
    }
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
        AsCaller::new(self.clone(), caller)
    }

    /// Reads back what is deployed and removes what interrupted calls left.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn recover(&self) -> Result<Recovery> {
        let _lock = self.lock()?;
        let mut removed = Vec::new();
        for hook in self.hooks.all() {
            removed.extend(hook.collect_garbage(&self.bpffs)?);
        }
        for app in self.app_names()? {
            let app = self.app(&app);
            if self.hooks_of(&app).is_empty() {
                removed.push(app.dir());
                self.forget(&app)?;
            }
        }
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
        let hook = hooks::SHIPPED.get(hook)?;
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
            input: checked.input,
            instructions: checked.instructions,
            maps: checked.maps,
            params: checked.params,
            verified,
        })
    }

    /// One process at a time that changes something. The lock is on our own folder, which
    /// is made for it, and which root alone can open; the kernel drops it when the holder
    /// dies.
    pub(crate) fn lock(&self) -> Result<Lock<'_>> {
        let failed = |e: rustix::io::Errno| {
            Failure::new(Code::Internal, format!("cannot lock {}: {e}", self.bpffs.display()))
        };
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let folder = self.open_root()?;
            match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
                // Its last holder may have removed it, and another have made a new one.
                Ok(()) if self.is_root_folder(&folder) => {
                    return Ok(Lock { engine: self, _folder: folder });
                }
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let held =
                        format!("another process holds the lock on {}", self.bpffs.display());
                    return Err(Failure::new(Code::Timeout, held)
                        .advise(format!("find it with: fuser -v {}", self.bpffs.display())));
                }
                Err(e) => return Err(failed(e)),
            }
        }
    }

    /// Opens the root of all pins, made if need be. One that others could have filled is
    /// refused: what is in it would be taken for ours.
    fn open_root(&self) -> Result<OwnedFd> {
        let path = &self.bpffs;
        let failed = |what: &str, e: io::Error| {
            let code = match e.kind() {
                io::ErrorKind::PermissionDenied => Code::NotPermitted,
                _ => Code::Internal,
            };
            Failure::new(code, format!("cannot {what} {}: {e}", path.display()))
        };
        // Nobody else opens it before it has its mode.
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => own(path, 0, 0o711)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed("make", e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("open", e.into()))?;
        let stat = rustix::fs::fstat(&folder).map_err(|e| failed("look at", e.into()))?;
        self.refuse_foreign(&stat)?;
        Ok(folder)
    }

    fn refuse_foreign(&self, root: &rustix::fs::Stat) -> Result<()> {
        if root.st_uid == 0 && root.st_mode & 0o022 == 0 {
            return Ok(());
        }
        let path = self.bpffs.display();
        let message = format!(
            "{path} belongs to user {} with mode {:o}: others could have put pins there",
            root.st_uid,
            root.st_mode & 0o7777
        );
        Err(Failure::new(Code::Conflict, message)
            .advise(format!("look at what is in it, then 'rm -r {path}'")))
    }

    fn is_root_folder(&self, folder: &OwnedFd) -> bool {
        let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let (ours, there) = (rustix::fs::fstat(folder), rustix::fs::lstat(&self.bpffs));
        matches!((ours, there), (Ok(ours), Ok(there)) if identity(ours) == identity(there))
    }

    pub(crate) fn app_names(&self) -> Result<Vec<String>> {
        if let Ok(root) = rustix::fs::lstat(&self.bpffs) {
            self.refuse_foreign(&root)?;
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

    /// Removes an app's folder: it has no deployment left.
    pub(crate) fn forget(&self, app: &App) -> Result<()> {
        pin::remove_tree(&app.dir())?;
        Ok(())
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
            self.forget(app)?;
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

impl Prepared {
    /// What a hook needs, with the app's Maps.
    pub(crate) fn link_with(&self, maps: std::collections::BTreeMap<String, OwnedFd>) -> Linked {
        Linked {
            name: self.name.clone(),
            sha256: self.sha256,
            params: self.params.clone(),
            object: self.linked.clone(),
            maps,
            settings: self.settings.clone(),
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
