//! RocksDB through its C API, as much as the experiments need: build a
//! database of numbered keys once, open it read-only, get, scan.
//!
//! The `rocksdb` crate would compile RocksDB itself (10 minutes and more) and
//! no single version of it fits the libraries of Debian 12 and 13.

#[allow(non_camel_case_types)]
mod ffi;

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::ptr;

use crate::turns;

/// Bytes of a value.
pub const VALUE_BYTES: usize = 64;
/// Bytes of a key: a big-endian number, so that key order is number order.
const KEY_BYTES: usize = 8;

/// What RocksDB said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call failed; RocksDB's own words.
    #[error("RocksDB, {during}: {message}")]
    Failed {
        /// What was being done.
        during: &'static str,
        /// RocksDB's message.
        message: String,
    },
    /// The path cannot be given to C.
    #[error("the path {0} holds a NUL byte")]
    Path(String),
    /// A key that must be there is not.
    #[error("key {0} is not in the database: build it with as many keys as --keys says")]
    Missing(u64),
}

type Result<T> = std::result::Result<T, Error>;

/// An open database. `Sync`: every thread reads through the same one.
pub struct Database {
    db: *mut ffi::rocksdb_t,
    options: *mut ffi::rocksdb_options_t,
    read: *mut ffi::rocksdb_readoptions_t,
}

// SAFETY: RocksDB's database handle and its option objects may be used by many
// threads at once as long as the options are not changed (rocksdb/c.h); nothing
// here changes them after open.
unsafe impl Send for Database {}
// SAFETY: as above.
unsafe impl Sync for Database {}

impl Drop for Database {
    fn drop(&mut self) {
        // SAFETY: each pointer came from the matching create call, is not null
        // and is destroyed once; iterators borrow self, so none is left.
        unsafe {
            ffi::rocksdb_close(self.db);
            ffi::rocksdb_readoptions_destroy(self.read);
            ffi::rocksdb_options_destroy(self.options);
        }
    }
}

impl Database {
    /// Writes keys `0..keys`, each with [`VALUE_BYTES`] bytes, into a new
    /// database at `path`, sorted and compacted.
    pub fn build(path: &Path, keys: u64) -> Result<()> {
        let name = c_path(path)?;
        // SAFETY: creates an options object; the setters take it and plain numbers.
        let options = unsafe {
            let options = ffi::rocksdb_options_create();
            ffi::rocksdb_options_set_create_if_missing(options, 1);
            ffi::rocksdb_options_set_compression(options, ffi::NO_COMPRESSION);
            ffi::rocksdb_options_prepare_for_bulk_load(options);
            options
        };
        // SAFETY: `options` and `name` live across the call.
        let opened =
            checked("open", |error| unsafe { ffi::rocksdb_open(options, name.as_ptr(), error) });
        let written = opened.and_then(|db| {
            let written = write_keys(db, keys);
            // SAFETY: `db` is open and not used afterwards.
            unsafe { ffi::rocksdb_close(db) };
            written
        });
        // SAFETY: created above, not used afterwards.
        unsafe { ffi::rocksdb_options_destroy(options) };
        written
    }

