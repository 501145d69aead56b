//! The server as an app of Syrup: registers its sockets and threads, and
//! shares the type of the request that each thread serves.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use syrup::{Code, Error, MappedMap};

/// Name of the Map that policies read the request types from.
pub const REQUEST_TYPE: &str = "request_type";
/// Name of the Map in which policies count what each thread has to do.
const LOAD: &str = "load";

/// The app, or none: then every method does nothing.
pub struct App {
    app: Option<syrup::App>,
    types: Types,
    /// Requests outstanding by thread; none where no policy counts them.
    load: Option<MappedMap>,
    sockets: AtomicBool,
    threads: AtomicBool,
}

/// One entry per thread: what it serves.
enum Types {
    /// No policy of the app has the Map: nobody else reads them.
    Private(Vec<AtomicU64>),
    Shared(MappedMap),
}

impl App {
    /// Opens what the app `name` shares. Policies that do not use
    /// [`REQUEST_TYPE`] are served as well.
    pub fn open(name: Option<&str>, threads: u32) -> Result<Self> {
        let app = name.map(syrup::App::named);
        let open = |name: &str| match app.as_ref().map(|app| app.open_map(name)) {
            None => Ok(None),
            Some(Ok(map)) => {
                ensure!(
                    map.entries() >= threads && map.value_bytes() == 8,
                    "the Map {name} has {} entries of {} bytes, but the server needs one of 8 \
                     bytes for each of its {threads} threads",
                    map.entries(),
                    map.value_bytes()
                );
                Ok(Some(map.mmap().with_context(|| format!("cannot map {name} into memory"))?))
            }
            Some(Err(error)) if error.code() == Code::NotFound => Ok(None),
            Some(Err(error)) => Err(explained(error, &format!("cannot open the Map {name}"))),
        };
        let types = match open(REQUEST_TYPE)? {
            None => Types::Private((0..threads).map(|_| AtomicU64::new(0)).collect()),
            Some(map) => Types::Shared(map),
        };
        let load = open(LOAD)?;
        let app = Self {
            app,
            types,
            load,
            sockets: AtomicBool::new(false),
            threads: AtomicBool::new(false),
        };
        // A server before this one may have left its marks.
        for index in 0..threads {
            app.request_type(index).store(super::IDLE, Ordering::Release);
        }
        Ok(app)
    }

    /// The entry of thread `index`.
    #[must_use]
    pub fn request_type(&self, index: u32) -> &AtomicU64 {
        match &self.types {
            Types::Private(entries) => &entries[index as usize],
            Types::Shared(map) => &map[index as usize],
        }
    }

    /// Where the requests that thread `index` has to do are counted: it counts
    /// down.
    #[must_use]
    pub fn outstanding(&self, index: u32) -> Option<&AtomicU64> {
        self.load.as_ref().map(|load| &load[index as usize])
    }

    /// Registers a socket; false when the app has no packet policy.
    pub fn register_socket(&self, socket: BorrowedFd<'_>, index: u32) -> Result<bool> {
        let Some(app) = &self.app else { return Ok(false) };
        let registered = registered(app.register_socket(socket, Some(index)), "a socket")?;
        self.sockets.fetch_or(registered, Ordering::Relaxed);
        Ok(registered)
    }

    /// Registers the calling thread; false when the app has no thread policy.
    pub fn register_this_thread(&self, index: u32) -> Result<bool> {
        let Some(app) = &self.app else { return Ok(false) };
        let registered = registered(app.register_thread(0, Some(index)), "a thread")?;
        self.threads.fetch_or(registered, Ordering::Relaxed);
        Ok(registered)
    }

    /// What is registered where.
    #[must_use]
    pub fn describe(&self) -> String {
        let Some(app) = &self.app else { return "no app".to_owned() };
        let yes = |registered: &AtomicBool| match registered.load(Ordering::Relaxed) {
            true => "registered",
            false => "not registered (no policy)",
        };
        format!(
            "app {}: sockets {}, threads {}, request types {}",
            app.name(),
            yes(&self.sockets),
            yes(&self.threads),
            match self.types {
                Types::Private(_) => "not shared (no policy has the Map)",
                Types::Shared(_) => "shared",
            }
        )
    }
}

fn registered(outcome: Result<u32, Error>, what: &str) -> Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(Error::NotDeployed { .. }) => Ok(false),
        Err(error) => Err(explained(error, &format!("cannot register {what}"))),
    }
}

/// With the daemon's details and advice, which `{:#}` alone prints.
fn explained(error: Error, what: &str) -> anyhow::Error {
    anyhow::anyhow!("{what}: {error:#}")
}
