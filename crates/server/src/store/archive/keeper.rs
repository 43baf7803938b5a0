//! The thread that writes the index and lets go of what need not be kept any more.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use afar_core::job::JobKey;
use afar_core::journal::Replay;
use afar_core::spool::parse_spool_name;
use tokio::sync::{Notify, oneshot};

use super::super::directory::Directory;
use super::super::index::{EndedJob, Index, IndexError, Use};
use super::super::limits::RETAINED_PERCENT_MAX;
use super::super::spool::Spools;
use super::super::thread::OwnThread;
use super::{Change, add_kept_output, ended_job};
use crate::log::Log;

/// How many rows one step of the clearing up takes.
const STEP_ROWS: u32 = 64;

type Order = Box<dyn FnOnce(&mut Work) + Send>;

/// The thread's handle. The thread is started when there is something to do.
pub(super) struct Keeper {
    /// Answers it when it has said that ids will be lost. Dropped first: then nobody does any more.
    told: mpsc::Sender<bool>,
    state: State,
    signs: Arc<Signs>,
    /// Whether it was said that there is no thread.
    has_complained: bool,
    log: Log,
}

enum State {
    /// What it will have.
    Idle(Option<Box<Work>>),
    /// What it is told by is dropped before it is waited for.
    Runs { orders: mpsc::Sender<Order>, _thread: OwnThread },
}

/// What the thread tells without being asked.
#[derive(Debug, Default)]
struct Signs {
    /// How often the index was made anew.
    generation: AtomicU64,
    /// Whether that is going on.
    is_remaking: AtomicBool,
    /// Whether ids are going to be lost, and the journal still vouches for them.
    is_forgetting: AtomicBool,
    /// Whoever has the journal waits for this.
    work: Arc<Notify>,
}

/// What the thread has.
pub(super) struct Work {
    directory: Arc<Directory>,
    spools: Arc<Spools>,
    log: Log,
    signs: Arc<Signs>,
    /// Whether the journal vouches for nothing from before any more.
    told: mpsc::Receiver<bool>,
    index: Option<Index>,
    /// Whether it was said that the index can't be used.
    has_complained: bool,
    /// Numbers of the jobs that are in the journal.
    known: BTreeSet<u64>,
    /// The last number of a job from before.
    before: u64,
}

impl Keeper {
    pub(super) fn new(
        directory: &Arc<Directory>,
        spools: &Arc<Spools>,
        log: Log,
        known: BTreeSet<u64>,
        before: u64,
        work: &Arc<Notify>,
    ) -> Self {
        let signs = Arc::new(Signs { work: Arc::clone(work), ..Signs::default() });
        let (tell, told) = mpsc::channel();
        let work = Work {
            directory: Arc::clone(directory),
            spools: Arc::clone(spools),
            log,
            signs: Arc::clone(&signs),
            told,
            index: None,
            has_complained: false,
            known,
            before,
        };
        let state = State::Idle(Some(Box::new(work)));
        Self { told: tell, state, signs, has_complained: false, log }
    }

    /// How often the index was made anew.
    pub(super) fn generation(&self) -> u64 {
        self.signs.generation.load(Ordering::Acquire)
    }

    /// Whether the index is being made anew, so that it misses what it will have.
    pub(super) fn is_remaking(&self) -> bool {
        self.signs.is_remaking.load(Ordering::Acquire)
    }

    /// Whether ids are about to be lost: they are when the journal vouches for them no more
    /// ([`teller`](Self::teller)). Said once.
    pub(super) fn is_forgetting(&self) -> bool {
        self.signs.is_forgetting.swap(false, Ordering::AcqRel)
    }

    /// What says to the thread whether the journal vouches for nothing from before any more.
    pub(super) fn teller(&self) -> impl FnOnce(bool) + Send + use<> {
        let told = self.told.clone();
        move |done| {
            // A thread that is gone has said why.
            let _ = told.send(done);
        }
    }

