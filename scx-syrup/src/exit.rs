//! Why the kernel ended the root scheduler.

use crate::layout::syrup_scx_exit;

/// Where the record says how it ended.
pub(crate) const EXIT_KIND: usize = std::mem::offset_of!(syrup_scx_exit, kind);
/// The first of `enum scx_exit_kind` that is a fault, and nobody's wish.
pub(crate) const FIRST_ERROR: u32 = 1024;

/// How it ended; 0 when it has not.
pub(crate) fn kind(bytes: &[u8]) -> Option<u32> {
    bytes.get(EXIT_KIND..)?.first_chunk().map(|kind| u32::from_ne_bytes(*kind))
}

/// What people read of a `syrup_scx_exit`; `None` when it has not ended.
pub(crate) fn reason(bytes: &[u8]) -> Option<String> {
    if kind(bytes)? == 0 {
        return None;
    }
    said(bytes)
}

/// What was said at the last end, also when it was put back since.
pub(crate) fn said(bytes: &[u8]) -> Option<String> {
    let field = |offset: usize, len: usize| {
        let bytes = bytes.get(offset..offset + len)?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(len);
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    };
    let reason = field(std::mem::offset_of!(syrup_scx_exit, reason), 128)?;
    let message = field(std::mem::offset_of!(syrup_scx_exit, message), 1024)?;
    Some(match (reason.is_empty(), message.is_empty()) {
        (true, true) => "no reason given".to_owned(),
        (false, true) => reason,
        (true, false) => message,
        (false, false) => format!("{reason} ({message})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(kind: u32, reason: &str, message: &str) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<syrup_scx_exit>()];
        bytes[8..12].copy_from_slice(&kind.to_ne_bytes());
        bytes[16..16 + reason.len()].copy_from_slice(reason.as_bytes());
        bytes[144..144 + message.len()].copy_from_slice(message.as_bytes());
        bytes
    }

    #[test]
    fn a_running_scheduler_has_no_reason() {
        assert_eq!(super::reason(&exit(0, "", "")), None);
        assert_eq!(super::reason(&[]), None);
    }

    #[test]
    fn a_stall_says_which_thread() {
        assert_eq!(
            super::reason(&exit(1026, "runnable task stall", "tool[143] failed to run for 2.7s")),
            Some("runnable task stall (tool[143] failed to run for 2.7s)".to_owned())
        );
    }

    #[test]
    fn what_is_said_of_an_end_is_told_and_nothing_else() {
        let say = |reason, message| super::reason(&exit(1, reason, message)).unwrap();
        assert_eq!(say("", ""), "no reason given");
        assert_eq!(say("stall", ""), "stall");
        assert_eq!(say("", "cpu 3"), "cpu 3");
        // A field that is full has no zero at its end.
        let full = "x".repeat(128);
        assert_eq!(say(&full, "y"), format!("{full} (y)"));
        // A record of another version is too short to say anything.
        let short = exit(1, "stall", "");
        assert_eq!(super::reason(&short[..200]), None);
    }
}
