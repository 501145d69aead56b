//! Sockets of reuseport groups: what they are bound to, and who holds them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use syrup_hook::{Error, Proto, Result, process};

use super::Target;

/// What makes sockets members of one reuseport group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct GroupKey {
    pub netns_cookie: u64,
    pub proto: Proto,
    pub address: SocketAddr,
    pub v6only: bool,
    pub ifindex: u32,
}

impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.proto, self.address)?;
        if self.ifindex != 0 {
            write!(f, " on interface {}", self.ifindex)?;
        }
        Ok(())
    }
}

/// A socket that can be an executor.
#[derive(Debug)]
pub(crate) struct Member {
    pub fd: OwnedFd,
    pub key: GroupKey,
    pub cookie: u64,
}

/// Why a socket cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    NoPacketSocket,
    Unbound,
    Connected,
    NotListening(SocketAddr),
    NoReusePort(Proto, SocketAddr),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPacketSocket => f.write_str("it is no UDP or TCP socket"),
            Self::Unbound => f.write_str("it is not bound to a port"),
            Self::Connected => f.write_str("it is connected to one peer"),
            Self::NotListening(address) => {
                write!(f, "it is bound to tcp {address} and does not listen yet")
            }
            Self::NoReusePort(proto, address) => {
                write!(f, "it is bound to {proto} {address} without SO_REUSEPORT")
            }
        }
    }
}

/// What a socket is bound to.
///
/// Outer error: the kernel refused to say; inner: it can be no executor.
pub(crate) fn inspect(fd: OwnedFd) -> io::Result<Result<Member, Unfit>> {
    let domain = match sockopt::socket_domain(&fd) {
        Err(rustix::io::Errno::NOTSOCK) => return Ok(Err(Unfit::NoPacketSocket)),
        other => other?,
    };
    if domain != rustix::net::AddressFamily::INET && domain != rustix::net::AddressFamily::INET6 {
        return Ok(Err(Unfit::NoPacketSocket));
    }
    let protocol = option::<i32>(fd.as_fd(), libc::SO_PROTOCOL)?;
    let Some(proto) = u8::try_from(protocol).ok().and_then(Proto::from_number) else {
        return Ok(Err(Unfit::NoPacketSocket));
    };
    let address = match SocketAddr::try_from(rustix::net::getsockname(&fd)?) {
        Ok(address) if address.port() != 0 => address,
        _ => return Ok(Err(Unfit::Unbound)),
    };
    // Connections that a listener accepted inherit its port and SO_REUSEPORT,
    // and the kernel takes connected UDP sockets out of the selection.
    match rustix::net::getpeername(&fd) {
        Ok(Some(_)) => return Ok(Err(Unfit::Connected)),
        Ok(None) | Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::INVAL) => {}
        Err(e) => return Err(e.into()),
    }
    if !sockopt::socket_reuseport(&fd)? {
        return Ok(Err(Unfit::NoReusePort(proto, address)));
    }
    if proto == Proto::Tcp && !sockopt::socket_acceptconn(&fd)? {
        return Ok(Err(Unfit::NotListening(address)));
    }
    let v6only = domain == rustix::net::AddressFamily::INET6 && sockopt::ipv6_v6only(&fd)?;
    let key = GroupKey {
        netns_cookie: netns_cookie(fd.as_fd())?,
        proto,
        // Scope and flow label do not tell groups apart; the interface does.
        address: SocketAddr::new(address.ip(), address.port()),
        v6only,
        ifindex: option::<u32>(fd.as_fd(), libc::SO_BINDTOIFINDEX)?,
    };
    let cookie = sockopt::socket_cookie(&fd)?;
    Ok(Ok(Member { fd, key, cookie }))
}

/// Names the network namespace a socket lives in.
fn netns_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    option(fd, libc::SO_NETNS_COOKIE)
}

/// Names the network namespace of the calling thread.
///
/// # Errors
/// [`Error::Kernel`]; `ENOPROTOOPT` before Linux 5.14.
pub(crate) fn own_netns_cookie() -> Result<u64> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .map_err(|e| Error::kernel("make a socket", e))?;
    netns_cookie(socket.as_fd())
        .map_err(|e| Error::kernel("read the network namespace's cookie", e))
}

