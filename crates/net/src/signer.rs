//! What can sign for a user: a key from a file, a key in an agent, or a key delegated for a while.
//!
//! The rest of afar only ever sees a [`Signer`]: who holds the secret, and whether a person has to
//! touch something for it, is nobody else's business.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use afar_core::certificate::Certificate;
use aws_lc_rs::rand;
use aws_lc_rs::signature::Ed25519KeyPair;
use zeroize::Zeroizing;

use crate::agent::{AgentError, AgentKey};
use crate::key_file::KeyFault;
use crate::secret_key::{SecretDer, SecretKey};
use crate::sshsig;

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The agent did not sign.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The agent answered with something that is no signature of this key over these bytes; a
    /// server would refuse it without saying why.
    #[error("the agent's signature is not valid: {0}")]
    Invalid(#[from] sshsig::VerifyError),
    /// The system has no random bytes or the cryptographic library refuses.
    #[error("the cryptographic library failed")]
    Library,
}

/// Somebody who can sign for one key. Cloning shares the secret, it does not copy it.
#[derive(Debug, Clone)]
pub enum Signer {
    /// A key that was read from a file of the user's.
    File(FileKey),
    /// A key that an ssh-agent holds.
    Agent(AgentKey),
    /// A key that lives in this process only and was vouched for by another one.
    Delegated(DelegatedKey),
}

impl Signer {
    /// The SSH wire blob of what is offered: a public key, or a certificate.
    #[must_use]
    pub fn public_blob(&self) -> &[u8] {
        match self {
            Self::File(key) => key.public_blob(),
            Self::Agent(key) => key.public_blob(),
            Self::Delegated(key) => key.public_blob(),
        }
    }

    /// The name of the signature algorithm, such as `ssh-ed25519` or `rsa-sha2-512`.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::File(key) => key.key.secret.algorithm(),
            Self::Delegated(key) => key.key.secret.algorithm(),
            Self::Agent(key) => key.algorithm(),
        }
    }

    /// The certificate that the key is offered by.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        match self {
            Self::File(key) => key.certificate(),
            Self::Agent(key) => key.certificate(),
            Self::Delegated(_) => None,
        }
    }

    /// What the key is called where it came from. Escape it before showing it.
    #[must_use]
    pub fn comment(&self) -> &str {
        match self {
            Self::File(key) => key.comment(),
            Self::Agent(key) => key.comment(),
            Self::Delegated(_) => "delegated key",
        }
    }

    /// Signs a message: an SSHSIG envelope, for [`sshsig::verify`].
    ///
    /// With a key in memory this is done at once and never waits. An agent is asked over its
    /// socket and may in turn ask a person; dropping the future closes that connection and leaves
    /// nothing half done.
    ///
    /// # Errors
    /// [`SignError::Agent`] and [`SignError::Invalid`] with an agent; with a key in memory only
    /// [`SignError::Library`], for want of memory.
    pub async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let data = sshsig::signed_data(message);
        match self {
            Self::File(key) => {
                let raw = key.sign_raw(&data).ok_or(SignError::Library)?;
                Ok(sshsig::assemble(key.public_blob(), &raw))
            }
            Self::Delegated(key) => {
                let raw = key.sign_raw(&data).ok_or(SignError::Library)?;
                Ok(sshsig::assemble(key.public_blob(), &raw))
            }
            Self::Agent(key) => {
                let raw = key.sign_raw(&data).await?;
                let envelope = sshsig::assemble(key.public_blob(), &raw);
                sshsig::verify(key.public_blob(), &envelope, message)?;
                Ok(envelope)
            }
        }
    }
}

/// A key in memory. The library wipes the secret when the last clone is dropped.
#[derive(Clone)]
struct MemoryKey {
    secret: Arc<SecretKey>,
    blob: Arc<[u8]>,
}

impl MemoryKey {
    fn new(secret: SecretKey) -> Result<Self, KeyFault> {
        let blob = secret.public()?.to_blob();
        Ok(Self { secret: Arc::new(secret), blob: blob.into() })
    }
}

/// A user's key that was read, and decrypted where it had to be, from a file. `Debug` shows no
/// secret.
#[derive(Clone)]
pub struct FileKey {
    key: MemoryKey,
    certificate: Option<Arc<Certificate>>,
    path: Arc<Path>,
    comment: Arc<str>,
}

