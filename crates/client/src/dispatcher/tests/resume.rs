//! Links that are lost, and what goes on on the next one.

mod outages;
mod repeated;
mod signals;

use afar_proto::connection::OpenError;
use afar_proto::message::{
    Answer, Attach, AttachMode, Attached, AttachedStream, Incarnation, JobId, JobPage, KillQuery,
    Query,
};
use tokio::sync::Mutex as AsyncMutex;

use super::*;
use crate::attachment::{Attachment, JobRef};
use crate::limits::{RECONNECT_DELAY_MAX, RECONNECT_SPREAD};
use crate::outcome::Verified;

const LIMIT: Duration = Duration::from_secs(60);

/// Where a session's next links come from.
struct Links(mpsc::UnboundedSender<Result<Box<Driver<AnyTransport>>, Error>>);

/// A session whose link can be made again, and the server's end of the first one.
fn linked() -> (Session, Peer, Links) {
    let (session, peer, links, _) = linked_raw();
    (session, peer, links)
}

/// The same, with that end as it is, too.
fn linked_raw() -> (Session, Peer, Links, std::os::unix::net::UnixStream) {
    let (connect, links) = links();
    let reconnector = Reconnector { connect, limit: LIMIT };
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (session, _) = Session::spawn(driver(ours, Role::Client), "host", None, Some(reconnector));
    let theirs = theirs.into_std().unwrap();
    let raw = theirs.try_clone().unwrap();
    let theirs = UnixStream::from_std(theirs).unwrap();
    (session, server(theirs, "first"), links, raw)
}

/// What makes links, and whoever decides which.
fn links() -> (Box<dyn FnMut() -> Connecting + Send>, Links) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let receiver = Arc::new(AsyncMutex::new(receiver));
    let connect = move || -> Connecting {
        let receiver = Arc::clone(&receiver);
        Box::pin(async move {
            let next = receiver.lock().await.recv().await;
            next.unwrap_or(Err(Error::TaskFailed))
        })
    };
    (Box::new(connect), Links(sender))
}

fn server(stream: UnixStream, incarnation: &str) -> Peer {
    let clock = Clock::new();
    let incarnation = Some(Incarnation::new(incarnation).unwrap());
    let config = Config { incarnation, ..Config::default() };
    let connection = Connection::new(Role::Server, config, clock.now());
    Peer { driver: Driver::new(AnyTransport::Unix(UnixTransport::new(stream)), connection, clock) }
}

impl Links {
    /// The server's end of the next link.
    fn next(&self) -> Peer {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.0.send(Ok(Box::new(driver(ours, Role::Client)))).unwrap();
        server(theirs, "first")
    }

    fn fail(&self, error: Error) {
        self.0.send(Err(error)).unwrap();
    }
}

impl Peer {
    async fn attach(&mut self) -> (ChannelId, Attach) {
        self.until(|event| match event {
            Event::Attach { channel, attach } => Some((channel, attach)),
            Event::Open { spec, .. } => panic!("it was asked for once more: {spec:?}"),
            _ => None,
        })
        .await
    }

    async fn query(&mut self) -> (ChannelId, Query) {
        self.until(|event| match event {
            Event::Query { channel, query } => Some((channel, query)),
            _ => None,
        })
        .await
    }

    fn go_on(&mut self, channel: ChannelId, job: &JobId, stdout: u64, stdin: Option<u64>) {
        let from = |offset| AttachedStream { offset };
        let streams = [("stdout".to_owned(), from(stdout)), ("stderr".to_owned(), from(0))].into();
        let (job, pid, started_at_us) = (job.clone(), Some(7), Some(1));
        let attached = Attached { job, pid, started_at_us, streams, stdin, terminal: false };
        self.channel(channel).accept_attach(&attached);
    }

    fn write(&mut self, channel: ChannelId, bytes: &'static [u8]) {
        self.channel(channel).write(Stream::Stdout, 0, Bytes::from_static(bytes)).unwrap();
    }

    fn refuse(&mut self, channel: ChannelId, reason: RefusalReason) {
        let refused = Refused {
            phase: Phase::Authorize,
            reason,
            message: String::new(),
            started: Started::No,
        };
        self.driver.connection().channel(channel).unwrap().refuse(&refused);
    }