    /// Opens the database at `path`, which several processes may do at once,
    /// with a block cache that holds all of it.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self> {
        let name = c_path(path)?;
        // SAFETY: each object is created here and given to a setter that copies
        // it or takes a reference of its own (cache, table factory).
        let (options, read) = unsafe {
            let options = ffi::rocksdb_options_create();
            let table = ffi::rocksdb_block_based_options_create();
            let cache = ffi::rocksdb_cache_create_lru(cache_bytes);
            ffi::rocksdb_block_based_options_set_block_cache(table, cache);
            ffi::rocksdb_options_set_block_based_table_factory(options, table);
            ffi::rocksdb_cache_destroy(cache);
            ffi::rocksdb_block_based_options_destroy(table);
            let read = ffi::rocksdb_readoptions_create();
            ffi::rocksdb_readoptions_set_verify_checksums(read, 0);
            (options, read)
        };
        // SAFETY: `options` and `name` live across the call.
        let opened = checked("open read-only", |error| unsafe {
            ffi::rocksdb_open_for_read_only(options, name.as_ptr(), 0, error)
        });
        match opened {
            Ok(db) => Ok(Self { db, options, read }),
            Err(error) => {
                // SAFETY: created above, not used afterwards.
                unsafe {
                    ffi::rocksdb_readoptions_destroy(read);
                    ffi::rocksdb_options_destroy(options);
                }
                Err(error)
            }
        }
    }

    /// One GET; returns the sum of the value's bytes, so that the value was
    /// really read.
    pub fn get(&self, key: u64) -> Result<u64> {
        let name = key.to_be_bytes();
        // SAFETY: `name` lives across the call; db and read options are valid.
        let slice = checked("get", |error| unsafe {
            ffi::rocksdb_get_pinned(self.db, self.read, name.as_ptr().cast(), KEY_BYTES, error)
        })?;
        if slice.is_null() {
            return Err(Error::Missing(key));
        }
        let mut bytes = 0;
        // SAFETY: `slice` is valid until destroyed below; value and length
        // describe memory that it pins.
        let sum = unsafe {
            let value = ffi::rocksdb_pinnableslice_value(slice, &mut bytes);
            let sum = sum_bytes(value, bytes);
            ffi::rocksdb_pinnableslice_destroy(slice);
            sum
        };
        turns::give();
        Ok(sum)
    }

    /// Reads `count` keys in order, starting at `from` and going on at the
    /// first key after the last one; returns the sum of their bytes.
    pub fn scan(&self, from: u64, count: u64) -> Result<u64> {
        let name = from.to_be_bytes();
        // SAFETY: db and read options are valid and outlive the iterator.
        let cursor = Cursor(unsafe { ffi::rocksdb_create_iterator(self.db, self.read) });
        // SAFETY: `name` lives across the call.
        unsafe { ffi::rocksdb_iter_seek(cursor.0, name.as_ptr().cast(), KEY_BYTES) };
        let mut sum = 0u64;
        let mut left = count;
        let mut fresh = false;
        while left > 0 {
            // SAFETY: the iterator is alive; value and length are valid until
            // the next move.
            unsafe {
                if ffi::rocksdb_iter_valid(cursor.0) == 0 {
                    cursor.check()?;
                    if fresh {
                        return Err(Error::Missing(0));
                    }
                    ffi::rocksdb_iter_seek_to_first(cursor.0);
                    fresh = true;
                    continue;
                }
                let mut bytes = 0;
                let value = ffi::rocksdb_iter_value(cursor.0, &mut bytes);
                sum = sum.wrapping_add(sum_bytes(value, bytes));
                ffi::rocksdb_iter_next(cursor.0);
            }
            fresh = false;
            left -= 1;
            turns::give();
        }
        Ok(sum)
    }
}

struct Cursor(*mut ffi::rocksdb_iterator_t);

impl Cursor {
    fn check(&self) -> Result<()> {
        // SAFETY: the iterator is alive.
        checked("scan", |error| unsafe { ffi::rocksdb_iter_get_error(self.0, error) })
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        // SAFETY: created by rocksdb_create_iterator, destroyed once.
        unsafe { ffi::rocksdb_iter_destroy(self.0) };
    }
}

