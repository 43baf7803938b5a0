//! A session against a server that does exactly what each test says, over a pair of sockets.

mod resume;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::Poll;

use afar_net::clock::Clock;
use afar_net::transport::UnixTransport;
use afar_proto::frame::{Frame, Kind};
use afar_proto::message::{JobHello, OpenSpec, Refused};
use afar_proto::outcome::{End, ExitReport, Phase, Receipt, RefusalReason, Seal, Started};
use afar_proto::seal::Sealer;
use afar_proto::{Config, Connection, Role};
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use super::*;
use crate::command::Command;
use crate::job::{Finished, Job};
use crate::session::Session;

/// The other side: a connection in the server's role that is driven by hand.
struct Peer {
    driver: Driver<AnyTransport>,
}

fn driver(stream: UnixStream, role: Role) -> Driver<AnyTransport> {
    let clock = Clock::new();
    let connection = Connection::new(role, Config::default(), clock.now());
    Driver::new(AnyTransport::Unix(UnixTransport::new(stream)), connection, clock)
}

fn pair() -> (Session, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (session, _) = Session::spawn(driver(ours, Role::Client), "host", None, None);
    (session, Peer { driver: driver(theirs, Role::Server) })
}

impl Peer {
    /// Waits for the event that `pick` wants; others pass by.
    async fn until<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(in_time(self.driver.next()).await) {
                return found;
            }
        }
    }

    async fn opened(&mut self) -> (ChannelId, OpenSpec) {
        self.until(|event| match event {
            Event::Open { channel, spec } => Some((channel, *spec)),
            _ => None,
        })
        .await
    }

    fn channel(&mut self, id: ChannelId) -> Channel<'_> {
        self.driver.connection().channel(id).unwrap()
    }

    fn accept(&mut self, id: ChannelId, spec: &OpenSpec) {
        let opened = Opened { job: spec.job.clone(), pid: 7, started_at_us: 1, note: None };
        self.channel(id).accept(&opened);
    }

    fn exit(&mut self, id: ChannelId, code: u8) {
        let report = ExitReport { end: End::Exited { code }, receipt: Receipt::default() };
        self.channel(id).exit(&report);
    }

    /// Ends both streams and seals them as these bytes.
    fn seal(&mut self, id: ChannelId, code: u8, stdout: &[u8]) {
        let mut sealer = Sealer::new();
        sealer.update(stdout);
        let streams = BTreeMap::from([
            ("stdout".to_owned(), sealer.seal(true)),
            ("stderr".to_owned(), Sealer::new().seal(true)),
        ]);
        for stream in Stream::OUTPUTS {
            self.channel(id).finish(stream);
        }
        let seal = Seal {
            end: End::Exited { code },
            receipt: Receipt::default(),
            streams,
            streams_left_open: false,
            session_restarted: false,
            detail: None,
        };
        self.channel(id).seal(&seal);
    }

    /// Lets bytes move both ways until the future is done; events pass by.
    async fn while_driven<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                output = &mut future => return output,
                _ = self.driver.next() => {}
            }
        }
    }

    /// Sends what is queued, as far as the socket takes it.
    async fn flush(&mut self) {
        poll_fn(|context| {
            self.driver.poll_send(context);
            Poll::Ready(())
        })
        .await;
    }
}

/// What never comes fails the test, at once where time is simulated.
async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(3600), future).await.expect("it comes")
}

async fn finished(job: Job) -> Finished {
    in_time(job.wait()).await.unwrap()
}

fn start(session: &Session) -> Job {
    session.start(Command::argv(["x"])).unwrap()
}

