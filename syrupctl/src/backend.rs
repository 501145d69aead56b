//! Which arbiter answers: the daemon, or the engine in this process.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use syrup_engine::{Caller, DEFAULT_BPFFS, Engine};
use syrup_protocol::{Arbiter, Client, Code, DEFAULT_SOCKET, Failure, Result};

/// An arbiter and where it is.
pub struct Backend {
    arbiter: Box<dyn Arbiter>,
    /// What is behind it.
    pub place: Place,
}

/// Where an arbiter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A daemon at this socket.
    Daemon(PathBuf),
    /// In this process, with pins below this folder.
    InProcess(PathBuf),
}

impl Deref for Backend {
    type Target = dyn Arbiter;

    fn deref(&self) -> &Self::Target {
        &*self.arbiter
    }
}

/// What the flags ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan<'a> {
    daemon: Option<&'a Path>,
    in_process: Option<&'a Path>,
}

/// A flag that names one of the two places rules the other out: falling back
/// from a private daemon to the machine's pins, or from private pins to the
/// machine's daemon, would act on deployments that nobody named.
fn plan<'a>(socket: Option<&'a Path>, bpffs: Option<&'a Path>) -> Plan<'a> {
    match (socket, bpffs) {
        (Some(socket), None) => Plan { daemon: Some(socket), in_process: None },
        (None, Some(bpffs)) => Plan { daemon: None, in_process: Some(bpffs) },
        (socket, bpffs) => Plan {
            daemon: Some(socket.unwrap_or(Path::new(DEFAULT_SOCKET))),
            in_process: Some(bpffs.unwrap_or(Path::new(DEFAULT_BPFFS))),
        },
    }
}

/// Opens the arbiter: the daemon if it answers, else, as root, the engine.
pub fn open(socket: Option<&Path>, bpffs: Option<&Path>) -> Result<Backend> {
    let plan = plan(socket, bpffs);
    let mut silent = None;
    if let Some(socket) = plan.daemon {
        match Client::connect(socket) {
            Ok(client) => {
                log::info!("using the daemon at {}", socket.display());
                let place = Place::Daemon(socket.to_owned());
                return Ok(Backend { arbiter: Box::new(client), place });
            }
            Err(error) if error.code == Code::Unreachable => {
                log::info!("{error}");
                silent = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match plan.in_process {
        Some(bpffs) if is_root() => {
            log::info!("using the engine in this process, pins below {}", bpffs.display());
            let place = Place::InProcess(bpffs.to_owned());
            Ok(Backend {
                arbiter: Box::new(Engine::new(bpffs.to_owned())?.as_caller(Caller::ROOT)),
                place,
            })
        }
        Some(_) => Err(silent
            .unwrap_or_else(|| {
                Failure::new(Code::NotPermitted, "only root may work on pins itself")
            })
            .advise("start syrupd, or run this command as root")),
        None => Err(silent
            .unwrap_or_else(|| Failure::new(Code::Unreachable, "no daemon answers"))
            .advise("start syrupd there, or leave --socket out and run this command as root")),
    }
}

/// Whether this process may use the engine.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_place_rules_the_other_default_out() {
        let (socket, bpffs) = (Path::new("/s"), Path::new("/b"));
        assert_eq!(plan(Some(socket), None), Plan { daemon: Some(socket), in_process: None });
        assert_eq!(plan(None, Some(bpffs)), Plan { daemon: None, in_process: Some(bpffs) });
        assert_eq!(
            plan(Some(socket), Some(bpffs)),
            Plan { daemon: Some(socket), in_process: Some(bpffs) }
        );
        assert_eq!(
            plan(None, None),
            Plan {
                daemon: Some(Path::new(DEFAULT_SOCKET)),
                in_process: Some(Path::new(DEFAULT_BPFFS))
            }
        );
    }
}
