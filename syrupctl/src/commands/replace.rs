//! `syrupctl replace`

use clap::Args;
use syrup_protocol::{ReplaceRequest, Result};

use super::load;
use crate::args::{DEFAULT_APP, HookArg, app_name, assignment, hook_parser};
use crate::context::Context;
use crate::policy::{self, PolicyArg};

const EXAMPLES: &str = "\
Examples:
  syrupctl replace socket-select --app rocksdb --policy sita
      From one input to the next, sita decides instead of the policy that was live.

  syrupctl replace socket-select --app rocksdb --policy ./mine.c --set LIMIT=16
      The same file again with another parameter.";

/// Put another policy in the place of the live one
///
/// One atomic step: each input is decided by the old or by the new policy, none by the kernel's
/// default. Port, sockets, threads, cores and Maps stay; when the new policy is refused, the old
/// one goes on.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Replace {
    /// Where the live policy runs
    #[arg(value_parser = hook_parser())]
    hook: HookArg,

    /// The new policy: a name that 'syrupctl policies' lists, a C file, or a compiled object
    #[arg(long, value_name = "NAME|FILE.c|FILE.o")]
    policy: PolicyArg,

    /// The app
    #[arg(long, default_value = DEFAULT_APP, value_parser = app_name)]
    app: String,

    /// Change a parameter (SYRUP_PARAM) of the policy; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
    params: Vec<(String, String)>,
}

impl Replace {
    pub fn run(self, context: &Context) -> Result<u8> {
        let policy = self.policy.read()?;
        let arbiter = context.arbiter()?;
        let policy = policy::resolve(&arbiter, policy, self.hook)?;
        let loaded = arbiter.replace(&ReplaceRequest {
            hook: self.hook.name.to_owned(),
            app: self.app,
            policy,
            params: self.params,
        })?;
        load::print(context, &loaded)
    }
}