    fn say_goodbye(&mut self, code: GoodbyeCode) {
        self.driver.connection().close(code, "");
    }
}

/// The events of a job until one that `last` names, in a word each.
async fn until(job: &mut Job, last: &str) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let word = match in_time(job.next()).await.unwrap() {
            JobEvent::Started(_) => "started".to_owned(),
            JobEvent::Attached(_) => "attached".to_owned(),
            JobEvent::Output(chunk) => String::from_utf8(chunk.bytes.to_vec()).unwrap(),
            JobEvent::Gap { from, to, .. } => format!("gap {from} {to}"),
            JobEvent::OutputEnd(stream) => format!("end {}", stream.name()),
            JobEvent::StdinClosed => "stdin closed".to_owned(),
            JobEvent::Exit(_) => "exit".to_owned(),
            JobEvent::Disconnected { .. } => "disconnected".to_owned(),
            JobEvent::Reconnected => "reconnected".to_owned(),
            JobEvent::Finished(_) => "finished".to_owned(),
            JobEvent::Detached => "detached".to_owned(),
        };
        let done = word == last;
        seen.push(word);
        if done {
            return seen;
        }
    }
}

/// A job that runs, and has written `hello ` so far.
async fn running(session: &Session, peer: &mut Peer) -> (Job, ChannelId, OpenSpec) {
    let mut job = start(session);
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    peer.flush().await;
    peer.write(channel, b"hello ");
    peer.flush().await;
    assert_eq!(until(&mut job, "hello ").await, ["started", "hello "]);
    (job, channel, spec)
}

/// `J-4.2`
#[tokio::test(start_paused = true)]
async fn fault_65_a_link_that_is_cut_inside_a_frame_loses_nothing_and_repeats_nothing() {
    let (session, mut peer, links, mut raw) = linked_raw();
    let (mut job, _, spec) = running(&session, &mut peer).await;
    let data = Frame {
        kind: Kind::Data,
        flags: 1,
        channel: 1,
        payload: Bytes::from_static(b"\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\0world"),
    };
    let part = &data.to_bytes()[..30];
    std::io::Write::write_all(&mut raw, part).unwrap();
    drop((peer, raw));
    assert_eq!(until(&mut job, "disconnected").await, ["disconnected"]);
    let mut peer = links.next();
    let (channel, attach) = peer.attach().await;
    assert_eq!((&attach.job, attach.mode, attach.follow), (&spec.job, AttachMode::Take, true));
    assert_eq!(attach.streams["stdout"].0, 6);
    peer.go_on(channel, &spec.job, 6, None);
    peer.flush().await;
    peer.write(channel, b"world");
    peer.flush().await;
    peer.exit(channel, 3);
    peer.seal(channel, 3, b"hello world");
    peer.flush().await;
    let seen = until(&mut job, "world").await;
    assert_eq!(seen, ["reconnected", "world"], "there was no stdin to be closed");
    let Finished { outcome, error } = finished(job).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!((outcome.status(), outcome.reconnects), (3, 1));
    assert_eq!(outcome.verified, Some(Verified::Whole));
}

/// `J-1.6`, `J-1.3`
#[tokio::test(start_paused = true)]
async fn fault_68_a_request_whose_answer_was_lost_is_sent_again_as_one_that_was_sent_before() {
    let (session, mut peer, links) = linked();
    let job = start(&session);
    let (_, first) = peer.opened().await;
    assert_eq!(first.retry, None);
    peer.flush().await;
    tokio::time::sleep(Duration::from_secs(3)).await; // tidy: simulated, the age is the subject
    drop(peer);
    let mut peer = links.next();
    let (channel, second) = peer.opened().await;
    assert_eq!((&second.job, second.digest()), (&first.job, first.digest()));
    let retry = second.retry.unwrap();
    assert_eq!(retry.incarnation, Some(Incarnation::new("first").unwrap()));
    assert!(retry.age_ms >= 3000, "{}", retry.age_ms);
    // It was started by the first.
    peer.go_on(channel, &first.job, 0, None);
    peer.flush().await;
    peer.write(channel, b"hi");
    peer.exit(channel, 0);
    peer.seal(channel, 0, b"hi");
    peer.flush().await;
    let output = job.output(10).await.unwrap();
    assert_eq!((output.stdout.as_slice(), output.outcome.reconnects), (b"hi".as_slice(), 1));
    assert_eq!(output.outcome.verified, Some(Verified::Whole));
}

