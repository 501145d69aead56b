//! `syrupctl doctor`
//!
//! * [`checks`]: one function per thing that is looked at.

mod checks;

use clap::Args;
use serde::Serialize;
use syrup_protocol::{Code, Result};

use crate::context::{Context, SeenHooks};
use crate::output::{Colour, Output, table};

const EXAMPLES: &str = "\
Examples:
  syrupctl doctor
      What this machine can do, what is missing, and what to do about it.

  sudo syrupctl doctor
      The same with root's rights: some settings are readable by root only.

  syrupctl doctor -o json | jq '.checks[] | select(.status != \"ok\")'
      The findings that need attention.

Exit code 0: nothing is missing. 6: something is, for example a hook. Warnings do not count.";

/// Say what this machine can do and what is missing
///
/// Changes nothing. 'missing' means that something does not work, 'warning' that it works less
/// well, or not for everybody.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {}

/// How something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Warning,
    Missing,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: String,
    status: Status,
    found: String,
    advice: Option<String>,
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status: Status::Ok, found: found.into(), advice: None }
    }

    fn warning(name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { name: name.to_owned(), status: Status::Warning, found: found.into(), advice }
    }

    fn missing(name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Missing, ..Self::warning(name, found, advice) }
    }
}

#[derive(Serialize)]
struct Body {
    kernel: String,
    checks: Vec<Check>,
}

impl Doctor {
    pub fn run(self, context: &Context) -> Result<u8> {
        // A daemon that does not answer is a finding, not an error.
        let hooks = context.hooks().unwrap_or_else(|_| SeenHooks::by_this_process());
        let body = Body { kernel: checks::kernel(), checks: checks::all(context, &hooks) };
        context.output.print(&body, || text(&body, &context.output))?;
        Ok(exit_code(&body.checks))
    }
}

fn exit_code(checks: &[Check]) -> u8 {
    let missing = checks.iter().any(|check| check.status == Status::Missing);
    if missing { Code::Unsupported.exit_code() } else { 0 }
}

fn text(body: &Body, output: &Output) -> String {
    let rows = body.checks.iter().map(|check| {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Missing => "missing",
        };
        [check.name.clone(), status.to_owned(), check.found.clone()]
    });
    let mut text = format!("Linux {}\n\n", body.kernel);
    text.push_str(&table(["CHECK", "STATE", "FOUND"], rows.collect()));
    for check in &body.checks {
        if let Some(advice) = &check.advice {
            let colour = if check.status == Status::Missing { Colour::Red } else { Colour::Yellow };
            text.push_str(&format!("\n{}: {advice}\n", output.paint(colour, &check.name)));
        }
    }
    if body.checks.iter().all(|check| check.status == Status::Ok) {
        text.push_str(&format!("\n{}\n", output.paint(Colour::Green, "nothing is missing")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn warnings_do_not_count_as_missing() {
        let ok = Check::ok("clang", "");
        assert_eq!(exit_code(&[ok.clone(), Check::warning("jit", "off", "on")]), 0);
        assert_eq!(exit_code(&[ok, Check::missing("hook", "", "")]), 6);
    }

    #[test]
    fn findings_are_a_table_and_advice_is_below() {
        let body = Body {
            kernel: "6.18.0".to_owned(),
            checks: vec![
                Check::ok("clang", "/usr/bin/clang"),
                Check::missing("hook scx-syrup", "no sched_ext", "boot another kernel"),
            ],
        };
        assert_eq!(
            text(&body, &Output::new(Format::Table)),
            "Linux 6.18.0\n\
             \n\
             CHECK           STATE    FOUND\n\
             clang           ok       /usr/bin/clang\n\
             hook scx-syrup  missing  no sched_ext\n\
             \n\
             hook scx-syrup: boot another kernel\n"
        );
    }
}
