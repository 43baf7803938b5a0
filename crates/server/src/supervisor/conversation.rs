//! One connection to the supervisor: its grant, its jobs, and the bytes between them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afar_core::policy::Grant;
use afar_net::clock::Clock;
use afar_net::driver::Driver;
use afar_net::local::Introduced;
use afar_net::transport::AnyTransport;
use afar_proto::connection::{ChannelId, Event, Role, Stream};
use afar_proto::message::{FEATURE_SESSION, GoodbyeCode, OpenSpec, Opened, Refused};
use afar_proto::outcome::{Phase, RefusalReason, Started};
use afar_proto::{Config, Connection};
use afar_sys::signals::Signal;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::job::{Allowance, FromJob, ToJob, start, start_in_session};
use super::request::prepare;
use super::session::{SessionRequest, prepare_in_session};
use super::standing::{Answer, Watch};
use super::{Supervisor, TakenId};
use crate::limits::{LOOK_DEADLINE, LOOK_WAITERS_MAX};

/// A stream's allowance is topped up when at least this much can be added, so that bulk output does
/// not cost a message for every read.
const TOP_UP_BYTES: usize = 64 * 1024;

/// For each of so many bytes of room, one piece is allowed: output that comes in smaller pieces is
/// read no further ahead than 1,024 of them.
const BYTES_PER_PIECE: usize = 1024;

/// What a client is told whose key does not count any more; why is for the log.
const REVOKED: &str = "the key that this connection was let in with is not accepted any more";

/// What a client is told whose request waited too long for what decides about its key.
const UNJUDGED: &str = "whether the key is still accepted could not be read in time; try again";

/// What a conversation knows of a job that it started.
struct Running {
    commands: UnboundedSender<ToJob>,
    /// What the job may read of each output stream and has not handed over yet.
    allowed: BTreeMap<Stream, Allowance>,
    /// The id is taken until this is dropped.
    id: TakenId,
    /// Whether the client still has the channel.
    wanted: bool,
}

/// One connection. Its task owns it; jobs are tasks of their own and talk to it by messages.
pub(super) struct Conversation {
    supervisor: Rc<Supervisor>,
    /// Its number, which is that of its sessions.
    number: u64,
    grant: Grant,
    /// What the grant rests on.
    watch: Watch,
    /// Requests that wait for a look at it, each with the number of the look.
    held: Vec<(u64, Event)>,
    /// When the first of them has waited too long.
    held_until: Option<Instant>,
    driver: Driver<AnyTransport>,
    jobs: BTreeMap<ChannelId, Running>,
    from_jobs: UnboundedReceiver<(ChannelId, FromJob)>,
    to_self: UnboundedSender<(ChannelId, FromJob)>,
}

impl Conversation {
    pub(super) fn new(supervisor: Rc<Supervisor>, introduced: Introduced) -> Self {
        let Introduced { grant, transport, first } = introduced;
        let clock = Clock::new();
        let config = Config { features: vec![FEATURE_SESSION.to_owned()], ..Config::default() };
        let connection = Connection::new(Role::Server, config, clock.now());
        let number = supervisor.next_connection();
        let local = supervisor.local_files.borrow();
        let watch = Watch::new(&grant, &supervisor.user, &supervisor.looking, local.as_ref());
        drop(local);
        let mut driver = Driver::new(transport, connection, clock);
        driver.feed(&first);
        let (to_self, from_jobs) = unbounded_channel();
        let jobs = BTreeMap::new();
        Self {
            supervisor,
            number,
            grant,
            watch,
            held: Vec::new(),
            held_until: None,
            driver,
            jobs,
            from_jobs,
            to_self,
        }
    }

