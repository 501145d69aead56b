//! Runs a plan: round by round, load by load, the configurations in an order
//! that the seed shuffles, each against the same arrivals from the same ports.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use syrup_hook::App;
use syrup_net_hooks::{count_run_time, run_time};

use super::environment::{self, Environment};
use super::journal::{Head, Journal, Probed, Record, Run};
use super::plan::{Config, Plan, Service, Setting};
use super::progress::Progress;
use super::server_process::ServerProcess;
use super::stack::{Programs, Stack};
use super::{latency, policies, results, tables, temporary};
use crate::interrupt;
use crate::load;
use crate::priority;
use crate::wire::Class;
use crate::work::Store;

const APP: &str = "bench";
const PORT: u16 = 9000;

/// Runs an experiment, or goes on with one that was interrupted.
///
/// Each run is written to OUT/EXPERIMENT as soon as it is done. Rounds that are
/// there are not run again; one that is not complete starts again. When nothing is missing the table and the criteria
/// are printed, and results.json and report.html are written beside the runs.
/// Runs as root.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  syrup-bench run figure-2
  syrup-bench run figure-6 --quick --out /tmp/try
  syrup-bench run figure-6 --configs vanilla,sita --loads 150000 --round 1
  syrup-bench run demo --round 2      # on another machine: see 'syrup-bench report'")]
pub struct Options {
    /// Which: 'syrup-bench list' names them.
    #[arg(value_parser = tables::NAMES)]
    pub experiment: String,
    /// Folder of all experiments.
    #[arg(long, default_value = "target")]
    pub out: PathBuf,
    /// These rounds only, from 1: several machines may share an experiment.
    #[arg(long, value_delimiter = ',', value_name = "ROUND")]
    pub round: Vec<u32>,
    /// These configurations only.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub configs: Vec<String>,
    /// These loads only, in requests per second.
    #[arg(long, value_delimiter = ',', value_name = "RPS")]
    pub loads: Vec<f64>,
    /// Forget the runs that are there.
    #[arg(long)]
    pub fresh: bool,
    /// What else is to be said of the machine in the report.
    #[arg(long, default_value = "")]
    pub machine: String,
    /// What the table depends on.
    #[command(flatten)]
    pub setting: Setting,
    /// Where syrupctl and syrupd are.
    #[command(flatten)]
    pub programs: Programs,
}

/// A run that is to be made.
#[derive(Debug, Clone, Copy)]
struct Step<'a> {
    round: u32,
    load_rps: f64,
    config: &'a Config,
}

/// Runs what is missing.
pub fn run(options: &Options) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "experiments deploy policies: run it as root");
    interrupt::watch()?;
    let cpus = std::thread::available_parallelism()?.get() as u32;
    let setting = Setting { cpus, ..options.setting.clone() };
    let plan = tables::plan(&options.experiment, &setting)?;
    let head = Head { experiment: plan.name.to_owned(), setting };
    let journal = Journal::at(&super::folder(&options.out, plan.name, head.setting.quick));
    let head = journal.begin(&head, options.fresh)?;
    let plan = tables::plan(&head.experiment, &head.setting)?;
    let measured = journal.read(&plan, &head.setting)?;
    let programs = options.programs.hashes()?;
    let environment = Environment { programs, ..Environment::here(&options.machine, cpus) };
    if let Some(why) = measured.environments.iter().find_map(|before| environment.apart(before)) {
        anyhow::bail!(
            "{} holds runs of {why}: --fresh starts anew, another --out keeps them",
            journal.folder().display(),
        );
    }
    let mut rounds = rounds(options, &plan, &head.setting)?;
    rounds.retain(|(round, _)| results::missing_in(&plan, &measured, *round) > 0);
    if rounds.is_empty() {
        eprintln!("{}: nothing is left to run", plan.name);
    } else {
        make(options, &plan, &head.setting, &journal, &environment, &rounds)?;
    }
    let measured = journal.read(&plan, &head.setting)?;
    match results::missing(&plan, &measured) {
        0 => results::write(&journal, &plan, &head.setting, &measured),
        missing => {
            println!(
                "{}: {missing} runs are still to be made, perhaps by others: `syrup-bench report {}` \
                 shows what there is",
                plan.name,
                journal.folder().display()
            );
            Ok(())
        }
    }
}

