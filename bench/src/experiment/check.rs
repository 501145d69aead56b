//! `check` and `report`: an experiment that was run is judged or drawn again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::criteria::Bound;
use super::journal::{Journal, RESULTS};
use super::plan::Plan;
use super::results::{self, Outcome, Results};
use super::tables;

/// Prints the criteria of an experiment that was run; fails when one falls short.
///
/// Judges the runs, not what was said of them: rows that are missing, numbers
/// that are none, and a results.json that does not belong to the runs fail too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  syrup-bench check figure-2
  syrup-bench check target/demo")]
pub struct CheckOptions {
    /// Its name, or its folder.
    #[arg(value_name = "EXPERIMENT|FOLDER")]
    pub experiment: PathBuf,
    /// Folder of all experiments.
    #[arg(long, default_value = "target")]
    pub out: PathBuf,
}

/// Prints the table of an experiment and writes its report.html and results.json.
///
/// Also of one whose rounds several machines ran; of one that is not finished
/// there is no results.json.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  syrup-bench report demo
  syrup-bench report target/figure-6")]
pub struct ReportOptions {
    /// Its name, or its folder.
    #[arg(value_name = "EXPERIMENT|FOLDER")]
    pub experiment: PathBuf,
    /// Folder of all experiments.
    #[arg(long, default_value = "target")]
    pub out: PathBuf,
}

/// Lists the experiments.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  syrup-bench list")]
pub struct ListOptions {}

/// Fails when a criterion falls short.
pub fn check(options: &CheckOptions) -> Result<()> {
    let journal = find(&options.experiment, &options.out)?;
    let outcome = judged(&journal)?;
    results::show(&outcome.verdicts);
    let quick = outcome.results.quick;
    if quick {
        println!("a quick run: only whether all went as it should decides, not how much");
    }
    let stored = stored(journal.folder())?;
    let belongs = "it does not belong to the runs: `syrup-bench report` writes it again";
    ensure!(stored == outcome.results, "{RESULTS} in {}: {belongs}", journal.folder().display());
    let decide = outcome.verdicts.iter();
    let decide = decide.filter(|verdict| verdict.bound != Bound::Shown);
    let decide = decide.filter(|verdict| !quick || verdict.structural);
    let (short, all) = decide
        .fold((0, 0), |(short, all), verdict| (short + usize::from(!verdict.holds()), all + 1));
    ensure!(
        short == 0,
        "{short} of {all} criteria fall short: look at the ranges in report.html, and run more \
         --rounds if they are wide"
    );
    Ok(())
}

/// Writes results and report again.
pub fn report(options: &ReportOptions) -> Result<()> {
    let journal = find(&options.experiment, &options.out)?;
    let (plan, setting) = table_of(&journal)?;
    let measured = journal.read(&plan, &setting)?;
    results::write(&journal, &plan, &setting, &measured)
}

/// Names and headlines.
pub fn list(_: &ListOptions) -> Result<()> {
    let setting = super::plan::Setting { cpus: 2, ..Default::default() };
    for name in tables::NAMES {
        let plan = tables::plan(name, &setting)?;
        println!("{name:<12} {}", plan.title);
    }
    Ok(())
}

/// What was measured in a folder, judged by today's table.
pub fn judged(journal: &Journal) -> Result<Outcome> {
    let (plan, setting) = table_of(journal)?;
    let measured = journal.read(&plan, &setting)?;
    results::outcome(&plan, &setting, &measured)
}

fn table_of(journal: &Journal) -> Result<(Plan, super::plan::Setting)> {
    let head = journal.head()?;
    Ok((tables::plan(&head.experiment, &head.setting)?, head.setting))
}

/// By name below `out` (with "-quick" of a quick run), or a folder, or its
/// results.json.
fn find(experiment: &Path, out: &Path) -> Result<Journal> {
    if let Some(name) = experiment.to_str() {
        let quick = name.strip_suffix("-quick");
        let table = quick.unwrap_or(name);
        if tables::NAMES.contains(&table) {
            return Ok(Journal::at(&super::folder(out, table, quick.is_some())));
        }
    }
    let folder = match experiment.file_name() {
        Some(name) if name == RESULTS => experiment.parent().unwrap_or(Path::new(".")),
        _ => experiment,
    };
    if !folder.is_dir() {
        bail!(
            "{} is neither an experiment ({}) nor the folder of one: run the experiment first",
            experiment.display(),
            tables::NAMES.join(", ")
        );
    }
    Ok(Journal::at(folder))
}

