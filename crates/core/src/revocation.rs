//! Keys that must never be accepted (sshd_config(5), `RevokedKeys`): a KRL or a list of keys.
//!
//! A file that is neither, or that has a part which is not understood, revokes everything: the
//! reader refuses it, and whoever asks refuses every key. So does sshd.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{self, digest};

use crate::certificate::Certificate;
use crate::escape::escape_bounded;
use crate::key::{KeyError, PublicKeyBlob};
use crate::limits::REVOKED_KEYS_BYTES_MAX;
use crate::text;

mod krl;

/// Why a file of revoked keys can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// Over [`REVOKED_KEYS_BYTES_MAX`].
    #[error("the file has more than {REVOKED_KEYS_BYTES_MAX} bytes")]
    TooLarge,
    /// A KRL that is cut short, or not one that ssh-keygen makes.
    #[error("the KRL is malformed: {0}")]
    Krl(&'static str),
    /// A KRL with something that is not known here.
    #[error("the KRL has {what} of type {number}, which is not known here")]
    Unknown {
        /// What.
        what: &'static str,
        /// Its number.
        number: u32,
    },
    /// A line of a list that is no key.
    #[error("line {line} holds no key: {error}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        error: KeyError,
    },
}

/// Why a key is revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Revocation {
    /// The key, or that of the certificate, is listed.
    #[error("the key is revoked")]
    Key,
    /// The authority of the certificate is listed.
    #[error("the certificate's authority is revoked")]
    Authority,
    /// The certificate's serial number is.
    #[error("the certificate is revoked by its serial number {0}")]
    Serial(u64),
    /// The certificate's key id is.
    #[error("the certificate is revoked by its key id \"{0}\"")]
    KeyId(String),
}

/// The revoked keys of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokedKeys {
    /// The blobs of keys, never of certificates.
    keys: BTreeSet<Vec<u8>>,
    sha1: BTreeSet<[u8; 20]>,
    sha256: BTreeSet<[u8; 32]>,
    certificates: Vec<RevokedCertificates>,
}

/// The revoked certificates of one authority, or of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct RevokedCertificates {
    /// `None` for those of every authority.
    authority: Option<PublicKeyBlob>,
    /// From and to, both included; sorted, and no two overlap.
    serials: Vec<(u64, u64)>,
    key_ids: BTreeSet<Vec<u8>>,
}

impl RevokedKeys {
    /// Reads a KRL (OpenSSH's PROTOCOL.krl), or a list with a public key a line, blank lines and
    /// comments. Certificates in a list stand for their keys.
    ///
    /// # Errors
    /// Whatever is not understood as a whole.
    pub fn parse(file: &[u8]) -> Result<Self, RevocationError> {
        if file.len() > REVOKED_KEYS_BYTES_MAX {
            return Err(RevocationError::TooLarge);
        }
        match file.strip_prefix(krl::MAGIC) {
            Some(rest) => krl::parse(rest),
            None => parse_list(file),
        }
    }

    /// Whether, and why, the key is revoked, or for a certificate: it, its key or its authority.
    #[must_use]
    pub fn find(
        &self,
        key: &PublicKeyBlob,
        certificate: Option<&Certificate>,
    ) -> Option<Revocation> {
        if self.lists(&key.plain()) {
            return Some(Revocation::Key);
        }
        let certificate = certificate?;
        if self.lists(certificate.authority()) {
            return Some(Revocation::Authority);
        }
        let applies = |revoked: &&RevokedCertificates| {
            revoked.authority.as_ref().is_none_or(|authority| authority == certificate.authority())
        };
        self.certificates.iter().filter(applies).find_map(|revoked| revoked.find(certificate))
    }

    fn lists(&self, plain: &PublicKeyBlob) -> bool {
        let bytes = plain.as_bytes();
        let hashed = |algorithm| digest(algorithm, bytes);
        self.keys.contains(bytes)
            || (!self.sha256.is_empty()
                && <[u8; 32]>::try_from(hashed(&digest::SHA256).as_ref())
                    .is_ok_and(|hash| self.sha256.contains(&hash)))
            || (!self.sha1.is_empty()
                && <[u8; 20]>::try_from(hashed(&digest::SHA1_FOR_LEGACY_USE_ONLY).as_ref())
                    .is_ok_and(|hash| self.sha1.contains(&hash)))
    }
}

impl RevokedCertificates {
    fn find(&self, certificate: &Certificate) -> Option<Revocation> {
        if self.key_ids.contains(certificate.key_id().as_bytes()) {
            let id = escape_bounded(certificate.key_id().as_bytes(), 120);
            return Some(Revocation::KeyId(id));
        }
        // 0 is what an authority gives that numbers nothing: it names no certificate.
        let serial = certificate.serial();
        let after = self.serials.partition_point(|(from, _)| *from <= serial);
        let (_, to) = self.serials.get(after.checked_sub(1)?)?;
        (serial != 0 && serial <= *to).then_some(Revocation::Serial(serial))
    }

    /// Brings the serials into the order that [`Self::find`] relies on.
    fn settle(&mut self) {
        self.serials.sort_unstable();
        let mut settled: Vec<(u64, u64)> = Vec::new();
        for &(from, to) in &self.serials {
            match settled.last_mut() {
                Some((_, last)) if from <= last.saturating_add(1) => *last = to.max(*last),
                _ => settled.push((from, to)),
            }
        }
        self.serials = settled;
    }
}

fn parse_list(file: &[u8]) -> Result<RevokedKeys, RevocationError> {
    let mut revoked = RevokedKeys::default();
    for (line, text) in text::lines(file) {
        let text = text::trim_start(text);
        if text.is_empty() || text.starts_with(b"#") {
            continue;
        }
        let (key, _comment) = PublicKeyBlob::from_public_line(text)
            .map_err(|error| RevocationError::Line { line, error })?;
        revoked.keys.insert(key.plain().into_bytes());
    }
    Ok(revoked)
}

#[cfg(test)]
mod tests;
