//! Tells whether a look at the deployments is worth its cost.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use syrup_hook::Changes;

use crate::Engine;

/// How long nobody looks where nothing has changed: at first, then twice as long each time, and
/// at most. Not everything is counted: what a killed call left, a UDP socket that was connected
/// and not bound anew, a listener that was bound to an interface, a socket that was on its way
/// from one process to another.
const ALL_THE_SAME: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Knows when [`Engine::follow`] may find something to do.
///
/// A look at the deployments is some thousand instructions of an ordinary thread for each of
/// them, which threads of sched_ext have to make way for; asking this is a few system calls.
pub struct Watch {
    bpffs: PathBuf,
    /// `None` where this kernel cannot tell.
    changes: Option<Vec<Box<dyn Changes>>>,
    /// What was seen at the last two questions.
    seen: [Option<Seen>; 2],
    looked: Instant,
    /// When to look again although nothing has changed.
    all_the_same: Duration,
}

/// The hooks' counts, and when the pins were last changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    counts: Vec<u64>,
    pins: Option<(i64, u64)>,
}

impl Engine {
    /// What tells when to call [`Engine::follow`]. Where the kernel cannot, always.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let changes =
            self.hooks.all().map(|hook| hook.changes(&self.bpffs)).collect::<Result<_, _>>();
        let changes = changes.inspect_err(|e| {
            log::info!("{e}: deployments are looked at again and again instead");
        });
        Watch {
            bpffs: self.bpffs.clone(),
            changes: changes.ok(),
            seen: [None, None],
            looked: Instant::now(),
            all_the_same: ALL_THE_SAME.0,
        }
    }
}

impl Watch {
    /// Whether something may have changed since the last two questions. Twice, because what is
    /// counted may have only begun when somebody looked.
    pub fn has_news(&mut self) -> bool {
        let now = self.seen_now();
        let settled = now.is_some() && self.seen.iter().all(|seen| *seen == now);
        let [_, last] = std::mem::take(&mut self.seen);
        self.seen = [last, now];
        if settled && self.looked.elapsed() < self.all_the_same {
            return false;
        }
        let (first, longest) = ALL_THE_SAME;
        self.all_the_same = if settled { longest.min(2 * self.all_the_same) } else { first };
        self.looked = Instant::now();
        true
    }

    /// What follows has failed: the next answer is yes.
    pub fn again(&mut self) {
        self.seen = [None, None];
    }

    fn seen_now(&self) -> Option<Seen> {
        let counts = self.changes.as_ref()?.iter().map(|changes| changes.count());
        let counts = counts.collect::<Result<_, _>>().inspect_err(|e| log::warn!("{e}")).ok()?;
        let root = rustix::fs::lstat(&self.bpffs).ok();
        let pins = root.map(|root| (root.st_ctime, root.st_ctime_nsec));
        Some(Seen { counts, pins })
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("bpffs", &self.bpffs).field("seen", &self.seen).finish()
    }
}
