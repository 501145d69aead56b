//! A deployment as its pins describe it, and the steps by which they change.
//!
//! A folder holds `dispatcher`, `policies`, `executors`, `registered`, `nr_executors`,
//! `counters` and `verdicts` beside what every hook's does (`syrup_hook::pin`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use syrup_hook::record::Record;
use syrup_hook::sys::{self, Map};
use syrup_hook::{Counters, Dir, Error, Proto, Result};
use syrup_sdk::abi::{SYRUP_CHOSEN, SYRUP_INPUTS, SYRUP_MAX_EXECUTORS, SYRUP_NO_POLICY};

use super::sockets::{self, GroupKey, Member};

pub(crate) const DISPATCHER: &str = "dispatcher";
/// Pins of maps, and the names the maps have in the BPF objects.
pub(crate) const POLICIES: (&str, &str) = ("policies", "syrup_policies");
pub(crate) const COUNTERS: (&str, &str) = ("counters", "syrup_counters");
pub(crate) const EXECUTORS: (&str, &str) = ("executors", "syrup_executors");
/// One more than the highest index in use.
pub(crate) const REGISTERED: (&str, &str) = ("registered", "syrup_registered");
/// The variable that policies read; follows the registered.
pub(crate) const NR_EXECUTORS: (&str, &str) = ("nr_executors", ".data.executors");
pub(crate) const VERDICTS: (&str, &str) = ("verdicts", "syrup_verdicts");

/// How long the kernel may take to free what nobody holds any more: some RCU
/// grace periods.
const FREEING: Duration = Duration::from_secs(2);

/// What is kept of a deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The process whose sockets they are, or were.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Of which sockets it is: of any, until one is registered or the load said so.
    #[serde(default)]
    pub proto: Option<Proto>,
    #[serde(default)]
    pub port: Option<u16>,
    /// The network namespace of the port.
    #[serde(default)]
    pub netns_cookie: u64,
    /// The group of the registered sockets; none before the first.
    #[serde(default)]
    pub group: Option<GroupKey>,
    /// The indexes in use when a socket was registered last.
    #[serde(default)]
    pub indexes: BTreeSet<u32>,
}

impl State {
    /// Its sockets are of this group from now on.
    pub fn belongs_to(&mut self, key: &GroupKey) {
        self.group = Some(*key);
        self.proto = Some(key.proto);
        self.port = Some(key.address.port());
        self.netns_cookie = key.netns_cookie;
    }

    /// What the sockets are bound to.
    pub fn address(&self) -> Option<SocketAddr> {
        self.group.map(|group| group.address)
    }

    /// One more than the highest index in use.
    fn end(&self) -> u32 {
        self.indexes.last().map_or(0, |last| last + 1)
    }
}

/// An opened deployment folder.
#[derive(Debug)]
pub(crate) struct Pins {
    path: PathBuf,
    policies: Map,
    pub executors: Map,
    pub registered: Map,
    pub nr_executors: Map,
    pub counters: Map,
    pub verdicts: Map,
}

impl Pins {
    /// Opens a deployment's folder.
    pub fn open(path: &Path) -> Result<Self> {
        let map = |(pin, _): (&str, &str)| Map::open(&path.join(pin));
        Ok(Self {
            path: path.to_owned(),
            policies: map(POLICIES)?,
            executors: map(EXECUTORS)?,
            registered: map(REGISTERED)?,
            nr_executors: map(NR_EXECUTORS)?,
            counters: map(COUNTERS)?,
            verdicts: map(VERDICTS)?,
        })
    }

