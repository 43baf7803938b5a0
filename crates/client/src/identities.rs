//! The keys that are offered, and in which order.
//!
//! First those that can sign at once, then what else the agent holds, last the files that would
//! have to be unlocked: a person is not asked for a passphrase while another key would do.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use afar_core::certificate::Certificate;
use afar_core::key::PublicKeyBlob;
use afar_net::agent::{Agent, AgentError, AgentKey, Identities};
use afar_net::identity::{self, IdentityError, IdentityFile, certificate_beside};
use afar_net::login::Candidate;
use afar_net::public_key::fingerprint;
use afar_net::signer::Signer;

use crate::error::Error;

/// Where keys are looked for.
#[derive(Clone, Debug)]
pub(crate) struct IdentitySources {
    /// The key files, in order; a public one stands for the agent's key. `None` for ssh's defaults
    /// in `home`.
    pub(crate) files: Option<Vec<PathBuf>>,
    /// Certificates besides those that lie beside key files (ssh_config(5), `CertificateFile`).
    pub(crate) certificates: Vec<PathBuf>,
    /// The user's home directory.
    pub(crate) home: PathBuf,
    /// Whether the user named the files, so that one that can't be used is an error.
    pub(crate) explicit: bool,
    /// The agent, if there is any to be asked.
    pub(crate) agent: Option<Agent>,
    /// Whether of the agent's keys only those are offered whose files are named (ssh_config(5),
    /// `IdentitiesOnly`).
    pub(crate) only_files: bool,
}

/// A key that would be offered, for showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedKey {
    /// Its type, such as `ssh-ed25519`.
    pub algorithm: String,
    /// Its fingerprint, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// Its comment; escape it before showing it.
    pub comment: String,
    /// Where it is.
    pub source: KeySource,
    /// What its certificate says, where it is offered by one.
    pub certificate: Option<OfferedCertificate>,
}

/// What a certificate says, for showing. Texts are the authority's: escape them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedCertificate {
    /// The authority's name for it.
    pub key_id: String,
    /// The authority's number for it.
    pub serial: u64,
    /// The users that it names.
    pub principals: Vec<String>,
    /// The first second at which it is valid, in Unix time; 0 for ever before.
    pub valid_after_s: u64,
    /// The first second at which it is no longer valid; `u64::MAX` for never.
    pub valid_before_s: u64,
    /// The fingerprint of its authority.
    pub authority: String,
}

impl OfferedCertificate {
    fn of(certificate: &Certificate) -> Self {
        Self {
            key_id: certificate.key_id().to_owned(),
            serial: certificate.serial(),
            principals: certificate.principals().to_vec(),
            valid_after_s: certificate.valid_after_s(),
            valid_before_s: certificate.valid_before_s(),
            authority: certificate.authority().fingerprint(),
        }
    }
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource {
    /// In a file, ready to sign.
    File(PathBuf),
    /// In a file that has to be unlocked.
    LockedFile(PathBuf),
    /// In an ssh-agent at this socket.
    Agent(PathBuf),
}

/// What the files hold.
#[derive(Debug, Default)]
pub(crate) struct LoadedFiles {
    pub(crate) identities: Vec<IdentityFile>,
    /// Public keys whose secret may be in the agent.
    public: Vec<Vec<u8>>,
    certificates: Vec<Arc<Certificate>>,
    /// Files that can't be used, each with the reason; those that are not there are left out.
    pub(crate) skipped: Vec<IdentityError>,
}

impl IdentitySources {
    /// Reads the key files and their certificates. Blocks on the file system.
    pub(crate) fn load_files(&self) -> Result<LoadedFiles, Error> {
        let mut loaded = LoadedFiles::default();
        for path in &self.certificates {
            loaded.add_certificate(path);
        }
        let Some(files) = &self.files else {
            let defaults = identity::load_defaults(&self.home);
            loaded.identities = defaults.identities;
            for error in defaults.skipped {
                loaded.public.extend(public_half(&error));
                loaded.skipped.push(error);
            }
            // A certificate may be there without the key, which is in the agent.
            for path in identity::default_paths(&self.home) {
                loaded.add_certificate(&certificate_beside(&path));
            }
            return Ok(loaded);
        };
        for path in files {
            self.load_file(path, &mut loaded)?;
            loaded.add_certificate(&certificate_beside(path));
        }
        Ok(loaded)
    }

    fn load_file(&self, path: &Path, loaded: &mut LoadedFiles) -> Result<(), Error> {
        // `-i id_x-cert.pub`: the certificate, and the key beside it if it is there.
        if let Some(key) = key_beside(path)
            && loaded.add_certificate(path)
        {
            return match identity::load(&key) {
                Ok(identity) => {
                    loaded.identities.push(identity);
                    Ok(())
                }
                Err(error @ IdentityError::File(_)) if !error.is_not_found() => Err(error.into()),
                Err(_) => Ok(()),
            };
        }
        match identity::load(path) {
            Ok(identity) => loaded.identities.push(identity),
            // A private key that others can read is refused; its public half does not mend it.
            Err(error @ IdentityError::File(_)) if !error.is_not_found() => {
                // But that a public one is open to others is as it should be.
                if let Ok(public) = identity::load_public(path) {
                    loaded.public.push(public.blob);
                    return Ok(());
                }
                if self.explicit {
                    return Err(error.into());
                }
                loaded.skipped.push(error);
            }
            Err(error) => {
                // `-i key.pub`, or a key of which only the public half is here.
                if let Some(public) = load_public_half(path) {
                    loaded.public.push(public);
                    // The agent may hold what the file itself is no good for; why, is still told.
                    let is_public = identity::load_public(path).is_ok();
                    if !is_public && matches!(error, IdentityError::Key { .. }) {
                        loaded.skipped.push(error);
                    }
                } else if self.explicit {
                    return Err(error.into());
                } else if !error.is_not_found() {
                    loaded.skipped.push(error);
                }
            }
        }
        Ok(())
    }

