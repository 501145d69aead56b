//! From what the requester has to an object a hook can load: find or compile,
//! check, set parameters, link.

mod btf;
pub(crate) mod check;
mod lines;
pub(crate) mod link;
mod params;
pub(crate) mod verifier;

use sha2::{Digest as _, Sha256};
use syrup_hook::Hook;
use syrup_protocol::request::{MAX_OBJECT_BYTES, MAX_SOURCE_BYTES};
use syrup_protocol::{Code, Failure, PolicySource, Result};
use syrup_sdk::{CompileError, Compiler};

use self::check::Checked;

/// A policy that was checked and linked for one hook.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// As `list` shows it.
    pub(crate) name: String,
    /// As messages show it.
    pub(crate) file_name: String,
    /// The user's text, to quote lines of.
    pub(crate) source: Option<String>,
    /// Of the object before parameters were set.
    pub(crate) sha256: [u8; 32],
    /// What the check found.
    pub(crate) checked: Checked,
    /// The linked object.
    pub(crate) linked: Vec<u8>,
}

/// Prepares `policy` for `hook`.
pub(crate) fn prepare(
    hook: &dyn Hook,
    policy: &PolicySource,
    settings: &[(String, String)],
) -> Result<Prepared> {
    let Found { name, file_name, source, mut object } = find(hook, policy)?;
    let checked = check::check(&file_name, &object)?;
    if checked.input != hook.input() {
        return Err(Failure::new(
            Code::SourceRejected,
            format!(
                "{file_name} schedules {}s; hook {} schedules {}s",
                checked.input,
                hook.id(),
                hook.input()
            ),
        )
        .advise(format!(
            "include <{}> and define the schedule() it declares, or choose another hook ('syrupctl hooks')",
            hook.input().header()
        )));
    }
    let sha256 = Sha256::digest(&object).into();
    params::set(&mut object, &checked.params, settings)?;
    let linked = link::link(&object, hook.trusted_half())?;
    Ok(Prepared { name, file_name, source, sha256, checked, linked })
}

struct Found {
    name: String,
    file_name: String,
    source: Option<String>,
    object: Vec<u8>,
}

fn find(hook: &dyn Hook, policy: &PolicySource) -> Result<Found> {
    let too_large = |what: &str, len: usize, most: usize| {
        Failure::new(Code::SourceRejected, format!("{what}: {len} bytes, the limit is {most}"))
    };
    match policy {
        PolicySource::Builtin { name } => {
            let builtin = hook.policies().iter().find(|p| p.name == name).ok_or_else(|| {
                let known: Vec<&str> = hook.policies().iter().map(|p| p.name).collect();
                Failure::new(Code::Usage, format!("hook {} has no policy '{name}'", hook.id()))
                    .advise(format!("one of {}; or a C file, like ./policy.c", known.join(", ")))
            })?;
            Ok(Found {
                name: name.clone(),
                file_name: format!("{name}.c"),
                source: Some(builtin.source.to_owned()),
                object: builtin.object.to_vec(),
            })
        }
        PolicySource::Source { file_name, text } => {
            if text.len() > MAX_SOURCE_BYTES {
                return Err(too_large(file_name, text.len(), MAX_SOURCE_BYTES));
            }
            Ok(Found {
                name: stem(file_name),
                file_name: file_name.clone(),
                source: Some(text.clone()),
                object: compile(file_name, text)?,
            })
        }
        PolicySource::Object { file_name, image } => {
            if image.len() > MAX_OBJECT_BYTES {
                return Err(too_large(file_name, image.len(), MAX_OBJECT_BYTES));
            }
            Ok(Found {
                name: stem(file_name),
                file_name: file_name.clone(),
                source: None,
                object: image.clone(),
            })
        }
    }
}

/// Compiles a policy's C source. Separate, because an ordinary user compiles
/// for itself and gives the daemon the object.
///
/// # Errors
/// [`Code::SourceRejected`] with the compiler's diagnostics, [`Code::Unsupported`]
/// without a compiler.
pub fn compile(file_name: &str, text: &str) -> Result<Vec<u8>> {
    Compiler::find()
        .and_then(|compiler| compiler.compile(file_name, text))
        .map(|compiled| compiled.object)
        .map_err(|e| compile_error(file_name, &e))
}

fn compile_error(file_name: &str, error: &CompileError) -> Failure {
    match error {
        CompileError::NoCompiler { tried } => Failure::new(
            Code::Unsupported,
            format!("cannot compile {file_name}: no clang found (tried {tried})"),
        )
        .advise(
            "install clang 17 or newer (Debian: apt-get install clang-19), set BPF_CLANG to it, \
             or give a compiled policy object (FILE.o) or a built-in policy's name",
        ),
        CompileError::Rejected { diagnostics } => {
            Failure::new(Code::SourceRejected, format!("{file_name} does not compile"))
                .detail(diagnostics.trim_end())
                .advise("a policy sees the headers below <syrup/> only, and warnings are errors")
        }
        other => Failure::new(Code::Internal, format!("cannot compile {file_name}: {other}")),
    }
}

/// The name a file's policy is listed by.
fn stem(file_name: &str) -> String {
    let base = file_name.rsplit('/').next().unwrap_or(file_name);
    let stem = base.rsplit_once('.').map_or(base, |(stem, _)| stem);
    stem.chars().take(syrup_sdk::abi::SYRUP_NAME_LEN as usize - 1).collect()
}
