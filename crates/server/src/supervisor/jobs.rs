//! The jobs of this supervisor's user, whoever is connected: which ids are taken, and by what.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use afar_core::job::{
    AttachRequest, AttachmentId, Cause, Decision, Digest, JobKey, Register, Retry, Vouch,
};
use afar_core::journal::Entry as Journaled;
use afar_proto::Instant;
use afar_proto::message::{Incarnation, JobId, JobInfo, OpenSpec, Refused};
use afar_proto::outcome::{End, Phase, RefusalReason, Seal, Started};
use afar_sys::boot::since_boot;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;

use super::Supervisor;
use super::job::{Job, Route, ToJob, unix_time_us};
use super::upgrade::WrittenJobs;
use crate::limits::{ENDED_JOBS_HELD_MAX, JOBS_MAX, SPOOL_READERS_MAX};
use crate::store::{
    Archive, Begun, EndedJob, IndexError, JournalError, NewJob, SpoolReader, SpoolWriter, Told,
};

/// All jobs. One thread has them.
#[derive(Debug)]
pub(super) struct Jobs {
    register: RefCell<Register<Entry>>,
    incarnation: Incarnation,
    archive: Option<Rc<RefCell<Archive>>>,
    /// The turn to start a job where its intent has to be waited for.
    turn: Arc<Semaphore>,
    /// The turns to read kept output.
    readers: Arc<Semaphore>,
    entered: Cell<u64>,
    attached: Cell<u64>,
}

/// A job in the table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The how manieth it is: later ones have higher numbers.
    pub(super) number: u64,
    pub(super) life: Life,
}

/// Where a job is.
#[derive(Clone, Debug)]
pub(super) enum Life {
    /// It has a task.
    Live(UnboundedSender<ToJob>),
    /// Everything is told, and this is what is left.
    Ended(Rc<Remains>),
    /// It was removed: only its outcome is known, to whoever asks for the same again.
    Removed(Rc<Remains>),
    /// It was never started.
    Refused(Rc<Refused>),
    /// It was started, and its end is not known to anybody: this is said to whoever asks for it.
    Lost(Rc<Refused>),
}

/// A job that is going to be started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) key: &'a JobKey,
    pub(super) digest: &'a Digest,
    /// The value of the mark by which its processes are found.
    pub(super) mark: &'a str,
    pub(super) info: &'a JobInfo,
    pub(super) keep_s: Option<u64>,
}

/// What is left of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Remains {
    pub(super) info: JobInfo,
    pub(super) seal: Seal,
    /// The spool that has output of it.
    pub(super) spool: Option<String>,
}

/// The spool of a job that is over.
#[derive(Debug)]
pub(super) struct Spooled {
    pub(super) name: String,
    pub(super) writer: SpoolWriter,
    /// What the journal said of it when it ended.
    pub(super) journaled: Box<Journaled>,
    /// Whether somebody may still want what it has.
    pub(super) needed: bool,
}

/// Whose jobs somebody sees.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// The scope of the jobs that it starts.
    pub(super) scope: String,
    /// Whether it sees those of other scopes too.
    pub(super) all: bool,
}

impl View {
    fn sees(&self, key: &JobKey) -> bool {
        self.all || key.scope == self.scope
    }

    /// The key of a job that is started here.
    pub(super) fn key(&self, job: &JobId) -> JobKey {
        JobKey { scope: self.scope.clone(), job: job.clone() }
    }
}

impl Jobs {
    /// None, in a new incarnation, which nothing of outlives.
    pub(super) fn new(incarnation: Incarnation) -> Self {
        let began = now();
        let register = Register::new(Vouch { began, since: began }, ENDED_JOBS_HELD_MAX);
        Self {
            register: RefCell::new(register),
            incarnation,
            archive: None,
            turn: Arc::new(Semaphore::new(1)),
            readers: Arc::new(Semaphore::new(SPOOL_READERS_MAX)),
            entered: Cell::default(),
            attached: Cell::default(),
        }
    }

