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

/// How long a request waits for that look where the files are on a server, which may not answer.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// Requests of one connection that may wait for it at once.
pub const LOOK_WAITERS_MAX: usize = 64;

/// How long somebody waits for what is known of jobs where that is on a file server that does not answer.
pub const ARCHIVE_DEADLINE: Duration = Duration::from_secs(5);

/// How many threads may wait at once for output to be read from a disk: fewer than a supervisor has for
/// what blocks, which ends jobs too.
pub const SPOOL_READERS_MAX: usize = 2;

/// How long a supervisor that is told to end waits for its jobs: they get TERM, and KILL after a
/// grace of 5 s unless they asked for another, which is cut short by this.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it waits then for what it has killed.
pub const STOP_KILL_PATIENCE: Duration = Duration::from_secs(2);

/// How long a supervisor that was started may need until it listens: it asks the user database, and
/// opens a log in a home that may be on a server. It is killed then.
pub const START_DEADLINE: Duration = Duration::from_secs(10);

/// How long is waited for the end of a supervisor that listens no more: longer than it waits for its
/// jobs.
pub const ENDING_PATIENCE: Duration =
    Duration::from_secs(STOP_TIMEOUT.as_secs() + STOP_KILL_PATIENCE.as_secs() + 2);

/// How long a login waits for its supervisor while that of another login is being started; more than
/// it may take to start one or to wait for the end of one, and less than the client's patience.
pub const LAUNCH_PATIENCE: Duration = Duration::from_secs(20);

/// Logins of one user that may wait for that at once.
pub const LAUNCH_WAITERS_MAX: usize = 1024;

/// Size at which a supervisor's log starts anew.
pub const LOG_BYTES_MAX: u64 = 1024 * 1024;

/// How often a supervisor looks whether its socket can still be found.
pub const SOCKET_INTERVAL: Duration = Duration::from_secs(15);

/// How long clients may take to be told that the supervisor is being upgraded.
pub const UPGRADE_GOODBYE_PATIENCE: Duration = Duration::from_secs(10);

/// How long jobs are waited for that are about to end when their supervisor is to be upgraded.
pub const UPGRADE_FREEZE_PATIENCE: Duration = Duration::from_secs(15);

/// How long the next program may take to say whether it can go on with what it is left.
pub const UPGRADE_CHECK_PATIENCE: Duration = Duration::from_secs(10);

/// How long what was killed may take to be gone, before its job is over without it (`J-2.8`).
pub const UNKILLABLE_PATIENCE: Duration = Duration::from_secs(5);

/// How long what a killed supervisor's jobs have left may take to end, from TERM to KILL.
pub const LOST_GRACE: Duration = Duration::from_secs(5);

/// How long is waited then for what was killed: the next supervisor waits meanwhile, no longer than
/// [`ENDING_PATIENCE`].
pub const LOST_KILL_PATIENCE: Duration = Duration::from_secs(5);

const _: () = assert!(
    LOST_GRACE.as_secs() + LOST_KILL_PATIENCE.as_secs() < ENDING_PATIENCE.as_secs(),
    "whoever comes must not give up before the next supervisor can start"
);

/// Jobs of one user that have not ended, at once.
pub const JOBS_MAX: usize = 8192;

/// Jobs that have ended of which a supervisor has the outcome at hand.
pub const ENDED_JOBS_HELD_MAX: usize = 1024;

/// Jobs on one page of a list, if the client wants no fewer.
pub const LIST_PAGE_MAX: usize = 256;

/// Jobs that are taken out of the archive at a time, to be put on a page.
pub const LIST_STEP_JOBS: u32 = 256;