/// `J-1.6`: what may have been started and forgotten is never started again.
#[tokio::test(start_paused = true)]
async fn fault_68_what_a_server_can_not_vouch_for_is_unknown() {
    let (session, mut peer, links) = linked();
    let job = start(&session);
    peer.opened().await;
    drop(peer);
    let mut peer = links.next();
    let (channel, _) = peer.opened().await;
    let refused = Refused {
        phase: Phase::Spawn,
        reason: RefusalReason::Unknown,
        message: String::new(),
        started: Started::Unknown,
    };
    peer.driver.connection().channel(channel).unwrap().refuse(&refused);
    peer.flush().await;
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.started, &outcome.end), (Started::Unknown, &End::Unknown));
    assert_eq!(outcome.status(), 255);
    assert_eq!(error.unwrap().started(), Started::Unknown);
}

/// `J-4.2`: an incarnation that was first seen on a later link was not there for the request.
#[tokio::test(start_paused = true)]
async fn a_retry_names_only_the_life_that_its_first_request_met() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (session, peer, links) = linked();
    drop(peer);
    links.0.send(Ok(Box::new(driver(ours, Role::Client)))).unwrap();
    let job = start(&session);
    // This one dies without having said who it is.
    let mut head = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut head).await.unwrap();
    tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut [0; 64]).await.unwrap();
    drop(theirs);
    let mut peer = links.next();
    let (_, second) = peer.opened().await;
    assert_eq!(second.retry.unwrap().incarnation, None);
    drop(peer);
    let mut peer = links.next();
    let (_, third) = peer.opened().await;
    assert_eq!(third.retry.unwrap().incarnation, None);
    drop(job);
}

/// `J-4.2`
#[tokio::test(start_paused = true)]
async fn input_goes_on_where_the_server_says() {
    let (session, mut peer, links) = linked();
    let mut job = session.start(Command::argv(["x"]).stdin(true)).unwrap();
    let mut stdin = job.take_stdin().unwrap();
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    stdin.write(Bytes::from_static(b"0123456789")).await.unwrap();
    let received = peer.until(|event| match event {
        Event::Data { stream: Stream::Stdin, bytes, .. } => Some(bytes),
        _ => None,
    });
    assert_eq!(received.await, b"0123456789"[..]);
    drop(peer);
    assert_eq!(until(&mut job, "disconnected").await, ["started", "disconnected"]);
    // Input that comes meanwhile waits.
    stdin.write(Bytes::from_static(b"abc")).await.unwrap();
    stdin.finish();
    let mut peer = links.next();
    let (channel, _) = peer.attach().await;
    // Four of the ten had reached the job.
    peer.go_on(channel, &spec.job, 0, Some(4));
    let mut again = Vec::new();
    loop {
        match peer.driver.next().await {
            Event::Data { stream: Stream::Stdin, offset, bytes, .. } => {
                assert_eq!(offset, 4 + again.len() as u64);
                again.extend(bytes);
            }
            Event::End { stream: Stream::Stdin, .. } => break,
            _ => {}
        }
    }
    assert_eq!(again, b"456789abc");
    drop(job);
}

#[tokio::test(start_paused = true)]
async fn input_that_a_server_has_acknowledged_is_not_asked_for_again() {
    let (session, mut peer, links) = linked();
    let mut job = session.start(Command::argv(["x"]).stdin(true)).unwrap();
    let mut stdin = job.take_stdin().unwrap();
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    let window = Config::default().window_bytes as usize;
    let writer = tokio::spawn(async move {
        stdin.write(Bytes::from(vec![1; window])).await.unwrap();
        stdin
    });
    let mut received = 0;
    while received < window {
        received += peer
            .until(|event| match event {
                Event::Data { stream: Stream::Stdin, bytes, .. } => Some(bytes.len()),
                _ => None,
            })
            .await;
    }
    let stdin = writer.await.unwrap();
    peer.channel(channel).consume(Stream::Stdin, window);
    peer.flush().await;
    drop(peer);
    assert_eq!(until(&mut job, "disconnected").await, ["started", "disconnected"]);
    let mut peer = links.next();
    let (channel, _) = peer.attach().await;
    peer.go_on(channel, &spec.job, 0, Some(1));
    peer.flush().await;
    let Finished { outcome, error } = finished(job).await;
    assert!(matches!(error, Some(Error::Broken { .. })), "{error:?}");
    assert_eq!((outcome.started, outcome.status()), (Started::Yes, 255));
    drop(stdin);
}