    /// Has something done, some time. What can't be for want of a thread is not done: whoever has to know
    /// asks again, and then a thread is tried for again.
    pub(super) fn order(&mut self, order: impl FnOnce(&mut Work) + Send + 'static) {
        if let State::Idle(work) = &mut self.state {
            let Some(work) = work.take() else { return };
            let (orders, to_do) = mpsc::channel::<Order>();
            let thread = OwnThread::start("index", (work, to_do), |(mut work, to_do)| {
                work.survey();
                to_do.into_iter().for_each(|order| order(&mut work));
            });
            match thread {
                Ok(thread) => self.state = State::Runs { orders, _thread: thread },
                Err((error, (work, _))) => {
                    if !self.has_complained {
                        let message = format!("ended jobs stay in the journal: no thread: {error}");
                        self.log.error(&message);
                    }
                    self.has_complained = true;
                    self.state = State::Idle(Some(work));
                    return;
                }
            }
        }
        if let State::Runs { orders, .. } = &self.state {
            // A thread that is gone has said why.
            let _ = orders.send(Box::new(order));
        }
    }

    /// Has something found out.
    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        question: impl FnOnce(&mut Work) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (told, answer) = oneshot::channel();
        self.order(move |work| {
            // Whoever asked may have gone.
            let _ = told.send(question(work));
        });
        answer
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("signs", &self.signs).finish_non_exhaustive()
    }
}

impl Work {
    /// Does something with the index. One that is damaged is made anew, and it is done again. `None` if
    /// it can't be done; that is logged once, until it can be done again.
    pub(super) fn with<T>(
        &mut self,
        mut work: impl FnMut(&mut Index) -> Result<T, IndexError>,
    ) -> Option<T> {
        let mut done = self.opened().and_then(&mut work);
        if let Err(IndexError::Damaged(_)) = &done {
            if let Err(error) = &done {
                self.log.error(&format!("{error}; it is made anew from what is left"));
            }
            done = self.make_anew().and_then(|()| self.opened().and_then(&mut work));
        }
        match done {
            Ok(done) => {
                self.has_complained = false;
                Some(done)
            }
            Err(error) => {
                self.index = None;
                if !self.has_complained {
                    self.log.error(&format!("{error}; ended jobs stay in the journal until then"));
                }
                self.has_complained = true;
                None
            }
        }
    }

    fn opened(&mut self) -> Result<&mut Index, IndexError> {
        let index = match self.index.take() {
            Some(index) => index,
            None => Index::open(&self.directory, Use::Write)?,
        };
        Ok(self.index.insert(index))
    }

    /// Has the journal vouch for nothing from before, and waits until it is so on the disk too: whoever
    /// finds ids missing must not find a journal that says there were none, killed in between or not.
    fn disavow(&self) -> Result<(), IndexError> {
        self.signs.is_forgetting.store(true, Ordering::Release);
        self.signs.work.notify_one();
        if self.told.recv() == Ok(true) { Ok(()) } else { Err(IndexError::Vouched) }
    }

    fn make_anew(&mut self) -> Result<(), IndexError> {
        self.index = None;
        self.disavow()?;
        self.signs.is_remaking.store(true, Ordering::Release);
        let made = self.make_anew_disavowed();
        self.signs.is_remaking.store(false, Ordering::Release);
        made
    }

    fn make_anew_disavowed(&mut self) -> Result<(), IndexError> {
        Index::put_aside(&self.directory)?;
        self.signs.generation.fetch_add(1, Ordering::AcqRel);
        let jobs: Vec<EndedJob> =
            self.spools.names()?.iter().filter_map(|name| self.job_of_spool(name)).collect();
        self.log.info(&format!("{} jobs were found again by their output", jobs.len()));
        self.opened()?.put(&jobs)
    }

