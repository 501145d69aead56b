//! From what the requester has to an object a hook can load: find or compile, read and
//! check, set parameters, write the canonical object, link that.

mod btf;
pub(crate) mod checked;
pub(crate) mod link;
mod params;
mod read;
pub(crate) mod verifier;
mod write;

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use syrup_hook::{Linked, Spec};
use syrup_protocol::{
    Code, Failure, MAX_OBJECT_BYTES, MAX_SOURCE_BYTES, PolicySource, Result, names,
};
use syrup_sdk::{CompileError, Compiler};

use self::checked::Checked;
use self::write::Source;

/// A policy that was checked and linked for one hook.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// As `list` shows it.
    pub(crate) name: String,
    /// As messages show it.
    pub(crate) file_name: String,
    /// The user's text, to quote lines of.
    pub(crate) source: Option<String>,
    /// Of the canonical object before parameters were set, without quotes of the source:
    /// the same whether Syrup compiled it or the requester.
    pub(crate) sha256: [u8; 32],
    /// Parameters that were set.
    pub(crate) params: BTreeMap<String, String>,
    /// What the check found.
    pub(crate) checked: Checked,
    /// What it wants of the hook ([`syrup_hook::Spec::settings`]).
    pub(crate) settings: Vec<u8>,
    /// The linked object.
    pub(crate) linked: Vec<u8>,
}

/// Prepares `policy` for the hook of `spec`.
pub(crate) fn prepare(
    spec: &Spec,
    policy: &PolicySource,
    params: &[(String, String)],
) -> Result<Prepared> {
    let Found { name, file_name, source, object } = find(spec, policy)?;
    let mut checked = read::read(&file_name, &object)?;
    if checked.input != spec.input {
        return Err(Failure::new(
            Code::SourceRejected,
            format!(
                "{file_name} schedules {}s; hook {} schedules {}s",
                checked.input,
                spec.name,
                spec.input
            ),
        )
        .advise(format!(
            "include <{}> and define the schedule() it declares, or choose another hook ('syrupctl hooks')",
            spec.input.header()
        )));
    }
    let mut settings = Vec::new();
    if let Some(constant) = &spec.settings {
        settings = checked.settings(constant.name);
        (constant.check)(&settings)
            .map_err(|why| Failure::new(Code::SourceRejected, format!("{file_name}: {why}")))?;
    }
    let sha256 = Sha256::digest(write::write(&checked, None)?).into();
    params::set(&mut checked, params)?;
    let text = source.as_deref().map(|text| Source { file_name: &file_name, text });
    let object = write::write(&checked, text)?;
    let linked = link::link(&object, spec.trusted_half)?;
    let params = params.iter().cloned().collect();
    Ok(Prepared { name, file_name, source, sha256, params, checked, settings, linked })
}

/// A policy as a hook takes it, without Maps: for tests of a hook by itself.
///
/// # Errors
/// As `load` would refuse it.
pub fn linked(spec: &Spec, policy: &PolicySource) -> Result<Linked> {
    Ok(prepare(spec, policy, &[])?.link_with(0, BTreeMap::new()))
}

/// The canonical object of a compiled policy: what is linked, loaded and hashed in its place.
/// `file_name` is for messages.
///
/// # Errors
/// [`Code::SourceRejected`] when it is no policy, or does what none may.
pub fn canonical(file_name: &str, image: &[u8]) -> Result<Vec<u8>> {
    write::write(&read::read(file_name, image)?, None)
}

struct Found {
    name: String,
    file_name: String,
    source: Option<String>,
    object: Vec<u8>,
}

fn find(spec: &Spec, policy: &PolicySource) -> Result<Found> {
    let too_large = |what: &str, len: usize, most: usize| {
        Failure::new(Code::SourceRejected, format!("{what}: {len} bytes, the limit is {most}"))
    };
    match policy {
        PolicySource::Builtin { name } => {
            let builtin = spec.policies.iter().find(|p| p.name == name).ok_or_else(|| {
                let known: Vec<&str> = spec.policies.iter().map(|p| p.name).collect();
                Failure::new(Code::Usage, format!("hook {} has no policy '{name}'", spec.name))
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
            names::check_file(file_name)?;
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
            names::check_file(file_name)?;
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
        CompileError::TimedOut { .. } => {
            Failure::new(Code::Timeout, format!("cannot compile {file_name}: {error}"))
                .advise("make the policy smaller, or give a compiled policy object (FILE.o)")
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
