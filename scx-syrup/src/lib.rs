//! The thread hook: a resident sched_ext root scheduler that tail-calls app policies.
//!
//! Entry point: [`ScxSyrup`]. `root.bpf.c` is the scheduler, `policy.bpf.c` the
//! trusted half of every policy, `root.rs` its life, `slots.rs` whose a slot of it is,
//! `threads.rs` who is scheduled.
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
pub mod fairness;
mod follow;
mod health;
mod kernel;
mod layout;
mod root;
mod slots;
mod threads;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use syrup_hook::spec::PID;
use syrup_hook::{
    App, Builtin, Changes, Constant, Counters, Dir, Facts, Flag, Hook, Input, Kind, Linked,
    LoadedProgram, Observed, Probe, Registration, Result, Spec, Syntax, Who,
};

pub use deploy::Target;

/// The thread hook.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScxSyrup;

/// What it is.
pub static SPEC: Spec = Spec {
    name: "scx-syrup",
    input: Input::Thread,
    executor: "executor",
    executors: "a run queue of the app (0 is served first), or a core of the app",
    registers: Kind::Thread,
    takes: &[PID, CPUS, WEIGHT, LIMIT],
    changeable: &[CPUS, WEIGHT, LIMIT],
    settings: Some(Constant {
        name: "syrup_thread_policy",
        check: |bytes| deploy::settings(bytes).map(drop),
    }),
    trusted_half: include_bytes!(concat!(env!("OUT_DIR"), "/policy.o")),
    policies: include!(concat!(env!("OUT_DIR"), "/policies.rs")),
};

const CPUS: Flag = Flag {
    name: "cpus",
    syntax: Syntax::Cpus,
    who: Who::Owner,
    help: "The cores of the app, like 0-3,8 [default: all]",
};

const WEIGHT: Flag = Flag {
    name: "weight",
    syntax: Syntax::Number { least: 1, most: 10_000 },
    who: Who::Owner,
    help: "Share of the cores against other apps, 1 to 10000 [default: 100]",
};

const LIMIT: Flag = Flag {
    name: "limit",
    syntax: Syntax::Number { least: 1, most: 1 << 22 },
    who: Who::Operator,
    help: "Most threads of the app in sched_ext; a user's apps together have twice as many \
           [default: 16384]",
};

impl Hook for ScxSyrup {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn probe(&self) -> Probe {
        kernel::probe()
    }

    fn verify(&self, policy: &Linked) -> Result<()> {
        deploy::verify(policy)
    }

    fn attach(&self, dir: &mut Dir, policy: &Linked, target: &Facts) -> Result<()> {
        deploy::attach(dir, policy, target)
    }

    fn live(&self, dir: &Dir) -> Result<u32> {
        deploy::live(dir)
    }

    fn prepare(&self, dir: &Dir, policy: &Linked) -> Result<(LoadedProgram, serde_json::Value)> {
        deploy::prepare(dir, policy)
    }

    fn set_policy(&self, dir: &Dir, program: BorrowedFd<'_>) -> Result<()> {
        deploy::set_policy(dir, program)
    }

    fn settle(&self, dir: &mut Dir) -> Result<()> {
        deploy::settle(dir)
    }

    fn change(&self, dir: &mut Dir, target: &Facts) -> Result<()> {
        deploy::change(dir, target)
    }

    fn detach(&self, app: &App, path: &Path) -> Result<()> {
        deploy::detach(app, path)
    }

    fn add(&self, dir: &mut Dir, what: Registration, index: Option<u32>) -> Result<u32> {
        deploy::add(dir, what, index)
    }

    fn release(&self, dir: &mut Dir, what: &Registration) -> Result<()> {
        deploy::release(dir, what)
    }

    fn counters(&self, dir: &Dir) -> Result<Counters> {
        deploy::counters(dir)
    }

    fn observe(&self, dir: &Dir) -> Result<Observed> {
        deploy::observe(dir)
    }

    fn changes(&self, bpffs: &Path) -> Result<Box<dyn Changes>> {
        Ok(Box::new(follow::Ends(bpffs.to_owned())))
    }

    fn behind<'a>(&self, dirs: &'a [Dir]) -> Vec<&'a Dir> {
        follow::behind(dirs)
    }

    fn follow(&self, dir: &mut Dir) -> Result<bool> {
        follow::follow(dir)
    }

    fn tidy(&self, bpffs: &Path) -> Result<Vec<PathBuf>> {
        deploy::tidy(bpffs)
    }
}