    /// What the directory of a job's output says of it, unless the journal says more.
    fn job_of_spool(&self, name: &str) -> Option<EndedJob> {
        let (number, _) = parse_spool_name(name)?;
        if number > self.before || self.known.contains(&number) {
            return None;
        }
        let replay = Replay::read(&self.spools.meta(name).ok()?);
        let entry = replay.ledger.jobs().find(|entry| entry.intended.spool == name)?;
        let mut job = ended_job(entry, None, None);
        if entry.is_unfinished() {
            job.told.info.end = Some(afar_proto::outcome::End::Lost);
            job.told.info.state = afar_proto::message::JobState::Ended;
            job.ended_at_us = number;
        }
        add_kept_output(&self.spools, entry, &mut job);
        Some(job)
    }

    /// Counts what is on the disk from before, and removes what belongs to no job.
    fn survey(&mut self) {
        let names = match self.spools.names() {
            Ok(names) => names,
            Err(error) => return self.log.error(&error.to_string()),
        };
        for name in names {
            let Some((number, _)) = parse_spool_name(&name) else { continue };
            if number > self.before {
                continue;
            }
            match self.spools.size(&name) {
                Ok(bytes) => self.spools.count(bytes),
                Err(error) => self.log.error(&error.to_string()),
            }
            if self.known.contains(&number) {
                continue;
            }
            match self.with(|index| index.keeps(number, &name)) {
                Some(Some(true)) | None => {}
                Some(Some(false)) => self.remove_spool(&name),
                // The index has been lost: the job is found again by its output.
                Some(None) => match self.job_of_spool(&name) {
                    Some(job) => drop(self.with(|index| index.put(std::slice::from_ref(&job)))),
                    None => self.remove_spool(&name),
                },
            }
        }
    }

    pub(super) fn remove_spool(&mut self, name: &str) {
        if let Err(error) = self.spools.remove(name) {
            self.log.error(&format!("released output stays on the disk: {error}"));
        }
    }

    /// Changes what is told of a job that is in the index.
    pub(super) fn change(&mut self, key: &JobKey, change: &Change) {
        let Some(Some(mut job)) = self.with(|index| index.job(key)) else { return };
        let spool = change.apply(&mut job);
        if self.with(|index| index.put(std::slice::from_ref(&job))).is_some()
            && let Some(spool) = spool
        {
            self.remove_spool(&spool);
        }
    }

    /// Asks for a job, to find out what is wrong with the index.
    pub(super) fn look(&mut self, key: &JobKey) {
        let _ = self.with(|index| index.job(key));
    }

    fn release(&mut self, number: u64, spool: Option<&str>) {
        let Some(spool) = spool else { return };
        // Killed in between, the next one finds a spool that no job has.
        if self.with(|index| index.released(number)).is_some() {
            self.remove_spool(spool);
        }
    }

    /// Lets go of what has been kept long enough, and of the oldest if there is too much (`J-5.11`).
    pub(super) fn retain(&mut self, now_us: u64) {
        while let Some(expired) = self.with(|index| index.expired(now_us, STEP_ROWS)) {
            if expired.is_empty() {
                break;
            }
            expired.iter().for_each(|(number, spool)| self.release(*number, Some(spool)));
        }
        let quota = self.spools.quotas().user_bytes / 100 * RETAINED_PERCENT_MAX;
        let mut dropped = 0;
        while self.spools.used() > quota {
            let Some(oldest) = self.with(|index| index.oldest_kept(1)) else { break };
            let Some((number, spool)) = oldest.first() else { break };
            let before = self.spools.used();
            self.release(*number, Some(spool));
            dropped += 1;
            // What can't be removed must not be tried for ever.
            if self.spools.used() >= before {
                break;
            }
        }
        if dropped > 0 {
            self.log
                .info(&format!("the output of {dropped} ended jobs was dropped: over the quota"));
        }
        while self.with(|index| index.forget(now_us, STEP_ROWS)).is_some_and(|count| count > 0) {}
        self.forget_surplus();
    }

    fn forget_surplus(&mut self) {
        if self.with(|index| index.surplus()).is_none_or(|surplus| surplus == 0) {
            return;
        }
        if let Err(error) = self.disavow() {
            return self.log.error(&format!("{error}; it keeps them"));
        }
        while self.with(|index| index.forget_surplus(STEP_ROWS)).is_some_and(|count| count > 0) {}
    }
}
