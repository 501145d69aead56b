//! How arguments that several commands take are read.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use nix::unistd::User;
use serde_json::Value;
use syrup_hook::{Facts, Proto, Spec};
use syrup_protocol::names;

/// The app of commands that name none.
pub const DEFAULT_APP: &str = "default";

/// A hook, from the one registry.
pub type HookArg = &'static Spec;

/// Hook names.
pub fn hook_parser() -> impl TypedValueParser<Value = HookArg> {
    PossibleValuesParser::new(syrup_engine::specs().map(|spec| spec.name))
        .try_map(|name| hook(&name))
}

/// The hook of that name.
pub fn hook(name: &str) -> Result<HookArg, String> {
    syrup_engine::specs().find(|spec| spec.name == name).ok_or_else(|| {
        let known: Vec<&str> = syrup_engine::specs().map(|spec| spec.name).collect();
        format!("unknown hook '{name}': one of {}", known.join(", "))
    })
}

/// What a deployment is told: a flag for each that some hook takes, of those that a command
/// has: [`ALL`], [`BUT_PROCESS`] or [`CHANGEABLE`].
#[derive(Debug, Clone, Default)]
pub struct Target<const WHICH: u8>(pub Facts);

/// All of them.
pub const ALL: u8 = 0;
/// All but the process, for a command that knows it.
pub const BUT_PROCESS: u8 = 1;
/// Those that may change while a policy is live.
pub const CHANGEABLE: u8 = 2;

impl<const WHICH: u8> Target<WHICH> {
    /// What of it is for this hook.
    pub fn of(&self, hook: HookArg) -> Facts {
        let taken = |name: &String| hook.takes.iter().any(|flag| flag.name == name);
        self.0.clone().into_iter().filter(|(name, _)| taken(name)).collect()
    }

    /// `--port`
    pub fn ports(&self) -> Vec<u16> {
        let numbers = self.list("port").filter_map(Value::as_u64);
        numbers.filter_map(|port| port.try_into().ok()).collect()
    }

    /// `--proto`, or all of them.
    pub fn protos(&self) -> Vec<Proto> {
        let names = self.list("proto").filter_map(Value::as_str);
        let named: Vec<Proto> = names.filter_map(|name| name.parse().ok()).collect();
        if named.is_empty() { vec![Proto::Udp, Proto::Tcp] } else { named }
    }

    fn list(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0.get(name).and_then(Value::as_array).into_iter().flatten()
    }
}

impl<const WHICH: u8> Args for Target<WHICH> {
    fn augment_args(mut command: Command) -> Command {
        let nr_hooks = syrup_engine::specs().count();
        for (flag, hooks) in syrup_engine::flags() {
            let is_changeable = || {
                syrup_engine::specs().flat_map(|spec| spec.changeable).any(|f| f.name == flag.name)
            };
            if match WHICH {
                BUT_PROCESS => flag.name == "pid",
                CHANGEABLE => !is_changeable(),
                _ => false,
            } {
                continue;
            }
            let help = match hooks.len() {
                n if n == nr_hooks => flag.help.to_owned(),
                _ => format!("{}: {}", hooks.join(", "), flag.help),
            };
            command = command.arg(
                Arg::new(flag.name)
                    .long(flag.name)
                    .value_name(flag.placeholder())
                    .action(if flag.is_list() { ArgAction::Append } else { ArgAction::Set })
                    .value_parser(|text: &str| flag.parse(text))
                    .help(help),
            );
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const WHICH: u8> FromArgMatches for Target<WHICH> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut target = Self::default();
        target.update_from_arg_matches(matches)?;
        Ok(target)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (flag, _) in syrup_engine::flags() {
            let Ok(Some(given)) = matches.try_get_many::<Value>(flag.name) else { continue };
            let value = flag.join(given.cloned()).map_err(|why| {
                let message = format!("--{}: {why}\n", flag.name);
                clap::Error::raw(clap::error::ErrorKind::ValueValidation, message)
            })?;
            self.0.insert(flag.name.to_owned(), value);
        }
        Ok(())
    }
}

/// App names are folder names in bpffs and appear in messages.
pub fn app_name(text: &str) -> Result<String, String> {
    match names::check_app(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(failure) => Err(failure.advice.unwrap_or(failure.message)),
    }
}

/// A user, by name or number.
pub fn user(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        // What chown(2) takes for nobody.
        Ok(u32::MAX) => Err(format!("{text} is no user")),
        Ok(uid) => Ok(uid),
        Err(_) => match User::from_name(text) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(format!("there is no user '{text}'")),
            Err(e) => Err(format!("cannot look up user '{text}': {e}")),
        },
    }
}

/// `NAME=VALUE`
pub fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// An integer, decimal or `0x` hexadecimal.
pub fn integer(text: &str) -> Result<u64, String> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // from_str_radix also takes a sign.
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return Err("not a number: write it in decimal, or in hexadecimal after 0x".to_owned());
    }
    u64::from_str_radix(digits, radix).map_err(|e| e.to_string())
}

/// The same for 32 bits.
pub fn integer_u32(text: &str) -> Result<u32, String> {
    u32::try_from(integer(text)?).map_err(|_| "does not fit in 32 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_decimal_or_hexadecimal() {
        assert_eq!(integer("17").unwrap(), 17);
        assert_eq!(integer("0x11").unwrap(), 17);
        assert_eq!(integer("0xffffffffffffffff").unwrap(), u64::MAX);
        for bad in ["", "0x", "+1", "-1", "1a", "0x1g", "18446744073709551616"] {
            assert!(integer(bad).is_err(), "{bad}");
        }
        assert!(integer_u32("0x100000000").is_err());
    }

    #[test]
    fn users_have_names_and_numbers() {
        assert_eq!(user("root"), Ok(0));
        assert_eq!(user("4000000000"), Ok(4_000_000_000));
        for bad in ["", "no such user", "-1", "4294967295", "4294967296"] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn app_names_are_folder_names() {
        for good in ["rocksdb", "a", "0-9"] {
            assert_eq!(app_name(good).unwrap(), good);
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "_scx", "a.b", "A", "a/b", &long] {
            assert!(app_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn assignments_keep_later_equal_signs_in_the_value() {
        assert_eq!(assignment("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        assert!(assignment("A").is_err());
        assert!(assignment("=1").is_err());
    }
}
