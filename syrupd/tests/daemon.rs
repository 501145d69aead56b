//! The daemon's socket: what callers may expect of it, and what they cannot do to it.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use syrup_engine::Caller;
use syrup_protocol::call::{
    AppRef, Deployments, Entries, Entry, MapKey, MapPage, Opened, Registered, Shown,
};
use syrup_protocol::varlink::Nothing;
use syrup_protocol::{
    AppInfo, Arbiter, Call, Client, Code, Failure, LoadRequest, MapEntry, PolicySource,
    Registration, ReplaceRequest, Reply, Result,
};
use syrupd::{Arbiters, Daemon};
use tempfile::TempDir;

/// An arbiter for what the engine does not do on request: to take long, to
/// panic, to say who called, to give back what it got. What the engine itself
/// does behind the socket is tested end to end.
#[derive(Clone, Default)]
struct Odd {
    calls: Arc<AtomicUsize>,
    gate: Arc<(Mutex<bool>, Condvar)>,
    caller: Option<Caller>,
}

impl Odd {
    fn open_gate(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }
}

impl Arbiters for Odd {
    fn as_caller(&self, caller: Caller) -> Box<dyn Arbiter> {
        Box::new(Self { caller: Some(caller), ..self.clone() })
    }
}

impl Arbiter for Odd {
    fn answer(&self, call: Call) -> Result<Reply> {
        Ok(match call {
            Call::Load(LoadRequest { policy: PolicySource::Object { image, .. }, .. }) => {
                let sum: u64 = image.iter().map(|&byte| u64::from(byte)).sum();
                let message = format!("{} bytes, sum {sum}", image.len());
                return Err(Failure::new(Code::VerifierRejected, message)
                    .detail("r0 !read_ok")
                    .advise("return something"));
            }
            Call::Replace(_) => panic!("on purpose"),
            Call::Unload(_) => {
                let mut open = self.gate.0.lock().unwrap();
                self.calls.fetch_add(1, Ordering::SeqCst);
                while !*open {
                    open = self.gate.1.wait(open).unwrap();
                }
                Reply::Unload(Nothing {})
            }
            Call::List(_) => {
                self.calls.fetch_add(1, Ordering::SeqCst);
                Reply::List(Deployments { deployments: Vec::new() })
            }
            Call::Show(AppRef { app }) => {
                let uid = self.caller.unwrap().uid;
                let app = AppInfo { app, uid, deployments: Vec::new(), maps: Vec::new() };
                Reply::Show(Shown { app })
            }
            Call::MapGet(MapKey { key, .. }) => {
                let entry = MapEntry { key, value: Some(u64::MAX), bytes: "ff".repeat(8) };
                Reply::MapGet(Entry { entry })
            }
            Call::MapDump(MapPage { from, .. }) => {
                let bytes = "0100000000000000".to_owned();
                let entry = |key| MapEntry { key, value: Some(1), bytes: bytes.clone() };
                let entries = (from..65536).map(entry).collect();
                Reply::MapDump(Entries { entries, next: Some(65536) })
            }
            Call::MapOpen(_) => {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(b"from the daemon").unwrap();
                Reply::MapOpen(Opened { fd: Some(file.into()) })
            }
            Call::Register(mut request) => {
                let index = match request.take()? {
                    Registration::Socket(fd) => {
                        File::from(fd).write_all(request.app.as_bytes()).unwrap();
                        request.index.unwrap_or(77)
                    }
                    Registration::Thread { tid } => tid as u32,
                };
                Reply::Register(Registered { index })
            }
            _ => return Err(Failure::new(Code::Unsupported, "not here")),
        })
    }
}

/// A daemon in a thread of this process.
struct Served {
    dir: TempDir,
    odd: Odd,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let odd = Odd::default();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (path, arbiters) = (dir.path().join("s"), Arc::new(odd.clone()));
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let daemon = Daemon::bind(&path, None).unwrap();
                ready.send(()).unwrap();
                daemon.serve(arbiters, async { drop(stopped.await) }).await;
            });
        });
        is_ready.recv().unwrap();
        Self { dir, odd, stop: Some(stop), thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.odd.open_gate();
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        if !std::thread::panicking() {
            let left: Vec<_> = std::fs::read_dir(self.dir.path()).unwrap().flatten().collect();
            assert!(left.is_empty(), "left: {left:?}");
        }
    }
}

