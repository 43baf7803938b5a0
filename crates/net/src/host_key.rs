//! Host keys: what proves to a client that it talks to the machine it means.
//!
//! They are OpenSSH's: where a server runs as root it proves the very identity that its users
//! already have in `known_hosts`. Where those files cannot be read, a server has a key of its own,
//! made once and kept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use afar_core::certificate::Certificate;
use afar_core::key::PublicKeyBlob;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::SigningKey;

use crate::certificate::verify_authority;
use crate::files::{self, FileError, PrivateKeyRule};
use crate::identity::certificate_beside;
use crate::key_file::{KeyFault, KeyFile};
use crate::public_key::{self, KeyKind, PublicKey, PublicKeyError};
use crate::secret_key;

/// The largest certificate file that is read.
const CERTIFICATE_FILE_BYTES_MAX: u64 = 64 * 1024;

/// The public half of a host key, in both of its forms.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostPublicKey {
    kind: KeyKind,
    blob: Vec<u8>,
    spki: Vec<u8>,
}

impl HostPublicKey {
    /// From the SSH wire blob, as `known_hosts` has it.
    ///
    /// # Errors
    /// As [`PublicKey::from_blob`]; also a FIDO key, which no server can prove.
    pub fn from_blob(blob: &[u8]) -> Result<Self, PublicKeyError> {
        Self::new(&PublicKey::from_blob(blob)?)
    }

    /// From the DER SubjectPublicKeyInfo, as TLS carries it.
    ///
    /// # Errors
    /// As [`PublicKey::from_spki`].
    pub fn from_spki(spki: &[u8]) -> Result<Self, PublicKeyError> {
        Self::new(&PublicKey::from_spki(spki)?)
    }

    fn new(key: &PublicKey) -> Result<Self, PublicKeyError> {
        let kind = key.kind();
        let unsupported = || PublicKeyError::Unsupported { name: kind.ssh_name().to_owned() };
        Ok(Self { kind, blob: key.to_blob(), spki: key.to_spki().ok_or_else(unsupported)? })
    }

    /// The type of the key.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The SSH wire blob.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The fingerprint as ssh shows it; see [`public_key::fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> String {
        public_key::fingerprint(&self.blob)
    }
}

impl fmt::Debug for HostPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostPublicKey({} {})", self.kind.ssh_name(), self.fingerprint())
    }
}

/// Why there is no host key, or not this one.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// The file could not be read or must not be believed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file was read and holds no key that a server can use.
    #[error("host key {path:?}: {fault}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with what is in it.
        fault: KeyFault,
    },
    /// A key that did not come from a file is unusable, or none could be made.
    #[error("host key: {0}")]
    Fault(#[from] KeyFault),
    /// Two keys of one type: a server could not say which of them it is.
    #[error("two host keys of type {}", .kind.ssh_name())]
    Duplicate {
        /// The type that is there twice.
        kind: KeyKind,
    },
    /// A certificate beside a host key that proves nothing about it.
    #[error("host certificate {path:?}: {problem}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no key at all.
    #[error("no host key")]
    None,
}

/// A host key with its private half, ready to sign TLS handshakes. `Debug` shows the public half.
#[derive(Clone)]
pub struct HostKey {
    public: HostPublicKey,
    signing: Arc<dyn SigningKey>,
    source: Option<PathBuf>,
    comment: String,
    certificate: Option<Arc<Certificate>>,
}

impl HostKey {
    /// Reads an OpenSSH private key file's contents.
    ///
    /// # Errors
    /// A [`KeyFault`]; [`KeyFault::Encrypted`] where it needs a passphrase, since a server has
    /// nobody to ask.
    pub fn from_openssh(contents: &[u8]) -> Result<Self, KeyFault> {
        let file = KeyFile::parse(contents)?;
        let public = HostPublicKey::new(&file.public).map_err(|error| match error {
            PublicKeyError::Unsupported { name } => KeyFault::Unsupported { name },
            PublicKeyError::Malformed => KeyFault::Damaged,
        })?;
        let secret = file.secret()?;
        let signing = any_supported_type(&secret.to_rustls()).map_err(|_| KeyFault::Refused)?;
        // The library derives the public half from the private one; a file whose halves differ
        // would make a server that no client can ever verify.
        let derived = signing.public_key().ok_or(KeyFault::Refused)?;
        if derived.as_ref() != public.spki() {
            return Err(KeyFault::Mismatch);
        }
        let comment = file.comment();
        Ok(Self { public, signing, source: None, comment, certificate: None })
    }

