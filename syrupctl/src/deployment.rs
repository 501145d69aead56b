//! Deployments in words: the one line after `load`, the rows of `list` and
//! `status`, the block of `show`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use syrup_protocol::{Code, Deployment, Facts, Failure, Health};
use syrup_sdk::abi::COUNTER_NAMES;

use crate::output::{self, table};

/// Counters that everybody reads; the others mean that something went wrong.
const ORDINARY: [&str; 4] = ["inputs", "chosen", "passed", "dropped"];

/// "scan-avoid is live at socket-select for app rocksdb (udp/7000, 6 sockets, program 123)"
pub fn sentence(deployment: &Deployment) -> String {
    let Deployment { app, hook, policy, health, inputs, program_id, .. } = deployment;
    let mut details = vec![inputs.clone(), executors(deployment)];
    if let Some(cpus) = deployment.target.get("cpus").map(text).filter(|cpus| cpus != ALL) {
        details.push(format!("cores {cpus}"));
    }
    details.push(format!("program {program_id}"));
    format!("{policy} is {} at {hook} for app {app} ({})", health.state(), details.join(", "))
}

/// What is wrong with it, as an error with code 10; `None` when it is live.
pub fn trouble(deployment: &Deployment) -> Option<Failure> {
    let Deployment { app, hook, policy, health, .. } = deployment;
    if health.is_live() {
        return None;
    }
    let (state, reason) = (health.state(), health.reason().unwrap_or("no reason is known"));
    let what = if policy.is_empty() { "the deployment" } else { policy };
    let message = format!("{what} of app {app} is {state} at {hook}: {reason}");
    let advice = match health {
        Health::Ejected(_) => format!(
            "its inputs get the kernel's default; correct the policy, then \
             'syrupctl unload {hook} --app {app}' and load it again; where others are ejected, \
             too (syrupctl list), after all of them are unloaded"
        ),
        Health::Broken(_) => {
            format!("'syrupctl unload {hook} --app {app}' takes away what is left of it")
        }
        Health::Other { .. } => {
            "this syrupctl does not know that state: is it of the daemon's version?".to_owned()
        }
        _ => format!(
            "the kernel's default decides some or all inputs; \
             'syrupctl show {app}' has the counters"
        ),
    };
    Some(Failure::new(Code::Degraded, message).advise(advice))
}

/// What a live deployment waits for before it can decide anything.
pub fn waits_for(deployment: &Deployment) -> Option<&str> {
    deployment.health.reason().filter(|_| deployment.health.is_live())
}

/// Exit code of a command that shows these.
pub fn exit_code(deployments: &[Deployment]) -> u8 {
    let all_live = deployments.iter().all(|deployment| deployment.health.is_live());
    if all_live { 0 } else { Code::Degraded.exit_code() }
}

/// `list`
pub fn list(deployments: &[Deployment]) -> String {
    table(
        ["APP", "HOOK", "POLICY", "TARGET", "EXECUTORS", "PROGRAM", "STATE"],
        deployments
            .iter()
            .map(|deployment| {
                [
                    deployment.app.clone(),
                    deployment.hook.clone(),
                    deployment.policy.clone(),
                    deployment.inputs.clone(),
                    executors(deployment),
                    deployment.program_id.to_string(),
                    deployment.health.state().to_owned(),
                ]
            })
            .collect(),
    )
}

/// `status`: a row of counters each, then what is wrong or not there yet.
pub fn status(deployments: &[Deployment]) -> String {
    let mut text = table(
        ["APP", "HOOK", "POLICY", "STATE", "INPUTS", "CHOSEN", "PASSED", "DROPPED", "FAULTS"],
        deployments
            .iter()
            .map(|deployment| {
                let [inputs, chosen, passed, dropped] =
                    ORDINARY.map(|name| counter(deployment, name).to_string());
                [
                    deployment.app.clone(),
                    deployment.hook.clone(),
                    deployment.policy.clone(),
                    deployment.health.state().to_owned(),
                    inputs,
                    chosen,
                    passed,
                    dropped,
                    faults(deployment),
                ]
            })
            .collect(),
    );
    let remarks: Vec<String> = deployments.iter().filter_map(remark).collect();
    if !remarks.is_empty() {
        text.push('\n');
    }
    for remark in remarks {
        text.push_str(&format!("{remark}\n"));
    }
    text
}

/// Why it does not decide its inputs.
fn remark(deployment: &Deployment) -> Option<String> {
    let Deployment { app, hook, policy, .. } = deployment;
    trouble(deployment).map(|error| error.message).or_else(|| {
        let waits = waits_for(deployment)?;
        Some(format!("{policy} of app {app} is live at {hook}: {waits}"))
    })
}

