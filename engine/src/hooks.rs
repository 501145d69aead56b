//! The one registry of hooks: CLI, documentation test and status derive from it.

use std::fmt;

use syrup_hook::{Flag, Hook, Probe, Spec};
use syrup_net_hooks::SocketSelect;
use syrup_protocol::{Code, Failure, HookInfo, PolicyInfo, Result};
use syrup_scx::ScxSyrup;

/// Every hook that ships. Adding one is adding a line.
pub(crate) static SHIPPED: Hooks = Hooks(&[&ScxSyrup, &SocketSelect]);

/// The hooks that an engine serves.
#[derive(Clone, Copy)]
pub(crate) struct Hooks(pub(crate) &'static [&'static dyn Hook]);

impl Hooks {
    pub(crate) fn all(self) -> impl Iterator<Item = &'static dyn Hook> {
        self.0.iter().copied()
    }

    /// The hook of that name.
    pub(crate) fn get(self, name: &str) -> Result<&'static dyn Hook> {
        self.all().find(|hook| hook.spec().name == name).ok_or_else(|| {
            let known: Vec<&str> = self.all().map(|hook| hook.spec().name).collect();
            let unknown = format!("unknown hook '{name}': one of {}", known.join(", "));
            Failure::new(Code::Usage, unknown)
                .advise("'syrupctl hooks' says what each one schedules")
        })
    }

    /// What they are, and what this machine offers of them.
    pub(crate) fn infos(self) -> Vec<HookInfo> {
        let info = |hook: &dyn Hook| {
            let (missing, advice) = match hook.probe() {
                Probe::Available => (None, None),
                Probe::Missing { what, advice } => (Some(what), Some(advice)),
            };
            let spec = hook.spec();
            HookInfo {
                name: spec.name.to_owned(),
                input: spec.input.into(),
                registers: spec.registers.into(),
                executor: spec.executors.to_owned(),
                takes: spec.takes.iter().map(|flag| flag.name.to_owned()).collect(),
                changeable: spec.changeable.iter().map(|flag| flag.name.to_owned()).collect(),
                available: missing.is_none(),
                missing,
                advice,
            }
        };
        self.all().map(info).collect()
    }

    /// The policies that come with them; one that comes with several appears once.
    pub(crate) fn policies(self) -> Vec<PolicyInfo> {
        let mut policies: Vec<PolicyInfo> = Vec::new();
        for spec in self.all().map(Hook::spec) {
            for builtin in spec.policies {
                let fits = |p: &&mut PolicyInfo| p.name == builtin.name && p.input == spec.input;
                match policies.iter_mut().find(fits) {
                    Some(known) => known.hooks.push(spec.name.to_owned()),
                    None => policies.push(PolicyInfo {
                        name: builtin.name.to_owned(),
                        input: spec.input.into(),
                        hooks: vec![spec.name.to_owned()],
                        summary: builtin.summary.to_owned(),
                    }),
                }
            }
        }
        policies
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().map(Hook::spec)).finish()
    }
}

/// What each of them is.
pub fn specs() -> impl Iterator<Item = &'static Spec> {
    SHIPPED.all().map(Hook::spec)
}

/// The flags that a deployment may be told, each once, with the hooks that take it.
#[must_use]
pub fn flags() -> Vec<(&'static Flag, Vec<&'static str>)> {
    let mut flags: Vec<(&Flag, Vec<&str>)> = Vec::new();
    for spec in specs() {
        for flag in spec.takes {
            match flags.iter_mut().find(|(known, _)| known.name == flag.name) {
                Some((_, hooks)) => hooks.push(spec.name),
                None => flags.push((flag, vec![spec.name])),
            }
        }
    }
    flags
}

/// The hooks and what this machine offers of them. Asks no arbiter, so that it
/// can be told before one runs.
#[must_use]
pub fn infos() -> Vec<HookInfo> {
    SHIPPED.infos()
}

/// The shipped policies; one that ships with several hooks appears once.
#[must_use]
pub fn policies() -> Vec<PolicyInfo> {
    SHIPPED.policies()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CLI has one flag of a name, with the bounds and the help of one of them.
    #[test]
    fn a_flag_is_the_same_at_every_hook_that_takes_it() {
        for (flag, hooks) in flags() {
            for other in specs().flat_map(|spec| spec.takes).filter(|f| f.name == flag.name) {
                assert_eq!(format!("{other:?}"), format!("{flag:?}"), "{hooks:?}");
            }
        }
    }
}
