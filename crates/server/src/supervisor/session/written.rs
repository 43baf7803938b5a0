//! Sessions as they are written down for an upgrade in place, and as they go on in the next program: the same
//! shells, with all that their commands have set.

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use afar_core::policy::KeyVariable;
use afar_proto::message::SessionName;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::driver::Driver;
use super::shell::Shell;
use super::{SessionKey, Sessions, ToKeeper, keeper};
use crate::supervisor::Supervisor;

/// A session whose shell is at work on nothing. Descriptors are named by their numbers, which they keep.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct WrittenSession {
    pub(super) key: SessionKey,
    pub(super) environment: Vec<KeyVariable>,
    /// A shell has ended, which no command was told yet.
    pub(super) lost: bool,
    /// For how long there was no command.
    pub(super) idle: Duration,
    pub(super) shell: Option<WrittenShell>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct WrittenShell {
    pub(super) pid: i32,
    pub(super) started_ticks: u64,
    pub(super) pidfd: RawFd,
    pub(super) script: RawFd,
    pub(super) answers: RawFd,
    pub(super) answers_childs: RawFd,
    pub(super) driver: Driver,
    pub(super) number: u64,
    pub(super) note: Option<String>,
}

/// Sessions that stand still for as long as this is there.
pub(in crate::supervisor) struct StandStill {
    written: Vec<WrittenSession>,
    _until: Vec<oneshot::Sender<()>>,
}

impl StandStill {
    pub(in crate::supervisor) fn written(&self) -> &[WrittenSession] {
        &self.written
    }
}

impl Sessions {
    /// Has every session stand still; to be called when there is no command in any. One that ends in this
    /// moment is not among them.
    pub(in crate::supervisor) async fn stand_still(&self) -> StandStill {
        // All are asked before the first answer is waited for: then no command comes before that.
        let asked: Vec<_> = self.open.borrow().values().filter_map(ask).collect();
        let (mut written, mut until) = (Vec::new(), Vec::new());
        for (answer, hold) in asked {
            if let Ok(session) = answer.await {
                written.push(session);
                until.push(hold);
            }
        }
        StandStill { written, _until: until }
    }
}

type Standing = (oneshot::Receiver<WrittenSession>, oneshot::Sender<()>);

fn ask(keeper: &mpsc::Sender<ToKeeper>) -> Option<Standing> {
    let (reply, answer) = oneshot::channel();
    let (hold, held) = oneshot::channel();
    keeper.try_send(ToKeeper::WriteDown(reply, held)).ok()?;
    Some((answer, hold))
}

impl WrittenSession {
    /// The descriptors that it needs.
    pub(in crate::supervisor) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let shell = self.shell.iter();
        shell.flat_map(|shell| [shell.pidfd, shell.script, shell.answers, shell.answers_childs])
    }

    /// Goes on with it: to be called once, in the program that has these descriptors. A session whose shell
    /// can't be gone on with has lost it, and its next command is told so.
    ///
    /// # Errors
    /// The session's name, and why its shell is lost.
    pub(in crate::supervisor) fn go_on(
        mut self,
        supervisor: &Rc<Supervisor>,
    ) -> Result<(), (SessionName, io::Error)> {
        let name = self.key.name.clone();
        let (shell, lost) = match self.shell.take().map(Shell::go_on).transpose() {
            Ok(shell) => (shell, Ok(())),
            Err(error) => {
                self.lost = true;
                (None, Err((name, error)))
            }
        };
        let (sender, turns) = mpsc::channel(supervisor.sessions.limits.queue_max);
        supervisor.sessions.open.borrow_mut().insert(self.key.clone(), sender);
        keeper::go_on(supervisor, self, shell, turns);
        lost
    }
}
