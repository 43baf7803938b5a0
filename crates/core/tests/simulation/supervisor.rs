//! The supervisor as it stands around the pure parts: the order of its writes (J-1.4), its pipes, and
//! who is told what. Register, machine, journal and connections are the real ones.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use afar_core::job::{
    Action, Allowance, AttachRequest, AttachmentId, Cause, Decision, JobKey, Leave, Machine,
    Register, Retry, Settings, Told, Vouch,
};
use afar_core::journal::{
    Began, Ended, Intended, JournalRecord, Ledger, NotStarted, Replay, Started as Spawned, Summary,
};
use afar_proto::connection::Stream;
use afar_proto::message::{
    Answer, Attach, Attached, AttachedStream, Goodbye, GoodbyeCode, Incarnation, JobId, JobInfo,
    JobPage, JobState, OpenSpec, Opened, Query, Refused,
};
use afar_proto::outcome::{End, Phase, RefusalReason, Started};
use afar_proto::{ChannelId, Config, Connection, ConnectionError, Event, Instant, Role};

use super::Sabotage;
use super::host::{Host, Killed};
use super::live::{Live, index};

/// From TERM to KILL.
const GRACE: Duration = Duration::from_secs(5);

type Stepped = Result<(), Killed>;

/// A channel on which a job is told.
#[derive(Debug)]
struct Seat {
    job: JobId,
    attachment: AttachmentId,
    /// What the machine may still tell of each stream.
    allowed: [usize; 2],
}

#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) connection: Connection,
    seats: BTreeMap<ChannelId, Seat>,
    pub(crate) over: bool,
}

#[derive(Debug)]
pub(crate) struct Supervisor {
    incarnation: Incarnation,
    register: Register<()>,
    ledger: Ledger,
    live: BTreeMap<JobId, Live>,
    pub(crate) conversations: BTreeMap<u64, Conversation>,
    attachments: u64,
    number: u64,
}

fn key(job: &JobId) -> JobKey {
    JobKey { scope: String::new(), job: job.clone() }
}

fn refused(reason: RefusalReason, started: Started) -> Refused {
    Refused { phase: Phase::Spawn, reason, message: String::new(), started }
}

impl Supervisor {
    /// Begins with the journal that is there.
    pub(crate) fn begin(host: &mut Host, number: u64) -> Result<Self, Killed> {
        let incarnation = format!("{}.{number}", host.boot);
        host.note(format_args!("supervisor {incarnation} begins"));
        let replay = Replay::read(&host.journal);
        let now = host.boottime();
        let since_us = if host.is_sabotaged(Sabotage::VouchesForAll) {
            0
        } else {
            replay.vouched_since_us(&host.boot_id(), now.as_micros())
        };
        let since = Instant::from_micros(since_us).since(Instant::ZERO);
        host.vouched_since = host.booted_at.after(since);
        let began = Began {
            incarnation: incarnation.clone(),
            boot: host.boot_id(),
            boottime_us: now.as_micros(),
            unix_us: host.now.as_micros(),
            vouched_since_us: since_us,
        };
        let mut ledger = replay.ledger;
        // The file is written anew beside the old one, and takes its place as a whole.
        ledger.begin(began);
        let file = ledger.to_file().expect("what was read can be written");
        host.step("before the journal is replaced")?;
        host.journal = file;
        host.step("behind the journal's replacement")?;
        let vouch = Vouch { began: now, since: Instant::from_micros(since_us) };
        let mut supervisor = Self {
            incarnation: Incarnation::new(&incarnation).expect("an incarnation"),
            register: Register::new(vouch, 1_000),
            ledger,
            live: BTreeMap::new(),
            conversations: BTreeMap::new(),
            attachments: 0,
            number: number * 1_000_000,
        };
        supervisor.take_over(host, now)?;
        Ok(supervisor)
    }

    /// The jobs of those before: what had not ended is lost (J-1.4).
    fn take_over(&mut self, host: &mut Host, now: Instant) -> Stepped {
        let entries: Vec<_> = self.ledger.jobs().cloned().collect();
        for entry in entries {
            let job = entry.intended.job.clone();
            self.register.enter(job.clone(), entry.intended.digest, now, ());
            self.register.end(&job, ());
            if entry.is_unfinished() {
                let started = entry.was_started();
                let at_us = host.now.as_micros();
                let ended = Ended { job, at_us, started, end: End::Lost, seal: None };
                self.record(host, "lost", JournalRecord::Ended(Box::new(ended)))?;
            }
        }
        Ok(())
    }