/// `show`: everything about one.
pub fn block(deployment: &Deployment, now: SystemTime) -> String {
    let sha256 = deployment.policy_sha256.get(..12).unwrap_or(&deployment.policy_sha256);
    let replaced = match deployment.generation {
        0 => "never replaced".to_owned(),
        1 => "replaced once".to_owned(),
        n => format!("replaced {n} times"),
    };
    let params: Vec<String> =
        deployment.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut rows = vec![
        ("state", deployment.health.state().to_owned()),
        ("policy", format!("{} (object {sha256})", deployment.policy)),
        ("program", format!("{}, {replaced}", deployment.program_id)),
        ("live for", age(deployment.deployed_at, now)),
        ("inputs", deployment.inputs.clone()),
        ("executors", executors(deployment)),
    ];
    if !params.is_empty() {
        rows.insert(2, ("params", params.join(", ")));
    }
    if let Some(reason) = deployment.health.reason() {
        rows.insert(1, ("reason", reason.to_owned()));
    }
    if !deployment.target.is_empty() {
        rows.push(("target", target(&deployment.target)));
    }
    let counters: Vec<String> = counter_names(deployment)
        .map(|name| format!("{name} {}", counter(deployment, name)))
        .collect();
    rows.push(("counters", counters.join(", ")));
    rows.push(("chosen", chosen(&deployment.verdicts)));
    format!("{}\n{}", deployment.hook, output::facts(&rows))
}

/// How often each executor was chosen.
fn chosen(verdicts: &[u64]) -> String {
    let nonzero: Vec<String> = verdicts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count != 0)
        .map(|(index, count)| format!("{index}: {count}"))
        .collect();
    if nonzero.is_empty() { "none yet".to_owned() } else { nonzero.join(", ") }
}

/// Counter names in the kernel side's order, then any this version does not know.
fn counter_names(deployment: &Deployment) -> impl Iterator<Item = &str> {
    let unknown =
        deployment.counters.keys().map(String::as_str).filter(|name| !COUNTER_NAMES.contains(name));
    COUNTER_NAMES.into_iter().filter(|name| deployment.counters.contains_key(*name)).chain(unknown)
}

fn counter(deployment: &Deployment, name: &str) -> u64 {
    deployment.counters.get(name).copied().unwrap_or(0)
}

fn faults(deployment: &Deployment) -> String {
    let faults: Vec<String> = counter_names(deployment)
        .filter(|name| !ORDINARY.contains(name))
        .map(|name| (name, counter(deployment, name)))
        .filter(|(_, count)| *count != 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if faults.is_empty() { "none".to_owned() } else { faults.join(", ") }
}

/// `port 7000, proto udp`
fn target(facts: &Facts) -> String {
    let facts: Vec<String> =
        facts.iter().map(|(name, value)| format!("{name} {}", text(value))).collect();
    facts.join(", ")
}

const ALL: &str = "all";

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let cpus: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
            match cpus.as_deref() {
                Some([]) => ALL.to_owned(),
                Some(cpus) => ranges(cpus),
                None => {
                    let words: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
                    words.map_or_else(|| value.to_string(), |words| words.join(","))
                }
            }
        }
        other => other.to_string(),
    }
}

fn executors(deployment: &Deployment) -> String {
    let Deployment { executors: n, executor, .. } = deployment;
    format!("{n} {executor}{}", if *n == 1 { "" } else { "s" })
}

