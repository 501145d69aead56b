//! A slot is one deployment's: what remains of another that had it does not reach it.

use std::fs;

use syrup_hook::sys::Map;
use syrup_hook::{App, Deploy as _, Error, Health, Registration};
use syrup_scx::{SPEC, ScxSyrup, Target};

use crate::support::fixture::{Fixture, is_live, register, slot, sysfs};
use crate::support::policy::policy;
use crate::support::workers::{Crew, eventually};

fn deploy(app: &App, crew: &Crew) {
    ScxSyrup.deploy(app, &policy("fifo"), &Target::default()).unwrap();
    register(app, crew, 0);
}

/// Its policy decides about its threads.
fn assert_undisturbed(app: &App, crew: &Crew) {
    let seen = ScxSyrup.read(app).unwrap().unwrap();
    assert!(is_live(&seen), "{:?}", seen.health);
    assert_eq!(crew.policies(), [7]);
    crew.wake(0);
    let after = ScxSyrup.read(app).unwrap().unwrap();
    assert!(after.verdicts[0] > seen.verdicts[0], "{:?}", after.verdicts);
}

fn assert_without_root(app: &App, tid: i32) {
    let health = ScxSyrup.read(app).unwrap().unwrap().health;
    assert!(matches!(&health, Health::Ejected(why) if why.contains("pins are gone")), "{health:?}");
    let refused = ScxSyrup.register(app, Registration::Thread { tid }, None).unwrap_err();
    assert!(matches!(&refused, Error::Conflict { .. }), "{refused:?}");
    ScxSyrup.replace(app, &policy("fifo")).unwrap_err();
}

#[test]
fn what_a_dead_call_left_of_one_app_takes_nothing_from_the_next_of_its_slot() {
    let Some(fixture) = Fixture::resident() else { return };
    let (one, two, three) = (fixture.app("one"), fixture.app("two"), fixture.app("three"));
    let (ones, twos) = (Crew::parked(1), Crew::parked(1));
    let place = one.hook_dir(&SPEC);
    let [aside, hidden] = ["_new_scx-syrup", "hidden"].map(|name| one.dir().join(name));

    // Killed before its folder was in place, or while it was taken down: another app's load
    // ends it, and only that.
    deploy(&one, &ones);
    let had = slot(&one);
    fs::rename(&place, &aside).unwrap();
    deploy(&two, &twos);
    assert_eq!((slot(&two), ones.policies(), aside.exists()), (had, vec![0], false));
    assert!(ScxSyrup.collect_garbage(fixture.bpffs()).unwrap().is_empty());
    assert_undisturbed(&two, &twos);

    // Where that load did not see it.
    for seen_as in [&aside, &place] {
        ScxSyrup.remove(&two).unwrap();
        deploy(&one, &ones);
        fs::rename(&place, &hidden).unwrap();
        deploy(&two, &twos);
        assert_eq!((slot(&two), ones.policies()), (had, vec![0]));
        fs::rename(&hidden, seen_as).unwrap();
        if seen_as == &place {
            assert_without_root(&one, ones.tids()[0]);
        }
        ScxSyrup.collect_garbage(fixture.bpffs()).unwrap();
        assert_undisturbed(&two, &twos);
        ScxSyrup.deploy(&three, &policy("fifo"), &Target::default()).unwrap();
        ScxSyrup.remove(&three).unwrap();
        ScxSyrup.remove(&one).unwrap();
        assert_undisturbed(&two, &twos);
    }
}

#[test]
fn a_deployment_whose_root_scheduler_is_gone_has_no_slot_of_the_next_one() {
    let Some(fixture) = Fixture::new() else { return };
    let (one, two) = (fixture.app("one"), fixture.app("two"));
    let (ones, twos) = (Crew::parked(1), Crew::parked(1));
    deploy(&one, &ones);
    fs::remove_dir_all(fixture.bpffs().join("_scx")).unwrap();
    // Some time after its link's last pin went.
    eventually("the end of the scheduler", || (sysfs("state") == "disabled").then_some(()));
    deploy(&two, &twos);
    assert_eq!(slot(&two), slot(&one));
    assert_without_root(&one, ones.tids()[0]);
    ScxSyrup.collect_garbage(fixture.bpffs()).unwrap();
    ScxSyrup.remove(&one).unwrap();
    assert_undisturbed(&two, &twos);
}

#[test]
fn the_root_of_another_version_is_refused_and_goes_with_its_last_app() {
    let Some(fixture) = Fixture::new() else { return };
    let (one, two, three) = (fixture.app("one"), fixture.app("two"), fixture.app("three"));
    let (ones, twos) = (Crew::parked(1), Crew::parked(1));
    deploy(&one, &ones);
    deploy(&two, &twos);
    let root = Map::open(&fixture.bpffs().join("_scx/syrup_root")).unwrap();
    let key = 0u32.to_ne_bytes();
    // struct syrup_scx_root: two words, then the version.
    let set_version = |version: u32| {
        let mut info = root.lookup(&key).unwrap().unwrap();
        let before = *info[16..].first_chunk().unwrap();
        info[16..20].copy_from_slice(&version.to_ne_bytes());
        root.update(&key, &info).unwrap();
        u32::from_ne_bytes(before)
    };
    let ours = set_version(77);
    for refused in [
        ScxSyrup.deploy(&three, &policy("fifo"), &Target::default()),
        ScxSyrup.replace(&one, &policy("fifo")),
    ] {
        let refused = refused.unwrap_err();
        let said = matches!(&refused, Error::Pin { reason, .. } if reason.contains("version 77"));
        assert!(said, "{refused:?}");
    }
    let health = ScxSyrup.read(&one).unwrap().unwrap().health;
    assert!(matches!(&health, Health::Broken(why) if why.contains("version 77")), "{health:?}");
    // A start leaves it alone.
    assert!(ScxSyrup.collect_garbage(fixture.bpffs()).unwrap().is_empty());
    set_version(ours);
    assert_undisturbed(&one, &ones);

    let slot = slot(&one).to_ne_bytes();
    set_version(77);
    ScxSyrup.remove(&one).unwrap();
    let programs = Map::open(&fixture.bpffs().join("_scx/syrup_enqueue")).unwrap();
    assert_eq!(programs.lookup(&slot).unwrap(), None, "its policy decides on");
    set_version(ours);
    assert_undisturbed(&two, &twos);
    set_version(77);
    drop((root, programs));
    ScxSyrup.remove(&two).unwrap();
    fixture.assert_clean();
    // They go on, in a class without a scheduler.
    ones.wake(0);
    twos.wake(0);
}
