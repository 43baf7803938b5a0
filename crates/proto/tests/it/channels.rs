//! Channels: who may open them, with which numbers, and what frames of others mean.

use afar_proto::connection::OpenError;
use afar_proto::frame::{FLAG_MORE, Kind};
use afar_proto::limits::{CHANNELS_ABANDONED_MAX, CHANNELS_MAX, LATE_FRAMES_MAX};
use afar_proto::message::{GoodbyeCode, Refused};
use afar_proto::outcome::{RefusalReason, Started};
use afar_proto::{Config, ConnectionError, Event, Misbehaviour, Role, json};

use crate::rig::lone::{Lone, data, frame, open, raw, window};
use crate::rig::pair::Pair;
use crate::rig::samples;

fn spec() -> afar_proto::message::OpenSpec {
    samples::spec("job")
}

#[test]
fn fault_10_an_open_that_no_hello_precedes_ends_the_connection_unparsed() {
    let mut lone = Lone::silent(Role::Server, Config::default());
    // Its body is no JSON at all, and nobody finds out.
    lone.input(&frame(Kind::Open, 0, 1, b"{{{{"));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnexpectedFrame(Kind::Open));
}

#[test]
fn fault_13_a_channel_that_was_never_opened_ends_the_connection() {
    for channel in [3, 2, 0, u32::MAX] {
        let mut lone = Lone::server_with_job();
        lone.input(&window(channel, 1, 1));
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnknownChannel(channel));

        let (mut lone, _) = Lone::client_with_job();
        lone.input(&data(channel, 1, 0, b"x"));
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnknownChannel(channel));
    }
}

/// W-5.3: until its last chunk has come, a channel is not open.
#[test]
fn fault_13_a_channel_whose_open_is_not_whole_is_not_open() {
    let mut lone = Lone::new(Role::Server);
    lone.input(&frame(Kind::Open, FLAG_MORE, 1, b"{"));
    lone.input(&window(1, 1, 1));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnknownChannel(1));
}

/// W-9.10: ignored within a budget, which each closing channel makes whole again.
#[test]
fn fault_14_frames_of_a_channel_that_was_just_closed_are_ignored_within_a_budget() {
    let mut lone = Lone::server_with_job();
    lone.input(&frame(Kind::Close, 0, 1, b""));
    assert_eq!(lone.events().len(), 1);
    for _ in 0..LATE_FRAMES_MAX {
        lone.input(&data(1, 0, 0, b"late"));
    }
    assert_eq!(lone.events(), []);
    lone.assert_open();

    lone.accept_job(3);
    lone.input(&frame(Kind::Close, 0, 3, b""));
    for _ in 0..LATE_FRAMES_MAX {
        lone.input(&data(1, 0, 0, b"late"));
    }
    lone.assert_open();
    lone.input(&data(3, 0, 0, b"late"));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::LateFrames);
}

/// W-5.2: odd, above all before it.
#[test]
fn fault_15_a_bad_channel_id_ends_the_connection() {
    for (first, second) in [(1, 1), (5, 3), (1, 2), (1, 0), (u32::MAX, 1), (u32::MAX, u32::MAX)] {
        for kind in [Kind::Open, Kind::Attach] {
            let mut lone = Lone::new(Role::Server);
            lone.input(&open(first, &spec()));
            lone.assert_open();
            lone.input(&frame(kind, 0, second, &json::to_vec(&spec())));
            assert_eq!(lone.assert_misbehaved(), Misbehaviour::BadChannelId(second));
        }
    }
}

/// W-5.2: a client may leave numbers out; these count as closed.
#[test]
fn ids_that_were_left_out_count_as_closed() {
    let mut lone = Lone::new(Role::Server);
    lone.input(&[open(9, &spec()), window(5, 1, 1)].concat());
    lone.assert_open();
    assert!(matches!(lone.events()[..], [Event::Open { .. }]));
}

/// W-5.2: the connection ends in order, with the last job that runs on it.
#[test]
fn fault_16_used_up_ids_end_the_connection_in_order() {
    let config = Config { first_channel: u32::MAX - 2, ..Config::default() };
    let mut pair = Pair::with(config, Config::default());
    let first = pair.open(&samples::spec("a"));
    let last = pair.open(&samples::spec("b"));
    assert_eq!(last.as_u32(), u32::MAX);
    assert_eq!(pair.client.open(&samples::spec("c")), Err(OpenError::Exhausted));
    pair.drive();
    assert_eq!(pair.client_events(), [], "two jobs still run");

    for channel in [first, last] {
        let mut handle = pair.server.channel(channel).unwrap();
        handle.exit(&samples::exited(0));
        let empty = samples::sealer_of(b"");
        handle.seal(&samples::seal(&empty, &empty));
    }
    pair.drive();
    assert_eq!(pair.client_events().pop(), Some(Event::Closed(ConnectionError::LocallyClosed)));
    let Some(Event::Closed(ConnectionError::PeerClosed(goodbye))) = pair.server_events().pop()
    else {
        panic!("no goodbye arrived")
    };
    assert_eq!(goodbye.code, GoodbyeCode::Done);
}

/// A client may have used its ids up before the server has said a word.
#[test]
fn fault_16_used_up_ids_do_not_hide_the_hello() {
    let config = Config { first_channel: u32::MAX, ..Config::default() };
    let mut pair = Pair::silent(config, Config::default());
    pair.client.open(&samples::spec("a")).unwrap();
    assert_eq!(pair.client.open(&samples::spec("b")), Err(OpenError::Exhausted));
    pair.drive();
    assert!(matches!(pair.client_events()[..], [Event::Ready(_)]));
}

