//! `syrupctl list`

use clap::Args;
use serde::Serialize;
use syrup_protocol::{Deployment, Result};

use crate::context::Context;
use crate::{deployment, report};

const EXAMPLES: &str = "\
Examples:
  syrupctl list
      One row per policy that is loaded.

  syrupctl list -o json | jq -r '.deployments[] | select(.state != \"live\") | .app'
      The apps with a policy that does not do its work.";

/// List the policies that are loaded
///
/// Read from the kernel. Prints nothing but a remark when there are none.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct List {}

#[derive(Serialize)]
pub struct Body {
    pub deployments: Vec<Deployment>,
}

impl List {
    pub fn run(self, context: &Context) -> Result<u8> {
        let body = Body { deployments: context.arbiter()?.list()? };
        context.output.print(&body, || deployment::list(&body.deployments))?;
        remark_if_empty(context, &body.deployments);
        Ok(0)
    }
}

/// Silence would leave people in doubt; programs read standard output.
pub fn remark_if_empty(context: &Context, deployments: &[Deployment]) {
    if deployments.is_empty() && context.output.is_for_people() {
        report::note("no policy is loaded");
    }
}
