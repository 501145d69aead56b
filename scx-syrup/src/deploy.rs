//! Deployments: a slot of the root scheduler, a program in it, a record beside it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use libbpf_rs::MapType;
use syrup_hook::pin::{self, Staged};
use syrup_hook::sys::{self, Map};
use syrup_hook::{
    App, Counters, Deployment, Error, Health, HookId, Linked, LoadedProgram, POLICY_PROGRAM,
    PolicyObject, Probe, Registration, Result, Target, process, set_constant,
};
use syrup_sdk::abi::{self, syrup_record, syrup_thread_policy};

use crate::health::{Cores, Waits};
use crate::layout::{SYRUP_SCX_ALL_CPUS, SYRUP_SCX_FOUND_CPUS, SYRUP_SCX_RESCUE_MS, syrup_scx_app};
use crate::root::{Root, nr_cpus};
use crate::threads::{self, Owner};
use crate::{cpus, health, kernel};

const HOOK: HookId = HookId::ScxSyrup;
const VERDICTS: &str = "verdicts";

/// Shows a policy to the verifier.
pub(crate) fn verify(policy: &Linked) -> Result<()> {
    if let Probe::Missing { what, advice } = kernel::probe() {
        return Err(Error::Unsupported { missing: what, advice });
    }
    let settings = settings(&policy.thread)?;
    open(policy, 1, &settings, &settings.executors(&[])?)?.load(POLICY_PROGRAM).map(drop)
}

/// Makes a policy live for an app that has none.
pub(crate) fn deploy(app: &App, policy: &Linked, target: &Target) -> Result<()> {
    if let Probe::Missing { what, advice } = kernel::probe() {
        return Err(Error::Unsupported { missing: what, advice });
    }
    let settings = settings(&policy.thread)?;
    let cpus = cpus::checked(&target.cpus, nr_cpus()?, &cpus::online()?)?;
    let weight = weight(target)?;
    if let Some(pid) = target.pid {
        process::threads(pid)?;
    }

    let had_root = Root::open(&app.bpffs)?.is_some();
    let root = Root::ensure(&app.bpffs)?;
    let result = deploy_on(&root, app, policy, target, &cpus, &settings, weight);
    if result.is_err() && !had_root {
        root.stop()?;
    }
    result
}

#[allow(clippy::too_many_arguments)]
fn deploy_on(
    root: &Root,
    app: &App,
    policy: &Linked,
    target: &Target,
    cpus: &[u32],
    settings: &Settings,
    weight: u32,
) -> Result<()> {
    sweep(root, &app.bpffs)?;
    let slot = free_slot(&records(&app.bpffs)?)?;
    let generation = root.app(slot)?.generation.wrapping_add(1);
    let owner = Owner { slot, generation };
    let mut conf = syrup_scx_app {
        in_use: 1,
        weight,
        rescue_ns: settings.rescue_ns,
        nr_queues: settings.queues,
        last_queue: settings.queues - 1,
        cores: u32::from(settings.cores),
        generation,
        ..Default::default()
    };
    cpus::set(&mut conf, cpus);
    let executors = settings.executors(cpus)?;
    let verdicts = verdict_map(cpus)?;
    settings.keep(&executors, &mut conf);
    let cpus = &cpus::get(&conf)[..];

    let table = root.map("syrup_threads")?;
    if let Some(pid) = target.pid {
        refuse_taken(root, &app.bpffs, &process::threads(pid)?, owner)?;
    }
    let staged = Staged::new(&app.hook_dir(HOOK))?;
    sys::obj_pin(verdicts.as_fd(), &staged.path().join(VERDICTS))?;
    let mut record = syrup_record {
        abi_version: abi::SYRUP_ABI_VERSION,
        hook: HOOK.number(),
        uid: app.uid,
        slot,
        pid: target.pid.unwrap_or(0),
        app: pin::name_field(&app.name),
        ..Default::default()
    };
    describe(&mut record, policy, &executors);
    pin::write_record(staged.path(), &record)?;

    root.reset_slot(slot, generation)?;
    let undo = |e: Error| {
        let clean = clear_slot(root, slot);
        match clean {
            Ok(()) => e,
            Err(also) => {
                log::warn!("{also}");
                e
            }
        }
    };
    let go = || -> Result<()> {
        if settings.cores {
            root.make_cores(slot)?;
        }
        root.set_app(slot, &conf)?;
        let program = load(root, policy, slot, settings, &executors, &verdicts)?;
        program.pin(&staged.path().join(pin::POLICY))?;
        program.with_fd(|fd| root.set_program(slot, Some(fd)))?;
        root.serve(slot, true)?;
        match target.pid {
            Some(pid) => adopt(root, app, &table, owner, pid, cpus),
            None => Ok(()),
        }
    };
    go().map_err(undo)?;
    staged.commit().map_err(undo)
}

