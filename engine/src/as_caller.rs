//! What each call does on behalf of whoever asks, who may do it or not.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use syrup_hook::spec::PID;
use syrup_hook::{App, Deploy as _, Error, Hook, Probe, Who, netns, pin, process};
use syrup_protocol::call::{
    AllUnloaded, AppRef, Deployed, DeploymentRef, Deployments, Entry, Hooks, MapKey, MapPage,
    MapRef, MapSet, NoParameters, Opened, Policies, Register, Registered, Shown, Tidied,
    Unregister,
};
use syrup_protocol::varlink::Nothing;
use syrup_protocol::{
    AppInfo, Arbiter, Call, Code, Deployment, Facts, Failure, Health, LoadRequest, PolicySource,
    Registration, ReplaceRequest, Reply, Result, SetRequest, names,
};

use crate::engine::{Engine, not_deployed};
use crate::maps::{self, Maps};
use crate::policy::{self, Prepared};

/// Who asks. Root may do everything; others act on their own apps only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// From the kernel: the peer's credentials, or our own.
    pub uid: u32,
    /// The asking process.
    pub pid: i32,
}

impl Caller {
    /// Root, in this process.
    pub const ROOT: Self = Self { uid: 0, pid: 0 };
}

/// The engine on behalf of a caller.
#[derive(Debug, Clone)]
pub struct AsCaller {
    engine: Engine,
    caller: Caller,
}

impl AsCaller {
    pub(crate) fn new(engine: Engine, caller: Caller) -> Self {
        Self { engine, caller }
    }

    fn is_root(&self) -> bool {
        self.caller.uid == 0
    }

    /// Whose a new app is. A name nobody uses is free for anybody.
    fn may_own(&self, owner: Option<u32>) -> Result<u32> {
        match owner {
            // What chown(2) takes for nobody.
            Some(u32::MAX) => {
                Err(Failure::new(Code::Usage, format!("--user {}: it is no user", u32::MAX)))
            }
            Some(owner) if !self.is_root() && owner != self.caller.uid => {
                let message = format!("only root may deploy for another user: --user {owner}");
                Err(Failure::new(Code::NotPermitted, message)
                    .advise("leave --user out: what you load is yours"))
            }
            owner => Ok(owner.unwrap_or(self.caller.uid)),
        }
    }

    /// An app the caller may change. A name nobody uses is free for anybody, and stays so
    /// under the lock only.
    fn own_app(&self, name: &str) -> Result<App> {
        names::check_app(name)?;
        let mut app = self.engine.app(name);
        if self.engine.hooks_of(&app).is_empty() {
            app.uid = self.caller.uid;
        }
        self.may_use(&app)?;
        Ok(app)
    }

    /// An app that exists and is the caller's.
    fn deployed_app(&self, name: &str) -> Result<App> {
        names::check_app(name)?;
        let app = self.engine.app(name);
        if self.engine.hooks_of(&app).is_empty() {
            return Err(no_app(name));
        }
        self.may_use(&app)?;
        Ok(app)
    }

    /// Opens something of an app that exists and is the caller's. Nobody is waited for, so
    /// that the name may become another user's meanwhile: with another folder.
    fn open_of<T>(&self, name: &str, open: impl FnOnce(&App) -> Result<T>) -> Result<T> {
        names::check_app(name)?;
        let folder = self.engine.folder_of(name);
        let app = self.deployed_app(name)?;
        let opened = open(&app);
        if folder.is_none() || self.engine.folder_of(name) != folder {
            return Err(no_app(name));
        }
        opened
    }

    fn may_use(&self, app: &App) -> Result<()> {
        if self.is_root() || app.uid == self.caller.uid {
            return Ok(());
        }
        let message = format!("app '{}' belongs to user {}", app.name, app.uid);
        Err(Failure::new(Code::NotPermitted, message)
            .advise("choose another app name, or ask its owner or root"))
    }

    fn may_bring(&self, policy: &PolicySource) -> Result<()> {
        match policy {
            // clang reads any file its user can read into the object or its
            // diagnostics, so the daemon compiles for root only.
            PolicySource::Source { file_name, .. } if !self.is_root() => Err(Failure::new(
                Code::NotPermitted,
                format!("{file_name}: the daemon compiles C for root only"),
            )
            .advise("give a compiled policy object (FILE.o) or a built-in policy's name")),
            _ => Ok(()),
        }
    }