/// An integer socket option (SOL_SOCKET).
fn option<T: Default>(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: value has len bytes, and the callers' types are integers, for
    // which any bytes are valid.
    let err = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if err < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Attaches a program to the group of `socket`. Again with the same program
/// changes nothing.
pub(crate) fn attach(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    set_option(socket, libc::SO_ATTACH_REUSEPORT_EBPF, program.as_raw_fd())
        .map_err(|e| Error::kernel("attach the dispatcher to the reuseport group", e))
}

/// Detaches what is attached to the group of `socket`; nothing is no error.
pub(crate) fn detach(socket: BorrowedFd<'_>) -> Result<()> {
    match set_option(socket, libc::SO_DETACH_REUSEPORT_BPF, 0) {
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => {
            Err(Error::kernel("detach the dispatcher from the reuseport group", e))
        }
        _ => Ok(()),
    }
}

fn set_option(fd: BorrowedFd<'_>, name: libc::c_int, value: i32) -> io::Result<()> {
    // SAFETY: value is read for its size during the call.
    let err = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if err < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The sockets of the one reuseport group of process `pid` that fits `proto`
/// and `port`, in the order of their fd numbers; a socket held twice counts
/// once. Groups in the calling thread's network namespace go before others.
///
/// # Errors
/// [`Error::NotFound`] without such a group, [`Error::Usage`] naming the
/// candidates when there are several.
pub(crate) fn adoptable(pid: i32, proto: Option<Proto>, port: Option<u16>) -> Result<Vec<Member>> {
    if let Some(port) = port {
        // A server may hold more connections than we may have files.
        let mut bound = BTreeSet::new();
        for dir in [Path::new("/proc/thread-self"), Path::new(&format!("/proc/{pid}"))] {
            for proto in proto.map_or_else(|| vec![Proto::Udp, Proto::Tcp], |proto| vec![proto]) {
                bound.extend(not_of_others(bound_inodes(dir, proto, port))?);
            }
        }
        let found = adoptable_of(pid, proto, Some(port), |inode| bound.contains(&inode));
        if !matches!(found, Err(Error::NotFound { .. })) {
            return found;
        }
    }
    // Then all, to say what there is instead.
    adoptable_of(pid, proto, port, |_| true)
}

/// Of the sockets whose inodes are `wanted`.
fn adoptable_of(
    pid: i32,
    proto: Option<Proto>,
    port: Option<u16>,
    wanted: impl Fn(u64) -> bool,
) -> Result<Vec<Member>> {
    let fits = |p: Proto, n: u16| proto.is_none_or(|q| q == p) && port.is_none_or(|m| m == n);
    let mut members = Vec::new();
    let mut seen = HashSet::new();
    let mut unshared = BTreeSet::new();
    let mut others = BTreeSet::new();
    for (number, fd) in process::sockets(pid, wanted)? {
        let found = inspect(fd)
            .map_err(|e| Error::kernel(format!("inspect socket {number} of process {pid}"), e))?;
        match found {
            Ok(member)
                if fits(member.key.proto, member.key.address.port())
                    && seen.insert(member.cookie) =>
            {
                members.push(member);
            }
            // Looked at only when none fits: then the protocol is another.
            Ok(Member { key, .. }) if port == Some(key.address.port()) => {
                others.insert(format!("{} {}", key.proto, key.address));
            }
            Err(Unfit::NoReusePort(p, address)) if fits(p, address.port()) => {
                unshared.insert(format!("{p} {address}"));
            }
            Err(Unfit::NotListening(address)) if fits(Proto::Tcp, address.port()) => {
                others.insert(format!("tcp {address} that does not listen yet"));
            }
            _ => {}
        }
    }
    // A process with threads in several namespaces may use a port in each.
    let here = own_netns_cookie()?;
    if members.iter().any(|member| member.key.netns_cookie == here) {
        members.retain(|member| member.key.netns_cookie == here);
    }
    let mut groups: Vec<GroupKey> = Vec::new();
    for member in &members {
        if !groups.contains(&member.key) {
            groups.push(member.key);
        }
    }
    let wanted = match (proto, port) {
        (Some(proto), Some(port)) => format!("{proto} port {port}"),
        (None, Some(port)) => format!("port {port}"),
        (Some(proto), None) => format!("any {proto} port"),
        (None, None) => "any port".to_owned(),
    };
    match groups.as_slice() {
        [_] => Ok(members),
        [] => {
            let list = |names: BTreeSet<String>| Vec::from_iter(names).join(", ");
            let none = format!("process {pid} has no SO_REUSEPORT socket bound to {wanted}");
            let (what, advice) = if !unshared.is_empty() {
                (
                    format!("{none}, only {} without it", list(unshared)),
                    "have the server set SO_REUSEPORT before it binds, one socket per thread",
                )
            } else if !others.is_empty() {
                (
                    format!("{none}, only {}", list(others)),
                    "name the server's protocol (--proto tcp, --proto udp), or wait until it \
                     listens",
                )
            } else {
                (none, "give the process and port of a server whose sockets are bound")
            };
            Err(Error::NotFound { what, advice: advice.to_owned() })
        }
        several => Err(Error::Usage(format!(
            "process {pid} has several reuseport groups: {}; a deployment covers one, so name its \
             port and protocol, or let the app register its sockets",
            several.iter().map(GroupKey::to_string).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The sockets a deployment starts with and the process they belong to: those
/// of the process that was named; else those of the processes that serve the
/// port, of which the one with most sockets stands for all; else none yet.
///
/// # Errors
/// As [`adoptable`]; [`Error::Usage`] when the processes serve different groups.
pub(crate) fn of_target(target: &Target) -> Result<(Option<i32>, Vec<Member>)> {
    if let Some(pid) = target.pid {
        return Ok((Some(pid), adoptable(pid, target.proto, target.port)?));
    }
    let Some(port) = target.port else { return Ok((None, Vec::new())) };
    let proto = target.proto.unwrap_or(Proto::Udp);
    let owners = owners(proto, port)?;
    if owners.is_empty() && target.proto.is_none() {
        refuse_other_proto(proto, port)?;
    }
    let mut members: Vec<Member> = Vec::new();
    let mut seen = HashSet::new();
    for &pid in &owners {
        for member in adoptable(pid, Some(proto), Some(port))? {
            if let Some(first) = members.first()
                && first.key != member.key
            {
                return Err(Error::Usage(format!(
                    "{proto} port {port} has several reuseport groups: {} and {}; a deployment \
                     covers one, so name the process with --pid",
                    first.key, member.key
                )));
            }
            if seen.insert(member.cookie) {
                members.push(member);
            }
        }
    }
    Ok((owners.first().copied(), members))
}

/// Who named no protocol, and has a server of the other one on the port, may have
/// meant that one: a deployment that waits for the first would never tell.
fn refuse_other_proto(proto: Proto, port: u16) -> Result<()> {
    let here = own_netns_cookie()?;
    let mut servers = servers(port)?;
    servers.retain(|server| server.netns_cookie == here);
    match servers.first() {
        Some(Server { pid, proto: other, .. }) if servers.iter().all(|s| s.proto != proto) => {
            Err(Error::Conflict {
                what: format!(
                    "port {port} has {other} sockets only (process {pid}), and a deployment is for \
                     {proto} unless it says otherwise"
                ),
                advice: format!(
                    "add --proto {other} for these, or --proto {proto} to wait for {proto} sockets"
                ),
            })
        }
        _ => Ok(()),
    }
}

/// The processes that together hold all `SO_REUSEPORT` sockets bound to `port`
/// in the calling thread's network namespace: as few as possible, the one with
/// most sockets first. Empty when there is no such socket.
///
/// A deployment that names a port and no process adopts the sockets of all of
/// them.
///
/// # Errors
/// [`Error::Kernel`] when the kernel's socket list cannot be read, or a
/// socket cannot be inspected.
pub fn owners(proto: Proto, port: u16) -> Result<Vec<i32>> {
    let here = Path::new("/proc/thread-self");
    let inodes = bound_inodes(here, proto, port)?;
    let netns = fs::read_link(here.join("ns/net"))
        .map_err(|e| Error::kernel("read /proc/thread-self/ns/net", e))?;
    let own = std::process::id() as i32;
    let mut held: BTreeMap<i32, BTreeSet<u64>> = BTreeMap::new();
    for pid in processes() {
        // A process of threads in several namespaces is known by its leader's,
        // except ourselves.
        let same = pid == own
            || fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link == netns);
        if !same || socket_inodes(pid).is_disjoint(&inodes) {
            continue;
        }
        let members = not_of_others(reuseport_members(pid, proto, port, &inodes))?;
        let cookies: BTreeSet<u64> = members.into_iter().map(|member| member.cookie).collect();
        if !cookies.is_empty() {
            held.insert(pid, cookies);
        }
    }
    let mut owners = Vec::new();
    loop {
        let best = held.iter().max_by_key(|(pid, cookies)| (cookies.len(), -**pid));
        let Some((&pid, cookies)) = best else { break };
        if cookies.is_empty() {
            break;
        }
        let covered = cookies.clone();
        owners.push(pid);
        held.values_mut().for_each(|cookies| cookies.retain(|c| !covered.contains(c)));
    }
    Ok(owners)
}

/// The `SO_REUSEPORT` sockets of process `pid` bound to `port` in the calling
/// thread's network namespace, in the order of their fd numbers, ready to be
/// registered.
///
/// # Errors
/// As [`process::sockets`].
pub fn reuseport_sockets(pid: i32, proto: Proto, port: u16) -> Result<Vec<OwnedFd>> {
    let inodes = bound_inodes(Path::new("/proc/thread-self"), proto, port)?;
    let members = reuseport_members(pid, proto, port, &inodes)?;
    Ok(members.into_iter().map(|member| member.fd).collect())
}

/// `inodes` are those of [`bound_inodes`].
fn reuseport_members(
    pid: i32,
    proto: Proto,
    port: u16,
    inodes: &BTreeSet<u64>,
) -> Result<Vec<Member>> {
    let here = own_netns_cookie()?;
    let mut seen = HashSet::new();
    let mut members = Vec::new();
    for (number, fd) in process::sockets(pid, |inode| inodes.contains(&inode))? {
        let found = inspect(fd)
            .map_err(|e| Error::kernel(format!("inspect socket {number} of process {pid}"), e))?;
        if let Ok(member) = found
            && member.key.netns_cookie == here
            && member.key.proto == proto
            && member.key.address.port() == port
            && seen.insert(member.cookie)
        {
            members.push(member);
        }
    }
    Ok(members)
}

/// A socket that somebody serves a port with.
#[derive(Debug)]
pub(crate) struct Server {
    pub pid: i32,
    pub proto: Proto,
    pub netns_cookie: u64,
    /// Why it can be no executor, if it cannot.
    pub unfit: Option<Unfit>,
}

/// The sockets that serve `port` in any network namespace, by process. Processes
/// that we may not look into are left out.
///
/// # Errors
/// As [`process::sockets`].
pub(crate) fn servers(port: u16) -> Result<Vec<Server>> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for (pid, inodes) in holders(&[Proto::Udp, Proto::Tcp], port) {
        let sockets = process::sockets(pid, |inode| inodes.contains(&inode));
        for (_, fd) in not_of_others(sockets)? {
            let (Ok(netns_cookie), Ok(cookie)) =
                (netns_cookie(fd.as_fd()), sockopt::socket_cookie(&fd))
            else {
                continue;
            };
            let (proto, address, unfit) = match inspect(fd) {
                Ok(Ok(Member { key, .. })) => (key.proto, key.address, None),
                Ok(Err(unfit @ Unfit::NoReusePort(proto, address))) => {
                    (proto, address, Some(unfit))
                }
                // A client's, or nobody's yet.
                _ => continue,
            };
            if address.port() == port && seen.insert(cookie) {
                found.push(Server { pid, proto, netns_cookie, unfit });
            }
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
/// it; the process `hint` is asked first.
pub(crate) fn one_of(key: &GroupKey, cookies: &[u64], hint: Option<i32>) -> Option<OwnedFd> {
    if cookies.is_empty() {
        return None;
    }
    hint.and_then(|pid| member_of(pid, key, cookies)).or_else(|| {
        holders(&[key.proto], key.address.port()).find_map(|(pid, _)| member_of(pid, key, cookies))
    })
}

/// The processes that hold a socket bound to `port` of their network namespace, with the
/// inodes of all that are bound to it there.
fn holders(protos: &[Proto], port: u16) -> impl Iterator<Item = (i32, Rc<BTreeSet<u64>>)> {
    let own = std::process::id() as i32;
    let mut by_netns: HashMap<PathBuf, Rc<BTreeSet<u64>>> = HashMap::new();
    processes().into_iter().filter_map(move |pid| {
        let held = socket_inodes(pid);
        // Our own threads may live in other namespaces than our leader.
        if pid == own {
            return Some((pid, Rc::new(held)));
        }
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let netns = fs::read_link(dir.join("ns/net")).ok()?;
        let inodes = by_netns.entry(netns).or_insert_with(|| {
            let bound = |&proto| bound_inodes(&dir, proto, port).unwrap_or_default();
            Rc::new(protos.iter().flat_map(bound).collect())
        });
        (!held.is_disjoint(inodes)).then(|| (pid, Rc::clone(inodes)))
    })
}

fn member_of(pid: i32, key: &GroupKey, cookies: &[u64]) -> Option<OwnedFd> {
    let among = |inodes: &BTreeSet<u64>| {
        let sockets = process::sockets(pid, |inode| inodes.contains(&inode)).ok()?;
        sockets.into_iter().find_map(|(_, fd)| match inspect(fd) {
            Ok(Ok(member)) if cookies.contains(&member.cookie) => Some(member.fd),
            _ => None,
        })
    };
    // A server may hold more connections than we may have files, and threads of it may
    // live in other namespaces than its leader.
    let dir = PathBuf::from(format!("/proc/{pid}"));
    bound_inodes(&dir, key.proto, key.address.port())
        .ok()
        .and_then(|bound| among(&bound))
        .or_else(|| among(&socket_inodes(pid)))
}

/// The process that holds a socket we were passed: another one than ourselves
/// if there is one.
pub(crate) fn holder(fd: BorrowedFd<'_>) -> Option<i32> {
    let inode = rustix::fs::fstat(fd).ok()?.st_ino;
    let own = std::process::id() as i32;
    let mut holders = processes().into_iter().filter(|&pid| socket_inodes(pid).contains(&inode));
    let first = holders.next()?;
    if first == own { holders.next().or(Some(own)) } else { Some(first) }
}

/// All processes, by id.
fn processes() -> BTreeSet<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Inodes of the sockets a process holds; empty when it ended or may not be looked into.
fn socket_inodes(pid: i32) -> BTreeSet<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    entries
        .filter_map(|entry| process::socket_inode(&fs::read_link(entry.ok()?.path()).ok()?))
        .collect()
}

/// Inodes of the sockets that are bound to `port` in a process's network namespace and may
/// serve it: connections that a TCP server accepted do not.
fn bound_inodes(process_dir: &Path, proto: Proto, port: u16) -> Result<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for table in [proto.to_string(), format!("{proto}6")] {
        let path = process_dir.join("net").join(table);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::kernel(format!("read {}", path.display()), e)),
        };
        inodes.extend(text.lines().skip(1).filter_map(|line| bound_inode(line, proto, port)));
    }
    Ok(inodes)
}

/// The inode of a line of /proc/net/udp or tcp, if its local port is `port`.
fn bound_inode(line: &str, proto: Proto, port: u16) -> Option<u64> {
    const TCP_LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    if proto == Proto::Tcp && *fields.get(3)? != TCP_LISTEN {
        return None;
    }
    let (_, hex) = fields.get(1)?.rsplit_once(':')?;
    if u16::from_str_radix(hex, 16).ok()? != port {
        return None;
    }
    fields.get(9)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_sockets_table_gives_the_inode_of_its_port() {
        let line = "  512: 00000000:1F90 00000000:0000 07 00000000:00000000 00:00000000 \
                    00000000     0        0 14527 2 00000000f0000000 0";
        assert_eq!(bound_inode(line, Proto::Udp, 8080), Some(14527));
        assert_eq!(bound_inode(line, Proto::Udp, 8081), None);
        assert_eq!(bound_inode("", Proto::Udp, 8080), None);
        let listens = line.replace(" 07 ", " 0A ");
        assert_eq!(bound_inode(&listens, Proto::Tcp, 8080), Some(14527));
        assert_eq!(bound_inode(&line.replace(" 07 ", " 01 "), Proto::Tcp, 8080), None);
    }

    #[test]
    fn only_bound_reuseport_sockets_are_members() {
        let unshared = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = unshared.local_addr().unwrap();
        assert_eq!(
            inspect(unshared.into()).unwrap().unwrap_err(),
            Unfit::NoReusePort(Proto::Udp, address)
        );
        let (unix, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert_eq!(inspect(unix.into()).unwrap().unwrap_err(), Unfit::NoPacketSocket);
        let file = fs::File::open("/dev/null").unwrap();
        assert_eq!(inspect(file.into()).unwrap().unwrap_err(), Unfit::NoPacketSocket);
    }
}
