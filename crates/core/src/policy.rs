//! What an authenticated peer may do: grants, their restrictions, and the table grant × verb.

use std::net::IpAddr;

use afar_proto::json::{self, ByteString, JsonError, base64_bytes};
use afar_proto::message::{Command, OpenSpec};
use afar_proto::outcome::RefusalReason;
use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::ENVIRONMENT_STRING_BYTES_MAX;
use crate::pattern::{self, Listed};

mod original;

pub use original::original_command;

/// The variable that tells a forced command what was asked for (sshd(8), `command=`).
pub const ORIGINAL_COMMAND_VARIABLE: &str = "SSH_ORIGINAL_COMMAND";

/// What a peer may ask of a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Start a command.
    Run,
    /// Start a login shell.
    Shell,
    /// Follow and steer a job.
    Attach,
    /// Read the output that a job left.
    Logs,
    /// Signal or remove a job.
    Kill,
    /// List jobs.
    Ps,
    /// Forward a connection.
    Forward,
    /// Start a command in a shell that stays.
    Session,
}

impl Verb {
    /// Every verb, in the order of the table's columns.
    pub const ALL: [Self; 8] = [
        Self::Run,
        Self::Shell,
        Self::Attach,
        Self::Logs,
        Self::Kill,
        Self::Ps,
        Self::Forward,
        Self::Session,
    ];
}

/// How the peer proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantKind {
    /// By a key of `authorized_keys`.
    Key,
    /// By its uid on this machine, over the unix socket.
    Local,
    /// By an ephemeral key that such a key vouched for; its grant is that key's.
    Delegated,
}

/// A variable that a key sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyVariable {
    /// Its name: letters, digits and `_` only.
    pub name: String,
    /// Its value; holds no NUL.
    pub value: ByteString,
}

/// What a key may not do: the options of its line in `authorized_keys` (sshd(8)).
///
/// `from=` is not here, because it was evaluated when the key was accepted. A field that the
/// reader of a grant does not know makes it refuse the grant: an older supervisor must not drop a
/// restriction that a newer listener states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restrictions {
    /// `command=`: what is executed whatever is asked for, by the user's shell with `-c`.
    #[serde(deserialize_with = "stated")]
    pub forced_command: Option<ByteString>,
    /// `no-pty`.
    pub no_pty: bool,
    /// `no-port-forwarding`.
    pub no_port_forwarding: bool,
    /// `no-agent-forwarding`.
    pub no_agent_forwarding: bool,
    /// `no-X11-forwarding`. Afar forwards no X11; kept, so that nobody who adds it forgets it.
    pub no_x11_forwarding: bool,
    /// `no-user-rc`.
    pub no_user_rc: bool,
    /// `environment=`, where the server enables it: set over the login environment and over what
    /// the client sends, as sshd does. No name is there twice.
    pub environment: Vec<KeyVariable>,
    /// `permitopen=`: the only `host:port` that may be connected to, if any are named; the port
    /// may be `*`.
    pub permit_open: Vec<String>,
    /// `permitlisten=`: the only `[host:]port` that may be listened on, if any are named; the
    /// host may hold wildcards.
    pub permit_listen: Vec<String>,
    /// `no-touch-required` absent: a signature of a FIDO key must show that it was touched.
    pub touch_required: bool,
    /// `verify-required`: a signature of a FIDO key must show that its user was verified.
    pub verify_required: bool,
    /// `expiry-time=`, in seconds of Unix time: valid up to and including this second.
    #[serde(deserialize_with = "stated")]
    pub expires_at_s: Option<i64>,
    /// No option of a key but a fact of its account: the login shell is one that does not let its
    /// user run just anything, so all that is asked for is a text for that shell, as with sshd.
    pub login_shell_only: bool,
}

impl Default for Restrictions {
    /// Those of a line without options.
    fn default() -> Self {
        Self {
            forced_command: None,
            no_pty: false,
            no_port_forwarding: false,
            no_agent_forwarding: false,
            no_x11_forwarding: false,
            no_user_rc: false,
            environment: Vec::new(),
            permit_open: Vec::new(),
            permit_listen: Vec::new(),
            touch_required: true,
            verify_required: false,
            expires_at_s: None,
            login_shell_only: false,
        }
    }
}

impl Restrictions {
    /// Whether the key is past its `expiry-time`.
    #[must_use]
    pub fn expired(&self, now_s: i64) -> bool {
        self.expires_at_s.is_some_and(|last_s| now_s > last_s)
    }

