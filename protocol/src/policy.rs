//! A policy on its way to the arbiter.

use serde::{Deserialize, Serialize};

/// Longest C source, in bytes.
pub const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Longest policy object, in bytes.
pub const MAX_OBJECT_BYTES: usize = 4 << 20;

/// A policy as the requester has it: bytes and names, never a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum PolicySource {
    /// The name of a policy that ships with the hook.
    Builtin {
        /// Its name.
        name: String,
    },
    /// A C file.
    Source {
        /// For diagnostics; never opened.
        file_name: String,
        /// Its text.
        text: String,
    },
    /// A compiled policy object.
    Object {
        /// For messages; never opened.
        file_name: String,
        /// The ELF image.
        #[serde(with = "base64_bytes")]
        image: Vec<u8>,
    },
}

/// Bytes inside JSON.
mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(de::Error::custom)
    }
}
