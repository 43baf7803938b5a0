//! OPEN: what to execute, and how (`W-5.4`).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::job::{Incarnation, JobId};
use super::session::{SessionName, SessionRef, SessionScope};
use super::terminal::{Resize, Terminal};
use crate::json::{self, ByteString};
use crate::limits::TERMINAL_MODES_MAX;

/// What to execute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Exactly these arguments, the program first; no shell has a part in it.
    Argv(Vec<ByteString>),
    /// This script, by the user's shell with `-c`.
    Script(ByteString),
    /// The user's shell itself, as at a login.
    Shell {},
}

/// A job to start (`W-5.4`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSpec {
    /// The job's identity.
    pub job: JobId,
    /// What to execute.
    pub command: Command,
    /// The session whose shell executes it; a process of its own if null (`W-5.9`).
    pub session: Option<SessionRef>,
    /// The terminal that the command gets; pipes if null (`W-5.13`). Not with a session.
    pub terminal: Option<Box<Terminal>>,
    /// The working directory; the user's home if null. A session has its own.
    pub cwd: Option<ByteString>,
    /// Variables to set, in order, over the login environment; in a session, in its shell.
    pub env: Vec<(ByteString, ByteString)>,
    /// Whether stderr goes where stdout goes, which keeps their exact order.
    pub merge: bool,
    /// Whether the client will send stdin; if not, the job reads end of file at once.
    pub stdin: bool,
    /// Time limit in milliseconds from spawn, by the server's monotonic clock.
    pub timeout_ms: Option<u64>,
    /// Time from TERM to KILL in milliseconds, when the job is ended; 5 s if null.
    pub kill_after_ms: Option<u64>,
    /// What the loss of its client's link does to the job (`J-2.3`).
    pub on_disconnect: Option<OnDisconnect>,
    /// Whether the client leaves with the answer: OPENED closes the channel (`W-5.10`).
    pub detach: bool,
    /// For how long the output is kept from the end of the job on, in seconds (`J-3.3`).
    pub keep_s: Option<u64>,
    /// What happens to output for which there is no room (`J-3.2`).
    pub overflow: Overflow,
    /// Most memory that the job may take, in bytes.
    pub memory_bytes: Option<u64>,
    /// Most processor time that it may take, in thousandths of a processor.
    pub cpu_milli: Option<u64>,
    /// Most processes and threads that it may have.
    pub pids_max: Option<u64>,
    /// Present iff this was sent before and no answer came (`J-1.6`).
    pub retry: Option<Retry>,
}

impl OpenSpec {
    /// This command, and nothing else asked for.
    #[must_use]
    pub const fn new(job: JobId, command: Command) -> Self {
        Self {
            job,
            command,
            session: None,
            terminal: None,
            cwd: None,
            env: Vec::new(),
            merge: false,
            stdin: false,
            timeout_ms: None,
            kill_after_ms: None,
            on_disconnect: None,
            detach: false,
            keep_s: None,
            overflow: Overflow::Block,
            memory_bytes: None,
            cpu_milli: None,
            pids_max: None,
            retry: None,
        }
    }

    /// What tells two requests with the same id apart: BLAKE3 of the fields as they are written,
    /// `job` and `retry` left out, and how the terminal of whoever asks looks (`J-1.2`).
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut written = OpenWritten { job: None, retry: None, ..OpenWritten::of(self) };
        if let Some(terminal) = &mut written.terminal {
            *terminal = TerminalWritten::of_any(terminal.command);
        }
        *blake3::hash(&json::to_vec(&written)).as_bytes()
    }
}

/// That an OPEN is sent again, because no answer came (`J-1.6`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// How long ago it was sent first, in milliseconds.
    pub age_ms: u64,
    /// The supervisor's incarnation that was seen when it was sent first, if any was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
}

/// What the loss of its client's link does to a job (`J-2.3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// Nothing, and a client that says goodbye cancels nothing either.
    Keep,
    /// It cancels the job.
    Kill,
}

/// What happens to a job's output when its quota is used up (`J-3.2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The job waits in its write.
    #[default]
    Block,
    /// The oldest output is let go of, as a named gap.
    Drop,
    /// The job is ended.
    Kill,
}

impl Overflow {
    fn is_default(&self) -> bool {
        *self == Self::Block
    }
}

/// [`OpenSpec`] as it is written. The command of a session stands within `session`, so that a
/// server which knows of no sessions misses the command and refuses, instead of running it in a
/// process of its own (`W-5.9`); that of a job with a terminal within `terminal` (`W-5.13`).
#[derive(Serialize)]
struct OpenWritten<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a Command>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionWritten<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    terminal: Option<TerminalWritten<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<&'a ByteString>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    env: &'a [(ByteString, ByteString)],
    merge: bool,
    stdin: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kill_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_disconnect: Option<OnDisconnect>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    detach: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_s: Option<u64>,
    #[serde(skip_serializing_if = "Overflow::is_default")]
    overflow: Overflow,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_milli: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<&'a Retry>,
}

#[derive(Serialize)]
struct SessionWritten<'a> {
    name: &'a SessionName,
    scope: SessionScope,
    command: &'a Command,
}

