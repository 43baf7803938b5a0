//! One connection to the supervisor: its grant, its jobs, and the bytes between them.

mod attachments;
mod far;
mod requests;

use std::cell::Cell;
use std::ops::ControlFlow;
use std::rc::Rc;

use afar_core::job::Leave;
use afar_core::policy::Grant;
use afar_net::clock::Clock;
use afar_net::driver::Driver;
use afar_net::local::Introduced;
use afar_net::transport::AnyTransport;
use afar_proto::connection::{ChannelId, Event, Role};
use afar_proto::message::{FEATURE_SESSION, FEATURE_TERMINAL, GoodbyeCode, Refused};
use afar_proto::outcome::RefusalReason;
use afar_proto::{Config, Connection, ConnectionError};
use afar_sys::signals::Signal;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::job::{FromJob, Said};
use super::jobs::refused;
use super::standing::{Answer, Watch};
use super::{Stopping, Supervisor};
use crate::limits::{LOOK_DEADLINE, LOOK_WAITERS_MAX};
use attachments::Attachments;

/// What a client is told whose key does not count any more; why is for the log.
const REVOKED: &str = "the key that this connection was let in with is not accepted any more";

/// What a client is told whose request waited too long for what decides about its key.
const UNJUDGED: &str = "whether the key is still accepted could not be read in time; try again";

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
    attachments: Attachments,
    /// How it was left, once it was, for what still goes on that it has begun.
    left: Rc<Cell<Option<Leave>>>,
    from_jobs: UnboundedReceiver<(ChannelId, FromJob)>,
    to_self: UnboundedSender<(ChannelId, FromJob)>,
}

impl Conversation {
    pub(super) fn new(supervisor: Rc<Supervisor>, introduced: Introduced) -> Self {
        let Introduced { grant, transport, first } = introduced;
        let clock = Clock::new();
        let config = Config {
            features: [FEATURE_SESSION, FEATURE_TERMINAL].map(ToOwned::to_owned).into(),
            incarnation: Some(supervisor.jobs.incarnation().clone()),
            ..Config::default()
        };
        let connection = Connection::new(Role::Server, config, clock.now());
        let number = supervisor.next_connection();
        let local = supervisor.local_files.borrow();
        let watch = Watch::new(&grant, &supervisor.user, &supervisor.looking, local.as_ref());
        drop(local);
        let mut driver = Driver::new(transport, connection, clock);
        driver.feed(&first);
        let (to_self, from_jobs) = unbounded_channel();
        Self {
            supervisor,
            number,
            grant,
            watch,
            held: Vec::new(),
            held_until: None,
            driver,
            attachments: Attachments::default(),
            left: Rc::default(),
            from_jobs,
            to_self,
        }
    }

