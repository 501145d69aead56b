//! The life of a deployment, the same at every hook: its folder is built aside and renamed
//! into place, its record says what the kernel does not, and which of two policies is live
//! is what the kernel runs.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use syrup_protocol::{Deployment, Facts, Health, Registration};

use crate::pin::{self, Staged};
use crate::record::Record;
use crate::{App, Counters, End, Error, Hook, Linked, Result, Spec, sys};

/// An opened deployment: its folder and its record.
#[derive(Debug, Clone)]
pub struct Dir {
    app: App,
    path: PathBuf,
    record: Record,
}

impl Dir {
    /// Opens the deployment of `app`, with the record of the policy that decides now.
    ///
    /// # Errors
    /// [`Error::NotFound`] without one, [`Error::Pin`] when it is not readable.
    pub fn open(hook: &(impl Hook + ?Sized), app: &App) -> Result<Self> {
        let path = app.hook_dir(hook.spec());
        if !path.is_dir() {
            return Err(Error::not_deployed(&app.name, hook.spec().name));
        }
        let Some(record) = Record::read(&path)? else {
            let reason = "the pin is gone".to_owned();
            return Err(Error::Pin { path: path.join(crate::record::RECORD), reason });
        };
        let mut dir = Self { app: app.clone(), path, record };
        let live = hook.live(&dir)?;
        // Ours again last: a replacement may have moved its own into this place meanwhile.
        let record = pin::next_record(&dir.path, live)?;
        if let Some(record) = record.map_or_else(|| Record::read(&dir.path), |r| Ok(Some(r)))? {
            dir.record = record;
        }
        Ok(dir)
    }

    /// Whose it is.
    #[must_use]
    pub fn app(&self) -> &App {
        &self.app
    }

    /// The folder, for what the hook pins.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the hook keeps.
    ///
    /// # Errors
    /// [`Error::Pin`] when it is not what this version of the hook writes.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T> {
        self.record.state(&self.path)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// As [`Record::write`].
    pub fn set_state(&mut self, state: &impl Serialize) -> Result<()> {
        self.record.state = serde_json::to_value(state)
            .map_err(|e| Error::Defect(format!("a hook's state has no JSON form: {e}")))?;
        self.record.write(&self.path)
    }

    /// What was counted since the policy became live.
    #[must_use]
    pub fn recent(&self, counters: &Counters) -> Counters {
        counters.since(&self.record.counted_before)
    }

    /// What was counted until now is not held against the policy.
    ///
    /// # Errors
    /// As [`Record::write`].
    pub fn count_from(&mut self, counters: &Counters) -> Result<()> {
        self.record.counted_before = counters.by_name();
        self.record.write(&self.path)
    }

    fn settle(&mut self, hook: &(impl Hook + ?Sized)) -> Result<()> {
        // First: what the hook writes is not to be replaced by what was written before.
        pin::settle(&self.path, hook.live(self)?)?;
        hook.settle(self)
    }

    fn replace(&mut self, hook: &(impl Hook + ?Sized), policy: &Linked) -> Result<()> {
        self.settle(hook)?;
        let (program, state) = hook.prepare(self, policy)?;
        let mut next = self.record.clone();
        next.generation += 1;
        next.state = state;
        describe(&mut next, policy);
        // For whoever reads it after a death before the count below.
        next.counted_before = hook.counters(self)?.by_name();
        let live = hook.live(self)?;
        let replaced = program
            .with_fd(|fd| pin::replace(&self.path, live, fd, &next, || hook.set_policy(self, fd)));
        if let Err(e) = replaced {
            // The old policy goes on under its own settings, whatever stays of the new one. What
            // the user hears is why it does, not what else failed.
            for settled in [pin::settle(&self.path, live), hook.settle(self)] {
                settled.unwrap_or_else(|e| log::warn!("{e}"));
            }
            return Err(e);
        }
        self.record = next;
        let mut finish = || -> Result<()> {
            hook.settle(self)?;
            // Only then: what the old policy still decided is not held against the new.
            sys::wait_for_running_programs();
            let counters = hook.counters(self)?;
            self.count_from(&counters)
        };
        // The new policy decides already.
        if let Err(e) = finish() {
            log::warn!("{e}");
        }
        Ok(())
    }

