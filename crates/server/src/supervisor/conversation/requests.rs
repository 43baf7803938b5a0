//! What a client asks for: a job to be started, one to attach to, or something about jobs.

use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afar_core::job::{AttachRequest, Decision, Digest, JobKey, Leave};
use afar_core::policy::{Grant, JobScope, RequestFacts, Verb, allowed};
use afar_proto::connection::{ChannelId, Stream};
use afar_proto::message::{
    Answer, Attach, AttachMode, JobInfo, JobQuery, KillQuery, ListQuery, OpenSpec, Opened, Query,
    Refused,
};
use afar_proto::outcome::{RefusalReason, Started};
use afar_sys::signals::Signal;
use tokio::sync::oneshot;

use super::Conversation;
use super::attachments::Attachment;
use super::far::in_time;
use crate::store::Begun;
use crate::supervisor::Supervisor;
use crate::supervisor::job::{
    Archived, Found, FromJob, Opening, Route, Said, Started as StartedJob, ToJob, Wish, describe,
    start, start_in_session,
};
use crate::supervisor::jobs::{Asked, Life, View, no_such_job, refused};
use crate::supervisor::request::{self, invalid, mark_value, prepare, refuse_denied};
use crate::supervisor::session::{SessionRequest, prepare_in_session};

/// A request that may be started.
enum Prepared {
    Own(request::Prepared),
    InSession(SessionRequest),
}

impl Prepared {
    /// The value of the job's mark.
    fn mark_value(&self) -> &str {
        match self {
            Self::Own(prepared) => prepared.mark_value(),
            Self::InSession(request) => mark_value(&request.mark),
        }
    }
}

impl Conversation {
    /// Whose jobs this connection sees.
    pub(super) fn view(&self) -> View {
        let (scope, all) = match self.grant.job_scope() {
            JobScope::User => (String::new(), true),
            JobScope::Key(fingerprint) => (fingerprint.to_owned(), false),
        };
        View { scope, all }
    }

    pub(super) fn route(&self, channel: ChannelId) -> Route {
        let id = self.supervisor.jobs.next_attachment();
        Route { id, channel, to: self.to_self.clone() }
    }

    // OPEN.

    pub(super) fn open(&mut self, channel: ChannelId, spec: &OpenSpec) {
        if self.supervisor.jobs.may_hang() {
            return self.open_far(channel, spec);
        }
        match self.start(channel, spec) {
            Ok(Some(opened)) => self.opened(channel, &opened),
            // It waits for its turn in a session, or was there already.
            Ok(None) => {}
            Err(refused) => self.refuse(channel, &refused),
        }
    }

    pub(super) fn opened(&mut self, channel: ChannelId, opened: &Opened) {
        if let Some(mut handle) = self.driver.connection().channel(channel) {
            handle.accept(opened);
        }
        self.attachments.top_up_all(self.driver.connection(), channel);
    }

    /// Starts a job, or has it wait for its turn, or attaches to it if it is there: then there is no
    /// answer yet.
    fn start(&mut self, channel: ChannelId, spec: &OpenSpec) -> Result<Option<Opened>, Refused> {
        check(spec)?;
        let (key, digest) = (self.view().key(&spec.job), spec.digest());
        let supervisor = Rc::clone(&self.supervisor);
        match supervisor.jobs.decide(&key, spec, &digest) {
            Decision::Start => {}
            Decision::Same => return self.attach_again(channel, spec, &key).map(|()| None),
            other => return Err(not_started(other, spec)),
        }
        let route = self.route(channel);
        let id = route.id;
        let (grant, connection) = (&self.grant, self.number);
        let starter = Starter { supervisor: &supervisor, grant, connection, spec };
        let ready = starter.ready(key, digest)?;
        let number = starter.begin(&ready)?.number;
        let started = starter.launch(ready, number, route)?;
        if !spec.detach || started.pid.is_none() {
            self.enter(channel, Attachment::new(id, spec.job.clone(), started.commands.clone()));
        }
        Ok(run(started, spec))
    }

    /// The request was sent before: whoever may start the job may go on with it (`J-1.3`).
    fn attach_again(
        &mut self,
        channel: ChannelId,
        spec: &OpenSpec,
        key: &JobKey,
    ) -> Result<(), Refused> {
        let route = self.route(channel);
        let request = again(&self.grant, spec, &route)?;
        let commands = self.supervisor.attach(key, request, route.clone())?;
        if spec.detach {
            let _ = commands.send(ToJob::From(route.id, Said::Leave(Leave::Detached)));
        }
        self.enter(channel, Attachment::new(route.id, key.job.clone(), commands));
        Ok(())
    }

