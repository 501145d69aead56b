//! Policies that experiments alone use: ablations of those that ship.

use std::path::Path;

use anyhow::{Context, Result};

/// get-priority whose GETs wait for the end of a SCAN's slice (build.rs).
pub const NO_PREEMPTION: &str = "get-priority-no-preemption";

const OWN: [(&str, &[u8]); 1] =
    [(NO_PREEMPTION, include_bytes!(concat!(env!("OUT_DIR"), "/get-priority-no-preemption.o")))];

/// What `syrupctl load --policy` is given: a name that it knows, or the file of
/// one of ours, written to `folder`.
pub fn argument(policy: &str, folder: &Path) -> Result<String> {
    let Some((_, object)) = OWN.iter().find(|(name, _)| *name == policy) else {
        return Ok(policy.to_owned());
    };
    let file = folder.join(format!("{policy}.o"));
    std::fs::write(&file, object).with_context(|| format!("cannot write {}", file.display()))?;
    file.to_str().map(str::to_owned).context("the temporary folder's name is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_policy_is_a_file_and_others_keep_their_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = argument(NO_PREEMPTION, folder.path()).unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(b"\x7fELF"));
        assert_eq!(argument("get-priority", folder.path()).unwrap(), "get-priority");
    }
}