    fn read(&self, hook: &(impl Hook + ?Sized)) -> Result<Deployment> {
        let observed = hook.observe(self)?;
        let record = &self.record;
        Ok(Deployment {
            policy: record.policy.clone(),
            policy_sha256: record.policy_sha256.clone(),
            params: record.params.clone(),
            program_id: hook.live(self)?,
            generation: record.generation,
            deployed_at: record.deployed_at_ns / 1_000_000_000,
            inputs: observed.inputs,
            executors: observed.executors,
            target: observed.target,
            counters: observed.counters.by_name(),
            verdicts: observed.verdicts,
            health: observed.health,
            ..nothing_known(hook.spec(), &self.app, record.uid)
        })
    }
}

/// What can be said of a deployment that cannot be read.
fn nothing_known(hook: &Spec, app: &App, uid: u32) -> Deployment {
    Deployment {
        app: app.name.clone(),
        uid,
        hook: hook.name.to_owned(),
        policy: String::new(),
        policy_sha256: String::new(),
        params: BTreeMap::new(),
        program_id: 0,
        generation: 0,
        deployed_at: 0,
        inputs: "unknown".to_owned(),
        executor: hook.executor.to_owned(),
        executors: 0,
        target: Facts::new(),
        health: Health::LIVE,
        counters: Counters::default().by_name(),
        verdicts: Vec::new(),
    }
}

