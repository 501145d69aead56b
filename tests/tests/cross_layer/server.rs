//! A server whose worker `i` has socket `i` and thread `i` of both hooks, in Rust
//! (here) and in C (`server.c`), as a process of any user.
//!
//! It is told what to do by lines on its stdin and answers each with one line
//! that begins with `@`:
//!
//!     deploy HOOK POLICY   the program's id, or a negative errno
//!     start                the id of the Map request_type, then the workers' thread ids
//!
//! Requests and replies are those of `bench/src/wire.rs`. Serving takes `key` us
//! of CPU. In a reply `user` is what the worker found under its index in
//! request_type when it took the request, and `key` how many were taken before.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, sockopt};
use syrup::MappedMap;
use syrup_tests::{CProgram, Ctl, GROUP};

use crate::load::{BYTES, GET, SCAN};

/// Workers of each server.
pub const WORKERS: usize = 6;

const IDLE: u64 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Rust,
    C,
}

/// A running server, killed on drop.
pub struct Server {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _program: Option<CProgram>,
}

/// What `start` said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub map_id: u32,
    pub tids: Vec<i32>,
}

impl Server {
    /// Starts it for `app` as `uid`, all its threads on `cpu`, and binds its sockets to `port`.
    pub fn new(language: Language, ctl: &Ctl, app: &str, uid: u32, port: u16, cpu: usize) -> Self {
        let (mut command, program) = match language {
            Language::C => {
                let source =
                    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cross_layer/server.c");
                let program = CProgram::build(&source);
                let mut command = program.command(ctl, app, uid);
                command.args([port.to_string(), WORKERS.to_string()]);
                (command, Some(program))
            }
            Language::Rust => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command
                    .args([
                        "--exact",
                        "server::child",
                        "--ignored",
                        "--nocapture",
                        "--test-threads=1",
                    ])
                    .env("SYRUP_TEST_SERVER", format!("{port} {uid}"))
                    .env("SYRUP_SOCKET", ctl.socket())
                    .env("SYRUP_APP", app);
                (command, None)
            }
        };
        // SAFETY: between fork and exec only a system call is made.
        unsafe {
            command.pre_exec(move || {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(cpu, &mut set);
                match libc::sched_setaffinity(0, size_of_val(&set), &raw const set) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the server");
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut server = Self { child, stdin, stdout: BufReader::new(stdout), _program: program };
        assert_eq!(server.answer(), "bound");
        server
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).unwrap() > 0 {
            // libtest writes the name of the test before what the test prints.
            if let Some((_, answer)) = line.split_once("@ ") {
                return answer.trim().to_owned();
            }
            line.clear();
        }
        panic!("the server ended: {:?}", self.child.wait());
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.stdin, "{line}").unwrap();
        self.answer()
    }

    /// Deploys a policy as the app itself; the program's id, or a negative errno.
    pub fn deploy(&mut self, hook: &str, policy: &str) -> i64 {
        self.ask(&format!("deploy {hook} {policy}")).parse().unwrap()
    }

    /// Registers socket `i` and thread `i` under index `i`, and serves.
    pub fn start(&mut self) -> Started {
        let answer = self.ask("start");
        let mut numbers = answer.split(' ').map(|number| number.parse::<i32>().unwrap());
        let map_id = numbers.next().unwrap() as u32;
        let tids: Vec<i32> = numbers.collect();
        assert!(tids.iter().all(|&tid| tid > 0), "a worker was refused: {answer}");
        assert_eq!(tids.len(), WORKERS);
        Started { map_id, tids }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server in Rust, in a process of its own.
#[test]
#[ignore = "run by Server::new"]
fn child() {
    let arguments = std::env::var("SYRUP_TEST_SERVER").expect("SYRUP_TEST_SERVER");
    let (port, uid) = arguments.split_once(' ').unwrap();
    let sockets: Vec<UdpSocket> = (0..WORKERS).map(|_| bound(port.parse().unwrap())).collect();
    give_up_root(uid.parse().unwrap());
    println!("@ bound");
    let mut sockets = Some(sockets);
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["deploy", hook, policy] => match syrup::deploy_policy(policy, hook) {
                Ok(program) => println!("@ {}", id_of(program.as_fd().as_raw_fd(), "prog_id:")),
                Err(error) => {
                    eprintln!("{error:#}");
                    println!("@ {}", -error.errno());
                }
            },
            ["start"] => start(sockets.take().unwrap()),
            _ => panic!("{line}"),
        }
    }
    std::process::exit(0);
}

