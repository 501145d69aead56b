//! `syrupctl unload`

use clap::Args;
use serde::Serialize;
use syrup_protocol::Result;
use syrup_protocol::call::DeploymentRef;

use crate::args::{DEFAULT_APP, HookArg, app_name, hook_parser};
use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  syrupctl unload socket-select --app rocksdb
      The kernel's default decides again which socket of app 'rocksdb' gets a packet.

  syrupctl unload --all
      Every policy of every app, and the scheduler: the machine is as it was before.";

/// Take a policy away
///
/// The inputs get the kernel's default again. Nothing that runs is stopped.
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "syrupctl unload <HOOK> [--app <APP>]\n       syrupctl unload --all"
)]
pub struct Unload {
    /// Where the policy runs
    #[arg(value_parser = hook_parser(), required_unless_present = "all")]
    hook: Option<HookArg>,

    /// The app
    #[arg(long, default_value = DEFAULT_APP, value_parser = app_name)]
    app: String,

    /// Everything of all apps
    #[arg(long, conflicts_with_all = ["hook", "app"])]
    all: bool,
}

#[derive(Serialize)]
struct Body {
    unloaded: Vec<DeploymentRef>,
}

impl Unload {
    pub fn run(self, context: &Context) -> Result<u8> {
        let arbiter = context.arbiter()?;
        let unloaded = match self.hook {
            Some(hook) => {
                arbiter.unload(hook.name, &self.app)?;
                vec![DeploymentRef { app: self.app, hook: hook.name.to_owned() }]
            }
            None => arbiter.unload_all()?,
        };
        let body = Body { unloaded };
        context.output.print(&body, || text(&body.unloaded))?;
        Ok(0)
    }
}

fn text(unloaded: &[DeploymentRef]) -> String {
    if unloaded.is_empty() {
        return "nothing was loaded\n".to_owned();
    }
    unloaded.iter().map(|gone| format!("unloaded {} of app {}\n", gone.hook, gone.app)).collect()
}
