//! The compiler call: one C file in, one relocatable BPF object out.
//!
//! The object holds only what the user wrote. `-ffreestanding` keeps system
//! headers out, hidden visibility makes the verifier check `schedule()` in its
//! caller's context (a global function of `void *` arguments is refused), and
//! v3 is what clang 19 needs for 32-bit atomics.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::HEADERS;

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
    /// The compiler could not be run, or its files not written.
    #[error("cannot {action}")]
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
            .map(|path| Self { path })
            .ok_or_else(|| CompileError::NoCompiler { tried: tried.join(", ") })
    }

    /// The compiler's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compiles `source`. Diagnostics and debug lines carry `file_name`, which
    /// is never opened.
    ///
    /// # Errors
    /// [`CompileError::Rejected`] holds clang's diagnostics.
    pub fn compile(&self, file_name: &str, source: &str) -> Result<Compiled, CompileError> {
        let dir = sdk_dir()?;
        let object = dir.path().join("policy.o");
        // `#line` gives diagnostics and BTF line info the user's file name
        // although clang reads standard input.
        let named = file_name.replace('\\', "\\\\").replace('"', "\\\"");
        let text = format!("#line 1 \"{named}\"\n{source}");

        let mut child = Command::new(&self.path)
            .args(FLAGS)
            .arg("-I")
            .arg(dir.path())
            .args(["-x", "c", "-c", "-", "-o"])
            .arg(&object)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io_error("run", self.path.as_os_str()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A compiler that stops reading has said why on stderr.
            let _ = stdin.write_all(text.as_bytes());
        }
        let output =
            child.wait_with_output().map_err(io_error("wait for", self.path.as_os_str()))?;
        if !output.status.success() {
            let mut diagnostics = String::from_utf8_lossy(&output.stderr).into_owned();
            if diagnostics.trim().is_empty() {
                diagnostics = format!("clang ended with {}", output.status);
            }
            return Err(CompileError::Rejected { diagnostics });
        }
        let object = std::fs::read(&object).map_err(io_error("read", object.as_os_str()))?;
        Ok(Compiled { object })
    }
}

/// A folder with the SDK's headers, removed with the value.
fn sdk_dir() -> Result<TempDir, CompileError> {
    let dir = tempfile::Builder::new()
        .prefix("syrup-sdk-")
        .tempdir()
        .map_err(io_error("make a folder below", std::env::temp_dir().as_os_str()))?;
    for (name, text) in HEADERS {
        let path = dir.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io_error("make", parent.as_os_str()))?;
        }
        std::fs::write(&path, text).map_err(io_error("write", path.as_os_str()))?;
    }
    Ok(dir)
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

    #[test]
    fn system_headers_are_out_of_reach() {
        let error = Compiler::find().unwrap().compile("p.c", "#include <stdio.h>\n").unwrap_err();
        assert!(matches!(error, CompileError::Rejected { .. }), "{error:?}");
    }
}
