//! SSHSIG (OpenSSH's PROTOCOL.sshsig): how a user's key signs the authentication transcript.
//!
//! The format is what `ssh-keygen -Y` and every agent can make, and its namespace keeps a
//! signature that was made for afar from being worth anything elsewhere, and the other way round:
//! an agent that is asked for an SSH login or a signed commit never signs these bytes. Verifying
//! is strict: of one message and one key there is one envelope that is accepted, byte for byte.

use afar_core::key::PublicKeyBlob;
use aws_lc_rs::digest;

use crate::public_key::{KeyKind, PublicKey, PublicKeyError};
use crate::signature::{self, FidoAssertion, SignatureError};
use crate::ssh_wire::{self, Malformed, SshReader};

/// The namespace of every signature that afar makes or accepts.
pub const NAMESPACE: &str = "afar";

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
    /// The signature in the envelope is not one of the key over the message.
    #[error(transparent)]
    Signature(#[from] SignatureError),
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
    blob: PublicKeyBlob,
    kind: KeyKind,
    algorithm: &'static str,
    fido: Option<FidoAssertion>,
}

impl VerifiedKey {
    /// The key, or the certificate, of whose key possession was proved. Who signed the certificate
    /// was not asked.
    #[must_use]
    pub fn blob(&self) -> &PublicKeyBlob {
        &self.blob
    }

    /// The type of the key, also of a certificate's.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The algorithm of the signature, such as `rsa-sha2-512`.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// What the token says of its user; `Some` iff the key is one of a FIDO token.
    #[must_use]
    pub fn fido(&self) -> Option<FidoAssertion> {
        self.fido
    }

    /// The key's fingerprint; see [`PublicKeyBlob::fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.blob.fingerprint()
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

/// Verifies that the holder of `public_blob`, or of its key if it is a certificate, signed exactly
/// `message`, in an envelope that is exactly what [`assemble`] makes. Takes some tens of microseconds of CPU.
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
    let blob =
        PublicKeyBlob::from_wire(public_blob.to_vec()).map_err(|_| PublicKeyError::Malformed)?;
    let key = PublicKey::from_blob(blob.plain().as_bytes())?;
    let valid = signature::verify(&key, envelope.signature, &signed_data(message))?;
    Ok(VerifiedKey { blob, kind: key.kind(), algorithm: valid.algorithm, fido: valid.fido })
}

/// The parts of an envelope that vary.
struct Envelope<'a> {
    public_blob: &'a [u8],
    /// An SSH signature blob.
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
        let signature = reader.string()?;
        reader.finish()?;
        Ok(Self { public_blob, signature })
    }
}

#[cfg(test)]
mod tests;
