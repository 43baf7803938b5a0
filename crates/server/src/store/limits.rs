//! The limits of the store, each named in chapter 5 of `docs/spec/jobs.md`.

use std::time::Duration;

/// What a retry's first sending has to be younger than the journal, so that clocks which are read at
/// different moments decide nothing (`J-1.6`).
pub const RETRY_MARGIN: Duration = Duration::from_secs(5);

/// Size from which on a journal is rewritten with what is still needed of it, in bytes; it is not
/// before it has doubled since the last time (`J-5.4`).
pub const JOURNAL_REWRITE_BYTES: u64 = 1024 * 1024;

/// Largest journal, in bytes; one that would be larger takes no more jobs (`J-5.4`).
pub const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
