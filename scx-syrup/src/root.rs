//! The resident root scheduler: loaded with the first thread deployment, kept
//! by its pinned link, gone with the last.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libbpf_rs::MapCore as _;
use syrup_hook::pin::{self, Staged};
use syrup_hook::sys::{self, Map};
use syrup_hook::{Error, Held, PolicyObject, Result};
use syrup_sdk::abi;

use crate::exit::{EXIT_KIND, FIRST_ERROR};
use crate::kernel::Scheduler;
use crate::layout::{
    Plain, SYRUP_SCX_INDICES, SYRUP_SCX_NOBODYS_WEIGHT, SYRUP_SCX_ROOM, SYRUP_SCX_USER_FULL,
    SYRUP_SCX_VERSION, syrup_scx_app, syrup_scx_free_index, syrup_scx_has_room,
    syrup_scx_make_cores, syrup_scx_register, syrup_scx_root, syrup_scx_set_index, syrup_scx_time,
};
use crate::threads::{self, Owner};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/root.o"));
/// Folder below the pin root; no app can have this name.
const DIR: &str = "_scx";
/// Name of the struct_ops map and, in sysfs, of the scheduler.
const OPS: &str = "syrup";
const LINK: &str = "link";
/// Pin of the scheduler itself, from which it is attached again.
const SCHEDULER: &str = "scheduler";
const EXPULSIONS: &str = "syrup_expulsions";
const MAKE_CORES: &str = "syrup_make_cores";
const SET_INDEX: &str = "syrup_set_index";
const FREE_INDEX: &str = "syrup_free_index";
const REGISTER: &str = "syrup_register";
const HAS_ROOM: &str = "syrup_has_room";
/// Programs that are run from here.
const CALLS: &[&str] = &[MAKE_CORES, SET_INDEX, FREE_INDEX, REGISTER, HAS_ROOM];
/// Pinned because later calls read or write them, or (the PROG_ARRAY, the
/// timer's map) because they lose their content with the last user.
const MAPS: &[&str] = &[
    "syrup_root",
    "syrup_apps",
    "syrup_threads",
    "syrup_members",
    "syrup_starting",
    "syrup_free",
    "syrup_counters",
    "syrup_input",
    "syrup_choice",
    "syrup_times",
    EXPULSIONS,
    "syrup_enqueue",
    "syrup_exit",
    "syrup_tick",
];
/// Those that policies use.
const SHARED: &[&str] = &["syrup_input", "syrup_choice"];

/// To take an index from a thread that is just leaving the class.
const INDEX_TRIES: usize = 1000;
/// How long `status` tells of a thread that was refused.
const LATELY: Duration = Duration::from_secs(60);
/// How long a return is remembered, and how much later each following one is.
const RETURNS_WINDOW: Duration = Duration::from_secs(60);
const RETURNS_LATER: Duration = Duration::from_secs(5);

/// Does the kernel still run it?
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Live,
    /// The kernel ended it; why.
    Ejected(String),
}

/// Whether there may be another thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Free,
    AppIsFull,
    /// Its user has as many as he may, in all his apps.
    UserIsFull,
}

/// What the root scheduler tells of an app's threads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Waits {
    /// The longest wait of a thread that waited when the rescue last looked.
    pub longest: Duration,
    /// Threads that it could not have because it has as many as it may, if any lately.
    pub refused: u64,
    pub expelled: Option<Expelled>,
}

/// The rescue could not keep up with an app.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expelled {
    pub ago: Duration,
    /// For how long a thread had waited.
    pub waited: Duration,
}

/// The pins of a root scheduler.
#[derive(Debug)]
pub(crate) struct Root {
    dir: PathBuf,
}

impl Root {
    /// The root whose pins are below `bpffs`; `None` when there is none.
    pub fn open(bpffs: &Path) -> Result<Option<Self>> {
        match Self::find(bpffs)? {
            Some(root) => root.info().map(|_| Some(root)),
            None => Ok(None),
        }
    }

    /// The same of whichever version: all that can be done with another's is to stop it.
    pub fn find(bpffs: &Path) -> Result<Option<Self>> {
        let dir = bpffs.join(DIR);
        match dir.try_exists() {
            Ok(true) => Ok(Some(Self { dir })),
            Ok(false) => Ok(None),
            Err(e) => Err(Error::kernel(format!("read {}", dir.display()), e)),
        }
    }

