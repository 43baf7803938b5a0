//! What the user wrote as a target: a host, this machine, a set of hosts, or a job on one.
//!
//! The syntax is that of the command line: `[USER@]HOST[:PORT]`, `afar://…`, `ssh://…`, `local`,
//! sets, and `TARGET/JOB`.

use std::fmt;
use std::net::Ipv6Addr;

use afar_proto::message::JobId;

use crate::escape::escape_bounded;
use crate::limits::{HOST_BYTES_MAX, HOST_SET_BYTES_MAX, USER_BYTES_MAX};

/// Where commands are to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `local`: the user's own supervisor on this machine.
    Local,
    /// A host that serves afar.
    Host(Destination),
    /// `ssh://HOST`: a host that is reached by `ssh HOST afar stdio`.
    Ssh(Destination),
    /// Something that stands for any number of hosts, not expanded yet: see
    /// [`crate::host_set::expand`].
    Set(String),
}

/// One host, and how to log in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The user to log in as, if one is named.
    pub user: Option<String>,
    /// The host's name or address, without brackets; maybe a `Host` alias of ssh_config.
    pub host: String,
    /// The port, if one is named.
    pub port: Option<u16>,
}

/// A job on a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobTarget {
    /// Where the job is; never a [`Target::Set`].
    pub target: Target,
    /// The job's id or the start of it.
    pub job: String,
}

/// Why a text is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("target \"{text}\": {problem}")]
pub struct TargetError {
    /// The text, escaped and bounded.
    pub text: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// Longer than any target.
    #[error("it is too long")]
    TooLong,
    /// Not UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// Another scheme than `afar` and `ssh`.
    #[error("the scheme \"{0}\" is neither afar nor ssh")]
    Scheme(String),
    /// `local` with a user or a port.
    #[error("local takes no user and no port; a host of that name is afar://local")]
    LocalWithMore,
    /// A job where a host is wanted.
    #[error("a host is wanted here, and what follows the / would be a job")]
    JobForHost,
    /// A host where a job is wanted.
    #[error("a job is wanted here: TARGET/JOB")]
    HostForJob,
    /// A set of hosts where one is wanted.
    #[error("one host is wanted here, not a set of them")]
    SetForHost,
    /// The part after the last `/` can't be a job's id.
    #[error("\"{0}\" can't be a job: 1 to 64 letters, digits, dots, dashes and underscores")]
    Job(String),
    /// The user's name is empty, too long, or has a character that no user's name has.
    #[error("\"{0}\" can't be a user")]
    User(String),
    /// The host's name is empty, too long, or has a character that no host's name has.
    #[error("\"{0}\" can't be a host")]
    Host(String),
    /// Several colons without brackets, and not an IPv6 address.
    #[error("too many colons; an IPv6 address with a port is [ADDRESS]:PORT")]
    Colons,
    /// What is in brackets is no IPv6 address.
    #[error("\"{0}\" in brackets is not an IPv6 address")]
    Brackets(String),
    /// Not a port.
    #[error("the port \"{0}\" is not a number from 1 to 65535")]
    Port(String),
}

impl Target {
    /// Reads a target.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        parse(text).map_err(|problem| TargetError::new(text.as_bytes(), problem))
    }

    /// [`Self::parse`] for an argument as the system gives it.
    ///
    /// # Errors
    /// As there; also what is not UTF-8.
    pub fn parse_bytes(text: &[u8]) -> Result<Self, TargetError> {
        match std::str::from_utf8(text) {
            Ok(text) => Self::parse(text),
            Err(_) => Err(TargetError::new(text, Problem::NotUtf8)),
        }
    }
}

impl JobTarget {
    /// Reads a `TARGET/JOB`; the job is what follows the last `/`.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        parse_job(text).map_err(|problem| TargetError::new(text.as_bytes(), problem))
    }

    /// [`Self::parse`] for an argument as the system gives it.
    ///
    /// # Errors
    /// As there; also what is not UTF-8.
    pub fn parse_bytes(text: &[u8]) -> Result<Self, TargetError> {
        match std::str::from_utf8(text) {
            Ok(text) => Self::parse(text),
            Err(_) => Err(TargetError::new(text, Problem::NotUtf8)),
        }
    }
}

impl TargetError {
    fn new(text: &[u8], problem: Problem) -> Self {
        Self { text: escape_bounded(text, 100), problem }
    }
}

impl fmt::Display for Target {
    /// The text that is read back as this target.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            // Without the scheme it would be this machine.
            Self::Host(destination) if destination.host == "local" => {
                write!(f, "afar://{destination}")
            }
            Self::Host(destination) => destination.fmt(f),
            Self::Ssh(destination) => write!(f, "ssh://{destination}"),
            Self::Set(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Display for JobTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.target, self.job)
    }
}

