//! Experiments from the command line: a short one for real, and one that is
//! killed in the middle.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use syrup_tests::{Need, binary, require};

fn bench(arguments: &[&str], out: &Path) -> Command {
    let mut command = Command::new(binary("syrup-bench"));
    command.args(arguments).arg("--out").arg(out).stdin(Stdio::null());
    command
}

fn ended(mut command: Command) -> Output {
    command.output().unwrap()
}

fn ok(command: Command) -> String {
    let output = ended(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(command: Command) -> String {
    let output = ended(command);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs that are written down, as configuration and load.
fn runs(folder: &Path, round: u32) -> Vec<(String, u64)> {
    let file = folder.join(format!("runs-{round}.jsonl"));
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |last| &text[..last]);
    whole
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|record| record["run"].is_object())
        .map(|record| {
            let run = &record["run"];
            (run["config"].as_str().unwrap().to_owned(), run["load_rps"].as_f64().unwrap() as u64)
        })
        .collect()
}

/// Waits until `done`, or panics with what the experiment said, before the runner takes the test
/// for hung. On a busy host a run is made three times.
fn until(what: &str, said: &Path, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(200);
    while !done() {
        let late = Instant::now() >= deadline;
        assert!(!late, "{what}: {}", std::fs::read_to_string(said).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Temporary folders of the experiment that was this process.
fn folders_of(id: u32) -> Vec<PathBuf> {
    let prefix = format!("syrup-bench-{id}-");
    let entries = std::fs::read_dir(std::env::temp_dir()).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
        .map(|entry| entry.path())
        .collect()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_experiment_that_is_killed_goes_on_with_the_round_it_was_in_and_is_judged() {
    if !require(&[Need::Root]) {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("figure-2-quick");
    let arguments = ["run", "figure-2", "--quick", "--rounds", "2"];
    let said = out.path().join("said");
    let child = bench(&arguments, out.path())
        .stderr(std::fs::File::create(&said).unwrap())
        .stdout(Stdio::null())
        .spawn();
    let mut killed = Killed(child.unwrap());
    let own_pins = PathBuf::from(format!("/sys/fs/bpf/syrup-bench-{}", killed.0.id()));
    // One round is done, and the first run of the next.
    until("no run of the second round was written down", &said, || runs(&folder, 2).len() == 1);
    until("no policy is deployed", &said, || own_pins.exists());
    assert!(killed.0.try_wait().unwrap().is_none(), "it is over already");
    let rounds = || [1, 2].map(|n| std::fs::read(folder.join(format!("runs-{n}.jsonl"))).unwrap());
    let before = rounds();
    killed.0.kill().unwrap();
    killed.0.wait().unwrap();
    assert!(!folders_of(killed.0.id()).is_empty(), "it had no folder: what is left is unseen");
    let error = refused(bench(&["check", folder.to_str().unwrap()], Path::new("/nowhere")));
    assert!(error.contains("results.json"), "{error}");

    ok(bench(&arguments, out.path()));
    let after = rounds();
    assert_eq!(after[0], before[0], "the round that was measured is kept");
    assert!(!after[1].starts_with(&before[1]), "the other one's hash is drawn anew");
    for round in [1, 2] {
        let made = runs(&folder, round);
        let mut distinct = made.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!((made.len(), distinct.len()), (4, 4), "{made:?}");
    }
    assert!(!own_pins.exists(), "the killed one's pins are left");
    assert_eq!(
        folders_of(killed.0.id()),
        Vec::<PathBuf>::new(),
        "the killed one's folders are left"
    );

    // Judged by how it went; the numbers of a second say little.
    let judged = ended(bench(&["check", folder.to_str().unwrap()], Path::new("/nowhere")));
    let verdicts = String::from_utf8_lossy(&judged.stdout).into_owned();
    // On a busy host runs as short as these may lose a request, and are short then.
    let none_lost = verdicts.contains("points below saturation with drops: 0");
    assert_eq!(judged.status.success(), none_lost, "{verdicts}");
    for criterion in [
        "rows that are missing: 0",
        "points below saturation with drops: ",
        "policies that were not live to the end: 0",
        "runs in which served is not answered: 0",
    ] {
        assert!(verdicts.contains(criterion), "{criterion}: {verdicts}");
    }
    let results: Value =
        serde_json::from_slice(&std::fs::read(folder.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["rows"].as_array().unwrap().len(), 4);
    assert!(results["policies"]["socket-select/round-robin"].is_string());
    for row in results["rows"].as_array().unwrap() {
        assert!(row["n"].as_u64().unwrap() > 100, "{row}");
        assert!(row["simulated_p99_us"].is_number(), "{row}");
    }

    // Nothing is left to do, and another seed is another experiment.
    let again = ended(bench(&arguments, out.path()));
    assert!(String::from_utf8_lossy(&again.stderr).contains("nothing is left to run"));
    assert_eq!(rounds(), after);
    let error = refused(bench(&[&arguments[..], &["--seed", "7"]].concat(), out.path()));
    assert!(error.contains("--fresh"), "{error}");
}

#[test]
fn an_experiment_that_is_interrupted_leaves_nothing_running_and_says_so() {
    if !require(&[Need::Root]) {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("figure-2-quick");
    let said = out.path().join("said");
    let mut command = bench(&["run", "figure-2", "--quick"], out.path());
    command.stderr(std::fs::File::create(&said).unwrap()).stdout(Stdio::null());
    let mut killed = Killed(command.spawn().unwrap());
    let id = killed.0.id().to_string();
    let own_pins = PathBuf::from(format!("/sys/fs/bpf/syrup-bench-{id}"));
    until("no run was written down", &said, || runs(&folder, 1).len() == 1);
    until("no policy is deployed", &said, || own_pins.exists());
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let had: Vec<&str> = children.split_whitespace().collect();
    assert!(!had.is_empty(), "nothing runs");
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    until("it goes on", &said, || killed.0.try_wait().unwrap().is_some());
    assert_eq!(killed.0.wait().unwrap().code(), Some(130));
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.contains("interrupted"), "{said}");
    assert!(!own_pins.exists(), "its pins are left");
    assert_eq!(folders_of(killed.0.id()), Vec::<PathBuf>::new(), "its folders are left");
    for child in had {
        assert!(!Path::new("/proc").join(child).exists(), "{child} is left");
    }
}

#[test]
fn the_cost_of_a_policy_is_measured_beside_that_of_a_bare_program() {
    if !require(&[Need::Root]) {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    ok(bench(&["run", "cost", "--quick"], out.path()));
    let folder = out.path().join("cost-quick");
    let results: Value =
        serde_json::from_slice(&std::fs::read(folder.join("results.json")).unwrap()).unwrap();
    let rows = results["rows"].as_array().unwrap();
    for policy in ["round-robin", "scan-avoid", "sita"] {
        let spread = [policy.to_owned(), format!("{policy}-bare")].map(|config| {
            let mut of_config = rows.iter().filter(|row| row["config"] == *config);
            for row in of_config.clone() {
                let ns = row["packet_ns"].as_f64().unwrap();
                assert!((5.0..100_000.0).contains(&ns), "{config}: {ns} ns");
            }
            // At the higher rate requests are lost, so that shares are no exact ones.
            let few = of_config.find(|row| row["load_rps"] == 15_000.0).unwrap();
            few["max_over_mean"].as_f64().unwrap()
        });
        // The kernel's hash would be near 1.5, half of the executors 2.
        println!("{policy}: requests per executor, max/mean {spread:?}");
        let [syrup, bare] = spread;
        assert!((syrup / bare - 1.0).abs() < 0.15, "{spread:?}");
        assert!(policy == "sita" || syrup < 1.25, "{spread:?}");
    }
    ok(bench(&["check", folder.to_str().unwrap()], Path::new("/nowhere")));
}

#[test]
fn wrong_words_say_what_there_is() {
    if !require(&[Need::Root]) {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let error = refused(bench(&["run", "figure-9"], out.path()));
    assert!(error.contains("figure-2"), "{error}");
    let error = refused(bench(&["run", "figure-2", "--configs", "nobody"], out.path()));
    assert!(error.contains("round-robin"), "{error}");
    let error = refused(bench(&["run", "figure-2", "--loads", "3"], out.path()));
    // As the option takes them.
    assert!(error.contains("no load 3, but 200000, 250000"), "{error}");
    let error = refused(bench(&["run", "figure-2", "--round", "99"], out.path()));
    assert!(error.contains("1 to 26"), "{error}");
}
