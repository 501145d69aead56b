//! What the tests and the cost example share: a lab of one network namespace
//! and one BPF file system, linked policies, and real sockets.
#![allow(dead_code)]

use std::ffi::CString;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use syrup_hook::sys::{self, Map};
use syrup_hook::{App, Deploy as _, Deployment, Linked, Registration, pin};
use syrup_net_hooks::SocketSelect;
use syrup_net_hooks::Target;
use syrup_protocol::PolicySource;
use syrup_sdk::abi::{SYRUP_INPUTS, syrup_counter};
use syrup_tests::{Numbers as _, own_network, wait_for};
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(10);
pub const PORT: u16 = 9000;
pub const GET: u64 = 1;
pub const SCAN: u64 = 2;

/// A network namespace (the calling thread's from here on) and pins of its own.
pub struct Lab {
    pub bpffs: Bpffs,
    pub app: App,
    pub hook: SocketSelect,
}

impl Lab {
    pub fn new() -> Self {
        own_network();
        let bpffs = Bpffs::mount();
        let app = app(&bpffs.path(), "demo");
        Self { bpffs, app, hook: SocketSelect }
    }

    pub fn target() -> Target {
        Target { port: vec![PORT], ..Default::default() }
    }

    /// Deploys and registers the sockets in order.
    pub fn deploy(&self, policy: &Linked, sockets: &[UdpSocket]) {
        self.hook.deploy(&self.app, policy, &Self::target()).unwrap();
        // They may have been adopted in another order: by their numbers, which other tests'
        // threads take and give back meanwhile.
        for (index, socket) in (0..).zip(sockets) {
            assert_eq!(self.register(socket, Some(index)).unwrap(), index);
        }
    }

    pub fn register(
        &self,
        socket: impl std::os::fd::AsFd,
        index: Option<u32>,
    ) -> syrup_hook::Result<u32> {
        let fd = socket.as_fd().try_clone_to_owned().unwrap();
        self.hook.register(&self.app, Registration::Socket(fd), index)
    }

    pub fn read(&self) -> Deployment {
        self.hook.read(&self.app).unwrap().expect("a deployment")
    }

    pub fn count(&self, counter: syrup_counter) -> u64 {
        self.read().count(counter)
    }

    /// Waits until the hook has seen `inputs` inputs: on loopback a packet is
    /// usually there when send() returns, but ksoftirqd may have it.
    pub fn wait_for_inputs(&self, inputs: u64) {
        wait_for("the inputs to arrive", LIMIT, || {
            (self.count(SYRUP_INPUTS) >= inputs).then_some(())
        });
    }
}

pub fn app(bpffs: &std::path::Path, name: &str) -> App {
    let app = App { name: name.to_owned(), uid: 0, bpffs: bpffs.to_owned() };
    std::fs::create_dir_all(app.dir()).unwrap();
    app
}

/// A BPF file system of its own: what is pinned in it dies with it.
pub struct Bpffs(TempDir);