    /// Runs until the connection has ended and every job that it had is cleaned up after.
    pub(super) async fn run(mut self) {
        let mut stopping = self.supervisor.stopping.subscribe();
        loop {
            tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => {
                    let message = "the supervisor was told to end";
                    self.driver.connection().close(GoodbyeCode::Unavailable, message);
                    break;
                }
                (number, looked) = self.watch.looked() => {
                    if self.handle_look(number, looked).is_break() {
                        break;
                    }
                }
                () = until(self.held_until) => self.give_up_held(),
                event = self.driver.next(), if !*self.supervisor.stopping.borrow() => {
                    if let Event::Closed(_) = event {
                        break;
                    }
                    if self.handle_request(event).is_break() {
                        break;
                    }
                }
                Some((channel, event)) = self.from_jobs.recv() => {
                    self.handle_job(channel, event);
                    // What has come together leaves together.
                    while let Ok((channel, event)) = self.from_jobs.try_recv() {
                        self.handle_job(channel, event);
                    }
                }
            }
        }
        // A job whose client is gone is cancelled: dropping its commands tells it so.
        for running in self.jobs.values_mut() {
            let _ = running.commands.send(ToJob::Cancel);
        }
        self.supervisor.sessions.end_connection(self.number);
        self.driver.finish().await;
        // The ids stay taken until nothing is left of their jobs.
        while !self.jobs.is_empty() {
            let Some((channel, event)) = self.from_jobs.recv().await else { break };
            if matches!(event, FromJob::Gone) {
                self.jobs.remove(&channel);
            }
        }
    }

    /// Handles what the client says; a request once it is known that the grant still holds. Breaks if
    /// it does not.
    fn handle_request(&mut self, event: Event) -> ControlFlow<()> {
        let (Event::Open { channel, .. } | Event::Attach { channel, .. }) = &event else {
            self.handle_event(event);
            return ControlFlow::Continue(());
        };
        match self.watch.look() {
            Answer::Now(Ok(())) => self.handle_event(event),
            Answer::Now(Err(refusal)) => {
                // Nothing of it is started, and it is told so.
                self.refuse(*channel, &refused(RefusalReason::Denied, REVOKED));
                self.revoke(&refusal);
                return ControlFlow::Break(());
            }
            Answer::After(_) if self.held.len() >= LOOK_WAITERS_MAX => {
                self.refuse(*channel, &refused(RefusalReason::NoResources, UNJUDGED));
            }
            Answer::After(number) => {
                self.held.push((number, event));
                self.held_until.get_or_insert_with(|| Instant::now() + LOOK_DEADLINE);
            }
        }
        ControlFlow::Continue(())
    }

    /// Goes on with the requests that waited for this look. Breaks if the grant does not hold.
    fn handle_look(&mut self, number: u64, looked: Result<(), String>) -> ControlFlow<()> {
        if let Some(files) = self.watch.local_files() {
            let mut known = self.supervisor.local_files.borrow_mut();
            if known.as_ref() != Some(files) {
                *known = Some(files.clone());
            }
        }
        let held = std::mem::take(&mut self.held);
        self.held_until = None;
        if let Err(refusal) = looked {
            for (_, event) in held {
                if let Event::Open { channel, .. } | Event::Attach { channel, .. } = event {
                    self.refuse(channel, &refused(RefusalReason::Denied, REVOKED));
                }
            }
            self.revoke(&refusal);
            return ControlFlow::Break(());
        }
        for (wanted, event) in held {
            if wanted <= number {
                self.handle_event(event);
            } else if self.handle_request(event).is_break() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Refuses what has waited too long for a look.
    fn give_up_held(&mut self) {
        self.held_until = None;
        for (_, event) in std::mem::take(&mut self.held) {
            if let Event::Open { channel, .. } | Event::Attach { channel, .. } = event {
                self.refuse(channel, &refused(RefusalReason::NoResources, UNJUDGED));
            }
        }
    }

    fn revoke(&mut self, refusal: &str) {
        let key = self.grant.key_fingerprint.as_deref().unwrap_or_default();
        self.supervisor.log.info(&format!("a connection of {key} is ended: {refusal}"));
        self.driver.connection().close(GoodbyeCode::Revoked, REVOKED);
    }

    // What the client says.

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Open { channel, spec } => self.open(channel, &spec),
            Event::Attach { channel, .. } => {
                let message = "there is no such job: this server ends a job with its connection";
                self.refuse(channel, &refused(RefusalReason::NoSuchJob, message));
            }
            Event::Data { channel, bytes, .. } => self.tell(channel, ToJob::Input(bytes)),
            Event::End { channel, .. } => self.tell(channel, ToJob::InputEnd),
            Event::Writable { channel, stream } => self.top_up(channel, stream),
            Event::Stopped { channel, stream } => self.tell(channel, ToJob::Stop(stream)),
            Event::Signal { channel, signal } => match Signal::parse(&signal.name) {
                Some(signal) => self.tell(channel, ToJob::Signal(signal)),
                // A hint that means nothing here is no error of the channel (`W-7.1`).
                None => {
                    let line = format!("a signal that is none here: {:?}", signal.name);
                    self.supervisor.log.debug(&line);
                }
            },
            Event::Abandoned { channel }
            | Event::Detached { channel }
            | Event::Failed { channel, .. } => self.abandon(channel),
            Event::Query { channel, .. } => {
                let message = "this server keeps no list of jobs";
                self.refuse(channel, &refused(RefusalReason::Unsupported, message));
            }
            // A job without a terminal has no size; acknowledged bytes are kept by nobody yet.
            Event::Resize { .. }
            | Event::Acked { .. }
            | Event::Confirmed { .. }
            | Event::Ready(_) => {}
            // Only a client meets these.
            Event::Opened { .. }
            | Event::Attached { .. }
            | Event::Refused { .. }
            | Event::Answer { .. }
            | Event::Gap { .. }
            | Event::Exit { .. }
            | Event::Seal { .. }
            | Event::Closed(_) => {}
        }
    }

    fn open(&mut self, channel: ChannelId, spec: &OpenSpec) {
        match self.start(channel, spec) {
            Ok(Some(opened)) => self.accept(channel, &opened),
            // It waits for its turn in a session.
            Ok(None) => {}
            Err(refused) => self.refuse(channel, &refused),
        }
    }

    fn accept(&mut self, id: ChannelId, opened: &Opened) {
        if let Some(mut channel) = self.driver.connection().channel(id) {
            channel.accept(opened);
        }
        for stream in Stream::OUTPUTS {
            self.top_up(id, stream);
        }
    }

    /// Starts a job, or has it wait for its turn: then there is no answer yet.
    fn start(&mut self, channel: ChannelId, spec: &OpenSpec) -> Result<Option<Opened>, Refused> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let request = prepare_in_session(spec, &self.grant, self.number, now_s)?;
        if let Some(request) = request {
            return self.wait(channel, spec, request).map(|()| None);
        }
        let prepared = prepare(spec, &self.grant, &self.supervisor.user, now_s)?;
        let id = self.take_id(spec)?;
        let started = start(spec, &prepared, channel, self.to_self.clone(), &self.supervisor)?;
        self.enter(channel, id, started.commands);
        tokio::task::spawn_local(started.job.run());
        let started_at_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let (pid, note) = (started.pid, started.note);
        Ok(Some(Opened { job: spec.job.clone(), pid, started_at_us, note }))
    }

    /// Has a job wait for its turn in a session.
    fn wait(
        &mut self,
        channel: ChannelId,
        spec: &OpenSpec,
        request: SessionRequest,
    ) -> Result<(), Refused> {
        let id = self.take_id(spec)?;
        let events = self.to_self.clone();
        let (waiting, commands) =
            start_in_session(spec, request, channel, events, &self.supervisor)?;
        self.enter(channel, id, commands);
        tokio::task::spawn_local(waiting.run());
        Ok(())
    }

    fn take_id(&self, spec: &OpenSpec) -> Result<TakenId, Refused> {
        self.supervisor.take_id(self.grant.job_scope(), &spec.job).ok_or_else(|| {
            refused(RefusalReason::Conflict, "a job with this id is running already")
        })
    }

    fn enter(&mut self, channel: ChannelId, id: TakenId, commands: UnboundedSender<ToJob>) {
        let running = Running { commands, allowed: BTreeMap::new(), id, wanted: true };
        self.jobs.insert(channel, running);
    }

    fn refuse(&mut self, channel: ChannelId, refused: &Refused) {
        if let Some(channel) = self.driver.connection().channel(channel) {
            channel.refuse(refused);
        }
    }

    fn reset(&mut self, channel: ChannelId, message: &str) {
        if let Some(channel) = self.driver.connection().channel(channel) {
            channel.reset(message);
        }
        self.abandon(channel);
    }

    /// The client is done with the channel: its job is cancelled, and counts until it is gone.
    fn abandon(&mut self, channel: ChannelId) {
        self.held.retain(|(_, event)| match event {
            Event::Open { channel: held, .. } | Event::Attach { channel: held, .. } => {
                *held != channel
            }
            _ => true,
        });
        match self.jobs.get_mut(&channel) {
            Some(running) => {
                running.wanted = false;
                let _ = running.commands.send(ToJob::Cancel);
            }
            None => self.driver.connection().release(channel),
        }
    }

    fn tell(&mut self, channel: ChannelId, command: ToJob) {
        if let Some(running) = self.jobs.get_mut(&channel) {
            // A job that has gone in this moment needs to be told nothing.
            let _ = running.commands.send(command);
        }
    }

    /// Lets the job read as much more of a stream as the connection has room for.
    fn top_up(&mut self, channel: ChannelId, stream: Stream) {
        let Some(running) = self.jobs.get_mut(&channel) else { return };
        let Some(mut handle) = self.driver.connection().channel(channel) else { return };
        let room = handle.writable(stream);
        let allowed = running.allowed.entry(stream).or_default();
        let pieces = if room == 0 { 0 } else { (room / BYTES_PER_PIECE).max(1) };
        let more = Allowance {
            bytes: room.saturating_sub(allowed.bytes),
            pieces: pieces.saturating_sub(allowed.pieces),
        };
        let used_up = allowed.bytes == 0 || allowed.pieces == 0;
        let worth_it = more.bytes >= TOP_UP_BYTES || more.pieces >= TOP_UP_BYTES / BYTES_PER_PIECE;
        if more != Allowance::default() && (used_up || worth_it) {
            allowed.add(more);
            let _ = running.commands.send(ToJob::Allow(stream, more));
        }
    }

    // What jobs say.

    fn handle_job(&mut self, id: ChannelId, event: FromJob) {
        if matches!(event, FromJob::Gone) {
            self.jobs.remove(&id);
            self.driver.connection().release(id);
            return;
        }
        let Some(running) = self.jobs.get_mut(&id).filter(|running| running.wanted) else { return };
        if let FromJob::Started { pid, started_at_us, note } = event {
            let job = running.id.job().clone();
            return self.accept(id, &Opened { job, pid, started_at_us, note });
        }
        let Some(mut channel) = self.driver.connection().channel(id) else { return };
        match event {
            FromJob::Refused(refused) => channel.refuse(&refused),
            FromJob::Output { stream, clock_us, bytes } => {
                let count = bytes.len();
                if let Some(allowed) = running.allowed.get_mut(&stream) {
                    allowed.take(count);
                }
                if let Err(error) = channel.write(stream, clock_us, bytes) {
                    // The allowance keeps within the room, so this is a fault of ours; a byte must
                    // never be missing in silence.
                    return self.reset(id, &format!("output was lost: {error}"));
                }
                self.top_up(id, stream);
            }
            FromJob::OutputEnd(stream) => channel.finish(stream),
            FromJob::InputTaken(count) => channel.consume(Stream::Stdin, count),
            FromJob::InputClosed => channel.stop(Stream::Stdin),
            FromJob::Exited(report) => {
                channel.stop(Stream::Stdin);
                channel.exit(&report);
            }
            FromJob::Sealed(seal) => {
                for stream in Stream::OUTPUTS {
                    channel.finish(stream);
                }
                channel.seal(&seal);
            }
            FromJob::Started { .. } | FromJob::Gone => {}
        }
    }
}