#[derive(Serialize)]
struct TerminalWritten<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a ByteString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<Resize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modes: Option<&'a BTreeMap<String, u32>>,
    command: &'a Command,
}

impl<'a> TerminalWritten<'a> {
    fn of(terminal: &'a Terminal, command: &'a Command) -> Self {
        let modes = Some(&terminal.modes).filter(|modes| !modes.is_empty());
        Self { name: Some(&terminal.name), size: Some(terminal.size), modes, command }
    }

    /// Whatever the terminal is like.
    const fn of_any(command: &'a Command) -> Self {
        Self { name: None, size: None, modes: None, command }
    }
}

/// [`OpenSpec`] as it is read.
#[derive(Deserialize)]
struct OpenRead {
    job: JobId,
    command: Option<Command>,
    session: Option<SessionRead>,
    terminal: Option<TerminalRead>,
    cwd: Option<ByteString>,
    #[serde(default)]
    env: Vec<(ByteString, ByteString)>,
    #[serde(default)]
    merge: bool,
    #[serde(default)]
    stdin: bool,
    timeout_ms: Option<u64>,
    kill_after_ms: Option<u64>,
    on_disconnect: Option<OnDisconnect>,
    #[serde(default)]
    detach: bool,
    keep_s: Option<u64>,
    #[serde(default)]
    overflow: Overflow,
    memory_bytes: Option<u64>,
    cpu_milli: Option<u64>,
    pids_max: Option<u64>,
    retry: Option<Retry>,
}

#[derive(Deserialize)]
struct SessionRead {
    name: SessionName,
    scope: SessionScope,
    command: Command,
}

#[derive(Deserialize)]
struct TerminalRead {
    name: ByteString,
    size: Resize,
    #[serde(default)]
    modes: BTreeMap<String, u32>,
    command: Command,
}

impl TerminalRead {
    fn into_terminal(self) -> Result<(Command, Terminal), &'static str> {
        let Self { name, size, modes, command } = self;
        let terminal = Terminal { name, size, modes };
        if !terminal.has_good_name() {
            return Err("the terminal's name is empty or too long");
        }
        if terminal.modes.len() > TERMINAL_MODES_MAX {
            return Err("too many modes of the terminal");
        }
        Ok((command, terminal))
    }
}

impl<'a> OpenWritten<'a> {
    fn of(spec: &'a OpenSpec) -> Self {
        let OpenSpec { job, command, session, terminal, cwd, env, retry, .. } = spec;
        Self {
            job: Some(job),
            command: (session.is_none() && terminal.is_none()).then_some(command),
            session: session.as_ref().map(|session| SessionWritten {
                name: &session.name,
                scope: session.scope,
                command,
            }),
            terminal: terminal.as_ref().map(|terminal| TerminalWritten::of(terminal, command)),
            cwd: cwd.as_ref(),
            env,
            merge: spec.merge,
            stdin: spec.stdin,
            timeout_ms: spec.timeout_ms,
            kill_after_ms: spec.kill_after_ms,
            on_disconnect: spec.on_disconnect,
            detach: spec.detach,
            keep_s: spec.keep_s,
            overflow: spec.overflow,
            memory_bytes: spec.memory_bytes,
            cpu_milli: spec.cpu_milli,
            pids_max: spec.pids_max,
            retry: retry.as_ref(),
        }
    }
}

impl Serialize for OpenSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        OpenWritten::of(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for OpenSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let read = OpenRead::deserialize(deserializer)?;
        let (command, session, terminal) = match (read.command, read.session, read.terminal) {
            (Some(command), None, None) => (command, None, None),
            (None, Some(SessionRead { name, scope, command }), None) => {
                (command, Some(SessionRef { name, scope }), None)
            }
            (None, None, Some(terminal)) => {
                let (command, terminal) = terminal.into_terminal().map_err(D::Error::custom)?;
                (command, None, Some(Box::new(terminal)))
            }
            (None, None, None) => return Err(D::Error::missing_field("command")),
            (_, Some(_), Some(_)) => {
                return Err(D::Error::custom("a session's commands have no terminal"));
            }
            (Some(_), Some(_), None) => {
                return Err(D::Error::custom("a command beside the session's own"));
            }
            (Some(_), None, Some(_)) => {
                return Err(D::Error::custom("a command beside the terminal's own"));
            }
        };
        if read.detach && read.stdin {
            return Err(D::Error::custom("a detached job has nobody who sends its stdin"));
        }
        Ok(Self {
            job: read.job,
            command,
            session,
            terminal,
            cwd: read.cwd,
            env: read.env,
            merge: read.merge,
            stdin: read.stdin,
            timeout_ms: read.timeout_ms,
            kill_after_ms: read.kill_after_ms,
            on_disconnect: read.on_disconnect,
            detach: read.detach,
            keep_s: read.keep_s,
            overflow: read.overflow,
            memory_bytes: read.memory_bytes,
            cpu_milli: read.cpu_milli,
            pids_max: read.pids_max,
            retry: read.retry,
        })
    }
}
