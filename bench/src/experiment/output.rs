//! What an experiment leaves behind: the table on stdout, `results.json`,
//! `details.json` and `report.html`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::criteria::{self, Verdict};
use super::{Point, Results};
use crate::report;
use crate::wire::Class;

/// File beside `results.json` that holds every run.
pub const DETAILS: &str = "details.json";

/// Everything that is known of a finished experiment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Details {
    /// Headline of the report.
    pub title: String,
    /// How it was measured: paragraphs.
    pub method: Vec<String>,
    /// Criteria that the rows of `results.json` do not show.
    pub further_verdicts: Vec<Verdict>,
    /// What was measured.
    pub points: Vec<Point>,
    /// What the simulator gives for the same parameters, by the same names.
    pub simulated: Vec<Point>,
}

/// Writes the files into `folder`, and the table and the criteria to stdout.
pub fn write(
    folder: &Path,
    experiment: &str,
    criterion: &str,
    rounds: u32,
    details: &Details,
) -> Result<()> {
    let results = Results {
        experiment: experiment.to_owned(),
        criterion: criterion.to_owned(),
        rounds,
        rows: details.points.iter().flat_map(Point::rows).collect(),
    };
    let verdicts = verdicts(&results, details);

    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let put = |name: &str, bytes: Vec<u8>| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    put("results.json", serde_json::to_vec_pretty(&results)?)?;
    put(DETAILS, serde_json::to_vec_pretty(details)?)?;
    put("report.html", report::html(details, criterion, &verdicts)?.into_bytes())?;

    show(folder, details, &verdicts);
    Ok(())
}

/// Writes the report and the table of a finished experiment again.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  syrup-bench report target/demo")]
pub struct RenderOptions {
    /// Folder with its results.json and details.json.
    pub folder: PathBuf,
}

/// Writes the report of a finished experiment again, and prints its table.
pub fn render(options: &RenderOptions) -> Result<()> {
    let folder = &options.folder;
    let results: Results = read(&folder.join("results.json"))?;
    let details: Details = read(&folder.join(DETAILS))?;
    let verdicts = verdicts(&results, &details);
    let path = folder.join("report.html");
    std::fs::write(&path, report::html(&details, &results.criterion, &verdicts)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    show(folder, &details, &verdicts);
    Ok(())
}

/// A file that an experiment left.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path)
        .with_context(|| format!("cannot read {}: run the experiment first", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what an experiment writes", path.display()))
}

/// All criteria of an experiment.
fn verdicts(results: &Results, details: &Details) -> Vec<Verdict> {
    let mut verdicts = criteria::of(results);
    verdicts.extend(details.further_verdicts.iter().cloned());
    verdicts
}

fn show(folder: &Path, details: &Details, verdicts: &[Verdict]) {
    println!("{}", table(details));
    for verdict in verdicts {
        println!("{}", verdict.line());
    }
    println!("report: {}", folder.join("report.html").display());
}

/// One line per configuration, class and load.
fn table(details: &Details) -> String {
    let mut lines = vec![format!(
        "{:<22} {:>8} {:<5} {:>9} {:>9} {:>19} {:>9} {:>10} {:>6} {:>10}",
        "config",
        "load/s",
        "class",
        "p50",
        "p99",
        "p99 min..max",
        "p99.9",
        "replies/s",
        "drops",
        "simulated"
    )];
    for point in &details.points {
        for row in point.rows() {
            let class = if row.class == Class::Get.name() { Class::Get } else { Class::Scan };
            let p99 = point.spread(class, |numbers| numbers.p99_us);
            let simulated = simulated(details, point)
                .map(|point| latency(point.spread(class, |numbers| numbers.p99_us).median));
            lines.push(format!(
                "{:<22} {:>8.0} {:<5} {:>9} {:>9} {:>19} {:>9} {:>10.1} {:>6} {:>10}",
                row.config,
                row.load_rps,
                row.class,
                latency(row.p50_us),
                latency(row.p99_us),
                format!("{}..{}", latency(p99.min), latency(p99.max)),
                latency(row.p999_us),
                row.throughput_rps,
                row.drops,
                simulated.unwrap_or_default(),
            ));
        }
    }
    if details.simulated.is_empty() {
        // The last column says nothing.
        for line in &mut lines {
            *line = line.trim_end().trim_end_matches("simulated").trim_end().to_owned();
        }
    }
    lines.join("\n")
}

/// Release of the running kernel.
pub fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// The simulated twin of a measured point.
pub fn simulated<'a>(details: &'a Details, point: &Point) -> Option<&'a Point> {
    details
        .simulated
        .iter()
        .find(|twin| twin.config == point.config && twin.load_rps == point.load_rps)
}

/// A latency with three digits and its unit.
#[must_use]
pub fn latency(us: f64) -> String {
    match us {
        us if us < 99.95 => format!("{us:.1}us"),
        us if us < 999.5 => format!("{us:.0}us"),
        us if us < 99_950.0 => format!("{:.1}ms", us / 1e3),
        us if us < 999_500.0 => format!("{:.0}ms", us / 1e3),
        us => format!("{:.2}s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::point;
    use super::*;

    fn details() -> Details {
        Details {
            title: "A demo".to_owned(),
            method: vec!["With <care> & patience.".to_owned()],
            further_verdicts: Vec::new(),
            points: vec![
                point("vanilla", &[(120e3, 400e3), (110e3, 390e3), (130e3, 410e3)]),
                point("both", &[(2.5e3, 400e3)]),
            ],
            simulated: vec![point("both", &[(2.2e3, 380e3)])],
        }
    }

    #[test]
    fn latencies_have_three_digits() {
        assert_eq!(latency(7.25), "7.2us");
        assert_eq!(latency(512.0), "512us");
        assert_eq!(latency(2512.0), "2.5ms");
        assert_eq!(latency(120_400.0), "120ms");
        assert_eq!(latency(1_204_000.0), "1.20s");
    }

    #[test]
    fn the_table_has_a_line_per_class_and_the_simulated_twin() {
        let text = table(&details());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[1].contains("120ms") && lines[1].contains("110ms..130ms"), "{text}");
        assert!(lines[3].ends_with("2.2ms"), "{text}");
    }

    #[test]
    fn every_file_is_written_and_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("deep/out");
        write(&out, "demo", "words", 3, &details()).unwrap();
        let results: Results =
            serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
        assert_eq!((results.experiment.as_str(), results.rounds), ("demo", 3));
        assert_eq!(results.rows.len(), 4);
        let _: Details =
            serde_json::from_slice(&std::fs::read(out.join(DETAILS)).unwrap()).unwrap();
        let html = std::fs::read_to_string(out.join("report.html")).unwrap();
        assert!(html.contains("With &lt;care&gt; &amp; patience."));
        assert!(html.matches("<svg").count() >= 4);
    }
}
