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

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::escape::escape_bounded;
use crate::key::{self, KeyError, PublicKeyBlob};
use crate::limits::{AUTHORIZED_KEYS_BYTES_MAX, AUTHORIZED_KEYS_LINE_BYTES_MAX};
use crate::policy::Restrictions;
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
    /// Whether `environment=` takes effect (sshd's `PermitUserEnvironment`, off by default).
    pub permit_user_environment: bool,
    /// Turns a time of the system's zone into Unix time, for an `expiry-time=` without `Z`; it
    /// answers `None` for a time it can't place. Without it, and then too, the earliest moment
    /// that has this time anywhere on earth counts (14 hours before UTC has it): a key may expire
    /// early, never late.
    pub local_time: Option<&'a dyn Fn(CivilTime) -> Option<i64>>,
}

/// The answer to a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Whether the key may log in.
    pub decision: Decision,
    /// Remarks on the lines of the file that were read, for the server's log.
    pub diagnostics: Diagnostics,
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
        /// The names that a certificate of this authority must bear one of, if the line names
        /// any (`principals=`); only for [`find_authority`].
        principals: Option<Vec<String>>,
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
    /// The key is there, and its line does not let it in. Of several lines, the first.
    #[error("the key is on line {line}, but {why}")]
    Held {
        /// The line.
        line: usize,
        /// Why it does not let the key in.
        why: Held,
    },
}

/// Why a line that holds the key does not let it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
}

/// Whether this plain key may log in. A line with `cert-authority` never lets a plain key in.
#[must_use]
pub fn find(file: &[u8], key: &PublicKeyBlob, context: Context<'_>) -> Lookup {
    look_up(file, key, Role::Plain, context)
}

/// Whether certificates of this authority may log in: only a line with `cert-authority` says so.
/// The certificate itself is for the caller to check, with the principals of the answer or, if it
/// has none, with the user's name.
#[must_use]
pub fn find_authority(file: &[u8], authority: &PublicKeyBlob, context: Context<'_>) -> Lookup {
    look_up(file, authority, Role::Authority, context)
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Plain,
    Authority,
}

fn look_up(file: &[u8], key: &PublicKeyBlob, role: Role, context: Context<'_>) -> Lookup {
    let mut diagnostics = Diagnostics::default();
    if file.len() > AUTHORIZED_KEYS_BYTES_MAX {
        let decision = Decision::Refused(Refusal::FileTooLarge);
        return Lookup { decision, diagnostics };
    }
    let mut refusal = Refusal::NotListed;
    for entry in entries(file) {
        let Entry { line, key: listed, options } = match entry {
            Ok(entry) => entry,
            Err(diagnostic) => {
                diagnostics.push(diagnostic.line, diagnostic.message);
                continue;
            }
        };
        if listed != *key || options.cert_authority != (role == Role::Authority) {
            continue;
        }
        match evaluate(&options, context) {
            Ok(restrictions) => {
                if !options.environment.is_empty() && !context.permit_user_environment {
                    diagnostics.push(line, "environment= is not enabled and takes no effect");
                }
                let principals = options.principals;
                let decision = Decision::Granted { line, restrictions, principals };
                return Lookup { decision, diagnostics };
            }
            Err(why) if refusal == Refusal::NotListed => refusal = Refusal::Held { line, why },
            Err(_) => {}
        }
    }
    Lookup { decision: Decision::Refused(refusal), diagnostics }
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

fn evaluate(options: &KeyOptions, context: Context<'_>) -> Result<Restrictions, Held> {
    if options.principals.is_some() && !options.cert_authority {
        return Err(Held::PrincipalsOfPlainKey);
    }
    let from_permits =
        |from: &SourceList| context.source.is_some_and(|source| from.permits(source));
    if !options.from.as_ref().is_none_or(from_permits) {
        return Err(Held::Source);
    }
    let expires_at_s =
        options.expiry_times.iter().map(|time| time.to_unix_s(context.local_time)).min();
    let restrictions = Restrictions {
        forced_command: options.command.clone().map(Into::into),
        no_pty: options.no_pty,
        no_port_forwarding: options.no_port_forwarding,
        no_agent_forwarding: options.no_agent_forwarding,
        no_x11_forwarding: options.no_x11_forwarding,
        no_user_rc: options.no_user_rc,
        environment: if context.permit_user_environment {
            options.environment.clone()
        } else {
            Vec::new()
        },
        permit_open: options.permit_open.clone(),
        permit_listen: options.permit_listen.clone(),
        touch_required: options.touch_required,
        verify_required: options.verify_required,
        expires_at_s,
        login_shell_only: false,
    };
    if restrictions.expired(context.now_s) { Err(Held::Expired) } else { Ok(restrictions) }
}

#[cfg(test)]
mod tests;
