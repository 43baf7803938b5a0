//! One job: a task that owns the child, its pipes and its clock, and does what its machine says.

mod ending;
mod input;
mod output;
mod process;
mod route;
mod spooling;
mod start;
mod written;

use std::collections::BTreeMap;
use std::future::{Future as _, poll_fn};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afar_core::job::{
    Action, AttachError, AttachRequest, AttachedAt, AttachmentId, Cause, Exited, JobKey, Leave,
    Machine, Settings, SpoolState, Told,
};
use afar_core::journal::Entry as Journaled;
use afar_core::policy::original_command;
use afar_proto::connection::Stream;
use afar_proto::message::{
    AttachStart, Attached, AttachedStream, Command, JobInfo, JobState, OpenSpec, Opened, Refused,
    Resize,
};
use afar_proto::outcome::{End, Phase, Receipt, RefusalReason, Started as WasStarted};
use afar_sys::child::ExitStatus;
use afar_sys::signals::Signal;
use afar_sys::terminal::WindowSize;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::jobs::Remains;
use super::session::TurnStarted;
use super::{Stay, Supervisor, Why};
use crate::store::SpoolReader;
use ending::Ending;
use input::{Input, Taken};
use output::{Output, Piece};
use process::{Process, ProcessEnd};
use route::{Attachment, Stage};
use spooling::{Located, Spooling, Wanted};
use start::Ours;

pub(super) use route::{Archived, Entered, Found, FromJob, Route, Said, ToJob, Wish};
pub(super) use start::{Opening, Started, start, start_in_session};
pub(super) use written::WrittenJob;

/// The task's state. One task owns it and linearizes everything that happens to the job.
#[derive(Debug)]
pub(super) struct Job {
    key: JobKey,
    /// What a list says of it. What changes is filled in when it is asked for.
    info: Box<JobInfo>,
    machine: Machine,
    process: Process,
    outputs: [Output; 2],
    input: Input,
    /// Its own side of its terminal, until its process has ended: a program may leave its terminal before
    /// that, come back to it, and must not be hung up for it.
    held: Option<OwnedFd>,
    /// When its clock began.
    started: Instant,
    ending: Ending,
    attachments: Vec<Attachment>,
    /// `None` until there is something for it.
    spool: Option<Box<Spooling>>,
    commands: UnboundedReceiver<ToJob>,
    /// The size that its terminal is to have, if that is another one.
    resize: Option<Resize>,
    timer: Pin<Box<tokio::time::Sleep>>,
    /// Whether its last word was written down.
    archived: bool,
    /// What the journal said of it then.
    journaled: Option<Box<Journaled>>,
    /// Whether nobody is to see it any more once it is over.
    removed: bool,
    /// Whether it stands still, for an upgrade.
    frozen: bool,
    /// Keeps the supervisor from ending for idleness.
    stay: Stay,
}

impl Job {
    /// A job that has not begun, and whose asker is attached to it unless it wanted to leave.
    fn new(
        opening: Opening<'_>,
        ours: Ours,
        process: Process,
        ending: Ending,
    ) -> (Box<Self>, UnboundedSender<ToJob>) {
        let Opening { spec, key, info, route, supervisor } = opening;
        let Ours { outputs, input, held } = ours;
        let (sender, commands) = unbounded_channel();
        let mut machine = Machine::new(Settings::of(spec));
        if supervisor.jobs.archive().is_some() {
            machine.spool_is(SpoolState::Open);
        }
        if !spec.detach {
            // A new job has room for its first attachment.
            let _ = machine.attach(&AttachRequest::opening(route.id));
        }
        let started = Instant::now();
        let job = Box::new(Self {
            info,
            key,
            machine,
            process,
            outputs,
            input,
            held,
            started,
            ending,
            attachments: vec![Attachment { route, stage: Stage::Opening }],
            spool: None,
            commands,
            resize: None,
            timer: Box::pin(tokio::time::sleep_until(started)),
            archived: false,
            journaled: None,
            removed: false,
            frozen: false,
            stay: Stay::new(supervisor, Why::Running),
        });
        (job, sender)
    }