    /// Kernel id of the program that decides now; 0 when the slot is empty.
    pub fn live(&self) -> Result<u32> {
        let id = self.policies.lookup(&0u32.to_ne_bytes())?;
        Ok(id.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes))
    }

    /// Puts a program into the slot.
    pub fn set_policy(&self, program: BorrowedFd<'_>) -> Result<()> {
        self.policies.update(&0u32.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes())
    }

    /// What `schedule()` may name is what was registered.
    pub fn set_registered(&self, state: &State) -> Result<()> {
        let end = state.end();
        self.registered.update(&0u32.to_ne_bytes(), &end.to_ne_bytes())?;
        // syrup_num_executors() is never 0.
        self.nr_executors.update(&0u32.to_ne_bytes(), &end.max(1).to_ne_bytes())
    }

    /// Cookie of the socket at each index; `None` where there is none or it was closed.
    pub fn cookies(&self) -> Result<Vec<Option<u64>>> {
        (0..SYRUP_MAX_EXECUTORS)
            .map(|index| {
                let cookie = self.executors.lookup(&index.to_ne_bytes())?;
                Ok(cookie.and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes))
            })
            .collect()
    }

    /// Makes sockets of one group the executors at the given indexes and
    /// attaches the dispatcher to the group, which is `state`'s from then on. Undoes its
    /// own steps when one fails.
    pub fn add(&self, dir: &mut Dir, members: &[(u32, &Member)], mut state: State) -> Result<()> {
        let Some((_, first)) = members.first() else { return dir.set_state(&state) };
        let dispatcher = sys::obj_get_required(&self.path.join(DISPATCHER))?;
        let before: Option<State> = dir.state().ok();
        let cookies = self.cookies()?;
        let mut added = Vec::new();
        let mut step = || {
            for (index, member) in members {
                // A call that died before it attached left it there.
                if cookies[*index as usize] != Some(member.cookie) {
                    self.insert(*index, member)?;
                    added.push(*index);
                }
            }
            state.belongs_to(&first.key);
            let open = (0..).zip(self.cookies()?).filter(|(_, cookie)| cookie.is_some());
            state.indexes = open.map(|(index, _)| index).collect();
            dir.set_state(&state)?;
            // From here on schedule() may name the new indexes.
            self.set_registered(&state)?;
            sockets::attach(first.fd.as_fd(), dispatcher.as_fd())
        };
        let done = step();
        if done.is_err() {
            for index in added {
                self.executors.delete(&index.to_ne_bytes())?;
            }
            let before = before.unwrap_or_default();
            dir.set_state(&before)?;
            self.set_registered(&before)?;
        }
        done
    }

    /// Takes the socket at an index out.
    pub fn release(&self, dir: &mut Dir, index: u32) -> Result<()> {
        let mut state: State = dir.state()?;
        self.executors.delete(&index.to_ne_bytes())?;
        state.indexes.remove(&index);
        dir.set_state(&state)?;
        self.set_registered(&state)
    }

    /// A socket that a map of ours held until a moment ago is busy until the
    /// kernel has freed that map.
    pub fn insert(&self, index: u32, member: &Member) -> Result<()> {
        let value = u64::try_from(member.fd.as_raw_fd()).unwrap_or_default().to_ne_bytes();
        let deadline = Instant::now() + FREEING;
        loop {
            match self.executors.update(&index.to_ne_bytes(), &value) {
                Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                    if Instant::now() > deadline {
                        return Err(Error::Conflict {
                            what: format!(
                                "a socket of {} is already in another program's socket map",
                                member.key
                            ),
                            advice: "detach that program first: a socket can be in one map only"
                                .to_owned(),
                        });
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                Err(Error::Kernel { source, .. })
                    if source.raw_os_error() == Some(libc::EINVAL) =>
                {
                    return Err(Error::Usage(format!(
                        "the socket of {} is in no reuseport group: SO_REUSEPORT must be set \
                         before bind",
                        member.key
                    )));
                }
                other => return other,
            }
        }
    }

    /// What became of the inputs. Each is counted once: by the executor that was
    /// chosen, or by the reason why none was.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        let outcomes = self.counters.sums()?;
        counters.0.iter_mut().zip(outcomes).for_each(|(counter, sum)| *counter = sum);
        counters.0[SYRUP_CHOSEN as usize] = self.verdicts.sums()?.iter().sum();
        let outcomes = SYRUP_CHOSEN as usize..=SYRUP_NO_POLICY as usize;
        counters.0[SYRUP_INPUTS as usize] = counters.0[outcomes].iter().sum();
        Ok(counters)
    }

    /// How often each index was chosen.
    pub fn verdicts(&self, state: &State) -> Result<Vec<u64>> {
        let mut verdicts = self.verdicts.sums()?;
        verdicts.truncate(state.end() as usize);
        Ok(verdicts)
    }
}

/// Detaches the dispatcher of a deployment, complete or not, and empties its maps.
///
/// Through a socket of ours only: the group may have another's program by now, and the
/// kernel tells nobody whose it is. A dispatcher that stays, because we could not reach its
/// sockets, finds its slot empty and passes.
///
/// Emptying the executors frees the sockets for the next deployment at once;
/// otherwise they stay busy until the map is freed.
pub(crate) fn take_down(path: &Path) -> Result<()> {
    let Ok(pins) = Pins::open(path) else { return Ok(()) };
    let state = Record::read(path).ok().flatten().and_then(|r| r.state::<State>(path).ok());
    if let Some(State { group: Some(key), pid, .. }) = state {
        let ours: Vec<u64> = pins.cookies()?.into_iter().flatten().collect();
        if let Some(socket) = sockets::one_of(&key, &ours, pid) {
            sockets::detach(socket.as_fd())?;
        }
    }
    pins.policies.delete(&0u32.to_ne_bytes())?;
    for index in 0..SYRUP_MAX_EXECUTORS {
        pins.executors.delete(&index.to_ne_bytes())?;
    }
    Ok(())
}
