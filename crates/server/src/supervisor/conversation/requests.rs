//! What a client asks for: a job to be started, one to attach to, or something about jobs.

use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afar_core::job::{AttachRequest, Decision, JobKey, Leave};
use afar_core::policy::{JobScope, RequestFacts, Verb, allowed};
use afar_proto::connection::{ChannelId, Stream};
use afar_proto::message::{
    Answer, Attach, AttachMode, JobPage, JobQuery, KillQuery, ListQuery, OpenSpec, Opened, Query,
    Refused,
};
use afar_proto::outcome::{RefusalReason, Started};
use afar_sys::signals::Signal;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::Conversation;
use super::attachments::Attachment;
use crate::limits::LIST_PAGE_MAX;
use crate::supervisor::job::{FromJob, Opening, Route, Said, ToJob, start, start_in_session};
use crate::supervisor::jobs::{Entry, Life, View, refused};
use crate::supervisor::request::{invalid, prepare, refuse_denied};
use crate::supervisor::session::prepare_in_session;

impl Conversation {
    /// Whose jobs this connection sees.
    fn view(&self) -> View {
        let (scope, all) = match self.grant.job_scope() {
            JobScope::User => (String::new(), true),
            JobScope::Key(fingerprint) => (fingerprint.to_owned(), false),
        };
        View { scope, all }
    }

    fn route(&self, channel: ChannelId) -> Route {
        let id = self.supervisor.jobs.next_attachment();
        Route { id, channel, to: self.to_self.clone() }
    }

    // OPEN.

    pub(super) fn open(&mut self, channel: ChannelId, spec: &OpenSpec) {
        match self.start(channel, spec) {
            Ok(Some(opened)) => {
                if let Some(mut handle) = self.driver.connection().channel(channel) {
                    handle.accept(&opened);
                }
                self.attachments.top_up_all(self.driver.connection(), channel);
            }
            // It waits for its turn in a session, or was there already.
            Ok(None) => {}
            Err(refused) => self.refuse(channel, &refused),
        }
    }

    /// Starts a job, or has it wait for its turn, or attaches to it if it is there: then there is no
    /// answer yet.
    fn start(&mut self, channel: ChannelId, spec: &OpenSpec) -> Result<Option<Opened>, Refused> {
        if spec.detach && spec.stdin {
            return Err(invalid("who leaves a job at once can send it no stdin"));
        }
        let key = self.view().key(&spec.job);
        match self.supervisor.jobs.decide(&key, spec) {
            Decision::Start => {}
            Decision::Same => return self.attach_again(channel, spec, &key).map(|()| None),
            Decision::Conflict => {
                let message = format!("the id {} is another request's", spec.job);
                return Err(refused(RefusalReason::Conflict, &message));
            }
            Decision::Unknown => return Err(unknown(spec)),
        }
        if !self.supervisor.jobs.has_room() {
            let message = "too many jobs that have not ended; wait for some, or kill them";
            return Err(refused(RefusalReason::TooMany, message));
        }
        let now_s = now_s();
        let session = prepare_in_session(spec, &self.grant, self.number, now_s)?;
        let route = self.route(channel);
        let id = route.id;
        let supervisor = Rc::clone(&self.supervisor);
        let opening = Opening { spec, key: key.clone(), route, supervisor: &supervisor };
        let started = match session {
            Some(request) => start_in_session(opening, request)?,
            None => {
                let prepared = prepare(spec, &self.grant, &self.supervisor.user, now_s)?;
                start(opening, &prepared)
                    .inspect_err(|refused| supervisor.jobs.enter_refused(&key, spec, refused))?
            }
        };
        supervisor.jobs.enter(key, spec, started.commands.clone());
        if !spec.detach || started.pid.is_none() {
            self.enter(channel, Attachment::new(id, spec.job.clone(), started.commands));
        }
        tokio::task::spawn_local(started.job.run());
        let (started_at_us, note) = (started.started_at_us, started.note);
        let opened = |pid| Opened { job: spec.job.clone(), pid, started_at_us, note };
        Ok(started.pid.map(opened))
    }

    /// The request was sent before: whoever may start the job may go on with it (`J-1.3`).
    fn attach_again(
        &mut self,
        channel: ChannelId,
        spec: &OpenSpec,
        key: &JobKey,
    ) -> Result<(), Refused> {
        allowed(&self.grant, Verb::Run, RequestFacts::run(now_s(), &spec.command))
            .map_err(|denied| refuse_denied(&denied))?;
        let route = self.route(channel);
        let mut request = AttachRequest::opening(route.id);
        if spec.detach {
            // It leaves with the answer.
            request = AttachRequest { mode: AttachMode::Watch, wanted: [None; 2], ..request };
        }
        let commands = self.supervisor.attach(key, request, route.clone())?;
        if spec.detach {
            let _ = commands.send(ToJob::From(route.id, Said::Leave(Leave::Detached)));
        }
        self.enter(channel, Attachment::new(route.id, key.job.clone(), commands));
        Ok(())
    }