fn with_every_channel_open() -> Lone {
    let mut lone = Lone::new(Role::Server);
    for index in 0..CHANNELS_MAX {
        let channel = u32::try_from(index * 2 + 1).unwrap();
        lone.input(&open(channel, &spec()));
    }
    let events = lone.events();
    assert_eq!(events.len(), CHANNELS_MAX);
    assert!(events.iter().all(|event| matches!(event, Event::Open { .. })));
    lone
}

/// W-9.6: the limit, and one more, which is refused and harms nobody.
#[test]
fn fault_17_a_channel_too_many_is_refused() {
    let mut lone = with_every_channel_open();
    let next = u32::try_from(CHANNELS_MAX * 2 + 1).unwrap();
    lone.input(&open(next, &spec()));
    assert_eq!(lone.events(), [], "the application is not asked");
    let sent = lone.sent();
    let refused: Refused = json::from_slice(&sent[0].payload).unwrap();
    assert_eq!((sent[0].kind, sent[0].channel), (Kind::Refused, next));
    assert_eq!((refused.reason, refused.started), (RefusalReason::TooMany, Started::No));
    assert_eq!(lone.connection.channels_open(), CHANNELS_MAX);

    lone.input(&frame(Kind::Close, 0, 1, b""));
    lone.input(&open(next + 2, &spec()));
    assert!(matches!(lone.events()[..], [Event::Abandoned { .. }, Event::Open { .. }]));
}

#[test]
fn fault_17_a_client_asks_for_no_channel_too_many() {
    let mut lone = Lone::new(Role::Client);
    for _ in 0..CHANNELS_MAX {
        lone.connection.open(&spec()).unwrap();
    }
    assert_eq!(lone.connection.open(&spec()), Err(OpenError::TooMany));
    lone.assert_open();
}

/// W-9.6: what the client gave up counts until it is cleaned up after.
#[test]
fn fault_18_opening_and_resetting_in_a_loop_is_counted() {
    for close in [Kind::Close, Kind::Reset] {
        let payload: &[u8] = if close == Kind::Close { b"" } else { b"{}" };
        let mut lone = Lone::new(Role::Server);
        let mut abandoned = Vec::new();
        for index in 0..CHANNELS_ABANDONED_MAX {
            let channel = u32::try_from(index * 2 + 1).unwrap();
            lone.input(&[open(channel, &spec()), frame(close, 0, channel, payload)].concat());
            abandoned.extend(lone.events().into_iter().filter_map(|event| match event {
                Event::Abandoned { channel } => Some(channel),
                _ => None,
            }));
        }
        assert_eq!(abandoned.len(), CHANNELS_ABANDONED_MAX, "each is to be cleaned up after");
        lone.assert_open();

        // One is cleaned up after, so there is room for one more, and not for two.
        lone.connection.release(abandoned[0]);
        let next = u32::try_from(CHANNELS_ABANDONED_MAX * 2 + 1).unwrap();
        lone.input(&[open(next, &spec()), frame(close, 0, next, payload)].concat());
        lone.assert_open();
        lone.input(&[open(next + 2, &spec()), frame(close, 0, next + 2, payload)].concat());
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::ChannelChurn);
    }
}

/// W-5.8: at a server, a channel that failed is also one to clean up after.
#[test]
fn a_channel_that_fails_at_the_server_is_told_as_abandoned() {
    let mut lone = Lone::server_with_job();
    lone.input(&frame(Kind::Reset, 0, 1, br#"{"message":"why"}"#));
    let events = lone.events();
    assert!(
        matches!(&events[..], [Event::Failed { message, .. }, Event::Abandoned { .. }]
            if message == "why"),
        "{events:?}"
    );
}

/// W-3.2: only a client opens.
#[test]
fn a_server_opens_nothing() {
    let mut lone = Lone::new(Role::Server);
    assert_eq!(lone.connection.open(&spec()), Err(OpenError::WrongRole));
    let mut lone = Lone::new(Role::Client);
    lone.input(&open(2, &spec()));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnexpectedFrame(Kind::Open));
}

/// W-5.6, W-5.7: an answer is given once, by who was asked.
#[test]
fn a_second_answer_is_not_sent_and_not_taken() {
    let mut lone = Lone::server_with_job();
    let id = {
        lone.input(&open(3, &spec()));
        let events = lone.events();
        let [Event::Open { channel, .. }] = events[..] else { panic!("{events:?}") };
        channel
    };
    lone.channel(id).accept(&samples::opened("job"));
    lone.channel(id).accept(&samples::opened("job"));
    lone.channel(id).accept_attach(&samples::attached(0, 0, None));
    lone.channel(id).refuse(&samples::refused(RefusalReason::Denied));
    assert_eq!(lone.sent_kinds(), [Kind::Opened]);

    for again in [Kind::Opened, Kind::Refused, Kind::Attached] {
        let (mut lone, _) = Lone::client_with_job();
        let payload = match again {
            Kind::Opened => json::to_vec(&samples::opened("job")),
            Kind::Refused => json::to_vec(&samples::refused(RefusalReason::Denied)),
            _ => json::to_vec(&samples::attached(0, 0, None)),
        };
        lone.input(&frame(again, 0, 1, &payload));
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnexpectedFrame(again));
    }
}

#[test]
fn fault_09_an_ignorable_frame_between_others_changes_nothing() {
    let mut lone = Lone::new(Role::Server);
    let bytes = [raw(0xff, 0, 77, &[1; 999]), open(1, &spec()), raw(0xc0, 3, 1, b"")].concat();
    lone.input(&bytes);
    assert!(matches!(lone.events()[..], [Event::Open { .. }]));
}
