//! Who may log in: a reader of OpenSSH's `authorized_keys` that fails closed.
//!
//! The format is that of sshd(8), AUTHORIZED_KEYS FILE FORMAT, and the reading is sshd's: lines
//! are tried from the first to the last, and the first one that holds the key and whose options
//! let it in decides. Where this reader is stricter, it grants less:
//!
//! - a line that is malformed, too long, or has an option that is not known here grants
//!   nothing, whatever its key; the other lines do (fault 79);
//! - `from=` is held against addresses only, as with sshd's `UseDNS no`. A *negated* name can
//!   therefore not be checked, and such a line grants nothing;
//! - NUL anywhere in a line makes it malformed; sshd reads the line up to it;
//! - `permitopen=` without a host (`":80"`) is malformed;
//! - dates that do not exist (`20260231`) are malformed; sshd takes them for a later day;
//! - the same key in another encoding (a number with leading zeros) is another key.
//!
//! Options for what afar does not do (X11, tunnels, `~/.ssh/rc`) are checked and harmless.

use std::net::IpAddr;

use crate::certificate::{Certificate, CertificateRefusal, UserCheck};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::escape::escape_bounded;
use crate::key::{self, KeyError, PublicKeyBlob};
use crate::limits::{AUTHORIZED_KEYS_BYTES_MAX, AUTHORIZED_KEYS_LINE_BYTES_MAX};
use crate::policy::{ForcedCommandsDiffer, Restrictions};
use crate::text;

mod expiry;
mod options;
mod source;

pub use expiry::CivilTime;
pub use options::{KeyOptions, OptionError};
pub use source::{SourceError, SourceList};

/// What a lookup depends on besides the file.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The time, in seconds of Unix time.
    pub now_s: i64,
    /// Where the peer connects from; `None` if not by an address, which no `from=` lets in. An
    /// IPv4-mapped IPv6 address counts as the IPv4 address.
    pub source: Option<IpAddr>,
    /// Turns a time of the system's zone into Unix time, for an `expiry-time=` without `Z`; it
    /// answers `None` for a time it can't place. Without it, and then too, the earliest moment
    /// that has this time anywhere on earth counts (14 hours before UTC has it): a key may expire
    /// early, never late.
    pub local_time: Option<&'a dyn Fn(CivilTime) -> Option<i64>>,
}

/// Whether `environment=` takes effect (sshd's `PermitUserEnvironment`, off by default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserEnvironment {
    /// It is passed over, with a remark.
    Ignored,
    /// It does.
    Honoured,
}

/// Whether a key may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Granted {
        /// The line that says so.
        line: usize,
        /// What it may not do.
        restrictions: Restrictions,
    },
    /// It may not.
    Refused(Refusal),
}

/// Why a key may not log in: for the server's log only, the peer learns no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The file is larger than [`AUTHORIZED_KEYS_BYTES_MAX`].
    #[error("the file has more than {AUTHORIZED_KEYS_BYTES_MAX} bytes")]
    FileTooLarge,
    /// No well-formed line holds the key.
    #[error("no line holds this key")]
    NotListed,
    /// No well-formed line trusts the certificate's authority.
    #[error("no line trusts the certificate's authority")]
    AuthorityNotListed,
    /// The key, or the authority, is there, and its line does not let it in. Of several lines, the
    /// first.
    #[error("the key is on line {line}, but {why}")]
    Held {
        /// The line.
        line: usize,
        /// Why it does not let the key in.
        why: Held,
    },
}

/// Why a line that holds the key does not let it in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// `expiry-time=` is over.
    #[error("it has expired")]
    Expired,
    /// `from=` does not name the peer's address.
    #[error("its from= does not permit the address")]
    Source,
    /// `principals=` without `cert-authority`, which sshd refuses too.
    #[error("it has principals= without cert-authority")]
    PrincipalsOfPlainKey,
    /// The certificate itself is not good for this.
    #[error("{0}")]
    Certificate(#[from] CertificateRefusal),
    /// The line's command and the certificate's are not the same.
    #[error("{0}")]
    ForcedCommands(#[from] ForcedCommandsDiffer),
}

/// A file that was read, to be asked about any number of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedKeys {
    entries: Vec<Entry>,
    diagnostics: Diagnostics,
    environment: UserEnvironment,
    too_large: bool,
}

