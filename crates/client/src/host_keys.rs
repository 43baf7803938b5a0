//! Whether the host that answers is the one that the user knows (`known_hosts`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use afar_core::certificate::Certificate;
use afar_core::key::PublicKeyBlob;
use afar_core::known_hosts::{
    self, HostKeys, KnownHostsFile, KnownKey, Name, NameKind, Place, Verdict,
};
use afar_core::limits::KNOWN_HOSTS_BYTES_MAX;
use afar_net::certificate::verify_authority;
use afar_net::files;
use afar_net::host_key::HostPublicKey;
use afar_net::login::RejectedHost;
use afar_net::public_key::KeyKind;
use afar_net::tls::{self, Shown};

use crate::error::Error;

/// The system's file, which is read besides the user's.
const SYSTEM_FILE: &str = "/etc/ssh/ssh_known_hosts";

/// What is known of one host.
#[derive(Clone, Debug)]
pub(crate) struct KnownHost {
    /// The name that a new key is written under: `[host]:port`.
    pub(crate) name: String,
    /// The file that a new key is written to.
    pub(crate) file: PathBuf,
    /// The name without port, which a certificate has to be for.
    host: String,
    keys: Arc<HostKeys>,
}

/// A host key that is not known, about which a person is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKeyQuestion {
    /// The name that it would be remembered under.
    pub name: String,
    /// The key's type, such as `ssh-ed25519`.
    pub algorithm: String,
    /// The key's fingerprint, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// Where it would be written.
    pub file: PathBuf,
    /// Keys of other types that are known for the host; empty at a first meeting.
    pub known: Vec<KnownFingerprint>,
}

/// A key that is known, for showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownFingerprint {
    /// Its type.
    pub algorithm: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// The file it stands in.
    pub file: String,
    /// The line's number, from 1.
    pub line: usize,
    /// The name that it stands under.
    pub name: String,
}

/// Why a host key is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostKeyProblem {
    /// Nothing is known of the host, or only keys of other types, and nobody said yes.
    NotConfirmed(HostKeyQuestion),
    /// Another key of that type is known.
    Changed {
        /// The key that the host has shown.
        presented: HostKeyQuestion,
        /// What was known of that type.
        known: Vec<KnownFingerprint>,
        /// Whether what is known is sshd's key: another user's server may be listening there.
        of_sshd: bool,
    },
    /// The key is marked as revoked.
    Revoked {
        /// The key that the host has shown.
        presented: HostKeyQuestion,
        /// The file that says so.
        file: String,
        /// The line's number, from 1.
        line: usize,
    },
    /// Only an authority is known, and the host has shown no good certificate of it.
    CertAuthority {
        /// The key that the host has shown.
        presented: HostKeyQuestion,
        /// The file that names it.
        file: String,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with the certificate, or that there is none.
        why: String,
    },
}

/// What is to be done about a host key.
#[derive(Debug)]
pub(crate) enum Judgement {
    Trusted,
    /// Nothing at all is known of the host.
    FirstSight(HostKeyQuestion),
    /// Keys of other types are known: never accepted without a person's word.
    NewType(HostKeyQuestion),
    Refused(Box<HostKeyProblem>),
}

impl KnownHost {
    /// Reads what the user's files know of the host, the first of which is the one that is written
    /// to, and the system's if it is wanted.
    pub(crate) fn load(
        host: &str,
        port: u16,
        sshd_port: Option<u16>,
        user_files: &[PathBuf],
        with_system: bool,
    ) -> Result<Self, Error> {
        let user_file = user_files.first().cloned().unwrap_or_default();
        let mut paths = user_files.to_vec();
        if with_system {
            paths.push(PathBuf::from(SYSTEM_FILE));
        }
        let mut contents = Vec::new();
        for path in paths {
            match files::read_regular(&path, KNOWN_HOSTS_BYTES_MAX as u64) {
                Ok(bytes) => contents.push((path.to_string_lossy().into_owned(), bytes)),
                Err(error) if error.is_not_found() => {}
                // A file of /dev/null says that nothing is known.
                Err(files::FileError::NotRegular { .. }) if path == Path::new("/dev/null") => {}
                Err(error) => return Err(error.into()),
            }
        }
        let contents: Vec<KnownHostsFile<'_>> =
            contents.iter().map(|(name, bytes)| KnownHostsFile { name, bytes }).collect();
        let names: Vec<Name> = known_hosts::names(host, port, sshd_port);
        let keys = Arc::new(HostKeys::collect(&contents, &names)?);
        let name = known_hosts::host_and_port(host, port);
        Ok(Self { name, file: user_file, host: host.to_owned(), keys })
    }

    /// The key types that are known for this host, best first.
    pub(crate) fn preferred(&self) -> Vec<KeyKind> {
        self.keys.algorithms().into_iter().filter_map(KeyKind::from_ssh_name).collect()
    }

