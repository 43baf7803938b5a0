//! The limits of what a session holds for its caller, each with a test on both of its sides.

/// Bytes of a job's stdin that may wait in this process before
/// [`Stdin::write`](crate::Stdin::write) waits.
pub(crate) const STDIN_QUEUED_BYTES_MAX: usize = 512 * 1024;

/// Pieces of a job's output that wait as they came, each with the memory that it was read into.
pub(crate) const EVENT_PIECES_LOOSE_MAX: usize = 64;

/// Bytes of output after which a block of pressed pieces takes no further one.
pub(crate) const EVENT_BLOCK_BYTES: usize = 64 * 1024;
