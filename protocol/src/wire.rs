//! How varlink messages travel: JSON, a NUL byte, and descriptors beside them.
//!
//! zlink was tried first. Its 0.8 server answers all connections from one task,
//! so that one peer that does not read its reply stops everybody, and its
//! writer grows its buffer by 256 bytes and formats the message anew each time:
//! quadratic for policy objects and Map dumps. It also wants an async runtime
//! inside every application. The format itself is small; the tests of the
//! daemon talk to it with zlink as a peer.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Code, Failure};
use crate::varlink::{FAILED, INTERFACE, MAX_FDS, MAX_MESSAGE_BYTES, ReceivedReply, SentCall};

const CHUNK: usize = 64 << 10;

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

/// As the arbiter would have put it.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let failure = |code, advice: &str| Self::new(code, message).advise(advice);
        match error {
            Error::Refused(failure) => failure,
            Error::Unreachable { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                failure(Code::NotPermitted, "the socket is not open to this user")
            }
            Error::Unreachable { .. } => {
                failure(Code::Unreachable, "start syrupd, or name its socket with --socket")
            }
            Error::Timeout { .. } => {
                failure(Code::Timeout, "see the daemon's log; what was asked may still happen")
            }
            Error::Broken(_) => {
                failure(Code::Internal, "see the daemon's log; 'syrupctl list' shows the outcome")
            }
        }
    }
}

/// One message and what came with it.
#[derive(Debug, Default)]
pub struct Message {
    /// The JSON text, without the NUL byte.
    pub json: Vec<u8>,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// How much of `buffer` is known to hold no NUL byte.
    scanned: usize,
    /// Descriptors, and how many bytes of `buffer` lie up to and including the
    /// last byte of the read they came with. The kernel ends a read behind the
    /// data that carries descriptors, so that byte belongs to their message.
    fds: VecDeque<(usize, Vec<OwnedFd>)>,
}

impl Decoder {
    /// The next complete message.
    pub fn next_message(&mut self) -> Option<Message> {
        let Some(found) = self.buffer[self.scanned..].iter().position(|&byte| byte == 0) else {
            self.scanned = self.buffer.len();
            return None;
        };
        let end = self.scanned + found;
        let rest = self.buffer.split_off(end + 1);
        let mut json = std::mem::replace(&mut self.buffer, rest);
        json.truncate(end);
        self.scanned = 0;
        let mut fds = Vec::new();
        while self.fds.front().is_some_and(|(upto, _)| *upto <= end + 1) {
            fds.extend(self.fds.pop_front().into_iter().flat_map(|(_, fds)| fds));
        }
        for (upto, _) in &mut self.fds {
            *upto -= end + 1;
        }
        Some(Message { json, fds })
    }

    /// Whether a message has begun.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Reads what `socket` has; `false` at its end.
    ///
    /// # Errors
    /// `InvalidData` for a message that is too long or carries too many
    /// descriptors; else what recvmsg(2) says, `WouldBlock` included.
    pub fn read(&mut self, socket: impl AsFd) -> io::Result<bool> {
        if self.buffer.len() >= MAX_MESSAGE_BYTES {
            return Err(too_much(format!("a message of more than {MAX_MESSAGE_BYTES} bytes")));
        }
        let start = self.buffer.len();
        self.buffer.resize(start + CHUNK, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut self.buffer[start..])],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        );
        let received = match received {
            Ok(received) => received,
            Err(e) => {
                self.truncate(start);
                return Err(e.into());
            }
        };
        self.truncate(start + received.bytes);
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        let held: usize = self.fds.iter().map(|(_, fds)| fds.len()).sum();
        if received.flags.contains(ReturnFlags::CTRUNC) || held + fds.len() > MAX_FDS {
            return Err(too_much(format!("a message with more than {MAX_FDS} descriptors")));
        }
        if !fds.is_empty() {
            self.fds.push_back((self.buffer.len(), fds));
        }
        Ok(received.bytes > 0)
    }

    /// Cuts the buffer, and gives memory back when nothing is in it: most
    /// connections are idle most of the time.
    fn truncate(&mut self, len: usize) {
        self.buffer.truncate(len);
        if len == 0 {
            self.buffer = Vec::new();
        }
    }
}

fn too_much(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A message that is being sent.
#[derive(Debug)]
pub struct Outgoing<'a> {
    bytes: &'a [u8],
    fds: &'a [BorrowedFd<'a>],
}