    /// Checks what a deployment is told.
    fn may_say(&self, hook: &dyn Hook, target: &Facts) -> Result<()> {
        let spec = hook.spec();
        for (name, value) in target {
            let Some(flag) = spec.takes.iter().find(|flag| flag.name == name) else {
                let message = format!("--{name} means nothing at hook {}", spec.name);
                let takes: Vec<String> =
                    spec.takes.iter().map(|flag| format!("--{}", flag.name)).collect();
                return Err(Failure::new(Code::Usage, message)
                    .advise(format!("it takes {}", takes.join(", "))));
            };
            if flag.who != Who::Owner && !self.is_root() {
                let message = format!("only root may say --{name}");
                return Err(Failure::new(Code::NotPermitted, message).advise(match flag.who {
                    Who::Adopter => {
                        "let the application register its sockets and threads: \
                         syr_register_socket(), syr_register_thread()"
                    }
                    _ => "leave it out, or ask the operator of this machine",
                }));
            }
            flag.check(value)
                .map_err(|why| Failure::new(Code::Usage, format!("--{name}: {why}")))?;
        }
        Ok(())
    }
}

impl Arbiter for AsCaller {
    fn answer(&self, call: Call) -> Result<Reply> {
        Ok(match call {
            Call::Load(request) => Reply::Load(Deployed { deployment: self.deploy(&request)? }),
            Call::Replace(request) => {
                Reply::Replace(Deployed { deployment: self.put_in_place(&request)? })
            }
            Call::Set(request) => Reply::Set(Deployed { deployment: self.change(&request)? }),
            Call::Unload(deployment) => {
                self.take_away(&deployment)?;
                Reply::Unload(Nothing {})
            }
            Call::UnloadAll(NoParameters {}) => {
                Reply::UnloadAll(AllUnloaded { unloaded: self.take_all_away()? })
            }
            Call::Tidy(NoParameters {}) => Reply::Tidy(self.put_in_order()?),
            Call::List(NoParameters {}) => {
                Reply::List(Deployments { deployments: self.engine.read_all()? })
            }
            Call::Show(AppRef { app }) => Reply::Show(Shown { app: self.tell_of(&app)? }),
            Call::Hooks(NoParameters {}) => {
                Reply::Hooks(Hooks { hooks: self.engine.hooks.infos() })
            }
            Call::Policies(NoParameters {}) => {
                Reply::Policies(Policies { policies: self.engine.hooks.policies() })
            }
            Call::PolicyOpen(deployment) => {
                Reply::PolicyOpen(Opened { fd: Some(self.program(&deployment)?) })
            }
            Call::MapGet(MapKey { app, map, key }) => {
                Reply::MapGet(Entry { entry: maps::get(self.map(&app, &map)?, &map, key)? })
            }
            Call::MapSet(MapSet { app, map, key, value }) => {
                maps::set(self.map(&app, &map)?, &map, key, value)?;
                Reply::MapSet(Nothing {})
            }
            Call::MapDump(MapPage { app, map, from }) => {
                Reply::MapDump(maps::dump(self.map(&app, &map)?, &map, from)?)
            }
            Call::MapOpen(MapRef { app, map }) => {
                Reply::MapOpen(Opened { fd: Some(self.map(&app, &map)?) })
            }
            Call::Register(request) => Reply::Register(Registered { index: self.add(request)? }),
            Call::Unregister(request) => {
                self.let_go(request)?;
                Reply::Unregister(Nothing {})
            }
        })
    }
}

