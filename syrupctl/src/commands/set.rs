//! `syrupctl set`

use clap::Args;
use syrup_protocol::{Result, SetRequest};

use super::load;
use crate::args::{CHANGEABLE, DEFAULT_APP, HookArg, Target, app_name, assignment, hook_parser};
use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  syrupctl set scx-syrup --app rocksdb --weight 200
      From now on twice the share of an app that has 100.

  syrupctl set scx-syrup --app rocksdb --cpus 0-3 --set SLICE_US=5000
      Other cores, and another value for a parameter of the policy.

A policy of your own is given again: syrupctl replace HOOK --policy ./mine.c --set NAME=VALUE.
'syrupctl show APP' has the values.";

/// Change parameters and settings of a live policy
///
/// What is not named stays as it is. Cores and weight take effect from the next decision on.
/// Parameters are constants of the loaded program: for these the policy, one that ships with
/// the hook, is replaced by itself with other values, in one atomic step as by 'replace'. Of
/// both, cores and weight come first.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Set {
    /// Where the policy runs
    #[arg(value_parser = hook_parser())]
    hook: HookArg,

    /// The app
    #[arg(long, default_value = DEFAULT_APP, value_parser = app_name)]
    app: String,

    #[command(flatten)]
    target: Target<CHANGEABLE>,

    /// Change a parameter (SYRUP_PARAM) of the policy; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
    params: Vec<(String, String)>,
}

impl Set {
    pub fn run(self, context: &Context) -> Result<u8> {
        let changed = context.arbiter()?.set(&SetRequest {
            hook: self.hook.name.to_owned(),
            app: self.app,
            params: self.params,
            target: self.target.0,
        })?;
        load::print(context, &changed)
    }
}
