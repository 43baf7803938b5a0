//! The server's limits of what others can see: how long who may take for what (`W-9.24`).

use std::time::Duration;

/// How long a process that has connected to a supervisor may take to send its grant.
pub const GRANT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a supervisor may take to take a connection from the listener. One that has stopped
/// takes none.
pub const HAND_OFF_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client may take to read a listener's last word and to end.
pub const LINGER: Duration = Duration::from_secs(5);

/// How often a connection's grant is held against its files though nothing is asked for (`W-4.12`).
pub const STANDING_INTERVAL: Duration = Duration::from_secs(5);

/// How long a supervisor that is told to end waits for its jobs: they get TERM, and KILL after a
/// grace of 5 s unless they asked for another.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Size at which a supervisor's log starts anew.
pub const LOG_BYTES_MAX: u64 = 1024 * 1024;

/// How often a supervisor looks whether its socket can still be found.
pub const SOCKET_INTERVAL: Duration = Duration::from_secs(15);
