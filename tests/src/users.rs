//! Other users.

use rustix::process::{Gid, Uid};

/// The group of all of them, whom the daemons of tests serve.
pub const GROUP: u32 = 4242;

/// Runs `act` in a thread that is `uid`: credentials are a thread's, and the kernel tells them
/// to whom it connects.
///
/// # Panics
/// When it cannot (needs root), and as `act`.
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    let become_user = move || {
        if uid != 0 {
            let (user, group) = (Uid::from_raw(uid), Gid::from_raw(GROUP));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(group, group, group).unwrap();
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        }
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            become_user();
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
