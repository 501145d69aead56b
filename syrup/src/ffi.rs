//! The C functions of `include/syrup/syrup.h`; what they promise is said there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::fd::{BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::{App, Map};

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Mappings handed out, by address: munmap needs their lengths.
static MAPPINGS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// Runs one call: errors become negative errnos and the thread's last error,
/// and no panic reaches C.
fn guard(call: impl FnOnce() -> Result<c_int>) -> c_int {
    let error = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return value,
        Ok(Err(error)) => error,
        Err(_) => {
            remember("a defect of libsyrup");
            return -Errno::IO.raw_os_error();
        }
    };
    remember(&format!("{error:#}"));
    -error.errno()
}

fn remember(text: &str) {
    let text = CString::new(text.replace('\0', "?")).unwrap_or_default();
    // Without its thread-local storage a thread that is ending learns the errno only.
    let _ = LAST_ERROR.try_with(|last| last.replace(text));
}

/// # Safety
/// `text` is NULL or a C string that lives for `'a`.
unsafe fn c_str<'a>(text: *const c_char, what: &str) -> Result<&'a OsStr> {
    if text.is_null() {
        return Err(Error::Usage(format!("{what} is NULL")));
    }
    // SAFETY: the caller's promise.
    Ok(OsStr::from_bytes(unsafe { CStr::from_ptr(text) }.to_bytes()))
}

fn borrow<'a>(fd: c_int) -> Result<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(bad_fd());
    }
    // SAFETY: not -1; that it stays open during the call is the C caller's promise.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // A closed one is refused now: its number may be that of the next descriptor
    // we open ourselves.
    rustix::io::fcntl_getfd(fd).map_err(|_| bad_fd())?;
    Ok(fd)
}

fn bad_fd() -> Error {
    Error::Map { what: "use the descriptor".to_owned(), source: Errno::BADF.into() }
}

fn map(fd: c_int) -> Result<Map> {
    let copy = borrow(fd)?
        .try_clone_to_owned()
        .map_err(|source| Error::Map { what: format!("use descriptor {fd} as a Map"), source })?;
    Map::from_fd(copy)
}

fn index_of(index: c_int) -> Result<Option<u32>> {
    match index {
        -1 => Ok(None),
        index => u32::try_from(index)
            .map(Some)
            .map_err(|_| Error::Usage(format!("{index} is no index: 0 and up, or -1"))),
    }
}

fn as_int(index: u32) -> Result<c_int> {
    c_int::try_from(index).map_err(|_| Error::Usage(format!("index {index} does not fit an int")))
}

/// A NULL-terminated array of "NAME=VALUE"; NULL: none.
///
/// # Safety
/// `params` is NULL, or points to C strings and a NULL behind them, which live for `'a`.
unsafe fn assignments<'a>(params: *const *const c_char) -> Result<Vec<(&'a str, &'a str)>> {
    let mut found = Vec::new();
    if params.is_null() {
        return Ok(found);
    }
    for at in 0.. {
        // SAFETY: not behind the NULL that ends it, by the caller's promise.
        let text = unsafe { *params.add(at) };
        if text.is_null() {
            break;
        }
        // SAFETY: the caller's promise.
        let text = unsafe { CStr::from_ptr(text) };
        let assignment = text.to_str().ok().and_then(|text| text.split_once('='));
        found.push(assignment.filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
            Error::Usage(format!("params: '{}' is not NAME=VALUE", text.to_string_lossy()))
        })?);
    }
    Ok(found)
}

/// See `syrup.h`.
///
/// # Safety
/// Both arguments are NULL or C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syr_deploy_policy(
    policy_file: *const c_char,
    hook: *const c_char,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { syr_deploy_policy_with(policy_file, hook, std::ptr::null()) }
}

/// See `syrup.h`.
///
/// # Safety
/// `policy_file` and `hook` are NULL or C strings; `params` is NULL or points to C strings
/// and a NULL behind them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syr_deploy_policy_with(
    policy_file: *const c_char,
    hook: *const c_char,
    params: *const *const c_char,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let policy = unsafe { c_str(policy_file, "policy_file") }?;
        // SAFETY: the caller's promise.
        let hook = unsafe { c_str(hook, "hook") }?;
        // SAFETY: the caller's promise.
        let params = unsafe { assignments(params) }?;
        let app = App::current();
        let deployment = app.deploy_policy_with(policy, &hook.to_string_lossy(), &params)?;
        Ok(OwnedFd::from(deployment).into_raw_fd())
    })
}

/// See `syrup.h`.
///
/// # Safety
/// Both arguments are NULL or C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syr_unload(app: *const c_char, hook: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let hook = unsafe { c_str(hook, "hook") }?;
        let app = match app.is_null() {
            true => App::current(),
            // SAFETY: not NULL; the caller's promise.
            false => App::named(unsafe { c_str(app, "app") }?.to_string_lossy()),
        };
        app.unload(&hook.to_string_lossy()).map(|()| 0)
    })
}

/// See `syrup.h`.
///
/// # Safety
/// `path` is NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syr_map_open(path: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { c_str(path, "path") }?;
        Ok(OwnedFd::from(Map::open(path)?).into_raw_fd())
    })
}

