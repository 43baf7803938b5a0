//! Every limit of sessions (`docs/behaviour.md`, "Sessions").

use std::time::Duration;

/// Sessions of one user that may be there at once, those of connections included.
pub const SESSIONS_MAX: usize = 256;

/// Commands that may wait for their turn in one session; one more is refused.
pub const SESSION_QUEUE_MAX: usize = 16;

/// How long a session of scope `user` stays without a command: a working day and the night after.
pub const SESSION_IDLE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Bytes of the shell's answer that are kept while it is not whole; more can only be somebody
/// else's writing.
pub(super) const REPLY_BYTES_MAX: usize = 64 * 1024;

/// How long the shell may take to say whether the variables for a command can be set.
pub(super) const TRIAL_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a shell that is told to end may take for it (its EXIT trap), before it is killed.
pub(super) const SHELL_END_GRACE: Duration = Duration::from_secs(5);
