//! What can be typed: the list of subcommands. The arguments of each are beside its
//! code, the global ones beside what they become.

use clap::{Parser, Subcommand};
use syrup_protocol::Result;

use crate::commands::apply::Apply;
use crate::commands::check::Check;
use crate::commands::completions::Completions;
use crate::commands::doctor::Doctor;
use crate::commands::gc::Gc;
use crate::commands::hooks::Hooks;
use crate::commands::list::List;
use crate::commands::load::Load;
use crate::commands::man::Man;
use crate::commands::map::Map;
use crate::commands::policies::Policies;
use crate::commands::replace::Replace;
use crate::commands::run::Run;
use crate::commands::set::Set;
use crate::commands::show::Show;
use crate::commands::status::Status;
use crate::commands::unload::Unload;
use crate::context::{Context, Global};

const EXAMPLES: &str = "\
Examples:
  syrupctl doctor                                  what this machine can do, and what is missing
  syrupctl policies                                the policies that ship with each hook
  syrupctl load socket-select --policy round-robin --port 7000
                                                   spread the datagrams of a running UDP server
  syrupctl status                                  what the live policies did so far
  syrupctl unload --all                            the machine as it was before

'syrupctl COMMAND --help' shows the options of a command and more examples.";

const MORE: &str = "\
Who does the work:
  When the daemon answers at --socket, it does. Otherwise syrupctl does it itself, which needs
  root. Naming only --bpffs asks for the latter, naming only --socket for the former.

Output:
  Standard output carries data only. With -o json it is one document with \"schema\": 1; lists
  are arrays, also empty ones. Errors go to standard error: what failed in the kernel's or the
  compiler's words, and what to do.

Exit codes:
  0   done
  1   internal: a defect, or the system refused something unexpected
  2   usage: the command makes no sense as typed
  3   source rejected: the compiler, or the check of the compiled policy
  4   verifier rejected: the kernel's verifier refused the policy
  5   not permitted
  6   the kernel, or something installed, lacks a feature: see 'syrupctl doctor'
  7   conflict: something else has it already, or what was named is not there
  8   the daemon does not answer
  9   it did not happen in time
  10  loaded, but the kernel's default decides some inputs, or the policy was ejected";

/// User-defined scheduling across the Linux stack: put a policy where packets
/// meet sockets and where threads meet cores.
#[derive(Debug, Parser)]
#[command(
    name = "syrupctl",
    version,
    max_term_width = 100,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{MORE}")
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands, each a type of the same name with a `run`.
macro_rules! commands {
    ($($name:ident)*) => {
        #[derive(Debug, Subcommand)]
        pub enum Command {
            $($name($name),)*
        }

        impl Command {
            pub fn run(self, context: &Context) -> Result<u8> {
                match self {
                    $(Self::$name(command) => command.run(context),)*
                }
            }
        }
    };
}

commands! {
    Load Replace Apply Set Unload Gc List Show Status Hooks Policies Map Check Run Doctor
    Completions Man
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
