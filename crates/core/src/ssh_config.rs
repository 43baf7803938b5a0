//! What `~/.ssh/config` says about a host (ssh_config(5)), as far as afar uses it.
//!
//! As in ssh the first value of a setting counts, and `Host` blocks are chosen by the name as the
//! user typed it. Unknown keywords are passed over, because the file is ssh's. `Match` blocks are
//! never evaluated (they may run commands): all but `Match all` are passed over whole and
//! reported in [`HostSettings::skipped_matches`].
//!
//! A mistake in a block of another host is no concern of this one and is not reported; ssh would
//! refuse the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::escape::escape_bounded;
use crate::limits::{
    IDENTITY_FILES_MAX, SSH_CONFIG_BYTES_MAX, SSH_CONFIG_DEPTH_MAX, SSH_CONFIG_FILES_MAX,
};
use crate::pattern::{self, Case};
use crate::text;

mod expand;
mod words;

pub use expand::{ExpandError, Tokens, expand_path};

/// A configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Its name, for messages and for the loader.
    pub name: String,
    /// Its contents.
    pub bytes: Vec<u8>,
}

/// Finds the files of an `Include`: given its argument as written and the name of the file it
/// stands in, the files in the order in which they are to be read. A relative argument is
/// relative to `~/.ssh` in a user's file, `~` is the home, and wildcards are those of glob(7);
/// no match is no file and no error, as in ssh. The error is a text for the user.
pub type Loader<'a> = dyn FnMut(&str, &str) -> Result<Vec<ConfigFile>, String> + 'a;

/// A line of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// The line's number, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why the configuration can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A quote is not closed.
    #[error("a quote is not closed")]
    OpenQuote,
    /// The keyword has no argument, or more than it takes.
    #[error("{0} takes one argument")]
    OneArgument(&'static str),
    /// The keyword has no argument.
    #[error("{0} takes an argument")]
    NoArgument(&'static str),
    /// The argument is not one of this keyword.
    #[error("{keyword} can't be \"{value}\"")]
    Value {
        /// The keyword.
        keyword: &'static str,
        /// The argument, escaped.
        value: String,
    },
    /// More `IdentityFile` or `CertificateFile` than ssh takes.
    #[error("more than {IDENTITY_FILES_MAX} {0}")]
    TooManyFilesOfKeys(&'static str),
    /// The file is over its limit.
    #[error("the file has more than {SSH_CONFIG_BYTES_MAX} bytes")]
    TooLarge,
    /// Files include files deeper than ssh reads.
    #[error("Include is nested more than {SSH_CONFIG_DEPTH_MAX} deep")]
    TooDeep,
    /// Too many files are included.
    #[error("more than {SSH_CONFIG_FILES_MAX} files are included")]
    TooManyFiles,
    /// The loader could not give the files.
    #[error("{0}")]
    Include(String),
}

/// Where an agent listens (`IdentityAgent`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityAgent {
    /// `none`: no agent is used.
    None,
    /// `SSH_AUTH_SOCK` or `$NAME`: the socket that this variable names.
    Variable(String),
    /// A socket; to be expanded with [`expand_path`].
    Socket(PathBuf),
}

/// How ssh would reach the host: not by connecting to it, which afar can't imitate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// `ProxyJump`, escaped.
    Jump(String),
    /// `ProxyCommand`, escaped.
    Command(String),
}

