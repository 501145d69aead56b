//! The daemon: a socket in front of the engine.
//!
//! One task per connection, so that a peer that is slow, gone or hostile waits
//! alone. The engine blocks, and changes things for one caller at a time; users take
//! turns, whatever number of calls each has waiting. What only reads waits for nobody. Stopping the daemon, in whatever way, leaves what is deployed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use syrup_engine::Caller;
use syrup_protocol::wire::{Decoder, Message, Outgoing};
use syrup_protocol::{Code, Failure, Result};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use crate::service::{self, Answer, Arbiters};

/// How long a peer may take for the rest of a message it began, or to read a reply.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a stop waits for the call in progress.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections of one user; root has no limit.
const MAX_CONNECTIONS_PER_USER: usize = 128;

/// A daemon that listens.
#[derive(Debug)]
pub struct Daemon {
    listener: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    // Locked while the daemon lives; the kernel lets go when it dies.
    _lock: File,
}

/// What all connections share.
struct Shared {
    arbiters: Arc<dyn Arbiters>,
    turn: Mutex<()>,
    users: StdMutex<HashMap<u32, User>>,
}

/// What a user's connections share.
#[derive(Default)]
struct User {
    connections: usize,
    /// Held by the one of its calls that queues for the turn of all.
    turn: Arc<Mutex<()>>,
}

/// A place among a user's connections, given back when dropped.
struct Place {
    shared: Arc<Shared>,
    uid: u32,
    turn: Arc<Mutex<()>>,
}

impl Daemon {
    /// Listens at `path`, in the place of a daemon that died, for its own user and, as root,
    /// for the users of `group`. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Code::Conflict`] when a daemon answers there, or something else is there.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("make", parent))?;
        }
        let (lock, lock_path) = lock(path)?;
        remove_stale(path)?;
        // Nobody connects before it has its group.
        let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(umask);
        let listener = listener.map_err(failed("listen at", path))?;
        // Who of these may do what is decided for each request by the peer's credentials.
        if let Some(group) = group {
            chown(path, None, Some(group)).map_err(failed("set the group of", path))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o660))
                .map_err(failed("set the mode of", path))?;
        }
        Ok(Self { listener, path: path.to_owned(), lock_path, _lock: lock })
    }

    /// Serves until `stop` is ready and the call in progress, if any, is done.
    pub async fn serve(self, arbiters: Arc<dyn Arbiters>, stop: impl Future<Output = ()>) {
        let shared = Arc::new(Shared {
            arbiters,
            turn: Mutex::new(()),
            users: StdMutex::new(HashMap::new()),
        });
        tokio::pin!(stop);
        let mut refuses = false;
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        refuses = false;
                        tokio::spawn(connection(stream, Arc::clone(&shared)));
                    }
                    Err(e) => {
                        // Out of descriptors or memory: others may give some back. Said
                        // once: it is tried until then.
                        if !refuses {
                            log::warn!("cannot accept a connection: {e}");
                        }
                        refuses = true;
                        sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        let _ = fs::remove_file(&self.path);
        if tokio::time::timeout(STOP_TIMEOUT, shared.turn.lock()).await.is_err() {
            log::warn!("stopping although a call is still in progress");
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}

fn failed(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let what = format!("cannot {verb} {}", path.display());
    move |e| {
        let code = match e.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Code::NotPermitted
            }
            io::ErrorKind::AlreadyExists | io::ErrorKind::AddrInUse => Code::Conflict,
            _ => Code::Internal,
        };
        Failure::new(code, format!("{what}: {e}"))
            .advise("run syrupd as root, or name another place with --socket")
    }
}

fn answers_already(path: &Path) -> Failure {
    Failure::new(Code::Conflict, format!("a daemon answers at {} already", path.display()))
        .advise("stop it first, or name another place with --socket")
}

/// Takes the lock beside the socket: of two daemons that find the socket of a
/// dead one, only one may replace it.
fn lock(path: &Path) -> Result<(File, PathBuf)> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            // Whoever can open it can hold it.
            .mode(0o600)
            // The folder may be one in which others make links.
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(failed("set the mode of", &lock_path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(answers_already(path)),
            Err(e) => return Err(failed("lock", &lock_path)(e.into())),
        }
        // A daemon that just stopped may have removed the file we locked.
        let locked = file.metadata().map_err(failed("look at", &lock_path))?.ino();
        if fs::metadata(&lock_path).is_ok_and(|now| now.ino() == locked) {
            return Ok((file, lock_path));
        }
    }
}

