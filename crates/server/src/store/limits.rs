//! The limits of the store, each named in chapter 5 of `docs/spec/jobs.md`.

use std::time::Duration;

/// Size from which on a journal is rewritten with what is still needed of it, in bytes; it is not
/// before it has doubled since the last time (`J-5.4`).
pub const JOURNAL_REWRITE_BYTES: u64 = 1024 * 1024;

/// Largest journal, in bytes; one that would be larger takes no more jobs (`J-5.4`).
pub const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long is waited at most before it is tried again to write what could not be written into the journal
/// or the index; at first it is [`INDEX_DELAY`], and twice as long each time (`J-5.4`, `J-5.10`).
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// How long a supervisor that ends waits for each of its threads to write what it was given (`J-5.12`).
pub const THREAD_PATIENCE: Duration = Duration::from_secs(5);

/// Most output of one job that is kept on the disk, in bytes, with what it takes beside (`J-3.4`).
pub const SPOOL_JOB_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Most output of all jobs of a user that is kept on the disk, in bytes (`J-3.4`).
pub const SPOOL_USER_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

/// Size from which on a segment of a spool is followed by the next one, in bytes: what is released
/// goes in whole segments (`J-5.5`).
pub const SPOOL_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// What one job may have on its way to the disk before it has to wait, in bytes (`J-5.7`).
pub const SPOOL_QUEUED_BYTES_MAX: u64 = 1024 * 1024;

/// Most lines that can be counted back from the end of a spool (`J-5.9`).
pub const SPOOL_TAIL_LINES_MAX: u64 = 1_000_000;

/// How long an id is remembered from the end of its job on (`J-1.7`).
pub const TOMBSTONE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Most ended jobs that are remembered; of more, those go first that ended first (`J-5.10`).
pub const INDEX_JOBS_MAX: u64 = 250_000;

/// Most jobs on one page of a list (`J-5.10`).
pub const INDEX_PAGE_JOBS_MAX: u32 = 1000;

/// How long an ended job waits in the journal for others to be put into the index with it (`J-5.10`).
pub const INDEX_DELAY: Duration = Duration::from_millis(250);

/// Most jobs that are put into the index in one step (`J-5.10`).
pub const INDEX_BATCH_JOBS_MAX: usize = 1024;

/// How often is looked for what need not be kept any more (`J-5.11`).
pub const RETENTION_INTERVAL: Duration = Duration::from_secs(600);

/// How far the wall clock may go wrong against the time since boot before nothing is let go of by it
/// (`J-5.11`).
pub const CLOCK_JUMP_MAX: Duration = Duration::from_secs(3600);

/// How much of the user's quota jobs that have ended may fill before the output of the oldest goes, in
/// percent: so that what they left does not stop those that run (`J-5.11`).
pub const RETAINED_PERCENT_MAX: u64 = 80;
