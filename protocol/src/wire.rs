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

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;

use crate::varlink::{MAX_FDS, MAX_MESSAGE_BYTES};

const CHUNK: usize = 64 << 10;

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
        // As large as it is: many small ones may wait for their turn.
        let json = self.buffer[..end].to_vec();
        self.buffer.drain(..=end);
        self.truncate(self.buffer.len());
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

/// Whether a read or write is to be made again, later.
pub(crate) fn retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    pub(crate) fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    pub(crate) fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
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
    fn a_message_takes_the_room_of_its_bytes() {
        let (ours, theirs) = pair();
        send(&ours, &[b"{}\0".repeat(1000), vec![b'x'; 30_000], vec![0]].concat(), &[]);
        let mut decoder = Decoder::default();
        assert!(decoder.read(&theirs).unwrap());
        let messages: Vec<Message> = std::iter::from_fn(|| decoder.next_message()).collect();
        assert_eq!(messages.len(), 1001);
        let room: usize = messages.iter().map(|message| message.json.capacity()).sum();
        assert!(room < 40_000, "{room} bytes");
        assert_eq!(decoder.buffer.capacity(), 0, "an idle connection holds none");
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
