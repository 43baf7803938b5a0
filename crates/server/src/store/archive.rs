//! The archive: journal, spools and index as one thing, for the supervisor that owns it.
//!
//! Everything that a job waits for is done at once and in memory, or by one write(2) to the journal.
//! The index is written behind it, many jobs at a time, by a thread of its own (the *keeper*), which
//! also lets go of what need not be kept any more; until a job is in the index, the archive tells of it
//! from memory, and the journal has it if this process is killed.

mod calendar;
mod keeper;
mod known_ids;
mod scribe;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use afar_core::job::{Digest, JobKey, Vouch};
use afar_core::journal::{
    Ended, Entry, Intended, JournalRecord, NotStarted, Started, Summary, TreeEnded, bounded_refusal,
};
use afar_core::spool::parse_spool_name;
use afar_proto::message::{JobInfo, Refused, StreamInfo};
use afar_proto::outcome::{End, Seal};
use tokio::sync::{Notify, oneshot};

use super::directory::{Directory, StoreError};
use super::disk::Disk;
use super::index::{EndedJob, Index, IndexError, Told, Use};
use super::journal::{Beginning, Journal, JournalError};
use super::limits::{INDEX_BATCH_JOBS_MAX, INDEX_DELAY, INDEX_PAGE_JOBS_MAX, RETENTION_INTERVAL};
use super::retry::Retry;
use super::spool::{Quotas, SpoolFailure, SpoolReader, SpoolWriter, Spools};
use crate::log::Log;
use calendar::Calendar;
use keeper::Keeper;
use known_ids::KnownIds;
use scribe::Scribe;

/// The directory of the spools, in that of the archive.
const SPOOLS_NAME: &str = "spool";

/// How long the output of a job is kept that nobody can confirm any more.
const LOST_LIFETIME: Duration = afar_core::job::limits::UNCONFIRMED_LIFETIME;

/// What an archive needs of its surroundings.
#[derive(Clone, Debug)]
pub struct ArchiveConfig {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// How much output may be kept.
    pub quotas: Quotas,
    /// Whether the directory may not answer for long, as one on a file server: then nobody waits for it but
    /// who has to.
    pub may_hang: bool,
    /// The log.
    pub log: Log,
}

/// An archive that was opened.
#[derive(Debug)]
pub struct OpenedArchive {
    /// The archive.
    pub archive: Archive,
    /// The jobs whose supervisor was killed: they are `lost` now, and what they left behind may still
    /// be there, unless their guardian has said otherwise.
    pub lost: Vec<Entry>,
    /// Lost jobs whose processes nobody has ended yet: whoever does says so by [`Archive::tree_ended`]. Until
    /// then they stay in the journal, for the next one to try.
    pub unended: Vec<Entry>,
}

/// A job that is going to be started.
#[derive(Clone, Debug)]
pub struct NewJob<'a> {
    /// Which job.
    pub key: &'a JobKey,
    /// What was asked for.
    pub digest: Digest,
    /// The mark by which its processes are found.
    pub mark: &'a str,
    /// What a list says of it; of this, what was asked for.
    pub info: &'a JobInfo,
    /// How long its output is to be kept, if it was asked for.
    pub keep_s: Option<u64>,
    /// Now, in microseconds of Unix time.
    pub at_us: u64,
}

/// A job whose intent was written, or is being written.
#[derive(Debug)]
pub struct Begun {
    /// Its number.
    pub number: u64,
    /// Says when it is written; `None` if it is. Nothing may be started before.
    pub written: Option<oneshot::Receiver<Result<(), JournalError>>>,
}

/// What a supervisor knows of its jobs, for as long as it is to be known.
#[derive(Debug)]
pub struct Archive {
    journal: Scribe,
    spools: Arc<Spools>,
    keeper: Keeper,
    directory: Arc<Directory>,
    log: Log,
    /// See [`ArchiveConfig::may_hang`].
    may_hang: bool,
    /// For looking up ids without asking another thread; `None` until there is an index.
    reader: Option<Index>,
    /// Which making of the index the reader has.
    generation: u64,
    /// Which ids it may have.
    known_ids: KnownIds,
    /// Jobs that have ended and may not be in the index yet, as they are to be there.
    pending: BTreeMap<JobKey, Pending>,
    batch: Option<Batch>,
    /// When the next one is sent, if the last one did not get there.
    batch_retry: Retry,
    calendar: Calendar,
    /// Says that there is something to be put into the index.
    work: Arc<Notify>,
}

