//! Progress of a long experiment, on stderr.

use std::time::Instant;

/// Says which run is next and how long the rest will take.
pub struct Progress {
    experiment: &'static str,
    runs: u32,
    done: u32,
    started: Instant,
    started_on_battery_clock: Option<u64>,
}

impl Progress {
    /// Of an experiment of so many runs.
    #[must_use]
    pub fn new(experiment: &'static str, runs: u32) -> Self {
        Self {
            experiment,
            runs,
            done: 0,
            started: Instant::now(),
            started_on_battery_clock: battery_clock(),
        }
    }

    /// A line of its own.
    pub fn say(&self, text: &str) {
        eprintln!("{}: {text}", self.experiment);
    }

    /// A run ended: what it was and what came out.
    pub fn run_done(&mut self, text: &str) {
        self.done += 1;
        let left = self.runs.saturating_sub(self.done);
        let per_run = self.elapsed_s() / f64::from(self.done);
        let eta = match left {
            0 => "done".to_owned(),
            _ => format!("about {} left", duration(per_run * f64::from(left))),
        };
        eprintln!("{}: [{}/{}] {text}; {eta}", self.experiment, self.done, self.runs);
    }

    /// So many runs need not be made.
    pub fn skip(&mut self, runs: u32) {
        self.runs = self.runs.saturating_sub(runs);
    }

    /// Real seconds. In a guest whose time counts instructions only the clock
    /// on the mainboard goes with the user's.
    fn elapsed_s(&self) -> f64 {
        match (self.started_on_battery_clock, battery_clock()) {
            (Some(start), Some(now)) if now > start => (now - start) as f64,
            _ => self.started.elapsed().as_secs_f64(),
        }
    }
}

fn battery_clock() -> Option<u64> {
    std::fs::read_to_string("/sys/class/rtc/rtc0/since_epoch").ok()?.trim().parse().ok()
}

fn duration(seconds: f64) -> String {
    match seconds.round() as u64 {
        seconds if seconds < 90 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_for_people() {
        assert_eq!(duration(12.4), "12 s");
        assert_eq!(duration(91.0), "2 min");
        assert_eq!(duration(240.0), "4 min");
    }
}
