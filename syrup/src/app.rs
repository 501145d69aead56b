//! The app a process belongs to, and what it asks of the daemon.

use std::env;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use syrup_protocol::names::app_name_of;
use syrup_protocol::{
    Arbiter as _, Client, Code, DEFAULT_SOCKET, Facts, Failure, Kind, LoadRequest, PolicySource,
    Registration,
};
use syrup_sdk::Compiler;

use crate::error::{Error, Result};

const DEFAULT_BPFFS: &str = "/sys/fs/bpf/syrup";

/// A tenant, as one of its processes sees it: its name, and where its daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    name: String,
    daemon: Client,
    bpffs: PathBuf,
}

/// A policy that is live at a hook. Dropping it leaves the policy there.
#[derive(Debug)]
pub struct Deployment {
    hook: String,
    program: OwnedFd,
}

impl Deployment {
    /// Where it is live.
    #[must_use]
    pub fn hook(&self) -> &str {
        &self.hook
    }
}

/// The policy's program, as the kernel has it: good for its id and statistics.
impl AsFd for Deployment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

impl From<Deployment> for OwnedFd {
    fn from(deployment: Deployment) -> Self {
        deployment.program
    }
}

impl App {
    /// The app of this process: `$SYRUP_APP`, or the name of the executable in
    /// lower case, with other characters than a-z, 0-9 and '-' made '-'.
    #[must_use]
    pub fn current() -> Self {
        let name = env::var("SYRUP_APP").unwrap_or_else(|_| {
            let executable = env::current_exe().unwrap_or_default();
            app_name_of(&executable.file_name().unwrap_or_default().to_string_lossy())
        });
        Self::named(name)
    }

    /// An app by its name.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        let path = |variable, otherwise: &str| {
            env::var_os(variable).map_or_else(|| otherwise.into(), PathBuf::from)
        };
        Self {
            name: name.into(),
            daemon: Client::at(path("SYRUP_SOCKET", DEFAULT_SOCKET)),
            bpffs: path("SYRUP_BPFFS", DEFAULT_BPFFS),
        }
    }

    /// The same app at another daemon.
    #[must_use]
    pub fn at_socket(mut self, socket: impl Into<PathBuf>) -> Self {
        self.daemon = Client::at(socket);
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the Map `name` is pinned.
    pub(crate) fn map_pin(&self, name: &str) -> PathBuf {
        self.bpffs.join(&self.name).join("maps").join(name)
    }

    /// Makes a policy live at `hook`: a C file (`.c`), a compiled policy (`.o`),
    /// or the name of one that ships with the hook. A policy that the app has
    /// there already is replaced, atomically. It stays until it is unloaded,
    /// also when this process ends.
    ///
    /// C files of ordinary users are compiled here, with clang; root's by the daemon.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Compile`], and what the daemon refuses; nothing
    /// was changed then. [`Error::NoDescriptor`] when the policy is live and stays.
    pub fn deploy_policy(&self, policy: impl AsRef<Path>, hook: &str) -> Result<Deployment> {
        self.deploy_policy_with(policy, hook, &[])
    }

    /// The same with other values for some of the policy's parameters (`SYRUP_PARAM`), by
    /// name: numbers in decimal or, after `0x`, hexadecimal, `true`, `false`. Those that are not named
    /// have the policy's own values, also where it replaces one that had others.
    ///
    /// # Errors
    /// As [`App::deploy_policy`].
    pub fn deploy_policy_with(
        &self,
        policy: impl AsRef<Path>,
        hook: &str,
        params: &[(&str, &str)],
    ) -> Result<Deployment> {
        let policy = source(policy.as_ref())?;
        let param = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let request = LoadRequest {
            hook: hook.to_owned(),
            app: self.name.clone(),
            policy,
            params: params.iter().map(param).collect(),
            target: Facts::new(),
            or_replace: true,
            owner: None,
        };
        self.daemon.load(&request)?;
        let program =
            self.daemon.policy_open(&self.name, hook).map_err(|failure| Error::NoDescriptor {
                app: self.name.clone(),
                hook: hook.to_owned(),
                source: failure.into(),
            })?;
        Ok(Deployment { hook: hook.to_owned(), program })
    }

    /// Takes the app's policy at `hook` away: its inputs get the kernel's default again. With
    /// the app's last policy its Maps go; memory that is mapped stays, and nobody writes it.
    ///
    /// # Errors
    /// [`Code::NotFound`] when the app has none there.
    pub fn unload(&self, hook: &str) -> Result<()> {
        Ok(self.daemon.unload(hook, &self.name)?)
    }

    /// Makes a bound socket an executor of the app's packet policies. All
    /// sockets of an app's deployment are of one reuseport group. `index` `None`
    /// keeps the one it has, else takes the next free one; taking one that is in
    /// use replaces it.
    ///
    /// # Errors
    /// [`Error::NotDeployed`] while the app has no packet policy.
    pub fn register_socket(&self, socket: impl AsFd, index: Option<u32>) -> Result<u32> {
        let socket = socket.as_fd().try_clone_to_owned().map_err(Error::Socket)?;
        self.register(Registration::Socket(socket), index)
    }

    /// Hands a thread to the app's thread policy. `tid` 0 is the calling
    /// thread. `index` is how the policy knows it; `None` keeps the
    /// one it has, else takes the next free one.
    ///
    /// # Errors
    /// [`Error::NotDeployed`] while the app has no thread policy.
    pub fn register_thread(&self, tid: i32, index: Option<u32>) -> Result<u32> {
        self.register(thread(tid), index)
    }

    /// Lets go of a socket that was registered: no verdict reaches it any more, and its index
    /// is free. It stays in its reuseport group, where the kernel's hash may choose it for what
    /// the policy passes, until it is closed.
    ///
    /// # Errors
    /// [`Code::NotFound`] when it is not registered; [`Error::NotDeployed`].
    pub fn unregister_socket(&self, socket: impl AsFd) -> Result<()> {
        let socket = socket.as_fd().try_clone_to_owned().map_err(Error::Socket)?;
        self.unregister(Registration::Socket(socket))
    }

    /// Gives a thread back to the kernel's default scheduler; its index is free. `tid` 0 is
    /// the calling thread.
    ///
    /// # Errors
    /// [`Error::NoThread`] when it is not registered; [`Error::NotDeployed`].
    pub fn unregister_thread(&self, tid: i32) -> Result<()> {
        self.unregister(thread(tid))
    }

    fn register(&self, what: Registration, index: Option<u32>) -> Result<u32> {
        let kind = what.kind();
        let index = self.daemon.register(&self.name, None, what, index);
        index.map_err(|failure| self.why_not(kind, failure))
    }

    fn unregister(&self, what: Registration) -> Result<()> {
        let kind = what.kind();
        let gone = self.daemon.unregister(&self.name, None, what);
        gone.map_err(|failure| self.why_not(kind, failure))
    }

    fn why_not(&self, kind: Kind, failure: Failure) -> Error {
        match (failure.code, self.registers(kind)) {
            (Code::NotFound, Ok(false)) => {
                Error::NotDeployed { app: self.name.clone(), what: kind }
            }
            (Code::NotFound, Ok(true)) if kind == Kind::Thread => Error::NoThread(failure),
            _ => failure.into(),
        }
    }

    /// Whether the app has a policy that takes such a thing.
    fn registers(&self, kind: Kind) -> Result<bool> {
        let used = self.hooks_in_use()?;
        let hooks = self.daemon.hooks()?;
        Ok(hooks.iter().any(|hook| hook.registers == kind && used.contains(&hook.name)))
    }

    /// A Map's descriptor from the daemon.
    pub(crate) fn map_descriptor(&self, map: &str) -> Result<OwnedFd> {
        Ok(self.daemon.map_open(&self.name, map)?)
    }

    /// The hooks at which the app has a policy.
    fn hooks_in_use(&self) -> Result<Vec<String>> {
        match self.daemon.show(&self.name) {
            Ok(app) => Ok(app.deployments.into_iter().map(|one| one.hook).collect()),
            // There is no such app: it is there while it has a deployment.
            Err(failure) if failure.code == Code::NotFound => Ok(Vec::new()),
            Err(failure) => Err(failure.into()),
        }
    }
}