/// The rounds that were asked for, each with its runs in order.
fn rounds<'a>(
    options: &Options,
    plan: &'a Plan,
    setting: &Setting,
) -> Result<Vec<(u32, Vec<Step<'a>>)>> {
    for name in &options.configs {
        ensure!(
            plan.config(name).is_some(),
            "{} has no configuration '{name}', but {}",
            plan.name,
            plan.configs.iter().map(|config| config.name).collect::<Vec<_>>().join(", ")
        );
    }
    let all_loads = plan.all_loads();
    // As tables show them, with a digit after the point.
    let same = |one: f64, other: f64| (one - other).abs() < 0.1;
    for &load in &options.loads {
        ensure!(
            all_loads.iter().any(|&one| same(one, load)),
            "{} has no load {load}, but {}",
            plan.name,
            all_loads.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        );
    }
    for round in &options.round {
        ensure!(
            (1..=plan.rounds).contains(round),
            "{} has rounds 1 to {}, not {round}",
            plan.name,
            plan.rounds
        );
    }
    let wanted = |step: &Step<'_>| {
        (options.configs.is_empty() || options.configs.iter().any(|name| name == step.config.name))
            && (options.loads.is_empty()
                || options.loads.iter().any(|&load| same(load, step.load_rps)))
    };
    let steps = |round| -> Vec<Step<'a>> {
        let runs = plan.round(round, setting.seed).into_iter();
        runs.map(|(load_rps, config)| Step { round, load_rps, config }).filter(wanted).collect()
    };
    let rounds: Vec<(u32, Vec<Step<'a>>)> = (1..=plan.rounds)
        .filter(|round| options.round.is_empty() || options.round.contains(round))
        .map(|round| (round, steps(round)))
        .filter(|(_, steps)| !steps.is_empty())
        .collect();
    ensure!(!rounds.is_empty(), "nothing to run: --configs, --loads and --round leave no run");
    Ok(rounds)
}

/// Who runs where. On few CPUs, or where it does not matter, everybody does
/// everywhere.
struct Cpus {
    server: Vec<usize>,
    generator: Option<usize>,
}

impl Cpus {
    fn split(mut all: Vec<usize>, apart: bool) -> Self {
        let generator = if apart && all.len() >= 3 { all.pop() } else { None };
        Self { server: all, generator }
    }

    /// As `--cpus` takes them; `None` for all.
    fn server_list(&self) -> Option<String> {
        self.generator?;
        Some(self.server.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
    }
}

/// What the runs of one process share.
struct Runner<'a> {
    plan: &'a Plan,
    setting: &'a Setting,
    stack: Stack,
    cpus: Cpus,
    /// For files of policies.
    folder: tempfile::TempDir,
    /// Flags of the server, and what they were calibrated from.
    service: (Vec<String>, String),
}

