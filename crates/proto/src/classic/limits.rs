//! Every limit of the classic protocol, in one place; each is named in `docs/spec/classic.md`.

use std::time::Duration;

/// Bytes of a command that scripts read at a time: `recv(1024)`. A command of at least as many may
/// be the beginning of a longer one (`C-3.3`).
pub const READ_BYTES: usize = 1024;

/// How long a command of at least [`READ_BYTES`] is waited for to go on (`C-3.3`).
pub const REST_TIMEOUT: Duration = Duration::from_millis(30);

/// Longest command that a server takes, in bytes (`C-3.4`).
pub const REQUEST_BYTES_MAX: usize = 512 * 1024;

/// Bytes that are kept, for a log, of a request that begins like another protocol (`C-5.4`).
pub const FOREIGN_BYTES_SHOWN: usize = 64;

/// Bytes of the length of a response's header (`C-4.1`).
pub const LENGTH_BYTES: usize = 4;

/// Longest header that a client takes, in bytes (`C-4.2`).
pub const HEADER_BYTES_MAX: u32 = 64 * 1024;

/// Largest `data_size` that a client takes: 2⁵³, what every JSON reader keeps exact (`C-4.4`).
pub const DATA_SIZE_MAX: u64 = 1 << 53;
