//! `syrupctl check`

use clap::Args;
use serde::Serialize;
use syrup_engine::{CheckReport, Engine};
use syrup_protocol::{Input, PolicySource, Result};

use crate::args::{HookArg, assignment, hook_parser};
use crate::context::Context;
use crate::output::facts;
use crate::policy::PolicyArg;

const EXAMPLES: &str = "\
Examples:
  syrupctl check ./mine.c --hook socket-select
      Compile it and look for what a policy may not do; as root, also ask the kernel's verifier.

  syrupctl check ./mine.c --hook scx-syrup --set QUANTUM_US=50
      With one of its parameters changed.

  syrupctl check get-priority --hook scx-syrup
      Does this kernel's verifier accept a policy that ships with Syrup?

Exit code 3: the compiler or the check refused it. 4: the verifier did.";

/// Try a policy without deploying it
///
/// Nothing stays in the kernel. Says which steps were done: an ordinary user, or a kernel without
/// the hook, cannot ask the verifier.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Check {
    /// A C file, a compiled policy object, or a name that 'syrupctl policies' lists
    #[arg(value_name = "FILE.c|FILE.o|NAME")]
    policy: PolicyArg,

    /// The hook it is for
    #[arg(long, value_parser = hook_parser())]
    hook: HookArg,

    /// Change a parameter (SYRUP_PARAM) of the policy; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
    params: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Body<'a> {
    policy: &'a str,
    hook: &'static str,
    input: Input,
    instructions: usize,
    maps: &'a [String],
    params: &'a [String],
    /// In the order they were made.
    steps: Vec<Step<'a>>,
}

#[derive(Serialize)]
struct Step<'a> {
    name: &'static str,
    done: bool,
    /// Why not.
    reason: Option<&'a str>,
}

impl Check {
    pub fn run(self, context: &Context) -> Result<u8> {
        let policy = self.policy.read()?;
        let report = Engine::check(&policy, self.hook.name, &self.params)?;
        let body = body(&policy, self.hook, &report);
        context.output.print(&body, || text(&body))?;
        Ok(0)
    }
}

fn body<'a>(policy: &'a PolicySource, hook: HookArg, report: &'a CheckReport) -> Body<'a> {
    let (name, compiled, why) = match policy {
        PolicySource::Builtin { name } => {
            (name, false, Some("it was compiled when Syrup was built"))
        }
        PolicySource::Object { file_name, .. } => (file_name, false, Some("it is an object")),
        PolicySource::Source { file_name, .. } => (file_name, true, None),
    };
    let step = |name, done, reason| Step { name, done, reason };
    let refused = report.verified.as_ref().err().map(String::as_str);
    Body {
        policy: name,
        hook: hook.name,
        input: report.input,
        instructions: report.instructions,
        maps: &report.maps,
        params: &report.params,
        steps: vec![
            step("compile", compiled, why),
            step("object", true, None),
            step("link", true, None),
            step("verifier", refused.is_none(), refused),
        ],
    }
}

fn text(body: &Body<'_>) -> String {
    let names = |names: &[String]| match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let mut rows = vec![];
    for step in &body.steps {
        rows.push((
            step.name,
            match step.reason {
                None if step.done => "ok".to_owned(),
                reason => format!("not done: {}", reason.unwrap_or("unknown reason")),
            },
        ));
    }
    rows.push(("instructions", body.instructions.to_string()));
    rows.push(("maps", names(body.maps)));
    rows.push(("parameters", names(body.params)));
    format!("{} fits {} (input: {})\n{}", body.policy, body.hook, body.input, facts(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_not_done_says_why() {
        let policy = PolicySource::Source { file_name: "p.c".to_owned(), text: String::new() };
        let report = CheckReport {
            input: Input::Packet,
            instructions: 12,
            maps: vec!["load".to_owned()],
            params: vec![],
            verified: Err("only root can ask the verifier".to_owned()),
        };
        assert_eq!(
            text(&body(&policy, crate::args::hook("socket-select").unwrap(), &report)),
            "p.c fits socket-select (input: packet)\n\
             \x20 compile       ok\n\
             \x20 object        ok\n\
             \x20 link          ok\n\
             \x20 verifier      not done: only root can ask the verifier\n\
             \x20 instructions  12\n\
             \x20 maps          load\n\
             \x20 parameters    none\n"
        );
    }
}
