//! From what was asked for, and what the grant allows, to what is executed.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use afar_core::policy::{
    Decision, Denied, Execution, Grant, KeyVariable, ORIGINAL_COMMAND_VARIABLE, RequestFacts,
    allowed,
};
use afar_proto::message::{Command, OpenSpec, Refused};
use afar_proto::outcome::{Phase, RefusalReason, Started};
use afar_sys::exec_strings::{env_entry, exec_string, exec_strings};
use afar_sys::resolve::{SpawnFailure, resolve};
use afar_sys::users::{User, current_user};

use super::confine::Limits;
use super::environment::{Variables, login_variables, shell_of};

/// The variable that tells a job its id.
pub(super) const ID_VARIABLE: &str = "AFAR_JOB_ID";

/// The variable by which a job's descendants are found: unlike the id it is never used twice.
pub(crate) const MARK_VARIABLE: &str = "AFAR_JOB_MARK";

/// What is executed, ready for posix_spawn.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) program: CString,
    pub(super) argv: Vec<CString>,
    pub(super) env: Vec<CString>,
    pub(super) cwd: CString,
    /// The entry of `env` that nothing but this job's processes has.
    pub(super) mark: Vec<u8>,
    /// What it is held to.
    pub(super) limits: Limits,
}

impl Prepared {
    /// The random part of the mark.
    pub(super) fn mark_value(&self) -> &str {
        mark_value(&self.mark)
    }
}

/// The random part of an entry of the environment that is a job's mark.
pub(super) fn mark_value(mark: &[u8]) -> &str {
    let value = mark.get(MARK_VARIABLE.len() + 1..).unwrap_or_default();
    // It is made of hexadecimal digits.
    std::str::from_utf8(value).unwrap_or_default()
}

/// Prepares a request, or says why it is refused. Starts nothing.
pub(super) fn prepare(
    spec: &OpenSpec,
    grant: &Grant,
    user: &User,
    now_s: i64,
) -> Result<Prepared, Refused> {
    let (verb, facts) = RequestFacts::open(now_s, spec);
    let decision = allowed(grant, verb, facts).map_err(|denied| refuse_denied(&denied))?;
    let fresh = grant.restrictions.login_shell_only.then(fresh_user).transpose()?;
    let user = fresh.as_ref().unwrap_or(user);
    let cwd = working_directory(spec, &decision, user);
    let mark = new_mark()?;
    let variables = variables(spec, grant, &decision, user, &mark);
    let words = words(&spec.command, &decision, user)?;
    let first = words.first().ok_or_else(|| invalid("the command is empty"))?;
    let path = variables.get(b"PATH".as_slice()).map(Vec::as_slice);
    // A NUL would end the name early and have another program found.
    exec_string(first).map_err(|error| invalid(&error.to_string()))?;
    let argv = exec_strings(&words).map_err(|error| invalid(&error.to_string()))?;
    let env = variables
        .iter()
        .map(|(name, value)| env_entry(name, value))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(&error.to_string()))?;
    let cwd_string = exec_string(cwd.as_os_str().as_bytes())
        .map_err(|error| invalid(&format!("the working directory: {error}")))?;
    let program = program(first, &spec.command, &decision, user, path, &cwd)
        .map_err(|failure| refuse_spawn(&failure))?;
    let program =
        exec_string(program.as_os_str().as_bytes()).map_err(|error| invalid(&error.to_string()))?;
    let mark = [MARK_VARIABLE.as_bytes(), b"=", &mark].concat();
    let limits = limits(spec)?;
    Ok(Prepared { program, argv, env, cwd: cwd_string, mark, limits })
}

/// What was asked for, unless nothing could run under it.
fn limits(spec: &OpenSpec) -> Result<Limits, Refused> {
    let limits = Limits {
        memory_bytes: spec.memory_bytes,
        cpu_milli: spec.cpu_milli,
        pids_max: spec.pids_max,
    };
    let named = [
        ("memory_bytes", limits.memory_bytes),
        ("cpu_milli", limits.cpu_milli),
        ("pids_max", limits.pids_max),
    ];
    match named.iter().find(|(_, value)| *value == Some(0)) {
        Some((name, _)) => Err(invalid(&format!("{name} is 0: nothing could run"))),
        None => Ok(limits),
    }
}

/// The user as the database has it now. Where the login shell decides what is run, it must be the one
/// that the listener has judged, and not one that the account had when this supervisor was started.
fn fresh_user() -> Result<User, Refused> {
    let found = current_user().ok().flatten();
    found.ok_or_else(|| {
        refused(Phase::Spawn, RefusalReason::Other, "the user database can't tell the login shell")
    })
}

/// The argv. A script, and a key's own command, go to the user's shell under its base name, as with
/// sshd; a shell that is a login's is told so by a dash before that name (sh(1)).
fn words(command: &Command, decision: &Decision, user: &User) -> Result<Vec<Vec<u8>>, Refused> {
    let name = shell_of(user).file_name().unwrap_or(OsStr::new("sh")).as_bytes();
    let script = match (&decision.execution, command) {
        (Execution::Forced { command, .. }, _) => command,
        (Execution::AsRequested, Command::Script(script)) => script,
        (Execution::AsRequested, Command::Argv(words)) => {
            return Ok(words.iter().map(|word| word.0.clone()).collect());
        }
        (Execution::AsRequested, Command::Shell {}) => return Ok(vec![[b"-", name].concat()]),
    };
    if script.as_bytes().contains(&0) {
        return Err(invalid("the script holds a NUL byte"));
    }
    Ok(vec![name.to_vec(), b"-c".to_vec(), script.0.clone()])
}

