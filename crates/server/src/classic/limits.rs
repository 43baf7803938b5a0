//! Every limit of the classic protocol's server; each is named in `docs/spec/classic.md`.

use std::time::Duration;

/// Clients at once. One more is closed, before anything of it is read (`C-6.6`).
pub const CONNECTIONS_MAX: usize = 256;

/// Bytes of an output that are held in memory; a longer one goes to a file (`C-6.3`).
pub const MEMORY_BYTES_MAX: usize = 256 * 1024;

/// Longest output, in bytes. A longer one is answered with an error (`C-6.4`).
pub const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Bytes of all files together that hold outputs until they are sent (`C-6.4`).
pub const FILES_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

/// How often is looked whether a client that has ended its sending is still there (`C-2.4`).
pub const PRESENCE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a client whose command was too long may take to read that it was (`C-3.4`).
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