    /// What may be done under these and others at once, as where a line of `authorized_keys` trusts
    /// the authority of a certificate that has restrictions of its own. What is named one by one
    /// (variables, what may be forwarded) is that of `self`, or of `other` where `self` names none.
    ///
    /// # Errors
    /// Two forced commands that differ: neither can be left out (as in sshd).
    pub fn and(self, other: Self) -> Result<Self, ForcedCommandsDiffer> {
        fn first<T>(one: Vec<T>, other: Vec<T>) -> Vec<T> {
            if one.is_empty() { other } else { one }
        }
        if let (Some(one), Some(other)) = (&self.forced_command, &other.forced_command)
            && one != other
        {
            return Err(ForcedCommandsDiffer);
        }
        Ok(Self {
            forced_command: self.forced_command.or(other.forced_command),
            no_pty: self.no_pty || other.no_pty,
            no_port_forwarding: self.no_port_forwarding || other.no_port_forwarding,
            no_agent_forwarding: self.no_agent_forwarding || other.no_agent_forwarding,
            no_x11_forwarding: self.no_x11_forwarding || other.no_x11_forwarding,
            no_user_rc: self.no_user_rc || other.no_user_rc,
            environment: first(self.environment, other.environment),
            permit_open: first(self.permit_open, other.permit_open),
            permit_listen: first(self.permit_listen, other.permit_listen),
            touch_required: self.touch_required || other.touch_required,
            verify_required: self.verify_required || other.verify_required,
            expires_at_s: match (self.expires_at_s, other.expires_at_s) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            },
            login_shell_only: self.login_shell_only || other.login_shell_only,
        })
    }
}

/// Two sources of restrictions force different commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate and the line that trusts its authority force different commands")]
pub struct ForcedCommandsDiffer;

/// What authentication yields: who the peer is and what it may not do. Its JSON is the payload of
/// the one GRANT frame from the process that authenticated to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// How the peer proved it.
    pub kind: GrantKind,
    /// The user's name.
    pub user: ByteString,
    /// The user's id. A supervisor refuses a grant whose uid is not its own.
    pub uid: u32,
    /// The fingerprint of the key; `None` iff the kind is [`GrantKind::Local`]. For a delegated
    /// key, that of the key which vouched for it.
    #[serde(deserialize_with = "stated")]
    pub key_fingerprint: Option<String>,
    /// Where the peer connects from; `None` if not by an address.
    #[serde(deserialize_with = "stated")]
    pub source_address: Option<IpAddr>,
    /// What it may not do.
    pub restrictions: Restrictions,
    /// What it rests on; `None` iff the kind is [`GrantKind::Local`].
    #[serde(deserialize_with = "stated")]
    pub basis: Option<Basis>,
}

/// What a grant rests on, so that the supervisor notices when it rests on nothing any more
/// (`W-4.12`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basis {
    /// The key that was accepted, or the certificate, in SSH's wire encoding; for a delegated key,
    /// that of the key which vouched for it.
    #[serde(with = "base64_bytes")]
    pub key: Vec<u8>,
    /// The files of the user's keys, absolute.
    pub key_files: Vec<ByteString>,
    /// The server's file of trusted authorities.
    #[serde(deserialize_with = "stated")]
    pub trusted_authorities: Option<ByteString>,
    /// The server's file of revoked keys.
    #[serde(deserialize_with = "stated")]
    pub revoked_keys: Option<ByteString>,
}

/// Reads a field that must be there: serde takes an `Option` that is missing for `None`, and a
/// restriction that got lost would be one that does not hold.
fn stated<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(deserializer)
}

/// Why bytes are no grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Not the JSON of a grant, or one with a field that is not known here.
    #[error("not a grant: {0}")]
    Malformed(#[from] JsonError),
    /// A key where there can be none, or none where there must be one.
    #[error("not a grant: its kind and its key do not fit")]
    KindAndKey,
}

impl Grant {
    /// The grant of a user of this machine, with no restrictions.
    #[must_use]
    pub fn local(user: impl Into<ByteString>, uid: u32) -> Self {
        Self {
            kind: GrantKind::Local,
            user: user.into(),
            uid,
            key_fingerprint: None,
            source_address: None,
            restrictions: Restrictions::default(),
            basis: None,
        }
    }