impl Bpffs {
    pub fn mount() -> Self {
        let dir = tempfile::Builder::new().prefix("syrup-net-hooks-").tempdir().unwrap();
        let target = CString::new(dir.path().to_str().unwrap()).unwrap();
        // SAFETY: all strings are NUL-terminated and live during the call.
        let err = unsafe {
            libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null())
        };
        assert_eq!(err, 0, "mount bpffs: {}", std::io::Error::last_os_error());
        Self(dir)
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let target = CString::new(self.0.path().to_str().unwrap()).unwrap();
        // SAFETY: target is NUL-terminated and lives during the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A shipped policy, linked.
pub fn builtin(name: &str) -> Linked {
    linked(name, &PolicySource::Builtin { name: name.to_owned() })
}

/// A policy from its source, linked.
pub fn source(name: &str, text: &str) -> Linked {
    let text = format!("#include <syrup/packet.h>\n{text}");
    linked(name, &PolicySource::Source { file_name: format!("{name}.c"), text })
}

/// A policy that always says the same.
pub fn constant(name: &str, verdict: &str) -> Linked {
    source(name, &format!("__s32 schedule(void *s, void *e)\n{{\n\treturn {verdict};\n}}\n"))
}

fn linked(name: &str, policy: &PolicySource) -> Linked {
    let mut sha256 = [0; 32];
    sha256[0] = name.len() as u8;
    let linked = syrup_engine::linked(&syrup_net_hooks::SOCKET_SELECT, policy).unwrap();
    Linked { sha256, ..linked }
}

/// Gives a policy one of the app's Maps, and the test a handle on it.
pub fn share_map(policy: &mut Linked, name: &str) -> Map {
    let map = pin::create_array(name, 8, 65536).unwrap();
    policy.maps.insert(name.to_owned(), map.as_fd().try_clone_to_owned().unwrap());
    map
}

pub fn set(map: &Map, key: u32, value: i64) {
    map.update(&key.to_ne_bytes(), &value.to_ne_bytes()).unwrap();
}

pub fn get(map: &Map, key: u32) -> i64 {
    i64::from_ne_bytes(map.lookup(&key.to_ne_bytes()).unwrap().unwrap().try_into().unwrap())
}

/// A bound socket with SO_REUSEPORT.
pub fn reuseport(address: &str, kind: SocketType) -> OwnedFd {
    let address: SocketAddr = address.parse().unwrap();
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_reuseport(&fd, true).unwrap();
    rustix::net::bind(&fd, &address).unwrap();
    fd
}

/// One group of non-blocking UDP sockets.
pub fn udp_sockets(n: usize) -> Vec<UdpSocket> {
    (0..n)
        .map(|_| {
            let fd = reuseport(&format!("127.0.0.1:{PORT}"), SocketType::DGRAM);
            sockopt::set_socket_recv_buffer_size(&fd, 4 << 20).unwrap();
            let socket = UdpSocket::from(fd);
            socket.set_nonblocking(true).unwrap();
            socket
        })
        .collect()
}

/// One group of non-blocking listeners.
pub fn listeners(n: usize) -> Vec<TcpListener> {
    (0..n)
        .map(|_| {
            let fd = reuseport(&format!("127.0.0.1:{PORT}"), SocketType::STREAM);
            rustix::net::listen(&fd, 1024).unwrap();
            let listener = TcpListener::from(fd);
            listener.set_nonblocking(true).unwrap();
            listener
        })
        .collect()
}

/// Clients, each with a source port of its own.
pub fn flows(n: usize) -> Vec<UdpSocket> {
    (0..n)
        .map(|_| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.connect((Ipv4Addr::LOCALHOST, PORT)).unwrap();
            socket
        })
        .collect()
}

/// A request of the benchmark's wire format.
pub fn request(kind: u64, user: u32) -> Vec<u8> {
    let mut bytes = kind.to_ne_bytes().to_vec();
    bytes.extend(7u64.to_ne_bytes());
    bytes.extend(user.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(42u64.to_ne_bytes());
    bytes
}

/// Sends `each` datagrams from every flow and counts where all of them went.
pub fn spread(sockets: &[UdpSocket], flows: &[UdpSocket], each: usize) -> Vec<u64> {
    for _ in 0..each {
        for flow in flows {
            flow.send(&request(GET, 0)).unwrap();
        }
    }
    received(sockets, (flows.len() * each) as u64)
}

/// Takes `total` datagrams from the sockets and counts them by socket.
pub fn received(sockets: &[UdpSocket], total: u64) -> Vec<u64> {
    let mut counts = vec![0; sockets.len()];
    let mut buffer = [0; 64];
    wait_for("all datagrams", LIMIT, || {
        for (socket, count) in sockets.iter().zip(&mut counts) {
            while socket.recv(&mut buffer).is_ok() {
                *count += 1;
            }
        }
        (counts.iter().sum::<u64>() >= total).then_some(())
    });
    counts
}

/// Sends one datagram and says which socket got it.
pub fn goes_to(sockets: &[UdpSocket], flow: &UdpSocket, payload: &[u8]) -> usize {
    flow.send(payload).unwrap();
    received(sockets, 1).iter().position(|&count| count > 0).unwrap()
}

/// Opens `n` connections and counts by listener where they went.
pub fn connect(listeners: &[TcpListener], n: u64) -> Vec<u64> {
    let clients: Vec<TcpStream> =
        (0..n).map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).unwrap()).collect();
    let mut counts = vec![0; listeners.len()];
    wait_for("all connections", LIMIT, || {
        for (listener, count) in listeners.iter().zip(&mut counts) {
            while listener.accept().is_ok() {
                *count += 1;
            }
        }
        (counts.iter().sum::<u64>() >= n).then_some(())
    });
    drop(clients);
    counts
}

