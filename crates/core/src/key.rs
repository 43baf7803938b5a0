//! SSH public keys as they are on the wire: their algorithm, their fingerprint, their text form.

use std::fmt;

use base64ct::{Base64, Base64Unpadded, Encoding as _};

use crate::limits::{ALGORITHM_BYTES_MAX, KEY_BYTES_MAX};
use crate::text;

/// Ed25519 (RFC 8709).
pub const SSH_ED25519: &str = "ssh-ed25519";
/// ECDSA over P-256 (RFC 5656).
pub const ECDSA_P256: &str = "ecdsa-sha2-nistp256";
/// ECDSA over P-384 (RFC 5656).
pub const ECDSA_P384: &str = "ecdsa-sha2-nistp384";
/// ECDSA over P-521 (RFC 5656).
pub const ECDSA_P521: &str = "ecdsa-sha2-nistp521";
/// RSA (RFC 4253); what signs is one of `rsa-sha2-256` and `rsa-sha2-512` (RFC 8332).
pub const SSH_RSA: &str = "ssh-rsa";
/// DSA: known by name, so that a file which holds such a key is not called malformed.
pub const SSH_DSS: &str = "ssh-dss";
/// Ed25519 in a FIDO token (OpenSSH's PROTOCOL.u2f).
pub const SK_SSH_ED25519: &str = "sk-ssh-ed25519@openssh.com";
/// ECDSA over P-256 in a FIDO token (OpenSSH's PROTOCOL.u2f).
pub const SK_ECDSA_P256: &str = "sk-ecdsa-sha2-nistp256@openssh.com";

/// The algorithms of plain keys that these readers know, the preferred ones first.
pub const KNOWN_ALGORITHMS: [&str; 8] = [
    SSH_ED25519,
    ECDSA_P256,
    ECDSA_P384,
    ECDSA_P521,
    SSH_RSA,
    SK_SSH_ED25519,
    SK_ECDSA_P256,
    SSH_DSS,
];

/// What the algorithm of an OpenSSH certificate ends with (OpenSSH's PROTOCOL.certkeys).
const CERTIFICATE_SUFFIX: &str = "-cert-v01@openssh.com";

/// Why bytes or a text are not a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Over [`KEY_BYTES_MAX`].
    #[error("a key of more than {KEY_BYTES_MAX} bytes")]
    TooLarge,
    /// The wire encoding ends early, or goes on after its end.
    #[error("the key is cut short or has extra bytes")]
    Length,
    /// The name of the algorithm is empty, too long or not printable ASCII.
    #[error("the key's algorithm has no valid name")]
    Algorithm,
    /// The parts are not those of a key of this algorithm.
    #[error("not a valid key of its algorithm")]
    Parts,
    /// Not base64 (RFC 4648, section 4) with padding.
    #[error("not base64")]
    Base64,
    /// The line holds no key.
    #[error("no key on the line")]
    Missing,
    /// The line names another algorithm than the key itself.
    #[error("the line names another algorithm than the key does")]
    NameDiffers,
}

/// A public key or certificate in SSH's wire encoding (RFC 4253, section 6.6).
///
/// Holding one means: the bytes are at most [`KEY_BYTES_MAX`], begin with a valid name of an
/// algorithm, and, if the algorithm is one of [`KNOWN_ALGORITHMS`], are exactly the parts of such
/// a key. That the numbers make a usable key is for those to find out who verify with it.
///
/// Equality is equality of bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKeyBlob {
    bytes: Vec<u8>,
    /// Always the first string of `bytes`.
    algorithm: String,
}

