//! A daemon with the real engine, and users to ask it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde_json::Value;
use syrup_engine::{AsCaller, Caller, Engine};
use syrup_protocol::{
    Arbiter as _, Client, LoadRequest, PolicySource, Registration, ReplaceRequest,
};
use syrup_tests::{Ctl, own_network};
pub use syrup_tests::{GROUP, as_user};
use syrupd::Daemon;

use tempfile::TempDir;

/// Users; that they have no names is nothing the daemon knows.
pub const OWNER: u32 = 65534;
pub const OTHER: u32 = 1001;
pub const UNKNOWN: u32 = 4_000_000_000;

/// A policy with one Map of 4 entries, `counts`.
pub const MAPS: &str = "#include <syrup/packet.h>\nSYRUP_MAP(counts, 4);\n\
    __s32 schedule(void *s, void *e)\n{\n\t(void)s;\n\t(void)e;\n\
    \treturn syrup_map_lookup(&counts, 0) ? 0 : 1;\n}\n";

/// A policy from declarations and the expression that it returns.
pub fn source(declarations: &str, verdict: &str) -> String {
    format!(
        "#include <syrup/packet.h>\n{declarations}\n\
         __s32 schedule(void *s, void *e)\n{{\n\t(void)s;\n\t(void)e;\n\treturn {verdict};\n}}\n"
    )
}

/// As an ordinary user brings it.
pub fn object(text: &str) -> PolicySource {
    let image = syrup_engine::compile("p.c", text).unwrap();
    PolicySource::Object { file_name: "p.o".to_owned(), image }
}

pub fn load(app: &str, policy: PolicySource) -> LoadRequest {
    LoadRequest {
        hook: "socket-select".to_owned(),
        app: app.to_owned(),
        policy,
        params: Vec::new(),
        target: Default::default(),
        or_replace: false,
        owner: None,
    }
}

/// The same with a target.
pub fn load_for(facts: &[(&str, Value)], request: LoadRequest) -> LoadRequest {
    let fact = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
    LoadRequest { target: facts.iter().map(fact).collect(), ..request }
}

pub fn replace(app: &str, policy: PolicySource) -> ReplaceRequest {
    let LoadRequest { hook, app, policy, params, .. } = load(app, policy);
    ReplaceRequest { hook, app, policy, params }
}

/// An unconnected socket of the reuseport group at a port of 127.0.0.1.
pub fn reuseport(port: u16) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None).unwrap();
    sockopt::set_socket_reuseport(&socket, true).unwrap();
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    rustix::net::bind(&socket, &address).unwrap();
    socket
}

/// Sends a datagram from a port of its own.
pub fn send(port: u16) {
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.send_to(b"x", ("127.0.0.1", port)).unwrap();
}

/// A network and pins of its own, and a daemon that everybody reaches.
pub struct Lab {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    dir: TempDir,
    ctl: Ctl,
}

impl Lab {
    pub fn new() -> Self {
        own_network();
        let ctl = Ctl::new();
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (ready, listening) = std::sync::mpsc::channel();
        let (socket, bpffs) = (dir.path().join("s"), ctl.bpffs());
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let daemon = Daemon::bind(&socket, Some(GROUP)).unwrap();
                ready.send(()).unwrap();
                let stopped = async { drop(stopped.await) };
                daemon.serve(Arc::new(Engine::new(bpffs).unwrap()), stopped).await;
            });
        });
        listening.recv().unwrap();
        Self { stop: Some(stop), thread: Some(thread), dir, ctl }
    }

    /// Asks as the calling thread's user.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn bpffs(&self) -> PathBuf {
        self.ctl.bpffs()
    }

    /// The engine without the daemon.
    pub fn engine(&self) -> Engine {
        Engine::new(self.bpffs()).unwrap()
    }

    pub fn root(&self) -> AsCaller {
        self.engine().as_caller(Caller::ROOT)
    }

    pub fn register(&self, uid: u32, app: &str, socket: &OwnedFd) -> u32 {
        let fd = socket.as_fd().try_clone_to_owned().unwrap();
        as_user(uid, || self.client().register(app, None, Registration::Socket(fd), None)).unwrap()
    }

    pub fn owner_and_mode(&self, pin: &str) -> (u32, u32) {
        let metadata = std::fs::metadata(self.bpffs().join(pin)).unwrap();
        (metadata.uid(), metadata.permissions().mode() & 0o7777)
    }

    /// All there is, to see that a refused request changed nothing of it.
    pub fn state(&self) -> String {
        let deployments = self.root().list().unwrap();
        let maps: BTreeMap<_, _> = deployments
            .iter()
            .flat_map(|found| self.root().show(&found.app).unwrap().maps)
            .map(|map| (map.path.clone(), map))
            .collect();
        let values: Vec<_> = maps
            .keys()
            .map(|path| {
                let (app, name) = (Path::new(path).components().nth_back(2), Path::new(path));
                let app = app.unwrap().as_os_str().to_str().unwrap().to_owned();
                let name = name.file_name().unwrap().to_str().unwrap().to_owned();
                self.root().map_dump(&app, &name, 0).unwrap()
            })
            .collect();
        format!("{deployments:#?}\n{values:?}\n{:#?}", self.pins())
    }

    /// Every pin and folder with its owner and mode.
    pub fn pins(&self) -> Vec<(PathBuf, u32, u32)> {
        let mut found = Vec::new();
        let mut folders = vec![self.bpffs()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let metadata = entry.metadata().unwrap();
                found.push((entry.path(), metadata.uid(), metadata.permissions().mode()));
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
