//! The global flags, and what every command gets: where data goes, and who answers.

use std::path::PathBuf;

use clap::Args;
use syrup_protocol::{HookInfo, PolicyInfo, Result};

use crate::backend::{self, Backend};
use crate::output::{Format, Output};

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The daemon's socket [default: /run/syrup/syrupd.sock]
    #[arg(long, global = true, env = "SYRUP_SOCKET", value_name = "PATH", hide_env_values = true)]
    pub socket: Option<PathBuf>,

    /// Where policies are pinned [default: /sys/fs/bpf/syrup]
    #[arg(long, global = true, env = "SYRUP_BPFFS", value_name = "PATH", hide_env_values = true)]
    pub bpffs: Option<PathBuf>,

    /// How to print data
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,

    /// Say on standard error what is being done; twice: in detail
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    /// Where data goes.
    pub output: Output,
    /// `--socket`, if it was named.
    pub socket: Option<PathBuf>,
    /// `--bpffs`, if it was named.
    pub bpffs: Option<PathBuf>,
}

impl Context {
    pub fn new(global: Global) -> Self {
        Self { output: Output::new(global.output), socket: global.socket, bpffs: global.bpffs }
    }

    /// The arbiter that answers.
    pub fn arbiter(&self) -> Result<Backend> {
        backend::open(self.socket.as_deref(), self.bpffs.as_deref())
    }

    /// The arbiter's answer, or what this process sees itself where nobody
    /// answers and no particular daemon was named.
    pub fn hooks(&self) -> Result<SeenHooks> {
        match self.arbiter() {
            Err(_) if self.socket.is_none() => Ok(SeenHooks::by_this_process()),
            arbiter => Ok(SeenHooks { hooks: arbiter?.hooks()?, certain: true }),
        }
    }

    /// The same for policies.
    pub fn policies(&self) -> Result<Vec<PolicyInfo>> {
        match self.arbiter() {
            Err(_) if self.socket.is_none() => Ok(syrup_engine::policies()),
            arbiter => arbiter?.policies(),
        }
    }
}

/// The hooks, and whether somebody with the rights to try them looked.
pub struct SeenHooks {
    /// What was seen.
    pub hooks: Vec<HookInfo>,
    /// False: what seems to be missing may only be hidden from this user.
    pub certain: bool,
}

impl SeenHooks {
    /// Without an arbiter.
    pub fn by_this_process() -> Self {
        Self { hooks: syrup_engine::hooks(), certain: backend::is_root() }
    }

    /// What to tell a user whose view may be too narrow.
    pub fn doubt(&self) -> Option<&'static str> {
        let missing = self.hooks.iter().any(|hook| !hook.available);
        (missing && !self.certain).then_some(
            "the kernel lets only root try its hooks: run this as root, or start syrupd, to be sure",
        )
    }
}