    /// None, with an archive that knows of those before, and will of these.
    pub(super) fn archived(archive: Rc<RefCell<Archive>>) -> Option<Self> {
        let incarnation = Incarnation::new(archive.borrow().incarnation()).ok()?;
        Some(Self { archive: Some(archive), ..Self::new(incarnation) })
    }

    /// The archive, if there is one.
    pub(super) fn archive(&self) -> Option<RefMut<'_, Archive>> {
        self.archive.as_ref().map(|archive| archive.borrow_mut())
    }

    /// Which life of the supervisor this is.
    pub(super) fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// A number that no attachment has had.
    pub(super) fn next_attachment(&self) -> AttachmentId {
        self.attached.set(self.attached.get() + 1);
        AttachmentId(self.attached.get())
    }

    /// Whether nobody may ask the archive on this thread, because it is on a file server: then
    /// it is asked on threads.
    pub(super) fn may_hang(&self) -> bool {
        self.archive().is_some_and(|archive| archive.may_hang())
    }

    /// The turn to start a job there, one after the other.
    pub(super) fn turn(&self) -> &Arc<Semaphore> {
        &self.turn
    }

    /// The turns to have a thread wait for kept output: the threads are those that end jobs.
    pub(super) fn readers(&self) -> &Arc<Semaphore> {
        &self.readers
    }

    /// What a request means (`J-1.3`, `J-1.6`).
    pub(super) fn decide(&self, key: &JobKey, spec: &OpenSpec, digest: &Digest) -> Decision {
        self.decide_at_hand(key, spec, digest).unwrap_or_else(|| {
            let found = self.archive().map_or(Ok(None), |mut archive| archive.lookup(key));
            self.decide_by(spec, digest, found.as_ref().map(Option::as_ref))
        })
    }

    /// What it means, if the archive need not be asked for that.
    pub(super) fn decide_at_hand(
        &self,
        key: &JobKey,
        spec: &OpenSpec,
        digest: &Digest,
    ) -> Option<Decision> {
        let register = self.register.borrow();
        match register.digest(key) {
            Some(known) => Some(same(known, digest)),
            None if self.archive.is_some() => None,
            None => Some(register.decide(key, digest, self.retry(spec).as_ref(), now())),
        }
    }

    /// What it means to whoever has asked the archive.
    pub(super) fn decide_by(
        &self,
        spec: &OpenSpec,
        digest: &Digest,
        found: Result<Option<&EndedJob>, &IndexError>,
    ) -> Decision {
        match (found, self.archive()) {
            (Ok(Some(ended)), _) => same(&ended.digest, digest),
            (Ok(None), Some(archive)) => archive.vouch().decide(self.retry(spec).as_ref(), now()),
            // It may be taken.
            _ => Decision::Unknown,
        }
    }

    fn retry(&self, spec: &OpenSpec) -> Option<Retry> {
        spec.retry.as_ref().map(|retry| Retry {
            age: Duration::from_millis(retry.age_ms),
            same_incarnation: retry.incarnation.as_ref() == Some(&self.incarnation),
        })
    }

    /// Whether there is room for one more that has not ended.
    pub(super) fn has_room(&self) -> bool {
        self.register.borrow().running() < JOBS_MAX
    }

    /// Writes down that a job is going to be started: from here on its id is taken (`J-1.4`).
    ///
    /// # Errors
    /// It can't be written down.
    pub(super) fn begin(&self, asked: &Asked<'_>) -> Result<Begun, Refused> {
        let Some(mut archive) = self.archive() else {
            self.entered.set(self.entered.get() + 1);
            return Ok(Begun { number: self.entered.get(), written: None });
        };
        let Asked { key, digest, mark, info, keep_s } = *asked;
        let at_us = unix_time_us();
        let job = NewJob { key, digest: *digest, mark, info, keep_s, at_us };
        archive.begin(&job).map_err(|error| not_written(&error))
    }

    /// It could not be written down after all, and was not started.
    pub(super) fn not_begun(&self, key: &JobKey, error: &JournalError) -> Refused {
        if let Some(mut archive) = self.archive() {
            archive.not_begun(key);
        }
        not_written(error)
    }

    /// Its process is there.
    pub(super) fn started(&self, key: &JobKey, pid: u32, start_ticks: u64, at_us: u64) {
        if let Some(mut archive) = self.archive() {
            archive.started(key, pid, start_ticks, at_us);
        }
    }

    /// Enters a job that has a task.
    pub(super) fn enter(
        &self,
        key: JobKey,
        digest: Digest,
        number: u64,
        commands: UnboundedSender<ToJob>,
    ) {
        let entry = Entry { number, life: Life::Live(commands) };
        self.register.borrow_mut().enter(key, digest, now(), entry);
    }

    /// A start has failed: the id has started nothing, and is taken all the same (`J-1.4`).
    pub(super) fn start_failed(&self, key: &JobKey, digest: Digest, number: u64, why: &Refused) {
        let entry = Entry { number, life: Life::Refused(Rc::new(why.clone())) };
        self.register.borrow_mut().enter(key.clone(), digest, now(), entry);
        self.refused(key, why);
    }

    /// A job was never started.
    pub(super) fn refused(&self, key: &JobKey, refused: &Refused) {
        if let Some(mut archive) = self.archive() {
            archive.not_started(key, refused, unix_time_us());
        }
        self.end(key, Life::Refused(Rc::new(refused.clone())));
    }

    /// A job is over: this is its last word, which is told behind this. Gives what the journal says of the
    /// job, which it soon need not remember, as long as there is output to be kept.
    pub(super) fn sealed(
        &self,
        key: &JobKey,
        seal: &Seal,
        info: &JobInfo,
    ) -> Option<Box<Journaled>> {
        let mut archive = self.archive()?;
        archive.ended(seal, info, key, None);
        archive.entry(key).cloned().map(Box::new)
    }

    /// A spool for the output of a job from these offsets on, with its name and its reader. `ended` is what
    /// the journal said of it when it ended, if it has.
    pub(super) fn spool(
        &self,
        key: &JobKey,
        ended: Option<&Journaled>,
        from: [u64; 2],
    ) -> Option<(String, SpoolWriter, SpoolReader)> {
        let archive = self.archive()?;
        let entry = ended.or_else(|| archive.entry(key))?;
        let writer = archive.spool(entry, from);
        let reader = archive.reader_of(&writer);
        Some((entry.intended.spool.clone(), writer, reader))
    }

    /// The spool of a job that goes on after an upgrade.
    ///
    /// # Errors
    /// It can't be read.
    pub(super) fn resume_spool(
        &self,
        key: &JobKey,
        ended: Option<&Journaled>,
        from: [u64; 2],
    ) -> io::Result<Option<(String, SpoolWriter, SpoolReader)>> {
        let Some(archive) = self.archive() else { return Ok(None) };
        let Some(entry) = ended.or_else(|| archive.entry(key)) else { return Ok(None) };
        let writer = archive.resume_spool(entry, from).map_err(io::Error::other)?;
        let reader = archive.reader_of(&writer);
        Ok(Some((entry.intended.spool.clone(), writer, reader)))
    }

    /// The reader of what is kept of a job that has ended. It looks into one directory, at once.
    pub(super) fn reader(&self, name: &str) -> Option<SpoolReader> {
        self.archive()?.spools().reader(name).ok().flatten()
    }

    /// Everything of a job is told, or kept.
    ///
    /// `spooling` is its spool, if it has one.
    pub(super) fn ended(
        &self,
        key: &JobKey,
        remains: Remains,
        spooling: Option<Spooled>,
        removed: bool,
    ) {
        let live = self.register.borrow().find(key).is_some_and(|entry| entry.life.is_live());
        if let Some(mut archive) = self.archive().filter(|_| live)
            && let Some(Spooled { name, writer, journaled, needed }) = spooling
        {
            archive.kept(key, &name, remains.info.keep_until_us.unwrap_or_default());
            // Nobody waits for it: whoever reads it finds what is there.
            drop(archive.finish_spool(&journaled, writer));
            if !needed {
                archive.released(key);
            }
        }
        if removed && let Some(mut archive) = self.archive() {
            archive.remove(key);
        }
        let remains = Rc::new(remains);
        self.end(key, if removed { Life::Removed(remains) } else { Life::Ended(remains) });
    }

    fn end(&self, key: &JobKey, life: Life) {
        let mut register = self.register.borrow_mut();
        if self.archive.is_some() {
            // Who knows it from now on is the archive.
            return register.remove(key);
        }
        // What was brought back to tell its outcome says nothing new.
        let number = match register.find(key) {
            Some(Entry { number, life: Life::Live(_) | Life::Refused(_) }) => *number,
            _ => return,
        };
        register.end(key, Entry { number, life });
    }

    /// Forgets an ended job, as far as anybody can see (`J-1.7`).
    pub(super) fn remove(&self, key: &JobKey) {
        if let Some(mut archive) = self.archive() {
            return archive.remove(key);
        }
        let mut register = self.register.borrow_mut();
        if let Some(entry) = register.find_mut(key)
            && let Life::Ended(remains) = &entry.life
        {
            entry.life = Life::Removed(Rc::clone(remains));
        }
    }

    /// Where the job with this key is.
    ///
    /// # Errors
    /// Nobody can tell.
    pub(super) fn life(&self, key: &JobKey) -> Result<Option<Life>, Refused> {
        if let Some(life) = self.life_at_hand(key) {
            return Ok(Some(life));
        }
        let Some(mut archive) = self.archive() else { return Ok(None) };
        archive.lookup(key).map(|ended| ended.map(Life::of)).map_err(|error| untold(key, &error))
    }

    /// Where it is, if the archive need not be asked for that.
    pub(super) fn life_at_hand(&self, key: &JobKey) -> Option<Life> {
        self.register.borrow().find(key).map(|entry| entry.life.clone())
    }

    /// What a list says of a job that has ended, unless it was removed.
    pub(super) async fn info_of_ended(&self, key: &JobKey) -> Option<JobInfo> {
        if let Some(Life::Ended(remains)) = self.life_at_hand(key) {
            return Some(remains.info.clone());
        }
        let asked = self.archive()?.look_up(key);
        let ended = asked.await.ok().flatten().filter(|ended| !ended.removed);
        ended.map(|ended| ended.told.info)
    }

    /// The job that is meant by an id, if that needs no search: it has this id, or is the only one.
    pub(super) fn find(&self, view: &View, job: &JobId) -> Result<Option<JobKey>, Refused> {
        let own = view.key(job);
        if self.life(&own)?.is_some_and(|life| life.is_seen()) {
            return Ok(Some(own));
        }
        self.find_at_hand(view, job)
    }

    /// As [`Self::find`], among those at hand.
    pub(super) fn find_at_hand(&self, view: &View, job: &JobId) -> Result<Option<JobKey>, Refused> {
        let register = self.register.borrow();
        let mut exact = register
            .iter()
            .filter(|(key, entry)| key.job == *job && view.sees(key) && entry.life.is_listed());
        match (exact.next(), exact.next()) {
            (Some(_), Some(_)) => Err(ambiguous(job)),
            (found, _) => Ok(found.map(|(key, _)| key.clone())),
        }
    }

    /// The only job with this id, or whose id begins so, if `prefix` says that this is meant too.
    pub(super) fn search(
        &self,
        view: &View,
        begin: &JobId,
        prefix: bool,
    ) -> impl Future<Output = Result<JobKey, Refused>> + use<> {
        let register = self.register.borrow();
        let begins = |key: &JobKey| key.job.as_str().starts_with(begin.as_str());
        let mut found: BTreeSet<JobKey> = register
            .iter()
            .filter(|(key, entry)| begins(key) && view.sees(key) && entry.life.is_listed())
            .map(|(key, _)| key.clone())
            .take(2)
            .collect();
        let scope = (!view.all).then_some(view.scope.as_str());
        let archived = self.archive().map(|mut archive| archive.with_prefix(scope, begin.as_str()));
        let begin = begin.clone();
        async move {
            if let Some(archived) = archived {
                found.extend(archived.await.into_iter().map(|ended| ended.key));
            }
            if !prefix || found.iter().any(|key| key.job == begin) {
                found.retain(|key| key.job == begin);
            }
            match (found.pop_first(), found.pop_first()) {
                (Some(key), None) => Ok(key),
                (None, _) => Err(no_such_job(&begin)),
                (Some(_), Some(_)) => Err(ambiguous(&begin)),
            }
        }
    }

    /// Those at hand that somebody sees, the newest first, from behind the number `after` on.
    pub(super) fn seen(&self, view: &View, after: Option<u64>) -> Vec<(JobKey, Entry)> {
        let register = self.register.borrow();
        let mut seen: Vec<_> = register
            .iter()
            .filter(|(key, entry)| view.sees(key) && entry.life.is_listed())
            .filter(|(_, entry)| after.is_none_or(|after| entry.number < after))
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect();
        seen.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(entry.number));
        seen
    }

    /// Everything but the jobs themselves, and where they are.
    pub(super) fn write_down(&self) -> (WrittenJobs, Vec<(JobKey, Digest, Instant, Entry)>) {
        let register = self.register.borrow();
        let Vouch { began, since } = register.vouch();
        let written = WrittenJobs {
            incarnation: self.incarnation.clone(),
            began,
            since,
            entered: self.entered.get(),
            attached: self.attached.get(),
            entries: Vec::new(),
        };
        let entries = register.entries();
        let entries =
            entries.map(|(key, digest, at, entry)| (key.clone(), *digest, at, entry.clone()));
        (written, entries.collect())
    }

    /// Those of the program before this one, still without the jobs themselves.
    pub(super) fn written_down(written: &WrittenJobs, vouch: Vouch) -> Self {
        Self {
            register: RefCell::new(Register::new(vouch, ENDED_JOBS_HELD_MAX)),
            incarnation: written.incarnation.clone(),
            archive: None,
            turn: Arc::new(Semaphore::new(1)),
            readers: Arc::new(Semaphore::new(SPOOL_READERS_MAX)),
            entered: Cell::new(written.entered),
            attached: Cell::new(written.attached),
        }
    }

    /// Enters a job that another program has had.
    pub(super) fn enter_written(
        &self,
        key: &JobKey,
        digest: Digest,
        at: Instant,
        number: u64,
        life: Life,
    ) {
        let mut register = self.register.borrow_mut();
        let ended = !matches!(life, Life::Live(_));
        let entry = Entry { number, life };
        register.enter(key.clone(), digest, at, entry.clone());
        if ended {
            register.end(key, entry);
        }
    }

    /// Tells all that have not ended something.
    pub(super) fn tell_live(&self, told: impl Fn() -> ToJob) {
        for (_, entry) in self.register.borrow().iter() {
            if let Life::Live(commands) = &entry.life {
                let _ = commands.send(told());
            }
        }
    }

    /// Tells all that are being ended that they have no more time for it.
    pub(super) fn hasten_all(&self) {
        self.tell_live(|| ToJob::Hasten);
    }

    /// Tells all that have not ended that they are to end.
    pub(super) fn end_all(&self) {
        self.tell_live(|| ToJob::End(Cause::Cancelled));
    }
}

