//! What `--policy` names: a policy that ships with the hook, or a file.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use syrup_protocol::{Code, Failure, MAX_OBJECT_BYTES, PolicyInfo, PolicySource, Result};

use crate::args::HookArg;
use crate::backend::{Backend, Place, is_root};

/// `NAME|FILE.c|FILE.o`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyArg {
    /// A name.
    Name(String),
    /// A path: it has a '/' or ends in `.c` or `.o`.
    File(PathBuf),
}

impl FromStr for PolicyArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let is_path = text.contains('/') || text.ends_with(".c") || text.ends_with(".o");
        Ok(if is_path { Self::File(text.into()) } else { Self::Name(text.to_owned()) })
    }
}

impl PolicyArg {
    /// The policy as the arbiter takes it. Names are not looked up yet, so
    /// that a missing file is told before anything else happens.
    pub fn read(&self) -> Result<PolicySource> {
        match self {
            Self::Name(name) => Ok(PolicySource::Builtin { name: name.clone() }),
            Self::File(path) => read_file(path),
        }
    }
}

fn read_file(path: &Path) -> Result<PolicySource> {
    // One that never ends, or waits for a writer, is told before it is opened.
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let message = format!("{} is no regular file", path.display());
        return Err(Failure::new(Code::Usage, message).advise("give a policy's C file or object"));
    }
    let size = fs::metadata(path).map_or(0, |there| there.len());
    if size > MAX_OBJECT_BYTES as u64 {
        let message = format!("{}: {size} bytes, the limit is {MAX_OBJECT_BYTES}", path.display());
        return Err(Failure::new(Code::SourceRejected, message));
    }
    let image = fs::read(path).map_err(|e| {
        Failure::new(Code::Usage, format!("cannot read the policy {}: {e}", path.display())).advise(
            "give a policy's C file, its compiled object, or a name that 'syrupctl policies' lists",
        )
    })?;
    let file_name = path.display().to_string();
    if image.starts_with(b"\x7fELF") || path.extension().is_some_and(|extension| extension == "o") {
        return Ok(PolicySource::Object { file_name, image });
    }
    match String::from_utf8(image) {
        Ok(text) => Ok(PolicySource::Source { file_name, text }),
        Err(_) => Err(Failure::new(
            Code::SourceRejected,
            format!("{file_name} is neither text nor an object"),
        )
        .advise("a policy's C file is UTF-8 text")),
    }
}

/// The policy as this arbiter takes it. Refuses a name that is no policy of
/// this hook, with the names that are.
pub fn resolve(arbiter: &Backend, policy: PolicySource, hook: HookArg) -> Result<PolicySource> {
    match &policy {
        PolicySource::Builtin { name } => find(name, hook, &arbiter.policies()?)?,
        // The daemon compiles for root only.
        PolicySource::Source { file_name, text }
            if !is_root() && matches!(arbiter.place, Place::Daemon(_)) =>
        {
            let image = syrup_engine::compile(file_name, text)?;
            return Ok(PolicySource::Object { file_name: file_name.clone(), image });
        }
        PolicySource::Source { .. } | PolicySource::Object { .. } => {}
    }
    Ok(policy)
}

fn find(name: &str, hook: HookArg, policies: &[PolicyInfo]) -> Result<()> {
    let fits = |policy: &PolicyInfo| policy.hooks.iter().any(|known| known == hook.name);
    if policies.iter().any(|policy| policy.name == name && fits(policy)) {
        return Ok(());
    }
    let known: Vec<&str> =
        policies.iter().filter(|policy| fits(policy)).map(|policy| policy.name.as_str()).collect();
    if let Some(elsewhere) = policies.iter().find(|policy| policy.name == name) {
        let hooks = elsewhere.hooks.join(", ");
        let message = format!("policy '{name}' is for {hooks}, not for {hook}");
        return Err(Failure::new(Code::Usage, message)
            .advise(format!("policies for {hook}: {}", known.join(", "))));
    }
    let message = format!("there is no policy '{name}' at {hook}");
    let mut advice = format!("policies for {hook}: {}", known.join(", "));
    let file = format!("{name}.c");
    if let Some(close) = closest(name, &known) {
        advice = format!("did you mean '{close}'? {advice}");
    } else if Path::new(&file).is_file() {
        advice = format!("for your own policy write the file's name, {file}; {advice}");
    }
    Err(Failure::new(Code::Usage, message).advise(advice))
}

/// The known name that was probably meant.
pub fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|&candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(name: &str) -> HookArg {
        crate::args::hook(name).unwrap()
    }

    fn policy(name: &str, hook: HookArg) -> PolicyInfo {
        PolicyInfo {
            name: name.to_owned(),
            input: syrup_hook::Input::Packet.into(),
            hooks: vec![hook.name.to_owned()],
            summary: String::new(),
        }
    }

    #[test]
    fn a_slash_or_a_suffix_makes_it_a_file() {
        for file in ["./p", "dir/p", "p.c", "p.o"] {
            assert_eq!(file.parse(), Ok(PolicyArg::File(file.into())));
        }
        assert_eq!("scan-avoid".parse(), Ok(PolicyArg::Name("scan-avoid".to_owned())));
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_likely_one_and_the_list() {
        let policies =
            [policy("scan-avoid", hook("socket-select")), policy("hash", hook("socket-select"))];
        assert_eq!(find("hash", hook("socket-select"), &policies), Ok(()));
        let error = find("scan-avod", hook("socket-select"), &policies).unwrap_err();
        assert_eq!(error.code, Code::Usage);
        let advice = error.advice.unwrap();
        assert!(advice.contains("did you mean 'scan-avoid'?"), "{advice}");
        assert!(advice.contains("scan-avoid, hash"), "{advice}");
        let advice = find("zzz", hook("socket-select"), &policies).unwrap_err().advice.unwrap();
        assert!(!advice.contains("did you mean"), "{advice}");
    }

    #[test]
    fn a_policy_of_another_hook_is_told_apart_from_an_unknown_one() {
        let policies = [policy("fifo", hook("scx-syrup")), policy("hash", hook("socket-select"))];
        let error = find("fifo", hook("socket-select"), &policies).unwrap_err();
        assert_eq!(error.message, "policy 'fifo' is for scx-syrup, not for socket-select");
    }

    #[test]
    fn objects_are_known_by_their_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.bin");
        fs::write(&path, b"\x7fELF....").unwrap();
        assert!(matches!(read_file(&path), Ok(PolicySource::Object { .. })));
        fs::write(&path, b"int x;").unwrap();
        assert!(matches!(read_file(&path), Ok(PolicySource::Source { .. })));
        fs::write(&path, b"\xff\xfe").unwrap();
        assert_eq!(read_file(&path).unwrap_err().code, Code::SourceRejected);
        let error = read_file(&dir.path().join("absent.c")).unwrap_err();
        assert_eq!(error.code, Code::Usage);
        assert!(error.message.contains("No such file"), "{error}");
    }
}
