//! SSHSIG (OpenSSH's PROTOCOL.sshsig): how a user's key signs the authentication transcript.
//!
//! The format is what `ssh-keygen -Y` and every agent can make, and its namespace keeps a
//! signature that was made for afar from being worth anything elsewhere, and the other way round:
//! an agent that is asked for an SSH login or a signed commit never signs these bytes. Verifying
//! is strict: of one message and one key there is one envelope that is accepted, byte for byte.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    self, EcdsaVerificationAlgorithm, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};

use crate::public_key::{self, KeyKind, PublicKey, PublicKeyError, Shape};
use crate::ssh_wire::{self, Malformed, SshReader};

/// The namespace of every signature that afar makes or accepts.
pub const NAMESPACE: &str = "afar";

/// The smallest RSA modulus that is accepted, in bits.
///
/// sshd's default (`RequiredRSASize`) is 1024 for the sake of keys from the last century; the TLS
/// library's smallest is 2048, as is every current recommendation's.
pub const RSA_BITS_MIN: usize = 2048;

/// What the envelope begins with.
const MAGIC: &[u8; 6] = b"SSHSIG";

/// The only version there is.
const VERSION: u32 = 1;

/// What the message is hashed with before it is signed: the stronger of the format's two.
const HASH: &str = "sha512";

/// Why a signature was not accepted. All of these are the signer's doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The envelope is cut, padded, or not SSHSIG.
    #[error("the signature is malformed")]
    Malformed,
    /// An envelope of another version.
    #[error("the signature has version {0}, not {VERSION}")]
    Version(u32),
    /// A signature that was made for another purpose.
    #[error("the signature was made for another purpose than {NAMESPACE:?}")]
    Namespace,
    /// The message was hashed with something else.
    #[error("the signature does not use {HASH}")]
    Hash,
    /// The envelope holds another key than the one that was stated.
    #[error("the signature is by another key than the one stated")]
    OtherKey,
    /// The key cannot be read or is of a type that is not verified.
    #[error(transparent)]
    Key(#[from] PublicKeyError),
    /// The signature algorithm does not go with the key, or is no longer safe (`ssh-rsa`).
    #[error("the signature algorithm does not go with a key of type {}", .0.ssh_name())]
    Algorithm(KeyKind),
    /// An RSA key below [`RSA_BITS_MIN`].
    #[error("an RSA key of {0} bits is too small; {RSA_BITS_MIN} are needed")]
    RsaTooSmall(usize),
    /// The arithmetic says no.
    #[error("the signature does not match")]
    BadSignature,
}

impl From<Malformed> for VerifyError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// A key whose owner has signed a message: there is no other way to come by this value than
/// [`verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedKey {
    blob: Vec<u8>,
    kind: KeyKind,
    algorithm: &'static str,
}

impl VerifiedKey {
    /// The SSH wire blob of the key.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The type of the key.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The algorithm of the signature, such as `rsa-sha2-512`.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// The key's fingerprint; see [`public_key::fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> String {
        public_key::fingerprint(&self.blob)
    }
}

/// The bytes that the key itself signs for a message: what an agent is given.
#[must_use]
pub fn signed_data(message: &[u8]) -> Vec<u8> {
    let hash = digest::digest(&digest::SHA512, message);
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(MAGIC);
    ssh_wire::put_string(&mut out, NAMESPACE.as_bytes());
    ssh_wire::put_string(&mut out, b"");
    ssh_wire::put_string(&mut out, HASH.as_bytes());
    ssh_wire::put_string(&mut out, hash.as_ref());
    out
}

/// Puts a signature over [`signed_data`] (an SSH signature blob: algorithm and value, as agents
/// give it) into its envelope.
#[must_use]
pub fn assemble(public_blob: &[u8], raw_signature: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + public_blob.len() + raw_signature.len());
    out.extend_from_slice(MAGIC);
    ssh_wire::put_u32(&mut out, VERSION);
    ssh_wire::put_string(&mut out, public_blob);
    ssh_wire::put_string(&mut out, NAMESPACE.as_bytes());
    ssh_wire::put_string(&mut out, b"");
    ssh_wire::put_string(&mut out, HASH.as_bytes());
    ssh_wire::put_string(&mut out, raw_signature);
    out
}

/// Verifies that the holder of `public_blob` signed exactly `message`, in an envelope that is
/// exactly what [`assemble`] makes. Takes some tens of microseconds of CPU.
///
/// # Errors
/// A [`VerifyError`] for the log; the peer is told nothing but that it was refused.
pub fn verify(
    public_blob: &[u8],
    sig_blob: &[u8],
    message: &[u8],
) -> Result<VerifiedKey, VerifyError> {
    let envelope = Envelope::parse(sig_blob)?;
    if envelope.public_blob != public_blob {
        return Err(VerifyError::OtherKey);
    }
    let key = PublicKey::from_blob(public_blob)?;
    let algorithm = verify_raw(&key, &envelope, &signed_data(message))?;
    Ok(VerifiedKey { blob: public_blob.to_vec(), kind: key.kind(), algorithm })
}

