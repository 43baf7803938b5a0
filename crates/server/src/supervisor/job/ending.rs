//! Ends a job's whole tree: TERM, a grace, KILL.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use afar_sys::child::Child;
use afar_sys::process_tree::{TreeRoot, find_tree, kill_tree};
use afar_sys::signals::Signal;
use tokio::task::JoinHandle;
use tokio::time::Instant;

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

/// The clock and the steps of a job's end. Reading `/proc` takes milliseconds and blocks, so every
/// step runs on a thread for blocking work.
#[derive(Debug)]
pub(super) struct Ending {
    root: TreeRoot,
    mark: Vec<u8>,
    timeout_at: Option<Instant>,
    grace: Duration,
    cause: Option<Cause>,
    kill_at: Option<Instant>,
    state: State,
}

impl Ending {
    pub(super) fn new(
        child: &Child,
        mark: Vec<u8>,
        timeout_at: Option<Instant>,
        grace: Duration,
    ) -> Self {
        let root = child.tree_root();
        Self { root, mark, timeout_at, grace, cause: None, kill_at: None, state: State::Idle }
    }

    /// The process was reaped: from here on its number may be another's.
    pub(super) fn process_ended(&mut self, child: &Child) {
        self.root = child.tree_root();
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
        let (root, mark) = (self.root, self.mark.clone());
        self.state = State::Terminating(tokio::task::spawn_blocking(move || {
            // What can't be read or signalled now is met again by the KILL.
            let _ = kill_tree(&root, &mark, Signal::TERM);
            // A stopped process acts on TERM only when it is continued.
            let _ = kill_tree(&root, &mark, Signal::CONT);
        }));
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
        let (root, mark) = (self.root, self.mark.clone());
        tokio::task::spawn_blocking(move || {
            kill_tree(&root, &mark, Signal::KILL).is_ok_and(|report| report.settled)
        })
    }

    fn look(&self) -> JoinHandle<bool> {
        let (root, mark) = (self.root, self.mark.clone());
        tokio::task::spawn_blocking(move || {
            find_tree(&root, &mark).map_or(true, |found| !found.is_empty())
        })
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
        let mut ending = Ending::new(&child, b"A=b".to_vec(), Some(limit), GRACE);
        assert_eq!(ending.due(false), Some(limit));
        child.wait().unwrap();
        ending.process_ended(&child);
        assert_eq!(ending.due(true), None);
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(!ending.poll(&mut context, limit, true));
        assert!(ending.is_over() && ending.cause().is_none());
    }
}