impl AsCaller {
    fn deploy(&self, request: &LoadRequest) -> Result<Deployment> {
        let hook = self.engine.hooks.get(&request.hook)?;
        names::check_app(&request.app)?;
        let owner = self.may_own(request.owner)?;
        self.may_bring(&request.policy)?;
        self.may_say(hook, &request.target)?;
        let target = self.target_here(&request.target)?;
        // The source's faults come first: they show on any kernel.
        let prepared = policy::prepare(hook.spec(), &request.policy, &request.params)?;
        if let Probe::Missing { what, advice } = hook.probe() {
            return Err(Failure::new(
                Code::Unsupported,
                format!("hook {} is not available: {what}", hook.spec().name),
            )
            .advise(advice));
        }

        let lock = self.engine.lock()?;
        let mut app = self.own_app(&request.app)?;
        let is_new = self.engine.hooks_of(&app).is_empty();
        if is_new {
            app.uid = owner;
        } else if request.owner.is_some_and(|owner| owner != app.uid) {
            return Err(of_another(&app, owner));
        }
        if app.hook_dir(hook.spec()).is_dir() && !hook.has_ended(&app) {
            if !request.or_replace {
                return Err(already(&app, hook));
            }
            same_target(&self.engine.read_one(hook, &app)?, &target)?;
            return self.replace_by(hook, &app, &prepared);
        }
        if is_new {
            // Of a load that died: not for whoever takes the name next.
            self.engine.forget(&app)?;
        }
        let deployed = (|| -> Result<()> {
            self.engine.make_app_folder(&app)?;
            let (maps, created) = Maps::of(&app).ensure(&prepared.checked.maps)?;
            let linked = prepared.link_with(app.uid, maps);
            self.in_callers_network(|| hook.deploy(&app, &linked, &target))?
                .map_err(|e| prepared.explain(e))?;
            created.keep();
            Ok(())
        })();
        if deployed.is_err()
            && self.engine.hooks_of(&app).is_empty()
            && let Err(e) = self.engine.forget(&app)
        {
            log::warn!("{e}");
        }
        deployed?;
        // What is watched from here on changes nothing.
        drop(lock);
        self.engine.observe(hook, &app).map_err(|e| live_but(&app, hook, e))
    }

    fn put_in_place(&self, request: &ReplaceRequest) -> Result<Deployment> {
        let hook = self.engine.hooks.get(&request.hook)?;
        names::check_app(&request.app)?;
        self.may_bring(&request.policy)?;
        let prepared = policy::prepare(hook.spec(), &request.policy, &request.params)?;

        let _lock = self.engine.lock()?;
        let app = self.own_app(&request.app)?;
        if !app.hook_dir(hook.spec()).is_dir() {
            return Err(not_deployed(hook, &app));
        }
        self.replace_by(hook, &app, &prepared)
    }

    fn change(&self, request: &SetRequest) -> Result<Deployment> {
        let hook = self.engine.hooks.get(&request.hook)?;
        self.may_say(hook, &request.target)?;
        may_change(hook, request)?;

        let _lock = self.engine.lock()?;
        let app = self.own_app(&request.app)?;
        if !app.hook_dir(hook.spec()).is_dir() {
            return Err(not_deployed(hook, &app));
        }
        // Before anything changes.
        let next = match request.params.is_empty() {
            true => None,
            false => Some(with_params(hook, &self.engine.read_one(hook, &app)?, &request.params)?),
        };
        if !request.target.is_empty() {
            hook.set(&app, &request.target)?;
        }
        match next {
            Some(prepared) => self.replace_by(hook, &app, &prepared),
            None => self.engine.read_one(hook, &app),
        }
    }

    fn take_away(&self, DeploymentRef { app, hook }: &DeploymentRef) -> Result<()> {
        let hook = self.engine.hooks.get(hook)?;
        let _lock = self.engine.lock()?;
        let app = self.own_app(app)?;
        let folder = app.hook_dir(hook.spec());
        // One that a dead call put aside may decide still.
        if folder.is_dir() || pin::aside(&folder).is_dir() {
            return self.engine.unload_locked(&app, hook);
        }
        // What a dead call left is nobody's.
        if self.engine.hooks_of(&app).is_empty() {
            self.engine.forget(&app).unwrap_or_else(|e| log::warn!("{e}"));
        }
        if let Err(e) = hook.tidy(&app.bpffs) {
            log::warn!("{e}");
        }
        Err(not_deployed(hook, &app))
    }

