//! Numbers of a deployment, by the names that the kernel's side has for them.

use syrup_protocol::Deployment;
use syrup_sdk::abi::{COUNTER_NAMES, syrup_counter};

/// What a deployment says, one number at a time.
pub trait Numbers {
    /// A counter.
    fn count(&self, counter: syrup_counter) -> u64;

    /// A number of its target; `None` when that does not say it.
    fn fact(&self, name: &str) -> Option<u64>;

    /// The process that its target names.
    fn pid(&self) -> Option<i32>;

    /// The cores that its target names.
    fn cpus(&self) -> Vec<u64>;
}

impl Numbers for Deployment {
    fn count(&self, counter: syrup_counter) -> u64 {
        self.counters[COUNTER_NAMES[counter as usize]]
    }

    fn fact(&self, name: &str) -> Option<u64> {
        self.target.get(name)?.as_u64()
    }

    fn pid(&self) -> Option<i32> {
        self.fact("pid").and_then(|pid| pid.try_into().ok())
    }

    fn cpus(&self) -> Vec<u64> {
        let cpus = self.target["cpus"].as_array().expect("a list of cores");
        cpus.iter().map(|cpu| cpu.as_u64().expect("a core")).collect()
    }
}
