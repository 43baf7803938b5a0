//! What is asked for twice because of a lost link, and what comes of a job that is not there as it was.

use afar_proto::message::JobQuery;

use super::*;

/// Asks on a link that is lost before the answer, and refuses the question on the next one.
async fn asked_twice(query: Query, started: Started) -> (Result<Box<Answer>, Error>, bool) {
    let (session, mut peer, links) = linked();
    let mut answer = tokio::spawn(async move {
        let result = match query {
            Query::Kill(kill) => {
                session.kill(&JobRef::exact(kill.job), kill.signal.as_deref()).await
            }
            Query::Remove(remove) => session.remove(&JobRef::exact(remove.job)).await,
            Query::List(_) => panic!("that has no single answer"),
        };
        result.map(|job| Box::new(Answer::Done { job }))
    });
    peer.query().await;
    drop(peer);
    let mut peer = links.next();
    let channel = tokio::select! {
        answer = &mut answer => return (answer.unwrap(), false),
        (channel, _) = peer.query() => channel,
    };
    let refused = Refused {
        phase: Phase::Authorize,
        reason: RefusalReason::NoSuchJob,
        message: String::new(),
        started,
    };
    peer.driver.connection().channel(channel).unwrap().refuse(&refused);
    peer.flush().await;
    (in_time(answer).await.unwrap(), true)
}

fn job() -> JobId {
    JobId::new("j").unwrap()
}

fn kill(signal: Option<&str>) -> Query {
    Query::Kill(KillQuery { job: job(), prefix: false, signal: signal.map(ToOwned::to_owned) })
}

/// `J-2.6`
#[tokio::test(start_paused = true)]
async fn a_signal_that_was_perhaps_sent_is_not_sent_again() {
    let (answer, again) = asked_twice(kill(Some("USR1")), Started::Yes).await;
    assert!(!again);
    let error = answer.unwrap_err();
    assert!(matches!(error, Error::SignalUncertain { .. }), "{error:?}");
    assert!(error.to_string().ends_with("the signal may have been sent, or not"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_the_first_time_has_done_is_no_failure_of_the_second() {
    // The job has ended since.
    let (answer, again) = asked_twice(kill(None), Started::Yes).await;
    assert!(again);
    assert_eq!(*answer.unwrap(), Answer::Done { job: job() });
    // It is removed.
    let remove = Query::Remove(JobQuery { job: job(), prefix: false });
    let (answer, again) = asked_twice(remove, Started::No).await;
    assert!(again);
    assert_eq!(*answer.unwrap(), Answer::Done { job: job() });
    // But a job that never was has not been ended.
    let (answer, _) = asked_twice(kill(None), Started::No).await;
    assert!(matches!(answer, Err(Error::Refused(_))), "{answer:?}");
}

/// `J-4.4`
#[tokio::test(start_paused = true)]
async fn a_job_that_the_server_knows_to_be_lost_is_told_as_lost() {
    for (started, known) in
        [(Started::Yes, (Started::Yes, End::Lost)), (Started::No, (Started::Unknown, End::Unknown))]
    {
        let (session, mut peer, _links) = linked();
        let attached = session.attach(Attachment::wait(JobRef::exact(job())));
        let (channel, _) = peer.attach().await;
        let (phase, reason, message) = (Phase::Authorize, RefusalReason::NoSuchJob, String::new());
        let refused = Refused { phase, reason, message, started };
        peer.driver.connection().channel(channel).unwrap().refuse(&refused);
        peer.flush().await;
        let Finished { outcome, .. } = finished(attached).await;
        assert_eq!((outcome.started, outcome.end.clone()), known);
        assert_eq!(outcome.status(), 255);
    }
}

/// `J-3.8`
#[tokio::test(start_paused = true)]
async fn fault_31_output_that_went_before_a_retry_was_answered_is_missed() {
    let (session, mut peer, links) = linked();
    let mut job = start(&session);
    peer.opened().await;
    drop(peer);
    let mut peer = links.next();
    let (channel, spec) = peer.opened().await;
    assert!(spec.retry.is_some());
    peer.go_on(channel, &spec.job, 3, None);
    peer.flush().await;
    peer.write(channel, b"lo");
    peer.flush().await;
    peer.exit(channel, 0);
    peer.seal(channel, 0, b"hello");
    peer.flush().await;
    let seen = until(&mut job, "lo").await;
    assert!(seen.contains(&"gap 0 3".to_owned()), "{seen:?}");
    let Finished { outcome, error } = finished(job).await;
    assert_eq!(outcome.status(), 255);
    assert!(matches!(error, Some(Error::OutputLost { from: 0, to: 3, .. })), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_attachment_without_stdin_leaves_the_input_as_it_is() {
    let (session, mut peer, _links) = linked();
    let mut attached = session.attach(Attachment::take(JobRef::exact(job())).stdin(false));
    let (channel, _) = peer.attach().await;
    peer.go_on(channel, &job(), 0, Some(5));
    peer.flush().await;
    assert_eq!(until(&mut attached, "attached").await, ["attached"]);
    assert!(attached.take_stdin().is_none());
    // Whatever was sent before the signal arrives before it.
    attached.signal("USR1");
    peer.until(|event| match event {
        Event::Signal { .. } => Some(()),
        Event::End { stream, .. } => panic!("{stream:?} was ended"),
        _ => None,
    })
    .await;
}

/// A command with stdin that was started by an earlier request, and has got 4 bytes.
async fn started_before(peer: &mut Peer) {
    let (channel, spec) = peer.opened().await;
    peer.go_on(channel, &spec.job, 0, Some(4));
    peer.flush().await;
}

/// `J-1.3`
#[tokio::test(start_paused = true)]
async fn who_asks_for_a_job_again_does_not_repeat_its_input() {
    let (session, mut peer, _links) = linked();
    let mut job = session.start(Command::argv(["x"]).stdin(true)).unwrap();
    let mut stdin = job.take_stdin().unwrap();
    started_before(&mut peer).await;
    for piece in [&b"012"[..], b"345", b"6"] {
        stdin.write(Bytes::from_static(piece)).await.unwrap();
    }
    stdin.finish();
    let mut sent = Vec::new();
    loop {
        match in_time(peer.driver.next()).await {
            Event::Data { stream: Stream::Stdin, offset, bytes, .. } => {
                assert_eq!(offset, 4 + sent.len() as u64);
                sent.extend(bytes);
            }
            Event::End { stream: Stream::Stdin, .. } => break,
            _ => {}
        }
    }
    assert_eq!(sent, b"456");
}

/// `J-1.3`
#[tokio::test(start_paused = true)]
async fn less_input_than_the_job_has_got_is_another_input() {
    for early in [false, true] {
        let (session, mut peer, _links) = linked();
        let mut job = session.start(Command::argv(["x"]).stdin(true)).unwrap();
        let mut stdin = job.take_stdin().unwrap();
        if !early {
            started_before(&mut peer).await;
            assert_eq!(until(&mut job, "attached").await, ["attached"]);
        }
        stdin.write(Bytes::from_static(b"012")).await.unwrap();
        stdin.finish();
        if early {
            started_before(&mut peer).await;
        }
        let Finished { outcome, error } = peer.while_driven(finished(job)).await;
        assert_eq!((outcome.started, outcome.status()), (Started::Yes, 255));
        let error = error.unwrap().to_string();
        assert!(error.contains("more input already"), "{error}");
    }
}