/// What the configuration says about a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// `HostName`, its `%h` and `%%` expanded: the host to connect to.
    pub host_name: Option<String>,
    /// `User`.
    pub user: Option<String>,
    /// `Port`: sshd's, not afar's.
    pub port: Option<u16>,
    /// `IdentityFile`, in order; each to be expanded with [`expand_path`]. `None` iff no line
    /// names any, which means ssh's defaults; empty for `none`.
    pub identity_files: Option<Vec<PathBuf>>,
    /// `CertificateFile`, in order; each to be expanded with [`expand_path`].
    pub certificate_files: Vec<PathBuf>,
    /// `IdentitiesOnly`.
    pub identities_only: Option<bool>,
    /// `IdentityAgent`.
    pub identity_agent: Option<IdentityAgent>,
    /// `HostKeyAlias`.
    pub host_key_alias: Option<String>,
    /// `UserKnownHostsFile`; each to be expanded with [`expand_path`]. Empty for `none`.
    pub user_known_hosts_files: Option<Vec<PathBuf>>,
    /// `ProxyJump` or `ProxyCommand`, whichever comes first, if it is not `none`.
    pub proxy: Option<Proxy>,
    /// The `Match` lines whose blocks were passed over.
    pub skipped_matches: Vec<Place>,
    /// Where each keyword that has a value here got its first one, by ssh's name of it.
    pub places: BTreeMap<&'static str, Place>,
}

/// Reads what the files say about a host, as the user typed its name. The files are read in
/// order, the user's before the system's.
///
/// # Errors
/// A malformed line that concerns this host, or a limit exceeded; with the place.
pub fn resolve(
    host: &str,
    files: &[ConfigFile],
    load: &mut Loader<'_>,
) -> Result<HostSettings, ConfigError> {
    let mut reader = Reader {
        host,
        settings: HostSettings::default(),
        proxy_decided: false,
        files_included: 0,
        load,
    };
    for file in files {
        reader.read_file(file, 0)?;
    }
    Ok(reader.settings)
}

struct Reader<'a, 'l> {
    host: &'a str,
    settings: HostSettings,
    /// A `none` counts as the first value too.
    proxy_decided: bool,
    files_included: usize,
    load: &'a mut Loader<'l>,
}

/// The keywords that matter here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keyword {
    Host,
    Match,
    Include,
    HostName,
    User,
    Port,
    IdentityFile,
    CertificateFile,
    IdentitiesOnly,
    IdentityAgent,
    HostKeyAlias,
    UserKnownHostsFile,
    ProxyJump,
    ProxyCommand,
}

impl Keyword {
    const ALL: [(Self, &'static str); 14] = [
        (Self::Host, "Host"),
        (Self::Match, "Match"),
        (Self::Include, "Include"),
        (Self::HostName, "HostName"),
        (Self::User, "User"),
        (Self::Port, "Port"),
        (Self::IdentityFile, "IdentityFile"),
        (Self::CertificateFile, "CertificateFile"),
        (Self::IdentitiesOnly, "IdentitiesOnly"),
        (Self::IdentityAgent, "IdentityAgent"),
        (Self::HostKeyAlias, "HostKeyAlias"),
        (Self::UserKnownHostsFile, "UserKnownHostsFile"),
        (Self::ProxyJump, "ProxyJump"),
        (Self::ProxyCommand, "ProxyCommand"),
    ];

    fn find(word: &[u8]) -> Option<(Self, &'static str)> {
        Self::ALL.into_iter().find(|(_, name)| word.eq_ignore_ascii_case(name.as_bytes()))
    }
}

impl Reader<'_, '_> {
    fn read_file(&mut self, file: &ConfigFile, depth: usize) -> Result<(), ConfigError> {
        let at = |line| Place { file: file.name.clone(), line };
        if file.bytes.len() > SSH_CONFIG_BYTES_MAX {
            return Err(ConfigError { place: at(1), problem: Problem::TooLarge });
        }
        // A block reaches to the next one or to the end of its file, never beyond.
        let mut active = true;
        for (number, line) in text::lines(&file.bytes) {
            let wrong = |problem| ConfigError { place: at(number), problem };
            let line = text::trim(line);
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let (word, arguments) = words::split_keyword(line);
            let Some((keyword, name)) = Keyword::find(word) else {
                continue;
            };
            let starts_block = matches!(keyword, Keyword::Host | Keyword::Match);
            if !active && !starts_block {
                continue;
            }
            let argument = Argument { name, text: arguments };
            match keyword {
                Keyword::Host => active = self.host_matches(&argument).map_err(wrong)?,
                Keyword::Match => {
                    active =
                        argument.words().map_err(wrong)?.iter().map(Vec::as_slice).eq([b"all"]);
                    if !active {
                        self.settings.skipped_matches.push(at(number));
                    }
                }
                Keyword::Include => self.include(&argument, &at(number), depth)?,
                _ => {
                    self.set(keyword, &argument).map_err(wrong)?;
                    self.settings.places.entry(name).or_insert_with(|| at(number));
                }
            }
        }
        Ok(())
    }