/// Registers the threads of a process, in the order of their ids: also those that they
/// start until they are registered, from when on their children belong to the app too.
fn adopt(root: &Root, app: &App, table: &Map, owner: Owner, pid: i32, cpus: &[u32]) -> Result<()> {
    const ROUNDS: usize = 20;
    // A thread that was registered while it cloned has a child that is not, which is
    // visible when that clone ends: soon, unless others keep its CPU meanwhile.
    const CLONE: Duration = Duration::from_millis(50);
    let (mut seen, mut adopted, mut settled) = (BTreeSet::new(), 0, false);
    for _ in 0..ROUNDS {
        let mut new = Vec::new();
        for tid in process::threads(pid)? {
            if seen.insert(tid) && threads::owner_of(table, tid)? != Some(owner) {
                new.push(tid);
            }
        }
        if new.is_empty() && !settled {
            settled = true;
            std::thread::sleep(CLONE);
            continue;
        }
        if new.is_empty() {
            return match threads::of(table, owner)?.is_empty() {
                false => Ok(()),
                true => Err(Error::NotFound {
                    what: format!("process {pid} has ended"),
                    advice: "give the id of a running process".to_owned(),
                }),
            };
        }
        refuse_taken(root, &app.bpffs, &new, owner)?;
        for tid in new {
            check_affinity(tid, cpus)?;
            match threads::register(root, table, tid, owner, adopted) {
                Ok(()) => adopted += 1,
                // It ended meanwhile.
                Err(Error::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Err(Error::Timeout(format!(
        "the threads of process {pid}: it starts more than can be registered meanwhile"
    )))
}

/// Puts a policy in the slot of the live one.
pub(crate) fn replace(app: &App, policy: &Linked) -> Result<()> {
    let dir = app.hook_dir(HOOK);
    let (mut record, root) = deployed(app)?;
    settle(&root, &dir)?;
    let settings = settings(&policy.thread)?;
    let mut conf = root.app(record.slot)?;
    let executors = settings.executors(&cpus::get(&conf))?;
    let verdicts = Map::open(&dir.join(VERDICTS))?;
    if settings.cores && conf.cores == 0 {
        root.make_cores(record.slot)?;
        conf.cores = 1;
    }
    settings.keep(&executors, &mut conf);
    let program = load(&root, policy, record.slot, &settings, &executors, &verdicts)?;
    // Queues of both policies are served from before the change on, so no
    // thread that the old policy placed is left behind.
    conf.nr_queues = conf.nr_queues.max(settings.queues);
    conf.rescue_ns = settings.rescue_ns;
    root.set_app(record.slot, &conf)?;
    record.generation += 1;
    describe(&mut record, policy, &executors);
    // For whoever reads it after a death before the count below.
    record.counted_before = counters(&root, record.slot)?.0;
    let live = root.program_id(record.slot)?;
    let replaced = program.with_fd(|fd| {
        pin::replace(&dir, live, fd, &record, || root.set_program(record.slot, Some(fd)))
    });
    if let Err(e) = replaced {
        // The old policy goes on under its own settings.
        settle(&root, &dir)?;
        return Err(e);
    }
    let mut finish = || -> Result<()> {
        settings.apply(&mut conf);
        root.set_app(record.slot, &conf)?;
        // Only then: what the old policy still decided is not held against the new.
        sys::wait_for_running_programs();
        record.counted_before = counters(&root, record.slot)?.0;
        pin::write_record(&dir, &record)
    };
    // The new policy decides already.
    if let Err(e) = finish() {
        log::warn!("{e}");
    }
    Ok(())
}

/// Finishes or undoes what a [`replace`] that was interrupted left.
fn settle(root: &Root, dir: &Path) -> Result<()> {
    let Some(record) = pin::read_record(dir)? else { return Ok(()) };
    let live = root.program_id(record.slot)?;
    let record = pin::live_record(dir, live)?.unwrap_or(record);
    let settings = settings(&record.thread)?;
    let mut conf = root.app(record.slot)?;
    settings.apply(&mut conf);
    root.set_app(record.slot, &conf)?;
    pin::settle(dir, live)
}

/// Opens the program of the live policy.
pub(crate) fn program(app: &App) -> Result<OwnedFd> {
    let (record, root) = deployed(app)?;
    pin::live_program(&app.hook_dir(HOOK), root.program_id(record.slot)?)
}

/// The live deployment's record and its root.
fn deployed(app: &App) -> Result<(syrup_record, Root)> {
    let dir = app.hook_dir(HOOK);
    let (Some(record), Some(root)) = (pin::read_record(&dir)?, Root::open(&app.bpffs)?) else {
        return Err(Error::not_deployed(&app.name, HOOK));
    };
    let live = root.program_id(record.slot)?;
    Ok((pin::live_record(&dir, live)?.unwrap_or(record), root))
}

/// Takes the deployment away.
pub(crate) fn remove(app: &App) -> Result<()> {
    let dir = app.hook_dir(HOOK);
    let slot = pin::read_record(&dir)?.map(|record| record.slot);
    if let Some(root) = Root::open(&app.bpffs)? {
        if let Some(slot) = slot {
            clear_slot(&root, slot)?;
        }
        remove_folder(&dir)?;
        sweep(&root, &app.bpffs)?;
        if records(&app.bpffs)?.is_empty() {
            root.stop()?;
        }
        return Ok(());
    }
    // Somebody removed the root scheduler's pins: its threads cannot be told
    // apart any more, and run under the kernel's default already.
    remove_folder(&dir)
}

/// Gives a thread to a live deployment.
pub(crate) fn register(app: &App, what: Registration, index: Option<u32>) -> Result<u32> {
    let Registration::Thread { tid } = what else {
        return Err(Error::Usage(format!("{HOOK} takes threads, not sockets")));
    };
    let (record, root) = deployed(app)?;
    let conf = root.app(record.slot)?;
    let owner = Owner { slot: record.slot, generation: conf.generation };
    refuse_taken(&root, &app.bpffs, &[tid], owner)?;
    if index == Some(abi::SYRUP_INDEX_NONE) {
        return Err(Error::Usage(format!("{} is no index", abi::SYRUP_INDEX_NONE)));
    }
    check_affinity(tid, &cpus::get(&conf))?;
    let table = root.map("syrup_threads")?;
    let (known, others): (Vec<_>, Vec<_>) =
        threads::of(&table, owner)?.into_iter().partition(|thread| thread.tid == tid);
    let present = known.first().map(|thread| thread.index);
    let index = index
        .or(present.filter(|&index| index != abi::SYRUP_INDEX_NONE))
        .unwrap_or_else(|| threads::free_index(&others));
    for other in others.iter().filter(|thread| thread.index == index) {
        match root.set_index(other.tid, owner, abi::SYRUP_INDEX_NONE) {
            // It ended, or left, meanwhile.
            Err(Error::NotFound { .. }) => {}
            other => other?,
        }
    }
    threads::register(&root, &table, tid, owner, index)?;
    Ok(index)
}

/// What was counted for a slot since its app came.
fn counters(root: &Root, slot: u32) -> Result<Counters> {
    let map = root.map("syrup_counters")?;
    let mut counters = Counters::default();
    for (counter, sum) in (0..).zip(counters.0.iter_mut()) {
        *sum = map.sum(slot * abi::SYRUP_NR_COUNTERS + counter)?;
    }
    Ok(counters)
}

/// Reads a deployment back.
pub(crate) fn read(app: &App) -> Result<Option<Deployment>> {
    let dir = app.hook_dir(HOOK);
    let Some(mut record) = pin::read_record(&dir)? else { return Ok(None) };
    let root = Root::open(&app.bpffs)?;
    let mut counted = Counters::default();
    let (mut program_id, mut nr_threads, mut cores) = (0, 0, Vec::new());
    let mut waits = Waits::default();
    let state = match &root {
        Some(root) => {
            counted = counters(root, record.slot)?;
            program_id = root.program_id(record.slot)?;
            record = pin::live_record(&dir, program_id)?.unwrap_or(record);
            nr_threads = root.members(record.slot)?;
            let conf = root.app(record.slot)?;
            cores = cpus::get(&conf);
            waits = Waits {
                longest: root.longest_wait(record.slot)?,
                deadline: Duration::from_nanos(conf.rescue_ns),
            };
            root.state()?
        }
        None => crate::root::State::Ejected("the root scheduler's pins are gone".to_owned()),
    };
    let health = match health::judge(
        &state,
        program_id != 0,
        &counted.since(&Counters(record.counted_before)),
        waits,
        &Cores::of(&cores, record.thread.executors == abi::SYRUP_CORES, &cpus::online()?),
    ) {
        Health::Live if nr_threads == 0 => Health::Waiting(format!(
            "it waits for its first thread; let the application register its threads \
                 (syr_register_thread), or 'syrupctl unload {HOOK} --app {app}' and load it again \
                 with --pid",
            app = app.name
        )),
        health => health,
    };
    let verdicts = Map::open(&dir.join(VERDICTS))?;
    let nr_verdicts = record.nr_executors.min(verdicts.max_entries());
    Ok(Some(Deployment {
        app: pin::field_name(&record.app),
        uid: record.uid,
        hook: HOOK,
        policy: pin::field_name(&record.policy),
        sha256: record.policy_sha256,
        program_id,
        generation: record.generation,
        deployed_at: UNIX_EPOCH + Duration::from_nanos(record.deployed_at_ns),
        port: None,
        pid: Some(record.pid).filter(|&pid| pid > 0 && process::is_running(pid)),
        nr_executors: record.nr_executors,
        nr_threads: Some(nr_threads),
        cpus: cores,
        health,
        counters: counted,
        verdicts: (0..nr_verdicts).map(|key| verdicts.sum(key)).collect::<Result<_>>()?,
    }))
}

/// Removes what interrupted calls left behind.
pub(crate) fn collect_garbage(bpffs: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    if let Some(interrupted) = Root::interrupted(bpffs) {
        removed.push(interrupted.dir().to_owned());
        interrupted.stop()?;
    }
    for app in pin::app_folders(bpffs)? {
        let folder = pin::aside(&app.join(HOOK.name()));
        if folder.exists() {
            pin::remove_tree(&folder)?;
            removed.push(folder);
        }
    }
    if let Some(root) = Root::open(bpffs)? {
        sweep(&root, bpffs)?;
        for app in pin::app_folders(bpffs)? {
            settle(&root, &app.join(HOOK.name()))?;
        }
        if records(bpffs)?.is_empty() {
            removed.push(root.dir().to_owned());
            root.stop()?;
        }
    }
    Ok(removed)
}

/// Empties every slot without a record: a call that died before its record was
/// in place left it, or one that died after it had taken the record away. Also gives
/// back threads of apps that are gone.
fn sweep(root: &Root, bpffs: &Path) -> Result<()> {
    let known: Vec<u32> = records(bpffs)?.iter().map(|record| record.slot).collect();
    let served = root.info()?.slots_in_use;
    for slot in (1..abi::SYRUP_MAX_APPS).filter(|slot| !known.contains(slot)) {
        if served >> slot & 1 == 1 || root.app(slot)?.in_use != 0 || root.program_id(slot)? != 0 {
            clear_slot(root, slot)?;
        }
    }
    let live = known.iter().map(|&slot| {
        let generation = root.app(slot)?.generation;
        Ok(Owner { slot, generation })
    });
    threads::release_strays(&root.map("syrup_threads")?, &live.collect::<Result<Vec<_>>>()?)
}

/// Empties a slot. The order matters: new arrivals go to nobody's slot first,
/// then the threads leave, and only then the root stops serving the queues.
fn clear_slot(root: &Root, slot: u32) -> Result<()> {
    let conf = root.app(slot)?;
    root.set_app(slot, &syrup_scx_app { in_use: 0, ..conf })?;
    threads::release_all(root, &root.map("syrup_threads")?, slot)?;
    root.set_program(slot, None)?;
    root.serve(slot, false)
}

/// Takes a deployment's folder away in one step.
fn remove_folder(dir: &Path) -> Result<()> {
    pin::remove_tree(&pin::aside(dir))?;
    pin::remove_tree(&pin::put_aside(dir)?)
}

/// What a policy asked for, checked and with defaults filled in.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    queues: u32,
    preempt: bool,
    cores: bool,
    rescue_ns: u64,
}

/// An app's share against others.
fn weight(target: &Target) -> Result<u32> {
    match target.weight.unwrap_or(100) {
        weight @ 1..=10_000 => Ok(weight),
        weight => Err(Error::Usage(format!("a weight is 1 to 10000, not {weight}"))),
    }
}

fn settings(policy: &syrup_thread_policy) -> Result<Settings> {
    let cores = policy.executors == abi::SYRUP_CORES;
    if policy.queues > abi::SYRUP_MAX_QUEUES {
        return Err(Error::Usage(format!(
            "SYRUP_THREAD_POLICY(.queues = {}): an app has at most {} queues",
            policy.queues,
            abi::SYRUP_MAX_QUEUES
        )));
    }
    if cores && policy.preempt != 0 {
        return Err(Error::Usage(
            "SYRUP_THREAD_POLICY(.executors = SYRUP_CORES, .preempt = true): preemption is \
             between queues, and this policy chooses cores"
                .to_owned(),
        ));
    }
    let rescue_ms = if policy.rescue_ms == 0 { SYRUP_SCX_RESCUE_MS } else { policy.rescue_ms };
    // Below, the rescue would be the scheduler; above, the kernel's watchdog
    // (10 s) would come first.
    if !(20..=2000).contains(&rescue_ms) {
        return Err(Error::Usage(format!(
            "SYRUP_THREAD_POLICY(.rescue_ms = {rescue_ms}): 20 to 2000"
        )));
    }
    Ok(Settings {
        // One queue beside the cores takes what the policy does not place.
        queues: if cores { 1 } else { policy.queues.max(1) },
        preempt: policy.preempt != 0,
        cores,
        rescue_ns: u64::from(rescue_ms) * 1_000_000,
    })
}

impl Settings {
    /// Makes the cores that are executors the app's, whatever comes online later.
    fn keep(&self, executors: &[u32], conf: &mut syrup_scx_app) {
        if self.cores && conf.masked == SYRUP_SCX_ALL_CPUS {
            cpus::set(conf, executors);
            conf.masked = SYRUP_SCX_FOUND_CPUS;
        }
    }

    /// What holds for the live policy, and for no other that had been live or was to be.
    fn apply(&self, conf: &mut syrup_scx_app) {
        conf.last_queue = self.queues - 1;
        conf.rescue_ns = self.rescue_ns;
        if !self.cores && conf.masked == SYRUP_SCX_FOUND_CPUS {
            cpus::set(conf, &[]);
        }
    }

    /// What the numbers that `schedule()` may return stand for: queues, or the app's
    /// cores, which are those that are online when nobody named some.
    fn executors(&self, cpus: &[u32]) -> Result<Vec<u32>> {
        match (self.cores, cpus) {
            (false, _) => Ok((0..self.queues).collect()),
            (true, []) => cpus::online(),
            (true, cpus) => Ok(cpus.to_vec()),
        }
    }
}

/// Loads a policy for a slot.
fn load(
    root: &Root,
    policy: &Linked,
    slot: u32,
    settings: &Settings,
    executors: &[u32],
    verdicts: &Map,
) -> Result<LoadedProgram> {
    let mut object = open(policy, slot, settings, executors)?;
    for (name, fd) in root.shared()? {
        object.share(name, fd.as_fd())?;
    }
    object.share("syrup_verdicts", verdicts.as_fd())?;
    object.load(POLICY_PROGRAM)
}

/// Opens a policy with the constants of its deployment and the app's Maps.
fn open(
    policy: &Linked,
    slot: u32,
    settings: &Settings,
    executors: &[u32],
) -> Result<PolicyObject> {
    let mut cpu_of = vec![0; abi::SYRUP_MAX_CPUS as usize * 2];
    for (entry, &cpu) in cpu_of.chunks_exact_mut(2).zip(executors) {
        entry.copy_from_slice(&(cpu as u16).to_ne_bytes());
    }
    let mut image = policy.object.clone();
    let mut set = |name: &str, value: &[u8]| match set_constant(&mut image, name, value)? {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "the policy is not linked with this version's trusted half: no {name}"
        ))),
    };
    set("syrup_slot", &slot.to_ne_bytes())?;
    set("syrup_nr_executors", &(executors.len() as u32).to_ne_bytes())?;
    set("syrup_is_cores", &u32::from(settings.cores).to_ne_bytes())?;
    set("syrup_preempt", &u32::from(settings.preempt).to_ne_bytes())?;
    set("syrup_cpu_of", &cpu_of)?;

    let mut object = PolicyObject::open_bytes(&image, &policy.name)?;
    for (name, fd) in &policy.maps {
        object.share(name, fd.as_fd())?;
    }
    Ok(object)
}

