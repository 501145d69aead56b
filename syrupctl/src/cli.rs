//! What can be typed: the global flags and the list of subcommands. The
//! arguments of a subcommand are beside its code.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use syrup_hook::HookId;
use syrup_protocol::{HookInfo, PolicyInfo};

use crate::backend::{self, Backend};
use crate::commands::check::Check;
use crate::commands::doctor::Doctor;
use crate::commands::hooks::Hooks;
use crate::commands::list::List;
use crate::commands::load::Load;
use crate::commands::map::Map;
use crate::commands::policies::Policies;
use crate::commands::replace::Replace;
use crate::commands::run::Run;
use crate::commands::show::Show;
use crate::commands::status::Status;
use crate::commands::unload::Unload;
use crate::output::Output;

/// The app of commands that name none.
pub const DEFAULT_APP: &str = "default";

const EXAMPLES: &str = "\
Examples:
  syrupctl doctor                                  what this machine can do, and what is missing
  syrupctl policies                                the policies that ship with each hook
  syrupctl load socket-select --policy round-robin --port 7000
                                                   spread the datagrams of a running UDP server
  syrupctl status                                  what the live policies did so far
  syrupctl unload --all                            the machine as it was before

'syrupctl COMMAND --help' shows the options of a command and more examples.";

const MORE: &str = "\
Who does the work:
  When the daemon answers at --socket, it does. Otherwise syrupctl does it itself, which needs
  root. Naming only --bpffs asks for the latter, naming only --socket for the former.

Output:
  Standard output carries data only. With -o json it is one document with \"schema\": 1; lists
  are arrays, also empty ones. Errors go to standard error: what failed in the kernel's or the
  compiler's words, and what to do.

Exit codes:
  0   done
  1   internal: a defect, or the system refused something unexpected
  2   usage: the command makes no sense as typed
  3   source rejected: the compiler, or the check of the compiled policy
  4   verifier rejected: the kernel's verifier refused the policy
  5   not permitted
  6   the kernel, or something installed, lacks a feature: see 'syrupctl doctor'
  7   conflict: something else has it already, or what was named is not there
  8   the daemon does not answer
  9   it did not happen in time
  10  loaded, but the kernel's default decides some inputs, or the policy was ejected";

/// User-defined scheduling across the Linux stack: put a policy where packets
/// meet sockets and where threads meet cores.
#[derive(Debug, Parser)]
#[command(
    name = "syrupctl",
    version,
    max_term_width = 100,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{MORE}")
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The daemon's socket [default: /run/syrup/syrupd.sock]
    #[arg(long, global = true, env = "SYRUP_SOCKET", value_name = "PATH", hide_env_values = true)]
    pub socket: Option<PathBuf>,

    /// Where policies are pinned [default: /sys/fs/bpf/syrup]
    #[arg(long, global = true, env = "SYRUP_BPFFS", value_name = "PATH", hide_env_values = true)]
    pub bpffs: Option<PathBuf>,

    /// How to print data
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,

    /// Say on standard error what is being done; twice: in detail
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: one document, "schema": 1
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Load(Load),
    Replace(Replace),
    Unload(Unload),
    List(List),
    Show(Show),
    Status(Status),
    Hooks(Hooks),
    Policies(Policies),
    Map(Map),
    Check(Check),
    Run(Run),
    Doctor(Doctor),
}

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    /// Where data goes.
    pub output: Output,
    /// `--socket`, if it was named.
    pub socket: Option<PathBuf>,
    /// `--bpffs`, if it was named.
    pub bpffs: Option<PathBuf>,
}

impl Context {
    pub fn new(global: Global) -> Self {
        Self { output: Output::new(global.output), socket: global.socket, bpffs: global.bpffs }
    }

    /// The arbiter that answers.
    pub fn arbiter(&self) -> syrup_protocol::Result<Backend> {
        backend::open(self.socket.as_deref(), self.bpffs.as_deref())
    }

    /// The arbiter's answer, or what this process sees itself where nobody
    /// answers and no particular daemon was named.
    pub fn hooks(&self) -> syrup_protocol::Result<SeenHooks> {
        match self.arbiter() {
            Err(_) if self.socket.is_none() => Ok(SeenHooks::by_this_process()),
            arbiter => Ok(SeenHooks { hooks: arbiter?.hooks()?, certain: true }),
        }
    }

    /// The same for policies.
    pub fn policies(&self) -> syrup_protocol::Result<Vec<PolicyInfo>> {
        match self.arbiter() {
            Err(_) if self.socket.is_none() => Ok(syrup_engine::policies()),
            arbiter => arbiter?.policies(),
        }
    }
}

/// The hooks, and whether somebody with the rights to try them looked.
pub struct SeenHooks {
    /// What was seen.
    pub hooks: Vec<HookInfo>,
    /// False: what seems to be missing may only be hidden from this user.
    pub certain: bool,
}

impl SeenHooks {
    /// Without an arbiter.
    pub fn by_this_process() -> Self {
        Self { hooks: syrup_engine::hooks(), certain: backend::is_root() }
    }

    /// What to tell a user whose view may be too narrow.
    pub fn doubt(&self) -> Option<&'static str> {
        let missing = self.hooks.iter().any(|hook| !hook.available);
        (missing && !self.certain).then_some(
            "the kernel lets only root try its hooks: run this as root, or start syrupd, to be sure",
        )
    }
}

/// Hook names, from the one registry.
pub fn hook_parser() -> impl TypedValueParser<Value = HookId> {
    PossibleValuesParser::new(HookId::ALL.iter().map(|hook| hook.name()))
        .try_map(|name| HookId::from_str(&name))
}

/// App names are folder names in bpffs and appear in messages.
pub fn app_name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits =
        text.len() <= 63 && text.starts_with(good) && text.chars().all(|c| good(c) || c == '-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err("an app's name has 1 to 63 characters of a-z, 0-9 and '-', the first not '-'"
            .to_owned())
    }
}

/// `NAME=VALUE`
pub fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// Cores as the kernel writes them: `0-3,8`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpus(pub Vec<u32>);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MOST: u32 = 8192;
        let number = |part: &str| match part.trim().parse::<u32>() {
            Ok(cpu) if cpu < MOST => Ok(cpu),
            _ => Err(format!("'{part}' is no core: write a list like 0-3,8")),
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(format!("'{part}' ends before it starts"));
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
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
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn core_lists_are_read_like_the_kernels() {
        assert_eq!("0-2,5,1".parse::<Cpus>().unwrap().0, [0, 1, 2, 5]);
        assert_eq!("7".parse::<Cpus>().unwrap().0, [7]);
        for bad in ["", "a", "3-1", "1,", "0-99999999", "-1"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }

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
