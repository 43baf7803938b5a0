//! From a request that names a session to what its shell is given.

use afar_core::policy::{Execution, Grant, JobScope, KeyVariable, RequestFacts, Verb, allowed};
use afar_proto::json;
use afar_proto::message::{Command, OpenSpec, Refused, SessionScope};

use super::driver::{Exports, is_name, quote_argv};
use super::{Owner, SessionKey};
use crate::supervisor::request::{ID_VARIABLE, MARK_VARIABLE, invalid, new_mark, refuse_denied};

/// A command for a session.
#[derive(Debug)]
pub(in crate::supervisor) struct SessionRequest {
    pub(in crate::supervisor) key: SessionKey,
    pub(in crate::supervisor) environment: Vec<KeyVariable>,
    pub(in crate::supervisor) text: Vec<u8>,
    pub(in crate::supervisor) exports: Exports,
    /// The entry of the environment that nothing but this command's processes has.
    pub(in crate::supervisor) mark: Vec<u8>,
}

/// Prepares a request that names a session, or says why it is refused. `None`: it is no matter of a
/// session. That is so where none is named, and where the key's own command, or a login shell that
/// decides what is run, takes the place of the request, session and all, as with sshd.
pub(in crate::supervisor) fn prepare_in_session(
    spec: &OpenSpec,
    grant: &Grant,
    connection: u64,
    now_s: i64,
) -> Result<Option<SessionRequest>, Refused> {
    let Some(session) = &spec.session else { return Ok(None) };
    let decision = allowed(grant, Verb::Session, RequestFacts::run(now_s, &spec.command))
        .map_err(|denied| refuse_denied(&denied))?;
    if decision.execution != Execution::AsRequested {
        return Ok(None);
    }
    if spec.cwd.is_some() {
        return Err(invalid("a session has a working directory of its own: use cd there"));
    }
    if spec.memory_bytes.or(spec.cpu_milli).or(spec.pids_max).is_some() {
        let why = "limits hold a process of a job's own, and not a command in a session's shell";
        return Err(invalid(why));
    }
    let text = text(&spec.command)?;
    let mut asked = Vec::new();
    for (name, value) in &spec.env {
        if !is_name(name.as_bytes()) {
            let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
            return Err(invalid(&format!("{name:?} is no name of a variable of a shell")));
        }
        if value.as_bytes().contains(&0) {
            return Err(invalid("the value of a variable holds a NUL byte"));
        }
        asked.push((name.0.clone(), value.0.clone()));
    }
    let mark = new_mark()?;
    let own =
        vec![(ID_VARIABLE.into(), spec.job.as_str().into()), (MARK_VARIABLE.into(), mark.clone())];
    let exports = Exports { asked, own };
    let environment = grant.restrictions.environment.clone();
    let owner = match session.scope {
        SessionScope::Connection => Owner::Connection(connection),
        SessionScope::User => Owner::Grant {
            scope: match grant.job_scope() {
                JobScope::User => String::new(),
                JobScope::Key(fingerprint) => fingerprint.to_owned(),
            },
            environment: json::to_vec(&environment),
        },
    };
    let mark = [MARK_VARIABLE.as_bytes(), b"=", &mark].concat();
    let key = SessionKey { owner, name: session.name.clone() };
    Ok(Some(SessionRequest { key, environment, text, exports, mark }))
}

/// What the shell evaluates.
fn text(command: &Command) -> Result<Vec<u8>, Refused> {
    let text = match command {
        Command::Script(script) => script.0.clone(),
        Command::Argv(words) if words.is_empty() => return Err(invalid("the command is empty")),
        Command::Argv(words) => quote_argv(words.iter().map(|word| word.as_bytes())),
        Command::Shell {} => return Err(invalid("a session is a shell already")),
    };
    if text.contains(&0) {
        return Err(invalid("the command holds a NUL byte"));
    }
    Ok(text)
}
