//! The jobs of this supervisor's user, whoever is connected: which ids are taken, and by what.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use afar_core::job::{
    AttachRequest, AttachmentId, Cause, Decision, JobKey, Register, Retry, Vouch,
};
use afar_proto::Instant;
use afar_proto::message::{Incarnation, JobId, JobInfo, OpenSpec, Refused};
use afar_proto::outcome::{Phase, RefusalReason, Seal, Started};
use afar_sys::boot::since_boot;
use tokio::sync::mpsc::UnboundedSender;

use super::Supervisor;
use super::job::{Job, Route, ToJob};
use crate::limits::{ENDED_JOBS_HELD_MAX, JOBS_MAX};

/// All jobs. One thread has them.
#[derive(Debug)]
pub(super) struct Jobs {
    register: RefCell<Register<Entry>>,
    incarnation: Incarnation,
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
}

/// What is left of a job.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) info: JobInfo,
    pub(super) seal: Seal,
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
    /// None, in a new incarnation.
    pub(super) fn new(incarnation: Incarnation) -> Self {
        let began = now();
        let register = Register::new(Vouch { began, since: began }, ENDED_JOBS_HELD_MAX);
        let register = RefCell::new(register);
        Self { register, incarnation, entered: Cell::default(), attached: Cell::default() }
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

    /// What a request means (`J-1.3`, `J-1.6`).
    pub(super) fn decide(&self, key: &JobKey, spec: &OpenSpec) -> Decision {
        let retry = spec.retry.as_ref().map(|retry| Retry {
            age: Duration::from_millis(retry.age_ms),
            same_incarnation: retry.incarnation.as_ref() == Some(&self.incarnation),
        });
        self.register.borrow().decide(key, &spec.digest(), retry.as_ref(), now())
    }

    /// Whether there is room for one more that has not ended.
    pub(super) fn has_room(&self) -> bool {
        self.register.borrow().running() < JOBS_MAX
    }

    /// Enters a job that was started.
    pub(super) fn enter(&self, key: JobKey, spec: &OpenSpec, commands: UnboundedSender<ToJob>) {
        self.entered.set(self.entered.get() + 1);
        let entry = Entry { number: self.entered.get(), life: Life::Live(commands) };
        self.register.borrow_mut().enter(key, spec.digest(), now(), entry);
    }

    /// A start has failed: the id has started nothing, and is taken all the same (`J-1.4`).
    pub(super) fn enter_refused(&self, key: &JobKey, spec: &OpenSpec, refused: &Refused) {
        self.entered.set(self.entered.get() + 1);
        let life = Life::Refused(Rc::new(refused.clone()));
        let entry = Entry { number: self.entered.get(), life };
        let mut register = self.register.borrow_mut();
        register.enter(key.clone(), spec.digest(), now(), entry.clone());
        register.end(key, entry);
    }

    /// A job that waited for its turn was never started.
    pub(super) fn refused(&self, key: &JobKey, refused: &Refused) {
        self.end(key, Life::Refused(Rc::new(refused.clone())));
    }

    /// Everything of a job is told.
    pub(super) fn ended(&self, key: &JobKey, remains: Remains, removed: bool) {
        let remains = Rc::new(remains);
        self.end(key, if removed { Life::Removed(remains) } else { Life::Ended(remains) });
    }

    fn end(&self, key: &JobKey, life: Life) {
        let mut register = self.register.borrow_mut();
        // What was brought back to tell its outcome says nothing new.
        let live = |entry: &&Entry| matches!(entry.life, Life::Live(_));
        let Some(number) = register.find(key).filter(live).map(|entry| entry.number) else {
            return;
        };
        register.end(key, Entry { number, life });
    }

    /// Forgets an ended job, as far as anybody can see (`J-1.7`).
    pub(super) fn remove(&self, key: &JobKey) {
        let mut register = self.register.borrow_mut();
        if let Some(entry) = register.find_mut(key)
            && let Life::Ended(remains) = &entry.life
        {
            entry.life = Life::Removed(Rc::clone(remains));
        }
    }

    /// Where the job with this key is.
    pub(super) fn life(&self, key: &JobKey) -> Option<Life> {
        self.register.borrow().find(key).map(|entry| entry.life.clone())
    }

    /// The job that is meant by an id, or by the beginning of one.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub(super) fn find(
        &self,
        view: &View,
        job: &JobId,
        prefix: bool,
    ) -> Result<(JobKey, Life), Refused> {
        let register = self.register.borrow();
        let own = view.key(job);
        if let Some(entry) = register.find(&own).filter(|entry| entry.life.is_seen()) {
            return Ok((own, entry.life.clone()));
        }
        let seen = || register.iter().filter(|(key, entry)| view.sees(key) && entry.life.is_seen());
        let exact = || seen().filter(|(key, _)| key.job == *job);
        let begins = |key: &JobKey| key.job.as_str().starts_with(job.as_str());
        let found: Vec<_> = match exact().count() {
            0 if prefix => seen().filter(|(key, _)| begins(key)).take(2).collect(),
            _ => exact().take(2).collect(),
        };
        match *found {
            [] => Err(no_such_job(job)),
            [(key, entry)] => Ok((key.clone(), entry.life.clone())),
            _ => Err(refused(
                RefusalReason::Ambiguous,
                &format!("more than one job's id begins with {job}"),
            )),
        }
    }

    /// Those that somebody sees, the newest first, from behind the number `after` on.
    pub(super) fn seen(&self, view: &View, after: Option<u64>) -> Vec<(JobKey, Entry)> {
        let register = self.register.borrow();
        let mut seen: Vec<_> = register
            .iter()
            .filter(|(key, entry)| view.sees(key) && entry.life.is_seen())
            .filter(|(_, entry)| after.is_none_or(|after| entry.number < after))
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect();
        seen.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(entry.number));
        seen
    }

    /// Tells all that have not ended that they are to end.
    pub(super) fn end_all(&self) {
        for (_, entry) in self.register.borrow().iter() {
            if let Life::Live(commands) = &entry.life {
                let _ = commands.send(ToJob::End(Cause::Cancelled));
            }
        }
    }
}

impl Life {
    /// Whether it can be listed, attached to, and ended.
    fn is_seen(&self) -> bool {
        matches!(self, Self::Live(_) | Self::Ended(_))
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
        let commands = match self.jobs.life(key) {
            Some(Life::Live(commands)) => commands,
            Some(Life::Ended(remains) | Life::Removed(remains)) => {
                let revived = Job::revived(key.clone(), &remains, self);
                let (job, commands) = revived
                    .map_err(|error| refused(RefusalReason::NoResources, &error.to_string()))?;
                tokio::task::spawn_local(job.run());
                commands
            }
            Some(Life::Refused(refusal)) => return Err((*refusal).clone()),
            None => return Err(no_such_job(&key.job)),
        };
        // A task that ends says so in the table in the same moment, so this one is there.
        let _ = commands.send(ToJob::Attach(Box::new(request), route));
        Ok(commands)
    }
}

/// Time since boot, as the register counts it.
fn now() -> Instant {
    Instant::from_micros(u64::try_from(since_boot().as_micros()).unwrap_or(u64::MAX))
}

pub(super) fn no_such_job(job: &JobId) -> Refused {
    refused(RefusalReason::NoSuchJob, &format!("there is no job {job} here"))
}

pub(super) fn refused(reason: RefusalReason, message: &str) -> Refused {
    Refused { phase: Phase::Authorize, reason, message: message.to_owned(), started: Started::No }
}
