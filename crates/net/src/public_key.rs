//! Public keys in the two forms that meet here: the SSH wire blob and the X.509 SPKI of TLS.
//!
//! OpenSSH files name keys by their wire blob (RFC 4253 section 6.6, RFC 5656, RFC 8709); TLS raw
//! public keys (RFC 7250) carry a DER SubjectPublicKeyInfo (RFC 5280, RFC 8410). Each key has
//! exactly one encoding in each form here; every other encoding is refused, because keys are
//! compared as bytes.

use aws_lc_rs::digest;
use base64ct::{Base64Unpadded, Encoding as _};

use crate::der::{self, DerReader};
use crate::ssh_wire::{self, Malformed, SshReader};

/// The largest RSA modulus that is parsed, in bits; OpenSSH has the same limit.
const RSA_MODULUS_BITS_MAX: usize = 16_384;

/// The largest RSA public exponent that is parsed, in bytes.
const RSA_EXPONENT_BYTES_MAX: usize = 8;

/// The types of key that afar can verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// Ed25519 (RFC 8709).
    Ed25519,
    /// ECDSA over NIST P-256 (RFC 5656).
    EcdsaP256,
    /// ECDSA over NIST P-384 (RFC 5656).
    EcdsaP384,
    /// ECDSA over NIST P-521 (RFC 5656).
    EcdsaP521,
    /// RSA (RFC 4253), signing with SHA-2 only (RFC 8332).
    Rsa,
    /// Ed25519 in a FIDO token (OpenSSH's PROTOCOL.u2f): for users only.
    SkEd25519,
    /// ECDSA over NIST P-256 in a FIDO token (OpenSSH's PROTOCOL.u2f): for users only.
    SkEcdsaP256,
}

impl KeyKind {
    /// Every kind, in the order of preference where nothing else is known.
    pub const ALL: [Self; 7] = [
        Self::Ed25519,
        Self::EcdsaP256,
        Self::EcdsaP384,
        Self::EcdsaP521,
        Self::Rsa,
        Self::SkEd25519,
        Self::SkEcdsaP256,
    ];

    /// The name of the key type in OpenSSH's files and blobs.
    #[must_use]
    pub fn ssh_name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ssh-ed25519",
            Self::EcdsaP256 => "ecdsa-sha2-nistp256",
            Self::EcdsaP384 => "ecdsa-sha2-nistp384",
            Self::EcdsaP521 => "ecdsa-sha2-nistp521",
            Self::Rsa => "ssh-rsa",
            Self::SkEd25519 => "sk-ssh-ed25519@openssh.com",
            Self::SkEcdsaP256 => "sk-ecdsa-sha2-nistp256@openssh.com",
        }
    }

    /// Whether the key lives in a FIDO token, which signs more than it is given and says whether
    /// somebody touched it.
    #[must_use]
    pub fn is_fido(self) -> bool {
        matches!(self, Self::SkEd25519 | Self::SkEcdsaP256)
    }

    /// The kind with this OpenSSH name; `None` for types that afar does not verify.
    #[must_use]
    pub fn from_ssh_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.ssh_name() == name)
    }

    /// The curve's name in a blob and the bytes of one coordinate; `None` unless ECDSA.
    pub(crate) fn curve(self) -> Option<(&'static str, usize)> {
        match self {
            Self::EcdsaP256 | Self::SkEcdsaP256 => Some(("nistp256", 32)),
            Self::EcdsaP384 => Some(("nistp384", 48)),
            Self::EcdsaP521 => Some(("nistp521", 66)),
            Self::Ed25519 | Self::Rsa | Self::SkEd25519 => None,
        }
    }
}

/// Why bytes are not a public key that afar can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// The bytes are cut, padded, or not in the one valid encoding.
    #[error("the public key is malformed")]
    Malformed,
    /// A well-formed blob of a type that afar does not verify (a certificate, DSA …).
    #[error("keys of type {name:?} are not supported")]
    Unsupported {
        /// The type's name as the blob states it, at most 64 bytes of it.
        name: String,
    },
}

impl From<Malformed> for PublicKeyError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// A public key of known type whose encoding is sound.
///
/// Whether the numbers in it are a usable key (a point on the curve, a modulus of sufficient
/// size) is decided where a signature is verified.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    shape: Shape,
}

