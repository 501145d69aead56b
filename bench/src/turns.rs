//! Turns of a guest's CPUs.
//!
//! Where a guest's time counts instructions (`vm/run --icount`), QEMU runs its
//! CPUs one after the other on one thread, and a turn lasts until the CPU
//! sleeps, pauses or was busy for milliseconds: an arrival on one CPU would wait
//! that long for the others. A `pause` every few thousand instructions of the
//! work makes it microseconds.

use std::sync::LazyLock;

/// `vm/run` says what executes the guest's instructions.
static TAKES_TURNS: LazyLock<bool> =
    LazyLock::new(|| std::env::var("SYRUP_VM").is_ok_and(|accel| accel == "icount"));

/// True where CPUs take turns: all of them together execute as much as one of
/// them alone, so each is faster while others sleep.
#[must_use]
pub fn taken() -> bool {
    *TAKES_TURNS
}

/// Lets the guest's other CPUs run; nothing on other machines, where a pause
/// would only cost time.
#[inline]
pub fn give() {
    if taken() {
        std::hint::spin_loop();
    }
}
