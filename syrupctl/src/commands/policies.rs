//! `syrupctl policies`

use clap::Args;
use serde::Serialize;
use syrup_hook::HookId;
use syrup_protocol::{PolicyInfo, Result};

use crate::args::hook_parser;
use crate::context::Context;
use crate::output::table;

const EXAMPLES: &str = "\
Examples:
  syrupctl policies
      All policies that ship with Syrup.

  syrupctl policies --hook scx-syrup
      Those for threads.";

/// List the policies that ship with the hooks
///
/// Any of these names can be given to --policy.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Policies {
    /// Only those that fit this hook
    #[arg(long, value_parser = hook_parser())]
    hook: Option<HookId>,
}

#[derive(Serialize)]
struct Body {
    policies: Vec<PolicyInfo>,
}

impl Policies {
    pub fn run(self, context: &Context) -> Result<u8> {
        let mut policies = context.policies()?;
        if let Some(hook) = self.hook {
            policies.retain(|policy| policy.hooks.iter().any(|name| name == hook.name()));
        }
        let body = Body { policies };
        context.output.print(&body, || text(&body.policies))?;
        Ok(0)
    }
}

fn text(policies: &[PolicyInfo]) -> String {
    table(
        ["POLICY", "INPUT", "HOOKS", "WHAT IT DOES"],
        policies
            .iter()
            .map(|policy| {
                [
                    policy.name.clone(),
                    policy.input.clone(),
                    policy.hooks.join(", "),
                    policy.summary.clone(),
                ]
            })
            .collect(),
    )
}