/// Choices per executor: enough entries for any policy that may replace the first.
fn verdict_map(cpus: &[u32]) -> Result<Map> {
    let cores = if cpus.is_empty() { nr_cpus()? } else { cpus.len() as u32 };
    let entries = cores.max(abi::SYRUP_MAX_QUEUES);
    pin::create_map(MapType::PercpuArray, "syrup_verdicts", 8, entries)
}

fn describe(record: &mut syrup_record, policy: &Linked, executors: &[u32]) {
    pin::describe_policy(record, policy);
    record.thread = policy.thread;
    record.nr_executors = executors.len() as u32;
}

/// The records of all apps with a thread deployment.
fn records(bpffs: &Path) -> Result<Vec<syrup_record>> {
    pin::app_folders(bpffs)?
        .iter()
        .filter_map(|app| pin::read_record(&app.join(HOOK.name())).transpose())
        .collect()
}

fn free_slot(records: &[syrup_record]) -> Result<u32> {
    (1..abi::SYRUP_MAX_APPS)
        .find(|slot| records.iter().all(|record| record.slot != *slot))
        .ok_or_else(|| Error::Conflict {
            what: format!("all {} app slots are taken", abi::SYRUP_MAX_APPS - 1),
            advice: "unload a thread policy first".to_owned(),
        })
}

