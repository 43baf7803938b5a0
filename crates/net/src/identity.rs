//! A user's own key files: finding them, refusing what must not be used, unlocking the rest.
//!
//! An OpenSSH private key file holds its public key in the clear, so a key that needs a passphrase
//! can be offered to a server without asking for it; the passphrase is asked for only once a
//! server is known to accept the key, and with no connection open.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use afar_core::certificate::{Certificate, CertificateKind};
use afar_core::key::PublicKeyBlob;
use base64ct::{Base64, Encoding as _};
use zeroize::Zeroizing;

use crate::files::{self, FileError, PrivateKeyRule};
use crate::key_file::{KeyFault, KeyFile};
use crate::public_key::{KeyKind, PublicKey, PublicKeyError};
use crate::signer::FileKey;

/// The files in `~/.ssh` that are tried where none is configured, in ssh's order.
const DEFAULT_NAMES: [&str; 5] =
    ["id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"];

/// The largest public key file that is read.
const PUBLIC_KEY_BYTES_MAX: u64 = 64 * 1024;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file could not be read, or others can read it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file was read and holds no key that can be used.
    #[error("{path:?}: {fault}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with what is in it.
        fault: KeyFault,
    },
    /// A good key, but of a type that signs only through an agent: the token is the agent's.
    #[error("{path:?} holds a key of type {name:?}, which needs an ssh-agent (`ssh-add {path:?}`)")]
    NeedsAgent {
        /// The file.
        path: PathBuf,
        /// The key type's OpenSSH name.
        name: String,
    },
    /// A certificate that can't be used to log in.
    #[error("{path:?}: {problem}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A `.pub` file that is not one line of type, Base64 and comment.
    #[error("{path:?} is no public key file")]
    NotPublic {
        /// The file.
        path: PathBuf,
    },
}

impl IdentityError {
    /// Whether the file is just not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::File(error) if error.is_not_found())
    }
}

/// Why a passphrase did not open a key.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// It is not the one.
    #[error("wrong passphrase for {path:?}")]
    WrongPassphrase {
        /// The key file.
        path: PathBuf,
    },
    /// Nobody gave one: the person pressed return, or there is none to ask.
    #[error("no passphrase for {path:?}")]
    NoPassphrase {
        /// The key file.
        path: PathBuf,
    },
    /// It opened the file, and what is in it is unusable.
    #[error("{path:?}: {fault}")]
    Key {
        /// The key file.
        path: PathBuf,
        /// What is wrong.
        fault: KeyFault,
    },
}

/// What a person typed; wiped when dropped.
pub type Passphrase = Zeroizing<Vec<u8>>;

/// How a person is asked for the passphrase of a key; see [`LockedKey::unlock_with`].
pub type AskPassphrase<'a> = dyn FnMut(&LockedKey, u32) -> Option<Passphrase> + 'a;

/// A key file that can be offered to a server.
#[derive(Debug)]
pub enum IdentityFile {
    /// Ready to sign.
    Ready(FileKey),
    /// Known by its public key, and to be unlocked once that is worth a prompt.
    Locked(LockedKey),
}

impl IdentityFile {
    /// The private key file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Ready(key) => key.path(),
            Self::Locked(key) => key.path(),
        }
    }

    /// The SSH wire blob of what is offered: the certificate's, if there is one, else the key's.
    #[must_use]
    pub fn public_blob(&self) -> &[u8] {
        match self {
            Self::Ready(key) => key.public_blob(),
            Self::Locked(key) => key.public_blob(),
        }
    }

    /// The same key, offered by this certificate; `None` where that is of another key.
    #[must_use]
    pub fn with_certificate(&self, certificate: &Arc<Certificate>) -> Option<Self> {
        if certificate.key().as_bytes() != self.public_blob() {
            return None;
        }
        let certificate = Arc::clone(certificate);
        Some(match self {
            Self::Ready(key) => Self::Ready(key.with_certificate(certificate)),
            Self::Locked(key) => {
                Self::Locked(LockedKey { certificate: Some(certificate), ..key.clone() })
            }
        })
    }

    /// The key's comment. Escape it before showing it.
    #[must_use]
    pub fn comment(&self) -> &str {
        match self {
            Self::Ready(key) => key.comment(),
            Self::Locked(key) => key.comment(),
        }
    }
}

