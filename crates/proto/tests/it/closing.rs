//! Ends of a connection: goodbyes, cuts, silence, and peers that do not read.

use std::collections::VecDeque;
use std::time::Duration;

use afar_proto::connection::{OpenError, Stream};
use afar_proto::frame::Kind;
use afar_proto::limits::{
    CHANNELS_MAX, CONTROL_QUEUE_BYTES_MAX, JOB_HELLO_DEADLINE, KEEPALIVE_INTERVAL,
    KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX, PONGS_QUEUED_MAX,
};
use afar_proto::message::{Goodbye, GoodbyeCode};
use afar_proto::{Config, ConnectionError, Event, Instant, Misbehaviour, Role, json};
use bytes::Bytes;

use crate::rig::lone::{Lone, data, frame, open};
use crate::rig::pair::Pair;
use crate::rig::samples;
use crate::splits::conversation;

/// W-8.4: wherever the bytes end, it is a cut, told once, and nothing is held any more.
#[test]
fn fault_01_the_end_of_input_at_every_byte_is_a_cut() {
    let conversation = conversation();
    for (role, bytes) in [(Role::Client, conversation.down), (Role::Server, conversation.up)] {
        for end in 0..bytes.len() {
            let mut lone = Lone { now: Instant::ZERO, connection: conversation_end(role) };
            lone.input(&bytes[..end]);
            lone.connection.handle_eof(Instant::ZERO);
            let mut events = lone.events();
            assert_eq!(events.pop(), Some(Event::Closed(ConnectionError::Cut)), "at {end}");
            assert!(!events.iter().any(|event| matches!(event, Event::Closed(_))));
            assert!(lone.connection.is_closed());
            assert_eq!(lone.connection.channels_open(), 0);
            assert_eq!(lone.connection.poll_timeout(), None);
            assert_eq!(lone.sent_kinds(), [], "nobody is there to be told anything");
            lone.connection.handle_eof(Instant::ZERO);
            lone.input(&bytes[end..]);
            assert_eq!(lone.events(), []);
        }
    }
}

/// What the recorded side had asked for.
fn conversation_end(role: Role) -> afar_proto::Connection {
    crate::splits::fresh_end(role)
}

/// W-8.4: all of the output and the exit are not the seal; without it nothing is complete.
#[test]
fn fault_29_a_cut_before_the_seal_is_never_complete() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("job"));
    let mut server = pair.server.channel(channel).unwrap();
    server.write(Stream::Stdout, 0, Bytes::from_static(b"all of it")).unwrap();
    server.finish(Stream::Stdout);
    server.finish(Stream::Stderr);
    server.exit(&samples::exited(0));
    pair.drive();
    pair.cut();
    let events = pair.client_events();
    assert!(events.iter().any(|event| matches!(event, Event::Exit { .. })));
    assert!(!events.iter().any(|event| matches!(event, Event::Seal { .. })));
    assert_eq!(events.last(), Some(&Event::Closed(ConnectionError::Cut)));
    assert_eq!(pair.server_events(), [Event::Closed(ConnectionError::Cut)]);
}

/// W-8.3: what is queued leaves before the goodbye, and there are no events behind the last.
#[test]
fn a_goodbye_leaves_behind_what_is_queued() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("job"));
    let mut server = pair.server.channel(channel).unwrap();
    let mut queued = 0;
    while let writable @ 1.. = server.writable(Stream::Stdout) {
        server.write(Stream::Stdout, 0, vec![0; writable].into()).unwrap();
        queued += writable;
    }
    pair.server.close(GoodbyeCode::Unavailable, "restarting");
    assert!(pair.server.channel(channel).is_none());
    pair.collect();
    assert_eq!(pair.server_events(), [Event::Closed(ConnectionError::LocallyClosed)]);
    pair.budget = 10_000;
    pair.drive();
    assert_eq!(pair.server_events(), [], "no event follows the last, though the queue drained");

    let events = pair.client_events();
    let got: usize = events
        .iter()
        .map(|event| if let Event::Data { bytes, .. } = event { bytes.len() } else { 0 })
        .sum();
    assert_eq!(got, queued);
    let Some(Event::Closed(ConnectionError::PeerClosed(goodbye))) = events.last() else {
        panic!("{:?}", events.last())
    };
    assert_eq!(goodbye.code, GoodbyeCode::Unavailable);
    assert_eq!(goodbye.to_string(), "unavailable: restarting");
    assert_eq!(pair.client.open(&samples::spec("late")), Err(OpenError::Closed));
}

