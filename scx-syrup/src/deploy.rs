//! Deployments: a slot of the root scheduler, a program in it, a record beside it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libbpf_rs::MapType;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use syrup_hook::process::Thread;
use syrup_hook::sys::{self, Map};
use syrup_hook::{
    App, Counters, Dir, Error, Facts, Health, Linked, LoadedProgram, Observed, POLICY_PROGRAM,
    PolicyObject, Probe, Registration, Result, pin, process, set_constant,
};
use syrup_sdk::abi::{self, syrup_thread_policy};

use crate::health::{Cores, Waiting};
use crate::layout::{
    SYRUP_SCX_ALL_CPUS, SYRUP_SCX_FOUND_CPUS, SYRUP_SCX_RESCUE_MS, SYRUP_SCX_THREADS, syrup_scx_app,
};
use crate::root::{Expelled, Root, Waits, nr_cpus};
use crate::slots::{self, Deployments, Lease};
use crate::threads::{self, Owner};
use crate::{SPEC, cpus, health, kernel};

const VERDICTS: &str = "verdicts";

/// What a deployment is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// Adopt the threads of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The cores of the app; empty means all.
    pub cpus: Vec<u32>,
    /// Share against other apps; 100 is normal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Most threads of the app in the class; 16384 is normal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What is kept of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The app's slot in the root scheduler.
    pub slot: u32,
    /// What makes it the app's; earlier versions did not say.
    #[serde(default)]
    pub lease: Option<Lease>,
    /// The process whose threads it was loaded for.
    #[serde(default)]
    pid: Option<i32>,
    /// What its policy asked for.
    policy: Settings,
    /// Executors that its policy may name.
    executors: u32,
}

/// Shows a policy to the verifier.
pub(crate) fn verify(policy: &Linked) -> Result<()> {
    available()?;
    let settings = settings(&policy.settings).map_err(Error::Usage)?;
    open(policy, &settings, &settings.executors(&[])?)?.load(POLICY_PROGRAM).map(drop)
}

fn available() -> Result<()> {
    match kernel::probe() {
        Probe::Available => Ok(()),
        Probe::Missing { what, advice } => Err(Error::Unsupported { missing: what, advice }),
    }
}

