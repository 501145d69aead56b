//! `syrupctl completions`

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use syrup_protocol::Result;

use crate::cli::Cli;
use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  syrupctl completions bash > /etc/bash_completion.d/syrupctl
      Complete in every bash that starts from now on.

  source <(syrupctl completions zsh)
      In this zsh.";

/// Print a script by which a shell completes syrupctl's arguments
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(self, context: &Context) -> Result<u8> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "syrupctl", &mut script);
        context.output.raw(&script)?;
        Ok(0)
    }
}