#[derive(Debug)]
struct Pending {
    job: EndedJob,
    /// Counts what has changed of it since it ended.
    change: u64,
    /// Whether the journal has to keep it, because something of it may run still.
    held: bool,
}

/// What becomes of a job after its end.
#[derive(Clone, Debug)]
enum Change {
    Kept { spool: String, until_us: u64 },
    Released,
    Removed,
}

impl Change {
    /// Changes what is told; gives the spool that is of no use any more.
    fn apply(&self, job: &mut EndedJob) -> Option<String> {
        match self {
            Self::Kept { spool, until_us } => {
                job.spool = Some(spool.clone());
                job.keep_until_us = *until_us;
                None
            }
            Self::Released => job.spool.take(),
            Self::Removed => {
                job.removed = true;
                None
            }
        }
    }
}

/// Jobs on their way to the index.
#[derive(Debug)]
struct Batch {
    changes: Vec<(JobKey, u64)>,
    done: oneshot::Receiver<bool>,
}

impl Archive {
    /// Opens the archive in a directory, which is made if it is missing.
    ///
    /// A supervisor that begins anew finds the jobs that its predecessor has not seen the end of, and
    /// says of them what is known (`J-1.4`); one that goes on after an upgrade has them all.
    ///
    /// # Errors
    /// Somebody else uses it, or it can't be written. Whoever runs jobs without it calls
    /// [`disavow`](Self::disavow) first.
    pub fn open(
        path: &Path,
        config: &ArchiveConfig,
        beginning: &Beginning,
    ) -> Result<OpenedArchive, StoreError> {
        let ArchiveConfig { disk, quotas, may_hang, log } = config;
        let directory = Arc::new(Directory::open(path)?);
        let opened = Journal::open(&directory, disk, beginning, *log)?;
        for fault in &opened.faults {
            log.error(&format!("the journal of jobs in {path:?}: {fault}"));
        }
        let spools = Arc::new(Spools::open(&path.join(SPOOLS_NAME), disk, *quotas, *log)?);
        // Whatever the clock says now: no number is given twice, nor below those that there are.
        let mut journal = opened.journal;
        journal.number_above(last_number(&directory, &spools));
        let journal = Scribe::new(journal, *may_hang, *log);
        let known = journal.ledger().jobs().map(|entry| entry.intended.number).collect();
        let before = journal.last_number();
        let work = Arc::<Notify>::default();
        let keeper = Keeper::new(&directory, &spools, *log, known, before, &work);
        let mut archive = Self {
            journal,
            spools,
            keeper,
            directory,
            log: *log,
            may_hang: *may_hang,
            reader: None,
            generation: 0,
            known_ids: KnownIds::default(),
            pending: BTreeMap::new(),
            batch: None,
            batch_retry: Retry::default(),
            calendar: Calendar::new(beginning.unix_us, beginning.since_boot),
            work,
        };
        if archive.journal.ledger().is_indexed()
            && !Index::is_there(&archive.directory).unwrap_or(false)
        {
            log.error(&format!("the index of jobs in {path:?} is gone: their ids are forgotten"));
            archive.journal.forgot(beginning.since_boot, |_| ());
        }
        let lost = match beginning.incarnation {
            Some(_) => archive.give_up_unfinished(beginning.unix_us),
            None => Vec::new(),
        };
        archive.take_over_ended();
        let jobs = archive.journal.ledger().jobs();
        let unended = jobs.filter(|entry| is_held(entry)).cloned().collect();
        Ok(OpenedArchive { archive, lost, unended })
    }

    /// Says that jobs are run of which this archive does not know: see [`Journal::disavow`].
    ///
    /// # Errors
    /// There is an archive, and it can't be told.
    pub fn disavow(path: &Path) -> Result<(), StoreError> {
        if path.exists() { Journal::disavow(&Directory::open(path)?) } else { Ok(()) }
    }

