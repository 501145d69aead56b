//! The arbiter behind a daemon's socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::value::RawValue;

use crate::call::{Arbiter, Call, Reply};
use crate::connection::{Connection, Error};
use crate::failure::Result;
use crate::varlink::{Nothing, SERVICE, ServiceInfo};

/// How long a call may take: it can wait behind loads of others, each of which
/// compiles, links and is verified; slow under software emulation.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a daemon may take to say what it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A daemon. Each call has a connection of its own: a connection costs some
/// 20 us, and no call ever meets what an earlier one left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// The daemon that listens at `path`, if one does: the first call tells.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), timeout: CALL_TIMEOUT }
    }

    /// Finds out whether a daemon answers at `path`.
    ///
    /// # Errors
    /// [`crate::Code::Unreachable`] when nobody listens there, [`crate::Code::Timeout`] when
    /// somebody does but says nothing.
    pub fn connect(path: &Path) -> Result<Self> {
        let hello = Connection::open(path).and_then(|connection| {
            let method = format!("{SERVICE}.GetInfo");
            connection.call_method::<ServiceInfo>(&method, Nothing {}, &[], HELLO_TIMEOUT)
        });
        hello?;
        Ok(Self::at(path))
    }

    /// Limits how long each call may take (120 s otherwise).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl Arbiter for Client {
    fn answer(&self, call: Call) -> Result<Reply> {
        let connection = Connection::open(&self.path)?;
        let (text, descriptors): (Box<RawValue>, _) =
            connection.call(call.method(), &call, &call.descriptors(), self.timeout)?;
        let mut reply = call
            .read_reply(text.get())
            .map_err(|e| Error::Broken(io::Error::new(io::ErrorKind::InvalidData, e)))?;
        reply.attach(descriptors);
        Ok(reply)
    }
}
