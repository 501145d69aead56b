//! The one registry of hooks: CLI, documentation test and status derive from it.

use syrup_hook::{Hook, HookId, Probe};
use syrup_net_hooks::SocketSelect;
use syrup_protocol::{Code, Failure, HookInfo, PolicyInfo, Result};
use syrup_scx::ScxSyrup;

/// Every hook, in the order of [`HookId::ALL`].
pub(crate) fn all() -> [&'static dyn Hook; HookId::ALL.len()] {
    [&ScxSyrup, &SocketSelect]
}

/// The implementation of a hook.
pub(crate) fn get(name: &str) -> Result<&'static dyn Hook> {
    let id: HookId = name.parse().map_err(|e: syrup_hook::UnknownHook| {
        Failure::new(Code::Usage, e.to_string())
            .advise("'syrupctl hooks' says what each one schedules")
    })?;
    all().into_iter().find(|hook| hook.id() == id).ok_or_else(|| {
        Failure::new(Code::Internal, format!("hook '{id}' has a name and no implementation"))
    })
}

/// The hooks and what this machine offers of them. Asks no arbiter, so that it
/// can be told before one runs.
#[must_use]
pub fn infos() -> Vec<HookInfo> {
    all()
        .into_iter()
        .map(|hook| {
            let (missing, advice) = match hook.probe() {
                Probe::Available => (None, None),
                Probe::Missing { what, advice } => (Some(what), Some(advice)),
            };
            HookInfo {
                name: hook.id().to_string(),
                input: hook.input().to_string(),
                executor: hook.executor().to_owned(),
                available: missing.is_none(),
                missing,
                advice,
            }
        })
        .collect()
}

/// The shipped policies; one that ships with several hooks appears once.
#[must_use]
pub fn policies() -> Vec<PolicyInfo> {
    let mut policies: Vec<PolicyInfo> = Vec::new();
    for hook in all() {
        for builtin in hook.policies() {
            let input = hook.input().to_string();
            match policies.iter_mut().find(|p| p.name == builtin.name && p.input == input) {
                Some(known) => known.hooks.push(hook.id().to_string()),
                None => policies.push(PolicyInfo {
                    name: builtin.name.to_owned(),
                    input,
                    hooks: vec![hook.id().to_string()],
                    summary: builtin.summary.to_owned(),
                }),
            }
        }
    }
    policies
}
