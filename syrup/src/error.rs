//! Why something was not done.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use syrup_protocol::{Code, Failure, Kind};
use syrup_sdk::CompileError;

/// Shorthand for results of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something was not done. `{}` is one line; `{:#}` adds the details and
/// what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The app has no policy that could use what was to be registered: the
    /// kernel's default goes on deciding. Often no error for the application.
    NotDeployed {
        /// The app.
        app: String,
        /// What was to be registered.
        what: Kind,
    },
    /// The policy is live, but its program's descriptor could not be had.
    NoDescriptor {
        /// The app.
        app: String,
        /// Where the policy is live.
        hook: String,
        /// Why.
        source: Box<Failure>,
    },
    /// There is no such thread, or none that is registered.
    NoThread(Failure),
    /// The daemon refused, or did not answer ([`Code::Unreachable`], [`Code::Timeout`]).
    Daemon(Failure),
    /// The policy's C file did not compile.
    Compile(CompileError),
    /// A file could not be read.
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What was to be registered as a socket is no open descriptor.
    Socket(io::Error),
    /// A Map could not be opened, read, written or mapped.
    Map {
        /// What was being done, with the Map's name or path.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The request makes no sense.
    Usage(String),
}

impl Error {
    /// The kind of failure, as the exit codes of `syrupctl` have it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotDeployed { .. } | Self::NoThread(_) => Code::NotFound,
            Self::NoDescriptor { source, .. } => source.code,
            Self::Daemon(failure) => failure.code,
            Self::Compile(CompileError::NoCompiler { .. }) => Code::Unsupported,
            Self::Compile(CompileError::Rejected { .. }) => Code::SourceRejected,
            Self::Compile(CompileError::TimedOut { .. }) => Code::Timeout,
            Self::Compile(_) => Code::Internal,
            Self::File { .. } | Self::Socket(_) | Self::Usage(_) => Code::Usage,
            Self::Map { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Code::NotPermitted,
                io::ErrorKind::NotFound => Code::NotFound,
                _ => Code::Internal,
            },
        }
    }

    /// Longer text for people: compiler diagnostics, the verifier's words.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::NoDescriptor { source, .. } => source.detail.as_deref(),
            Self::Daemon(failure) | Self::NoThread(failure) => failure.detail.as_deref(),
            _ => None,
        }
    }

    /// What to do.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        match self {
            Self::Daemon(failure) | Self::NoThread(failure) => failure.advice.as_deref(),
            Self::NotDeployed { .. } => {
                Some("deploy a policy first: syr_deploy_policy(), or 'syrupctl load'")
            }
            Self::NoDescriptor { .. } => {
                Some("the policy decides; deploying it again replaces it and gives a descriptor")
            }
            _ => None,
        }
    }

    /// The errno that says it best; what the C functions return, negative.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::NotDeployed { .. } => Errno::NOENT,
            Self::NoThread(_) => Errno::SRCH,
            // Whatever the reason: that the policy is live is what matters.
            Self::NoDescriptor { .. } => Errno::ALREADY,
            Self::File { source, .. } | Self::Socket(source) | Self::Map { source, .. } => {
                return source.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            }
            _ => match self.code() {
                Code::Usage => Errno::INVAL,
                Code::SourceRejected => Errno::NOEXEC,
                Code::VerifierRejected => Errno::ACCESS,
                Code::NotPermitted => Errno::PERM,
                Code::Unsupported => Errno::OPNOTSUPP,
                Code::Conflict => Errno::BUSY,
                Code::NotFound => Errno::NOENT,
                Code::Unreachable => Errno::CONNREFUSED,
                Code::Timeout => Errno::TIMEDOUT,
                _ => Errno::IO,
            },
        };
        errno.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDeployed { app, what } => {
                write!(f, "app '{app}' has no policy deployed for its {what}s")?;
            }
            Self::NoDescriptor { app, hook, source } => write!(
                f,
                "the policy of app '{app}' is live at {hook}, but its program cannot be opened: {source}"
            )?,
            Self::Daemon(Failure { message, .. })
            | Self::NoThread(Failure { message, .. })
            | Self::Usage(message) => f.write_str(message)?,
            Self::Compile(error) => write!(f, "the policy does not compile: {error}")?,
            Self::File { path, source } => write!(f, "cannot read {}: {source}", path.display())?,
            Self::Socket(source) => write!(f, "cannot register the socket: {source}")?,
            Self::Map { what, source } => write!(f, "cannot {what}: {source}")?,
        }
        if f.alternate() {
            for more in [self.detail(), self.advice()].into_iter().flatten() {
                write!(f, "\n{more}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Compile(source) => Some(source),
            Self::NoDescriptor { source, .. } => Some(source),
            Self::File { source, .. } | Self::Socket(source) | Self::Map { source, .. } => {
                Some(source)
            }
            _ => None,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Daemon(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_form_has_everything_and_the_short_one_one_line() {
        let failure = Failure::new(Code::SourceRejected, "p.c does not compile");
        let error = Error::Daemon(failure.detail("p.c:3:1: error").advise("mend it"));
        assert_eq!(error.to_string(), "p.c does not compile");
        assert_eq!(format!("{error:#}"), "p.c does not compile\np.c:3:1: error\nmend it");
    }

    #[test]
    fn each_kind_of_failure_has_an_errno_of_its_own() {
        let not_deployed = Error::NotDeployed { app: "a".to_owned(), what: Kind::Thread };
        let kinds = [Code::Usage, Code::NotPermitted, Code::Conflict, Code::Unreachable];
        let mut errnos: Vec<i32> = kinds
            .map(|code| Error::Daemon(Failure::new(code, "")))
            .iter()
            .chain([&not_deployed])
            .map(Error::errno)
            .collect();
        errnos.sort_unstable();
        errnos.dedup();
        assert_eq!(errnos.len(), 5);
    }
}
