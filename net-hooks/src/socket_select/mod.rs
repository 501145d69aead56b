//! `socket-select`: which socket of an app's reuseport groups gets a UDP
//! datagram or a TCP connection.
//!
//! A server has a group for each address, family and protocol, and in each a socket per
//! worker. An executor's index is a socket's place in its group: a server that opens its
//! sockets in the same order in each has one worker behind an index.
//!
//! A dispatcher is attached to each group with SO_ATTACH_REUSEPORT_EBPF, and
//! the kernel holds it for as long as one socket of the group is open, whoever
//! deployed it. There is no link object to pin: detaching needs a socket of
//! the group, which is taken from its holder (`adopt::one_of`).

mod adopt;
mod bound;
mod changes;
mod follow;
mod health;
mod pins;
pub(crate) mod run_time;
mod sockets;
mod state;

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Once;

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use syrup_hook::record::Record;
use syrup_hook::spec::PID;
use syrup_hook::{
    App, Changes, Counters, Dir, End, Error, Facts, Flag, Hook, Input, Kind, Linked, LoadedProgram,
    Observed, POLICY_PROGRAM, PolicyObject, Probe, Proto, Registration, Result, Spec, Syntax, Who,
    inline_schedule, netns, pin, process,
};
use syrup_sdk::abi::SYRUP_MAX_EXECUTORS;

use self::changes::GroupChanges;
use self::pins::{Pins, Place};
use self::sockets::{GroupKey, Member};
use self::state::{MAX_GROUPS, Retry, State};
use crate::POLICIES;

/// The hook `socket-select`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SocketSelect;

/// What it is.
pub static SPEC: Spec = Spec {
    name: "socket-select",
    input: Input::Packet,
    executor: "socket",
    executors: "a socket of the app's reuseport groups",
    registers: Kind::Socket,
    takes: &[PORT, PROTO, PID],
    changeable: &[],
    settings: None,
    trusted_half: include_bytes!(concat!(env!("OUT_DIR"), "/socket_select_policy.o")),
    policies: POLICIES,
};

const PORT: Flag = Flag {
    name: "port",
    syntax: Syntax::Numbers { least: 1, most: 65535 },
    who: Who::Adopter,
    help: "The ports whose packets the policy gets, at all addresses. Without --pid, root finds \
           the processes that serve them",
};

const PROTO: Flag = Flag {
    name: "proto",
    syntax: Syntax::Words(&["udp", "tcp"]),
    who: Who::Owner,
    help: "The protocols, udp and tcp [default: those that the ports have]",
};

/// What a deployment is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// The ports whose inputs the policy gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port: Vec<u16>,
    /// Their protocols; all when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proto: Vec<Proto>,
    /// Adopt the sockets of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
}

impl Hook for SocketSelect {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn probe(&self) -> Probe {
        let missing = |what: &str| Probe::Missing {
            what: what.to_owned(),
            advice: "use Linux 5.14 or newer with CONFIG_BPF_SYSCALL and CONFIG_INET".to_owned(),
        };
        // A negative answer means that we may not ask; then only `load` can tell.
        // SAFETY: plain calls that take no pointers that matter.
        let (program, map) = unsafe {
            (
                libbpf_sys::libbpf_probe_bpf_prog_type(
                    libbpf_sys::BPF_PROG_TYPE_SK_REUSEPORT,
                    std::ptr::null(),
                ),
                libbpf_sys::libbpf_probe_bpf_map_type(
                    libbpf_sys::BPF_MAP_TYPE_REUSEPORT_SOCKARRAY,
                    std::ptr::null(),
                ),
            )
        };
        if program == 0 {
            return missing("this kernel has no BPF programs of type sk_reuseport");
        }
        if map == 0 {
            return missing("this kernel has no BPF maps of type reuseport_sockarray");
        }
        if netns::own_cookie().is_err() {
            return missing("this kernel does not tell network namespaces apart (SO_NETNS_COOKIE)");
        }
        Probe::Available
    }

    fn verify(&self, policy: &Linked) -> Result<()> {
        open(policy)?.load(POLICY_PROGRAM).map(drop)
    }