impl Life {
    /// What the archive says of a job that has ended.
    pub(super) fn of(ended: EndedJob) -> Self {
        let EndedJob { key, removed, spool, told, .. } = ended;
        let Told { info, started, seal, refused } = told;
        match (seal, refused) {
            (Some(seal), _) => {
                let remains = Rc::new(Remains { info, seal, spool });
                if removed { Self::Removed(remains) } else { Self::Ended(remains) }
            }
            (None, Some(refused)) => Self::Refused(Rc::new(refused)),
            // Nobody has seen its end, or can read any more what it was.
            (None, None) => Self::Lost(Rc::new(lost(&key.job, info.end.as_ref(), started))),
        }
    }

    /// The spool that has output of a job that is over.
    pub(super) fn spool(&self) -> Option<&str> {
        match self {
            Self::Ended(remains) | Self::Removed(remains) => remains.spool.as_deref(),
            _ => None,
        }
    }

    fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// Whether whoever names it is told of it.
    pub(super) fn is_seen(&self) -> bool {
        !matches!(self, Self::Removed(_))
    }

    /// Whether a list has it that is made of what is at hand: of what was never started, only the
    /// archive has more than the reason.
    fn is_listed(&self) -> bool {
        self.is_seen() && !matches!(self, Self::Refused(_))
    }
}