/// The numbers of a key, by type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    Ed25519([u8; 32]),
    /// `kind` is one of the ECDSA kinds; `point` is uncompressed: 4, x, y.
    Ecdsa {
        kind: KeyKind,
        point: Vec<u8>,
    },
    /// Magnitudes without leading zeros.
    Rsa {
        exponent: Vec<u8>,
        modulus: Vec<u8>,
    },
    /// `application` is what the token was told that the key is for, never empty.
    SkEd25519 {
        key: [u8; 32],
        application: Vec<u8>,
    },
    /// `point` as in `Ecdsa`, on P-256.
    SkEcdsaP256 {
        point: Vec<u8>,
        application: Vec<u8>,
    },
}

/// The DER in front of the 32 bytes of an Ed25519 key (RFC 8410 section 4).
const SPKI_ED25519: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];

/// The DER in front of the points of the three curves (RFC 5480 section 2), unused-bits byte
/// included.
const SPKI_P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const SPKI_P384: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
];
const SPKI_P521: &[u8] = &[
    0x30, 0x81, 0x9b, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05,
    0x2b, 0x81, 0x04, 0x00, 0x23, 0x03, 0x81, 0x86, 0x00,
];

/// `rsaEncryption` with its NULL parameters, the whole AlgorithmIdentifier (RFC 3279 section 2.3.1).
const RSA_ALGORITHM: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

impl PublicKey {
    /// Reads an SSH wire blob; it must be one whole key and nothing more.
    ///
    /// # Errors
    /// [`PublicKeyError::Unsupported`] for another type, [`PublicKeyError::Malformed`] otherwise.
    pub fn from_blob(blob: &[u8]) -> Result<Self, PublicKeyError> {
        let mut reader = SshReader::new(blob);
        let name = reader.string()?;
        let kind = std::str::from_utf8(name)
            .ok()
            .and_then(KeyKind::from_ssh_name)
            .ok_or_else(|| unsupported(name))?;
        let shape = match kind {
            KeyKind::Ed25519 => {
                Shape::Ed25519(reader.string()?.try_into().map_err(|_| PublicKeyError::Malformed)?)
            }
            KeyKind::EcdsaP256 | KeyKind::EcdsaP384 | KeyKind::EcdsaP521 => {
                Shape::Ecdsa { kind, point: read_point(kind, &mut reader)? }
            }
            KeyKind::SkEd25519 => Shape::SkEd25519 {
                key: reader.string()?.try_into().map_err(|_| PublicKeyError::Malformed)?,
                application: read_application(&mut reader)?,
            },
            KeyKind::SkEcdsaP256 => Shape::SkEcdsaP256 {
                point: read_point(kind, &mut reader)?,
                application: read_application(&mut reader)?,
            },
            KeyKind::Rsa => {
                let exponent = reader.positive_mpint()?;
                Shape::rsa(exponent, reader.positive_mpint()?)?
            }
        };
        reader.finish()?;
        Ok(Self { shape })
    }

    /// Reads a DER SubjectPublicKeyInfo; only the encoding that [`Self::to_spki`] makes is taken.
    ///
    /// # Errors
    /// [`PublicKeyError::Malformed`] for anything else, unknown algorithms included.
    pub fn from_spki(spki: &[u8]) -> Result<Self, PublicKeyError> {
        let shape = if let Some(key) = spki.strip_prefix(SPKI_ED25519) {
            Shape::Ed25519(key.try_into().map_err(|_| PublicKeyError::Malformed)?)
        } else if let Some(point) = spki.strip_prefix(SPKI_P256) {
            Shape::ecdsa(KeyKind::EcdsaP256, point)?
        } else if let Some(point) = spki.strip_prefix(SPKI_P384) {
            Shape::ecdsa(KeyKind::EcdsaP384, point)?
        } else if let Some(point) = spki.strip_prefix(SPKI_P521) {
            Shape::ecdsa(KeyKind::EcdsaP521, point)?
        } else {
            rsa_from_spki(spki)?
        };
        let key = Self { shape };
        if key.to_spki().as_deref() == Some(spki) {
            Ok(key)
        } else {
            Err(PublicKeyError::Malformed)
        }
    }

    /// The SSH wire blob.
    #[must_use]
    pub fn to_blob(&self) -> Vec<u8> {
        let mut out = Vec::new();
        ssh_wire::put_string(&mut out, self.kind().ssh_name().as_bytes());
        match &self.shape {
            Shape::Ed25519(key) => ssh_wire::put_string(&mut out, key),
            Shape::Ecdsa { kind, point } => {
                let curve = kind.curve().map_or("", |(name, _)| name);
                ssh_wire::put_string(&mut out, curve.as_bytes());
                ssh_wire::put_string(&mut out, point);
            }
            Shape::Rsa { exponent, modulus } => {
                ssh_wire::put_positive_mpint(&mut out, exponent);
                ssh_wire::put_positive_mpint(&mut out, modulus);
            }
            Shape::SkEd25519 { key, application } => {
                ssh_wire::put_string(&mut out, key);
                ssh_wire::put_string(&mut out, application);
            }
            Shape::SkEcdsaP256 { point, application } => {
                ssh_wire::put_string(&mut out, b"nistp256");
                ssh_wire::put_string(&mut out, point);
                ssh_wire::put_string(&mut out, application);
            }
        }
        out
    }