impl PublicKeyBlob {
    /// Takes the wire encoding.
    ///
    /// # Errors
    /// Too large, malformed, or not a key of the algorithm it names.
    pub fn from_wire(bytes: Vec<u8>) -> Result<Self, KeyError> {
        if bytes.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLarge);
        }
        let mut parts = Parts(&bytes);
        let algorithm = parts.string()?;
        if algorithm.is_empty()
            || algorithm.len() > ALGORITHM_BYTES_MAX
            || !algorithm.iter().all(|&byte| byte.is_ascii_graphic() && byte != b',')
        {
            return Err(KeyError::Algorithm);
        }
        let algorithm = String::from_utf8(algorithm.to_vec()).map_err(|_| KeyError::Algorithm)?;
        if !check_parts(&algorithm, &mut parts)? {
            return Err(KeyError::Parts);
        }
        // A certificate goes on with numbers and lists, which its verifier reads.
        if is_known(&algorithm) && !parts.0.is_empty() {
            return Err(KeyError::Length);
        }
        Ok(Self { bytes, algorithm })
    }

    /// Takes the base64 field of a `.pub`, `authorized_keys` or `known_hosts` line.
    ///
    /// # Errors
    /// Not padded base64, or what it holds is not a key.
    pub fn from_base64(text: &[u8]) -> Result<Self, KeyError> {
        // Checked first, so that nothing is allocated for a text that is too long.
        if text.len() > KEY_BYTES_MAX.div_ceil(3) * 4 {
            return Err(KeyError::TooLarge);
        }
        let text = std::str::from_utf8(text).map_err(|_| KeyError::Base64)?;
        Self::from_wire(Base64::decode_vec(text).map_err(|_| KeyError::Base64)?)
    }

    /// Takes a line of an `id_x.pub` file: algorithm, base64, and an optional comment, which is
    /// given back as it is (escape it before showing it).
    ///
    /// # Errors
    /// No key on the line, a malformed one, or one of another algorithm than the line says.
    pub fn from_public_line(line: &[u8]) -> Result<(Self, Vec<u8>), KeyError> {
        let (_, first) = text::lines(line).next().ok_or(KeyError::Missing)?;
        let (algorithm, rest) = text::split_word(first);
        let (base64, comment) = text::split_word(rest);
        if base64.is_empty() {
            return Err(KeyError::Missing);
        }
        Ok((Self::from_fields(algorithm, base64)?, text::trim(comment).to_vec()))
    }

    /// Takes the two fields of a line: the name of the algorithm and the base64.
    ///
    /// # Errors
    /// As [`Self::from_base64`]; also when the name is not the key's own.
    pub fn from_fields(algorithm: &[u8], base64: &[u8]) -> Result<Self, KeyError> {
        let key = Self::from_base64(base64)?;
        if key.algorithm.as_bytes() != algorithm {
            return Err(KeyError::NameDiffers);
        }
        Ok(key)
    }

    /// The wire encoding.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The wire encoding, given away.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The algorithm that the key names.
    #[must_use]
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// Whether this is an OpenSSH certificate.
    #[must_use]
    pub fn is_certificate(&self) -> bool {
        plain_algorithm(&self.algorithm).is_some()
    }

    /// The key itself: of a certificate the key that it certifies, else the same.
    #[must_use]
    pub fn plain(&self) -> Self {
        self.certified().unwrap_or_else(|| self.clone())
    }

    /// The fingerprint as `ssh-keygen -l` shows it: `SHA256:` and the unpadded base64 of the
    /// hash; of a certificate, that of its key.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let plain = self.certified();
        let bytes = plain.as_ref().map_or(&self.bytes, |key| &key.bytes);
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        format!("SHA256:{}", Base64Unpadded::encode_string(hash.as_ref()))
    }

    /// The base64 field of a `.pub` line.
    #[must_use]
    pub fn to_base64(&self) -> String {
        Base64::encode_string(&self.bytes)
    }

    /// Algorithm and base64, as on a `.pub` line without a comment.
    #[must_use]
    pub fn to_fields(&self) -> String {
        format!("{} {}", self.algorithm, self.to_base64())
    }

    /// The parts of a certificate behind those of its key; `None` for a plain key.
    pub(crate) fn behind_key(&self) -> Option<Parts<'_>> {
        let plain = plain_algorithm(&self.algorithm)?;
        let mut parts = Parts(&self.bytes);
        parts.string().ok()?;
        parts.string().ok()?;
        check_key_parts(plain, &mut parts).ok()?;
        Some(parts)
    }

    fn certified(&self) -> Option<Self> {
        let plain = plain_algorithm(&self.algorithm)?;
        let mut parts = Parts(&self.bytes);
        parts.string().ok()?;
        parts.string().ok()?;
        let key_parts = parts.0;
        check_key_parts(plain, &mut parts).ok()?;
        let length = key_parts.len().checked_sub(parts.0.len())?;
        let mut bytes = u32::try_from(plain.len()).ok()?.to_be_bytes().to_vec();
        bytes.extend_from_slice(plain.as_bytes());
        bytes.extend_from_slice(key_parts.get(..length)?);
        Some(Self { bytes, algorithm: plain.into() })
    }
}

