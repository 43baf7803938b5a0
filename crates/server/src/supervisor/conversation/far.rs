//! Requests where what is known of jobs is on a file server: threads ask it, and nobody waits for them but
//! who wants to know, for [`ARCHIVE_DEADLINE`] (`J-5.12`).
//!
//! A job that runs goes on, and is attached to, signalled and told the end of, whether the file server
//! answers or not. A new one waits until its id was looked up and its intent is written (`J-1.3`, `J-1.4`); so
//! they start one after the other.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use afar_core::job::{Decision, JobKey, Leave};
use afar_core::policy::Grant;
use afar_proto::connection::ChannelId;
use afar_proto::message::{JobQuery, OpenSpec, Opened, Refused};
use afar_proto::outcome::{RefusalReason, Started};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout, timeout_at};

use super::Conversation;
use super::attachments::Attachment;
use super::requests::{Ready, Starter, again, check, not_started, run};
use crate::limits::ARCHIVE_DEADLINE;
use crate::store::{EndedJob, SpoolReader};
use crate::supervisor::job::{Archived, Entered, Found, FromJob, Route, Said, ToJob, Wish};
use crate::supervisor::jobs::{Life, View, refused, untold};
use crate::supervisor::{Stopping, Supervisor};

/// Whoever asks for a job to be started, and may be gone when it is.
struct Asker {
    supervisor: Rc<Supervisor>,
    grant: Grant,
    connection: u64,
    view: View,
    left: Rc<Cell<Option<Leave>>>,
    spec: OpenSpec,
}

impl Conversation {
    pub(super) fn open_far(&self, channel: ChannelId, spec: &OpenSpec) {
        let asker = Asker {
            supervisor: Rc::clone(&self.supervisor),
            grant: self.grant.clone(),
            connection: self.number,
            view: self.view(),
            left: Rc::clone(&self.left),
            spec: spec.clone(),
        };
        let route = self.route(channel);
        tokio::task::spawn_local(async move {
            if let Err(refused) = asker.open(&route).await {
                route.tell(FromJob::Refused(Box::new(refused)));
            }
        });
    }

    /// What was asked for while this did something else is there.
    pub(super) fn entered(&mut self, channel: ChannelId, entered: Entered) {
        let Entered { id, job, commands, opened, leaves } = entered;
        if self.driver.connection().channel(channel).is_none() {
            // Whoever closes a channel before the end cancels the job (`J-2.3`).
            let _ = commands.send(ToJob::From(id, Said::Leave(Leave::Closed)));
            return;
        }
        if !leaves {
            self.enter(channel, Attachment::new(id, job, commands));
        }
        if let Some(opened) = opened {
            self.opened(channel, &opened);
        }
    }

    pub(super) fn wish_far(&self, channel: ChannelId, query: &JobQuery, wish: Wish) {
        let (supervisor, view) = (Rc::clone(&self.supervisor), self.view());
        let (to, query) = (self.to_self.clone(), query.clone());
        tokio::task::spawn_local(async move {
            let found = find(&supervisor, &view, &query).await;
            let found = found.map(Box::new).map_err(Box::new);
            let _ = to.send((channel, FromJob::Found(wish, found)));
        });
    }
}

impl Asker {
    async fn open(&self, route: &Route) -> Result<(), Refused> {
        let (supervisor, spec) = (&self.supervisor, &self.spec);
        let jobs = &supervisor.jobs;
        check(spec)?;
        let deadline = Instant::now() + ARCHIVE_DEADLINE;
        let (key, digest) = (self.view.key(&spec.job), spec.digest());
        let turn = timeout_at(deadline, Arc::clone(jobs.turn()).acquire_owned()).await;
        // The semaphore is never closed.
        let Ok(Ok(turn)) = turn else { return Err(unanswered(supervisor, Started::Unknown)) };
        let mut found = None;
        let decision = match jobs.decide_at_hand(&key, spec, &digest) {
            Some(decision) => decision,
            None => {
                found = timeout_at(deadline, look_up(supervisor, &key))
                    .await
                    .map_err(|_| unanswered(supervisor, Started::Unknown))??;
                jobs.decide_by(spec, &digest, Ok(found.as_ref()))
            }
        };
        match decision {
            Decision::Start => {}
            Decision::Same => return self.attach_again(&key, found, route).await,
            other => return Err(not_started(other, spec)),
        }
        let (grant, connection) = (&self.grant, self.connection);
        let starter = Starter { supervisor, grant, connection, spec };
        let ready = starter.ready(key, digest)?;
        let begun = starter.begin(&ready)?;
        let turn = match begun.written {
            Some(mut written) => {
                match timeout_at(deadline, &mut written).await {
                    Ok(Ok(Ok(()))) => {}
                    Ok(Ok(Err(error))) => return Err(jobs.not_begun(&ready.key, &error)),
                    // The thread has panicked, and nobody knows how far it came.
                    Ok(Err(_)) => return Err(unanswered(supervisor, Started::No)),
                    Err(_) => {
                        let refused = unanswered(supervisor, Started::No);
                        let (supervisor, refusal) = (Rc::clone(supervisor), refused.clone());
                        tokio::task::spawn_local(async move {
                            // Nobody else begins before it is known what became of this one.
                            let _turn = turn;
                            match written.await {
                                Ok(Err(error)) => {
                                    supervisor.jobs.not_begun(&ready.key, &error);
                                }
                                _ => supervisor.jobs.refused(&ready.key, &refusal),
                            }
                        });
                        return Err(refused);
                    }
                }
                turn
            }
            None => turn,
        };
        self.launch(&starter, ready, begun.number, route, turn)
    }

