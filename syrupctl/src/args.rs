//! How arguments that several commands take are read.

use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use syrup_hook::HookId;
use syrup_protocol::names;

/// The app of commands that name none.
pub const DEFAULT_APP: &str = "default";

/// Hook names, from the one registry.
pub fn hook_parser() -> impl TypedValueParser<Value = HookId> {
    PossibleValuesParser::new(HookId::ALL.iter().map(|hook| hook.name()))
        .try_map(|name| HookId::from_str(&name))
}

/// App names are folder names in bpffs and appear in messages.
pub fn app_name(text: &str) -> Result<String, String> {
    match names::check_app(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(failure) => Err(failure.advice.unwrap_or(failure.message)),
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
