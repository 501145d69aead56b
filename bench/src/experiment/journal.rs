//! The runs of an experiment on disk, each written as soon as it is done: an
//! experiment that was interrupted goes on with the round it was in, and several
//! machines may each run some of its rounds.
//!
//! `setting.json` says which table it is; `runs-ROUND.jsonl` holds a line for the
//! machine and one per run. A round has one writer at a time, and is made in one
//! go: one that was interrupted starts again, for the kernel's hash, which the runs
//! of a round have in common, is drawn anew with each boot and network namespace.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::environment::Environment;
use super::plan::{Plan, Setting};
use super::stack::Deployment;
use crate::load::LoadSummary;
use crate::server;

const SETTING: &str = "setting.json";
/// What others check by program: there when nothing is missing.
pub const RESULTS: &str = "results.json";
/// What people read.
pub const REPORT: &str = "report.html";

/// What `setting.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Name of the experiment.
    pub experiment: String,
    /// What its table depends on.
    pub setting: Setting,
}

/// A line of a `runs-ROUND.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The machine of the lines that follow.
    Environment(Environment),
    /// A run.
    Run(Box<Run>),
    /// A measurement without load.
    Probe(Probed),
}

/// One configuration under one load, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Hash of the table's part that decides it.
    pub fingerprint: String,
    /// Name of the configuration.
    pub config: String,
    /// The load, undilated.
    pub load_rps: f64,
    /// From 1.
    pub round: u32,
    /// Of the arrivals.
    pub seed: u64,
    /// Of the source ports.
    pub ports_seed: u64,
    /// What the generator saw, in dilated time.
    pub load: LoadSummary,
    /// What the server did.
    pub server: server::Summary,
    /// The policies after the run.
    pub deployments: Vec<Deployment>,
    /// Mean time of the packet program, where it was accounted.
    pub packet_ns: Option<f64>,
    /// Huge pages that khugepaged made during the load.
    pub huge_pages_made: u64,
    /// What the service was calibrated to, in words.
    pub calibration: String,
    /// Of the same run made before it: the shares of the requests that counted,
    /// too small each time.
    pub spoiled: Vec<f64>,
}

/// What a probe measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Probed {
    /// From 1.
    pub round: u32,
    /// Name of the probe.
    pub probe: String,
    /// Names and numbers.
    pub numbers: Vec<(String, f64)>,
}

/// All that was measured of an experiment so far.
#[derive(Debug, Default)]
pub struct Measured {
    /// Machines, each once.
    pub environments: Vec<Environment>,
    /// In the order of the rounds.
    pub runs: Vec<Run>,
    /// Of the probes.
    pub probed: Vec<Probed>,
}

