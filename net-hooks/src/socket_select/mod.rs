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

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use syrup_hook::pin::{self, Staged};
use syrup_hook::sys;
use syrup_hook::{
    App, Builtin, Counters, Deployment, Error, Health, Hook, HookId, Input, Kind, Linked,
    LoadedProgram, POLICY_PROGRAM, PolicyObject, Probe, Proto, Registration, Result, Target,
    process,
};
use syrup_sdk::abi::{
    SYRUP_ABI_VERSION, SYRUP_ENFORCE_FAILED, SYRUP_MAX_EXECUTORS, SYRUP_NO_POLICY,
    SYRUP_OUT_OF_RANGE, syrup_record,
};

use self::pins::Pins;
use self::sockets::{GroupKey, Member};
use crate::POLICIES;

const DISPATCHER_OBJECT: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/socket_select_dispatcher.o"));
const TRUSTED_HALF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/socket_select_policy.o"));
const DISPATCHER_PROGRAM: &str = "syrup_dispatch";

/// The hook `socket-select`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SocketSelect;

impl Hook for SocketSelect {
    fn id(&self) -> HookId {
        HookId::SocketSelect
    }

    fn input(&self) -> Input {
        Input::Packet
    }

    fn executor(&self) -> &'static str {
        "a socket of the app's reuseport group"
    }

    fn registers(&self) -> Kind {
        Kind::Socket
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

    fn trusted_half(&self) -> &'static [u8] {
        TRUSTED_HALF
    }

    fn policies(&self) -> &'static [Builtin] {
        POLICIES
    }

    fn verify(&self, policy: &Linked) -> Result<()> {
        PolicyObject::open(policy)?.load(POLICY_PROGRAM).map(drop)
    }

    fn deploy(&self, app: &App, policy: &Linked, target: &Target) -> Result<()> {
        let dir = app.hook_dir(self.id());
        if dir.exists() {
            if !is_dead(&dir) {
                return Err(Error::Conflict {
                    what: format!("app '{}' already has a policy at {}", app.name, self.id()),
                    advice: "use 'replace', or 'unload' it first".to_owned(),
                });
            }
            self.remove(app)?;
        }
        pins::take_down(&pin::aside(&dir))?;

        let (pid, members) = sockets::of_target(target)?;
        if members.len() > SYRUP_MAX_EXECUTORS as usize {
            return Err(Error::Usage(format!(
                "{} sockets: a deployment has at most {SYRUP_MAX_EXECUTORS}",
                members.len()
            )));
        }
        let mut record =
            new_record(app, policy, target, members.first().map(|member| &member.key))?;
        record.pid = pid.unwrap_or(0);
        refuse_taken_port(app, &record)?;

        let staged = Staged::new(&dir)?;
        let dispatcher = PolicyObject::open_bytes(DISPATCHER_OBJECT, "socket_select")?
            .load(DISPATCHER_PROGRAM)?;
        dispatcher.pin(&staged.path().join(pins::DISPATCHER))?;
        for (name, map) in [pins::POLICIES, pins::COUNTERS] {
            dispatcher.pin_map(map, &staged.path().join(name))?;
        }
        let mut object = PolicyObject::open(policy)?;
        dispatcher.with_map(pins::COUNTERS.1, |fd| object.share(pins::COUNTERS.1, fd))?;
        let program = object.load(POLICY_PROGRAM)?;
        program.pin(&staged.path().join(pin::POLICY))?;
        for (name, map) in [pins::EXECUTORS, pins::GROUP, pins::NR_EXECUTORS, pins::VERDICTS] {
            program.pin_map(map, &staged.path().join(name))?;
        }
        let pins = Pins::open(staged.path())?;
        program.with_fd(|fd| pins.set_policy(fd))?;
        let indexed: Vec<(u32, &Member)> = (0..).zip(&members).collect();
        pins.add(&indexed, record)?;
        if let Err(e) = staged.commit() {
            if let Some(member) = members.first() {
                sockets::detach(member.fd.as_fd())?;
            }
            return Err(e);
        }
        Ok(())
    }

    fn replace(&self, app: &App, policy: &Linked) -> Result<()> {
        let pins = self.pins(app)?;
        pins.settle()?;
        let program = load_sharing(policy, &pins)?;
        let mut record = pins.record()?;
        record.generation += 1;
        pin::describe_policy(&mut record, policy);
        // For whoever reads it after a death before the count below.
        record.counted_before = pins.counters()?.0;
        program.with_fd(|fd| pins.replace(fd, &record))?;
        // Only then: what the old policy still decided is not held against the new.
        sys::wait_for_running_programs();
        let counted = pins.counters().and_then(|counters| {
            record.counted_before = counters.0;
            pin::write_record(&app.hook_dir(self.id()), &record)
        });
        // The new policy decides already.
        if let Err(e) = counted {
            log::warn!("{e}");
        }
        Ok(())
    }

    fn remove(&self, app: &App) -> Result<()> {
        let dir = app.hook_dir(self.id());
        let aside = pin::aside(&dir);
        pins::take_down(&aside)?;
        pin::put_aside(&dir)?;
        pins::take_down(&aside)
    }

    fn register(&self, app: &App, what: Registration, index: Option<u32>) -> Result<u32> {
        let Registration::Socket(fd) = what else {
            return Err(Error::Usage(format!("an executor of {} is a socket", self.id())));
        };
        if index.is_some_and(|index| index >= SYRUP_MAX_EXECUTORS) {
            return Err(Error::Usage(format!("an index is below {SYRUP_MAX_EXECUTORS}")));
        }
        let pins = self.pins(app)?;
        pins.settle()?;
        let member = sockets::inspect(fd)
            .map_err(|e| Error::kernel("inspect the socket", e))?
            .map_err(|unfit| Error::Usage(format!("the socket cannot be an executor: {unfit}")))?;
        let cookies = pins.cookies()?;
        let mut record = pins.record()?;
        refuse_other_port(&record, &member.key)?;
        if cookies.iter().any(Option::is_some) {
            if let Some(key) = pins.group_key()?
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
            let mut group = pins.group()?;
            member.key.describe(&mut record, &mut group);
            refuse_taken_port(app, &record)?;
        }
        let present = cookies.iter().position(|cookie| *cookie == Some(member.cookie));
        let free = || cookies.iter().position(Option::is_none);
        let Some(wanted) = index.map(|index| index as usize).or(present).or_else(free) else {
            return Err(Error::Usage(format!("all {SYRUP_MAX_EXECUTORS} indexes are in use")));
        };
        if record.pid <= 0 || !process::is_running(record.pid) {
            record.pid = sockets::holder(member.fd.as_fd()).unwrap_or(0);
        }
        let wanted = wanted as u32;
        match present.map(|present| present as u32) {
            Some(present) if present == wanted => {}
            Some(present) => {
                pins.executors.delete(&present.to_ne_bytes())?;
                pins.add(&[(wanted, &member)], record)?;
            }
            None => pins.add(&[(wanted, &member)], record)?,
        }
        Ok(wanted)
    }

    fn program(&self, app: &App) -> Result<OwnedFd> {
        self.pins(app)?.program()
    }

    fn read(&self, app: &App) -> Result<Option<Deployment>> {
        let dir = app.hook_dir(self.id());
        if !dir.exists() {
            return Ok(None);
        }
        let pins = Pins::open(&dir)?;
        let record = pins.record()?;
        let program = pins.live_program()?;
        let registered = pins.group()?.nr_executors;
        let alive = pins.cookies()?.into_iter().flatten().count() as u32;
        let counters = pins.counters()?;
        let recent = counters.since(&Counters(record.counted_before));
        let health = match health(program, registered, alive, &recent) {
            Health::Live if alive == 0 => without_sockets(&app.name, &record, registered),
            // What went wrong before they closed is not what is wrong now.
            Health::Degraded(before) if alive == 0 => {
                match without_sockets(&app.name, &record, registered) {
                    Health::Degraded(now) => Health::Degraded(format!("{now} ({before})")),
                    _ => Health::Degraded(before),
                }
            }
            health => health,
        };
        Ok(Some(Deployment {
            app: app.name.clone(),
            uid: record.uid,
            hook: self.id(),
            policy: pin::field_name(&record.policy),
            sha256: record.policy_sha256,
            program_id: program.unwrap_or(0),
            generation: record.generation,
            deployed_at: UNIX_EPOCH + Duration::from_nanos(record.deployed_at_ns),
            port: Proto::from_number(record.proto)
                .filter(|_| record.port != 0)
                .map(|proto| (proto, record.port)),
            pid: Some(record.pid).filter(|&pid| pid > 0 && process::is_running(pid)),
            nr_executors: alive,
            nr_threads: None,
            cpus: Vec::new(),
            verdicts: pins.verdicts(registered)?,
            counters,
            health,
        }))
    }

    fn collect_garbage(&self, bpffs: &Path) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for app_dir in pin::app_folders(bpffs)? {
            let dir = app_dir.join(self.id().name());
            let aside = pin::aside(&dir);
            if aside.exists() {
                pins::take_down(&aside)?;
                removed.push(aside.clone());
            }
            if !dir.exists() {
                continue;
            }
            if is_dead(&dir) {
                pins::take_down(&pin::put_aside(&dir)?)?;
                removed.push(dir);
            } else if let Ok(pins) = Pins::open(&dir) {
                pins.settle()?;
            }
        }
        Ok(removed)
    }
}

