//! When an outage is over, and what is said of it.

use std::cell::Cell;

use super::*;

/// `J-4.1`: a greeting is no service. What the server dies of is not asked of it for ever, nor at once.
#[tokio::test(start_paused = true)]
async fn a_server_that_dies_of_what_it_is_asked_is_asked_with_patience_and_not_for_ever() {
    let (session, mut peer, links) = linked();
    let (job, ..) = running(&session, &mut peer).await;
    drop(peer);
    let (before, asked) = (Instant::now(), Cell::new(0));
    let serve = async {
        loop {
            links.next().attach().await;
            asked.set(asked.get() + 1);
        }
    };
    let Finished { outcome, error } = tokio::select! {
        finished = finished(job) => finished,
        () = serve => panic!("it has no end"),
    };
    let elapsed = before.elapsed();
    assert!(elapsed >= LIMIT && elapsed < LIMIT + Duration::from_secs(5), "{elapsed:?}");
    assert!((3..40).contains(&asked.get()), "{}", asked.get());
    assert_eq!((outcome.started, &outcome.end), (Started::Yes, &End::Unknown));
    assert!(error.unwrap().to_string().contains("within 60s: the connection was cut"));
}

/// `J-4.1`: each loss of a link that had served has the whole of its user's time.
#[tokio::test(start_paused = true)]
async fn a_link_that_has_served_or_held_ends_the_outage() {
    for answers in [true, false] {
        let (session, mut peer, links) = linked();
        let (job, _, spec) = running(&session, &mut peer).await;
        drop(peer);
        let mut peer = links.next();
        let (channel, _) = peer.attach().await;
        let up = if answers {
            peer.go_on(channel, &spec.job, 6, None);
            peer.flush().await;
            Duration::from_secs(1)
        } else {
            RECONNECT_DELAY_MAX + Duration::from_secs(1)
        };
        let held = tokio::time::sleep(up); // tidy: simulated, the time is the subject
        peer.while_driven(held).await;
        drop(peer);
        let before = Instant::now();
        finished(job).await;
        let elapsed = before.elapsed();
        assert!(elapsed >= LIMIT && elapsed < LIMIT + Duration::from_secs(5), "{elapsed:?}");
    }
}

/// A session that nobody needed meanwhile starts from the beginning, however the link was lost.
#[tokio::test(start_paused = true)]
async fn an_outage_that_nobody_has_to_bear_is_over() {
    for greets in [true, false] {
        let (session, mut peer, links) = linked();
        let (mut job, ..) = running(&session, &mut peer).await;
        drop(peer);
        until(&mut job, "disconnected").await;
        job.detach();
        until(&mut job, "detached").await;
        if greets {
            drop(links.next());
        } else {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            links.0.send(Ok(Box::new(driver(ours, Role::Client)))).unwrap();
            let (code, message) = (GoodbyeCode::Unavailable, String::new());
            let goodbye = afar_proto::message::Goodbye { code, message };
            let goodbye = Frame::control(Kind::Goodbye, afar_proto::json::to_vec(&goodbye));
            theirs.write_all(&goodbye.to_bytes()).await.unwrap();
        }
        tokio::time::sleep(2 * LIMIT).await; // tidy: simulated, far beyond the deadline
        let job = start(&session);
        let mut peer = links.next();
        let (channel, spec) = peer.opened().await;
        peer.accept(channel, &spec);
        peer.exit(channel, 0);
        peer.seal(channel, 0, b"");
        peer.flush().await;
        assert!(finished(job).await.outcome.success());
    }
}

/// `J-1.6`: a login that was lost with the request on its way goes on, and says what it was lost by.
#[tokio::test(start_paused = true)]
async fn a_login_that_is_lost_is_told_as_what_it_was() {
    let (connect, _links) = links();
    let reconnector = Reconnector { connect, limit: LIMIT };
    let (host, after) = ("web".to_owned(), Duration::from_secs(10));
    let (phase, started) = (Phase::Authenticate, Started::Unknown);
    let error = Error::ConnectTimeout { host, after, phase, started };
    let spec = Command::argv(["x"]).into_spec().unwrap();
    let (_session, mut job) =
        Session::spawn_lost("web", (spec, Instant::now()), reconnector, &error);
    let Some(JobEvent::Disconnected { cause }) = in_time(job.next()).await else { panic!() };
    assert_eq!(cause, "web did not answer within 10s");
    let Finished { outcome, error } = finished(job).await;
    assert_eq!((outcome.started, &outcome.end), (Started::Unknown, &End::Unknown));
    let cause = ConnectionError::TimedOut;
    assert!(matches!(error, Some(Error::LinkLost { cause: told, .. }) if told == cause));
}
