//! Whose the sockets of a port are: they are found in the kernel's list, and taken from the
//! processes that hold them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use syrup_hook::{Error, Proto, Result, netns, process};

use super::Target;
use super::bound::{Bound, bound};
use super::sockets::{GroupKey, Member, Unfit, inspect};

/// Sockets to start with.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The process that holds most of them, or that was named.
    pub pid: Option<i32>,
    /// Where they are.
    pub netns_cookie: u64,
    /// Of each group in the order of process and fd number.
    pub members: Vec<Member>,
    /// Cookies of those that can be no executors.
    pub unfit: BTreeSet<u64>,
    /// The users who made the members.
    pub uids: BTreeSet<u32>,
}

/// The sockets that a deployment starts with: whole groups, of the ports that were named and
/// of the process that was; of its only port when none was. None yet is no error unless a
/// process was named.
///
/// # Errors
/// [`Error::NotFound`] when that process has none, [`Error::Usage`] when it has several ports.
pub(crate) fn of_target(target: &Target, owner: u32) -> Result<Found> {
    let Some(pid) = target.pid else {
        let netns_cookie = netns::own_cookie()?;
        if target.port.is_empty() {
            return Ok(Found { netns_cookie, ..Found::default() });
        }
        let taken = take(&bound_by(target, owner)?, None)?;
        return Ok(Found { netns_cookie, ..taken });
    };
    // A process of threads in several namespaces may use a port in each: the caller's first.
    let here = || of_process(pid, target, owner);
    let there = netns::of_process(pid)?;
    match here() {
        // What it has here says more than that it has nothing there.
        Err(why @ Error::NotFound { .. }) => match netns::within(there.as_fd(), here)? {
            Err(Error::NotFound { .. }) => Err(why),
            found => found,
        },
        found => found,
    }
}

/// Of the ports: of an app that is not root's, what its owner or root made.
fn bound_by(target: &Target, owner: u32) -> Result<Vec<Bound>> {
    let mut all = bound(&target.proto, &target.port)?;
    all.retain(|b| owner == 0 || b.uid == 0 || b.uid == owner);
    Ok(all)
}

/// The same in the calling thread's network namespace.
fn of_process(pid: i32, target: &Target, owner: u32) -> Result<Found> {
    let all = bound_by(target, owner)?;
    let held = process::socket_inodes(pid);
    let of_it: Vec<Bound> = all.iter().filter(|b| held.contains(&b.inode)).cloned().collect();
    let mut own = take_from(pid, &of_it)?;
    let keys: BTreeSet<GroupKey> = own.members.iter().map(|member| member.key).collect();
    if keys.is_empty() {
        return Err(not_adoptable(pid, target)?);
    }
    let ports: BTreeSet<u16> = keys.iter().map(|key| key.address.port()).collect();
    if target.port.is_empty() && ports.len() > 1 {
        let ports = Vec::from_iter(ports.iter().map(u16::to_string)).join(",");
        return Err(Error::Usage(format!(
            "process {pid} serves several ports: name those that the policy is for, of --port {ports}"
        )));
    }
    // Other processes may hold the rest of its groups.
    let rest: Vec<Bound> = all
        .into_iter()
        .filter(|b| keys.contains(&b.key) && own.members.iter().all(|m| m.cookie != b.cookie))
        .collect();
    let rest = take(&rest, None)?;
    own.members.extend(rest.members);
    own.unfit.extend(rest.unfit);
    own.uids.extend(rest.uids);
    own.netns_cookie = netns::own_cookie()?;
    Ok(own)
}