    pub(super) fn enter(&mut self, channel: ChannelId, attachment: Attachment) {
        self.attachments.insert(channel, attachment);
    }

    // ATTACH.

    pub(super) fn attach(&mut self, channel: ChannelId, attach: &Attach) {
        if let Err(refused) = self.try_attach(channel, attach) {
            self.refuse(channel, &refused);
        }
    }

    fn try_attach(&mut self, channel: ChannelId, attach: &Attach) -> Result<(), Refused> {
        let query = JobQuery { job: attach.job.clone(), prefix: attach.prefix };
        self.wish(channel, &query, Wish::Attach(Box::new(attach.clone())))
    }

    fn attach_to(
        &mut self,
        channel: ChannelId,
        found: Found,
        attach: &Attach,
    ) -> Result<(), Refused> {
        let offset = |stream: Stream| attach.streams.get(stream.name()).map(|offset| offset.0);
        let route = self.route(channel);
        let request = AttachRequest {
            id: route.id,
            mode: attach.mode,
            wanted: Stream::OUTPUTS.map(offset),
            start: attach.start,
            follow: attach.follow,
        };
        let id = route.id;
        let supervisor = &self.supervisor;
        let commands = match (found.archived, supervisor.jobs.life_at_hand(&found.key)) {
            (Some(Archived { life, reader }), None) => {
                supervisor.attach_where(&found.key, Some(life), reader, request, route)?
            }
            (_, Some(life)) => {
                supervisor.attach_where(&found.key, Some(life), None, request, route)?
            }
            (None, None) => supervisor.attach(&found.key, request, route)?,
        };
        self.enter(channel, Attachment::new(id, found.key.job, commands));
        Ok(())
    }

    /// Does what is wished with a job, once it is known which.
    fn wish(&mut self, channel: ChannelId, query: &JobQuery, wish: Wish) -> Result<(), Refused> {
        let view = self.view();
        if self.supervisor.jobs.may_hang() {
            self.wish_far(channel, query, wish);
            return Ok(());
        }
        if let Some(key) = self.supervisor.jobs.find(&view, &query.job)? {
            return self.fulfil(channel, Found { key, archived: None }, wish);
        }
        if !query.prefix && !view.all {
            return Err(no_such_job(&query.job));
        }
        let found = self.supervisor.jobs.search(&view, &query.job, query.prefix);
        let to = self.to_self.clone();
        tokio::task::spawn_local(async move {
            let found = found.await.map(|key| Box::new(Found { key, archived: None }));
            let _ = to.send((channel, FromJob::Found(wish, found.map_err(Box::new))));
        });
        Ok(())
    }

    /// It was found which job is meant, or not.
    pub(super) fn found(
        &mut self,
        channel: ChannelId,
        wish: Wish,
        found: Result<Box<Found>, Box<Refused>>,
    ) {
        if self.driver.connection().channel(channel).is_none() {
            // Its client waits no longer.
            return;
        }
        let done = found.map_err(|refused| *refused);
        if let Err(refused) = done.and_then(|found| self.fulfil(channel, *found, wish)) {
            self.refuse(channel, &refused);
        }
    }

    fn fulfil(&mut self, channel: ChannelId, found: Found, wish: Wish) -> Result<(), Refused> {
        let verb = match &wish {
            Wish::Attach(attach) if attach.mode == AttachMode::Watch => Verb::Logs,
            Wish::Attach(_) => Verb::Attach,
            Wish::Kill(_) | Wish::Remove => Verb::Kill,
        };
        let own_job = found.key.scope == self.view().scope;
        let facts = RequestFacts { own_job, ..RequestFacts::other(now_s()) };
        allowed(&self.grant, verb, facts).map_err(|denied| refuse_denied(&denied))?;
        if found.archived.is_none() && self.is_gone(&found.key) {
            // It has ended since it was found: now the archive has to be asked.
            let query = JobQuery { job: found.key.job, prefix: false };
            self.wish_far(channel, &query, wish);
            return Ok(());
        }
        match wish {
            Wish::Attach(attach) => self.attach_to(channel, found, &attach),
            Wish::Kill(signal) => self.kill(channel, found, signal),
            Wish::Remove => self.remove(channel, found),
        }
    }