/// Reads one reply; empty at the end of the connection.
fn reply(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != 0 {
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn load(image: Vec<u8>) -> LoadRequest {
    LoadRequest {
        hook: "h".to_owned(),
        app: "a".to_owned(),
        policy: PolicySource::Object { file_name: "p.o".to_owned(), image },
        params: vec![("N".to_owned(), "1".to_owned())],
        target: Default::default(),
        or_replace: false,
        owner: None,
    }
}

fn content(fd: &impl AsRawFd) -> String {
    // Opened anew, so that it is read from the start.
    std::fs::read_to_string(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
}

#[test]
fn an_error_arrives_whole() {
    let served = Served::new();
    let error = served.client().load(&load(vec![1, 2, 3])).unwrap_err();
    let expected = Failure::new(Code::VerifierRejected, "3 bytes, sum 6")
        .detail("r0 !read_ok")
        .advise("return something");
    assert_eq!(error, expected);
}

#[test]
fn the_largest_object_fits_and_what_is_larger_is_refused_with_its_size() {
    let served = Served::new();
    let client = served.client();
    let error = client.load(&load(vec![1; 4 << 20])).unwrap_err();
    assert_eq!(error.message, format!("{0} bytes, sum {0}", 4 << 20));
    let error = client.load(&load(vec![1; 7 << 20])).unwrap_err();
    assert_eq!(error.code, Code::Usage);
    assert!(error.message.contains("limit"), "{error}");
}

#[test]
fn values_and_large_replies_arrive_whole() {
    let served = Served::new();
    let client = served.client();
    assert_eq!(client.map_get("a", "m", 3).unwrap().value, Some(u64::MAX));
    let page = client.map_dump("a", "m", 6).unwrap();
    assert_eq!((page.entries.len(), page.next), (65530, Some(65536)));
}

#[test]
fn descriptors_pass_both_ways() {
    let served = Served::new();
    let client = served.client();
    assert_eq!(content(&client.map_open("a", "m").unwrap()), "from the daemon");

    let ours = tempfile::tempfile().unwrap();
    let sent = ours.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(client.register("app", None, Registration::Socket(sent), None).unwrap(), 77);
    assert_eq!(content(&ours), "app");
    assert_eq!(client.register("app", None, Registration::Thread { tid: 5 }, Some(1)).unwrap(), 5);
}

#[test]
fn a_registration_without_its_descriptor_is_refused() {
    let served = Served::new();
    let mut stream = served.raw();
    stream
        .write_all(
            b"{\"method\":\"org.syrup.Arbiter1.Register\",\"parameters\":{\"app\":\"a\",\"kind\":\"socket\"}}\0",
        )
        .unwrap();
    let reply = reply(&mut stream);
    assert!(reply.contains("one descriptor"), "{reply}");
}

#[test]
fn callers_are_who_the_kernel_says() {
    let served = Served::new();
    let uid = served.client().show("a").unwrap().uid;
    assert_eq!(uid, rustix::process::geteuid().as_raw());
}

#[test]
fn a_panic_of_the_engine_is_one_callers_matter() {
    let served = Served::new();
    let client = served.client();
    let LoadRequest { hook, app, policy, params, .. } = load(vec![0]);
    let error = client.replace(&ReplaceRequest { hook, app, policy, params }).unwrap_err();
    assert_eq!(error.code, Code::Internal);
    assert!(client.list().unwrap().is_empty());
}

#[test]
fn garbage_is_answered_and_the_connection_goes_on() {
    let served = Served::new();
    let mut stream = served.raw();
    for garbage in [&b"\0"[..], b"[[[[\0", b"\xff\xfe\0", b"{\"method\":\"x\"}\0"] {
        stream.write_all(garbage).unwrap();
        let reply = reply(&mut stream);
        assert!(reply.contains("org.varlink.service."), "{garbage:?}: {reply}");
    }
    stream.write_all(b"{\"method\":\"org.syrup.Arbiter1.List\"}\0").unwrap();
    assert_eq!(reply(&mut stream), "{\"parameters\":{\"deployments\":[]}}");
}

#[test]
fn a_message_without_end_is_cut_off_and_told_why() {
    let served = Served::new();
    let mut stream = served.raw();
    let chunk = vec![b' '; 1 << 20];
    let sent = (0..64).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent < 16, "{sent} MiB were taken");
    assert!(reply(&mut stream).contains("more than 8388608 bytes"));
    assert!(served.client().list().is_ok());
}

#[test]
fn calls_in_one_write_are_answered_in_order() {
    let served = Served::new();
    let mut stream = served.raw();
    let one = |key| {
        format!(
            "{{\"method\":\"org.syrup.Arbiter1.MapGet\",\
             \"parameters\":{{\"app\":\"a\",\"map\":\"m\",\"key\":{key}}}}}\0"
        )
    };
    stream.write_all((one(1) + &one(2) + &one(3)).as_bytes()).unwrap();
    for key in 1..=3 {
        let reply = reply(&mut stream);
        assert!(reply.contains(&format!("\"key\":{key}")), "{reply}");
    }
}

#[test]
fn peers_that_do_nothing_read_nothing_or_leave_hinder_nobody() {
    let served = Served::new();
    let mut idle: Vec<UnixStream> = (0..60).map(|_| served.raw()).collect();
    for (i, stream) in idle.iter_mut().enumerate() {
        match i % 10 {
            0..5 => {}
            5..9 => stream.write_all(b"{\"method\":\"org.sy").unwrap(),
            // Asks for 4 MB and reads none of it.
            _ => stream
                .write_all(
                    b"{\"method\":\"org.syrup.Arbiter1.MapDump\",\
                      \"parameters\":{\"app\":\"a\",\"map\":\"m\"}}\0",
                )
                .unwrap(),
        }
        if i % 4 == 0 {
            *stream = served.raw();
        }
    }
    let client = served.client().with_timeout(Duration::from_secs(20));
    for _ in 0..20 {
        assert!(client.list().unwrap().is_empty());
    }
}

#[test]
fn other_changes_wait_for_a_long_call_and_may_give_up() {
    let served = Served::new();
    let (path, odd) = (served.path(), served.odd.clone());
    let long = std::thread::spawn(move || Client::connect(&path).unwrap().unload("h", "a"));
    wait_until("the long call", || odd.calls.load(Ordering::SeqCst) == 1);

    // What only reads needs no turn; what changes something does.
    assert!(served.client().list().is_ok());
    let client = served.client().with_timeout(Duration::from_millis(100));
    let error = client.unload("h", "b").unwrap_err();
    assert_eq!(error.code, Code::Timeout);
    assert_eq!(odd.calls.load(Ordering::SeqCst), 2);

    odd.open_gate();
    long.join().unwrap().unwrap();
    assert!(served.client().list().is_ok());
    // Whoever gave up before its turn is not served afterwards.
    assert_eq!(odd.calls.load(Ordering::SeqCst), 3);
}

#[test]
fn a_stop_waits_for_the_call_in_progress() {
    let mut served = Served::new();
    let (path, odd) = (served.path(), served.odd.clone());
    let long = std::thread::spawn(move || Client::connect(&path).unwrap().unload("h", "a"));
    wait_until("the long call", || odd.calls.load(Ordering::SeqCst) == 1);
    drop(served.stop.take());
    let path = served.path();
    wait_until("the socket to go", || !path.exists());
    // Nobody else may take its place before the call is done.
    assert_eq!(Daemon::bind(&path, None).unwrap_err().code, Code::Conflict);
    assert!(!served.thread.as_ref().unwrap().is_finished());
    odd.open_gate();
    wait_until("the daemon's end", || served.thread.as_ref().unwrap().is_finished());
    drop(long.join().unwrap());
}

#[test]
fn nobody_there_is_unreachable_and_the_error_names_the_socket() {
    let error = Client::connect(Path::new("/nowhere/syrupd.sock")).unwrap_err();
    assert_eq!(error.code, Code::Unreachable);
    assert!(error.message.contains("/nowhere/syrupd.sock"), "{error}");
    assert!(error.advice.unwrap().contains("syrupd"));
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_nothing_else() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/s");

    let first = Daemon::bind(&path, None).unwrap();
    let error = Daemon::bind(&path, None).unwrap_err();
    assert_eq!(error.code, Code::Conflict);
    assert!(error.message.contains("already"), "{error}");

    // Dropped without `serve`, it leaves its files, as if it had been killed.
    drop(first);
    assert!(path.exists());
    drop(Daemon::bind(&path, None).unwrap());

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(Daemon::bind(&path, None).unwrap_err().code, Code::Conflict);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");

    // Somebody else's listening socket, with no lock of ours beside it.
    let other = dir.path().join("other");
    let _listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    assert_eq!(Daemon::bind(&other, None).unwrap_err().code, Code::Conflict);
    assert!(other.exists());
}

/// Another implementation of varlink understands us.
#[test]
fn zlink_speaks_with_it() {
    use zlink::varlink_service::Proxy as _;

    let served = Served::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = zlink::tokio::unix::connect(served.path()).await.unwrap();
        let info = connection.get_info().await.unwrap().unwrap();
        assert_eq!(info.product, "syrupd");
        let interfaces: Vec<String> = info.interfaces.iter().map(ToString::to_string).collect();
        assert_eq!(interfaces, ["org.varlink.service", "org.syrup.Arbiter1"]);
        let description = connection
            .get_interface_description("org.syrup.Arbiter1".try_into().unwrap())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(description.parse().unwrap().methods().count(), Call::METHODS.len());
    });
}

fn syrupd(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_syrupd")).args(args).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_broken_configuration_stops_it_with_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("syrupd.toml");
    std::fs::write(&path, "socket = '/tmp/s'\nsokcet = 1\n").unwrap();
    let (code, text) = syrupd(&["--config", path.to_str().unwrap()]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("line 2") && text.contains("help: "), "{text}");
}

#[test]
fn pins_outside_a_bpf_file_system_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, bpffs) = (dir.path().join("s"), dir.path().join("pins"));
    let (code, text) =
        syrupd(&["--socket", socket.to_str().unwrap(), "--bpffs", bpffs.to_str().unwrap()]);
    assert_eq!(code, 6, "{text}");
    assert!(text.contains("mount -t bpf"), "{text}");
    assert!(!socket.exists());
}
