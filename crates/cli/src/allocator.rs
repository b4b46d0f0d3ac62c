//! One setting of the C library's allocator, so that the process holds what its tensors hold and
//! not more.

/// Asks glibc to hand large blocks back to the system when they are freed.
///
/// By default glibc raises the size from which it does so up to 32 MiB as blocks are freed, and
/// then keeps the holes that batches of changing sizes leave: 383 MiB resident where the tensors
/// held 170 MiB (MiniLM-L6, batches of 32 film reviews). With a fixed threshold the same run held
/// 195 MiB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn return_large_blocks() {
    const THRESHOLD: libc::c_int = 128 * 1024;
    // SAFETY: `mallopt` may be called at any time; this runs first in `main`, before other threads
    // exist. The parameter is one that glibc documents, and a refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, THRESHOLD);
    }
}

/// Other allocators need no such setting.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn return_large_blocks() {}