    /// Its intent is written: now it is started, unless nobody may or wants to any more.
    fn launch(
        &self,
        starter: &Starter<'_>,
        ready: Ready,
        number: u64,
        route: &Route,
        _turn: OwnedSemaphorePermit,
    ) -> Result<(), Refused> {
        let is_ending = *self.supervisor.stopping.borrow() == Stopping::ForGood;
        if is_ending || self.left.get() == Some(Leave::Goodbye) {
            let message =
                "the supervisor, or whoever asked for the job, ended before it was started";
            let refused = refused(RefusalReason::NoResources, message);
            self.supervisor.jobs.refused(&ready.key, &refused);
            return Err(refused);
        }
        let started = starter.launch(ready, number, route.clone())?;
        let (commands, waits) = (started.commands.clone(), started.pid.is_none());
        let opened = run(started, &self.spec);
        let leaves = self.spec.detach && !waits;
        self.enter(route, &commands, opened, leaves);
        Ok(())
    }

    async fn attach_again(
        &self,
        key: &JobKey,
        found: Option<EndedJob>,
        route: &Route,
    ) -> Result<(), Refused> {
        let request = again(&self.grant, &self.spec, route)?;
        let archived = match found {
            Some(ended) => Some(archived(&self.supervisor, ended).await),
            None => None,
        };
        let (life, reader) = match (self.supervisor.jobs.life_at_hand(key), archived) {
            (None, Some(Archived { life, reader })) => (Some(life), reader),
            (life, _) => (life, None),
        };
        let supervisor = &self.supervisor;
        let commands = supervisor.attach_where(key, life, reader, request, route.clone())?;
        self.enter(route, &commands, None, false);
        if self.spec.detach {
            let _ = commands.send(ToJob::From(route.id, Said::Leave(Leave::Detached)));
        }
        Ok(())
    }

    /// Says to the conversation what it has now; if that is over, to the job how it was left.
    fn enter(
        &self,
        route: &Route,
        commands: &UnboundedSender<ToJob>,
        opened: Option<Opened>,
        leaves: bool,
    ) {
        let (id, job) = (route.id, self.spec.job.clone());
        let entered = Entered { id, job, commands: commands.clone(), opened, leaves };
        match self.left.get() {
            Some(left) => drop(commands.send(ToJob::From(id, Said::Leave(left)))),
            None => route.tell(FromJob::Entered(Box::new(entered))),
        }
    }
}

/// Finds the job that is meant, and where it is.
async fn find(
    supervisor: &Rc<Supervisor>,
    view: &View,
    query: &JobQuery,
) -> Result<Found, Refused> {
    let jobs = &supervisor.jobs;
    let own = view.key(&query.job);
    if jobs.life_at_hand(&own).is_some_and(|life| life.is_seen()) {
        return Ok(Found { key: own, archived: None });
    }
    if let Some(key) = jobs.find_at_hand(view, &query.job)? {
        return Ok(Found { key, archived: None });
    }
    let search = async {
        let ended = look_up(supervisor, &own).await?;
        if let Some(ended) = ended.filter(|ended| !ended.removed) {
            let archived = Some(archived(supervisor, ended).await);
            return Ok(Found { key: own, archived });
        }
        let key = jobs.search(view, &query.job, query.prefix).await?;
        let archived = match look_up(supervisor, &key).await? {
            Some(ended) => Some(archived(supervisor, ended).await),
            None => None,
        };
        Ok(Found { key, archived })
    };
    in_time(supervisor, search).await?
}