    /// This supervisor.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        self.journal.incarnation()
    }

    /// Since when every job is known here. Ask whenever it matters: it can become less (`J-1.6`).
    #[must_use]
    pub fn vouch(&self) -> Vouch {
        self.journal.vouch()
    }

    /// What the journal says of a job that was begun and may not have ended.
    #[must_use]
    pub fn entry(&self, key: &JobKey) -> Option<&Entry> {
        self.journal.ledger().job(key)
    }

    /// All jobs that were begun and have not ended, for whoever goes on after an upgrade.
    pub fn unfinished(&self) -> impl Iterator<Item = &Entry> {
        self.journal.ledger().jobs().filter(|entry| entry.is_unfinished())
    }

    /// Whether its directory may not answer for long: then [`look_up`](Self::look_up) is the way to ask for a
    /// job, and [`begin`](Self::begin) gives something to wait for.
    #[must_use]
    pub fn may_hang(&self) -> bool {
        self.may_hang
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Step 1 (`J-1.4`): from here on the id is taken.
    ///
    /// # Errors
    /// It can't be written down: nothing may be started.
    pub fn begin(&mut self, job: &NewJob<'_>) -> Result<Begun, JournalError> {
        let number = self.journal.next_number(job.at_us);
        let spool = Journal::new_spool_name(number).map_err(JournalError::Random)?;
        let written = self.journal.begin(JournalRecord::Intended(Box::new(Intended {
            job: job.key.clone(),
            number,
            at_us: job.at_us,
            digest: job.digest,
            mark: job.mark.to_owned(),
            spool,
            summary: Summary::of(job.info),
            detached: job.info.detached,
            keep_s: job.keep_s,
        })))?;
        Ok(Begun { number, written })
    }

    /// The intent could not be written after all: the id is as it was.
    pub fn not_begun(&mut self, key: &JobKey) {
        self.journal.withdraw(key);
    }

    /// Resolves when the journal has everything that was said up to now.
    pub fn settled(&self) -> impl Future<Output = ()> + use<> {
        let settled = self.journal.settled();
        async move {
            if let Some(settled) = settled {
                // A thread that is gone has said why.
                let _ = settled.await;
            }
        }
    }

    /// Step 3: its process is there. What can't be written is remembered, and logged.
    pub fn started(&mut self, key: &JobKey, pid: u32, start_ticks: u64, at_us: u64) {
        let job = key.clone();
        self.append(JournalRecord::Started(Started { job, pid, start_ticks, at_us }));
    }

    /// Instead of step 3: nothing was started, and nothing will be.
    pub fn not_started(&mut self, key: &JobKey, refused: &Refused, at_us: u64) {
        let refused = bounded_refusal(refused);
        self.append(JournalRecord::NotStarted(NotStarted { job: key.clone(), at_us, refused }));
        self.move_to_index(key, None, None);
    }

    /// Step 5: its last word. `info` is what a list says of it now; `kept_until_us` says that its spool
    /// has output, and until when that is kept.
    pub fn ended(&mut self, seal: &Seal, info: &JobInfo, key: &JobKey, kept_until_us: Option<u64>) {
        let at_us = info.ended_at_us.unwrap_or_default();
        let started =
            self.entry(key).map_or(afar_proto::outcome::Started::Unknown, Entry::was_started);
        self.append(JournalRecord::Ended(Box::new(Ended {
            job: key.clone(),
            at_us,
            started,
            end: seal.end.clone(),
            seal: Some(seal.clone()),
        })));
        self.move_to_index(key, Some(info), kept_until_us);
    }

    /// What became of what a job has left whose supervisor was killed.
    pub fn tree_ended(&mut self, tree: TreeEnded) {
        if let Some(pending) = self.pending.get_mut(&tree.job) {
            pending.held = false;
        }
        self.append(JournalRecord::TreeEnded(tree));
        self.work.notify_one();
    }

    /// The spool of a job now has output that is kept until then: of a job that had ended before.
    pub fn kept(&mut self, key: &JobKey, spool: &str, until_us: u64) {
        self.change(key, Change::Kept { spool: spool.to_owned(), until_us });
    }

    /// Step 7: its client has everything, so its output need not be kept (`J-3.6`). Whoever has written
    /// it has finished it.
    pub fn released(&mut self, key: &JobKey) {
        self.change(key, Change::Released);
        // It may have output of which the job's last word did not say that it is kept.
        if let Some(entry) = self.entry(key) {
            let spool = entry.intended.spool.clone();
            self.keeper.order(move |keeper| keeper.remove_spool(&spool));
        }
    }

    /// Its user wants to see no more of a job that has ended: its output goes, its id stays taken.
    pub fn remove(&mut self, key: &JobKey) {
        self.released(key);
        self.change(key, Change::Removed);
    }

    /// Changes what is told of an ended job, from this moment on, and then in the index.
    fn change(&mut self, key: &JobKey, change: Change) {
        if !self.pending.contains_key(key) {
            let found = if self.may_hang { None } else { self.lookup(key).ok() };
            match found {
                Some(Some(job)) => {
                    self.pending.insert(key.clone(), Pending { job, change: 0, held: false });
                }
                Some(None) => return,
                // Whoever writes the index does it, or says why it can't be done; and whoever asks next
                // asks it too.
                None => {
                    let key = key.clone();
                    return self.keeper.order(move |keeper| keeper.change(&key, &change));
                }
            }
        }
        if let Some(pending) = self.pending.get_mut(key) {
            pending.change += 1;
            if let Some(spool) = change.apply(&mut pending.job) {
                self.keeper.order(move |keeper| keeper.remove_spool(&spool));
            }
            self.work.notify_one();
        }
    }

    /// A spool for a job that was begun; `from` is where the output begins that it gets. The journal's
    /// entry is the caller's to keep: the journal lets go of a job that has ended.
    #[must_use]
    pub fn spool(&self, entry: &Entry, from: [u64; 2]) -> SpoolWriter {
        self.spools.create(&entry.intended.spool, from, entry.to_file())
    }

    /// The spool of a job that goes on after an upgrade.
    ///
    /// # Errors
    /// Its directory can't be read.
    pub fn resume_spool(&self, entry: &Entry, from: [u64; 2]) -> Result<SpoolWriter, StoreError> {
        self.spools.resume(&entry.intended.spool, from, entry.to_file())
    }

    /// Ends the spool of a job that has ended. The answer says when all of it is on the disk.
    pub fn finish_spool(
        &self,
        entry: &Entry,
        writer: SpoolWriter,
    ) -> oneshot::Receiver<Result<(), SpoolFailure>> {
        writer.finish(entry.to_file())
    }

    /// The reader of a spool that is still written.
    #[must_use]
    pub fn reader_of(&self, writer: &SpoolWriter) -> SpoolReader {
        writer.reader(&self.spools)
    }

    /// The spools, for a thread that reads what is kept of a job that has ended: [`EndedJob::spool`]
    /// names its spool, and [`Spools::reader`] blocks.
    #[must_use]
    pub fn spools(&self) -> Arc<Spools> {
        Arc::clone(&self.spools)
    }

    /// The job of this key, if it has ended. Removed ones too: their ids are taken.
    ///
    /// Of a new id, as nearly every request has, that it is one is known from memory. Otherwise the index
    /// is asked on this thread: it takes microseconds.
    ///
    /// # Errors
    /// Nobody can tell: the id may be taken, so nothing may be started under it (`J-1.3`).
    pub fn lookup(&mut self, key: &JobKey) -> Result<Option<EndedJob>, IndexError> {
        if let Some(pending) = self.pending.get(key) {
            return Ok(Some(pending.job.told_now()));
        }
        if self.is_new(key) {
            return Ok(None);
        }
        let found = self.ids().and_then(|reader| match reader {
            Some(reader) => reader.job(key),
            None => Ok(None),
        });
        if found.is_ok() {
            self.load_known_ids();
        }
        found.inspect_err(|error| {
            self.log.debug(&error.to_string());
            self.reader = None;
            // Whoever writes it finds out what it is, says so, and makes it anew if it has to be.
            let key = key.clone();
            self.keeper.order(move |keeper| keeper.look(&key));
        })
    }

    /// As [`Self::lookup`], without waiting for the disk here.
    pub fn look_up(
        &mut self,
        key: &JobKey,
    ) -> impl Future<Output = Result<Option<EndedJob>, IndexError>> + use<> {
        let pending = self.pending.get(key).map(|pending| pending.job.told_now());
        let asked = if pending.is_some() || self.is_new(key) {
            None
        } else {
            self.load_known_ids();
            let key = key.clone();
            Some(self.keeper.ask(move |keeper| keeper.with(|index| index.job(&key))))
        };
        async move {
            match asked {
                Some(asked) => asked.await.ok().flatten().ok_or(IndexError::Unanswered),
                None => Ok(pending),
            }
        }
    }

    /// Whether no job of this key can be in the index.
    fn is_new(&mut self, key: &JobKey) -> bool {
        !self.keeper.is_remaking() && self.known_ids.is_new(key, self.keeper.generation())
    }

    fn load_known_ids(&mut self) {
        self.known_ids.load(self.keeper.generation(), &mut self.keeper);
    }

    /// The index, for looking up ids.
    fn ids(&mut self) -> Result<Option<&Index>, IndexError> {
        if self.keeper.is_remaking() {
            return Err(IndexError::Remade);
        }
        let generation = self.keeper.generation();
        if self.reader.as_ref().is_none_or(Index::is_frozen) || self.generation != generation {
            self.generation = generation;
            self.reader = None;
            if Index::is_there(&self.directory)? {
                self.reader = match Index::open(&self.directory, Use::Read) {
                    // It has no tables yet. One that had some is not there, to whoever opens the archive.
                    Err(IndexError::Version(0)) => None,
                    opened => Some(opened?),
                };
            }
        }
        Ok(self.reader.as_ref())
    }

    /// The ended jobs whose ids begin so and that were not removed, of all scopes unless one is named: at
    /// most two, which is enough to know whether it is one. Those that are no longer come first.
    pub fn with_prefix(
        &mut self,
        scope: Option<&str>,
        prefix: &str,
    ) -> impl Future<Output = Vec<EndedJob>> + use<> {
        let matches = |key: &JobKey| {
            scope.is_none_or(|scope| key.scope == scope) && key.job.as_str().starts_with(prefix)
        };
        let (hidden, mut found) = self.pending_that(|job| matches(&job.key));
        let (scope, prefix) = (scope.map(str::to_owned), prefix.to_owned());
        let limit = u32::try_from(hidden.len()).unwrap_or(u32::MAX).saturating_add(2);
        let asked = self.keeper.ask(move |keeper| {
            let found = keeper.with(|index| index.with_prefix(scope.as_deref(), &prefix, limit));
            found.unwrap_or_default()
        });
        async move {
            let indexed = asked.await.unwrap_or_default();
            found.extend(indexed.into_iter().filter(|job| !hidden.contains(&job.number)));
            found.sort_by(|one, other| one.key.job.cmp(&other.key.job));
            found.truncate(2);
            found
        }
    }

    /// The newest ended jobs below a number whose ids begin so, the newest first, at most `limit`; of all
    /// scopes unless one is named.
    pub fn page(
        &mut self,
        scope: Option<&str>,
        prefix: &str,
        before: u64,
        limit: u32,
    ) -> impl Future<Output = Vec<EndedJob>> + use<> {
        let limit = limit.min(INDEX_PAGE_JOBS_MAX);
        let (hidden, mut found) = self.pending_that(|job| {
            job.number < before
                && job.key.job.as_str().starts_with(prefix)
                && scope.is_none_or(|scope| job.key.scope == scope)
        });
        let (scope, prefix) = (scope.map(str::to_owned), prefix.to_owned());
        // Those that are told from memory may be in the index too, in an older form.
        let asked_for = limit.saturating_add(u32::try_from(hidden.len()).unwrap_or(u32::MAX));
        let asked = self.keeper.ask(move |keeper| {
            let page =
                keeper.with(|index| index.page(scope.as_deref(), &prefix, before, asked_for));
            page.unwrap_or_default()
        });
        async move {
            let indexed = asked.await.unwrap_or_default();
            found.extend(indexed.into_iter().filter(|job| !hidden.contains(&job.number)));
            found.sort_by_key(|job| std::cmp::Reverse(job.number));
            found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            found
        }
    }

    /// The pending jobs of which this is true: the numbers of all, and those that are to be seen.
    fn pending_that(
        &self,
        is_wanted: impl Fn(&EndedJob) -> bool,
    ) -> (BTreeSet<u64>, Vec<EndedJob>) {
        let wanted =
            || self.pending.values().map(|pending| &pending.job).filter(|job| is_wanted(job));
        let visible = wanted().filter(|job| !job.removed).map(EndedJob::told_now).collect();
        (wanted().map(|job| job.number).collect(), visible)
    }

    /// Does what has become due, and says when to call again at the latest. [`tend`] does.
    pub fn tick(&mut self, unix_us: u64, since_boot: Duration) -> Duration {
        if self.keeper.is_forgetting() {
            self.journal.forgot(since_boot, self.keeper.teller());
        }
        self.journal.catch_up(since_boot);
        self.finish_batch(since_boot);
        self.send_batch(since_boot);
        if let Some(due) = self.calendar.due(unix_us, since_boot) {
            if due.jumped {
                self.log.error("the clock has jumped: what is kept is kept by the time since boot");
            }
            self.keeper.order(move |keeper| keeper.retain(due.unix_us));
        }
        let waits = self.pending.values().any(|pending| !pending.held);
        let busy = self.batch.is_some() || waits || self.journal.is_behind();
        if busy { INDEX_DELAY } else { RETENTION_INTERVAL }
    }

    fn finish_batch(&mut self, since_boot: Duration) {
        let Some(batch) = &mut self.batch else { return };
        let is_in = match batch.done.try_recv() {
            Ok(is_in) => is_in,
            Err(oneshot::error::TryRecvError::Empty) => return,
            Err(oneshot::error::TryRecvError::Closed) => false,
        };
        let Some(batch) = self.batch.take().filter(|_| is_in) else {
            return self.batch_retry.failed(since_boot);
        };
        self.batch_retry.succeeded();
        let mut numbers = Vec::with_capacity(batch.changes.len());
        for (key, change) in batch.changes {
            // What has changed meanwhile is put once more.
            let unchanged = self.pending.get(&key).filter(|pending| pending.change == change);
            if let Some(number) = unchanged.map(|pending| pending.job.number) {
                self.pending.remove(&key);
                numbers.push(number);
            }
        }
        if let Err(error) = self.journal.forget(numbers) {
            self.log.error(&format!("jobs stay in the journal: {error}"));
        }
    }

    fn send_batch(&mut self, since_boot: Duration) {
        let is_due = self.batch.is_none() && self.batch_retry.is_due(since_boot);
        let ready = self.pending.iter().filter(|(_, pending)| !pending.held);
        let jobs: Vec<_> = ready.take(INDEX_BATCH_JOBS_MAX).collect();
        if !is_due || jobs.is_empty() {
            return;
        }
        let changes = jobs.iter().map(|(key, pending)| ((*key).clone(), pending.change)).collect();
        let jobs: Vec<EndedJob> = jobs.iter().map(|(_, pending)| pending.job.clone()).collect();
        let done = self.keeper.ask(move |keeper| keeper.with(|index| index.put(&jobs)).is_some());
        self.batch = Some(Batch { changes, done });
    }

    fn append(&mut self, record: JournalRecord) {
        if let Err(error) = self.journal.append(record) {
            self.log.error(&error.to_string());
        }
    }

    /// A job has ended: it is told of from here until it is in the index.
    fn move_to_index(&mut self, key: &JobKey, info: Option<&JobInfo>, kept_until_us: Option<u64>) {
        let Some(entry) = self.journal.ledger().job(key) else { return };
        let job = ended_job(entry, info, kept_until_us);
        self.known_ids.add(key);
        self.pending.insert(key.clone(), Pending { job, change: 0, held: false });
        self.work.notify_one();
    }

    /// The jobs of a supervisor that was killed have ended in a way that nobody knows.
    fn give_up_unfinished(&mut self, now_us: u64) -> Vec<Entry> {
        let lost: Vec<Entry> = self.unfinished().cloned().collect();
        for entry in &lost {
            self.append(JournalRecord::Ended(Box::new(Ended {
                job: entry.intended.job.clone(),
                at_us: now_us,
                started: entry.was_started(),
                end: End::Lost,
                seal: None,
            })));
        }
        lost
    }

    /// What has ended and was not in the index yet when this archive was used last.
    fn take_over_ended(&mut self) {
        let ended: Vec<JobKey> = self
            .journal
            .ledger()
            .jobs()
            .filter(|entry| !entry.is_unfinished())
            .map(|entry| entry.intended.job.clone())
            .collect();
        for key in ended {
            let Some(entry) = self.entry(&key) else { continue };
            let mut job = ended_job(entry, None, None);
            add_kept_output(&self.spools, entry, &mut job);
            let held = is_held(entry);
            self.known_ids.add(&key);
            self.pending.insert(key, Pending { job, change: 0, held });
            self.work.notify_one();
        }
    }
}

