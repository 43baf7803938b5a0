//! Which host key belongs to which name: a reader and editor of OpenSSH's `known_hosts`.
//!
//! The format is that of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT. A line that is malformed is
//! skipped with a remark, as in ssh: it makes no key known.

use aws_lc_rs::hmac;
use base64ct::{Base64, Encoding as _};

use crate::certificate::{Certificate, CertificateRefusal};
use crate::diagnostic::Diagnostics;
use crate::key::{self, KeyError, PublicKeyBlob};
use crate::limits::{KNOWN_HOSTS_BYTES_MAX, KNOWN_HOSTS_LINE_BYTES_MAX};
use crate::pattern::{self, Listed};
use crate::text;

mod edit;

pub use edit::{ReplaceError, Replaced, format_line, replace};

/// The port whose names stand without a port in `known_hosts`.
const SSH_PORT: u16 = 22;

/// Bytes of a salt and of a hash in a hashed name: those of SHA-1.
const HASH_BYTES: usize = 20;

/// A file to look in.
#[derive(Clone, Copy, Debug)]
pub struct KnownHostsFile<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// Its contents.
    pub bytes: &'a [u8],
}

/// Why a name is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameKind {
    /// The host with afar's port: what afar writes.
    Afar,
    /// The bare host: where ssh keeps the key of port 22.
    Bare,
    /// The host with the port that ssh_config gives its sshd.
    Sshd,
}

/// A name to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As it stands in the file, in lower case.
    pub text: String,
    /// Why.
    pub kind: NameKind,
}

/// The names to look a host up by, the most specific first: `[host]:port`, the bare host, and the
/// host with sshd's port where that is not 22. With a `HostKeyAlias` that is the host.
#[must_use]
pub fn names(host: &str, port: u16, sshd_port: Option<u16>) -> Vec<Name> {
    let mut names = vec![
        Name { text: host_and_port(host, port), kind: NameKind::Afar },
        Name { text: host_and_port(host, SSH_PORT), kind: NameKind::Bare },
    ];
    if let Some(sshd_port) = sshd_port {
        names.push(Name { text: host_and_port(host, sshd_port), kind: NameKind::Sshd });
    }
    let mut seen: Vec<Name> = Vec::new();
    for name in names {
        if seen.iter().all(|other| other.text != name.text) {
            seen.push(name);
        }
    }
    seen
}

/// `[host]:port` in lower case, as ssh writes it; the bare host for port 22.
#[must_use]
pub fn host_and_port(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == SSH_PORT { host } else { format!("[{host}]:{port}") }
}

/// What a line says about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    /// It is the host's.
    Host,
    /// It signs certificates of the host.
    CertAuthority,
    /// It must never be accepted.
    Revoked,
}

/// A key that is known for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownKey {
    /// The key.
    pub key: PublicKeyBlob,
    /// The name that its line matched.
    pub name: Name,
    /// Where it stands.
    pub place: Place,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name, as the caller gave it.
    pub file: String,
    /// The line's number, from 1.
    pub line: usize,
}

/// What is known for a host.
#[derive(Clone, Debug)]
pub struct HostKeys {
    /// In the order of the names, then of the files and lines.
    entries: Vec<(Marker, KnownKey)>,
    diagnostics: Diagnostics,
}

/// What is to be thought of the key that a host presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's.
    Known(KnownKey),
    /// Nothing is known for any of the names: a first meeting.
    Unknown,
    /// Keys are known, and none of this type. It is not a first meeting: never accepted without
    /// asking.
    NewType {
        /// What is known.
        known: Vec<KnownKey>,
    },
    /// Another key of this type is known.
    Changed {
        /// The keys of this type that are known for the name that differs. Where its kind is not
        /// [`NameKind::Afar`], the key is sshd's: another user's server may be listening on this
        /// port.
        known: Vec<KnownKey>,
    },
    /// The key is marked as revoked.
    Revoked(Place),
    /// Only an authority is known, so that the host needs a certificate of it: it is no first
    /// meeting either.
    NeedsCertificate(Place),
}

/// Why a certificate does not make its key that of a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateProblem {
    /// The key or the authority is marked as revoked.
    #[error("the certificate's key or authority is revoked ({}:{})", .0.file, .0.line)]
    Revoked(Place),
    /// Its authority is not one that is known for the host.
    #[error("the certificate is of another authority")]
    OtherAuthority,
    /// It is not good for this host now.
    #[error("{0}")]
    Refused(#[from] CertificateRefusal),
}

/// Why a file can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file} has more than {KNOWN_HOSTS_BYTES_MAX} bytes")]
pub struct TooLarge {
    /// The file's name.
    pub file: String,
}