fn refused(reason: RefusalReason, message: &str) -> Refused {
    Refused { phase: Phase::Authorize, reason, message: message.to_owned(), started: Started::No }
}

/// Resolves at this time; never, if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use afar_core::policy::{Basis, GrantKind};
    use afar_net::transport::UnixTransport;
    use afar_proto::message::JobId;
    use afar_sys::users::current_user;
    use tokio::net::UnixStream;
    use tokio::task::LocalSet;

    use super::*;
    use crate::log::Log;

    fn script(job: &str, text: &str) -> OpenSpec {
        OpenSpec { job: JobId::new(job).unwrap(), ..super::super::job::tests::script(text) }
    }

    /// W-4.12: nobody can say whether the key still holds, because its file is on a server that is away.
    #[tokio::test(start_paused = true)]
    async fn a_request_waits_so_long_for_files_that_are_away_and_is_then_refused() {
        let user = current_user().unwrap().unwrap();
        let key = [b"\0\0\0\x0bssh-ed25519\0\0\0\x20".as_slice(), &[7; 32]].concat();
        let basis = Basis {
            key,
            key_files: vec!["/nonexistent/keys".into()],
            trusted_authorities: None,
            revoked_keys: None,
        };
        let name = user.name.to_str().unwrap();
        let grant =
            Grant { kind: GrantKind::Key, basis: Some(basis), ..Grant::local(name, user.uid) };
        let supervisor = Rc::new(Supervisor::new(user, None, Log::default()));
        // The look of another connection does not come back.
        let _turn = Arc::clone(&supervisor.looking).acquire_owned().await.unwrap();

        let (ours, theirs) = UnixStream::pair().unwrap();
        let transport = |stream| AnyTransport::Unix(UnixTransport::new(stream));
        let introduced = Introduced { grant, transport: transport(theirs), first: [][..].into() };
        let clock = Clock::new();
        let connection = Connection::new(Role::Client, Config::default(), clock.now());
        let mut client = Driver::new(transport(ours), connection, clock);
        let local = LocalSet::new();
        let conversation = Conversation::new(Rc::clone(&supervisor), introduced);
        local.spawn_local(conversation.run());
        local
            .run_until(async {
                let began = Instant::now();
                let started = client.connection().open(&script("j", "exit 3")).unwrap();
                let refused = loop {
                    match client.next().await {
                        Event::Refused { channel, refused } if channel == started => break refused,
                        Event::Opened { .. } | Event::Closed(_) => panic!("not refused"),
                        _ => {}
                    }
                };
                assert_eq!(refused.reason, RefusalReason::NoResources);
                assert_eq!(refused.started, Started::No);
                assert!(began.elapsed() >= LOOK_DEADLINE, "{:?}", began.elapsed());
            })
            .await;
    }
}
