//! The limits of jobs: `docs/spec/jobs.md` names each, and tests stand on both of its sides.

use std::time::Duration;

/// How much longer than a request's age a server must have remembered every request before it
/// starts an id that it does not know (`J-1.6`).
pub const RETRY_MARGIN: Duration = Duration::from_secs(5);

/// Bytes of a stream that are held in memory while nobody owns its job (`J-3.2`).
pub const HELD_BYTES_MAX: u64 = 1024 * 1024;

/// Bytes of a stream from which on those of a job that nobody owns go to the spool (`J-3.2`).
pub const SPILL_BYTES: u64 = HELD_BYTES_MAX / 2;

/// Most bytes that are read from the spool at a time for one attachment.
pub const SPOOL_READ_BYTES: usize = 256 * 1024;

/// Bytes of a stream that its owner may leave unacknowledged; its job's pipe is read no further
/// (`J-3.1`). Twice the credit that a client grants, of which it acknowledges each quarter.
pub const UNACKED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Attachments of one job at once, the owner's included (`J-2.1`).
pub const ATTACHMENTS_MAX: usize = 256;

/// How long the rest of a job that nobody has confirmed, and its outcome, are kept (`J-3.6`).
pub const UNCONFIRMED_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// Silence after which output that others still hold open counts as over (`W-7.5`).
pub const DRAIN_SILENCE: Duration = Duration::from_millis(250);

/// Time after which it counts as over even if it is not silent (`W-7.5`).
pub const DRAIN_MAX: Duration = Duration::from_secs(2);