    /// The rule for a handshake: whether the key is known, or `accept_new` and the host is not, or
    /// its certificate is of an authority that is known. While only the key has been shown, a
    /// certificate may still make up for what speaks against it; nothing makes up for a revocation.
    pub(crate) fn decide(
        &self,
        key: &HostPublicKey,
        shown: Shown<'_>,
        accept_new: bool,
    ) -> tls::Verdict {
        let accepted = match self.judge(key) {
            Judgement::Trusted => true,
            Judgement::FirstSight(_) => accept_new,
            Judgement::NewType(_) | Judgement::Refused(_) => false,
        };
        match shown {
            _ if accepted => tls::Verdict::Accept,
            Shown::Key if self.keys.has_authority() => tls::Verdict::Undecided,
            Shown::Certificate(certificate) if self.certified(key, certificate).is_ok() => {
                tls::Verdict::Accept
            }
            _ => tls::Verdict::Reject,
        }
    }

    /// Whether the certificate makes this key the host's.
    fn certified(&self, key: &HostPublicKey, certificate: Option<&[u8]>) -> Result<(), String> {
        let shown = certificate.ok_or("the host has shown no certificate")?;
        let blob = PublicKeyBlob::from_wire(shown.to_vec()).map_err(|error| error.to_string())?;
        let certificate = Certificate::parse(&blob).map_err(|error| error.to_string())?;
        if certificate.key().as_bytes() != key.blob() {
            return Err("the certificate is of another key".to_owned());
        }
        let now_s = jiff::Timestamp::now().as_second();
        self.keys
            .judge_certificate(&certificate, &self.host, now_s)
            .map_err(|problem| problem.to_string())?;
        verify_authority(&certificate).map_err(|error| error.to_string())
    }

    /// What is to be done about this key, given the certificate that was shown with it.
    pub(crate) fn judge_shown(&self, host: &RejectedHost) -> Judgement {
        let RejectedHost { key, certificate } = host;
        let judgement = self.judge(key);
        if !self.keys.has_authority() || matches!(judgement, Judgement::Trusted) {
            return judgement;
        }
        match (self.certified(key, certificate.as_deref()), judgement) {
            (Ok(()), _) => Judgement::Trusted,
            (Err(problem), Judgement::Refused(mut refused)) => {
                if let HostKeyProblem::CertAuthority { why, .. } = &mut *refused {
                    *why = problem;
                }
                Judgement::Refused(refused)
            }
            (Err(_), judgement) => judgement,
        }
    }

    /// What is to be done about this key.
    pub(crate) fn judge(&self, key: &HostPublicKey) -> Judgement {
        let Ok(blob) = PublicKeyBlob::from_wire(key.blob().to_vec()) else {
            // A key that was parsed from TLS always has a wire form.
            return Judgement::Refused(Box::new(HostKeyProblem::NotConfirmed(
                self.question(key, &[]),
            )));
        };
        let presented = || self.question(key, &[]);
        match self.keys.judge(&blob) {
            Verdict::Known(_) => Judgement::Trusted,
            Verdict::Unknown => Judgement::FirstSight(presented()),
            Verdict::NewType { known } => Judgement::NewType(self.question(key, &known)),
            Verdict::Changed { known } => Judgement::Refused(Box::new(HostKeyProblem::Changed {
                presented: presented(),
                of_sshd: known.iter().all(|entry| entry.name.kind != NameKind::Afar),
                known: known.iter().map(KnownFingerprint::of).collect(),
            })),
            Verdict::Revoked(Place { file, line }) => {
                let presented = presented();
                Judgement::Refused(Box::new(HostKeyProblem::Revoked { presented, file, line }))
            }
            Verdict::NeedsCertificate(Place { file, line }) => {
                let (presented, why) = (presented(), "a certificate is needed".to_owned());
                let problem = HostKeyProblem::CertAuthority { presented, file, line, why };
                Judgement::Refused(Box::new(problem))
            }
        }
    }

    pub(crate) fn question(&self, key: &HostPublicKey, known: &[KnownKey]) -> HostKeyQuestion {
        HostKeyQuestion {
            name: self.name.clone(),
            algorithm: key.kind().ssh_name().to_owned(),
            fingerprint: key.fingerprint(),
            file: self.file.clone(),
            known: known.iter().map(KnownFingerprint::of).collect(),
        }
    }

    /// Everything that is known of the host and not revoked.
    pub(crate) fn known(&self) -> Vec<KnownFingerprint> {
        self.keys.known().map(KnownFingerprint::of).collect()
    }

