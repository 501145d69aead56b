//! Real UDP sockets and real datagrams, in a network namespace of the test's own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::wait_for;

/// Moves the calling thread, and what it starts, into a fresh network
/// namespace with loopback up; it goes when the thread and its children end.
///
/// # Panics
/// When it cannot (needs root).
pub fn own_network() {
    // SAFETY: affects the calling thread's namespaces only.
    let err = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(err, 0, "unshare: {}", std::io::Error::last_os_error());
    // SAFETY: a zeroed ifreq is valid; the name is NUL-terminated by the zeroes.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0);
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        let err = libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request);
        assert_eq!(err, 0, "lo up: {}", std::io::Error::last_os_error());
    }
}

/// A reuseport group: one socket and one echoing thread per member.
#[derive(Debug)]
pub struct Group {
    /// The sockets, in order of their fds.
    pub sockets: Vec<Arc<UdpSocket>>,
    /// Datagrams each member received.
    pub received: Vec<Arc<AtomicU64>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens `n` UDP sockets of one reuseport group on loopback and echoes what
/// they receive with the member's index in the first byte.
///
/// # Panics
/// When the port is taken.
#[must_use]
pub fn udp_group(port: u16, n: usize) -> Group {
    let stop = Arc::new(AtomicBool::new(false));
    let mut group = Group { sockets: Vec::new(), received: Vec::new(), stop, threads: Vec::new() };
    for index in 0..n {
        let fd = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            // Or the commands under test would hold the sockets too.
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        sockopt::set_socket_reuseport(&fd, true).unwrap();
        sockopt::set_socket_recv_buffer_size(&fd, 4 << 20).unwrap();
        rustix::net::bind(&fd, &SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
        let socket = Arc::new(UdpSocket::from(fd));
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let count = Arc::new(AtomicU64::new(0));
        let (echo, seen, stop) = (socket.clone(), count.clone(), group.stop.clone());
        group.threads.push(std::thread::spawn(move || {
            let mut buffer = [0u8; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((len, from)) = echo.recv_from(&mut buffer) {
                    seen.fetch_add(1, Ordering::Relaxed);
                    buffer[0] = index as u8;
                    let _ = echo.send_to(&buffer[..len], from);
                }
            }
        }));
        group.sockets.push(socket);
        group.received.push(count);
    }
    group
}

impl Group {
    /// Datagrams received by all members together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.received.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Sends datagrams from many source ports until told to stop; each is answered
/// before the next leaves its socket, so none is lost to a full buffer.
#[derive(Debug)]
pub struct Sender {
    /// Datagrams sent.
    pub sent: Arc<AtomicU64>,
    /// Answers received.
    pub answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Starts a sender with `flows` source ports.
    ///
    /// # Panics
    /// When no socket can be made.
    #[must_use]
    pub fn start(port: u16, flows: usize) -> Self {
        let (sent, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let sockets: Vec<UdpSocket> = (0..flows)
            .map(|_| {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                socket.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                socket
            })
            .collect();
        let (s, a, end) = (sent.clone(), answered.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0u8; 64];
            while !end.load(Ordering::Relaxed) {
                for socket in &sockets {
                    if socket.send(&[0u8; 64]).is_ok() {
                        s.fetch_add(1, Ordering::Relaxed);
                        if socket.recv(&mut buffer).is_ok() {
                            a.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        });
        Self { sent, answered, stop, thread: Some(thread) }
    }

    /// Waits until at least `n` more datagrams were answered.
    pub fn wait_for_more(&self, n: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + n;
        wait_for("answers", Duration::from_secs(30), || {
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// Stops after the datagram in flight; gives (sent, answered).
    pub fn stop(mut self) -> (u64, u64) {
        self.finish();
        (self.sent.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed))
    }

    fn finish(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.finish();
    }
}
