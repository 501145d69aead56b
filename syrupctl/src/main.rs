//! `syrupctl`: the command line of Syrup.
//!
//! * [`cli`]: what can be typed.
//! * [`commands`]: one file per subcommand; each asks a [`syrup_protocol::Arbiter`] and
//!   prints the answer.
//! * [`args`], [`context`]: what commands share: how arguments are read, who answers.
//! * [`backend`]: which arbiter answers, the daemon or the engine in-process.
//! * [`policy`]: what `--policy` names.
//! * [`output`], [`deployment`], [`report`]: data to stdout, errors to stderr.
//!
//! Invariant: nothing here changes the kernel; whatever is deployed is deployed behind
//! the trait. (`check` has the kernel's verifier read a policy, in this process.)

mod args;
mod backend;
mod cli;
mod commands;
mod context;
mod deployment;
mod output;
mod policy;
mod report;

use std::process::ExitCode;

use clap::Parser as _;

use cli::Cli;
use context::Context;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    start_log(cli.global.verbose);
    let context = Context::new(cli.global);
    let result = cli.command.run(&context);
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report::error(&error);
            ExitCode::from(error.code.exit_code())
        }
    }
}

/// `-v` says what the engine does, `-vv` also how; `RUST_LOG` says it exactly.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format_target(false)
        .format_timestamp(None)
        .init();
}
