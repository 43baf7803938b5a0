//! The task of one session: owns its shell, and gives it one command after the other.

use std::future::pending;
use std::io;
use std::rc::Rc;

use afar_core::policy::KeyVariable;
use afar_proto::message::{Refused, SessionName};
use afar_proto::outcome::{End, Phase, RefusalReason, Started};
use afar_sys::child::Ended;
use afar_sys::process_tree::CommandRoot;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::driver::{CpuTime, Tried, Variable};
use super::shell::{Asked, Shell};
use super::written::WrittenSession;
use super::{Owner, SessionKey, ToKeeper, Turn, TurnEnd, TurnStarted};
use crate::supervisor::job::end_of;
use crate::supervisor::request::session_environment;
use crate::supervisor::{AtWork, OpenSession, Stopping, Supervisor};

/// The task's state.
struct Keeper {
    supervisor: Rc<Supervisor>,
    key: SessionKey,
    environment: Vec<KeyVariable>,
    turns: mpsc::Receiver<ToKeeper>,
    /// `None` before the first command, and after the shell's end.
    shell: Option<Shell>,
    /// The shell has ended, which no command was told yet.
    lost: bool,
    idle_since: Instant,
    /// Keeps the supervisor from ending for idleness.
    _open: OpenSession,
}

/// Starts the task of a session that was entered among the open ones.
pub(super) fn spawn(
    supervisor: &Rc<Supervisor>,
    key: SessionKey,
    environment: Vec<KeyVariable>,
    turns: mpsc::Receiver<ToKeeper>,
) {
    let keeper = Keeper {
        supervisor: Rc::clone(supervisor),
        key,
        environment,
        turns,
        shell: None,
        lost: false,
        idle_since: Instant::now(),
        _open: OpenSession::new(supervisor),
    };
    tokio::task::spawn_local(keeper.run());
}

/// Starts the task of a session that was there in the program before this one.
pub(super) fn go_on(
    supervisor: &Rc<Supervisor>,
    written: WrittenSession,
    shell: Option<Shell>,
    turns: mpsc::Receiver<ToKeeper>,
) {
    let WrittenSession { key, environment, lost, idle, .. } = written;
    let now = Instant::now();
    let keeper = Keeper {
        supervisor: Rc::clone(supervisor),
        key,
        environment,
        turns,
        lost,
        shell,
        idle_since: now.checked_sub(idle).unwrap_or(now),
        _open: OpenSession::new(supervisor),
    };
    tokio::task::spawn_local(keeper.run());
}

