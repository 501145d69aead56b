//! A deployment as its pins describe it, and the steps by which they change.
//!
//! A folder holds `dispatcher`, `policies`, `executors`, `group`, `nr_executors`,
//! `counters` and `verdicts` beside what every hook's does (`syrup_hook::pin`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use syrup_hook::pin;
use syrup_hook::sys::{self, Map};
use syrup_hook::{Counters, Error, Held, Result, Verdicts};
use syrup_sdk::abi::{
    SYRUP_CHOSEN, SYRUP_INPUTS, SYRUP_MAX_EXECUTORS, SYRUP_NO_POLICY, syrup_group, syrup_record,
};

use super::sockets::{self, GroupKey, Member};

pub(crate) const DISPATCHER: &str = "dispatcher";
/// Pins of maps, and the names the maps have in the BPF objects.
pub(crate) const POLICIES: (&str, &str) = ("policies", "syrup_policies");
pub(crate) const COUNTERS: (&str, &str) = ("counters", "syrup_counters");
pub(crate) const EXECUTORS: (&str, &str) = ("executors", "syrup_executors");
pub(crate) const GROUP: (&str, &str) = ("group", "syrup_group");
/// The variable that policies read; follows the group.
pub(crate) const NR_EXECUTORS: (&str, &str) = ("nr_executors", ".data.executors");
pub(crate) const VERDICTS: (&str, &str) = ("verdicts", "syrup_verdicts");

/// How long the kernel may take to free what nobody holds any more: some RCU
/// grace periods.
const FREEING: Duration = Duration::from_secs(2);

/// An opened deployment folder.
#[derive(Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
    policies: Map,
    pub executors: Map,
    pub group: Map,
    pub nr_executors: Map,
    pub counters: Map,
    pub verdicts: Map,
}

impl Pins {
    /// Opens a deployment's folder.
    pub fn open(dir: &Path) -> Result<Self> {
        let map = |(pin, _): (&str, &str)| Map::open(&dir.join(pin));
        let this = Self {
            dir: dir.to_owned(),
            policies: map(POLICIES)?,
            executors: map(EXECUTORS)?,
            group: map(GROUP)?,
            nr_executors: map(NR_EXECUTORS)?,
            counters: map(COUNTERS)?,
            verdicts: map(VERDICTS)?,
        };
        if this.group.value_size() as usize != size_of::<syrup_group>() {
            return Err(Error::Pin {
                path: dir.join(GROUP.0),
                reason: format!("a group of {} bytes: another version's", this.group.value_size()),
            });
        }
        Ok(this)
    }