fn make(
    options: &Options,
    plan: &Plan,
    setting: &Setting,
    journal: &Journal,
    environment: &Environment,
    rounds: &[(u32, Vec<Step<'_>>)],
) -> Result<()> {
    if plan.own_network {
        crate::namespace::enter_new().context("cannot make a network namespace")?;
    }
    let mut progress =
        Progress::new(plan.name, rounds.iter().map(|(_, steps)| steps.len() as u32).sum());
    let cpus = Cpus::split(priority::cpus()?, plan.generator_cpu);
    priority::set_cpus(&cpus.server)?;
    let service = service_flags(plan, setting, &progress)?;
    // From here on this process, the daemon included, does its own work where the
    // generator does.
    if let Some(generator) = cpus.generator {
        priority::set_cpus(&[generator])?;
    }
    let stack = Stack::start(&options.programs)?;
    let folder = temporary::folder()?;
    let runner = Runner { plan, setting, stack, cpus, folder, service };
    let mut patience = patience(setting);
    for (round, steps) in rounds {
        let mut writer = journal.round(*round)?;
        // Another process may have made it meanwhile.
        let measured = journal.read(plan, setting)?;
        if results::missing_in(plan, &measured, *round) == 0 {
            progress.skip(steps.len() as u32);
            continue;
        }
        writer.restart()?;
        writer.append(&Record::Environment(environment.clone()))?;
        for probe in &plan.probes {
            let numbers = (probe.measure)(&runner.stack)
                .with_context(|| format!("round {round}, {}", probe.name))?;
            let probe = probe.name.to_owned();
            writer.append(&Record::Probe(Probed { round: *round, probe, numbers }))?;
        }
        for step in steps {
            let what = format!("round {round}, {} at {}/s", step.config.name, step.load_rps);
            let floor = plan.kept_floor();
            let run = until_kept(floor, &mut patience, || {
                interrupt::check()?;
                let run = runner.once(*step)?;
                let kept = run.load.kept_share;
                if kept < floor {
                    let percent = kept * 100.0;
                    progress.say(&format!("{what}: too busy a host, {percent:.0} % counts"));
                }
                Ok(run)
            });
            let run = run.with_context(|| what.clone())?;
            if run.load.kept_share < floor {
                progress.say(&format!("{what}: no patience left, taken as it is"));
            }
            progress.run_done(&shown(plan, &run));
            writer.append(&Record::Run(Box::new(run)))?;
        }
    }
    Ok(())
}

/// How long this process goes on making runs of which too little counts, beyond two
/// more of each: a busy host is seldom busy for an hour, and not always for a minute.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// A trial's numbers say little anyway, and whoever tries wants it over; but none at all, of a
/// run of which nothing counts, are no trial.
const fn patience(setting: &Setting) -> Duration {
    if setting.quick { Duration::from_secs(45) } else { PATIENCE }
}

/// A run of which too little counts is made again, twice, and beyond that as long as there
/// is `patience`; the shares are written down. It is chosen by how late sender and sleeper
/// were, never by its latencies.
fn until_kept(
    floor: f64,
    patience: &mut Duration,
    mut once: impl FnMut() -> Result<Run>,
) -> Result<Run> {
    const AGAIN: usize = 2;
    let mut spoiled = Vec::new();
    loop {
        let begun = Instant::now();
        let run = once()?;
        if spoiled.len() > AGAIN {
            *patience = patience.saturating_sub(begun.elapsed());
        }
        if run.load.kept_share >= floor || (spoiled.len() >= AGAIN && patience.is_zero()) {
            return Ok(Run { spoiled, ..run });
        }
        spoiled.push(run.load.kept_share);
    }
}

/// What the server is told of the service, and how that was found.
fn service_flags(
    plan: &Plan,
    setting: &Setting,
    progress: &Progress,
) -> Result<(Vec<String>, String)> {
    let flags = |pairs: &[(&str, String)]| -> Vec<String> {
        pairs.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]).collect()
    };
    match &plan.service {
        Service::Sleep { us } => {
            let us = |class: Class| us.get(class.index()).map_or(1.0, |us| us * plan.scale);
            Ok((
                flags(&[
                    ("--service", "sleep".to_owned()),
                    ("--get-us", us(Class::GET).to_string()),
                    ("--scan-us", us(Class::SCAN).to_string()),
                ]),
                String::new(),
            ))
        }
        Service::RocksDb { get_us, scan_us } => {
            progress.say("opening the database and calibrating");
            let store = Store::open(&setting.db(), setting.keys())?;
            let cost = store.calibrate()?;
            let work = cost.work_for(get_us * plan.scale, scan_us * plan.scale);
            let calibration = format!(
                "A RocksDB GET takes {:.1} us of CPU time here and a scanned key {:.3} us, so a \
                 GET request is {} GETs ({}) and a SCAN request {} keys ({}).",
                cost.get_ns / 1000.0,
                cost.scan_key_ns / 1000.0,
                work.gets,
                latency(cost.service_us(work, Class::GET)),
                work.scan_keys,
                latency(cost.service_us(work, Class::SCAN)),
            );
            progress.say(&calibration);
            Ok((
                flags(&[
                    ("--db", setting.db().display().to_string()),
                    ("--keys", setting.keys().to_string()),
                    ("--gets", work.gets.to_string()),
                    ("--scan-keys", work.scan_keys.to_string()),
                ]),
                calibration,
            ))
        }
    }
}

