//! `syrupctl status`

use clap::Args;
use syrup_protocol::Result;

use super::list::{Body, remark_if_empty};
use crate::context::Context;
use crate::deployment;

const EXAMPLES: &str = "\
Examples:
  syrupctl status
      What each policy decided so far, whether it is live, and if not, why.

  syrupctl status || echo \"exit code $?\"
      Exit code 10 when a policy is degraded (the kernel's default decides some or all inputs)
      or was ejected by the kernel.

  syrupctl status -o json | jq '.deployments[] | {app, hook, counters, verdicts}'
      The counters, and how often each executor was chosen.

Columns:
  INPUTS   packets, or threads that became runnable
  CHOSEN   an executor was named and got the input
  PASSED   the policy left it to the kernel's default
  DROPPED  the policy discarded it
  FAULTS   the default decided because: out_of_range (no such executor), enforce_failed (the
           executor could not take it), no_policy (nothing in the slot); rescued: a thread that
           the policy left waiting too long was run anyway";

/// Show what the loaded policies do
///
/// Counters since the app's first policy at the hook was loaded, read from the kernel. A policy
/// is judged by what was counted since it replaced another one.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Status {}

impl Status {
    pub fn run(self, context: &Context) -> Result<u8> {
        let body = Body { deployments: context.arbiter()?.list()? };
        context.output.print(&body, || deployment::status(&body.deployments))?;
        remark_if_empty(context, &body.deployments);
        Ok(deployment::exit_code(&body.deployments))
    }
}