    fn take_all_away(&self) -> Result<Vec<DeploymentRef>> {
        let _lock = self.engine.lock()?;
        let (mut gone, mut done) = (Vec::new(), Ok(()));
        for name in self.engine.app_names()? {
            let app = self.engine.app(&name);
            if !self.is_root() && app.uid != self.caller.uid {
                continue;
            }
            for hook in self.engine.hooks_of(&app) {
                let at = hook.spec().name;
                // One that stays keeps no other.
                match self.engine.unload_locked(&app, hook) {
                    Ok(()) => gone.push(DeploymentRef { app: name.clone(), hook: at.to_owned() }),
                    Err(e) => {
                        let message = format!("app '{name}' stays at {at}: {}", e.message);
                        log::warn!("{message}");
                        done = done.and(Err(Failure { message, ..e }));
                    }
                }
            }
        }
        if self.is_root() {
            done = done.and(self.engine.collect_garbage()?.1);
        }
        done.map(|()| gone)
    }

    fn put_in_order(&self) -> Result<Tidied> {
        if !self.is_root() {
            return Err(Failure::new(Code::NotPermitted, "only root may put all apps in order")
                .advise("syrupd does it by itself while it runs"));
        }
        let removed = self.engine.remove_garbage()?;
        let changed = self.engine.follow()?.into_iter();
        Ok(Tidied {
            changed: changed.map(|(app, hook)| DeploymentRef { app, hook: hook.into() }).collect(),
            removed: removed.into_iter().map(|path| path.display().to_string()).collect(),
        })
    }

    /// A process or thread by its id in the pid namespace of who asks.
    fn id_here(&self, id: i32) -> Result<i32> {
        if self.caller.pid == 0 {
            return Ok(id);
        }
        process::from_namespace_of(self.caller.pid, id).ok_or_else(|| {
            Failure::new(Code::NotFound, format!("there is no process or thread {id}"))
                .advise("give its id as the caller's own process namespace has it")
        })
    }

    /// What is asked for, in our terms.
    fn target_here(&self, target: &Facts) -> Result<Facts> {
        let mut target = target.clone();
        if let Some(pid) = target.get_mut(PID.name)
            && let Some(id) = pid.as_i64().and_then(|id| i32::try_from(id).ok())
        {
            *pid = self.id_here(id)?.into();
        }
        Ok(target)
    }

