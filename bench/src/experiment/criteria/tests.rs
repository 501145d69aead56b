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
    assert_eq!(max_load(&curve, 200.0), Some((250.0, true)));
    assert_eq!(max_load(&curve, 20.0), Some((200.0, true)));
    assert_eq!(max_load(&curve, 5.0), None);
    assert_eq!(max_load(&curve, 5000.0), Some((300.0, false)));
    assert_eq!(max_load(&[], 5.0), None);
}

fn sweep(a: [u64; 2], b: [u64; 2]) -> Points {
    let of = |config, us: [u64; 2]| [made(config, 100.0, &us[..1]), made(config, 200.0, &us[1..])];
    points(&plan(&["a", "b"], &[100.0, 200.0]), [of("a", a), of("b", b)].concat())
}

#[test]
fn a_max_load_can_fall_short_and_needs_the_one_below_to_be_known() {
    let slo = Slo { class: "GET", quantile: 0.99, us: 100.0 };
    let criterion = |bound| Criterion::MaxLoad {
        above: "a",
        below: "b",
        slo,
        over: Over::Mean,
        bound: Bound::AtLeast(bound),
    };
    // a never gets there: at least 200; b does at 150.
    let points = sweep([10, 20], [10, 1000]);
    assert!(only(criterion(1.3), &points).holds());
    assert!(!only(criterion(1.4), &points).holds());
    assert!(!only(criterion(0.1), &sweep([10, 20], [10, 20])).holds());
    assert!(!only(criterion(0.1), &sweep([500, 600], [10, 1000])).holds());
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
fn a_lost_request_falls_short() {
    let with =
        |drops| points(&plan(&["a"], &[100.0]), vec![Made { drops, ..made("a", 100.0, &[9]) }]);
    assert!(only(Criterion::NoDrops, &with(0)).holds());
    let verdict = only(Criterion::NoDrops, &with(1));
    assert!(!verdict.holds() && verdict.detail.contains("lost 1 GET"), "{}", verdict.line());
}

#[test]
fn too_few_requests_that_count_fall_short() {
    let with =
        |kept| points(&plan(&["a"], &[100.0]), vec![Made { kept, ..made("a", 100.0, &[9]) }]);
    assert!(only(Criterion::Kept(0.5), &with(0.5)).holds());
    assert!(!only(Criterion::Kept(0.5), &with(0.49)).holds());
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
