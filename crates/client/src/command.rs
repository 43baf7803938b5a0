//! What to run, and how: the request that becomes a job.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use afar_proto::json::ByteString;
use afar_proto::limits::TERMINAL_MODES_MAX;
use afar_proto::message::{
    Command as WireCommand, JobId, OnDisconnect, OpenSpec, Overflow, Resize, SessionName,
    SessionRef, SessionScope, Terminal,
};

/// A command for another machine, as [`crate::Session::start`] takes it.
///
/// Arguments, variables and paths are bytes and arrive exactly as they are here: no shell has a
/// part in it unless [`Command::script`] asks for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    what: WireCommand,
    session: Option<SessionRef>,
    terminal: Option<Box<Terminal>>,
    cwd: Option<ByteString>,
    env: Vec<(ByteString, ByteString)>,
    merge: bool,
    stdin: bool,
    timeout: Option<Duration>,
    kill_after: Option<Duration>,
    id: Option<JobId>,
    on_disconnect: Option<OnDisconnect>,
    detach: bool,
    keep: Option<Duration>,
    overflow: Overflow,
    memory_bytes: Option<u64>,
    cpu_milli: Option<u64>,
    pids_max: Option<u64>,
}

/// Why a command can't be asked for. Found before anything is sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// There is not even a program.
    #[error("the command is empty")]
    Empty,
    /// A variable's name is empty or holds `=`.
    #[error("{0:?} is no name of an environment variable")]
    VariableName(String),
    /// Nobody would send the stdin of a job that is left at once.
    #[error("a command that is detached is sent no stdin")]
    DetachedStdin,
    /// The commands of a session have no terminal.
    #[error("a command in a session can't have a terminal")]
    TerminalInSession,
    /// Its name is empty or too long, or it has too many modes.
    #[error("the terminal's name (TERM) is empty or too long, or it has too many modes")]
    Terminal,
    /// The system gave no random bytes for the job's id.
    #[error("no random bytes for the job's id")]
    NoRandomness,
}

impl Command {
    /// Exactly this program with these arguments, the program first.
    #[must_use]
    pub fn argv<I>(argv: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let argv = argv.into_iter().map(|argument| bytes(argument.as_ref())).collect();
        Self::new(WireCommand::Argv(argv))
    }

    /// This script, by the login shell of the user on the other side, as its `-c`.
    #[must_use]
    pub fn script(script: impl AsRef<OsStr>) -> Self {
        Self::new(WireCommand::Script(bytes(script.as_ref())))
    }

    /// The login shell of the user on the other side, as at a login. Without [`Command::terminal`] it
    /// reads its commands from stdin.
    #[must_use]
    pub fn login_shell() -> Self {
        Self::new(WireCommand::Shell {})
    }

    fn new(what: WireCommand) -> Self {
        Self {
            what,
            session: None,
            terminal: None,
            cwd: None,
            env: Vec::new(),
            merge: false,
            stdin: false,
            timeout: None,
            kill_after: None,
            id: None,
            on_disconnect: None,
            detach: false,
            keep: None,
            overflow: Overflow::default(),
            memory_bytes: None,
            cpu_milli: None,
            pids_max: None,
        }
    }

    /// The working directory; the user's home without it. Not with a session, which has its own.
    #[must_use]
    pub fn cwd(mut self, directory: impl AsRef<OsStr>) -> Self {
        self.cwd = Some(bytes(directory.as_ref()));
        self
    }

    /// Runs the command in the session of this name, on the same target and for the same user: a
    /// long-lived shell, in which the working directory, variables and functions that earlier
    /// commands have set are still there. It lasts between connections.
    ///
    /// Words of [`Command::argv`] are quoted for that shell, and none is changed; so its own
    /// commands, such as `cd`, can be run.
    #[must_use]
    pub fn session(self, name: SessionName) -> Self {
        self.in_session(SessionRef { name, scope: SessionScope::User })
    }