async fn look_up(supervisor: &Supervisor, key: &JobKey) -> Result<Option<EndedJob>, Refused> {
    let asked = supervisor.jobs.archive().map(|mut archive| archive.look_up(key));
    match asked {
        Some(asked) => asked.await.map_err(|error| untold(key, &error)),
        None => Ok(None),
    }
}

/// What the archive says of a job, with what reads its output.
async fn archived(supervisor: &Rc<Supervisor>, ended: EndedJob) -> Archived {
    let life = Life::of(ended);
    let reader = match life.spool().map(str::to_owned) {
        Some(name) => reader(supervisor, name).await,
        None => None,
    };
    Archived { life, reader }
}

async fn reader(supervisor: &Supervisor, name: String) -> Option<SpoolReader> {
    let spools = supervisor.jobs.archive()?.spools();
    let turn = Arc::clone(supervisor.jobs.readers()).acquire_owned().await.ok()?;
    let opened = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        spools.reader(&name)
    });
    opened.await.ok()?.ok().flatten()
}

/// What comes of it, if it comes in time.
pub(super) async fn in_time<T>(
    supervisor: &Supervisor,
    asked: impl Future<Output = T>,
) -> Result<T, Refused> {
    if !supervisor.jobs.may_hang() {
        return Ok(asked.await);
    }
    timeout(ARCHIVE_DEADLINE, asked).await.map_err(|_| unanswered(supervisor, Started::No))
}