/// What the keeper waits for between commands.
enum Next {
    Turn(Box<Turn>, AtWork),
    WriteDown(oneshot::Sender<WrittenSession>, oneshot::Receiver<()>),
    /// Nobody can send another one, or the supervisor ends.
    End,
    /// The shell has ended by itself.
    Gone,
    Idle,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            match self.next().await {
                Next::WriteDown(reply, stand_still) => {
                    let _ = reply.send(self.write_down());
                    // It ends with an error, whether the upgrade was given up or somebody is gone.
                    let _ = stand_still.await;
                }
                Next::Turn(turn, _at_work) => {
                    self.serve(*turn).await;
                    self.idle_since = Instant::now();
                    if self.shell.is_none() && !self.lost && self.turns.is_empty() {
                        // Nothing is left that a later command could miss.
                        self.retire();
                    }
                }
                Next::Gone => {
                    self.shell = None;
                    self.lost = true;
                }
                Next::Idle => self.retire(),
                Next::End => break,
            }
        }
        if let Some(shell) = self.shell {
            shell.end().await;
        }
    }

    /// A session that retires is found by no new command; what waits in it is still run.
    fn retire(&mut self) {
        self.supervisor.sessions.open.borrow_mut().remove(&self.key);
        self.turns.close();
    }

    async fn next(&mut self) -> Next {
        let limits = self.supervisor.sessions.limits;
        let idle_at = match self.key.owner {
            Owner::Grant { .. } => self.idle_since.checked_add(limits.idle_max),
            // It ends with its connection, and not before.
            Owner::Connection(_) => None,
        };
        let idle_at = idle_at.filter(|_| !self.turns.is_closed());
        let idle = async {
            match idle_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => pending().await,
            }
        };
        let gone = async {
            match &mut self.shell {
                Some(shell) => shell.gone().await,
                None => pending().await,
            }
        };
        let mut stopping = self.supervisor.stopping.subscribe();
        tokio::select! {
            // First: a command must not be given to a shell that is known to be gone.
            biased;
            _ = stopping.wait_for(|stopping| *stopping == Stopping::ForGood) => Next::End,
            () = gone => Next::Gone,
            told = self.turns.recv() => match told {
                Some(ToKeeper::Turn(turn, at_work)) => Next::Turn(turn, at_work),
                Some(ToKeeper::WriteDown(reply, until)) => Next::WriteDown(reply, until),
                None => Next::End,
            },
            () = idle => Next::Idle,
        }
    }

    /// What another program has to know to go on with it.
    fn write_down(&self) -> WrittenSession {
        WrittenSession {
            key: self.key.clone(),
            environment: self.environment.clone(),
            lost: self.lost,
            idle: self.idle_since.elapsed(),
            shell: self.shell.as_ref().map(Shell::write_down),
        }
    }

    /// The shell, started if there is none.
    fn shell(&mut self) -> Result<&mut Shell, Refused> {
        if self.shell.is_none() {
            let user = &self.supervisor.user;
            let environment = session_environment(user, &self.environment)?;
            self.shell = Some(Shell::start(&self.supervisor, environment)?);
        }
        // Just made, if it was not there.
        self.shell.as_mut().ok_or_else(|| no_resources(&io::Error::other("no shell")))
    }

    /// Whether the client's variables can be set in the shell that is there, of which nothing is
    /// changed. The error is the refusal, or `None` once the command was cancelled.
    ///
    /// A shell that does not answer (a trap of DEBUG can hang it) is killed: nothing else would get
    /// the session out of there.
    async fn try_exports(
        &mut self,
        asked: &[Variable],
        started: &mut oneshot::Sender<Result<TurnStarted, Refused>>,
    ) -> Result<(), Option<Refused>> {
        let trial_max = self.supervisor.sessions.limits.trial_max;
        let Some(shell) = self.shell.as_mut().filter(|_| !asked.is_empty()) else { return Ok(()) };
        let tried = tokio::select! {
            tried = shell.try_exports(asked) => Some(tried),
            () = started.closed() => None,
            () = tokio::time::sleep(trial_max) => Some(Err(io::ErrorKind::TimedOut.into())),
        };
        let refused = match tried {
            Some(Ok(Asked::Answered(Tried::Settable))) => return Ok(()),
            Some(Ok(Asked::Answered(Tried::NotSettable(name)))) => {
                return Err(Some(not_settable(&self.key.name, &name)));
            }
            Some(Ok(Asked::Ended(_))) => {
                Some(no_resources(&io::Error::other("it ended when a variable was to be set")))
            }
            Some(Err(error)) => Some(no_resources(&error)),
            None => None,
        };
        let _ = shell.child().signal(afar_sys::signals::Signal::KILL);
        if let Some(shell) = self.shell.take() {
            shell.end().await;
        }
        self.lost = true;
        Err(refused)
    }

    async fn serve(&mut self, mut turn: Turn) {
        let (started, unanswered) = oneshot::channel();
        let mut started = std::mem::replace(&mut turn.started, started);
        drop(unanswered);
        if started.is_closed() {
            // It has been cancelled while it waited.
            return;
        }
        let tried = match self.shell() {
            Ok(_) => self.try_exports(&turn.exports.asked, &mut started).await,
            Err(refused) => Err(Some(refused)),
        };
        let shell = match (tried, &mut self.shell) {
            (Ok(()), Some(shell)) => shell,
            (Err(Some(refused)), _) => {
                let _ = started.send(Err(refused));
                return;
            }
            // It has been cancelled.
            _ => return,
        };
        let root = shell.child().tree_root();
        let root = CommandRoot::new(root, shell.signal_fd.clone(), turn.mark.clone());
        let pid = u32::try_from(shell.child().pid()).unwrap_or(0);
        let told = started.send(Ok(TurnStarted { root, pid, note: shell.note.take() }));
        if told.is_err() {
            return;
        }
        let evaluated = shell.evaluate(&turn).await;
        let tree = shell.child().tree_root();
        let (end, cpu, ended) = match evaluated {
            Ok(Asked::Answered((code, cpu))) => (End::Exited { code }, cpu, false),
            Ok(Asked::Ended(ended)) => (shell_end(ended.as_ref()), cpu_of(shell, ended), true),
            // The shell can't be listened to any more, so nothing can be known of it.
            Err(_) => {
                let _ = shell.child().signal_group(afar_sys::signals::Signal::KILL);
                (End::Unknown, CpuTime::default(), true)
            }
        };
        if ended {
            self.shell = None;
        }
        let turn_end = TurnEnd {
            end,
            user: cpu.user,
            system: cpu.system,
            restarted: std::mem::take(&mut self.lost) || ended,
            shell_ended: ended.then_some(tree),
        };
        // The ends of the pipes go before the news, so that their end is seen with it.
        let Turn { streams, ended, .. } = turn;
        drop(streams);
        let _ = ended.send(turn_end);
    }
}

/// The name is one of a shell's variable, so there is nothing in it that must be escaped.
fn not_settable(session: &SessionName, name: &str) -> Refused {
    Refused {
        phase: Phase::Spawn,
        reason: RefusalReason::Invalid,
        message: format!(
            "the variable {name} can't be set in the session {session} (is it read-only there?)"
        ),
        started: Started::No,
    }
}

fn shell_end(ended: Option<&Ended>) -> End {
    ended.map_or(End::Unknown, |ended| end_of(&ended.status))
}

/// What the shell's last command took, from the account of its whole life.
fn cpu_of(shell: &Shell, ended: Option<Ended>) -> CpuTime {
    let total = ended.map_or(CpuTime::default(), |ended| CpuTime {
        user: ended.usage.user,
        system: ended.usage.system,
    });
    shell.driver.spent(total)
}

/// Nothing was started for want of something.
pub(super) fn no_resources(error: &io::Error) -> Refused {
    Refused {
        phase: Phase::Spawn,
        reason: RefusalReason::NoResources,
        message: format!("the session's shell could not be started: {error}"),
        started: Started::No,
    }
}