impl Supervisor {
    /// Attaches to a job, where its task is, or where its outcome is told from now on; returns where
    /// to tell it things. The answer comes on the route.
    pub(super) fn attach(
        self: &Rc<Self>,
        key: &JobKey,
        request: AttachRequest,
        route: Route,
    ) -> Result<UnboundedSender<ToJob>, Refused> {
        let life = self.jobs.life(key)?;
        let reader = life.as_ref().and_then(Life::spool).and_then(|name| self.jobs.reader(name));
        self.attach_where(key, life, reader, request, route)
    }

    /// As [`Self::attach`], to a job of which it is known where it is, and what reads its spool.
    pub(super) fn attach_where(
        self: &Rc<Self>,
        key: &JobKey,
        life: Option<Life>,
        reader: Option<SpoolReader>,
        request: AttachRequest,
        route: Route,
    ) -> Result<UnboundedSender<ToJob>, Refused> {
        let commands = match life {
            Some(Life::Live(commands)) => commands,
            Some(Life::Ended(remains) | Life::Removed(remains)) => {
                let revived = Job::revived(key.clone(), &remains, reader, self);
                let (job, commands) = revived
                    .map_err(|error| refused(RefusalReason::NoResources, &error.to_string()))?;
                tokio::task::spawn_local(job.run());
                commands
            }
            Some(Life::Refused(refusal) | Life::Lost(refusal)) => return Err((*refusal).clone()),
            None => return Err(no_such_job(&key.job)),
        };
        // A task that ends says so in the table in the same moment, so this one is there.
        let _ = commands.send(ToJob::Attach(Box::new(request), route));
        Ok(commands)
    }
}

