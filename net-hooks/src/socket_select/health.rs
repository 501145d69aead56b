//! What is right and wrong with a deployment, in words.

use std::collections::BTreeSet;

use syrup_hook::{Counters, Dir, Health, Proto, Result, netns};
use syrup_sdk::abi::{
    SYRUP_ENFORCE_FAILED, SYRUP_MAX_EXECUTORS, SYRUP_NO_POLICY, SYRUP_OUT_OF_RANGE,
};

use super::SPEC;
use super::adopt::{self, Server};
use super::follow::Outside;
use super::pins::Cookies;
use super::state::{MAX_GROUPS, State};

/// "udp/53, tcp/53"
pub(crate) fn inputs(state: &State) -> String {
    let mut inputs: BTreeSet<(u16, Proto)> = state.inputs();
    if state.groups.is_empty() && state.protos.is_empty() {
        inputs
            .extend(state.ports.iter().flat_map(|&port| [(port, Proto::Udp), (port, Proto::Tcp)]));
    }
    if inputs.is_empty() {
        return "none".to_owned();
    }
    let words = inputs.iter().map(|(port, proto)| format!("{proto}/{port}"));
    words.collect::<Vec<_>>().join(", ")
}

/// The state of a deployment whose groups have these sockets.
pub(crate) fn health(
    dir: &Dir,
    state: &State,
    cookies: &[Cookies],
    has_policy: bool,
    counters: &Counters,
) -> Result<Health> {
    let alive = cookies.iter().flatten().flatten().count();
    let wrong = wrong(state, cookies, has_policy, &dir.recent(counters))?;
    if alive > 0 {
        return Ok(match wrong {
            None => Health::LIVE,
            Some(wrong) => Health::Degraded(wrong),
        });
    }
    Ok(match (without_sockets(&dir.app().name, state), wrong) {
        // What went wrong before they closed is not what is wrong now.
        (Health::Degraded(now), Some(before)) => Health::Degraded(format!("{now} ({before})")),
        (Health::Degraded(now), None) => Health::Degraded(now),
        (_, Some(before)) => Health::Degraded(before),
        (waits, None) => waits,
    })
}

fn wrong(
    state: &State,
    cookies: &[Cookies],
    has_policy: bool,
    recent: &Counters,
) -> Result<Option<String>> {
    let mut reasons = Vec::new();
    if !has_policy {
        reasons.push("its policy is gone from the PROG_ARRAY".to_owned());
    }
    let groups = || state.groups.iter().zip(cookies);
    let count = |cookies: &Cookies| cookies.iter().flatten().count();
    // With all closed no input can arrive: the app ended, or starts again.
    let (mut alive, mut closed) = (0, 0);
    for (group, cookies) in groups().filter(|(_, cookies)| count(cookies) > 0) {
        alive += count(cookies);
        closed += (group.count as usize).saturating_sub(count(cookies));
        if !group.attached {
            reasons.push(format!("nothing is attached to the sockets of {}", group.key));
        }
    }
    if closed > 0 {
        reasons.push(format!("{closed} of {} sockets are closed", alive + closed));
    }
    let outside = if alive > 0 || !state.left_out.is_empty() || !state.unreachable.is_empty() {
        Outside::of(state, cookies)?
    } else {
        Outside::default()
    };
    if alive > 0
        && let Some(one) = outside.strangers.first()
    {
        let key = one.key;
        let which = match outside.strangers.len() {
            1 => "1 socket of its ports is no executor".to_owned(),
            n => format!("{n} sockets of its ports are no executors"),
        };
        let way = if state.follows {
            "syrupd takes them in while it runs, or 'syrupctl gc'"
        } else {
            "the app has not registered them"
        };
        reasons.push(format!("{which} ({key}): {way}"));
    }
    match outside.unreachable {
        0 => {}
        n => reasons.push(format!(
            "{n} sockets of its ports are held by no process that can be looked into (on their way \
             to another one, or outside this pid namespace); syrupd looks for them again and \
             again, or 'syrupctl gc'"
        )),
    }
    match outside.left_out {
        0 => {}
        n => reasons.push(format!(
            "{n} sockets of its ports could not be taken in (a deployment has {MAX_GROUPS} groups of \
             {SYRUP_MAX_EXECUTORS} sockets at most, and none of another program's map); 'syrupctl \
             gc' tries again when that has changed"
        )),
    }
    for (counter, what) in [
        (SYRUP_OUT_OF_RANGE, "verdicts named no executor"),
        (SYRUP_ENFORCE_FAILED, "verdicts named a closed socket"),
        (SYRUP_NO_POLICY, "inputs found no policy"),
    ] {
        let count = recent.get(counter);
        if count > 0 {
            reasons.push(format!("{count} {what}"));
        }
    }
    let all = reasons.join(", ");
    Ok((!reasons.is_empty()).then(|| format!("{all}: the kernel's hash decides these")))
}

