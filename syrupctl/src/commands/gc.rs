//! `syrupctl gc`

use clap::Args;
use syrup_protocol::Result;
use syrup_protocol::call::Tidied;

use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  syrupctl gc       after a server was reloaded on a machine without syrupd, or a command was killed

syrupd does the same by itself: what servers open and close within a second, the rest when it starts.";

/// Bring what is deployed up to date, and remove what nobody needs
///
/// Sockets that a server opened since become executors, those it closed leave. What interrupted
/// commands left is removed, and so are deployments of apps that have ended. For root.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Gc {}

impl Gc {
    pub fn run(self, context: &Context) -> Result<u8> {
        let done = context.arbiter()?.tidy()?;
        context.output.print(&done, || text(&done))?;
        Ok(0)
    }
}

fn text(Tidied { changed, removed }: &Tidied) -> String {
    if changed.is_empty() && removed.is_empty() {
        return "there was nothing to do\n".to_owned();
    }
    let changed = changed
        .iter()
        .map(|at| format!("{} of app {}: its executors are up to date\n", at.hook, at.app));
    let removed = removed.iter().map(|path| format!("removed {path}\n"));
    changed.chain(removed).collect()
}