/// `0-3,8`
fn ranges(cpus: &[u64]) -> String {
    let mut parts: Vec<(u64, u64)> = vec![];
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(cpu) => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let text = |(first, last): &(u64, u64)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

fn age(deployed_at: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = now.saturating_sub(deployed_at);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn facts(facts: &[(&str, Value)]) -> Facts {
        facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    pub fn example() -> Deployment {
        Deployment {
            app: "rocksdb".to_owned(),
            uid: 0,
            hook: "socket-select".to_owned(),
            policy: "scan-avoid".to_owned(),
            policy_sha256: "0123456789abcdef".to_owned(),
            params: BTreeMap::from([("LIMIT".to_owned(), "8".to_owned())]),
            program_id: 123,
            generation: 0,
            deployed_at: 1000,
            inputs: "udp/7000".to_owned(),
            executor: "socket".to_owned(),
            executors: 6,
            target: facts(&[
                ("port", vec![7000].into()),
                ("pid", 42.into()),
                ("proto", vec!["udp"].into()),
            ]),
            health: Health::LIVE,
            counters: [("inputs", 10), ("chosen", 8), ("passed", 1), ("out_of_range", 1)]
                .map(|(name, n)| (name.to_owned(), n))
                .into(),
            verdicts: vec![3, 0, 5],
        }
    }

    fn thread_example() -> Deployment {
        Deployment {
            hook: "scx-syrup".to_owned(),
            policy: "get-priority".to_owned(),
            inputs: "1 thread".to_owned(),
            executor: "executor".to_owned(),
            executors: 2,
            target: facts(&[("threads", 1.into()), ("cpus", vec![0, 1, 3].into())]),
            health: Health::Ejected("runnable task stall".to_owned()),
            ..example()
        }
    }

    #[test]
    fn the_sentence_names_what_was_asked_for_and_what_came_of_it() {
        assert_eq!(
            sentence(&example()),
            "scan-avoid is live at socket-select for app rocksdb \
             (udp/7000, 6 sockets, program 123)"
        );
        assert_eq!(
            sentence(&thread_example()),
            "get-priority is ejected at scx-syrup for app rocksdb \
             (1 thread, 2 executors, cores 0-1,3, program 123)"
        );
    }

    #[test]
    fn only_live_deployments_are_no_trouble() {
        assert_eq!(trouble(&example()), None);
        let error = trouble(&thread_example()).unwrap();
        assert_eq!(error.code, Code::Degraded);
        assert!(error.message.ends_with("ejected at scx-syrup: runnable task stall"), "{error}");
        assert_eq!(exit_code(&[example()]), 0);
        assert_eq!(exit_code(&[example(), thread_example()]), 10);
        assert_eq!(exit_code(&[]), 0);
    }

    #[test]
    fn a_deployment_without_threads_or_sockets_waits_for_them() {
        assert_eq!(waits_for(&example()), None);
        assert_eq!(waits_for(&thread_example()), None);
        let waits = Deployment {
            health: Health::waiting("it waits for its first socket"),
            ..thread_example()
        };
        assert_eq!(waits_for(&waits).unwrap(), "it waits for its first socket");
        let status = status(&[waits]);
        let said =
            "\nget-priority of app rocksdb is live at scx-syrup: it waits for its first socket\n";
        assert!(status.ends_with(said), "{status}");
    }

    #[test]
    fn the_list_has_a_row_for_each() {
        assert_eq!(
            list(&[example(), thread_example()]),
            "APP      HOOK           POLICY        TARGET    EXECUTORS    PROGRAM  STATE\n\
             rocksdb  socket-select  scan-avoid    udp/7000  6 sockets    123      live\n\
             rocksdb  scx-syrup      get-priority  1 thread  2 executors  123      ejected\n"
        );
        assert_eq!(list(&[]), "");
    }

    #[test]
    fn status_shows_faults_apart_and_reasons_below() {
        assert_eq!(
            status(&[example(), thread_example()]),
            "APP      HOOK           POLICY        STATE    INPUTS  CHOSEN  PASSED  DROPPED  FAULTS\n\
             rocksdb  socket-select  scan-avoid    live     10      8       1       0        out_of_range 1\n\
             rocksdb  scx-syrup      get-priority  ejected  10      8       1       0        out_of_range 1\n\
             \n\
             get-priority of app rocksdb is ejected at scx-syrup: runnable task stall\n"
        );
    }

    #[test]
    fn the_block_says_everything() {
        let now = UNIX_EPOCH + Duration::from_secs(1000 + 200);
        assert_eq!(
            block(&example(), now),
            "socket-select\n\
             \x20 state      live\n\
             \x20 policy     scan-avoid (object 0123456789ab)\n\
             \x20 params     LIMIT=8\n\
             \x20 program    123, never replaced\n\
             \x20 live for   3 min 20 s\n\
             \x20 inputs     udp/7000\n\
             \x20 executors  6 sockets\n\
             \x20 target     pid 42, port 7000, proto udp\n\
             \x20 counters   inputs 10, chosen 8, passed 1, out_of_range 1\n\
             \x20 chosen     0: 3, 2: 5\n"
        );
    }

    #[test]
    fn ages_have_two_units_at_most() {
        let at = |seconds| age(0, UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(5), "5 s");
        assert_eq!(at(3700), "1 h 1 min");
        assert_eq!(at(90000), "1 d 1 h");
        assert_eq!(age(10, UNIX_EPOCH), "0 s", "a clock that was set back");
    }
}
