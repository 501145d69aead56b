//! Where the daemon's patience and room end, to the number.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Gid, Uid};
use support::{GROUP, Lab, MAPS, OTHER, OWNER, as_user, load, object};
use syrup_protocol::varlink::{MAX_FDS, MAX_MESSAGE_BYTES};
use syrup_protocol::{Arbiter as _, Client, Code, MAX_OBJECT_BYTES, PolicySource};
use syrup_tests::{Need, require, wait_for};

const LIST: &[u8] = b"{\"method\":\"org.syrup.Arbiter1.List\"}\0";

fn raw(lab: &Lab) -> UnixStream {
    let stream = UnixStream::connect(lab.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Reads one reply; empty at the end of the connection.
fn reply(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while matches!(stream.read(&mut byte), Ok(1)) && byte[0] != 0 {
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

fn answers(stream: &mut UnixStream) -> bool {
    stream.write_all(LIST).is_ok() && reply(stream).contains("\"deployments\"")
}

#[test]
fn a_user_has_128_connections_and_root_as_many_as_it_likes() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let connect = |uid: u32| as_user(uid, || raw(&lab));
    let mut held: Vec<UnixStream> = (0..128).map(|_| connect(OWNER)).collect();
    for stream in &mut held {
        assert!(answers(stream));
    }
    for _ in 0..2 {
        // Refused before it asks, and told why.
        let said = reply(&mut connect(OWNER));
        assert!(said.contains("user 65534 has 128 connections"), "{said}");
        assert!(said.contains("\"code\":\"conflict\"") && said.contains("close some"), "{said}");
    }
    assert!(answers(&mut connect(OTHER)), "others have their own 128");
    let mut roots: Vec<UnixStream> = (0..130).map(|_| connect(0)).collect();
    assert!(roots.iter_mut().all(answers));
    // One that closes makes room for one.
    drop(held.pop());
    let mut next = wait_for("the place of the closed one", Duration::from_secs(10), || {
        let mut stream = connect(OWNER);
        answers(&mut stream).then_some(stream)
    });
    assert!(reply(&mut connect(OWNER)).contains("128 connections"));
    assert!(answers(&mut next));
}

#[test]
fn the_longest_message_is_answered_and_one_byte_more_is_not() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    // With the NUL byte that ends it. What is read at a time may lie beyond.
    let message = |len: usize| {
        let mut bytes = LIST[..LIST.len() - 1].to_vec();
        bytes.resize(len - 1, b' ');
        bytes.push(0);
        bytes
    };
    let mut stream = raw(&lab);
    stream.write_all(&message(MAX_MESSAGE_BYTES)).unwrap();
    assert!(reply(&mut stream).contains("\"deployments\""));
    assert!(answers(&mut stream), "the connection goes on");
    let mut stream = raw(&lab);
    // It may close before it has read everything.
    let _ = stream.write_all(&message(MAX_MESSAGE_BYTES + (64 << 10) + 1));
    let said = reply(&mut stream);
    assert!(said.contains(&format!("more than {MAX_MESSAGE_BYTES} bytes")), "{said}");
}

#[test]
fn a_message_carries_eight_descriptors_at_most() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let register =
        b"{\"method\":\"org.syrup.Arbiter1.Register\",\"parameters\":{\"app\":\"a\",\"kind\":\"socket\"}}\0";
    let ask = |nr: usize| {
        let mut stream = raw(&lab);
        let own = stream.as_fd().try_clone_to_owned().unwrap();
        let fds: Vec<BorrowedFd<'_>> = vec![own.as_fd(); nr];
        let mut space = [MaybeUninit::uninit(); 256];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = [std::io::IoSlice::new(register)];
        rustix::net::sendmsg(&stream, &bytes, &mut control, SendFlags::empty()).unwrap();
        let said = reply(&mut stream);
        (said, answers(&mut stream))
    };
    // Taken, and refused for what it means: the connection goes on.
    let (said, goes_on) = ask(MAX_FDS);
    assert!(said.contains("by one descriptor beside the call") && goes_on, "{said}");
    let (said, goes_on) = ask(MAX_FDS + 1);
    assert!(said.contains("more than 8 descriptors") && !goes_on, "{said}");
    assert_eq!(MAX_FDS, 8);
}

#[test]
fn a_policy_has_a_longest_object_and_a_longest_source() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let image = |len| PolicySource::Object { file_name: "p.o".to_owned(), image: vec![0; len] };
    let text = |len: usize| PolicySource::Source {
        file_name: "p.c".to_owned(),
        text: MAPS.to_owned() + &" ".repeat(len - MAPS.len()),
    };
    let said = |policy| lab.client().load(&load("mine", policy)).unwrap_err().message;
    assert!(said(image(MAX_OBJECT_BYTES)).contains("is not a BPF object"));
    assert!(said(image(MAX_OBJECT_BYTES + 1)).contains("4194305 bytes, the limit is 4194304"));
    assert!(said(text((1 << 20) + 1)).contains("1048577 bytes, the limit is 1048576"));
    lab.client().load(&load("mine", text(1 << 20))).unwrap();
}

