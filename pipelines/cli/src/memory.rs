//! The system's allocator.

use pyrograph::WeightType;

/// Has the system's allocator keep memory that is freed instead of giving it back: a network on the CPU
/// asks for the same blocks again and again, and getting them anew costs up to a fifth of its time, and of reading a
/// text encoder block by block more than half.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub(crate) fn keep() {
    /// Blocks up to this size, in bytes, are kept: a matrix of T5-XXL takes 200 MB.
    const BLOCK: i32 = 1 << 30;
    /// At most this much is: two of its blocks.
    const TOTAL: i32 = i32::MAX;
    // SAFETY: sets numbers of the allocator, before there is another thread.
    unsafe {
        // What other threads ask for comes from the same memory; their own would not hold large blocks.
        libc::mallopt(libc::M_ARENA_MAX, 1);
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