    /// Whether nobody can tell of it without asking where nobody may be asked here.
    fn is_gone(&self, key: &JobKey) -> bool {
        let jobs = &self.supervisor.jobs;
        jobs.may_hang() && jobs.life_at_hand(key).is_none()
    }

    /// Where a job is that was found.
    fn life(&self, found: &mut Found) -> Result<Option<Life>, Refused> {
        match found.archived.take() {
            Some(archived) => {
                Ok(self.supervisor.jobs.life_at_hand(&found.key).or(Some(archived.life)))
            }
            None => self.supervisor.jobs.life(&found.key),
        }
    }

    // QUERY.

    pub(super) fn query(&mut self, channel: ChannelId, query: Query) {
        let answered = match query {
            Query::List(list) => self.list(channel, list),
            Query::Kill(KillQuery { job, prefix, signal }) => {
                named_signal(signal).and_then(|signal| {
                    self.wish(channel, &JobQuery { job, prefix }, Wish::Kill(signal))
                })
            }
            Query::Remove(query) => self.wish(channel, &query, Wish::Remove),
        };
        if let Err(refused) = answered {
            self.refuse(channel, &refused);
        }
    }

    fn answer(&mut self, channel: ChannelId, answer: &Answer) {
        if let Some(channel) = self.driver.connection().channel(channel) {
            channel.answer(answer);
        }
    }

    fn list(&mut self, channel: ChannelId, list: ListQuery) -> Result<(), Refused> {
        allowed(&self.grant, Verb::Ps, RequestFacts::other(now_s()))
            .map_err(|denied| refuse_denied(&denied))?;
        let after = list.after.as_deref().map(str::parse).transpose();
        let after: Option<u64> = after.map_err(|_| invalid("that page was never given"))?;
        let (view, supervisor) = (self.view(), Rc::clone(&self.supervisor));
        let to = self.to_self.clone();
        tokio::task::spawn_local(async move {
            let told = match in_time(&supervisor, supervisor.jobs.page(&view, &list, after)).await {
                Ok(page) => FromJob::Answer(Box::new(Answer::Page(page))),
                Err(refused) => FromJob::Refused(Box::new(refused)),
            };
            let _ = to.send((channel, told));
        });
        Ok(())
    }

    fn kill(
        &mut self,
        channel: ChannelId,
        mut found: Found,
        signal: Option<Signal>,
    ) -> Result<(), Refused> {
        let life = self.life(&mut found)?;
        let key = found.key;
        let commands = match life {
            Some(Life::Live(commands)) => commands,
            // What is known of it says more.
            Some(Life::Lost(refusal) | Life::Refused(refusal)) => return Err((*refusal).clone()),
            _ => return Err(has_ended(&key)),
        };
        let to = self.to_self.clone();
        let (reply, running) = oneshot::channel();
        let _ = commands.send(ToJob::Kill(signal, reply));
        tokio::task::spawn_local(async move {
            let told = match running.await {
                Ok(true) => FromJob::Answer(Box::new(Answer::Done { job: key.job })),
                _ => FromJob::Refused(Box::new(has_ended(&key))),
            };
            let _ = to.send((channel, told));
        });
        Ok(())
    }

    fn remove(&mut self, channel: ChannelId, mut found: Found) -> Result<(), Refused> {
        let life = self.life(&mut found)?;
        let key = found.key;
        let Some(Life::Live(commands)) = life else {
            self.supervisor.jobs.remove(&key);
            self.answer(channel, &Answer::Done { job: key.job });
            return Ok(());
        };
        let (reply, removed) = oneshot::channel();
        let _ = commands.send(ToJob::Remove(reply));
        let to = self.to_self.clone();
        tokio::task::spawn_local(async move {
            let told = match removed.await {
                Ok(true) => FromJob::Answer(Box::new(Answer::Done { job: key.job })),
                _ => FromJob::Refused(Box::new(still_running(&key))),
            };
            let _ = to.send((channel, told));
        });
        Ok(())
    }
}

/// What it takes to start a job, with or without the connection that asks for it.
pub(super) struct Starter<'a> {
    pub(super) supervisor: &'a Rc<Supervisor>,
    pub(super) grant: &'a Grant,
    /// The number of the connection, which is that of its sessions.
    pub(super) connection: u64,
    pub(super) spec: &'a OpenSpec,
}

/// A job that may be started.
pub(super) struct Ready {
    pub(super) key: JobKey,
    digest: Digest,
    info: Box<JobInfo>,
    prepared: Prepared,
}

