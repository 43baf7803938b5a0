//! Every limit of the protocol, in one place.
//!
//! A limit exists so that no peer can make the other one allocate, wait or work without bound.
//! Each is named in `docs/spec/wire.md`, chapter 9, and has a test on each side of it.

use std::time::Duration;

/// Bytes of a frame header (`W-2.1`).
pub const FRAME_HEADER_BYTES: usize = 12;

/// Largest payload of a frame before authentication: an RSA-4096 certificate fits (`W-9.1`).
pub const PREAUTH_PAYLOAD_BYTES_MAX: u32 = 32 * 1024;

/// Largest payload of a control frame after authentication, OPEN's chunks included (`W-9.2`).
pub const CONTROL_PAYLOAD_BYTES_MAX: u32 = 64 * 1024;

/// Bytes before the data in a DATA frame: the stream's offset and the job's clock (`W-6.2`).
pub const DATA_PREFIX_BYTES: usize = 16;

/// Most data bytes that one DATA frame may carry (`W-9.3`).
pub const DATA_BYTES_MAX: usize = 256 * 1024;

/// Most data bytes that this implementation puts into one DATA frame: small enough that another
/// channel's keystroke waits for little, large enough that headers cost nothing.
pub const DATA_BYTES_SENT_MAX: usize = 64 * 1024;

/// Largest OPEN specification, all chunks together (`W-9.4`).
pub const OPEN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Deepest nesting of arrays and objects in a control message (`W-9.5`).
pub const JSON_DEPTH_MAX: usize = 32;

/// Largest magnitude of an integer in a control message: 2⁵³, what every JSON reader keeps exact
/// (`W-9.5`).
pub const JSON_INTEGER_MAX: u64 = 1 << 53;

/// Most bytes before the preamble, where the protocol runs over stdin and stdout (`W-9.23`).
pub const PREAMBLE_SKIPPED_BYTES_MAX: usize = 64 * 1024;

/// Channels that may be open at once on a connection (`W-9.6`).
pub const CHANNELS_MAX: usize = 1024;

/// Channels that the client has given up and the server is still cleaning up after (`W-9.6`).
pub const CHANNELS_ABANDONED_MAX: usize = 1024;

/// Credit that may be outstanding on one stream, in bytes (`W-9.7`).
pub const WINDOW_BYTES_MAX: u64 = (1 << 31) - 1;

/// Credit that this implementation grants on a stream at its start, in bytes: what a receiver is
/// ready to hold, and so what one stalled stream can cost it.
pub const WINDOW_BYTES_INITIAL: u32 = 2 * 1024 * 1024;

/// Control bytes that may wait to be sent before the peer counts as not reading (`W-9.8`). An OPEN
/// does not count: it is this side's own wish, not a reply.
pub const CONTROL_QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// PONGs that may wait to be sent before the peer counts as flooding (`W-9.8`).
pub const PONGS_QUEUED_MAX: usize = 64;

/// Empty DATA frames in a row, over all channels, before the peer counts as flooding (`W-9.9`).
pub const EMPTY_FRAMES_MAX: u32 = 256;

/// Frames for channels that are closed already, before the peer counts as flooding; each channel
/// that closes makes the budget whole again (`W-9.10`).
pub const LATE_FRAMES_MAX: u32 = 65_536;

/// Bytes of a message in GOODBYE, RESET and REFUSED (`W-9.11`); longer ones are cut when sent.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// Public keys in one AUTH_QUERY (`W-9.12`).
pub const QUERY_KEYS_MAX: usize = 64;

/// AUTH_QUERY frames on one connection (`W-9.12`).
pub const QUERIES_MAX: u32 = 4;

/// Time from the connection's first byte to its authentication, in total (`W-9.13`). Long enough
/// for a hardware key that waits to be touched, half of sshd's LoginGraceTime.
pub const AUTH_DEADLINE: Duration = Duration::from_secs(60);

/// Time from an AUTH or AUTH_QUERY to the release of its refusal, whatever the reason (`W-9.14`).
pub const REFUSAL_DELAY: Duration = Duration::from_millis(200);

/// Bytes that are read and thrown away after a refusal, so that closing does not reset the
/// connection and lose the refusal (`W-9.15`).
pub const REFUSED_DISCARD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes that a client may have sent behind its AUTH while the listener verifies (`W-9.16`).
/// What fits is kept for the supervisor; the listener reads no further until it has decided.
pub const PIPELINED_BYTES_MAX: usize = 256 * 1024;

/// Silence after which a PING is sent (`W-9.17`).
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Silence after which the connection counts as dead (`W-9.17`).
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(45);

/// Time from the connection's start to the peer's JOB_HELLO (`W-9.18`).
pub const JOB_HELLO_DEADLINE: Duration = Duration::from_secs(30);

/// Characters of a job id (`W-9.19`).
pub const JOB_ID_CHARS_MAX: usize = 64;

/// Characters of a session's name (`W-9.22`).
pub const SESSION_NAME_CHARS_MAX: usize = 64;

/// Dropped ranges that a seal names for each stream (`W-9.26`); beyond it, neighbours become one.
pub const GAPS_MAX: usize = 256;

/// Bytes of a terminal's name (`W-9.28`).
pub const TERMINAL_NAME_BYTES_MAX: usize = 128;

/// Modes that an OPEN names of a terminal (`W-9.28`); systems have some fifty.
pub const TERMINAL_MODES_MAX: usize = 128;

/// Most columns, and most rows, that a terminal gets (`W-9.28`): programs take memory for each cell.
pub const TERMINAL_SIDE_MAX: u16 = 4096;

/// Columns of a terminal that does not know how many it has (`W-9.28`).
pub const TERMINAL_COLUMNS_DEFAULT: u16 = 80;

/// Rows of a terminal that does not know how many it has (`W-9.28`).
pub const TERMINAL_ROWS_DEFAULT: u16 = 24;

/// Bytes of the jobs on a page of the list (`W-9.27`): the frame's limit, less what is around them.
pub const ANSWER_BYTES_MAX: usize = CONTROL_PAYLOAD_BYTES_MAX as usize - 1024;

/// Bytes of a command that a list shows (`W-9.27`).
pub const COMMAND_SHOWN_BYTES_MAX: usize = 1024;

/// Bytes of a working directory that a list shows (`W-9.27`).
pub const CWD_SHOWN_BYTES_MAX: usize = 4096;

/// For how long a frame that nobody waits for is held back, so that it leaves together with others
/// (`W-5.12`).
pub const LAZY_DELAY: Duration = Duration::from_millis(20);

/// Bytes of the name of the signal that ended a process (`W-7.2`).
pub const SIGNAL_NAME_BYTES_MAX: usize = 32;

/// Largest payload of GRANT and of HAND_OFF, in bytes (`W-9.20`).
pub const GRANT_BYTES_MAX: u32 = 64 * 1024;

/// Bytes behind a HAND_OFF that the client has sent behind its AUTH (`W-9.25`): what may have been
/// pipelined when the last read before the AUTH began, and that read.
pub const HAND_OFF_PLAINTEXT_BYTES_MAX: usize = 2 * PIPELINED_BYTES_MAX;

/// What one channel may have queued here, in bytes, whatever credit the peer grants (`W-9.21`).
pub const CHANNEL_QUEUE_BYTES_MAX: u64 = 1024 * 1024;

/// What a queued piece counts over its data, in bytes: a million pieces of one byte are more than
/// a megabyte of memory (`W-9.21`).
pub const QUEUED_PIECE_BYTES: u64 = 128;