impl SocketSelect {
    fn pins(&self, app: &App) -> Result<Pins> {
        let dir = app.hook_dir(self.id());
        if !dir.exists() {
            return Err(Error::not_deployed(&app.name, self.id()));
        }
        Pins::open(&dir)
    }
}

/// Loads a policy that uses the maps of a live deployment.
fn load_sharing(policy: &Linked, pins: &Pins) -> Result<LoadedProgram> {
    let mut object = PolicyObject::open(policy)?;
    for ((_, name), map) in [
        (pins::COUNTERS, &pins.counters),
        (pins::EXECUTORS, &pins.executors),
        (pins::GROUP, &pins.group),
        (pins::NR_EXECUTORS, &pins.nr_executors),
        (pins::VERDICTS, &pins.verdicts),
    ] {
        object.share(name, map.as_fd())?;
    }
    object.load(POLICY_PROGRAM)
}

fn new_record(
    app: &App,
    policy: &Linked,
    target: &Target,
    group: Option<&GroupKey>,
) -> Result<syrup_record> {
    let mut record = syrup_record {
        abi_version: SYRUP_ABI_VERSION,
        hook: HookId::SocketSelect.number(),
        uid: app.uid,
        app: pin::name_field(&app.name),
        ..Default::default()
    };
    pin::describe_policy(&mut record, policy);
    if let Some(key) = group {
        key.describe(&mut record, &mut Default::default());
    } else if let Some(port) = target.port {
        record.port = port;
        record.proto = target.proto.unwrap_or(Proto::Udp).number();
        record.netns_cookie = sockets::own_netns_cookie()?;
    } else if let Some(proto) = target.proto {
        record.proto = proto.number();
    }
    Ok(record)
}

