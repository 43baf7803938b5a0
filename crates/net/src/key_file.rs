//! Private key files: what they hold, and every way in which one can be unusable.
//!
//! Host keys and user keys come in the same formats: OpenSSH's own (PROTOCOL.key), and the PEM
//! forms of old ssh-keygens, clouds and openssl. This module reads and judges them, and knows
//! nothing of what a key is for.

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use ssh_key::{Kdf, PrivateKey};
use zeroize::{Zeroize as _, Zeroizing};

use crate::public_key::{KeyKind, PublicKey, PublicKeyError};
use crate::secret_key::{RSA_BITS, SecretDer, SecretKey};

/// The most rounds of bcrypt that are spent on a passphrase. ssh-keygen uses 16 or 24 unless told
/// otherwise; this many take minutes.
const KDF_ROUNDS_MAX: u32 = 16_384;

/// What is wrong with a private key, whoever it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// A private key in a format that is not read here.
    #[error("the key is in {format} format; {hint}")]
    OtherFormat {
        /// The format, as far as its first lines say.
        format: &'static str,
        /// What turns it into one that is.
        hint: &'static str,
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
    pub(crate) public: PublicKey,
    body: Body,
}

enum Body {
    OpenSsh(Box<PrivateKey>),
    Pem(SecretDer),
}

impl KeyFile {
    /// Reads the envelope: format, type and public key, which an OpenSSH file never encrypts.
    pub(crate) fn parse(contents: &[u8]) -> Result<Self, KeyFault> {
        match format(contents)? {
            Format::OpenSsh => {
                let private = PrivateKey::from_openssh(contents).map_err(|error| match error {
                    ssh_key::Error::PublicKey => KeyFault::Mismatch,
                    _ => KeyFault::Damaged,
                })?;
                Self::from_openssh(private)
            }
            Format::Pem => Self::from_pem(contents),
        }
    }

    fn from_openssh(private: PrivateKey) -> Result<Self, KeyFault> {
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
        Ok(Self { public, body: Body::OpenSsh(Box::new(private)) })
    }

    fn from_pem(contents: &[u8]) -> Result<Self, KeyFault> {
        let key = PrivateKeyDer::from_pem_slice(contents).map_err(|_| KeyFault::Damaged)?;
        let wiped = |bytes: &[u8]| Zeroizing::new(bytes.to_vec());
        let der = match &key {
            PrivateKeyDer::Pkcs1(der) => SecretDer::Pkcs1(wiped(der.secret_pkcs1_der())),
            PrivateKeyDer::Sec1(der) => SecretDer::Sec1(wiped(der.secret_sec1_der())),
            PrivateKeyDer::Pkcs8(der) => SecretDer::Pkcs8(wiped(der.secret_pkcs8_der())),
            _ => return Err(KeyFault::NotAKey),
        };
        let mut key = key;
        key.zeroize();
        let public = SecretKey::from_der(&der)?.public()?;
        Ok(Self { public, body: Body::Pem(der) })
    }

    /// Whether the library can use a key of this size, which shows before it is decrypted.
    pub(crate) fn check_size(&self) -> Result<(), KeyFault> {
        match self.public.bits() {
            bits if self.public.kind() == KeyKind::Rsa && !RSA_BITS.contains(&bits) => {
                Err(KeyFault::RsaSize { bits })
            }
            _ => Ok(()),
        }
    }

    /// Whether a passphrase is needed.
    pub(crate) fn is_encrypted(&self) -> bool {
        match &self.body {
            Body::OpenSsh(private) => private.is_encrypted(),
            Body::Pem(_) => false,
        }
    }

    /// The file decrypted; `None` where the passphrase is not the one.
    pub(crate) fn decrypt(&self, passphrase: &[u8]) -> Result<Option<Self>, KeyFault> {
        let Body::OpenSsh(private) = &self.body else { return Err(KeyFault::Damaged) };
        match private.decrypt(passphrase) {
            Ok(open) => Self::from_openssh(open).map(Some),
            Err(ssh_key::Error::Crypto) => Ok(None),
            Err(ssh_key::Error::PublicKey) => Err(KeyFault::Mismatch),
            Err(_) => Err(KeyFault::Damaged),
        }
    }