    fn record(&mut self, host: &mut Host, name: &str, record: JournalRecord) -> Stepped {
        host.write(name, &record)?;
        let applied = self.ledger.apply(record);
        assert!(
            applied.is_ok() || host.sabotage.is_some(),
            "steps come in their order: {applied:?}"
        );
        Ok(())
    }

    /// A client has connected.
    pub(crate) fn accept(&mut self, host: &mut Host, link: u64) {
        let window_bytes = 1 << host.rng.between(host.window_bits, 17);
        let incarnation = Some(self.incarnation.clone());
        let config = Config { window_bytes, incarnation, ..Config::default() };
        let connection = Connection::new(Role::Server, config, host.now);
        let conversation = Conversation { connection, seats: BTreeMap::new(), over: false };
        self.conversations.insert(link, conversation);
    }

    /// Another program takes its place, with everything that it holds: all links end, nothing else.
    pub(crate) fn upgrade(&mut self, host: &mut Host) {
        host.note("the supervisor is upgraded");
        for conversation in self.conversations.values_mut() {
            conversation.connection.close(GoodbyeCode::Restart, "");
        }
        if host.is_sabotaged(Sabotage::ForgetsAtUpgrade) {
            self.live.clear();
        }
    }

    /// Does everything that can be done now; whether that was anything.
    pub(crate) fn run(&mut self, host: &mut Host) -> Result<bool, Killed> {
        let mut moved = false;
        let links: Vec<u64> = self.conversations.keys().copied().collect();
        for link in links {
            while let Some(event) =
                self.conversations.get_mut(&link).and_then(|c| c.connection.poll_event())
            {
                moved = true;
                self.handle(host, link, event)?;
            }
        }
        let jobs: Vec<JobId> = self.live.keys().cloned().collect();
        for job in jobs {
            moved |= self.run_job(host, &job)?;
        }
        Ok(moved)
    }

