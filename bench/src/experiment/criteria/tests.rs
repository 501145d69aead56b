use super::super::plan::{Config, Plan};
use super::super::points::tests::{Made, plan, points};
use super::ratio::student;
use super::*;

fn made(config: &'static str, load_rps: f64, gets_us: &[u64]) -> Made {
    Made { config, load_rps, gets_us: gets_us.to_vec(), ..Made::default() }
}

fn two(one: &[u64], other: &[u64]) -> Points {
    let rounds = |config, us: &[u64]| -> Vec<Made> {
        (1..).zip(us).map(|(round, us)| Made { round, ..made(config, 100.0, &[*us]) }).collect()
    };
    points(&plan(&["a", "b"], &[100.0]), [rounds("a", one), rounds("b", other)].concat())
}

fn only(criterion: Criterion, points: &Points) -> Verdict {
    let mut verdicts = criterion.judge(points);
    assert_eq!(verdicts.len(), 1);
    verdicts.remove(0)
}

fn ratio_of(bound: Bound, low_end: Option<f64>) -> Criterion {
    Criterion::Ratio {
        above: Cell::latency("a", 100.0, "GET", 0.99),
        below: Cell::latency("b", 100.0, "GET", 0.99),
        bound,
        low_end,
    }
}

#[test]
fn a_ratio_can_fall_short_itself_and_by_its_interval() {
    let points = two(&[1000, 1100, 900], &[100, 110, 90]);
    let verdict = only(ratio_of(Bound::AtLeast(9.0), None), &points);
    assert!(verdict.holds(), "{}", verdict.line());
    assert!(verdict.detail.contains("1.1ms / 110us"), "{}", verdict.detail);
    assert!(!only(ratio_of(Bound::AtLeast(11.0), None), &points).holds());
    assert!(!only(ratio_of(Bound::AtMost(9.0), None), &points).holds());
    // The same everywhere: the interval is a point.
    assert!(only(ratio_of(Bound::AtLeast(9.0), Some(9.9)), &points).holds());
    let scattered = two(&[1000, 3000, 300], &[100, 100, 100]);
    let verdict = only(ratio_of(Bound::AtLeast(9.0), Some(5.0)), &scattered);
    assert!(verdict.bound.holds(verdict.measured.unwrap()) && !verdict.holds(), "{verdict:?}");
    // Two rounds have no interval.
    let few = two(&[1000, 1000], &[100, 100]);
    assert!(!only(ratio_of(Bound::AtLeast(9.0), Some(5.0)), &few).holds());
}

#[test]
fn what_is_missing_satisfies_nothing() {
    let points = two(&[], &[100]);
    for bound in [Bound::AtLeast(0.0), Bound::AtMost(1e9)] {
        let verdict = only(ratio_of(bound, None), &points);
        assert!(!verdict.holds());
        assert!(verdict.line().contains("not measured"), "{}", verdict.line());
    }
    let all = judge(&[], &points);
    assert!(!all[0].holds() && all[0].detail.contains("a at 100/s has 0 of 3"), "{all:?}");
    let none = Verdict::new(String::new(), Some(f64::NAN), Bound::AtMost(1.0), String::new());
    assert!(!none.holds());
}

#[test]
fn students_interval_is_the_textbooks() {
    assert_eq!(student(&[2.0, 2.0]), None);
    let (low, high) = student(&[1.0, std::f64::consts::E, std::f64::consts::E.powi(2)]).unwrap();
    // Mean 1, deviation 1, three values: 1 +- 4.303 / sqrt(3).
    assert!((low.ln() - (1.0 - 4.303 / 3f64.sqrt())).abs() < 1e-9, "{low}");
    assert!((high.ln() - (1.0 + 4.303 / 3f64.sqrt())).abs() < 1e-9, "{high}");
}

#[test]
fn the_max_load_lies_between_two_loads_on_a_logarithmic_line() {
    let curve = [(100.0, 10.0), (200.0, 20.0), (300.0, 2000.0)];
    let at = |us| MaxLoad::of(&curve, us);
    let between = |low, high| Some(MaxLoad { low, high });
    assert_eq!(at(200.0), between(250.0, 250.0));
    assert_eq!(at(20.0), between(200.0, 200.0));
    assert_eq!(at(5.0), between(0.0, 100.0));
    assert_eq!(at(5000.0), between(300.0, f64::INFINITY));
    assert_eq!(MaxLoad::of(&[], 5.0), None);
    // What is lost is no latency to draw a line to.
    assert_eq!(MaxLoad::of(&[(100.0, 10.0), (200.0, f64::INFINITY)], 20.0), between(100.0, 200.0));
}

