//! The limits of this crate's readers, each with a test on both of its sides.

use std::time::Duration;

/// Largest SSH public key or certificate in wire encoding, in bytes. An RSA key of 16,384 bits
/// takes 2 KiB, a certificate with many principals a few more.
pub const KEY_BYTES_MAX: usize = 16 * 1024;

/// Largest certificate, in bytes: with its base64 in the signed part of AUTH and again in the
/// signature's envelope it still fits a frame before authentication.
pub const CERTIFICATE_BYTES_MAX: usize = 12 * 1024;

/// Most principals in a certificate (as in OpenSSH).
pub const CERTIFICATE_PRINCIPALS_MAX: usize = 256;

/// Largest file of revoked keys, in bytes. A larger one revokes every key.
pub const REVOKED_KEYS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Largest file of trusted authorities, in bytes. A larger one is not trusted.
pub const TRUSTED_KEYS_BYTES_MAX: usize = 1024 * 1024;

/// Longest name of a key algorithm, in bytes (RFC 4251, section 6).
pub const ALGORITHM_BYTES_MAX: usize = 64;

/// Largest `authorized_keys` file, in bytes. A larger one grants nothing.
pub const AUTHORIZED_KEYS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest line of an `authorized_keys` file, in bytes without its end. A longer one grants
/// nothing (sshd(8): "up to a limit of 8 kilobytes").
pub const AUTHORIZED_KEYS_LINE_BYTES_MAX: usize = 8 * 1024;

/// Most diagnostics that one reading keeps; more are counted only.
pub const DIAGNOSTICS_MAX: usize = 64;

/// Largest `known_hosts` file, in bytes.
pub const KNOWN_HOSTS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Longest line of a `known_hosts` file, in bytes without its end; a longer one is skipped.
pub const KNOWN_HOSTS_LINE_BYTES_MAX: usize = 64 * 1024;

/// Largest single ssh configuration file, in bytes.
pub const SSH_CONFIG_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Largest `config.toml`, in bytes.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;

/// Deepest nesting of `Include` (as in OpenSSH).
pub const SSH_CONFIG_DEPTH_MAX: usize = 16;

/// Most files that one reading of the ssh configuration includes, over all levels. Without it two
/// files that include each other twice would be read 2¹⁶ times within the depth limit.
pub const SSH_CONFIG_FILES_MAX: usize = 256;

/// Most `IdentityFile` lines that apply to one host (as in OpenSSH).
pub const IDENTITY_FILES_MAX: usize = 100;

/// Longest name of a host, in bytes (RFC 1035, section 2.3.4).
pub const HOST_BYTES_MAX: usize = 255;

/// Longest name of a user, in bytes (`LOGIN_NAME_MAX` of Linux).
pub const USER_BYTES_MAX: usize = 256;

/// Most names that a host set expands to.
pub const HOST_SET_NAMES_MAX: usize = 65_536;

/// Longest text of a host set, in bytes.
pub const HOST_SET_BYTES_MAX: usize = 64 * 1024;

/// Deepest nesting of groups in host sets.
pub const HOST_SET_GROUP_DEPTH_MAX: usize = 8;

/// Most characters that [`crate::escape::escape_for_terminal`] gives.
pub const ESCAPED_CHARS_MAX: usize = 1024;

/// Longest `NAME=value` that Linux passes to a program, in bytes with its NUL
/// (`MAX_ARG_STRLEN`, execve(2)).
pub const ENVIRONMENT_STRING_BYTES_MAX: usize = 128 * 1024;

/// Connections that may be in TLS's handshake or in authentication at once, over all addresses
/// (`W-4.11`). One more is closed at once, as sshd does past the end of `MaxStartups`.
pub const UNAUTHENTICATED_MAX: usize = 512;

/// How many of these one address may have, so that the rest is there for others (`W-4.11`).
pub const UNAUTHENTICATED_SHARE_MAX: usize = 256;

/// What a refused login costs its address (`W-4.11`); a login that succeeds takes as much off.
pub const REFUSED_PENALTY: Duration = Duration::from_secs(2);

/// What a connection costs its address that ends before it has asked for anything (`W-4.11`).
pub const UNFINISHED_PENALTY: Duration = Duration::from_millis(200);

/// What a connection costs its address that held its place to the deadline (`W-4.11`).
pub const OVERLONG_PENALTY: Duration = Duration::from_secs(10);

/// Penalty that changes nothing yet (`W-4.11`).
pub const PENALTY_FREE: Duration = Duration::from_secs(30);

/// The highest penalty: it decays as time passes, so this is also how long it can last (`W-4.11`).
pub const PENALTY_MAX: Duration = Duration::from_secs(120);

/// Time from one connection of a penalised address to the next one that is served (`W-4.11`).
pub const PACE: Duration = Duration::from_secs(1);

/// The longest wait for that; who would have to wait longer is closed at once (`W-4.11`). Below the
/// time that a client gives a server to answer.
pub const PACED_WAIT_MAX: Duration = Duration::from_secs(8);

/// Addresses of which penalties are remembered; the one with the lowest goes when there are more
/// (`W-4.11`).
pub const PENALISED_MAX: usize = 4096;

/// Largest notice in `/etc/nologin` that is told to who may not come in, in bytes; of a larger one only
/// that it is there (`MESSAGE_BYTES_MAX` of the protocol).
pub const ACCOUNT_NOTICE_BYTES_MAX: u64 = 1024;

/// Largest payload of a record of the store, in bytes (`J-5.2`).
pub const RECORD_PAYLOAD_BYTES_MAX: usize = 128 * 1024;

/// Most bytes of a refusal's message that the store keeps (`J-5.4`): as many as are sent
/// (`MESSAGE_BYTES_MAX` of the protocol).
pub const REFUSAL_SUMMARY_BYTES_MAX: usize = 1024;
