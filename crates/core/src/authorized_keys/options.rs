//! The options of a line: their syntax, and what sshd takes for their values.

use afar_proto::json::ByteString;

use super::expiry::ExpiryTime;
use super::source::{SourceError, SourceList};
use crate::escape::escape_bounded;
use crate::policy::{KeyVariable, split_permit};

/// Most `environment=` of one line (as in sshd).
const VARIABLES_MAX: usize = 1024;

/// Longest host of a `permitopen=` or `permitlisten=`, in bytes (`NI_MAXHOST`).
const PERMIT_HOST_BYTES_MAX: usize = 1024;

/// The options of one line, before they are held against a time and an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyOptions {
    /// `cert-authority`: the key signs certificates, and does not log in itself.
    pub cert_authority: bool,
    /// `principals=`.
    pub principals: Option<Vec<String>>,
    /// `from=`.
    pub from: Option<SourceList>,
    /// `command=`.
    pub command: Option<Vec<u8>>,
    /// `environment=`, each name once: of several values the first counts, as in sshd.
    pub environment: Vec<KeyVariable>,
    /// `permitopen=`.
    pub permit_open: Vec<String>,
    /// `permitlisten=`.
    pub permit_listen: Vec<String>,
    /// `no-pty`, `restrict`.
    pub no_pty: bool,
    /// `no-port-forwarding`, `restrict`.
    pub no_port_forwarding: bool,
    /// `no-agent-forwarding`, `restrict`.
    pub no_agent_forwarding: bool,
    /// `no-X11-forwarding`, `restrict`.
    pub no_x11_forwarding: bool,
    /// `no-user-rc`, `restrict`.
    pub no_user_rc: bool,
    /// Not `no-touch-required`.
    pub touch_required: bool,
    /// `verify-required`.
    pub verify_required: bool,
    /// `expiry-time=`: of several the earliest counts, as in sshd.
    pub(super) expiry_times: Vec<ExpiryTime>,
}

impl Default for KeyOptions {
    /// Those of a line without options.
    fn default() -> Self {
        Self {
            cert_authority: false,
            principals: None,
            from: None,
            command: None,
            environment: Vec::new(),
            permit_open: Vec::new(),
            permit_listen: Vec::new(),
            no_pty: false,
            no_port_forwarding: false,
            no_agent_forwarding: false,
            no_x11_forwarding: false,
            no_user_rc: false,
            touch_required: true,
            verify_required: false,
            expiry_times: Vec::new(),
        }
    }
}