/// `J-4.1`
#[tokio::test(start_paused = true)]
async fn fault_66_69_a_silent_link_is_found_out_and_the_old_attachment_is_taken_over() {
    let (session, mut peer, links) = linked();
    let (mut job, _, spec) = running(&session, &mut peer).await;
    // Nobody answers any more, and nothing breaks: the other end may be gone, or the way to it.
    let before = Instant::now();
    let seen = until(&mut job, "disconnected").await;
    assert_eq!(seen, ["disconnected"]);
    let silence = before.elapsed();
    assert!(silence >= Duration::from_secs(44) && silence < Duration::from_secs(50), "{silence:?}");
    let mut next = links.next();
    let (_, attach) = next.attach().await;
    assert_eq!((attach.job, attach.mode), (spec.job, AttachMode::Take));
    drop(peer);
}

/// `J-4.1`: a machine that wakes up goes on. Its clock has not run meanwhile, or has by hours.
#[tokio::test(start_paused = true)]
async fn fault_72_a_machine_that_has_slept_for_hours_goes_on() {
    let (session, mut peer, links) = linked();
    let (mut job, _, spec) = running(&session, &mut peer).await;
    tokio::time::advance(Duration::from_secs(8 * 3600)).await;
    drop(peer);
    assert_eq!(until(&mut job, "disconnected").await, ["disconnected"]);
    let mut peer = links.next();
    let (channel, attach) = peer.attach().await;
    assert_eq!(attach.streams["stdout"].0, 6);
    // What the server could not keep for so long has a name.
    peer.go_on(channel, &spec.job, 10, None);
    peer.flush().await;
    assert_eq!(until(&mut job, "gap 6 10").await, ["reconnected", "gap 6 10"]);
    drop(job);
}

/// `J-4.3`: two upgrades in a row. The end of the connection is read together with its login.
#[tokio::test(start_paused = true)]
async fn a_link_that_had_ended_when_it_was_made_is_no_end_of_a_job() {
    let (session, mut peer, links) = linked();
    let (mut job, _, spec) = running(&session, &mut peer).await;
    peer.say_goodbye(GoodbyeCode::Restart);
    peer.flush().await;
    assert_eq!(until(&mut job, "disconnected").await, ["disconnected"]);
    let clock = Clock::new();
    let mut server = Connection::new(Role::Server, Config::default(), clock.now());
    server.close(GoodbyeCode::Restart, "");
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut ended = driver(ours, Role::Client);
    let mut said = std::collections::VecDeque::new();
    server.poll_transmit(&mut said, usize::MAX);
    said.iter().for_each(|bytes| ended.feed(bytes));
    assert!(ended.connection().is_closed());
    links.0.send(Ok(Box::new(ended))).unwrap();
    let mut peer = links.next();
    let (channel, attach) = peer.attach().await;
    assert_eq!((attach.streams["stdout"].0, &attach.job), (6, &spec.job));
    peer.go_on(channel, &spec.job, 6, None);
    peer.flush().await;
    assert_eq!(until(&mut job, "reconnected").await, ["reconnected"]);
    drop(job);
}

