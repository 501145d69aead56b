//! The trait every hook implements; what all do alike is in `deploy.rs`.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use syrup_protocol::{Facts, Health, Registration};
use syrup_sdk::abi;

use crate::{Dir, Error, Linked, LoadedProgram, Result, Spec};

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
    pub fn hook_dir(&self, hook: &Spec) -> PathBuf {
        self.dir().join(hook.name)
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

/// What a deployment is told, as the hook's own type.
///
/// # Errors
/// [`Error::Usage`] when it says what the hook does not take.
pub fn target<T: DeserializeOwned>(facts: &Facts) -> Result<T> {
    let facts = facts.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    serde_json::from_value(serde_json::Value::Object(facts))
        .map_err(|e| Error::Usage(format!("the deployment's target: {e}")))
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
    pub fn since(&self, before: &BTreeMap<String, u64>) -> Self {
        let mut counters = *self;
        for (name, count) in abi::COUNTER_NAMES.iter().zip(&mut counters.0) {
            *count = count.saturating_sub(before.get(*name).copied().unwrap_or(0));
        }
        counters
    }

    /// All of them, by name.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        abi::COUNTER_NAMES.iter().zip(self.0).map(|(name, n)| ((*name).to_owned(), n)).collect()
    }
}

/// What the kernel says of a deployment now.
#[derive(Debug, Clone)]
pub struct Observed {
    /// What it schedules, for people: "udp/7000", "3 threads".
    pub inputs: String,
    /// Executors `schedule()` may name now.
    pub executors: u32,
    /// What there is to say of it besides.
    pub target: Facts,
    /// Counters since the first deployment of this app here.
    pub counters: Counters,
    /// How often each executor was chosen, by index.
    pub verdicts: Vec<u64>,
    /// Its state.
    pub health: Health,
}

/// Whether what a deployment is for has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has not, as far as anybody knows.
    Not,
    /// It has, and the deployment is there for it when it starts again. A load may take its
    /// place.
    MayReturn,
    /// It has, and the deployment is garbage.
    ForGood,
}

/// Counts what happens in the kernel that may leave deployments behind.
pub trait Changes: Send {
    /// How much has happened so far; costs a few system calls at most. What it counts last may
    /// have only begun.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    fn count(&self) -> Result<u64>;
}

/// Nothing does.
impl Changes for () {
    fn count(&self) -> Result<u64> {
        Ok(0)
    }
}

/// A place in the stack where policies run. Implementations hold no state:
/// each call reads the pins, acts, and leaves pins that describe the result.
///
/// The caller ([`Deploy`](crate::Deploy)) holds the engine's lock, has checked names and
/// permissions, and owns the deployment's folder, its record and the `policy` pin. Each
/// method either did what it says or left the kernel as it was, unless it says otherwise.
pub trait Hook: Send + Sync {
    /// What it is.
    fn spec(&self) -> &'static Spec;

    /// Can this kernel host it? Separate, so that `doctor` and `hooks` can ask without a
    /// policy.
    fn probe(&self) -> Probe;

    /// Shows `policy` to the verifier and lets it go: what `check` says of a
    /// policy, without a deployment and without pins.
    fn verify(&self, policy: &Linked) -> Result<()>;

    /// Makes `policy` live for an app that has none here, in the new folder `dir`, and pins
    /// its program there as `policy`. What [`Hook::detach`] must know is in the state before
    /// it is needed. An error is followed by that call.
    fn attach(&self, dir: &mut Dir, policy: &Linked, target: &Facts) -> Result<()>;

    /// Kernel id of the program that decides now; 0 when none does. `state` is that of a
    /// record in the folder.
    fn live(&self, dir: &Dir) -> Result<u32>;

    /// Loads `policy` for the place of the live one, and says which state the deployment
    /// has with it. Until [`Hook::set_policy`] the old one decides.
    fn prepare(&self, dir: &Dir, policy: &Linked) -> Result<(LoadedProgram, serde_json::Value)>;

    /// Puts a prepared program in the place of the live one: one update, so each input is
    /// decided by the old or the new one.
    fn set_policy(&self, dir: &Dir, program: BorrowedFd<'_>) -> Result<()>;

    /// Makes all else that the hook keeps agree with the state of the policy that decides:
    /// after a replacement, done or not, also one that died in between.
    fn settle(&self, dir: &mut Dir) -> Result<()>;

    /// Changes what a live deployment is for, of what is [`Spec::changeable`], while its policy
    /// goes on.
    fn change(&self, _dir: &mut Dir, _target: &Facts) -> Result<()> {
        Ok(())
    }

    /// Ends what [`Hook::attach`] began, as far as it came, in the folder `path`, whatever is
    /// left of it and whichever version wrote it. The folder is removed next.
    fn detach(&self, app: &App, path: &Path) -> Result<()>;

    /// Adds a socket or a thread to a live deployment and returns its index. `index`
    /// `None` means the one it has, else the next free one; taking one that is in
    /// use replaces it.
    fn add(&self, dir: &mut Dir, what: Registration, index: Option<u32>) -> Result<u32>;

    /// Lets go of a socket or a thread that was added: no verdict reaches it any more, the
    /// kernel's default has it, and its index is free. [`Error::NotFound`] when it is none of
    /// this deployment's.
    fn release(&self, dir: &mut Dir, what: &Registration) -> Result<()>;

    /// What was counted since the first deployment of this app here.
    fn counters(&self, dir: &Dir) -> Result<Counters>;

    /// What the kernel says of a deployment now.
    fn observe(&self, dir: &Dir) -> Result<Observed>;

    /// Begins to count what may put one of its deployments below `bpffs`
    /// [`behind`](Hook::behind).
    ///
    /// # Errors
    /// [`Error::Kernel`] when this kernel cannot tell; then they have to be looked at.
    fn changes(&self, _bpffs: &Path) -> Result<Box<dyn Changes>> {
        Ok(Box::new(()))
    }

    /// Those of its deployments that have more or fewer executors than they know, or whose
    /// hook the kernel has ended, or that it has expelled. Asked of all at once, and without the lock. One that cannot
    /// be read is not among them.
    fn behind<'a>(&self, _dirs: &'a [Dir]) -> Vec<&'a Dir> {
        Vec::new()
    }

    /// Takes in what it does not know, lets go what is gone, puts back what was ended, takes
    /// out what was expelled. Returns
    /// whether there was any that could be.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    fn follow(&self, _dir: &mut Dir) -> Result<bool> {
        Ok(false)
    }

    /// Whether what the deployment was for has ended.
    fn end(&self, _dir: &Dir) -> End {
        End::Not
    }

    /// Removes what apps share here when none uses it any more, and what interrupted calls
    /// left in it. Returns what was removed.
    fn tidy(&self, _bpffs: &Path) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}