    /// The payload of a GRANT frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        json::to_vec(self)
    }

    /// Reads the payload of a GRANT frame.
    ///
    /// # Errors
    /// Malformed, incomplete, inconsistent, or with a field that this version does not know.
    pub fn decode(payload: &[u8]) -> Result<Self, GrantError> {
        let grant: Self = json::from_slice(payload)?;
        let is_local = grant.kind == GrantKind::Local;
        if is_local == grant.key_fingerprint.is_some() || is_local == grant.basis.is_some() {
            return Err(GrantError::KindAndKey);
        }
        Ok(grant)
    }

    /// Whose jobs this grant starts and sees: part of a job's identity, so that a restricted key
    /// can't take the id of a job of another.
    #[must_use]
    pub fn job_scope(&self) -> JobScope<'_> {
        match (&self.restrictions.forced_command, &self.key_fingerprint) {
            (Some(_), fingerprint) => JobScope::Key(fingerprint.as_deref().unwrap_or_default()),
            (None, _) => JobScope::User,
        }
    }
}

/// Whose jobs they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobScope<'a> {
    /// The user's: every grant without a forced command starts its jobs here, and sees all.
    User,
    /// Those of the key with this fingerprint, which sees only them.
    Key(&'a str),
}

/// What is asked for, as far as the answer depends on it.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The time, in seconds of Unix time.
    pub now_s: i64,
    /// Whether a terminal is asked for.
    pub pty: bool,
    /// Whether the job is in this grant's [`Grant::job_scope`]. Asked for attach, logs, kill.
    pub own_job: bool,
    /// What to execute; `None` for a login shell and for verbs that execute nothing.
    pub command: Option<&'a Command>,
    /// What to forward; a forward without it is denied.
    pub forward: Option<ForwardRequest<'a>>,
}

impl<'a> RequestFacts<'a> {
    /// A command without a terminal.
    #[must_use]
    pub const fn run(now_s: i64, command: &'a Command) -> Self {
        Self { command: Some(command), ..Self::other(now_s) }
    }

    /// A job that is to be started, and the verb that it takes.
    #[must_use]
    pub fn open(now_s: i64, spec: &'a OpenSpec) -> (Verb, Self) {
        let facts = Self { pty: spec.terminal.is_some(), ..Self::other(now_s) };
        match &spec.command {
            Command::Shell {} => (Verb::Shell, facts),
            command => (Verb::Run, Self { command: Some(command), ..facts }),
        }
    }

    /// A request about no certain job.
    #[must_use]
    pub const fn other(now_s: i64) -> Self {
        Self { now_s, pty: false, own_job: false, command: None, forward: None }
    }
}

/// What to forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardRequest<'a> {
    /// Which way.
    pub way: ForwardWay,
    /// The host to connect to, or the address to listen on, as the client wrote it.
    pub host: &'a str,
    /// The port.
    pub port: u16,
}

/// Which way a forward goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardWay {
    /// The server connects (`ssh -L`).
    Open,
    /// The server listens (`ssh -R`).
    Listen,
}

/// What is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is executed, where the verb executes something.
    pub execution: Execution,
    /// Who chooses what it is executed with.
    pub surroundings: Surroundings,
    /// Which jobs the answer may be about.
    pub jobs: JobsSeen,
}

/// Who chooses the environment and the working directory of what is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surroundings {
    /// The client.
    Clients,
    /// The account, and the key's line: the client could otherwise choose what runs after all.
    Accounts,
}

/// What is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Execution {
    /// What was asked for.
    AsRequested,
    /// This command instead, by the user's shell with `-c`, in the user's home: the key's, or, for a
    /// login shell that decides, the text of what was asked for.
    Forced {
        /// The command.
        command: ByteString,
        /// The value of [`ORIGINAL_COMMAND_VARIABLE`]; `None`, and so the variable unset, when a
        /// login shell was asked for.
        original: Option<ByteString>,
    },
}

/// Which jobs a grant sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobsSeen {
    /// All of the user's.
    All,
    /// Those of its own [`Grant::job_scope`].
    Own,
}

impl Decision {
    /// Whether the client may set this variable for what is executed.
    ///
    /// For a forced command, and for a login shell that decides, only the locale and the terminal's
    /// name are the client's: with `LD_PRELOAD`, `BASH_ENV` or `PATH` it would choose what runs
    /// after all. (sshd takes no variable but those of `AcceptEnv`, which distributions set to the
    /// locale.)
    #[must_use]
    pub fn accepts_variable(&self, name: &[u8]) -> bool {
        match self.surroundings {
            Surroundings::Clients => true,
            Surroundings::Accounts => {
                name == b"LANG" || name == b"TERM" || name.starts_with(b"LC_")
            }
        }
    }