fn stored(folder: &Path) -> Result<Results> {
    let path = folder.join(RESULTS);
    let text = std::fs::read(&path).with_context(|| {
        format!(
            "cannot read {}: `syrup-bench run` or `report` write it when no run is missing",
            path.display()
        )
    })?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what an experiment writes", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::environment::Environment;
    use super::super::journal::{Head, Probed, Record, Run};
    use super::super::plan::Setting;
    use super::super::points::tests::{Made, run};
    use super::*;

    /// A finished experiment: every run of a table, made up.
    fn finished(folder: &Path, name: &str, quick: bool) -> Journal {
        let journal = Journal::at(folder);
        let setting = Setting { quick, cpus: 2, ..Setting::default() };
        let plan = tables::plan(name, &setting).unwrap();
        let experiment = plan.name.to_owned();
        journal.begin(&Head { experiment, setting: setting.clone() }, false).unwrap();
        for round in 1..=plan.rounds {
            let mut writer = journal.round(round).unwrap();
            writer.append(&Record::Environment(Environment::here("", 2))).unwrap();
            for probe in &plan.probes {
                let probe = probe.name.to_owned();
                let probed = Probed { round, probe, numbers: Vec::new() };
                writer.append(&Record::Probe(probed)).unwrap();
            }
            for (load_rps, config) in plan.round(round, 1) {
                let made = Made {
                    config: config.name,
                    load_rps,
                    round,
                    gets_us: vec![600],
                    deployed: (!config.policies.is_empty()).then_some(("live", 1)),
                    ..Made::default()
                };
                let fingerprint = plan.fingerprint(config, &setting).unwrap();
                let run = Run { fingerprint, ..run(&made) };
                writer.append(&Record::Run(Box::new(run))).unwrap();
            }
        }
        journal
    }

    fn checked(folder: &Path) -> Option<String> {
        let options =
            CheckOptions { experiment: folder.to_owned(), out: PathBuf::from("/nowhere") };
        check(&options).err().map(|error| format!("{error:#}"))
    }

    fn reported(folder: &Path) {
        let options =
            ReportOptions { experiment: folder.to_owned(), out: PathBuf::from("/nowhere") };
        report(&options).unwrap();
    }

    #[test]
    fn a_quick_run_is_judged_by_how_it_went_and_a_whole_one_by_its_numbers() {
        let folder = tempfile::tempdir().unwrap();
        finished(folder.path(), "figure-2", true);
        assert!(checked(folder.path()).unwrap().contains("results.json"), "not reported yet");
        reported(folder.path());
        assert_eq!(checked(folder.path()), None);
        assert_eq!(checked(&folder.path().join(RESULTS)), None);

        // Nothing was measured of the packet programs.
        let whole = tempfile::tempdir().unwrap();
        finished(whole.path(), "cost", false);
        reported(whole.path());
        let error = checked(whole.path()).unwrap();
        assert!(error.contains("criteria fall short"), "{error}");
    }

    #[test]
    fn results_of_other_runs_and_missing_runs_fail() {
        let folder = tempfile::tempdir().unwrap();
        finished(folder.path(), "figure-2", true);
        reported(folder.path());
        let path = folder.path().join(RESULTS);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("\"p99_us\": 12.0", "\"p99_us\": 11.0", 1)).unwrap();
        assert_ne!(std::fs::read_to_string(&path).unwrap(), text);
        assert!(checked(folder.path()).unwrap().contains("does not belong"));
        std::fs::write(&path, &text).unwrap();
        assert_eq!(checked(folder.path()), None);
        // Less than the table asks for.
        let runs = folder.path().join("runs-1.jsonl");
        let lines = std::fs::read_to_string(&runs).unwrap();
        let fewer: Vec<&str> = lines.lines().take(3).collect();
        std::fs::write(&runs, fewer.join("\n") + "\n").unwrap();
        assert!(checked(folder.path()).unwrap().contains("does not belong"));
        reported(folder.path());
        assert!(checked(folder.path()).unwrap().contains("no run is missing"));
        assert!(folder.path().join("report.html").exists() && !path.exists());
    }

    #[test]
    fn what_is_no_experiment_is_named() {
        let error = checked(Path::new("/nowhere")).unwrap();
        assert!(
            error.contains("figure-2") && error.contains("run the experiment first"),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        assert!(checked(folder.path()).unwrap().contains("setting.json"));
        let found = |name: &str| find(Path::new(name), Path::new("/out")).unwrap();
        assert_eq!(found("figure-2").folder(), Path::new("/out/figure-2"));
        assert_eq!(found("figure-2-quick").folder(), Path::new("/out/figure-2-quick"));
    }

    #[test]
    fn results_keep_the_fields_that_others_read() {
        let folder = tempfile::tempdir().unwrap();
        let journal = finished(folder.path(), "figure-2", true);
        reported(folder.path());
        let text = std::fs::read(folder.path().join(RESULTS)).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        for field in ["experiment", "criterion", "rounds", "rows", "environment", "seed"] {
            assert!(!json[field].is_null(), "{field}");
        }
        for field in ["kernel", "accelerator", "cpus", "commit", "huge_pages"] {
            assert!(!json["environment"][field].is_null(), "{field}");
        }
        let row = &json["rows"][0];
        assert_eq!((&row["config"], &row["class"]), (&"vanilla".into(), &"GET".into()));
        for field in ["load_rps", "p50_us", "p99_us", "p999_us", "throughput_rps", "drops", "n"]
            .iter()
            .chain(&["min_us", "max_us", "p99_min_us", "p99_max_us", "kept_share"])
        {
            assert!(row[field].is_number(), "{field}: {}", row[field]);
        }
        assert_eq!(row["seeds"].as_array().unwrap().len(), 1);
        let html = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(html.matches("<svg").count() >= 3, "{}", journal.folder().display());
        assert!(html.contains("GET p99 &lt; 200us") && html.contains("A quick run"));
    }
}