    /// Brings back a job that has ended, to tell its outcome once more.
    pub(super) fn revived(
        key: JobKey,
        remains: &Remains,
        reader: Option<SpoolReader>,
        supervisor: &Rc<Supervisor>,
    ) -> std::io::Result<(Box<Self>, UnboundedSender<ToJob>)> {
        let (sender, commands) = unbounded_channel();
        let now = Instant::now();
        let bounds = reader.as_ref().map(SpoolReader::bounds);
        let job = Box::new(Self {
            info: Box::new(remains.info.clone()),
            key,
            machine: Machine::ended(remains.seal.clone(), bounds),
            spool: reader.map(|reader| Box::new(Spooling::new(None, reader))),
            process: Process::Over,
            outputs: [Output::new(Stream::Stdout, None)?, Output::new(Stream::Stderr, None)?],
            input: Input::new(None)?,
            held: None,
            started: now,
            ending: Ending::of_nothing(Duration::ZERO),
            attachments: Vec::new(),
            commands,
            resize: None,
            timer: Box::pin(tokio::time::sleep_until(now)),
            archived: true,
            journaled: None,
            removed: false,
            frozen: false,
            stay: Stay::new(supervisor, Why::Kept),
        });
        Ok((job, sender))
    }

    /// Its process was started.
    fn begin(&mut self, started: Instant, started_at_us: u64, pid: u32) {
        self.started = started;
        self.info.started_at_us = Some(started_at_us);
        self.info.pid = Some(pid);
        self.machine.started(afar_proto::Instant::ZERO);
        let start_ticks = self.process.started_ticks();
        let jobs = &self.stay.supervisor().jobs;
        jobs.started(&self.key, pid, start_ticks, started_at_us);
        // Whoever asked is answered by its conversation, at once.
        self.attachments.retain_mut(|attachment| {
            attachment.stage = Stage::Attached;
            self.machine.is_owner(attachment.route.id)
        });
    }

    /// Runs until the job has ended, its output is sealed, nobody waits for anything of it any
    /// more, and nothing of its tree is left that was to be ended.
    ///
    /// Boxed, because a future holds what it is given twice over: once as it came, once as it runs.
    pub(super) async fn run(mut self: Box<Self>) {
        poll_fn(|context| self.poll(context)).await;
        let jobs = &self.stay.supervisor().jobs;
        if let Process::NotStarted(refused) = &self.process {
            jobs.refused(&self.key, refused);
        } else if let Some(seal) = self.machine.seal().cloned() {
            let needed = !self.machine.is_confirmed();
            let remains = Remains { info: self.described(), seal, spool: None };
            let spooled = self
                .spool
                .zip(self.journaled)
                .and_then(|(spool, journaled)| spool.into_spooled(journaled, needed));
            jobs.ended(&self.key, remains, spooled, self.removed);
        }
    }