/// Removes the socket of a daemon that died, and nothing else.
fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at", path)(e)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Failure::new(Code::Conflict, format!("{} is no socket", path.display()))
            .advise("move it away, or name another place with --socket"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("replacing the socket of a daemon that is gone: {}", path.display());
            fs::remove_file(path).map_err(failed("remove", path))
        }
        Err(e) => Err(failed("connect to", path)(e)),
        Ok(_) => Err(answers_already(path)),
    }
}

impl Shared {
    /// Counts a connection in, if its user has not too many.
    fn admit(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let user = users.entry(uid).or_default();
        if uid != 0 && user.connections >= MAX_CONNECTIONS_PER_USER {
            return None;
        }
        user.connections += 1;
        Some(Place { shared: Arc::clone(self), uid, turn: Arc::clone(&user.turn) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.shared.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = users.get_mut(&self.uid) {
            user.connections -= 1;
            if user.connections == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

async fn connection(stream: UnixStream, shared: Arc<Shared>) {
    let caller = match stream.peer_cred() {
        Ok(peer) => Caller { uid: peer.uid(), pid: peer.pid().unwrap_or(0) },
        Err(e) => {
            log::warn!("a peer without credentials: {e}");
            return;
        }
    };
    let Some(place) = shared.admit(caller.uid) else {
        let error = Failure::new(
            Code::Conflict,
            format!("user {} has {MAX_CONNECTIONS_PER_USER} connections", caller.uid),
        )
        .advise("close some of them");
        let _ = send(&stream, service::refusal(error)).await;
        return;
    };
    let mut decoder = Decoder::default();
    loop {
        let message = match receive(&stream, &mut decoder).await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(e) => {
                log::info!("process {} of user {}: {e}", caller.pid, caller.uid);
                let error = Failure::new(Code::Usage, format!("the request was not taken: {e}"));
                let _ = send(&stream, service::refusal(error)).await;
                return;
            }
        };
        let answer = match answer(message, caller, &stream, &place).await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                log::info!("process {} of user {} left the queue", caller.pid, caller.uid);
                return;
            }
            Err(e) => service::refusal(Failure::new(Code::Internal, format!("no answer: {e}"))),
        };
        if let Err(e) = send(&stream, answer).await {
            log::info!("process {} of user {} took no reply: {e}", caller.pid, caller.uid);
            return;
        }
    }
}

/// The next message; `None` when the peer is gone. A peer may be silent for as
/// long as it likes, but not in the middle of a message.
async fn receive(stream: &UnixStream, decoder: &mut Decoder) -> io::Result<Option<Message>> {
    let mut deadline = None;
    loop {
        if let Some(message) = decoder.next_message() {
            return Ok(Some(message));
        }
        if decoder.is_partial() {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + PEER_TIMEOUT);
            timeout_at(deadline, stream.readable()).await.map_err(|_| {
                io::Error::new(io::ErrorKind::TimedOut, "the rest of the message did not come")
            })??;
        } else {
            stream.readable().await?;
        }
        match stream.try_io(Interest::READABLE, || decoder.read(stream.as_fd())) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// Asks the engine off the runtime's threads. `None` when the peer went away
/// before its turn came, so that what it gave up on does not happen after all;
/// a call that has begun ends even if its peer goes away.
async fn answer(
    message: Message,
    caller: Caller,
    stream: &UnixStream,
    place: &Place,
) -> Result<Option<Answer>, tokio::task::JoinError> {
    let shared = &place.shared;
    let _turn = match service::is_queued(&message) {
        true => Some((place.turn.lock().await, shared.turn.lock().await)),
        false => None,
    };
    if is_gone(stream) {
        return Ok(None);
    }
    let arbiters = Arc::clone(&shared.arbiters);
    tokio::task::spawn_blocking(move || service::answer(message, || arbiters.as_caller(caller)))
        .await
        .map(Some)
}

/// Whether the peer closed its end; one that only stopped writing still reads.
fn is_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

async fn send(stream: &UnixStream, answer: Answer) -> io::Result<()> {
    let fds: Vec<_> = answer.fds.iter().map(|fd| fd.as_fd()).collect();
    let mut outgoing = Outgoing::new(&answer.bytes, &fds);
    let deadline = Instant::now() + PEER_TIMEOUT;
    while !outgoing.is_done() {
        timeout_at(deadline, stream.writable())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it does not read its reply"))??;
        match stream.try_io(Interest::WRITABLE, || outgoing.write(stream.as_fd())) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