impl AuthorizedKeys {
    /// Reads a file. What is malformed in it grants nothing and is remarked on.
    #[must_use]
    pub fn parse(file: &[u8], environment: UserEnvironment) -> Self {
        let mut parsed = Self {
            entries: Vec::new(),
            diagnostics: Diagnostics::default(),
            environment,
            too_large: file.len() > AUTHORIZED_KEYS_BYTES_MAX,
        };
        if parsed.too_large {
            return parsed;
        }
        for entry in entries(file) {
            match entry {
                Ok(entry) => {
                    let sets_variables = !entry.options.environment.is_empty();
                    if sets_variables && environment == UserEnvironment::Ignored {
                        let remark = "environment= is not enabled and takes no effect";
                        parsed.diagnostics.push(entry.line, remark);
                    }
                    parsed.entries.push(entry);
                }
                Err(diagnostic) => parsed.diagnostics.push(diagnostic.line, diagnostic.message),
            }
        }
        parsed
    }

    /// Remarks on the lines, for the server's log.
    #[must_use]
    pub const fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }

    /// Whether this plain key may log in. A line with `cert-authority` never lets a plain key in.
    #[must_use]
    pub fn find(&self, key: &PublicKeyBlob, context: Context<'_>) -> Decision {
        let plain = |entry: &&Entry| !entry.options.cert_authority && entry.key == *key;
        let evaluate = |entry: &Entry| self.evaluate(&entry.options, context);
        self.decide(self.entries.iter().filter(plain), evaluate, Refusal::NotListed)
    }

    /// Whether this certificate may log in as this user: a line with `cert-authority` must name its
    /// authority, and the certificate one of the line's `principals=` or, if it has none, the user.
    /// Its signature is for the caller to verify.
    #[must_use]
    pub fn find_certificate(
        &self,
        certificate: &Certificate,
        user: &str,
        context: Context<'_>,
    ) -> Decision {
        let authority =
            |entry: &&Entry| entry.options.cert_authority && entry.key == *certificate.authority();
        let evaluate = |entry: &Entry| {
            let of_line = self.evaluate(&entry.options, context)?;
            let names: Vec<&str> = match &entry.options.principals {
                Some(principals) => principals.iter().map(String::as_str).collect(),
                None => vec![user],
            };
            let Context { now_s, source, .. } = context;
            let of_certificate =
                certificate.check_user(UserCheck { names: &names, now_s, source })?;
            Ok(of_line.and(of_certificate)?)
        };
        let lines = self.entries.iter().filter(authority);
        self.decide(lines, evaluate, Refusal::AuthorityNotListed)
    }

    /// The first line that lets the key in decides.
    fn decide<'a>(
        &self,
        lines: impl Iterator<Item = &'a Entry>,
        evaluate: impl Fn(&Entry) -> Result<Restrictions, Held>,
        none: Refusal,
    ) -> Decision {
        if self.too_large {
            return Decision::Refused(Refusal::FileTooLarge);
        }
        let mut first = None;
        for entry in lines {
            let line = entry.line;
            match evaluate(entry) {
                Ok(restrictions) => return Decision::Granted { line, restrictions },
                Err(why) => {
                    first.get_or_insert(Refusal::Held { line, why });
                }
            }
        }
        Decision::Refused(first.unwrap_or(none))
    }

    fn evaluate(&self, options: &KeyOptions, context: Context<'_>) -> Result<Restrictions, Held> {
        if options.principals.is_some() && !options.cert_authority {
            return Err(Held::PrincipalsOfPlainKey);
        }
        let from_permits =
            |from: &SourceList| context.source.is_some_and(|source| from.permits(source));
        if !options.from.as_ref().is_none_or(from_permits) {
            return Err(Held::Source);
        }
        let restrictions = options.restrictions(self.environment, context);
        if restrictions.expired(context.now_s) { Err(Held::Expired) } else { Ok(restrictions) }
    }
}

/// One well-formed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The line's number, from 1.
    pub line: usize,
    /// Its key.
    pub key: PublicKeyBlob,
    /// Its options.
    pub options: KeyOptions,
}

