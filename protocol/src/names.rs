//! Which names are names.

use crate::failure::{Code, Failure, Result};

/// Longest app name.
const MAX_APP_NAME: usize = 63;

/// App names: `[a-z0-9][a-z0-9-]{0,62}`.
///
/// # Errors
/// [`Code::Usage`].
pub fn check_app(name: &str) -> Result<()> {
    let fits = (1..=MAX_APP_NAME).contains(&name.len())
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits {
        return Ok(());
    }
    Err(Failure::new(Code::Usage, format!("'{name}' is no app name"))
        .advise("use 1 to 63 of a-z, 0-9 and '-', not starting with '-'"))
}

/// An executable's name as an app name.
#[must_use]
pub fn app_name_of(executable: &str) -> String {
    let mut name: String = executable
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .skip_while(|&c| c == '-')
        .take(MAX_APP_NAME)
        .collect();
    if name.is_empty() {
        name.push_str("app");
    }
    name
}

/// Names of policy files, which diagnostics and lists show.
///
/// # Errors
/// [`Code::Usage`] for control characters: a terminal would obey them.
pub fn check_file(name: &str) -> Result<()> {
    if name.chars().any(char::is_control) {
        let message = format!("a policy's file name has control characters: {name:?}");
        return Err(Failure::new(Code::Usage, message).advise("rename the file"));
    }
    Ok(())
}

/// Map names: C identifiers that fit into the kernel's 15 characters, so that
/// no two Maps of an app can look alike.
pub fn is_map(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Map names in requests.
///
/// # Errors
/// [`Code::Usage`].
pub fn check_map(name: &str) -> Result<()> {
    if is_map(name) {
        return Ok(());
    }
    Err(Failure::new(Code::Usage, format!("'{name}' is no Map name"))
        .advise("a Map's name is the one in SYRUP_MAP(name, entries)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_names_cannot_leave_their_folder() {
        for good in ["a", "0", "rocks-db-2", &"x".repeat(63)] {
            assert!(check_app(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a/b", "..", "_scx", "a.b", "a b", &"x".repeat(64), "\u{e9}"] {
            assert_eq!(check_app(bad).unwrap_err().code, Code::Usage, "{bad}");
        }
    }

    #[test]
    fn executables_of_any_name_make_app_names() {
        for (executable, name) in [
            ("memcached", "memcached"),
            ("My Server_2.0", "my-server-2-0"),
            ("--x", "x"),
            ("", "app"),
            ("\u{e9}\u{e9}", "app"),
        ] {
            assert_eq!(app_name_of(executable), name, "{executable}");
        }
        assert_eq!(app_name_of(&"a".repeat(100)).len(), MAX_APP_NAME);
    }

    #[test]
    fn file_names_say_nothing_to_terminals() {
        for good in ["p.c", "./a b/\u{e9}.o", ""] {
            assert!(check_file(good).is_ok(), "{good}");
        }
        for bad in ["a\nb.c", "\u{1b}[2J.c", "\u{9b}2J.o", "\0"] {
            assert_eq!(check_file(bad).unwrap_err().code, Code::Usage, "{bad:?}");
        }
    }

    #[test]
    fn map_names_are_short_identifiers() {
        for good in ["request_type", "A9", "_", "a", "fifteen_letters"] {
            assert!(is_map(good) && check_map(good).is_ok(), "{good}");
        }
        for bad in ["", "9a", "a-b", "a.b", "sixteen_letters_", "\u{e9}", "a b"] {
            assert!(!is_map(bad), "{bad}");
            assert_eq!(check_map(bad).unwrap_err().code, Code::Usage, "{bad}");
        }
    }
}
