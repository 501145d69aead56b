//! `syrupctl policies`

use clap::Args;
use serde::Serialize;
use syrup_protocol::{Code, Failure, PolicyInfo, Result};

use crate::args::{HookArg, hook_parser};
use crate::context::Context;
use crate::output::table;

const EXAMPLES: &str = "\
Examples:
  syrupctl policies
      All policies that ship with Syrup.

  syrupctl policies --hook scx-syrup
      Those for threads.

  syrupctl policies scan-avoid --source > mine.c
      The C file of one, to start your own from.";

/// List the policies that ship with the hooks
///
/// Any of these names can be given to --policy.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Policies {
    /// Only the one of this name
    name: Option<String>,

    /// Only those that fit this hook
    #[arg(long, value_parser = hook_parser())]
    hook: Option<HookArg>,

    /// Print its C file
    #[arg(long, requires = "name")]
    source: bool,
}

#[derive(Serialize)]
struct Body {
    policies: Vec<PolicyInfo>,
}

impl Policies {
    pub fn run(self, context: &Context) -> Result<u8> {
        if let Some(name) = self.name.as_deref().filter(|_| self.source) {
            return self.print_source(context, name);
        }
        let mut policies = context.policies()?;
        if let Some(name) = &self.name {
            policies.retain(|policy| policy.name == *name);
        }
        if let Some(hook) = self.hook {
            policies.retain(|policy| policy.hooks.iter().any(|name| name == hook.name));
        }
        let body = Body { policies };
        match &self.name {
            Some(name) if body.policies.is_empty() => return Err(unknown(name)),
            _ => {}
        }
        context.output.print(&body, || text(&body.policies))?;
        Ok(0)
    }

    fn print_source(&self, context: &Context, name: &str) -> Result<u8> {
        let found = syrup_engine::specs()
            .filter(|spec| self.hook.is_none_or(|hook| *spec == hook))
            .flat_map(|spec| spec.policies)
            .find(|policy| policy.name == name)
            .ok_or_else(|| unknown(name))?;
        let body = Source { policy: found.name, source: found.source };
        context.output.print(&body, || body.source.to_owned())?;
        Ok(0)
    }
}

#[derive(Serialize)]
struct Source {
    policy: &'static str,
    source: &'static str,
}

fn unknown(name: &str) -> Failure {
    Failure::new(Code::Usage, format!("no policy '{name}' ships with Syrup"))
        .advise("'syrupctl policies' lists those that do")
}

fn text(policies: &[PolicyInfo]) -> String {
    table(
        ["POLICY", "INPUT", "HOOKS", "WHAT IT DOES"],
        policies
            .iter()
            .map(|policy| {
                [
                    policy.name.clone(),
                    policy.input.to_string(),
                    policy.hooks.join(", "),
                    policy.summary.clone(),
                ]
            })
            .collect(),
    )
}
