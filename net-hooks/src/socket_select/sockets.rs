//! Sockets of reuseport groups: what they are bound to, and what is attached to them.

use std::fmt;
use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use syrup_hook::{Error, Proto, Result, netns};

/// What makes sockets members of one reuseport group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
        netns_cookie: netns::cookie_of(fd.as_fd())?,
        proto,
        // Scope and flow label do not tell groups apart; the interface does.
        address: SocketAddr::new(address.ip(), address.port()),
        v6only,
        ifindex: option::<u32>(fd.as_fd(), libc::SO_BINDTOIFINDEX)?,
    };
    let cookie = sockopt::socket_cookie(&fd)?;
    Ok(Ok(Member { fd, key, cookie }))
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(inspect(file.into()).unwrap().unwrap_err(), Unfit::NoPacketSocket);
    }
}
