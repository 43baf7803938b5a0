//! What can go wrong on the way to a job's outcome, sorted by whose fault it is.
//!
//! A message is one line and says what failed; [`Error::hint`] says what to do about it, and
//! [`Error::phase`] and [`Error::started`] where it failed and whether the command was started.
//! Everything that another machine said is escaped in it.

use std::io;
use std::time::Duration;

use afar_core::escape::escape_for_terminal;
use afar_core::known_hosts::TooLarge;
use afar_core::ssh_config::{ConfigError, ExpandError};
use afar_core::target::TargetError;
use afar_net::files::FileError;
use afar_net::identity::{IdentityError, UnlockError};
use afar_net::signer::SignError;
use afar_proto::auth::AuthError;
use afar_proto::connection::{OpenError, Stream};
use afar_proto::error::ConnectionError;
use afar_proto::message::Refused;
use afar_proto::outcome::{Phase, Started};

use crate::command::CommandError;
use crate::host_keys::HostKeyProblem;

/// Why there is no job, or no regular end to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // The user's.
    /// The target can't be read, or is of a kind that is not there yet.
    #[error("{target:?}: {problem}")]
    Target {
        /// As it was given.
        target: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        hint: Option<&'static str>,
    },
    /// What was given as a target is none.
    #[error(transparent)]
    BadTarget(#[from] TargetError),
    /// The command can't be asked for.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The ssh configuration can't be used.
    #[error("ssh configuration: {0}")]
    SshConfig(#[from] ConfigError),
    /// A path in the ssh configuration can't be expanded.
    #[error("ssh configuration: {0}")]
    SshConfigPath(#[from] ExpandError),
    /// The configuration of the program that embeds this client can't be used.
    #[error("{0}")]
    Configuration(String),
    /// The ssh configuration asks for a way to the host that afar does not go.
    #[error("the ssh configuration reaches {host} through {keyword} ({value})")]
    Proxy {
        /// The host as it was given.
        host: String,
        /// `ProxyJump` or `ProxyCommand`.
        keyword: &'static str,
        /// Its value, escaped.
        value: String,
    },
    /// A file that is needed can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// `known_hosts` is too large.
    #[error(transparent)]
    KnownHostsTooLarge(#[from] TooLarge),
    /// `known_hosts` can't be changed as wanted.
    #[error("known_hosts: {0}")]
    KnownHostsEdit(#[from] afar_core::known_hosts::ReplaceError),
    /// A key file that was asked for can't be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A key stays locked.
    #[error(transparent)]
    Unlock(#[from] UnlockError),
    /// There is no key to offer.
    #[error("there is no key to log in to {host} with")]
    NoKeys {
        /// The host.
        host: String,
    },
    /// The host key is not to be trusted.
    #[error(transparent)]
    HostKey(#[from] Box<HostKeyProblem>),
    /// The server takes none of the keys.
    #[error("{host} accepts none of the keys that were offered for user {user} ({keys})")]
    KeysRefused {
        /// The host.
        host: String,
        /// The user to become.
        user: String,
        /// The keys' fingerprints.
        keys: String,
    },
    /// Neither `$HOME` nor the account says where the user's files are.
    #[error("the home directory is not known")]
    NoHome,

    // The environment's.
    /// The host's name has no address.
    #[error("cannot find {host}: {source}")]
    Resolve {
        /// The host.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// The host can't be reached.
    #[error("cannot reach {host}:{port}: {source}")]
    Connect {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// It took longer than the user allows.
    #[error("{host} did not answer within {after:?}")]
    ConnectTimeout {
        /// The host.
        host: String,
        /// The limit.
        after: Duration,
        /// Reaching it, or logging in.
        phase: Phase,
        /// Whether the command, which was sent along, may have been started.
        started: Started,
    },
    /// ssh did not lead to an afar.
    #[error("{}", .0.message)]
    Ssh(Box<SshFailure>),
    /// The user's own supervisor can't be reached or started.
    #[error("the local supervisor: {0}")]
    Local(String),
    /// There is nobody who could start the user's own supervisor.
    #[error("this client has no launcher for the local supervisor")]
    NoLauncher,
    /// The key could not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The link failed while logging in.
    #[error("the connection to {host} failed during the login: {source}")]
    LoginLink {
        /// The host.
        host: String,
        /// What the system said.
        source: io::Error,
        /// Whether the command, which was sent along, may have been started.
        started: Started,
    },
    /// The link was lost for good, or the session ended, before the job's last word had come.
    #[error("{}", describe_loss(.cause, .gave_up.as_deref()))]
    LinkLost {
        /// The step that was reached.
        phase: Phase,
        /// Whether the process was started.
        started: Started,
        /// How the connection ended.
        cause: ConnectionError,
        /// Why it was not made again, if that was tried; may be shown.
        gave_up: Option<String>,
        /// `TARGET/JOB`, if the job may still be there.
        job: Option<String>,
    },
    /// The link was lost for good before a question was answered.
    #[error("{}", describe_loss(.cause, .gave_up.as_deref()))]
    QueryLost {
        /// How the connection ended.
        cause: ConnectionError,
        /// Why it was not made again, if that was tried; may be shown.
        gave_up: Option<String>,
    },
    /// The link was lost before it was confirmed that a signal was sent, which is never sent twice.
    #[error("{}; the signal may have been sent, or not", escaped(.cause))]
    SignalUncertain {
        /// How the connection was lost.
        cause: ConnectionError,
    },
    /// The user's time for making a connection again is over.
    #[error("the host did not answer in time")]
    TooLate,
    /// No key is left that could log in without a person.
    #[error("logging in to {host} again takes a person, for a passphrase or a touch")]
    NeedsPerson {
        /// The host.
        host: String,
    },
    /// The session had ended before.
    #[error("the session has ended")]
    SessionEnded,
    /// More output than the caller takes.
    #[error("the command wrote more than {bytes_max} bytes")]
    OutputTooLong {
        /// The caller's limit.
        bytes_max: usize,
    },
    /// No channel could be opened.
    #[error(transparent)]
    Open(#[from] OpenError),

    // The peer's.
    /// The server started no process.
    #[error("{}", describe_refusal(.0))]
    NotStarted(Box<Refused>),
    /// What answers there speaks no TLS that afar speaks.
    #[error("{host}:{port} does not answer as an afar server does: TLS: {}", escaped(.problem))]
    Tls {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What TLS says.
        problem: String,
    },
    /// The server does not do what is asked, or knows no such job.
    #[error("{}", describe_refusal(.0))]
    Refused(Box<Refused>),
    /// The job could not be gone on with on a new connection.
    #[error("the job can't be gone on with: {}", describe_refusal(.refused))]
    NotResumed {
        /// The step that was reached.
        phase: Phase,
        /// Whether the process was started.
        started: Started,
        /// What the server says.
        refused: Box<Refused>,
    },
    /// The beginning of several ids.
    #[error("several jobs begin with {job}")]
    Ambiguous {
        /// As it was given.
        job: String,
    },
    /// The server broke a question off.
    #[error("the server broke the question off: {}", escape_for_terminal(.message.as_bytes()))]
    QueryFailed {
        /// Why.
        message: String,
    },
    /// The server let the client in and then had nobody to give the request to.
    #[error("the server can't run commands now: {}", escape_for_terminal(.message.as_bytes()))]
    Unavailable {
        /// What it said.
        message: String,
    },
    /// The server broke off the login, or broke its rules.
    #[error("{host} ended the login: {}", escaped(.source))]
    Login {
        /// The host.
        host: String,
        /// How.
        source: AuthError,
        /// Whether the command, which was sent along, may have been started.
        started: Started,
    },
    /// The server, or a rule that it broke, broke the job's channel off.
    #[error("the server broke the job off: {}", escape_for_terminal(.message.as_bytes()))]
    Broken {
        /// The step that was reached.
        phase: Phase,
        /// Whether the process was started.
        started: Started,
        /// Why.
        message: String,
    },
    /// What arrived is not what the server says that the command wrote.
    #[error("the output that arrived on {} is not what the command wrote", .stream.name())]
    SealMismatch {
        /// The stream.
        stream: Stream,
    },

    /// Output that the command wrote was gone before it could be told.
    #[error("bytes {from} to {to} of {} are lost", .stream.name())]
    OutputLost {
        /// The stream.
        stream: Stream,
        /// Offset of the first byte that is missing.
        from: u64,
        /// Offset of the first byte behind it that came.
        to: u64,
    },

    // Ours.
    /// TLS could not be set up.
    #[error("TLS: {0}")]
    TlsSetup(String),
    /// A task of this process ended by a fault.
    #[error("a task ended by a fault of afar")]
    TaskFailed,
}

/// Why ssh did not lead to an afar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshFailure {
    /// What failed, in one line; what others said is escaped in it.
    pub message: String,
    /// The step that failed.
    pub phase: Phase,
    /// In a word, for the outcome.
    pub reason: &'static str,
    /// What to do about it.
    pub hint: Option<&'static str>,
}

/// What the peer has said may be in it, such as the message of its goodbye.
fn escaped(error: &impl std::fmt::Display) -> String {
    escape_for_terminal(error.to_string().as_bytes())
}

fn describe_loss(cause: &ConnectionError, gave_up: Option<&str>) -> String {
    let cause = escaped(cause);
    match gave_up {
        Some(why) => format!("{cause}; {}", escape_for_terminal(why.as_bytes())),
        None => cause,
    }
}

fn describe_refusal(refused: &Refused) -> String {
    if refused.message.is_empty() {
        return format!("the server refused: {}", refused.reason.as_str());
    }
    escape_for_terminal(refused.message.as_bytes())
}

impl Error {
    pub(crate) fn answer_to_another_question() -> Self {
        Self::QueryFailed { message: "it answered another one".to_owned() }
    }

    /// The step that failed.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self {
            Self::Target { .. }
            | Self::BadTarget(_)
            | Self::Command(_)
            | Self::SshConfig(_)
            | Self::SshConfigPath(_)
            | Self::Configuration(_)
            | Self::Proxy { .. }
            | Self::NoHome
            | Self::Resolve { .. } => Phase::Resolve,
            Self::Connect { .. }
            | Self::Local(_)
            | Self::NoLauncher
            | Self::SessionEnded
            | Self::QueryLost { .. }
            | Self::SignalUncertain { .. }
            | Self::TooLate
            | Self::Tls { .. }
            | Self::TlsSetup(_)
            | Self::TaskFailed => Phase::Connect,
            Self::File(_)
            | Self::KnownHostsTooLarge(_)
            | Self::KnownHostsEdit(_)
            | Self::Identity(_)
            | Self::Unlock(_)
            | Self::NoKeys { .. }
            | Self::HostKey(_)
            | Self::KeysRefused { .. }
            | Self::NeedsPerson { .. }
            | Self::Sign(_)
            | Self::LoginLink { .. }
            | Self::Login { .. } => Phase::Authenticate,
            Self::Open(_)
            | Self::Unavailable { .. }
            | Self::Ambiguous { .. }
            | Self::QueryFailed { .. } => Phase::Authorize,
            Self::NotStarted(refused) | Self::Refused(refused) => refused.phase,
            Self::Ssh(failure) => failure.phase,
            Self::ConnectTimeout { phase, .. }
            | Self::LinkLost { phase, .. }
            | Self::NotResumed { phase, .. }
            | Self::Broken { phase, .. } => *phase,
            Self::OutputTooLong { .. } => Phase::Run,
            Self::SealMismatch { .. } | Self::OutputLost { .. } => Phase::Stream,
        }
    }

    /// Whether the command was started.
    #[must_use]
    pub fn started(&self) -> Started {
        match self {
            Self::ConnectTimeout { started, .. }
            | Self::LoginLink { started, .. }
            | Self::LinkLost { started, .. }
            | Self::Login { started, .. }
            | Self::NotResumed { started, .. }
            | Self::Broken { started, .. } => *started,
            Self::NotStarted(refused) => refused.started,
            Self::OutputTooLong { .. } | Self::SealMismatch { .. } | Self::OutputLost { .. } => {
                Started::Yes
            }
            _ => Started::No,
        }
    }

    /// Why nothing was started, in a word, for the outcome's `not_started`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Target { .. } | Self::BadTarget(_) | Self::Command(_) | Self::Proxy { .. } => {
                "invalid"
            }
            Self::SshConfig(_) | Self::SshConfigPath(_) | Self::Configuration(_) | Self::NoHome => {
                "bad_configuration"
            }
            Self::Resolve { .. } => "unresolved",
            Self::Connect { .. } | Self::Tls { .. } | Self::ConnectTimeout { .. } => "unreachable",
            Self::Local(_) | Self::NoLauncher | Self::Unavailable { .. } => "no_supervisor",
            Self::HostKey(_) | Self::KnownHostsTooLarge(_) | Self::KnownHostsEdit(_) => "host_key",
            Self::File(_)
            | Self::Identity(_)
            | Self::Unlock(_)
            | Self::NoKeys { .. }
            | Self::Sign(_) => "no_key",
            Self::KeysRefused { .. } => "login_refused",
            Self::LoginLink { .. } | Self::Login { .. } => "login_failed",
            Self::NotStarted(refused) | Self::Refused(refused) => refused.reason.as_str(),
            Self::NeedsPerson { .. } => "no_key",
            Self::Ssh(failure) => failure.reason,
            Self::Open(_) => "too_many",
            _ => "other",
        }
    }

    /// What to do about it, in one line, where there is something to be said.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Target { hint, .. } => return hint.map(ToOwned::to_owned),
            Self::Ssh(failure) => return failure.hint.map(ToOwned::to_owned),
            Self::Proxy { host, .. } => {
                return Some(format!(
                    "afar connects directly; ssh://{host} goes that way, through ssh"
                ));
            }
            Self::Connect { port, source, .. }
                if source.kind() == io::ErrorKind::ConnectionRefused =>
            {
                return Some(format!(
                    "is `afar serve` running there, and listening on port {port}?"
                ));
            }
            Self::Tls { .. } => {
                "is that afar's port (2327 unless -p says otherwise), and not that of sshd?"
            }
            Self::NoKeys { .. } => "make one with `ssh-keygen -t ed25519`, or name one with -i",
            Self::KeysRefused { .. } => {
                "add one of these keys to ~/.ssh/authorized_keys there, or name another with -i; \
                 `afar keys` lists what is offered"
            }
            Self::Unlock(_) => "unlock the key with `ssh-add`, or run this on a terminal",
            Self::HostKey(problem) => return Some(problem.hint()),
            Self::LinkLost { job: Some(job), .. } => {
                return Some(format!(
                    "it may still run there: `afar attach {job}` goes on with it, `afar kill {job}` \
                     ends it"
                ));
            }
            Self::Ambiguous { .. } => "give more of the id; `afar ps` lists them",
            Self::NoHome => "set HOME",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use afar_proto::message::{Goodbye, GoodbyeCode};

    use super::*;

    #[test]
    fn fault_85_a_goodbye_is_shown_escaped() {
        let goodbye = Goodbye { code: GoodbyeCode::Other, message: "\u{1b}[2J\u{202e}".to_owned() };
        let login = Error::Login {
            host: "web".into(),
            source: AuthError::PeerClosed(goodbye.clone()),
            started: Started::No,
        };
        let lost = Error::LinkLost {
            phase: Phase::Run,
            started: Started::Yes,
            cause: ConnectionError::PeerClosed(goodbye),
            gave_up: None,
            job: None,
        };
        for text in [login.to_string(), lost.to_string()] {
            assert!(text.ends_with(r"other: \x1b[2J\u{202e}"), "{text}");
        }
    }
}
