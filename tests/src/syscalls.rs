//! The system calls of a command: how many they are, and what they would change.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::mem::offset_of;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Runs a command, its output thrown away, and counts its system calls and those
/// of the threads and processes it starts.
///
/// # Panics
/// When it cannot be started or traced, or fails.
#[must_use]
pub fn syscalls(command: &mut Command) -> u64 {
    let mut calls = 0;
    let status = trace(command.stdout(Stdio::null()), |_| {
        calls += 1;
        Fate::Made
    });
    assert!(status.success(), "{command:?}: {status}");
    calls
}

/// Runs a command and names each system call of its that changes what outlives it: pins and
/// folders below `bpffs`, BPF maps and links, what is attached to a socket, how a thread is
/// scheduled.
///
/// # Panics
/// As [`syscalls`].
#[must_use]
pub fn changes(command: &mut Command, bpffs: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let status = trace(command, |call| {
        names.extend(call.change(bpffs));
        Fate::Made
    });
    assert!(status.success(), "{command:?}: {status}");
    names
}

/// Runs a command until it is about to make the change of this number, counted from 0, which
/// it does not live to make. Returns its name.
///
/// # Panics
/// When it cannot be started or traced, or ends before.
pub fn kill_before(command: &mut Command, bpffs: &Path, number: usize) -> String {
    let (name, status) = at_change(command, bpffs, number, Fate::Killed);
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{command:?}: {status}");
    name
}

/// Runs a command whose change of this number, counted from 0, the kernel refuses with ENOMEM.
/// Returns its name and how the command ended.
///
/// # Panics
/// When it cannot be started or traced, or makes fewer changes.
pub fn refuse(command: &mut Command, bpffs: &Path, number: usize) -> (String, ExitStatus) {
    at_change(command, bpffs, number, Fate::Refused)
}

fn at_change(
    command: &mut Command,
    bpffs: &Path,
    number: usize,
    fate: Fate,
) -> (String, ExitStatus) {
    let (mut seen, mut found) = (0, None);
    let status = trace(command, |call| {
        let Some(name) = call.change(bpffs) else { return Fate::Made };
        seen += 1;
        if seen != number + 1 {
            return Fate::Made;
        }
        found = Some(name);
        fate
    });
    let name = found.unwrap_or_else(|| panic!("{command:?}: {status} after {seen} changes"));
    (name, status)
}

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Made,
    /// It fails.
    Refused,
    /// The command dies before it.
    Killed,
}

/// A system call that a thread is about to make.
struct Call {
    tid: i32,
    number: i64,
    args: [u64; 6],
}

impl Call {
    /// What it would change, if anything.
    fn change(&self, bpffs: &Path) -> Option<String> {
        let [a, b, c, d, ..] = self.args;
        let below = |what: &str, folder: Option<u64>, name: u64| {
            let path = self.path(folder, name);
            let path = path.strip_prefix(bpffs.parent()?).ok()?;
            Some(format!("{what} {}", path.display()))
        };
        match self.number {
            libc::SYS_bpf => self.bpf_change(),
            libc::SYS_mkdir => below("mkdir", None, a),
            libc::SYS_mkdirat => below("mkdir", Some(a), b),
            libc::SYS_rmdir => below("rmdir", None, a),
            libc::SYS_unlink => below("unlink", None, a),
            libc::SYS_unlinkat => below("unlink", Some(a), b),
            libc::SYS_rename => below("rename to", None, b),
            libc::SYS_renameat | libc::SYS_renameat2 => below("rename to", Some(c), d),
            libc::SYS_chown => below("chown", None, a),
            libc::SYS_fchownat => below("chown", Some(a), b),
            libc::SYS_chmod => below("chmod", None, a),
            libc::SYS_fchmodat => below("chmod", Some(a), b),
            libc::SYS_fchmod => {
                let path = self.descriptor(a);
                let path = path.strip_prefix(bpffs.parent()?).ok()?;
                Some(format!("chmod {}", path.display()))
            }
            libc::SYS_setsockopt if b == libc::SOL_SOCKET as u64 => match c as i32 {
                libc::SO_ATTACH_REUSEPORT_EBPF => Some("attach to a socket's group".to_owned()),
                libc::SO_DETACH_REUSEPORT_BPF => Some("detach from a socket's group".to_owned()),
                _ => None,
            },
            libc::SYS_sched_setscheduler | libc::SYS_sched_setattr => {
                Some("set a thread's class".to_owned())
            }
            _ => None,
        }
    }

    fn bpf_change(&self) -> Option<String> {
        let [command, attributes, ..] = self.args;
        let what = match command as u32 {
            libbpf_sys::BPF_OBJ_PIN => {
                let name = u64::from_ne_bytes(self.read(attributes)?);
                let path = self.path(None, name);
                return Some(format!("pin {}", path.file_name()?.to_string_lossy()));
            }
            libbpf_sys::BPF_MAP_UPDATE_ELEM | libbpf_sys::BPF_MAP_UPDATE_BATCH => "update",
            libbpf_sys::BPF_MAP_DELETE_ELEM | libbpf_sys::BPF_MAP_DELETE_BATCH => "delete from",
            libbpf_sys::BPF_LINK_CREATE => return Some("create a link".to_owned()),
            libbpf_sys::BPF_LINK_UPDATE => return Some("update a link".to_owned()),
            libbpf_sys::BPF_LINK_DETACH => return Some("detach a link".to_owned()),
            libbpf_sys::BPF_PROG_ATTACH => return Some("attach a program".to_owned()),
            libbpf_sys::BPF_PROG_DETACH => return Some("detach a program".to_owned()),
            libbpf_sys::BPF_PROG_TEST_RUN => return Some("run a program".to_owned()),
            _ => return None,
        };
        let fd = u32::from_ne_bytes(self.read(attributes)?);
        Some(format!("{what} {}", self.map_name(fd)?))
    }