/// An encrypted key file. `Debug` shows its path only.
#[derive(Clone)]
pub struct LockedKey {
    path: PathBuf,
    file: Arc<KeyFile>,
    blob: Vec<u8>,
    certificate: Option<Arc<Certificate>>,
    comment: String,
}

impl LockedKey {
    /// The private key file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The SSH wire blob of what is offered: the certificate's, if there is one, else the key's.
    #[must_use]
    pub fn public_blob(&self) -> &[u8] {
        match &self.certificate {
            Some(certificate) => certificate.blob().as_bytes(),
            None => &self.blob,
        }
    }

    /// The certificate that the key is offered by.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_deref()
    }

    /// The comment of the `.pub` file beside it, since the file's own is encrypted; empty where
    /// there is none for this key. Escape it before showing it.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// Decrypts the key. This is slow on purpose (bcrypt, a tenth of a second and up) and blocks:
    /// keep it off the async threads.
    ///
    /// # Errors
    /// [`UnlockError::WrongPassphrase`], or [`UnlockError::Key`] for a file that is damaged inside.
    pub fn unlock(&self, passphrase: &[u8]) -> Result<FileKey, UnlockError> {
        let path = || self.path.clone();
        let fault = |fault| UnlockError::Key { path: path(), fault };
        let open = self.file.decrypt(passphrase).map_err(fault)?;
        let open = open.ok_or_else(|| UnlockError::WrongPassphrase { path: path() })?;
        let key = file_key(&open, &self.path).map_err(fault)?;
        Ok(match &self.certificate {
            Some(certificate) => key.with_certificate(Arc::clone(certificate)),
            None => key,
        })
    }

    /// This key, if it is the one that was unlocked before: as it is offered here, by a certificate
    /// that may be newer.
    #[must_use]
    pub fn opened_by(&self, unlocked: &FileKey) -> Option<FileKey> {
        (unlocked.key_blob() == self.blob).then(|| unlocked.offered_by(self.certificate.clone()))
    }

    /// Asks for the passphrase, at most `attempts_max` times, until one is right.
    ///
    /// `ask` is told which key and the number of the attempt, from 1; `None` gives up, as an
    /// empty passphrase does. Blocks as [`Self::unlock`] does, and for as long as `ask` takes.
    ///
    /// # Errors
    /// As [`Self::unlock`], of the last attempt; [`UnlockError::NoPassphrase`] where `ask` gave up.
    pub fn unlock_with(
        &self,
        attempts_max: u32,
        ask: &mut AskPassphrase<'_>,
    ) -> Result<FileKey, UnlockError> {
        let mut result = Err(UnlockError::NoPassphrase { path: self.path.clone() });
        for attempt in 1..=attempts_max {
            let Some(passphrase) = ask(self, attempt).filter(|given| !given.is_empty()) else {
                return Err(UnlockError::NoPassphrase { path: self.path.clone() });
            };
            result = self.unlock(&passphrase);
            if !matches!(result, Err(UnlockError::WrongPassphrase { .. })) {
                break;
            }
        }
        result
    }
}

impl fmt::Debug for LockedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockedKey").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Reads one private key file, under ssh's permission rule ([`PrivateKeyRule::User`]). Blocks on
/// the file system.
///
/// # Errors
/// An [`IdentityError`], each of which names the file in one line.
pub fn load(path: &Path) -> Result<IdentityFile, IdentityError> {
    let contents = files::read_private_key(path, PrivateKeyRule::User)?;
    let fault = |fault| IdentityError::Key { path: path.to_owned(), fault };
    let needs_agent = |name: String| IdentityError::NeedsAgent { path: path.to_owned(), name };
    let file = KeyFile::parse(&contents).map_err(fault)?;
    if file.public.kind().is_fido() {
        return Err(needs_agent(file.public.kind().ssh_name().to_owned()));
    }
    file.check_size().map_err(fault)?;
    if file.is_encrypted() {
        let blob = file.public.to_blob();
        let comment = neighbour_comment(path, &blob).unwrap_or_default();
        let (path, file) = (path.to_owned(), Arc::new(file));
        return Ok(IdentityFile::Locked(LockedKey {
            path,
            file,
            blob,
            certificate: None,
            comment,
        }));
    }
    Ok(IdentityFile::Ready(file_key(&file, path).map_err(fault)?))
}

/// The keys that are tried where none is configured.
#[derive(Debug)]
pub struct Defaults {
    /// Those that can be offered, in ssh's order.
    pub identities: Vec<IdentityFile>,
    /// Those that exist and cannot, each with the reason; worth a debug message, or a warning for
    /// one that others can read.
    pub skipped: Vec<IdentityError>,
}