    fn channel(&mut self, link: u64, channel: ChannelId) -> Option<afar_proto::Channel<'_>> {
        self.conversations.get_mut(&link)?.connection.channel(channel)
    }

    fn refuse(&mut self, link: u64, channel: ChannelId, refused: &Refused) {
        if let Some(channel) = self.channel(link, channel) {
            channel.refuse(refused);
        }
    }

    fn handle(&mut self, host: &mut Host, link: u64, event: Event) -> Stepped {
        match event {
            Event::Open { channel, spec } => return self.open(host, link, channel, &spec),
            Event::Attach { channel, attach } => self.attach(host, link, channel, &attach),
            Event::Query { channel, query } => self.query(host, link, channel, &query),
            Event::Data { channel, bytes, .. } => {
                if let Some((live, id)) = self.seated(link, channel)
                    && live.machine.input(id, bytes.len())
                {
                    live.stdin.extend(bytes);
                }
            }
            Event::End { channel, .. } => {
                if let Some((live, id)) = self.seated(link, channel)
                    && live.machine.input_end(id)
                {
                    live.stdin_ended = true;
                }
            }
            Event::Writable { channel, stream } => self.allow(link, channel, stream),
            Event::Stopped { channel, stream } => {
                if let Some((live, id)) = self.seated(link, channel) {
                    live.machine.stop(id, stream);
                }
            }
            Event::Acked { channel, stream, offset } => {
                let early = host.is_sabotaged(Sabotage::ReleasesEarly);
                if let Some((live, id)) = self.seated(link, channel) {
                    // What was sent has not come yet.
                    let sent = live.machine.streams().get(stream.name()).map(|info| info.bytes);
                    let offset = sent.filter(|_| early).unwrap_or(offset);
                    live.machine.acked(id, stream, offset);
                }
            }
            Event::Confirmed { channel } => self.leave(host, link, channel, Leave::Closed),
            Event::Detached { channel } => {
                self.leave(host, link, channel, Leave::Detached);
                self.release(link, channel);
            }
            Event::Abandoned { channel } => {
                self.leave(host, link, channel, Leave::Closed);
                self.release(link, channel);
            }
            Event::Closed(error) => {
                // Who says goodbye because it heard nothing wants to come back.
                let done = |goodbye: &Goodbye| goodbye.code == GoodbyeCode::Done;
                let left = matches!(&error, ConnectionError::PeerClosed(said) if done(said));
                let how = if left { Leave::Goodbye } else { Leave::Lost };
                let conversation = self.conversations.get_mut(&link);
                let channels: Vec<ChannelId> =
                    conversation.iter().flat_map(|c| c.seats.keys().copied()).collect();
                for channel in channels {
                    self.leave(host, link, channel, how);
                }
                if let Some(conversation) = self.conversations.get_mut(&link) {
                    conversation.over = true;
                }
            }
            Event::Failed { message, .. } => host.note(format_args!("a channel failed: {message}")),
            _ => {}
        }
        Ok(())
    }

    fn release(&mut self, link: u64, channel: ChannelId) {
        if let Some(conversation) = self.conversations.get_mut(&link) {
            conversation.connection.release(channel);
        }
    }

    fn seated(&mut self, link: u64, channel: ChannelId) -> Option<(&mut Live, AttachmentId)> {
        let seat = self.conversations.get(&link)?.seats.get(&channel)?;
        let id = seat.attachment;
        self.live.get_mut(&seat.job).map(|live| (live, id))
    }

    fn leave(&mut self, host: &mut Host, link: u64, channel: ChannelId, how: Leave) {
        let seat = self.conversations.get_mut(&link).and_then(|c| c.seats.remove(&channel));
        let Some(seat) = seat else { return };
        let Some(live) = self.live.get_mut(&seat.job) else { return };
        if live.machine.leave(seat.attachment, how) {
            host.note(format_args!("job {} is cancelled: {how:?}", live.index));
        }
    }

    // Requests.

    fn open(&mut self, host: &mut Host, link: u64, at: ChannelId, spec: &OpenSpec) -> Stepped {
        let now = host.boottime();
        let retry = spec.retry.as_ref().map(|retry| Retry {
            age: Duration::from_millis(retry.age_ms),
            same_incarnation: retry.incarnation.as_ref() == Some(&self.incarnation),
        });
        let mut decision =
            self.register.decide(&key(&spec.job), &spec.digest(), retry.as_ref(), now);
        if decision == Decision::Same
            && spec.retry.is_some()
            && host.is_sabotaged(Sabotage::StartsTwice)
        {
            decision = Decision::Start;
        }
        match decision {
            Decision::Start => return self.start(host, link, at, spec),
            Decision::Same => self.attach_to(host, link, at, &spec.job, None),
            Decision::Conflict => {
                self.refuse(link, at, &refused(RefusalReason::Conflict, Started::No));
            }
            Decision::Unknown => {
                self.refuse(link, at, &refused(RefusalReason::Unknown, Started::Unknown));
            }
        }
        Ok(())
    }

    /// Steps 1 to 4 of J-1.4.
    fn start(&mut self, host: &mut Host, link: u64, at: ChannelId, spec: &OpenSpec) -> Stepped {
        let index = host.plan_of(spec).expect("only planned jobs are asked for");
        host.asked.insert(spec.job.clone(), index);
        self.number += 1;
        let intended = Intended {
            job: key(&spec.job),
            number: self.number,
            at_us: host.now.as_micros(),
            digest: spec.digest(),
            mark: format!("m{}", self.number),
            spool: String::new(),
            summary: Summary::of(&JobInfo::new(spec.job.clone(), JobState::Waiting, b"job")),
            detached: spec.detach,
            keep_s: spec.keep_s,
        };
        if !host.is_sabotaged(Sabotage::SkipsIntent) && !host.is_sabotaged(Sabotage::StartsTwice) {
            self.record(host, "intent", JournalRecord::Intended(Box::new(intended)))?;
        }
        self.register.enter(key(&spec.job), spec.digest(), host.boottime(), ());
        host.step("between intent and spawn")?;
        if host.plans[index].fails {
            let refused = refused(RefusalReason::NotFound, Started::No);
            let job = key(&spec.job);
            let at_us = host.now.as_micros();
            let record = NotStarted { job, at_us, refused: refused.clone() };
            self.record(host, "refused", JournalRecord::NotStarted(record))?;
            self.register.end(&key(&spec.job), ());
            self.refuse(link, at, &refused);
            return Ok(());
        }
        let pid = host.spawn(index);
        host.step("between spawn and started")?;
        let spawned = Spawned {
            job: key(&spec.job),
            pid,
            start_ticks: u64::from(pid),
            at_us: host.now.as_micros(),
        };
        if self.ledger.job(&spawned.job).is_some() {
            self.record(host, "started", JournalRecord::Started(spawned))?;
        }
        let mut machine = Machine::new(Settings::of(spec));
        if !spec.detach {
            let id = self.seat(link, at, &spec.job);
            machine.attach(&AttachRequest::opening(id)).expect("the first has room");
        }
        machine.started(Instant::ZERO);
        let live = Live {
            index,
            machine,
            began: host.now,
            pid: Some(pid),
            stdin: VecDeque::new(),
            stdin_ended: !spec.stdin,
            stdin_closed: false,
            eof_told: [false; 2],
            exit_told: false,
            end_written: false,
            kill_at: None,
        };
        self.live.insert(spec.job.clone(), live);
        let started_at_us = host.now.as_micros();
        let opened = Opened { job: spec.job.clone(), pid, started_at_us, note: None };
        if let Some(mut channel) = self.channel(link, at) {
            channel.accept(&opened);
        }
        for stream in Stream::OUTPUTS {
            self.allow(link, at, stream);
        }
        host.step("behind opened")
    }

    fn seat(&mut self, link: u64, channel: ChannelId, job: &JobId) -> AttachmentId {
        self.attachments += 1;
        let attachment = AttachmentId(self.attachments);
        if let Some(conversation) = self.conversations.get_mut(&link) {
            let seat = Seat { job: job.clone(), attachment, allowed: [0; 2] };
            conversation.seats.insert(channel, seat);
        }
        attachment
    }

    fn attach(&mut self, host: &mut Host, link: u64, at: ChannelId, attach: &Attach) {
        self.attach_to(host, link, at, &attach.job, Some(attach));
    }

    fn attach_to(
        &mut self,
        host: &mut Host,
        link: u64,
        at: ChannelId,
        job: &JobId,
        attach: Option<&Attach>,
    ) {
        if !self.live.contains_key(job)
            && let Err(refused) = self.revive(host, job)
        {
            return self.refuse(link, at, &refused);
        }
        let id = self.seat(link, at, job);
        let wanted = |stream: Stream| attach.and_then(|a| a.streams.get(stream.name()));
        let request = attach.map_or_else(
            || AttachRequest::opening(id),
            |attach| AttachRequest {
                id,
                mode: attach.mode,
                wanted: Stream::OUTPUTS.map(|stream| wanted(stream).map(|offset| offset.0)),
                start: None,
                follow: attach.follow,
            },
        );
        let Some(live) = self.live.get_mut(job) else { return };
        let attached = match live.machine.attach(&request) {
            Ok(attached) => attached,
            Err(error) => {
                host.note(format_args!("not attached to job {}: {error}", live.index));
                let refused = refused(RefusalReason::BeyondEnd, Started::Unknown);
                return self.refuse(link, at, &refused);
            }
        };
        let forgets = host.is_sabotaged(Sabotage::ForgetsStdin);
        let streams = Stream::OUTPUTS.into_iter().filter_map(|stream| {
            let offset = attached.streams[index(stream)]?;
            Some((stream.name().to_owned(), AttachedStream { offset }))
        });
        let told = Attached {
            job: job.clone(),
            pid: live.pid,
            started_at_us: Some(live.began.as_micros()),
            streams: streams.collect(),
            stdin: attached.stdin.map(|at| if forgets { at.taken } else { at.received }),
            terminal: false,
        };
        if let Some(mut channel) = self.channel(link, at) {
            let taken = attached.stdin.map_or(0, |at| at.taken);
            channel.accept_attach_with(&told, taken);
        }
        for stream in Stream::OUTPUTS {
            self.allow(link, at, stream);
        }
    }

    /// A job that has ended and is only in the journal: what can still be told of it.
    fn revive(&mut self, host: &Host, job: &JobId) -> Result<(), Refused> {
        let entry = self.ledger.job(&key(job));
        let unknown = || refused(RefusalReason::NoSuchJob, Started::Unknown);
        let entry = entry.ok_or_else(unknown)?;
        if let Some(not_started) = &entry.refused {
            return Err(not_started.refused.clone());
        }
        let lost = || refused(RefusalReason::Unknown, entry.was_started());
        let seal = entry.ended.as_ref().and_then(|ended| ended.seal.clone()).ok_or_else(lost)?;
        let live = Live {
            index: host.asked.get(job).copied().ok_or_else(unknown)?,
            machine: Machine::ended(seal, None),
            began: host.now,
            pid: None,
            stdin: VecDeque::new(),
            stdin_ended: true,
            stdin_closed: true,
            eof_told: [true; 2],
            exit_told: true,
            end_written: true,
            kill_at: None,
        };
        self.live.insert(job.clone(), live);
        Ok(())
    }

    fn query(&mut self, host: &mut Host, link: u64, at: ChannelId, query: &Query) {
        let Query::Kill(kill) = query else {
            return self.refuse(link, at, &refused(RefusalReason::Unsupported, Started::No));
        };
        let Some(live) = self.live.get_mut(&kill.job) else {
            return self.refuse(link, at, &refused(RefusalReason::NoSuchJob, Started::Unknown));
        };
        host.history.end_wanted(live.index);
        live.machine.end(Cause::Cancelled);
        let answer = Answer::Done { job: kill.job.clone() };
        if let Some(channel) = self.channel(link, at) {
            channel.answer(&answer);
        }
    }

    /// Lets the machine tell as much more of a stream as the connection has room for.
    fn allow(&mut self, link: u64, at: ChannelId, stream: Stream) {
        let Some(conversation) = self.conversations.get_mut(&link) else { return };
        let Some(mut channel) = conversation.connection.channel(at) else { return };
        let room = channel.writable(stream);
        let Some(seat) = conversation.seats.get_mut(&at) else { return };
        let allowed = &mut seat.allowed[index(stream)];
        let more = room.saturating_sub(*allowed);
        *allowed += more;
        if let Some(live) = self.live.get_mut(&seat.job).filter(|_| more > 0) {
            let more = Allowance { bytes: more, pieces: usize::MAX };
            live.machine.allow(seat.attachment, stream, more);
        }
    }

    // Jobs.

    fn run_job(&mut self, host: &mut Host, job: &JobId) -> Result<bool, Killed> {
        let Some(live) = self.live.get_mut(job) else { return Ok(false) };
        let mut moved = live.feed_stdin(host);
        moved |= live.read_output(host);
        moved |= live.notice_exit(host);
        let clock = live.clock(host.now);
        live.machine.handle_timeout(clock);
        if let Some(pid) = live.pid.filter(|_| live.kill_at.is_some_and(|at| at <= host.now)) {
            live.kill_at = None;
            host.told_to_end(pid, true);
            moved = true;
        }
        let early = host.is_sabotaged(Sabotage::SealsBeforeWriting);
        if !early {
            moved |= self.write_end(host, job)?;
        }
        while let Some(action) = self.live.get_mut(job).and_then(|l| l.machine.poll_action()) {
            moved = true;
            self.act(host, job, action);
        }
        if early && host.rng.percent(10) {
            moved |= self.write_end(host, job)?;
        }
        if self.live.get(job).is_some_and(|live| live.machine.is_done()) {
            self.live.remove(job);
            self.register.end(&key(job), ());
        }
        Ok(moved)
    }

    /// Step 5 of J-1.4, before anybody hears the seal.
    fn write_end(&mut self, host: &mut Host, job: &JobId) -> Result<bool, Killed> {
        let Some(live) = self.live.get_mut(job).filter(|live| !live.end_written) else {
            return Ok(false);
        };
        let Some(seal) = live.machine.seal().cloned() else { return Ok(false) };
        live.end_written = true;
        let written = key(job);
        if self.ledger.job(&written).is_none() {
            return Ok(true);
        }
        let record = Ended {
            job: written,
            at_us: host.now.as_micros(),
            started: Started::Yes,
            end: seal.end.clone(),
            seal: Some(seal),
        };
        self.record(host, "ended", JournalRecord::Ended(Box::new(record)))?;
        host.step("between ended and seal")?;
        Ok(true)
    }

    fn act(&mut self, host: &mut Host, job: &JobId, action: Action) {
        let Some(live) = self.live.get_mut(job) else { return };
        match action {
            Action::Tell(attachment, told) => self.tell(host, attachment, told),
            Action::CloseOutput(stream) => {
                if let Some(process) = live.pid.and_then(|pid| host.processes.get_mut(&pid)) {
                    let output = process.output(stream);
                    output.closed = true;
                    output.taken = output.written;
                    live.eof_told[index(stream)] = true;
                }
            }
            // This supervisor has no spool.
            Action::Read { id, stream, .. } => live.machine.spool_read(id, stream, None),
            Action::DropSpooled => {}
            Action::End(cause) => {
                let job = live.index;
                host.note(format_args!("job {job} is to end: {cause:?}"));
                // With nobody there, it is read on whatever it says on its way out, and the oldest of
                // it is dropped.
                host.history.excuse(job);
                match cause {
                    Cause::Timeout => host.history.timed_out(job),
                    _ => host.history.end_wanted(job),
                }
                if let Some(pid) = live.pid {
                    live.kill_at = Some(host.now.after(GRACE));
                    host.told_to_end(pid, false);
                }
            }
        }
    }

    fn tell(&mut self, host: &Host, attachment: AttachmentId, told: Told) {
        let found = self.conversations.iter_mut().find_map(|(link, conversation)| {
            let of = |(_, seat): &(&ChannelId, &mut Seat)| seat.attachment == attachment;
            let (channel, seat) = conversation.seats.iter_mut().find(of)?;
            Some((*link, *channel, seat, &mut conversation.connection))
        });
        let Some((link, at, seat, connection)) = found else { return };
        let Some(mut channel) = connection.channel(at) else { return };
        match told {
            Told::Data { stream, clock_us, mut bytes } => {
                let allowed = &mut seat.allowed[index(stream)];
                *allowed = allowed.saturating_sub(bytes.len());
                if host.is_sabotaged(Sabotage::DropsBytes) && bytes.len() > 7 {
                    bytes.truncate(bytes.len() - 1);
                }
                channel.write(stream, clock_us, bytes).expect("only what there is room for");
                self.allow(link, at, stream);
            }
            Told::Gap { stream, to, .. } => channel.gap(stream, to),
            Told::End(stream) => channel.finish(stream),
            Told::InputTaken(bytes) => channel.consume(Stream::Stdin, bytes),
            Told::InputClosed => channel.stop(Stream::Stdin),
            Told::Exit(mut report) => {
                if host.is_sabotaged(Sabotage::MakesUpStatus) {
                    report.end = End::Exited { code: 0 };
                }
                channel.stop(Stream::Stdin);
                channel.exit(&report);
            }
            Told::Seal(mut seal) => {
                if host.is_sabotaged(Sabotage::MakesUpStatus) {
                    seal.end = End::Exited { code: 0 };
                }
                if !host.is_sabotaged(Sabotage::NeverSeals) {
                    channel.seal(&seal);
                }
            }
            Told::Finished => {
                let info = JobInfo::new(seat.job.clone(), JobState::Running, b"");
                channel.answer(&Answer::Page(JobPage { jobs: vec![info], next: None }));
            }
            Told::Fenced => {
                channel.reset("somebody else has attached to it");
                if let Some(conversation) = self.conversations.get_mut(&link) {
                    conversation.seats.remove(&at);
                }
            }
        }
    }

    /// When something is due next.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        let of_links = self.conversations.values().filter_map(|c| c.connection.poll_timeout());
        let of_jobs = self.live.values().flat_map(|live| {
            let due = live.machine.poll_timeout(live.clock(now));
            due.map(|at| live.began.after(at.since(Instant::ZERO))).into_iter().chain(live.kill_at)
        });
        of_links.chain(of_jobs).min()
    }

    /// Whether the last word on a job is in the journal.
    pub(crate) fn has_written(&self, job: &JobId) -> bool {
        let entry = self.ledger.job(&key(job));
        entry.is_some_and(|entry| !entry.is_unfinished())
    }
}