fn parse(text: &str) -> Result<Target, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.len() > HOST_SET_BYTES_MAX {
        return Err(Problem::TooLong);
    }
    if text == "local" {
        return Ok(Target::Local);
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let form = match scheme.to_ascii_lowercase().as_str() {
            "afar" => Target::Host,
            "ssh" => Target::Ssh,
            _ => return Err(Problem::Scheme(escape_bounded(scheme.as_bytes(), 20))),
        };
        // A URL may end with the slash of an empty path.
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        return parse_destination(rest).map(form);
    }
    if is_set(text) {
        return Ok(Target::Set(text.into()));
    }
    let destination = parse_destination(text)?;
    if destination.host == "local" {
        return Err(Problem::LocalWithMore);
    }
    Ok(Target::Host(destination))
}

fn parse_job(text: &str) -> Result<JobTarget, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    let after_scheme = text.find("://").map_or(0, |at| at + "://".len());
    let slash = text.rfind('/').filter(|&at| at >= after_scheme).ok_or(Problem::HostForJob)?;
    let (target, job) = text.split_at(slash);
    let job = job.strip_prefix('/').unwrap_or(job);
    if job.is_empty() {
        return Err(Problem::HostForJob);
    }
    // The start of an id is made of the same characters as an id.
    if JobId::new(job).is_err() {
        return Err(Problem::Job(escape_bounded(job.as_bytes(), 80)));
    }
    match parse(target)? {
        Target::Set(_) => Err(Problem::SetForHost),
        target => Ok(JobTarget { target, job: job.into() }),
    }
}

/// Whether the text stands for several hosts: a comma, a group, or a range in brackets. A text with
/// control characters stands for nothing.
fn is_set(text: &str) -> bool {
    if text.chars().any(char::is_control) {
        return false;
    }
    text.contains(',') || text.starts_with('@') || (text.contains('[') && !has_address(text))
}

/// Whether the host is an IPv6 address in brackets.
fn has_address(text: &str) -> bool {
    let host = text.rsplit_once('@').map_or(text, |(_, host)| host);
    host.strip_prefix('[').is_some_and(|rest| {
        let inside = rest.split_once(']').map_or(rest, |(inside, _)| inside);
        inside.contains(':')
    })
}

pub(crate) fn parse_destination(text: &str) -> Result<Destination, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.contains('/') {
        return Err(Problem::JobForHost);
    }
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => (Some(check_user(user)?), rest),
        None => (None, text),
    };
    let (host, port) = if let Some(bracketed) = rest.strip_prefix('[') {
        split_bracketed(bracketed)?
    } else if rest.matches(':').count() > 1 {
        if rest.parse::<Ipv6Addr>().is_err() {
            return Err(Problem::Colons);
        }
        (rest.to_owned(), None)
    } else {
        match rest.split_once(':') {
            Some((host, port)) => (check_host(host)?, Some(parse_port(port)?)),
            None => (check_host(rest)?, None),
        }
    };
    Ok(Destination { user, host, port })
}

fn split_bracketed(text: &str) -> Result<(String, Option<u16>), Problem> {
    let shown = |text: &str| Problem::Brackets(escape_bounded(text.as_bytes(), 80));
    let (inside, after) = text.split_once(']').ok_or_else(|| shown(text))?;
    let (address, zone) = inside.split_once('%').unwrap_or((inside, "1"));
    let zone_valid = !zone.is_empty()
        && zone.len() <= 32
        && zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if address.parse::<Ipv6Addr>().is_err() || !zone_valid {
        return Err(shown(inside));
    }
    let port = match after.strip_prefix(':') {
        Some(port) => Some(parse_port(port)?),
        None if after.is_empty() => None,
        None => return Err(Problem::Port(escape_bounded(after.as_bytes(), 20))),
    };
    Ok((inside.into(), port))
}

fn parse_port(text: &str) -> Result<u16, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|&port: &u16| digits && port > 0);
    port.ok_or_else(|| Problem::Port(escape_bounded(text.as_bytes(), 20)))
}

/// A name that may be given to a shell on the way (`ssh://` does) and to the system's resolver.
fn check_host(host: &str) -> Result<String, Problem> {
    let valid = !host.is_empty()
        && host.len() <= HOST_BYTES_MAX
        && !host.starts_with('-')
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._+".contains(&byte));
    if valid { Ok(host.into()) } else { Err(Problem::Host(escape_bounded(host.as_bytes(), 80))) }
}

/// As ssh: no dash first, nothing that a shell reads, a backslash (of a domain) not last. A name
/// may hold an `@`, as in `alice@corp.example@host`.
fn check_user(user: &str) -> Result<String, Problem> {
    let valid = !user.is_empty()
        && user.len() <= USER_BYTES_MAX
        && !user.starts_with('-')
        && !user.starts_with('@')
        && !user.ends_with(['@', '\\'])
        && user.chars().all(|c| {
            !c.is_control() && !c.is_whitespace() && !"'\"`$;&<>|(){}[]*?!#,:/".contains(c)
        });
    if valid { Ok(user.into()) } else { Err(Problem::User(escape_bounded(user.as_bytes(), 80))) }
}

#[cfg(test)]
mod tests;
