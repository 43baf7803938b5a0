//! The limits of what a session holds for its caller, each with a test on both of its sides.

use std::time::Duration;

/// Bytes of a job's stdin that may wait in this process before
/// [`Stdin::write`](crate::Stdin::write) waits.
pub(crate) const STDIN_QUEUED_BYTES_MAX: usize = 512 * 1024;

/// Pieces of a job's output that wait as they came, each with the memory that it was read into.
pub(crate) const EVENT_PIECES_LOOSE_MAX: usize = 64;

/// Bytes of output after which a block of pressed pieces takes no further one.
pub(crate) const EVENT_BLOCK_BYTES: usize = 64 * 1024;

/// Pieces of sent input up to this size are copied together while they wait for their
/// acknowledgement.
pub(crate) const INPUT_PIECE_COPIED_BYTES: usize = 4 * 1024;

/// Signals of a job that wait for a link, or for the server's answer on it (`J-4.5`): more than any
/// system has.
pub(crate) const SIGNALS_WAITING_MAX: usize = 64;

/// The least wait before an attempt to make a lost connection again (`J-4.1`).
pub(crate) const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// The longest (`J-4.1`).
pub(crate) const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(30);

/// The longest wait where the server has said that another process takes its place (`J-4.3`).
pub(crate) const RECONNECT_SPREAD: Duration = Duration::from_millis(500);

/// For how long a client tries to make a lost connection again if nothing else is said (`J-4.1`).
pub const RECONNECT_FOR: Duration = Duration::from_secs(600);
