//! Experiments. A table (`plan`, `tables`) says what is run; the runner runs it
//! and writes each run down (`journal`); what was measured (`points`) is judged
//! (`criteria`), tabled (`results`) and drawn (`crate::report`). Only the runner
//! needs a machine: the rest are functions of files.

pub mod check;
pub mod criteria;
pub mod distribution;
pub mod environment;
pub mod journal;
pub mod plan;
pub mod points;
pub mod policies;
mod progress;
pub mod results;
pub mod runner;
mod server_process;
mod stack;
pub mod tables;
mod temporary;
mod twin;

use std::path::{Path, PathBuf};

pub use server_process::ServerProcess;
pub use stack::{Deployment, Programs, Stack};

/// Folder of an experiment's runs.
#[must_use]
pub fn folder(out: &Path, name: &str, quick: bool) -> PathBuf {
    out.join(if quick { format!("{name}-quick") } else { name.to_owned() })
}

/// A latency with three digits and its unit.
#[must_use]
pub fn latency(us: f64) -> String {
    match us {
        us if us < 99.95 => format!("{us:.1}us"),
        us if us < 999.5 => format!("{us:.0}us"),
        us if us < 99_950.0 => format!("{:.1}ms", us / 1e3),
        us if us < 999_500.0 => format!("{:.0}ms", us / 1e3),
        us if us.is_infinite() => "never".to_owned(),
        us => format!("{:.2}s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_have_three_digits() {
        assert_eq!(latency(7.25), "7.2us");
        assert_eq!(latency(512.0), "512us");
        assert_eq!(latency(2512.0), "2.5ms");
        assert_eq!(latency(120_400.0), "120ms");
        assert_eq!(latency(1_204_000.0), "1.20s");
        assert_eq!(latency(f64::INFINITY), "never");
    }
}