    /// The private key, for a library to read; [`KeyFault::Encrypted`] while it is.
    pub(crate) fn secret(&self) -> Result<SecretDer, KeyFault> {
        match &self.body {
            Body::OpenSsh(private) => {
                SecretDer::from_openssh(private.key_data(), self.public.kind())
            }
            Body::Pem(der) => Ok(der.clone()),
        }
    }

    /// What the file says about the key; empty while the file is encrypted, and in PEM.
    pub(crate) fn comment(&self) -> String {
        match &self.body {
            Body::OpenSsh(private) => {
                String::from_utf8_lossy(private.comment().as_bytes()).into_owned()
            }
            Body::Pem(_) => String::new(),
        }
    }
}

enum Format {
    OpenSsh,
    Pem,
}

/// Tells the formats apart by their first lines, so that the message can say what to do.
fn format(contents: &[u8]) -> Result<Format, KeyFault> {
    const REWRITE: &str = "`ssh-keygen -p -f FILE` rewrites it as OpenSSH's";
    let mut lines = contents.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let first = std::str::from_utf8(lines.next().unwrap_or_default());
    let first = first.map_err(|_| KeyFault::NotAKey)?;
    if first.starts_with("PuTTY-User-Key-File-") {
        let hint = "`puttygen FILE -O private-openssh-new -o NEW` converts it";
        return Err(KeyFault::OtherFormat { format: "PuTTY", hint });
    }
    let label = first
        .strip_prefix("-----BEGIN ")
        .and_then(|rest| rest.strip_suffix("-----"))
        .ok_or(KeyFault::NotAKey)?;
    // The oldest way to encrypt PEM says so in a header of its own.
    let encrypted = lines.any(|line| line.starts_with(b"Proc-Type:"));
    match label {
        "OPENSSH PRIVATE KEY" => Ok(Format::OpenSsh),
        "ENCRYPTED PRIVATE KEY" => {
            Err(KeyFault::OtherFormat { format: "encrypted PKCS#8", hint: REWRITE })
        }
        _ if encrypted => Err(KeyFault::OtherFormat { format: "encrypted PEM", hint: REWRITE }),
        "RSA PRIVATE KEY" | "EC PRIVATE KEY" | "EC PARAMETERS" | "PRIVATE KEY" => Ok(Format::Pem),
        "DSA PRIVATE KEY" => Err(KeyFault::Unsupported { name: "ssh-dss".to_owned() }),
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
    fn other_formats_are_named_with_what_converts_them() {
        let cases = [
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n", "encrypted PKCS#8"),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: X\n\nAAAA\n",
                "encrypted PEM",
            ),
            ("PuTTY-User-Key-File-3: ssh-ed25519\n", "PuTTY"),
        ];
        for (text, name) in cases {
            let fault = fault(text.as_bytes());
            assert!(matches!(fault, KeyFault::OtherFormat { format, .. } if format == name));
            let program = if name == "PuTTY" { "puttygen" } else { "ssh-keygen -p" };
            assert!(fault.to_string().contains(program), "{fault}");
        }
        for label in ["RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY"] {
            let text = format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
            assert_eq!(fault(text.as_bytes()), KeyFault::Refused, "{label}");
            let cut = format!("-----BEGIN {label}-----\nAAAA\n");
            assert_eq!(fault(cut.as_bytes()), KeyFault::Damaged, "{label}");
        }
        let dsa = fault(b"-----BEGIN DSA PRIVATE KEY-----\nAAAA\n-----END DSA PRIVATE KEY-----\n");
        assert_eq!(dsa, KeyFault::Unsupported { name: "ssh-dss".into() });
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
