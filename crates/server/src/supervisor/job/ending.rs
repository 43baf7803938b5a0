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

/// Time from TERM to KILL, unless the request names another.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Time until KILL is sent again where it could not be sent to all of the tree.
const KILL_RETRY: Duration = Duration::from_secs(1);

/// Why a job is ended; the first cause stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its time limit has passed.
    Timeout,
    /// Its client is gone, or wants no more of it.
    Cancelled,
    /// Its end could not be noticed.
    Lost,
}

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
    /// A process of the job's own, and what it has started.
    Own(Tree),
    /// A command in a shell; the shell is ended with it as long as it is at work on it.
    InSession { command: CommandRoot, with_shell: bool },
}

impl Root {
    /// Asks everything to end. What can't be read or signalled now is met again by the KILL. A
    /// stopped process acts on TERM only when it is continued.
    fn terminate(&self) {
        match self {
            Self::Own(tree) => {
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
        }
    }

    /// Kills everything; whether it reached all that it may.
    fn kill(&self) -> bool {
        match self {
            Self::Own(tree) => tree.kill(Signal::KILL).is_ok_and(|report| report.settled),
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
        }
    }

    /// Whether anything is left.
    fn is_left(&self) -> bool {
        match self {
            Self::Own(tree) => tree.is_left(),
            Self::InSession { command, .. } => {
                command.find().map_or(true, |found| !found.is_empty())
            }
        }
    }
}

/// The clock and the steps of a job's end. Reading `/proc` takes milliseconds and blocks, so every
/// step runs on a thread for blocking work.
#[derive(Debug)]
pub(super) struct Ending {
    root: Root,
    timeout_at: Option<Instant>,
    grace: Duration,
    cause: Option<Cause>,
    kill_at: Option<Instant>,
    state: State,
}

impl Ending {
    pub(super) fn new(tree: Tree, timeout_at: Option<Instant>, grace: Duration) -> Self {
        Self::of(Root::Own(tree), timeout_at, grace)
    }

    /// The end of a command in a session's shell.
    pub(super) fn in_session(
        command: CommandRoot,
        timeout_at: Option<Instant>,
        grace: Duration,
    ) -> Self {
        Self::of(Root::InSession { command, with_shell: true }, timeout_at, grace)
    }

    fn of(root: Root, timeout_at: Option<Instant>, grace: Duration) -> Self {
        Self { root, timeout_at, grace, cause: None, kill_at: None, state: State::Idle }
    }

    /// The process was reaped: from here on its number may be another's. A shell that goes on is
    /// at work on something else.
    pub(super) fn process_ended(&mut self, process: &Process) {
        match (&mut self.root, process) {
            (Root::Own(tree), Process::Own { child, .. }) => tree.reaped(child.tree_root()),
            (Root::InSession { command, with_shell }, Process::InSession(ended)) => {
                *command = ended.root.clone();
                *with_shell = false;
            }
            _ => {}
        }
    }

    pub(super) fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Begins to end the tree, unless that has begun already.
    pub(super) fn begin(&mut self, cause: Cause) {
        if self.cause.is_some() {
            return;
        }
        self.cause = Some(cause);
        self.kill_at = Some(Instant::now() + self.grace);
        let root = self.root.clone();
        self.state = State::Terminating(tokio::task::spawn_blocking(move || root.terminate()));
    }

    /// As [`Ending::begin`], without a grace.
    pub(super) fn begin_at_once(&mut self, cause: Cause) {
        self.grace = Duration::ZERO;
        self.begin(cause);
    }

    /// Takes every step that is due; tells whether there was one.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, now: Instant, exited: bool) -> bool {
        if self.cause.is_none() && !exited && self.timeout_at.is_some_and(|at| now >= at) {
            self.begin(Cause::Timeout);
            return true;
        }
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
    pub(super) fn due(&self, exited: bool) -> Option<Instant> {
        match self.state {
            State::Idle => self.timeout_at.filter(|_| !exited),
            State::Waiting { .. } => self.kill_at,
            _ => None,
        }
    }

    /// Whether nothing is left to be ended: always, unless it was begun. A normal exit ends nothing
    /// that it left behind.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Idle | State::Over)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use afar_sys::child::Session;
    use afar_sys::spawn::{SpawnRequest, Stdio, spawn};

    use super::*;

    #[tokio::test]
    async fn a_time_limit_that_passes_after_the_exit_is_due_to_nobody() {
        // The output of an ended job may still be on its way then; a time in the past that is due
        // would keep the supervisor's only thread busy for as long.
        let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        let (stdin, stdout, stderr) = (null.as_fd(), null.as_fd(), null.as_fd());
        let mut child = spawn(&SpawnRequest {
            program: c"/bin/true",
            argv: &[c"true".to_owned()],
            env: &[],
            cwd: None,
            stdio: Stdio::Descriptors { stdin, stdout, stderr },
            session: Session::New,
            open_files_soft: None,
        })
        .unwrap();
        let limit = Instant::now();
        let tree = Tree::new(child.tree_root(), b"A=b", None);
        let mut ending = Ending::new(tree, Some(limit), GRACE);
        assert_eq!(ending.due(false), Some(limit));
        child.wait().unwrap();
        let watch = crate::supervisor::job::process::ExitWatch::of(&child);
        ending.process_ended(&Process::Own { child, watch, group: None });
        assert_eq!(ending.due(true), None);
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(!ending.poll(&mut context, limit, true));
        assert!(ending.is_over() && ending.cause().is_none());
    }
}