    /// Kernel id of the program that decides now; `None` when the slot is empty.
    pub fn live_program(&self) -> Result<Option<u32>> {
        let id = self.policies.lookup(&0u32.to_ne_bytes())?;
        Ok(id.and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes))
    }

    fn live(&self) -> Result<u32> {
        Ok(self.live_program()?.unwrap_or(0))
    }

    /// The record of the program that decides now.
    pub fn record(&self) -> Result<syrup_record> {
        pin::live_record(&self.dir, self.live()?)?.ok_or_else(|| Error::Pin {
            path: self.dir.join(pin::RECORD),
            reason: "the pin is gone".to_owned(),
        })
    }

    /// The program that decides now.
    pub fn program(&self) -> Result<OwnedFd> {
        pin::live_program(&self.dir, self.live()?)
    }

    /// Finishes or undoes what an interrupted [`Pins::replace`] or [`Pins::add`] left.
    pub fn settle(&self) -> Result<()> {
        pin::settle(&self.dir, self.live()?)?;
        self.set_group(&self.group()?)
    }

    /// Makes `program` decide from the next input on, described by `record`.
    pub fn replace(&self, program: BorrowedFd<'_>, record: &syrup_record) -> Result<()> {
        pin::replace(&self.dir, self.live()?, program, record, || self.set_policy(program))
    }

    /// Puts a program into the slot.
    pub fn set_policy(&self, program: BorrowedFd<'_>) -> Result<()> {
        self.policies.update(&0u32.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes())
    }

    /// What is known of the reuseport group.
    pub fn group(&self) -> Result<syrup_group> {
        let bytes = self.group.lookup(&0u32.to_ne_bytes())?.unwrap_or_default();
        if bytes.len() != size_of::<syrup_group>() {
            return Ok(syrup_group::default());
        }
        // SAFETY: the length was checked and every bit pattern is a valid
        // syrup_group; the read is unaligned on purpose.
        Ok(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }

    fn set_group(&self, group: &syrup_group) -> Result<()> {
        // SAFETY: syrup_group is plain data without uninitialised padding.
        let bytes = unsafe {
            std::slice::from_raw_parts(
                std::ptr::from_ref(group).cast::<u8>(),
                size_of::<syrup_group>(),
            )
        };
        self.group.update(&0u32.to_ne_bytes(), bytes)?;
        // syrup_num_executors() is never 0.
        let nr_executors = group.nr_executors.max(1);
        self.nr_executors.update(&0u32.to_ne_bytes(), &nr_executors.to_ne_bytes())
    }

    /// The group of the registered sockets; `None` before the first.
    pub fn group_key(&self) -> Result<Option<GroupKey>> {
        Ok(GroupKey::of(&self.record()?, &self.group()?))
    }

    /// Cookie of the socket in each slot; `None` where there is none or it was closed.
    pub fn cookies(&self) -> Result<Vec<Option<u64>>> {
        (0..SYRUP_MAX_EXECUTORS)
            .map(|index| {
                let cookie = self.executors.lookup(&index.to_ne_bytes())?;
                Ok(cookie.and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes))
            })
            .collect()
    }

    /// Makes sockets of one group the executors at the given indexes and
    /// attaches the dispatcher to the group. `record` is written with what
    /// the sockets are bound to. Undoes its own steps when one fails.
    pub fn add(&self, members: &[(u32, &Member)], mut record: syrup_record) -> Result<()> {
        let Some((_, first)) = members.first() else {
            return pin::write_record(&self.dir, &record);
        };
        let dispatcher = sys::obj_get_required(&self.dir.join(DISPATCHER))?;
        let before = self.group()?;
        let was = self.cookies()?;
        let mut added = Vec::new();
        let mut step = || {
            for (index, member) in members {
                self.insert(*index, member)?;
                added.push(*index);
            }
            // From here on schedule() may name the new indexes.
            let mut group = before;
            let cookies = self.cookies()?;
            let end = cookies.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            group.nr_executors = end as u32;
            first.key.describe(&mut record, &mut group);
            record.nr_executors = group.nr_executors;
            self.set_group(&group)?;
            pin::write_record(&self.dir, &record)?;
            sockets::attach(first.fd.as_fd(), dispatcher.as_fd())
        };
        let done = step();
        if done.is_err() {
            if was.iter().all(Option::is_none) {
                sockets::detach(first.fd.as_fd())?;
            }
            for index in added {
                self.executors.delete(&index.to_ne_bytes())?;
            }
            self.set_group(&before)?;
        }
        done
    }

    /// A socket that a map of ours held until a moment ago is busy until the
    /// kernel has freed that map.
    fn insert(&self, index: u32, member: &Member) -> Result<()> {
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

    /// How often each of the first `nr` executors was chosen.
    pub fn verdicts(&self, nr: u32) -> Result<Verdicts> {
        let mut verdicts = self.verdicts.sums()?;
        verdicts.truncate(nr as usize);
        Ok(verdicts)
    }
}

/// Detaches, empties and removes the folder of a deployment, complete or not,
/// and waits until the kernel has freed what was pinned there.
///
/// Emptying the executors frees the sockets for the next deployment at once;
/// otherwise they stay busy until the map is freed.
pub(crate) fn take_down(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let maps = [POLICIES.0, COUNTERS.0, EXECUTORS.0, GROUP.0, VERDICTS.0, pin::RECORD];
    let held = Held::of(dir, &[DISPATCHER, pin::POLICY], &maps);
    if let Ok(pins) = Pins::open(dir) {
        let hint = pins.record().map_or(0, |record| record.pid);
        if let Ok(Some(key)) = pins.group_key()
            && let Some(socket) = sockets::any_member(&key, hint)
        {
            sockets::detach(socket.as_fd())?;
        }
        for index in 0..SYRUP_MAX_EXECUTORS {
            pins.executors.delete(&index.to_ne_bytes())?;
        }
    }
    pin::remove_tree(dir)?;
    // A dispatcher that stays is attached to a group whose sockets we could not reach.
    // It finds its slot empty and passes.
    held.wait_until_freed(FREEING, &dir.display().to_string());
    Ok(())
}
