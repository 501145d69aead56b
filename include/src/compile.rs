//! The compiler call: one C file in, one relocatable BPF object out.
//!
//! The object holds only what the user wrote. `-ffreestanding` keeps system
//! headers out, hidden visibility makes the verifier check `schedule()` in its
//! caller's context (a global function of `void *` arguments is refused), and
//! v3 is what clang 19 needs for 32-bit atomics.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, set_parent_process_death_signal,
};
use tempfile::TempDir;

use crate::HEADERS;

/// How long clang may take, unless told otherwise. A policy at the verifier's limits takes
/// half of it on a slow machine; a client waits twice as long for its daemon.
pub const COMPILE_TIMEOUT: Duration = Duration::from_secs(60);

/// Most bytes of diagnostics that are kept: one error in a macro can make many.
const MAX_DIAGNOSTICS: u64 = 256 << 10;

/// Compilers tried in order when `BPF_CLANG` is not set.
const CANDIDATES: &[&str] =
    &["clang-19", "clang-20", "clang-21", "clang-22", "clang-18", "clang-17", "clang"];

const FLAGS: &[&str] = &[
    "-target",
    "bpf",
    "-mcpu=v3",
    "-O2",
    "-g",
    "-ffreestanding",
    "-nostdinc",
    "-fvisibility=hidden",
    "-fno-stack-protector",
    "-std=gnu17",
    "-Wall",
    "-Wextra",
    // A policy that decides without looking at its input is a normal one.
    "-Wno-unused-parameter",
    "-Werror",
    "-fno-color-diagnostics",
];

/// Why a policy did not become an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// No clang on this machine.
    #[error("no clang found (tried {tried})")]
    NoCompiler {
        /// The names that were looked up.
        tried: String,
    },
    /// clang refused the source; its diagnostics name the user's file and lines.
    #[error("{diagnostics}")]
    Rejected {
        /// What clang printed.
        diagnostics: String,
    },
    /// A signal ended clang: for want of memory, say.
    #[error("clang was ended by a signal: {status}")]
    Killed {
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// clang did not end, and was killed.
    #[error("clang did not end within {} s and was killed", after.as_secs_f32())]
    TimedOut {
        /// How long it had.
        after: Duration,
    },
    /// The compiler could not be run, or its files not written.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// What a policy's file was compiled to.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The relocatable ELF object.
    pub object: Vec<u8>,
}

/// A clang that was found.
#[derive(Debug, Clone)]
pub struct Compiler {
    path: PathBuf,
    timeout: Duration,
}

impl Compiler {
    /// Finds clang: `$BPF_CLANG` if set, else the first candidate in `$PATH`.
    ///
    /// # Errors
    /// [`CompileError::NoCompiler`] names what was tried.
    pub fn find() -> Result<Self, CompileError> {
        let named = std::env::var("BPF_CLANG").ok();
        let tried: Vec<&str> = match &named {
            Some(name) => vec![name.as_str()],
            None => CANDIDATES.to_vec(),
        };
        tried
            .iter()
            .find_map(|name| which(name))
            .map(|path| Self { path, timeout: COMPILE_TIMEOUT })
            .ok_or_else(|| CompileError::NoCompiler { tried: tried.join(", ") })
    }