    /// The live root, loaded now if there is none.
    pub fn ensure(bpffs: &Path) -> Result<Self> {
        if let Some(root) = Self::open(bpffs)? {
            match root.state()? {
                State::Live => return Ok(root),
                State::Ejected(_) if root.may_return()? => {
                    root.put_back()?;
                    return Ok(root);
                }
                State::Ejected(why) => {
                    return Err(Error::Conflict {
                        what: format!("the kernel ended the root scheduler: {why}"),
                        advice: "unload the thread policies it served (syrupctl list), then load \
                                 again"
                            .to_owned(),
                    });
                }
            }
        }
        Self::load(bpffs)
    }

    fn load(bpffs: &Path) -> Result<Self> {
        let dir = bpffs.join(DIR);
        // Explicitly: the kernel detaches a scheduler that lost its last pin only
        // some time later.
        if let Some(interrupted) = Self::interrupted(bpffs) {
            interrupted.stop()?;
        }
        let mut staged = Staged::new(&dir)?;
        let before = Scheduler::settled();
        if before.state != "disabled" {
            return Err(Error::Conflict {
                what: format!(
                    "another sched_ext scheduler is active: '{}' (/sys/kernel/sched_ext/root/ops); \
                     the kernel runs one at a time",
                    before.ops
                ),
                advice: "stop it first".to_owned(),
            });
        }

        let mut object = PolicyObject::open_bytes(OBJECT, "syrup_root")?.load("syrup_dispatch")?;
        for map in MAPS {
            object.pin_map(map, &staged.path().join(map))?;
        }
        object.pin_map(OPS, &staged.path().join(SCHEDULER))?;
        for &call in CALLS {
            let program = object.object().progs().find(|program| program.name() == call);
            let program = program
                .ok_or_else(|| Error::Defect(format!("{call} is not in the root scheduler")))?;
            sys::obj_pin(program.as_fd(), &staged.path().join(call))?;
        }

        let mut ops = object
            .object_mut()
            .maps_mut()
            .find(|map| map.name() == OPS)
            .ok_or_else(|| Error::Usage(format!("{OPS} is not in the root scheduler")))?;
        // Written before the attach: the first thread may come with it.
        let info = syrup_scx_root {
            slots_in_use: 1,
            version: SYRUP_SCX_VERSION,
            nr_cpus: nr_cpus()?,
            ..Default::default()
        };
        let this = Self { dir: staged.path().to_owned() };
        this.set_info(&info)?;
        this.set_app(
            0,
            &syrup_scx_app {
                in_use: 1,
                weight: SYRUP_SCX_NOBODYS_WEIGHT,
                rescue_ns: u64::from(crate::layout::SYRUP_SCX_RESCUE_MS) * 1_000_000,
                nr_queues: 1,
                ..Default::default()
            },
        )?;
        let mut link =
            ops.attach_struct_ops().map_err(|e| Error::bpf("attach the root scheduler", &e))?;
        link.pin(staged.path().join(LINK))
            .map_err(|e| Error::bpf("pin the root scheduler's link", &e))?;
        let enable_seq = enabled()?;
        this.set_info(&syrup_scx_root { enable_seq, scheduler: enable_seq, ..info })?;
        staged.commit()?;
        Ok(Self { dir })
    }

    /// Whether the kernel has ended it for what it did, not too often lately, and no other
    /// scheduler has run since. Whoever took it off (SysRq-S, another tool) wants it off.
    pub fn may_return(&self) -> Result<bool> {
        let (info, now) = (self.info()?, Scheduler::settled());
        if self.runs_unknown(&info, &now) {
            return Ok(true);
        }
        let is_fault = info.returning != 0
            || (now.enable_seq == info.enable_seq && self.exit_kind()? >= FIRST_ERROR);
        Ok(now.state == "disabled" && is_fault && returns_again(&info.returned_ns, now_ns()))
    }

    /// Somebody who put it back ended before he could write that down.
    fn runs_unknown(&self, info: &syrup_scx_root, now: &Scheduler) -> bool {
        let pinned = self.dir.join(LINK).exists();
        info.returning != 0 && pinned && now.state == "enabled" && now.ops == OPS
    }