fn thread(tid: i32) -> Registration {
    match tid {
        0 => Registration::Thread { tid: rustix::thread::gettid().as_raw_nonzero().get() },
        tid => Registration::Thread { tid },
    }
}

/// What the daemon gets for a policy's path or name.
fn source(policy: &Path) -> Result<PolicySource> {
    let file = |source| Error::File { path: policy.to_owned(), source };
    let file_name = policy.display().to_string();
    match policy.extension().and_then(|extension| extension.to_str()) {
        Some("c") => {
            let text = fs::read_to_string(policy).map_err(file)?;
            if rustix::process::geteuid().is_root() {
                return Ok(PolicySource::Source { file_name, text });
            }
            // A compiler reads whatever its user may read, so the daemon's
            // would leak files to users; ours reads nothing that is not ours.
            let compiled = Compiler::find()
                .and_then(|clang| clang.compile(&file_name, &text))
                .map_err(Error::Compile)?;
            Ok(PolicySource::Object { file_name, image: compiled.object })
        }
        Some("o") => Ok(PolicySource::Object { image: fs::read(policy).map_err(file)?, file_name }),
        None if !file_name.contains('/') && !file_name.is_empty() => {
            Ok(PolicySource::Builtin { name: file_name })
        }
        _ => Err(Error::Usage(format!(
            "'{file_name}' is no policy: give a C file (.c), a compiled policy (.o), or the name of \
             one that ships with the hook"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_a_file_by_its_ending_and_a_name_without() {
        assert_eq!(
            source(Path::new("round-robin")).unwrap(),
            PolicySource::Builtin { name: "round-robin".to_owned() }
        );
        for wrong in ["", "policy.txt", "/no/ending"] {
            assert!(matches!(source(Path::new(wrong)), Err(Error::Usage(_))), "{wrong}");
        }
        assert!(matches!(source(Path::new("/nowhere/p.c")), Err(Error::File { .. })));
    }

    #[test]
    fn without_a_daemon_it_says_where_it_looked() {
        let app = App::named("a").at_socket("/nowhere/s");
        let error = app.register_thread(0, None).unwrap_err();
        assert_eq!(error.code(), Code::Unreachable);
        assert!(error.to_string().contains("/nowhere/s"), "{error}");
    }
}