/// Why the options of a line are refused, and the line with them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No option that is known here, or one that takes no value with one, or the reverse.
    #[error("unknown option \"{0}\"")]
    Unknown(String),
    /// The value does not begin with a quote, or the quote is not closed.
    #[error("the value of {0} is not in quotes")]
    Unquoted(&'static str),
    /// An option that may stand once stands twice.
    #[error("{0} stands twice")]
    Twice(&'static str),
    /// The value is not one of this option.
    #[error("{0} has a malformed value")]
    Value(&'static str),
    /// More `environment=` than sshd takes.
    #[error("more than {VARIABLES_MAX} environment=")]
    TooMany,
    /// As it says.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl KeyOptions {
    /// Reads the options field of a line.
    ///
    /// # Errors
    /// Anything but options that are known here, well-formed.
    pub fn parse(text: &[u8]) -> Result<Self, OptionError> {
        let mut options = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            let name_length =
                rest.iter().position(|byte| b"=,".contains(byte)).unwrap_or(rest.len());
            let (name, after) = rest.split_at(name_length);
            let unknown = || OptionError::Unknown(escape_bounded(name, 40));
            let lower = name.to_ascii_lowercase();
            let (known, after) = if let Some(value) = after.strip_prefix(b"=") {
                let name = valued_option(&lower).ok_or_else(unknown)?;
                let (value, after) = unquote(value).ok_or(OptionError::Unquoted(name))?;
                options.set_value(name, value)?;
                (true, after)
            } else {
                // sshd passes over an option that is empty.
                (name.is_empty() || options.set_flag(&lower), after)
            };
            rest = match after.split_first() {
                _ if !known => return Err(unknown()),
                None => after,
                Some((b',', next)) => next,
                Some(_) => return Err(OptionError::Unknown(escape_bounded(after, 40))),
            };
        }
        Ok(options)
    }

    /// Sets a flag; later ones override earlier ones, so that `restrict,pty` and `pty,restrict`
    /// differ, as in sshd. False iff there is no such flag.
    fn set_flag(&mut self, name: &[u8]) -> bool {
        let (stem, negated) = name.strip_prefix(b"no-").map_or((name, false), |stem| (stem, true));
        match stem {
            b"restrict" if !negated => {
                self.no_pty = true;
                self.no_port_forwarding = true;
                self.no_agent_forwarding = true;
                self.no_x11_forwarding = true;
                self.no_user_rc = true;
            }
            b"cert-authority" if !negated => self.cert_authority = true,
            b"pty" => self.no_pty = negated,
            b"port-forwarding" => self.no_port_forwarding = negated,
            b"agent-forwarding" => self.no_agent_forwarding = negated,
            b"x11-forwarding" => self.no_x11_forwarding = negated,
            b"user-rc" => self.no_user_rc = negated,
            b"touch-required" => self.touch_required = !negated,
            b"verify-required" => self.verify_required = !negated,
            _ => return false,
        }
        true
    }

    fn set_value(&mut self, name: &'static str, value: Vec<u8>) -> Result<(), OptionError> {
        match name {
            "command" => set_once(&mut self.command, value, name),
            "from" => set_once(&mut self.from, SourceList::parse(&value)?, name),
            "principals" => {
                let value = String::from_utf8(value).map_err(|_| OptionError::Value(name))?;
                let names = value.split(',').filter(|name| !name.is_empty());
                set_once(&mut self.principals, names.map(Into::into).collect(), name)
            }
            "expiry-time" => {
                let time = ExpiryTime::parse(&value).ok_or(OptionError::Value(name))?;
                self.expiry_times.push(time);
                Ok(())
            }
            "environment" => self.add_variable(value),
            "permitopen" => {
                self.permit_open.push(permit(value, false).ok_or(OptionError::Value(name))?);
                Ok(())
            }
            "permitlisten" => {
                self.permit_listen.push(permit(value, true).ok_or(OptionError::Value(name))?);
                Ok(())
            }
            // Afar has no tunnels: a device that is forced on them is checked and without effect.
            "tunnel" if is_tunnel(&value) => Ok(()),
            _ => Err(OptionError::Value(name)),
        }
    }

    fn add_variable(&mut self, text: Vec<u8>) -> Result<(), OptionError> {
        const MALFORMED: OptionError = OptionError::Value("environment");
        let text = ByteString(text);
        let equals = text.0.iter().position(|&byte| byte == b'=').ok_or(MALFORMED)?;
        let (name, value) = text.0.split_at(equals);
        let valid = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        if name.is_empty() || !name.iter().all(valid) {
            return Err(MALFORMED);
        }
        let name = String::from_utf8(name.to_vec()).map_err(|_| MALFORMED)?;
        if self.environment.iter().any(|variable| variable.name == name) {
            return Ok(());
        }
        if self.environment.len() >= VARIABLES_MAX {
            return Err(OptionError::TooMany);
        }
        let value = ByteString(value.get(1..).unwrap_or_default().to_vec());
        self.environment.push(KeyVariable { name, value });
        Ok(())
    }
}

fn valued_option(lower: &[u8]) -> Option<&'static str> {
    const VALUED: [&str; 8] = [
        "command",
        "from",
        "principals",
        "expiry-time",
        "environment",
        "permitopen",
        "permitlisten",
        "tunnel",
    ];
    VALUED.into_iter().find(|name| name.as_bytes() == lower)
}

fn set_once<T>(slot: &mut Option<T>, value: T, name: &'static str) -> Result<(), OptionError> {
    if slot.is_some() {
        return Err(OptionError::Twice(name));
    }
    *slot = Some(value);
    Ok(())
}

/// The text in quotes, where `\"` is a quote and every other backslash itself, and what follows.
fn unquote(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = text.strip_prefix(b"\"")?;
    let mut value = Vec::new();
    loop {
        match rest {
            [b'\\', b'"', after @ ..] => {
                value.push(b'"');
                rest = after;
            }
            [b'"', after @ ..] => return Some((value, after)),
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [] => return None,
        }
    }
}

/// Checks a `host:port`; a port is a number from 1 or `*`.
fn permit(value: Vec<u8>, bare_port: bool) -> Option<String> {
    let value = String::from_utf8(value).ok()?;
    if !bare_port && !value.contains(':') {
        return None;
    }
    let (host, port) = split_permit(&value)?;
    let port_valid = port == "*"
        || (port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse().is_ok_and(|port: u16| port > 0));
    let host_valid = !host.is_empty()
        && host.len() < PERMIT_HOST_BYTES_MAX
        && host.bytes().all(|byte| byte.is_ascii_graphic() && !b"[]/".contains(&byte))
        // Two colons outside brackets: which of them the port follows is anybody's guess.
        && (value.starts_with('[') || !host.contains(':'));
    (port_valid && host_valid).then_some(value)
}

fn is_tunnel(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"any")
        || (!value.is_empty() && value.len() <= 9 && value.iter().all(u8::is_ascii_digit))
}