    /// Any pattern must match and no negated one.
    fn host_matches(&self, argument: &Argument<'_>) -> Result<bool, Problem> {
        let mut matched = false;
        for word in argument.some_words()? {
            let (pattern, negated) =
                word.strip_prefix(b"!").map_or((&word[..], false), |rest| (rest, true));
            if pattern::matches(self.host.as_bytes(), pattern, Case::Exact) {
                if negated {
                    return Ok(false);
                }
                matched = true;
            }
        }
        Ok(matched)
    }

    fn include(
        &mut self,
        argument: &Argument<'_>,
        place: &Place,
        depth: usize,
    ) -> Result<(), ConfigError> {
        let wrong = |problem| ConfigError { place: place.clone(), problem };
        if depth >= SSH_CONFIG_DEPTH_MAX {
            return Err(wrong(Problem::TooDeep));
        }
        for word in argument.some_words().map_err(wrong)? {
            let path = argument.utf8(word).map_err(wrong)?;
            let files = (self.load)(&path, &place.file)
                .map_err(|problem| wrong(Problem::Include(problem)))?;
            for file in files {
                self.files_included += 1;
                if self.files_included > SSH_CONFIG_FILES_MAX {
                    return Err(wrong(Problem::TooManyFiles));
                }
                self.read_file(&file, depth + 1)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, keyword: Keyword, argument: &Argument<'_>) -> Result<(), Problem> {
        let settings = &mut self.settings;
        match keyword {
            Keyword::HostName => {
                let name = argument.one_utf8()?;
                let name = expand::expand_host_name(&name, self.host)
                    .ok_or_else(|| argument.bad(name.as_bytes()))?;
                settings.host_name.get_or_insert(name);
            }
            Keyword::User => {
                let user = argument.one_utf8()?;
                settings.user.get_or_insert(user);
            }
            Keyword::Port => {
                let text = argument.one_utf8()?;
                let port = text.parse().ok().filter(|&port: &u16| port > 0);
                let port = port.ok_or_else(|| argument.bad(text.as_bytes()))?;
                settings.port.get_or_insert(port);
            }
            Keyword::IdentityFile => {
                argument.add_file(settings.identity_files.get_or_insert_default())?;
            }
            Keyword::CertificateFile => argument.add_file(&mut settings.certificate_files)?,
            Keyword::IdentitiesOnly => {
                let word = argument.one()?;
                let only = match word.to_ascii_lowercase().as_slice() {
                    b"yes" | b"true" => true,
                    b"no" | b"false" => false,
                    _ => return Err(argument.bad(&word)),
                };
                settings.identities_only.get_or_insert(only);
            }
            Keyword::IdentityAgent => {
                let agent = identity_agent(argument)?;
                settings.identity_agent.get_or_insert(agent);
            }
            Keyword::HostKeyAlias => {
                let alias = argument.one_utf8()?;
                settings.host_key_alias.get_or_insert(alias);
            }
            Keyword::UserKnownHostsFile => {
                let words = argument.some_words()?;
                let files = match words.as_slice() {
                    [word] if word.eq_ignore_ascii_case(b"none") => Vec::new(),
                    _ => words.into_iter().map(path).collect(),
                };
                settings.user_known_hosts_files.get_or_insert(files);
            }
            Keyword::ProxyJump => self.set_proxy(argument, Proxy::Jump)?,
            Keyword::ProxyCommand => self.set_proxy(argument, Proxy::Command)?,
            Keyword::Host | Keyword::Match | Keyword::Include => {}
        }
        Ok(())
    }

    /// The rest of the line as it is: a `ProxyCommand` is for a shell.
    fn set_proxy(
        &mut self,
        argument: &Argument<'_>,
        form: fn(String) -> Proxy,
    ) -> Result<(), Problem> {
        if argument.text.is_empty() {
            return Err(Problem::NoArgument(argument.name));
        }
        if !self.proxy_decided {
            self.proxy_decided = true;
            if !argument.text.eq_ignore_ascii_case(b"none") {
                self.settings.proxy = Some(form(escape_bounded(argument.text, 200)));
            }
        }
        Ok(())
    }
}

fn identity_agent(argument: &Argument<'_>) -> Result<IdentityAgent, Problem> {
    let word = argument.one()?;
    if word.eq_ignore_ascii_case(b"none") {
        return Ok(IdentityAgent::None);
    }
    if word == b"SSH_AUTH_SOCK" {
        return Ok(IdentityAgent::Variable("SSH_AUTH_SOCK".into()));
    }
    match word.strip_prefix(b"$") {
        // `${NAME}` is part of a path, and `expand_path`'s to expand.
        Some(name) if !name.starts_with(b"{") => {
            let valid = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
            if name.is_empty() || !name.iter().all(valid) {
                return Err(argument.bad(&word));
            }
            Ok(IdentityAgent::Variable(argument.utf8(name.to_vec())?))
        }
        _ => Ok(IdentityAgent::Socket(path(word))),
    }
}

fn path(word: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(word))
}

/// What stands after a keyword.
struct Argument<'a> {
    name: &'static str,
    text: &'a [u8],
}

impl Argument<'_> {
    fn words(&self) -> Result<Vec<Vec<u8>>, Problem> {
        words::split_arguments(self.text).ok_or(Problem::OpenQuote)
    }

