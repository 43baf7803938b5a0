//! OpenSSH private key files: what they hold, and every way in which one can be unusable.
//!
//! Host keys and user keys come in the same format (OpenSSH's PROTOCOL.key); this module reads it
//! and judges it, and knows nothing of what the key is for.

use ssh_key::{Kdf, PrivateKey};

use crate::public_key::{PublicKey, PublicKeyError};

/// The most rounds of bcrypt that are spent on a passphrase. ssh-keygen uses 16 or 24 unless told
/// otherwise; this many take minutes.
const KDF_ROUNDS_MAX: u32 = 16_384;

/// What is wrong with a private key, whoever it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// A private key in another format than OpenSSH's own: PKCS#1, SEC 1, PKCS#8 or PuTTY's.
    #[error("the key is in {format} format; `ssh-keygen -p -f FILE` rewrites it as OpenSSH's")]
    OtherFormat {
        /// The format, as far as its first line says.
        format: String,
    },
    /// Not a private key at all.
    #[error("this is no private key file")]
    NotAKey,
    /// It begins as a private key does and then breaks its format.
    #[error("the private key file is damaged")]
    Damaged,
    /// The two halves do not belong together.
    #[error("the private and the public half of the key do not match")]
    Mismatch,
    /// The key needs a passphrase and there is nobody to ask.
    #[error("the key is encrypted with a passphrase")]
    Encrypted,
    /// Its passphrase is stretched for longer than anybody would wait.
    #[error("the passphrase is stretched over {rounds} rounds, more than {KDF_ROUNDS_MAX}")]
    KdfTooCostly {
        /// The rounds that the file asks for.
        rounds: u32,
    },
    /// A sound key of a type that cannot be used here.
    #[error("keys of type {name:?} cannot be used from a file here")]
    Unsupported {
        /// The key type's OpenSSH name.
        name: String,
    },
    /// An RSA key that is too small to be worth anything, or too large for the TLS library.
    #[error("an RSA key of {bits} bits is not accepted; 2048 to 8192 are")]
    RsaSize {
        /// The size of the modulus.
        bits: usize,
    },
    /// The cryptographic library refused the numbers or has no random bytes.
    #[error("the cryptographic library refused the key")]
    Refused,
}

/// A private key file whose envelope has been read; the secret may still be encrypted.
pub(crate) struct KeyFile {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
}

impl KeyFile {
    /// Reads the envelope: format, type and public key, which are never encrypted.
    pub(crate) fn parse(contents: &[u8]) -> Result<Self, KeyFault> {
        check_first_line(contents)?;
        let private = PrivateKey::from_openssh(contents).map_err(|error| match error {
            ssh_key::Error::PublicKey => KeyFault::Mismatch,
            _ => KeyFault::Damaged,
        })?;
        if let Kdf::Bcrypt { rounds, .. } = *private.kdf()
            && rounds > KDF_ROUNDS_MAX
        {
            return Err(KeyFault::KdfTooCostly { rounds });
        }
        let blob = private.public_key().to_bytes().map_err(|_| KeyFault::Damaged)?;
        let public = PublicKey::from_blob(&blob).map_err(|error| match error {
            PublicKeyError::Unsupported { name } => KeyFault::Unsupported { name },
            PublicKeyError::Malformed => KeyFault::Damaged,
        })?;
        Ok(Self { private, public })
    }

    /// What the file says about the key; empty while the file is encrypted.
    pub(crate) fn comment(&self) -> String {
        String::from_utf8_lossy(self.private.comment().as_bytes()).into_owned()
    }
}

/// Tells the formats apart by their first line, so that the message can say what to do.
fn check_first_line(contents: &[u8]) -> Result<(), KeyFault> {
    let first = contents.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii();
    let first = std::str::from_utf8(first).map_err(|_| KeyFault::NotAKey)?;
    if first.starts_with("PuTTY-User-Key-File-") {
        return Err(KeyFault::OtherFormat { format: "PuTTY".to_owned() });
    }
    let label = first
        .strip_prefix("-----BEGIN ")
        .and_then(|rest| rest.strip_suffix("-----"))
        .ok_or(KeyFault::NotAKey)?;
    match label {
        "OPENSSH PRIVATE KEY" => Ok(()),
        "RSA PRIVATE KEY"
        | "EC PRIVATE KEY"
        | "DSA PRIVATE KEY"
        | "PRIVATE KEY"
        | "ENCRYPTED PRIVATE KEY" => Err(KeyFault::OtherFormat { format: "PEM".to_owned() }),
        _ => Err(KeyFault::NotAKey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(contents: &[u8]) -> KeyFault {
        KeyFile::parse(contents).map(|_| ()).unwrap_err()
    }

    #[test]
    fn other_formats_are_named() {
        for pem in ["RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
            let text = format!("-----BEGIN {pem}-----\nAAAA\n-----END {pem}-----\n");
            assert_eq!(fault(text.as_bytes()), KeyFault::OtherFormat { format: "PEM".into() });
        }
        assert_eq!(
            fault(b"PuTTY-User-Key-File-3: ssh-ed25519\n"),
            KeyFault::OtherFormat { format: "PuTTY".into() }
        );
    }

    #[test]
    fn what_is_no_key_says_so() {
        for text in
            [&b""[..], b"\n", b"ssh-ed25519 AAAA me", b"-----BEGIN CERTIFICATE-----\n", b"\xff"]
        {
            assert_eq!(fault(text), KeyFault::NotAKey);
        }
        assert_eq!(fault(b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"), KeyFault::Damaged);
    }
}