    /// Attaches again what the kernel has ended: the same programs and maps, so apps, their
    /// policies and what was counted are as they were. Threads that still want the class are
    /// in it again, each under its app and index. Goes on with what was interrupted.
    pub fn put_back(&self) -> Result<()> {
        let mut info = self.info()?;
        let now = Scheduler::settled();
        if !self.runs_unknown(&info, &now) {
            let earliest = (0..info.returned_ns.len()).min_by_key(|&at| info.returned_ns[at]);
            info.returned_ns[earliest.unwrap_or_default()] = now_ns();
            info.returning = 1;
            self.set_info(&info)?;
            if let Some(link) = sys::obj_get(&self.dir.join(LINK))? {
                // While no scheduler runs: Linux 7.0 ends whichever does when this one goes.
                // SAFETY: link is an open fd. It may be detached already.
                unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) };
                pin::remove(&self.dir.join(LINK))?;
            }
            // What it said stays there to be told.
            let exit = self.map("syrup_exit")?;
            let mut said = exit.lookup(&0u32.to_ne_bytes())?.unwrap_or_default();
            said[EXIT_KIND..EXIT_KIND + 4].fill(0);
            exit.update(&0u32.to_ne_bytes(), &said)?;
            let scheduler = sys::obj_get_required(&self.dir.join(SCHEDULER))?;
            let link = sys::struct_ops_link(scheduler.as_fd())
                .map_err(|e| Error::kernel("attach the root scheduler again", e))?;
            sys::obj_pin(link.as_fd(), &self.dir.join(LINK))?;
        }
        self.set_info(&syrup_scx_root { enable_seq: enabled()?, returning: 0, ..info })
    }

    /// When it was last put back, if that was not long ago, and why it had to be.
    pub fn returned(&self) -> Result<Option<(Duration, String)>> {
        let info = self.info()?;
        let last = info.returned_ns.into_iter().max().unwrap_or_default();
        let ago = Duration::from_nanos(now_ns().saturating_sub(last));
        if last == 0 || ago > RETURNS_WINDOW {
            return Ok(None);
        }
        let bytes = self.map("syrup_exit")?.lookup(&0u32.to_ne_bytes())?.unwrap_or_default();
        Ok(Some((ago, crate::exit::said(&bytes).unwrap_or_default())))
    }

    fn exit_kind(&self) -> Result<u32> {
        let bytes = self.map("syrup_exit")?.lookup(&0u32.to_ne_bytes())?.unwrap_or_default();
        Ok(crate::exit::kind(&bytes).unwrap_or_default())
    }

    /// Detaches the scheduler and removes its pins. Threads that still are
    /// `SCHED_EXT` go on under the kernel's default. Also for what is left of a
    /// load or a stop that was interrupted, where any pin may be missing: before it
    /// loses the first, the folder is put aside ([`Self::interrupted`]).
    pub fn stop(mut self) -> Result<()> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with(pin::TEMPORARY) {
            pin::remove_tree(&pin::aside(&self.dir))?;
            self.dir = pin::put_aside(&self.dir)?;
        }
        let before = Scheduler::settled();
        let enable_seq = self.info().map_or(0, |info| info.enable_seq);
        let ours = before.state == "enabled"
            && before.ops == OPS
            && (enable_seq == before.enable_seq || enable_seq == 0);
        if let Some(link) = sys::obj_get(&self.dir.join(LINK))? {
            // SAFETY: link is an open fd.
            let err = unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) };
            // ENOLINK: the kernel had ended it already.
            if err < 0 && ours && err != -libc::ENOLINK {
                return Err(Error::kernel(
                    "detach the root scheduler",
                    io::Error::from_raw_os_error(-err),
                ));
            }
            if ours {
                Scheduler::wait_for("disabled")?;
            }
        }
        // The maps, and so the programs that used them. Those that policies use live on
        // while somebody holds a policy's program, as the application does that deployed it.
        let maps: Vec<&str> = MAPS.iter().copied().filter(|name| !SHARED.contains(name)).collect();
        let held = Held::of(&self.dir, &[], &maps);
        pin::remove_tree(&self.dir)?;
        held.wait_until_freed(Duration::from_secs(5), "the root scheduler that was unloaded");
        Ok(())
    }

    /// What an interrupted load or [`Self::stop`] left below `bpffs`, possibly with a
    /// scheduler that runs; `None` when there is nothing.
    pub fn interrupted(bpffs: &Path) -> Option<Self> {
        let dir = pin::aside(&bpffs.join(DIR));
        dir.exists().then_some(Self { dir })
    }

    /// The folder of its pins.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn state(&self) -> Result<State> {
        // The reason is written last while the kernel disables a scheduler.
        let now = Scheduler::settled();
        let info = self.info()?;
        // The pinned link does not change when the kernel ends the scheduler.
        if now.state == "enabled" && now.ops == OPS && now.enable_seq == info.enable_seq {
            return Ok(State::Live);
        }
        let bytes = self.map("syrup_exit")?.lookup(&0u32.to_ne_bytes())?.unwrap_or_default();
        Ok(State::Ejected(
            crate::exit::reason(&bytes)
                .unwrap_or_else(|| format!("the scheduler is gone (sched_ext is '{}')", now.state)),
        ))
    }

    pub fn map(&self, name: &str) -> Result<Map> {
        Map::open(&self.dir.join(name))
    }

    /// The maps that policies use, by name.
    pub fn shared(&self) -> Result<Vec<(&'static str, OwnedFd)>> {
        SHARED
            .iter()
            .map(|&name| Ok((name, sys::obj_get_required(&self.dir.join(name))?)))
            .collect()
    }

    /// What it keeps of itself.
    ///
    /// # Errors
    /// [`Error::Pin`] when it is another version's.
    pub fn info(&self) -> Result<syrup_scx_root> {
        let map = self.map("syrup_root")?;
        let of = |version: &str| Error::Pin {
            path: self.dir.clone(),
            reason: format!("the root scheduler of {version}, this is {SYRUP_SCX_VERSION}"),
        };
        if map.value_size() as usize != size_of::<syrup_scx_root>() {
            return Err(of("another version"));
        }
        let bytes = map.lookup(&0u32.to_ne_bytes())?.unwrap_or_default();
        let info = syrup_scx_root::from_bytes(&bytes).ok_or_else(|| of("no version"))?;
        if info.version != SYRUP_SCX_VERSION {
            return Err(of(&format!("version {}", info.version)));
        }
        Ok(info)
    }

    fn set_info(&self, info: &syrup_scx_root) -> Result<()> {
        self.map("syrup_root")?.update(&0u32.to_ne_bytes(), info.bytes())
    }

    /// Lets the root scheduler serve a slot, or no longer.
    pub fn serve(&self, slot: u32, on: bool) -> Result<()> {
        let mut info = self.info()?;
        let bit = 1u64 << slot;
        info.slots_in_use = if on { info.slots_in_use | bit } else { info.slots_in_use & !bit };
        self.set_info(&info)
    }

    pub fn app(&self, slot: u32) -> Result<syrup_scx_app> {
        let bytes = self.map("syrup_apps")?.lookup(&slot.to_ne_bytes())?.unwrap_or_default();
        Ok(syrup_scx_app::from_bytes(&bytes).unwrap_or_default())
    }

    pub fn set_app(&self, slot: u32, app: &syrup_scx_app) -> Result<()> {
        self.map("syrup_apps")?.update(&slot.to_ne_bytes(), app.bytes())
    }

    /// Threads of a slot that are `SCHED_EXT` now.
    pub fn members(&self, slot: u32) -> Result<u32> {
        self.count(&self.map("syrup_members")?, slot)
    }

    /// Threads that the threads of a slot are just forking.
    pub fn starting(&self, slot: u32) -> Result<u32> {
        self.count(&self.map("syrup_starting")?, slot)
    }

    fn count(&self, counts: &Map, slot: u32) -> Result<u32> {
        let bytes = counts.lookup(&slot.to_ne_bytes())?.unwrap_or_default();
        let count = bytes.try_into().map(i64::from_ne_bytes).unwrap_or_default();
        Ok(u32::try_from(count.max(0)).unwrap_or(u32::MAX))
    }

    /// How the threads of a slot wait.
    pub fn waits(&self, slot: u32) -> Result<Waits> {
        let bytes = self.map("syrup_times")?.lookup(&slot.to_ne_bytes())?.unwrap_or_default();
        let time = syrup_scx_time::from_bytes(&bytes).unwrap_or_default();
        let expelled = (time.expelled_ns != 0).then(|| Expelled {
            ago: Duration::from_nanos(now_ns().saturating_sub(time.expelled_ns)),
            waited: Duration::from_nanos(time.waited_ns),
        });
        let is_lately = now_ns().saturating_sub(time.refused_ns) < LATELY.as_nanos() as u64;
        Ok(Waits {
            longest: Duration::from_nanos(time.longest_ns),
            refused: if is_lately { time.refused } else { 0 },
            expelled,
        })
    }

    /// Kernel id of the program in a slot; 0 when it is empty.
    pub fn program_id(&self, slot: u32) -> Result<u32> {
        let bytes = self.map("syrup_enqueue")?.lookup(&slot.to_ne_bytes())?.unwrap_or_default();
        Ok(bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default())
    }

    pub fn set_program(
        &self,
        slot: u32,
        program: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<()> {
        let map = self.map("syrup_enqueue")?;
        match program {
            Some(fd) => map.update(&slot.to_ne_bytes(), &fd.as_raw_fd().to_ne_bytes()),
            None => map.delete(&slot.to_ne_bytes()),
        }
    }

    /// Forgets what an earlier app of the slot did. A thread that starts only now, of
    /// whatever was forked for that app, is none of the slot's from `generation` on.
    pub fn reset_slot(&self, slot: u32, generation: u32) -> Result<()> {
        self.set_app(slot, &syrup_scx_app { generation, ..Default::default() })?;
        sys::wait_for_running_programs();
        let counters = self.map("syrup_counters")?;
        let cpus = libbpf_rs::num_possible_cpus()
            .map_err(|e| Error::bpf("count the possible CPUs", &e))?;
        for counter in 0..abi::SYRUP_NR_COUNTERS {
            let key = slot * abi::SYRUP_NR_COUNTERS + counter;
            counters.update(&key.to_ne_bytes(), &vec![0; cpus * 8])?;
        }
        for name in ["syrup_times", "syrup_members", "syrup_free"] {
            let map = self.map(name)?;
            map.update(&slot.to_ne_bytes(), &vec![0; map.value_size() as usize])?;
        }
        Ok(())
    }

    /// Makes the queues of an app's cores. They stay until the root goes.
    pub fn make_cores(&self, slot: u32) -> Result<()> {
        let args = syrup_scx_make_cores { slot, nr_cpus: self.info()?.nr_cpus };
        self.call(MAKE_CORES, &mut { args }, "make the queues of the app's cores").map(drop)
    }

    /// Whether the app of a slot, and its user, may have another thread in the class.
    pub fn room(&self, slot: u32) -> Result<Room> {
        let args = syrup_scx_has_room { slot, ..Default::default() };
        let room = self.call(HAS_ROOM, &mut { args }, "count the threads of the app")?;
        Ok(match room as u32 {
            SYRUP_SCX_ROOM => Room::Free,
            SYRUP_SCX_USER_FULL => Room::UserIsFull,
            _ => Room::AppIsFull,
        })
    }

    /// Makes a thread an app's when it enters the class, which is about to be; returns
    /// whether it is out of the class, as it has to be. Slot 0 takes that back.
    pub fn register(&self, args: syrup_scx_register) -> Result<bool> {
        let tid = args.tid;
        match self.call(REGISTER, &mut { args }, &format!("register thread {tid}")) {
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {
                Err(threads::no_such_thread(tid))
            }
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                Ok(false)
            }
            other => other.map(|_| true),
        }
    }

    /// The smallest index that no thread of the app in a slot has.
    pub fn free_index(&self, slot: u32) -> Result<u32> {
        let mut args = syrup_scx_free_index { slot, ..Default::default() };
        self.call(FREE_INDEX, &mut args, "look for a free index")?;
        Ok(args.index)
    }

    /// Gives a thread of the owner's that is in the class an index; whoever had it has none. False:
    /// it is not in the class, or is another's.
    pub fn set_index(&self, tid: i32, owner: Owner, index: u32) -> Result<bool> {
        let Owner { slot, generation } = owner;
        let mut args = syrup_scx_set_index { tid, slot, generation, index, by_force: 0 };
        let what = format!("give thread {tid} the index {index}");
        for tries in 1..=INDEX_TRIES {
            args.by_force = u32::from(tries == INDEX_TRIES);
            let errno = match self.call(SET_INDEX, &mut { args }, &what) {
                Err(Error::Kernel { source, .. }) => source.raw_os_error().unwrap_or_default(),
                other => return other.map(|_| true),
            };
            match errno {
                // Its holder is just leaving.
                libc::EAGAIN => std::thread::sleep(Duration::from_micros(100)),
                libc::EBUSY => return Ok(false),
                libc::ESRCH => return Err(threads::no_such_thread(tid)),
                libc::E2BIG => {
                    return Err(Error::Conflict {
                        what: format!("all apps' threads have {SYRUP_SCX_INDICES} indices"),
                        advice: "register fewer threads: their children are their app's, and \
                                 have none"
                            .to_owned(),
                    });
                }
                errno => return Err(Error::kernel(what, io::Error::from_raw_os_error(errno))),
            }
        }
        Err(Error::Timeout(format!("{what}: the thread that has it leaves, and is still there")))
    }

    /// Runs a program of the root's, to do `what`, which may answer in its argument; returns
    /// what it does.
    fn call<T: Plain>(&self, program: &str, args: &mut T, what: &str) -> Result<i32> {
        let program = sys::obj_get_required(&self.dir.join(program))?;
        let mut opts = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            ctx_in: std::ptr::from_mut(args).cast(),
            ctx_size_in: size_of::<T>() as u32,
            ..Default::default()
        };
        // SAFETY: opts and what it points to live for the call.
        let err = unsafe {
            libbpf_sys::bpf_prog_test_run_opts(program.as_fd().as_raw_fd(), &raw mut opts)
        };
        match if err < 0 { err } else { opts.retval as i32 } {
            err if err < 0 => Err(Error::kernel(what, io::Error::from_raw_os_error(-err))),
            said => Ok(said),
        }
    }
}

