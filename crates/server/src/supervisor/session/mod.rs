//! Sessions: long-lived shells in which commands are run one after the other.
//!
//! Each session is a task of its own, the keeper, which owns the shell. A command is a job like any
//! other, with its own pipes, outcome and seal; it hands the far ends of its pipes to the keeper as
//! a [`Turn`] and is told when the shell has begun with it and how it ended.

mod dialect;
mod driver;
mod keeper;
mod limits;
mod request;
mod shell;
mod written;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use afar_core::policy::KeyVariable;
use afar_proto::message::{Refused, SessionName};
use afar_proto::outcome::{End, Phase, RefusalReason, Started};
use afar_sys::process_tree::{CommandRoot, TreeRoot};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::{AtWork, Supervisor};
use driver::Exports;
use limits::TRIAL_TIME_MAX;
pub use limits::{SESSION_IDLE_MAX, SESSION_QUEUE_MAX, SESSIONS_MAX};
pub(super) use request::{SessionRequest, prepare_in_session};
pub(super) use written::{StandStill, WrittenSession};

/// Whose a session is. Nobody else reaches it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Owner {
    /// Grants of this scope of jobs whose keys set these variables (as JSON): a key with
    /// `environment=` has sessions of its own, because its variables are in them.
    Grant { scope: String, environment: Vec<u8> },
    /// The connection of this number.
    Connection(u64),
}

/// Which session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct SessionKey {
    pub(super) owner: Owner,
    pub(super) name: SessionName,
}

/// What a command hands to the keeper of its session.
#[derive(Debug)]
pub(super) struct Turn {
    /// What the shell evaluates; holds no NUL.
    pub(super) text: Vec<u8>,
    /// Variables that it exports before.
    pub(super) exports: Exports,
    /// The entry of the environment that what the command starts will have.
    pub(super) mark: Vec<u8>,
    pub(super) streams: TurnStreams,
    /// Told when the shell begins with it. Dropped by a command that waits no longer.
    pub(super) started: oneshot::Sender<Result<TurnStarted, Refused>>,
    /// Told how it ended.
    pub(super) ended: oneshot::Sender<TurnEnd>,
}

/// The command's ends of its pipes. The keeper holds them until the command has ended, because the
/// shell opens them by their paths in our `/proc`.
#[derive(Debug)]
pub(super) struct TurnStreams {
    /// `None`: `/dev/null`.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    /// `None` iff stderr is merged into stdout.
    pub(super) stderr: Option<OwnedFd>,
}

/// What a keeper is told.
enum ToKeeper {
    /// A command, which counts until the shell has done with it.
    Turn(Box<Turn>, AtWork),
    /// Write the session down, and stand still until the other end of the second channel is gone.
    WriteDown(oneshot::Sender<WrittenSession>, oneshot::Receiver<()>),
}

/// The shell has been given the command.
#[derive(Debug)]
pub(super) struct TurnStarted {
    pub(super) root: CommandRoot,
    pub(super) pid: u32,
    pub(super) note: Option<String>,
}

/// The command has ended.
#[derive(Debug)]
pub(super) struct TurnEnd {
    /// Its own end; the shell's, if that ended.
    pub(super) end: End,
    pub(super) user: Duration,
    pub(super) system: Duration,
    /// Whether what earlier commands had set is lost (`W-7.6`).
    pub(super) restarted: bool,
    /// `Some` iff the shell has ended and was reaped.
    pub(super) shell_ended: Option<TreeRoot>,
}

/// How many sessions there may be, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionLimits {
    pub(super) sessions_max: usize,
    pub(super) queue_max: usize,
    pub(super) idle_max: Duration,
    pub(super) trial_max: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            sessions_max: SESSIONS_MAX,
            queue_max: SESSION_QUEUE_MAX,
            idle_max: SESSION_IDLE_MAX,
            trial_max: TRIAL_TIME_MAX,
        }
    }
}

/// All sessions of the supervisor.
#[derive(Default)]
pub(super) struct Sessions {
    limits: SessionLimits,
    open: RefCell<BTreeMap<SessionKey, mpsc::Sender<ToKeeper>>>,
}

impl Sessions {
    #[cfg(test)]
    pub(super) fn with_limits(limits: SessionLimits) -> Self {
        Self { limits, open: RefCell::default() }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// The connection has ended, and with it its sessions: each ends once its last command has.
    pub(super) fn end_connection(&self, connection: u64) {
        self.open.borrow_mut().retain(|key, _| key.owner != Owner::Connection(connection));
    }
}

/// Queues a command in its session, which is begun if it is not there.
///
/// # Errors
/// There are too many sessions, or too many commands wait in this one.
pub(super) fn submit(
    supervisor: &Rc<Supervisor>,
    key: &SessionKey,
    environment: &[KeyVariable],
    turn: Turn,
) -> Result<(), Refused> {
    let sessions = &supervisor.sessions;
    let limits = sessions.limits;
    let mut open = sessions.open.borrow_mut();
    if !open.contains_key(key) {
        if open.len() >= limits.sessions_max {
            let max = limits.sessions_max;
            return Err(too_many(&format!("{max} sessions are open; end one with `exit`")));
        }
        let (sender, turns) = mpsc::channel(limits.queue_max);
        open.insert(key.clone(), sender);
        keeper::spawn(supervisor, key.clone(), environment.to_vec(), turns);
    }
    let Some(sender) = open.get(key) else { return Ok(()) };
    let turn = ToKeeper::Turn(Box::new(turn), AtWork::new(supervisor));
    sender.try_send(turn).map_err(|_| {
        let max = limits.queue_max;
        too_many(&format!("{max} commands wait in the session {} already", key.name))
    })
}

fn too_many(message: &str) -> Refused {
    Refused {
        phase: Phase::Spawn,
        reason: RefusalReason::TooMany,
        message: message.to_owned(),
        started: Started::No,
    }
}

#[cfg(test)]
mod tests;