impl Starter<'_> {
    /// Everything that can be known before it is written down.
    pub(super) fn ready(&self, key: JobKey, digest: Digest) -> Result<Ready, Refused> {
        if !self.supervisor.jobs.has_room() {
            let message = "too many jobs that have not ended; wait for some, or kill them";
            return Err(refused(RefusalReason::TooMany, message));
        }
        let (spec, now_s) = (self.spec, now_s());
        let session = prepare_in_session(spec, self.grant, self.connection, now_s)?;
        let prepared = match session {
            Some(request) => Prepared::InSession(request),
            None => Prepared::Own(prepare(spec, self.grant, &self.supervisor.user, now_s)?),
        };
        let info = describe(&key, spec);
        Ok(Ready { key, digest, info, prepared })
    }

    /// Writes it down.
    pub(super) fn begin(&self, ready: &Ready) -> Result<Begun, Refused> {
        let Ready { key, digest, info, prepared } = ready;
        let (mark, keep_s) = (prepared.mark_value(), self.spec.keep_s);
        self.supervisor.jobs.begin(&Asked { key, digest, mark, info, keep_s })
    }

    /// Starts what was written down, and enters it.
    pub(super) fn launch(
        &self,
        ready: Ready,
        number: u64,
        route: Route,
    ) -> Result<StartedJob, Refused> {
        let Ready { key, digest, info, prepared } = ready;
        let (spec, supervisor) = (self.spec, self.supervisor);
        let opening = Opening { spec, key: key.clone(), info, route, supervisor };
        let started = match prepared {
            Prepared::InSession(request) => start_in_session(opening, request),
            Prepared::Own(prepared) => start(opening, &prepared),
        };
        let jobs = &supervisor.jobs;
        let started =
            started.inspect_err(|refused| jobs.start_failed(&key, digest, number, refused))?;
        jobs.enter(key, digest, number, started.commands.clone());
        Ok(started)
    }
}

/// Runs a job that was started, and gives what its client is told; nothing, if it has to wait for its turn.
pub(super) fn run(started: StartedJob, spec: &OpenSpec) -> Option<Opened> {
    tokio::task::spawn_local(started.job.run());
    let (started_at_us, note) = (started.started_at_us, started.note);
    let opened = |pid| Opened { job: spec.job.clone(), pid, started_at_us, note };
    started.pid.map(opened)
}

pub(super) fn check(spec: &OpenSpec) -> Result<(), Refused> {
    if spec.detach && spec.stdin {
        return Err(invalid("who leaves a job at once can send it no stdin"));
    }
    Ok(())
}

/// Why a job is not started that was decided about so.
pub(super) fn not_started(decision: Decision, spec: &OpenSpec) -> Refused {
    if decision == Decision::Conflict {
        let message = format!("the id {} is another request's", spec.job);
        return refused(RefusalReason::Conflict, &message);
    }
    unknown(spec)
}

/// How an OPEN attaches to its job that is there already.
pub(super) fn again(
    grant: &Grant,
    spec: &OpenSpec,
    route: &Route,
) -> Result<AttachRequest, Refused> {
    let (verb, facts) = RequestFacts::open(now_s(), spec);
    allowed(grant, verb, facts).map_err(|denied| refuse_denied(&denied))?;
    let request = AttachRequest::opening(route.id);
    if spec.detach {
        // It leaves with the answer.
        return Ok(AttachRequest { mode: AttachMode::Watch, wanted: [None; 2], ..request });
    }
    Ok(request)
}

fn named_signal(name: Option<String>) -> Result<Option<Signal>, Refused> {
    let Some(name) = name else { return Ok(None) };
    let none = || invalid(&format!("there is no signal {name:?} here"));
    Signal::parse(&name).map(Some).ok_or_else(none)
}

fn has_ended(key: &JobKey) -> Refused {
    let message = format!("the job {} has ended already", key.job);
    Refused { started: Started::Yes, ..refused(RefusalReason::NoSuchJob, &message) }
}

fn still_running(key: &JobKey) -> Refused {
    let message = format!("the job {} has not ended; kill it first", key.job);
    Refused { started: Started::Yes, ..refused(RefusalReason::Running, &message) }
}

/// It was perhaps started, and forgotten (`J-1.6`).
fn unknown(spec: &OpenSpec) -> Refused {
    let message = format!(
        "nobody can tell whether the job {} was started: what was known of it then is lost, or can't \
         be read",
        spec.job
    );
    Refused { started: Started::Unknown, ..refused(RefusalReason::Unknown, &message) }
}

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