impl fmt::Debug for PublicKeyBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm, self.fingerprint())
    }
}

/// Whether the name is one of [`KNOWN_ALGORITHMS`].
#[must_use]
pub fn is_known(algorithm: &str) -> bool {
    KNOWN_ALGORITHMS.contains(&algorithm)
}

/// The algorithm of the key in a certificate of this algorithm.
fn plain_algorithm(algorithm: &str) -> Option<&'static str> {
    let stem = algorithm.strip_suffix(CERTIFICATE_SUFFIX)?;
    KNOWN_ALGORITHMS
        .into_iter()
        .find(|known| known.strip_suffix("@openssh.com").unwrap_or(known) == stem)
}

/// Reads the parts after the algorithm's name. `Ok(false)` iff they are not its parts.
fn check_parts(algorithm: &str, parts: &mut Parts<'_>) -> Result<bool, KeyError> {
    if let Some(plain) = plain_algorithm(algorithm) {
        let _nonce = parts.string()?;
        return check_key_parts(plain, parts);
    }
    if is_known(algorithm) {
        return check_key_parts(algorithm, parts);
    }
    Ok(true)
}

fn check_key_parts(algorithm: &str, parts: &mut Parts<'_>) -> Result<bool, KeyError> {
    Ok(match algorithm {
        SSH_ED25519 => parts.string()?.len() == 32,
        SK_SSH_ED25519 => parts.string()?.len() == 32 && !parts.string()?.is_empty(),
        ECDSA_P256 => check_point("nistp256", 32, parts)?,
        ECDSA_P384 => check_point("nistp384", 48, parts)?,
        ECDSA_P521 => check_point("nistp521", 66, parts)?,
        SK_ECDSA_P256 => check_point("nistp256", 32, parts)? && !parts.string()?.is_empty(),
        SSH_RSA => parts.positive()? && parts.positive()?,
        SSH_DSS => {
            parts.positive()? && parts.positive()? && parts.positive()? && parts.positive()?
        }
        _ => false,
    })
}

/// A curve's name and an uncompressed point (RFC 5656, section 3.1).
fn check_point(curve: &str, field_bytes: usize, parts: &mut Parts<'_>) -> Result<bool, KeyError> {
    let named = parts.string()?;
    let point = parts.string()?;
    Ok(named == curve.as_bytes() && point.len() == 1 + 2 * field_bytes && point.first() == Some(&4))
}

/// What is left of a sequence of SSH's values (RFC 4251, section 5). Every length is held against
/// the bytes that are there before anything is taken.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a>(pub(crate) &'a [u8]);

impl<'a> Parts<'a> {
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], KeyError> {
        let (chunk, rest) = self.0.split_first_chunk::<N>().ok_or(KeyError::Length)?;
        self.0 = rest;
        Ok(*chunk)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, KeyError> {
        Ok(u8::from_be_bytes(self.chunk()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, KeyError> {
        Ok(u32::from_be_bytes(self.chunk()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, KeyError> {
        Ok(u64::from_be_bytes(self.chunk()?))
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], KeyError> {
        let length = usize::try_from(self.u32()?).map_err(|_| KeyError::Length)?;
        let (string, rest) = self.0.split_at_checked(length).ok_or(KeyError::Length)?;
        self.0 = rest;
        Ok(string)
    }

    /// The next string's own parts.
    pub(crate) fn nested(&mut self) -> Result<Self, KeyError> {
        self.string().map(Parts)
    }

    /// Whether the next string is a number over 0, in its one shortest form.
    fn positive(&mut self) -> Result<bool, KeyError> {
        Ok(match self.string()? {
            [] => false,
            [0, second, ..] => second & 0x80 != 0,
            [first, ..] => first & 0x80 == 0 && *first != 0,
        })
    }
}

#[cfg(test)]
mod tests;
