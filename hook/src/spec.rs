//! What a hook is, as data: the CLI's flags and help, `hooks`, `doctor`, the checks of
//! the engine and of the documentation derive from it.

use std::fmt;

use serde_json::Value;
use syrup_protocol::{Input, Kind};

use crate::Builtin;

/// A hook's static description.
pub struct Spec {
    /// The name users type; also the pin folder's name.
    pub name: &'static str,
    /// What `schedule()` gets.
    pub input: Input,
    /// What a verdict names, one of them: "socket".
    pub executor: &'static str,
    /// The same in a sentence: "a socket of the app's reuseport groups".
    pub executors: &'static str,
    /// What its apps register.
    pub registers: Kind,
    /// What a deployment may be told.
    pub takes: &'static [Flag],
    /// What of that may change while a policy is live.
    pub changeable: &'static [Flag],
    /// A constant by which a policy says what it wants of the hook.
    pub settings: Option<Constant>,
    /// The object with prologue, `extern schedule()` and epilogue, with which the engine
    /// links a policy.
    pub trusted_half: &'static [u8],
    /// Policies that ship with it.
    pub policies: &'static [Builtin],
}

impl PartialEq for Spec {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// A constant in a policy's object that the SDK's headers declare for one hook.
#[derive(Debug, Clone, Copy)]
pub struct Constant {
    /// Its name, which starts with `syrup_`.
    pub name: &'static str,
    /// Says what is wrong with its bytes; of a policy without it, there are none.
    pub check: fn(&[u8]) -> Result<(), String>,
}

/// Something that a deployment may be told: `--NAME` of `load`, a key of a request's target.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub syntax: Syntax,
    /// Who may use it.
    pub who: Who,
    /// For people.
    pub help: &'static str,
}

/// Who may use a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The app's owner.
    Owner,
    /// Root, who adopts what everybody else lets the application register.
    Adopter,
    /// Root, who says what others may have.
    Operator,
}

/// What a flag may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// An integer in these bounds.
    Number {
        /// Smallest.
        least: u32,
        /// Largest.
        most: u32,
    },
    /// Different integers in these bounds, `53,853`; in JSON a list of numbers.
    Numbers {
        /// Smallest.
        least: u32,
        /// Largest.
        most: u32,
    },
    /// Some of these words, `udp,tcp`; in JSON a list.
    Words(&'static [&'static str]),
    /// Cores as the kernel writes them, `0-3,8`; in JSON an ascending list of numbers.
    Cpus,
}

/// The highest core that a list may name.
const MOST_CPUS: u32 = 8192;

impl Flag {
    /// What stands for its value in a usage line.
    #[must_use]
    pub fn placeholder(&self) -> &'static str {
        match self.syntax {
            Syntax::Number { .. } => "N",
            Syntax::Numbers { .. } => "N,...",
            Syntax::Words(_) => "WORD,...",
            Syntax::Cpus => "LIST",
        }
    }

    /// Whether it is a list, which may be given in parts.
    #[must_use]
    pub fn is_list(&self) -> bool {
        !matches!(self.syntax, Syntax::Number { .. })
    }

    /// Reads what a user typed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let value = match self.syntax {
            Syntax::Number { .. } => self.number(text)?,
            Syntax::Numbers { .. } => {
                text.split(',').map(|part| self.number(part)).collect::<Result<Vec<_>, _>>()?.into()
            }
            Syntax::Words(_) => text.split(',').collect::<Vec<_>>().into(),
            Syntax::Cpus => parse_cpus(text)?.into(),
        };
        self.check(&value).map(|()| value)
    }

    fn number(&self, text: &str) -> Result<Value, String> {
        let number: Result<u32, _> = text.parse();
        number.map(Value::from).map_err(|_| format!("'{text}' is {}", self.expected()))
    }

    /// Of a flag that was given more than once: of lists all parts, else the last.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn join(&self, given: impl IntoIterator<Item = Value>) -> Result<Value, String> {
        let joined = given.into_iter().reduce(|before, value| match (before, value) {
            (Value::Array(mut all), Value::Array(more)) => {
                all.extend(more);
                if matches!(self.syntax, Syntax::Cpus) {
                    all.sort_by_key(Value::as_u64);
                    all.dedup();
                }
                all.into()
            }
            (_, value) => value,
        });
        let joined = joined.unwrap_or_default();
        self.check(&joined).map(|()| joined)
    }

    /// Checks what a request says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let is_number =
            |value: &Value, least, most| number(value).is_some_and(|n| (least..=most).contains(&n));
        let is_word = |value: &Value, words: &[&str]| {
            value.as_str().is_some_and(|word| words.contains(&word))
        };
        let fits = match self.syntax {
            Syntax::Number { least, most } => is_number(value, least, most),
            Syntax::Numbers { least, most } => {
                is_list_of(value, |value| is_number(value, least, most))
            }
            Syntax::Words(words) => is_list_of(value, |value| is_word(value, words)),
            Syntax::Cpus => value.as_array().is_some_and(|cpus| {
                let cpus: Option<Vec<u32>> = cpus.iter().map(number).collect();
                cpus.is_some_and(|cpus| {
                    cpus.is_sorted_by(|a, b| a < b) && cpus.iter().all(|&cpu| cpu < MOST_CPUS)
                })
            }),
        };
        if fits { Ok(()) } else { Err(format!("{value} is {}", self.expected())) }
    }

    fn expected(&self) -> String {
        match self.syntax {
            Syntax::Number { least, most } => format!("not a number from {least} to {most}"),
            Syntax::Numbers { least, most } => {
                format!("no list of different numbers from {least} to {most}")
            }
            Syntax::Words(words) => format!("no list of some of {}", words.join(", ")),
            Syntax::Cpus => format!("no ascending list of cores below {MOST_CPUS}"),
        }
    }
}