/// How often the root scheduler below `bpffs` has expelled an app; 0 where none is.
pub(crate) fn expulsions(bpffs: &Path) -> Result<u64> {
    let Some(map) = sys::obj_get(&bpffs.join(DIR).join(EXPULSIONS))? else { return Ok(0) };
    let bytes = Map::new(map)?.lookup(&0u32.to_ne_bytes())?.unwrap_or_default();
    Ok(bytes.try_into().map(u64::from_ne_bytes).unwrap_or_default())
}

/// Waits until the kernel runs ours; returns its number.
fn enabled() -> Result<u64> {
    let now = Scheduler::settled();
    match now.state.as_str() {
        "enabled" if now.ops == OPS => Ok(now.enable_seq),
        "enabled" => Err(Error::Conflict {
            what: format!("the kernel runs the scheduler '{}' instead of ours", now.ops),
            advice: "stop it first".to_owned(),
        }),
        state => Err(Error::Conflict {
            what: format!("the kernel took the root scheduler off at once: sched_ext is '{state}'"),
            advice: "see dmesg".to_owned(),
        }),
    }
}

/// Three times in a minute, and after each time a little later.
fn returns_again(returned_ns: &[u64], now_ns: u64) -> bool {
    let ago = |at: u64| Duration::from_nanos(now_ns.saturating_sub(at));
    let lately = returned_ns.iter().filter(|&&at| at != 0 && ago(at) < RETURNS_WINDOW);
    let times = lately.clone().count();
    let last = lately.map(|&at| ago(at)).min().unwrap_or(RETURNS_WINDOW);
    times < returned_ns.len() && last >= RETURNS_LATER * times as u32
}

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// CPUs the kernel may number, at most as many as a mask can hold.
pub(crate) fn nr_cpus() -> Result<u32> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")
        .map_err(|e| Error::kernel("read /sys/devices/system/cpu/possible", e))?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|n| n.parse::<u32>().ok());
    Ok(last.map_or(1, |n| n + 1).min(abi::SYRUP_MAX_CPUS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_three_times_in_a_minute_and_later_each_time() {
        let second = 1_000_000_000;
        let now = 1000 * second;
        let again = |ago: [u64; 3]| {
            let at = ago.map(|ago| if ago == 0 { 0 } else { now - ago * second });
            returns_again(&at, now)
        };
        assert!(again([0, 0, 0]));
        assert!(again([100, 200, 61]));
        assert!(!again([4, 0, 0]) && again([5, 0, 0]));
        assert!(!again([9, 20, 0]) && again([10, 20, 0]));
        assert!(!again([15, 25, 59]) && again([15, 25, 61]));
    }
}