/// A hash as it is written.
#[must_use]
pub fn hex(sha256: &[u8; 32]) -> String {
    sha256.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn describe(record: &mut Record, policy: &Linked) {
    record.policy.clone_from(&policy.name);
    record.params.clone_from(&policy.params);
    record.policy_sha256 = hex(&policy.sha256);
    record.deployed_at_ns = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
}

/// What is done with deployments, at any hook. The caller holds the engine's lock, has
/// checked names and permissions, and has made [`App::dir`]. Each method either did what it
/// says or left the kernel as it was.
pub trait Deploy {
    /// Makes `policy` live for an app that has none here, with the `target` that the hook
    /// takes ([`Spec::takes`]). A deployment whose reason has ended makes room.
    ///
    /// # Errors
    /// [`Error::Conflict`] when there is one; what the hook says.
    fn deploy(&self, app: &App, policy: &Linked, target: &impl Serialize) -> Result<()>;

    /// Puts `policy` in the place of the live one: each input is decided by the old or the
    /// new one. An error means that the old one still does.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a deployment; what the hook says.
    fn replace(&self, app: &App, policy: &Linked) -> Result<()>;

    /// Changes what a live deployment is for: see [`Hook::change`].
    ///
    /// # Errors
    /// [`Error::NotFound`] without a deployment; what the hook says.
    fn set(&self, app: &App, target: &Facts) -> Result<()>;

    /// Takes the deployment away; inputs get the kernel's default again. Succeeds on what
    /// is left of a deployment that broke.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    fn remove(&self, app: &App) -> Result<()>;

    /// Takes away what dead calls of the app's left here, which no longer is a deployment.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    fn clear(&self, app: &App) -> Result<()>;

    /// Adds a socket or a thread: see [`Hook::add`].
    ///
    /// # Errors
    /// [`Error::NotFound`] without a deployment; what the hook says.
    fn register(&self, app: &App, what: Registration, index: Option<u32>) -> Result<u32>;

    /// Lets go of a socket or a thread: see [`Hook::release`].
    ///
    /// # Errors
    /// [`Error::NotFound`] without a deployment, or when it is none of its; what the hook says.
    fn unregister(&self, app: &App, what: &Registration) -> Result<()>;

    /// Whether what the deployment was for has ended, so that a load takes its place.
    fn has_ended(&self, app: &App) -> bool;

    /// Those of the apps for which [`Deploy::catch_up`] would change anything; may be asked
    /// without the lock.
    fn lagging(&self, apps: &[App]) -> Vec<App>;

    /// Brings a deployment up to date with what it is for. Returns whether anything had
    /// changed.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a deployment; what the hook says.
    fn catch_up(&self, app: &App) -> Result<bool>;

    /// The program of the live policy: for its id and its statistics.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a deployment, [`Error::Pin`] when it is not pinned.
    fn program(&self, app: &App) -> Result<OwnedFd>;

    /// Reads a deployment back from the kernel; one that cannot be read is
    /// [`Health::Broken`]. `None` when the app has none here.
    ///
    /// # Errors
    /// [`Error::Kernel`] when we may not look.
    fn read(&self, app: &App) -> Result<Option<Deployment>>;

    /// Removes what interrupted calls left behind, and deployments whose reason has ended,
    /// and nothing else. Returns what was removed.
    ///
    /// # Errors
    /// The first failure, after all that can be removed is: the others are logged, as it is.
    fn collect_garbage(&self, bpffs: &Path) -> Result<Vec<PathBuf>>;
}

impl<H: Hook + ?Sized> Deploy for H {
    fn deploy(&self, app: &App, policy: &Linked, target: &impl Serialize) -> Result<()> {
        let facts = serde_json::to_value(target).and_then(serde_json::from_value::<Facts>);
        let facts = facts.map_err(|e| Error::Usage(format!("the deployment's target: {e}")))?;
        deploy(self, app, policy, &facts)
    }

    fn replace(&self, app: &App, policy: &Linked) -> Result<()> {
        Dir::open(self, app)?.replace(self, policy)
    }

    fn set(&self, app: &App, target: &Facts) -> Result<()> {
        let mut dir = Dir::open(self, app)?;
        dir.settle(self)?;
        self.change(&mut dir, target)
    }

    fn remove(&self, app: &App) -> Result<()> {
        let path = app.hook_dir(self.spec());
        take_down_aside(self, app)?;
        let aside = pin::put_aside(&path)?;
        if aside.exists()
            && let Err(e) = self.detach(app, &aside)
        {
            // It goes on, and is to be seen.
            pin::put_back(&aside, &path);
            return Err(e);
        }
        // It has ended: what stays of its pins is garbage, for the next call.
        pin::remove_tree(&aside).unwrap_or_else(|e| log::warn!("{e}"));
        tidy(self, &app.bpffs);
        Ok(())
    }

    fn clear(&self, app: &App) -> Result<()> {
        if take_down_aside(self, app)?.is_some() {
            tidy(self, &app.bpffs);
        }
        Ok(())
    }

    fn register(&self, app: &App, what: Registration, index: Option<u32>) -> Result<u32> {
        let mut dir = open_for(self, app, &what)?;
        self.add(&mut dir, what, index)
    }

    fn unregister(&self, app: &App, what: &Registration) -> Result<()> {
        let mut dir = open_for(self, app, what)?;
        self.release(&mut dir, what)
    }

    fn has_ended(&self, app: &App) -> bool {
        Dir::open(self, app).is_ok_and(|dir| self.end(&dir) != End::Not)
    }

    fn catch_up(&self, app: &App) -> Result<bool> {
        // A load that died may hold what is to be taken in.
        take_down_aside(self, app)?;
        let mut dir = Dir::open(self, app)?;
        if self.behind(std::slice::from_ref(&dir)).is_empty() {
            return Ok(false);
        }
        dir.settle(self)?;
        self.follow(&mut dir)
    }

    fn lagging(&self, apps: &[App]) -> Vec<App> {
        let dirs: Vec<Dir> = apps.iter().filter_map(|app| Dir::open(self, app).ok()).collect();
        self.behind(&dirs).into_iter().map(|dir| dir.app.clone()).collect()
    }

    fn program(&self, app: &App) -> Result<OwnedFd> {
        let dir = Dir::open(self, app)?;
        pin::live_program(&dir.path, self.live(&dir)?)
    }

    fn read(&self, app: &App) -> Result<Option<Deployment>> {
        let broken = |uid, why: &Error| Deployment {
            health: Health::Broken(why.to_string()),
            ..nothing_known(self.spec(), app, uid)
        };
        let dir = match Dir::open(self, app) {
            Ok(dir) => dir,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(_) if !app.hook_dir(self.spec()).exists() => return Ok(None),
            Err(e) if e.is_permission() => return Err(e),
            Err(e) => return Ok(Some(broken(app.uid, &e))),
        };
        match dir.read(self) {
            // Unloaded meanwhile: whoever reads holds no lock.
            Err(_) if !dir.path.exists() => Ok(None),
            Err(e) if e.is_permission() => Err(e),
            Err(e) => Ok(Some(Deployment {
                policy: dir.record.policy.clone(),
                ..broken(dir.record.uid, &e)
            })),
            Ok(deployment) => Ok(Some(deployment)),
        }
    }

    fn collect_garbage(&self, bpffs: &Path) -> Result<Vec<PathBuf>> {
        let (mut removed, mut done) = (Vec::new(), Ok(()));
        for app in apps(bpffs)? {
            let collected = collect(self, &app, &mut removed);
            done = done.and(collected.inspect_err(|e| log::warn!("app '{}': {e}", app.name)));
        }
        let tidied = self.tidy(bpffs).inspect_err(|e| log::warn!("{e}"));
        done.and(tidied).map(|tidied| removed.into_iter().chain(tidied).collect())
    }
}

/// Removes what is garbage of an app's, and finishes what is not.
fn collect(hook: &(impl Hook + ?Sized), app: &App, removed: &mut Vec<PathBuf>) -> Result<()> {
    removed.extend(take_down_aside(hook, app)?);
    // One that cannot be read is for `unload` to clear, not for us to guess.
    let Ok(mut dir) = Dir::open(hook, app) else { return Ok(()) };
    if hook.end(&dir) != End::ForGood {
        return dir.settle(hook);
    }
    let path = app.hook_dir(hook.spec());
    take_down(hook, app, &pin::put_aside(&path)?)?;
    removed.push(path);
    Ok(())
}

/// A settled deployment, for what its hook takes.
fn open_for(hook: &(impl Hook + ?Sized), app: &App, what: &Registration) -> Result<Dir> {
    let (spec, other) = (hook.spec(), what.kind());
    if other != spec.registers {
        let (name, kind) = (spec.name, spec.registers);
        return Err(Error::Usage(format!("{name} takes {kind}s, not {other}s")));
    }
    let mut dir = Dir::open(hook, app)?;
    dir.settle(hook)?;
    Ok(dir)
}

fn deploy(hook: &(impl Hook + ?Sized), app: &App, policy: &Linked, target: &Facts) -> Result<()> {
    let spec = hook.spec();
    let path = app.hook_dir(spec);
    clear_asides(hook, app)?;
    if path.exists() && !hook.has_ended(app) {
        return Err(Error::Conflict {
            what: format!("app '{}' has a policy at {} already", app.name, spec.name),
            advice: "use 'replace', or 'unload' it first".to_owned(),
        });
    }

    let mut staged = Staged::new(&path)?;
    let mut record = Record { uid: app.uid, ..Record::default() };
    describe(&mut record, policy);
    let mut dir = Dir { app: app.clone(), path: staged.path().to_owned(), record };
    let deployed = dir
        .record
        .write(&dir.path)
        .and_then(|()| hook.attach(&mut dir, policy, target))
        .and_then(|()| put_in_place(hook, app, &mut staged, &path));
    if deployed.is_err() {
        // What the user hears is why it failed, not what else did.
        if let Err(e) = take_down(hook, app, &dir.path) {
            log::warn!("{e}");
        }
        tidy(hook, &app.bpffs);
    }
    deployed
}

/// Puts a deployment in its place, or in that of one which has ended, and is there until then.
fn put_in_place(
    hook: &(impl Hook + ?Sized),
    app: &App,
    staged: &mut Staged,
    path: &Path,
) -> Result<()> {
    if !path.exists() {
        return staged.commit();
    }
    match staged.exchange() {
        Ok(()) => {}
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            // Before Linux 5.16.
            take_down(hook, app, path)?;
            return staged.commit();
        }
        Err(e) => return Err(e),
    }
    // The new one decides: what stays of the other is garbage, for the next call.
    take_down(hook, app, staged.path()).unwrap_or_else(|e| log::warn!("{e}"));
    Ok(())
}

