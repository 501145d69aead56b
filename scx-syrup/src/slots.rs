//! Which deployment has which slot of the root scheduler.

use std::path::Path;

use serde::{Deserialize, Serialize};
use syrup_hook::record::Record;
use syrup_hook::{Error, Result, pin, sys};
use syrup_sdk::abi;

use crate::SPEC;
use crate::cpus;
use crate::deploy::State;
use crate::layout::syrup_scx_app;
use crate::root::Root;
use crate::threads::{self, Owner};

/// Of threads that no app registered.
pub(crate) const NOBODYS: u32 = 0;

/// One use of a slot. A record may outlive it: when the slot's next app came, or another
/// root scheduler whose slots have the same numbers, the slot is none of its business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// The root scheduler's number, which no other of this boot has.
    scheduler: u64,
    /// Which of the slot's apps.
    generation: u32,
}

impl Lease {
    /// That of the slot's app.
    pub fn of(root: &Root, slot: u32) -> Result<Self> {
        Ok(Self { scheduler: root.info()?.scheduler, generation: root.app(slot)?.generation })
    }
}

/// Whether the slot is still that of the deployment which has this state.
pub(crate) fn has(root: &Root, state: &State) -> Result<bool> {
    match state.lease {
        Some(lease) => Ok(lease == Lease::of(root, state.slot)?),
        None => Ok(true),
    }
}

/// All thread deployments.
#[derive(Debug, Default)]
pub(crate) struct Deployments {
    /// App name and state.
    readable: Vec<(String, State)>,
    /// How many there are besides: another version's, or broken.
    unreadable: usize,
    /// Those that a call which died left aside, and nobody could take down yet.
    aside: Vec<State>,
}

impl Deployments {
    pub fn find(bpffs: &Path) -> Result<Self> {
        let mut found = Self::default();
        for folder in pin::app_folders(bpffs)? {
            let path = folder.join(SPEC.name);
            match state_in(&path) {
                Some(Ok(state)) => {
                    let app = folder.file_name().unwrap_or_default().to_string_lossy();
                    found.readable.push((app.into_owned(), state));
                }
                Some(Err(_)) => found.unreadable += 1,
                None => {}
            }
            // One without a state has no slot yet.
            if let Some(Ok(state)) = state_in(&pin::aside(&path)) {
                found.aside.push(state);
            }
        }
        Ok(found)
    }

    pub fn are_none(&self) -> bool {
        self.readable.is_empty() && self.unreadable == 0
    }

    /// The app whose slot it is.
    pub fn app_in(&self, root: &Root, slot: u32) -> Result<Option<&str>> {
        for (app, state) in &self.readable {
            if state.slot == slot && has(root, state)? {
                return Ok(Some(app));
            }
        }
        Ok(None)
    }

    /// The slots that are theirs.
    fn slots(&self, root: &Root) -> Result<Vec<Owner>> {
        let mut slots = Vec::new();
        for state in self.readable.iter().map(|(_, state)| state).chain(&self.aside) {
            if has(root, state)? {
                let generation = root.app(state.slot)?.generation;
                slots.push(Owner { slot: state.slot, generation });
            }
        }
        Ok(slots)
    }
}

/// The state that the record in a folder tells; `None` without a folder.
pub(crate) fn state_in(path: &Path) -> Option<Result<State>> {
    path.is_dir().then(|| Record::read(path)?.unwrap_or_default().state(path))
}

/// A slot that no deployment has.
pub(crate) fn free(root: &Root, bpffs: &Path) -> Result<u32> {
    let taken = Deployments::find(bpffs)?.slots(root)?;
    for slot in 1..abi::SYRUP_MAX_APPS {
        if root.app(slot)?.in_use == 0
            && root.program_id(slot)? == 0
            && taken.iter().all(|owner| owner.slot != slot)
        {
            return Ok(slot);
        }
    }
    Err(Error::Conflict {
        what: format!("all {} app slots are taken", abi::SYRUP_MAX_APPS - 1),
        advice: "unload a thread policy first".to_owned(),
    })
}