/// What is known of jobs can't be asked, or told.
fn unanswered(supervisor: &Supervisor, started: Started) -> Refused {
    let archive = supervisor.jobs.archive();
    let path = archive.as_ref().map(|archive| archive.path().to_owned()).unwrap_or_default();
    let message = format!(
        "what is known of jobs is in {path:?}, on a file server that does not answer; try again when it does"
    );
    let reason = match started {
        Started::Unknown => RefusalReason::Unknown,
        _ => RefusalReason::NoResources,
    };
    Refused { started, ..refused(reason, &message) }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::Path;

    use afar_net::clock::Clock;
    use afar_net::driver::Driver;
    use afar_net::local::Introduced;
    use afar_net::transport::{AnyTransport, UnixTransport};
    use afar_proto::connection::{Event, Role, Stream};
    use afar_proto::message::{Answer, JobId, ListQuery, Query};
    use afar_proto::outcome::End;
    use afar_proto::{Config, Connection};
    use afar_sys::users::current_user;
    use tokio::net::UnixStream;
    use tokio::task::LocalSet;

    use super::*;
    use crate::log::Log;
    use crate::store::rig::FailingDisk;
    use crate::store::{Archive, ArchiveConfig, Beginning, Disk, Quotas};
    use crate::supervisor::jobs::Jobs;

    type Client = Driver<AnyTransport>;

    fn spec(job: &str, text: &str) -> OpenSpec {
        let job = JobId::new(job).unwrap();
        OpenSpec { job, ..crate::supervisor::job::tests::script(text) }
    }

    /// A supervisor whose archive is on this disk, which may not answer.
    fn supervisor(root: &Path, disk: &Arc<FailingDisk>) -> Rc<Supervisor> {
        let log = Log::default();
        let disk: Arc<dyn Disk> = Arc::<FailingDisk>::clone(disk);
        let config = ArchiveConfig { disk, quotas: Quotas::default(), may_hang: true, log };
        let beginning = Beginning {
            incarnation: Some("one".to_owned()),
            boot: "boot".to_owned(),
            since_boot: afar_sys::boot::since_boot(),
            unix_us: 1,
        };
        let archive = Archive::open(&root.join("jobs"), &config, &beginning).unwrap().archive;
        let user = current_user().unwrap().unwrap();
        let jobs = Jobs::archived(Rc::new(RefCell::new(archive))).unwrap();
        Rc::new(Supervisor { jobs, ..Supervisor::new(user, None, log) })
    }

    fn connect(supervisor: &Rc<Supervisor>, local: &LocalSet) -> Client {
        let user = &supervisor.user;
        let grant = Grant::local(user.name.to_str().unwrap(), user.uid);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let transport = |stream| AnyTransport::Unix(UnixTransport::new(stream));
        let introduced = Introduced { grant, transport: transport(theirs), first: [][..].into() };
        local.spawn_local(Conversation::new(Rc::clone(supervisor), introduced).run());
        let clock = Clock::new();
        let connection = Connection::new(Role::Client, Config::default(), clock.now());
        Driver::new(transport(ours), connection, clock)
    }

    /// The next thing that is said on a channel.
    async fn next_on(client: &mut Client, wanted: ChannelId) -> Event {
        loop {
            let event = client.next().await;
            match &event {
                Event::Opened { channel, .. }
                | Event::Attached { channel, .. }
                | Event::Refused { channel, .. }
                | Event::Answer { channel, .. }
                | Event::Seal { channel, .. }
                    if *channel == wanted =>
                {
                    return event;
                }
                Event::Closed(why) => panic!("{why}"),
                _ => {}
            }
        }
    }

    fn list() -> Query {
        let (states, after, limit, job) = (None, None, None, None);
        Query::List(ListQuery { states, after, limit, job })
    }

    /// J-5.12
    #[tokio::test]
    async fn while_a_file_server_is_away_jobs_go_on_and_new_ones_wait() {
        let (root, disk) = (tempfile::tempdir().unwrap(), Arc::new(FailingDisk::sound()));
        let supervisor = supervisor(root.path(), &disk);
        let local = LocalSet::new();
        let mut client = connect(&supervisor, &local);
        local
            .run_until(async {
                let spec_of_old = OpenSpec { stdin: true, ..spec("old", "read x; exit $x") };
                let old = client.connection().open(&spec_of_old).unwrap();
                assert!(matches!(next_on(&mut client, old).await, Event::Opened { .. }));

                let away = disk.stop();
                let new = client.connection().open(&spec("new", "exit 4")).unwrap();
                let listed = client.connection().query(&list()).unwrap();
                let Event::Answer { answer, .. } = next_on(&mut client, listed).await else {
                    panic!("no list")
                };
                let Answer::Page(page) = *answer else { panic!("{answer:?}") };
                assert_eq!(page.jobs.len(), 1);
                let mut channel = client.connection().channel(old).unwrap();
                channel.write(Stream::Stdin, 0, bytes::Bytes::from_static(b"3\n")).unwrap();
                let Event::Seal { seal, .. } = next_on(&mut client, old).await else {
                    panic!("no seal")
                };
                assert_eq!(seal.end, End::Exited { code: 3 });
                assert!(supervisor.jobs.life_at_hand(&key("new")).is_none());

                drop(away);
                assert!(matches!(next_on(&mut client, new).await, Event::Opened { .. }));
                let Event::Seal { seal, .. } = next_on(&mut client, new).await else {
                    panic!("no seal")
                };
                assert_eq!(seal.end, End::Exited { code: 4 });
                // The same again is the same job.
                let again = client.connection().open(&spec("new", "exit 4")).unwrap();
                assert!(matches!(next_on(&mut client, again).await, Event::Attached { .. }));
            })
            .await;
    }

    fn key(job: &str) -> JobKey {
        JobKey { scope: String::new(), job: JobId::new(job).unwrap() }
    }

    /// J-5.12: ARCHIVE_DEADLINE.
    #[tokio::test(start_paused = true)]
    async fn a_new_job_waits_so_long_for_a_file_server_and_is_then_refused() {
        let (root, disk) = (tempfile::tempdir().unwrap(), Arc::new(FailingDisk::sound()));
        let supervisor = supervisor(root.path(), &disk);
        let local = LocalSet::new();
        let mut client = connect(&supervisor, &local);
        let trace = root.path().join("started");
        let text = format!("touch {}", trace.display());
        local
            .run_until(async {
                let away = disk.stop();
                let began = Instant::now();
                for job in ["a", "b"] {
                    let opened = client.connection().open(&spec(job, &text)).unwrap();
                    let Event::Refused { refused, .. } = next_on(&mut client, opened).await else {
                        panic!("not refused")
                    };
                    let said = "on a file server that does not answer";
                    assert!(refused.message.contains(said), "{}", refused.message);
                    assert_ne!(refused.started, Started::Yes);
                }
                assert!(began.elapsed() >= ARCHIVE_DEADLINE * 2, "{:?}", began.elapsed());
                drop(away);
                // Neither is started later: the turn comes back when that is settled.
                let _turn = supervisor.jobs.turn().acquire().await.unwrap();
                assert!(supervisor.jobs.life_at_hand(&key("a")).is_none());
                assert!(!trace.exists());
            })
            .await;
    }
}
