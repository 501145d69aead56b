//! The policies that ship with the hook.

use syrup_hook::Hook as _;
use syrup_scx::{SPEC, ScxSyrup};

use crate::support::fixture::Fixture;
use crate::support::policy::policy;

#[test]
fn every_policy_passes_the_verifier() {
    let Some(fixture) = Fixture::new() else { return };
    assert_eq!(SPEC.policies.len(), 3);
    for shipped in SPEC.policies {
        ScxSyrup.verify(&policy(shipped.name)).unwrap();
    }
    fixture.assert_clean();
}