/// `J-4.1`
#[tokio::test(start_paused = true)]
async fn what_is_away_for_too_long_is_given_up_and_said_where_it_runs() {
    let (session, mut peer, _links) = linked();
    let (job, ..) = running(&session, &mut peer).await;
    let before = Instant::now();
    drop(peer);
    let Finished { outcome, error } = finished(job).await;
    let elapsed = before.elapsed();
    assert!(elapsed >= LIMIT && elapsed < LIMIT + Duration::from_secs(5), "{elapsed:?}");
    assert_eq!((outcome.started, &outcome.end), (Started::Yes, &End::Unknown));
    let id = outcome.job.unwrap();
    let error = error.unwrap();
    assert!(error.to_string().contains("within 60s"), "{error}");
    assert!(error.hint().unwrap().contains(&format!("afar attach host/{id}")));
    // Nothing can be asked of a session that is over.
    let job = JobRef::prefix(JobId::new("x").unwrap());
    assert!(matches!(session.kill(&job, None).await, Err(Error::SessionEnded)));
}

/// `J-4.3`
#[tokio::test(start_paused = true)]
async fn a_server_that_gives_way_to_another_process_is_found_again_at_once() {
    let (session, mut peer, links) = linked();
    let (mut job, ..) = running(&session, &mut peer).await;
    let before = Instant::now();
    peer.say_goodbye(GoodbyeCode::Restart);
    peer.flush().await;
    let mut next = links.next();
    next.attach().await;
    assert!(before.elapsed() <= RECONNECT_SPREAD, "{:?}", before.elapsed());
    assert_eq!(until(&mut job, "reconnected").await, ["disconnected", "reconnected"]);
}

/// `J-4.3`
#[tokio::test(start_paused = true)]
async fn a_key_that_was_revoked_and_a_login_that_is_refused_end_the_attempt() {
    let (session, mut peer, _links) = linked();
    let (job, ..) = running(&session, &mut peer).await;
    peer.say_goodbye(GoodbyeCode::Revoked);
    peer.flush().await;
    let before = Instant::now();
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((before.elapsed(), outcome.started), (Duration::ZERO, Started::Yes));
    assert!(matches!(error, Some(Error::LinkLost { .. })), "{error:?}");

    let (session, mut peer, links) = linked();
    let (job, ..) = running(&session, &mut peer).await;
    drop(peer);
    let refused = || {
        let (host, user, keys) = ("host".to_owned(), "ann".to_owned(), String::new());
        Error::KeysRefused { host, user, keys }
    };
    links.fail(refused());
    let Finished { error, .. } = finished(job).await;
    let error = error.unwrap().to_string();
    assert!(error.contains(&refused().to_string()), "{error}");
}

/// `J-4.1`: what fails for another reason is tried again.
#[tokio::test(start_paused = true)]
async fn a_host_that_is_away_is_tried_until_it_is_there() {
    let (session, mut peer, links) = linked();
    let (mut job, ..) = running(&session, &mut peer).await;
    drop(peer);
    for _ in 0..3 {
        let source = std::io::ErrorKind::ConnectionRefused.into();
        links.fail(Error::Connect { host: "host".to_owned(), port: 1, source });
    }
    // Also a listener that is there, and has no supervisor yet.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    links.0.send(Ok(Box::new(driver(ours, Role::Client)))).unwrap();
    let (code, message) = (GoodbyeCode::Unavailable, String::new());
    let goodbye = afar_proto::message::Goodbye { code, message };
    let goodbye = Frame::control(Kind::Goodbye, afar_proto::json::to_vec(&goodbye));
    theirs.write_all(&goodbye.to_bytes()).await.unwrap();
    let mut next = links.next();
    next.attach().await;
    assert_eq!(until(&mut job, "reconnected").await, ["disconnected", "reconnected"]);
}

/// `J-4.4`
#[tokio::test(start_paused = true)]
async fn a_job_that_is_not_there_any_more_is_lost() {
    let (session, mut peer, links) = linked();
    let (job, ..) = running(&session, &mut peer).await;
    drop(peer);
    let mut peer = links.next();
    let (channel, _) = peer.attach().await;
    peer.refuse(channel, RefusalReason::NoSuchJob);
    peer.flush().await;
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.started, &outcome.end), (Started::Yes, &End::Lost));
    assert_eq!((outcome.status(), outcome.reconnects), (255, 1));
    assert!(matches!(error, Some(Error::NotResumed { .. })));
}