/// See `syrup.h`.
///
/// # Safety
/// `map_fd` came from `syr_map_open` and is used by nobody else any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syr_map_close(map_fd: c_int) -> c_int {
    guard(|| {
        // Closing what is no Map would close a descriptor somebody else owns.
        map(map_fd)?;
        // SAFETY: open, and given up by the caller.
        drop(unsafe { OwnedFd::from_raw_fd(map_fd) });
        Ok(0)
    })
}

/// See `syrup.h`.
///
/// # Safety
/// `value` is NULL or points to a u64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syr_map_lookup_elem(map_fd: c_int, key: u32, value: *mut u64) -> c_int {
    guard(|| {
        if value.is_null() {
            return Err(Error::Usage("value is NULL".to_owned()));
        }
        let found = map(map_fd)?.lookup::<u64>(key)?;
        // SAFETY: not NULL; the caller's promise.
        unsafe { value.write(found) };
        Ok(0)
    })
}

/// See `syrup.h`.
#[unsafe(no_mangle)]
pub extern "C" fn syr_map_update_elem(map_fd: c_int, key: u32, value: u64) -> c_int {
    guard(|| map(map_fd)?.update(key, value).map(|()| 0))
}

/// See `syrup.h`.
#[unsafe(no_mangle)]
pub extern "C" fn syr_register_socket(fd: c_int, index: c_int) -> c_int {
    guard(|| as_int(App::current().register_socket(borrow(fd)?, index_of(index)?)?))
}

/// See `syrup.h`.
#[unsafe(no_mangle)]
pub extern "C" fn syr_register_thread(tid: libc::pid_t, index: c_int) -> c_int {
    guard(|| as_int(App::current().register_thread(tid, index_of(index)?)?))
}

/// See `syrup.h`.
#[unsafe(no_mangle)]
pub extern "C" fn syr_unregister_socket(fd: c_int) -> c_int {
    guard(|| App::current().unregister_socket(borrow(fd)?).map(|()| 0))
}

/// See `syrup.h`.
#[unsafe(no_mangle)]
pub extern "C" fn syr_unregister_thread(tid: libc::pid_t) -> c_int {
    guard(|| App::current().unregister_thread(tid).map(|()| 0))
}

/// See `syrup.h`.
#[unsafe(no_mangle)]
pub extern "C" fn syr_map_mmap(map_fd: c_int) -> *mut c_void {
    let mut mapped = std::ptr::null_mut();
    let err = guard(|| {
        let (address, len) = map(map_fd)?.mmap()?.into_raw();
        MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner).insert(address as usize, len);
        mapped = address;
        Ok(0)
    });
    if err < 0 {
        // SAFETY: errno is this thread's.
        unsafe { *libc::__errno_location() = -err };
    }
    mapped
}

/// See `syrup.h`.
///
/// # Safety
/// `address` came from `syr_map_mmap`, and nobody uses the memory any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syr_map_munmap(address: *mut c_void) -> c_int {
    guard(|| {
        let len = MAPPINGS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(address as usize))
            .ok_or_else(|| Error::Usage("not an address from syr_map_mmap()".to_owned()))?;
        // SAFETY: a mapping of ours of this length, given up by the caller.
        unsafe { rustix::mm::munmap(address, len) }
            .map_err(|e| Error::Map { what: "unmap a Map".to_owned(), source: e.into() })?;
        Ok(0)
    })
}

/// See `syrup.h`.
#[unsafe(no_mangle)]
pub extern "C" fn syr_version() -> u32 {
    let part = |text: &str| text.parse::<u32>().unwrap_or_default();
    part(env!("CARGO_PKG_VERSION_MAJOR")) << 16
        | part(env!("CARGO_PKG_VERSION_MINOR")) << 8
        | part(env!("CARGO_PKG_VERSION_PATCH"))
}

/// See `syrup.h`.
#[unsafe(no_mangle)]
pub extern "C" fn syr_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_at_the_border() {
        assert_eq!(guard(|| panic!("on purpose")), -libc::EIO);
    }

    #[test]
    fn wrong_arguments_are_answered_with_an_errno_and_a_text() {
        // SAFETY: NULL and non-descriptors are what is tested.
        unsafe {
            assert_eq!(syr_deploy_policy(std::ptr::null(), std::ptr::null()), -libc::EINVAL);
            assert_eq!(CStr::from_ptr(syr_last_error()), c"policy_file is NULL");
            assert_eq!(syr_map_open(std::ptr::null()), -libc::EINVAL);
            assert_eq!(syr_map_close(-1), -libc::EBADF);
            assert_eq!(syr_map_lookup_elem(0, 0, std::ptr::null_mut()), -libc::EINVAL);
            assert_eq!(syr_map_munmap(std::ptr::null_mut()), -libc::EINVAL);
        }
        assert_eq!(syr_register_socket(-1, -1), -libc::EBADF);
        assert_eq!(syr_register_socket(9999, -1), -libc::EBADF);
        assert_eq!(syr_register_thread(0, -2), -libc::EINVAL);
        assert!(syr_map_mmap(9999).is_null());
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn closing_what_is_no_map_leaves_it_open() {
        use std::os::fd::AsRawFd as _;
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: nothing is closed, which is what is tested.
        assert!(unsafe { syr_map_close(file.as_raw_fd()) } < 0);
        assert!(file.metadata().is_ok());
    }
}
