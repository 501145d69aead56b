//! What other apps, on other cores too, and processes that end do to an app.

use std::time::{Duration, Instant};

use syrup_hook::{Deploy as _, Registration};
use syrup_scx::ScxSyrup;

use crate::shares::seconds_run;
use crate::support::fixture::{on_cpus, register};
use crate::support::policy::{Scripted, at, queues};
use crate::support::workers::{Crew, allow};
use crate::{CORE, CORES, OTHER_CORE, fixture};

/// Runs for that long, sleeps for as long, and so on.
fn napping(each: Duration) -> Crew {
    Crew::of(1, move |worker, stop| {
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            let until = worker.cpu_time() + each;
            while worker.cpu_time() < until {
                for n in 0..2000 {
                    std::hint::black_box(n);
                }
            }
            worker.turn();
            std::thread::sleep(each);
        }
    })
}

/// One that ran elsewhere all the time made each wake-up a new start far behind: 1 % was left.
#[test]
fn an_app_that_naps_has_its_share_whatever_runs_on_other_cores() {
    let Some(fixture) = fixture() else { return };
    let apps = ["one", "two", "three"].map(|name| fixture.app(name));
    let script = Scripted::new();
    let cores = [OTHER_CORE, CORE, CORE];
    for (app, core) in apps.iter().zip(cores) {
        ScxSyrup.deploy(app, &script.policy(queues(1)), &on_cpus(&[core])).unwrap();
    }
    let elsewhere = Crew::spinning(2);
    register(&apps[0], &elsewhere, 0);
    let hog = Crew::spinning(1);
    register(&apps[1], &hog, 2);
    let napper = napping(Duration::from_millis(20));
    register(&apps[2], &napper, 3);
    elsewhere.wait_for_progress();
    napper.wait_for_progress();
    for _ in 0..3 {
        let ran = seconds_run(&[&hog, &napper, &elsewhere], Duration::from_secs(2));
        println!("hog, napper, elsewhere: {ran:.3?}");
        // It would run for half the time if it were alone, and is due half the core.
        assert!(ran[1][0] > 0.9, "{ran:.3?}");
        assert!(ran[0][0] > 0.9, "{ran:.3?}");
        assert!(ran[2].iter().sum::<f64>() > 1.95, "{ran:.3?}");
    }
}

/// An app with threads for all cores leaves the one to those that have no other.
#[test]
fn an_app_uses_the_cores_that_others_want_less() {
    let Some(fixture) = fixture() else { return };
    let (wide, narrow) = (fixture.app("one"), fixture.app("two"));
    let script = Scripted::new();
    (0..6).for_each(|index| script.place(index, at(0).slice_us(4000)));
    ScxSyrup.deploy(&wide, &script.policy(queues(1)), &on_cpus(&CORES)).unwrap();
    ScxSyrup.deploy(&narrow, &script.policy(queues(1)), &on_cpus(&[CORE])).unwrap();
    let (many, two) = (Crew::spinning(4), Crew::spinning(2));
    register(&wide, &many, 0);
    register(&narrow, &two, 4);
    many.wait_for_progress();
    two.wait_for_progress();
    std::thread::sleep(Duration::from_secs(1));
    let ran = seconds_run(&[&many, &two], Duration::from_secs(3));
    println!("{ran:.3?}");
    for crew in &ran {
        assert!(crew.iter().sum::<f64>() > 2.7, "one core each: {ran:.3?}");
    }
}

/// A process with so many touched pages.
struct Heavy(i32);

impl Heavy {
    /// Alone on a core.
    fn on(core: u32, bytes: usize) -> Self {
        let mut ready = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe(ready.as_mut_ptr()) }, 0);
        // SAFETY: the child makes system calls only, until it is killed.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: fresh memory of its own; what fails ends it, and the pipe tells.
            unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                let memory = libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0);
                libc::madvise(memory, bytes, libc::MADV_NOHUGEPAGE);
                for page in (0..bytes).step_by(4096) {
                    memory.cast::<u8>().add(page).write_volatile(1);
                }
                libc::write(ready[1], [1u8].as_ptr().cast(), 1);
                loop {
                    libc::pause();
                }
            }
        }
        assert!(pid > 0);
        let mut byte = [0u8];
        // SAFETY: one byte of room; both ends are ours.
        let read = unsafe {
            libc::close(ready[1]);
            let read = libc::read(ready[0], byte.as_mut_ptr().cast(), 1);
            libc::close(ready[0]);
            read
        };
        assert_eq!(read, 1, "the child ended early");
        allow(pid, [core as usize]);
        Self(pid)
    }

    /// How long it takes to end.
    fn end(self) -> Duration {
        let killed = Instant::now();
        // SAFETY: a child of ours.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            assert_eq!(libc::waitpid(self.0, std::ptr::null_mut(), 0), self.0);
        }
        killed.elapsed()
    }
}

/// Where much memory is freed that takes many slices.
#[test]
fn a_process_that_ends_with_much_memory_is_scheduled_like_any_other() {
    const BYTES: usize = 256 << 20;
    let Some(fixture) = fixture() else { return };
    let (app, other) = (fixture.app("one"), fixture.app("two"));
    let policy = Scripted::new().policy(queues(1));
    for app in [&app, &other] {
        ScxSyrup.deploy(app, &policy, &on_cpus(&[CORE])).unwrap();
    }
    let heavy = || {
        let heavy = Heavy::on(CORE, BYTES);
        ScxSyrup.register(&app, Registration::Thread { tid: heavy.0 }, None).unwrap();
        heavy
    };
    // Alone: as soon as an ordinary one.
    for _ in 0..3 {
        let (ordinary, scheduled) = (Heavy::on(CORE, BYTES).end(), heavy().end());
        println!("ended within {scheduled:?}, an ordinary one {ordinary:?}");
        assert!(ordinary > Duration::from_millis(80), "several slices");
        assert!(scheduled.as_secs_f64() < 1.3 * ordinary.as_secs_f64());
    }
    // Beside another app: with half the core, as before.
    let hog = Crew::spinning(1);
    register(&other, &hog, 0);
    hog.wait_to_be_on(1 << CORE);
    for _ in 0..3 {
        let heavy = heavy();
        let before = hog.cpu_time();
        let took = heavy.end();
        let beside = hog.cpu_time() - before;
        println!("beside a hog within {took:?}, of which that had {beside:?}");
        let share = beside.as_secs_f64() / took.as_secs_f64();
        assert!((0.43..0.57).contains(&share), "{share}");
    }
}
