//! What registering costs.

use std::time::Instant;

use syrup_hook::{Deploy as _, Registration};
use syrup_scx::{ScxSyrup, Target};

use crate::fixture;
use crate::support::policy::policy;
use crate::support::workers::Crew;

#[test]
fn a_thread_is_registered_as_fast_however_many_are() {
    let Some(fixture) = fixture() else { return };
    let app = fixture.app("one");
    let [few, many] = [500, 5_000].map(|nr| {
        ScxSyrup.deploy(&app, &policy("fifo"), &Target::default()).unwrap();
        let crew = Crew::parked(nr);
        let tids = crew.tids();
        let start = Instant::now();
        for (tid, index) in tids.into_iter().zip(0..) {
            let given = ScxSyrup.register(&app, Registration::Thread { tid }, None).unwrap();
            assert_eq!(given, index);
        }
        let took = start.elapsed();
        println!("{nr} threads: {took:?}, {:?} each", took / nr as u32);
        ScxSyrup.remove(&app).unwrap();
        took
    });
    assert!(many < few * 12, "{many:?}, and {few:?} for a tenth of them");
}
