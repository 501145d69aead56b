//! A connection to the daemon, as a client has it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Code, Failure};
use crate::varlink::{FAILED, INTERFACE, MAX_MESSAGE_BYTES, ReceivedReply, SentCall};
use crate::wire::{Decoder, Message, Outgoing, encode, retry};

/// How long [`Connection::open`] waits for a place in the daemon's queue.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a call got no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens there.
    #[error("no daemon answers at {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It did not happen in time.
    #[error("the daemon at {} did not answer within {} s", path.display(), after.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        after: Duration,
    },
    /// The connection broke, or what came is no varlink.
    #[error("the connection to the daemon broke: {0}")]
    Broken(#[source] io::Error),
    /// The arbiter refused.
    #[error("{0}")]
    Refused(Failure),
}

/// What whoever a socket does not let in can do.
fn how_to_get_in(socket: &Path) -> String {
    match std::fs::metadata(socket) {
        Ok(about) if about.mode() & 0o060 == 0o060 => {
            let group = about.gid();
            format!("it is for root and group {group}: ask root for 'usermod -aG {group} USER'")
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            "a folder on the way to it does not let you in: ask root for its group or 'chmod o+x', \
             or for a socket elsewhere"
                .to_owned()
        }
        _ => {
            "it is for root: ask root for 'groupadd --system syrup' and a restart of syrupd, which \
              lets that group's users in"
                .to_owned()
        }
    }
}

/// As the arbiter would have put it.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let failure = |code, advice: &str| Self::new(code, message).advise(advice);
        match error {
            Error::Refused(failure) => failure,
            Error::Unreachable { source, path }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                let message = format!("cannot ask the daemon at {}: {source}", path.display());
                Self::new(Code::NotPermitted, message).advise(how_to_get_in(&path))
            }
            Error::Unreachable { .. } => {
                failure(Code::Unreachable, "start syrupd, or name its socket with --socket")
            }
            Error::Timeout { .. } => {
                failure(Code::Timeout, "see the daemon's log; what was asked may still happen")
            }
            Error::Broken(source) => {
                let code = match source.kind() {
                    io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe => Code::Unreachable,
                    _ => Code::Internal,
                };
                failure(code, "see the daemon's log; 'syrupctl list' shows the outcome")
            }
        }
    }
}

/// A blocking connection to the daemon.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    path: PathBuf,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Unreachable`], or [`Error::Timeout`] when its queue stays full.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let unreachable = |e: Errno| Error::Unreachable { path: path.to_owned(), source: e.into() };
        let address = SocketAddrUnix::new(path).map_err(unreachable)?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(unreachable)?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => return Ok(Self { socket, path: path.to_owned() }),
                Err(Errno::INTR) => {}
                // The queue of the listening socket is full; there is nothing to poll.
                Err(Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::AGAIN) => {
                    return Err(Error::Timeout { path: path.to_owned(), after: CONNECT_TIMEOUT });
                }
                Err(e) => return Err(unreachable(e)),
            }
        }
    }

    /// Calls `method` of [`INTERFACE`] and waits for its reply.
    ///
    /// # Errors
    /// [`Error::Refused`] with the arbiter's words, or what broke.
    pub fn call<R: DeserializeOwned>(
        self,
        method: &str,
        parameters: impl Serialize,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(R, Vec<OwnedFd>), Error> {
        self.call_method(&format!("{INTERFACE}.{method}"), parameters, fds, timeout)
    }

    /// Calls a method by its full name.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn call_method<R: DeserializeOwned>(
        self,
        method: &str,
        parameters: impl Serialize,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(R, Vec<OwnedFd>), Error> {
        let deadline = Instant::now() + timeout;
        let bytes = encode(&SentCall { method, parameters }).map_err(Error::Broken)?;
        if bytes.len() > MAX_MESSAGE_BYTES {
            let size = bytes.len();
            return Err(Error::Refused(
                Failure::new(
                    Code::Usage,
                    format!("the request has {size} bytes, the limit is {MAX_MESSAGE_BYTES}"),
                )
                .advise("make the policy smaller"),
            ));
        }
        // A daemon that refuses early replies before it has read everything:
        // its words matter more than the broken pipe. Else nothing was asked that could be
        // answered.
        let sent = self.send(&bytes, fds, deadline, timeout);
        match sent {
            Err(Error::Broken(e))
                if ![io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset]
                    .contains(&e.kind()) =>
            {
                return Err(Error::Broken(e));
            }
            Err(error @ Error::Timeout { .. }) => return Err(error),
            _ => {}
        }
        let message = match (self.receive(deadline, timeout), sent) {
            (Ok(message), _) => message,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error),
        };
        result(&message.json).map(|reply| (reply, message.fds))
    }

    fn send(
        &self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(), Error> {
        let mut outgoing = Outgoing::new(bytes, fds);
        while !outgoing.is_done() {
            match outgoing.write(&self.socket) {
                Ok(()) => {}
                Err(e) if retry(&e) => self.wait(PollFlags::OUT, deadline, timeout)?,
                Err(e) => return Err(Error::Broken(e)),
            }
        }
        Ok(())
    }

    fn receive(&self, deadline: Instant, timeout: Duration) -> Result<Message, Error> {
        let mut decoder = Decoder::default();
        loop {
            if let Some(message) = decoder.next_message() {
                return Ok(message);
            }
            match decoder.read(&self.socket) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(Error::Broken(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "it closed the connection",
                    )));
                }
                Err(e) if retry(&e) => self.wait(PollFlags::IN, deadline, timeout)?,
                Err(e) => return Err(Error::Broken(e)),
            }
        }
    }

    fn wait(&self, what: PollFlags, deadline: Instant, timeout: Duration) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { path: self.path.clone(), after: timeout });
        }
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&self.socket, what)], left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(Error::Broken(e.into())),
        }
    }
}

