//! The thread hook: a resident sched_ext root scheduler that tail-calls app policies.
//!
//! Entry point: [`ScxSyrup`]. `root.bpf.c` is the scheduler, `policy.bpf.c` the
//! trusted half of every policy, `root.rs` its life, `threads.rs` who is scheduled.
//!
//! Plain libbpf loads the objects; the macros of scx_utils are not used. They
//! fill in constants and sizes that our objects read by CO-RE or do not have,
//! and the policies, linked at run time, could not use them anyway.
//!
//! Invariant: a thread is registered in task storage before it becomes
//! `SCHED_EXT`, so no enqueue of a registered thread finds it unknown.
//! Invariant: a slot's queues are empty before the root stops serving it.

mod cpus;
mod deploy;
mod exit;
mod health;
mod kernel;
mod layout;
mod root;
mod threads;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use syrup_hook::{
    App, Builtin, Deployment, Hook, HookId, Input, Kind, Linked, Probe, Registration, Result,
    Target,
};

/// The thread hook.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScxSyrup;

impl Hook for ScxSyrup {
    fn id(&self) -> HookId {
        HookId::ScxSyrup
    }

    fn input(&self) -> Input {
        Input::Thread
    }

    fn executor(&self) -> &'static str {
        "a run queue of the app (0 is served first), or a core of the app"
    }

    fn registers(&self) -> Kind {
        Kind::Thread
    }

    fn probe(&self) -> Probe {
        kernel::probe()
    }

    fn trusted_half(&self) -> &'static [u8] {
        include_bytes!(concat!(env!("OUT_DIR"), "/policy.o"))
    }

    fn policies(&self) -> &'static [Builtin] {
        include!(concat!(env!("OUT_DIR"), "/policies.rs"))
    }

    fn verify(&self, policy: &Linked) -> Result<()> {
        deploy::verify(policy)
    }

    fn deploy(&self, app: &App, policy: &Linked, target: &Target) -> Result<()> {
        deploy::deploy(app, policy, target)
    }

    fn replace(&self, app: &App, policy: &Linked) -> Result<()> {
        deploy::replace(app, policy)
    }

    fn remove(&self, app: &App) -> Result<()> {
        deploy::remove(app)
    }

    fn register(&self, app: &App, what: Registration, index: Option<u32>) -> Result<u32> {
        deploy::register(app, what, index)
    }

    fn program(&self, app: &App) -> Result<OwnedFd> {
        deploy::program(app)
    }

    fn read(&self, app: &App) -> Result<Option<Deployment>> {
        deploy::read(app)
    }

    fn collect_garbage(&self, bpffs: &Path) -> Result<Vec<PathBuf>> {
        deploy::collect_garbage(bpffs)
    }
}
