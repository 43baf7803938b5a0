//! The limits of how long a peer may take (`W-9.24`).

use std::time::Duration;

/// How long a peer may take for TLS's handshake (`W-4.1`). Nobody has to touch anything for that.
pub const TLS_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client that broke the protocol is listened to after it was told so.
pub const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the last bytes of a connection may take to leave.
pub const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
