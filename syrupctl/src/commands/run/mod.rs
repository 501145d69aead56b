//! `syrupctl run`: an application and its policies, for as long as it runs.
//!
//! * [`child`]: the command, the signals it gets, its end.
//! * [`tree`]: the sockets and threads of the command and what it started.
//!
//! The policies are found and checked before the command starts, so that a
//! faulty one stops nothing; they are loaded after it, because what they
//! schedule, its sockets and threads, must exist.

mod child;
mod tree;

use std::ffi::OsString;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use syrup_engine::Engine;
use syrup_hook::{Kind, Who};
use syrup_protocol::{
    Arbiter, Code, Deployment, Failure, LoadRequest, PolicySource, Registration, Result,
};

use self::child::{Child, Signals};
use self::tree::BoundSocket;
use crate::args::{self, BUT_PROCESS, DEFAULT_APP, HookArg, Target, app_name, assignment, user};
use crate::backend::{Backend, Place, is_root};
use crate::context::Context;
use crate::policy::{self, PolicyArg};
use crate::{deployment, report};

const EXAMPLES: &str = "\
Examples:
  syrupctl run --load socket-select=round-robin --port 7000 -- ./server --threads 6
      Start the server, spread its datagrams over its sockets, and end both together.

  syrupctl run --app rocksdb --load socket-select=scan-avoid --load scx-syrup=get-priority \\
               --port 7000 --cpus 0-3 -- ./rocksdb-server
      A policy for its packets and one for its threads; both share its Maps.

  syrupctl run --load socket-select=./mine.c --set LIMIT=8 --port 7000 -- ./server
      Your own policy with a parameter. With several --load: --set socket-select:LIMIT=8.

The command runs with SYRUP_APP in its environment, and SYRUP_SOCKET or SYRUP_BPFFS, so that the
application library finds its app. The exit code is the command's (128 + N after signal N), or
that of 'load' when a policy could not be loaded; then the command is stopped.";

/// How long sockets must stay the same before they are taken for complete.
const SETTLED: Duration = Duration::from_millis(200);
/// How often a starting command is looked at.
const STARTING: Duration = Duration::from_millis(20);
/// How often a running one is.
const RUNNING: Duration = Duration::from_secs(1);

/// Run a command under policies, and unload them when it ends
///
/// Adopts the threads of the command, and its sockets as soon as they are bound. SIGINT and
/// SIGTERM are passed on to the command.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Run {
    /// A hook and the policy to load there; may be repeated with other hooks
    #[arg(long = "load", required = true, value_name = "HOOK=POLICY")]
    loads: Vec<HookPolicy>,

    /// The app
    #[arg(long, default_value = DEFAULT_APP, value_parser = app_name)]
    app: String,

    /// The user whose app it is, by name or number; only root may say. The command runs as
    /// whoever runs this [default: the same]
    #[arg(long, value_name = "USER", value_parser = user)]
    user: Option<u32>,

    #[command(flatten)]
    target: Target<BUT_PROCESS>,

    /// Change a parameter (SYRUP_PARAM) of a policy; may be repeated
    #[arg(long = "set", value_name = "[HOOK:]NAME=VALUE", value_parser = assignment)]
    params: Vec<(String, String)>,

    /// Seconds the command gets to bind its port
    #[arg(long, default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(..=86_400))]
    wait: u64,

    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// `HOOK=POLICY`
#[derive(Debug, Clone)]
struct HookPolicy {
    hook: HookArg,
    policy: PolicyArg,
}

impl FromStr for HookPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((hook, policy)) = text.split_once('=') else {
            return Err("write HOOK=POLICY".to_owned());
        };
        let hook = args::hook(hook)?;
        if policy.is_empty() {
            return Err("write HOOK=POLICY".to_owned());
        }
        let Ok(policy) = policy.parse();
        Ok(Self { hook, policy })
    }
}

