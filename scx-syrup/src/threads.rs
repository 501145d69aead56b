//! Registered threads: in the root scheduler's task storage, and `SCHED_EXT`.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use syrup_hook::process::Thread;
use syrup_hook::sys::Map;
use syrup_hook::{Error, Result};
use syrup_sdk::abi;

use crate::layout::{Plain as _, syrup_scx_register, syrup_scx_thread};
use crate::root::{Room, Root};

const SCHED_EXT: i32 = 7;
/// Scans of /proc while an app is emptied: threads it forks meanwhile inherit.
const RELEASE_ROUNDS: usize = 20;
/// The same of one that is expelled: they are nobody's by then, and whoever comes again waits for
/// the next look.
const EXPEL_ROUNDS: usize = 2;
/// Of a thread that enters the class just when it is registered.
const REGISTER_TRIES: usize = 100;
/// One that holds a lock for which a real-time thread waits is given so long to let go, each time.
const BOOSTED: Duration = Duration::from_millis(1);
/// A fork takes far less, unless it waits for memory.
const STARTING: Duration = Duration::from_secs(1);

/// An app as the root scheduler knows it: a slot, and which of the apps that had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub slot: u32,
    pub generation: u32,
}

impl Owner {
    fn of(thread: &syrup_scx_thread) -> Self {
        Self { slot: thread.slot, generation: thread.generation }
    }
}

/// A registered thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registered {
    pub tid: i32,
    pub owner: Owner,
    pub index: u32,
}

/// How the kernel schedules a thread, as sched_setscheduler(2) takes it. Its nice value is the
/// thread's own, and stays.
#[derive(Debug, Clone, Copy)]
struct Class {
    policy: i32,
    /// Of a real-time policy.
    priority: i32,
}

impl Class {
    const OTHER: Self = Self { policy: libc::SCHED_OTHER, priority: 0 };
    const EXT: Self = Self { policy: SCHED_EXT, priority: 0 };

    /// What a registered thread was before: never this class itself, or it could not be given
    /// back.
    fn before(thread: &syrup_scx_thread) -> Self {
        match i32::from(thread.was_policy) {
            SCHED_EXT => Self::OTHER,
            policy => Self { policy, priority: thread.was_priority.into() },
        }
    }
}

/// Gives a thread to an app under an index, which whoever has it loses: the root scheduler is
/// told first, and makes the thread the app's when it enters the scheduling class.
pub(crate) fn register(
    root: &Root,
    threads: &Map,
    thread: &Thread,
    owner: Owner,
    index: u32,
) -> Result<()> {
    let (tid, key) = (thread.tid(), key(thread));
    if is_of_kernel(tid) {
        return Err(Error::Usage(format!(
            "thread {tid} is the kernel's own: whatever waits for it would wait for every \
             ordinary thread"
        )));
    }
    // What is remembered of a wait that is under way stays.
    if is_ext(tid)
        && lookup(threads, key)?.is_some_and(|thread| Owner::of(&thread) == owner)
        && root.set_index(tid, owner, index)?
    {
        return Ok(());
    }
    match root.room(owner.slot)? {
        Room::Free => {}
        full => return Err(no_room(root, owner.slot, full)?),
    }
    let entered = enter(root, threads, thread, owner, index);
    if entered.is_err() {
        let Owner { generation, .. } = owner;
        // What was asked for is not to be done by whatever comes later.
        match root.register(syrup_scx_register { tid, slot: 0, generation, index }) {
            Ok(_) | Err(Error::NotFound { .. }) => {}
            Err(e) => log::warn!("{e}"),
        }
    }
    entered
}

