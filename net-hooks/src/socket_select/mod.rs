//! `socket-select`: which socket of an app's reuseport group gets a UDP
//! datagram or a TCP connection.
//!
//! The dispatcher is attached to the group with SO_ATTACH_REUSEPORT_EBPF, and
//! the kernel holds it for as long as one socket of the group is open, whoever
//! deployed it. There is no link object to pin: detaching needs a socket of
//! the group, which is taken from its holder (`sockets::any_member`).

mod pins;
pub(crate) mod run_time;
pub(crate) mod sockets;

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use syrup_hook::record::Record;
use syrup_hook::spec::PID;
use syrup_hook::{
    App, Counters, Dir, Error, Facts, Flag, Health, Hook, Input, Kind, Linked, LoadedProgram,
    Observed, POLICY_PROGRAM, PolicyObject, Probe, Proto, Registration, Result, Spec, Syntax, Who,
    pin, process,
};
use syrup_sdk::abi::{
    SYRUP_ENFORCE_FAILED, SYRUP_MAX_EXECUTORS, SYRUP_NO_POLICY, SYRUP_OUT_OF_RANGE,
};

use self::pins::{Pins, State};
use self::sockets::{GroupKey, Member};
use crate::POLICIES;

const DISPATCHER_OBJECT: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/socket_select_dispatcher.o"));
const DISPATCHER_PROGRAM: &str = "syrup_dispatch";

/// The hook `socket-select`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SocketSelect;

/// What it is.
pub static SPEC: Spec = Spec {
    name: "socket-select",
    input: Input::Packet,
    executor: "socket",
    executors: "a socket of the app's reuseport group",
    registers: Kind::Socket,
    takes: &[PORT, PROTO, PID],
    changeable: &[],
    settings: None,
    trusted_half: include_bytes!(concat!(env!("OUT_DIR"), "/socket_select_policy.o")),
    policies: POLICIES,
};

const PORT: Flag = Flag {
    name: "port",
    syntax: Syntax::Number { least: 1, most: 65535 },
    who: Who::Root,
    help: "The port whose packets the policy gets. Without --pid, root finds the processes that \
           serve it",
};

const PROTO: Flag = Flag {
    name: "proto",
    syntax: Syntax::Word(&["udp", "tcp"]),
    who: Who::Owner,
    help: "The port's protocol, udp or tcp [default: udp]",
};

