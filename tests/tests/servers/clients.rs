//! Clients of the servers under test: each query is answered before the next leaves, on IPv4
//! and IPv6 in turn, and each failure is kept.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use syrup_tests::wait_for;

const LIMIT: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(5);

/// A protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    DnsUdp,
    DnsTcp,
    Http,
}

/// `www.example. A`, asked for recursively.
const QUESTION: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\
                          \x03www\x07example\x00\x00\x01\x00\x01";

impl Asks {
    fn once(self, to: SocketAddr) -> std::io::Result<()> {
        let mut answer = [0u8; 512];
        let is_answer = |bytes: &[u8]| {
            let good = bytes.len() > 12 && bytes[..2] == QUESTION[..2] && bytes[3] & 0xf == 0;
            if good { Ok(()) } else { Err(std::io::Error::other(format!("answered {bytes:?}"))) }
        };
        let connect = || {
            let stream = TcpStream::connect_timeout(&to, ANSWER)?;
            stream.set_read_timeout(Some(ANSWER))?;
            std::io::Result::Ok(stream)
        };
        match self {
            Self::DnsUdp => {
                let any: IpAddr = match to {
                    SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                    SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(ANSWER))?;
                socket.send(QUESTION)?;
                let len = socket.recv(&mut answer)?;
                is_answer(&answer[..len])
            }
            Self::DnsTcp => {
                let mut stream = connect()?;
                let length = (QUESTION.len() as u16).to_be_bytes();
                stream.write_all(&[&length, QUESTION].concat())?;
                let mut length = [0; 2];
                stream.read_exact(&mut length)?;
                let answer = &mut answer[..usize::from(u16::from_be_bytes(length))];
                stream.read_exact(answer)?;
                is_answer(answer)
            }
            Self::Http => {
                let mut stream = connect()?;
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                let good = text.starts_with("HTTP/1.1 200") && text.ends_with("ok\n");
                if good { Ok(()) } else { Err(std::io::Error::other(text)) }
            }
        }
    }
}

fn addresses(port: u16) -> [SocketAddr; 2] {
    [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
}

/// Waits until each protocol is answered at each address.
pub fn wait_until_served(port: u16, asks: &[Asks]) {
    wait_for("the server to answer", LIMIT, || {
        let all = asks.iter().all(|ask| addresses(port).iter().all(|to| ask.once(*to).is_ok()));
        all.then_some(())
    });
}

/// Clients that ask until they are dropped.
#[derive(Debug)]
pub struct Load {
    answered: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Two clients for each protocol, in the calling thread's network namespace.
    pub fn start(port: u16, asks: &[Asks]) -> Self {
        let mut load = Self {
            answered: Arc::default(),
            failures: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for ask in asks.iter().copied().flat_map(|ask| [ask; 2]) {
            let (answered, failures) = (load.answered.clone(), load.failures.clone());
            let stop = load.stop.clone();
            load.threads.push(std::thread::spawn(move || {
                for to in addresses(port).into_iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    match ask.once(to) {
                        Ok(()) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(e) => failures.lock().unwrap().push(format!("{ask:?} to {to}: {e}")),
                    }
                }
            }));
        }
        load
    }

    /// Waits until at least `n` more were answered.
    pub fn wait_for_more(&self, n: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + n;
        wait_for("answers", LIMIT, || {
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// Queries without an answer.
    pub fn failed(&self) -> usize {
        self.failures.lock().unwrap().len()
    }

    /// The first of them.
    pub fn why(&self) -> String {
        self.failures.lock().unwrap().iter().take(5).cloned().collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The network namespace of a process.
pub struct Namespace(File);

impl Namespace {
    pub fn of(pid: i32) -> Self {
        Self(File::open(format!("/proc/{pid}/ns/net")).unwrap())
    }

    /// Runs `f` there, and what it starts.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            f()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }
}