impl Runner<'_> {
    /// Everything from nothing deployed to nothing running.
    fn once(&self, step: Step<'_>) -> Result<Run> {
        let Self { plan, setting, stack, cpus, folder, service } = self;
        let config = step.config;
        stack.unload_all()?;
        let _kernel = KernelSettings::put(&config.kernel)?;
        let port = PORT.to_string();
        let server_cpus = cpus.server_list();
        for policy in &config.policies {
            let mut more: Vec<&str> = Vec::new();
            match (policy.hook, &server_cpus) {
                ("scx-syrup", Some(list)) => more.extend(["--cpus", list]),
                ("scx-syrup", None) => {}
                _ => more.extend(["--port", &port]),
            }
            more.extend(policy.settings.iter().flat_map(|setting| ["--set", setting]));
            let name = policies::argument(&policy.policy, folder.path())?;
            stack.load(policy.hook, &name, APP, &more)?;
        }
        let mut flags = vec!["--port".to_owned(), port];
        flags.extend(["--threads".to_owned(), plan.threads.to_string()]);
        flags.extend(service.0.iter().chain(&plan.server).chain(&config.server).cloned());
        flags.extend(server_cpus.iter().flat_map(|list| ["--cpus".to_owned(), list.clone()]));
        if !config.policies.is_empty() {
            flags.extend(["--app".to_owned(), APP.to_owned()]);
        }
        let accounting = plan.count_run_time.then(count_run_time).transpose()?;
        let server = ServerProcess::start(&flags, Some(stack))?;
        let load = plan.load(step.load_rps, step.round, setting.seed, PORT)?;
        let load = load::Load { cpu: cpus.generator, ..load };
        let app = App { name: APP.to_owned(), uid: 0, bpffs: stack.bpffs().to_owned() };
        let syrup = plan.count_run_time
            && config.policies.iter().any(|policy| policy.hook == "socket-select");
        let before = syrup.then(|| run_time(&app)).transpose()?;
        let huge_pages = environment::huge_pages_made();
        let summary = load::generate(&load)?;
        let huge_pages_made = environment::huge_pages_made().saturating_sub(huge_pages);
        let after = syrup.then(|| run_time(&app)).transpose()?;
        // As they are while the server still runs.
        let deployments = match config.policies.is_empty() {
            true => Vec::new(),
            false => stack.deployments()?,
        };
        let served = server.stop()?;
        drop(accounting);
        let packet_ns = match before.zip(after) {
            Some((before, after)) => after.since(before).mean_ns(),
            None => served.program_ns,
        };
        Ok(Run {
            fingerprint: plan.fingerprint(config, setting)?,
            config: config.name.to_owned(),
            load_rps: step.load_rps,
            round: step.round,
            seed: load.seed,
            ports_seed: load.ports_seed.unwrap_or(0),
            load: summary,
            server: served,
            deployments,
            packet_ns,
            huge_pages_made,
            calibration: service.1.clone(),
            spoiled: Vec::new(),
        })
    }
}

/// Settings of the kernel, put back on drop.
struct KernelSettings(Vec<(PathBuf, String)>);

impl KernelSettings {
    fn put(settings: &[(String, String)]) -> Result<Self> {
        let mut before = Self(Vec::new());
        for (file, value) in settings {
            let path = PathBuf::from(file);
            ensure!(
                path.starts_with("/sys") || path.starts_with("/proc/sys"),
                "{file} is no setting of the kernel"
            );
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let old = environment::selected(text.trim()).to_owned();
            std::fs::write(&path, value)
                .with_context(|| format!("cannot write {value} to {}", path.display()))?;
            before.0.push((path, old));
        }
        Ok(before)
    }
}

impl Drop for KernelSettings {
    fn drop(&mut self) {
        for (path, value) in self.0.iter().rev() {
            if let Err(error) = std::fs::write(path, value) {
                eprintln!("syrup-bench: cannot put back {value} in {}: {error}", path.display());
            }
        }
    }
}

