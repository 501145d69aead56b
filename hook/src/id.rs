//! One spelling per hook, everywhere.

use std::fmt;
use std::str::FromStr;

use syrup_sdk::abi;

/// A place in the stack where a policy runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[non_exhaustive]
pub enum HookId {
    /// Threads: which queue or core a runnable thread waits for.
    ScxSyrup = abi::SYRUP_HOOK_SCX_SYRUP,
    /// UDP datagrams and TCP connections: which socket of a reuseport group gets them.
    SocketSelect = abi::SYRUP_HOOK_SOCKET_SELECT,
}

/// What `schedule()` gets at a hook. A policy fits every hook with its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

impl HookId {
    /// Every hook of this build.
    pub const ALL: &'static [Self] = &[Self::ScxSyrup, Self::SocketSelect];

    /// The name users type; also the pin folder's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ScxSyrup => "scx-syrup",
            Self::SocketSelect => "socket-select",
        }
    }

    /// The number in pinned records.
    #[must_use]
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The hook with this number in a record.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|hook| hook.number() == number)
    }
}

impl fmt::Display for HookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No hook has that name.
#[derive(Debug, thiserror::Error)]
#[error("unknown hook '{0}': one of {known}", known = HookId::ALL.iter().map(|h| h.name()).collect::<Vec<_>>().join(", "))]
pub struct UnknownHook(String);

impl FromStr for HookId {
    type Err = UnknownHook;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|hook| hook.name() == name)
            .ok_or_else(|| UnknownHook(name.to_owned()))
    }
}

/// Transport protocol of a packet deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    /// Datagrams.
    Udp,
    /// Connections: the input is the SYN.
    Tcp,
}

impl Proto {
    /// The IP protocol number, as in [`abi::syrup_record`].
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Tcp => 6,
        }
    }

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

    #[test]
    fn names_and_numbers_lead_back_to_the_hook() {
        for &hook in HookId::ALL {
            assert_eq!(hook.name().parse::<HookId>().unwrap(), hook);
            assert_eq!(HookId::from_number(hook.number()), Some(hook));
        }
        assert!("socket_select".parse::<HookId>().is_err());
        assert_eq!(HookId::from_number(0), None);
    }

    #[test]
    fn protocols_have_the_numbers_of_ip_and_one_name_each() {
        for (proto, number, name) in [(Proto::Udp, 17, "udp"), (Proto::Tcp, 6, "tcp")] {
            assert_eq!((proto.number(), proto.to_string().as_str()), (number, name));
            assert_eq!(Proto::from_number(number), Some(proto));
            assert_eq!(name.parse(), Ok(proto));
        }
        let others: Vec<u8> = (0..=255).filter(|&n| Proto::from_number(n).is_some()).collect();
        assert_eq!(others, [6, 17]);
        assert!("UDP".parse::<Proto>().is_err() && "".parse::<Proto>().is_err());
    }

    #[test]
    fn what_users_read_of_a_hook_is_what_they_type() {
        assert_eq!(HookId::ALL.len(), 2);
        assert_eq!(HookId::ScxSyrup.to_string(), "scx-syrup");
        assert_eq!(format!("{:>15}", HookId::SocketSelect), "  socket-select");
        assert_eq!(HookId::SocketSelect.number(), abi::SYRUP_HOOK_SOCKET_SELECT);
        let error = "xdp".parse::<HookId>().unwrap_err().to_string();
        assert_eq!(error, "unknown hook 'xdp': one of scx-syrup, socket-select");
        assert_eq!(
            (Input::Packet.header(), Input::Thread.header()),
            ("syrup/packet.h", "syrup/thread.h")
        );
        assert_eq!(
            (Input::Packet.to_string(), Input::Thread.to_string()),
            ("packet".into(), "thread".into())
        );
    }
}