fn same(known: &Digest, asked: &Digest) -> Decision {
    if known == asked { Decision::Same } else { Decision::Conflict }
}

fn not_written(error: &JournalError) -> Refused {
    let message = format!("the job could not be written down, so it was not started: {error}");
    refused(RefusalReason::NoResources, &message)
}

/// Where a job is can't be read.
pub(super) fn untold(key: &JobKey, error: &IndexError) -> Refused {
    unknown(&format!("nobody can tell what became of the job {}: {error}", key.job))
}

/// Time since boot, as the register counts it.
fn now() -> Instant {
    Instant::from_micros(u64::try_from(since_boot().as_micros()).unwrap_or(u64::MAX))
}

fn ambiguous(job: &JobId) -> Refused {
    refused(RefusalReason::Ambiguous, &format!("{job} means more than one job"))
}

/// Its client says of it what is true (`J-1.4`, `J-4.4`).
fn lost(job: &JobId, end: Option<&End>, started: Started) -> Refused {
    if end != Some(&End::Lost) {
        return unknown(&format!("what was known of the job {job} can't be read any more"));
    }
    let message = match started {
        Started::Unknown => format!(
            "the supervisor of the job {job} was killed when it began; nobody can tell whether it did"
        ),
        _ => format!("the supervisor of the job {job} was killed; its end is not known"),
    };
    Refused { started, ..refused(RefusalReason::NoSuchJob, &message) }
}

pub(super) fn unknown(message: &str) -> Refused {
    Refused { started: Started::Unknown, ..refused(RefusalReason::Unknown, message) }
}

pub(super) fn no_such_job(job: &JobId) -> Refused {
    refused(RefusalReason::NoSuchJob, &format!("there is no job {job} here"))
}

pub(super) fn refused(reason: RefusalReason, message: &str) -> Refused {
    Refused { phase: Phase::Authorize, reason, message: message.to_owned(), started: Started::No }
}

#[cfg(test)]
pub(super) mod tests;