/// A run in a line.
fn shown(plan: &Plan, run: &Run) -> String {
    let classes: Vec<String> = run
        .load
        .classes
        .iter()
        .map(|class| format!("{} {}", class.class, latency(class.p99_us / plan.scale)))
        .collect();
    let kept = match run.load.kept_share < 1.0 {
        true => format!(", {:.0} % kept", run.load.kept_share * 100.0),
        false => String::new(),
    };
    let packet = run.packet_ns.map_or(String::new(), |ns| format!(", {ns:.0} ns per packet"));
    format!(
        "round {} {} at {}/s: p99 {}, {} drops{kept}{packet}",
        run.round,
        run.config,
        results::thousands(run.load_rps),
        classes.join(", "),
        run.load.drops(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_has_the_last_of_three_cpus_where_it_matters() {
        let split = |cpus: &[usize], apart| Cpus::split(cpus.to_vec(), apart);
        assert_eq!(split(&[0, 1, 5], true).generator, Some(5));
        assert_eq!(split(&[0, 1, 5], true).server_list().as_deref(), Some("0,1"));
        assert_eq!(split(&[0, 1], true).server_list(), None);
        assert_eq!(split(&[0, 1, 5], false).server_list(), None);
        let setting = Setting { cpus: 3, ..Setting::default() };
        assert_eq!(setting.server_cpus(), 2);
    }

    #[test]
    fn a_run_of_which_too_little_counts_is_made_again_twice_and_while_there_is_patience() {
        use super::super::points::tests::{Made, run};
        let within = |mut patience: Duration, shares: &[f64]| {
            let mut shares = shares.iter();
            let made = until_kept(0.5, &mut patience, || {
                let kept = *shares.next().context("no more")?;
                Ok(run(&Made { kept, gets_us: vec![1], ..Made::default() }))
            });
            made.map(|run| (run.load.kept_share, run.spoiled)).ok()
        };
        let none = Duration::ZERO;
        assert_eq!(within(none, &[0.5, 1.0]), Some((0.5, vec![])));
        assert_eq!(within(none, &[0.4, 0.9, 1.0]), Some((0.9, vec![0.4])));
        assert_eq!(within(none, &[0.4, 0.3, 0.2, 1.0]), Some((0.2, vec![0.4, 0.3])));
        let shares = [0.4, 0.3, 0.2, 0.1, 1.0];
        assert_eq!(within(PATIENCE, &shares), Some((1.0, shares[..4].to_vec())));
        // It is spent by the runs beyond the first three, and then there is no more.
        assert_eq!(within(Duration::from_nanos(1), &shares), Some((0.1, shares[..3].to_vec())));
        let setting = |quick| Setting { quick, ..Setting::default() };
        let [whole, trial] = [false, true].map(|quick| patience(&setting(quick)));
        assert_eq!(whole, PATIENCE);
        assert!(!trial.is_zero() && trial < PATIENCE / 10, "{trial:?}");
    }

    #[test]
    fn rounds_and_loads_that_were_asked_for_are_run() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: Options,
        }
        let chosen = |arguments: &[&str]| {
            let line = [&["run", "demo", "--quick"], arguments].concat();
            let options = <Cli as clap::Parser>::parse_from(line).options;
            let setting = Setting { cpus: 3, ..options.setting.clone() };
            let plan = tables::plan("demo", &setting).unwrap();
            let rounds = rounds(&options, &plan, &setting).ok()?;
            Some(rounds.iter().map(|(round, steps)| (*round, steps.len())).collect::<Vec<_>>())
        };
        // Half load, as tables print it.
        assert_eq!(chosen(&["--loads", "62.5", "--configs", "both,vanilla"]), Some(vec![(1, 2)]));
        assert_eq!(
            chosen(&["--rounds", "3", "--round", "2", "--configs", "both", "--loads", "62.5"]),
            Some(vec![(2, 1)])
        );
        assert_eq!(chosen(&["--loads", "62"]), None);
        assert_eq!(chosen(&["--round", "2"]), None);
    }

    #[test]
    fn settings_outside_the_kernels_folders_are_refused() {
        let outside = [("/tmp/file".to_owned(), "1".to_owned())];
        assert!(KernelSettings::put(&outside).is_err());
    }
}