impl Run {
    pub fn run(self, context: &Context) -> Result<u8> {
        self.check_hooks()?;
        let params = params_by_hook(&self.params, &self.loads)?;
        let mut files = vec![];
        for load in &self.loads {
            files.push((load.hook, load.policy.read()?));
        }
        let arbiter = context.arbiter()?;
        let mut requests = vec![];
        for (hook, policy) in files {
            let policy = policy::resolve(&arbiter, policy, hook)?;
            let params = params.iter().filter(|(of, _)| *of == hook).map(|(_, p)| p.clone());
            let params: Vec<(String, String)> = params.collect();
            try_out(&arbiter, &policy, hook, &params)?;
            requests.push((hook, self.request(hook, policy, params)));
        }
        // Threads first: what the command starts from then on is scheduled from its start.
        requests.sort_by_key(|(hook, _)| needs_port(hook));

        let signals = Signals::listen()?;
        let mut environment = vec![("SYRUP_APP", OsString::from(&self.app))];
        environment.push(match &arbiter.place {
            Place::Daemon(socket) => ("SYRUP_SOCKET", socket.clone().into()),
            Place::InProcess(bpffs) => ("SYRUP_BPFFS", bpffs.clone().into()),
        });
        let child = Child::start(&self.command, &environment, signals)?;
        // Declared after the child, so dropped before it: policies go first,
        // also when a later step fails.
        let mut loaded = Loaded { context, app: &self.app, hooks: vec![] };
        let mut watch = Watch::default();
        for (hook, request) in requests {
            if !self.adopt(&*arbiter, hook, request, &child, &mut watch, &mut loaded)? {
                report::warning(
                    &format!("the command ended before it bound its port: no policy at {hook}"),
                    Some("a server that goes to the background needs its foreground option"),
                );
                break;
            }
        }
        let mut changes = None;
        let code = loop {
            if let Some(code) = child.ended_within(RUNNING)? {
                break code;
            }
            match &arbiter.place {
                _ if !watch.sockets => {}
                // What root loaded follows its ports; the daemon sees to that.
                Place::Daemon(_) if is_root() => {}
                Place::InProcess(bpffs) if is_root() => {
                    if let Err(e) = follow(bpffs, &mut changes) {
                        log::warn!("{e}");
                    }
                }
                _ => self.adopt_sockets(&*arbiter, &child, &mut watch),
            }
        };
        // To detach takes longer than to end, and the kernel does it then.
        std::mem::forget(changes);
        match loaded.unload() {
            Err(error) if code == 0 => Err(error),
            Err(error) => {
                report::error(&error);
                Ok(code)
            }
            Ok(()) => Ok(code),
        }
    }

    fn check_hooks(&self) -> Result<()> {
        for (index, load) in self.loads.iter().enumerate() {
            if self.loads[..index].iter().any(|earlier| earlier.hook == load.hook) {
                let message = format!("--load names {} twice", load.hook);
                return Err(
                    Failure::new(Code::Usage, message).advise("an app has one policy per hook")
                );
            }
            if needs_port(load.hook) && self.target.ports().is_empty() {
                let message = format!("{} needs --port", load.hook);
                return Err(Failure::new(Code::Usage, message)
                    .advise("name the port that the command will bind"));
            }
        }
        Ok(())
    }

    fn request(
        &self,
        hook: HookArg,
        policy: PolicySource,
        params: Vec<(String, String)>,
    ) -> LoadRequest {
        let target = self.target.of(hook);
        LoadRequest {
            hook: hook.name.to_owned(),
            app: self.app.clone(),
            policy,
            params,
            target,
            or_replace: false,
            owner: self.user,
        }
    }

    /// Loads one policy for the running child. False when the child ended first.
    fn adopt(
        &self,
        arbiter: &dyn Arbiter,
        hook: HookArg,
        mut request: LoadRequest,
        child: &Child,
        watch: &mut Watch,
        loaded: &mut Loaded<'_>,
    ) -> Result<bool> {
        let by_port = needs_port(hook);
        let mut pid = Some(child.pid());
        if by_port {
            match self.wait_for_sockets(child)? {
                None => return Ok(false),
                Some(found) => pid = tree::main_owner(&found),
            }
        }
        if is_root() {
            request.target.extend(pid.map(|pid| ("pid".to_owned(), pid.into())));
            let deployment = loaded.load(arbiter, hook, &request)?;
            announce(&deployment);
            watch.sockets |= by_port;
            return Ok(true);
        }
        // Only root adopts, and everybody may register what is theirs.
        let adopts = |name: &String| {
            hook.takes.iter().any(|flag| flag.name == name && flag.who == Who::Adopter)
        };
        request.target.retain(|name, _| !adopts(name));
        loaded.load(arbiter, hook, &request)?;
        match (by_port, pid) {
            (true, _) => {
                watch.sockets = true;
                self.adopt_sockets(arbiter, child, watch);
            }
            (false, Some(pid)) => {
                for tid in tree::threads(pid) {
                    let what = Registration::Thread { tid };
                    match arbiter.register(&self.app, Some(hook.name), what, None) {
                        // It ended meanwhile.
                        Err(failure) if failure.code == Code::NotFound => {}
                        other => drop(other?),
                    }
                }
            }
            (false, None) => {}
        }
        for deployment in arbiter.show(&self.app)?.deployments {
            if deployment.hook == hook.name {
                announce(&deployment);
            }
        }
        Ok(true)
    }

