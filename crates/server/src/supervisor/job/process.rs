//! What executes a job: a process of its own, or a command in the shell of a session.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use afar_proto::message::Refused;
use afar_proto::outcome::End;
use afar_sys::cgroup::{Group, GroupIo};
use afar_sys::child::{Child, Ended};
use afar_sys::process_tree::CommandRoot;
use afar_sys::signals::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::end_of;
use crate::supervisor::session::{TurnEnd, TurnStarted};

#[derive(Debug)]
pub(super) enum Process {
    Own {
        child: Child,
        watch: ExitWatch,
        /// The job's cgroup, if it has one.
        group: Option<Arc<Group>>,
    },
    InSession(Command),
    /// It waits for its turn in a session.
    Waiting(Turn),
    /// Its turn never came.
    NotStarted(Box<Refused>),
    /// It has ended long ago.
    Over,
}

/// A turn that was asked for.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) started: oneshot::Receiver<Result<TurnStarted, Refused>>,
    pub(super) ended: oneshot::Receiver<TurnEnd>,
}

/// How the end of a process is noticed.
#[derive(Debug)]
pub(super) enum ExitWatch {
    /// Its pidfd becomes readable.
    Pidfd(AsyncFd<OwnedFd>),
    /// For want of a descriptor it can't be waited for, only looked at now and then.
    Impossible(io::Error),
}

/// How often a process is looked at that can't be waited for. It is being killed.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl ExitWatch {
    pub(super) fn of(child: &Child) -> Self {
        let watched = child
            .pidfd()
            .try_clone_to_owned()
            .and_then(|pidfd| afar_sys::readiness::watch(pidfd, Interest::READABLE));
        watched.map_or_else(Self::Impossible, Self::Pidfd)
    }

    /// Why the process can't be watched, if so.
    pub(super) fn why_not(&self) -> Option<String> {
        match self {
            Self::Pidfd(_) => None,
            Self::Impossible(error) => Some(error.to_string()),
        }
    }
}

/// A command that the shell of a session has been given.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) root: CommandRoot,
    ended: oneshot::Receiver<TurnEnd>,
    /// Whether it has ended: then a signal would meet the shell in another one.
    over: Arc<AtomicBool>,
    /// Whether the shell has ended.
    pub(super) shell_over: bool,
}

/// How it ended, and at what cost.
#[derive(Debug)]
pub(super) struct ProcessEnd {
    pub(super) end: End,
    pub(super) user: Duration,
    pub(super) system: Duration,
    pub(super) max_rss_bytes: u64,
    /// What was read from storage and written to it; `None` where nobody counts that.
    pub(super) io: Option<GroupIo>,
    pub(super) session_restarted: bool,
}

impl Process {
    pub(super) fn in_session(root: CommandRoot, ended: oneshot::Receiver<TurnEnd>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        Self::InSession(Command { root, ended, over, shell_over: false })
    }

    /// Sends a signal: to the process group, or to what the command has started. A process that has
    /// ended in this moment is no error of whoever signals it.
    pub(super) fn signal(&self, signal: Signal) {
        match self {
            Self::Own { child, .. } => {
                let _ = child.signal_group(signal);
            }
            Self::InSession(command) => command.signal(signal),
            Self::Waiting(_) | Self::NotStarted(_) | Self::Over => {}
        }
    }

    /// A moment just before its start, in clock ticks since boot; 0 if it has no process of its own.
    pub(super) fn started_ticks(&self) -> u64 {
        match self {
            Self::Own { child, .. } => child.tree_root().started_ticks(),
            _ => 0,
        }
    }

    /// How often to look, where the end of the process tells nobody.
    pub(super) fn look_interval(&self) -> Option<Duration> {
        match self {
            Self::Own { watch: ExitWatch::Impossible(_), .. } => Some(LOOK_INTERVAL),
            _ => None,
        }
    }

    pub(super) fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<ProcessEnd> {
        match self {
            Self::Own { child, watch, group } => poll_child(child, watch, context).map(|ended| {
                let group = group.as_deref();
                let for_memory = group.and_then(Group::ended_for_memory);
                // Of all of the job, and not only of what somebody has waited for.
                let io = group.and_then(Group::io);
                ProcessEnd::of(ended).with_memory_counted(for_memory).with_io(io)
            }),
            Self::InSession(command) => command.poll_ended(context),
            Self::Waiting(_) | Self::NotStarted(_) | Self::Over => Poll::Pending,
        }
    }
}

