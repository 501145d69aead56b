//! What the kernel has ended is put back, and what it has expelled is taken out.

use std::path::PathBuf;

use syrup_hook::{Changes, Dir, Error, Result};

use crate::deploy;
use crate::kernel;
use crate::root::{self, Root, State};
use crate::slots;

/// Counts the ends of schedulers, and the apps that ours has expelled.
#[derive(Debug)]
pub(crate) struct Ends(pub PathBuf);

impl Changes for Ends {
    fn count(&self) -> Result<u64> {
        Ok(root::expulsions(&self.0)? << 1 | u64::from(kernel::runs_none()))
    }
}

/// All of them when the kernel has ended their scheduler, and it may come back: one is enough
/// to put it back, and that one may be broken. Else those that were expelled.
pub(crate) fn behind(dirs: &[Dir]) -> Vec<&Dir> {
    let behind = || {
        let Some(first) = dirs.first() else { return Ok(Vec::new()) };
        let Some(root) = Root::open(&first.app().bpffs)? else { return Ok(Vec::new()) };
        if root.state()? != State::Live {
            return Ok(if root.may_return()? { dirs.iter().collect() } else { Vec::new() });
        }
        let is_expelled = |dir: &&Dir| deploy::is_to_be_expelled(dir).unwrap_or(false);
        let mut behind: Vec<&Dir> = dirs.iter().filter(is_expelled).collect();
        // Threads of nobody are everybody's affair: whoever comes first takes them out.
        if behind.is_empty() && root.waits(slots::NOBODYS)?.expelled.is_some() {
            behind.push(first);
        }
        Ok::<_, Error>(behind)
    };
    behind().unwrap_or_default()
}

/// Puts the scheduler back, or takes the threads out that it expelled.
pub(crate) fn follow(dir: &Dir) -> Result<bool> {
    let Some(root) = Root::open(&dir.app().bpffs)? else { return Ok(false) };
    if let State::Ejected(why) = root.state()? {
        if !root.may_return()? {
            return Ok(false);
        }
        root.put_back()?;
        log::warn!("the kernel had ended the root scheduler, which is put back: {why}");
        return Ok(true);
    }
    let expelled_any = deploy::expel(dir);
    if let Some(expelled) = root.waits(slots::NOBODYS)?.expelled {
        let many = slots::release_nobodys(&root)?;
        if many > 0 {
            log::warn!(
                "{many} threads of nobody leave sched_ext: one had waited for {:.1} s",
                expelled.waited.as_secs_f64()
            );
        }
    }
    expelled_any
}