/// Ends a deployment that was put aside, or was never in place; none is no error.
fn take_down(hook: &(impl Hook + ?Sized), app: &App, path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    hook.detach(app, path)?;
    pin::remove_tree(path)
}

/// Ends what a dead call put aside, or had not put in place yet, and tells what it was.
fn take_down_aside(hook: &(impl Hook + ?Sized), app: &App) -> Result<Option<PathBuf>> {
    let aside = pin::aside(&app.hook_dir(hook.spec()));
    if !aside.exists() {
        return Ok(None);
    }
    take_down(hook, app, &aside)?;
    Ok(Some(aside))
}

/// After a deployment went. What stays of what apps share is no matter of that one's, and
/// the next call tries again.
fn tidy(hook: &(impl Hook + ?Sized), bpffs: &Path) {
    if let Err(e) = hook.tidy(bpffs) {
        log::warn!("{}: {e}", hook.spec().name);
    }
}

/// Ends what dead calls left here, whosever it was: it may hold what the next deployment is
/// to get, a socket or a slot.
fn clear_asides(hook: &(impl Hook + ?Sized), app: &App) -> Result<()> {
    take_down_aside(hook, app)?;
    for other in apps(&app.bpffs)? {
        // What it does hold is missed soon, and said by whoever misses it.
        if let Err(e) = take_down_aside(hook, &other) {
            log::warn!("app '{}': {e}", other.name);
        }
    }
    Ok(())
}

/// The apps that have a folder; whose they are is not asked.
fn apps(bpffs: &Path) -> Result<Vec<App>> {
    let named = |folder: PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        App { name, uid: 0, bpffs: bpffs.to_owned() }
    };
    Ok(pin::app_folders(bpffs)?.into_iter().map(named).collect())
}