    /// It runs, and can't be watched: it must not go on unseen.
    fn give_up(&mut self) {
        self.machine.end(Cause::Lost);
        self.ending.begin_at_once();
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut progress = self.poll_commands(context);
            if self.frozen {
                return Poll::Pending;
            }
            progress |= self.poll_outputs(context);
            progress |= self.poll_input(context);
            progress |= self.poll_process(context);
            progress |= self.poll_spool(context);
            let now = Instant::now();
            self.machine.handle_timeout(self.clock(now));
            self.archive();
            progress |= self.ending.poll(context, now, self.machine.exit().is_some());
            progress |= self.act();
            self.settle();
            if self.is_over() {
                return Poll::Ready(());
            }
            if !progress && self.poll_timer(context, now).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// The job's own clock.
    fn clock(&self, now: Instant) -> afar_proto::Instant {
        afar_proto::Instant::from_micros(micros(now.saturating_duration_since(self.started)))
    }

    fn is_over(&self) -> bool {
        let done = match self.process {
            Process::NotStarted(_) => true,
            _ => self.machine.is_done() && self.ending.is_over(),
        };
        // Who has asked to attach in this moment must not be forgotten.
        let idle = self.spool.as_ref().is_none_or(|spool| spool.is_idle());
        done && idle && self.commands.is_empty()
    }

    // What it is told.

    fn poll_commands(&mut self, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        // The table has the other end for as long as the job is there.
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(context) {
            progress = true;
            self.obey(command);
        }
        if let Some(size) = self.resize.take() {
            // Of a flood of sizes only the last one that has come counts.
            self.outputs[0].resize(window_size(size));
        }
        progress
    }

    fn obey(&mut self, command: ToJob) {
        match command {
            ToJob::From(id, said) => self.hear(id, said),
            ToJob::Attach(request, route) => self.attach(request, route),
            ToJob::Kill(signal, reply) => {
                let _ = reply.send(self.machine.exit().is_none());
                match signal {
                    None => self.machine.end(Cause::Cancelled),
                    // A process that has ended in this moment is no error of whoever signals it.
                    Some(signal) => self.signal(signal),
                }
            }
            ToJob::End(cause) => self.machine.end(cause),
            ToJob::Hasten => {
                // It may have been told to end in the same moment.
                self.act();
                self.ending.hasten();
            }
            ToJob::Freeze(reply) => {
                // What those have said who have left by now is done first.
                self.act();
                let written = self.write_down();
                self.frozen = written.is_some();
                let _ = reply.send(written);
            }
            ToJob::Thaw => self.frozen = false,
            ToJob::Describe(reply) => {
                let _ = reply.send(self.described());
            }
            ToJob::Remove(reply) => {
                self.removed = self.machine.remove();
                let _ = reply.send(self.removed);
            }
        }
    }

    fn hear(&mut self, id: AttachmentId, said: Said) {
        match said {
            Said::Input(bytes) => {
                if self.machine.input(id, bytes.len()) {
                    self.input.push(bytes);
                }
            }
            Said::InputEnd => {
                if self.machine.input_end(id) {
                    self.input.end();
                }
            }
            Said::Allow(stream, more) => self.machine.allow(id, stream, more),
            Said::Acked(stream, offset) => self.machine.acked(id, stream, offset),
            Said::Stop(stream) => self.machine.stop(id, stream),
            Said::Signal(signal) => {
                if self.machine.is_owner(id) {
                    self.signal(signal);
                }
            }
            Said::Resize(size) => {
                if self.machine.is_owner(id) {
                    self.resize = Some(size);
                }
            }
            Said::Leave(how) => self.leave(id, how),
        }
    }

    /// Sends a signal: to the process group; on a terminal, one that has a key there to where the key
    /// would send it (`J-2.9`).
    fn signal(&self, signal: Signal) {
        let keys = [Signal::INT, Signal::QUIT, Signal::TSTP];
        if !keys.contains(&signal) || !self.outputs[0].signal_foreground(signal) {
            self.process.signal(signal);
        }
    }

    fn leave(&mut self, id: AttachmentId, how: Leave) {
        let cancels = self.machine.leave(id, how);
        let Some(at) = self.attachments.iter().position(|it| it.route.id == id) else { return };
        if let Some(Attachment { route, stage: Stage::Attaching(at) }) = self.attachments.get(at)
            && how == Leave::Detached
        {
            // Who leaves with the answer has it before.
            route.tell(FromJob::Attached(Box::new(self.attached(*at)), *at));
        }
        match self.attachments.get_mut(at) {
            // Its channel counts for its client until nothing is left of the job (`W-9.6`).
            Some(attachment) if cancels => attachment.stage = Stage::Leaving,
            _ => self.attachments.swap_remove(at).route.tell(FromJob::Gone),
        }
    }

    fn attach(&mut self, mut request: Box<AttachRequest>, route: Route) {
        if let Some(AttachStart::SinceUs(time_us)) = &mut request.start {
            // From the calendar's time to the job's own.
            *time_us = time_us.saturating_sub(self.info.started_at_us.unwrap_or(*time_us));
        }
        match &mut self.spool {
            Some(spool) if request.start.is_some() => spool.locate(request, route),
            _ => self.attach_at(&request, route),
        }
    }

    fn attach_at(&mut self, request: &AttachRequest, route: Route) {
        let attached = self.machine.attach(request);
        let stage = match attached {
            Err(error) => {
                route.tell(FromJob::Refused(Box::new(refuse_attach(error))));
                return route.tell(FromJob::Gone);
            }
            Ok(at) if matches!(self.process, Process::Waiting(_)) => Stage::Attaching(at),
            Ok(at) => {
                route.tell(FromJob::Attached(Box::new(self.attached(at)), at));
                Stage::Attached
            }
        };
        self.attachments.push(Attachment { route, stage });
    }

    fn attached(&self, at: AttachedAt) -> Attached {
        let named = Stream::OUTPUTS.into_iter().zip(at.streams);
        let streams: BTreeMap<_, _> = named
            .filter_map(|(stream, offset)| {
                Some((stream.name().to_owned(), AttachedStream { offset: offset? }))
            })
            .collect();
        Attached {
            job: self.key.job.clone(),
            pid: self.info.pid.filter(|_| self.machine.exit().is_none()),
            started_at_us: self.info.started_at_us,
            streams,
            stdin: at.stdin.map(|stdin| stdin.received),
            terminal: self.info.terminal,
        }
    }

    // What happens to the process.

    fn poll_outputs(&mut self, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        for index in 0..self.outputs.len() {
            let Some(output) = self.outputs.get_mut(index) else { continue };
            let stream = output.stream();
            let allowed = self.machine.readable(stream);
            let Poll::Ready(piece) = output.poll_read(context, allowed) else { continue };
            progress = true;
            match piece {
                Piece::Bytes(bytes) => {
                    let now = self.clock(Instant::now());
                    self.machine.output(now, stream, bytes);
                }
                Piece::End { complete } => self.machine.output_end(stream, complete),
            }
        }
        progress
    }

    fn poll_input(&mut self, context: &mut Context<'_>) -> bool {
        let Poll::Ready(taken) = self.input.poll_write(context) else { return false };
        match taken {
            Taken::Bytes(0) => {}
            Taken::Bytes(count) => self.machine.input_taken(count),
            Taken::Closed => self.machine.input_closed(),
        }
        true
    }

    fn poll_process(&mut self, context: &mut Context<'_>) -> bool {
        if let Process::Waiting(turn) = &mut self.process {
            let Poll::Ready(started) = Pin::new(&mut turn.started).poll(context) else {
                return false;
            };
            match started {
                Ok(Ok(started)) => self.turn_came(started),
                Ok(Err(refused)) => self.never_started(refused),
                // The keeper has gone with its runtime.
                Err(_) => self.never_started(cancelled_before_its_turn()),
            }
            return true;
        }
        if self.machine.exit().is_some() {
            return false;
        }
        if let Poll::Ready(ended) = self.process.poll_ended(context) {
            self.exited(ended);
            return true;
        }
        let futile = self.ending.futile_from().is_some_and(|from| Instant::now() >= from);
        if futile {
            self.leave_unkillable();
        }
        futile
    }

    /// The process was killed, and the kernel does not let go of it, or it is another user's.
    fn leave_unkillable(&mut self) {
        let log = self.stay.supervisor().log;
        let (job, pid) = (&self.key.job, self.info.pid.unwrap_or_default());
        log.error(&format!("job {job}: its process {pid} can't be killed, and is left alone"));
        let mut process = std::mem::replace(&mut self.process, Process::Over);
        // It is our child still: it is reaped whenever it ends.
        tokio::task::spawn_local(async move {
            poll_fn(|context| process.poll_ended(context)).await;
        });
        let now = Instant::now();
        let exited = self.what_exited(ProcessEnd::unknown(), now);
        self.machine.unkillable(self.clock(now), exited);
    }

    fn exited(&mut self, ended: ProcessEnd) {
        let now = Instant::now();
        self.ending.process_ended(&self.process);
        let exited = self.what_exited(ended, now);
        self.machine.exited(self.clock(now), exited);
    }

    /// What is to be told of a process that has ended now.
    fn what_exited(&mut self, ended: ProcessEnd, now: Instant) -> Exited {
        let receipt = Receipt {
            wall_us: micros(now - self.started),
            user_us: micros(ended.user),
            sys_us: micros(ended.system),
            max_rss_bytes: ended.max_rss_bytes,
            read_bytes: ended.io.map(|io| io.read_bytes),
            written_bytes: ended.io.map(|io| io.written_bytes),
        };
        self.held = None;
        // From here on, others are the only writers of what is not in the pipes yet.
        let owed = [&self.outputs[0], &self.outputs[1]].map(Output::owed);
        // Nobody is left to read it, unless a child inherited it; then the pipe stays open in the
        // child, and what was sent so far is there.
        if self.info.terminal {
            // Its end would be typed, and whoever is left on the terminal has not asked for that.
            self.input.close();
        } else {
            self.input.end();
        }
        let session_restarted = ended.session_restarted;
        self.info.ended_at_us = Some(unix_time_us());
        Exited { end: ended.end, receipt, session_restarted, owed }
    }

    /// The shell of its session was given the job.
    fn turn_came(&mut self, started: TurnStarted) {
        let TurnStarted { root, pid, note } = started;
        let Process::Waiting(turn) = std::mem::replace(&mut self.process, Process::Over) else {
            return;
        };
        self.ending = Ending::in_session(root.clone(), self.ending.grace());
        self.process = Process::in_session(root, turn.ended);
        let waited = std::mem::take(&mut self.attachments);
        let started_at_us = unix_time_us();
        self.begin(Instant::now(), started_at_us, pid);
        for Attachment { route, stage } in waited {
            match stage {
                Stage::Opening => {
                    let (job, note) = (self.key.job.clone(), note.clone());
                    route.tell(FromJob::Opened(Opened { job, pid, started_at_us, note }));
                    if !self.machine.is_owner(route.id) {
                        // It wanted to leave with the answer.
                        route.tell(FromJob::Gone);
                        continue;
                    }
                }
                Stage::Attaching(at) => {
                    route.tell(FromJob::Attached(Box::new(self.attached(at)), at));
                }
                Stage::Attached | Stage::Leaving => {}
            }
            self.attachments.push(Attachment { route, stage: Stage::Attached });
        }
    }

    /// It waited for its turn, which will not come.
    fn never_started(&mut self, refused: Refused) {
        for Attachment { route, stage } in std::mem::take(&mut self.attachments) {
            if !matches!(stage, Stage::Leaving) {
                route.tell(FromJob::Refused(Box::new(refused.clone())));
            }
            route.tell(FromJob::Gone);
        }
        self.process = Process::NotStarted(Box::new(refused));
    }

    // What its machine says.

    /// Does what is to be done; tells whether that was anything.
    fn act(&mut self) -> bool {
        let mut acted = false;
        while let Some(action) = self.machine.poll_action() {
            acted = true;
            match action {
                Action::Tell(id, told) => self.tell(id, told),
                Action::Read { id, stream, from, bytes_max } => match &mut self.spool {
                    Some(spool) => spool.want(Wanted { id, stream, from, bytes_max }),
                    None => self.machine.spool_read(id, stream, None),
                },
                Action::DropSpooled => {
                    if let Some(spool) = &mut self.spool {
                        spool.drop_oldest();
                    }
                }
                Action::CloseOutput(stream) => {
                    let closed = self.outputs.iter_mut().find(|output| output.stream() == stream);
                    if let Some(output) = closed {
                        output.close();
                    }
                    if self.info.terminal {
                        // With both sides gone the terminal is hung up.
                        self.input.close();
                    }
                }
                Action::End(cause) => {
                    if cause == Cause::Cancelled {
                        self.input.close();
                    }
                    match self.process {
                        Process::Waiting(_) => self.never_started(cancelled_before_its_turn()),
                        _ => self.ending.begin(),
                    }
                }
            }
        }
        acted
    }

    fn tell(&mut self, id: AttachmentId, told: Told) {
        let Some(at) = self.attachments.iter().position(|it| it.route.id == id) else { return };
        let Some(attachment) = self.attachments.get(at) else { return };
        let last = matches!(told, Told::Fenced | Told::Finished);
        attachment.route.tell(FromJob::Told(told));
        if last {
            self.attachments.swap_remove(at).route.tell(FromJob::Gone);
        }
    }

    /// What others hold open when everything is told is read and dropped for as long as they do, so
    /// that a daemon that a job left behind never blocks on a full pipe and never meets a closed one.
    fn settle(&mut self) {
        if self.machine.seal().is_none() {
            return;
        }
        self.held = None;
        for output in &mut self.outputs {
            if let Some(pipe) = output.take_pipe() {
                drain_left_open(pipe, self.stay.supervisor());
            }
        }
        if self.ending.is_over() && !self.stay.is_kept() {
            self.stay.keep();
            // Nothing of the process is needed any more: no descriptor, no cgroup.
            self.process = Process::Over;
            self.ending = Ending::of_nothing(Duration::ZERO);
            for attachment in
                self.attachments.extract_if(.., |it| matches!(it.stage, Stage::Leaving))
            {
                attachment.route.tell(FromJob::Gone);
            }
        }
    }

    fn poll_spool(&mut self, context: &mut Context<'_>) -> bool {
        if self.spool.is_none() && self.machine.has_for_spool() {
            let begin = self.machine.spool_begin();
            let ended = self.journaled.as_deref();
            match self.stay.supervisor().jobs.spool(&self.key, ended, begin) {
                Some((name, writer, reader)) => {
                    self.spool = Some(Box::new(Spooling::new(Some((name, writer)), reader)));
                }
                None => self.machine.spool_is(SpoolState::Failed),
            }
        }
        let supervisor = self.stay.supervisor();
        let Some(spool) = &mut self.spool else { return false };
        let readers = supervisor.jobs.readers();
        let progress = spool.poll(context, &mut self.machine, readers, supervisor.log);
        for Located { request, route } in spool.located() {
            self.attach_at(&request, route);
        }
        progress
    }

    /// Writes its last word down before anybody is told it (`J-1.4`).
    fn archive(&mut self) {
        if !self.archived
            && let Some(seal) = self.machine.seal()
        {
            self.archived = true;
            let jobs = &self.stay.supervisor().jobs;
            self.journaled = jobs.sealed(&self.key, seal, &self.described());
        }
    }

    /// Waits for the next moment at which something is due.
    fn poll_timer(&mut self, context: &mut Context<'_>, now: Instant) -> Poll<()> {
        let clock = self.machine.poll_timeout(self.clock(now));
        let machine =
            clock.and_then(|at| self.started.checked_add(Duration::from_micros(at.as_micros())));
        let look = self.process.look_interval().filter(|_| self.machine.exit().is_none());
        let look = look.map(|interval| now + interval);
        let futile = self.ending.futile_from().filter(|_| self.machine.exit().is_none());
        let due = [machine, self.ending.due(), look, futile].into_iter().flatten().min();
        let Some(due) = due else { return Poll::Pending };
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        self.timer.as_mut().poll(context)
    }

    /// What a list says of it now.
    fn described(&self) -> JobInfo {
        let mut info = (*self.info).clone();
        let machine = &self.machine;
        info.state = machine.state();
        info.streams = machine.streams();
        info.owner = machine.is_owned();
        info.watchers = u32::try_from(machine.watchers()).unwrap_or(u32::MAX);
        if let Some(report) = machine.exit() {
            info.end = Some(report.end.clone());
            info.receipt = Some(report.receipt);
            info.pid = None;
        }
        let expires = machine.expires_at().zip(info.started_at_us);
        info.keep_until_us = expires.map(|(at, start)| start.saturating_add(at.as_micros()));
        info
    }
}

/// What a list says of a job that has not begun.
pub(super) fn describe(key: &JobKey, spec: &OpenSpec) -> Box<JobInfo> {
    let command = match &spec.command {
        Command::Shell {} => b"login shell".to_vec(),
        command => original_command(command),
    };
    let mut info = JobInfo::new(key.job.clone(), JobState::Waiting, &command);
    info.session = spec.session.as_ref().map(|session| session.name.to_string());
    info.detached = spec.detach;
    info.terminal = spec.terminal.is_some();
    if let Some(cwd) = &spec.cwd {
        info.set_cwd(cwd.as_bytes());
    }
    Box::new(info)
}

fn refuse_attach(error: AttachError) -> Refused {
    let reason = match error {
        AttachError::BeyondEnd(_) => RefusalReason::BeyondEnd,
        AttachError::TooMany => RefusalReason::TooMany,
    };
    let message = error.to_string();
    Refused { phase: Phase::Authorize, reason, message, started: WasStarted::Yes }
}

fn cancelled_before_its_turn() -> Refused {
    Refused {
        phase: Phase::Spawn,
        reason: RefusalReason::Other,
        message: "it was cancelled while it waited for its turn in its session".to_owned(),
        started: WasStarted::No,
    }
}

/// Reads and drops what comes out of a pipe, until nobody holds it open any more.
pub(super) fn drain_left_open(pipe: AsyncFd<OwnedFd>, supervisor: &Rc<Supervisor>) {
    let stay = Stay::new(supervisor, Why::LeftOpen);
    supervisor.left_open.borrow_mut().insert(pipe.get_ref().as_raw_fd());
    tokio::task::spawn_local(drain_for_nobody(pipe, stay));
}

async fn drain_for_nobody(pipe: AsyncFd<OwnedFd>, stay: Stay) {
    while let Ok(mut guard) = pipe.readable().await {
        // On the stack only while something is there to be read, and not in the task meanwhile.
        let read = guard.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref(), &mut [0; 4096])?));
        if matches!(read, Ok(Ok(0) | Err(_))) {
            break;
        }
    }
    stay.supervisor().left_open.borrow_mut().remove(&pipe.get_ref().as_raw_fd());
}

/// The end of a process as the kernel tells it.
pub(super) fn end_of(status: &ExitStatus) -> End {
    match *status {
        ExitStatus::Exited { code } => End::Exited { code },
        ExitStatus::Signaled { signal, core } => End::Signaled {
            signal: u8::try_from(signal.number()).unwrap_or(u8::MAX),
            name: format!("SIG{}", signal.name()),
            core,
        },
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A size as it can be set (`W-7.1`).
fn window_size(size: Resize) -> WindowSize {
    let ((columns, rows), (width_px, height_px)) = (size.clamped(), size.pixels());
    WindowSize { rows, columns, width_px, height_px }
}

/// Now, in microseconds of Unix time.
pub(super) fn unix_time_us() -> u64 {
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
pub(super) mod tests;