    /// The sockets that the child bound, once no more are coming; `None` when
    /// it ended before.
    fn wait_for_sockets(&self, child: &Child) -> Result<Option<Vec<BoundSocket>>> {
        let (protos, ports) = (self.target.protos(), self.target.ports());
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        let mut known: Vec<BoundSocket> = vec![];
        let mut since = Instant::now();
        loop {
            let found = tree::bound_sockets(child.pid(), &protos, &ports);
            if found != known {
                (known, since) = (found, Instant::now());
            } else if !known.is_empty() && since.elapsed() >= SETTLED {
                return Ok(Some(known));
            }
            if Instant::now() >= deadline {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                let ports = ports.join(",");
                let message =
                    format!("the command did not bind port {ports} within {} s", self.wait);
                return Err(Failure::new(Code::Timeout, message).advise(
                    "check the command's port and protocol (--port, --proto), \
                     or give it more time with --wait",
                ));
            }
            if child.ended_within(STARTING)?.is_some() {
                return Ok(None);
            }
        }
    }

    /// Registers sockets that were bound after the policy was loaded.
    fn adopt_sockets(&self, arbiter: &dyn Arbiter, child: &Child, watch: &mut Watch) {
        let (protos, ports) = (self.target.protos(), self.target.ports());
        for socket in tree::bound_sockets(child.pid(), &protos, &ports) {
            if watch.known.contains(&socket.inode) {
                continue;
            }
            let outcome = socket
                .duplicate()
                .and_then(|fd| arbiter.register(&self.app, None, Registration::Socket(fd), None));
            match outcome {
                Ok(index) => log::info!("socket {} is executor {index}", socket.inode),
                // A daemon that is being restarted: the next look tries again.
                Err(error) if [Code::Unreachable, Code::Timeout].contains(&error.code) => continue,
                // It was closed again, or is none that can be adopted.
                Err(error) => log::warn!("socket {} was not adopted: {error}", socket.inode),
            }
            watch.known.push(socket.inode);
        }
    }
}

/// What `load` would refuse on any command: told before one is started.
fn try_out(
    arbiter: &Backend,
    policy: &PolicySource,
    hook: HookArg,
    params: &[(String, String)],
) -> Result<()> {
    Engine::check(policy, hook.name, params)?;
    let hooks = arbiter.hooks()?;
    match hooks.into_iter().find(|info| info.name == hook.name && !info.available) {
        None => Ok(()),
        Some(info) => {
            let missing = info.missing.unwrap_or_else(|| "it is not available here".to_owned());
            let advice = info.advice.unwrap_or_else(|| "ask 'syrupctl doctor'".to_owned());
            Err(Failure::new(Code::Unsupported, format!("{hook}: {missing}")).advise(advice))
        }
    }
}

/// Sockets that need no more attention.
#[derive(Debug, Default)]
struct Watch {
    sockets: bool,
    known: Vec<u64>,
}

/// What root loaded follows its ports; without a daemon we see to that.
fn follow(bpffs: &Path, changes: &mut Option<syrup_engine::Watch>) -> Result<()> {
    let engine = Engine::new(bpffs.to_owned())?;
    if changes.get_or_insert_with(|| engine.watch()).has_news() {
        engine.follow()?;
    }
    Ok(())
}

/// Standard output is the command's.
fn announce(loaded: &Deployment) {
    report::note(&deployment::sentence(loaded));
    if let Some(trouble) = deployment::trouble(loaded) {
        report::warning(&trouble.message, trouble.advice.as_deref());
    }
}

/// What this run loaded, unloaded when it goes out of scope.
struct Loaded<'a> {
    context: &'a Context,
    app: &'a str,
    hooks: Vec<HookArg>,
}