/// Takes sockets from whoever holds them: from `hint` first, then from as few processes as
/// possible, the one with most sockets first. A socket that nobody holds any more, or whose
/// holder we may not look into, stays out.
///
/// # Errors
/// [`Error::Kernel`].
pub(crate) fn take(wanted: &[Bound], hint: Option<i32>) -> Result<Found> {
    let mut missing: BTreeSet<u64> = wanted.iter().map(|b| b.inode).collect();
    let mut found = Found::default();
    let held_by = |pid: i32| -> Option<(i32, BTreeSet<u64>)> {
        let held = process::socket_inodes(pid);
        let held: BTreeSet<u64> =
            wanted.iter().map(|b| b.inode).filter(|inode| held.contains(inode)).collect();
        (!held.is_empty()).then_some((pid, held))
    };
    // Whoever has all of them is asked alone.
    let mut holders: Vec<(i32, BTreeSet<u64>)> = hint.and_then(held_by).into_iter().collect();
    if !missing.is_empty() && holders.iter().all(|(_, held)| held.len() < missing.len()) {
        let others = process::all().into_iter().filter(|&pid| Some(pid) != hint);
        holders.extend(others.filter_map(held_by));
    }
    while let Some((pid, held)) = holders
        .iter()
        .max_by_key(|(pid, held)| (held.len(), Some(*pid) == hint, -pid))
        .map(|(pid, held)| (*pid, held.clone()))
        .filter(|(_, held)| !held.is_empty())
    {
        let of_it: Vec<Bound> =
            wanted.iter().filter(|b| held.contains(&b.inode)).cloned().collect();
        let taken = not_of_others(take_from(pid, &of_it))?;
        missing.retain(|inode| !held.contains(inode));
        holders.iter_mut().for_each(|(_, held)| held.retain(|inode| missing.contains(inode)));
        found.pid = found.pid.or(taken.pid.filter(|_| !taken.members.is_empty()));
        found.members.extend(taken.members);
        found.unfit.extend(taken.unfit);
        found.uids.extend(taken.uids);
    }
    Ok(found)
}

/// Those of a process.
fn take_from(pid: i32, wanted: &[Bound]) -> Result<Found> {
    let mut found = Found { pid: Some(pid), ..Found::default() };
    let inodes: HashSet<u64> = wanted.iter().map(|b| b.inode).collect();
    let mut seen = HashSet::new();
    for (number, fd) in process::sockets(pid, |inode| inodes.contains(&inode))? {
        let inode = rustix::fs::fstat(&fd)
            .map_err(|e| Error::kernel(format!("inspect socket {number} of process {pid}"), e))?
            .st_ino;
        // A number may be another socket's by now.
        if !inodes.contains(&inode) || !seen.insert(inode) {
            continue;
        }
        match inspect(fd)
            .map_err(|e| Error::kernel(format!("inspect socket {number} of process {pid}"), e))?
        {
            Ok(member) => {
                let listed = wanted.iter().filter(|b| b.cookie == member.cookie);
                found.uids.extend(listed.map(|b| b.uid));
                if wanted.iter().any(|b| b.cookie == member.cookie) {
                    found.members.push(member);
                }
            }
            Err(_) => {
                found.unfit.extend(wanted.iter().filter(|b| b.inode == inode).map(|b| b.cookie));
            }
        }
    }
    Ok(found)
}

/// Why a process has nothing to adopt, with what there is instead.
fn not_adoptable(pid: i32, target: &Target) -> Result<Error> {
    let list = |names: &BTreeSet<String>| Vec::from_iter(names.iter().cloned()).join(", ");
    let (mut unshared, mut others) = (BTreeSet::new(), BTreeSet::new());
    let wants = |proto: Proto| target.proto.is_empty() || target.proto.contains(&proto);
    let has = |port: u16| target.port.is_empty() || target.port.contains(&port);
    // Without the kernel's list, which leaves out what serves nobody yet.
    let here = netns::own_cookie()?;
    for (_, fd) in process::sockets(pid, |_| true)? {
        if !netns::cookie_of(fd.as_fd()).is_ok_and(|cookie| cookie == here) {
            continue;
        }
        match inspect(fd) {
            Ok(Ok(Member { key, .. })) if has(key.address.port()) => {
                others.insert(format!("{} {}", key.proto, key.address));
            }
            Ok(Err(Unfit::NoReusePort(proto, address))) if wants(proto) && has(address.port()) => {
                unshared.insert(format!("{proto} {address}"));
            }
            Ok(Err(Unfit::NotListening(address))) if wants(Proto::Tcp) && has(address.port()) => {
                others.insert(format!("tcp {address} that does not listen yet"));
            }
            _ => {}
        }
    }
    let none = format!("process {pid} has no SO_REUSEPORT socket bound to {}", wanted(target));
    let (what, advice) = if !unshared.is_empty() {
        (
            format!("{none}, only {} without it", list(&unshared)),
            "have the server set SO_REUSEPORT before it binds, one socket per thread",
        )
    } else if !others.is_empty() {
        (
            format!("{none}, only {}", list(&others)),
            "name the server's protocol (--proto tcp, --proto udp), or wait until it listens",
        )
    } else {
        (none, "give the process and port of a server whose sockets are bound")
    };
    Ok(Error::NotFound { what, advice: advice.to_owned() })
}

