//! What the kernel has ended is put back.

use syrup_hook::{Dir, Error, Result};

use crate::root::{Root, State};

/// All of them when the kernel has ended their scheduler, and it may come back. One is enough
/// to put it back, and that one may be broken.
pub(crate) fn behind(dirs: &[Dir]) -> Vec<&Dir> {
    let may_return = || {
        let Some(first) = dirs.first() else { return Ok(false) };
        let Some(root) = Root::open(&first.app().bpffs)? else { return Ok(false) };
        Ok::<_, Error>(root.state()? != State::Live && root.may_return()?)
    };
    if may_return().unwrap_or(false) { dirs.iter().collect() } else { Vec::new() }
}

/// Puts the scheduler back.
pub(crate) fn follow(dir: &Dir) -> Result<bool> {
    let Some(root) = Root::open(&dir.app().bpffs)? else { return Ok(false) };
    let State::Ejected(why) = root.state()? else { return Ok(false) };
    if !root.may_return()? {
        return Ok(false);
    }
    root.put_back()?;
    log::warn!("the kernel had ended the root scheduler, which is put back: {why}");
    Ok(true)
}