/// The file to execute.
fn program(
    first: &[u8],
    command: &Command,
    decision: &Decision,
    user: &User,
    path: Option<&[u8]>,
    cwd: &Path,
) -> Result<PathBuf, SpawnFailure> {
    match (&decision.execution, command) {
        (Execution::AsRequested, Command::Argv(_)) => resolve(first, path, cwd),
        _ => resolve(shell_of(user).as_os_str().as_bytes(), path, cwd),
    }
}

/// What the shell of a session starts with.
#[derive(Debug)]
pub(super) struct SessionEnvironment {
    pub(super) env: Vec<CString>,
    pub(super) cwd: CString,
}

/// The environment of a session's shell: the login's, and what the key sets. What its commands ask
/// for is set by them.
pub(super) fn session_environment(
    user: &User,
    key_variables: &[KeyVariable],
) -> Result<SessionEnvironment, Refused> {
    let mut variables = login_variables(user);
    for variable in key_variables {
        variables.insert(variable.name.clone().into_bytes(), variable.value.0.clone());
    }
    let env = variables
        .iter()
        .map(|(name, value)| env_entry(name, value))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(&error.to_string()))?;
    let cwd = exec_string(home_of(user).as_os_str().as_bytes())
        .map_err(|error| invalid(&format!("the home directory: {error}")))?;
    Ok(SessionEnvironment { env, cwd })
}

/// Relative to the home; the home by default, and `/` if there is none, as with login(1).
fn working_directory(spec: &OpenSpec, decision: &Decision, user: &User) -> PathBuf {
    match &spec.cwd {
        Some(cwd) if decision.accepts_cwd() => user.home.join(OsStr::from_bytes(cwd.as_bytes())),
        _ => home_of(user).to_owned(),
    }
}

fn home_of(user: &User) -> &Path {
    if user.home.is_dir() { &user.home } else { Path::new("/") }
}

/// In the order of sshd: the login's, the client's, the key's, and what tells of the request.
fn variables(
    spec: &OpenSpec,
    grant: &Grant,
    decision: &Decision,
    user: &User,
    mark: &[u8],
) -> Variables {
    let mut variables = login_variables(user);
    if let Some(terminal) = &spec.terminal {
        variables.insert(b"TERM".to_vec(), terminal.name.0.clone());
    }
    for (name, value) in &spec.env {
        if decision.accepts_variable(name.as_bytes()) {
            variables.insert(name.0.clone(), value.0.clone());
        }
    }
    for variable in &grant.restrictions.environment {
        variables.insert(variable.name.clone().into_bytes(), variable.value.0.clone());
    }
    variables.remove(ORIGINAL_COMMAND_VARIABLE.as_bytes());
    if let Execution::Forced { original: Some(original), .. } = &decision.execution {
        variables.insert(ORIGINAL_COMMAND_VARIABLE.into(), original.0.clone());
    }
    variables.insert(ID_VARIABLE.into(), spec.job.as_str().into());
    variables.insert(MARK_VARIABLE.into(), mark.to_vec());
    variables
}

pub(super) fn new_mark() -> Result<Vec<u8>, Refused> {
    let random = afar_sys::random::random_bytes::<16>().map_err(|error| {
        refused(Phase::Spawn, RefusalReason::NoResources, &format!("no random bytes: {error}"))
    })?;
    Ok(random.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect())
}

fn refused(phase: Phase, reason: RefusalReason, message: &str) -> Refused {
    Refused { phase, reason, message: message.to_owned(), started: Started::No }
}

pub(super) fn invalid(message: &str) -> Refused {
    refused(Phase::Spawn, RefusalReason::Invalid, message)
}

/// What this server, or this user's shell, can't do.
pub(super) fn refuse_unsupported(message: &str) -> Refused {
    refused(Phase::Spawn, RefusalReason::Unsupported, message)
}

pub(super) fn refuse_denied(denied: &Denied) -> Refused {
    refused(Phase::Authorize, denied.reason(), &denied.to_string())
}

/// The refusal that tells why posix_spawn could not.
pub(super) fn refuse_spawn(failure: &SpawnFailure) -> Refused {
    let reason = match failure {
        SpawnFailure::NotFound { .. } => RefusalReason::NotFound,
        SpawnFailure::NotExecutable { .. } | SpawnFailure::IsDirectory { .. } => {
            RefusalReason::NotExecutable
        }
        SpawnFailure::BadInterpreter { .. } => RefusalReason::BadInterpreter,
        SpawnFailure::BadFormat { .. } => RefusalReason::BadFormat,
        SpawnFailure::MissingCwd { .. }
        | SpawnFailure::CwdNotDirectory { .. }
        | SpawnFailure::CwdNotAccessible { .. } => RefusalReason::BadCwd,
        SpawnFailure::TooLong => RefusalReason::TooLong,
        SpawnFailure::NoProcesses(_) | SpawnFailure::NoDescriptors(_) => RefusalReason::NoResources,
        SpawnFailure::Other(_) => RefusalReason::Other,
    };
    refused(Phase::Spawn, reason, &failure.to_string())
}

#[cfg(test)]
mod tests;