#[tokio::test]
async fn a_job_that_comes_in_one_read_loses_none_of_its_events() {
    let (session, mut peer) = pair();
    let mut job = start(&session);
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    peer.flush().await;
    // The credit for the output has come with the request.
    peer.channel(channel).write(Stream::Stdout, 5, Bytes::from_static(b"hi")).unwrap();
    peer.exit(channel, 3);
    peer.seal(channel, 3, b"hi");
    peer.flush().await;
    let mut seen = Vec::new();
    while let Some(event) = job.next().await {
        seen.push(match event {
            JobEvent::Started(opened) => format!("started {}", opened.pid),
            JobEvent::Output(chunk) => format!("{:?}", chunk.bytes),
            JobEvent::OutputEnd(stream) => format!("end {}", stream.name()),
            JobEvent::Exit(report) => format!("exit {}", report.end.status()),
            JobEvent::Finished(finished) => {
                assert!(finished.error.is_none());
                assert_eq!(finished.outcome.started_at, Some(1));
                format!("finished {}", finished.outcome.status())
            }
            JobEvent::StdinClosed => "stdin closed".to_owned(),
            other => panic!("{other:?}"),
        });
    }
    seen.sort();
    let expected = ["b\"hi\"", "end stderr", "end stdout", "exit 3", "finished 3", "started 7"];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_link_lost_before_the_answer_leaves_the_start_unknown() {
    let (session, mut peer) = pair();
    let job = start(&session);
    peer.opened().await;
    drop(peer);
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.started, outcome.end.clone()), (Started::Unknown, End::Unknown));
    assert_eq!(outcome.status(), 255);
    assert_eq!(error.unwrap().started(), Started::Unknown);
}

#[tokio::test]
async fn a_link_lost_while_the_command_runs_leaves_its_end_unknown() {
    let (session, mut peer) = pair();
    let mut job = start(&session);
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    peer.flush().await;
    assert!(matches!(job.next().await, Some(JobEvent::Started(_))));
    drop(peer);
    let Finished { outcome, error } = finished(job).await;
    // It runs on, as far as anybody here can tell.
    assert_eq!((outcome.started, outcome.end.clone()), (Started::Yes, End::Unknown));
    assert_eq!((outcome.phase, outcome.status()), (Phase::Run, 255));
    let error = error.unwrap();
    assert_eq!(error.phase(), Phase::Run);
    let place = format!("afar attach host/{}", outcome.job.unwrap());
    assert!(error.hint().unwrap().contains(&place));
}

#[tokio::test]
async fn a_status_whose_output_never_came_is_known_and_not_passed_on() {
    let (session, mut peer) = pair();
    let mut job = start(&session);
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    peer.exit(channel, 0);
    peer.flush().await;
    while !matches!(job.next().await, Some(JobEvent::Exit(_))) {}
    drop(peer);
    let Finished { outcome, .. } = finished(job).await;
    assert_eq!(outcome.end, End::Exited { code: 0 });
    assert_eq!((outcome.phase, outcome.status()), (Phase::Stream, 255));
}

#[tokio::test]
async fn a_refusal_is_an_outcome_with_its_reason() {
    let (session, mut peer) = pair();
    let job = start(&session);
    let (channel, _) = peer.opened().await;
    let refused = Refused {
        phase: Phase::Spawn,
        reason: RefusalReason::NotFound,
        message: "no \x1b[2Jsuch".to_owned(),
        started: Started::No,
    };
    peer.channel(channel);
    peer.driver.connection().channel(channel).unwrap().refuse(&refused);
    peer.flush().await;
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.started, outcome.status()), (Started::No, 127));
    assert_eq!(outcome.end, End::NotStarted { reason: "not_found".to_owned() });
    let text = error.unwrap().to_string();
    assert_eq!(text, "no \\x1b[2Jsuch");
}

#[tokio::test]
async fn fault_87_output_that_is_not_what_the_seal_says_is_a_failure() {
    let (session, mut peer) = pair();
    let job = start(&session);
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    peer.flush().await;
    peer.channel(channel).write(Stream::Stdout, 0, Bytes::from_static(b"abd")).unwrap();
    peer.exit(channel, 0);
    peer.seal(channel, 0, b"abc");
    peer.flush().await;
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.phase, outcome.status()), (Phase::Stream, 255));
    assert!(matches!(error, Some(Error::SealMismatch { stream: Stream::Stdout })));
}