/// The busiest executor's share over the mean's.
pub fn max_over_mean(counts: &[u64]) -> f64 {
    let max = counts.iter().max().copied().unwrap_or(0) as f64;
    max * counts.len() as f64 / counts.iter().sum::<u64>() as f64
}

/// A server that knows nothing of us: it answers with the number of its socket.
pub struct Server(Option<Child>);

const SERVER: &str = r#"
import socket, sys, select
kind, n = sys.argv[1], int(sys.argv[2])
sockets = []
for proto in ([socket.SOCK_DGRAM] if kind != "both" else [socket.SOCK_DGRAM, socket.SOCK_STREAM]):
    for i in range(n):
        s = socket.socket(socket.AF_INET, proto)
        if kind != "single":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(("127.0.0.1", 9000))
        if proto == socket.SOCK_STREAM:
            s.listen()
        sockets.append(s)
print("ready", flush=True)
while True:
    for s in select.select(sockets, [], [])[0]:
        if s.type == socket.SOCK_DGRAM:
            data, peer = s.recvfrom(64)
            s.sendto(str(sockets.index(s)).encode(), peer)
"#;

impl Server {
    pub fn python(kind: &str, sockets: usize) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", SERVER, kind, &sockets.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).expect("the server starts");
        Self(Some(child))
    }

    pub fn pid(&self) -> i32 {
        self.0.as_ref().unwrap().id() as i32
    }

    /// The number of the socket that answered.
    pub fn ask(&mut self, flow: &std::net::UdpSocket) -> String {
        flow.set_read_timeout(Some(LIMIT)).unwrap();
        flow.send(b"?").unwrap();
        let mut answer = [0; 8];
        let len = flow.recv(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[..len]).into_owned()
    }

    pub fn stop(mut self) {
        self.stop_now();
    }

    pub fn stop_now(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_now();
    }
}

/// Kernel ids of what a deployment pins, and whether programs have it.
pub struct Ids(pub Vec<(bool, u32)>);

impl Ids {
    pub fn of(lab: &Lab) -> Self {
        let dir = lab.app.dir().join("socket-select");
        let open = |name: &str| sys::obj_get_required(&dir.join(name)).unwrap();
        let mut ids: Vec<(bool, u32)> = ["dispatcher_0", "policy"]
            .iter()
            .map(|name| (true, sys::program_id(open(name).as_fd()).unwrap()))
            .collect();
        for name in [
            "policies",
            "executors",
            "registered",
            "counters",
            "verdicts",
            syrup_hook::record::RECORD,
        ] {
            ids.push((false, sys::map_info(open(name).as_fd()).unwrap().id));
        }
        Self(ids)
    }

    /// The kernel frees them some RCU grace periods after the last user let go.
    pub fn wait_until_gone(&self) {
        wait_for("programs and maps to be freed", LIMIT, || (self.left() == 0).then_some(()));
    }

    pub fn left(&self) -> usize {
        let exists = |&&(program, id): &&(bool, u32)| {
            let mut next = 0;
            // SAFETY: the kernel writes an id to next.
            let err = unsafe {
                if program {
                    libbpf_sys::bpf_prog_get_next_id(id - 1, &raw mut next)
                } else {
                    libbpf_sys::bpf_map_get_next_id(id - 1, &raw mut next)
                }
            };
            err == 0 && next == id
        };
        self.0.iter().filter(exists).count()
    }
}