    /// The DER SubjectPublicKeyInfo; `None` for a FIDO key, which can't sign for TLS.
    #[must_use]
    pub fn to_spki(&self) -> Option<Vec<u8>> {
        Some(match &self.shape {
            Shape::SkEd25519 { .. } | Shape::SkEcdsaP256 { .. } => return None,
            Shape::Ed25519(key) => [SPKI_ED25519, key].concat(),
            Shape::Ecdsa { kind, point } => {
                let prefix = match kind {
                    KeyKind::EcdsaP384 => SPKI_P384,
                    KeyKind::EcdsaP521 => SPKI_P521,
                    _ => SPKI_P256,
                };
                [prefix, point].concat()
            }
            Shape::Rsa { exponent, modulus } => {
                let key = der::tlv(
                    der::TAG_SEQUENCE,
                    &[&der::unsigned_integer(modulus), &der::unsigned_integer(exponent)],
                );
                let bits = der::tlv(der::TAG_BIT_STRING, &[&[0], &key]);
                der::tlv(der::TAG_SEQUENCE, &[RSA_ALGORITHM, &bits]).to_vec()
            }
        })
    }

    /// The type of the key.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        match self.shape {
            Shape::Ed25519(_) => KeyKind::Ed25519,
            Shape::Ecdsa { kind, .. } => kind,
            Shape::Rsa { .. } => KeyKind::Rsa,
            Shape::SkEd25519 { .. } => KeyKind::SkEd25519,
            Shape::SkEcdsaP256 { .. } => KeyKind::SkEcdsaP256,
        }
    }

    /// The size of the key in bits, as `ssh-keygen -l` states it.
    #[must_use]
    pub fn bits(&self) -> usize {
        match &self.shape {
            Shape::Ed25519(_) | Shape::SkEd25519 { .. } | Shape::SkEcdsaP256 { .. } => 256,
            Shape::Ecdsa { kind: KeyKind::EcdsaP384, .. } => 384,
            Shape::Ecdsa { kind: KeyKind::EcdsaP521, .. } => 521,
            Shape::Ecdsa { .. } => 256,
            Shape::Rsa { modulus, .. } => bit_length(modulus),
        }
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// A key from what the library says of one: nothing of a peer's.
    pub(crate) fn from_shape(shape: Shape) -> Self {
        Self { shape }
    }
}

impl Shape {
    pub(crate) fn ecdsa(kind: KeyKind, point: &[u8]) -> Result<Self, PublicKeyError> {
        Ok(Self::Ecdsa { kind, point: checked_point(kind, point)? })
    }

    pub(crate) fn rsa(exponent: &[u8], modulus: &[u8]) -> Result<Self, PublicKeyError> {
        if exponent.len() > RSA_EXPONENT_BYTES_MAX || bit_length(modulus) > RSA_MODULUS_BITS_MAX {
            return Err(PublicKeyError::Malformed);
        }
        Ok(Self::Rsa { exponent: exponent.to_vec(), modulus: modulus.to_vec() })
    }
}

/// A curve's name, which must be the type's, and an uncompressed point.
fn read_point(kind: KeyKind, reader: &mut SshReader<'_>) -> Result<Vec<u8>, PublicKeyError> {
    let (curve, _) = kind.curve().ok_or(PublicKeyError::Malformed)?;
    if reader.string()? != curve.as_bytes() {
        return Err(PublicKeyError::Malformed);
    }
    checked_point(kind, reader.string()?)
}

fn checked_point(kind: KeyKind, point: &[u8]) -> Result<Vec<u8>, PublicKeyError> {
    let (_, coordinate_bytes) = kind.curve().ok_or(PublicKeyError::Malformed)?;
    if point.len() != 1 + 2 * coordinate_bytes || point.first() != Some(&4) {
        return Err(PublicKeyError::Malformed);
    }
    Ok(point.to_vec())
}

fn read_application(reader: &mut SshReader<'_>) -> Result<Vec<u8>, PublicKeyError> {
    match reader.string()? {
        [] => Err(PublicKeyError::Malformed),
        application => Ok(application.to_vec()),
    }
}

