//! Policies on their way from the engine to a hook.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// The program in every trusted half that calls `schedule()`: what the verifier
/// says of it, it says of the user's code.
pub const POLICY_PROGRAM: &str = "syrup_policy";

/// A policy that ships with its hook: source for people, object for hosts without clang.
#[derive(Debug, Clone, Copy)]
pub struct Builtin {
    /// The name users type, kebab-case.
    pub name: &'static str,
    /// First sentence of the source's head comment.
    pub summary: &'static str,
    /// The C source.
    pub source: &'static str,
    /// The object, compiled with the hook's crate.
    pub object: &'static [u8],
}

/// A checked policy linked with a hook's trusted half: ready to be opened,
/// given its Maps and loaded. Made by the engine only.
#[derive(Debug)]
pub struct Linked {
    /// Built-in name or file stem, as `list` shows it.
    pub name: String,
    /// SHA-256 of the canonical object, before parameters were set.
    pub sha256: [u8; 32],
    /// Parameters that were set in the object, as they were written.
    pub params: BTreeMap<String, String>,
    /// The linked ELF object.
    pub object: Vec<u8>,
    /// The app's Maps that the policy names: created, pinned, possibly shared.
    pub maps: BTreeMap<String, OwnedFd>,
    /// The bytes of the constant that the hook asks for ([`Spec::settings`](crate::Spec)), as
    /// they stand in the policy; empty when it has none.
    pub settings: Vec<u8>,
    /// Whose app it is for.
    pub owner: u32,
}
