//! Temporary folders of an experiment: removed with the value, and by the next
//! experiment when this one is killed.

use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Before the process id of whose they are.
const PREFIX: &str = "syrup-bench-";

/// Makes one.
pub fn folder() -> Result<TempDir> {
    let place = std::env::temp_dir();
    remove_those_of_the_dead(&place);
    // Short: the path of a Unix socket has 107 bytes at most.
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir_in(&place)
        .with_context(|| format!("cannot make a folder in {}", place.display()))
}

/// What cannot be removed is another user's, or another one removes it just now.
fn remove_those_of_the_dead(place: &Path) {
    let Ok(entries) = std::fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-'));
        let pid = owner.and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_dead_are_removed_and_no_others() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: String| place.path().join(name);
        // Process ids end at 2^22.
        let dead = path(format!("{PREFIX}{}-abc", (1 << 22) + 1));
        let kept = [
            path(format!("{PREFIX}{}-abc", std::process::id())),
            path(format!("{PREFIX}report-abc")),
            path(format!("{PREFIX}{}", (1 << 22) + 1)),
            path("other".to_owned()),
        ];
        for folder in kept.iter().chain([&dead]) {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("syrupd.sock"), "").unwrap();
        }
        remove_those_of_the_dead(place.path());
        assert!(!dead.exists());
        assert!(kept.iter().all(|folder| folder.join("syrupd.sock").exists()));
    }

    #[test]
    fn a_folder_names_its_process_and_goes_with_its_value() {
        let folder = folder().unwrap();
        let path = folder.path().to_owned();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with(&format!("{PREFIX}{}-", std::process::id())), "{name}");
        drop(folder);
        assert!(!path.exists());
    }
}