/// The fingerprint of a wire blob as `ssh-keygen -l` prints it: `SHA256:` and unpadded Base64.
#[must_use]
pub fn fingerprint(blob: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, blob);
    format!("SHA256:{}", Base64Unpadded::encode_string(hash.as_ref()))
}

/// The error for a type name that is not ours, with a name short enough to show.
fn unsupported(name: &[u8]) -> PublicKeyError {
    let shown = name.get(..64).unwrap_or(name);
    PublicKeyError::Unsupported { name: String::from_utf8_lossy(shown).into_owned() }
}

fn rsa_from_spki(spki: &[u8]) -> Result<Shape, PublicKeyError> {
    let mut outer = DerReader::new(spki);
    let body = outer.expect(der::TAG_SEQUENCE)?;
    outer.finish()?;
    let bits = body.strip_prefix(RSA_ALGORITHM).ok_or(PublicKeyError::Malformed)?;
    let key = DerReader::new(bits).expect(der::TAG_BIT_STRING)?;
    let key = key.strip_prefix(&[0]).ok_or(PublicKeyError::Malformed)?;
    let mut numbers = DerReader::new(DerReader::new(key).expect(der::TAG_SEQUENCE)?);
    let modulus = ssh_wire::strip_leading_zeros(numbers.expect(der::TAG_INTEGER)?);
    let exponent = ssh_wire::strip_leading_zeros(numbers.expect(der::TAG_INTEGER)?);
    if modulus.is_empty() || exponent.is_empty() {
        return Err(PublicKeyError::Malformed);
    }
    Shape::rsa(exponent, modulus)
}

