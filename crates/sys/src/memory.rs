//! How this process's allocator treats freed memory.

/// Freed memory that the allocator keeps for the next request, in bytes.
const KEPT_BYTES: libc::c_int = 16 * 1024 * 1024;

/// Keeps a few freed mebibytes within the process instead of giving each back to the kernel.
///
/// Output travels in buffers of 64 to 256 KiB. With its defaults glibc maps, or returns to the
/// kernel, memory of that size again and again, and every page of it costs a fault when it is next
/// used: a third of a receiver's time was measured there. To be called once, at the start of a
/// program; other allocators have no such trouble, and there this does nothing.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt takes two numbers and touches only the allocator's own settings.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES) };
        // SAFETY: as above.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = KEPT_BYTES;
}
