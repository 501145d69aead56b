//! `/etc/syrup/syrupd.toml`.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use syrup_protocol::{Code, Failure, Result};

/// Where the daemon looks unless `--config` says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/syrup/syrupd.toml";

/// What the file may say; flags win over it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub socket: Option<PathBuf>,
    /// Where to pin.
    pub bpffs: Option<PathBuf>,
    /// The group whose users may ask, by name or number.
    pub group: Option<String>,
    /// What to log, in the terms of `RUST_LOG`: "info", "syrupd=debug".
    pub log: Option<String>,
}

impl Config {
    /// Reads the file. `named` is what `--config` says: that file must be
    /// there; the default one need not.
    ///
    /// # Errors
    /// [`Code::Usage`] with the line that is wrong.
    pub fn read(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_CONFIG));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(Self::default()),
            Err(e) => {
                Err(Failure::new(Code::Usage, format!("cannot read {}: {e}", path.display()))
                    .advise("name another file with --config, or leave the flag out"))
            }
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| {
            // The parser shows the line below its message.
            Failure::new(Code::Usage, format!("{}: {}", path.display(), e.to_string().trim_end()))
                .advise("the file may set: socket, bpffs, group, log")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_sets_what_it_names() {
        let config = Config::parse(Path::new("f"), "socket = '/s'\nlog = 'debug'\n").unwrap();
        assert_eq!(config.socket, Some("/s".into()));
        assert_eq!(config.bpffs, None);
        assert_eq!(config.log.as_deref(), Some("debug"));
    }

    #[test]
    fn a_broken_file_names_its_line() {
        for (text, line) in
            [("socket = '/s'\nsokcet = '/t'\n", 2), ("bpffs = 7\n", 1), ("\n\n=", 3)]
        {
            let error = Config::parse(Path::new("syrupd.toml"), text).unwrap_err();
            assert_eq!(error.code, Code::Usage);
            assert!(error.message.contains("syrupd.toml"), "{error}");
            assert!(error.message.contains(&format!("line {line}")), "{error}");
        }
    }

    #[test]
    fn only_a_file_that_was_named_must_exist() {
        assert_eq!(
            Config::read(Some(Path::new("/nonexistent/syrupd.toml"))).unwrap_err().code,
            Code::Usage
        );
    }
}
