//! The packet policies: which executor a request goes to when it arrives.
//! Each chooses as the program of its name in `net-hooks/policies` does.

use rand::Rng;
use rand::rngs::StdRng;

use super::executor::{Executor, Mark};
use super::{Options, Policy};
use crate::load::Arrival;
use crate::wire::Class;

/// `TRIES` of scan-avoid.c: random executors before it tries each in turn.
const TRIES: usize = 8;

/// The multiplier of hash.c.
const HASH_MULTIPLIER: u32 = 0x9e37_79b1;

/// Where each flow leads under the policy `hash`, by the flows' source ports.
#[must_use]
pub fn hash_map(source_ports: &[u16], server_port: u16, executors: u16) -> Vec<u16> {
    source_ports
        .iter()
        .map(|source| {
            let [a, b] = source.to_be_bytes();
            let [c, d] = server_port.to_be_bytes();
            let ports = u32::from_le_bytes([a, b, c, d]).wrapping_mul(HASH_MULTIPLIER);
            ((u64::from(ports) * u64::from(executors)) >> 32) as u16
        })
        .collect()
}

/// A packet policy and what it remembers.
pub struct Chooser<'a> {
    options: &'a Options,
    /// Where each flow leads by default.
    flow_map: Vec<u16>,
    /// Requests chosen for in turn, by class where the policy tells classes apart.
    turns: [usize; 2],
    tokens: Tokens,
}

impl<'a> Chooser<'a> {
    pub fn new(options: &'a Options, random: &mut StdRng) -> Self {
        let executors = options.executors as u16;
        let flow_map = options.flow_map.clone().unwrap_or_else(|| {
            // One draw of the kernel's hash.
            (0..options.flows).map(|_| random.random_range(0..executors)).collect()
        });
        Self { options, flow_map, turns: [0; 2], tokens: Tokens::new(options) }
    }

    /// The executor; `None`: the policy drops the request.
    pub fn choose(
        &mut self,
        arrival: &Arrival,
        executors: &[Executor],
        random: &mut StdRng,
    ) -> Option<usize> {
        let count = executors.len();
        let default = usize::from(self.flow_map[arrival.flow as usize]);
        let split = self.options.scan_executors;
        Some(match self.options.policy {
            Policy::RoundRobin => self.turn(Class::GET) % count,
            Policy::ScanAvoid => scan_avoid(executors, random),
            Policy::Sita if arrival.class == Class::SCAN => self.turn(Class::SCAN) % split,
            Policy::Sita => split + self.turn(Class::GET) % (count - split),
            Policy::Po2 => {
                let [a, b] = [(); 2].map(|()| random.random_range(0..count));
                // A lost request was counted and never done.
                let load = |index: usize| executors[index].outstanding() + executors[index].lost;
                if load(b) < load(a) { b } else { a }
            }
            Policy::Jsq => least(executors, |executor| executor.outstanding() as u64),
            Policy::Oracle => least(executors, Executor::work_ns),
            Policy::Token => {
                return self.tokens.spend(arrival.at_ns, arrival.stream > 0).then_some(default);
            }
            Policy::Vanilla
            | Policy::CentralFifo
            | Policy::CentralGetFirst
            | Policy::CentralReserved => default,
        })
    }

    fn turn(&mut self, class: Class) -> usize {
        let turn = &mut self.turns[class.index()];
        *turn += 1;
        *turn - 1
    }
}

/// The first of those with the least.
fn least(executors: &[Executor], key: impl Fn(&Executor) -> u64) -> usize {
    (0..executors.len()).min_by_key(|&index| key(&executors[index])).unwrap_or(0)
}

fn scan_avoid(executors: &[Executor], random: &mut StdRng) -> usize {
    let count = executors.len();
    let mut index = 0;
    for tried in 0..TRIES + count {
        index = if tried < TRIES { random.random_range(0..count) } else { (index + 1) % count };
        if executors[index].mark != Mark::Scan {
            break;
        }
    }
    index
}