    /// Whether the client may choose the working directory: not for a forced command, whose
    /// relative paths are its author's.
    #[must_use]
    pub const fn accepts_cwd(&self) -> bool {
        matches!(self.surroundings, Surroundings::Clients)
    }
}

/// Why something is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The key's `expiry-time` is over.
    #[error("the key's expiry-time is over")]
    Expired,
    /// The key has `no-pty`, and a terminal was asked for. (sshd fails that request too, and its
    /// client goes on without a terminal; afar leaves that to the user, who can ask without one.)
    #[error("the key may not have a terminal (no-pty)")]
    NoPty,
    /// The key has `no-port-forwarding`.
    #[error("the key may not forward (no-port-forwarding)")]
    NoForwarding,
    /// Not one of the key's `permitopen` or `permitlisten`, or not named at all.
    #[error("the key may not forward that (permitopen, permitlisten)")]
    ForwardTarget,
    /// A job of others: told as if there were none.
    #[error("no such job")]
    NotItsJob,
    /// What was asked for is longer than a variable may be, and the key's command must be told.
    #[error("the command is too long to be told to the key's own command")]
    OriginalTooLong,
    /// What was asked for holds NUL, which no variable can.
    #[error("the command holds NUL")]
    OriginalHoldsNul,
}

impl Denied {
    /// The word on the wire.
    #[must_use]
    pub const fn reason(self) -> RefusalReason {
        match self {
            Self::NotItsJob => RefusalReason::NoSuchJob,
            Self::OriginalTooLong => RefusalReason::TooLong,
            Self::OriginalHoldsNul => RefusalReason::Invalid,
            Self::Expired | Self::NoPty | Self::NoForwarding | Self::ForwardTarget => {
                RefusalReason::Denied
            }
        }
    }
}

/// What limits a grant: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    ForcedCommand,
    NoPty,
    NoForwarding,
    LoginShellOnly,
}

/// What a limit does to a verb: a cell of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Nothing.
    Pass,
    /// Another command is executed.
    Replace,
    /// Only the grant's own job; another is not found.
    OwnJob,
    /// Only the grant's own jobs are listed.
    OwnList,
    /// Denied with a terminal.
    NoPty,
    /// The login shell gets the text of it.
    ByShell,
    /// Denied: no forwarding.
    NoForwarding,
}

/// The table. A grant without a limit may do everything that its user may do anyway; a grant with
/// several meets the rule of each.
///
/// A key without a forced command can run any program as its user, so no rule about jobs would
/// hold it back: that is why only a forced command limits which jobs are seen. A forced command
/// does not forbid forwarding, in sshd neither (sshd(8): "unless they are explicitly prohibited").
///
/// A session is a shell that runs whatever it is given: where something else decides what is run, that
/// is run instead, and there is no session.
///
/// For people it stands in the specification (`W-4.10`), cell by cell; a test holds both together.
#[rustfmt::skip]
const TABLE: [(Limit, [Rule; Verb::ALL.len()]); 4] = {
    use Rule::{ByShell, NoForwarding, NoPty, OwnJob, OwnList, Pass, Replace};
    [
        //                       run      shell    attach  logs    kill    ps       forward       session
        (Limit::ForcedCommand,  [Replace, Replace, OwnJob, OwnJob, OwnJob, OwnList, Pass,         Replace]),
        (Limit::NoPty,          [NoPty,   NoPty,   Pass,   Pass,   Pass,   Pass,    Pass,         NoPty]),
        (Limit::NoForwarding,   [Pass,    Pass,    Pass,   Pass,   Pass,   Pass,    NoForwarding, Pass]),
        (Limit::LoginShellOnly, [ByShell, ByShell, Pass,   Pass,   Pass,   Pass,    Pass,         ByShell]),
    ]
};

