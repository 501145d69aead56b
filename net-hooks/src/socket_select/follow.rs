//! Membership follows the group: what a server opens joins its deployment, what it closes
//! leaves it.

use std::collections::{BTreeMap, BTreeSet};

use syrup_hook::{Dir, Error, Result, netns};
use syrup_sdk::abi::SYRUP_MAX_EXECUTORS;

use super::adopt;
use super::bound::{Bound, bound};
use super::pins::{Cookies, Pins, Place};
use super::sockets::{GroupKey, Member};
use super::state::{Group, Retry, State};

/// Sockets that get inputs of a deployment and are not its executors.
///
/// Of a deployment that follows its ports, all there but those that can be none; of another,
/// those in its groups. Nothing when its network namespace is out of our reach.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    /// Which can be taken in, as far as is known.
    pub strangers: Vec<Bound>,
    /// How many could not be: [`State::left_out`].
    pub left_out: usize,
    /// How many nobody holds into whom we may look: [`State::unreachable`].
    pub unreachable: usize,
}

impl Outside {
    /// What there is now.
    ///
    /// # Errors
    /// `Error::Kernel`.
    pub fn of(state: &State, cookies: &[Cookies]) -> Result<Self> {
        if state.ports.is_empty() {
            return Ok(Self::default());
        }
        let listed = listed(state)?.unwrap_or_default();
        let is_unreachable = |b: &Bound| state.unreachable.contains_key(&b.cookie);
        let (unreachable, strangers): (Vec<_>, Vec<_>) =
            strangers_among(&listed, state, cookies).into_iter().partition(is_unreachable);
        Ok(Self {
            strangers,
            left_out: listed.iter().filter(|b| state.left_out.contains(&b.cookie)).count(),
            unreachable: unreachable.len(),
        })
    }
}

/// What the kernel lists of a deployment's ports; `None` when its network namespace is out of
/// our reach.
fn listed(state: &State) -> Result<Option<Vec<Bound>>> {
    let look = || bound(&state.protos, &state.ports);
    netns::within_cookie(state.netns_cookie, state.pid, look)?.transpose()
}

/// Forgets sockets that were closed of those that are no executors.
///
/// # Errors
/// `Error::Kernel`.
pub(crate) fn forget_closed(state: &mut State) -> Result<()> {
    if let Some(listed) = listed(state)? {
        let open: BTreeSet<u64> = listed.iter().map(|b| b.cookie).collect();
        state.unfit.retain(|cookie| open.contains(cookie));
        state.left_out.retain(|cookie| open.contains(cookie));
        state.unreachable.retain(|cookie, _| open.contains(cookie));
    }
    Ok(())
}

/// Whether [`forget_closed`] has something to do.
fn has_closed(state: &State, listed: &[Bound]) -> bool {
    let outside = state.unfit.iter().chain(&state.left_out).chain(state.unreachable.keys());
    outside.into_iter().any(|cookie| listed.iter().all(|b| b.cookie != *cookie))
}

fn is_due(state: &State, socket: &Bound) -> bool {
    state.unreachable.get(&socket.cookie).is_none_or(|retry| retry.is_due())
}

fn strangers_among(listed: &[Bound], state: &State, cookies: &[Cookies]) -> Vec<Bound> {
    let known: BTreeSet<u64> = cookies.iter().flatten().flatten().copied().collect();
    let has_sockets = |key: &GroupKey| {
        let alive = |cookies: &Cookies| cookies.iter().any(Option::is_some);
        state.groups.iter().zip(cookies).any(|(group, all)| group.key == *key && alive(all))
    };
    listed
        .iter()
        .filter(|b| state.covers(&b.key) && (state.follows || has_sockets(&b.key)))
        .filter(|b| !known.contains(&b.cookie) && !state.unfit.contains(&b.cookie))
        .filter(|b| !state.left_out.contains(&b.cookie))
        .filter(|b| state.is_of(b.uid))
        .cloned()
        .collect()
}