    /// Runs `f` in the network namespace of who asks: whose a port is depends on it.
    fn in_callers_network<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let pid = self.caller.pid;
        // Our own threads may be in other namespaces than our leader.
        let is_own = pid == 0 || pid == std::process::id() as i32;
        if is_own || namespace(&pid.to_string()) == namespace("thread-self") {
            return Ok(f());
        }
        Ok(netns::within(netns::of_process(pid)?.as_fd(), f)?)
    }

    fn tell_of(&self, app: &str) -> Result<AppInfo> {
        names::check_app(app)?;
        let app = self.engine.app(app);
        let deployments = self.engine.read_app(&app)?;
        if deployments.is_empty() {
            return Err(no_app(&app.name));
        }
        Ok(AppInfo { maps: Maps::of(&app).list()?, uid: app.uid, app: app.name, deployments })
    }

    fn program(&self, DeploymentRef { app, hook }: &DeploymentRef) -> Result<OwnedFd> {
        let hook = self.engine.hooks.get(hook)?;
        self.open_of(app, |app| Ok(hook.program(app)?))
    }

    fn map(&self, app: &str, map: &str) -> Result<OwnedFd> {
        self.open_of(app, |app| Maps::of(app).open(&app.name, map))
    }

    fn add(&self, mut request: Register) -> Result<u32> {
        let what = self.here(request.take()?)?;
        let Register { app, hook, index, .. } = request;
        // As early as we can: its id may be another one's after each wait.
        let thread = match what {
            Registration::Thread { tid } => {
                Some(process::Thread::open(tid)?.ok_or_else(|| no_thread(tid))?)
            }
            _ => None,
        };
        let _lock = self.engine.lock()?;
        let app = self.deployed_app(&app)?;
        let Some(thread) = thread else {
            return Ok(self.hook_for(&app, hook.as_deref(), &what)?.register(&app, what, index)?);
        };
        let tid = thread.tid();
        self.may_schedule(tid)?;
        let hook = self.hook_for(&app, hook.as_deref(), &what)?;
        if thread.has_ended()? {
            return Err(no_thread(tid));
        }
        let index = hook.register(&app, what, index)?;
        if !thread.has_ended()? {
            return Ok(index);
        }
        // Whoever has its id by now was not asked about.
        match hook.unregister(&app, &Registration::Thread { tid }) {
            Ok(()) | Err(Error::NotFound { .. }) => Err(no_thread(tid)),
            Err(e) => Err(e.into()),
        }
    }

    fn here(&self, what: Registration) -> Result<Registration> {
        Ok(match what {
            Registration::Thread { tid } => Registration::Thread { tid: self.id_here(tid)? },
            socket => socket,
        })
    }

    fn let_go(&self, mut request: Unregister) -> Result<()> {
        let what = self.here(request.take()?)?;
        let Unregister { app, hook, .. } = request;
        let _lock = self.engine.lock()?;
        let app = self.deployed_app(&app)?;
        Ok(self.hook_for(&app, hook.as_deref(), &what)?.unregister(&app, &what)?)
    }

    /// Puts a policy in the place of the app's live one; under the lock.
    fn replace_by(&self, hook: &dyn Hook, app: &App, prepared: &Prepared) -> Result<Deployment> {
        let (maps, created) = Maps::of(app).ensure(&prepared.checked.maps)?;
        hook.replace(app, &prepared.link_with(app.uid, maps)).map_err(|e| prepared.explain(e))?;
        created.keep();
        self.engine.read_one(hook, app).map_err(|e| live_but(app, hook, e))
    }

    /// The hook of that name; without one, the hook at which the app has a policy that takes
    /// such a thing.
    fn hook_for(
        &self,
        app: &App,
        name: Option<&str>,
        what: &Registration,
    ) -> Result<&'static dyn Hook> {
        if let Some(name) = name {
            return self.engine.hooks.get(name);
        }
        let kind = what.kind();
        let takes = self.engine.hooks.all().filter(|hook| hook.spec().registers == kind);
        let is_deployed = |hook: &&dyn Hook| app.hook_dir(hook.spec()).is_dir();
        let (deployed, missing): (Vec<_>, Vec<_>) = takes.partition(is_deployed);
        match (deployed.as_slice(), missing.as_slice()) {
            ([hook], _) => Ok(*hook),
            ([], [hook, ..]) => Err(not_deployed(*hook, app)),
            ([], []) => Err(Failure::new(Code::Internal, format!("no hook takes a {kind}"))),
            (several, _) => {
                let names: Vec<&str> = several.iter().map(|hook| hook.spec().name).collect();
                let message = format!(
                    "app '{}' has policies for {kind}s at several hooks: {}",
                    app.name,
                    names.join(", ")
                );
                Err(Failure::new(Code::Usage, message).advise("name the hook"))
            }
        }
    }

    /// A thread of the caller's own process or user; root may schedule any.
    fn may_schedule(&self, tid: i32) -> Result<()> {
        let owner = owner_of(tid).ok_or_else(|| no_thread(tid))?;
        if self.is_root() || owner == self.caller.uid {
            return Ok(());
        }
        Err(Failure::new(Code::NotPermitted, format!("thread {tid} belongs to user {owner}")))
    }
}

fn no_thread(tid: i32) -> Failure {
    Failure::new(Code::NotFound, format!("there is no thread {tid}"))
        .advise("register a thread while it runs, from its own process")
}