/// The default key files under `home`, in ssh's order, whether they are there or not.
pub fn default_paths(home: &Path) -> impl Iterator<Item = PathBuf> {
    let directory = home.join(".ssh");
    DEFAULT_NAMES.into_iter().map(move |name| directory.join(name))
}

/// Reads the default key files under `home`. Files that do not exist are not mentioned.
#[must_use]
pub fn load_defaults(home: &Path) -> Defaults {
    let mut found = Defaults { identities: Vec::new(), skipped: Vec::new() };
    for path in default_paths(home) {
        match load(&path) {
            Ok(identity) => found.identities.push(identity),
            Err(error) if error.is_not_found() => {}
            Err(error) => found.skipped.push(error),
        }
    }
    found
}

/// A public key file: what an `IdentityFile` directive names where the secret is in an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicIdentity {
    /// The SSH wire blob.
    pub blob: Vec<u8>,
    /// The type of the key.
    pub kind: KeyKind,
    /// What is written behind the key. Escape it before showing it.
    pub comment: String,
}

/// Reads the public key file at exactly this path.
///
/// # Errors
/// [`IdentityError::NotPublic`] for another sort of file, [`IdentityError::NeedsAgent`] never.
pub fn load_public(path: &Path) -> Result<PublicIdentity, IdentityError> {
    let contents = files::read_regular(path, PUBLIC_KEY_BYTES_MAX)?;
    let not_public = || IdentityError::NotPublic { path: path.to_owned() };
    let text = std::str::from_utf8(&contents).map_err(|_| not_public())?;
    let line = text.lines().next().ok_or_else(not_public)?.trim();
    let mut fields = line.splitn(3, [' ', '\t']);
    let (Some(name), Some(base64)) = (fields.next(), fields.next()) else {
        return Err(not_public());
    };
    let blob = Base64::decode_vec(base64).map_err(|_| not_public())?;
    let key = PublicKey::from_blob(&blob).map_err(|error| match error {
        PublicKeyError::Unsupported { name } => {
            IdentityError::Key { path: path.to_owned(), fault: KeyFault::Unsupported { name } }
        }
        PublicKeyError::Malformed => not_public(),
    })?;
    if key.kind().ssh_name() != name {
        return Err(not_public());
    }
    let comment = fields.next().unwrap_or_default().trim().to_owned();
    Ok(PublicIdentity { blob, kind: key.kind(), comment })
}

/// Reads the certificate file at exactly this path: one line of type, Base64 and comment.
///
/// # Errors
/// [`IdentityError::Certificate`] for anything but a user's certificate.
pub fn load_certificate(path: &Path) -> Result<Certificate, IdentityError> {
    let contents = files::read_regular(path, PUBLIC_KEY_BYTES_MAX)?;
    let problem = |problem: String| IdentityError::Certificate { path: path.to_owned(), problem };
    let (blob, _comment) = PublicKeyBlob::from_public_line(&contents)
        .map_err(|error| problem(format!("no certificate: {error}")))?;
    let certificate = Certificate::parse(&blob).map_err(|error| problem(error.to_string()))?;
    if certificate.kind() != CertificateKind::User {
        return Err(problem("the certificate is a host's".to_owned()));
    }
    Ok(certificate)
}

/// Where ssh-keygen writes the certificate of a key file, given the private or the public one.
#[must_use]
pub fn certificate_beside(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let stem = bytes.strip_suffix(b".pub").unwrap_or(bytes);
    PathBuf::from(OsString::from_vec([stem, b"-cert.pub"].concat()))
}

/// The comment in `PATH.pub`, where that is about the same key.
fn neighbour_comment(path: &Path, blob: &[u8]) -> Option<String> {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    let public = load_public(Path::new(&name)).ok()?;
    (public.blob == blob).then_some(public.comment)
}

fn file_key(file: &KeyFile, path: &Path) -> Result<FileKey, KeyFault> {
    let blob = file.public.to_blob();
    // A PEM file has no room for a comment.
    let comment = match file.comment() {
        empty if empty.is_empty() => neighbour_comment(path, &blob).unwrap_or_default(),
        comment => comment,
    };
    FileKey::new(&file.secret()?, &blob, path, &comment)
}

#[cfg(test)]
mod tests;
