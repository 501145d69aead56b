//! `syrup-bench`: the server, the load and the experiments.

use anyhow::Result;
use clap::{Parser, Subcommand};
use syrup_bench::experiment::{check, runner};
use syrup_bench::{interrupt, load, server, simulate, token_agent, work};

/// RocksDB server, open-loop load generator, experiments and reports for Syrup.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(runner::Options),
    Check(check::CheckOptions),
    Report(check::ReportOptions),
    List(check::ListOptions),
    Server(server::Options),
    Load(load::Options),
    Simulate(simulate::Options),
    TokenAgent(token_agent::Options),
    BuildDb(work::BuildOptions),
}

fn main() -> std::process::ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("syrup-bench: {error:#}");
            match interrupt::seen() {
                true => std::process::ExitCode::from(interrupt::STATUS),
                false => std::process::ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Run(options) => runner::run(options),
        Command::Check(options) => check::check(options),
        Command::Report(options) => check::report(options),
        Command::List(options) => check::list(options),
        Command::Server(options) => server::run(options),
        Command::Load(options) => load::run(options),
        Command::Simulate(options) => simulate::run(options),
        Command::TokenAgent(options) => token_agent::run(options),
        Command::BuildDb(options) => work::build(options),
    }
}