impl FileKey {
    /// [`KeyFault::Mismatch`] where the public half that the file states is not the secret's.
    pub(crate) fn new(
        secret: &SecretDer,
        stated_blob: &[u8],
        path: &Path,
        comment: &str,
    ) -> Result<Self, KeyFault> {
        let key = MemoryKey::new(SecretKey::from_der(secret)?)?;
        if *key.blob != *stated_blob {
            return Err(KeyFault::Mismatch);
        }
        Ok(Self { key, certificate: None, path: path.into(), comment: comment.into() })
    }

    /// The same key as it would be offered without a certificate, or by this one of it.
    pub(crate) fn offered_by(&self, certificate: Option<Arc<Certificate>>) -> Self {
        Self { certificate, ..self.clone() }
    }

    /// The SSH wire blob of the key itself.
    pub(crate) fn key_blob(&self) -> &[u8] {
        &self.key.blob
    }

    /// The same key, offered by this certificate, which is one of it.
    pub(crate) fn with_certificate(&self, certificate: Arc<Certificate>) -> Self {
        Self { certificate: Some(certificate), ..self.clone() }
    }

    /// The SSH wire blob of what is offered: the certificate's, if there is one, else the key's.
    #[must_use]
    pub fn public_blob(&self) -> &[u8] {
        match &self.certificate {
            Some(certificate) => certificate.blob().as_bytes(),
            None => &self.key.blob,
        }
    }

    /// The certificate that the key is offered by.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_deref()
    }

    /// The file that the key came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The comment in the file. Escape it before showing it.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// An SSH signature blob over exactly these bytes.
    pub(crate) fn sign_raw(&self, data: &[u8]) -> Option<Vec<u8>> {
        self.key.secret.sign_raw(data)
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: PathBuf = self.path.to_path_buf();
        f.debug_struct("FileKey").field("path", &path).finish_non_exhaustive()
    }
}

/// An Ed25519 key that was made in this process, is written nowhere, and dies with it. `Debug`
/// shows no secret.
#[derive(Clone)]
pub struct DelegatedKey {
    key: MemoryKey,
}

impl DelegatedKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`SignError::Library`] where the system has no random bytes.
    pub fn generate() -> Result<Self, SignError> {
        let mut seed = Zeroizing::new([0_u8; 32]);
        rand::fill(seed.as_mut_slice()).map_err(|_| SignError::Library)?;
        let pair =
            Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| SignError::Library)?;
        let key = MemoryKey::new(SecretKey::Ed25519(pair)).map_err(|_| SignError::Library)?;
        Ok(Self { key })
    }

    /// The SSH wire blob of the public key.
    #[must_use]
    pub fn public_blob(&self) -> &[u8] {
        &self.key.blob
    }

    /// An SSH signature blob over exactly these bytes.
    pub(crate) fn sign_raw(&self, data: &[u8]) -> Option<Vec<u8>> {
        self.key.secret.sign_raw(data)
    }
}

impl fmt::Debug for DelegatedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelegatedKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::public_key::{KeyKind, PublicKey};
    use crate::secret_key::PKCS8_ED25519;

    #[tokio::test]
    async fn a_delegated_key_signs_what_verifies() {
        let signer = Signer::Delegated(DelegatedKey::generate().unwrap());
        let envelope = signer.sign(b"transcript").await.unwrap();
        let verified = sshsig::verify(signer.public_blob(), &envelope, b"transcript").unwrap();
        assert_eq!(verified.algorithm(), signer.algorithm());
        assert_eq!(PublicKey::from_blob(signer.public_blob()).unwrap().kind(), KeyKind::Ed25519);
    }

    #[test]
    fn no_two_delegated_keys_are_alike() {
        let (one, other) = (DelegatedKey::generate().unwrap(), DelegatedKey::generate().unwrap());
        assert_ne!(one.public_blob(), other.public_blob());
    }

    #[test]
    fn a_file_key_with_another_public_half_is_refused() {
        let secret = [PKCS8_ED25519, &[1; 32]].concat();
        let secret = SecretDer::Pkcs8(Zeroizing::new(secret));
        let new = |blob: &[u8]| FileKey::new(&secret, blob, Path::new("key"), "").map(|_| ());
        let blob = SecretKey::from_der(&secret).unwrap().public().unwrap().to_blob();
        assert_eq!(new(&blob), Ok(()));
        let other = [&blob[..blob.len() - 1], &[blob[blob.len() - 1] ^ 1]].concat();
        assert_eq!(new(&other), Err(KeyFault::Mismatch));
    }

    #[test]
    fn signing_can_move_between_threads() {
        fn assert_send<T: Send>(_: &T) {}
        let signer = Signer::Delegated(DelegatedKey::generate().unwrap());
        assert_send(&signer.sign(b""));
    }
}
