//! One job: what happens to it comes in, what is to be done comes out.

use std::collections::{BTreeMap, VecDeque};

use afar_proto::Instant;
use afar_proto::connection::Stream;
use afar_proto::message::{AttachMode, JobState, OnDisconnect, Overflow, StreamInfo};
use afar_proto::outcome::{End, ExitReport, Seal, SealDetail};
use afar_proto::resume::{Retained, resume};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::attachment::{Attachment, Cursor};
use super::held::Piece;
use super::limits::{
    ATTACHMENTS_MAX, DRAIN_MAX, DRAIN_SILENCE, HELD_BYTES_MAX, SPILL_BYTES, SPOOL_READ_BYTES,
    UNACKED_BYTES_MAX, UNCONFIRMED_LIFETIME,
};
use super::source::{Place, Source};
use super::{
    Action, Allowance, AttachError, AttachRequest, AttachedAt, AttachmentId, Cause, Exited, Leave,
    Settings, SpoolState, StdinAt, Told,
};

/// One job.
///
/// Memory is bounded whatever its process and those who are attached do: by
/// [`UNACKED_BYTES_MAX`] a stream while it is owned, by [`HELD_BYTES_MAX`] while it is not, and by
/// what those who are attached have said that they take, provided that actions are drained.
///
/// It can be written down, to go on in another process: without those who are attached, who come again, and
/// when its actions are drained. Its clock has to go on too.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    settings: Settings,
    sources: [Source; 2],
    #[serde(skip)]
    attachments: Vec<Attachment>,
    /// Who owns the job; one of `attachments`.
    #[serde(skip)]
    owner: Option<AttachmentId>,
    /// `Some` iff the job still reads stdin.
    stdin: Option<Stdin>,
    started: bool,
    timeout_at: Option<Instant>,
    cause: Option<Cause>,
    /// Whether the last owner wanted nothing more of it: then its output is read and let go of.
    given_up: bool,
    exit: Option<Exit>,
    sealed: Option<Sealed>,
    /// Whether an owner has said that it has everything.
    confirmed: bool,
    /// Whether somebody has owned it, and has not left it on purpose: it may come back.
    awaited: bool,
    spool: SpoolState,
    #[serde(skip)]
    actions: VecDeque<Action>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stdin {
    at: StdinAt,
    /// Whether its end was received.
    ended: bool,
}

/// The process has ended.
#[derive(Debug, Serialize, Deserialize)]
struct Exit {
    report: ExitReport,
    session_restarted: bool,
    #[serde(default)]
    unkillable: bool,
    /// When output that others hold open counts as silent; moves with each piece.
    silent_at: Instant,
    /// When it counts as over in any case.
    over_at: Instant,
}

/// The output is over too.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed {
    seal: Box<Seal>,
    at: Instant,
}