    /// Appends the key to the user's file, unless another afar has done so meanwhile.
    pub(crate) fn remember(&self, key: &HostPublicKey) -> Result<(), Error> {
        let line = known_hosts::format_line(&self.name, &wire(key)?)?;
        let bytes_max = KNOWN_HOSTS_BYTES_MAX as u64;
        files::update_atomically(&self.file, bytes_max, |old| {
            let there = old.split_inclusive(|byte| *byte == b'\n').any(|l| l == line.as_bytes());
            if there {
                return None;
            }
            let mut new = old.to_vec();
            if !new.is_empty() && !new.ends_with(b"\n") {
                new.push(b'\n');
            }
            new.extend_from_slice(line.as_bytes());
            Some(new)
        })?;
        Ok(())
    }

    /// Makes the key the host's only one of its type in the user's file; returns how many lines
    /// were changed for it.
    pub(crate) fn replace(&self, key: &HostPublicKey) -> Result<usize, Error> {
        let key = wire(key)?;
        let mut result = Ok(0);
        let bytes_max = KNOWN_HOSTS_BYTES_MAX as u64;
        files::update_atomically(&self.file, bytes_max, |old| {
            match known_hosts::replace(old, &self.name, &key) {
                Ok(replaced) => {
                    result = Ok(replaced.changed_lines.len());
                    (replaced.bytes != old).then_some(replaced.bytes)
                }
                Err(error) => {
                    result = Err(error);
                    None
                }
            }
        })?;
        Ok(result?)
    }
}

/// The name of a key is its own fault if it can't stand in the file; its bytes never are.
fn wire(key: &HostPublicKey) -> Result<PublicKeyBlob, Error> {
    PublicKeyBlob::from_wire(key.blob().to_vec())
        .map_err(|error| Error::TlsSetup(format!("the host's key: {error}")))
}

impl KnownFingerprint {
    fn of(entry: &KnownKey) -> Self {
        Self {
            algorithm: entry.key.algorithm().to_owned(),
            fingerprint: entry.key.fingerprint(),
            file: entry.place.file.clone(),
            line: entry.place.line,
            name: entry.name.text.clone(),
        }
    }
}

impl fmt::Display for KnownFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({}:{})", self.algorithm, self.fingerprint, self.file, self.line)
    }
}

impl std::error::Error for HostKeyProblem {}

impl fmt::Display for HostKeyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let presented = self.presented();
        let HostKeyQuestion { name, algorithm, fingerprint, .. } = presented;
        match self {
            Self::NotConfirmed(question) if question.known.is_empty() => {
                write!(f, "the host key of {name} is not known: {algorithm} {fingerprint}")
            }
            Self::NotConfirmed(question) => write!(
                f,
                "{name} shows a key of a new type, {algorithm} {fingerprint}; known is {}",
                list(&question.known)
            ),
            Self::Changed { known, of_sshd, .. } => {
                write!(
                    f,
                    "the host key of {name} has changed: it shows {algorithm} {fingerprint}, \
                     known is {}",
                    list(known)
                )?;
                if *of_sshd {
                    f.write_str("; that is sshd's key, so another user's server may be listening")?;
                }
                Ok(())
            }
            Self::Revoked { file, line, .. } => write!(
                f,
                "the host key of {name} is revoked: {algorithm} {fingerprint} ({file}:{line})"
            ),
            Self::CertAuthority { file, line, why, .. } => write!(
                f,
                "{name} is known by a @cert-authority only ({file}:{line}), and {why}; it shows \
                 {algorithm} {fingerprint}"
            ),
        }
    }
}

impl HostKeyProblem {
    /// The key that the host has shown.
    #[must_use]
    pub fn presented(&self) -> &HostKeyQuestion {
        match self {
            Self::NotConfirmed(presented)
            | Self::Changed { presented, .. }
            | Self::Revoked { presented, .. }
            | Self::CertAuthority { presented, .. } => presented,
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::NotConfirmed(question) if question.known.is_empty() => {
                "compare the fingerprint, then `afar trust TARGET`, or --accept-new to trust a \
                 host at first sight"
                    .to_owned()
            }
            Self::NotConfirmed(_) => {
                "compare the fingerprint, then `afar trust TARGET`; --accept-new never takes a \
                 new key of a host that is known"
                    .to_owned()
            }
            Self::Changed { .. } => {
                "if the host was reinstalled, compare the fingerprint and then `afar trust \
                 --replace TARGET`; if not, somebody may be in between"
                    .to_owned()
            }
            Self::Revoked { .. } => "do not use this host before it has a new key".to_owned(),
            Self::CertAuthority { .. } => {
                "have the host certified anew, or compare the fingerprint, and `afar trust TARGET` \
                 adds the key itself"
                    .to_owned()
            }
        }
    }
}

fn list(known: &[KnownFingerprint]) -> String {
    let shown: Vec<String> = known.iter().map(ToString::to_string).collect();
    shown.join(", ")
}