/// The result in a reply's text.
fn result<R: DeserializeOwned>(json: &[u8]) -> Result<R, Error> {
    let malformed =
        |e: serde_json::Error| Error::Broken(io::Error::new(io::ErrorKind::InvalidData, e));
    let reply: ReceivedReply<'_> = serde_json::from_slice(json).map_err(malformed)?;
    let parameters = reply.parameters.map_or("{}", |raw| raw.get());
    match reply.error.as_deref() {
        None => serde_json::from_str(parameters).map_err(malformed),
        Some(FAILED) => Err(Error::Refused(serde_json::from_str(parameters).map_err(malformed)?)),
        Some(other) => Err(Error::Refused(
            Failure::new(
                Code::Usage,
                format!("the daemon does not take the request: {other} {parameters}"),
            )
            .advise("are client and daemon of the same version?"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::varlink::Nothing;
    use crate::wire::tests::{pair, send};

    #[test]
    fn nobody_listening_and_nobody_answering_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let error = Connection::open(&path).unwrap_err();
        assert_eq!(Failure::from(error).code, Code::Unreachable);

        let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = Connection::open(&path)
            .unwrap()
            .call::<Nothing>("List", (), &[], Duration::from_millis(50))
            .unwrap_err();
        assert_eq!(Failure::from(error).code, Code::Timeout);
    }

    /// A daemon that reads one message and answers with `reply`, then closes.
    fn answering(reply: &'static [u8]) -> (tempfile::TempDir, std::thread::JoinHandle<Message>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut decoder = Decoder::default();
            let message = loop {
                if let Some(message) = decoder.next_message() {
                    break message;
                }
                assert!(decoder.read(&stream).is_ok_and(|more| more) || retry_later());
            };
            let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
            send(&stream, reply, &fds);
            message
        });
        (dir, thread)
    }

    fn retry_later() -> bool {
        std::thread::sleep(Duration::from_millis(1));
        true
    }

    fn ask(reply: &'static [u8]) -> (Result<serde_json::Value, Error>, Message) {
        let (dir, thread) = answering(reply);
        let connection = Connection::open(&dir.path().join("s")).unwrap();
        let result = connection.call("List", Nothing {}, &[], LONG);
        (result.map(|(value, _)| value), thread.join().unwrap())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_call_names_the_interface_and_its_result_comes_back() {
        let (result, asked) = ask(b"{\"parameters\":{\"a\":1}}\0");
        assert_eq!(result.unwrap(), serde_json::json!({"a": 1}));
        let json: serde_json::Value = serde_json::from_slice(&asked.json).unwrap();
        let expected = serde_json::json!({"method": "org.syrup.Arbiter1.List", "parameters": {}});
        assert_eq!(json, expected);
        // A reply may leave its parameters out.
        assert_eq!(ask(b"{}\0").0.unwrap(), serde_json::json!({}));
    }

    #[test]
    fn every_way_to_fail_has_its_code() {
        let failed = |reply| ask(reply).0.unwrap_err();
        let refused = failed(
            b"{\"error\":\"org.syrup.Arbiter1.Failed\",\"parameters\":\
              {\"code\":\"not_permitted\",\"message\":\"no\",\"detail\":\"d\",\"advice\":\"a\"}}\0",
        );
        let expected = Failure {
            code: Code::NotPermitted,
            message: "no".to_owned(),
            detail: Some("d".to_owned()),
            advice: Some("a".to_owned()),
        };
        assert_eq!(Failure::from(refused), expected);
        let unknown = failed(b"{\"error\":\"org.varlink.service.MethodNotFound\"}\0");
        let unknown = Failure::from(unknown);
        assert_eq!(unknown.code, Code::Usage);
        assert!(unknown.message.contains("MethodNotFound"), "{}", unknown.message);
        // What is no reply, and a daemon that went away in the middle.
        for (broken, code) in [
            (&b"garbage\0"[..], Code::Internal),
            (b"{\"parameters\":\0", Code::Internal),
            (b"{\"parameters\":1", Code::Unreachable),
            (b"", Code::Unreachable),
        ] {
            let failure = Failure::from(failed(broken));
            assert_eq!(failure.code, code, "{}", failure.message);
            assert!(failure.advice.is_some());
        }
        // What the reply carries is not what was asked for.
        let (dir, thread) = answering(b"{\"parameters\":{\"index\":\"x\"}}\0");
        let connection = Connection::open(&dir.path().join("s")).unwrap();
        let result = connection.call::<crate::call::Registered>("List", (), &[], LONG);
        assert_eq!(Failure::from(result.unwrap_err()).code, Code::Internal);
        drop(thread.join().unwrap());

        let denied = Error::Unreachable {
            path: "/s".into(),
            source: io::Error::from(io::ErrorKind::PermissionDenied),
        };
        assert_eq!(Failure::from(denied).code, Code::NotPermitted);
    }

    /// A client of yesterday and a daemon of tomorrow.
    #[test]
    fn words_that_are_not_known_yet_are_told_as_they_are() {
        use crate::{Arbiter as _, Client, Health};
        let client = |dir: &tempfile::TempDir| Client::at(dir.path().join("s")).with_timeout(LONG);

        let (dir, thread) = answering(
            b"{\"error\":\"org.syrup.Arbiter1.Failed\",\"parameters\":{\"code\":\"over_quota\",\
              \"message\":\"64 deployments\",\"advice\":\"a\",\"since\":7}}\0",
        );
        let failure = client(&dir).unload("h", "a").unwrap_err();
        let expected = Failure::new(Code::Internal, "over_quota: 64 deployments").advise("a");
        assert_eq!(failure, expected);
        drop(thread.join().unwrap());

        let (dir, thread) = answering(
            b"{\"parameters\":{\"deployments\":[{\"app\":\"a\",\"uid\":0,\"hook\":\"late-binding\",\
              \"policy\":\"p\",\"policy_sha256\":\"\",\"program_id\":7,\"generation\":0,\
              \"deployed_at\":0,\"inputs\":\"\",\"executor\":\"class\",\"executors\":1,\
              \"target\":{\"tier\":2},\"state\":\"asleep\",\"reason\":\"it is night\",\
              \"counters\":{\"woken\":3},\"verdicts\":[],\"colour\":\"red\"}]}}\0",
        );
        let found = client(&dir).list().unwrap().remove(0);
        let (state, reason) = ("asleep".to_owned(), Some("it is night".to_owned()));
        assert_eq!(found.health, Health::Other { state, reason });
        assert!(!found.health.is_live());
        assert_eq!((found.counters["woken"], found.target["tier"].as_u64()), (3, Some(2)));
        drop(thread.join().unwrap());

        let (dir, thread) = answering(
            b"{\"parameters\":{\"hooks\":[{\"name\":\"h\",\"input\":\"call\",\"registers\":\"file\",\
              \"executor\":\"a file\",\"takes\":[],\"available\":true,\"missing\":null,\
              \"advice\":null}]}}\0",
        );
        let hook = client(&dir).hooks().unwrap().remove(0);
        assert_eq!(
            (hook.input.to_string(), hook.registers.to_string()),
            ("call".into(), "file".into())
        );
        assert_eq!(serde_json::to_value(&hook).unwrap()["input"], "call");
        drop(thread.join().unwrap());
    }

    #[test]
    fn descriptors_travel_with_a_call_once_and_back() {
        let (dir, thread) = answering(b"{}\0");
        let connection = Connection::open(&dir.path().join("s")).unwrap();
        let file = tempfile::tempfile().unwrap();
        // Longer than a socket's buffer: written in many pieces.
        let long = "x".repeat(3 << 20);
        let (Nothing {}, fds) = connection.call("List", &long, &[file.as_fd()], LONG).unwrap();
        let asked = thread.join().unwrap();
        assert_eq!((asked.fds.len(), fds.len()), (1, 1));
        assert!(asked.json.len() > long.len());
    }

    #[test]
    fn a_request_over_the_limit_is_not_even_sent() {
        let (ours, theirs) = pair();
        let connection = Connection { socket: ours.into(), path: "/s".into() };
        // {"method":"org.syrup.Arbiter1.L","parameters":"..."} and its NUL byte.
        let around = encode(&SentCall { method: "org.syrup.Arbiter1.L", parameters: "" }).unwrap();
        let long = "x".repeat(MAX_MESSAGE_BYTES - around.len() + 1);
        let error = Failure::from(connection.call::<Nothing>("L", &long, &[], LONG).unwrap_err());
        assert_eq!(error.code, Code::Usage);
        assert!(error.message.contains(&(MAX_MESSAGE_BYTES + 1).to_string()), "{}", error.message);
        let mut decoder = Decoder::default();
        assert!(!decoder.read(&theirs).unwrap(), "something came");

        // At the limit it is sent, and comes out whole.
        let (dir, thread) = answering(b"{}\0");
        let connection = Connection::open(&dir.path().join("s")).unwrap();
        let _: (Nothing, _) = connection.call("L", &long[1..], &[], LONG).unwrap();
        assert_eq!(thread.join().unwrap().json.len(), MAX_MESSAGE_BYTES - 1);
    }

    #[test]
    fn a_peer_that_reads_nothing_is_given_up_in_time() {
        let (ours, _theirs) = pair();
        let connection = Connection { socket: ours.into(), path: "/s".into() };
        let started = Instant::now();
        let error = connection
            .call::<Nothing>("L", "x".repeat(4 << 20), &[], Duration::from_millis(100))
            .unwrap_err();
        let Error::Timeout { after, .. } = error else { panic!("{error}") };
        assert_eq!(after, Duration::from_millis(100));
        assert!(started.elapsed() >= after);
    }

    #[test]
    fn a_full_queue_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = SocketAddrUnix::new(&path).unwrap();
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let first = Connection::open(&path).unwrap();
        let second = std::thread::spawn({
            let path = path.clone();
            move || Connection::open(&path)
        });
        std::thread::sleep(Duration::from_millis(20));
        drop(rustix::net::accept(&listener).unwrap());
        second.join().unwrap().unwrap();
        drop(first);
        // Nobody takes anybody from it: told apart from nobody there.
        let error = Connection::open(&path).unwrap_err();
        assert!(matches!(error, Error::Timeout { after: CONNECT_TIMEOUT, .. }), "{error}");
    }
}