impl Loaded<'_> {
    /// Loads one more. An error may come of one that is live, when it cannot be read back or
    /// the answer does not arrive: that goes with the others.
    fn load(
        &mut self,
        arbiter: &dyn Arbiter,
        hook: HookArg,
        request: &LoadRequest,
    ) -> Result<Deployment> {
        let was_there = self.is_there(hook);
        let outcome = arbiter.load(request);
        let is_ours = match &outcome {
            Ok(_) => true,
            Err(failure) if failure.code == Code::Conflict => false,
            Err(_) => !was_there && self.is_there(hook),
        };
        if is_ours {
            self.hooks.push(hook);
        }
        outcome
    }

    fn is_there(&self, hook: HookArg) -> bool {
        let shown = self.context.arbiter().and_then(|arbiter| arbiter.show(self.app));
        shown.is_ok_and(|app| app.deployments.iter().any(|found| found.hook == hook.name))
    }

    /// Unloads everything; the first failure is returned, the others printed.
    fn unload(&mut self) -> Result<()> {
        let mut first = Ok(());
        while let Some(hook) = self.hooks.pop() {
            // The daemon of the load may be gone: ask again who answers.
            let outcome =
                self.context.arbiter().and_then(|arbiter| arbiter.unload(hook.name, self.app));
            match (outcome, &first) {
                (Ok(()), _) => log::info!("unloaded {hook} of app {}", self.app),
                (Err(error), Ok(())) => first = Err(still_loaded(error, hook, self.app)),
                (Err(error), Err(_)) => report::error(&still_loaded(error, hook, self.app)),
            }
        }
        first
    }
}

fn still_loaded(error: Failure, hook: HookArg, app: &str) -> Failure {
    let message = format!("{hook} of app {app} is still loaded: {error}");
    let advice = format!("when it can be done again: syrupctl unload {hook} --app {app}");
    Failure::new(error.code, message).advise(advice)
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.unload() {
            report::error(&error);
        }
    }
}

/// Sockets are found by their port, once the command has bound it.
fn needs_port(hook: HookArg) -> bool {
    hook.registers == Kind::Socket
}

/// Gives each `[HOOK:]NAME=VALUE` to its hook.
fn params_by_hook(
    params: &[(String, String)],
    loads: &[HookPolicy],
) -> Result<Vec<(HookArg, (String, String))>> {
    let usage = |message: String| Failure::new(Code::Usage, message);
    let mut by_hook = vec![];
    for (name, value) in params {
        let (hook, name) = match (name.split_once(':'), loads) {
            (Some((hook, name)), _) => (args::hook(hook).map_err(usage)?, name),
            (None, [only]) => (only.hook, name.as_str()),
            (None, _) => {
                return Err(usage(format!("--set {name}={value}: which policy's?"))
                    .advise(format!("write --set HOOK:{name}={value}")));
            }
        };
        if !loads.iter().any(|load| load.hook == hook) {
            return Err(usage(format!("--set {hook}:{name}: no --load names {hook}")));
        }
        by_hook.push((hook, (name.to_owned(), value.clone())));
    }
    Ok(by_hook)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> HookPolicy {
        text.parse().unwrap()
    }

    #[test]
    fn a_load_names_a_hook_and_a_policy() {
        let both = load("socket-select=./p.c");
        assert_eq!(both.hook.name, "socket-select");
        assert_eq!(both.policy, PolicyArg::File("./p.c".into()));
        for bad in ["socket-select", "socket-select=", "sockets=hash"] {
            assert!(bad.parse::<HookPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_go_to_their_hook() {
        let set = |name: &str| vec![(name.to_owned(), "1".to_owned())];
        let one = [load("socket-select=hash")];
        let two = [load("socket-select=hash"), load("scx-syrup=fifo")];
        let of = |params: &[(String, String)], loads: &[HookPolicy]| {
            params_by_hook(params, loads).map(|by_hook| by_hook[0].clone())
        };
        let expected = (args::hook("socket-select").unwrap(), ("A".to_owned(), "1".to_owned()));
        assert_eq!(of(&set("A"), &one), Ok(expected.clone()));
        assert_eq!(of(&set("socket-select:A"), &two), Ok(expected));
        for (params, loads) in
            [(set("A"), &two[..]), (set("scx-syrup:A"), &one), (set("x:A"), &one)]
        {
            assert_eq!(of(&params, loads).unwrap_err().code, Code::Usage);
        }
    }
}