/// How the sockets of a group are to change places so that its indexes have no holes:
/// from, to. The highest go to the lowest free ones, after `joining` new ones took theirs.
fn moves(cookies: &[Option<u64>]) -> Vec<(u32, u32)> {
    let mut taken: Vec<bool> = cookies.iter().map(Option::is_some).collect();
    let mut moves = Vec::new();
    while let (Some(hole), Some(last)) =
        (taken.iter().position(|&taken| !taken), taken.iter().rposition(|&taken| taken))
        && hole < last
    {
        taken.swap(hole, last);
        moves.push((last as u32, hole as u32));
    }
    moves
}

/// Those for which [`follow`] has something to do. The kernel's list is read once for all of
/// a network namespace: reading it takes its time whatever is in it. When to look,
/// [`super::changes`] tells.
pub(crate) fn behind(dirs: &[Dir]) -> Vec<&Dir> {
    let read = |dir: &Dir| -> Result<(State, Vec<Cookies>)> {
        let state: State = dir.state()?;
        let cookies = Pins::open(dir.path())?.cookies(&state)?;
        Ok((state, cookies))
    };
    let read = |dir| Some((dir, read(dir).ok()?));
    let followed: Vec<_> =
        dirs.iter().filter_map(read).filter(|(_, (state, _))| state.follows).collect();
    let mut listed: BTreeMap<u64, Vec<Bound>> = BTreeMap::new();
    for (_, (state, _)) in &followed {
        if listed.contains_key(&state.netns_cookie) {
            continue;
        }
        let mates =
            followed.iter().filter(|(_, (other, _))| other.netns_cookie == state.netns_cookie);
        let ports: Vec<u16> = mates.flat_map(|(_, (state, _))| state.ports.clone()).collect();
        let look = || bound(&[], &ports);
        let found = netns::within_cookie(state.netns_cookie, state.pid, look);
        let found = found.map(|found| found.transpose().map(Option::unwrap_or_default));
        match found.and_then(|found| found) {
            Ok(found) => drop(listed.insert(state.netns_cookie, found)),
            Err(e) => log::warn!("{e}"),
        }
    }
    followed
        .iter()
        .filter(|(_, (state, cookies))| {
            let listed = listed.get(&state.netns_cookie);
            let is_missed = |listed: &Vec<Bound>| {
                let strangers = strangers_among(listed, state, cookies);
                strangers.iter().any(|b| is_due(state, b)) || has_closed(state, listed)
            };
            state.changing
                || state.groups.iter().zip(cookies).any(is_other)
                || listed.is_some_and(is_missed)
        })
        .map(|(dir, _)| *dir)
        .collect()
}

/// Takes in what joined, lets go what left, and closes the holes that it left. Returns whether
/// there was any of these.
///
/// # Errors
/// `Error::Kernel`, and `Error::Usage` when they are too many; then the next call tries again.
pub(crate) fn follow(dir: &mut Dir) -> Result<bool> {
    let pins = Pins::open(dir.path())?;
    let mut state: State = dir.state()?;
    if !state.follows {
        return Ok(false);
    }
    let cookies = pins.cookies(&state)?;
    let had_left = state.changing || state.groups.iter().zip(&cookies).any(is_other);
    forget_closed(&mut state)?;
    let mut strangers = strangers_among(&listed(&state)?.unwrap_or_default(), &state, &cookies);
    strangers.retain(|b| is_due(&state, b));
    let found = adopt::take(&strangers, state.pid)?;
    if !state.pid.is_some_and(syrup_hook::process::is_running) {
        state.pid = found.pid.or(state.pid);
    }
    // To look for one that nobody holds is to look into every process: not again and again.
    for b in &strangers {
        let is_found = found.members.iter().any(|member| member.cookie == b.cookie)
            || found.unfit.contains(&b.cookie);
        let last = state.unreachable.remove(&b.cookie);
        if !is_found {
            state.unreachable.insert(b.cookie, Retry::after(last));
        }
    }
    state.unfit.extend(&found.unfit);
    if state.uids.is_empty() {
        state.uids.clone_from(&found.uids);
    }

    // What left makes room first.
    pins.change(dir, &[], &[], state)?;
    match join(dir, &pins, &found.members) {
        Err(e @ (Error::Usage(_) | Error::Conflict { .. })) => {
            // One that cannot join keeps none of the others out.
            log::warn!("{e}");
            let mut left_out = Vec::new();
            for member in &found.members {
                if join(dir, &pins, std::slice::from_ref(member)).is_err() {
                    left_out.push(member.cookie);
                }
            }
            let mut state: State = dir.state()?;
            state.left_out.extend(left_out);
            dir.set_state(&state)?;
        }
        done => done?,
    }
    close_up(dir, &pins)?;
    attach(dir, &pins)?;
    let has_changed = had_left || pins.cookies(&dir.state()?)? != cookies;
    if has_changed {
        pins.forgive(dir);
    }
    Ok(has_changed)
}

