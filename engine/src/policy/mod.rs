//! From what the requester has to an object a hook can load: find or compile,
//! check, set parameters, link.

mod btf;
pub(crate) mod check;
mod lines;
pub(crate) mod link;
mod params;
pub(crate) mod verifier;

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use syrup_hook::Hook;
use syrup_protocol::{
    Code, Failure, MAX_OBJECT_BYTES, MAX_SOURCE_BYTES, PolicySource, Result, names,
};
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
    /// Parameters that were set.
    pub(crate) params: BTreeMap<String, String>,
    /// What the check found.
    pub(crate) checked: Checked,
    /// What it wants of the hook ([`syrup_hook::Spec::settings`]).
    pub(crate) settings: Vec<u8>,
    /// The linked object.
    pub(crate) linked: Vec<u8>,
}

/// Prepares `policy` for `hook`.
pub(crate) fn prepare(
    hook: &dyn Hook,
    policy: &PolicySource,
    params: &[(String, String)],
) -> Result<Prepared> {
    let spec = hook.spec();
    let Found { name, file_name, source, mut object } = find(hook, policy)?;
    let checked = check::check(&file_name, &object)?;
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
    let sha256 = Sha256::digest(&object).into();
    let mut settings = Vec::new();
    if let Some(constant) = &spec.settings {
        settings = syrup_hook::constant(&object, constant.name)?.unwrap_or_default();
        (constant.check)(&settings)
            .map_err(|why| Failure::new(Code::SourceRejected, format!("{file_name}: {why}")))?;
    }
    params::set(&mut object, &checked.params, params)?;
    let linked = link::link(&object, spec.trusted_half)?;
    let params = params.iter().cloned().collect();
    Ok(Prepared { name, file_name, source, sha256, params, checked, settings, linked })
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
            let builtin =
                hook.spec().policies.iter().find(|p| p.name == name).ok_or_else(|| {
                    let known: Vec<&str> = hook.spec().policies.iter().map(|p| p.name).collect();
                    Failure::new(
                        Code::Usage,
                        format!("hook {} has no policy '{name}'", hook.spec().name),
                    )
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
mod tests {
    use super::*;

    #[test]
    fn what_a_policy_wants_of_its_hook_has_limits() {
        let with = |settings: &str| {
            let text = format!(
                "#include <syrup/thread.h>\n{settings}\n\
                 __s32 schedule(struct syrup_thread *t) {{ return t->index; }}\n"
            );
            let policy = PolicySource::Source { file_name: "p.c".to_owned(), text };
            prepare(crate::hooks::SHIPPED.get("scx-syrup").unwrap(), &policy, &[])
                .map(|p| p.settings)
        };
        let words = |words: [u32; 4]| Ok(words.map(u32::to_ne_bytes).concat());
        assert_eq!(with(""), Ok(Vec::new()));
        assert_eq!(with("SYRUP_THREAD_POLICY(.rescue_ms = 70);"), words([0, 0, 0, 70]));
        let both = with("SYRUP_THREAD_POLICY(.queues = 8, .preempt = true);");
        assert_eq!(both, words([8, 1, 0, 0]));
        let refused = |settings: &str| {
            let failure = with(settings).unwrap_err();
            assert_eq!(failure.code, Code::SourceRejected, "{failure}");
            failure.message
        };
        assert!(refused("SYRUP_THREAD_POLICY(.queues = 9);").starts_with("p.c: "));
        assert!(refused("SYRUP_THREAD_POLICY(.queues = 9);").contains(".queues = 9"));
        assert!(refused("SYRUP_THREAD_POLICY(.preempt = 2);").contains(".preempt is true"));
        for words in [3, 5] {
            let settings =
                format!("const __u32 syrup_thread_policy[{words}] __attribute__((used)) = {{1}};");
            assert!(refused(&settings).contains("has the wrong size"), "{words} words");
        }
        let bytes = "const char syrup_thread_policy[17] __attribute__((used)) = {1};";
        assert!(refused(bytes).contains("has the wrong size"));
    }
}