/// `None`: the status can't be obtained, and is never made up.
fn poll_child(
    child: &mut Child,
    watch: &ExitWatch,
    context: &mut Context<'_>,
) -> Poll<Option<Ended>> {
    loop {
        let guard = match watch {
            ExitWatch::Pidfd(pidfd) => match ready!(pidfd.poll_read_ready(context)) {
                Ok(guard) => Some(guard),
                Err(_) => return Poll::Ready(None),
            },
            ExitWatch::Impossible(_) => None,
        };
        match (child.try_wait(), guard) {
            (Ok(None), Some(mut guard)) => guard.clear_ready(),
            (Ok(None), None) => return Poll::Pending,
            (ended, _) => return Poll::Ready(ended.ok().flatten()),
        }
    }
}

impl Command {
    /// What the command has started gets the signal; the shell itself gets it when there is nothing
    /// of the kind, because then it is the shell that is at work. Reading `/proc` blocks, so this
    /// is done by another thread.
    fn signal(&self, signal: Signal) {
        let (root, over) = (self.root.clone(), Arc::clone(&self.over));
        tokio::task::spawn_blocking(move || {
            let nobody = root.kill(signal).is_ok_and(|report| report.signalled == 0);
            if nobody && !over.load(Ordering::Relaxed) {
                let _ = root.signal_shell(signal);
            }
        });
    }

    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<ProcessEnd> {
        let ended = ready!(Pin::new(&mut self.ended).poll(context));
        self.over.store(true, Ordering::Relaxed);
        // The keeper always tells, unless it is dropped with the whole runtime.
        let Ok(ended) = ended else { return Poll::Ready(ProcessEnd::of(None)) };
        if let Some(root) = ended.shell_ended {
            self.root.shell_ended(root);
            self.shell_over = true;
        }
        Poll::Ready(ProcessEnd {
            end: ended.end,
            user: ended.user,
            system: ended.system,
            max_rss_bytes: 0,
            io: None,
            session_restarted: ended.restarted,
        })
    }
}

impl ProcessEnd {
    /// Nobody can tell how it ended, or whether it has.
    pub(super) fn unknown() -> Self {
        Self::of(None)
    }

    fn of(ended: Option<Ended>) -> Self {
        let usage = ended.as_ref().map(|ended| ended.usage);
        Self {
            end: ended.map_or(End::Unknown, |ended| end_of(&ended.status)),
            user: usage.map_or(Duration::ZERO, |usage| usage.user),
            system: usage.map_or(Duration::ZERO, |usage| usage.system),
            max_rss_bytes: usage.map_or(0, |usage| usage.max_rss_bytes),
            io: usage.filter(|_| storage_is_counted()).map(|usage| GroupIo {
                read_bytes: usage.read_bytes,
                written_bytes: usage.written_bytes,
            }),
            session_restarted: false,
        }
    }

    fn with_io(self, io: Option<GroupIo>) -> Self {
        Self { io: io.or(self.io), ..self }
    }

    /// What the job's cgroup knows better: whether a KILL was the kernel's, for want of memory. It has
    /// ended the whole group then.
    fn with_memory_counted(mut self, ended_for_memory: Option<u64>) -> Self {
        let kill = Signal::KILL.number();
        let killed =
            matches!(&self.end, End::Signaled { signal, .. } if i32::from(*signal) == kill);
        if killed && ended_for_memory.is_some_and(|count| count > 0) {
            self.end = End::Oom;
        }
        self
    }
}

/// Whether this kernel accounts for what a process reads from storage; if not, it tells zeros.
fn storage_is_counted() -> bool {
    static COUNTED: LazyLock<bool> =
        LazyLock::new(|| std::fs::exists("/proc/self/io").unwrap_or(false));
    *COUNTED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signaled(signal: Signal) -> End {
        let status = afar_sys::child::ExitStatus::Signaled { signal, core: false };
        end_of(&status)
    }

    #[test]
    fn fault_57_a_kill_is_for_want_of_memory_only_where_the_kernel_has_counted_one() {
        let counted = |end: End, count: Option<u64>| {
            ProcessEnd { end, ..ProcessEnd::of(None) }.with_memory_counted(count).end
        };
        assert_eq!(counted(signaled(Signal::KILL), Some(1)), End::Oom);
        assert_eq!(counted(signaled(Signal::KILL), Some(0)), signaled(Signal::KILL));
        assert_eq!(counted(signaled(Signal::KILL), None), signaled(Signal::KILL));
        // A child of it was ended, and it has ended itself since: that is its own end.
        assert_eq!(counted(signaled(Signal::TERM), Some(1)), signaled(Signal::TERM));
        assert_eq!(counted(End::Exited { code: 1 }, Some(1)), End::Exited { code: 1 });
    }
}