/// What a deployment is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// The port whose inputs the policy gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its protocol; UDP when nothing else is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Proto>,
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
        if sockets::own_netns_cookie().is_err() {
            return missing("this kernel does not tell network namespaces apart (SO_NETNS_COOKIE)");
        }
        Probe::Available
    }

    fn verify(&self, policy: &Linked) -> Result<()> {
        PolicyObject::open(policy)?.load(POLICY_PROGRAM).map(drop)
    }

    fn attach(&self, dir: &mut Dir, policy: &Linked, target: &Facts) -> Result<()> {
        let target: Target = syrup_hook::target(target)?;
        let (pid, members) = sockets::of_target(&target)?;
        if members.len() > SYRUP_MAX_EXECUTORS as usize {
            return Err(Error::Usage(format!(
                "{} sockets: a deployment has at most {SYRUP_MAX_EXECUTORS}",
                members.len()
            )));
        }
        let mut state = State { pid, proto: target.proto, ..State::default() };
        if let Some(port) = target.port {
            state.port = Some(port);
            state.proto = Some(target.proto.unwrap_or(Proto::Udp));
            state.netns_cookie = sockets::own_netns_cookie()?;
        }
        if let Some(first) = members.first() {
            state.belongs_to(&first.key);
        }
        refuse_taken_port(dir.app(), &state)?;

        let path = dir.path().to_owned();
        let dispatcher = PolicyObject::open_bytes(DISPATCHER_OBJECT, "socket_select")?
            .load(DISPATCHER_PROGRAM)?;
        dispatcher.pin(&path.join(pins::DISPATCHER))?;
        for (name, map) in [pins::POLICIES, pins::COUNTERS] {
            dispatcher.pin_map(map, &path.join(name))?;
        }
        let mut object = PolicyObject::open(policy)?;
        dispatcher.with_map(pins::COUNTERS.1, |fd| object.share(pins::COUNTERS.1, fd))?;
        let program = object.load(POLICY_PROGRAM)?;
        program.pin(&path.join(pin::POLICY))?;
        for (name, map) in [pins::EXECUTORS, pins::REGISTERED, pins::NR_EXECUTORS, pins::VERDICTS] {
            program.pin_map(map, &path.join(name))?;
        }
        let pins = Pins::open(&path)?;
        program.with_fd(|fd| pins.set_policy(fd))?;
        let indexed: Vec<(u32, &Member)> = (0..).zip(&members).collect();
        pins.add(dir, &indexed, state)
    }

    fn live(&self, dir: &Dir) -> Result<u32> {
        Pins::open(dir.path())?.live()
    }

    fn prepare(&self, dir: &Dir, policy: &Linked) -> Result<(LoadedProgram, Value)> {
        let pins = Pins::open(dir.path())?;
        let mut object = PolicyObject::open(policy)?;
        for ((_, name), map) in [
            (pins::COUNTERS, &pins.counters),
            (pins::EXECUTORS, &pins.executors),
            (pins::REGISTERED, &pins.registered),
            (pins::NR_EXECUTORS, &pins.nr_executors),
            (pins::VERDICTS, &pins.verdicts),
        ] {
            object.share(name, map.as_fd())?;
        }
        Ok((object.load(POLICY_PROGRAM)?, dir.state()?))
    }

    fn set_policy(&self, dir: &Dir, program: BorrowedFd<'_>) -> Result<()> {
        Pins::open(dir.path())?.set_policy(program)
    }

    fn settle(&self, dir: &Dir) -> Result<()> {
        Pins::open(dir.path())?.set_registered(&dir.state()?)
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
        let cookies = pins.cookies()?;
        let mut state: State = dir.state()?;
        refuse_other_port(&state, &member.key)?;
        if cookies.iter().any(Option::is_some) {
            if let Some(key) = state.group
                && key != member.key
            {
                return Err(Error::Usage(format!(
                    "the socket of {} is in another reuseport group than the app's other sockets \
                     ({key}): bind all to the same address",
                    member.key
                )));
            }
        } else {
            // The first, or the first of a restarted app: it brings the group.
            state.belongs_to(&member.key);
            refuse_taken_port(dir.app(), &state)?;
        }
        let present = cookies.iter().position(|cookie| *cookie == Some(member.cookie));
        let free = || cookies.iter().position(Option::is_none);
        let Some(wanted) = index.map(|index| index as usize).or(present).or_else(free) else {
            return Err(Error::Usage(format!("all {SYRUP_MAX_EXECUTORS} indexes are in use")));
        };
        if !state.pid.is_some_and(process::is_running) {
            state.pid = sockets::holder(member.fd.as_fd());
        }
        let (wanted, present) = (wanted as u32, present.map(|present| present as u32));
        let moves_from = present.filter(|&present| present != wanted);
        if let Some(present) = moves_from {
            // A socket is in one place of one map only.
            pins.executors.delete(&present.to_ne_bytes())?;
        }
        let added = pins.add(dir, &[(wanted, &member)], state);
        if added.is_err()
            && let Some(present) = moves_from
        {
            pins.insert(present, &member)?;
        }
        added.map(|()| wanted)
    }

    fn release(&self, dir: &mut Dir, what: &Registration) -> Result<()> {
        let Registration::Socket(fd) = what else {
            return Err(Error::Usage(format!("{} takes sockets", SPEC.name)));
        };
        let cookie = sockopt::socket_cookie(fd)
            .map_err(|e| Error::Usage(format!("the descriptor is no socket: {e}")))?;
        let pins = Pins::open(dir.path())?;
        let cookies = pins.cookies()?;
        let index = cookies.iter().position(|there| *there == Some(cookie));
        let index = index.ok_or_else(|| Error::not_registered("the socket", &dir.app().name))?;
        if cookies.iter().flatten().count() == 1 {
            // Its group has none for a verdict to name.
            sockets::detach(fd.as_fd())?;
        }
        pins.release(dir, index as u32)
    }

    fn counters(&self, dir: &Dir) -> Result<Counters> {
        Pins::open(dir.path())?.counters()
    }

    fn observe(&self, dir: &Dir) -> Result<Observed> {
        let (pins, state): (_, State) = (Pins::open(dir.path())?, dir.state()?);
        let alive = pins.cookies()?.into_iter().flatten().count();
        let counters = pins.counters()?;
        let closed = state.indexes.len().saturating_sub(alive);
        let waits = || without_sockets(&dir.app().name, &state);
        let health = match health(pins.live()? != 0, closed, alive, &dir.recent(&counters)) {
            Health::Live(_) if alive == 0 => waits(),
            // What went wrong before they closed is not what is wrong now.
            Health::Degraded(before) if alive == 0 => match waits() {
                Health::Degraded(now) => Health::Degraded(format!("{now} ({before})")),
                _ => Health::Degraded(before),
            },
            health => health,
        };
        let mut target = Facts::new();
        let mut tell = |name: &str, value: Option<Value>| {
            target.extend(value.map(|value| (name.to_owned(), value)));
        };
        tell("port", state.port.map(Value::from));
        tell("proto", state.proto.filter(|_| state.port.is_some()).map(|p| p.to_string().into()));
        tell("address", state.address().map(|address| address.to_string().into()));
        tell("pid", state.pid.filter(|&pid| process::is_running(pid)).map(Value::from));
        Ok(Observed {
            inputs: match (state.proto, state.port) {
                (Some(proto), Some(port)) => format!("{proto}/{port}"),
                _ => "none".to_owned(),
            },
            executors: alive as u32,
            target,
            verdicts: pins.verdicts(&state)?,
            counters,
            health,
        })
    }

    /// Nobody can bring it back: its sockets are closed and the process they belonged to is
    /// known to have ended. Without a known process it stays, because that app may be about
    /// to start, or to register anew.
    fn is_dead(&self, dir: &Dir) -> bool {
        let ask = || -> Result<bool> {
            let (pins, state): (_, State) = (Pins::open(dir.path())?, dir.state()?);
            Ok(state.pid.is_some_and(|pid| !process::is_running(pid))
                && !state.indexes.is_empty()
                && pins.cookies()?.iter().all(Option::is_none))
        };
        // One that cannot be read is for `unload` to clear, not for us to guess.
        ask().unwrap_or(false)
    }
}

