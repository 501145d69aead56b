//! A hook that ships with nobody, of three files, through the engine that serves all hooks:
//! what `docs/add-a-hook.md` says suffices does.
#![allow(clippy::unwrap_used)]

mod hook;

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use hook::{CHANGES, DISPATCHER, Skeleton};
use serde_json::json;
use syrup_engine::{AsCaller, Caller, Engine};
use syrup_hook::{Hook, sys};
use syrup_protocol::{
    Arbiter as _, Code, Facts, LoadRequest, PolicySource, Registration, ReplaceRequest,
};
use syrup_tests::{Ctl, Need, require};

static HOOKS: &[&dyn Hook] = &[&Skeleton];

const HOOK: &str = "skeleton";

struct Lab {
    ctl: Ctl,
}

impl Lab {
    fn bpffs(&self) -> PathBuf {
        self.ctl.bpffs()
    }

    /// The engine as another process would have it.
    fn root(&self) -> AsCaller {
        Engine::with_hooks(self.bpffs(), HOOKS).unwrap().as_caller(Caller::ROOT)
    }
}

/// A policy that counts its calls and always says the same.
fn says(verdict: &str) -> PolicySource {
    let text = format!(
        "#include <syrup/packet.h>\nSYRUP_MAP(seen, 4);\n\
         __s32 schedule(void *s, void *e)\n{{\n\
         \t__u64 *count = syrup_map_lookup(&seen, 0);\n\n\
         \tif (count)\n\t\t++*count;\n\treturn {verdict};\n}}\n"
    );
    PolicySource::Source { file_name: "p.c".to_owned(), text }
}

fn load(policy: PolicySource, target: Facts) -> LoadRequest {
    let (hook, app) = (HOOK.to_owned(), "mine".to_owned());
    LoadRequest { hook, app, policy, params: Vec::new(), target, or_replace: false, owner: None }
}

fn replace(policy: PolicySource) -> ReplaceRequest {
    let LoadRequest { hook, app, policy, params, .. } = load(policy, Facts::new());
    ReplaceRequest { hook, app, policy, params }
}

/// Runs one packet through the pinned dispatcher; returns what becomes of it.
fn run(folder: &Path) -> u32 {
    send(&sys::obj_get_required(&folder.join(DISPATCHER)).unwrap())
}

/// Runs one packet through a dispatcher.
fn send(program: &OwnedFd) -> u32 {
    let packet = [0u8; 64];
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        ..Default::default()
    };
    // SAFETY: the packet lives during the call, which is told its length.
    let err = unsafe {
        libbpf_sys::bpf_prog_test_run_opts(program.as_fd().as_raw_fd(), &raw mut options)
    };
    assert_eq!(err, 0, "{}", std::io::Error::last_os_error());
    options.retval
}

#[test]
fn whoever_watches_looks_twice_after_each_change_and_then_no_more() {
    if !require(&[Need::Root]) {
        return;
    }
    let lab = Lab { ctl: Ctl::new() };
    lab.root().load(&load(says("0"), Facts::new())).unwrap();
    let mut watch = Engine::with_hooks(lab.bpffs(), HOOKS).unwrap().watch();
    let mut answers = || [(); 4].map(|()| watch.has_news());
    assert_eq!(answers(), [true, true, false, false], "it has seen nothing before");
    CHANGES.fetch_add(1, SeqCst);
    assert_eq!(answers(), [true, true, false, false]);
    lab.root().list().unwrap();
    assert_eq!(answers(), [false; 4], "somebody has only read");
    lab.root().replace(&replace(says("1"))).unwrap();
    assert_eq!(answers(), [true, true, false, false]);
    lab.root().unload(HOOK, "mine").unwrap();
    assert_eq!(answers(), [true, true, false, false], "the folder is gone");
}