/// The parts of an envelope that vary.
struct Envelope<'a> {
    public_blob: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        let mut reader = SshReader::new(bytes);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(VerifyError::Malformed);
        }
        let version = reader.u32()?;
        if version != VERSION {
            return Err(VerifyError::Version(version));
        }
        let public_blob = reader.string()?;
        if reader.string()? != NAMESPACE.as_bytes() {
            return Err(VerifyError::Namespace);
        }
        // Reserved by the format. Nobody writes it yet, so whoever does means something by it
        // that is not understood here.
        if !reader.string()?.is_empty() {
            return Err(VerifyError::Malformed);
        }
        if reader.string()? != HASH.as_bytes() {
            return Err(VerifyError::Hash);
        }
        let mut inner = SshReader::new(reader.string()?);
        reader.finish()?;
        let algorithm = inner.string()?;
        let signature = inner.string()?;
        inner.finish()?;
        Ok(Self { public_blob, algorithm, signature })
    }
}

/// Verifies the inner signature and returns the name of its algorithm.
fn verify_raw(
    key: &PublicKey,
    envelope: &Envelope<'_>,
    signed: &[u8],
) -> Result<&'static str, VerifyError> {
    let kind = key.kind();
    if kind != KeyKind::Rsa && envelope.algorithm != kind.ssh_name().as_bytes() {
        return Err(VerifyError::Algorithm(kind));
    }
    match key.shape() {
        Shape::Ed25519(public) => {
            UnparsedPublicKey::new(&signature::ED25519, public)
                .verify(signed, envelope.signature)
                .map_err(|_| VerifyError::BadSignature)?;
            Ok(kind.ssh_name())
        }
        Shape::Ecdsa { point, .. } => {
            let fixed = fixed_ecdsa_signature(kind, envelope.signature)?;
            UnparsedPublicKey::new(ecdsa_algorithm(kind), point)
                .verify(signed, &fixed)
                .map_err(|_| VerifyError::BadSignature)?;
            Ok(kind.ssh_name())
        }
        Shape::Rsa { exponent, modulus } => {
            let bits = key.bits();
            if bits < RSA_BITS_MIN {
                return Err(VerifyError::RsaTooSmall(bits));
            }
            let (name, parameters) = rsa_algorithm(envelope.algorithm)?;
            RsaPublicKeyComponents { n: modulus, e: exponent }
                .verify(parameters, signed, envelope.signature)
                .map_err(|_| VerifyError::BadSignature)?;
            Ok(name)
        }
    }
}

fn ecdsa_algorithm(kind: KeyKind) -> &'static EcdsaVerificationAlgorithm {
    match kind {
        KeyKind::EcdsaP384 => &signature::ECDSA_P384_SHA384_FIXED,
        KeyKind::EcdsaP521 => &signature::ECDSA_P521_SHA512_FIXED,
        _ => &signature::ECDSA_P256_SHA256_FIXED,
    }
}

/// RSA with SHA-1 (`ssh-rsa`) is refused: it can be forged.
fn rsa_algorithm(name: &[u8]) -> Result<(&'static str, &'static RsaParameters), VerifyError> {
    match name {
        b"rsa-sha2-256" => Ok(("rsa-sha2-256", &signature::RSA_PKCS1_2048_8192_SHA256)),
        b"rsa-sha2-512" => Ok(("rsa-sha2-512", &signature::RSA_PKCS1_2048_8192_SHA512)),
        _ => Err(VerifyError::Algorithm(KeyKind::Rsa)),
    }
}

/// The two numbers of an ECDSA signature (RFC 5656 section 3.1.2), each padded to the width of the
/// curve, one after the other.
fn fixed_ecdsa_signature(kind: KeyKind, value: &[u8]) -> Result<Vec<u8>, VerifyError> {
    let (_, width) = kind.curve().ok_or(VerifyError::Algorithm(kind))?;
    let mut reader = SshReader::new(value);
    let numbers = [reader.positive_mpint()?, reader.positive_mpint()?];
    reader.finish()?;
    let mut fixed = Vec::with_capacity(2 * width);
    for number in numbers {
        let padding = width.checked_sub(number.len()).ok_or(VerifyError::Malformed)?;
        fixed.extend(std::iter::repeat_n(0, padding));
        fixed.extend_from_slice(number);
    }
    Ok(fixed)
}

#[cfg(test)]
mod tests;