/// One app per port of a network namespace: two policies cannot both decide
/// about a port's inputs, whatever addresses their sockets are bound to.
fn refuse_taken_port(app: &App, state: &State) -> Result<()> {
    let lease = |state: &State| Some((state.netns_cookie, state.proto?, state.port?));
    let Some(wanted) = lease(state) else { return Ok(()) };
    for folder in pin::app_folders(&app.bpffs)? {
        let path = folder.join(SPEC.name);
        if folder == app.dir() || !path.exists() {
            continue;
        }
        // One that cannot be read holds no port: it is for `unload` to clear.
        let theirs = Record::read(&path).ok().flatten().and_then(|r| r.state::<State>(&path).ok());
        if theirs.as_ref().and_then(lease) == Some(wanted) {
            let (_, proto, port) = wanted;
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let other = App { name, uid: 0, bpffs: app.bpffs.clone() };
            let dead = Dir::open(&SocketSelect, &other).is_ok_and(|dir| SocketSelect.is_dead(&dir));
            let (name, gone) = (other.name, if dead { " (its process is gone)" } else { "" });
            return Err(Error::Conflict {
                what: format!("{proto} port {port} belongs to app '{name}'{gone}"),
                advice: format!("choose another port, or 'unload {} --app {name}'", SPEC.name),
            });
        }
    }
    Ok(())
}