    /// The compiler's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it another time than [`COMPILE_TIMEOUT`].
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Compiles `source`. Diagnostics and debug lines carry `file_name`, which
    /// is never opened.
    ///
    /// # Errors
    /// [`CompileError::Rejected`] holds clang's diagnostics; [`CompileError::TimedOut`] when
    /// it hangs: then it was killed, with what it had started.
    pub fn compile(&self, file_name: &str, source: &str) -> Result<Compiled, CompileError> {
        let dir = sdk_dir()?;
        let object = dir.path().join("policy.o");
        // `#line` gives diagnostics and BTF line info the user's file name
        // although clang reads standard input.
        let named = file_name.replace('\\', "\\\\").replace('"', "\\\"");
        let text = format!("#line 1 \"{named}\"\n{source}");

        // Files, not pipes: clang waits for nobody, and nobody for more than its end.
        let (input, output) = (dir.path().join("policy.c"), dir.path().join("diagnostics"));
        fs::write(&input, text).map_err(io_error("write", input.as_os_str()))?;
        let input = File::open(&input).map_err(io_error("open", input.as_os_str()))?;
        let stderr = File::create(&output).map_err(io_error("make", output.as_os_str()))?;
        let mut command = Command::new(&self.path);
        command
            .args(FLAGS)
            .arg("-I")
            .arg(dir.path())
            .args(["-x", "c", "-c", "-", "-o"])
            .arg(&object)
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(stderr)
            // A wrapper's children end with it.
            .process_group(0);
        // The terminal's keys do not reach that group: it ends with who waits for it.
        // SAFETY: one system call, which the child of a fork may make.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut child = command.spawn().map_err(io_error("run", self.path.as_os_str()))?;
        let status = wait(&mut child, self.timeout)
            .map_err(io_error("wait for", self.path.as_os_str()))?
            .ok_or(CompileError::TimedOut { after: self.timeout })?;
        if status.code().is_none() {
            return Err(CompileError::Killed { status });
        }
        if !status.success() {
            let mut diagnostics = Vec::new();
            File::open(&output)
                .and_then(|file| file.take(MAX_DIAGNOSTICS).read_to_end(&mut diagnostics))
                .map_err(io_error("read", output.as_os_str()))?;
            let mut diagnostics = String::from_utf8_lossy(&diagnostics).into_owned();
            if diagnostics.trim().is_empty() {
                diagnostics = format!("clang ended with {status}");
            }
            return Err(CompileError::Rejected { diagnostics });
        }
        let object = fs::read(&object).map_err(io_error("read", object.as_os_str()))?;
        Ok(Compiled { object })
    }
}

/// Waits for a child's end; `None` when it did not come in time, and the child and its
/// process group were killed.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    // Not another's before it is waited for.
    let pid = Pid::from_child(child);
    let ended = pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left_until = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&pidfd.as_fd(), PollFlags::IN)], left_until.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) if !left.is_zero() => {}
                other => return other.map(|ready| ready > 0),
            }
        }
    });
    if !matches!(ended, Ok(true)) {
        // It may have ended meanwhile.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let status = child.wait()?;
    Ok(ended?.then_some(status))
}

/// Before the names of folders that compilations make, and how old one gets whose
/// compilation is killed.
const FOLDER: &str = "syrup-sdk-";
const FOLDER_LIFE: Duration = Duration::from_secs(3600);

/// A folder with the SDK's headers, removed with the value.
fn sdk_dir() -> Result<TempDir, CompileError> {
    let place = std::env::temp_dir();
    remove_old(&place);
    let dir = tempfile::Builder::new()
        .prefix(FOLDER)
        .tempdir_in(&place)
        .map_err(io_error("make a folder below", place.as_os_str()))?;
    for (name, text) in HEADERS {
        let path = dir.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io_error("make", parent.as_os_str()))?;
        }
        fs::write(&path, text).map_err(io_error("write", path.as_os_str()))?;
    }
    Ok(dir)
}