/// Whether the grant allows the verb on these facts, and what is executed then.
///
/// # Errors
/// What the grant does not allow. `reason()` is what the peer may know; the text is for people on
/// both sides and tells nothing about other keys or jobs.
pub fn allowed(grant: &Grant, verb: Verb, facts: RequestFacts<'_>) -> Result<Decision, Denied> {
    let restrictions = &grant.restrictions;
    if restrictions.expired(facts.now_s) {
        return Err(Denied::Expired);
    }
    let mut decision = Decision {
        execution: Execution::AsRequested,
        surroundings: Surroundings::Clients,
        jobs: JobsSeen::All,
    };
    for (limit, rules) in &TABLE {
        if !limit.holds(restrictions) {
            continue;
        }
        for (_, rule) in Verb::ALL.iter().zip(rules).filter(|(column, _)| **column == verb) {
            rule.apply(restrictions, facts, &mut decision)?;
        }
    }
    if verb == Verb::Forward && !may_forward(restrictions, facts.forward) {
        return Err(Denied::ForwardTarget);
    }
    Ok(decision)
}

impl Limit {
    const fn holds(self, restrictions: &Restrictions) -> bool {
        match self {
            Self::ForcedCommand => restrictions.forced_command.is_some(),
            Self::NoPty => restrictions.no_pty,
            Self::NoForwarding => restrictions.no_port_forwarding,
            Self::LoginShellOnly => restrictions.login_shell_only,
        }
    }
}

impl Rule {
    fn apply(
        self,
        restrictions: &Restrictions,
        facts: RequestFacts<'_>,
        decision: &mut Decision,
    ) -> Result<(), Denied> {
        match self {
            Self::Pass => {}
            Self::Replace => {
                decision.execution = Execution::Forced {
                    command: restrictions.forced_command.clone().unwrap_or_default(),
                    original: facts.command.map(original_within_limits).transpose()?,
                };
                decision.surroundings = Surroundings::Accounts;
                decision.jobs = JobsSeen::Own;
            }
            Self::ByShell => {
                decision.surroundings = Surroundings::Accounts;
                // The key's own command goes to that shell too. A login shell is what it is.
                if let (Execution::AsRequested, Some(command)) =
                    (&decision.execution, facts.command)
                {
                    let command = ByteString(original_command(command));
                    decision.execution = Execution::Forced { command, original: None };
                }
            }
            Self::OwnJob if !facts.own_job => return Err(Denied::NotItsJob),
            Self::OwnJob | Self::OwnList => decision.jobs = JobsSeen::Own,
            Self::NoPty if facts.pty => return Err(Denied::NoPty),
            Self::NoPty => {}
            Self::NoForwarding => return Err(Denied::NoForwarding),
        }
        Ok(())
    }
}

fn original_within_limits(command: &Command) -> Result<ByteString, Denied> {
    // `NAME=`, the value, and a NUL.
    let value_max = ENVIRONMENT_STRING_BYTES_MAX - ORIGINAL_COMMAND_VARIABLE.len() - 2;
    let original = original_command(command);
    if original.len() > value_max {
        return Err(Denied::OriginalTooLong);
    }
    if original.contains(&0) {
        return Err(Denied::OriginalHoldsNul);
    }
    Ok(ByteString(original))
}

fn may_forward(restrictions: &Restrictions, forward: Option<ForwardRequest<'_>>) -> bool {
    let Some(forward) = forward else {
        return false;
    };
    match forward.way {
        ForwardWay::Open => {
            let permits = &restrictions.permit_open;
            permits.is_empty()
                || permits.iter().any(|permit| {
                    split_permit(permit).is_some_and(|(host, port)| {
                        port_fits(port, forward.port) && host == forward.host
                    })
                })
        }
        ForwardWay::Listen => {
            let permits = &restrictions.permit_listen;
            permits.is_empty()
                || permits.iter().any(|permit| {
                    split_permit(permit).is_some_and(|(host, port)| {
                        port_fits(port, forward.port)
                            && pattern::match_list(forward.host.as_bytes(), host.as_bytes())
                                == Listed::Yes
                    })
                })
        }
    }
}

/// Host and port of a `permitopen=` or `permitlisten=`, the host without its brackets. A bare
/// port means any host, as in sshd for `permitlisten=`.
pub(crate) fn split_permit(permit: &str) -> Option<(&str, &str)> {
    if let Some(rest) = permit.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        return Some((host, port.strip_prefix(':')?));
    }
    Some(permit.rsplit_once(':').unwrap_or(("*", permit)))
}

fn port_fits(permit: &str, port: u16) -> bool {
    permit == "*" || permit.parse() == Ok(port)
}

#[cfg(test)]
mod tests;