#[test]
fn a_hook_of_three_files_is_served_in_full() {
    if !require(&[Need::Root]) {
        return;
    }
    const DROP: u32 = 1;
    const PASS: u32 = 2;
    let lab = Lab { ctl: Ctl::new() };
    let folder = lab.bpffs().join("mine").join(HOOK);

    let hooks = lab.root().hooks().unwrap();
    let told: Vec<_> = hooks.iter().map(|hook| (hook.name.as_str(), &hook.takes[..])).collect();
    assert_eq!(told, [(HOOK, &["colour".to_owned()][..])]);
    assert!(lab.root().policies().unwrap().is_empty());

    let colour = |word: &str| Facts::from([("colour".to_owned(), json!([word]))]);
    let error = lab.root().load(&load(says("0"), colour("blue"))).unwrap_err();
    assert_eq!(error.message, "--colour: [\"blue\"] is no list of some of red, green");
    let told = lab.root().load(&load(says("0"), colour("red"))).unwrap();
    assert_eq!((told.hook.as_str(), told.executor.as_str()), (HOOK, "number"));
    assert_eq!((told.health.state(), json!(told.target)), ("live", json!({"colour": ["red"]})));
    let again = lab.root().load(&load(says("0"), Facts::new())).unwrap_err();
    assert_eq!(again.code, Code::Conflict);

    // Applied to what is there it replaces, and only that.
    let apply = |word: &str| LoadRequest { or_replace: true, ..load(says("0"), colour(word)) };
    let other = lab.root().load(&apply("green")).unwrap_err();
    assert_eq!(other.code, Code::Conflict);
    assert!(other.message.contains("--colour [\"green\"]"), "{other}");
    assert_eq!(lab.root().load(&apply("red")).unwrap().generation, 1);

    assert_eq!(run(&folder), PASS);
    assert_eq!(lab.root().map_get("mine", "seen", 0).unwrap().value, Some(1));
    let read = || lab.root().list().unwrap().remove(0);
    assert_eq!((read().counters["inputs"], &read().verdicts[..]), (1, &[1][..]));

    // Registered through any engine, known to all.
    let socket = || Registration::Socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into());
    for index in 0..3 {
        assert_eq!(lab.root().register("mine", None, socket(), None).unwrap(), index);
    }
    let refused = lab.root().register("mine", Some(HOOK), Registration::Thread { tid: 1 }, None);
    assert_eq!(refused.unwrap_err().message, "skeleton takes sockets, not threads");
    assert_eq!(read().executors, 3);

    let told = lab.root().replace(&replace(says("syrup_num_executors() - 1"))).unwrap();
    assert_eq!((told.generation, json!(told.target)), (2, json!({"colour": ["red"]})));
    assert_eq!((run(&folder), &read().verdicts[..]), (PASS, &[1, 0, 1][..]));
    lab.root().replace(&replace(says("SYRUP_DROP"))).unwrap();
    assert_eq!((run(&folder), read().counters["dropped"]), (DROP, 1));
    let bad = "*(volatile __u8 *)(s + 100)";
    let refused = lab.root().replace(&replace(says(bad))).unwrap_err();
    assert_eq!(refused.code, Code::VerifierRejected, "{refused}");
    assert_eq!((run(&folder), read().generation), (DROP, 3), "the old one goes on");

    // A load that died before its folder was in place decides; the next start ends it.
    let dead = LoadRequest { app: "dead".to_owned(), ..load(says("SYRUP_DROP"), Facts::new()) };
    lab.root().load(&dead).unwrap();
    let aside = lab.bpffs().join("dead/_new_skeleton");
    fs::rename(lab.bpffs().join("dead").join(HOOK), &aside).unwrap();
    // Who holds the PROG_ARRAY keeps what is in it.
    let [dispatcher, _policies] =
        [DISPATCHER, "policies"].map(|pin| sys::obj_get_required(&aside.join(pin)).unwrap());
    assert_eq!(send(&dispatcher), DROP);
    let found = Engine::with_hooks(lab.bpffs(), HOOKS).unwrap().recover().unwrap();
    assert_eq!((found.adopted.len(), found.removed.len()), (1, 2));
    assert_eq!((send(&dispatcher), run(&folder)), (PASS, DROP));

    let program = sys::obj_get_required(&folder.join(DISPATCHER)).unwrap();
    lab.root().unload(HOOK, "mine").unwrap();
    assert!(!lab.bpffs().exists());
    drop(program);
}