/// This user's only: in a folder that all may write to, another one's may be made to be removed.
/// What cannot be removed is being removed by somebody else just now.
fn remove_old(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    // As tempfile makes them.
    let is_named = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let random = name.to_str().and_then(|name| name.strip_prefix(FOLDER));
        random.is_some_and(|it| it.len() == 6 && it.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    let is_ours =
        |about: &fs::Metadata| about.is_dir() && about.uid() == rustix::process::geteuid().as_raw();
    for entry in entries.flatten().filter(is_named) {
        let age = |about: fs::Metadata| about.modified().ok()?.elapsed().ok();
        let age = entry.metadata().ok().filter(is_ours).and_then(age);
        if age.is_some_and(|age| age > FOLDER_LIFE) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn io_error(verb: &str, what: &std::ffi::OsStr) -> impl FnOnce(io::Error) -> CompileError {
    let action = format!("{verb} {}", what.to_string_lossy());
    move |source| CompileError::Io { action, source }
}

fn which(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return path.is_file().then_some(path);
    }
    let paths: OsString = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_ROBIN: &str = "#include <syrup/packet.h>\nstatic __u32 next;\n\
        __s32 schedule(void *pkt_start, void *pkt_end)\n{\n\
        \treturn next++ % syrup_num_executors();\n}\n";

    #[test]
    fn a_policy_compiles_to_a_bpf_object() {
        let object = Compiler::find().unwrap().compile("rr.c", ROUND_ROBIN).unwrap().object;
        assert_eq!(&object[..4], b"\x7fELF");
        assert_eq!(u16::from_le_bytes([object[18], object[19]]), 247, "e_machine is EM_BPF");
    }

    #[test]
    fn an_error_names_the_users_file_and_line() {
        let source = ROUND_ROBIN.replace("next++", "nxt++");
        let error = Compiler::find().unwrap().compile("my policy.c", &source).unwrap_err();
        let CompileError::Rejected { diagnostics } = error else { panic!("{error:?}") };
        assert!(diagnostics.contains("my policy.c:5:"), "{diagnostics}");
    }

    /// A script in the place of clang.
    fn scripted(dir: &Path, script: &str) -> Compiler {
        let (text, path) = (dir.join("script"), dir.join("clang"));
        fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
        // Another process makes it: one that this process has open for writing while another
        // thread starts a program is busy.
        let made = Command::new("install").args(["-m", "755"]).arg(&text).arg(&path).status();
        assert!(made.unwrap().success());
        Compiler { path, timeout: COMPILE_TIMEOUT }
    }

    /// Gone, or dead and not waited for.
    fn is_over(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|s| s.starts_with(" Z")))
    }

    #[test]
    fn a_compiler_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        // As a wrapper would: it notes the id of its child.
        let script = "sleep 1000 &\necho $! >\"$0.child\"\nwait";
        let compiler = scripted(dir.path(), script).with_timeout(Duration::from_millis(500));
        let started = Instant::now();
        let error = compiler.compile("p.c", ROUND_ROBIN).unwrap_err();
        assert!(matches!(error, CompileError::TimedOut { .. }), "{error:?}");
        assert_eq!(error.to_string(), "clang did not end within 0.5 s and was killed");
        assert!(started.elapsed() < Duration::from_secs(20));
        let child = fs::read_to_string(dir.path().join("clang.child")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_over(&child) {
            assert!(Instant::now() < deadline, "process {child} goes on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_compiler_that_reads_nothing_and_says_much_is_not_waited_for_in_vain() {
        let dir = tempfile::tempdir().unwrap();
        let script = "head -c 1000000 /dev/zero | tr '\\0' x >&2\nexit 1";
        let compiler = scripted(dir.path(), script);
        let error = compiler.compile("p.c", &"\n".repeat(1 << 20)).unwrap_err();
        let CompileError::Rejected { diagnostics } = error else { panic!("{error:?}") };
        assert_eq!(diagnostics.len() as u64, MAX_DIAGNOSTICS);
    }

    #[test]
    fn a_compiler_that_is_killed_refused_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let error = scripted(dir.path(), "kill -9 $$").compile("p.c", "").unwrap_err();
        assert!(matches!(error, CompileError::Killed { .. }), "{error:?}");
    }

    #[test]
    fn folders_of_compilations_that_were_killed_go_after_an_hour() {
        let place = tempfile::tempdir().unwrap();
        let folder = |name: &str, age: Duration| {
            let path = place.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("policy.h"), "").unwrap();
            let modified = std::time::SystemTime::now() - age;
            fs::File::open(&path).unwrap().set_modified(modified).unwrap();
            path
        };
        let minute = Duration::from_secs(60);
        let [old, new] = [61, 59].map(|n| folder(&format!("{FOLDER}aBc4{n}"), n * minute));
        // Such as the sources of a release.
        let others = ["other", &format!("{FOLDER}0.1.0"), &format!("{FOLDER}a")];
        let others = others.map(|name| folder(name, 61 * minute));
        remove_old(place.path());
        assert_eq!([&old, &new].map(|path| path.join("policy.h").exists()), [false, true]);
        assert!(others.iter().all(|path| path.join("policy.h").exists()));
    }

    #[test]
    fn system_headers_are_out_of_reach() {
        let error = Compiler::find().unwrap().compile("p.c", "#include <stdio.h>\n").unwrap_err();
        assert!(matches!(error, CompileError::Rejected { .. }), "{error:?}");
    }
}
