//! Pins in a real BPF file system: what appears, what is put aside, what is left.
#![allow(clippy::unwrap_used)]

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::path::PathBuf;

use syrup_hook::Error;
use syrup_hook::pin::{self, Staged};
use syrup_hook::record::{RECORD, Record};
use syrup_hook::sys::{self, Map};
use syrup_tests::{Need, require};
use tempfile::TempDir;

/// A BPF file system of the test's own: what is pinned in it dies with it.
struct Mount(TempDir);

impl Drop for Mount {
    fn drop(&mut self) {
        let target = CString::new(self.0.path().to_str().unwrap()).unwrap();
        // SAFETY: target is NUL-terminated and lives during the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

fn lab() -> (Mount, PathBuf) {
    let dir = tempfile::Builder::new().prefix("syrup-hook-").tempdir().unwrap();
    let target = CString::new(dir.path().to_str().unwrap()).unwrap();
    // SAFETY: all strings are NUL-terminated and live during the call.
    let err = unsafe {
        libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null())
    };
    assert_eq!(err, 0, "mount bpffs: {}", std::io::Error::last_os_error());
    // Not the mount itself: some kernels put files of their own there.
    let path = dir.path().join("pins");
    fs::create_dir(&path).unwrap();
    (Mount(dir), path)
}

fn array(value: u64) -> Map {
    let map = pin::create_array("test", 8, 1).unwrap();
    map.update(&[0; 4], &value.to_ne_bytes()).unwrap();
    map
}

fn value(path: &std::path::Path) -> u64 {
    let bytes = Map::open(path).unwrap().lookup(&[0; 4]).unwrap().unwrap();
    u64::from_ne_bytes(bytes.try_into().unwrap())
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_is_in_place_whole_or_not_at_all() {
    if !require(&[Need::Root]) {
        return;
    }
    let (_mount, dir) = lab();
    let target = dir.join("socket-select");
    let mut staged = Staged::new(&target).unwrap();
    assert_eq!(staged.path(), dir.join("_new_socket-select"));
    sys::obj_pin(array(1).as_fd(), &staged.path().join("map")).unwrap();
    assert!(!target.exists());
    staged.commit().unwrap();
    assert_eq!(names(&dir), ["socket-select"]);
    assert_eq!(value(&target.join("map")), 1);

    // Given up, it goes with what is pinned in it.
    let staged = Staged::new(&target).unwrap();
    sys::obj_pin(array(2).as_fd(), &staged.path().join("map")).unwrap();
    drop(staged);
    assert_eq!(names(&dir), ["socket-select"]);
    assert_eq!(value(&target.join("map")), 1);

    // In the place of one that is there it is refused, and goes too.
    let mut staged = Staged::new(&target).unwrap();
    sys::obj_pin(array(3).as_fd(), &staged.path().join("map")).unwrap();
    assert!(matches!(staged.commit(), Err(Error::Kernel { .. })));
    drop(staged);
    assert_eq!(names(&dir), ["socket-select"]);
    assert_eq!(value(&target.join("map")), 1);

    // What an attempt that died left is no hindrance.
    let left = dir.join("_new_socket-select");
    fs::create_dir_all(left.join("deeper")).unwrap();
    sys::obj_pin(array(4).as_fd(), &left.join("deeper/map")).unwrap();
    let staged = Staged::new(&target).unwrap();
    assert!(names(staged.path()).is_empty());
    drop(staged);
    assert!(matches!(Staged::new("/".as_ref()), Err(Error::Defect(_))));
}

/// A program that accepts every packet.
fn program() -> OwnedFd {
    let instruction = |code| libbpf_sys::bpf_insn { code, ..Default::default() };
    // r0 = 0; exit
    let code = [instruction(0xb7), instruction(0x95)];
    // SAFETY: the strings and `code` live during the call, which is told its length.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER,
            c"test".as_ptr(),
            c"GPL".as_ptr(),
            code.as_ptr(),
            code.len() as libbpf_sys::size_t,
            std::ptr::null_mut(),
        )
    };
    assert!(fd >= 0, "load a program: {}", std::io::Error::last_os_error());
    // SAFETY: it was just made, for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn a_replace_is_done_whole_or_not_at_all() {
    if !require(&[Need::Root]) {
        return;
    }
    let (_mount, dir) = lab();
    let record = |generation| Record { generation, ..Record::default() };
    let (old, new) = (program(), program());
    let id = |program: &OwnedFd| sys::program_id(program.as_fd()).unwrap();
    sys::obj_pin(old.as_fd(), &dir.join(pin::POLICY)).unwrap();
    record(1).write(&dir).unwrap();
    let state = |live: u32| {
        let program = pin::live_program(&dir, live).unwrap();
        let next = pin::next_record(&dir, live).unwrap();
        let record = next.or_else(|| Record::read(&dir).unwrap()).unwrap();
        (id(&program), record.generation, names(&dir))
    };
    let both = || vec![pin::POLICY.to_owned(), RECORD.to_owned()];

    // The kernel does not take it; what is to be taken is no program.
    let refuse = || Err(Error::Usage("no".to_owned()));
    let error = pin::replace(&dir, id(&old), new.as_fd(), &record(2), refuse).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    assert_eq!(state(id(&old)), (id(&old), 1, both()));
    let file = fs::File::open("/dev/null").unwrap();
    pin::replace(&dir, id(&old), file.as_fd(), &record(2), || unreachable!()).unwrap_err();
    assert_eq!(state(id(&old)), (id(&old), 1, both()));