impl HostKeys {
    /// Everything that the files say about these names, which come most specific first.
    ///
    /// # Errors
    /// A file over [`KNOWN_HOSTS_BYTES_MAX`]: reading a part of it could miss a revocation.
    pub fn collect(files: &[KnownHostsFile<'_>], names: &[Name]) -> Result<Self, TooLarge> {
        let mut entries = Vec::new();
        let mut diagnostics = Diagnostics::default();
        for file in files {
            if file.bytes.len() > KNOWN_HOSTS_BYTES_MAX {
                return Err(TooLarge { file: file.name.into() });
            }
            for (line, text) in text::lines(file.bytes) {
                match read_line(text) {
                    Ok(None) => {}
                    Ok(Some(parsed)) => {
                        let place = || Place { file: file.name.into(), line };
                        if let Err(error) = parsed.collect_into(names, place, &mut entries) {
                            diagnostics.push(line, format_args!("{}: {error}", file.name));
                        }
                    }
                    Err(error) => diagnostics.push(line, format_args!("{}: {error}", file.name)),
                }
            }
        }
        // Stable, so that files and lines keep their order within a name.
        entries.sort_by_key(|(name, ..)| *name);
        let entries = entries.into_iter().map(|(_, marker, key)| (marker, key)).collect();
        Ok(Self { entries, diagnostics })
    }

    /// Remarks on malformed lines.
    #[must_use]
    pub const fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }

    /// The keys that are known and not revoked, of all names.
    pub fn known(&self) -> impl Iterator<Item = &KnownKey> {
        self.entries
            .iter()
            .filter(|(marker, entry)| *marker == Marker::Host && !self.is_revoked(&entry.key))
            .map(|(_, entry)| entry)
    }

    /// The algorithms of the known keys, without repetition: those of the most specific name
    /// first, within a name in the order of [`key::KNOWN_ALGORITHMS`]. A client asks for these
    /// first, so that a server with several keys shows one that is known.
    #[must_use]
    pub fn algorithms(&self) -> Vec<&str> {
        let rank = |algorithm: &str| {
            let position = key::KNOWN_ALGORITHMS.iter().position(|known| *known == algorithm);
            position.unwrap_or(usize::MAX)
        };
        let mut known: Vec<(NameKind, usize, &str)> = self
            .known()
            .map(|entry| (entry.name.kind, rank(entry.key.algorithm()), entry.key.algorithm()))
            .collect();
        known.sort();
        let mut algorithms: Vec<&str> = Vec::new();
        for (.., algorithm) in known {
            if !algorithms.contains(&algorithm) {
                algorithms.push(algorithm);
            }
        }
        algorithms
    }

    /// What is to be thought of this key.
    ///
    /// A revocation for any of the names counts. Then the names are asked from the most specific
    /// on: the first that knows this key, or another of its type, decides.
    #[must_use]
    pub fn judge(&self, presented: &PublicKeyBlob) -> Verdict {
        if let Some(place) = self.revocation(presented) {
            return Verdict::Revoked(place.clone());
        }
        for kind in [NameKind::Afar, NameKind::Bare, NameKind::Sshd] {
            let same_type: Vec<&KnownKey> = self
                .known()
                .filter(|entry| entry.name.kind == kind)
                .filter(|entry| entry.key.algorithm() == presented.algorithm())
                .collect();
            if let Some(entry) = same_type.iter().find(|entry| entry.key == *presented) {
                return Verdict::Known((*entry).clone());
            }
            if !same_type.is_empty() {
                return Verdict::Changed { known: same_type.into_iter().cloned().collect() };
            }
        }
        let known: Vec<KnownKey> = self.known().cloned().collect();
        if !known.is_empty() {
            return Verdict::NewType { known };
        }
        let authority = self.entries.iter().find(|(marker, _)| *marker == Marker::CertAuthority);
        authority
            .map_or(Verdict::Unknown, |(_, entry)| Verdict::NeedsCertificate(entry.place.clone()))
    }

    /// Whether an authority is known for any of the names, so that a certificate could make a key the
    /// host's.
    #[must_use]
    pub fn has_authority(&self) -> bool {
        self.entries.iter().any(|(marker, _)| *marker == Marker::CertAuthority)
    }

    /// Whether this certificate makes its key that of the host, whose name without port is `host`.
    /// The authority's signature is for the caller to verify.
    ///
    /// # Errors
    /// Why not.
    pub fn judge_certificate(
        &self,
        certificate: &Certificate,
        host: &str,
        now_s: i64,
    ) -> Result<(), CertificateProblem> {
        for key in [certificate.key(), certificate.authority()] {
            if let Some(place) = self.revocation(key) {
                return Err(CertificateProblem::Revoked(place.clone()));
            }
        }
        let trusts = |(marker, entry): &(Marker, KnownKey)| {
            *marker == Marker::CertAuthority && entry.key == *certificate.authority()
        };
        if !self.entries.iter().any(trusts) {
            return Err(CertificateProblem::OtherAuthority);
        }
        Ok(certificate.check_host(&host.to_ascii_lowercase(), now_s)?)
    }