fn write_keys(db: *mut ffi::rocksdb_t, keys: u64) -> Result<()> {
    const BATCH: u64 = 10_000;
    // SAFETY: creates two objects, destroyed at the end.
    let (write, batch) =
        unsafe { (ffi::rocksdb_writeoptions_create(), ffi::rocksdb_writebatch_create()) };
    // SAFETY: `write` is valid.
    unsafe { ffi::rocksdb_writeoptions_disable_WAL(write, 1) };
    let mut outcome = Ok(());
    let mut first = 0;
    while first < keys && outcome.is_ok() {
        let end = keys.min(first + BATCH);
        for key in first..end {
            let name = key.to_be_bytes();
            let value = value_of(key);
            // SAFETY: the batch copies key and value.
            unsafe {
                ffi::rocksdb_writebatch_put(
                    batch,
                    name.as_ptr().cast(),
                    KEY_BYTES,
                    value.as_ptr().cast(),
                    VALUE_BYTES,
                );
            }
        }
        // SAFETY: db, options and batch are valid.
        outcome = checked("write", |error| unsafe { ffi::rocksdb_write(db, write, batch, error) });
        // SAFETY: the batch is valid and was written.
        unsafe { ffi::rocksdb_writebatch_clear(batch) };
        first = end;
    }
    // SAFETY: not used afterwards.
    unsafe {
        ffi::rocksdb_writebatch_destroy(batch);
        ffi::rocksdb_writeoptions_destroy(write);
    }
    outcome?;
    // SAFETY: creates the flush options, destroyed below.
    let flush = unsafe { ffi::rocksdb_flushoptions_create() };
    // SAFETY: db and options are valid.
    let flushed = checked("flush", |error| unsafe { ffi::rocksdb_flush(db, flush, error) });
    // SAFETY: not used afterwards; a null range means everything.
    unsafe {
        ffi::rocksdb_flushoptions_destroy(flush);
        ffi::rocksdb_compact_range(db, ptr::null(), 0, ptr::null(), 0);
    }
    flushed
}

/// A value: bytes that differ from key to key.
fn value_of(key: u64) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    for (place, byte) in value.iter_mut().enumerate() {
        *byte = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (place % 8 * 8)) as u8;
    }
    value
}

/// # Safety
/// `bytes` bytes at `start` must be readable.
unsafe fn sum_bytes(start: *const c_char, bytes: usize) -> u64 {
    // SAFETY: the caller's promise.
    let slice = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), bytes) };
    slice.iter().map(|&byte| u64::from(byte)).sum()
}

fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::Path(path.display().to_string()))
}

/// Calls `call` with an error pointer and turns what it left there into an error.
fn checked<T>(during: &'static str, call: impl FnOnce(*mut *mut c_char) -> T) -> Result<T> {
    let mut error: *mut c_char = ptr::null_mut();
    let result = call(&mut error);
    if error.is_null() {
        return Ok(result);
    }
    // SAFETY: RocksDB leaves a malloc()ed string that the caller frees.
    let message = unsafe {
        let message = CStr::from_ptr(error).to_string_lossy().into_owned();
        ffi::rocksdb_free(error.cast());
        message
    };
    Err(Error::Failed { during, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(keys: u64) -> (tempfile::TempDir, Database) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        Database::build(&path, keys).unwrap();
        let database = Database::open(&path, 1 << 20).unwrap();
        (folder, database)
    }

    fn sum(key: u64) -> u64 {
        value_of(key).iter().map(|&byte| u64::from(byte)).sum()
    }

    #[test]
    fn a_get_reads_the_value_that_was_written() {
        let (_folder, database) = database(100);
        assert_eq!(database.get(0).unwrap(), sum(0));
        assert_eq!(database.get(99).unwrap(), sum(99));
        assert!(matches!(database.get(100), Err(Error::Missing(100))));
    }

    #[test]
    fn a_scan_reads_keys_in_order_and_wraps() {
        let (_folder, database) = database(1000);
        assert_eq!(database.scan(10, 3).unwrap(), sum(10) + sum(11) + sum(12));
        assert_eq!(database.scan(999, 2).unwrap(), sum(999) + sum(0));
        let all: u64 = (0..1000).map(sum).sum();
        assert_eq!(database.scan(5, 2000).unwrap(), 2 * all);
    }

    #[test]
    fn a_missing_database_is_an_error_in_rocksdbs_words() {
        let folder = tempfile::tempdir().unwrap();
        let error = Database::open(&folder.path().join("none"), 1 << 20).err().unwrap();
        assert!(error.to_string().contains("open read-only"), "{error}");
    }

    #[test]
    fn many_threads_and_handles_read_one_database() {
        let (folder, database) = database(1000);
        let again = Database::open(&folder.path().join("db"), 1 << 20).unwrap();
        std::thread::scope(|scope| {
            for database in [&database, &again, &database] {
                scope.spawn(move || {
                    for key in 0..1000 {
                        assert_eq!(database.get(key).unwrap(), sum(key));
                    }
                });
            }
        });
    }
}