    fn attach(&self, dir: &mut Dir, policy: &Linked, target: &Facts) -> Result<()> {
        let target: Target = syrup_hook::target(target)?;
        let found = adopt::of_target(&target, dir.app().uid)?;
        let mut state = State {
            pid: found.pid,
            protos: target.proto,
            ports: target.port,
            netns_cookie: found.netns_cookie,
            unfit: found.unfit,
            uids: match dir.app().uid {
                0 => found.uids,
                owner => BTreeSet::from([owner]),
            },
            ..State::default()
        };
        let mut indexed = Vec::new();
        for member in &found.members {
            state.belongs_to(&member.key);
            let group = state.group(&member.key)?;
            let index = &mut state.groups[group].end;
            if *index == SYRUP_MAX_EXECUTORS {
                return Err(too_many_sockets(&member.key));
            }
            indexed.push((group, *index, member));
            *index += 1;
        }
        state.follows = !state.ports.is_empty();
        refuse_taken_ports(dir.app(), &state)?;
        dir.set_state(&State { groups: Vec::new(), ..state.clone() })?;

        let path = dir.path().to_owned();
        pins::load_dispatcher(&path, 0)?;
        let mut object = open(policy)?;
        pins::share(&path, &mut object, &pins::OF_DISPATCHERS)?;
        let program = object.load(POLICY_PROGRAM)?;
        program.pin(&path.join(pin::POLICY))?;
        for (name, map) in pins::OF_POLICIES {
            program.pin_map(map, &path.join(name))?;
        }
        let pins = Pins::open(&path)?;
        program.with_fd(|fd| pins.set_policy(fd))?;
        pins.change(dir, &[], &indexed, state)
    }

    fn live(&self, dir: &Dir) -> Result<u32> {
        Pins::live(dir.path())
    }

    fn prepare(&self, dir: &Dir, policy: &Linked) -> Result<(LoadedProgram, Value)> {
        let mut object = open(policy)?;
        pins::share(dir.path(), &mut object, &pins::OF_DISPATCHERS)?;
        pins::share(dir.path(), &mut object, &pins::OF_POLICIES)?;
        Ok((object.load(POLICY_PROGRAM)?, dir.state()?))
    }

    fn set_policy(&self, dir: &Dir, program: BorrowedFd<'_>) -> Result<()> {
        Pins::open(dir.path())?.set_policy(program)
    }

    fn settle(&self, dir: &mut Dir) -> Result<()> {
        let (pins, mut state): (_, State) = (Pins::open(dir.path())?, dir.state()?);
        if state.changing {
            state.count(&pins.cookies(&state)?);
        }
        pins.set_numbers(&state)?;
        if state.groups.iter().any(|group| group.count > 0 && !group.attached) {
            follow::attach(dir, &pins).unwrap_or_else(|e| log::warn!("{e}"));
        }
        let mut state: State = dir.state()?;
        if !state.left_out.is_empty() || !state.unreachable.is_empty() {
            // There may be room now: whoever follows looks at them once more.
            state.left_out.clear();
            state.unreachable.values_mut().for_each(Retry::hurry);
            dir.set_state(&state).unwrap_or_else(|e| log::warn!("{e}"));
        }
        Ok(())
    }

    fn detach(&self, _app: &App, path: &Path) -> Result<()> {
        pins::take_down(path)
    }

