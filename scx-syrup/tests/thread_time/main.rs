//! How fast and how fairly the thread hook schedules, where time is exact: in a
//! guest whose clock counts instructions (`vm/run --icount --cpus 2`), or with KVM.
//! Each bound holds in each round. Core 1 is measured, core 0 has the test's
//! own thread, which sleeps meanwhile.

// Clippy knows tests by their attribute, and helpers have none.
#![allow(clippy::unwrap_used)]

mod latency;
mod rescue;
mod shares;
#[path = "../support/mod.rs"]
mod support;

use support::fixture::Fixture;
use support::workers::{allow, time_is_exact};

/// The core that is measured.
const CORE: u32 = 1;

/// A fixture; the caller stays on core 0 from now on.
fn fixture() -> Option<Fixture> {
    assert!(
        time_is_exact(),
        "bounds of time mean nothing here: run this in vm/run --icount --cpus 2 (SYRUP_VM tells)"
    );
    let fixture = Fixture::resident()?;
    allow(0, [0]);
    Some(fixture)
}