    fn enter(&mut self, channel: ChannelId, attachment: Attachment) {
        self.attachments.insert(channel, attachment);
    }

    // ATTACH.

    pub(super) fn attach(&mut self, channel: ChannelId, attach: &Attach) {
        if let Err(refused) = self.try_attach(channel, attach) {
            self.refuse(channel, &refused);
        }
    }

    fn try_attach(&mut self, channel: ChannelId, attach: &Attach) -> Result<(), Refused> {
        let verb = match attach.mode {
            AttachMode::Take => Verb::Attach,
            AttachMode::Watch => Verb::Logs,
        };
        let (key, _) =
            self.find(verb, &JobQuery { job: attach.job.clone(), prefix: attach.prefix })?;
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
        let commands = self.supervisor.attach(&key, request, route)?;
        self.enter(channel, Attachment::new(id, key.job, commands));
        Ok(())
    }

    /// A job that this connection sees, and may do that with.
    fn find(&self, verb: Verb, query: &JobQuery) -> Result<(JobKey, Life), Refused> {
        let view = self.view();
        let found = self.supervisor.jobs.find(&view, &query.job, query.prefix)?;
        let own_job = found.0.scope == view.scope;
        let facts = RequestFacts { own_job, ..RequestFacts::other(now_s()) };
        allowed(&self.grant, verb, facts).map_err(|denied| refuse_denied(&denied))?;
        Ok(found)
    }

    // QUERY.

    pub(super) fn query(&mut self, channel: ChannelId, query: Query) {
        let answered = match query {
            Query::List(list) => self.list(channel, list),
            Query::Kill(kill) => self.kill(channel, kill),
            Query::Remove(remove) => self.remove(channel, &remove),
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
        let mut seen = self.supervisor.jobs.seen(&self.view(), after);
        if let Some(job) = &list.job {
            let exact = seen.iter().any(|(key, _)| key.job == *job);
            seen.retain(|(key, _)| {
                if exact { key.job == *job } else { key.job.as_str().starts_with(job.as_str()) }
            });
        }
        let to = self.to_self.clone();
        tokio::task::spawn_local(async move {
            let page = Box::new(Answer::Page(page(seen, &list).await));
            let _ = to.send((channel, FromJob::Answer(page)));
        });
        Ok(())
    }

    fn kill(&mut self, channel: ChannelId, kill: KillQuery) -> Result<(), Refused> {
        let KillQuery { job, prefix, signal } = kill;
        let signal = signal.map(|name| Signal::parse(&name).ok_or(name)).transpose();
        let signal =
            signal.map_err(|name| invalid(&format!("there is no signal {name:?} here")))?;
        let (key, life) = self.find(Verb::Kill, &JobQuery { job, prefix })?;
        let Some(commands) = live(&life) else { return Err(has_ended(&key)) };
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

    fn remove(&mut self, channel: ChannelId, query: &JobQuery) -> Result<(), Refused> {
        let (key, life) = self.find(Verb::Kill, query)?;
        let Some(commands) = live(&life) else {
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

fn live(life: &Life) -> Option<&UnboundedSender<ToJob>> {
    match life {
        Life::Live(commands) => Some(commands),
        _ => None,
    }
}

/// As many of these jobs as fit on a page.
async fn page(seen: Vec<(JobKey, Entry)>, list: &ListQuery) -> JobPage {
    let limit = list.limit.and_then(|limit| usize::try_from(limit).ok());
    let limit = limit.unwrap_or(LIST_PAGE_MAX).clamp(1, LIST_PAGE_MAX);
    let (mut page, mut bytes, mut last) = (JobPage::default(), 0, None);
    for (_, entry) in seen {
        let info = match &entry.life {
            Life::Live(commands) => {
                let (reply, described) = oneshot::channel();
                let _ = commands.send(ToJob::Describe(reply));
                match described.await {
                    Ok(info) => info,
                    // It has gone in this moment.
                    Err(_) => continue,
                }
            }
            Life::Ended(remains) => remains.info.clone(),
            Life::Removed(_) | Life::Refused(_) => continue,
        };
        if list.states.as_ref().is_some_and(|states| !states.contains(&info.state)) {
            continue;
        }
        if page.jobs.len() >= limit || page.push(&mut bytes, info).is_err() {
            page.next = last.map(|number: u64| number.to_string());
            return page;
        }
        last = Some(entry.number);
    }
    page
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
        "nobody can tell whether the job {} was started: what was known of it then is lost",
        spec.job
    );
    Refused { started: Started::Unknown, ..refused(RefusalReason::Unknown, &message) }
}

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
