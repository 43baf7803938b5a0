//! Signatures in SSH's encoding (RFC 4253 section 6.6), verified: who signs what is for others.
//!
//! Of one key, one message and one algorithm exactly one encoding is accepted.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    self, EcdsaVerificationAlgorithm, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};

use crate::public_key::{KeyKind, PublicKey, Shape};
use crate::ssh_wire::{self, Malformed, SshReader};

/// The smallest RSA modulus that is accepted, in bits.
///
/// sshd's default (`RequiredRSASize`) is 1024 for the sake of keys from the last century; the
/// library's smallest is 2048, as is every current recommendation's.
pub const RSA_BITS_MIN: usize = 2048;

/// The bit of a FIDO signature's flags that says that somebody touched the token.
const FIDO_USER_PRESENT: u8 = 0x01;

/// The bit that says that the token knew who it was, by a PIN or a fingerprint.
const FIDO_USER_VERIFIED: u8 = 0x04;

/// Why a signature was not accepted. All of these are the signer's doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Cut, padded, or not in the one valid encoding.
    #[error("the signature is malformed")]
    Malformed,
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

impl From<Malformed> for SignatureError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// What a FIDO token says of the person who used it (OpenSSH's PROTOCOL.u2f).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FidoAssertion {
    /// Somebody touched it.
    pub user_present: bool,
    /// It knew who it was.
    pub user_verified: bool,
}

/// A signature that is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Valid {
    /// The name of its algorithm.
    pub(crate) algorithm: &'static str,
    /// `Some` iff the key is one of a FIDO token.
    pub(crate) fido: Option<FidoAssertion>,
}

/// Verifies a signature blob by this key over exactly this message. Takes some tens of
/// microseconds of CPU, on P-521 some hundreds.
pub(crate) fn verify(
    key: &PublicKey,
    blob: &[u8],
    message: &[u8],
) -> Result<Valid, SignatureError> {
    let mut reader = SshReader::new(blob);
    let algorithm = reader.string()?;
    let value = reader.string()?;
    let kind = key.kind();
    if kind != KeyKind::Rsa && algorithm != kind.ssh_name().as_bytes() {
        return Err(SignatureError::Algorithm(kind));
    }
    let mut valid = Valid { algorithm: kind.ssh_name(), fido: None };
    match key.shape() {
        Shape::Ed25519(public) => {
            reader.finish()?;
            ed25519(public, value, message)?;
        }
        Shape::Ecdsa { point, .. } => {
            reader.finish()?;
            ecdsa(kind, point, value, message)?;
        }
        Shape::Rsa { exponent, modulus } => {
            reader.finish()?;
            let bits = key.bits();
            if bits < RSA_BITS_MIN {
                return Err(SignatureError::RsaTooSmall(bits));
            }
            let (name, parameters) = rsa_algorithm(algorithm)?;
            RsaPublicKeyComponents { n: modulus, e: exponent }
                .verify(parameters, message, value)
                .map_err(|_| SignatureError::BadSignature)?;
            valid.algorithm = name;
        }
        Shape::SkEd25519 { key: public, application } => {
            let (assertion, signed) = fido_signed(reader, application, message)?;
            ed25519(public, value, &signed)?;
            valid.fido = Some(assertion);
        }
        Shape::SkEcdsaP256 { point, application } => {
            let (assertion, signed) = fido_signed(reader, application, message)?;
            ecdsa(kind, point, value, &signed)?;
            valid.fido = Some(assertion);
        }
    }
    Ok(valid)
}

/// What a token says, and the bytes that it has signed: they hold hashes of its application and of
/// the message, and between them what it says.
fn fido_signed(
    mut reader: SshReader<'_>,
    application: &[u8],
    message: &[u8],
) -> Result<(FidoAssertion, Vec<u8>), SignatureError> {
    let flags = reader.u8()?;
    let counter = reader.u32()?;
    reader.finish()?;
    let mut signed = digest::digest(&digest::SHA256, application).as_ref().to_vec();
    signed.push(flags);
    ssh_wire::put_u32(&mut signed, counter);
    signed.extend_from_slice(digest::digest(&digest::SHA256, message).as_ref());
    let assertion = FidoAssertion {
        user_present: flags & FIDO_USER_PRESENT != 0,
        user_verified: flags & FIDO_USER_VERIFIED != 0,
    };
    Ok((assertion, signed))
}

fn ed25519(public: &[u8; 32], value: &[u8], message: &[u8]) -> Result<(), SignatureError> {
    UnparsedPublicKey::new(&signature::ED25519, public)
        .verify(message, value)
        .map_err(|_| SignatureError::BadSignature)
}

fn ecdsa(kind: KeyKind, point: &[u8], value: &[u8], message: &[u8]) -> Result<(), SignatureError> {
    let fixed = fixed_ecdsa_signature(kind, value)?;
    UnparsedPublicKey::new(ecdsa_algorithm(kind), point)
        .verify(message, &fixed)
        .map_err(|_| SignatureError::BadSignature)
}

fn ecdsa_algorithm(kind: KeyKind) -> &'static EcdsaVerificationAlgorithm {
    match kind {
        KeyKind::EcdsaP384 => &signature::ECDSA_P384_SHA384_FIXED,
        KeyKind::EcdsaP521 => &signature::ECDSA_P521_SHA512_FIXED,
        _ => &signature::ECDSA_P256_SHA256_FIXED,
    }
}

/// RSA with SHA-1 (`ssh-rsa`) is refused: it can be forged.
fn rsa_algorithm(name: &[u8]) -> Result<(&'static str, &'static RsaParameters), SignatureError> {
    match name {
        b"rsa-sha2-256" => Ok(("rsa-sha2-256", &signature::RSA_PKCS1_2048_8192_SHA256)),
        b"rsa-sha2-512" => Ok(("rsa-sha2-512", &signature::RSA_PKCS1_2048_8192_SHA512)),
        _ => Err(SignatureError::Algorithm(KeyKind::Rsa)),
    }
}

/// The two numbers of an ECDSA signature (RFC 5656 section 3.1.2), each padded to the width of the
/// curve, one after the other.
fn fixed_ecdsa_signature(kind: KeyKind, value: &[u8]) -> Result<Vec<u8>, SignatureError> {
    let (_, width) = kind.curve().ok_or(SignatureError::Algorithm(kind))?;
    let mut reader = SshReader::new(value);
    let numbers = [reader.positive_mpint()?, reader.positive_mpint()?];
    reader.finish()?;
    let mut fixed = Vec::with_capacity(2 * width);
    for number in numbers {
        let padding = width.checked_sub(number.len()).ok_or(SignatureError::Malformed)?;
        fixed.extend(std::iter::repeat_n(0, padding));
        fixed.extend_from_slice(number);
    }
    Ok(fixed)
}

#[cfg(test)]
mod tests;