    /// Makes an Ed25519 key that exists in memory only, for a server that shall leave nothing behind.
    ///
    /// # Errors
    /// [`KeyFault::Refused`] where the system has no random bytes.
    pub fn generate() -> Result<Self, KeyFault> {
        Self::from_openssh(secret_key::generate_ed25519()?.as_bytes())
    }

    /// Reads a host key file: ours or root's, and closed to everybody else.
    ///
    /// # Errors
    /// As [`files::read_private_key`] under [`PrivateKeyRule::Host`] and [`Self::from_openssh`].
    pub fn load(path: &Path) -> Result<Self, HostKeyError> {
        let contents = files::read_private_key(path, PrivateKeyRule::Host)?;
        let mut key = Self::from_openssh(&contents)
            .map_err(|fault| HostKeyError::Key { path: path.to_owned(), fault })?;
        key.source = Some(path.to_owned());
        Ok(key)
    }

    /// Reads a host key file, or makes it, with a new Ed25519 key, where there is none.
    ///
    /// The file is made whole and once: of several processes that find none, one makes it and all
    /// return that one's key. Returns whether it was this one.
    ///
    /// # Errors
    /// As [`Self::load`] and [`files::create_once`]. A file that is there but unusable is an error
    /// and is never replaced: a new identity would look like an attack to every client.
    pub fn load_or_create(path: &Path) -> Result<(Self, bool), HostKeyError> {
        match Self::load(path) {
            Err(HostKeyError::File(error)) if error.is_not_found() => {
                let contents = secret_key::generate_ed25519()?;
                let created = files::create_once(path, contents.as_bytes())?;
                Ok((Self::load(path)?, created))
            }
            loaded => Ok((loaded?, false)),
        }
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &HostPublicKey {
        &self.public
    }

    /// The file that the key came from; `None` for one that exists in memory only.
    #[must_use]
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// The comment in the file. Escape it before showing it.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// The certificate that clients are shown.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_deref()
    }

