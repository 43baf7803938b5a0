//! Afar's own configuration, `config.toml`: what it says about a host, and about the server.
//!
//! A key that is not known is an error that names the one that was probably meant: a setting that is
//! passed over because of a typing error is worse than none. Every setting keeps its place, so that
//! `afar config` can tell where it comes from.

use std::fmt;
use std::time::Duration;

use crate::account::PermitRoot;
use crate::limits::CONFIG_BYTES_MAX;
use crate::pattern::{self, Listed};
use crate::ssh_config::Place;

mod keys;
mod read;

pub use keys::{CLIENT_KEYS, KeyInfo, SERVE_KEYS};

/// A setting, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed<T> {
    /// The setting.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// What is said about a host. A path is as it was written: absolute, or with `~/` at its front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientSettings {
    /// Afar's port.
    pub port: Option<Placed<u16>>,
    /// The user to log in as.
    pub user: Option<Placed<String>>,
    /// Key files, in place of those of the ssh configuration.
    pub identities: Option<Placed<Vec<String>>>,
    /// The file of known hosts.
    pub known_hosts: Option<Placed<String>>,
    /// Whether a host of which nothing is known is trusted.
    pub accept_new: Option<Placed<bool>>,
    /// Time for reaching the host.
    pub connect_timeout: Option<Placed<Duration>>,
    /// The ssh configuration to read; `none` for none.
    pub ssh_config: Option<Placed<String>>,
    /// The ssh program.
    pub ssh: Option<Placed<String>>,
    /// Afar's program at the other end of ssh.
    pub remote_afar: Option<Placed<String>>,
    /// Variables for commands; no name is there twice.
    pub env: Vec<(String, Placed<String>)>,
}

/// What is said about the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeSettings {
    /// Addresses to listen on.
    pub listen: Option<Placed<Vec<String>>>,
    /// Host keys.
    pub host_keys: Option<Placed<Vec<String>>>,
    /// Where users' keys are, with `%h` and `%u`.
    pub authorized_keys: Option<Placed<Vec<String>>>,
    /// The file of authorities whose certificates may log in.
    pub trusted_user_ca_keys: Option<Placed<String>>,
    /// The file of keys that must not log in.
    pub revoked_keys: Option<Placed<String>>,
    /// Addresses that get no penalties.
    pub penalty_exempt: Option<Placed<Vec<String>>>,
    /// Unauthenticated connections, of all addresses.
    pub max_unauthenticated: Option<Placed<usize>>,
    /// Those of one address.
    pub max_unauthenticated_per_address: Option<Placed<usize>>,
    /// Addresses for the classic protocol.
    pub classic: Option<Placed<Vec<String>>>,
    /// As whom the commands of the classic protocol are run.
    pub classic_user: Option<Placed<String>>,
    /// Whether the classic protocol may be reached by other machines.
    pub dangerously_classic_anywhere: Option<Placed<bool>>,
    /// The only users who may come in.
    pub allow_users: Option<Placed<Vec<String>>>,
    /// Users who may not.
    pub deny_users: Option<Placed<Vec<String>>>,
    /// The only groups whose members may come in.
    pub allow_groups: Option<Placed<Vec<String>>>,
    /// Groups whose members may not.
    pub deny_groups: Option<Placed<Vec<String>>>,
    /// Whether root may.
    pub permit_root_login: Option<Placed<PermitRoot>>,
}

/// A `[host."PATTERN"]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostSection {
    /// Patterns as those of `Host` in ssh_config, several by comma.
    patterns: String,
    settings: ClientSettings,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFile {
    /// In the order in which they stand in the file.
    hosts: Vec<HostSection>,
    defaults: ClientSettings,
    serve: ServeSettings,
}

/// Why a file can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

/// What is wrong with a line; what is quoted is escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Over [`CONFIG_BYTES_MAX`].
    TooLarge,
    /// Not UTF-8.
    NotUtf8,
    /// No TOML.
    Syntax(String),
    /// No such section or key.
    Unknown {
        /// What was found.
        key: String,
        /// Where it was found.
        section: String,
        /// What was probably meant.
        meant: Option<&'static str>,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// The value is not one of this key.
    Value {
        /// The key.
        key: String,
        /// What it takes.
        wanted: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "the file has more than {CONFIG_BYTES_MAX} bytes"),
            Self::NotUtf8 => f.write_str("the file is not UTF-8"),
            Self::Syntax(problem) => write!(f, "{problem}"),
            Self::Unknown { key, section, meant, known } => {
                write!(f, "{section} has no \"{key}\"; ")?;
                match meant {
                    Some(meant) => write!(f, "is \"{meant}\" meant?"),
                    None => write!(f, "it has {}", known.join(", ")),
                }
            }
            Self::Value { key, wanted } => write!(f, "{key} is {wanted}"),
        }
    }
}

impl ConfigFile {
    /// Reads a file; `name` is for messages.
    ///
    /// # Errors
    /// The first mistake in it.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, ConfigError> {
        read::read(name, bytes)
    }

    /// What the file says about the server.
    #[must_use]
    pub fn serve(&self) -> &ServeSettings {
        &self.serve
    }

    /// Fills in what `settings` does not have yet with what this file says about a host, as the
    /// user typed its name: sections that name it first, in their order, then the defaults.
    fn fill(&self, host: Option<&str>, settings: &mut ClientSettings) {
        let names = |section: &&HostSection| {
            host.is_some_and(|host| {
                let listed = pattern::match_list(host.as_bytes(), section.patterns.as_bytes());
                listed == Listed::Yes
            })
        };
        for section in self.hosts.iter().filter(names) {
            settings.fill_from(&section.settings);
        }
        settings.fill_from(&self.defaults);
    }
}

/// What the files say about a host, as the user typed its name; the first file counts before the
/// second. Without a host, what they say about every one.
#[must_use]
pub fn client_settings(files: &[ConfigFile], host: Option<&str>) -> ClientSettings {
    let mut settings = ClientSettings::default();
    for file in files {
        file.fill(host, &mut settings);
    }
    settings
}

/// What the files say about the server; the first file counts before the second.
#[must_use]
pub fn serve_settings<'a>(files: impl IntoIterator<Item = &'a ConfigFile>) -> ServeSettings {
    let mut settings = ServeSettings::default();
    for file in files {
        settings.fill_from(file.serve());
    }
    settings
}

/// Takes each of these fields from `other` where `self` has none.
macro_rules! fill {
    ($to:ident, $from:ident: $($field:ident),+ $(,)?) => {
        $(if $to.$field.is_none() {
            $to.$field.clone_from(&$from.$field);
        })+
    };
}

impl ClientSettings {
    fn fill_from(&mut self, other: &Self) {
        fill!(self, other: port, user, identities, known_hosts, accept_new, connect_timeout);
        fill!(self, other: ssh_config, ssh, remote_afar);
        for (name, value) in &other.env {
            if self.env.iter().all(|(known, _)| known != name) {
                self.env.push((name.clone(), value.clone()));
            }
        }
    }
}

impl ServeSettings {
    fn fill_from(&mut self, other: &Self) {
        fill!(self, other: listen, host_keys, authorized_keys, trusted_user_ca_keys, revoked_keys);
        fill!(self, other: penalty_exempt, max_unauthenticated, max_unauthenticated_per_address);
        fill!(self, other: classic, classic_user, dangerously_classic_anywhere);
        fill!(self, other: allow_users, deny_users, allow_groups, deny_groups, permit_root_login);
    }
}

#[cfg(test)]
mod tests;