    /// As [`Command::session`], in a session that belongs to the connection and ends with it.
    #[must_use]
    pub fn connection_session(self, name: SessionName) -> Self {
        self.in_session(SessionRef { name, scope: SessionScope::Connection })
    }

    /// Gives the command a terminal, in the place of three pipes: what it shows is its stdout, and what
    /// is written to its stdin is typed. Not with a session.
    ///
    /// The end of stdin is typed too, as the key that the terminal has for it (Ctrl-D), if its programs
    /// read lines.
    #[must_use]
    pub fn terminal(mut self, terminal: Terminal) -> Self {
        self.terminal = Some(Box::new(terminal));
        self
    }

    /// The size of the terminal that it gets, if it gets one.
    #[must_use]
    pub fn terminal_size(&self) -> Option<Resize> {
        self.terminal.as_ref().map(|terminal| terminal.size)
    }

    fn in_session(mut self, session: SessionRef) -> Self {
        self.session = Some(session);
        self
    }

    /// Sets a variable over the login environment. Of one name the last value holds. In a session
    /// it is set in the shell, and stays there.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((bytes(name.as_ref()), bytes(value.as_ref())));
        self
    }

    /// Whether stderr goes where stdout goes, which keeps their exact order.
    #[must_use]
    pub fn merge(mut self, merge: bool) -> Self {
        self.merge = merge;
        self
    }

    /// Whether stdin will be sent through [`crate::Job::take_stdin`]. Without it the command reads
    /// the end of its input at once.
    #[must_use]
    pub fn stdin(mut self, stdin: bool) -> Self {
        self.stdin = stdin;
        self
    }

    /// Ends the command when it has run for this long, measured by the server from its start.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Time from the polite signal to the certain one when the command is ended; 5 s without it.
    #[must_use]
    pub fn kill_after(mut self, kill_after: Duration) -> Self {
        self.kill_after = Some(kill_after);
        self
    }

    /// The job's id. The same id with the same command is the same job: it is started once, and
    /// whoever asks again is attached to it. With another command it is refused. Without it, a random
    /// one.
    #[must_use]
    pub fn id(mut self, id: JobId) -> Self {
        self.id = Some(id);
        self
    }

    /// What becomes of the job when its link is lost, or its session says goodbye: without this the
    /// first leaves it alone, and the second ends it.
    #[must_use]
    pub fn on_disconnect(mut self, on_disconnect: OnDisconnect) -> Self {
        self.on_disconnect = Some(on_disconnect);
        self
    }

    /// Whether to leave as soon as it is started: the last event is then
    /// [`JobEvent::Detached`](crate::JobEvent::Detached), and all of its output is kept for whoever
    /// attaches. Not with stdin.
    #[must_use]
    pub fn detach(mut self, detach: bool) -> Self {
        self.detach = detach;
        self
    }

    /// Keeps all of the output for this long after the end.
    #[must_use]
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = Some(keep);
        self
    }

    /// What happens when the server's room for output that nobody takes is used up.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// The most memory that the command may take, in bytes.
    #[must_use]
    pub fn memory_max(mut self, bytes: u64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// The most processor time that it may take, in thousandths of a processor.
    #[must_use]
    pub fn cpu_max(mut self, milli: u64) -> Self {
        self.cpu_milli = Some(milli);
        self
    }

    /// The most processes and threads that it may have.
    #[must_use]
    pub fn pids_max(mut self, pids: u64) -> Self {
        self.pids_max = Some(pids);
        self
    }

    /// The message for the wire, with an id made for it if it has none.
    /// The job's id; one that was not given is made now, so that the job can be named even if no
    /// answer ever comes.
    ///
    /// # Errors
    /// [`CommandError::NoRandomness`].
    pub fn settle_id(&mut self) -> Result<JobId, CommandError> {
        let id = self.id.take().map_or_else(random_id, Ok)?;
        self.id = Some(id.clone());
        Ok(id)
    }

    pub(crate) fn into_spec(self) -> Result<OpenSpec, CommandError> {
        if matches!(&self.what, WireCommand::Argv(argv) if argv.is_empty()) {
            return Err(CommandError::Empty);
        }
        if self.detach && self.stdin {
            return Err(CommandError::DetachedStdin);
        }
        if let Some(terminal) = &self.terminal {
            if self.session.is_some() {
                return Err(CommandError::TerminalInSession);
            }
            if !terminal.has_good_name() || terminal.modes.len() > TERMINAL_MODES_MAX {
                return Err(CommandError::Terminal);
            }
        }
        for (name, _) in &self.env {
            if name.0.is_empty() || name.0.contains(&b'=') {
                let name = String::from_utf8_lossy(&name.0).into_owned();
                return Err(CommandError::VariableName(name));
            }
        }
        let job = match self.id {
            Some(id) => id,
            None => random_id()?,
        };
        Ok(OpenSpec {
            session: self.session,
            terminal: self.terminal,
            cwd: self.cwd,
            env: self.env,
            merge: self.merge,
            stdin: self.stdin,
            timeout_ms: self.timeout.map(millis),
            kill_after_ms: self.kill_after.map(millis),
            on_disconnect: self.on_disconnect,
            detach: self.detach,
            keep_s: self.keep.map(seconds),
            overflow: self.overflow,
            memory_bytes: self.memory_bytes,
            cpu_milli: self.cpu_milli,
            pids_max: self.pids_max,
            ..OpenSpec::new(job, self.what)
        })
    }
}