    // While it is set, both are there.
    let set = || {
        assert_eq!((state(id(&old)).0, state(id(&new)).0), (id(&old), id(&new)));
        Ok(())
    };
    pin::replace(&dir, id(&old), new.as_fd(), &record(2), set).unwrap();
    assert_eq!(state(id(&new)), (id(&new), 2, both()));
}

#[test]
fn removing_what_is_not_there_is_no_error_and_what_cannot_go_is_named() {
    if !require(&[Need::Root]) {
        return;
    }
    let (_mount, dir) = lab();
    pin::remove_tree(&dir.join("absent")).unwrap();
    let path = dir.join("map");
    sys::obj_pin(array(1).as_fd(), &path).unwrap();
    let error = pin::remove_tree(&path.join("below")).unwrap_err().to_string();
    assert!(error.contains("map/below"), "{error}");
    assert!(path.exists());
}

#[test]
fn a_record_is_read_as_it_was_written() {
    if !require(&[Need::Root]) {
        return;
    }
    let (_mount, dir) = lab();
    assert!(Record::read(&dir).unwrap().is_none());
    let mut record = Record {
        uid: 65534,
        policy: "round-robin".to_owned(),
        generation: 7,
        counted_before: [("inputs".to_owned(), u64::MAX)].into(),
        state: serde_json::json!({"slot": 3}),
        ..Record::default()
    };
    record.write(&dir).unwrap();
    assert_eq!(Record::read(&dir).unwrap().unwrap(), record);
    // What is shorter than before ends where it ends; what a write that died left is no
    // hindrance, and who has the old one open reads it whole.
    let before = Map::open(&dir.join(RECORD)).unwrap();
    sys::obj_pin(array(1).as_fd(), &dir.join("_new_record")).unwrap();
    record.policy = "p".to_owned();
    record.write(&dir).unwrap();
    assert_eq!(names(&dir), [RECORD]);
    let text = before.lookup(&0u32.to_ne_bytes()).unwrap().unwrap();
    assert!(String::from_utf8_lossy(&text).contains("round-robin"));
    assert_eq!(Record::read(&dir).unwrap().unwrap(), record);

    record.state = "x".repeat(32 << 10).into();
    assert!(matches!(record.write(&dir), Err(Error::Defect(_))), "it does not fit");
    assert_eq!(Record::read(&dir).unwrap().unwrap().policy, "p");
}

#[test]
fn records_of_other_versions_are_read_or_refused_and_never_misread() {
    if !require(&[Need::Root]) {
        return;
    }
    let (_mount, dir) = lab();
    let write = |bytes: &[u8]| {
        let _ = fs::remove_file(dir.join(RECORD));
        let map = pin::create_array("record", bytes.len(), 1).unwrap();
        map.update(&0u32.to_ne_bytes(), bytes).unwrap();
        sys::obj_pin(map.as_fd(), &dir.join(RECORD)).unwrap();
    };
    // A later version's: more fields, and a counter that we do not have.
    write(
        b"{\"uid\":1,\"policy\":\"p\",\"policy_sha256\":\"\",\"later\":[1],\
          \"counted_before\":{\"later\":7}}\0\0",
    );
    let read = Record::read(&dir).unwrap().unwrap();
    assert_eq!((read.uid, read.generation, read.policy.as_str()), (1, 0, "p"));
    assert!(matches!(read.state::<u32>(&dir), Err(Error::Pin { .. })), "no state is no number");
    // Those before this form began with a number; one may be cut off, or empty.
    for bytes in [&2u32.to_ne_bytes()[..], b"{\"uid\":1", &[0; 8]] {
        write(bytes);
        let Err(Error::Pin { path, reason }) = Record::read(&dir) else { panic!("{bytes:?}") };
        assert_eq!(path, dir.join(RECORD));
        assert!(reason.contains("not this version's"), "{reason}");
    }
}

#[test]
fn maps_are_read_written_and_summed_by_their_sizes() {
    if !require(&[Need::Root]) {
        return;
    }
    let (_mount, dir) = lab();
    let map = pin::create_array("four", 4, 3).unwrap();
    assert_eq!((map.value_size(), map.max_entries()), (4, 3));
    map.update(&2u32.to_ne_bytes(), &9u32.to_ne_bytes()).unwrap();
    assert_eq!(map.lookup(&2u32.to_ne_bytes()).unwrap(), Some(vec![9, 0, 0, 0]));
    assert_eq!(map.lookup(&3u32.to_ne_bytes()).unwrap(), None);
    assert!(matches!(map.update(&[0; 4], &[0; 8]), Err(Error::Defect(_))));
    for key in [&[0; 3][..], &[0; 5], &[]] {
        assert!(matches!(map.lookup(key), Err(Error::Defect(_))), "{key:?}");
        assert!(matches!(map.update(key, &[0; 4]), Err(Error::Defect(_))), "{key:?}");
        assert!(matches!(map.delete(key), Err(Error::Defect(_))), "{key:?}");
    }
    assert!(matches!(map.sum(0), Err(Error::Defect(_))), "counters are per CPU, of 8 bytes");
    assert!(matches!(array(1).sum(0), Err(Error::Defect(_))));
    let path = dir.join("absent");
    assert!(sys::obj_get(&path).unwrap().is_none());
    assert!(matches!(Map::open(&path), Err(Error::Pin { .. })));
    // A folder is no pin, and that is no absence.
    assert!(matches!(sys::obj_get(&dir), Err(Error::Kernel { .. })));
    let file = fs::File::open("/dev/null").unwrap();
    assert!(Map::new(file.into()).is_err());
}
