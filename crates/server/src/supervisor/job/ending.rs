//! Ends a job's whole tree: TERM, a grace, KILL.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use afar_sys::process_tree::{CommandRoot, Tree};
use afar_sys::signals::Signal;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::process::Process;
use crate::limits::UNKILLABLE_PATIENCE;

/// Time from TERM to KILL, unless the request names another.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Time until KILL is sent again where it could not be sent to all of the tree.
const KILL_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum State {
    /// Nothing is to be ended.
    Idle,
    /// TERM is being sent to the tree.
    Terminating(JoinHandle<()>),
    /// The grace runs. `looked` once it was seen that others outlive the ended process.
    Waiting {
        looked: bool,
    },
    /// The process has ended: is anything of its tree left? True if so.
    Looking(JoinHandle<bool>),
    /// KILL is being sent to the tree. True if it reached everything that it may.
    Killing(JoinHandle<bool>),
    Over,
}

/// Where the search for what is to be ended begins.
#[derive(Clone, Debug)]
enum Root {
    /// A process of the job's own, and what it has started. One on a terminal is hung up first:
    /// shells at a prompt mind no TERM.
    Own { tree: Tree, hangs_up: bool },
    /// Nothing: it has not started, or has ended long ago.
    Nothing,
    /// A command in a shell; the shell is ended with it as long as it is at work on it.
    InSession { command: CommandRoot, with_shell: bool },
}

impl Root {
    /// Asks everything to end. What can't be read or signalled now is met again by the KILL. A
    /// stopped process acts on TERM only when it is continued.
    fn terminate(&self) {
        match self {
            Self::Own { tree, hangs_up } => {
                if *hangs_up {
                    let _ = tree.kill(Signal::HUP);
                }
                let _ = tree.kill(Signal::TERM);
                let _ = tree.kill(Signal::CONT);
            }
            Self::InSession { command, with_shell } => {
                // The shell first stands still: it must not go on to its script's next line when
                // the program of this one ends.
                if *with_shell {
                    let _ = command.signal_shell(Signal::STOP);
                }
                let _ = command.kill(Signal::TERM);
                let _ = command.kill(Signal::CONT);
                if *with_shell {
                    let _ = command.signal_shell(Signal::TERM);
                    let _ = command.signal_shell(Signal::CONT);
                }
            }
            Self::Nothing => {}
        }
    }

    /// Kills everything; whether it reached all that it may.
    fn kill(&self) -> bool {
        match self {
            Self::Own { tree, .. } => tree.kill(Signal::KILL).is_ok_and(|report| report.settled),
            Self::InSession { command, with_shell } => {
                if *with_shell {
                    let _ = command.signal_shell(Signal::STOP);
                }
                let settled = command.kill(Signal::KILL).is_ok_and(|report| report.settled);
                if *with_shell {
                    let _ = command.signal_shell(Signal::KILL);
                }
                settled
            }
            Self::Nothing => true,
        }
    }

    /// Whether anything is left.
    fn is_left(&self) -> bool {
        match self {
            Self::Own { tree, .. } => tree.is_left(),
            Self::InSession { command, .. } => {
                command.find().map_or(true, |found| !found.is_empty())
            }
            Self::Nothing => false,
        }
    }
}

/// The steps of a job's end. Reading `/proc` takes milliseconds and blocks, so every
/// step runs on a thread for blocking work.
#[derive(Debug)]
pub(super) struct Ending {
    root: Root,
    grace: Duration,
    kill_at: Option<Instant>,
    /// When KILL was first sent.
    killed_at: Option<Instant>,
    state: State,
}

impl Ending {
    pub(super) fn new(tree: Tree, hangs_up: bool, grace: Duration) -> Self {
        Self::of(Root::Own { tree, hangs_up }, grace)
    }

    /// The end of a command in a session's shell.
    pub(super) fn in_session(command: CommandRoot, grace: Duration) -> Self {
        Self::of(Root::InSession { command, with_shell: true }, grace)
    }

    /// Nothing is to be ended, yet or any more.
    pub(super) fn of_nothing(grace: Duration) -> Self {
        Self::of(Root::Nothing, grace)
    }