    /// What the agent holds; nothing if there is none to be asked.
    pub(crate) async fn agent_keys(&self) -> Result<Identities, AgentError> {
        match &self.agent {
            Some(agent) => agent.identities().await,
            None => Ok(Identities::default()),
        }
    }

    /// All candidates in the order in which they are offered, without repetition; a key's
    /// certificates before the key itself.
    pub(crate) fn candidates(&self, files: LoadedFiles, agent: Vec<AgentKey>) -> Vec<Candidate> {
        let LoadedFiles { identities, public, certificates, .. } = files;
        let mut ready = Vec::new();
        let mut locked = Vec::new();
        let named: Vec<Vec<u8>> = identities
            .iter()
            .map(|identity| identity.public_blob().to_vec())
            .chain(public)
            .chain(certificates.iter().map(|certificate| certificate.key().as_bytes().to_vec()))
            .collect();
        for identity in identities {
            let certified: Vec<IdentityFile> =
                certificates.iter().filter_map(|one| identity.with_certificate(one)).collect();
            for identity in certified.into_iter().chain([identity]) {
                match identity {
                    IdentityFile::Ready(key) => ready.push(Candidate::Usable(Signer::File(key))),
                    IdentityFile::Locked(key) => locked.push(Candidate::Locked(key)),
                }
            }
        }
        // A stable sort: keys that the user named keep ahead of the agent's others.
        let rank = |blob: &[u8]| named.iter().position(|named| named == blob);
        let mut agent: Vec<AgentKey> = agent
            .into_iter()
            .filter(|key| !self.only_files || rank(key.key_blob()).is_some())
            .collect();
        agent.sort_by_key(|key| rank(key.key_blob()).unwrap_or(usize::MAX));
        let agent = agent.into_iter().flat_map(|key| {
            let certified: Vec<AgentKey> =
                certificates.iter().filter_map(|one| key.with_certificate(one)).collect();
            certified.into_iter().chain([key])
        });
        let agent = agent.map(|key| Candidate::Usable(Signer::Agent(key)));
        let mut candidates: Vec<Candidate> = Vec::new();
        for candidate in ready.into_iter().chain(agent).chain(locked) {
            let blob = candidate.public_blob();
            if candidates.iter().all(|other| other.public_blob() != blob) {
                candidates.push(candidate);
            }
        }
        candidates
    }
}

impl LoadedFiles {
    /// Reads a certificate, if it is there; whether it is.
    fn add_certificate(&mut self, path: &Path) -> bool {
        match identity::load_certificate(path) {
            Ok(certificate) => {
                let known = |one: &Arc<Certificate>| one.blob() == certificate.blob();
                if !self.certificates.iter().any(known) {
                    self.certificates.push(Arc::new(certificate));
                }
                true
            }
            Err(error) => {
                if !error.is_not_found() {
                    self.skipped.push(error);
                }
                false
            }
        }
    }
}

/// The private key whose certificate ssh-keygen writes to this path, if it looks like one.
fn key_beside(path: &Path) -> Option<PathBuf> {
    let stem = path.as_os_str().as_bytes().strip_suffix(b"-cert.pub")?;
    Some(PathBuf::from(OsStr::from_bytes(stem)))
}

fn load_public_half(path: &Path) -> Option<Vec<u8>> {
    let beside = || {
        let mut name = path.as_os_str().to_owned();
        name.push(".pub");
        identity::load_public(Path::new(&name))
    };
    identity::load_public(path).or_else(|_| beside()).ok().map(|public| public.blob)
}

/// The public half of a key that only an agent can sign with.
fn public_half(error: &IdentityError) -> Option<Vec<u8>> {
    match error {
        IdentityError::NeedsAgent { path, .. } => load_public_half(path),
        _ => None,
    }
}

/// The fingerprint as `ssh-keygen -l` shows it: of a certificate, that of its key.
pub(crate) fn shown_fingerprint(blob: &[u8]) -> String {
    match PublicKeyBlob::from_wire(blob.to_vec()) {
        Ok(blob) => blob.fingerprint(),
        Err(_) => fingerprint(blob),
    }
}

/// A candidate as it is shown.
pub(crate) fn offered(candidate: &Candidate, agent: Option<&Agent>) -> OfferedKey {
    let (comment, source) = match candidate {
        Candidate::Locked(key) => (key.comment(), KeySource::LockedFile(key.path().to_owned())),
        Candidate::Usable(Signer::File(key)) => {
            (key.comment(), KeySource::File(key.path().to_owned()))
        }
        Candidate::Usable(signer) => {
            let socket = agent.map(|agent| agent.path().to_owned()).unwrap_or_default();
            (signer.comment(), KeySource::Agent(socket))
        }
    };
    let blob = PublicKeyBlob::from_wire(candidate.public_blob().to_vec());
    OfferedKey {
        algorithm: blob.map(|blob| blob.algorithm().to_owned()).unwrap_or_default(),
        fingerprint: shown_fingerprint(candidate.public_blob()),
        comment: comment.to_owned(),
        source,
        certificate: candidate.certificate().map(OfferedCertificate::of),
    }
}

#[cfg(test)]
mod tests;
