//! Messages of the transport part: hellos and authentication (`W-4`).

use serde::{Deserialize, Serialize};

use crate::json::base64_bytes;

/// The first frame of each side (`W-4.1`). Its raw bytes are part of what AUTH signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest version of the transport part that this side speaks; the lower one is spoken.
    pub version: u32,
    /// Name and version of the software, for logs; escape it before showing it.
    #[serde(default)]
    pub software: String,
    /// Optional features by name.
    #[serde(default)]
    pub features: Vec<String>,
    /// Of a listener: the OpenSSH certificate of the host key that it has proved (`W-4.14`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_certificate: Option<KeyBytes>,
}

/// Asks which of these keys would be accepted, before any of them is used (`W-4.4`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthQuery {
    /// The user to become.
    pub user: String,
    /// Public keys in SSH's wire encoding (RFC 4253, section 6.6), base64.
    pub keys: Vec<KeyBytes>,
}

/// A public key or certificate in SSH's wire encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyBytes(#[serde(with = "base64_bytes")] pub Vec<u8>);

/// The answer to [`AuthQuery`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthQueryResult {
    /// Index of the first key that would be accepted, or null.
    pub accepted: Option<u32>,
}

/// The signed part of AUTH (`W-4.5`): its bytes as sent are what the signature covers.
///
/// Unlike elsewhere a field that is not known is refused: what a user signs may narrow what is
/// granted, and a listener that does not understand how must not grant more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthRequest {
    /// The user to become.
    pub user: String,
    /// The signature algorithm, such as `ssh-ed25519` or `rsa-sha2-512`.
    pub algorithm: String,
    /// The public key in SSH's wire encoding.
    #[serde(with = "base64_bytes")]
    pub public_key: Vec<u8>,
    /// A key of the client's own making that may stand in for this one for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Delegate>,
}

/// An ephemeral key with the grant of the key that signs this (`W-4.9`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delegate {
    /// The ephemeral key in SSH's wire encoding; always ssh-ed25519.
    #[serde(with = "base64_bytes")]
    pub public_key: Vec<u8>,
    /// For how many seconds it is wanted; the server may shorten that.
    pub lifetime_s: u32,
}

/// The client is authenticated (`W-4.6`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthOk {
    /// For how many seconds the delegated key is accepted; null if it is not.
    #[serde(default)]
    pub delegate_lifetime_s: Option<u32>,
}

/// The client is refused (`W-4.7`): the same bytes, whatever the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthRefused {
    /// For people.
    pub message: String,
}

/// Everything that AUTH's signature binds together (`W-4.5`).
#[derive(Clone, Copy, Debug)]
pub struct Transcript<'a> {
    /// The TLS exporter's value (RFC 9266): this connection and no other.
    pub exporter: &'a [u8],
    /// Raw payload of the client's hello.
    pub client_hello: &'a [u8],
    /// Raw payload of the server's hello.
    pub server_hello: &'a [u8],
    /// The server's host key in SSH's wire encoding.
    pub host_key: &'a [u8],
    /// Raw bytes of AUTH's signed part.
    pub request: &'a [u8],
}

impl Transcript<'_> {
    /// The message to sign: a fixed label, then each part behind its length as a `u32` in network
    /// byte order, so that no two different transcripts have the same bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = b"afar-auth-1\0".to_vec();
        let parts =
            [self.exporter, self.client_hello, self.server_hello, self.host_key, self.request];
        for part in parts {
            // Every part came out of a frame or is a key, far below 4 GiB.
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

impl AuthQuery {
    /// A query for these keys.
    #[must_use]
    pub fn new(user: &str, keys: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { user: user.to_owned(), keys: keys.into_iter().map(KeyBytes).collect() }
    }
}