    /// The name of a BPF map that the thread has open.
    fn map_name(&self, fd: u32) -> Option<String> {
        let about = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", self.tid)).ok()?;
        let id = about.lines().find_map(|line| line.strip_prefix("map_id:"))?.trim();
        crate::kernel::map_name(id.parse().ok()?)
    }

    fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.tid)).ok()?;
        let mut bytes = [0; N];
        memory.read_exact_at(&mut bytes, address).ok()?;
        Some(bytes)
    }

    fn descriptor(&self, fd: u64) -> PathBuf {
        let link = format!("/proc/{}/fd/{}", self.tid, fd as i32);
        std::fs::read_link(link).unwrap_or_default()
    }

    fn path(&self, folder: Option<u64>, name: u64) -> PathBuf {
        let mut bytes = Vec::new();
        // As long as a name may be; it may end near the end of what is mapped.
        while bytes.len() < 4096 && !bytes.contains(&0) {
            let Some(more) = self.read::<16>(name + bytes.len() as u64) else { break };
            bytes.extend(more);
        }
        bytes.push(0);
        let name = CStr::from_bytes_until_nul(&bytes).expect("a zero was just added");
        let name = Path::new(name.to_str().unwrap_or_default());
        match folder {
            Some(folder) if folder as i32 != libc::AT_FDCWD => self.descriptor(folder).join(name),
            _ => name.to_owned(),
        }
    }
}

/// Runs a command and asks `fate` of each system call of its and of the threads and
/// processes it starts, until it is killed.
fn trace(command: &mut Command, mut fate: impl FnMut(&Call) -> Fate) -> ExitStatus {
    const FOLLOW: i32 = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_EXITKILL;
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    #[allow(clippy::zombie_processes, reason = "waitpid below takes it")]
    let child = command.spawn().expect("the command starts").id() as i32;
    // It stops after its exec.
    wait(child);
    ptrace(libc::PTRACE_SETOPTIONS, child, 0, FOLLOW as u64);
    ptrace(libc::PTRACE_SYSCALL, child, 0, 0);
    let mut killed = false;
    let mut refused = BTreeSet::new();
    loop {
        let (tid, status) = wait(-1);
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            if tid == child {
                return ExitStatus::from_raw(status);
            }
            continue;
        }
        let signal = match libc::WSTOPSIG(status) {
            at_syscall if at_syscall == libc::SIGTRAP | 0x80 => {
                match entry(tid).filter(|_| !killed) {
                    Some(call) => match fate(&call) {
                        Fate::Made => {}
                        Fate::Refused => {
                            // There is no such call.
                            set_register(tid, offset_of!(libc::user_regs_struct, orig_rax), -1);
                            refused.insert(tid);
                        }
                        Fate::Killed => {
                            killed = true;
                            // SAFETY: a plain system call on numbers; the child is not waited
                            // for yet.
                            unsafe { libc::kill(child, libc::SIGKILL) };
                        }
                    },
                    None if refused.remove(&tid) => {
                        let result = -i64::from(libc::ENOMEM);
                        set_register(tid, offset_of!(libc::user_regs_struct, rax), result);
                    }
                    None => {}
                }
                0
            }
            // A new thread's first stop, or the event of its start.
            libc::SIGTRAP | libc::SIGSTOP => 0,
            other => other,
        };
        ptrace(libc::PTRACE_SYSCALL, tid, 0, signal as u64);
    }
}

/// Sets a register of a stopped thread, by its place in `user_regs_struct`.
fn set_register(tid: i32, place: usize, value: i64) {
    ptrace(libc::PTRACE_POKEUSER, tid, place, value as u64);
}

/// The call at whose entry a thread stopped; `None` at its return.
fn entry(tid: i32) -> Option<Call> {
    // SAFETY: zeroes are a valid value of this plain structure.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: the kernel writes at most `size` bytes to info, which lives for the call.
    let got = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, size, &raw mut info) };
    if got <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that this member is the one that was written.
    let entry = unsafe { info.u.entry };
    Some(Call { tid, number: entry.nr as i64, args: entry.args })
}

/// A tracee that stopped or ended, and its wait status. Only those of this
/// thread: tests beside this one have children of their own.
fn wait(pid: i32) -> (i32, i32) {
    let mut status = 0;
    // SAFETY: status lives for the call.
    let tid = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    assert!(tid > 0, "waitpid: {}", std::io::Error::last_os_error());
    (tid, status)
}

fn ptrace(request: libc::c_uint, tid: i32, address: usize, data: u64) {
    // SAFETY: these requests take numbers.
    let done = unsafe { libc::ptrace(request, tid, address, data) };
    // ESRCH: killed meanwhile; waitpid tells.
    let error = std::io::Error::last_os_error();
    assert!(done == 0 || error.raw_os_error() == Some(libc::ESRCH), "ptrace {request}: {error}");
}
