//! Authorities that are trusted for everybody (sshd_config(5), `TrustedUserCAKeys`): a key a line.

use std::collections::BTreeSet;

use crate::diagnostic::Diagnostics;
use crate::key::{KeyError, PublicKeyBlob};
use crate::limits::TRUSTED_KEYS_BYTES_MAX;
use crate::text;

/// The keys of a file. What is malformed in it, or a certificate, is trusted by nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedKeys {
    keys: BTreeSet<PublicKeyBlob>,
    diagnostics: Diagnostics,
}

/// The file is larger than any that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file has more than {TRUSTED_KEYS_BYTES_MAX} bytes")]
pub struct TooLarge;

impl TrustedKeys {
    /// Reads a file: public keys with optional comments, blank lines, and comments behind `#`.
    ///
    /// # Errors
    /// A file over [`TRUSTED_KEYS_BYTES_MAX`].
    pub fn parse(file: &[u8]) -> Result<Self, TooLarge> {
        if file.len() > TRUSTED_KEYS_BYTES_MAX {
            return Err(TooLarge);
        }
        let mut trusted = Self::default();
        for (line, text) in text::lines(file) {
            let text = text::trim_start(text);
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            match PublicKeyBlob::from_public_line(text) {
                Ok((key, _comment)) if !key.is_certificate() => {
                    trusted.keys.insert(key);
                }
                Ok(_) => trusted.diagnostics.push(line, "a certificate can be no authority"),
                Err(KeyError::Missing | KeyError::Base64) => {
                    trusted.diagnostics.push(line, "no public key: options have no place here");
                }
                Err(error) => trusted.diagnostics.push(line, error),
            }
        }
        Ok(trusted)
    }

    /// Whether this key is one of them.
    #[must_use]
    pub fn contains(&self, key: &PublicKeyBlob) -> bool {
        self.keys.contains(key)
    }

    /// Remarks on the lines, for the server's log.
    #[must_use]
    pub const fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::rig::{Draft, ed25519};

    #[test]
    fn a_file_is_a_key_a_line_and_nothing_else_is_trusted() {
        let key = |byte: u8| PublicKeyBlob::from_wire(ed25519(byte)).unwrap();
        let certificate = Draft { key: 9, ..Draft::default() }.certificate();
        let file = format!(
            "# ours\n\n{} the CA\r\n  {}\ncert-authority {}\n{}\nrubbish",
            key(1).to_fields(),
            key(2).to_fields(),
            key(3).to_fields(),
            certificate.blob().to_fields(),
        );
        let trusted = TrustedKeys::parse(file.as_bytes()).unwrap();
        assert!(trusted.contains(&key(1)) && trusted.contains(&key(2)));
        assert!(!trusted.contains(&key(3)) && !trusted.contains(certificate.blob()));
        assert!(!trusted.contains(certificate.key()));
        let lines: Vec<usize> = trusted.diagnostics().kept().iter().map(|d| d.line).collect();
        assert_eq!(lines, [5, 6, 7]);
    }

    #[test]
    fn a_file_has_a_largest_size() {
        let comment = |bytes: usize| vec![b'#'; bytes];
        assert!(TrustedKeys::parse(&comment(TRUSTED_KEYS_BYTES_MAX)).is_ok());
        assert_eq!(TrustedKeys::parse(&comment(TRUSTED_KEYS_BYTES_MAX + 1)), Err(TooLarge));
    }
}