    /// Runs until the connection has ended. Jobs are told how, and most of them go on.
    pub(super) async fn run(mut self) {
        let mut stopping = self.supervisor.stopping.subscribe();
        let mut upgrading = self.supervisor.stopping.subscribe();
        let leave = loop {
            tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping == Stopping::ForGood) => {
                    let message = "the supervisor was told to end";
                    self.driver.connection().close(GoodbyeCode::Unavailable, message);
                    break Leave::Lost;
                }
                _ = upgrading.wait_for(|stopping| *stopping == Stopping::ForUpgrade) => {
                    let message = "the supervisor is being upgraded";
                    self.driver.connection().close(GoodbyeCode::Restart, message);
                    // Jobs go on whatever the loss of a link means to them: nobody has lost it.
                    break Leave::SentAway;
                }
                (number, looked) = self.watch.looked() => {
                    if self.handle_look(number, looked).is_break() {
                        break Leave::Lost;
                    }
                }
                () = until(self.held_until) => self.give_up_held(),
                event = self.driver.next(), if *self.supervisor.stopping.borrow() == Stopping::No => {
                    if let Event::Closed(why) = event {
                        break leave_by(&why);
                    }
                    if self.handle_request(event).is_break() {
                        break Leave::Lost;
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
        };
        self.left.set(Some(leave));
        self.attachments.leave_all(leave);
        self.supervisor.sessions.end_connection(self.number);
        self.driver.finish().await;
    }

    fn handle_job(&mut self, channel: ChannelId, event: FromJob) {
        match event {
            FromJob::Found(wish, found) => self.found(channel, wish, found),
            FromJob::Entered(entered) => self.entered(channel, *entered),
            event => self.attachments.handle(&mut self.driver, channel, event),
        }
    }

    /// Handles what the client says; a request once it is known that the grant still holds. Breaks if
    /// it does not.
    fn handle_request(&mut self, event: Event) -> ControlFlow<()> {
        let Some(channel) = requests_on(&event) else {
            self.handle_event(event);
            return ControlFlow::Continue(());
        };
        match self.watch.look() {
            Answer::Now(Ok(())) => self.handle_event(event),
            Answer::Now(Err(refusal)) => {
                // Nothing of it is started, and it is told so.
                self.refuse(channel, &refused(RefusalReason::Denied, REVOKED));
                self.revoke(&refusal);
                return ControlFlow::Break(());
            }
            Answer::After(_) if self.held.len() >= LOOK_WAITERS_MAX => {
                self.refuse(channel, &refused(RefusalReason::NoResources, UNJUDGED));
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
                if let Some(channel) = requests_on(&event) {
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
            if let Some(channel) = requests_on(&event) {
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
            Event::Attach { channel, attach } => self.attach(channel, &attach),
            Event::Query { channel, query } => self.query(channel, query),
            Event::Data { channel, bytes, .. } => {
                self.attachments.tell(channel, Said::Input(bytes));
            }
            Event::End { channel, .. } => self.attachments.tell(channel, Said::InputEnd),
            Event::Writable { channel, stream } => {
                self.attachments.top_up(self.driver.connection(), channel, stream);
            }
            Event::Acked { channel, stream, offset } => {
                self.attachments.tell(channel, Said::Acked(stream, offset));
            }
            Event::Stopped { channel, stream } => {
                self.attachments.tell(channel, Said::Stop(stream));
            }
            Event::Signal { channel, signal } => match Signal::parse(&signal.name) {
                Some(signal) => self.attachments.tell(channel, Said::Signal(signal)),
                // A hint that means nothing here is no error of the channel (`W-7.1`).
                None => {
                    let line = format!("a signal that is none here: {:?}", signal.name);
                    self.supervisor.log.debug(&line);
                }
            },
            Event::Resize { channel, resize } => {
                self.attachments.tell(channel, Said::Resize(resize));
            }
            Event::Abandoned { channel } => self.leave(channel, Leave::Closed),
            Event::Detached { channel } => self.leave(channel, Leave::Detached),
            // Behind the seal, a close is what says that everything is there.
            Event::Confirmed { channel } => self.leave(channel, Leave::Closed),
            // The channel is abandoned too, which comes next.
            Event::Failed { .. } | Event::Ready(_) => {}
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

    fn refuse(&mut self, channel: ChannelId, refused: &Refused) {
        if let Some(channel) = self.driver.connection().channel(channel) {
            channel.refuse(refused);
        }
    }

    /// The client is done with the channel: it counts until nothing is left of what it has begun.
    fn leave(&mut self, channel: ChannelId, how: Leave) {
        self.held.retain(|(_, event)| requests_on(event) != Some(channel));
        if !self.attachments.leave(channel, how) {
            self.driver.connection().release(channel);
        }
    }
}

/// The channel of a request, which is answered only while the grant holds.
fn requests_on(event: &Event) -> Option<ChannelId> {
    match event {
        Event::Open { channel, .. }
        | Event::Attach { channel, .. }
        | Event::Query { channel, .. } => Some(*channel),
        _ => None,
    }
}

/// What the end of a connection means to its jobs (`J-2.3`).
fn leave_by(why: &ConnectionError) -> Leave {
    match why {
        ConnectionError::PeerClosed(goodbye) if goodbye.code == GoodbyeCode::Done => Leave::Goodbye,
        _ => Leave::Lost,
    }
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
    use afar_proto::message::{JobId, OpenSpec};
    use afar_proto::outcome::Started;
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
