//! The sockets that packets from anybody reach, as the kernel lists them (sock_diag(7)).

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::{Socket, SocketAddr as Netlink, protocols::NETLINK_SOCK_DIAG};
use syrup_hook::{Error, Proto, Result, netns};

use super::sockets::GroupKey;

/// Room for what one read gives: the kernel sends at most 32 KiB.
const BUFFER: usize = 64 << 10;

/// A socket that is bound and not connected, and of TCP one that listens. Whether it is in
/// a reuseport group the kernel does not tell; which it would be in, it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    pub key: GroupKey,
    pub cookie: u64,
    pub inode: u64,
    /// The user who made it.
    pub uid: u32,
}

/// Those of the calling thread's network namespace with one of the protocols and ports;
/// without any, all.
///
/// # Errors
/// [`Error::Kernel`].
pub(crate) fn bound(protos: &[Proto], ports: &[u16]) -> Result<Vec<Bound>> {
    let netns_cookie = netns::own_cookie()?;
    let all = [Proto::Udp, Proto::Tcp];
    let failed = |what: String| move |e| Error::kernel(format!("list {what} (sock_diag)"), e);
    let mut kernel = connected().map_err(failed("sockets".to_owned()))?;
    let mut found = Vec::new();
    for &proto in if protos.is_empty() { &all } else { protos } {
        for family in [AF_INET, AF_INET6] {
            // The kernel looks for one port, or for all.
            let port = if let [port] = ports { *port } else { 0 };
            let replies = dump(&mut kernel, proto, family, port)
                .map_err(failed(format!("the {proto} sockets")))?;
            let sockets = replies.iter().map(|reply| describe(reply, proto, netns_cookie));
            found.extend(sockets.filter(|socket| {
                let port = socket.key.address.port();
                port != 0 && (ports.is_empty() || ports.contains(&port))
            }));
        }
    }
    Ok(found)
}

fn describe(reply: &InetResponse, proto: Proto, netns_cookie: u64) -> Bound {
    let id = &reply.header.socket_id;
    let [a, b, c, d, e, f, g, h] = id.cookie;
    let halves = [[a, b, c, d], [e, f, g, h]].map(|half| u64::from(u32::from_ne_bytes(half)));
    let v6only = reply.nlas.contains(&Nla::SkV6Only(true));
    Bound {
        key: GroupKey {
            netns_cookie,
            proto,
            address: SocketAddr::new(id.source_address, id.source_port),
            v6only: v6only && id.source_address.is_ipv6(),
            ifindex: id.interface_id,
        },
        cookie: halves[0] | halves[1] << 32,
        inode: u64::from(reply.header.inode),
        uid: reply.header.uid,
    }
}

/// A socket of the calling thread's network namespace.
fn connected() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&Netlink::new(0, 0))?;
    Ok(socket)
}

fn dump(socket: &mut Socket, proto: Proto, family: u8, port: u16) -> io::Result<Vec<InetResponse>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let (protocol, states) = match proto {
        Proto::Udp => (libc::IPPROTO_UDP, StateFlags::CLOSE),
        Proto::Tcp => (libc::IPPROTO_TCP, StateFlags::LISTEN),
    };
    let any = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: protocol as u8,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: SocketId { source_port: port, ..any },
    });
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        let size = socket.recv(&mut buffer, 0)?;
        let mut rest = &buffer[..size];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|e| io::Error::other(e.to_string()))?;
            // Messages begin at multiples of four bytes.
            let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            rest = &rest[length..];
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(reply)) => {
                    found.push(*reply);
                }
                // What a dump met is told at its end.
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(found),
                NetlinkPayload::Done(done) => {
                    let error = io::Error::from_raw_os_error(done.code.abs());
                    return if family == AF_INET6 && is_unknown(&error) {
                        Ok(found)
                    } else {
                        Err(error)
                    };
                }
                // A kernel without IPv6 has none of its sockets.
                NetlinkPayload::Error(e) if family == AF_INET6 && is_unknown(&e.to_io()) => {
                    return Ok(found);
                }
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                _ => {}
            }
        }
    }
}

fn is_unknown(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::{AsFd as _, OwnedFd};

    use rustix::net::sockopt;

    use super::*;

    fn as_listed(socket: &OwnedFd, proto: Proto) -> Bound {
        let inode = rustix::fs::fstat(socket).unwrap().st_ino;
        let found = bound(&[proto], &[]).unwrap();
        found.into_iter().find(|bound| bound.inode == inode).expect("it is listed")
    }

    #[test]
    fn a_bound_socket_is_told_by_its_address_and_cookie() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let udp = UdpSocket::bind(address).unwrap();
            let local = udp.local_addr().unwrap();
            let fd = OwnedFd::from(udp);
            let listed = as_listed(&fd, Proto::Udp);
            assert_eq!(listed.key.address, local);
            assert_eq!(listed.cookie, sockopt::socket_cookie(&fd).unwrap());
            assert_eq!(listed.key.netns_cookie, netns::cookie_of(fd.as_fd()).unwrap());
            assert_eq!(listed.key.ifindex, 0);
            let by_port = bound(&[], &[local.port()]).unwrap();
            assert!(by_port.contains(&listed) && by_port.len() == 1, "{by_port:?}");
        }
    }

    #[test]
    fn connected_sockets_are_not_listed() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let _accepted = server.accept().unwrap();
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect(address).unwrap();
        let port = connected.local_addr().unwrap().port();
        assert_eq!(bound(&[Proto::Tcp], &[address.port()]).unwrap().len(), 1);
        assert_eq!(bound(&[Proto::Udp], &[port]).unwrap(), []);
    }

    #[test]
    fn v6only_tells_groups_apart() {
        for v6only in [false, true] {
            let fd = rustix::net::socket(
                rustix::net::AddressFamily::INET6,
                rustix::net::SocketType::DGRAM,
                None,
            )
            .unwrap();
            sockopt::set_ipv6_v6only(&fd, v6only).unwrap();
            let any: std::net::SocketAddrV6 = "[::]:0".parse().unwrap();
            rustix::net::bind(&fd, &any).unwrap();
            assert_eq!(as_listed(&fd, Proto::Udp).key.v6only, v6only);
        }
    }
}
