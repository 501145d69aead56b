//! A deployment, and the words that hooks, requests and replies share.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a deployment is for: by flag in a request (`port` of `--port`), and in a
/// deployment what its hook says of it. Each hook's documentation lists its own.
pub type Facts = BTreeMap<String, Value>;

/// One policy of one app, live at one hook: what the kernel says of it now.
/// `list`, `show` and `status` print it: schema 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// App name.
    pub app: String,
    /// Owner.
    pub uid: u32,
    /// Hook name.
    pub hook: String,
    /// Policy name.
    pub policy: String,
    /// SHA-256 of the policy's object, hex.
    pub policy_sha256: String,
    /// Parameters that do not have the policy's own values, by name.
    #[serde(default)]
    pub params: BTreeMap<String, String>,
    /// Kernel id of the policy's program; 0 when there is none.
    pub program_id: u32,
    /// How often it was replaced.
    pub generation: u32,
    /// When this policy became live: seconds since 1970.
    pub deployed_at: u64,
    /// What it schedules, for people: "udp/7000", "3 threads".
    pub inputs: String,
    /// What a verdict names, one of them: "socket".
    pub executor: String,
    /// How many `schedule()` may name now.
    pub executors: u32,
    /// What the hook says of it: port, process, threads, cores.
    pub target: Facts,
    /// Whether it does what it should.
    #[serde(flatten)]
    pub health: Health,
    /// Counter name and sum, since the app's first policy here.
    pub counters: BTreeMap<String, u64>,
    /// Choices by executor index.
    pub verdicts: Vec<u64>,
}

/// Whether a deployment does what it should: `state`, and `reason` why it does not, or
/// what a live one waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StateAndReason", into = "StateAndReason")]
pub enum Health {
    /// The policy decides; with a reason: it is in order, and nothing reaches it yet.
    Live(Option<String>),
    /// It is deployed, and the default decides some or all inputs.
    Degraded(String),
    /// The kernel threw it out.
    Ejected(String),
    /// Its pins cannot be read; it can be unloaded.
    Broken(String),
    /// What a newer arbiter calls it.
    Other {
        /// Its word.
        state: String,
        /// What it says of it.
        reason: Option<String>,
    },
}

/// [`Health`] as it travels.
#[derive(Serialize, Deserialize)]
struct StateAndReason {
    state: String,
    reason: Option<String>,
}

impl From<Health> for StateAndReason {
    fn from(health: Health) -> Self {
        let (state, reason) = (health.state(), health.reason());
        Self { state: state.to_owned(), reason: reason.map(str::to_owned) }
    }
}

impl From<StateAndReason> for Health {
    fn from(StateAndReason { state, reason }: StateAndReason) -> Self {
        match (state.as_str(), reason) {
            ("live", reason) => Self::Live(reason),
            ("degraded", reason) => Self::Degraded(reason.unwrap_or_default()),
            ("ejected", reason) => Self::Ejected(reason.unwrap_or_default()),
            ("broken", reason) => Self::Broken(reason.unwrap_or_default()),
            (_, reason) => Self::Other { state, reason },
        }
    }
}

impl Health {
    /// The policy decides what reaches it.
    pub const LIVE: Self = Self::Live(None);

    /// In order, and nothing reaches it before this happens.
    #[must_use]
    pub fn waiting(what: impl Into<String>) -> Self {
        Self::Live(Some(what.into()))
    }

    /// One word.
    #[must_use]
    pub fn state(&self) -> &str {
        match self {
            Self::Live(_) => "live",
            Self::Degraded(_) => "degraded",
            Self::Ejected(_) => "ejected",
            Self::Broken(_) => "broken",
            Self::Other { state, .. } => state,
        }
    }

    /// Why it is not live, or what a live one waits for.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Live(reason) | Self::Other { reason, .. } => reason.as_deref(),
            Self::Degraded(reason) | Self::Ejected(reason) | Self::Broken(reason) => Some(reason),
        }
    }

    /// Whether the policy decides what reaches it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }
}

/// A word of a set in a reply. One that this version does not know is shown as it is: a
/// newer arbiter is no reason for its clients to fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Word<T> {
    /// One of the set.
    Known(T),
    /// Another.
    Other(String),
}

impl<T> From<T> for Word<T> {
    fn from(word: T) -> Self {
        Self::Known(word)
    }
}