/// W-9.11: the limit of messages, and one over it; a code of a later version is another one.
#[test]
fn messages_are_cut_at_a_character() {
    for (text, expected) in [
        ("x".repeat(MESSAGE_BYTES_MAX), MESSAGE_BYTES_MAX),
        ("x".repeat(MESSAGE_BYTES_MAX + 1), MESSAGE_BYTES_MAX),
        (format!("{}é", "x".repeat(MESSAGE_BYTES_MAX - 1)), MESSAGE_BYTES_MAX - 1),
    ] {
        let mut lone = Lone::new(Role::Server);
        lone.connection.close(GoodbyeCode::Done, &text);
        let sent = lone.sent();
        let goodbye: Goodbye = json::from_slice(&sent[0].payload).unwrap();
        assert_eq!(goodbye.message.len(), expected);
    }
    let mut lone = Lone::new(Role::Server);
    lone.input(&frame(Kind::Goodbye, 0, 0, br#"{"code":"from the future"}"#));
    let goodbye = Goodbye { code: GoodbyeCode::Other, message: String::new() };
    assert_eq!(lone.events(), [Event::Closed(ConnectionError::PeerClosed(goodbye))]);
}

/// W-5.1: who speaks no version of the protocol is told so.
#[test]
fn a_peer_without_a_common_version_is_told() {
    let mut lone = Lone::silent(Role::Server, Config::default());
    lone.input(&frame(Kind::JobHello, 0, 0, br#"{"version":0}"#));
    let expected = ConnectionError::PeerIncompatible { theirs: 0, ours: 1 };
    assert_eq!(lone.events(), [Event::Closed(expected)]);
    let goodbye: Goodbye = json::from_slice(&lone.sent()[0].payload).unwrap();
    assert_eq!(goodbye.code, GoodbyeCode::Incompatible);

    let mut lone = Lone::silent(Role::Server, Config::default());
    lone.input(&frame(Kind::JobHello, 0, 0, br#"{"version":77,"new":[1]}"#));
    assert!(matches!(lone.events()[..], [Event::Ready(_)]), "the lower one is spoken");
}

/// W-9.18: one microsecond before the deadline of the hello, and at it.
#[test]
fn fault_06_a_peer_that_never_says_hello_is_closed_at_one_deadline() {
    let config = Config {
        keepalive_interval: Duration::from_secs(3_600),
        keepalive_timeout: Duration::from_secs(7_200),
        ..Config::default()
    };
    let mut lone = Lone::silent(Role::Server, config);
    let hello = frame(Kind::JobHello, 0, 0, &json::to_vec(&samples::job_hello()));
    // A byte now and then does not move it.
    lone.now = Instant::ZERO.after(JOB_HELLO_DEADLINE / 2);
    lone.input(&hello[..5]);
    let deadline = Instant::ZERO.after(JOB_HELLO_DEADLINE);
    assert_eq!(lone.connection.poll_timeout(), Some(deadline));
    let just_before = Instant::from_micros(deadline.as_micros() - 1);
    lone.connection.handle_timeout(just_before);
    lone.assert_open();
    lone.connection.handle_timeout(deadline);
    assert_eq!(lone.events(), [Event::Closed(ConnectionError::TimedOut)]);
}

/// W-8.2, W-9.17: a PING after the interval, the end after the timeout, each at its microsecond.
#[test]
fn silence_is_asked_about_and_then_ends_the_connection() {
    let mut lone = Lone::new(Role::Client);
    let before = |at: Duration| Instant::from_micros(Instant::ZERO.after(at).as_micros() - 1);
    assert_eq!(lone.connection.poll_timeout(), Some(Instant::ZERO.after(KEEPALIVE_INTERVAL)));
    lone.connection.handle_timeout(before(KEEPALIVE_INTERVAL));
    assert_eq!(lone.sent_kinds(), []);
    lone.connection.handle_timeout(Instant::ZERO.after(KEEPALIVE_INTERVAL));
    lone.connection.handle_timeout(Instant::ZERO.after(KEEPALIVE_INTERVAL));
    assert_eq!(lone.sent_kinds(), [Kind::Ping], "one, however often the time is told");

    assert_eq!(lone.connection.poll_timeout(), Some(Instant::ZERO.after(KEEPALIVE_TIMEOUT)));
    lone.connection.handle_timeout(before(KEEPALIVE_TIMEOUT));
    lone.assert_open();
    lone.connection.handle_timeout(Instant::ZERO.after(KEEPALIVE_TIMEOUT));
    assert_eq!(lone.events(), [Event::Closed(ConnectionError::TimedOut)]);
    let goodbye: Goodbye = json::from_slice(&lone.sent()[0].payload).unwrap();
    assert_eq!(goodbye.code, GoodbyeCode::Timeout);
}

/// W-8.2: two idle peers keep each other for ever; one-way silence ends both.
#[test]
fn an_idle_connection_lives_and_a_silent_link_ends_both_sides() {
    let mut pair = Pair::new();
    pair.advance(Duration::from_secs(3_600));
    assert_eq!((pair.client_events(), pair.server_events()), (vec![], vec![]));

    pair.up.silent = true;
    pair.advance(Duration::from_secs(120));
    let timed_out = Event::Closed(ConnectionError::TimedOut);
    assert_eq!(pair.server_events(), [timed_out]);
    let told = pair.client_events();
    assert!(
        matches!(&told[..], [Event::Closed(ConnectionError::PeerClosed(goodbye))]
            if goodbye.code == GoodbyeCode::Timeout),
        "{told:?}"
    );

    let mut pair = Pair::new();
    pair.up.silent = true;
    pair.down.silent = true;
    pair.advance(Duration::from_secs(120));
    let timed_out = Event::Closed(ConnectionError::TimedOut);
    let ends = [pair.client_events(), pair.server_events()].concat();
    assert_eq!(ends, vec![timed_out; 2]);
}

/// W-9.8: as many PONGs as may wait, and one more.
#[test]
fn fault_22_pings_without_reading_the_pongs_end_the_connection() {
    let ping = frame(Kind::Ping, 0, 0, b"12345678");
    let mut lone = Lone::new(Role::Server);
    for _ in 0..3 {
        for _ in 0..PONGS_QUEUED_MAX {
            lone.input(&ping);
        }
        assert_eq!(lone.sent_kinds(), vec![Kind::Pong; PONGS_QUEUED_MAX]);
    }
    for _ in 0..PONGS_QUEUED_MAX {
        lone.input(&ping);
    }
    lone.assert_open();
    lone.input(&ping);
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::RepliesUnread);
}

/// W-9.8: whoever reads a little at a time is no flooder.
#[test]
fn fault_22_pongs_that_leave_one_by_one_are_no_flood() {
    let mut lone = Lone::new(Role::Server);
    for _ in 0..PONGS_QUEUED_MAX * 3 {
        lone.input(&frame(Kind::Ping, 0, 0, b"12345678"));
        let mut out = VecDeque::new();
        assert_eq!(lone.connection.poll_transmit(&mut out, 1), 20);
    }
    lone.assert_open();
}

/// W-9.8: refusals that nobody reads pile up to a limit.
#[test]
fn fault_22_asking_without_reading_ends_the_connection_at_a_limit() {
    let mut lone = Lone::new(Role::Server);
    let mut channel = 1;
    while !lone.connection.is_closed() {
        lone.input(&open_bytes(channel));
        channel += 2;
        assert!(channel < 1_000_000, "there is a limit");
    }
    assert!(channel > 10_000, "not before about a megabyte: {channel}");
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::RepliesUnread);
}

fn open_bytes(channel: u32) -> Vec<u8> {
    frame(Kind::Open, 0, channel, b"{}")
}

/// W-9.8: credit that nobody reads is no exception: it stays bounded, and the end is told.
#[test]
fn fault_22_data_without_reading_the_credit_ends_the_connection_at_a_limit() {
    let config = Config { window_bytes: 4, ..Config::default() };
    let mut lone = Lone::with(Role::Server, config);
    lone.input(&open(1, &samples::spec_with_stdin("job")));
    let events = lone.events();
    let [Event::Open { channel, .. }] = events[..] else { panic!("{events:?}") };
    lone.channel(channel).accept(&samples::opened("job"));
    let mut offset = 0;
    while !lone.connection.is_closed() {
        lone.input(&data(1, 0, offset, b"x"));
        offset += 1;
        if let Some(mut channel) = lone.connection.channel(channel) {
            channel.consume(Stream::Stdin, 1);
        }
        assert!(offset < CONTROL_QUEUE_BYTES_MAX as u64, "there is a limit");
        let is_over = lone.events().iter().any(|event| matches!(event, Event::Closed(_)));
        assert_eq!(is_over, lone.connection.is_closed());
    }
    assert!(offset > 10_000, "not before about a megabyte: {offset}");
}

/// W-9.8: an OPEN of megabytes is this side's own, and no reason to call the peer a flooder.
#[test]
fn a_large_open_that_waits_is_no_unread_reply() {
    let mut lone = Lone::new(Role::Client);
    let mut spec = samples::spec("large");
    spec.env = vec![("A".into(), "x".repeat(3 << 20).as_str().into())];
    lone.connection.open(&spec).unwrap();
    lone.input(&frame(Kind::Ping, 0, 0, b"12345678"));
    lone.assert_open();
    assert_eq!(lone.sent_kinds()[0], Kind::Pong, "and the answer does not wait behind it");
}

/// W-8.1: whatever ends it, a goodbye of the peer is heard.
#[test]
fn a_goodbye_is_heard_though_replies_are_unread() {
    let mut lone = Lone::new(Role::Server);
    for index in 0..CHANNELS_MAX {
        let channel = u32::try_from(index * 2 + 1).unwrap();
        lone.input(&open(channel, &samples::spec("job")));
    }
    for event in lone.events() {
        let Event::Open { channel, .. } = event else { panic!("{event:?}") };
        lone.channel(channel).reset(&"x".repeat(MESSAGE_BYTES_MAX));
    }
    lone.input(&frame(Kind::Goodbye, 0, 0, br#"{"code":"done"}"#));
    let last = lone.events().pop();
    assert!(matches!(last, Some(Event::Closed(ConnectionError::PeerClosed(_)))), "{last:?}");
    assert!(lone.sent().is_empty(), "a megabyte that nobody will read is not sent");
}
