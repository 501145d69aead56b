//! `check`: the criteria of a finished experiment, by exit status.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;

use super::Results;
use super::criteria::{self, Verdict};
use super::output::{DETAILS, Details, read};

/// Prints the criteria of a finished experiment; fails when one falls short.
///
/// Reads results.json and, when it is there, the details.json beside it, which
/// holds the criteria that are not about latencies.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  syrup-bench check target/demo/results.json
  syrup-bench check target/native/results.json")]
pub struct Options {
    /// The experiment's results.json.
    pub results: PathBuf,
}

/// Fails when a criterion falls short.
pub fn run(options: &Options) -> Result<()> {
    let verdicts = verdicts(&options.results)?;
    for verdict in &verdicts {
        println!("{}", verdict.line());
    }
    let short = verdicts.iter().filter(|verdict| !verdict.holds()).count();
    ensure!(
        short == 0,
        "{short} of {} criteria fall short: look at the ranges in report.html, and run again with \
         more --rounds on a quieter machine if they are wide",
        verdicts.len()
    );
    Ok(())
}

fn verdicts(path: &Path) -> Result<Vec<Verdict>> {
    let results: Results = read(path)?;
    let mut verdicts = criteria::of(&results);
    let details = path.with_file_name(DETAILS);
    if details.exists() {
        verdicts.extend(read::<Details>(&details)?.further_verdicts);
    }
    ensure!(!verdicts.is_empty(), "the experiment '{}' has no criteria", results.experiment);
    Ok(verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_files_rows_and_criteria_fail() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let check = || run(&Options { results: path.clone() });
        assert!(format!("{:#}", check().unwrap_err()).contains("run the experiment first"));
        let mut results = Results {
            experiment: "demo".to_owned(),
            criterion: String::new(),
            rounds: 1,
            rows: Vec::new(),
        };
        std::fs::write(&path, serde_json::to_vec(&results).unwrap()).unwrap();
        assert!(format!("{:#}", check().unwrap_err()).contains("5 of 5 criteria"));
        results.experiment = "other".to_owned();
        std::fs::write(&path, serde_json::to_vec(&results).unwrap()).unwrap();
        assert!(format!("{:#}", check().unwrap_err()).contains("no criteria"));
    }
}
