//! The daemon `syrupd`: the arbiter behind a Unix socket.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use syrup_engine::{DEFAULT_BPFFS, Engine};
use syrup_protocol::{Code, DEFAULT_SOCKET, Failure};
use syrupd::group::{self, DEFAULT_GROUP};
use syrupd::{Config, DEFAULT_CONFIG, Daemon};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// How often the kernel is asked whether what is deployed may be behind what it is for. New
/// sockets of a server join within twice this time.
const FOLLOW: Duration = Duration::from_millis(400);
/// How long a stop waits for such a look.
const LOOK_ENDS: Duration = Duration::from_secs(5);
const EXAMPLES: &str = "\
Examples:
  syrupd                                    serve this machine (as root)
  syrupd --socket /tmp/s --bpffs /sys/fs/bpf/mine
                                            a private arbiter beside it
  RUST_LOG=debug syrupd                     say more on stderr

What is deployed stays when the daemon stops; the next one finds it.
Exit codes: 0 stopped, 1 internal, 2 usage or configuration, 5 not permitted,
6 the kernel lacks something, 7 another daemon answers there.";

/// The arbiter of user-defined scheduling: takes policies from applications and
/// from syrupctl, checks them, and keeps them at their hooks.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Args {
    /// Where to listen
    #[arg(long, value_name = "PATH", help = format!("Where to listen [default: {DEFAULT_SOCKET}]"))]
    socket: Option<PathBuf>,
    /// Where to pin
    #[arg(long, value_name = "FOLDER",
          help = format!("Where to pin, in a BPF file system [default: {DEFAULT_BPFFS}]"))]
    bpffs: Option<PathBuf>,
    /// Whose users may ask
    #[arg(long, value_name = "GROUP",
          help = format!("The group whose users may ask, by name or number \
                          [default: {DEFAULT_GROUP}, if there; else root alone may]"))]
    group: Option<String>,
    /// Settings
    #[arg(long, value_name = "FILE",
          help = format!("Settings; flags win over it [default: {DEFAULT_CONFIG}, if there]"))]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("syrupd: {error}");
            if let Some(detail) = &error.detail {
                eprintln!("{detail}");
            }
            if let Some(advice) = &error.advice {
                eprintln!("help: {advice}");
            }
            ExitCode::from(error.code.exit_code())
        }
    }
}

fn run(args: Args) -> syrup_protocol::Result<()> {
    let config = Config::read(args.config.as_deref())?;
    let filter = config.log.as_deref().unwrap_or("info");
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter)).init();
    let socket = args.socket.or(config.socket).unwrap_or_else(|| DEFAULT_SOCKET.into());
    let bpffs = args.bpffs.or(config.bpffs).unwrap_or_else(|| DEFAULT_BPFFS.into());
    let group = group::of_users(args.group.or(config.group).as_deref())?;

    // Everybody's connections are open beside the sockets of servers.
    if let Err(e) = syrup_engine::raise_descriptor_limit() {
        log::warn!("cannot raise the number of open files: {e}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Code::Internal, format!("cannot start: {e}")))?;
    let served = runtime.block_on(serve(socket, bpffs, group));
    // A call that outlived its time must not keep the process.
    runtime.shutdown_background();
    served
}

async fn serve(socket: PathBuf, bpffs: PathBuf, group: Option<u32>) -> syrup_protocol::Result<()> {
    // Signals first: one that comes from here on stops the daemon cleanly.
    let handler = |kind: SignalKind| {
        signal(kind).map_err(|e| Failure::new(Code::Internal, format!("cannot take signals: {e}")))
    };
    let (mut terminate, mut interrupt) =
        (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);

    let engine = Engine::new(bpffs.clone())?;
    // Before anything is touched below `bpffs`: is this the only daemon here?
    let daemon = Daemon::bind(&socket, group)?;
    let found = engine.recover()?;
    for deployment in &found.adopted {
        log::info!(
            "adopted {} of app {} at {}: {}",
            deployment.policy,
            deployment.app,
            deployment.hook,
            deployment.health.reason().unwrap_or(deployment.health.state()),
        );
    }
    for path in &found.removed {
        log::info!("removed a leftover: {}", path.display());
    }
    log::info!("listening at {}, pins below {}", socket.display(), bpffs.display());
    notify("READY=1");
    let engine = Arc::new(engine);
    let stop = Arc::new(Notify::new());
    let looking = tokio::spawn(look_after(Arc::clone(&engine), Arc::clone(&stop)));
    daemon
        .serve(engine, async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            log::info!("stopping; what is deployed stays");
            notify("STOPPING=1");
        })
        .await;
    stop.notify_one();
    if tokio::time::timeout(LOOK_ENDS, looking).await.is_err() {
        log::warn!("stopping although a look at the deployments is in progress");
    }
    Ok(())
}

/// Keeps deployments up to date with the servers they are for, one look after the other; a
/// look that has begun is finished.
async fn look_after(engine: Arc<Engine>, stop: Arc<Notify>) {
    // Attaching programs takes its time, in which calls are to be answered.
    let watched = Arc::clone(&engine);
    let Ok(mut watch) = tokio::task::spawn_blocking(move || watched.watch()).await else {
        return log::error!("the deployments are not looked after: the watch over them failed");
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(FOLLOW) => {}
            () = stop.notified() => {
                // To detach takes longer than to end, and the kernel does it then.
                std::mem::forget(watch);
                return;
            }
        }
        if !watch.has_news() {
            continue;
        }
        let engine = Arc::clone(&engine);
        match tokio::task::spawn_blocking(move || engine.follow()).await {
            Ok(Ok(changed)) => {
                for (app, hook) in changed {
                    log::info!("app {app} at {hook}: brought up to date");
                }
            }
            Ok(Err(e)) => {
                log::warn!("{e}");
                watch.again();
            }
            Err(e) => log::warn!("a look at the deployments ended early: {e}"),
        }
    }
}

/// Tells the service manager, if there is one (sd_notify(3)).
fn notify(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(e) = sent {
        log::warn!("cannot notify the service manager: {e}");
    }
}