#[test]
fn a_map_is_dumped_in_pages() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let maps = support::source(
        "SYRUP_MAP(big, 100000);\nstruct MiB { char bytes[1 << 20]; };\n\
         struct more { char bytes[(1 << 20) + 1]; };\n\
         SYRUP_MAP_OF(wide, struct MiB, 1);\nSYRUP_MAP_OF(wider, struct more, 1);",
        "syrup_map_lookup(&big, 0) && syrup_map_lookup(&wide, 0) && syrup_map_lookup(&wider, 0)",
    );
    let client = lab.client();
    client.load(&load("mine", object(&maps))).unwrap();
    let (mut from, mut keys, mut pages) = (Some(0), Vec::new(), 0);
    while let Some(key) = from {
        let page = client.map_dump("mine", "big", key).unwrap();
        keys.extend(page.entries.iter().map(|entry| entry.key));
        (from, pages) = (page.next, pages + 1);
    }
    assert!(keys.iter().copied().eq(0..100_000), "{} keys", keys.len());
    assert_eq!(pages, 2);
    // From behind the last, there is nothing more.
    let behind = client.map_dump("mine", "big", u32::MAX).unwrap();
    assert_eq!((behind.entries.len(), behind.next), (0, None));
    assert_eq!(client.map_dump("mine", "wide", 0).unwrap().entries[0].bytes.len(), 2 << 20);
    for error in [
        client.map_dump("mine", "wider", 0).unwrap_err(),
        client.map_get("mine", "wider", 0).unwrap_err(),
    ] {
        assert!(error.message.contains("1048577 bytes, the limit is 1048576"), "{error}");
    }
}

#[test]
fn an_app_has_so_many_maps_and_bytes_of_them() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let client = lab.client();
    // Of 64 MiB each, but for the last.
    let policy = |names: &[&str], entries: &str| {
        let maps: String =
            names.iter().map(|name| format!("SYRUP_MAP({name}, {entries});\n")).collect();
        object(&support::source(&maps, "0"))
    };
    let replace = |policy| client.replace(&support::replace("mine", policy));
    client.load(&load("mine", policy(&["a", "b"], "8 << 20"))).unwrap();
    // Those that are there are not counted twice.
    replace(policy(&["a", "b", "c"], "8 << 20")).unwrap();
    replace(policy(&["d"], "(8 << 20) - 1")).unwrap();
    replace(policy(&["e"], "1")).unwrap();
    let error = replace(policy(&["f"], "1")).unwrap_err();
    assert_eq!(error.code, Code::SourceRejected);
    let said = "Map 'f': the app's Maps take 268435464 bytes, the limit is 268435456";
    assert!(error.message.contains(said), "{error}");
    assert_eq!(client.show("mine").unwrap().maps.len(), 5, "the refused one is not there");

    let names: Vec<String> = (0..256).map(|i| format!("m{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    client.load(&load("other", policy(&names[..64], "1"))).unwrap();
    for some in names[64..].chunks(64) {
        client.replace(&support::replace("other", policy(some, "1"))).unwrap();
    }
    let error = client.replace(&support::replace("other", policy(&["f"], "1"))).unwrap_err();
    assert!(error.message.contains("the app's Map number 257, the limit is 256"), "{error}");
}

/// Both at once: each takes the ten seconds that a peer is given.
#[test]
fn a_peer_that_stops_within_a_message_or_reads_no_reply_is_left() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let big = support::source("SYRUP_MAP(big, 65536);", "syrup_map_lookup(&big, 0) ? 0 : 1");
    lab.client().load(&load("mine", object(&big))).unwrap();
    let started = Instant::now();
    let mut half = raw(&lab);
    half.write_all(&LIST[..10]).unwrap();
    let mut deaf = raw(&lab);
    deaf.write_all(
        b"{\"method\":\"org.syrup.Arbiter1.MapDump\",\
          \"parameters\":{\"app\":\"mine\",\"map\":\"big\"}}\0",
    )
    .unwrap();
    // Silent without having begun: for as long as it likes.
    let mut silent = raw(&lab);

    let said = reply(&mut half);
    assert!(said.contains("the rest of the message did not come"), "{said}");
    assert_eq!(half.read(&mut [0]).unwrap(), 0, "and closed");
    let after = started.elapsed();
    assert!((9..20).contains(&after.as_secs()), "{after:?}");

    // It stopped writing to the deaf one: what comes out ends without its NUL.
    wait_for("the end of the unread reply", Duration::from_secs(20), || {
        // Only a closed peer polls as hung up.
        let mut fds = [rustix::event::PollFd::new(&deaf, rustix::event::PollFlags::empty())];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).unwrap();
        fds[0].revents().contains(rustix::event::PollFlags::HUP).then_some(())
    });
    let mut rest = Vec::new();
    if let Err(error) = deaf.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert!(!rest.is_empty() && rest.last() != Some(&0), "{} bytes", rest.len());
    assert!(answers(&mut silent));
}

#[test]
fn the_group_may_ask_and_only_root_may_replace_the_socket() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab::new();
    let socket = std::fs::metadata(lab.socket()).unwrap();
    assert_eq!(
        (socket.uid(), socket.gid(), socket.permissions().mode() & 0o777),
        (0, GROUP, 0o660)
    );
    // Whoever can open it could keep the next daemon from starting.
    let lock = std::fs::metadata(lab.socket().with_extension("lock")).unwrap();
    assert_eq!(lock.permissions().mode() & 0o777, 0o600);

    let stranger = std::thread::spawn({
        let socket = lab.socket();
        move || {
            let (user, group) = (Uid::from_raw(OTHER), Gid::from_raw(OTHER));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(group, group, group).unwrap();
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            Client::connect(&socket).map(drop).unwrap_err()
        }
    });
    let refused = stranger.join().unwrap();
    assert_eq!(refused.code, Code::NotPermitted);
    assert!(refused.advice.unwrap().contains("group"), "{}", refused.message);
}