/// As servers do that bind their port as root.
fn give_up_root(uid: u32) {
    // SAFETY: plain system calls on numbers; libc's wrappers reach every thread.
    let failed = unsafe {
        libc::setgroups(0, std::ptr::null()) != 0
            || libc::setresgid(GROUP, GROUP, GROUP) != 0
            || libc::setresuid(uid, uid, uid) != 0
    };
    assert!(!failed, "{}", std::io::Error::last_os_error());
}

fn bound(port: u16) -> UdpSocket {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    sockopt::set_socket_reuseport(&socket, true).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 8 << 20).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
    UdpSocket::from(socket)
}

fn id_of(fd: RawFd, key: &str) -> u32 {
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{fd}")).unwrap();
    let id = info.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    id.trim().parse().unwrap()
}

fn start(sockets: Vec<UdpSocket>) {
    let map = syrup::Map::open("request_type").unwrap();
    let map_id = id_of(map.as_fd().as_raw_fd(), "map_id:");
    let labels = Arc::new(map.mmap().unwrap());
    let order = Arc::new(AtomicU64::new(0));
    let registered = Arc::new(Barrier::new(WORKERS));
    let (results, all) = std::sync::mpsc::channel();
    for (index, socket) in (0..).zip(sockets) {
        let (labels, order, registered) = (labels.clone(), order.clone(), registered.clone());
        let results = results.clone();
        std::thread::spawn(move || {
            let outcome = syrup::register_socket(&socket, Some(index))
                .and_then(|_| syrup::register_thread(0, Some(index)));
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            let result = match outcome {
                Ok(got) if got == index => tid,
                Ok(_) => -libc::EIO,
                Err(error) => {
                    eprintln!("{error:#}");
                    -error.errno()
                }
            };
            results.send((index, result)).unwrap();
            registered.wait();
            Worker { index, socket, labels, order, last: IDLE }.serve();
        });
    }
    let mut results: Vec<(u32, i32)> = all.iter().take(WORKERS).collect();
    results.sort_unstable();
    let tids: Vec<String> = results.iter().map(|(_, tid)| tid.to_string()).collect();
    println!("@ {map_id} {}", tids.join(" "));
}

struct Worker {
    index: u32,
    socket: UdpSocket,
    labels: Arc<MappedMap>,
    order: Arc<AtomicU64>,
    last: u64,
}

impl Worker {
    fn serve(&mut self) {
        let mut bytes = [0; BYTES];
        loop {
            self.socket.set_nonblocking(true).unwrap();
            let (len, from) = loop {
                match self.socket.recv_from(&mut bytes) {
                    Ok(received) => break received,
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                        let block = self.become_idle();
                        self.socket.set_nonblocking(!block).unwrap();
                    }
                    Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::Interrupted, "{e}"),
                }
            };
            assert_eq!(len, BYTES);
            let long = |at: usize| u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
            let (class, cpu_us) = (long(0), long(24));
            let found = self.labels.load(self.index as usize);
            self.take(class);
            let until = cpu_time_us() + cpu_us;
            let order = self.order.fetch_add(1, Ordering::Relaxed);
            bytes[16..20].copy_from_slice(&(found as u32).to_ne_bytes());
            bytes[20..24].copy_from_slice(&self.index.to_ne_bytes());
            bytes[24..32].copy_from_slice(&order.to_ne_bytes());
            while cpu_time_us() < until {}
            assert_eq!(self.socket.send_to(&bytes, from).unwrap(), BYTES);
        }
    }

    fn swap(&self, from: u64, to: u64) -> Result<u64, u64> {
        let label = &self.labels[self.index as usize];
        label.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }

    /// The rules of scan-avoid for whoever takes a request ...
    fn take(&mut self, class: u64) {
        if class == SCAN {
            self.labels.store(self.index as usize, SCAN);
        } else if self.swap(self.last, GET).is_err() {
            let _ = self.swap(IDLE, GET);
        }
        self.last = class;
    }

    /// ... and for one whose socket is empty: true if it may block.
    fn become_idle(&mut self) -> bool {
        let last = std::mem::replace(&mut self.last, IDLE);
        let found = match self.swap(last, IDLE) {
            Ok(_) | Err(IDLE) => return true,
            Err(found) => found,
        };
        let mut arrival = [PollFd::new(&self.socket, PollFlags::IN)];
        let patience = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        if poll(&mut arrival, Some(&patience)).is_ok_and(|ready| ready > 0) {
            return false;
        }
        let _ = self.swap(found, IDLE);
        true
    }
}

fn cpu_time_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}
