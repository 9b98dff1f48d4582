//! The system's allocator.

use pyrograph::WeightType;

/// Has the system's allocator keep memory that is freed instead of giving it back: a network on the CPU
/// asks for the same blocks again and again, and getting them anew costs up to a fifth of its time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub(crate) fn keep() {
    /// Blocks up to this size, in bytes, are kept.
    const BLOCK: i32 = 64 << 20;
    /// At most this much is.
    const TOTAL: i32 = 512 << 20;
    // SAFETY: sets two numbers of the allocator, before there is another thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TOTAL);
    }
}

/// Gives what is freed by now back to the system after all, where a model was loaded in more than it keeps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub(crate) fn give_back(dtype: WeightType) {
    if dtype == WeightType::Int8 {
        // SAFETY: may be called at any time.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back(_: WeightType) {}
