//! `syrupctl load`

use clap::Args;
use serde::Serialize;
use syrup_protocol::{Deployment, LoadRequest, Result};

use crate::args::{ALL, DEFAULT_APP, HookArg, Target, app_name, assignment, hook_parser, user};
use crate::context::Context;
use crate::policy::{self, PolicyArg};
use crate::{deployment, report};

const EXAMPLES: &str = "\
Examples:
  syrupctl load socket-select --policy round-robin --port 7000
      Spread the datagrams of UDP port 7000 over the sockets of the server that runs there.

  syrupctl load socket-select --app rocksdb --policy scan-avoid --port 7000 --pid 4711
      The same for one process, as app 'rocksdb', away from sockets that serve a SCAN.

  syrupctl load socket-select --policy hash --port 80 --proto tcp
      Choose among the listening sockets for each new TCP connection.

  syrupctl load scx-syrup --app rocksdb --policy get-priority --pid 4711 --cpus 0-3
      Schedule the threads of a process; those that serve a GET run first.

  syrupctl load socket-select --app web --user www-data --policy hash --port 80 --proto tcp
      For a server of user www-data, who may then replace and unload it and open its Maps.

  syrupctl load socket-select --policy ./mine.c --set LIMIT=8 --port 7000
      Your own policy, with one of its parameters changed.

'syrupctl policies' lists the names, 'syrupctl check' tries a file without deploying it.
Exit code 10 means: it is loaded, but the kernel's default decides some or all inputs.";

/// Put a policy at a hook
///
/// Returns after the kernel was seen to use it. An app has one policy per hook: 'replace' changes
/// it without a gap, 'unload' takes it away.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Load {
    /// Where the policy runs
    #[arg(value_parser = hook_parser())]
    hook: HookArg,

    /// A name that 'syrupctl policies' lists, a C file, or a compiled policy object
    #[arg(long, value_name = "NAME|FILE.c|FILE.o")]
    policy: PolicyArg,

    /// The app whose inputs it decides
    #[arg(long, default_value = DEFAULT_APP, value_parser = app_name)]
    app: String,

    /// The user whose app it is, by name or number; only root may say [default: who runs this].
    /// The policy decides about this user's and root's sockets at the ports
    #[arg(long, value_name = "USER", value_parser = user)]
    user: Option<u32>,

    #[command(flatten)]
    target: Target<ALL>,

    /// Change a parameter (SYRUP_PARAM) of the policy; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
    params: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Body<'a> {
    deployment: &'a Deployment,
}

impl Load {
    pub fn run(self, context: &Context) -> Result<u8> {
        self.send(context, false)
    }

    /// `or_replace`: where there is a policy, this one takes its place.
    pub fn send(self, context: &Context, or_replace: bool) -> Result<u8> {
        let policy = self.policy.read()?;
        let arbiter = context.arbiter()?;
        let policy = policy::resolve(&arbiter, policy, self.hook)?;
        let loaded = arbiter.load(&LoadRequest {
            hook: self.hook.name.to_owned(),
            app: self.app,
            policy,
            params: self.params,
            target: self.target.0,
            or_replace,
            owner: self.user,
        })?;
        print(context, &loaded)
    }
}

/// The deployment that came of `load` or `replace`.
pub fn print(context: &Context, loaded: &Deployment) -> Result<u8> {
    context.output.print(&Body { deployment: loaded }, || deployment::sentence(loaded) + "\n")?;
    match deployment::trouble(loaded) {
        None => {
            if let Some(waits) = deployment::waits_for(loaded) {
                report::note(waits);
            }
            Ok(0)
        }
        Some(error) => {
            report::error(&error);
            Ok(error.code.exit_code())
        }
    }
}