impl<T: PartialEq> PartialEq<T> for Word<T> {
    fn eq(&self, word: &T) -> bool {
        matches!(self, Self::Known(known) if known == word)
    }
}

impl<T: fmt::Display> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(word) => word.fmt(f),
            Self::Other(word) => word.fmt(f),
        }
    }
}

/// What `schedule()` gets at a hook. A policy fits every hook with its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    /// `schedule(void *pkt_start, void *pkt_end)`
    Packet,
    /// `schedule(struct syrup_thread *t)`
    Thread,
}

impl Input {
    /// The SDK header a policy with this input includes.
    #[must_use]
    pub fn header(self) -> &'static str {
        match self {
            Self::Packet => "syrup/packet.h",
            Self::Thread => "syrup/thread.h",
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packet => "packet",
            Self::Thread => "thread",
        })
    }
}

/// What an app registers at a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Sockets, which packets and connections are given to.
    Socket,
    /// Threads, which are given to executors.
    Thread,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket => "socket",
            Self::Thread => "thread",
        })
    }
}

/// Transport protocol of a packet deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// Datagrams.
    Udp,
    /// Connections: the input is the SYN.
    Tcp,
}

impl Proto {
    /// The protocol with this IP number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            17 => Some(Self::Udp),
            6 => Some(Self::Tcp),
            _ => None,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

impl FromStr for Proto {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "udp" => Ok(Self::Udp),
            "tcp" => Ok(Self::Tcp),
            other => Err(format!("unknown protocol '{other}': udp or tcp")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Deployment {
        Deployment {
            app: "web".to_owned(),
            uid: 0,
            hook: "socket-select".to_owned(),
            policy: "hash".to_owned(),
            policy_sha256: String::new(),
            params: BTreeMap::new(),
            program_id: 7,
            generation: 0,
            deployed_at: 0,
            inputs: "udp/7000".to_owned(),
            executor: "socket".to_owned(),
            executors: 2,
            target: Facts::from([("port".to_owned(), 7000.into())]),
            health: Health::LIVE,
            counters: BTreeMap::new(),
            verdicts: vec![],
        }
    }

    fn other(reason: Option<&str>) -> Health {
        Health::Other { state: "asleep".to_owned(), reason: reason.map(str::to_owned) }
    }

    #[test]
    fn health_is_a_state_and_a_reason_beside_the_rest() {
        for (health, state, reason) in [
            (Health::LIVE, "live", Value::Null),
            (Health::waiting("its first socket"), "live", "its first socket".into()),
            (Health::Degraded("so".to_owned()), "degraded", "so".into()),
            (Health::Ejected("so".to_owned()), "ejected", "so".into()),
            (Health::Broken("so".to_owned()), "broken", "so".into()),
            (other(Some("so")), "asleep", "so".into()),
            (other(None), "asleep", Value::Null),
        ] {
            let deployment = Deployment { health: health.clone(), ..example() };
            let json = serde_json::to_value(&deployment).unwrap();
            assert_eq!((&json["state"], &json["reason"]), (&state.into(), &reason), "{json}");
            assert_eq!((health.state(), health.reason()), (state, reason.as_str()));
            assert_eq!(serde_json::from_value::<Deployment>(json).unwrap(), deployment);
        }
    }

    #[test]
    fn protocols_have_the_numbers_of_ip_and_one_name_each() {
        for (proto, number, name) in [(Proto::Udp, 17, "udp"), (Proto::Tcp, 6, "tcp")] {
            assert_eq!(proto.to_string(), name);
            assert_eq!(serde_json::to_value(proto).unwrap(), name);
            assert_eq!(Proto::from_number(number), Some(proto));
            assert_eq!(name.parse(), Ok(proto));
        }
        let others: Vec<u8> = (0..=255).filter(|&n| Proto::from_number(n).is_some()).collect();
        assert_eq!(others, [6, 17]);
        assert!("UDP".parse::<Proto>().is_err() && "".parse::<Proto>().is_err());
    }

    #[test]
    fn what_users_read_is_what_is_sent() {
        for (input, header) in
            [(Input::Packet, "syrup/packet.h"), (Input::Thread, "syrup/thread.h")]
        {
            assert_eq!(serde_json::to_value(input).unwrap(), input.to_string());
            assert_eq!(input.header(), header);
        }
        for kind in [Kind::Socket, Kind::Thread] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
        }
    }
}
