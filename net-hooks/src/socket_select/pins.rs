//! A deployment as its pins describe it, and the steps by which they change.
//!
//! A folder holds a `dispatcher_N` for each group, `policies`, `executors`, `registered`,
//! `numbers`, `group`, `counters` and `verdicts` beside what every hook's does
//! (`syrup_hook::pin`).

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use syrup_hook::record::Record;
use syrup_hook::sys::{self, Map};
use syrup_hook::{Counters, Dir, Error, LoadedProgram, PolicyObject, Result};
use syrup_hook::{program_in_use, set_constant};
use syrup_sdk::abi::{SYRUP_CHOSEN, SYRUP_INPUTS, SYRUP_MAX_EXECUTORS, SYRUP_NO_POLICY};

use super::adopt;
use super::sockets::{self, Member};
use super::state::{Group, State};

const DISPATCHER_OBJECT: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/socket_select_dispatcher.o"));
/// Its programs: that of the first group, and of any other.
const FIRST_DISPATCHER: &str = "syrup_first";
const OTHER_DISPATCHER: &str = "syrup_dispatch";
const DISPATCHER: &str = "dispatcher_";
/// The constant by which a dispatcher knows its group.
const THIS_GROUP: &str = "syrup_this_group";

/// Pins of maps, and the names the maps have in the BPF objects.
pub(crate) const POLICIES: (&str, &str) = ("policies", "syrup_policies");
pub(crate) const COUNTERS: (&str, &str) = ("counters", "syrup_counters");
pub(crate) const GROUP: (&str, &str) = ("group", "syrup_group");
/// The variables that policies and dispatchers read: executors of every group, groups.
pub(crate) const NUMBERS: (&str, &str) = ("numbers", ".data.executors");
pub(crate) const EXECUTORS: (&str, &str) = ("executors", "syrup_executors");
/// By group, one more than the highest index in use.
pub(crate) const REGISTERED: (&str, &str) = ("registered", "syrup_registered");
pub(crate) const VERDICTS: (&str, &str) = ("verdicts", "syrup_verdicts");

/// Those that come with the first dispatcher, and are the others' too.
pub(crate) const OF_DISPATCHERS: [(&str, &str); 4] = [POLICIES, COUNTERS, GROUP, NUMBERS];
/// Those that come with the first policy.
pub(crate) const OF_POLICIES: [(&str, &str); 3] = [EXECUTORS, REGISTERED, VERDICTS];

/// How long a socket may stay busy that a map held which the kernel is freeing: some RCU
/// grace periods.
const FREEING: Duration = Duration::from_millis(250);

/// An opened deployment folder.
#[derive(Debug)]
pub(crate) struct Pins {
    path: PathBuf,
    policies: Map,
    executors: Map,
    registered: Map,
    numbers: Map,
    counters: Map,
    verdicts: Map,
}

/// The cookies of a group's sockets by index; `None` where there is none or it was closed.
pub(crate) type Cookies = Vec<Option<u64>>;

/// A socket, and its group and index.
pub(crate) type Place<'a> = (usize, u32, &'a Member);