/// Has the thread enter the class as the owner's, and gives it the index.
fn enter(root: &Root, threads: &Map, thread: &Thread, owner: Owner, index: u32) -> Result<()> {
    let tid = thread.tid();
    let Owner { slot, generation } = owner;
    for _ in 0..REGISTER_TRIES {
        if is_ext(tid) {
            // In the class it counts as a thread of the app it has, so it leaves that first.
            release(threads, tid)?;
        }
        if policy_of(tid)? == libc::SCHED_DEADLINE {
            return Err(Error::Usage(format!(
                "thread {tid} is SCHED_DEADLINE: it has promised the kernel when it is done, \
                 which no thread policy would keep"
            )));
        }
        if !root.register(syrup_scx_register { tid, slot, generation, index })? {
            continue;
        }
        // The id may be another thread's by now, which is nobody's.
        if thread.has_ended()? {
            return Err(no_such_thread(tid));
        }
        if let Err(e) = set_class(tid, Class::EXT) {
            if e.raw_os_error() == Some(libc::ESRCH) {
                return Err(no_such_thread(tid));
            }
            return Err(Error::kernel(format!("make thread {tid} SCHED_EXT"), e));
        }
        // The class is set by id as well.
        if thread.has_ended()? {
            release(threads, tid)?;
            return Err(no_such_thread(tid));
        }
        if owner_of(threads, tid)? != Some(owner) {
            // It entered by itself just before, or holds a lock that a thread of a higher
            // class waits for, whose class it has for so long.
            if is_ext(tid) {
                std::thread::sleep(BOOSTED);
            }
            if owner_of(threads, tid)? != Some(owner) {
                continue;
            }
        }
        // It has the index already, unless another has.
        let given = root.set_index(tid, owner, index).inspect_err(|_| {
            if let Err(e) = release(threads, tid) {
                log::warn!("{e}");
            }
        })?;
        if given {
            return Ok(());
        }
    }
    Err(Error::Timeout(format!(
        "thread {tid}: it enters and leaves sched_ext by itself again and again, or a thread of \
         another class waits for a lock that it holds"
    )))
}

/// What a thread of the class is registered as, for an app that may be gone; `None` when it
/// is not in the class.
pub(crate) fn find(threads: &Map, tid: i32) -> Result<Option<Registered>> {
    if !is_ext(tid) {
        return Ok(None);
    }
    let Some(thread) = Thread::open(tid)? else { return Ok(None) };
    let found = lookup(threads, key(&thread))?.filter(|found| found.slot != 0);
    Ok(found.map(|found| Registered { tid, owner: Owner::of(&found), index: found.index }))
}

/// The app of that.
pub(crate) fn owner_of(threads: &Map, tid: i32) -> Result<Option<Owner>> {
    Ok(find(threads, tid)?.map(|thread| thread.owner))
}

/// Gives every thread of `slot`, whichever app's, back to the kernel.
/// Their storage stays: a child of one that is just forking is known by it.
pub(crate) fn release_all(root: &Root, threads: &Map, slot: u32) -> Result<()> {
    if !release_rounds(root, threads, slot, RELEASE_ROUNDS)? {
        // They left once, so none of them waits in the app's queues any more.
        log::warn!("threads of app slot {slot} enter the class again and again, as nobody's");
    }
    Ok(())
}

/// The same of an app that was expelled, of which some may be left.
pub(crate) fn expel_all(root: &Root, threads: &Map, slot: u32) -> Result<()> {
    release_rounds(root, threads, slot, EXPEL_ROUNDS).map(drop)
}