const SLO: Slo = Slo { class: "GET", quantile: 0.99, us: 100.0 };

fn max_load(over: Over, bound: f64) -> Criterion {
    let bound = Bound::AtLeast(bound);
    Criterion::MaxLoad { above: "a", below: "b", slo: SLO, over, bound }
}

fn sweep(a: [u64; 2], b: [u64; 2]) -> Points {
    let of = |config, us: [u64; 2]| [made(config, 100.0, &us[..1]), made(config, 200.0, &us[1..])];
    points(&plan(&["a", "b"], &[100.0, 200.0]), [of("a", a), of("b", b)].concat())
}

#[test]
fn a_max_load_can_fall_short_and_where_it_is_not_known_the_least_possible_counts() {
    let judged = |bound, points: &Points| only(max_load(Over::Mean, bound), points);
    // b gets there at 150; a never does: at least 200.
    let verdict = judged(1.3, &sweep([10, 20], [10, 1000]));
    assert!(verdict.holds() && verdict.line().contains(": at least 1.33"), "{}", verdict.line());
    assert!(verdict.detail.starts_with("at least 200/s"), "{}", verdict.detail);
    assert!(!judged(1.4, &sweep([10, 20], [10, 1000])).holds());
    // Both are known.
    assert!(!judged(1.0, &sweep([10, 1000], [10, 1000])).line().contains(": at least"));
    // b is above it from the start: at most 100.
    let verdict = judged(1.5, &sweep([10, 1000], [500, 600]));
    assert!(verdict.holds() && verdict.at_least, "{}", verdict.line());
    assert!(verdict.detail.contains("/ below 100/s"), "{}", verdict.detail);
    assert!(!judged(1.6, &sweep([10, 1000], [500, 600])).holds());
    // Nothing is known of the one below the line, or of the one above.
    assert!(!judged(0.1, &sweep([10, 20], [10, 20])).holds());
    assert!(!judged(0.1, &sweep([500, 600], [10, 1000])).holds());
}

#[test]
fn a_request_that_was_lost_is_not_under_an_objective() {
    let of = |lost| {
        let mut many = vec![made("a", 100.0, &[10; 98]), made("a", 200.0, &[10; 98])];
        many[1].drops = lost;
        many.extend([made("b", 100.0, &[10]), made("b", 200.0, &[1000])]);
        points(&plan(&["a", "b"], &[100.0, 200.0]), many)
    };
    for over in [Over::Mean, Over::Pooled] {
        assert!(only(max_load(over, 1.3), &of(0)).holds());
        let verdict = only(max_load(over, 1.3), &of(2));
        assert!(!verdict.holds(), "{}", verdict.line());
        assert!(verdict.detail.starts_with("100/s to 200/s"), "{}", verdict.detail);
    }
    let cell = Cell::latency("a", 200.0, "GET", 0.99);
    assert_eq!(cell.value(&of(2)), Some(f64::INFINITY));
    assert!(!only(Criterion::Value(cell, Bound::AtMost(20.0)), &of(2)).holds());
}

#[test]
fn the_ratio_of_max_loads_has_an_interval_that_no_resample_is_left_out_of() {
    let rounds = |config, load_rps, us: [u64; 3]| -> Vec<Made> {
        (1..).zip(us).map(|(round, us)| Made { round, ..made(config, load_rps, &[us]) }).collect()
    };
    let of = |bottom: [u64; 3]| {
        let parts = [
            rounds("a", 100.0, [10; 3]),
            rounds("a", 200.0, [1000; 3]),
            rounds("b", 100.0, bottom),
            rounds("b", 200.0, [1000; 3]),
        ];
        only(
            max_load(Over::Mean, 0.1),
            &points(&plan(&["a", "b"], &[100.0, 200.0]), parts.concat()),
        )
    };
    let same = of([10; 3]);
    assert_eq!((same.measured, same.interval), (Some(1.0), Some((1.0, 1.0))));
    // Of three rounds one is above it at the first load: with many draws of that one
    // b is below 100, and the ratio 150 / 100 at least.
    let scattered = of([10, 10, 250]);
    let (low, high) = scattered.interval.unwrap();
    assert!(low == 1.0 && high == 1.5, "{}", scattered.line());
    assert!(scattered.detail.contains("[below 100/s, "), "{}", scattered.detail);
}

#[test]
fn rounds_without_every_load_are_not_looked_at() {
    let of = |round, load_rps, us| Made { round, ..made("a", load_rps, &[us]) };
    let all = vec![of(1, 100.0, 10), of(1, 200.0, 1000), of(2, 200.0, 20)];
    let points = points(&plan(&["a"], &[100.0, 200.0]), all);
    let (load, _) = max_load_of(&points, "a", &SLO, Over::Mean).unwrap();
    assert_eq!(load, MaxLoad { low: 150.0, high: 150.0 });
}

