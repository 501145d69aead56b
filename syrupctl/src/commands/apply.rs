//! `syrupctl apply`

use clap::Args;
use syrup_protocol::Result;

use super::load::Load;
use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  syrupctl apply socket-select --app rocksdb --policy ./mine.c --port 7000
      Load it; or, when app 'rocksdb' has a policy there, put it in the place of that one.

  ExecStartPost=syrupctl apply socket-select --app dns --policy round-robin --port 53
      In a unit of systemd: the same after each start and restart.";

/// Load a policy, or put it in the place of the live one
///
/// The same command may run any number of times. What a live deployment is for (port, process,
/// cores) stays as it is; naming another is refused.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Apply {
    #[command(flatten)]
    load: Load,
}

impl Apply {
    pub fn run(self, context: &Context) -> Result<u8> {
        self.load.send(context, true)
    }
}