/// Returns whether none is left.
fn release_rounds(root: &Root, threads: &Map, slot: u32, rounds: usize) -> Result<bool> {
    let mut deadline = None;
    for _ in 0..rounds {
        // Before they are looked for: those that are counted are seen then. A fork that has
        // not come to its hook is not: see `release_strays`.
        while root.starting(slot)? > 0 {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + STARTING);
            if Instant::now() > deadline {
                log::warn!("a thread of app slot {slot} has been starting for {STARTING:?}");
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let members: Vec<_> =
            registered(threads)?.into_iter().filter(|thread| thread.owner.slot == slot).collect();
        if members.is_empty() {
            return Ok(true);
        }
        release_each(threads, members.iter().map(|member| member.tid))?;
    }
    Ok(false)
}

/// Gives back the threads that were registered for an app that is gone: a fork that takes
/// long enters the class, as its parent was when it began, after everybody was released.
/// One that entered the class again by itself cannot be told from these.
pub(crate) fn release_strays(threads: &Map, live: &[Owner]) -> Result<()> {
    let strays = registered(threads)?;
    let strays = strays.iter().filter(|thread| !live.contains(&thread.owner));
    release_each(threads, strays.map(|stray| stray.tid))
}

/// Returns the first failure, after all others were given back.
fn release_each(threads: &Map, tids: impl Iterator<Item = i32>) -> Result<()> {
    tids.map(|tid| release(threads, tid)).fold(Ok(()), Result::and)
}

/// Gives back every thread of the class that none of the apps has, or that may run on none of
/// its app's cores (an empty list is all). Returns how many there were.
pub(crate) fn release_nobodys(threads: &Map, apps: &[(Owner, Vec<u32>)]) -> Result<usize> {
    let mut released = 0;
    for tid in tids().into_iter().filter(|&tid| is_ext(tid)) {
        let owner = owner_of(threads, tid)?;
        let app = apps.iter().find(|(app, _)| Some(*app) == owner);
        let is_nobodys = match (app, affinity(tid)) {
            (None, _) => true,
            (Some((_, cpus)), Ok(allowed)) => !may_run_on_any(&allowed, cpus),
            // It ended.
            (Some(_), Err(_)) => false,
        };
        if !is_nobodys {
            continue;
        }
        match release(threads, tid) {
            Ok(()) => released += 1,
            // The others all the same.
            Err(e) => log::warn!("{e}"),
        }
    }
    Ok(released)
}

/// Whether a thread may run on one of an app's cores; an app without a list has all.
pub(crate) fn may_run_on_any(allowed: &[u32], cpus: &[u32]) -> bool {
    cpus.is_empty() || allowed.iter().any(|cpu| cpus.contains(cpu))
}

/// Gives a thread back to the kernel, in the class that it was registered from: of one that
/// another has started, the class that it would have inherited.
pub(crate) fn release(threads: &Map, tid: i32) -> Result<()> {
    let Some(thread) = Thread::open(tid)? else { return Ok(()) };
    let was = lookup(threads, key(&thread))?.map_or(Class::OTHER, |it| Class::before(&it));
    // What it was may have become impossible: in a cgroup without real time, for one.
    let given = set_class(tid, was).or_else(|e| match e.raw_os_error() {
        Some(libc::ESRCH) => Ok(()),
        _ => {
            log::warn!("thread {tid} cannot be what it was ({was:?}: {e}): it is SCHED_OTHER");
            set_class(tid, Class::OTHER)
        }
    });
    match given {
        Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
            Err(Error::kernel(format!("give thread {tid} back to the kernel"), e))
        }
        _ => Ok(()),
    }
}

/// The threads of an app.
pub(crate) fn of(threads: &Map, owner: Owner) -> Result<Vec<Registered>> {
    Ok(registered(threads)?.into_iter().filter(|thread| thread.owner == owner).collect())
}

/// CPUs a thread may run on.
pub(crate) fn affinity(tid: i32) -> Result<Vec<u32>> {
    let mut mask = [0u64; abi::SYRUP_MAX_CPUS as usize / 64];
    // SAFETY: mask is a writable buffer of the size that is passed.
    let len = unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, tid, size_of_val(&mask), mask.as_mut_ptr())
    };
    if len < 0 {
        let e = io::Error::last_os_error();
        if e.raw_os_error() == Some(libc::ESRCH) {
            return Err(no_such_thread(tid));
        }
        return Err(Error::kernel(format!("read the affinity of thread {tid}"), e));
    }
    Ok((0..abi::SYRUP_MAX_CPUS)
        .filter(|cpu| mask[*cpu as usize / 64] >> (cpu % 64) & 1 == 1)
        .collect())
}

/// Every registered thread of the machine. Only threads of the class are
/// looked up; task storage cannot be listed.
fn registered(threads: &Map) -> Result<Vec<Registered>> {
    let mut found = Vec::new();
    for tid in tids() {
        found.extend(find(threads, tid)?);
    }
    found.sort_unstable_by_key(|thread| thread.tid);
    Ok(found)
}