/// One app per port of a network namespace: two policies cannot both decide
/// about a port's inputs, whatever addresses their sockets are bound to.
fn refuse_taken_port(app: &App, record: &syrup_record) -> Result<()> {
    if record.port == 0 {
        return Ok(());
    }
    for other in pin::app_folders(&app.bpffs)? {
        let dir = other.join(HookId::SocketSelect.name());
        if other == app.dir() || !dir.exists() {
            continue;
        }
        // One that cannot be read holds no port: it is for `unload` to clear.
        let Ok(theirs) = Pins::open(&dir).and_then(|pins| pins.record()) else { continue };
        if (theirs.netns_cookie, theirs.proto, theirs.port)
            == (record.netns_cookie, record.proto, record.port)
        {
            let name = pin::field_name(&theirs.app);
            let proto = Proto::from_number(record.proto).map_or(String::new(), |p| p.to_string());
            let gone = if is_dead(&dir) { " (its process is gone)" } else { "" };
            return Err(Error::Conflict {
                what: format!("{proto} port {} belongs to app '{name}'{gone}", record.port),
                advice: format!(
                    "choose another port, or 'unload {} --app {name}'",
                    HookId::SocketSelect
                ),
            });
        }
    }
    Ok(())
}

/// A deployment that was loaded for a protocol or port takes no other.
fn refuse_other_port(record: &syrup_record, key: &GroupKey) -> Result<()> {
    let port = key.address.port();
    let proto_differs = record.proto != 0 && record.proto != key.proto.number();
    if proto_differs || (record.port != 0 && record.port != port) {
        let theirs = Proto::from_number(record.proto).map_or(String::new(), |p| format!("{p} "));
        return Err(Error::Usage(format!(
            "the socket is bound to {} port {port}, the deployment is for {theirs}port {}",
            key.proto, record.port
        )));
    }
    Ok(())
}

