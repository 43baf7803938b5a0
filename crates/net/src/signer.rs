//! What can sign for a user: a key from a file, a key in an agent, or a key delegated for a while.
//!
//! The rest of afar only ever sees a [`Signer`]: who holds the secret, and whether a person has to
//! touch something for it, is nobody else's business.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::rand;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use zeroize::Zeroizing;

use crate::agent::{AgentError, AgentKey};
use crate::public_key::KeyKind;
use crate::{ssh_wire, sshsig};

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
    /// The SSH wire blob of the public key.
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
            Self::File(_) | Self::Delegated(_) => KeyKind::Ed25519.ssh_name(),
            Self::Agent(key) => key.algorithm(),
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
    /// [`SignError::Agent`] and [`SignError::Invalid`] with an agent; never with a key in memory.
    pub async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let data = sshsig::signed_data(message);
        match self {
            Self::File(key) => Ok(sshsig::assemble(key.public_blob(), &key.sign_raw(&data))),
            Self::Delegated(key) => Ok(sshsig::assemble(key.public_blob(), &key.sign_raw(&data))),
            Self::Agent(key) => {
                let raw = key.sign_raw(&data).await?;
                let envelope = sshsig::assemble(key.public_blob(), &raw);
                sshsig::verify(key.public_blob(), &envelope, message)?;
                Ok(envelope)
            }
        }
    }
}

/// An Ed25519 key in memory. The library wipes the secret when the last clone is dropped.
#[derive(Clone)]
struct MemoryKey {
    pair: Arc<Ed25519KeyPair>,
    blob: Arc<[u8]>,
}

impl MemoryKey {
    fn new(pair: Ed25519KeyPair) -> Self {
        let mut blob = Vec::with_capacity(51);
        ssh_wire::put_string(&mut blob, KeyKind::Ed25519.ssh_name().as_bytes());
        ssh_wire::put_string(&mut blob, pair.public_key().as_ref());
        Self { pair: Arc::new(pair), blob: blob.into() }
    }

    fn sign_raw(&self, data: &[u8]) -> Vec<u8> {
        let signature = self.pair.sign(data);
        let mut raw = Vec::with_capacity(83);
        ssh_wire::put_string(&mut raw, KeyKind::Ed25519.ssh_name().as_bytes());
        ssh_wire::put_string(&mut raw, signature.as_ref());
        raw
    }
}

/// A user's key that was read, and decrypted where it had to be, from a file. `Debug` shows no
/// secret.
#[derive(Clone)]
pub struct FileKey {
    key: MemoryKey,
    path: Arc<Path>,
    comment: Arc<str>,
}

impl FileKey {
    /// `None` where the public half is not the seed's.
    pub(crate) fn new(
        seed: &[u8; 32],
        public: &[u8; 32],
        path: &Path,
        comment: &str,
    ) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).ok()?;
        Some(Self { key: MemoryKey::new(pair), path: path.into(), comment: comment.into() })
    }

    /// The SSH wire blob of the public key.
    #[must_use]
    pub fn public_blob(&self) -> &[u8] {
        &self.key.blob
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
    pub(crate) fn sign_raw(&self, data: &[u8]) -> Vec<u8> {
        self.key.sign_raw(data)
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
        Ok(Self { key: MemoryKey::new(pair) })
    }

    /// The SSH wire blob of the public key.
    #[must_use]
    pub fn public_blob(&self) -> &[u8] {
        &self.key.blob
    }

    /// An SSH signature blob over exactly these bytes.
    pub(crate) fn sign_raw(&self, data: &[u8]) -> Vec<u8> {
        self.key.sign_raw(data)
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
    use crate::public_key::PublicKey;

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
        let path = Path::new("key");
        assert!(FileKey::new(&[1; 32], &[2; 32], path, "").is_none());
    }

    #[test]
    fn signing_can_move_between_threads() {
        fn assert_send<T: Send>(_: &T) {}
        let signer = Signer::Delegated(DelegatedKey::generate().unwrap());
        assert_send(&signer.sign(b""));
    }
}
