//! SIGINT and SIGTERM while an experiment runs: it stops where it is and puts back
//! what it changed. A second one ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::{Result, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

static SEEN: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Exit status of who was interrupted.
pub const STATUS: u8 = 130;

/// From here on signals are noted.
pub fn watch() -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, STATUS.into(), SEEN.clone())?;
        flag::register(signal, SEEN.clone())?;
    }
    Ok(())
}

/// Whether there was one.
#[must_use]
pub fn seen() -> bool {
    SEEN.load(Ordering::Relaxed)
}

/// An error if there was one.
pub fn check() -> Result<()> {
    ensure!(!seen(), "interrupted: what is complete is kept, the same command goes on");
    Ok(())
}