/// Calls [`Archive::tick`] whenever it is due, for ever.
pub async fn tend(archive: &RefCell<Archive>) {
    let work = Arc::clone(&archive.borrow().work);
    loop {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let unix_us = u64::try_from(unix.as_micros()).unwrap_or(u64::MAX);
        let due = archive.borrow_mut().tick(unix_us, afar_sys::boot::since_boot());
        if tokio::time::timeout(due, work.notified()).await.is_ok() {
            // Others that end in this moment are put into the index with it.
            tokio::time::sleep(INDEX_DELAY).await;
        }
    }
}

/// The highest number of a job of which there is anything but a record in the journal.
fn last_number(directory: &Directory, spools: &Spools) -> u64 {
    let spooled = spools.names().unwrap_or_default();
    let spooled =
        spooled.iter().filter_map(|name| parse_spool_name(name)).map(|(number, _)| number);
    // One that can't be read is made anew, or nothing is started.
    let indexed = match Index::is_there(directory) {
        Ok(true) => Index::open(directory, Use::Read).and_then(|index| index.last_number()),
        _ => Ok(0),
    };
    spooled.max().unwrap_or(0).max(indexed.unwrap_or(0))
}

/// Whether a job that has ended stays in the journal.
fn is_held(entry: &Entry) -> bool {
    !entry.is_unfinished() && entry.has_unended_tree()
}