impl Machine {
    /// A job that waits to be started.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let stdin = StdinAt { received: 0, taken: 0 };
        Self {
            sources: [
                Source::new(Stream::Stdout, true),
                Source::new(Stream::Stderr, !settings.merged),
            ],
            attachments: Vec::new(),
            owner: None,
            stdin: settings.stdin.then_some(Stdin { at: stdin, ended: false }),
            started: false,
            timeout_at: None,
            cause: None,
            given_up: false,
            exit: None,
            sealed: None,
            confirmed: false,
            awaited: false,
            spool: SpoolState::Absent,
            actions: VecDeque::new(),
            settings,
        }
    }

    /// A job that has ended and was confirmed, or whose rest is in the spool: its outcome can still be
    /// told, and what the spool has from the first of these offsets on, up to the second.
    #[must_use]
    pub fn ended(seal: Seal, spooled: Option<([u64; 2], [u64; 2])>) -> Self {
        let (from, to) = spooled.unwrap_or_default();
        let mut bounds = from.into_iter().zip(to);
        let stream = |stream: Stream| {
            let (from, to) = bounds.next().unwrap_or_default();
            Source::ended(stream, seal.streams.get(stream.name()), from..to)
        };
        let report = ExitReport { end: seal.end.clone(), receipt: seal.receipt };
        let (silent_at, over_at) = (Instant::ZERO, Instant::ZERO);
        let session_restarted = seal.session_restarted;
        Self {
            sources: Stream::OUTPUTS.map(stream),
            started: true,
            exit: Some(Exit { report, session_restarted, unkillable: false, silent_at, over_at }),
            confirmed: true,
            sealed: Some(Sealed { seal: Box::new(seal), at: Instant::ZERO }),
            ..Self::new(Settings::default())
        }
    }

    // What happens to the process.

    /// Its process was started: its time limit counts from now on (`J-2.5`).
    pub fn started(&mut self, now: Instant) {
        self.started = true;
        self.timeout_at = self.settings.timeout.map(|timeout| now.after(timeout));
    }

    /// Bytes were read of a stream, not more than [`Machine::readable`] allows.
    pub fn output(&mut self, now: Instant, stream: Stream, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        if let Some(exit) = &mut self.exit {
            exit.silent_at = now.after(DRAIN_SILENCE);
        }
        let clock_us = now.as_micros();
        let Some(index) = index_of(stream) else { return };
        let Some(source) = self.sources.get_mut(index) else { return };
        let offset = source.produced();
        let mut lagging = false;
        for attachment in &mut self.attachments {
            let Some(cursor) = attachment.cursors.get_mut(index) else { continue };
            let fits = bytes.len() <= cursor.room.bytes && cursor.room.pieces > 0;
            if cursor.over || cursor.next != offset || !fits || cursor.until.is_some() {
                lagging |= !cursor.over;
                continue;
            }
            cursor.next = offset.saturating_add(bytes.len() as u64);
            cursor.room.take(bytes.len());
            let told = Told::Data { stream, clock_us, bytes: bytes.clone() };
            self.actions.push_back(Action::Tell(attachment.id, told));
        }
        source.produce(clock_us, bytes);
        if lagging {
            self.pump_all();
        }
        self.bound(index);
    }

    /// A stream has ended; `complete` iff by itself.
    pub fn output_end(&mut self, stream: Stream, complete: bool) {
        if let Some(source) = self.source(stream) {
            source.end(complete);
            self.pump_all();
        }
    }

    /// Its pipe took so many bytes of stdin.
    pub fn input_taken(&mut self, bytes: usize) {
        if let Some(stdin) = &mut self.stdin {
            let taken = stdin.at.taken.saturating_add(bytes as u64);
            stdin.at.taken = taken.min(stdin.at.received);
        }
        self.tell_owner(Told::InputTaken(bytes));
    }

    /// It reads no more stdin.
    pub fn input_closed(&mut self) {
        if self.stdin.take().is_some() {
            self.tell_owner(Told::InputClosed);
        }
    }

    /// The process has ended. What was read of its pipes so far was told before.
    pub fn exited(&mut self, now: Instant, exited: Exited) {
        if self.exit.is_some() {
            return;
        }
        let Exited { end, receipt, session_restarted, owed } = exited;
        let end = match self.cause {
            Some(Cause::Timeout) => End::Timeout,
            Some(Cause::Cancelled | Cause::Overflow) => End::Cancelled,
            Some(Cause::Lost) => End::Lost,
            None => end,
        };
        for (source, owed) in self.sources.iter_mut().zip(owed) {
            source.owed = if source.is_open() { owed } else { 0 };
        }
        self.stdin = None;
        let (silent_at, over_at) = (now.after(DRAIN_SILENCE), now.after(DRAIN_MAX));
        let report = ExitReport { end, receipt };
        let unkillable = false;
        self.exit = Some(Exit { report, session_restarted, unkillable, silent_at, over_at });
        self.pump_all();
    }

    /// The process was killed and is there all the same: the job is over without it (`J-2.8`).
    pub fn unkillable(&mut self, now: Instant, exited: Exited) {
        self.exited(now, exited);
        if let Some(exit) = &mut self.exit {
            exit.unkillable = true;
        }
    }

    /// Lets time pass; a call too early does no harm. To be called too when anything else has
    /// happened: what is over is sealed here.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.exit.is_none() && self.timeout_at.is_some_and(|at| now >= at) {
            self.begin(Cause::Timeout);
        }
        self.seal_if_over(now);
        if self.expires_at().is_some_and(|at| now >= at) {
            self.settings.keep = None;
            self.confirm();
        }
    }

    /// When [`Machine::handle_timeout`] is to be called next, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let Some(exit) = &self.exit else {
            return self.timeout_at.filter(|_| self.cause.is_none());
        };
        if self.sealed.is_some() {
            return self.expires_at();
        }
        let silent = Some(exit.silent_at).filter(|at| *at > now);
        let over = Some(exit.over_at).filter(|at| *at > now);
        silent.into_iter().chain(over).min()
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if self.actions.is_empty() && self.actions.capacity() > 64 {
            // A job that idles keeps nothing of what it once needed.
            self.actions = VecDeque::new();
        }
        action
    }

    /// How much of a stream's pipe may be read now (`J-3.1`, `J-3.2`).
    #[must_use]
    pub fn readable(&self, stream: Stream) -> Allowance {
        let Some((index, source)) = index_of(stream)
            .and_then(|index| Some((index, self.sources.get(index)?)))
            .filter(|(_, source)| source.is_open())
        else {
            return Allowance::NONE;
        };
        if let Some(cursor) = self.owner_cursor(index) {
            if cursor.next != source.produced() {
                return Allowance::NONE;
            }
            let unacked = UNACKED_BYTES_MAX.saturating_sub(source.held.bytes());
            let Allowance { bytes, pieces } = cursor.room;
            return Allowance { bytes: bytes.min(Allowance::of_bytes(unacked).bytes), pieces };
        }
        // Who is being ended, and has things to say on its way out, must not hang in a full pipe.
        let spools = self.spool == SpoolState::Open;
        let drops = self.cause.is_some() || self.settings.overflow != Overflow::Block;
        if self.given_up || (drops && !spools) {
            return Allowance::UNBOUNDED;
        }
        let room = HELD_BYTES_MAX.saturating_sub(source.held.bytes());
        // What the process wrote before its end is taken in whatever is held already: a pipe's
        // worth, without which nothing could be sealed.
        Allowance::of_bytes(if self.exit.is_some() { room.max(source.owed) } else { room })
    }

    // The spool.

    /// What the spool takes now. To be told before the first output, and whenever it changes.
    pub fn spool_is(&mut self, state: SpoolState) {
        if self.spool != SpoolState::Failed && self.spool != state {
            self.spool = state;
            for index in 0..self.sources.len() {
                self.bound(index);
            }
        }
    }

    /// The next piece to be handed over to the spool, of at most so many bytes: of a job that is kept
    /// all (`J-3.3`), of one that nobody owns what there is no room for in memory (`J-3.2`).
    pub fn next_for_spool(&mut self, bytes_max: usize) -> Option<(Stream, Piece)> {
        let index = (0..self.sources.len()).find(|index| self.is_due_for_spool(*index))?;
        let source = self.sources.get_mut(index)?;
        Some((source.stream, source.next_for_spool(bytes_max)?))
    }

    /// Whether there is something for the spool that it has not got.
    #[must_use]
    pub fn has_for_spool(&self) -> bool {
        (0..self.sources.len()).any(|index| self.is_due_for_spool(index))
    }

    fn is_due_for_spool(&self, index: usize) -> bool {
        let Some(source) = self.sources.get(index).filter(|source| source.has_for_spool()) else {
            return false;
        };
        if self.given_up
            || self.confirmed
            || matches!(self.spool, SpoolState::Absent | SpoolState::Failed)
        {
            return false;
        }
        // What is left of one that is over must outlive this process.
        let spills = source.held.bytes() >= SPILL_BYTES || self.sealed.is_some();
        self.settings.keep.is_some()
            || (spills && self.owner_cursor(index).is_none() && self.owner.is_none())
    }

    /// Where the output begins that the spool will get.
    #[must_use]
    pub fn spool_begin(&self) -> [u64; 2] {
        self.sources.each_ref().map(|source| source.held.start())
    }

    /// What stands before the offsets `to` of stdout and stderr is on the disk; of this, what is behind
    /// `kept_from` is still there.
    pub fn spool_has(&mut self, to: [u64; 2], kept_from: [u64; 2]) {
        for index in 0..self.sources.len() {
            let unowned = self.owner_cursor(index).is_none();
            let Some(source) = self.sources.get_mut(index) else { continue };
            let (Some(to), Some(kept_from)) = (to.get(index), kept_from.get(index)) else {
                continue;
            };
            source.spool_has(*to, *kept_from);
            // What an owner has not acknowledged is at hand for as long as there is room.
            let spooled_to = source.spooled.to;
            source.held.release(if unowned {
                spooled_to
            } else {
                spooled_to.min(source.released())
            });
        }
        self.pump_all();
    }

    /// What the spool had for an attachment from the offset on that it was asked for. `None`: nothing
    /// of what was said to be there can be read.
    pub fn spool_read(&mut self, id: AttachmentId, stream: Stream, pieces: Option<Vec<Piece>>) {
        let Some(at) = self.attachments.iter().position(|attachment| attachment.id == id) else {
            return;
        };
        let Some(index) = index_of(stream) else { return };
        let Self { attachments, sources, actions, .. } = self;
        let cursor = attachments.get_mut(at).and_then(|it| it.cursors.get_mut(index));
        let (Some(cursor), Some(source)) = (cursor, sources.get(index)) else { return };
        cursor.reading = false;
        let mut tell = |told| actions.push_back(Action::Tell(id, told));
        let until = cursor.until.unwrap_or(u64::MAX);
        let mut read = false;
        for piece in pieces.unwrap_or_default() {
            // One that begins before what is wanted, or behind what there is room for, comes again.
            if cursor.over || cursor.room.is_none() || cursor.next >= until {
                break;
            }
            if piece.offset > cursor.next {
                tell(Told::Gap { stream, from: cursor.next, to: piece.offset.min(until) });
                cursor.next = piece.offset.min(until);
            }
            let room = u64::try_from(cursor.room.bytes).unwrap_or(u64::MAX);
            let bytes_max = room.min(until.saturating_sub(cursor.next));
            let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
            let Some(part) = piece.part(cursor.next, bytes_max) else { continue };
            cursor.next = part.end();
            cursor.room.take(part.bytes.len());
            read = true;
            tell(Told::Data { stream, clock_us: part.clock_us, bytes: part.bytes });
        }
        let place = source.place_of(cursor.next);
        if !read && !cursor.over && place == Place::Spool && !cursor.room.is_none() {
            // It was there, and is damaged.
            let to = source.spooled.to.min(until);
            tell(Told::Gap { stream, from: cursor.next, to });
            cursor.next = to;
        }
        self.pump(at);
    }

    /// What the spool need not keep any more of stdout and stderr.
    #[must_use]
    pub fn released(&self) -> [u64; 2] {
        let keep = self.settings.keep.is_some() && !self.confirmed;
        self.sources.each_ref().map(|source| if keep { 0 } else { source.released() })
    }

    // What those who are attached say.

    /// Somebody attaches. An owner fences the one before it (`J-2.2`).
    ///
    /// # Errors
    /// See [`AttachError`]; nothing has changed then.
    pub fn attach(&mut self, request: &AttachRequest) -> Result<AttachedAt, AttachError> {
        let takes = request.mode == AttachMode::Take;
        if self.attachments.len() >= ATTACHMENTS_MAX && !(takes && self.owner.is_some()) {
            return Err(AttachError::TooMany);
        }
        let mut streams = [None; 2];
        let mut cursors = [Cursor::default(), Cursor::default()];
        let each = self.sources.iter_mut().zip(request.wanted).zip(&mut cursors).zip(&mut streams);
        for (((source, wanted), cursor), stream) in each {
            let Some(wanted) = wanted else {
                cursor.over = true;
                continue;
            };
            let retained = Retained { start: source.kept_from(), end: source.produced() };
            let resumed = resume(&retained, wanted)?;
            let next = source.start_at(resumed.offset, request.start);
            *stream = Some(next);
            let until = Some(source.produced()).filter(|_| !request.follow);
            // A stream that is merged into another has no end of its own: the seal says it.
            let over = source.is_absent();
            *cursor = Cursor { next, room: Allowance::NONE, until, reading: false, over };
        }
        if takes {
            self.fence();
            self.owner = Some(request.id);
            self.given_up = false;
            self.awaited = true;
        }
        let AttachRequest { id, follow, .. } = *request;
        if self.attachments.is_empty() {
            // Most jobs never have a second one.
            self.attachments.reserve_exact(1);
        }
        self.attachments.push(Attachment {
            id,
            cursors,
            follow,
            exit_told: false,
            seal_told: false,
        });
        let stdin = self.stdin.as_ref().filter(|stdin| takes && !stdin.ended);
        let at = AttachedAt { streams, stdin: stdin.map(|stdin| stdin.at) };
        self.pump_all();
        Ok(at)
    }

    /// The owner there is loses the job.
    fn fence(&mut self) {
        let Some(fenced) = self.owner.take() else { return };
        self.attachments.retain(|attachment| attachment.id != fenced);
        self.actions.push_back(Action::Tell(fenced, Told::Fenced));
    }

    /// An attachment takes so much more of a stream.
    pub fn allow(&mut self, id: AttachmentId, stream: Stream, more: Allowance) {
        let Some(at) = self.attachments.iter().position(|attachment| attachment.id == id) else {
            return;
        };
        let Some(index) = index_of(stream) else { return };
        let cursor = self.attachments.get_mut(at).and_then(|it| it.cursors.get_mut(index));
        let Some(cursor) = cursor else { return };
        cursor.room.add(more);
        // Usually it waits for nothing: then there is nothing to be looked for either.
        if self.sources.get(index).is_some_and(|source| cursor.next != source.produced()) {
            self.pump(at);
        }
    }

    /// An attachment has brought everything before `offset` to its destination. The owner's word
    /// releases it (`J-3.1`).
    pub fn acked(&mut self, id: AttachmentId, stream: Stream, offset: u64) {
        let keep = self.settings.keep.is_some();
        if self.owner != Some(id) {
            return;
        }
        let Some(source) = self.source(stream) else { return };
        if !keep {
            return source.release(offset);
        }
        // What is kept in any case is held as long as there is room for it, where no spool has it.
        let recent = source.produced().saturating_sub(HELD_BYTES_MAX);
        source.held.release(offset.min(recent.max(source.spooled.to)));
    }

    /// An attachment wants no more of a stream (`J-2.4`).
    pub fn stop(&mut self, id: AttachmentId, stream: Stream) {
        let owned = self.owner == Some(id);
        let Some(index) = index_of(stream) else { return };
        let Some(source) = self.sources.get_mut(index) else { return };
        let closes = owned && source.is_open();
        if closes {
            source.end(false);
            self.actions.push_back(Action::CloseOutput(stream));
        }
        let Some(at) = self.attachments.iter().position(|attachment| attachment.id == id) else {
            return;
        };
        // What was not told yet never is: nobody grants room for it any more.
        let cursor = self.attachments.get_mut(at).and_then(|it| it.cursors.get_mut(index));
        if let Some(cursor) = cursor.filter(|cursor| !cursor.over) {
            cursor.over = true;
            self.actions.push_back(Action::Tell(id, Told::End(stream)));
        }
        if closes { self.pump_all() } else { self.pump(at) }
    }

    /// Whether what this attachment sends reaches the job.
    #[must_use]
    pub fn is_owner(&self, id: AttachmentId) -> bool {
        self.owner == Some(id)
    }

    /// Bytes for stdin; whether the job gets them.
    pub fn input(&mut self, id: AttachmentId, bytes: usize) -> bool {
        if !self.is_owner(id) {
            return false;
        }
        let Some(stdin) = self.stdin.as_mut().filter(|stdin| !stdin.ended) else { return false };
        stdin.at.received = stdin.at.received.saturating_add(bytes as u64);
        true
    }

    /// The end of stdin; whether the job gets it.
    pub fn input_end(&mut self, id: AttachmentId) -> bool {
        if !self.is_owner(id) {
            return false;
        }
        self.stdin.as_mut().is_some_and(|stdin| !std::mem::replace(&mut stdin.ended, true))
    }

    /// An attachment ends (`J-2.3`, `J-3.6`). Returns whether that cancels the job.
    pub fn leave(&mut self, id: AttachmentId, how: Leave) -> bool {
        let Some(at) = self.attachments.iter().position(|attachment| attachment.id == id) else {
            return false;
        };
        self.attachments.swap_remove(at);
        if self.attachments.is_empty() {
            self.attachments = Vec::new();
        }
        if self.owner != Some(id) {
            return false;
        }
        self.owner = None;
        self.awaited = matches!(how, Leave::Lost | Leave::SentAway);
        let ends = match (how, self.settings.on_disconnect) {
            (Leave::Closed, _) | (Leave::Lost, Some(OnDisconnect::Kill)) => true,
            (Leave::Goodbye, on_disconnect) => on_disconnect != Some(OnDisconnect::Keep),
            (Leave::Lost | Leave::Detached | Leave::SentAway, _) => false,
        };
        let wants_nothing = ends && how != Leave::Lost;
        let cancels = ends && self.sealed.is_none();
        if cancels {
            self.begin(Cause::Cancelled);
        }
        // Who has only lost its link can come back for the outcome and for what was said on the way.
        if wants_nothing {
            if cancels { self.give_up() } else { self.confirm() }
        }
        for index in 0..self.sources.len() {
            self.bound(index);
        }
        cancels
    }

    /// Ends the job (`J-2.6`); the first cause stays.
    pub fn end(&mut self, cause: Cause) {
        self.begin(cause);
    }

    /// Lets go of what is kept of it, if it is over; returns whether it is.
    pub fn remove(&mut self) -> bool {
        if self.sealed.is_none() {
            return false;
        }
        self.settings.keep = None;
        self.confirm();
        true
    }

    // What is known of it.

    /// Up to where the spool has each stream, if nothing is on its way there: from there on it goes on
    /// in another process.
    #[must_use]
    pub fn spooled_to(&self) -> Option<[u64; 2]> {
        let settled = self.sources.iter().all(|source| source.spooled.to == source.spooled.asked);
        settled.then(|| self.sources.each_ref().map(|source| source.spooled.to))
    }

    /// How far it has come.
    #[must_use]
    pub fn state(&self) -> JobState {
        if self.exit.is_some() {
            return JobState::Ended;
        }
        if !self.started {
            return JobState::Waiting;
        }
        let unowned = self.owner.is_none();
        let full = |source: &Source| source.is_open() && self.readable(source.stream).is_none();
        if unowned && self.sources.iter().any(full) {
            return JobState::Blocked;
        }
        JobState::Running
    }

    /// How the process has ended.
    #[must_use]
    pub fn exit(&self) -> Option<&ExitReport> {
        self.exit.as_ref().map(|exit| &exit.report)
    }

    /// Why it is ended.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// The last word, once everything is over.
    #[must_use]
    pub fn seal(&self) -> Option<&Seal> {
        self.sealed.as_ref().map(|sealed| &*sealed.seal)
    }

    /// Its streams by name.
    #[must_use]
    pub fn streams(&self) -> BTreeMap<String, StreamInfo> {
        let named = |source: &Source| (source.stream.name().to_owned(), source.info());
        self.sources.iter().map(named).collect()
    }

    /// Whether somebody owns it.
    #[must_use]
    pub fn is_owned(&self) -> bool {
        self.owner.is_some()
    }

    /// How many look at it.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.attachments.len().saturating_sub(usize::from(self.owner.is_some()))
    }

    /// When what is kept of an ended job is let go of; `None` while that is not settled.
    #[must_use]
    pub fn expires_at(&self) -> Option<Instant> {
        let sealed = self.sealed.as_ref().filter(|_| !self.confirmed)?;
        let lifetime = match self.settings.keep {
            // Who has lost its link before it had everything can still come back for it (`J-3.6`).
            Some(keep) if self.awaited => keep.max(UNCONFIRMED_LIFETIME),
            Some(keep) => keep,
            None => UNCONFIRMED_LIFETIME,
        };
        Some(sealed.at.after(lifetime))
    }

    /// Whether nothing is left that anybody waits for: it is sealed, its owner has everything or
    /// wants nothing, and nobody is attached.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let settled = self.confirmed || self.is_stored();
        self.sealed.is_some() && settled && self.attachments.is_empty()
    }

    /// Whether somebody has said that everything is there, so that nothing need be kept.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Whether everything that is kept is on the disk.
    fn is_stored(&self) -> bool {
        matches!(self.spool, SpoolState::Open | SpoolState::Full)
            && self.sources.iter().all(Source::is_stored)
    }

    // Steps.

    fn begin(&mut self, cause: Cause) {
        if self.exit.is_none() && self.cause.is_none() {
            self.cause = Some(cause);
            self.actions.push_back(Action::End(cause));
        }
    }

    /// Nobody wants the output: it is read on, and only counted and hashed.
    fn give_up(&mut self) {
        if self.settings.keep.is_some() {
            return;
        }
        self.given_up = true;
        self.let_go();
    }

    /// Whoever owned the job has everything (`J-3.6`).
    fn confirm(&mut self) {
        if self.settings.keep.is_some() {
            return;
        }
        self.confirmed = true;
        self.let_go();
    }

    fn let_go(&mut self) {
        for source in &mut self.sources {
            source.release(source.produced());
        }
        self.pump_all();
    }

    /// Keeps what is held of a stream within its bounds.
    fn bound(&mut self, index: usize) {
        if self.owner_cursor(index).is_some() {
            return;
        }
        let (given_up, ending) = (self.given_up, self.cause.is_some());
        let Some(source) = self.sources.get_mut(index) else { return };
        if given_up {
            source.release(source.produced());
        } else if source.held.bytes() < HELD_BYTES_MAX || self.spool == SpoolState::Open {
            return;
        } else if self.spool == SpoolState::Full && self.settings.overflow == Overflow::Drop {
            self.actions.push_back(Action::DropSpooled);
            return;
        } else if ending || self.settings.overflow == Overflow::Drop {
            source.drop_oldest(HELD_BYTES_MAX);
        } else if self.settings.overflow == Overflow::Kill && source.is_open() {
            self.begin(Cause::Overflow);
            return;
        } else {
            return;
        }
        self.pump_all();
    }

    fn seal_if_over(&mut self, now: Instant) {
        let Some(exit) = self.exit.as_ref().filter(|_| self.sealed.is_none()) else { return };
        if !self.sources.iter().all(|source| self.is_drained(source, exit, now)) {
            return;
        }
        let streams_left_open = self.sources.iter().any(Source::is_open);
        let detail = match self.cause {
            _ if exit.unkillable => Some(SealDetail::Unkillable),
            Some(Cause::Overflow) => Some(SealDetail::OutputQuota),
            _ => None,
        };
        let seal = Seal {
            end: exit.report.end.clone(),
            receipt: exit.report.receipt,
            streams: self.sources.iter().map(|s| (s.stream.name().to_owned(), s.seal())).collect(),
            streams_left_open,
            session_restarted: exit.session_restarted,
            detail,
        };
        for source in &mut self.sources {
            source.end(false);
        }
        self.sealed = Some(Sealed { seal: Box::new(seal), at: now });
        if self.given_up {
            self.confirm();
        }
        self.pump_all();
    }

    /// Whether nothing more is to be expected of a stream, or waited for (`W-7.5`).
    fn is_drained(&self, source: &Source, exit: &Exit, now: Instant) -> bool {
        if !source.is_open() {
            return true;
        }
        // Where nothing may be read, silence says nothing about the writers.
        let silent = now >= exit.silent_at && !self.readable(source.stream).is_none();
        source.owed == 0 && (silent || now >= exit.over_at)
    }

    fn pump_all(&mut self) {
        let mut at = 0;
        while let Some(attachment) = self.attachments.get(at) {
            let id = attachment.id;
            self.pump(at);
            // One that is finished makes room for another one.
            if self.attachments.get(at).is_some_and(|attachment| attachment.id == id) {
                at = at.saturating_add(1);
            }
        }
    }

    /// Tells an attachment what it takes.
    fn pump(&mut self, at: usize) {
        let Self { attachments, sources, actions, exit, sealed, .. } = self;
        let Some(attachment) = attachments.get_mut(at) else { return };
        let id = attachment.id;
        let mut act = |action| actions.push_back(action);
        if let Some(exit) = exit.as_ref().filter(|_| !attachment.exit_told) {
            attachment.exit_told = true;
            act(Action::Tell(id, Told::Exit(Box::new(exit.report.clone()))));
        }
        for (source, cursor) in sources.iter_mut().zip(&mut attachment.cursors) {
            if !cursor.over {
                pump_stream(id, source, cursor, &mut act);
            }
        }
        if attachment.seal_told || !attachment.has_everything() {
            return;
        }
        if let Some(sealed) = sealed {
            attachment.seal_told = true;
            act(Action::Tell(id, Told::Seal(sealed.seal.clone())));
        } else if !attachment.follow {
            act(Action::Tell(id, Told::Finished));
            attachments.swap_remove(at);
            if self.owner == Some(id) {
                self.owner = None;
                self.awaited = false;
            }
        }
    }

    fn tell_owner(&mut self, told: Told) {
        if let Some(owner) = self.owner {
            self.actions.push_back(Action::Tell(owner, told));
        }
    }

    fn source(&mut self, stream: Stream) -> Option<&mut Source> {
        self.sources.get_mut(index_of(stream)?)
    }

    /// How far the owner has come with a stream; `None` if nobody owns the job, or it wants nothing
    /// of that stream.
    fn owner_cursor(&self, index: usize) -> Option<&Cursor> {
        let owner = self.owner?;
        let attachment = self.attachments.iter().find(|attachment| attachment.id == owner)?;
        attachment.cursors.get(index).filter(|cursor| !cursor.over)
    }
}