/// The state of a deployment that has no socket. Its dispatchers are in no group, so
/// what arrives is not counted; who has the port tells whether anything may.
fn without_sockets(app: &str, state: &State) -> Health {
    let hook = SPEC.name;
    let ports: Vec<String> = state.ports.iter().map(u16::to_string).collect();
    let load = match ports.as_slice() {
        [] => "load it again".to_owned(),
        ports => format!("load it again with --port {}", ports.join(",")),
    };
    let load = format!("'syrupctl unload {hook} --app {app}' and {load}");
    let waits = if state.groups.is_empty() {
        "it waits for its first socket"
    } else {
        "it waits for sockets: all it had are closed"
    };
    let register = "let the application register its sockets (syr_register_socket)";
    if ports.is_empty() {
        return Health::waiting(format!("{waits}; {register}"));
    }
    let look = || adopt::servers(&state.ports);
    let servers = match netns::within_cookie(state.netns_cookie, state.pid, look) {
        Ok(Some(Ok(servers))) => servers,
        // Who has the port elsewhere is no matter of this one's.
        Ok(None) => {
            return Health::waiting(format!(
                "{waits}; no process that can be looked into is in its network namespace: start \
                 the server there again, or 'syrupctl unload {hook} --app {app}'"
            ));
        }
        Err(e) | Ok(Some(Err(e))) => {
            return Health::Degraded(format!("{waits}, and who has the port is unknown: {e}"));
        }
    };
    let is_its = |server: &&Server| {
        state.is_of(server.uid) && (state.protos.is_empty() || state.protos.contains(&server.proto))
    };
    let (ours, others): (Vec<&Server>, Vec<&Server>) = servers.iter().partition(is_its);
    if let Some(server) = ours.iter().find(|server| server.unfit.is_none()) {
        let what = format!(
            "the sockets of process {} at {} port {} are not registered",
            server.pid, server.proto, server.port
        );
        return Health::Degraded(if state.follows {
            format!("{what}: syrupd takes them in while it runs, or 'syrupctl gc'")
        } else {
            format!("{what}: {load} to adopt them, or {register}")
        });
    }
    if let Some((server, unfit)) = ours.iter().find_map(|server| Some((server, server.unfit?))) {
        return Health::Degraded(format!(
            "process {} cannot be adopted: {unfit}; have it set SO_REUSEPORT before it \
             binds, and start it again",
            server.pid
        ));
    }
    let instead = match others.first() {
        Some(Server { pid, proto, port, uid, .. }) if !state.is_of(*uid) => format!(
            "process {pid} has {proto} port {port}, and is another user's ({uid}): this \
             deployment takes in none of those"
        ),
        Some(Server { pid, proto, port, .. }) => {
            format!("process {pid} has {proto} port {port}: for that, {load} --proto {proto}")
        }
        None => match elsewhere(state) {
            Some(Server { pid, proto, port, .. }) => format!(
                "process {pid} has {proto} port {port} in another network namespace: for that, \
                 {load} --pid {pid}"
            ),
            None => format!("{register}, or start the server while syrupd runs"),
        },
    };
    Health::waiting(format!("{waits}; {instead}"))
}

/// A server of these ports in another network namespace.
fn elsewhere(state: &State) -> Option<Server> {
    let serves = |server: &Server| {
        server.unfit.is_none()
            && state.is_of(server.uid)
            && (state.protos.is_empty() || state.protos.contains(&server.proto))
    };
    netns::all().iter().find_map(|other| {
        use std::os::fd::AsFd as _;
        let found = netns::within(other.as_fd(), || adopt::servers(&state.ports));
        found.ok()?.ok()?.into_iter().find(serves)
    })
}
