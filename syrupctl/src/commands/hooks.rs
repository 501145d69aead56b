//! `syrupctl hooks`

use clap::Args;
use serde::Serialize;
use syrup_protocol::{HookInfo, Result};

use crate::context::Context;
use crate::output::table;
use crate::report;

const EXAMPLES: &str = "\
Examples:
  syrupctl hooks
      The places where a policy can run, and what is missing for those where it cannot.

  syrupctl hooks -o json | jq -r '.hooks[] | select(.available) | .name'
      The names of those that work here.";

/// List the hooks and whether this kernel has them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Hooks {}

#[derive(Serialize)]
struct Body {
    hooks: Vec<HookInfo>,
}

impl Hooks {
    pub fn run(self, context: &Context) -> Result<u8> {
        let seen = context.hooks()?;
        if let Some(doubt) = seen.doubt() {
            report::note(doubt);
        }
        let body = Body { hooks: seen.hooks };
        context.output.print(&body, || text(&body.hooks))?;
        Ok(0)
    }
}

fn text(hooks: &[HookInfo]) -> String {
    let mut text = table(
        ["HOOK", "INPUT", "EXECUTOR", "STATE"],
        hooks
            .iter()
            .map(|hook| {
                [
                    hook.name.clone(),
                    hook.input.to_string(),
                    hook.executor.clone(),
                    if hook.available { "available" } else { "missing" }.to_owned(),
                ]
            })
            .collect(),
    );
    for hook in hooks.iter().filter(|hook| !hook.available) {
        let missing = hook.missing.as_deref().unwrap_or("not available");
        text.push_str(&format!("\n{}: {missing}\n", hook.name));
        if let Some(advice) = &hook.advice {
            text.push_str(&format!("  help: {advice}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_below_with_what_to_do() {
        let hook = |name: &str, missing: Option<&str>| HookInfo {
            name: name.to_owned(),
            input: syrup_protocol::Input::Thread.into(),
            registers: syrup_protocol::Kind::Thread.into(),
            takes: vec![],
            changeable: vec![],
            executor: "a core".to_owned(),
            available: missing.is_none(),
            missing: missing.map(str::to_owned),
            advice: missing.map(|_| "boot another kernel".to_owned()),
        };
        let text = text(&[hook("a", None), hook("b", Some("no sched_ext"))]);
        assert_eq!(
            text,
            "HOOK  INPUT   EXECUTOR  STATE\n\
             a     thread  a core    available\n\
             b     thread  a core    missing\n\
             \n\
             b: no sched_ext\n\
             \x20 help: boot another kernel\n"
        );
    }
}