/// The folder of an experiment.
#[derive(Debug, Clone)]
pub struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// In this folder, which need not be there.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder, and forgets what was measured before if it is to be
    /// `fresh`. Refuses to go on with another setting or with fewer rounds; tells
    /// the one that holds.
    pub fn begin(&self, head: &Head, fresh: bool) -> Result<Head> {
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        if fresh {
            let made = [SETTING, RESULTS, REPORT].map(|name| self.folder.join(name));
            for path in self.round_files()?.into_iter().chain(made) {
                remove(&path)?;
            }
        }
        let mut head = head.clone();
        if self.folder.join(SETTING).exists() {
            let before = self.head()?;
            let had = before.setting.rounds;
            head.setting.rounds = head.setting.rounds.or(had);
            // More rounds of the same are no other experiment.
            let rounds = head.setting.rounds;
            let setting = Setting { rounds, ..before.setting.clone() };
            ensure!(
                rounds >= had && Head { setting, ..before.clone() } == head,
                "{} holds runs of {} with other settings ({:?}, now {:?}): --fresh starts anew, \
                 another --out keeps them",
                self.folder.display(),
                before.experiment,
                before.setting,
                head.setting
            );
            if before == head {
                return Ok(head);
            }
        }
        remove(&self.folder.join(RESULTS))?;
        put(&self.folder, SETTING, &serde_json::to_vec_pretty(&head)?)?;
        Ok(head)
    }

    /// Which experiment this is.
    pub fn head(&self) -> Result<Head> {
        let path = self.folder.join(SETTING);
        let text = std::fs::read(&path)
            .with_context(|| format!("cannot read {}: run the experiment first", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not what an experiment writes", path.display()))
    }

    /// Everything that was measured. Refuses runs of another table, and a run that is
    /// there twice.
    pub fn read(&self, plan: &Plan, setting: &Setting) -> Result<Measured> {
        let mut measured = Measured::default();
        let mut seen = BTreeSet::new();
        for path in self.round_files()? {
            for record in records(&path)? {
                match record {
                    Record::Environment(environment) => {
                        if !measured.environments.contains(&environment) {
                            measured.environments.push(environment);
                        }
                    }
                    Record::Probe(probed) => measured.probed.push(probed),
                    Record::Run(run) => {
                        let config = plan.config(&run.config);
                        let fingerprint =
                            config.map(|config| plan.fingerprint(config, setting)).transpose()?;
                        ensure!(
                            fingerprint.as_ref() == Some(&run.fingerprint),
                            "{} holds runs of {} as its table was before (at {}/s in round {}): \
                             --fresh starts anew, another --out keeps them",
                            path.display(),
                            run.config,
                            run.load_rps,
                            run.round
                        );
                        ensure!(
                            seen.insert((run.config.clone(), run.load_rps.to_bits(), run.round)),
                            "{} holds {} at {}/s twice in round {}: --fresh starts anew",
                            path.display(),
                            run.config,
                            run.load_rps,
                            run.round
                        );
                        measured.runs.push(*run);
                    }
                }
            }
        }
        Ok(measured)
    }

    /// To write the runs of a round.
    pub fn round(&self, round: u32) -> Result<Writer> {
        let path = self.folder.join(format!("runs-{round}.jsonl"));
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("round {round} is being run by another process: {} is locked", path.display());
        }
        // A line that was cut off belongs to a run that was not finished.
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        file.set_len(whole as u64)?;
        Ok(Writer { file, path })
    }

    fn round_files(&self) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {}", self.folder.display()))?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let round = name.to_str().and_then(|name| {
                name.strip_prefix("runs-")?.strip_suffix(".jsonl")?.parse::<u32>().ok()
            });
            files.extend(round.map(|round| (round, self.folder.join(&name))));
        }
        files.sort();
        Ok(files.into_iter().map(|(_, path)| path).collect())
    }
}

/// Appends to the runs of a round.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    /// Forgets the runs of the round.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// A line, on disk when this returns.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn records(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    // What follows the last line's end was not written to its end.
    lines.pop();
    (1..)
        .zip(lines)
        .map(|(number, line)| {
            serde_json::from_slice(line).with_context(|| {
                format!(
                    "{}:{number} is not what this version writes: --fresh starts anew",
                    path.display()
                )
            })
        })
        .collect()
}