/// What a change that failed had done.
struct Steps<'a> {
    /// Taken away, as far as it came.
    left: &'a [Place<'a>],
    /// Groups and indexes that got a socket.
    added: Vec<(usize, u32)>,
    /// What was in the map before.
    cookies: Vec<Cookies>,
    /// Groups that got a dispatcher.
    attached: Vec<(usize, &'a Member)>,
    /// What was held against the policy before sockets left, or gave way to others.
    recent: Option<Counters>,
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
            numbers: map(NUMBERS)?,
            counters: map(COUNTERS)?,
            verdicts: map(VERDICTS)?,
        })
    }

    /// Kernel id of the program that decides now in a deployment's folder; 0 when the slot is
    /// empty. Asked for whenever a deployment is looked at, so it opens nothing else.
    pub fn live(path: &Path) -> Result<u32> {
        let id = Map::open(&path.join(POLICIES.0))?.lookup(&0u32.to_ne_bytes())?;
        Ok(id.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes))
    }

    /// Puts a program into the slot.
    pub fn set_policy(&self, program: BorrowedFd<'_>) -> Result<()> {
        self.policies.update(&0u32.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes())
    }

    /// What `schedule()` may name is what was registered.
    pub fn set_numbers(&self, state: &State) -> Result<()> {
        for (group, end) in (0u32..).zip(state.ends()) {
            self.registered.update(&group.to_ne_bytes(), &end.to_ne_bytes())?;
        }
        // A dispatcher that an undone step left attached still says which group it is of.
        let before = self.numbers.lookup(&0u32.to_ne_bytes())?.unwrap_or_default();
        let before = before.as_chunks().0.get(1).map_or(1, |bytes| u32::from_ne_bytes(*bytes));
        let groups = before.max(state.groups.len() as u32);
        let numbers = [state.common_end(), groups].map(u32::to_ne_bytes).concat();
        self.numbers.update(&0u32.to_ne_bytes(), &numbers)
    }

    /// The cookies of all groups' sockets, by group.
    pub fn cookies(&self, state: &State) -> Result<Vec<Cookies>> {
        let cookie = |place: u32| -> Result<Option<u64>> {
            let bytes = self.executors.lookup(&place.to_ne_bytes())?;
            Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes))
        };
        let of_group = |(group, end)| (0..end).map(|index| cookie(place(group, index))).collect();
        state.ends().enumerate().map(of_group).collect()
    }

    /// Makes sockets the executors at the given groups and indexes, takes away those that
    /// `left` has, and attaches dispatchers to groups that got one. The deployment's state
    /// is `state` from then on. Undoes its own steps when one fails.
    pub fn change(
        &self,
        dir: &mut Dir,
        left: &[Place<'_>],
        joined: &[Place<'_>],
        mut state: State,
    ) -> Result<()> {
        let before: State = dir.state()?;
        state.changing = false;
        let mut wider = State { changing: true, ..state.clone() };
        for &(group, index, _) in joined {
            let end = &mut wider.groups[group].end;
            *end = (*end).max(index + 1);
        }
        let cookies = self.cookies(&wider)?;
        // While one is gone that was there, or is being replaced, it can be named in vain.
        let is_taken = |&(group, index, _): &Place<'_>| cookies[group][index as usize].is_some();
        let recent = match left.is_empty() && !joined.iter().any(is_taken) {
            true => None,
            false => Some(dir.recent(&self.counters()?)),
        };
        for (group, cookies) in state.groups.iter_mut().zip(&cookies) {
            // Its sockets were the last to hold what was attached.
            group.attached &= cookies.iter().any(Option::is_some);
        }
        for (wider, group) in wider.groups.iter_mut().zip(&state.groups) {
            wider.attached = group.attached;
        }
        let (mut added, mut attached) = (Vec::new(), Vec::new());
        let mut step = || {
            // Whoever reads after a death looks at all that may be there.
            dir.set_state(&wider)?;
            let leaving: Vec<_> = left.iter().map(|&(group, index, _)| (group, index)).collect();
            self.lower(&leaving, &wider)?;
            for &(group, index) in &leaving {
                self.executors.delete(&place(group, index).to_ne_bytes())?;
            }
            for &(group, index, member) in joined {
                // A call that died before it attached left it there.
                if cookies[group][index as usize] != Some(member.cookie) {
                    self.insert(group, index, member)?;
                    added.push((group, index));
                }
            }
            state.count(&self.cookies(&wider)?);
            for &(number, ..) in joined {
                if !state.groups[number].attached {
                    state.groups[number].unsure = Some(self.dispatcher_id(number)?);
                }
            }
            dir.set_state(&state)?;
            // From here on schedule() may name the new indexes.
            self.set_numbers(&state)?;
            for &(number, _, member) in joined {
                if !state.groups[number].attached {
                    sockets::attach(member.fd.as_fd(), self.dispatcher(number)?.as_fd())?;
                    attached.push((number, member));
                    (state.groups[number].attached, state.groups[number].unsure) = (true, None);
                }
            }
            dir.set_state(&state)
        };
        let done = step();
        if done.is_err() {
            // What the caller hears is why it failed, not what else did.
            let steps = Steps { left, added, cookies, attached, recent };
            if let Err(e) = self.undo(dir, before, &wider, &steps) {
                log::warn!("{e}");
            }
        }
        done
    }

    /// Puts back what was `before`, as far as it is still there. What is there is counted
    /// until that has succeeded: it may fail, or die, too.
    fn undo(&self, dir: &mut Dir, before: State, wider: &State, steps: &Steps<'_>) -> Result<()> {
        let mut now = State { changing: true, groups: wider.groups.clone(), ..before };
        let is_same = |number: usize| {
            before.groups.get(number).filter(|group| group.key == wider.groups[number].key)
        };
        for (number, group) in now.groups.iter_mut().enumerate() {
            let was = is_same(number);
            group.attached = was.is_some_and(|was| was.attached);
            group.unsure = was.and_then(|was| was.unsure);
            group.end = group.end.max(was.map_or(0, |was| was.end));
        }
        for &(number, member) in &steps.attached {
            let group = &mut now.groups[number];
            if group.unsure.is_some() {
                // A call that died had attached it.
                (group.attached, group.unsure) = (true, None);
                continue;
            }
            group.attached = false;
            if let Err(e) = sockets::detach(member.fd.as_fd()) {
                log::warn!("the dispatcher of {} stays attached: {e}", member.key);
                group.unsure = self.dispatcher_id(number).ok();
            }
        }
        let mut done = dir.set_state(&now);
        done = done.and(self.lower(&steps.added, &now));
        for &(group, index) in &steps.added {
            done = done.and(self.executors.delete(&place(group, index).to_ne_bytes()));
            let former = steps.cookies[group][index as usize];
            if let (Some(cookie), Some(Group { key, .. })) = (former, is_same(group)) {
                let put = adopt::one_of(key, &[cookie], now.pid).and_then(|found| {
                    let Some(fd) = found else {
                        log::warn!("index {index} of {key} has lost its socket");
                        return Ok(());
                    };
                    self.insert(group, index, &Member { fd, key: *key, cookie })
                });
                done = done.and(put);
            }
        }
        let there = self.cookies(&now)?;
        for &(group, index, member) in steps.left {
            if there[group][index as usize] != Some(member.cookie) {
                done = done.and(self.insert(group, index, member));
            }
        }
        now.count(&self.cookies(&now)?);
        if done.is_ok() && !before.changing {
            // Of what was counted then, one that was closed since is to be missed.
            for (number, group) in now.groups.iter_mut().enumerate() {
                if let Some(was) = is_same(number) {
                    (group.count, group.end) = (was.count, was.end);
                }
            }
        }
        self.set_numbers(&now)?;
        if done.is_err() {
            // Perhaps it can be written by now.
            let written = dir.set_state(&now);
            return done.and(written);
        }
        let is_empty = |group: &Group| group.count == 0 && group.unsure.is_none();
        while now.groups.len() > before.groups.len() && now.groups.last().is_some_and(is_empty) {
            now.groups.pop();
        }
        now.changing = before.changing;
        dir.set_state(&now)?;
        // Verdicts that named a socket while it was gone.
        steps.recent.as_ref().map_or(Ok(()), |recent| {
            sys::wait_for_running_programs();
            dir.count_from(&self.counters()?.since(&recent.by_name()))
        })
    }

    /// Takes a socket away; before that, when it is the last of its group, the dispatcher, for
    /// which it could choose nothing. The deployment's state is `state` from then on. Undoes
    /// its own steps when one fails.
    pub fn release(
        &self,
        dir: &mut Dir,
        (group, index, member): Place<'_>,
        mut state: State,
    ) -> Result<()> {
        let before: State = dir.state()?;
        let cookies = self.cookies(&before)?.swap_remove(group);
        let is_last = cookies.iter().flatten().all(|&cookie| cookie == member.cookie);
        let Group { attached, mut unsure, .. } = before.groups[group];
        if is_last && !attached {
            unsure = unsure.filter(|&dispatcher| self.unpinned_is_in_use(group, dispatcher));
        }
        let detaches = is_last && (attached || unsure.is_some());
        if detaches {
            let mut detaching = before.clone();
            detaching.groups[group].attached = false;
            detaching.groups[group].unsure =
                Some(unsure.map_or_else(|| self.dispatcher_id(group), Ok)?);
            dir.set_state(&detaching)?;
            if let Err(e) = sockets::detach(member.fd.as_fd()) {
                dir.set_state(&before).unwrap_or_else(|e| log::warn!("{e}"));
                return Err(e);
            }
        }
        if is_last {
            (state.groups[group].attached, state.groups[group].unsure) = (false, None);
        }
        let released = self.change(dir, &[(group, index, member)], &[], state);
        if released.is_err() && detaches {
            let state: State = dir.state()?;
            let attached = self.change(dir, &[], &[(group, index, member)], state);
            attached.unwrap_or_else(|e| log::warn!("{} stays without a policy: {e}", member.key));
        }
        released
    }

    /// Verdicts that named an index whose socket went are not held against the policy.
    pub fn forgive(&self, dir: &mut Dir) {
        sys::wait_for_running_programs();
        let counted = self.counters().and_then(|counters| dir.count_from(&counters));
        counted.unwrap_or_else(|e| log::warn!("faults of before count as the policy's: {e}"));
    }

    /// Has `schedule()` name none of these indexes of groups from here on.
    fn lower(&self, indexes: &[(usize, u32)], state: &State) -> Result<()> {
        if indexes.is_empty() {
            return Ok(());
        }
        let mut lower = state.clone();
        for &(group, index) in indexes {
            let end = &mut lower.groups[group].end;
            *end = (*end).min(index);
        }
        self.set_numbers(&lower)?;
        sys::wait_for_running_programs();
        Ok(())
    }

    /// Takes the dispatchers from the groups of a deployment that has ended, as far as we reach
    /// a socket of ours there.
    fn detach(&self, record: &mut Record, mut state: State, cookies: Vec<Cookies>) {
        let ours: Vec<bool> = (state.groups.iter().enumerate())
            .map(|(number, group)| {
                let is_in_use = |dispatcher| self.unpinned_is_in_use(number, dispatcher);
                group.attached || group.unsure.is_some_and(is_in_use)
            })
            .collect();
        // Whoever finds this after a death is not to detach what the server attached since.
        for (number, group) in state.groups.iter_mut().enumerate().filter(|(_, g)| g.attached) {
            let id = |fd: OwnedFd| sys::program_id(fd.as_fd()).ok();
            let pinned = sys::obj_get(&self.dispatcher_pin(number)).ok().flatten();
            (group.attached, group.unsure) = (false, pinned.and_then(id));
        }
        let written = serde_json::to_value(&state).map_err(|e| Error::Defect(e.to_string()));
        let written = written.and_then(|value| {
            record.state = value;
            record.write(&self.path)
        });
        written.unwrap_or_else(|e| log::warn!("{e}"));
        for ((group, cookies), _) in state.groups.iter().zip(cookies).zip(ours).filter(|x| x.1) {
            let ours: Vec<u64> = cookies.into_iter().flatten().collect();
            let socket = adopt::one_of(&group.key, &ours, state.pid);
            let detached = socket.and_then(|socket| match socket {
                Some(socket) => sockets::detach(socket.as_fd()),
                None => Ok(()),
            });
            if let Err(e) = detached {
                log::warn!("the dispatcher of {} stays attached, without a policy: {e}", group.key);
            }
        }
    }

    fn dispatcher_pin(&self, group: usize) -> PathBuf {
        self.path.join(format!("{DISPATCHER}{group}"))
    }

    /// A socket that a map of ours held until a moment ago is busy until the
    /// kernel has freed that map.
    pub fn insert(&self, group: usize, index: u32, member: &Member) -> Result<()> {
        let value = u64::try_from(member.fd.as_raw_fd()).unwrap_or_default().to_ne_bytes();
        let deadline = Instant::now() + FREEING;
        loop {
            match self.executors.update(&place(group, index).to_ne_bytes(), &value) {
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

    /// The dispatcher of a group, loaded if it is the group's first time.
    fn dispatcher(&self, group: usize) -> Result<OwnedFd> {
        let path = self.dispatcher_pin(group);
        if let Some(program) = sys::obj_get(&path)? {
            return Ok(program);
        }
        load_dispatcher(&self.path, group)?;
        sys::obj_get_required(&path)
    }

    /// The kernel's id of a group's dispatcher.
    pub fn dispatcher_id(&self, group: usize) -> Result<u32> {
        sys::program_id(self.dispatcher(group)?.as_fd())
    }

    /// Whether a group's dispatcher, which a call that died may have attached, is in use
    /// without its pin, which goes: attached, as far as we know.
    fn unpinned_is_in_use(&self, group: usize, dispatcher: u32) -> bool {
        let path = self.dispatcher_pin(group);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {e}", path.display());
                return false;
            }
            _ => {}
        }
        // A pin's program goes a grace period later, however long that takes.
        sys::wait_for_running_programs();
        program_in_use(dispatcher, FREEING)
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

    /// How often each index was chosen, in whichever group.
    pub fn verdicts(&self, state: &State) -> Result<Vec<u64>> {
        let mut verdicts = self.verdicts.sums()?;
        verdicts.truncate(state.end() as usize);
        Ok(verdicts)
    }
}

/// Where a group's socket is in the map of executors.
fn place(group: usize, index: u32) -> u32 {
    group as u32 * SYRUP_MAX_EXECUTORS + index
}

/// Loads the dispatcher of a group and pins it in `path`; the maps of the first to be loaded
/// are the others' too.
pub(crate) fn load_dispatcher(path: &Path, group: usize) -> Result<LoadedProgram> {
    let mut image = DISPATCHER_OBJECT.to_vec();
    if !set_constant(&mut image, THIS_GROUP, &(group as u32).to_ne_bytes())? {
        return Err(Error::Defect(format!("the dispatcher has no {THIS_GROUP}")));
    }
    let mut object = PolicyObject::open_bytes(&image, "socket_select")?;
    let is_first = sys::obj_get(&path.join(POLICIES.0))?.is_none();
    if !is_first {
        share(path, &mut object, &OF_DISPATCHERS)?;
    }
    let program = if group == 0 { FIRST_DISPATCHER } else { OTHER_DISPATCHER };
    let dispatcher = object.load(program)?;
    dispatcher.pin(&path.join(format!("{DISPATCHER}{group}")))?;
    if is_first {
        for (name, map) in OF_DISPATCHERS {
            dispatcher.pin_map(map, &path.join(name))?;
        }
    }
    Ok(dispatcher)
}

/// Gives an object the maps that are pinned in `path`.
pub(crate) fn share(path: &Path, object: &mut PolicyObject, maps: &[(&str, &str)]) -> Result<()> {
    for (pin, map) in maps {
        object.share(map, sys::obj_get_required(&path.join(pin))?.as_fd())?;
    }
    Ok(())
}

/// The dispatchers that a deployment has pinned.
pub(crate) fn dispatchers(path: &Path) -> Result<Vec<OwnedFd>> {
    let entries =
        fs::read_dir(path).map_err(|e| Error::kernel(format!("read {}", path.display()), e))?;
    let named = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(DISPATCHER);
    entries.flatten().filter(named).map(|entry| sys::obj_get_required(&entry.path())).collect()
}

/// Ends a deployment, complete or not: empties its slot, which is all of it or nothing, and
/// then detaches its dispatchers and frees its sockets, as far as that goes.
///
/// Detaches through sockets of ours only: a group may have another's program by now, and the
/// kernel tells nobody whose it is. A dispatcher that stays, because we could not reach its
/// sockets, finds its slot empty and passes. Sockets that stay are busy for the next deployment
/// until the map of executors is freed.
pub(crate) fn take_down(path: &Path) -> Result<()> {
    let slot = 0u32.to_ne_bytes();
    let pins = match Pins::open(path) {
        Ok(pins) => pins,
        // Not complete yet, or not any more.
        Err(Error::Pin { .. }) => {
            let policies = sys::obj_get(&path.join(POLICIES.0))?;
            return policies.map_or(Ok(()), |fd| Map::new(fd)?.delete(&slot));
        }
        Err(e) => return Err(e),
    };
    // One that is gone, or another version's, tells nothing.
    let unreadable = |e| if matches!(e, Error::Pin { .. }) { Ok(None) } else { Err(e) };
    let mut record = Record::read(path).or_else(unreadable)?;
    let state = record.as_ref().and_then(|record| record.state::<State>(path).ok());
    let cookies = state.as_ref().map(|state| pins.cookies(state)).transpose()?;
    pins.policies.delete(&slot)?;
    let mut places: Vec<u32> = (0..pins.executors.max_entries()).collect();
    if let (Some(record), Some(state), Some(cookies)) = (&mut record, state, cookies) {
        let of_group = |(group, cookies): (usize, &Cookies)| {
            let taken = (0..).zip(cookies).filter(|(_, cookie)| cookie.is_some());
            taken.map(|(index, _)| place(group, index)).collect::<Vec<u32>>()
        };
        places = cookies.iter().enumerate().flat_map(of_group).collect();
        pins.detach(record, state, cookies);
    }
    for place in places {
        if let Err(e) = pins.executors.delete(&place.to_ne_bytes()) {
            log::warn!("a socket stays busy until its map is freed: {e}");
        }
    }
    Ok(())
}
