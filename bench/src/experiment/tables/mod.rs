//! The experiments, a file each.

mod cost;
mod demo;
mod figure_2;
mod figure_6;
mod native;

use anyhow::{Result, bail, ensure};

use super::plan::{Plan, Service, Setting};

/// All of them, in the order of the paper's.
pub const NAMES: [&str; 4] = ["demo", "cost", "figure-2", "figure-6"];

/// A table by name.
pub fn plan(name: &str, setting: &Setting) -> Result<Plan> {
    let mut plan = match name {
        "cost" => cost::plan(setting),
        "demo" => demo::plan(setting),
        "figure-2" => figure_2::plan(setting),
        "figure-6" => figure_6::plan(setting),
        other => bail!("there is no experiment '{other}', but {}", NAMES.join(", ")),
    };
    ensure!(
        matches!(plan.service, Service::RocksDb { .. })
            || (setting.db.is_none() && setting.keys.is_none()),
        "{name} uses no database: --db and --keys are for others"
    );
    ensure!(
        name == "demo" || setting.dilation.is_none(),
        "the dilation of {name} is its own: --dilation is for the demo"
    );
    if let Some(rounds) = setting.rounds {
        ensure!(
            rounds >= plan.rounds,
            "{name} needs {} rounds, {rounds} are too few: --quick is for trials, and --round makes \
             some of them",
            plan.rounds
        );
        plan.rounds = rounds;
    }
    plan.check()?;
    Ok(plan)
}