    fn add(&self, dir: &mut Dir, what: Registration, index: Option<u32>) -> Result<u32> {
        let Registration::Socket(fd) = what else {
            return Err(Error::Usage(format!("{} takes sockets", SPEC.name)));
        };
        if index.is_some_and(|index| index >= SYRUP_MAX_EXECUTORS) {
            return Err(Error::Usage(format!("an index is below {SYRUP_MAX_EXECUTORS}")));
        }
        let pins = Pins::open(dir.path())?;
        let member = sockets::inspect(fd)
            .map_err(|e| Error::kernel("inspect the socket", e))?
            .map_err(|unfit| Error::Usage(format!("the socket cannot be an executor: {unfit}")))?;
        let mut state: State = dir.state()?;
        if !state.covers(&member.key) {
            return Err(not_its(&state, &member.key));
        }
        // An app that numbers its sockets itself goes on doing so.
        state.follows = false;
        state.belongs_to(&member.key);
        state.unfit.remove(&member.cookie);
        refuse_taken_ports(dir.app(), &state)?;
        let group = state.group(&member.key)?;
        let cookies = pins.cookies(&state)?.swap_remove(group);
        let present = cookies.iter().position(|cookie| *cookie == Some(member.cookie));
        let free = cookies.iter().position(Option::is_none).unwrap_or(cookies.len());
        let wanted = index.unwrap_or(present.unwrap_or(free) as u32);
        if wanted >= SYRUP_MAX_EXECUTORS {
            return Err(Error::Usage(format!("all {SYRUP_MAX_EXECUTORS} indexes are in use")));
        }
        if !state.pid.is_some_and(process::is_running) {
            state.pid = adopt::holder(member.fd.as_fd());
        }
        // A socket is in one place of one map only.
        let moves_from = present.map(|present| present as u32).filter(|&from| from != wanted);
        let left: Vec<Place<'_>> = moves_from.iter().map(|&from| (group, from, &member)).collect();
        pins.change(dir, &left, &[(group, wanted, &member)], state)?;
        if moves_from.is_some() {
            pins.forgive(dir);
        }
        Ok(wanted)
    }

    fn changes(&self, _bpffs: &Path) -> Result<Box<dyn Changes>> {
        Ok(Box::new(GroupChanges::new()?))
    }

    fn behind<'a>(&self, dirs: &'a [Dir]) -> Vec<&'a Dir> {
        follow::behind(dirs)
    }

    fn follow(&self, dir: &mut Dir) -> Result<bool> {
        follow::follow(dir)
    }

    fn release(&self, dir: &mut Dir, what: &Registration) -> Result<()> {
        let Registration::Socket(fd) = what else {
            return Err(Error::Usage(format!("{} takes sockets", SPEC.name)));
        };
        let cookie = sockopt::socket_cookie(fd)
            .map_err(|e| Error::Usage(format!("the descriptor is no socket: {e}")))?;
        let pins = Pins::open(dir.path())?;
        let mut state: State = dir.state()?;
        let cookies = pins.cookies(&state)?;
        let places = cookies.iter().enumerate().find_map(|(group, cookies)| {
            let index = cookies.iter().position(|there| *there == Some(cookie))?;
            Some((group, index as u32))
        });
        let place = places.ok_or_else(|| Error::not_registered("the socket", &dir.app().name))?;
        let key = state.groups[place.0].key;
        let fd = fd.try_clone().map_err(|e| Error::kernel("duplicate the socket", e))?;
        // An app that says itself what is its goes on doing so.
        state.follows = false;
        // It stays in its group, and is not to be missed there.
        state.unfit.insert(cookie);
        follow::forget_closed(&mut state)?;
        pins.release(dir, (place.0, place.1, &Member { fd, key, cookie }), state)?;
        pins.forgive(dir);
        Ok(())
    }

    fn counters(&self, dir: &Dir) -> Result<Counters> {
        Pins::open(dir.path())?.counters()
    }

    fn observe(&self, dir: &Dir) -> Result<Observed> {
        let (pins, state): (_, State) = (Pins::open(dir.path())?, dir.state()?);
        let cookies = pins.cookies(&state)?;
        let alive = |cookies: &Vec<Option<u64>>| cookies.iter().flatten().count();
        let counters = pins.counters()?;
        let mut target = Facts::new();
        let mut tell = |name: &str, values: Vec<Value>| {
            if !values.is_empty() {
                target.insert(name.to_owned(), values.into());
            }
        };
        tell("port", state.ports.iter().map(|&port| port.into()).collect());
        let protos: BTreeSet<Proto> = state
            .inputs()
            .into_iter()
            .map(|(_, proto)| proto)
            .chain(state.protos.clone())
            .collect();
        tell("proto", protos.iter().map(|proto| proto.to_string().into()).collect());
        let addresses = state.groups.iter().filter(|group| group.count > 0);
        tell("address", addresses.map(|group| group.key.address.to_string().into()).collect());
        if let Some(pid) = state.pid.filter(|&pid| process::is_running(pid)) {
            target.insert("pid".to_owned(), pid.into());
        }
        Ok(Observed {
            inputs: health::inputs(&state),
            executors: cookies.iter().map(alive).max().unwrap_or(0) as u32,
            target,
            verdicts: pins.verdicts(&state)?,
            counters,
            health: health::health(dir, &state, &cookies, Pins::live(dir.path())? != 0, &counters)?,
        })
    }

    /// Its sockets are closed and the process they belonged to is known to have ended. A
    /// server whose ports are followed may start again; an app that registers must do so anew.
    /// Without a known process nothing has ended: that app may be about to start.
    fn end(&self, dir: &Dir) -> End {
        let ask = || -> Result<End> {
            let (pins, state): (_, State) = (Pins::open(dir.path())?, dir.state()?);
            let mut cookies = pins.cookies(&state)?.into_iter().flatten();
            let gone = state.pid.is_some_and(|pid| !process::is_running(pid))
                && !state.groups.is_empty()
                && cookies.all(|cookie| cookie.is_none());
            Ok(match (gone, state.follows) {
                (false, _) => End::Not,
                (true, true) => End::MayReturn,
                (true, false) => End::ForGood,
            })
        };
        // One that cannot be read is for `unload` to clear, not for us to guess.
        ask().unwrap_or(End::Not)
    }
}

