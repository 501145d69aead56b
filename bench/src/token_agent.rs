//! The user-space half of the token policy: grants tokens to users.
//!
//! Latency-sensitive (LS) users share a fixed rate, chosen so that the server
//! stays below saturation. What they leave of it goes to best-effort (BE)
//! users. The policy spends a token per request and drops a request whose user
//! has none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde::Serialize;

use crate::clock::{now_ns, sleep_until};
use crate::priority;

/// Name of the Map, by user.
const TOKENS: &str = "tokens";

/// Refills the Map of the token policy: so many tokens a second for LS users,
/// and what they do not spend for BE users.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  syrupctl load socket-select --policy token --app rocksdb --port 9000
  syrup-bench token-agent --app rocksdb --rate 350000 --ls 0 --be 1")]
pub struct Options {
    /// The app whose policy it feeds.
    #[arg(long)]
    pub app: String,
    /// Tokens a second, for all users together.
    #[arg(long)]
    pub rate: f64,
    /// Latency-sensitive users.
    #[arg(long, value_delimiter = ',', required = true)]
    pub ls: Vec<u32>,
    /// Best-effort users.
    #[arg(long, value_delimiter = ',')]
    pub be: Vec<u32>,
    /// Time between refills. Unspent tokens do not outlive a period, and an
    /// agent that wakes late grants those of two at most: the largest burst.
    #[arg(long, default_value_t = 1000)]
    pub period_us: u64,
    /// Ends after so many seconds; else at SIGTERM.
    #[arg(long)]
    pub duration: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    periods: u64,
    granted_ls: u64,
    granted_be: u64,
}

/// Refills until told to stop, then prints how much was granted.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rate > 0.0, "--rate must be above 0");
    ensure!(options.period_us > 0, "--period-us must be at least 1");
    let app = syrup::App::named(&options.app);
    let map = app
        .open_map(TOKENS)
        .map_err(|error| anyhow!("{error:#}"))
        .context("cannot open the Map tokens: is the token policy loaded?")?;
    let tokens = map.mmap()?;
    for user in options.ls.iter().chain(&options.be) {
        ensure!(*user < map.entries(), "user {user} is beyond the Map's {} entries", map.entries());
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    priority::set_timer_slack_ns(1)?;

    let of = |user: u32| -> &AtomicU64 { &tokens.entry(user as usize)[0] };
    let mut summary = Summary::default();
    let start_ns = now_ns();
    let end_ns = options.duration.map_or(u64::MAX, |s| start_ns + (s * 1e9) as u64);
    let mut refills = Refills::new(options.rate, options.period_us * 1000, start_ns);
    while !stop.load(Ordering::Relaxed) && refills.next_ns() <= end_ns {
        sleep_until(refills.next_ns());
        let due = refills.due(now_ns());
        let mut spare = 0;
        for (user, share) in options.ls.iter().zip(shares(due, options.ls.len())) {
            spare += refill(of(*user), share);
            summary.granted_ls += share;
        }
        for (user, share) in options.be.iter().zip(shares(spare, options.be.len())) {
            refill(of(*user), share);
            summary.granted_be += share;
        }
        summary.periods += 1;
    }
    // Nobody refills from here on: what is left must not be spent later.
    for user in options.ls.iter().chain(&options.be) {
        of(*user).store(0, Ordering::Release);
    }
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}

/// When to refill, and with how much: whole tokens at a rate, without losing
/// fractions.
struct Refills {
    rate: f64,
    period_ns: u64,
    start_ns: u64,
    last_ns: u64,
    /// Tokens that the time until the last refill has brought.
    brought: u64,
}

impl Refills {
    fn new(rate: f64, period_ns: u64, start_ns: u64) -> Self {
        Self { rate, period_ns, start_ns, last_ns: start_ns, brought: 0 }
    }

    /// A whole period after the last refill, also when that was late: an early
    /// one would take away tokens that nobody had the time to spend.
    fn next_ns(&self) -> u64 {
        self.last_ns + self.period_ns
    }

    /// Tokens to grant now. Those of more than two periods are forfeited: the
    /// server cannot catch up on what it was not asked for.
    fn due(&mut self, now_ns: u64) -> u64 {
        let until = |ns: u64| ns as f64 * self.rate / 1e9;
        let brought = until(now_ns - self.start_ns) as u64;
        let due = (brought - self.brought).min(until(2 * self.period_ns).ceil() as u64);
        self.brought = brought;
        self.last_ns = now_ns;
        due
    }
}

/// `amount` over `users`, as even as whole tokens can be.
fn shares(amount: u64, users: usize) -> impl Iterator<Item = u64> {
    let users = users.max(1) as u64;
    (0..users).map(move |user| (amount * (user + 1)) / users - (amount * user) / users)
}

/// Sets a user's tokens to `share`, less what it owes; returns what it had left.
/// Two requests that raced for the last token leave a debt.
fn refill(tokens: &AtomicU64, share: u64) -> u64 {
    let left = tokens.swap(share, Ordering::AcqRel).cast_signed();
    if left < 0 {
        tokens.fetch_add(left.cast_unsigned(), Ordering::AcqRel);
    }
    left.max(0).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_uneven_periods() {
        let mut refills = Refills::new(350_000.0, 1_000_000, 0);
        let uneven = (0..900).map(|n| n * 1_111_111 + n % 7 * 100_000).chain([1_000_000_000]);
        assert_eq!(uneven.map(|at| refills.due(at)).sum::<u64>(), 350_000);
    }

    #[test]
    fn a_late_refill_is_a_burst_of_two_periods_and_lasts_a_whole_one() {
        let mut refills = Refills::new(2000.0, 20_000_000, 5);
        assert_eq!(refills.next_ns(), 20_000_005);
        assert_eq!(refills.due(20_000_005), 40);
        assert_eq!(refills.due(420_000_005), 80);
        assert_eq!(refills.next_ns(), 440_000_005);
        assert_eq!(refills.due(440_000_005), 40);
        // Less than a token a period.
        let mut refills = Refills::new(10.0, 1_000_000, 0);
        assert_eq!((1..=1000).map(|ms| refills.due(ms * 1_000_000)).sum::<u64>(), 10);
    }

    #[test]
    fn shares_add_up() {
        assert_eq!(shares(10, 3).collect::<Vec<_>>(), [3, 3, 4]);
        assert_eq!(shares(0, 2).sum::<u64>(), 0);
    }

    #[test]
    fn unspent_tokens_are_handed_on_and_debts_are_paid() {
        let tokens = AtomicU64::new(40);
        assert_eq!(refill(&tokens, 100), 40);
        assert_eq!(tokens.load(Ordering::Relaxed), 100);
        tokens.store((-3i64).cast_unsigned(), Ordering::Relaxed);
        assert_eq!(refill(&tokens, 100), 0);
        assert_eq!(tokens.load(Ordering::Relaxed), 97);
    }
}