/// "udp port 53", "any port"
fn wanted(target: &Target) -> String {
    let protos: Vec<String> = target.proto.iter().map(Proto::to_string).collect();
    let ports: Vec<String> = target.port.iter().map(u16::to_string).collect();
    match (protos.as_slice(), ports.as_slice()) {
        ([], []) => "any port".to_owned(),
        ([], ports) => format!("port {}", ports.join(",")),
        (protos, []) => format!("any {} port", protos.join(",")),
        (protos, ports) => format!("{} port {}", protos.join(","), ports.join(",")),
    }
}

/// A process that has a socket at the ports of a deployment.
#[derive(Debug)]
pub(crate) struct Server {
    pub pid: i32,
    pub proto: Proto,
    pub port: u16,
    /// Whose the socket is.
    pub uid: u32,
    /// Why it can be no executor, if it cannot.
    pub unfit: Option<Unfit>,
}

/// Those of the calling thread's network namespace that serve the ports, by any protocol.
///
/// # Errors
/// [`Error::Kernel`].
pub(crate) fn servers(ports: &[u16]) -> Result<Vec<Server>> {
    let listed = bound(&[], ports)?.into_iter().map(|b| (b.inode, (b.key, b.uid)));
    let mut wanted: HashMap<u64, (GroupKey, u32)> = listed.collect();
    let mut found = Vec::new();
    for pid in process::all() {
        if wanted.is_empty() {
            break;
        }
        for (_, fd) in not_of_others(process::sockets(pid, |inode| wanted.contains_key(&inode)))? {
            let inode = rustix::fs::fstat(&fd).map(|stat| stat.st_ino);
            let Some((key, uid)) = inode.ok().and_then(|inode| wanted.remove(&inode)) else {
                continue;
            };
            let unfit = inspect(fd).ok().and_then(Result::err);
            found.push(Server { pid, proto: key.proto, port: key.address.port(), uid, unfit });
        }
    }
    Ok(found)
}

/// Nothing of a process that ended or that we may not look into; other errors stay.
fn not_of_others<T: Default>(of_a_process: Result<T>) -> Result<T> {
    match of_a_process {
        Err(Error::NotFound { .. }) => Ok(T::default()),
        Err(Error::Kernel { source, .. })
            if [io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound]
                .contains(&source.kind())
                || source.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(T::default())
        }
        other => other,
    }
}

/// One of the sockets with these cookies, which are of one group, taken from whoever holds
/// it; the process `hint` is asked first. `None` when it is out of our reach.
///
/// # Errors
/// [`Error::Kernel`].
pub(crate) fn one_of(
    key: &GroupKey,
    cookies: &[u64],
    hint: Option<i32>,
) -> Result<Option<OwnedFd>> {
    if cookies.is_empty() {
        return Ok(None);
    }
    let look = || -> Result<Option<OwnedFd>> {
        let listed = bound(&[key.proto], &[key.address.port()])?;
        for b in listed.iter().filter(|b| cookies.contains(&b.cookie)) {
            let taken = take(std::slice::from_ref(b), hint)?;
            if let Some(member) = taken.members.into_iter().next() {
                return Ok(Some(member.fd));
            }
        }
        Ok(None)
    };
    Ok(netns::within_cookie(key.netns_cookie, hint, look)?.transpose()?.flatten())
}

/// The process that holds a socket we were passed: another one than ourselves
/// if there is one.
pub(crate) fn holder(fd: BorrowedFd<'_>) -> Option<i32> {
    let inode = rustix::fs::fstat(fd).ok()?.st_ino;
    let own = std::process::id() as i32;
    let holds = |&pid: &i32| process::socket_inodes(pid).contains(&inode);
    let mut holders = process::all().into_iter().filter(holds);
    let first = holders.next()?;
    if first == own { holders.next().or(Some(own)) } else { Some(first) }
}