    fn of(root: Root, grace: Duration) -> Self {
        Self { root, grace, kill_at: None, killed_at: None, state: State::Idle }
    }

    /// Whether nothing was begun.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// What is to be ended, of a process of the job's own.
    pub(super) fn tree(&self) -> Option<&Tree> {
        match &self.root {
            Root::Own { tree, .. } => Some(tree),
            Root::Nothing | Root::InSession { .. } => None,
        }
    }

    pub(super) fn grace(&self) -> Duration {
        self.grace
    }

    /// The process was reaped: from here on its number may be another's. A shell that goes on is
    /// at work on something else.
    pub(super) fn process_ended(&mut self, process: &Process) {
        match (&mut self.root, process) {
            (Root::Own { tree, .. }, Process::Own { child, .. }) => tree.reaped(child.tree_root()),
            (Root::InSession { command, with_shell }, Process::InSession(ended)) => {
                *command = ended.root.clone();
                *with_shell = false;
            }
            _ => {}
        }
    }

    /// Begins to end the tree, unless that has begun already.
    pub(super) fn begin(&mut self) {
        if !matches!(self.state, State::Idle) {
            return;
        }
        self.kill_at = Some(Instant::now() + self.grace);
        let root = self.root.clone();
        self.state = State::Terminating(tokio::task::spawn_blocking(move || root.terminate()));
    }

    /// As [`Ending::begin`], without a grace.
    pub(super) fn begin_at_once(&mut self) {
        self.grace = Duration::ZERO;
        self.begin();
    }

    /// The grace is over now, if it runs.
    pub(super) fn hasten(&mut self) {
        if self.kill_at.is_some() {
            self.kill_at = Some(Instant::now());
        }
    }

    /// Takes every step that is due; tells whether there was one.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, now: Instant, exited: bool) -> bool {
        let kill_due = self.kill_at.is_some_and(|at| now >= at);
        let next = match &mut self.state {
            State::Terminating(step) => match Pin::new(step).poll(context) {
                Poll::Ready(_) => Some(State::Waiting { looked: false }),
                Poll::Pending => None,
            },
            State::Waiting { .. } if kill_due => Some(State::Killing(self.kill())),
            State::Waiting { looked: false } if exited => Some(State::Looking(self.look())),
            State::Looking(step) => match Pin::new(step).poll(context) {
                Poll::Ready(Ok(false)) => Some(State::Over),
                Poll::Ready(_) => Some(State::Waiting { looked: true }),
                Poll::Pending => None,
            },
            State::Killing(step) => match Pin::new(step).poll(context) {
                Poll::Ready(Ok(true)) => Some(State::Over),
                // No descriptor for /proc, say: what must die is not given up for that.
                Poll::Ready(_) => {
                    self.kill_at = Some(now + KILL_RETRY);
                    Some(State::Waiting { looked: true })
                }
                Poll::Pending => None,
            },
            State::Idle | State::Waiting { .. } | State::Over => None,
        };
        if let (State::Killing(_), Some(_)) = (&self.state, &next) {
            self.killed_at.get_or_insert(now);
        }
        let stepped = next.is_some();
        if let Some(next) = next {
            self.state = next;
        }
        stepped
    }

    fn kill(&self) -> JoinHandle<bool> {
        let root = self.root.clone();
        tokio::task::spawn_blocking(move || root.kill())
    }

    fn look(&self) -> JoinHandle<bool> {
        let root = self.root.clone();
        tokio::task::spawn_blocking(move || root.is_left())
    }

    /// When a step is due that nothing else wakes the task for.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { .. } => self.kill_at,
            _ => None,
        }
    }

    /// From when on nobody waits for what was killed and is still there.
    pub(super) fn futile_from(&self) -> Option<Instant> {
        Some(self.killed_at? + UNKILLABLE_PATIENCE)
    }

    /// Whether nothing is left to be ended: always, unless it was begun. A normal exit ends nothing
    /// that it left behind.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Idle | State::Over)
    }
}