/// Empties every slot without a record: a call that died before its record was
/// in place left it, or one that died after it had taken the record away. Also gives
/// back threads of apps that are gone.
///
/// # Errors
/// The first failure to empty one, after all that can be emptied are; what cannot be read.
pub(crate) fn sweep(root: &Root, bpffs: &Path) -> Result<()> {
    let deployments = Deployments::find(bpffs)?;
    let known = deployments.slots(root)?;
    let served = root.info()?.slots_in_use;
    // Any slot that has an app might be theirs.
    let are_readable = deployments.unreadable == 0;
    let mut done = Ok(());
    for slot in 1..abi::SYRUP_MAX_APPS {
        if known.iter().any(|owner| owner.slot == slot) {
            continue;
        }
        let has_app = root.app(slot)?.in_use != 0;
        let is_left = has_app || served >> slot & 1 == 1 || root.program_id(slot)? != 0;
        if is_left && (are_readable || !has_app) {
            done = done.and(end(root, slot).and_then(|()| empty(root, slot)));
        }
    }
    if are_readable {
        done = done.and(threads::release_strays(&root.map("syrup_threads")?, &known));
    }
    done
}

/// Takes an app out of its slot whose rescue could not keep up: its threads go, and whoever
/// comes is nobody's. The slot stays its own until it is unloaded. Returns whether it still had
/// to be.
pub(crate) fn expel(root: &Root, slot: u32) -> Result<bool> {
    end(root, slot)?;
    // The root takes it back, until then, when the app is well again.
    sys::wait_for_running_programs();
    if root.waits(slot)?.expelled.is_none() {
        root.set_app(slot, &syrup_scx_app { in_use: 1, ..root.app(slot)? })?;
        return Ok(false);
    }
    threads::expel_all(root, &root.map("syrup_threads")?, slot)?;
    Ok(true)
}

/// Gives back the threads that are nobody's where they run: that no app registered, that one
/// did which is gone or was expelled, or that may run on none of their app's cores that are
/// online. Returns
/// how many there were.
pub(crate) fn release_nobodys(root: &Root) -> Result<usize> {
    let (mut apps, online) = (Vec::new(), cpus::online()?);
    for slot in 1..abi::SYRUP_MAX_APPS {
        let app = root.app(slot)?;
        if app.in_use == 0 {
            continue;
        }
        let mut cpus = cpus::get(&app);
        let has_all = cpus.is_empty();
        cpus.retain(|cpu| online.contains(cpu));
        // Without any its threads are nobody's.
        if has_all || !cpus.is_empty() {
            apps.push((Owner { slot, generation: app.generation }, cpus));
        }
    }
    threads::release_nobodys(&root.map("syrup_threads")?, &apps)
}

/// Takes the program out of a slot of another version's root scheduler, of which no more is
/// known than where its programs are; unless a deployment in place has that slot.
pub(crate) fn forsake(root: &Root, bpffs: &Path, state: &State) -> Result<()> {
    let deployments = Deployments::find(bpffs)?.readable;
    if deployments.iter().any(|(_, other)| other.slot == state.slot) {
        return Ok(());
    }
    if let Err(e) = root.set_program(state.slot, None) {
        log::warn!("{e}");
    }
    Ok(())
}

/// Ends the app of a slot and empties it. Where the second fails, the next call finds a slot
/// that is nobody's, and goes on.
pub(crate) fn clear(root: &Root, slot: u32) -> Result<()> {
    end(root, slot)?;
    empty(root, slot).unwrap_or_else(|e| log::warn!("slot {slot} is not empty yet: {e}"));
    Ok(())
}

/// New arrivals go to nobody's slot, which ends the slot's app and is one step.
fn end(root: &Root, slot: u32) -> Result<()> {
    let conf = root.app(slot)?;
    root.set_app(slot, &syrup_scx_app { in_use: 0, ..conf })
}

/// Takes from a slot what an app that has ended left in it. The order matters: the threads
/// leave, and only then the root stops serving their queues.
fn empty(root: &Root, slot: u32) -> Result<()> {
    threads::release_all(root, &root.map("syrup_threads")?, slot)?;
    root.set_program(slot, None)?;
    root.serve(slot, false)
}
