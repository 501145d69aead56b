//! A program of the server's own at its reuseport group, without Syrup: what
//! Syrup's policies are compared with.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use libbpf_rs::{MapCore as _, MapFlags, Object, ObjectBuilder};
use syrup_net_hooks::program_run_time;

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bare.o"));
/// As `bare.bpf.c` has it.
const MOST_SOCKETS: usize = 64;

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// Each socket in turn.
    RoundRobin,
    /// Away from SCANs.
    ScanAvoid,
    /// SCANs on the first socket.
    Sita,
}

/// An attached program.
pub struct Bare {
    object: Object,
    name: &'static str,
    types: Types,
}

/// The program's `request_type`, in this process's memory.
struct Types {
    start: *mut AtomicU64,
    bytes: usize,
}

// SAFETY: the memory is shared with the kernel and holds atomics only.
unsafe impl Send for Types {}
// SAFETY: as above.
unsafe impl Sync for Types {}

impl Drop for Types {
    fn drop(&mut self) {
        // SAFETY: mapped by `Bare::attach` with this length; nobody borrows it
        // for longer than `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.bytes) };
    }
}

impl Bare {
    /// Loads the program and attaches it to the group of `sockets`, which it
    /// numbers in this order.
    pub fn attach(program: Program, sockets: &[OwnedFd]) -> Result<Self> {
        let name = match program {
            Program::RoundRobin => "round_robin",
            Program::ScanAvoid => "scan_avoid",
            Program::Sita => "sita",
        };
        ensure!(sockets.len() <= MOST_SOCKETS, "--bare takes at most {MOST_SOCKETS} --threads");
        let mut open = ObjectBuilder::default().open_memory(OBJECT)?;
        for mut map in open.maps_mut() {
            if map.name().to_string_lossy().ends_with(".rodata")
                && let Some(constants) = map.initial_value_mut()
            {
                // The one constant of the object: nr_sockets.
                ensure!(constants.len() == 4, "bare.bpf.c has other constants than nr_sockets");
                constants.copy_from_slice(&(sockets.len() as u32).to_ne_bytes());
            }
        }
        for mut other in open.progs_mut() {
            other.set_autoload(other.name() == name);
        }
        let object = open.load().context("cannot load the bare programs")?;
        let map = |name: &str| {
            object.maps().find(|map| map.name() == name).with_context(|| format!("no Map {name}"))
        };
        let array = map("sockets")?;
        for (index, socket) in (0u32..).zip(sockets) {
            let fd = socket.as_raw_fd() as u64;
            array
                .update(&index.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
                .context("cannot put a socket into the array of the bare program")?;
        }
        let types = Types::map(map("request_type")?.as_fd())
            .context("cannot map request_type into memory")?;
        let bare = Self { object, name, types };
        let group = sockets.first().context("no sockets")?;
        attach(group.as_fd(), bare.program()?)
            .context("cannot attach the bare program to the server's sockets")?;
        Ok(bare)
    }

    fn program(&self) -> Result<BorrowedFd<'_>> {
        let mut programs = self.object.progs();
        let program = programs.find(|program| program.name() == self.name);
        // SAFETY: the fd is the object's, which outlives the borrow of `self`.
        program
            .map(|program| unsafe { BorrowedFd::borrow_raw(program.as_fd().as_raw_fd()) })
            .with_context(|| format!("bare.bpf.c has no program {}", self.name))
    }

    /// The entry of `request_type` of socket `index`.
    pub fn request_type(&self, index: u32) -> &AtomicU64 {
        assert!((index as usize) < MOST_SOCKETS);
        // SAFETY: within the mapping, which lives as long as `self`; aligned,
        // since entries of a mapped array are 8 bytes from the start of a page.
        unsafe { &*self.types.start.add(index as usize) }
    }

    /// Mean time of a run, if the kernel accounted any.
    pub fn mean_ns(&self) -> Result<Option<f64>> {
        Ok(program_run_time(self.program()?)?.mean_ns())
    }
}

impl Types {
    fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let bytes = MOST_SOCKETS * size_of::<AtomicU64>();
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                0,
            )
        }?;
        Ok(Self { start: start.cast(), bytes })
    }
}

fn attach(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let fd = program.as_raw_fd();
    // SAFETY: `fd` is read for its size during the call.
    let err = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            (&raw const fd).cast(),
            size_of_val(&fd) as libc::socklen_t,
        )
    };
    if err < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
