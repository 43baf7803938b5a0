//! A job as it is written down for an upgrade in place, and as it goes on in the next program: the same
//! process, the same pipes, the same output.

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use afar_core::job::{JobKey, Machine, SpoolState};
use afar_core::journal::Replay;
use afar_proto::connection::Stream;
use afar_proto::json::base64_bytes;
use afar_proto::message::JobInfo;
use afar_sys::child::Child;
use afar_sys::exec::take_kept;
use afar_sys::process_tree::Tree;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::ending::Ending;
use super::input::Input;
use super::output::{Kind, Output};
use super::process::{ExitWatch, Process};
use super::spooling::Spooling;
use super::{Job, ToJob, micros};
use crate::supervisor::request::MARK_VARIABLE;
use crate::supervisor::{Stay, Supervisor, Why};

/// A job that stands still: what it was up to that moment. Descriptors are named by their numbers, which
/// they keep.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct WrittenJob {
    key: JobKey,
    info: JobInfo,
    machine: Machine,
    /// How long ago its clock began.
    elapsed_us: u64,
    /// From TERM to KILL.
    grace_ms: u64,
    removed: bool,
    /// Whether its last word is in the archive.
    archived: bool,
    /// What the journal said of it then: a journal of this job alone.
    #[serde(default, with = "base64_bytes", skip_serializing_if = "Vec::is_empty")]
    journaled: Vec<u8>,
    /// Up to where its spool has its output, if it has one.
    spool: Option<[u64; 2]>,
    /// `None` iff its process has ended, and only what it has produced is kept.
    process: Option<WrittenProcess>,
    /// Its stdout and stderr.
    outputs: [Option<RawFd>; 2],
    input: WrittenInput,
    /// Its own side of its terminal, if it has one and runs.
    #[serde(default)]
    held: Option<RawFd>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenProcess {
    pid: i32,
    pidfd: RawFd,
    started_ticks: u64,
    /// The random part of its mark, which is the name of its cgroup too.
    mark: String,
    in_cgroup: bool,
}

/// What waits to be written to a job.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct WrittenInput {
    pub(super) pipe: Option<RawFd>,
    #[serde(with = "base64_bytes")]
    pub(super) waiting: Vec<u8>,
    pub(super) ended: bool,
}

impl Job {
    /// Writes it down, if it is at a point from which it can go on in another program: it runs, or it has
    /// ended and nothing is left to be done but to keep its output. `None` while it is being ended, while
    /// the last of its output is waited for, and of a command of a session.
    pub(super) fn write_down(&self) -> Option<Box<WrittenJob>> {
        let process = match &self.process {
            Process::Own { child, watch: ExitWatch::Pidfd(_), group }
                if self.machine.exit().is_none() && self.ending.is_idle() =>
            {
                let tree = self.ending.tree()?;
                let mark =
                    tree.mark().strip_prefix(MARK_VARIABLE.as_bytes())?.strip_prefix(b"=")?;
                Some(WrittenProcess {
                    pid: child.pid(),
                    pidfd: std::os::fd::AsRawFd::as_raw_fd(child),
                    started_ticks: child.tree_root().started_ticks(),
                    mark: std::str::from_utf8(mark).ok()?.to_owned(),
                    in_cgroup: group.is_some(),
                })
            }
            Process::Over if self.stay.is_kept() => None,
            _ => return None,
        };
        let spool = match &self.spool {
            None => None,
            Some(spool) if spool.stands_still() => Some(self.machine.spooled_to()?),
            Some(_) => return None,
        };
        let machine = serde_json::to_value(&self.machine).ok()?;
        Some(Box::new(WrittenJob {
            key: self.key.clone(),
            info: (*self.info).clone(),
            machine: serde_json::from_value(machine).ok()?,
            elapsed_us: micros(self.started.elapsed()),
            grace_ms: micros(self.ending.grace()) / 1000,
            removed: self.removed,
            archived: self.archived,
            journaled: self.journaled.as_ref().map(|said| said.to_file()).unwrap_or_default(),
            spool,
            process,
            outputs: [self.outputs[0].number(), self.outputs[1].number()],
            input: self.input.write_down(),
            held: self.held.as_ref().map(std::os::fd::AsRawFd::as_raw_fd),
        }))
    }
}

