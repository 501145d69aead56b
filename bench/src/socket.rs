//! UDP sockets of the server and of the load generator.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// A socket of the reuseport group at `address`.
pub fn bind_shared(
    address: SocketAddrV4,
    receive_buffer_bytes: Option<usize>,
) -> io::Result<OwnedFd> {
    let socket = udp()?;
    sockopt::set_socket_reuseport(&socket, true)?;
    if let Some(bytes) = receive_buffer_bytes {
        sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// A socket of a flow: bound to `port` (0: the kernel chooses), connected to
/// `server`, never blocking.
/// The receive buffer is larger than the default, so that no reply is lost
/// while the receiver waits for a CPU.
pub fn connect(server: SocketAddrV4, port: u16) -> io::Result<OwnedFd> {
    let socket = udp()?;
    sockopt::set_socket_recv_buffer_size(&socket, 4 << 20)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
    rustix::net::connect(&socket, &server)?;
    rustix::io::ioctl_fionbio(socket.as_fd(), true)?;
    Ok(socket)
}

/// How many datagrams of so many bytes wait in a socket of the default size
/// before the kernel drops one: measured, because what a packet takes of the
/// buffer is the kernel's business.
pub fn holds(datagram_bytes: usize) -> io::Result<usize> {
    const MANY: usize = 100_000;
    let socket = bind_shared(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), None)?;
    let address: SocketAddrV4 = rustix::net::getsockname(&socket)?.try_into()?;
    let sender = connect(address, 0)?;
    let datagram = vec![0; datagram_bytes];
    let mut held = 0;
    let mut bytes = vec![0; datagram_bytes];
    // On loopback a datagram is in the socket, or dropped, when it was sent.
    for sent in [MANY.min(2000), MANY] {
        for _ in 0..sent {
            rustix::net::send(&sender, &datagram, rustix::net::SendFlags::empty())?;
        }
        held = 0;
        while rustix::net::recv(&socket, &mut bytes, rustix::net::RecvFlags::DONTWAIT).is_ok() {
            held += 1;
        }
        if held < sent {
            break;
        }
    }
    Ok(held)
}

fn udp() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Wakes every thread that is blocked in a receive on `socket`, now and later:
/// a receive returns 0 bytes. For an unconnected UDP socket the kernel does
/// this and says ENOTCONN all the same.
pub fn wake_receivers(socket: impl AsFd) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_holds_as_many_as_fit_into_its_buffer() {
        let bytes: usize = std::fs::read_to_string("/proc/sys/net/core/rmem_default")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // A packet takes more than its bytes, and less than two pages.
        let held = holds(56).unwrap();
        assert!((bytes / 8192..bytes / 256).contains(&held), "{held} in {bytes} bytes");
        assert!(holds(4096).unwrap() < held);
    }

    #[test]
    fn a_blocked_receiver_is_woken() {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let socket = bind_shared(address, Some(1 << 16)).unwrap();
        let limit = Some(std::time::Duration::from_secs(20));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, limit).unwrap();
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut bytes = [0; 16];
                rustix::net::recv(&socket, &mut bytes, rustix::net::RecvFlags::empty())
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            wake_receivers(&socket);
            assert_eq!(receiver.join().unwrap().unwrap().0, 0);
        });
    }
}