/// 128 random bits in hexadecimal: no two clients ever make the same.
fn random_id() -> Result<JobId, CommandError> {
    let mut random = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| CommandError::NoRandomness)?;
    let text = format!("{:032x}", u128::from_be_bytes(random));
    JobId::new(&text).map_err(|_| CommandError::NoRandomness)
}

/// Rounded up, so that a limit under a millisecond does not become none at all.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Likewise: what is kept is kept for long enough.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

fn bytes(text: &OsStr) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_arrive_as_the_bytes_they_are() {
        let argument = OsStr::from_bytes(b"a\xff 'b'");
        let spec = Command::argv([OsStr::new("printf"), argument]).into_spec().unwrap();
        let expected = vec![ByteString::from("printf"), ByteString(b"a\xff 'b'".to_vec())];
        assert_eq!(spec.command, WireCommand::Argv(expected));
    }

    #[test]
    fn two_commands_get_two_ids_and_a_given_id_is_kept() {
        let command = Command::argv(["true"]);
        let one = command.clone().into_spec().unwrap().job;
        let other = command.clone().into_spec().unwrap().job;
        assert_ne!(one, other);
        let id = JobId::new("nightly-1").unwrap();
        let mut settled = command.clone();
        let made = settled.settle_id().unwrap();
        assert_eq!(settled.settle_id().unwrap(), made);
        assert_eq!(settled.into_spec().unwrap().job, made);
        assert_eq!(command.id(id.clone()).into_spec().unwrap().job, id);
    }

    #[test]
    fn an_empty_command_and_a_bad_variable_are_refused_here() {
        let none: [&str; 0] = [];
        assert_eq!(Command::argv(none).into_spec(), Err(CommandError::Empty));
        for name in ["", "A=B"] {
            let error = Command::argv(["true"]).env(name, "x").into_spec();
            assert_eq!(error, Err(CommandError::VariableName(name.to_owned())));
        }
    }

    #[test]
    fn a_limit_is_never_rounded_down_to_nothing() {
        let command = Command::argv(["true"]).timeout(Duration::from_micros(1));
        assert_eq!(command.into_spec().unwrap().timeout_ms, Some(1));
        assert_eq!(millis(Duration::from_millis(1500)), 1500);
        assert_eq!(millis(Duration::MAX), u64::MAX);
    }
}