impl WrittenJob {
    /// The descriptors that it needs.
    pub(in crate::supervisor) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let pidfd = self.process.as_ref().map(|process| process.pidfd);
        self.outputs.into_iter().chain([self.input.pipe, pidfd, self.held]).flatten()
    }

    /// Goes on with it: to be called once, in the program that has these descriptors.
    ///
    /// # Errors
    /// A descriptor is not there, or its process is not our child.
    pub(in crate::supervisor) fn go_on(
        self,
        supervisor: &Rc<Supervisor>,
    ) -> io::Result<(Box<Job>, UnboundedSender<ToJob>)> {
        let (sender, commands) = unbounded_channel();
        let grace = Duration::from_millis(self.grace_ms);
        let (process, ending) = match self.process {
            Some(process) => process.go_on(supervisor, self.info.terminal, grace)?,
            None => (Process::Over, Ending::of_nothing(grace)),
        };
        let journaled = Replay::read(&self.journaled).ledger.job(&self.key).cloned().map(Box::new);
        let ended = journaled.as_deref();
        let spool = self.spool.map(|from| supervisor.jobs.resume_spool(&self.key, ended, from));
        let spool = spool.transpose()?.flatten();
        let mut machine = self.machine;
        if self.spool.is_some() && spool.is_none() {
            // Without the archive what it has can't be read any more; it is told as a gap.
            machine.spool_is(SpoolState::Failed);
        }
        let why = if matches!(process, Process::Over) { Why::Kept } else { Why::Running };
        let pipe = |number: Option<RawFd>| number.map(take_kept).transpose();
        let kind = if self.info.terminal { Kind::Terminal } else { Kind::Pipe };
        let [stdout, stderr] = self.outputs;
        let now = Instant::now();
        let elapsed = Duration::from_micros(self.elapsed_us);
        let started = now
            .checked_sub(elapsed)
            .ok_or_else(|| io::Error::other("a job that is older than the machine"))?;
        let input = Input::written_down(self.input, self.info.terminal)?;
        let job = Box::new(Job {
            key: self.key,
            input,
            held: pipe(self.held)?,
            info: Box::new(self.info),
            machine,
            process,
            outputs: [
                Output::of(Stream::Stdout, pipe(stdout)?, kind)?,
                Output::new(Stream::Stderr, pipe(stderr)?)?,
            ],
            started,
            ending,
            attachments: Vec::new(),
            commands,
            resize: None,
            timer: Box::pin(tokio::time::sleep_until(now)),
            removed: self.removed,
            frozen: false,
            archived: self.archived,
            journaled,
            spool: spool.map(|(name, writer, reader)| {
                Box::new(Spooling::new(Some((name, writer)), reader))
            }),
            stay: Stay::new(supervisor, why),
        });
        Ok((job, sender))
    }
}

impl WrittenProcess {
    fn go_on(
        self,
        supervisor: &Supervisor,
        on_terminal: bool,
        grace: Duration,
    ) -> io::Result<(Process, Ending)> {
        let child = Child::kept(self.pid, take_kept(self.pidfd)?, self.started_ticks)?;
        let watch = ExitWatch::of(&child);
        if let Some(why) = watch.why_not() {
            return Err(io::Error::other(why));
        }
        let group = if self.in_cgroup { supervisor.cgroups.existing(&self.mark) } else { None };
        let mark = format!("{MARK_VARIABLE}={}", self.mark);
        let tree = Tree::new(child.tree_root(), mark.as_bytes(), group.clone());
        Ok((Process::Own { child, watch, group }, Ending::new(tree, on_terminal, grace)))
    }
}