/// The token agent's Map: latency-sensitive users get the rate, best-effort
/// ones what those left in the period before; unspent tokens do not outlive it.
struct Tokens {
    per_s: f64,
    period_ns: u64,
    /// Refills so far.
    periods: u64,
    /// Of latency-sensitive, of best-effort users.
    left: [u64; 2],
}

impl Tokens {
    fn new(options: &Options) -> Self {
        let period_ns = (options.token_period_us * 1000.0) as u64;
        Self { per_s: options.tokens_per_s, period_ns, periods: 0, left: [0; 2] }
    }

    /// Whole tokens that the rate has brought by the end of a period.
    fn brought(&self, periods: u64) -> u64 {
        ((periods * self.period_ns) as f64 * self.per_s / 1e9) as u64
    }

    fn spend(&mut self, now_ns: u64, best_effort: bool) -> bool {
        while self.periods < now_ns / self.period_ns {
            let due = self.brought(self.periods + 1) - self.brought(self.periods);
            self.periods += 1;
            self.left = [due, self.left[0]];
        }
        let left = &mut self.left[usize::from(best_effort)];
        let spent = *left > 0;
        *left -= u64::from(spent);
        spent
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::super::executor::Waiting;
    use super::super::scenario::{answered_us, executors, get, scan};
    use super::super::serve;
    use super::*;

    const SCAN_AVOID: &str = include_str!("../../../net-hooks/policies/scan-avoid.c");
    const HASH: &str = include_str!("../../../net-hooks/policies/hash.c");

    fn with(policy: Policy, count: usize) -> Options {
        Options { policy, flow_map: None, ..executors(count) }
    }

    /// How often each executor is chosen.
    fn chosen(options: &Options, state: &[Executor], times: usize) -> Vec<usize> {
        let mut random = StdRng::seed_from_u64(1);
        let mut chooser = Chooser::new(options, &mut random);
        let mut counts = vec![0; state.len()];
        for _ in 0..times {
            counts[chooser.choose(&get(0, 0), state, &mut random).unwrap()] += 1;
        }
        counts
    }

    fn holding(requests: usize, service_ns: u64) -> Executor {
        let mut executor = Executor::default();
        for number in 0..requests {
            executor.accept(Waiting { number, class: Class::GET, service_ns }, 100);
        }
        executor
    }

    fn marked(mark: Mark) -> Executor {
        let mut executor = Executor::default();
        executor.mark = mark;
        executor
    }

    fn share(count: usize, of: usize) -> f64 {
        count as f64 / of as f64
    }

    #[test]
    fn constants_are_those_of_the_policies() {
        assert!(SCAN_AVOID.contains(&format!("TRIES = {TRIES} }}")));
        assert!(HASH.contains(&format!("ports *= {HASH_MULTIPLIER:#x};")));
    }

    #[test]
    fn the_policy_hash_is_a_function_of_both_ports() {
        // Worked out apart, from hash.c.
        assert_eq!(hash_map(&[40000, 40001, 40002, 51234], 9000, 6), [3, 4, 0, 1]);
        assert_eq!(hash_map(&[40000, 40001, 40002, 51234], 9001, 6), [1, 2, 4, 5]);
        let spread = hash_map(&(32768..60768).collect::<Vec<_>>(), 9000, 7);
        for executor in 0..7 {
            let share = share(spread.iter().filter(|&&chosen| chosen == executor).count(), 28000);
            assert!((0.13..0.156).contains(&share), "{share}");
        }
    }

    #[test]
    fn a_flow_leads_where_the_map_says() {
        let options = Options { flow_map: Some(vec![2, 0, 1]), ..executors(3) };
        let outcome = serve(&options, &[get(0, 0), get(1, 1), get(2, 1), get(3, 2)]).unwrap();
        assert_eq!(outcome.served_by, [2, 1, 1]);
    }

    #[test]
    fn without_a_map_each_flow_is_drawn_once() {
        let options = Options { flows: 1000, buffer: 4000, ..with(Policy::Vanilla, 4) };
        let arrivals: Vec<_> = (0..4000).map(|n| get(u64::from(n), n % 1000)).collect();
        let served = serve(&options, &arrivals).unwrap().served_by;
        // A flow's four requests stay together.
        assert!(
            served.iter().all(|count| count % 4 == 0 && (800..1200).contains(count)),
            "{served:?}"
        );
        let other = serve(&Options { seed: 2, ..options }, &arrivals).unwrap().served_by;
        assert_ne!(served, other);
    }

    #[test]
    fn round_robin_begins_with_the_first() {
        let expected = [Some(10.0), Some(11.0), Some(12.0), Some(20.0)];
        let arrivals = [0, 1, 2, 3].map(|at| get(at, 0));
        assert_eq!(answered_us(&with(Policy::RoundRobin, 3), &arrivals), expected);
        assert_eq!(serve(&with(Policy::RoundRobin, 3), &arrivals).unwrap().served_by, [2, 1, 1]);
    }

    #[test]
    fn sita_has_executors_for_scans_and_takes_turns_in_both() {
        let options = Options { scan_executors: 2, ..with(Policy::Sita, 5) };
        let arrivals =
            [scan(0, 0), get(1, 0), scan(2, 0), scan(3, 0), get(4, 0), get(5, 0), get(6, 0)];
        assert_eq!(serve(&options, &arrivals).unwrap().served_by, [2, 1, 2, 1, 1]);
        assert_eq!(
            answered_us(&options, &arrivals),
            [100.0, 11.0, 102.0, 200.0, 14.0, 15.0, 21.0].map(Some)
        );
    }

    #[test]
    fn po2_takes_the_lesser_of_two() {
        let options = with(Policy::Po2, 2);
        // The busier one only if it was drawn twice.
        let counts = chosen(&options, &[holding(2, 1), holding(1, 1)], 10_000);
        assert!((0.23..0.27).contains(&share(counts[0], 10_000)), "{counts:?}");
        let counts = chosen(&options, &[holding(1, 1), holding(1, 1)], 10_000);
        assert!((0.47..0.53).contains(&share(counts[0], 10_000)), "{counts:?}");
    }

    #[test]
    fn po2_counts_what_was_lost_as_not_done() {
        let mut lossy = holding(1, 1);
        lossy.lost = 2;
        let counts = chosen(&with(Policy::Po2, 2), &[lossy, holding(2, 1)], 10_000);
        assert!((0.23..0.27).contains(&share(counts[0], 10_000)), "{counts:?}");
    }

    #[test]
    fn jsq_counts_requests_and_the_oracle_knows_their_length() {
        let state = || [holding(3, 10), holding(1, 100), holding(1, 100), holding(2, 10)];
        assert_eq!(chosen(&with(Policy::Jsq, 4), &state(), 5), [0, 5, 0, 0]);
        assert_eq!(chosen(&with(Policy::Oracle, 4), &state(), 5), [0, 0, 0, 5]);
    }

    #[test]
    fn the_oracle_counts_what_is_left_of_a_request() {
        // 60 us are left of the first SCAN at 40, 100 of the second.
        let options = Options { scan_us: 100.0, ..with(Policy::Oracle, 2) };
        let outcome = serve(&options, &[scan(0, 0), scan(40, 0), get(50, 0), get(60, 0)]).unwrap();
        assert_eq!(outcome.served_by, [3, 1]);
    }

    #[test]
    fn scan_avoid_finds_the_one_executor_without_a_scan() {
        let state: Vec<_> = (0..200)
            .map(|index| marked(if index == 77 { Mark::Get } else { Mark::Scan }))
            .collect();
        assert_eq!(chosen(&with(Policy::ScanAvoid, 200), &state, 300)[77], 300);
    }

    #[test]
    fn scan_avoid_tries_at_random_first() {
        let state = [marked(Mark::Scan), marked(Mark::Idle), marked(Mark::Get)];
        let counts = chosen(&with(Policy::ScanAvoid, 3), &state, 10_000);
        // In turn from the start, the one after the SCAN would get two thirds.
        assert!((0.47..0.53).contains(&share(counts[1], 10_000)), "{counts:?}");
        assert_eq!(counts[0], 0);
        // After eight misses it goes on in turn: of two neighbours it then
        // finds the first.
        let free = |n| n == 50 || n == 51;
        let state: Vec<_> =
            (0..100).map(|n| marked(if free(n) { Mark::Get } else { Mark::Scan })).collect();
        let counts = chosen(&with(Policy::ScanAvoid, 100), &state, 20_000);
        let missed = 0.98f64.powi(TRIES as i32);
        assert!(
            (share(counts[51], 20_000) / ((1.0 - missed) / 2.0) - 1.0).abs() < 0.05,
            "{counts:?}"
        );
    }

    #[test]
    fn scan_avoid_chooses_at_random_when_all_serve_scans() {
        let state = [marked(Mark::Scan), marked(Mark::Scan), marked(Mark::Scan)];
        let counts = chosen(&with(Policy::ScanAvoid, 3), &state, 9_000);
        assert!(counts.iter().all(|&count| (2_800..3_200).contains(&count)), "{counts:?}");
    }

    #[test]
    fn tokens_are_spent_and_do_not_outlive_their_period() {
        // 2000 a second: two each ms.
        let options = Options { tokens_per_s: 2000.0, ..with(Policy::Token, 1) };
        let at = |us: &[u64]| -> Vec<bool> {
            let arrivals: Vec<_> = us.iter().map(|&us| get(us, 0)).collect();
            answered_us(&options, &arrivals).iter().map(Option::is_some).collect()
        };
        assert_eq!(at(&[999, 1000, 1100, 1200, 1999]), [false, true, true, false, false]);
        assert_eq!(at(&[9000, 9100, 9200, 10_000]), [true, true, false, true]);
    }

    #[test]
    fn fractions_of_tokens_are_not_lost() {
        let options = Options { tokens_per_s: 400.0, ..with(Policy::Token, 1) };
        let arrivals: Vec<_> = (0..1000).map(|n| get(1000 + n * 1000, 0)).collect();
        assert_eq!(serve(&options, &arrivals).unwrap().served_by, [400]);
    }

    #[test]
    fn best_effort_users_get_what_the_others_left() {
        let options = Options { tokens_per_s: 3000.0, ..with(Policy::Token, 1) };
        let be = |at_us| Arrival { stream: 1, ..get(at_us, 0) };
        // The others leave one of three; it is there in the period after.
        let arrivals = [get(1000, 0), get(1100, 0), be(1200), be(2000), be(2100), get(3000, 0)];
        let answered = answered_us(&options, &arrivals);
        let passed: Vec<_> = answered.iter().map(Option::is_some).collect();
        assert_eq!(passed, [true, true, false, true, false, true]);
    }

    #[test]
    fn what_best_effort_users_do_not_spend_is_gone_too() {
        let options = Options { tokens_per_s: 2000.0, ..with(Policy::Token, 1) };
        let be = |at_us| Arrival { stream: 1, ..get(at_us, 0) };
        // Nobody spends for some periods: two are there all the same. Then the
        // others take all of a period, and of what was left before nothing is.
        let arrivals =
            [be(5000), be(5100), be(5200), get(6000, 0), get(6100, 0), be(6200), be(7000)];
        let answered = answered_us(&options, &arrivals);
        let passed: Vec<_> = answered.iter().map(Option::is_some).collect();
        assert_eq!(passed, [true, true, false, true, true, true, false]);
    }
}
