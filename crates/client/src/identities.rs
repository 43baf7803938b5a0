//! The keys that are offered, and in which order.
//!
//! First those that can sign at once, then what else the agent holds, last the files that would
//! have to be unlocked: a person is not asked for a passphrase while another key would do.

use std::path::{Path, PathBuf};

use afar_core::key::PublicKeyBlob;
use afar_net::agent::{Agent, AgentKey};
use afar_net::identity::{self, IdentityError, IdentityFile};
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
    /// Files that can't be used, each with the reason; those that are not there are left out.
    pub(crate) skipped: Vec<IdentityError>,
}

impl IdentitySources {
    /// Reads the key files. Blocks on the file system.
    pub(crate) fn load_files(&self) -> Result<LoadedFiles, Error> {
        let mut loaded = LoadedFiles::default();
        let Some(files) = &self.files else {
            let defaults = identity::load_defaults(&self.home);
            loaded.identities = defaults.identities;
            for error in defaults.skipped {
                loaded.public.extend(public_half(&error));
                loaded.skipped.push(error);
            }
            return Ok(loaded);
        };
        for path in files {
            match identity::load(path) {
                Ok(identity) => loaded.identities.push(identity),
                // A private key that others can read is refused; its public half does not mend it.
                Err(error @ IdentityError::File(_)) if !error.is_not_found() => {
                    if self.explicit {
                        return Err(error.into());
                    }
                    loaded.skipped.push(error);
                }
                Err(error) => {
                    // `-i key.pub`, or a key of which only the public half is here.
                    if let Some(public) = load_public_half(path) {
                        loaded.public.push(public);
                    } else if self.explicit {
                        return Err(error.into());
                    } else if !error.is_not_found() {
                        loaded.skipped.push(error);
                    }
                }
            }
        }
        Ok(loaded)
    }

    /// The agent's keys. An agent that does not answer has none: the files may do.
    pub(crate) async fn agent_keys(&self) -> Vec<AgentKey> {
        match &self.agent {
            Some(agent) => agent.identities().await.unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// All candidates in the order in which they are offered, without repetition.
    pub(crate) fn candidates(&self, files: LoadedFiles, agent: Vec<AgentKey>) -> Vec<Candidate> {
        let LoadedFiles { identities, public, .. } = files;
        let mut ready = Vec::new();
        let mut locked = Vec::new();
        let named: Vec<Vec<u8>> = identities
            .iter()
            .map(|identity| identity.public_blob().to_vec())
            .chain(public)
            .collect();
        for identity in identities {
            match identity {
                IdentityFile::Ready(key) => ready.push(Candidate::Usable(Signer::File(key))),
                IdentityFile::Locked(key) => locked.push(Candidate::Locked(key)),
            }
        }
        // A stable sort: keys that the user named keep ahead of the agent's others.
        let rank = |blob: &[u8]| named.iter().position(|named| named == blob);
        let mut agent: Vec<AgentKey> = agent
            .into_iter()
            .filter(|key| !self.only_files || rank(key.public_blob()).is_some())
            .collect();
        agent.sort_by_key(|key| rank(key.public_blob()).unwrap_or(usize::MAX));
        let agent = agent.into_iter().map(|key| Candidate::Usable(Signer::Agent(key)));
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
        fingerprint: fingerprint(candidate.public_blob()),
        comment: comment.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