/// Nobody can bring this deployment back: its sockets are closed and the
/// process they belonged to is known to have ended. Without a known process it
/// stays, because that app may be about to start, or to register anew.
fn is_dead(dir: &Path) -> bool {
    let ask = || -> Result<bool> {
        let pins = Pins::open(dir)?;
        let record = pins.record()?;
        Ok(record.pid > 0
            && !process::is_running(record.pid)
            && pins.group()?.nr_executors > 0
            && pins.cookies()?.iter().all(Option::is_none))
    };
    // One that cannot be read is for `unload` to clear, not for us to guess.
    ask().unwrap_or(false)
}

fn health(program: Option<u32>, registered: u32, alive: u32, counters: &Counters) -> Health {
    let mut reasons = Vec::new();
    if program.is_none() {
        reasons.push("its policy is gone from the PROG_ARRAY".to_owned());
    }
    // With all closed no input can arrive: the app ended, or starts again.
    if alive > 0 && alive < registered {
        reasons.push(format!("{} of {registered} sockets are closed", registered - alive));
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
        Health::Live
    } else {
        Health::Degraded(format!("{}: the kernel's hash decides these", reasons.join(", ")))
    }
}

/// The state of a deployment that has no socket. Its dispatcher is in no group, so
/// what arrives is not counted; who has the port tells whether anything may.
fn without_sockets(app: &str, record: &syrup_record, registered: u32) -> Health {
    let load = match record.port {
        0 => "load it again".to_owned(),
        port => format!("load it again with --port {port}"),
    };
    let load = format!("'syrupctl unload {} --app {app}' and {load}", HookId::SocketSelect);
    let waits = if registered == 0 {
        "it waits for its first socket"
    } else {
        "it waits for sockets: all it had are closed"
    };
    let register = "let the application register its sockets (syr_register_socket)";
    let Some(proto) = Proto::from_number(record.proto).filter(|_| record.port != 0) else {
        return Health::Waiting(format!("{waits}; {register}"));
    };
    let port = record.port;
    let servers = match sockets::servers(port) {
        Ok(servers) => servers,
        Err(e) => {
            return Health::Degraded(format!("{waits}, and who has the port is unknown: {e}"));
        }
    };
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        servers.into_iter().partition(|server| server.netns_cookie == record.netns_cookie);
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
    Health::Waiting(format!("{waits}; {instead}"))
}