#[tokio::test]
async fn fault_88_an_outcome_for_a_job_that_was_never_started_is_refused() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (session, _) = Session::spawn(driver(ours, Role::Client), "host", None, None);
    let job = start(&session);
    let hello =
        JobHello { version: 1, software: String::new(), features: Vec::new(), incarnation: None };
    let hello = Frame::control(Kind::JobHello, afar_proto::json::to_vec(&hello));
    let report = ExitReport { end: End::Exited { code: 0 }, receipt: Receipt::default() };
    let mut exit = Frame::control(Kind::Exit, afar_proto::json::to_vec(&report));
    exit.channel = 1;
    theirs.write_all(&hello.to_bytes()).await.unwrap();
    theirs.write_all(&exit.to_bytes()).await.unwrap();
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.started, outcome.status()), (Started::Unknown, 255));
    let peer_misbehaved =
        matches!(error, Some(Error::LinkLost { cause: ConnectionError::PeerMisbehaved(_), .. }));
    assert!(peer_misbehaved);
}

#[tokio::test]
async fn a_listener_without_a_supervisor_has_started_nothing() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (session, _) = Session::spawn(driver(ours, Role::Client), "host", None, None);
    let job = start(&session);
    let code = GoodbyeCode::Unavailable;
    let goodbye = afar_proto::message::Goodbye { code, message: "no \x1b[2Jluck".to_owned() };
    let goodbye = Frame::control(Kind::Goodbye, afar_proto::json::to_vec(&goodbye));
    theirs.write_all(&goodbye.to_bytes()).await.unwrap();
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.started, outcome.status()), (Started::No, 255));
    assert_eq!(error.unwrap().to_string(), "the server can't run commands now: no \\x1b[2Jluck");
}

#[tokio::test]
async fn dropping_a_job_gives_its_channel_up() {
    let (session, mut peer) = pair();
    let mut job = start(&session);
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    peer.flush().await;
    assert!(matches!(job.next().await, Some(JobEvent::Started(_))));
    drop(job);
    let abandoned = peer.until(|event| match event {
        Event::Abandoned { channel } => Some(channel),
        _ => None,
    });
    assert_eq!(abandoned.await, channel);
}

