//! The load generator tells the truth, also about itself: against a server of
//! the test's own, which knows what it got and what it answered.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use syrup_bench::wire::{BYTES, Class, Message};

const BENCH: &str = env!("CARGO_BIN_EXE_syrup-bench");

/// Answers at once, or as it is told; remembers every request and its port.
struct Echo {
    port: u16,
    got: Arc<Mutex<Vec<(u16, Message)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    /// `answers` says how often the request of this number is answered.
    fn start(answers: fn(u64) -> u32) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let got = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (got, stop) = (got.clone(), stop.clone());
            move || {
                let mut bytes = [0; BYTES];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((BYTES, from)) = socket.recv_from(&mut bytes) else { continue };
                    let request = Message::decode(&bytes).unwrap();
                    got.lock().unwrap().push((from.port(), request));
                    for _ in 0..answers(request.id) {
                        socket.send_to(&bytes, from).unwrap();
                    }
                }
            }
        });
        Self { port, got, stop, thread: Some(thread) }
    }

    /// Starts a load against it.
    fn load(&self, arguments: &[&str]) -> Child {
        Command::new(BENCH)
            .args(["load", "--port", &self.port.to_string(), "--grace", "0.3"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The same to its end, and what it printed.
    fn loaded(&self, arguments: &[&str]) -> Value {
        summary(self.load(arguments))
    }

    /// What came since the last call.
    fn requests(&self) -> Vec<(u16, Message)> {
        std::mem::take(&mut self.got.lock().unwrap())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn summary(load: Child) -> Value {
    let output = load.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn get(summary: &Value, field: &str) -> f64 {
    summary["classes"][0][field].as_f64().unwrap()
}

/// Stops the process for a while in the middle of its run.
fn held_up(mut load: Child, echo: &Echo, length: Duration) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    while echo.got.lock().unwrap().len() < 20 {
        assert!(Instant::now() < deadline && load.try_wait().unwrap().is_none(), "no requests");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = rustix::process::Pid::from_child(&load);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    std::thread::sleep(length);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    summary(load)
}

#[test]
fn a_sender_that_was_held_up_charges_it_to_the_latencies_and_says_so() {
    const HELD_UP: Duration = Duration::from_millis(300);
    let echo = Echo::start(|_| 1);
    let arguments = ["--rps", "200", "--duration", "2", "--warmup", "0"];
    let summary = held_up(echo.load(&arguments), &echo, HELD_UP);
    // Requests that should have left meanwhile waited up to that long; those
    // after it are on time again: nothing was moved.
    assert!(get(&summary, "max_us") >= 250_000.0, "{summary}");
    assert!(get(&summary, "p50_us") < 100_000.0, "{summary}");
    let late = &summary["timekeeping"];
    assert!(late["sender_max_us"].as_f64().unwrap() >= 250_000.0, "{late}");
    let share = late["sender_late"].as_f64().unwrap();
    assert!((0.1..1.0).contains(&share), "{late}");
    assert_eq!(summary["kept_share"].as_f64(), Some(1.0));
    assert_eq!(get(&summary, "samples"), get(&summary, "requests"));
    let got = echo.requests();
    let moved = got.iter().filter(|(_, one)| one.sent_ns > one.intended_ns + 200_000_000);
    assert!(moved.count() >= 5, "the requests do not say when they should have left");

    // Left out when asked, and the share that was kept is told.
    let arguments = [&arguments[..], &["--exclude-late"]].concat();
    let summary = held_up(echo.load(&arguments), &echo, HELD_UP);
    let kept = summary["kept_share"].as_f64().unwrap();
    assert!(kept < 0.95, "{summary}");
    let samples = (kept * get(&summary, "requests")).round();
    assert_eq!(get(&summary, "samples"), samples, "{summary}");
    assert!(get(&summary, "max_us") < 250_000.0, "{summary}");
    assert!(!summary["left_out"].as_array().unwrap().is_empty());
}

#[test]
fn what_is_not_answered_is_lost_and_what_is_answered_twice_is_not_two() {
    let echo = Echo::start(|id| if id % 4 == 0 { 0 } else { 1 + u32::from(id % 4 == 1) });
    let summary = echo.loaded(&["--rps", "400", "--duration", "1", "--warmup", "0"]);
    let got = echo.requests();
    let of = |rest| got.iter().filter(|(_, request)| request.id % 4 == rest).count() as f64;
    assert!(of(0) > 50.0);
    assert_eq!(get(&summary, "requests"), got.len() as f64);
    assert_eq!(get(&summary, "drops"), of(0));
    assert_eq!(summary["sent"].as_u64(), Some(got.len() as u64));
    assert_eq!(summary["answered"].as_f64(), Some(got.len() as f64 - of(0)));
    assert_eq!(summary["unexpected"].as_f64(), Some(of(1)));
    assert_eq!(get(&summary, "samples"), got.len() as f64 - of(0));
}

#[test]
fn the_warm_up_is_sent_and_does_not_count() {
    let echo = Echo::start(|_| 1);
    let summary = echo.loaded(&["--rps", "500", "--duration", "0.5", "--warmup", "0.5"]);
    let got = echo.requests();
    // From the first request, which comes some 2 ms after the start.
    let start_ns = got.iter().map(|(_, request)| request.intended_ns).min().unwrap();
    let counted = get(&summary, "requests");
    let after = |ns: u64| {
        got.iter().filter(|(_, request)| request.intended_ns >= start_ns + ns).count() as f64
    };
    assert_eq!(summary["sent"].as_u64(), Some(got.len() as u64));
    let (most, least) = (after(470_000_000), after(500_000_000));
    assert!((least..=most).contains(&counted), "{least} to {most}, not {counted}");
    assert!(counted < got.len() as f64 * 0.7, "{counted} of {}", got.len());
}

#[test]
fn the_seed_decides_what_is_asked_and_when_and_another_one_the_ports() {
    let echo = Echo::start(|_| 1);
    let run = |seed: &str, ports: &str| {
        let mix = ["--rps", "300", "--duration", "1", "--warmup", "0", "--scan-fraction", "0.3"];
        let seeds = ["--seed", seed, "--ports-seed", ports, "--flows", "20"];
        echo.loaded(&[&mix[..], &seeds].concat());
        let mut got = echo.requests();
        got.sort_by_key(|(_, request)| request.id);
        let start_ns = got[0].1.intended_ns;
        let asked: Vec<(u64, Class, u64, u16)> = got
            .iter()
            .map(|(port, one)| (one.intended_ns - start_ns, one.class, one.key, *port))
            .collect();
        let ports: BTreeSet<u16> = got.iter().map(|(port, _)| *port).collect();
        (asked, ports)
    };
    let first = run("1", "5");
    assert_eq!(run("1", "5"), first, "the same twice");
    assert_eq!(first.1.len(), 20);
    let (asked, ports) = run("2", "5");
    assert_ne!(asked, first.0, "other requests");
    assert_eq!(ports, first.1, "from the same ports");
    let (asked, ports) = run("1", "6");
    assert!(ports.is_disjoint(&first.1) || ports != first.1, "other ports");
    let without_port = |asked: &[(u64, Class, u64, u16)]| -> Vec<_> {
        asked.iter().map(|a| (a.0, a.1, a.2)).collect()
    };
    assert_eq!(without_port(&asked), without_port(&first.0), "the same requests");
}
