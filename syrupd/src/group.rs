//! The users who may ask the daemon.

use nix::unistd::Group;
use syrup_protocol::{Code, Failure, Result};

/// The group of those users, unless told otherwise.
pub const DEFAULT_GROUP: &str = "syrup";

/// The number of the group that is `named`, or of [`DEFAULT_GROUP`]; `None` when nobody made
/// that one, and where only the daemon's own user is to be served: when it is not root's.
///
/// # Errors
/// [`Code::Usage`] when there is no group of that name.
pub fn of_users(named: Option<&str>) -> Result<Option<u32>> {
    let unknown = |name: &str, why: &str| {
        Failure::new(Code::Usage, format!("group '{name}': {why}"))
            .advise("give the name or number of a group ('groupadd --system NAME' makes one)")
    };
    if let Some(name) = named {
        return match name.parse::<u32>() {
            // What chown(2) takes for nobody.
            Ok(u32::MAX) => Err(unknown(name, "it is no group")),
            Ok(gid) => Ok(Some(gid)),
            Err(_) => match Group::from_name(name) {
                Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
                Ok(None) => Err(unknown(name, "there is no such group")),
                Err(e) => Err(unknown(name, &format!("it cannot be looked up: {e}"))),
            },
        };
    }
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    // Nobody asked for it: a system without groups has none either.
    let found = Group::from_name(DEFAULT_GROUP).unwrap_or_else(|e| {
        log::warn!("group '{DEFAULT_GROUP}' cannot be looked up: {e}");
        None
    });
    if found.is_none() {
        log::info!(
            "there is no group '{DEFAULT_GROUP}': only root is served; \
             'groupadd --system {DEFAULT_GROUP}' and a restart let its users in"
        );
    }
    Ok(found.map(|group| group.gid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_a_name_or_a_number() {
        assert_eq!(of_users(Some("root")), Ok(Some(0)));
        assert_eq!(of_users(Some("4000000000")), Ok(Some(4_000_000_000)));
        for bad in ["", "no such group", "-1", "4294967295", "4294967296"] {
            let error = of_users(Some(bad)).unwrap_err();
            assert_eq!(error.code, Code::Usage, "{bad}: {error}");
        }
    }
}