/// A thread is one app's: two policies cannot both decide about it, and its app would
/// lose it without a word.
fn refuse_taken(root: &Root, bpffs: &Path, tids: &[i32], by: Owner) -> Result<()> {
    let table = root.map("syrup_threads")?;
    for &tid in tids {
        let Some(owner) = threads::owner_of(&table, tid)?.filter(|&owner| owner != by) else {
            continue;
        };
        if root.app(owner.slot)?.generation != owner.generation {
            continue;
        }
        if let Some(record) = records(bpffs)?.iter().find(|record| record.slot == owner.slot) {
            let app = pin::field_name(&record.app);
            return Err(Error::Conflict {
                what: format!("thread {tid} is scheduled for app '{app}'"),
                advice: format!(
                    "'syrupctl unload {HOOK} --app {app}' gives its threads back, \
                     'chrt --other --pid 0 {tid}' takes this one from it"
                ),
            });
        }
    }
    Ok(())
}

/// A thread that may run on none of the app's cores would only ever be rescued.
fn check_affinity(tid: i32, cpus: &[u32]) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let allowed = match threads::affinity(tid) {
        // A process's thread that ended meanwhile: registering finds out.
        Err(Error::NotFound { .. }) => return Ok(()),
        other => other?,
    };
    if allowed.iter().any(|cpu| cpus.contains(cpu)) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "thread {tid} may run on cores {allowed:?} only, and the app's cores are {cpus:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(queues: u32, preempt: u32, executors: u32, rescue_ms: u32) -> syrup_thread_policy {
        syrup_thread_policy { queues, preempt, executors, rescue_ms }
    }

    #[test]
    fn defaults_are_one_queue_and_200_ms() {
        let expected = Settings { queues: 1, preempt: false, cores: false, rescue_ns: 200_000_000 };
        assert_eq!(settings(&syrup_thread_policy::default()).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for (bad, word) in [
            (policy(9, 0, 0, 0), ".queues = 9"),
            (policy(0, 1, abi::SYRUP_CORES, 0), ".preempt"),
            (policy(1, 0, 0, 19), ".rescue_ms = 19"),
            (policy(1, 0, 0, 2001), ".rescue_ms = 2001"),
        ] {
            let error = settings(&bad).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn what_a_policy_asks_for_is_what_it_gets_up_to_the_limits() {
        let least = settings(&policy(1, 0, 0, 20)).unwrap();
        let expected = Settings { queues: 1, preempt: false, cores: false, rescue_ns: 20_000_000 };
        assert_eq!(least, expected);
        let most = settings(&policy(8, 1, 0, 2000)).unwrap();
        let expected =
            Settings { queues: 8, preempt: true, cores: false, rescue_ns: 2_000_000_000 };
        assert_eq!(most, expected);
        assert_eq!(most.executors(&[1, 2]).unwrap().len(), 8, "queues, whatever the cores");
    }

    #[test]
    fn a_weight_is_100_unless_said_and_has_limits() {
        let of = |weight| super::weight(&Target { weight, ..Default::default() });
        assert_eq!(of(None).unwrap(), 100);
        assert_eq!((of(Some(1)).unwrap(), of(Some(10_000)).unwrap()), (1, 10_000));
        for bad in [0, 10_001] {
            let refused = of(Some(bad)).unwrap_err();
            assert!(matches!(&refused, Error::Usage(why) if why.contains(&bad.to_string())));
        }
    }

    #[test]
    fn core_executors_are_the_apps_cores() {
        let cores = settings(&policy(4, 0, abi::SYRUP_CORES, 0)).unwrap();
        assert_eq!((cores.queues, cores.executors(&[2, 5, 7]).unwrap()), (1, vec![2, 5, 7]));
        assert_eq!(cores.executors(&[]).unwrap(), cpus::online().unwrap());
    }

    #[test]
    fn slots_start_at_one_and_fill_gaps() {
        let taken = |slots: &[u32]| -> Vec<syrup_record> {
            slots.iter().map(|&slot| syrup_record { slot, ..Default::default() }).collect()
        };
        assert_eq!(free_slot(&[]).unwrap(), 1);
        assert_eq!(free_slot(&taken(&[1, 3])).unwrap(), 2);
        let all: Vec<u32> = (1..abi::SYRUP_MAX_APPS).collect();
        assert!(matches!(free_slot(&taken(&all)), Err(Error::Conflict { .. })));
    }
}
