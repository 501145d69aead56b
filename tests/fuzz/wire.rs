//! Any bytes from a peer, in pieces: they are cut into messages at each NUL, and a message is
//! a call or it is not.

#![no_main]

mod memory;

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use syrup_protocol::varlink::ReceivedCall;
use syrup_protocol::wire::Decoder;

fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    memory::bounded(|| {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for piece in bytes.chunks(usize::from(piece) * 16 + 1) {
            theirs.write_all(piece).expect("room for a piece");
            while matches!(decoder.read(&ours), Ok(true)) {}
            while let Some(message) = decoder.next_message() {
                let _ = serde_json::from_slice::<ReceivedCall<'_>>(&message.json);
                messages.push(message.json);
            }
        }
        let mut parts: Vec<&[u8]> = bytes.split(|&byte| byte == 0).collect();
        let rest = parts.pop().is_some_and(|rest| !rest.is_empty());
        assert_eq!(messages, parts);
        assert_eq!(decoder.is_partial(), rest);
    });
});
