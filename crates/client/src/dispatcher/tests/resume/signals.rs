//! Signals for a job that can't be told of them now.

use super::*;
use crate::limits::SIGNALS_WAITING_MAX;

/// The signals that come of what was asked for before the job's handle has had its first bytes.
async fn signals(peer: &mut Peer, channel: ChannelId, job: &mut Job) -> Vec<String> {
    peer.flush().await;
    peer.write(channel, b"mark");
    peer.flush().await;
    until(job, "mark").await;
    job.stop(Stream::Stderr);
    let mut seen = Vec::new();
    loop {
        match in_time(peer.driver.next()).await {
            Event::Signal { signal, .. } => seen.push(signal.name),
            Event::Stopped { .. } => return seen,
            _ => {}
        }
    }
}

/// `J-4.5`
#[tokio::test(start_paused = true)]
async fn signals_wait_for_the_next_link_each_once_and_in_order() {
    let (session, mut peer, links) = linked();
    let (mut job, _, spec) = running(&session, &mut peer).await;
    drop(peer);
    until(&mut job, "disconnected").await;
    for name in ["HUP", "INT", "HUP", "INT", "TERM", "HUP"] {
        job.signal(name);
    }
    let mut peer = links.next();
    let (channel, _) = peer.attach().await;
    // There is a link, and the server has not said that this client is attached.
    job.signal("USR1");
    job.signal("INT");
    until(&mut job, "reconnected").await;
    peer.go_on(channel, &spec.job, 6, None);
    assert_eq!(signals(&mut peer, channel, &mut job).await, ["HUP", "INT", "TERM", "USR1"]);
}

/// `J-4.5`
#[tokio::test(start_paused = true)]
async fn signals_that_nobody_has_had_are_bounded() {
    for waiting in [SIGNALS_WAITING_MAX, SIGNALS_WAITING_MAX + 1] {
        let (session, mut peer) = pair();
        let mut job = start(&session);
        let (channel, spec) = peer.opened().await;
        let names: Vec<String> = (0..waiting).map(|number| format!("RTMIN+{number}")).collect();
        names.iter().for_each(|name| job.signal(name));
        // Whatever was asked for has been handled when another question comes.
        let asked = tokio::spawn(async move {
            let _ = session.list(None, None, None).await;
        });
        peer.query().await;
        peer.accept(channel, &spec);
        assert_eq!(signals(&mut peer, channel, &mut job).await, names[..SIGNALS_WAITING_MAX]);
        asked.abort();
    }
}
