//! What must be known of a deployment after a restart and stands in no other pin.
//!
//! Text (JSON) in a pinned array of one entry, which only user space reads: a version
//! that adds a field, or a counter, reads what an earlier one wrote.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pin;
use crate::sys::{self, Map};
use crate::{Error, Result};

/// The pin's name in a deployment's folder.
pub const RECORD: &str = "record";

/// Bytes of the array's entry; the text is padded with zeros.
const BYTES: usize = 32 << 10;

/// A deployment's record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The app's owner.
    pub uid: u32,
    /// The policy's name.
    pub policy: String,
    /// SHA-256 of the policy's object, hex.
    pub policy_sha256: String,
    /// The policy's parameters that were set.
    #[serde(default)]
    pub params: BTreeMap<String, String>,
    /// How often the policy was replaced.
    #[serde(default)]
    pub generation: u32,
    /// When the policy became live: nanoseconds since 1970.
    #[serde(default)]
    pub deployed_at_ns: u64,
    /// Counters when the policy replaced another: they go on, its health starts anew.
    #[serde(default)]
    pub counted_before: BTreeMap<String, u64>,
    /// The hook's own.
    #[serde(default)]
    pub state: serde_json::Value,
}

impl Record {
    /// The hook's own part.
    ///
    /// # Errors
    /// [`Error::Pin`] when it is not what this version of the hook writes.
    pub fn state<T: DeserializeOwned>(&self, dir: &Path) -> Result<T> {
        T::deserialize(&self.state)
            .map_err(|e| Error::Pin { path: dir.join(RECORD), reason: e.to_string() })
    }

    /// Reads the record in `dir`; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Pin`] when it is not what this version writes; [`Error::Kernel`].
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(RECORD);
        let Some(fd) = sys::obj_get(&path)? else { return Ok(None) };
        let not_ours = |e: &dyn std::fmt::Display| {
            let reason = format!("not this version's: {e}");
            Error::Pin { path: path.clone(), reason }
        };
        let bytes = match Map::new(fd).and_then(|map| map.lookup(&0u32.to_ne_bytes())) {
            Err(e @ Error::Kernel { .. }) => return Err(e),
            read => read.map_err(|e| not_ours(&e))?.unwrap_or_default(),
        };
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        serde_json::from_slice(text).map(Some).map_err(|e| not_ours(&e))
    }

    /// Writes it to `dir`, by a rename: who reads holds no lock, and an array's entry that is
    /// written while it is read would be half of each.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the path; [`Error::Defect`] when it is too long.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_vec(self)
            .map_err(|e| Error::Defect(format!("a record has no JSON form: {e}")))?;
        if text.len() >= BYTES {
            return Err(Error::Defect(format!("a record of {} bytes", text.len())));
        }
        text.resize(BYTES, 0);
        let path = dir.join(RECORD);
        let map = pin::create_array("syrup_record", BYTES, 1)?;
        map.update(&0u32.to_ne_bytes(), &text)?;
        let aside = pin::aside(&path);
        // Of a write that died.
        let _ = fs::remove_file(&aside);
        sys::obj_pin(map.as_fd(), &aside)?;
        fs::rename(&aside, &path).map_err(|e| {
            let _ = fs::remove_file(&aside);
            Error::kernel(format!("rename {}", aside.display()), e)
        })
    }
}