/// Opens a policy, whose `schedule()` is to run at every packet.
fn open(policy: &Linked) -> Result<PolicyObject> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (program, attach) = (
            libbpf_sys::BPF_PROG_TYPE_SK_REUSEPORT,
            libbpf_sys::BPF_SK_REUSEPORT_SELECT_OR_MIGRATE,
        );
        inline_schedule(c"sk_reuseport/migrate", program, attach);
    });
    PolicyObject::open(policy)
}

/// One app per port of a network namespace: two policies cannot both decide
/// about a port's inputs, whatever addresses their sockets are bound to.
fn refuse_taken_ports(app: &App, state: &State) -> Result<()> {
    let wanted = state.leases();
    if wanted.is_empty() {
        return Ok(());
    }
    for folder in pin::app_folders(&app.bpffs)? {
        let path = folder.join(SPEC.name);
        if folder == app.dir() || !path.exists() {
            continue;
        }
        // One that cannot be read holds no port: it is for `unload` to clear.
        let theirs = Record::read(&path).ok().flatten().and_then(|r| r.state::<State>(&path).ok());
        let Some(theirs) = theirs else { continue };
        if let Some((_, port, proto)) = theirs.leases().intersection(&wanted).next() {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let other = App { name, uid: 0, bpffs: app.bpffs.clone() };
            let gone = Dir::open(&SocketSelect, &other)
                .is_ok_and(|dir| SocketSelect.end(&dir) != End::Not);
            let (name, gone) = (other.name, if gone { " (its process is gone)" } else { "" });
            return Err(Error::Conflict {
                what: format!("{proto} port {port} belongs to app '{name}'{gone}"),
                advice: format!(
                    "choose another port or protocol, or 'unload {} --app {name}'",
                    SPEC.name
                ),
            });
        }
    }
    Ok(())
}

/// A deployment that was loaded for a protocol or port takes no other.
fn not_its(state: &State, key: &GroupKey) -> Error {
    let elsewhere = if state.covers(&GroupKey { netns_cookie: state.netns_cookie, ..*key }) {
        " of another network namespace"
    } else {
        ""
    };
    let its = match state.ports.as_slice() {
        [] => state.protos.iter().map(Proto::to_string).collect::<Vec<_>>().join(",") + " sockets",
        _ => health::inputs(state),
    };
    Error::Usage(format!(
        "the socket is bound to {} port {}{elsewhere}, the deployment is for {its}",
        key.proto,
        key.address.port()
    ))
}

fn too_many_sockets(key: &GroupKey) -> Error {
    Error::Conflict {
        what: format!("more than {SYRUP_MAX_EXECUTORS} sockets of {key}"),
        advice: "a deployment has at most so many of one group: start the server with fewer \
                 workers"
            .to_owned(),
    }
}

fn too_many_groups() -> Error {
    Error::Conflict {
        what: format!("more than {MAX_GROUPS} reuseport groups"),
        advice: "a deployment has at most so many: name fewer ports or protocols".to_owned(),
    }
}
