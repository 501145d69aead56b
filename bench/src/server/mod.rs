//! The server: N threads, each with its own socket of one SO_REUSEPORT group.

pub mod app;
mod bare;
mod worker;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::wire::Class;
use crate::work::{Store, Work};
use crate::{priority, socket};
use app::App;
use bare::Bare;
pub use worker::{IDLE, Service};
use worker::{Served, Worker};

/// A real RocksDB server on UDP, one socket and one thread per index.
///
/// With --app it registers each thread and its socket under one index with
/// every policy that app has loaded, and writes the type of the request each
/// thread serves into the app's Map `request_type`. Load the policies first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  syrup-bench server --port 9000 --threads 6
  syrupctl load socket-select --policy scan-avoid --app rocksdb --port 9000
  syrup-bench server --port 9000 --threads 6 --app rocksdb
  syrup-bench server --port 9000 --threads 6 --service sleep --get-us 550 --scan-us 35000 --fifo 50")]
pub struct Options {
    /// UDP port on 127.0.0.1.
    #[arg(long, default_value_t = 9000)]
    pub port: u16,
    /// Server threads, each with a socket.
    #[arg(long, default_value_t = 6)]
    pub threads: u32,
    /// The app to register with, through the daemon; none: plain Linux.
    #[arg(long)]
    pub app: Option<String>,
    /// A packet program of the server's own instead of a policy: what Syrup is
    /// compared with.
    #[arg(long, value_enum, conflicts_with = "app", value_name = "POLICY")]
    pub bare: Option<bare::Program>,
    /// What serving is: RocksDB work, or (for more threads than CPUs, with
    /// dilated time) a sleep until a deadline.
    #[arg(long, value_enum, default_value_t = ServiceKind::Rocksdb)]
    pub service: ServiceKind,
    /// Folder of the database; built when it is not there.
    #[arg(long, default_value = "target/bench-db")]
    pub db: PathBuf,
    /// Keys in the database, 64 bytes each.
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: u64,
    /// CPU time of a GET: as many RocksDB GETs as take this long are done per
    /// request (0: one). With --service sleep, its length.
    #[arg(long, default_value_t = 0.0)]
    pub get_us: f64,
    /// CPU time of a SCAN: it reads as many keys as take this long (0: 5000).
    /// With --service sleep, its length.
    #[arg(long, default_value_t = 0.0)]
    pub scan_us: f64,
    /// RocksDB GETs per GET request, instead of calibrating with --get-us.
    #[arg(long, requires = "scan_keys", conflicts_with_all = ["get_us", "scan_us"])]
    pub gets: Option<u64>,
    /// Keys per SCAN request, instead of calibrating with --scan-us.
    #[arg(long, requires = "gets")]
    pub scan_keys: Option<u64>,
    /// Run on these CPUs only, such as 0,1.
    #[arg(long, value_delimiter = ',')]
    pub cpus: Option<Vec<usize>>,
    /// EEVDF's slice of the server's threads, 100 to 100000 us.
    #[arg(long)]
    pub slice_us: Option<u64>,
    /// Run the server's threads as SCHED_FIFO with this priority.
    #[arg(long, conflicts_with = "slice_us")]
    pub fifo: Option<i32>,
    /// Receive buffer of each socket, which the kernel doubles.
    #[arg(long)]
    pub rcvbuf_bytes: Option<usize>,
    /// Written once every socket is bound and everything is registered.
    #[arg(long)]
    pub ready: Option<PathBuf>,
}

/// What serving a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ServiceKind {
    /// RocksDB GETs and scans.
    Rocksdb,
    /// Sleeps to absolute deadlines.
    Sleep,
}

/// What the server prints on stdout when it ends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests served, of all classes.
    pub served: u64,
    /// GETs among them.
    pub get: u64,
    /// SCANs among them.
    pub scan: u64,
    /// Replies that the kernel refused to send.
    pub lost_replies: u64,
    /// Datagrams that were no request.
    pub malformed: u64,
    /// Mean time of the packet program in ns, where the server attached one of
    /// its own and the kernel accounted it.
    #[serde(default)]
    pub program_ns: Option<f64>,
    /// Requests served by each thread, by class.
    pub by_thread: Vec<[u64; Class::MOST]>,
}

/// Runs until SIGTERM or SIGINT, then prints what was served.
pub fn run(options: &Options) -> Result<()> {
    let stop_requested = Arc::new(AtomicBool::new(false));
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    // Before anything is calibrated, and before there are other threads.
    if let Some(cpus) = &options.cpus {
        priority::set_cpus(cpus).with_context(|| {
            let list: Vec<String> = cpus.iter().map(ToString::to_string).collect();
            format!("cannot run on CPUs {} only (--cpus)", list.join(", "))
        })?;
    }
    let service = service(options)?;
    let summary = serve(options, &service, &mut signals, &stop_requested)?;
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}