#[test]
fn a_value_can_fall_short() {
    let cell = Cell::latency("a", 100.0, "GET", 0.99).over(Over::Largest);
    let points = two(&[10, 30, 20], &[1]);
    assert!(only(Criterion::Value(cell.clone(), Bound::AtMost(30.0)), &points).holds());
    assert!(!only(Criterion::Value(cell, Bound::AtMost(29.0)), &points).holds());
}

fn twin(exceptions: Vec<Exception>) -> Criterion {
    let ratio = Bound::Within(0.85, 1.2);
    Criterion::Twin(TwinCriterion { class: "GET", quantile: 0.99, ratio, exceptions })
}

fn with_twin(measured_us: u64, twin_us: u64, twin_drops: u64) -> Points {
    let made = Made { twin_us: Some(twin_us), twin_drops, ..made("a", 100.0, &[measured_us]) };
    points(&plan(&["a"], &[100.0]), vec![made])
}

#[test]
fn a_twin_that_differs_falls_short_and_one_that_is_saturated_is_none() {
    assert!(only(twin(Vec::new()), &with_twin(100, 100, 0)).holds());
    assert!(!only(twin(Vec::new()), &with_twin(100, 80, 0)).holds());
    assert!(!only(twin(Vec::new()), &with_twin(100, 120, 0)).holds());
    // Nothing is left to judge: that is no success either.
    let verdict = only(twin(Vec::new()), &with_twin(100, 80, 5));
    assert!(!verdict.holds() && verdict.detail.contains("saturated"), "{}", verdict.line());
    // Without a twin there is no such verdict.
    assert!(twin(Vec::new()).judge(&two(&[1], &[1])).is_empty());
}

#[test]
fn the_point_that_is_shown_is_the_one_farthest_outside_its_bound() {
    // 1.195 is farther from 1 than 0.84, and within the bound.
    let at = |load_rps, us| Made { twin_us: Some(1000), ..made("a", load_rps, &[us]) };
    let points = points(&plan(&["a"], &[100.0, 200.0]), vec![at(100.0, 840), at(200.0, 1195)]);
    let verdict = only(twin(Vec::new()), &points);
    assert!(!verdict.holds() && verdict.measured == Some(0.84), "{}", verdict.line());
    assert!(verdict.detail.contains("200: 1.2"), "{}", verdict.detail);
}

#[test]
fn an_exception_is_judged_by_the_difference_or_said_not_to_be_judged() {
    let except = |excess_us, loads: &[f64]| Exception {
        config: "a",
        loads: loads.to_vec(),
        excess_us,
        unloaded: None,
        reason: "because",
    };
    let within = Bound::Within(-5.0, 5.0);
    let judged =
        |measured_us| only(twin(vec![except(within, &[100.0])]), &with_twin(measured_us, 10, 0));
    assert!(judged(15).holds() && judged(5).holds());
    assert!(!judged(16).holds() && !judged(4).holds());
    assert!(judged(16).line().contains("because"), "{}", judged(16).line());
    let shown = only(twin(vec![except(Bound::Shown, &[])]), &with_twin(99, 10, 0));
    assert!(shown.holds() && shown.line().contains("not judged"), "{}", shown.line());
    assert_eq!((shown.measured, shown.mark().trim()), (Some(89.0), "-"));
    // Other loads are judged as ever.
    let other = twin(vec![except(within, &[300.0])]).judge(&with_twin(99, 10, 0));
    assert!(!other[0].holds() && other[0].text.contains("over its simulated"), "{other:?}");
}

#[test]
fn what_the_host_adds_without_load_is_allowed_for() {
    let at = |load_rps, us| Made { twin_us: Some(20), ..made("a", load_rps, &[us]) };
    let points = |us| points(&plan(&["a"], &[5.0, 100.0]), vec![at(5.0, 28), at(100.0, us)]);
    let within = |host| {
        Exception {
            config: "a",
            loads: vec![100.0],
            excess_us: Bound::Within(-5.0, 5.0),
            unloaded: None,
            reason: "because",
        }
        .beyond("a", host)
    };
    let judged = |host, us| {
        let verdicts = twin(vec![within(host)]).judge(&points(us));
        verdicts.into_iter().find(|verdict| verdict.text.contains("because")).unwrap()
    };
    // All of it, nothing of it, or a little more or less.
    for us in [15, 20, 28, 33] {
        let verdict = judged(5.0, us);
        assert!(
            verdict.holds() && verdict.measured == Some(us as f64 - 20.0),
            "{}",
            verdict.line()
        );
        assert!(verdict.line().contains("for a at 5/s is 8.00"), "{}", verdict.line());
    }
    assert!(!judged(5.0, 14).holds() && !judged(5.0, 34).holds());
    // Without that point there is no verdict to be had.
    let verdict = judged(7.0, 20);
    assert!(!verdict.holds() && verdict.line().contains("not measured"), "{}", verdict.line());
}