    fn some_words(&self) -> Result<Vec<Vec<u8>>, Problem> {
        let words = self.words()?;
        if words.iter().any(|word| !word.is_empty()) {
            Ok(words)
        } else {
            Err(Problem::NoArgument(self.name))
        }
    }

    fn one(&self) -> Result<Vec<u8>, Problem> {
        let mut words = self.some_words()?;
        match words.pop() {
            Some(word) if words.is_empty() => Ok(word),
            _ => Err(Problem::OneArgument(self.name)),
        }
    }

    /// Adds the file that it names, if it is not there: the same one in two blocks that apply is one.
    fn add_file(&self, files: &mut Vec<PathBuf>) -> Result<(), Problem> {
        let word = self.one()?;
        if word.eq_ignore_ascii_case(b"none") {
            return Ok(());
        }
        if files.len() >= IDENTITY_FILES_MAX {
            return Err(Problem::TooManyFilesOfKeys(self.name));
        }
        let path = path(word);
        if !files.contains(&path) {
            files.push(path);
        }
        Ok(())
    }

    fn one_utf8(&self) -> Result<String, Problem> {
        self.utf8(self.one()?)
    }

    /// A text without control characters: it becomes a name of a host or a user.
    fn utf8(&self, word: Vec<u8>) -> Result<String, Problem> {
        match String::from_utf8(word) {
            Ok(text) if !text.chars().any(char::is_control) => Ok(text),
            Ok(text) => Err(self.bad(text.as_bytes())),
            Err(error) => Err(self.bad(error.as_bytes())),
        }
    }

    fn bad(&self, value: &[u8]) -> Problem {
        Problem::Value { keyword: self.name, value: escape_bounded(value, 80) }
    }
}

#[cfg(test)]
mod tests;
