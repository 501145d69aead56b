//! `layout.h` as Rust sees it; the header carries the documentation.
#![allow(missing_docs, non_camel_case_types, dead_code, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/layout.rs"));

/// Plain data of `layout.h` and `abi.h`: integers only, no padding the
/// compiler adds, every bit pattern valid.
///
/// # Safety
/// Only for such types.
pub(crate) unsafe trait Plain: Copy + Default {
    fn bytes(&self) -> &[u8] {
        // SAFETY: Plain types have no uninitialised bytes.
        unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(self).cast::<u8>(), size_of::<Self>())
        }
    }

    /// `None` when there are too few bytes.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: there are enough bytes and each bit pattern is a value.
        Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }
}

// SAFETY: layout.h asserts their sizes, which leave no room for padding; all below too.
unsafe impl Plain for syrup_scx_app {}
// SAFETY: as above.
unsafe impl Plain for syrup_scx_thread {}
// SAFETY: as above.
unsafe impl Plain for syrup_scx_time {}
// SAFETY: as above.
unsafe impl Plain for syrup_scx_root {}
// SAFETY: as above.
unsafe impl Plain for syrup_scx_make_cores {}
// SAFETY: as above.
unsafe impl Plain for syrup_scx_set_index {}
// SAFETY: as above.
unsafe impl Plain for syrup_scx_has_room {}
// SAFETY: as above.
unsafe impl Plain for syrup_scx_free_index {}
// SAFETY: as above.
unsafe impl Plain for syrup_scx_register {}