/// Makes a policy live for an app that has none.
pub(crate) fn attach(dir: &mut Dir, policy: &Linked, target: &Facts) -> Result<()> {
    available()?;
    let settings = settings(&policy.settings).map_err(Error::Usage)?;
    let target: Target = syrup_hook::target(target)?;
    let cpus = cpus::checked(&target.cpus, nr_cpus()?, &cpus::online()?)?;
    let weight = weight(&target)?;
    if let Some(pid) = target.pid {
        process::threads(pid)?;
    }

    let bpffs = dir.app().bpffs.clone();
    let root = &Root::ensure(&bpffs)?;
    // There are other slots, and what is left in one is no other app's, by its generation.
    slots::sweep(root, &bpffs).unwrap_or_else(|e| log::warn!("{e}"));
    let slot = slots::free(root, &bpffs)?;
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
        user: dir.app().uid,
        ..Default::default()
    };
    limit(&mut conf, target.limit.unwrap_or(SYRUP_SCX_THREADS));
    cpus::set(&mut conf, &cpus);
    let executors = settings.executors(&cpus)?;
    let verdicts = verdict_map()?;
    settings.keep(&executors, &mut conf);
    let cpus = &cpus::get(&conf)[..];
    if let Some(pid) = target.pid {
        refuse_taken(root, &bpffs, &process::threads(pid)?, owner)?;
    }

    sys::obj_pin(verdicts.as_fd(), &dir.path().join(VERDICTS))?;
    root.reset_slot(slot, generation)?;
    dir.set_state(&State {
        slot,
        lease: Some(Lease::of(root, slot)?),
        pid: target.pid,
        policy: settings.clone(),
        executors: executors.len() as u32,
    })?;
    if settings.cores {
        root.make_cores(slot)?;
    }
    root.set_app(slot, &conf)?;
    let program = load(root, policy, &settings, &executors, &verdicts)?;
    program.pin(&dir.path().join(pin::POLICY))?;
    program.with_fd(|fd| root.set_program(slot, Some(fd)))?;
    root.serve(slot, true)?;
    match target.pid {
        Some(pid) => adopt(root, dir.app(), &root.map("syrup_threads")?, owner, pid, cpus),
        None => Ok(()),
    }
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
            return match root.members(owner.slot)? {
                1.. => Ok(()),
                0 => Err(Error::NotFound {
                    what: format!("process {pid} has ended"),
                    advice: "give the id of a running process".to_owned(),
                }),
            };
        }
        refuse_taken(root, &app.bpffs, &new, owner)?;
        for tid in new {
            check_affinity(tid, cpus)?;
            let Some(thread) = Thread::open(tid)? else { continue };
            // Its id may be another one's since it was listed.
            if !process::has_thread(pid, tid) {
                continue;
            }
            match threads::register(root, table, &thread, owner, adopted) {
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

/// The slot of a deployment and the root scheduler it is in; `None` when somebody removed
/// that one's pins, whether or not there is another since: then its threads run under the
/// kernel's default.
fn slot_of(dir: &Dir) -> Result<(State, Option<Root>)> {
    let state: State = dir.state()?;
    let root = match Root::open(&dir.app().bpffs)? {
        Some(root) if slots::has(&root, &state)? => Some(root),
        _ => None,
    };
    Ok((state, root))
}

/// The same where there must be one.
fn running(dir: &Dir) -> Result<(State, Root)> {
    match slot_of(dir)? {
        (state, Some(root)) => Ok((state, root)),
        (_, None) => Err(Error::Conflict {
            what: NO_ROOT.to_owned(),
            advice: format!(
                "'syrupctl unload {} --app {}' and load it again",
                SPEC.name,
                dir.app().name
            ),
        }),
    }
}

const NO_ROOT: &str = "the root scheduler's pins are gone";

/// Kernel id of the program in its slot.
pub(crate) fn live(dir: &Dir) -> Result<u32> {
    match slot_of(dir)? {
        (state, Some(root)) => root.program_id(state.slot),
        (_, None) => Ok(0),
    }
}

/// Loads a policy for the slot of the live one.
pub(crate) fn prepare(dir: &Dir, policy: &Linked) -> Result<(LoadedProgram, Value)> {
    let (state, root) = running(dir)?;
    let settings = settings(&policy.settings).map_err(Error::Usage)?;
    let mut conf = root.app(state.slot)?;
    let executors = settings.executors(&cpus::get(&conf))?;
    let verdicts = Map::open(&dir.path().join(VERDICTS))?;
    if settings.cores && conf.cores == 0 {
        root.make_cores(state.slot)?;
        conf.cores = 1;
    }
    settings.keep(&executors, &mut conf);
    let program = load(&root, policy, &settings, &executors, &verdicts)?;
    // Queues of both policies are served from before the change on, so no
    // thread that the old policy placed is left behind.
    conf.nr_queues = conf.nr_queues.max(settings.queues);
    conf.rescue_ns = settings.rescue_ns;
    root.set_app(state.slot, &conf)?;
    let state = State { policy: settings, executors: executors.len() as u32, ..state };
    let state = serde_json::to_value(state)
        .map_err(|e| Error::Defect(format!("a state has no JSON form: {e}")))?;
    Ok((program, state))
}

/// Puts a program in the slot.
pub(crate) fn set_policy(dir: &Dir, program: BorrowedFd<'_>) -> Result<()> {
    let (state, root) = running(dir)?;
    root.set_program(state.slot, Some(program))
}

/// The app's settings are those of the policy that decides.
pub(crate) fn settle(dir: &Dir) -> Result<()> {
    let (state, Some(root)) = slot_of(dir)? else { return Ok(()) };
    let mut conf = root.app(state.slot)?;
    state.policy.apply(&mut conf);
    root.set_app(state.slot, &conf)
}

/// Changes an app's share and cores while its policy goes on.
pub(crate) fn change(dir: &Dir, facts: &Facts) -> Result<()> {
    let target: Target = syrup_hook::target(facts)?;
    let (state, root) = running(dir)?;
    let mut conf = root.app(state.slot)?;
    if target.weight.is_some() {
        conf.weight = weight(&target)?;
    }
    if let Some(most) = target.limit {
        limit(&mut conf, most);
    }
    if facts.contains_key("cpus") {
        if state.policy.cores {
            let (name, app) = (SPEC.name, &dir.app().name);
            return Err(Error::Conflict {
                what: format!("the policy of app '{app}' chooses among its cores by number"),
                advice: format!(
                    "'syrupctl unload {name} --app {app}' and load it again with other --cpus"
                ),
            });
        }
        let cpus = cpus::checked(&target.cpus, nr_cpus()?, &cpus::online()?)?;
        let owner = Owner { slot: state.slot, generation: conf.generation };
        for thread in threads::of(&root.map("syrup_threads")?, owner)? {
            check_affinity(thread.tid, &cpus)?;
        }
        cpus::set(&mut conf, &cpus);
    }
    root.set_app(state.slot, &conf)
}

/// Empties the slot, if the folder tells which and no other app has it by now; else [`tidy`]
/// finds it.
pub(crate) fn detach(app: &App, path: &Path) -> Result<()> {
    let Some(root) = Root::find(&app.bpffs)? else { return Ok(()) };
    let Some(Ok(state)) = slots::state_in(path) else { return Ok(()) };
    match root.info() {
        Ok(_) if slots::has(&root, &state)? => slots::clear(&root, state.slot),
        Ok(_) => Ok(()),
        Err(e) => {
            // Its threads stay until the last app leaves; they are nobody's from now on.
            log::warn!("{e}: app '{}' loses its policy, and later its threads", app.name);
            slots::forsake(&root, &app.bpffs, &state)
        }
    }
}

/// Gives a thread to a live deployment.
pub(crate) fn add(dir: &Dir, what: Registration, index: Option<u32>) -> Result<u32> {
    let Registration::Thread { tid } = what else {
        return Err(Error::Usage(format!("{} takes threads", SPEC.name)));
    };
    let (State { slot, .. }, root) = running(dir)?;
    if root.waits(slot)?.expelled.is_some() {
        return Err(Error::Conflict {
            what: format!("app '{}' is expelled from sched_ext", dir.app().name),
            advice: format!(
                "'syrupctl status' says why; 'syrupctl unload {} --app {}' and load it again",
                SPEC.name,
                dir.app().name
            ),
        });
    }
    let conf = root.app(slot)?;
    let owner = Owner { slot, generation: conf.generation };
    refuse_taken(&root, &dir.app().bpffs, &[tid], owner)?;
    if index == Some(abi::SYRUP_INDEX_NONE) {
        return Err(Error::Usage(format!("{} is no index", abi::SYRUP_INDEX_NONE)));
    }
    check_affinity(tid, &cpus::get(&conf))?;
    let table = root.map("syrup_threads")?;
    let present = threads::find(&table, tid)?
        .filter(|thread| thread.owner == owner && thread.index != abi::SYRUP_INDEX_NONE);
    let index = match index.or(present.map(|thread| thread.index)) {
        Some(index) => index,
        None => root.free_index(slot)?,
    };
    let thread = Thread::open(tid)?.ok_or_else(|| threads::no_such_thread(tid))?;
    threads::register(&root, &table, &thread, owner, index)?;
    Ok(index)
}

/// Whether threads of a deployment are still in the class although it was expelled.
pub(crate) fn is_to_be_expelled(dir: &Dir) -> Result<bool> {
    let (State { slot, .. }, Some(root)) = slot_of(dir)? else { return Ok(false) };
    Ok(root.waits(slot)?.expelled.is_some() && root.members(slot)? > 0)
}

/// Takes its threads out of the class if it was expelled; returns whether there were any.
pub(crate) fn expel(dir: &Dir) -> Result<bool> {
    let (State { slot, .. }, Some(root)) = slot_of(dir)? else { return Ok(false) };
    let (Some(Expelled { waited, .. }), threads) =
        (root.waits(slot)?.expelled, root.members(slot)?)
    else {
        return Ok(false);
    };
    if threads == 0 {
        return Ok(false);
    }
    if !slots::expel(&root, slot)? {
        return Ok(false);
    }
    log::warn!(
        "app {} is expelled: one of its {threads} threads had waited for {:.1} s",
        dir.app().name,
        waited.as_secs_f64()
    );
    Ok(true)
}

/// Gives a thread of a live deployment back to the kernel's default scheduler.
pub(crate) fn release(dir: &Dir, what: &Registration) -> Result<()> {
    let Registration::Thread { tid } = *what else {
        return Err(Error::Usage(format!("{} takes threads", SPEC.name)));
    };
    let (State { slot, .. }, root) = running(dir)?;
    let owner = Owner { slot, generation: root.app(slot)?.generation };
    if threads::owner_of(&root.map("syrup_threads")?, tid)? != Some(owner) {
        return Err(Error::not_registered(&format!("thread {tid}"), &dir.app().name));
    }
    threads::release(&root.map("syrup_threads")?, tid)
}

/// What was counted for a deployment since its app came.
pub(crate) fn counters(dir: &Dir) -> Result<Counters> {
    let mut counters = Counters::default();
    let (State { slot, .. }, Some(root)) = slot_of(dir)? else { return Ok(counters) };
    let map = root.map("syrup_counters")?;
    for (counter, sum) in (0..).zip(counters.0.iter_mut()) {
        *sum = map.sum(slot * abi::SYRUP_NR_COUNTERS + counter)?;
    }
    Ok(counters)
}

/// What the kernel says of a deployment now.
pub(crate) fn observe(dir: &Dir) -> Result<Observed> {
    let (state, root) = slot_of(dir)?;
    let counters = counters(dir)?;
    let (mut has_policy, mut threads, mut cores) = (false, 0, Vec::new());
    let (mut weight, mut most) = (0, 0);
    let (mut waits, mut deadline) = (Waits::default(), Duration::ZERO);
    let root_state = match &root {
        Some(root) => {
            has_policy = root.program_id(state.slot)? != 0;
            threads = root.members(state.slot)?;
            let conf = root.app(state.slot)?;
            (cores, weight, most) = (cpus::get(&conf), conf.weight, conf.most_threads);
            waits = root.waits(state.slot)?;
            deadline = Duration::from_nanos(conf.rescue_ns);
            root.state()?
        }
        None => crate::root::State::Ejected(NO_ROOT.to_owned()),
    };
    let health = match health::judge(
        &root_state,
        has_policy,
        &dir.recent(&counters),
        Waiting { waits, deadline, threads },
        &Cores::of(&cores, state.policy.cores, &cpus::online()?),
    ) {
        Health::Live(_) if threads == 0 => Health::waiting(format!(
            "it waits for its first thread; let the application register its threads \
             (syr_register_thread), or 'syrupctl unload {hook} --app {app}' and load it again \
             with --pid",
            hook = SPEC.name,
            app = dir.app().name
        )),
        health => health,
    };
    let health = match root.as_ref().map(Root::returned).transpose()?.flatten() {
        Some((ago, why)) => health::after_return(health, ago, &why),
        None => health,
    };
    let verdicts = Map::open(&dir.path().join(VERDICTS))?;
    let executors = state.executors.min(verdicts.max_entries());
    let mut target = Facts::from([
        ("threads".to_owned(), threads.into()),
        ("cpus".to_owned(), cores.into()),
        ("weight".to_owned(), weight.into()),
        ("limit".to_owned(), most.into()),
    ]);
    if let Some(pid) = state.pid.filter(|&pid| process::is_running(pid)) {
        target.insert("pid".to_owned(), pid.into());
    }
    Ok(Observed {
        inputs: format!("{threads} thread{}", if threads == 1 { "" } else { "s" }),
        executors: state.executors,
        target,
        counters,
        verdicts: (0..executors).map(|key| verdicts.sum(key)).collect::<Result<_>>()?,
        health,
    })
}

/// Gives back what no app uses any more: slots, threads, and the root scheduler when it was
/// the last.
pub(crate) fn tidy(bpffs: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    if let Some(interrupted) = Root::interrupted(bpffs) {
        removed.push(interrupted.dir().to_owned());
        interrupted.stop()?;
    }
    if let Some(root) = Root::find(bpffs)? {
        // Another version's has slots that are none of ours.
        if root.info().is_ok() {
            slots::sweep(&root, bpffs)?;
        }
        if Deployments::find(bpffs)?.are_none() {
            removed.push(root.dir().to_owned());
            root.stop()?;
        }
    }
    Ok(removed)
}

/// What a policy asked for, checked and with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
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

/// How many threads the app may have, and its user, unless that is root, in all apps: of what
/// these say the largest number counts.
fn limit(conf: &mut syrup_scx_app, most: u32) {
    conf.most_threads = most;
    conf.most_threads_of_user = if conf.user == 0 { u32::MAX } else { most.saturating_mul(2) };
}

/// Reads a `SYRUP_THREAD_POLICY`; nothing of it means the defaults.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn settings(bytes: &[u8]) -> std::result::Result<Settings, String> {
    let (words, rest) = bytes.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|&word| u32::from_ne_bytes(word)).collect();
    let policy = match (words.as_slice(), rest) {
        ([], []) => syrup_thread_policy::default(),
        (&[queues, preempt, executors, rescue_ms], []) => {
            syrup_thread_policy { queues, preempt, executors, rescue_ms }
        }
        _ => return Err("SYRUP_THREAD_POLICY has the wrong size".to_owned()),
    };
    if policy.preempt > 1 || policy.executors > abi::SYRUP_CORES {
        return Err("SYRUP_THREAD_POLICY: .preempt is true or false, .executors is SYRUP_QUEUES \
                    or SYRUP_CORES"
            .to_owned());
    }
    let cores = policy.executors == abi::SYRUP_CORES;
    if policy.queues > abi::SYRUP_MAX_QUEUES {
        return Err(format!(
            "SYRUP_THREAD_POLICY(.queues = {}): an app has at most {} queues",
            policy.queues,
            abi::SYRUP_MAX_QUEUES
        ));
    }
    if cores && policy.preempt != 0 {
        return Err("SYRUP_THREAD_POLICY(.executors = SYRUP_CORES, .preempt = true): preemption \
                    is between queues, and this policy chooses cores"
            .to_owned());
    }
    let rescue_ms = if policy.rescue_ms == 0 { SYRUP_SCX_RESCUE_MS } else { policy.rescue_ms };
    // Below, the rescue would be the scheduler; above, the kernel's watchdog
    // (10 s) would come first.
    if !(20..=2000).contains(&rescue_ms) {
        return Err(format!("SYRUP_THREAD_POLICY(.rescue_ms = {rescue_ms}): 20 to 2000"));
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

/// Loads a policy.
fn load(
    root: &Root,
    policy: &Linked,
    settings: &Settings,
    executors: &[u32],
    verdicts: &Map,
) -> Result<LoadedProgram> {
    let mut object = open(policy, settings, executors)?;
    for (name, fd) in root.shared()? {
        object.share(name, fd.as_fd())?;
    }
    object.share("syrup_verdicts", verdicts.as_fd())?;
    object.load(POLICY_PROGRAM)
}

/// Opens a policy with the constants of its deployment and the app's Maps.
fn open(policy: &Linked, settings: &Settings, executors: &[u32]) -> Result<PolicyObject> {
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

/// Choices per executor: enough entries for any policy that may replace the first, with
/// whatever cores the app has then.
fn verdict_map() -> Result<Map> {
    let entries = nr_cpus()?.max(abi::SYRUP_MAX_QUEUES);
    pin::create_map(MapType::PercpuArray, "syrup_verdicts", 8, entries)
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
        if let Some(app) = Deployments::find(bpffs)?.app_in(root, owner.slot)? {
            let hook = SPEC.name;
            return Err(Error::Conflict {
                what: format!("thread {tid} is scheduled for app '{app}'"),
                advice: format!(
                    "'syrupctl unload {hook} --app {app}' gives its threads back, \
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
    if threads::may_run_on_any(&allowed, cpus) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "thread {tid} may run on cores {allowed:?} only, and the app's cores are {cpus:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(queues: u32, preempt: u32, executors: u32, rescue_ms: u32) -> Vec<u8> {
        [queues, preempt, executors, rescue_ms].map(u32::to_ne_bytes).concat()
    }

    #[test]
    fn defaults_are_one_queue_and_200_ms() {
        let expected = Settings { queues: 1, preempt: false, cores: false, rescue_ns: 200_000_000 };
        assert_eq!(settings(&[]).unwrap(), expected);
        assert_eq!(settings(&policy(0, 0, 0, 0)).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for (bad, word) in [
            (policy(9, 0, 0, 0), ".queues = 9"),
            (policy(0, 1, abi::SYRUP_CORES, 0), ".preempt"),
            (policy(1, 0, 0, 19), ".rescue_ms = 19"),
            (policy(1, 0, 0, 2001), ".rescue_ms = 2001"),
            (policy(1, 2, 0, 0), ".preempt is true or false"),
            (policy(1, 0, 2, 0), "SYRUP_QUEUES or SYRUP_CORES"),
            (vec![0; 15], "size"),
            (vec![0; 20], "size"),
        ] {
            let error = settings(&bad).unwrap_err();
            assert!(error.contains(word), "{error}");
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
}