/// Every line that is neither blank nor a comment: its entry, or why it grants nothing.
pub fn entries(file: &[u8]) -> impl Iterator<Item = Result<Entry, Diagnostic>> + '_ {
    text::lines(file).filter_map(|(line, text)| {
        let text = text::trim_start(text);
        if text.is_empty() || text.starts_with(b"#") {
            return None;
        }
        Some(
            parse_line(text)
                .map(|(key, options)| Entry { line, key, options })
                .map_err(|error| Diagnostic { line, message: error.to_string() }),
        )
    })
}

/// Why a line grants nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum LineError {
    #[error("a line of more than {AUTHORIZED_KEYS_LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("NUL in the line")]
    Nul,
    #[error("no key where one should be: {0}")]
    Key(KeyError),
    #[error("no known type of key where one should be: \"{0}\"")]
    UnknownType(String),
    #[error("a quote in the options is not closed")]
    OpenQuote,
    #[error(transparent)]
    Option(OptionError),
}

/// Reads a line that begins with something other than a blank or `#`.
fn parse_line(line: &[u8]) -> Result<(PublicKeyBlob, KeyOptions), LineError> {
    if line.len() > AUTHORIZED_KEYS_LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    if line.contains(&0) {
        return Err(LineError::Nul);
    }
    let (first, _) = text::split_word(line);
    if is_key_type(first) {
        return Ok((parse_key(line)?, KeyOptions::default()));
    }
    let (options, rest) = split_options(line)?;
    let (kind, _) = text::split_word(rest);
    if !is_key_type(kind) {
        return Err(LineError::UnknownType(escape_bounded(
            if kind.is_empty() { first } else { kind },
            40,
        )));
    }
    let options = KeyOptions::parse(options).map_err(LineError::Option)?;
    Ok((parse_key(rest)?, options))
}

fn parse_key(text: &[u8]) -> Result<PublicKeyBlob, LineError> {
    let (kind, rest) = text::split_word(text);
    let (base64, _comment) = text::split_word(rest);
    if base64.is_empty() {
        return Err(LineError::Key(KeyError::Missing));
    }
    PublicKeyBlob::from_fields(kind, base64).map_err(LineError::Key)
}

fn is_key_type(word: &[u8]) -> bool {
    std::str::from_utf8(word).is_ok_and(key::is_known)
}

/// The options, which end at the first blank outside quotes, and what follows them.
fn split_options(line: &[u8]) -> Result<(&[u8], &[u8]), LineError> {
    let mut quoted = false;
    let mut escaped = false;
    for (index, &byte) in line.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            // Only before a quote does a backslash mean anything.
            b'\\' if line.get(index + 1) == Some(&b'"') => escaped = true,
            b'"' => quoted = !quoted,
            _ if !quoted && text::is_blank(byte) => {
                let (options, rest) = line.split_at(index);
                return Ok((options, text::trim_start(rest)));
            }
            _ => {}
        }
    }
    if quoted { Err(LineError::OpenQuote) } else { Ok((line, &[])) }
}

impl KeyOptions {
    /// What they leave, whatever else holds for the line.
    fn restrictions(&self, environment: UserEnvironment, context: Context<'_>) -> Restrictions {
        let expires_at_s =
            self.expiry_times.iter().map(|time| time.to_unix_s(context.local_time)).min();
        Restrictions {
            forced_command: self.command.clone().map(Into::into),
            no_pty: self.no_pty,
            no_port_forwarding: self.no_port_forwarding,
            no_agent_forwarding: self.no_agent_forwarding,
            no_x11_forwarding: self.no_x11_forwarding,
            no_user_rc: self.no_user_rc,
            environment: match environment {
                UserEnvironment::Honoured => self.environment.clone(),
                UserEnvironment::Ignored => Vec::new(),
            },
            permit_open: self.permit_open.clone(),
            permit_listen: self.permit_listen.clone(),
            touch_required: self.touch_required,
            verify_required: self.verify_required,
            expires_at_s,
            login_shell_only: false,
        }
    }
}

#[cfg(test)]
mod tests;