#[tokio::test(start_paused = true)]
async fn fault_31_a_server_that_has_less_than_it_has_sent_is_not_believed() {
    let (session, mut peer, links) = linked();
    let (job, ..) = running(&session, &mut peer).await;
    drop(peer);
    let mut peer = links.next();
    let (channel, _) = peer.attach().await;
    peer.refuse(channel, RefusalReason::BeyondEnd);
    peer.flush().await;
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.started, &outcome.end), (Started::Yes, &End::Unknown));
    assert!(matches!(error, Some(Error::NotResumed { .. })));
}

/// `J-3.8`
#[tokio::test(start_paused = true)]
async fn fault_31_a_gap_is_a_failure_unless_it_was_asked_for() {
    for (dropped, status) in [(None, 255), (Some((5, 8)), 255), (Some((6, 9)), 4)] {
        let (session, mut peer, links) = linked();
        let (mut job, _, spec) = running(&session, &mut peer).await;
        drop(peer);
        let mut peer = links.next();
        let (channel, _) = peer.attach().await;
        peer.go_on(channel, &spec.job, 9, None);
        peer.flush().await;
        peer.write(channel, b"ld");
        peer.flush().await;
        peer.exit(channel, 4);
        let mut sealer = Sealer::new();
        sealer.update(b"hello world");
        let mut stdout = sealer.seal(true);
        stdout.gaps = dropped.into_iter().collect();
        let streams =
            [("stdout".to_owned(), stdout), ("stderr".to_owned(), Sealer::new().seal(true))];
        let seal = Seal {
            end: End::Exited { code: 4 },
            receipt: Receipt::default(),
            streams: streams.into(),
            streams_left_open: false,
            session_restarted: false,
            detail: None,
        };
        peer.channel(channel).seal(&seal);
        peer.flush().await;
        let seen = until(&mut job, "ld").await;
        assert!(seen.contains(&"gap 6 9".to_owned()), "{seen:?}");
        let Finished { outcome, error } = finished(job).await;
        assert_eq!(outcome.status(), status, "{dropped:?}");
        assert_eq!(outcome.verified, Some(Verified::Suffix));
        let lost = matches!(error, Some(Error::OutputLost { from: 6, to: 9, .. }));
        assert_eq!(lost, status == 255, "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_wants_stays_unwanted() {
    let (session, mut peer, links) = linked();
    let (job, channel, spec) = running(&session, &mut peer).await;
    job.stop(Stream::Stdout);
    let stopped = |event| match event {
        Event::Stopped { stream, .. } => Some(stream),
        _ => None,
    };
    assert_eq!(peer.until(stopped).await, Stream::Stdout);
    let _ = channel;
    drop(peer);
    let mut peer = links.next();
    let (channel, _) = peer.attach().await;
    peer.go_on(channel, &spec.job, 6, None);
    assert_eq!(peer.until(stopped).await, Stream::Stdout);
    drop(job);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_given_up_without_a_link_is_ended_on_the_next_one() {
    let (session, mut peer, links) = linked();
    let (mut job, _, spec) = running(&session, &mut peer).await;
    drop(peer);
    until(&mut job, "disconnected").await;
    drop(job);
    let mut peer = links.next();
    let (_, query) = peer.query().await;
    let kill = KillQuery { job: spec.job, prefix: false, signal: None };
    assert_eq!(query, Query::Kill(kill));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_left_goes_on() {
    let (session, mut peer, _links) = linked();
    let (mut job, channel, _) = running(&session, &mut peer).await;
    job.detach();
    let detached = peer.until(|event| match event {
        Event::Detached { channel } => Some(channel),
        Event::Abandoned { .. } => panic!("it is ended"),
        _ => None,
    });
    assert_eq!(detached.await, channel);
    assert_eq!(until(&mut job, "detached").await, ["detached"]);
    assert!(job.next().await.is_none());
    drop(job);
    session.close().await;
    // Nothing is said of the channel any more.
    let goodbye = peer.until(|event| match event {
        Event::Closed(error) => Some(error),
        Event::Abandoned { .. } => panic!("it is ended"),
        _ => None,
    });
    assert!(matches!(goodbye.await, ConnectionError::PeerClosed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_is_asked_again() {
    let (session, mut peer, links) = linked();
    let asked = tokio::spawn(async move { session.list(None, None, Some(5)).await });
    peer.query().await;
    drop(peer);
    let mut peer = links.next();
    let (channel, query) = peer.query().await;
    assert!(matches!(query, Query::List(list) if list.limit == Some(5)));
    let page = JobPage { jobs: Vec::new(), next: Some("x".to_owned()) };
    peer.channel(channel).answer(&Answer::Page(page.clone()));
    peer.flush().await;
    assert_eq!(asked.await.unwrap().unwrap(), page);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_rests_has_its_link_made_again_when_something_is_asked_for() {
    let (session, peer, links) = linked();
    drop(peer);
    tokio::time::sleep(Duration::from_secs(3600)).await; // tidy: simulated, an idle hour
    let job = start(&session);
    let mut peer = links.next();
    let (channel, spec) = peer.opened().await;
    assert_eq!(spec.retry, None, "nothing of it was ever sent");
    peer.accept(channel, &spec);
    peer.exit(channel, 0);
    peer.seal(channel, 0, b"");
    peer.flush().await;
    assert!(finished(job).await.outcome.success());
}

#[tokio::test(start_paused = true)]
async fn who_attaches_late_is_told_what_is_gone_and_that_is_no_failure() {
    let (session, mut peer, _links) = linked();
    let id = JobId::new("abcdef").unwrap();
    let mut job = session.attach(Attachment::watch(JobRef::prefix(JobId::new("abc").unwrap())));
    let (channel, attach) = peer.attach().await;
    assert_eq!((attach.prefix, attach.mode), (true, AttachMode::Watch));
    peer.go_on(channel, &id, 5, None);
    peer.flush().await;
    peer.write(channel, b"x");
    peer.flush().await;
    peer.exit(channel, 0);
    peer.seal(channel, 0, b"12345x");
    peer.flush().await;
    let seen = until(&mut job, "x").await;
    assert_eq!(seen, ["attached", "stdin closed", "gap 0 5", "x"]);
    let Finished { outcome, error } = finished(job).await;
    assert!(error.is_none() && outcome.success(), "{error:?}");
    assert_eq!(outcome.job.as_deref(), Some("abcdef"));
    assert_eq!(outcome.verified, Some(Verified::Suffix));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_nobody_knows_can_not_be_attached_to() {
    let (session, mut peer, _links) = linked();
    let job = session.attach(Attachment::take(JobRef::exact(JobId::new("x").unwrap())));
    let (channel, _) = peer.attach().await;
    peer.refuse(channel, RefusalReason::NoSuchJob);
    peer.flush().await;
    let Finished { outcome, error } = finished(job).await;
    assert!(matches!(error, Some(Error::Refused(_))));
    assert_eq!((outcome.started, outcome.status()), (Started::Unknown, 255));
}

/// The commands of a prompt share a shell that ends with its connection: the first one on the next
/// connection says so.
#[tokio::test(start_paused = true)]
async fn a_shell_that_ended_with_its_link_is_told_of() {
    let (session, mut peer, links) = linked();
    let name = afar_proto::message::SessionName::new("repl").unwrap();
    let line = || Command::script("x").connection_session(name.clone());
    let serve = async |peer: &mut Peer| {
        let job = session.start(line()).unwrap();
        let (channel, spec) = peer.opened().await;
        peer.accept(channel, &spec);
        peer.exit(channel, 0);
        peer.seal(channel, 0, b"");
        peer.flush().await;
        finished(job).await.outcome.session_restarted
    };
    assert!(!serve(&mut peer).await);
    assert!(!serve(&mut peer).await);
    drop(peer);
    let mut peer = links.next();
    assert!(serve(&mut peer).await);
    assert!(!serve(&mut peer).await);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_without_a_link_is_refused_if_it_can_not_be_sent() {
    let (session, mut peer, links) = linked();
    let (mut job, ..) = running(&session, &mut peer).await;
    drop(peer);
    until(&mut job, "disconnected").await;
    let long = "x".repeat(afar_proto::limits::OPEN_BYTES_MAX);
    let too_long = session.start(Command::script(long)).unwrap();
    let mut peer = links.next();
    peer.attach().await;
    let Finished { outcome, error } = finished(too_long).await;
    assert!(matches!(error, Some(Error::Open(OpenError::TooLong(_)))));
    assert_eq!(outcome.started, Started::No);
}
