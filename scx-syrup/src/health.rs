//! Does a deployment do what it should?

use std::time::Duration;

use syrup_hook::{Counters, Health};
use syrup_sdk::abi::{
    SYRUP_CHOSEN, SYRUP_ENFORCE_FAILED, SYRUP_INPUTS, SYRUP_NO_POLICY, SYRUP_OUT_OF_RANGE,
    SYRUP_RESCUED,
};

use crate::layout::{SYRUP_SCX_BEHIND, SYRUP_SCX_BEHIND_MS};
use crate::root::{Expelled, State, Waits};

/// One rescue in so many inputs is a habit: a policy that starves threads, or
/// more threads than come round within the deadline. Fewer come from bursts.
const STARVING: u64 = 20;
/// Fewer say nothing yet.
const FEW_RESCUES: u64 = 20;

/// How the app's threads wait.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Waiting {
    pub waits: Waits,
    /// After which a thread is rescued.
    pub deadline: Duration,
    /// How many are in the class.
    pub threads: u32,
}

impl Waiting {
    /// The rescue comes late for it.
    fn far_behind(self) -> bool {
        let at_most = Duration::from_millis(SYRUP_SCX_BEHIND_MS.into());
        self.waits.longest >= at_most.min(self.deadline * SYRUP_SCX_BEHIND)
    }

    fn expulsion(self) -> Option<Health> {
        let Expelled { ago, waited } = self.waits.expelled?;
        let why = format!(
            "a thread had waited for {:.1} s, and all that the rescue can do was not enough: the \
             app has more threads than its share of its cores can serve, or threads of other \
             classes keep these busy",
            waited.as_secs_f64()
        );
        Some(match self.threads {
            0 => Health::Ejected(format!("expelled {} s ago, alone: {why}", ago.as_secs())),
            threads => Health::Ejected(format!(
                "expelled {} s ago, alone, and the daemon or 'syrupctl gc' takes its {threads} \
                 threads out of sched_ext: {why}",
                ago.as_secs()
            )),
        })
    }
}

/// The app's cores, as far as some are offline.
#[derive(Debug, Default)]
pub(crate) struct Cores {
    offline: Vec<u32>,
    all_offline: bool,
    /// Its policy chooses among them.
    are_executors: bool,
}

impl Cores {
    /// `cpus` is empty where the app may use all.
    pub fn of(cpus: &[u32], are_executors: bool, online: &[u32]) -> Self {
        let offline: Vec<u32> = cpus.iter().copied().filter(|cpu| !online.contains(cpu)).collect();
        let all_offline = !cpus.is_empty() && offline.len() == cpus.len();
        Self { offline, all_offline, are_executors }
    }
}

/// The verdict over what was read. `has_program` is false when the slot is empty.
pub(crate) fn judge(
    state: &State,
    has_program: bool,
    counters: &Counters,
    waiting: Waiting,
    cores: &Cores,
) -> Health {
    if let State::Ejected(why) = state {
        return Health::Ejected(why.clone());
    }
    if let Some(expelled) = waiting.expulsion() {
        return expelled;
    }
    if !has_program {
        return Health::Degraded(
            "no program is in the app's slot, so the default decides: unload it and load again"
                .to_owned(),
        );
    }
    let inputs = counters.get(SYRUP_INPUTS);
    let chosen = counters.get(SYRUP_CHOSEN);
    let out_of_range = counters.get(SYRUP_OUT_OF_RANGE);
    let refused = counters.get(SYRUP_ENFORCE_FAILED);
    let no_policy = counters.get(SYRUP_NO_POLICY);
    let rescued = counters.get(SYRUP_RESCUED);
    if chosen == 0 && out_of_range > 0 {
        return Health::Degraded(format!(
            "schedule() never named an executor there is ({out_of_range} of {inputs} verdicts out \
             of range): the default decides"
        ));
    }
    let offline = &cores.offline;
    if cores.all_offline {
        return Health::Degraded(format!(
            "no core of the app is online (its cores: {offline:?}): its threads compete on others \
             as threads of nobody"
        ));
    }
    if cores.are_executors && refused > 0 && !offline.is_empty() {
        return Health::Degraded(format!(
            "{refused} of {inputs} inputs were for cores that are offline ({offline:?}) or that the \
             threads' own affinity excludes: the app's other cores serve them"
        ));
    }
    if chosen == 0 && refused > 0 {
        return Health::Degraded(format!(
            "the threads' own affinity excludes every core the policy chose ({refused} of \
             {inputs} inputs): the default decides"
        ));
    }
    if no_policy > 0 {
        return Health::Degraded(format!(
            "the kernel did not call the policy for {no_policy} of {inputs} inputs: the default \
             decided them"
        ));
    }
    let Waits { longest, refused, .. } = waiting.waits;
    if !longest.is_zero() && waiting.far_behind() {
        return Health::Degraded(format!(
            "threads starve, one has waited for {:.1} s: threads of other classes keep the app's \
             cores busy, or the app has more threads than its share of them can rescue",
            longest.as_secs_f64()
        ));
    }
    if rescued > FEW_RESCUES && rescued * STARVING > inputs {
        return Health::Degraded(format!(
            "threads starve, {rescued} rescues in {inputs} inputs: the policy passes them over, or \
             they are too many for the app's share of its cores, or other classes keep these busy"
        ));
    }
    if refused > 0 {
        return Health::Degraded(format!(
            "the app, or its user, has as many threads in sched_ext as it may ({refused} more were \
             refused: a fork fails with EAGAIN, and who enters by himself is nobody's)"
        ));
    }
    Health::LIVE
}