/// What is told of a job that has ended.
fn ended_job(entry: &Entry, info: Option<&JobInfo>, kept_until_us: Option<u64>) -> EndedJob {
    let Intended { job, number, digest, spool, .. } = &entry.intended;
    let info = info.cloned().unwrap_or_else(|| entry.info());
    let told = Told {
        started: entry.was_started(),
        seal: entry.ended.as_ref().and_then(|ended| ended.seal.clone()),
        refused: entry.refused.as_ref().map(|refused| refused.refused.clone()),
        info,
    };
    EndedJob {
        key: job.clone(),
        number: *number,
        digest: *digest,
        ended_at_us: told.info.ended_at_us.unwrap_or_default(),
        keep_until_us: kept_until_us.unwrap_or_default(),
        spool: kept_until_us.map(|_| spool.clone()),
        removed: false,
        told,
    }
}

/// Of a job whose supervisor is gone: what its spool has, and until when.
fn add_kept_output(spools: &Spools, entry: &Entry, job: &mut EndedJob) {
    let Ok(Some(reader)) = spools.reader(&entry.intended.spool) else { return };
    let lifetime = entry.intended.keep_s.map_or(LOST_LIFETIME, Duration::from_secs);
    let lifetime_us = u64::try_from(lifetime.as_micros()).unwrap_or(u64::MAX);
    job.spool = Some(entry.intended.spool.clone());
    job.keep_until_us = job.ended_at_us.saturating_add(lifetime_us);
    let (kept_from, written) = reader.bounds();
    for (stream, name) in ["stdout", "stderr"].into_iter().enumerate() {
        let fresh = || StreamInfo {
            bytes: written[stream],
            kept_from: written[stream],
            gaps: afar_proto::gaps::Gaps::default(),
        };
        let told = job.told.info.streams.entry(name.to_owned()).or_insert_with(fresh);
        told.kept_from = kept_from[stream].min(told.bytes);
    }
}

#[cfg(test)]
mod tests;
