//! The smallest hook there is: its inputs are the packets that a test runs through its
//! dispatcher, its executors are numbers.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use syrup_hook::sys::{self, Map};
use syrup_hook::{
    App, Changes, Counters, Dir, Facts, Flag, Health, Hook, Input, Kind, Linked, LoadedProgram,
    Observed, POLICY_PROGRAM, PolicyObject, Probe, Registration, Result, Spec, Syntax, Who, pin,
};
use syrup_sdk::Compiler;
use syrup_sdk::abi::{SYRUP_CHOSEN, SYRUP_INPUTS, SYRUP_NO_POLICY};

pub struct Skeleton;

/// What it counts, a test says.
pub static CHANGES: AtomicU64 = AtomicU64::new(0);

struct Told;

impl Changes for Told {
    fn count(&self) -> Result<u64> {
        Ok(CHANGES.load(SeqCst))
    }
}

pub const DISPATCHER: &str = "dispatcher";
/// Pins of maps, and the names the maps have in the BPF objects.
const POLICIES: (&str, &str) = ("policies", "syrup_policies");
const COUNTERS: (&str, &str) = ("counters", "syrup_counters");
const VERDICTS: (&str, &str) = ("verdicts", "syrup_verdicts");
const NR_EXECUTORS: (&str, &str) = ("nr_executors", ".data.executors");

const COLOUR: Flag = Flag {
    name: "colour",
    syntax: Syntax::Words(&["red", "green"]),
    who: Who::Owner,
    help: "Of what colour it is",
};

/// What a deployment is told, and what is kept of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct State {
    colour: Vec<String>,
    executors: u32,
}

fn compiled(part: &str) -> &'static [u8] {
    let text = format!("{}{part}", include_str!("shared.bpf.h"));
    Compiler::find().unwrap().compile("skeleton.bpf.c", &text).unwrap().object.leak()
}

fn spec() -> &'static Spec {
    static SPEC: OnceLock<Spec> = OnceLock::new();
    SPEC.get_or_init(|| Spec {
        name: "skeleton",
        input: Input::Packet,
        executor: "number",
        executors: "a number",
        registers: Kind::Socket,
        takes: &[COLOUR],
        changeable: &[],
        settings: None,
        trusted_half: compiled(include_str!("policy.bpf.c")),
        policies: &[],
    })
}

fn map(path: &Path, (pin, _): (&str, &str)) -> Result<Map> {
    Map::open(&path.join(pin))
}

const SLOT: [u8; 4] = 0u32.to_ne_bytes();

impl Hook for Skeleton {
    fn spec(&self) -> &'static Spec {
        spec()
    }

    fn probe(&self) -> Probe {
        Probe::Available
    }

    fn verify(&self, policy: &Linked) -> Result<()> {
        PolicyObject::open(policy)?.load(POLICY_PROGRAM).map(drop)
    }

    fn attach(&self, dir: &mut Dir, policy: &Linked, target: &Facts) -> Result<()> {
        static OBJECT: OnceLock<&[u8]> = OnceLock::new();
        let object = OBJECT.get_or_init(|| compiled(include_str!("dispatcher.bpf.c")));
        let path = dir.path().to_owned();
        let dispatcher = PolicyObject::open_bytes(object, "skeleton")?.load("syrup_dispatch")?;
        dispatcher.pin(&path.join(DISPATCHER))?;
        for (name, map) in [POLICIES, COUNTERS] {
            dispatcher.pin_map(map, &path.join(name))?;
        }
        let mut object = PolicyObject::open(policy)?;
        dispatcher.with_map(COUNTERS.1, |fd| object.share(COUNTERS.1, fd))?;
        let program = object.load(POLICY_PROGRAM)?;
        program.pin(&path.join(pin::POLICY))?;
        for (name, map) in [VERDICTS, NR_EXECUTORS] {
            program.pin_map(map, &path.join(name))?;
        }
        dir.set_state(&syrup_hook::target::<State>(target)?)?;
        program.with_fd(|fd| self.set_policy(dir, fd))
    }

    fn live(&self, dir: &Dir) -> Result<u32> {
        let id = map(dir.path(), POLICIES)?.lookup(&SLOT)?;
        Ok(id.map_or(0, |id| u32::from_ne_bytes(id.try_into().unwrap())))
    }

    fn prepare(&self, dir: &Dir, policy: &Linked) -> Result<(LoadedProgram, Value)> {
        let mut object = PolicyObject::open(policy)?;
        for shared in [COUNTERS, VERDICTS, NR_EXECUTORS] {
            object.share(shared.1, map(dir.path(), shared)?.as_fd())?;
        }
        Ok((object.load(POLICY_PROGRAM)?, dir.state()?))
    }

    fn set_policy(&self, dir: &Dir, program: BorrowedFd<'_>) -> Result<()> {
        map(dir.path(), POLICIES)?.update(&SLOT, &program.as_raw_fd().to_ne_bytes())
    }

    fn settle(&self, dir: &mut Dir) -> Result<()> {
        let State { executors, .. } = dir.state()?;
        map(dir.path(), NR_EXECUTORS)?.update(&SLOT, &executors.max(1).to_ne_bytes())
    }

    fn detach(&self, _app: &App, path: &Path) -> Result<()> {
        match sys::obj_get(&path.join(POLICIES.0))? {
            Some(policies) => Map::new(policies)?.delete(&SLOT),
            None => Ok(()),
        }
    }

    fn add(&self, dir: &mut Dir, _what: Registration, index: Option<u32>) -> Result<u32> {
        let mut state: State = dir.state()?;
        let index = index.unwrap_or(state.executors);
        state.executors = state.executors.max(index + 1);
        dir.set_state(&state)?;
        self.settle(dir)?;
        Ok(index)
    }

    /// The numbers are the executors, whatever was added: there is nothing to let go.
    fn release(&self, _dir: &mut Dir, _what: &Registration) -> Result<()> {
        Ok(())
    }

    fn changes(&self, _bpffs: &Path) -> Result<Box<dyn Changes>> {
        Ok(Box::new(Told))
    }

    fn counters(&self, dir: &Dir) -> Result<Counters> {
        let mut counters = Counters::default();
        let sums = map(dir.path(), COUNTERS)?.sums()?;
        counters.0.iter_mut().zip(sums).for_each(|(counter, sum)| *counter = sum);
        counters.0[SYRUP_CHOSEN as usize] = map(dir.path(), VERDICTS)?.sums()?.iter().sum();
        let outcomes = SYRUP_CHOSEN as usize..=SYRUP_NO_POLICY as usize;
        counters.0[SYRUP_INPUTS as usize] = counters.0[outcomes].iter().sum();
        Ok(counters)
    }

    fn observe(&self, dir: &Dir) -> Result<Observed> {
        let State { colour, executors } = dir.state()?;
        let mut verdicts = map(dir.path(), VERDICTS)?.sums()?;
        verdicts.truncate(executors.max(1) as usize);
        Ok(Observed {
            inputs: "what a test sends".to_owned(),
            executors,
            target: Facts::from([("colour".to_owned(), colour.into())]),
            counters: self.counters(dir)?,
            verdicts,
            health: Health::LIVE,
        })
    }
}