/// The same a moment after the scheduler came back.
pub(crate) fn after_return(health: Health, ago: Duration, why: &str) -> Health {
    match health {
        Health::Live(_) => Health::Degraded(format!(
            "the kernel ended the root scheduler ({why}), which was put back {} s ago: threads \
             were ordinary ones meanwhile. It comes back three times in a minute",
            ago.as_secs()
        )),
        worse => worse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(values: &[(u32, u64)]) -> Counters {
        let mut counters = Counters::default();
        for &(counter, value) in values {
            counters.0[counter as usize] = value;
        }
        counters
    }

    fn degraded(values: &[(u32, u64)]) -> bool {
        let waiting = Waiting::default();
        let health = judge(&State::Live, true, &counters(values), waiting, &Cores::default());
        matches!(health, Health::Degraded(_))
    }

    #[test]
    fn a_deployment_without_threads_yet_is_live() {
        let none = Counters::default();
        let health = judge(&State::Live, true, &none, Waiting::default(), &Cores::default());
        assert_eq!(health, Health::LIVE);
    }

    #[test]
    fn a_policy_that_never_names_an_executor_is_degraded() {
        assert!(degraded(&[(SYRUP_INPUTS, 5), (SYRUP_OUT_OF_RANGE, 5)]));
        assert!(!degraded(&[(SYRUP_INPUTS, 5), (SYRUP_CHOSEN, 4), (SYRUP_OUT_OF_RANGE, 1)]));
    }

    #[test]
    fn rescues_degrade_when_they_are_a_habit() {
        assert!(!degraded(&[(SYRUP_INPUTS, 1000), (SYRUP_CHOSEN, 1000), (SYRUP_RESCUED, 50)]));
        assert!(degraded(&[(SYRUP_INPUTS, 1000), (SYRUP_CHOSEN, 1000), (SYRUP_RESCUED, 51)]));
        assert!(!degraded(&[(SYRUP_INPUTS, 60), (SYRUP_CHOSEN, 60), (SYRUP_RESCUED, 5)]));
    }

    #[test]
    fn an_empty_slot_is_degraded_and_an_ejection_says_why() {
        let none = Counters::default();
        let of = |state: &State, has_program| {
            judge(state, has_program, &none, Waiting::default(), &Cores::default())
        };
        assert!(matches!(of(&State::Live, false), Health::Degraded(_)));
        let ejected = of(&State::Ejected("stall".into()), true);
        assert_eq!(ejected, Health::Ejected("stall".into()));
    }

    #[test]
    fn a_thread_that_the_rescue_does_not_reach_degrades() {
        let waiting = |longest_ms, deadline_ms| {
            let longest = Duration::from_millis(longest_ms);
            let waiting = Waiting {
                waits: Waits { longest, ..Default::default() },
                deadline: Duration::from_millis(deadline_ms),
                threads: 1,
            };
            let values = counters(&[(SYRUP_INPUTS, 9), (SYRUP_CHOSEN, 9)]);
            judge(&State::Live, true, &values, waiting, &Cores::default())
        };
        assert_eq!(waiting(1999, 200), Health::LIVE);
        assert!(
            matches!(waiting(2000, 200), Health::Degraded(why) if why.contains("waited for 2.0 s"))
        );
        assert_eq!(waiting(4999, 2000), Health::LIVE);
        assert!(matches!(waiting(5000, 2000), Health::Degraded(_)));
    }

    #[test]
    fn an_expelled_app_says_so_and_whether_its_threads_have_left() {
        let of = |threads| {
            let expelled = Some(Expelled {
                ago: Duration::from_secs(12),
                waited: Duration::from_millis(7600),
            });
            let waits = Waits { expelled, ..Default::default() };
            let waiting = Waiting { waits, threads, ..Default::default() };
            match judge(&State::Live, true, &Counters::default(), waiting, &Cores::default()) {
                Health::Ejected(why) => why,
                health => health.state().to_owned(),
            }
        };
        let (gone, there) = (of(0), of(3));
        assert!(gone.starts_with("expelled 12 s ago") && gone.contains("7.6 s"), "{gone}");
        assert!(there.contains("takes its 3 threads out"), "{there}");
        assert!(!gone.contains("gc"), "{gone}");
    }

    #[test]
    fn forks_that_fail_degrade() {
        let waits = Waits { refused: 2, ..Default::default() };
        let waiting = Waiting { waits, ..Default::default() };
        let health = judge(&State::Live, true, &Counters::default(), waiting, &Cores::default());
        assert!(matches!(&health, Health::Degraded(why) if why.contains("2 more were refused")));
    }

    #[test]
    fn cores_that_are_offline_degrade_when_it_matters() {
        let of = |cpus: &[u32], are_executors, refused| {
            let values = [(SYRUP_INPUTS, 9), (SYRUP_CHOSEN, 7), (SYRUP_ENFORCE_FAILED, refused)];
            let cores = Cores::of(cpus, are_executors, &[0, 1, 3]);
            match judge(&State::Live, true, &counters(&values), Waiting::default(), &cores) {
                Health::Degraded(why) => why,
                health => health.state().to_owned(),
            }
        };
        assert!(
            of(&[2, 3], true, 2).starts_with("2 of 9 inputs were for cores that are offline ([2])")
        );
        assert_eq!(of(&[2, 3], true, 0), "live");
        assert_eq!(of(&[2, 3], false, 0), "live");
        assert_eq!(of(&[1, 3], true, 2), "live");
        assert_eq!(of(&[], true, 2), "live");
        assert!(of(&[2], false, 0).starts_with("no core of the app is online"));
    }

    #[test]
    fn each_reason_is_told_with_its_numbers() {
        let why = |values: &[(u32, u64)]| match judge(
            &State::Live,
            true,
            &counters(values),
            Waiting::default(),
            &Cores::default(),
        ) {
            Health::Degraded(why) => why,
            other => panic!("{values:?}: {other:?}"),
        };
        let never = why(&[(SYRUP_INPUTS, 9), (SYRUP_OUT_OF_RANGE, 7)]);
        assert!(never.contains("7 of 9 verdicts out of range"), "{never}");
        let affinity = why(&[(SYRUP_INPUTS, 9), (SYRUP_ENFORCE_FAILED, 8)]);
        assert!(affinity.contains("affinity") && affinity.contains("8 of 9 inputs"), "{affinity}");
        let one = why(&[(SYRUP_INPUTS, 9), (SYRUP_CHOSEN, 8), (SYRUP_NO_POLICY, 1)]);
        assert!(one.contains("did not call the policy for 1 of 9"), "{one}");
        let starve = why(&[(SYRUP_INPUTS, 100), (SYRUP_CHOSEN, 100), (SYRUP_RESCUED, 21)]);
        assert!(starve.contains("21 rescues in 100 inputs"), "{starve}");
    }

    #[test]
    fn what_does_not_repeat_is_no_reason() {
        // Some are refused, others chosen: the policy works.
        assert!(!degraded(&[(SYRUP_INPUTS, 9), (SYRUP_CHOSEN, 1), (SYRUP_ENFORCE_FAILED, 8)]));
        // Twenty rescues are few however few the inputs.
        assert!(!degraded(&[(SYRUP_INPUTS, 21), (SYRUP_CHOSEN, 21), (SYRUP_RESCUED, 20)]));
        assert!(degraded(&[(SYRUP_INPUTS, 21), (SYRUP_CHOSEN, 21), (SYRUP_RESCUED, 21)]));
        assert!(!degraded(&[(SYRUP_INPUTS, 420), (SYRUP_CHOSEN, 420), (SYRUP_RESCUED, 21)]));
        // Inputs that chose nothing and were refused nothing: PASS.
        assert!(!degraded(&[(SYRUP_INPUTS, 9)]));
    }
}