/// A deployment that was loaded for a protocol or port takes no other.
fn refuse_other_port(state: &State, key: &GroupKey) -> Result<()> {
    let port = key.address.port();
    if state.proto.is_none_or(|proto| proto == key.proto) && state.port.is_none_or(|p| p == port) {
        return Ok(());
    }
    let proto = state.proto.map_or(String::new(), |proto| format!("{proto} "));
    let theirs = state.port.map_or("sockets".to_owned(), |port| format!("port {port}"));
    Err(Error::Usage(format!(
        "the socket is bound to {} port {port}, the deployment is for {proto}{theirs}",
        key.proto
    )))
}

fn health(has_policy: bool, closed: usize, alive: usize, counters: &Counters) -> Health {
    let mut reasons = Vec::new();
    if !has_policy {
        reasons.push("its policy is gone from the PROG_ARRAY".to_owned());
    }
    // With all closed no input can arrive: the app ended, or starts again.
    if alive > 0 && closed > 0 {
        reasons.push(format!("{closed} of {} sockets are closed", alive + closed));
    }
    for (counter, what) in [
        (SYRUP_OUT_OF_RANGE, "verdicts named no executor"),
        (SYRUP_ENFORCE_FAILED, "verdicts named a closed socket"),
        (SYRUP_NO_POLICY, "inputs found no policy"),
    ] {
        let count = counters.get(counter);
        if count > 0 {
            reasons.push(format!("{count} {what}"));
        }
    }
    if reasons.is_empty() {
        Health::LIVE
    } else {
        Health::Degraded(format!("{}: the kernel's hash decides these", reasons.join(", ")))
    }
}

/// The state of a deployment that has no socket. Its dispatcher is in no group, so
/// what arrives is not counted; who has the port tells whether anything may.
fn without_sockets(app: &str, state: &State) -> Health {
    let hook = SPEC.name;
    let load = match state.port {
        None => "load it again".to_owned(),
        Some(port) => format!("load it again with --port {port}"),
    };
    let load = format!("'syrupctl unload {hook} --app {app}' and {load}");
    let waits = if state.indexes.is_empty() {
        "it waits for its first socket"
    } else {
        "it waits for sockets: all it had are closed"
    };
    let register = "let the application register its sockets (syr_register_socket)";
    let (Some(proto), Some(port)) = (state.proto, state.port) else {
        return Health::waiting(format!("{waits}; {register}"));
    };
    let servers = match sockets::servers(port) {
        Ok(servers) => servers,
        Err(e) => {
            return Health::Degraded(format!("{waits}, and who has the port is unknown: {e}"));
        }
    };
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        servers.into_iter().partition(|server| server.netns_cookie == state.netns_cookie);
    let (ours, others): (Vec<_>, Vec<_>) =
        here.into_iter().partition(|server| server.proto == proto);
    if let Some(server) = ours.iter().find(|server| server.unfit.is_none()) {
        return Health::Degraded(format!(
            "the sockets of process {} at {proto} port {port} are not registered: {load} to adopt \
             them, or {register}",
            server.pid
        ));
    }
    if let Some((server, unfit)) = ours.iter().find_map(|server| Some((server, server.unfit?))) {
        return Health::Degraded(format!(
            "process {} cannot be adopted: {unfit}; have it set SO_REUSEPORT before it \
             binds, then {load}",
            server.pid
        ));
    }
    let instead = if let Some(server) = others.first() {
        let other = server.proto;
        format!("process {} has {other} port {port}: for that, {load} --proto {other}", server.pid)
    } else if let Some(server) = elsewhere.iter().find(|server| server.proto == proto) {
        format!(
            "process {pid} has {proto} port {port} in another network namespace: for that, {load} \
             --pid {pid}",
            pid = server.pid
        )
    } else {
        format!("{register}, or {load} while the server runs")
    };
    Health::waiting(format!("{waits}; {instead}"))
}