impl<'a> Outgoing<'a> {
    /// `bytes` end with the NUL byte ([`encode`]).
    #[must_use]
    pub fn new(bytes: &'a [u8], fds: &'a [BorrowedFd<'a>]) -> Self {
        Self { bytes, fds }
    }

    /// Whether everything is out.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends what `socket` takes now. The descriptors go with the first byte.
    ///
    /// # Errors
    /// What sendmsg(2) says, `WouldBlock` included.
    pub fn write(&mut self, socket: impl AsFd) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !self.fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(self.fds)) {
            return Err(too_much(format!("a message with more than {MAX_FDS} descriptors")));
        }
        let sent = rustix::net::sendmsg(
            socket,
            &[IoSlice::new(self.bytes)],
            &mut control,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?;
        self.bytes = &self.bytes[sent..];
        if sent > 0 {
            self.fds = &[];
        }
        Ok(())
    }
}

/// A message's bytes.
///
/// # Errors
/// When `message` has no JSON form.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(0);
    Ok(bytes)
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

fn retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The result in a reply's text.
fn result<R: DeserializeOwned>(json: &[u8]) -> Result<R, Error> {
    let malformed = |e: serde_json::Error| Error::Broken(e.into());
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
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::varlink::Nothing;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut outgoing = Outgoing::new(bytes, fds);
        while !outgoing.is_done() {
            outgoing.write(socket).unwrap();
        }
    }

    #[test]
    fn messages_come_out_whole_however_they_were_cut() {
        let (ours, theirs) = pair();
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for byte in b"{\"a\":1}\0{}\0{\"b\"" {
            send(&ours, &[*byte], &[]);
            assert!(decoder.read(&theirs).unwrap());
            while let Some(message) = decoder.next_message() {
                seen.push(String::from_utf8(message.json).unwrap());
            }
        }
        assert_eq!(seen, ["{\"a\":1}", "{}"]);
        assert!(decoder.is_partial());
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (ours, theirs) = pair();
        let fd = ours.as_fd();
        for (bytes, fds) in [
            (&b"0\0"[..], &[][..]),
            (&b"1\0"[..], &[fd][..]),
            (&b"2\0"[..], &[fd, fd][..]),
            (&b"3\0"[..], &[][..]),
        ] {
            send(&ours, bytes, fds);
        }
        drop(ours);
        let mut decoder = Decoder::default();
        let mut counts = Vec::new();
        loop {
            while let Some(message) = decoder.next_message() {
                counts.push((message.json, message.fds.len()));
            }
            if !decoder.read(&theirs).unwrap() {
                break;
            }
        }
        let expected: Vec<(Vec<u8>, usize)> =
            [("0", 0), ("1", 1), ("2", 2), ("3", 0)].map(|(j, n)| (j.into(), n)).into();
        assert_eq!(counts, expected);
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (ours, theirs) = pair();
        let fd = ours.as_fd();
        let mut decoder = Decoder::default();
        send(&ours, b"a", &[fd; MAX_FDS]);
        assert!(decoder.read(&theirs).unwrap());
        send(&ours, b"b", &[fd]);
        assert_eq!(decoder.read(&theirs).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_endless_message_is_refused_at_the_limit() {
        let (ours, theirs) = pair();
        let chunk = vec![b' '; CHUNK];
        let mut decoder = Decoder::default();
        let mut sent = 0;
        let error = loop {
            match Outgoing::new(&chunk, &[]).write(&ours) {
                Ok(()) => sent += CHUNK,
                Err(e) => assert!(retry(&e), "{e}"),
            }
            match decoder.read(&theirs) {
                Ok(_) => assert!(decoder.next_message().is_none()),
                Err(e) if retry(&e) => {}
                Err(e) => break e,
            }
            assert!(sent < 3 * MAX_MESSAGE_BYTES, "no limit");
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

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
        for broken in [&b"garbage\0"[..], b"{\"parameters\":1", b""] {
            let failure = Failure::from(failed(broken));
            assert_eq!(failure.code, Code::Internal, "{}", failure.message);
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

    #[test]
    fn a_decoder_knows_whether_a_message_has_begun() {
        let (ours, theirs) = pair();
        let mut decoder = Decoder::default();
        assert!(!decoder.is_partial());
        let nothing = decoder.read(&theirs).unwrap_err();
        assert!(retry(&nothing), "{nothing}");
        assert!(!decoder.is_partial(), "nothing came");
        send(&ours, b"{}\0", &[]);
        assert!(decoder.read(&theirs).unwrap());
        assert_eq!(decoder.next_message().unwrap().json, b"{}");
        assert!(!decoder.is_partial() && decoder.next_message().is_none());
        drop(ours);
        assert!(!decoder.read(&theirs).unwrap());
    }

    #[test]
    fn descriptors_of_messages_that_wait_do_not_add_up() {
        let (ours, theirs) = pair();
        let fd = ours.as_fd();
        let mut decoder = Decoder::default();
        for _ in 0..3 {
            send(&ours, b"{}\0", &[fd; MAX_FDS]);
            assert!(decoder.read(&theirs).unwrap());
            assert_eq!(decoder.next_message().unwrap().fds.len(), MAX_FDS);
        }
    }
}
