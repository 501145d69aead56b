//! `syrup-bench`: the server, the load and the experiments.

use anyhow::Result;
use clap::{Parser, Subcommand};
use syrup_bench::experiment::{self, check, demo, native};
use syrup_bench::{cost, load, server, simulate, token_agent, work};

/// RocksDB server, open-loop load generator, experiments and reports for Syrup.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Server(server::Options),
    Load(load::Options),
    Simulate(simulate::Options),
    Demo(demo::Options),
    Native(native::Options),
    Check(check::Options),
    Report(experiment::RenderOptions),
    Cost(cost::Options),
    TokenAgent(token_agent::Options),
    BuildDb(work::BuildOptions),
}

fn main() -> std::process::ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("syrup-bench: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Server(options) => server::run(options),
        Command::Load(options) => load::run(options),
        Command::Simulate(options) => simulate::run(options),
        Command::Demo(options) => demo::run(options),
        Command::Native(options) => native::run(options),
        Command::Check(options) => check::run(options),
        Command::Report(options) => experiment::render(options),
        Command::Cost(options) => cost::run(options),
        Command::TokenAgent(options) => token_agent::run(options),
        Command::BuildDb(options) => work::build(options),
    }
}