#[test]
fn a_lost_request_falls_short() {
    let with =
        |drops| points(&plan(&["a"], &[100.0]), vec![Made { drops, ..made("a", 100.0, &[9]) }]);
    assert!(only(Criterion::NoDrops, &with(0)).holds());
    let verdict = only(Criterion::NoDrops, &with(1));
    assert!(!verdict.holds() && verdict.detail.contains("lost 1 GET"), "{}", verdict.line());
}

#[test]
fn one_run_of_which_too_few_requests_count_falls_short() {
    let with = |kept: [f64; 3]| {
        let rounds = (1..).zip(kept);
        let made = rounds.map(|(round, kept)| Made { round, kept, ..made("a", 100.0, &[9]) });
        points(&plan(&["a"], &[100.0]), made.collect())
    };
    assert!(only(Criterion::Kept(0.5), &with([1.0, 1.0, 0.5])).holds());
    let verdict = only(Criterion::Kept(0.5), &with([1.0, 0.49, 1.0]));
    assert!(!verdict.holds() && verdict.detail.contains("in round 2"), "{}", verdict.line());
}

#[test]
fn a_policy_that_is_gone_or_not_live_or_never_chose_falls_short() {
    let with = |deployed| {
        let config = Config::new("a", "a test").policy("socket-select", "sita", &[]);
        let plan = Plan { configs: vec![config], ..plan(&["a"], &[100.0]) };
        points(&plan, vec![Made { deployed, ..made("a", 100.0, &[9]) }])
    };
    assert!(only(Criterion::Live, &with(Some(("live", 1)))).holds());
    assert!(!only(Criterion::Live, &with(Some(("live", 0)))).holds());
    let verdict = only(Criterion::Live, &with(Some(("ejected", 5))));
    assert!(!verdict.holds() && verdict.detail.contains("ejected"), "{}", verdict.line());
    let verdict = only(Criterion::Live, &with(None));
    assert!(!verdict.holds() && verdict.detail.contains("gone"), "{}", verdict.line());
}

#[test]
fn threads_starve_only_where_that_is_what_a_row_shows() {
    let with = |config: Config, state| {
        let config = config.policy("socket-select", "sita", &[]);
        let plan = Plan { configs: vec![config], ..plan(&["a"], &[100.0]) };
        points(&plan, vec![Made { deployed: Some((state, 5)), ..made("a", 100.0, &[9]) }])
    };
    let (strict, may) = (Config::new("a", ""), Config::new("a", "").may_starve());
    assert!(!only(Criterion::Live, &with(strict, "degraded")).holds());
    assert!(only(Criterion::Live, &with(may.clone(), "degraded")).holds());
    assert!(!only(Criterion::Live, &with(may, "ejected")).holds());
}

#[test]
fn books_that_do_not_balance_fall_short() {
    let with =
        |served| points(&plan(&["a"], &[100.0]), vec![Made { served, ..made("a", 100.0, &[9]) }]);
    assert!(only(Criterion::AddsUp, &with(None)).holds());
    assert!(!only(Criterion::AddsUp, &with(Some(7))).holds());
}

#[test]
fn every_table_judges_by_criteria_that_need_runs() {
    let setting = super::super::plan::Setting { cpus: 2, ..Default::default() };
    for name in super::super::tables::NAMES {
        let plan: Plan = super::super::tables::plan(name, &setting).unwrap();
        let nothing = points(&plan, Vec::new());
        assert!(!judge(&plan.criteria, &nothing)[0].holds(), "{name}");
        for criterion in &plan.criteria {
            if let Criterion::MaxLoad { above, below, .. } = criterion {
                for config in [above, below].map(|name| plan.config(name).unwrap()) {
                    assert!(
                        plan.loads_of(config).len() > 1,
                        "{name} has no sweep of {}",
                        config.name
                    );
                }
            }
            if let Criterion::Ratio { above, below, .. } = criterion {
                for cell in [above, below] {
                    let config: Option<&Config> = plan.config(cell.config);
                    let loads = config.map_or(Vec::new(), |config| plan.loads_of(config));
                    assert!(
                        loads.contains(&cell.load_rps),
                        "{name} never measures {}",
                        cell.text()
                    );
                }
            }
        }
    }
}
