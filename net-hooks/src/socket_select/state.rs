//! What is kept of a deployment beside its pins: which inputs it is for, and the groups of
//! sockets that it decides about.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use syrup_hook::{Proto, Result};

use super::sockets::GroupKey;
use super::too_many_groups;

/// Groups of one deployment (`MAX_GROUPS` in shared.bpf.h).
pub(crate) const MAX_GROUPS: usize = 64;
/// How long a socket that was not found is not looked for: at first, and at most.
const RETRY_MS: RangeInclusive<u64> = 300..=10_000;

/// One reuseport group of the app. Its number, by which the maps know it, is its place in
/// [`State::groups`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub key: GroupKey,
    /// One more than the highest index that was in use when it changed last.
    pub end: u32,
    /// How many were in use then.
    pub count: u32,
    /// Whether our dispatcher decides for it: not before its first socket is in the map.
    #[serde(default)]
    pub attached: bool,
    /// The dispatcher's program, by its kernel id, that may be attached although `attached`
    /// says no: a call attaches or detaches it, or died of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsure: Option<u32>,
}

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    /// The process whose sockets they are, or were.
    pub pid: Option<i32>,
    /// Of which sockets it is: all protocols when empty.
    pub protos: Vec<Proto>,
    /// Their ports; those of the first socket to come when empty.
    pub ports: Vec<u16>,
    /// The network namespace of the ports.
    pub netns_cookie: u64,
    /// A group stays when all its sockets are closed: a server that starts again brings it.
    pub groups: Vec<Group>,
    /// Whether sockets of these ports are taken in as they come and go; else the app
    /// registers its own.
    pub follows: bool,
    /// Cookies of sockets at these ports that are not to be executors: they cannot be, or the
    /// app let go of them.
    pub unfit: BTreeSet<u64>,
    /// Whose sockets are taken in, beside root's: those of the users it met first.
    pub uids: BTreeSet<u32>,
    /// Whether `end` is more than there is: a call is changing the sockets, or died of that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub changing: bool,
    /// Cookies of sockets in its groups that could not be taken in: too many, or in another
    /// program's map.
    pub left_out: BTreeSet<u64>,
    /// Sockets in its groups that no process holds into which we may look. They may be on
    /// their way from one to another.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unreachable: BTreeMap<u64, Retry>,
}

/// When it is worth to look for a socket once more; in milliseconds since the machine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retry {
    since_ms: u64,
    again_ms: u64,
}

impl Retry {
    /// Of a socket that was not found before, then of one that was not found again.
    pub fn after(last: Option<Self>) -> Self {
        let now = uptime_ms();
        let since_ms = last.map_or(now, |last| last.since_ms);
        let wait = now.saturating_sub(since_ms).clamp(*RETRY_MS.start(), *RETRY_MS.end());
        Self { since_ms, again_ms: now + wait }
    }

    pub fn is_due(self) -> bool {
        uptime_ms() >= self.again_ms
    }

    /// At once, because somebody asks for it.
    pub fn hurry(&mut self) {
        self.again_ms = 0;
    }
}

fn uptime_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

impl State {
    /// Whether sockets of that user are taken in.
    pub fn is_of(&self, uid: u32) -> bool {
        uid == 0 || self.uids.is_empty() || self.uids.contains(&uid)
    }

    /// The number of the group with that key, which is new if it has to be.
    ///
    /// # Errors
    /// `Error::Usage` when there are too many.
    pub fn group(&mut self, key: &GroupKey) -> Result<usize> {
        if let Some(number) = self.groups.iter().position(|group| group.key == *key) {
            return Ok(number);
        }
        let new = Group { key: *key, end: 0, count: 0, attached: false, unsure: None };
        if self.groups.len() < MAX_GROUPS {
            self.groups.push(new);
            return Ok(self.groups.len() - 1);
        }
        // One that the server gave up.
        let is_empty = |group: &Group| group.count == 0 && group.end == 0 && group.unsure.is_none();
        let empty = self.groups.iter().position(is_empty);
        let number = empty.ok_or_else(too_many_groups)?;
        self.groups[number] = new;
        Ok(number)
    }

    /// Takes over what is in the map, by group.
    pub fn count(&mut self, cookies: &[Vec<Option<u64>>]) {
        for (group, cookies) in self.groups.iter_mut().zip(cookies) {
            group.count = cookies.iter().flatten().count() as u32;
            let last = cookies.iter().rposition(Option::is_some);
            group.end = last.map_or(0, |last| last as u32 + 1);
        }
    }

