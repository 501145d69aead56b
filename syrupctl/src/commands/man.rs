//! `syrupctl man`

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use syrup_protocol::{Code, Failure, Result};

use crate::cli::Cli;
use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  syrupctl man /usr/local/share/man/man1
      Then 'man syrupctl' and 'man syrupctl-load' show them.";

/// Write the manual pages into a folder
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Man {
    /// The folder, which is there
    folder: PathBuf,
}

impl Man {
    pub fn run(self, _context: &Context) -> Result<u8> {
        // Otherwise the pages would have the width and the colours of this terminal.
        let command = Cli::command().term_width(80).color(clap::ColorChoice::Never);
        clap_mangen::generate_to(command, &self.folder).map_err(|e| {
            let message = format!("cannot write to {}: {e}", self.folder.display());
            Failure::new(Code::Usage, message).advise("name a folder that is there and yours")
        })?;
        Ok(0)
    }
}