/// The effective user of a thread.
fn owner_of(tid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

/// A second `load`: for another policy, or for executors that were not there before.
fn already(app: &App, hook: &dyn Hook) -> Failure {
    let name = hook.spec().name;
    let what = format!("app '{}' has a policy at {name} already", app.name);
    let replace = format!("syrupctl replace {name} --app {} --policy ...", app.name);
    let unload = format!("syrupctl unload {name} --app {}", app.name);
    let without_executors = hook.read(app).ok().flatten().is_some_and(|deployment| {
        deployment.executors == 0 || matches!(deployment.health, Health::Live(Some(_)))
    });
    Failure::new(Code::Conflict, what).advise(if without_executors {
        format!(
            "'{replace}' changes the policy; it has no executors, and adopts some when it is loaded \
             again after '{unload}'"
        )
    } else {
        format!("{replace}, or {unload}")
    })
}

/// An app has one owner, from its first deployment to its last.
fn of_another(app: &App, owner: u32) -> Failure {
    let App { name, uid, .. } = app;
    let message = format!("--user {owner}: app '{name}' belongs to user {uid}");
    Failure::new(Code::Conflict, message)
        .advise(format!("leave --user out, or unload all of app '{name}' first"))
}

/// Refuses what cannot change while a policy is live.
fn may_change(hook: &dyn Hook, SetRequest { app, params, target, .. }: &SetRequest) -> Result<()> {
    let spec = hook.spec();
    let can: Vec<&str> = spec.changeable.iter().map(|flag| flag.name).collect();
    if let Some(fixed) = target.keys().find(|name| !can.contains(&name.as_str())) {
        let message = format!("--{fixed} of a live deployment at {spec} cannot change");
        return Err(Failure::new(Code::Usage, message)
            .advise(format!("'syrupctl unload {spec} --app {app}' and load it again")));
    }
    if params.is_empty() && target.is_empty() {
        let flags = can.iter().map(|name| format!("--{name}, ")).collect::<String>();
        return Err(Failure::new(Code::Usage, "nothing was named that should change")
            .advise(format!("at {spec}: {flags}--set NAME=VALUE")));
    }
    Ok(())
}

/// The live policy once more, with other values for some parameters: one that ships with the
/// hook. What a file held is not kept.
fn with_params(
    hook: &dyn Hook,
    deployment: &Deployment,
    params: &[(String, String)],
) -> Result<Prepared> {
    let Deployment { app, hook: at, policy: name, policy_sha256, .. } = deployment;
    let mut all = deployment.params.clone();
    all.extend(params.iter().cloned());
    let all: Vec<(String, String)> = all.into_iter().collect();
    let policy = PolicySource::Builtin { name: name.clone() };
    if hook.spec().policies.iter().any(|shipped| shipped.name == name) {
        let prepared = policy::prepare(hook.spec(), &policy, &all)?;
        if syrup_hook::hex(&prepared.sha256) == *policy_sha256 {
            return Ok(prepared);
        }
    }
    let message = format!(
        "the live policy of app '{app}' at {at} is none that ships with it, so parameters cannot \
         be set without its file"
    );
    let sets = all.iter().map(|(name, value)| format!(" --set {name}={value}")).collect::<String>();
    Err(Failure::new(Code::Conflict, message).advise(format!(
        "syrupctl replace {at} --app {app} --policy FILE{sets}: also without a gap"
    )))
}

/// A replacement changes the policy, and nothing of what it is for.
fn same_target(deployment: &Deployment, asked: &Facts) -> Result<()> {
    for (name, value) in asked {
        let is = deployment.target.get(name);
        let same = |is: &serde_json::Value| match (is, value) {
            // Of a list of names, the order says nothing.
            (serde_json::Value::Array(is), serde_json::Value::Array(asked)) => {
                is.len() == asked.len() && asked.iter().all(|one| is.contains(one))
            }
            (is, asked) => is == asked,
        };
        if is.is_some_and(same) {
            continue;
        }
        let Deployment { app, hook, .. } = deployment;
        let is = is.map_or("none".to_owned(), ToString::to_string);
        let message = format!("--{name} {value}: the deployment of app '{app}' at {hook} has {is}");
        return Err(Failure::new(Code::Conflict, message)
            .advise(format!("leave --{name} out, or 'syrupctl unload {hook} --app {app}' first")));
    }
    Ok(())
}

/// What failed after a policy became live, which it stays.
fn live_but(app: &App, hook: &dyn Hook, error: Failure) -> Failure {
    let Failure { message, .. } = &error;
    Failure {
        message: format!(
            "the policy of app '{}' is live at {}, but cannot be read back: {message}",
            app.name,
            hook.spec().name
        ),
        ..error
    }
}

fn no_app(app: &str) -> Failure {
    Failure::new(Code::NotFound, format!("there is no app '{app}'"))
        .advise("an app exists while it has a deployment: 'syrupctl list' shows them")
}