#[tokio::test]
async fn a_job_that_nobody_reads_stalls_no_other() {
    let (session, mut peer) = pair();
    let stalled = start(&session);
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    // Everything that the window takes; the rest must wait for somebody to read.
    let window = Config::default().window_bytes as usize;
    let content = Bytes::from(vec![7; window]);
    let mut sent = 0;
    while sent < window {
        let room = peer.channel(channel).writable(Stream::Stdout).min(window - sent);
        if room == 0 {
            peer.until(is_writable).await;
            continue;
        }
        let piece = content.slice(sent..sent + room);
        peer.channel(channel).write(Stream::Stdout, 0, piece).unwrap();
        sent += room;
    }
    assert_eq!(peer.channel(channel).writable(Stream::Stdout), 0);

    let other = start(&session);
    let (second, spec) = peer.opened().await;
    peer.accept(second, &spec);
    peer.exit(second, 0);
    peer.seal(second, 0, b"");
    assert!(peer.while_driven(finished(other)).await.outcome.success());

    // Once it is read, the rest comes.
    let reader = tokio::spawn(stalled.output(1 << 30));
    peer.until(is_writable).await;
    peer.exit(channel, 0);
    peer.seal(channel, 0, &content);
    assert_eq!(peer.while_driven(reader).await.unwrap().unwrap().stdout, content);
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `until` takes")]
fn is_writable(event: Event) -> Option<()> {
    matches!(event, Event::Writable { stream: Stream::Stdout, .. }).then_some(())
}

#[tokio::test]
async fn input_waits_for_the_command_to_take_it() {
    let (session, mut peer) = pair();
    let mut job = session.start(Command::argv(["x"]).stdin(true)).unwrap();
    let mut stdin = job.take_stdin().unwrap();
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    let total = 8 * 1024 * 1024;
    let writer = tokio::spawn(async move { stdin.write(Bytes::from(vec![1; total])).await });
    let window = Config::default().window_bytes as usize;
    let mut received = 0;
    while received < window {
        received += peer
            .until(|event| match event {
                Event::Data { stream: Stream::Stdin, bytes, .. } => Some(bytes.len()),
                _ => None,
            })
            .await;
    }
    // The window is used up, so the writer waits, with far more to write than may wait here.
    assert_eq!(received, window);
    assert!(!writer.is_finished());
    let mut to_consume = received;
    loop {
        peer.channel(channel).consume(Stream::Stdin, to_consume);
        let event = peer.driver.next().await;
        match event {
            Event::Data { stream: Stream::Stdin, bytes, .. } => {
                received += bytes.len();
                to_consume = bytes.len();
            }
            Event::End { stream: Stream::Stdin, .. } => break,
            _ => to_consume = 0,
        }
    }
    assert_eq!(received, total);
    assert_eq!(writer.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn input_that_is_not_wanted_any_more_is_not_waited_for() {
    let (session, mut peer) = pair();
    let mut job = session.start(Command::argv(["x"]).stdin(true)).unwrap();
    let mut stdin = job.take_stdin().unwrap();
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    peer.channel(channel).stop(Stream::Stdin);
    peer.flush().await;
    while !matches!(job.next().await, Some(JobEvent::StdinClosed)) {}
    assert!(stdin.write(Bytes::from_static(b"x")).await.is_err());
}

#[tokio::test]
async fn a_signal_waits_for_the_start() {
    let (session, mut peer) = pair();
    let job = start(&session);
    job.signal("TERM");
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    let signal = peer.until(|event| match event {
        Event::Signal { signal, .. } => Some(signal.name),
        _ => None,
    });
    assert_eq!(signal.await, "TERM");
    drop(job);
}

#[tokio::test]
async fn a_session_that_is_closed_says_goodbye_and_its_jobs_end() {
    let (session, mut peer) = pair();
    let mut job = start(&session);
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    peer.flush().await;
    assert!(matches!(job.next().await, Some(JobEvent::Started(_))));
    session.close().await;
    let goodbye = peer.until(|event| match event {
        Event::Closed(ConnectionError::PeerClosed(goodbye)) => Some(goodbye.code),
        _ => None,
    });
    assert_eq!(goodbye.await, GoodbyeCode::Done);
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.started, outcome.status()), (Started::Yes, 255));
    assert!(error.is_some());
}

#[tokio::test]
async fn nothing_is_started_on_a_session_that_has_ended() {
    let (session, peer) = pair();
    drop(peer);
    // The first job is told how the link was lost; then the task is gone for good.
    let _ = finished(start(&session)).await;
    loop {
        let Finished { outcome, error } = finished(start(&session)).await;
        assert_eq!(outcome.status(), 255);
        if matches!(error, Some(Error::SessionEnded)) {
            assert_eq!(outcome.started, Started::No);
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn more_output_than_is_wanted_ends_the_job() {
    let (session, mut peer) = pair();
    let job = start(&session);
    let (channel, spec) = peer.opened().await;
    peer.accept(channel, &spec);
    peer.flush().await;
    peer.channel(channel).write(Stream::Stdout, 0, Bytes::from_static(b"12345")).unwrap();
    peer.flush().await;
    assert!(matches!(job.output(4).await, Err(Error::OutputTooLong { bytes_max: 4 })));
    let abandoned = peer.until(|event| matches!(event, Event::Abandoned { .. }).then_some(()));
    abandoned.await;
}