fn pump_stream(
    id: AttachmentId,
    source: &mut Source,
    cursor: &mut Cursor,
    tell: &mut impl FnMut(Action),
) {
    let stream = source.stream;
    let until = cursor.until.unwrap_or(u64::MAX).min(source.produced());
    loop {
        if cursor.reading {
            return;
        }
        let place = source.place_of(cursor.next);
        if let Place::Behind(next) = place
            && cursor.next < until
        {
            let to = next.min(until);
            tell(Action::Tell(id, Told::Gap { stream, from: cursor.next, to }));
            cursor.next = to;
            continue;
        }
        if cursor.next >= until {
            if !source.is_open() && until == source.produced() {
                cursor.over = true;
                return tell(Action::Tell(id, Told::End(stream)));
            }
            cursor.over = cursor.until == Some(until);
            return;
        }
        if cursor.room.is_none() {
            return;
        }
        let wanted = usize::try_from(until.saturating_sub(cursor.next)).unwrap_or(usize::MAX);
        if place == Place::Spool {
            cursor.reading = true;
            let bytes_max = wanted.min(cursor.room.bytes).min(SPOOL_READ_BYTES);
            return tell(Action::Read { id, stream, from: cursor.next, bytes_max });
        }
        let Some(piece) = source.held.piece(cursor.next, wanted.min(cursor.room.bytes)) else {
            return;
        };
        cursor.next = piece.end();
        cursor.room.take(piece.bytes.len());
        let told = Told::Data { stream, clock_us: piece.clock_us, bytes: piece.bytes };
        tell(Action::Tell(id, told));
    }
}

/// The place of an output stream.
fn index_of(stream: Stream) -> Option<usize> {
    Stream::OUTPUTS.iter().position(|output| *output == stream)
}