fn service(options: &Options) -> Result<Service> {
    match options.service {
        ServiceKind::Sleep => {
            ensure!(
                options.get_us > 0.0 && options.scan_us > 0.0,
                "--service sleep needs --get-us and --scan-us"
            );
            let ns = [options.get_us, options.scan_us].map(|us| (us * 1000.0) as u64);
            Ok(Service::Sleep { ns: ns.to_vec() })
        }
        ServiceKind::Rocksdb => {
            let store = Store::open(&options.db, options.keys)?;
            let work = match (options.gets, options.scan_keys) {
                (Some(gets), Some(scan_keys)) => Work { gets, scan_keys },
                _ => {
                    let cost = store.calibrate()?;
                    let work = cost.work_for(options.get_us, options.scan_us);
                    eprintln!(
                        "server: calibrated: a RocksDB GET takes {:.1} us, a scanned key {:.3} us; \
                         a GET request is {} GETs ({:.0} us), a SCAN request {} keys ({:.0} us)",
                        cost.get_ns / 1000.0,
                        cost.scan_key_ns / 1000.0,
                        work.gets,
                        cost.service_us(work, Class::GET),
                        work.scan_keys,
                        cost.service_us(work, Class::SCAN),
                    );
                    work
                }
            };
            Ok(Service::RocksDb { store, work })
        }
    }
}

fn serve(
    options: &Options,
    service: &Service,
    signals: &mut signal_hook::iterator::Signals,
    stop: &AtomicBool,
) -> Result<Summary> {
    ensure!(options.threads > 0, "--threads must be at least 1");
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, options.port);
    // All are bound before the first is registered: a request must never find
    // half a group.
    let sockets: Vec<OwnedFd> = (0..options.threads)
        .map(|_| socket::bind_shared(address, options.rcvbuf_bytes))
        .collect::<Result<_, _>>()
        .with_context(|| {
            format!("cannot bind {address}: is another server there? choose another --port")
        })?;
    let app = App::open(options.app.as_deref(), options.threads)?;
    let bare = options.bare.map(|program| Bare::attach(program, &sockets)).transpose()?;
    for (index, socket) in (0..).zip(&sockets) {
        app.register_socket(socket.as_fd(), index)?;
    }
    let served: Vec<Served> = (0..options.threads).map(|_| Served::default()).collect();
    // Threads and the one that starts them: past it, all are registered.
    let registered = Barrier::new(options.threads as usize + 1);
    let failure: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let signal_handle = signals.handle();

    std::thread::scope(|scope| {
        for ((index, socket), served) in (0..).zip(&sockets).zip(&served) {
            let (app, bare, registered, failure) = (&app, &bare, &registered, &failure);
            let signal_handle = signal_handle.clone();
            scope.spawn(move || {
                let prepared = prepare_thread(options, app, index);
                let prepared = keep_first(failure, prepared);
                registered.wait();
                if let Some(yields) = prepared {
                    let worker = Worker {
                        index,
                        socket: socket.as_fd(),
                        stop,
                        service,
                        request_type: match bare {
                            Some(bare) => bare.request_type(index),
                            None => app.request_type(index),
                        },
                        outstanding: app.outstanding(index),
                        yields,
                        served,
                    };
                    keep_first(failure, worker.run());
                }
                // The first thread that ends, ends the server.
                signal_handle.close();
            });
        }
        registered.wait();
        let failed = failure.lock().map_or(true, |failure| failure.is_some());
        if !failed {
            eprintln!("server: {} threads serve {address}; {}", options.threads, app.describe());
            if let Some(ready) = &options.ready {
                let written = std::fs::write(ready, std::process::id().to_string())
                    .with_context(|| format!("cannot write {}", ready.display()));
                keep_first(&failure, written);
            }
            let _ = signals.forever().next();
        }
        worker::stop_all(stop, &sockets);
    });
    let failure = failure.into_inner().map_err(|_| anyhow!("a server thread panicked"))?;
    failure.map_or(Ok(()), Err)?;

    let by_thread: Vec<[u64; Class::MOST]> = served
        .iter()
        .map(|served| served.by_class.each_ref().map(|class| class.load(Ordering::Relaxed)))
        .collect();
    let sum = |count: &dyn Fn(&Served) -> u64| served.iter().map(count).sum();
    Ok(Summary {
        served: by_thread.iter().flatten().sum(),
        get: by_thread.iter().map(|classes| classes[Class::GET.index()]).sum(),
        scan: by_thread.iter().map(|classes| classes[Class::SCAN.index()]).sum(),
        lost_replies: sum(&|served| served.lost_replies.load(Ordering::Relaxed)),
        malformed: sum(&|served| served.malformed.load(Ordering::Relaxed)),
        program_ns: bare.map(|bare| bare.mean_ns()).transpose()?.flatten(),
        by_thread,
    })
}

/// Keeps the first failure.
fn keep_first<T>(failure: &Mutex<Option<anyhow::Error>>, outcome: Result<T>) -> Option<T> {
    outcome
        .map_err(|error| {
            if let Ok(mut first) = failure.lock() {
                first.get_or_insert(error);
            }
        })
        .ok()
}

/// True if a thread policy schedules this thread from now on.
fn prepare_thread(options: &Options, app: &App, index: u32) -> Result<bool> {
    if let Some(priority) = options.fifo {
        priority::set_fifo(priority).context("cannot become SCHED_FIFO (--fifo needs root)")?;
    }
    if let Some(slice_us) = options.slice_us {
        priority::set_slice_us(slice_us).context("cannot set EEVDF's slice")?;
    }
    if options.service == ServiceKind::Sleep {
        priority::set_timer_slack_ns(1)?;
    }
    // Last: it may change the scheduling class.
    app.register_this_thread(index)
}
