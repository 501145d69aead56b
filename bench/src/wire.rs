//! Requests and replies of the RocksDB server: one UDP datagram each, numbers
//! in host order (little-endian machines), because policies read them with
//! plain loads.

/// Bytes of a request and of a reply.
pub const BYTES: usize = 56;

/// What a request asks for: a small number, which policies compare with. What
/// the numbers mean, beyond those named here, is up to server and experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class(u8);

impl Class {
    /// One key.
    pub const GET: Self = Self(1);
    /// A range of keys.
    pub const SCAN: Self = Self(2);
    /// Numbers go from 1 to this; 0 is what an idle thread serves.
    pub const MOST: usize = 8;

    /// The class with this number.
    #[must_use]
    pub fn of(number: u64) -> Option<Self> {
        (1..=Self::MOST as u64).contains(&number).then_some(Self(number as u8))
    }

    /// The number on the wire and in Maps.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0.into()
    }

    /// The number, counted from 0.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0) - 1
    }
}

/// A request; the reply carries the same bytes with `served_by` and `overrun_ns` set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Offset 0.
    pub class: Class,
    /// Offset 8: the sender's own number.
    pub id: u64,
    /// Offset 16: whose request it is; token policies count by it.
    pub user: u32,
    /// Offset 20: in a reply, the index of the thread that served it.
    pub served_by: u32,
    /// Offset 24.
    pub key: u64,
    /// Offset 32: when it should have been sent (CLOCK_MONOTONIC).
    pub intended_ns: u64,
    /// Offset 40: when it was sent.
    pub sent_ns: u64,
    /// Offset 48: in a reply of a server that sleeps, how long the sleep overran.
    pub overrun_ns: u64,
}

impl Message {
    /// The datagram.
    #[must_use]
    pub fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        put(0, &self.class.number().to_ne_bytes());
        put(8, &self.id.to_ne_bytes());
        put(16, &self.user.to_ne_bytes());
        put(20, &self.served_by.to_ne_bytes());
        put(24, &self.key.to_ne_bytes());
        put(32, &self.intended_ns.to_ne_bytes());
        put(40, &self.sent_ns.to_ne_bytes());
        put(48, &self.overrun_ns.to_ne_bytes());
        bytes
    }

    /// The message in a datagram; `None` for a datagram that is not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let long =
            |offset: usize| bytes.get(offset..offset + 8)?.try_into().ok().map(u64::from_ne_bytes);
        let short =
            |offset: usize| bytes.get(offset..offset + 4)?.try_into().ok().map(u32::from_ne_bytes);
        if bytes.len() != BYTES {
            return None;
        }
        Some(Self {
            class: Class::of(long(0)?)?,
            id: long(8)?,
            user: short(16)?,
            served_by: short(20)?,
            key: long(24)?,
            intended_ns: long(32)?,
            sent_ns: long(40)?,
            overrun_ns: long(48)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_wire() {
        let message = Message {
            class: Class::SCAN,
            id: 7,
            user: 3,
            served_by: 11,
            key: 1 << 40,
            intended_ns: 5,
            sent_ns: 6,
            overrun_ns: 8,
        };
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Some(message));
        // Policies read the type at offset 0 and the user at offset 16.
        assert_eq!(bytes[..8], 2u64.to_ne_bytes());
        assert_eq!(bytes[16..20], 3u32.to_ne_bytes());
    }

    #[test]
    fn other_datagrams_are_refused() {
        assert_eq!(Message::decode(&[0; BYTES]), None);
        assert_eq!(Message::decode(&[1; BYTES - 1]), None);
        assert_eq!(Message::decode(&[]), None);
        assert_eq!((Class::of(0), Class::of(Class::MOST as u64 + 1)), (None, None));
    }
}