/// Whether a group's sockets are others than were counted.
fn is_other((group, cookies): (&Group, &Cookies)) -> bool {
    let alive = cookies.iter().flatten().count();
    alive != group.count as usize || alive > 0 && !group.attached
}

/// Gives new sockets the lowest free indexes of their groups.
fn join(dir: &mut Dir, pins: &Pins, members: &[Member]) -> Result<()> {
    let mut state: State = dir.state()?;
    let cookies = pins.cookies(&state)?;
    let mut places: BTreeMap<usize, Cookies> = cookies.into_iter().enumerate().collect();
    let mut joined = Vec::new();
    for member in members {
        let group = state.group(&member.key)?;
        let places = places.entry(group).or_default();
        let free = places.iter().position(Option::is_none).unwrap_or(places.len());
        if free >= SYRUP_MAX_EXECUTORS as usize {
            return Err(super::too_many_sockets(&member.key));
        }
        places.resize(places.len().max(free + 1), None);
        places[free] = Some(member.cookie);
        // Not another new group's place from here on.
        state.groups[group].end = state.groups[group].end.max(free as u32 + 1);
        joined.push((group, free as u32, member));
    }
    pins.change(dir, &[], &joined, state)
}

/// Closes the holes in the indexes.
fn close_up(dir: &mut Dir, pins: &Pins) -> Result<()> {
    let state: State = dir.state()?;
    let cookies = pins.cookies(&state)?;
    let mut changes = Vec::new();
    for (number, (group, cookies)) in state.groups.iter().zip(&cookies).enumerate() {
        for (from, to) in moves(cookies) {
            // Whoever moves is taken from its holder: it has to be put in anew.
            if let Some(cookie) = cookies[from as usize]
                && let Some(fd) = adopt::one_of(&group.key, &[cookie], state.pid)?
            {
                changes.push((number, from, to, Member { fd, key: group.key, cookie }));
            }
        }
    }
    if changes.is_empty() {
        return Ok(());
    }
    let left: Vec<Place<'_>> =
        changes.iter().map(|(group, from, _, member)| (*group, *from, member)).collect();
    let joined: Vec<Place<'_>> =
        changes.iter().map(|(group, _, to, member)| (*group, *to, member)).collect();
    pins.change(dir, &left, &joined, state)
}

/// Attaches dispatchers to groups that have executors and none: a call died between the two.
///
/// # Errors
/// `Error::Kernel`.
pub(crate) fn attach(dir: &mut Dir, pins: &Pins) -> Result<()> {
    let state: State = dir.state()?;
    let cookies = pins.cookies(&state)?;
    let mut found = Vec::new();
    for (number, (group, cookies)) in state.groups.iter().zip(&cookies).enumerate() {
        let first = (0u32..).zip(cookies).find_map(|(index, cookie)| Some((index, (*cookie)?)));
        if !group.attached
            && let Some((index, cookie)) = first
            && let Some(fd) = adopt::one_of(&group.key, &[cookie], state.pid)?
        {
            found.push((number, index, Member { fd, key: group.key, cookie }));
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let joined: Vec<Place<'_>> =
        found.iter().map(|(group, index, member)| (*group, *index, member)).collect();
    pins.change(dir, &[], &joined, state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_fill_the_holes() {
        let places = |taken: &str| -> Vec<Option<u64>> {
            taken.chars().map(|c| (c == 'x').then_some(1)).collect()
        };
        for (taken, expected) in [
            ("", vec![]),
            ("xxxx", vec![]),
            ("xx--", vec![]),
            ("x-x-", vec![(2, 1)]),
            ("--xx", vec![(3, 0), (2, 1)]),
            ("-x-xx", vec![(4, 0), (3, 2)]),
        ] {
            assert_eq!(moves(&places(taken)), expected, "{taken}");
        }
    }
}