/// Writes a file that everybody may read, whole or not at all: others may look at
/// the same moment.
pub fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    let mut file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    file.write_all(bytes)?;
    // A temporary file is its owner's alone.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(everybody)?;
    file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::points::tests::{Made, plan, run};
    use super::*;

    fn head(seed: u64) -> Head {
        let setting = Setting { seed, cpus: 2, ..Setting::default() };
        Head { experiment: "test".to_owned(), setting }
    }

    fn environment() -> Environment {
        Environment::here("", 2)
    }

    /// A run that belongs to the table of [`plan`].
    fn made(table: &Plan, config: &'static str, round: u32) -> Record {
        let made = Made { config, round, gets_us: vec![10], ..Made::default() };
        let fingerprint =
            table.fingerprint(table.config(config).unwrap(), &head(1).setting).unwrap();
        Record::Run(Box::new(Run { fingerprint, ..run(&made) }))
    }

    #[test]
    fn runs_of_several_rounds_are_read_together_and_one_cut_off_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::at(&folder.path().join("deep/test"));
        journal.begin(&head(1), false).unwrap();
        let table = plan(&["a", "b"], &[100.0]);
        for round in [2, 1] {
            let mut writer = journal.round(round).unwrap();
            writer.append(&Record::Environment(environment())).unwrap();
            writer.append(&made(&table, "a", round)).unwrap();
        }
        // A process that was killed while it wrote.
        let path = journal.folder().join("runs-2.jsonl");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"run\":{\"fing"].concat()).unwrap();
        let rounds = |measured: Measured| -> Vec<(String, u32)> {
            measured.runs.into_iter().map(|run| (run.config, run.round)).collect()
        };
        let setting = head(1).setting;
        let read = || rounds(journal.read(&table, &setting).unwrap());
        assert_eq!(read(), [("a".to_owned(), 1), ("a".to_owned(), 2)]);
        let mut writer = journal.round(2).unwrap();
        writer.append(&made(&table, "b", 2)).unwrap();
        assert_eq!(read().last().unwrap(), &("b".to_owned(), 2));
        assert_eq!(journal.read(&table, &setting).unwrap().environments.len(), 1);
    }

    #[test]
    fn a_run_that_is_there_twice_is_refused_and_a_round_can_start_again() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::at(folder.path());
        let table = plan(&["a"], &[100.0]);
        let mut writer = journal.round(1).unwrap();
        for _ in 0..2 {
            writer.append(&made(&table, "a", 1)).unwrap();
        }
        let setting = head(1).setting;
        let error = journal.read(&table, &setting).unwrap_err();
        assert!(error.to_string().contains("twice in round 1"), "{error}");
        writer.restart().unwrap();
        writer.append(&made(&table, "a", 1)).unwrap();
        assert_eq!(journal.read(&table, &setting).unwrap().runs.len(), 1);
    }

    #[test]
    fn a_round_has_one_writer_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::at(folder.path());
        let first = journal.round(1).unwrap();
        let error = journal.round(1).unwrap_err();
        assert!(error.to_string().contains("round 1 is being run"), "{error}");
        assert!(journal.round(2).is_ok());
        drop(first);
        assert!(journal.round(1).is_ok());
    }

    #[test]
    fn another_setting_is_refused_until_fresh_and_more_rounds_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::at(folder.path());
        journal.begin(&head(1), false).unwrap();
        let table = plan(&["a"], &[100.0]);
        journal.round(1).unwrap().append(&made(&table, "a", 1)).unwrap();
        journal.begin(&head(1), false).unwrap();
        let mut more = head(1);
        more.setting.rounds = Some(9);
        journal.begin(&more, false).unwrap();
        assert_eq!(journal.head().unwrap(), more);
        // Who does not say how many goes on with those; fewer are refused.
        assert_eq!(journal.begin(&head(1), false).unwrap(), more);
        let mut fewer = head(1);
        fewer.setting.rounds = Some(8);
        let error = journal.begin(&fewer, false).unwrap_err();
        assert!(error.to_string().contains("--fresh"), "{error}");
        assert_eq!(journal.head().unwrap(), more);
        let mode = std::fs::metadata(journal.folder().join(SETTING)).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o644);
        let error = journal.begin(&head(2), false).unwrap_err();
        assert!(error.to_string().contains("--fresh"), "{error}");
        assert_eq!(journal.read(&table, &head(1).setting).unwrap().runs.len(), 1);
        for name in [RESULTS, REPORT] {
            std::fs::write(journal.folder().join(name), "old").unwrap();
        }
        journal.begin(&head(2), true).unwrap();
        assert!([RESULTS, REPORT].iter().all(|name| !journal.folder().join(name).exists()));
        assert!(journal.read(&table, &head(2).setting).unwrap().runs.is_empty());
    }

    #[test]
    fn runs_of_a_table_that_changed_are_refused_and_new_loads_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::at(folder.path());
        let table = plan(&["a"], &[100.0]);
        journal.round(1).unwrap().append(&made(&table, "a", 1)).unwrap();
        let setting = head(1).setting;
        let refused = |table: &Plan| {
            let outcome = journal.read(table, &setting);
            outcome.err().map(|error| error.to_string())
        };
        assert_eq!(refused(&table), None);
        assert_eq!(refused(&plan(&["a", "b"], &[100.0, 200.0])), None);
        let longer = Plan { seconds: table.seconds + 1.0, ..table.clone() };
        assert!(refused(&longer).unwrap().contains("--fresh"));
        assert!(refused(&plan(&["b"], &[100.0])).unwrap().contains("runs of a "));
        let mut other = table.clone();
        other.configs[0].server.push("--slice-us".to_owned());
        assert!(refused(&other).is_some());
    }
}