    /// Takes the certificate that lies beside the file (`FILE-cert.pub`), if there is one.
    ///
    /// # Errors
    /// [`HostKeyError::Certificate`] for one that proves nothing about this key now; the key can be
    /// used without it.
    fn take_certificate(&mut self, now_s: i64) -> Result<(), HostKeyError> {
        let Some(path) = self.source.as_deref().map(certificate_beside) else { return Ok(()) };
        let contents = match files::read_regular(&path, CERTIFICATE_FILE_BYTES_MAX) {
            Ok(contents) => contents,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match read_certificate(&contents, &self.public, now_s) {
            Ok(certificate) => {
                self.certificate = Some(Arc::new(certificate));
                Ok(())
            }
            Err(problem) => Err(HostKeyError::Certificate { path, problem }),
        }
    }

    pub(crate) fn signing(&self) -> &Arc<dyn SigningKey> {
        &self.signing
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKey")
            .field("public", &self.public)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// The host keys of one server: at least one, and at most one of each type.
#[derive(Debug, Clone)]
pub struct HostKeys {
    keys: Vec<HostKey>,
}

impl HostKeys {
    /// Takes the keys in the order of preference.
    ///
    /// # Errors
    /// [`HostKeyError::None`] for no key, [`HostKeyError::Duplicate`] for two of one type.
    pub fn new(keys: Vec<HostKey>) -> Result<Self, HostKeyError> {
        if keys.is_empty() {
            return Err(HostKeyError::None);
        }
        for (index, key) in keys.iter().enumerate() {
            let kind = key.public.kind;
            if keys.iter().skip(index + 1).any(|other| other.public.kind == kind) {
                return Err(HostKeyError::Duplicate { kind });
            }
        }
        Ok(Self { keys })
    }

    /// The keys, most preferred first.
    pub fn iter(&self) -> impl Iterator<Item = &HostKey> {
        self.keys.iter()
    }
}

/// Where a server looks for its host keys.
#[derive(Debug, Clone, Copy)]
pub struct HostKeySearch<'a> {
    /// Files that the administrator named. Where there are any, they are used and nothing else.
    pub configured: &'a [PathBuf],
    /// Where sshd keeps its host keys; [`SYSTEM_DIR`] except in tests.
    pub system_dir: &'a Path,
    /// Where our own key is, or will be made.
    pub state_dir: &'a Path,
}

/// Where sshd keeps its host keys.
pub const SYSTEM_DIR: &str = "/etc/ssh";

/// The names of sshd's host key files that can be used, in the order of preference.
const SYSTEM_NAMES: [&str; 3] = ["ssh_host_ed25519_key", "ssh_host_ecdsa_key", "ssh_host_rsa_key"];

/// The name of our own key in the state directory.
const OWN_NAME: &str = "host_ed25519_key";

/// What [`discover`] found.
#[derive(Debug)]
pub struct Discovered {
    /// The keys to serve with.
    pub keys: HostKeys,
    /// System keys, and certificates of keys, that exist and could not be used, and why; worth a
    /// warning each. A key that this user may not read is not among them: for anybody but root that
    /// is as it should be.
    pub skipped: Vec<HostKeyError>,
    /// The file of our own key, where this call has just made it.
    pub created: Option<PathBuf>,
}

/// Finds the host keys: the configured files, else sshd's where they can be read, else one of our
/// own, made once and kept. Blocks on the file system.
///
/// # Errors
/// Any fault of a configured file. A system key that is unusable is passed over as long as another
/// one serves; where none does, its fault is the error, since falling back to our own key would
/// change the machine's identity without anybody having meant it.
pub fn discover(search: &HostKeySearch<'_>) -> Result<Discovered, HostKeyError> {
    let mut found = discover_keys(search)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    for key in &mut found.keys.keys {
        found.skipped.extend(key.take_certificate(now_s).err());
    }
    Ok(found)
}

fn discover_keys(search: &HostKeySearch<'_>) -> Result<Discovered, HostKeyError> {
    if !search.configured.is_empty() {
        let keys = search.configured.iter().map(|path| HostKey::load(path));
        let keys = HostKeys::new(keys.collect::<Result<_, _>>()?)?;
        return Ok(Discovered { keys, skipped: Vec::new(), created: None });
    }
    let mut keys = Vec::new();
    let mut skipped = Vec::new();
    for name in SYSTEM_NAMES {
        match HostKey::load(&search.system_dir.join(name)) {
            Ok(key) => keys.push(key),
            Err(HostKeyError::File(error))
                if error.is_not_found() || error.is_permission_denied() => {}
            Err(error) => skipped.push(error),
        }
    }
    if keys.is_empty() {
        if let Some(fault) = skipped.into_iter().next() {
            return Err(fault);
        }
        let path = search.state_dir.join(OWN_NAME);
        let (key, created) = HostKey::load_or_create(&path)?;
        return Ok(Discovered {
            keys: HostKeys::new(vec![key])?,
            skipped: Vec::new(),
            created: created.then_some(path),
        });
    }
    Ok(Discovered { keys: HostKeys::new(keys)?, skipped, created: None })
}

/// The certificate in a file, if it proves this key as a host's now.
fn read_certificate(
    contents: &[u8],
    key: &HostPublicKey,
    now_s: i64,
) -> Result<Certificate, String> {
    let (blob, _comment) =
        PublicKeyBlob::from_public_line(contents).map_err(|error| error.to_string())?;
    let certificate = Certificate::parse(&blob).map_err(|error| error.to_string())?;
    if certificate.key().as_bytes() != key.blob() {
        return Err("the certificate is of another key".to_owned());
    }
    certificate.check_for_any_host(now_s).map_err(|refusal| refusal.to_string())?;
    verify_authority(&certificate).map_err(|error| error.to_string())?;
    Ok(certificate)
}

#[cfg(test)]
mod tests;