    /// The first socket decides what was left open.
    pub fn belongs_to(&mut self, key: &GroupKey) {
        if self.ports.is_empty() {
            self.ports = vec![key.address.port()];
            self.netns_cookie = key.netns_cookie;
        }
    }

    /// Whether a socket with this key is one of its.
    pub fn covers(&self, key: &GroupKey) -> bool {
        (self.protos.is_empty() || self.protos.contains(&key.proto))
            && (self.ports.is_empty()
                || self.netns_cookie == key.netns_cookie
                    && self.ports.contains(&key.address.port()))
    }

    /// What it is for: protocols and ports, in order. Of protocols, without being told, those
    /// it has met.
    pub fn inputs(&self) -> BTreeSet<(u16, Proto)> {
        let of_groups = self.groups.iter().map(|group| (group.key.address.port(), group.key.proto));
        let told =
            self.protos.iter().flat_map(|&proto| self.ports.iter().map(move |&port| (port, proto)));
        of_groups.chain(told).collect()
    }

    /// The ports and protocols that no other app may have: without a protocol, all.
    pub fn leases(&self) -> BTreeSet<(u64, u16, Proto)> {
        let any = [Proto::Udp, Proto::Tcp];
        let protos = if self.protos.is_empty() { &any[..] } else { &self.protos };
        let of_ports = |proto: &Proto| {
            let proto = *proto;
            self.ports.iter().map(move |&port| (self.netns_cookie, port, proto))
        };
        protos.iter().flat_map(of_ports).collect()
    }

    /// How many executors each group has by its number, as the maps say it.
    pub fn ends(&self) -> impl Iterator<Item = u32> {
        self.groups.iter().map(|group| group.end)
    }

    /// What `syrup_num_executors()` reads: what all groups that have sockets agree on, 0 when
    /// they differ, and 1 when none has any.
    pub fn common_end(&self) -> u32 {
        let ends: BTreeSet<u32> = self.ends().filter(|&end| end > 0).collect();
        match ends.len() {
            0 => 1,
            1 => ends.first().copied().unwrap_or(1),
            _ => 0,
        }
    }

    /// One more than the highest index in use.
    pub fn end(&self) -> u32 {
        self.ends().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str, proto: Proto) -> GroupKey {
        let address = address.parse().unwrap();
        GroupKey { netns_cookie: 7, proto, address, v6only: false, ifindex: 0 }
    }

    #[test]
    fn a_group_keeps_its_number_and_an_empty_one_makes_room() {
        let mut state = State::default();
        for number in 0..MAX_GROUPS {
            let key = key(&format!("127.0.0.1:{}", 1000 + number), Proto::Udp);
            assert_eq!(state.group(&key).unwrap(), number);
            assert_eq!(state.group(&key).unwrap(), number);
            state.groups[number].count = 1;
        }
        let another = key("[::1]:53", Proto::Udp);
        assert!(state.group(&another).is_err());
        state.groups[9].count = 0;
        state.groups[9].end = 1;
        assert!(state.group(&another).is_err(), "its first socket is on its way");
        state.groups[9].end = 0;
        assert_eq!(state.group(&another).unwrap(), 9);
    }

    #[test]
    fn groups_that_differ_are_asked_one_by_one() {
        let mut state = State::default();
        assert_eq!(state.common_end(), 1);
        for (end, common) in [(0, 1), (4, 4), (4, 4), (0, 4), (2, 0)] {
            let port = 1 + state.groups.len() as u16;
            let key = key(&format!("127.0.0.1:{port}"), Proto::Udp);
            state.groups.push(Group { key, end, count: end, attached: true, unsure: None });
            assert_eq!(state.common_end(), common);
        }
        assert_eq!(state.end(), 4);
    }

    #[test]
    fn a_port_without_a_protocol_is_leased_for_all() {
        let state = State { ports: vec![53], netns_cookie: 7, ..State::default() };
        let both = BTreeSet::from([(7, 53, Proto::Udp), (7, 53, Proto::Tcp)]);
        assert_eq!(state.leases(), both);
        let udp = State { protos: vec![Proto::Udp], ..state };
        assert_eq!(udp.leases(), BTreeSet::from([(7, 53, Proto::Udp)]));
        assert!(State::default().leases().is_empty());
        assert!(udp.covers(&key("127.0.0.1:53", Proto::Udp)));
        assert!(!udp.covers(&key("127.0.0.1:53", Proto::Tcp)));
        assert!(!udp.covers(&key("127.0.0.1:54", Proto::Udp)));
        let elsewhere = GroupKey { netns_cookie: 8, ..key("127.0.0.1:53", Proto::Udp) };
        assert!(!udp.covers(&elsewhere));
    }
}