/// The thread's storage; `None` also for a thread that just died.
fn lookup(threads: &Map, key: [u8; 4]) -> Result<Option<syrup_scx_thread>> {
    match threads.lookup(&key) {
        Ok(bytes) => Ok(bytes.and_then(|bytes| syrup_scx_thread::from_bytes(&bytes))),
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

fn tids() -> Vec<i32> {
    let numbers = |dir: String| -> Vec<i32> {
        fs::read_dir(dir)
            .map(|entries| {
                entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()
            })
            .unwrap_or_default()
    };
    numbers("/proc".to_owned())
        .into_iter()
        .flat_map(|pid| numbers(format!("/proc/{pid}/task")))
        .collect()
}

/// Of a thread in task storage.
fn key(thread: &Thread) -> [u8; 4] {
    thread.as_fd().as_raw_fd().to_ne_bytes()
}

fn is_of_kernel(tid: i32) -> bool {
    // Of the thread alone: its process's would be summed up over all its threads.
    let stat = fs::read(format!("/proc/{tid}/task/{tid}/stat"));
    stat.is_ok_and(|stat| says_of_kernel(&String::from_utf8_lossy(&stat)))
}

/// A thread's `stat`: its flags count from its name, which may hold anything.
fn says_of_kernel(stat: &str) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

fn is_ext(tid: i32) -> bool {
    // SAFETY: a plain system call on numbers.
    let policy = unsafe { libc::sched_getscheduler(tid) };
    policy & !libc::SCHED_RESET_ON_FORK == SCHED_EXT
}

fn policy_of(tid: i32) -> Result<i32> {
    // SAFETY: a plain system call on numbers.
    let policy = unsafe { libc::sched_getscheduler(tid) };
    if policy < 0 {
        return Err(match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ESRCH) => no_such_thread(tid),
            e => Error::kernel(format!("read the scheduling class of thread {tid}"), e),
        });
    }
    Ok(policy & !libc::SCHED_RESET_ON_FORK)
}

/// Whether its children have the default class stays as it is.
fn set_class(tid: i32, class: Class) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: class.priority };
    // SAFETY: a plain system call on numbers.
    let flag = unsafe { libc::sched_getscheduler(tid) }.max(0) & libc::SCHED_RESET_ON_FORK;
    // SAFETY: param lives for the call.
    if unsafe { libc::sched_setscheduler(tid, class.policy | flag, &raw const param) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Why an app may have no other thread.
fn no_room(root: &Root, slot: u32, full: Room) -> Result<Error> {
    let (app, has) = (root.app(slot)?, root.members(slot)? + root.starting(slot)?);
    Ok(Error::Conflict {
        what: match full {
            Room::UserIsFull => {
                format!("the apps of user {} have as many threads in sched_ext as he may", app.user)
            }
            _ => {
                let most = app.most_threads;
                format!("the app has {has} threads in sched_ext, and may have {most}")
            }
        },
        advice: "register fewer: what is not registered runs under the kernel's default".to_owned(),
    })
}

pub(crate) fn no_such_thread(tid: i32) -> Error {
    Error::NotFound {
        what: format!("there is no thread {tid}"),
        advice: "give the id of a running thread".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_affinity_of_a_thread_is_what_the_kernel_says() {
        let tid = std::process::id() as i32;
        let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        let said: Vec<u32> = list
            .trim()
            .split(',')
            .flat_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                first.parse().unwrap()..=last.parse().unwrap()
            })
            .collect();
        assert_eq!(affinity(tid).unwrap(), said);
    }

    #[test]
    fn the_kernels_own_threads_are_known_by_a_flag() {
        assert!(says_of_kernel("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 2 0 0 20 0 1 0"));
        assert!(!says_of_kernel("7 (a) S 0 0 0 0 -1 2129984) R 1 7 7 0 -1 4194304 9 0 0 0 0 2"));
        assert!(!says_of_kernel(""));
    }

    #[test]
    fn a_thread_that_does_not_exist_is_not_found() {
        assert!(matches!(affinity(i32::MAX), Err(Error::NotFound { .. })));
        assert!(Thread::open(i32::MAX).unwrap().is_none());
    }
}