    fn is_revoked(&self, key: &PublicKeyBlob) -> bool {
        self.revocation(key).is_some()
    }

    fn revocation(&self, key: &PublicKeyBlob) -> Option<&Place> {
        self.entries
            .iter()
            .find(|(marker, entry)| *marker == Marker::Revoked && entry.key == *key)
            .map(|(_, entry)| &entry.place)
    }
}

/// Why a line is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum LineError {
    #[error("a line of more than {KNOWN_HOSTS_LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("NUL in the line")]
    Nul,
    #[error("an unknown marker, or two")]
    Marker,
    #[error("a malformed hashed name")]
    Hash,
    #[error("{0}")]
    Key(#[from] KeyError),
}

/// A line whose key is not decoded yet: of a long file only a few lines are about the host.
struct Line<'a> {
    marker: Marker,
    hosts: Hosts<'a>,
    algorithm: &'a [u8],
    base64: &'a [u8],
}

/// The field of names.
enum Hosts<'a> {
    List(&'a [u8]),
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

impl Hosts<'_> {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::List(list) => pattern::match_list(name.as_bytes(), list) == Listed::Yes,
            Self::Hashed { salt, hash } => {
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
                hmac::sign(&key, name.to_ascii_lowercase().as_bytes()).as_ref() == hash
            }
        }
    }
}

impl Line<'_> {
    fn key(&self) -> Result<PublicKeyBlob, KeyError> {
        PublicKeyBlob::from_fields(self.algorithm, self.base64)
    }

    fn collect_into(
        &self,
        names: &[Name],
        place: impl Fn() -> Place,
        entries: &mut Vec<(usize, Marker, KnownKey)>,
    ) -> Result<(), KeyError> {
        for (index, name) in names.iter().enumerate() {
            if self.hosts.matches(&name.text) {
                let key = self.key()?;
                let known = KnownKey { key, name: name.clone(), place: place() };
                entries.push((index, self.marker, known));
            }
        }
        Ok(())
    }
}

/// Reads a line; `None` for a blank one and a comment.
fn read_line(line: &[u8]) -> Result<Option<Line<'_>>, LineError> {
    let mut rest = text::trim_start(line);
    if rest.is_empty() || rest.starts_with(b"#") {
        return Ok(None);
    }
    if line.len() > KNOWN_HOSTS_LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    if line.contains(&0) {
        return Err(LineError::Nul);
    }
    let mut marker = Marker::Host;
    if rest.starts_with(b"@") {
        let (word, after) = text::split_word(rest);
        marker = match word {
            b"@cert-authority" => Marker::CertAuthority,
            b"@revoked" => Marker::Revoked,
            _ => return Err(LineError::Marker),
        };
        if after.starts_with(b"@") {
            return Err(LineError::Marker);
        }
        rest = after;
    }
    let (hosts, rest) = text::split_word(rest);
    let (algorithm, rest) = text::split_word(rest);
    let (base64, _comment) = text::split_word(rest);
    if base64.is_empty() {
        return Err(LineError::Key(KeyError::Missing));
    }
    Ok(Some(Line { marker, hosts: read_hosts(hosts)?, algorithm, base64 }))
}

fn read_hosts(field: &[u8]) -> Result<Hosts<'_>, LineError> {
    let Some(hashed) = field.strip_prefix(b"|") else {
        return Ok(Hosts::List(field));
    };
    let decode = |text: Option<&[u8]>| -> Result<Vec<u8>, LineError> {
        let text = std::str::from_utf8(text.unwrap_or_default()).map_err(|_| LineError::Hash)?;
        // 20 bytes are 28 characters; nothing longer is decoded.
        if text.len() != HASH_BYTES.div_ceil(3) * 4 {
            return Err(LineError::Hash);
        }
        let bytes = Base64::decode_vec(text).map_err(|_| LineError::Hash)?;
        if bytes.len() == HASH_BYTES { Ok(bytes) } else { Err(LineError::Hash) }
    };
    let mut fields = hashed.split(|&byte| byte == b'|');
    // `1` is HMAC-SHA1, the only scheme there is.
    if fields.next() != Some(b"1") {
        return Err(LineError::Hash);
    }
    let salt = decode(fields.next())?;
    let hash = decode(fields.next())?;
    if fields.next().is_some() {
        return Err(LineError::Hash);
    }
    Ok(Hosts::Hashed { salt, hash })
}

#[cfg(test)]
mod tests;