/// The bits of a magnitude without leading zeros.
fn bit_length(magnitude: &[u8]) -> usize {
    let leading = magnitude.first().map_or(0, |first| first.leading_zeros());
    (magnitude.len() * 8).saturating_sub(usize::try_from(leading).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64ct::Base64;

    /// Blobs that ssh-keygen made, with the fingerprint that `ssh-keygen -l` gave for them.
    const VECTORS: &[(&str, usize, &str, &str)] = &[
        (
            "ssh-ed25519",
            256,
            "AAAAC3NzaC1lZDI1NTE5AAAAINdnD4jXoi7ylq1/JSDZKTFDgQW9RYIRPGs3X9uu66l1",
            "SHA256:se5pu8XRyJEmB11rQuVPKBtZ+BjhJyj5qLqryoB49jk",
        ),
        (
            "ecdsa-sha2-nistp256",
            256,
            "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBLskH6gwqyydaa03FVs4HmaWAXq+QTnPtTVUt4nsmXKkLH0NaEjeofdBqvOu/IjMrIlBg+XZzSULDR2BITNzZlo=",
            "SHA256:6SbhRVBJv13/fdiGG83dqdS0CLKLt/vFJ82Xgor/6RU",
        ),
        (
            "ecdsa-sha2-nistp384",
            384,
            "AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBKQ9cdGDAY6j7G8cWC/UxQtggp09gZiPX7mmIDliw7ne90TcBWnNhOejKv0J0HikL5Do3Nm5BJlGI8YQuW66dyB/9a0zMK2rZPrNYheUJC/oMzGd7OTrcFNmSIBLJCvN7Q==",
            "SHA256:JU0b0F6d75Rfcog6QBZOeyDKCafp/qT/AupT+jx8/lI",
        ),
        (
            "ecdsa-sha2-nistp521",
            521,
            "AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBACoIDsv2qsPap0yq0YF+rAlP826jHiii/QyGZfKokkt5SSrLb7sICastbfORzxLywJOi2gm2FxQm6wQURQfbVZ5/QHkHUiwWaLGfB1c19Soyc/4KWCu/ckg7eYbj0znBLdhUXVfMVf+ICXB9iOHzAhsvCRo6a4NatakNe/4pCoe/ucozQ==",
            "SHA256:waqFNy8kyLGSlYMx1GzYbz2mQERwcQv2WIqk4z1El8E",
        ),
        (
            "ssh-rsa",
            2048,
            "AAAAB3NzaC1yc2EAAAADAQABAAABAQDR7DzXRsiQ4IVDWgIpK0T3H2i8TCHto/ogoHCNpHqS9RKbbGkaRiRsmjqdR+rZpeN9aLQwYtKbNVgTIbvnup+fJYjomKeRvLVWxTUqdGkqak3rVoxHWh81wX6xeLzeJs9+BR/qzcd48irEsgqdN9dsYJBMC9BYpCjlnEbvxfWzCe8Rj5ywKjtW8ElfFtunzP9Uo4hIMPt9TQfsZYLLlqZA7UpWNQAF5k7tU4EufecnN56XQBiUbnTHEiHNG13gUu4+YOePKeoND1BJidyvfOlH9vFiyT4/EFKEmEAR5oAqt7BuJm2SCXGVbIM+oqQz96UAtZt9Y+PznuDYgNWuDe25",
            "SHA256:F+SuEv7CvqAYp1rUyP28yGwU6qBKg2UaphwUTTuRUvU",
        ),
    ];

    #[test]
    fn blobs_of_ssh_keygen_go_to_spki_and_back() {
        for &(name, bits, base64, print) in VECTORS {
            let blob = Base64::decode_vec(base64).unwrap();
            let key = PublicKey::from_blob(&blob).unwrap();
            assert_eq!(key.kind().ssh_name(), name);
            assert_eq!(key.bits(), bits);
            assert_eq!(key.to_blob(), blob);
            assert_eq!(fingerprint(&blob), print);
            let spki = key.to_spki().unwrap();
            assert_eq!(PublicKey::from_spki(&spki), Ok(key), "{name}");
        }
    }

    #[test]
    fn no_other_length_is_a_key() {
        for &(name, _, base64, _) in VECTORS {
            let blob = Base64::decode_vec(base64).unwrap();
            let spki = PublicKey::from_blob(&blob).unwrap().to_spki().unwrap();
            for cut in 0..blob.len() {
                assert!(PublicKey::from_blob(&blob[..cut]).is_err(), "{name} cut at {cut}");
            }
            for cut in 0..spki.len() {
                assert!(PublicKey::from_spki(&spki[..cut]).is_err(), "{name} cut at {cut}");
            }
            assert!(PublicKey::from_blob(&[&blob[..], &[0]].concat()).is_err());
            assert!(PublicKey::from_spki(&[&spki[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn another_type_is_named_not_guessed() {
        let mut blob = Vec::new();
        ssh_wire::put_string(&mut blob, b"ssh-dss");
        ssh_wire::put_string(&mut blob, &[0; 32]);
        assert_eq!(
            PublicKey::from_blob(&blob),
            Err(PublicKeyError::Unsupported { name: "ssh-dss".into() })
        );
    }

    #[test]
    fn a_fido_key_has_an_application_and_no_form_for_tls() {
        let point = [&[4][..], &[7; 64]].concat();
        for (name, parts) in [
            ("sk-ssh-ed25519@openssh.com", &[&[7; 32][..], b"ssh:"][..]),
            ("sk-ecdsa-sha2-nistp256@openssh.com", &[b"nistp256", &point, b"ssh:"]),
        ] {
            let mut blob = Vec::new();
            ssh_wire::put_string(&mut blob, name.as_bytes());
            parts.iter().for_each(|part| ssh_wire::put_string(&mut blob, part));
            let key = PublicKey::from_blob(&blob).unwrap();
            assert_eq!((key.kind().ssh_name(), key.to_blob()), (name, blob.clone()));
            assert!(key.kind().is_fido() && key.to_spki().is_none());
            for cut in 0..blob.len() {
                assert!(PublicKey::from_blob(&blob[..cut]).is_err(), "{name} cut at {cut}");
            }
            let without = &blob[..blob.len() - 4 - "ssh:".len()];
            let empty = [without, &[0; 4]].concat();
            assert_eq!(PublicKey::from_blob(&empty), Err(PublicKeyError::Malformed));
        }
    }

    #[test]
    fn a_curve_that_is_not_the_types_is_refused() {
        let mut blob = Vec::new();
        ssh_wire::put_string(&mut blob, b"ecdsa-sha2-nistp256");
        ssh_wire::put_string(&mut blob, b"nistp384");
        ssh_wire::put_string(&mut blob, &[4; 97]);
        assert_eq!(PublicKey::from_blob(&blob), Err(PublicKeyError::Malformed));
    }

    #[test]
    fn an_rsa_spki_with_another_encoding_of_the_same_key_is_refused() {
        let blob = Base64::decode_vec(VECTORS[4].2).unwrap();
        let spki = PublicKey::from_blob(&blob).unwrap().to_spki().unwrap();
        // The same bytes behind a length that is one byte longer than it needs to be.
        let (head, body) = spki.split_at(4);
        let padded = [&[0x30, 0x83, 0x00], &head[2..4], body].concat();
        assert_eq!(PublicKey::from_spki(&padded), Err(PublicKeyError::Malformed));
    }
}