/// A list of something, not empty and each only once.
fn is_list_of(value: &Value, fits: impl Fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|items| {
        let once = |(at, item): (usize, &Value)| !items[..at].contains(item);
        !items.is_empty() && items.iter().all(fits) && items.iter().enumerate().all(once)
    })
}

fn parse_cpus(text: &str) -> Result<Vec<u32>, String> {
    let number = |part: &str| match part.trim().parse::<u32>() {
        Ok(cpu) if cpu < MOST_CPUS => Ok(cpu),
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
    Ok(cpus)
}

/// The process whose executors or inputs are adopted, at any hook.
pub const PID: Flag = Flag {
    name: "pid",
    syntax: Syntax::Number { least: 1, most: i32::MAX as u32 },
    who: Who::Adopter,
    help: "Adopt the sockets or threads of this running process",
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const fn flag(syntax: Syntax) -> Flag {
        Flag { name: "x", syntax, who: Who::Owner, help: "" }
    }

    #[test]
    fn numbers_have_bounds() {
        let port = flag(Syntax::Number { least: 1, most: 65535 });
        assert_eq!(port.parse("7000"), Ok(json!(7000)));
        for bad in ["0", "65536", "-1", "x", "", "1.5"] {
            let error = port.parse(bad).unwrap_err();
            assert!(error.contains("not a number from 1 to 65535"), "{error}");
        }
        for bad in [json!(0), json!(65536), json!("7000"), json!(1.5), json!(null)] {
            assert!(port.check(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_name_each_once() {
        let proto = flag(Syntax::Words(&["udp", "tcp"]));
        assert_eq!(proto.parse("tcp"), Ok(json!(["tcp"])));
        assert_eq!(proto.parse("tcp,udp"), Ok(json!(["tcp", "udp"])));
        assert_eq!(proto.parse("sctp").unwrap_err(), "[\"sctp\"] is no list of some of udp, tcp");
        for bad in [json!(6), json!("udp"), json!([]), json!(["udp", "udp"]), json!([6])] {
            assert!(proto.check(&bad).is_err(), "{bad}");
        }
        let ports = flag(Syntax::Numbers { least: 1, most: 65535 });
        assert_eq!(ports.parse("53,853"), Ok(json!([53, 853])));
        for bad in ["", "53,", "0", "65536", "53,53", "dns", "-1"] {
            let error = ports.parse(bad).unwrap_err();
            assert!(error.contains("different numbers from 1 to 65535"), "{error}");
        }
        assert!(ports.check(&json!(53)).is_err() && ports.check(&json!([53])).is_ok());
        assert_eq!(ports.join([json!([53]), json!([853, 5353])]), Ok(json!([53, 853, 5353])));
        assert!(ports.join([json!([53]), json!([53])]).is_err());
        let cpus = flag(Syntax::Cpus);
        assert_eq!(cpus.join([json!([4, 5]), json!([0, 4])]), Ok(json!([0, 4, 5])));
        let pid = flag(Syntax::Number { least: 1, most: 9 });
        assert_eq!(pid.join([json!(1), json!(2)]), Ok(json!(2)));
    }

    #[test]
    fn core_lists_are_read_like_the_kernels() {
        let cpus = flag(Syntax::Cpus);
        assert_eq!(cpus.parse("0-2,5,1"), Ok(json!([0, 1, 2, 5])));
        assert_eq!(cpus.parse("7"), Ok(json!([7])));
        for bad in ["", "a", "3-1", "1,", "0-99999999", "-1"] {
            assert!(cpus.parse(bad).is_err(), "{bad}");
        }
        assert_eq!(cpus.check(&json!([0, 8191])), Ok(()));
        for bad in [json!([1, 0]), json!([1, 1]), json!([8192]), json!([-1]), json!("0")] {
            assert!(cpus.check(&bad).is_err(), "{bad}");
        }
    }
}
