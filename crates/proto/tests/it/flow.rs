//! Streams: offsets, credit, acknowledgements, ends.

use afar_proto::connection::{Stream, WriteError};
use afar_proto::frame::Kind;
use afar_proto::limits::{
    CHANNEL_QUEUE_BYTES_MAX, DATA_BYTES_SENT_MAX, EMPTY_FRAMES_MAX, QUEUED_PIECE_BYTES,
    WINDOW_BYTES_INITIAL, WINDOW_BYTES_MAX,
};
use afar_proto::{ChannelId, Config, Event, Misbehaviour, Role};
use bytes::Bytes;

use crate::rig::lone::{Lone, data, frame, window};
use crate::rig::pair::Pair;
use crate::rig::samples;

fn small_window(bytes: u32) -> Config {
    Config { window_bytes: bytes, ..Config::default() }
}

#[track_caller]
fn assert_failed(lone: &mut Lone, what: &str) {
    let events = lone.events();
    let failed = events
        .iter()
        .any(|event| matches!(event, Event::Failed { message, .. } if message == what));
    assert!(failed, "{events:?}");
    assert!(lone.sent_kinds().contains(&Kind::Reset));
    lone.assert_open();
}

/// W-9.9: empty DATA frames in a row, and what makes the count begin again.
#[test]
fn fault_04_a_flood_of_empty_data_ends_the_connection() {
    let (mut lone, _) = Lone::client_with_job();
    for _ in 0..EMPTY_FRAMES_MAX {
        lone.input(&data(1, 1, 0, b""));
    }
    lone.input(&data(1, 1, 0, b"x"));
    for _ in 0..EMPTY_FRAMES_MAX {
        lone.input(&data(1, 2, 0, b""));
    }
    lone.assert_open();
    lone.input(&data(1, 1, 1, b""));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::EmptyFrames);
}

/// W-6.4: the last byte of the window, and the one behind it.
#[test]
fn fault_19_data_beyond_the_window_resets_the_channel_only() {
    let mut lone = Lone::with(Role::Server, small_window(10));
    lone.accept_job(1);
    lone.accept_job(3);
    lone.input(&data(1, 0, 0, b"0123456789"));
    assert!(matches!(lone.events()[..], [Event::Data { .. }]));
    lone.input(&data(1, 0, 10, b"x"));
    assert_failed(&mut lone, "data beyond the window");
    lone.input(&data(3, 0, 0, b"others go on"[..10].as_ref()));
    assert!(matches!(lone.events()[..], [Event::Data { .. }]));
}

/// W-6.4: without an answer to its OPEN, a client has no credit and sends nothing.
#[test]
fn stdin_before_the_answer_resets_the_channel() {
    for bytes in [data(1, 0, 0, b"x"), frame(Kind::End, 0, 1, &[0; 8])] {
        let mut lone = Lone::new(Role::Server);
        lone.input(&crate::rig::lone::open(1, &samples::spec_with_stdin("job")));
        lone.input(&bytes);
        let events = lone.events();
        assert!(matches!(events[1], Event::Failed { .. }), "{events:?}");
        lone.assert_open();
    }
}

/// W-6.4: an end that was said before the answer waits for it.
#[test]
fn the_end_of_stdin_waits_for_the_answer() {
    let mut pair = Pair::new();
    let channel = pair.client.open(&samples::spec_with_stdin("job")).unwrap();
    pair.client.channel(channel).unwrap().finish(Stream::Stdin);
    pair.drive();
    assert!(matches!(pair.server_events()[..], [Event::Open { .. }]));
    pair.server.channel(channel).unwrap().accept(&samples::opened("job"));
    pair.drive();
    assert_eq!(pair.server_events(), [Event::End { channel, stream: Stream::Stdin }]);
}

/// W-6.5: 0, one over the limit, and the limit itself.
#[test]
fn fault_20_a_bad_window_increment_ends_the_connection() {
    let most = u32::try_from(WINDOW_BYTES_MAX).unwrap();
    for bad in [vec![window(1, 1, 0)], vec![window(1, 1, most + 1)], vec![window(1, 1, u32::MAX)]] {
        let mut lone = Lone::server_with_job();
        lone.input(&bad.concat());
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::BadWindow(1));
    }
    let mut lone = Lone::server_with_job();
    lone.input(&window(1, 1, most));
    lone.assert_open();
    lone.input(&window(1, 1, 1));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::BadWindow(1));

    // What was sent makes room for as much credit again.
    let mut lone = Lone::server_with_job();
    let id = the_channel(&mut lone);
    lone.input(&window(1, 1, most));
    lone.channel(id).write(Stream::Stdout, 0, Bytes::from_static(b"12345")).unwrap();
    lone.input(&window(1, 1, 5));
    lone.assert_open();

    // A stream that does not exist has no exemption.
    let (mut lone, _) = Lone::client_with_open();
    lone.input(&window(1, 0, 0));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::BadWindow(1));
}

/// The id of channel 1, which only an event hands out.
fn the_channel(lone: &mut Lone) -> ChannelId {
    lone.input(&frame(Kind::Signal, 0, 1, br#"{"name":"TERM"}"#));
    let events = lone.events();
    let Some(Event::Signal { channel, .. }) = events.first() else { panic!("{events:?}") };
    *channel
}

/// W-6.4, W-9.7: a window never granted: nothing is taken, others flow.
#[test]
fn fault_21_a_stalled_stream_holds_a_window_and_stops_nobody_else() {
    let mut pair = Pair::new();
    let stalled = pair.open(&samples::spec("stalled"));
    let flowing = pair.open(&samples::spec("flowing"));
    let mut taken = 0;
    loop {
        let mut channel = pair.server.channel(stalled).unwrap();
        let writable = channel.writable(Stream::Stdout);
        if writable == 0 {
            break;
        }
        channel.write(Stream::Stdout, 0, vec![0; writable].into()).unwrap();
        taken += writable;
        pair.drive();
    }
    assert_eq!(taken, WINDOW_BYTES_INITIAL as usize, "the window is what a stalled stream costs");
    pair.client_events();

    for round in 0..100_u64 {
        let bytes = Bytes::from(vec![1; 100_000]);
        let mut channel = pair.server.channel(flowing).unwrap();
        channel.write(Stream::Stdout, 0, bytes).unwrap();
        pair.drive();
        let mut offset = round * 100_000;
        for event in pair.client_events() {
            let Event::Data { channel, offset: at, bytes, .. } = event else { panic!("{event:?}") };
            assert_eq!((channel, at), (flowing, offset));
            offset += bytes.len() as u64;
            pair.client.channel(flowing).unwrap().consume(Stream::Stdout, bytes.len());
        }
        assert_eq!(offset, (round + 1) * 100_000);
    }
}

/// W-9.21: a peer that grants everything and reads nothing costs no more than the queue.
#[test]
fn fault_21_what_a_channel_queues_is_bounded_in_memory_not_in_bytes() {
    let pieces_max = CHANNEL_QUEUE_BYTES_MAX / QUEUED_PIECE_BYTES + 1;
    for (piece, most) in [(1, pieces_max), (DATA_BYTES_SENT_MAX, CHANNEL_QUEUE_BYTES_MAX)] {
        let mut lone = Lone::server_with_job();
        let id = the_channel(&mut lone);
        lone.input(&window(1, 1, u32::try_from(WINDOW_BYTES_MAX).unwrap()));
        let mut queued = 0;
        loop {
            let length = lone.channel(id).writable(Stream::Stdout).min(piece);
            if length == 0 {
                break;
            }
            lone.channel(id).write(Stream::Stdout, 0, vec![0; length].into()).unwrap();
            queued += length as u64;
        }
        assert!(queued <= most && queued * 2 > most.min(pieces_max), "{queued}");
        lone.sent();
        let events = lone.events();
        assert!(matches!(events[..], [Event::Writable { .. }]), "told once: {events:?}");
    }
}

/// W-6.6: credit comes again in quarters of a window, with the acknowledgement.
#[test]
fn consuming_acknowledges_and_grants_again() {
    let mut pair = Pair::with(small_window(400), Config::default());
    let channel = pair.open(&samples::spec("job"));
    let mut server = pair.server.channel(channel).unwrap();
    assert_eq!(server.writable(Stream::Stdout), 400);
    server.write(Stream::Stdout, 0, vec![0; 400].into()).unwrap();
    assert_eq!(server.writable(Stream::Stdout), 0);
    pair.drive();
    pair.client.channel(channel).unwrap().consume(Stream::Stdout, 99);
    pair.drive();
    assert_eq!(pair.server_events(), [], "a quarter has not come together");
    pair.client.channel(channel).unwrap().consume(Stream::Stdout, 1);
    pair.drive();
    let stream = Stream::Stdout;
    assert_eq!(
        pair.server_events(),
        [Event::Acked { channel, stream, offset: 100 }, Event::Writable { channel, stream }]
    );
    assert_eq!(pair.server.channel(channel).unwrap().writable(stream), 100);
    // More than was received is not consumed, whatever the application says.
    pair.client.channel(channel).unwrap().consume(stream, usize::MAX);
    pair.drive();
    assert_eq!(pair.server.channel(channel).unwrap().writable(stream), 400);
}

/// A window of one byte makes progress all the same.
#[test]
fn the_smallest_window_flows() {
    for asked in [0, 1, 3] {
        let mut pair = Pair::with(small_window(asked), Config::default());
        let channel = pair.open(&samples::spec("job"));
        for offset in 0..20_u64 {
            let mut server = pair.server.channel(channel).unwrap();
            server.write(Stream::Stdout, 0, Bytes::from_static(b"x")).unwrap();
            pair.drive();
            let events = pair.client_events();
            assert!(matches!(events[..], [Event::Data { offset: at, .. }] if at == offset));
            pair.client.channel(channel).unwrap().consume(Stream::Stdout, 1);
            pair.drive();
        }
    }
}

/// W-6.6: what is acknowledged was sent, and is not taken back.
#[test]
fn a_false_acknowledgement_resets_the_channel() {
    let ack = |offset: u64| frame(Kind::Ack, 1, 1, &offset.to_be_bytes());
    let written = || {
        let mut lone = Lone::server_with_job();
        let id = the_channel(&mut lone);
        lone.input(&window(1, 1, 100));
        lone.channel(id).write(Stream::Stdout, 0, Bytes::from_static(b"12345")).unwrap();
        lone
    };
    let what = "an acknowledgement of bytes that were not sent";

    let mut lone = written();
    lone.input(&ack(5));
    assert_failed(&mut lone, what);

    let mut lone = written();
    lone.sent();
    lone.input(&ack(5));
    lone.input(&ack(5));
    assert_eq!(lone.events().len(), 1, "the same again is no news");
    lone.input(&ack(4));
    assert_failed(&mut lone, what);

    let mut lone = written();
    lone.sent();
    lone.input(&ack(6));
    assert_failed(&mut lone, what);
}

/// W-6.2, W-6.3: offsets go on where they are, and an end tells the length.
#[test]
fn fault_28_data_at_a_wrong_offset_or_after_the_end_and_a_second_end_reset_the_channel() {
    let end = |offset: u64| frame(Kind::End, 1, 1, &offset.to_be_bytes());
    let cases = [
        (vec![data(1, 1, 1, b"x")], "data at a wrong offset"),
        (vec![data(1, 1, 0, b"x"), data(1, 1, 0, b"x")], "data at a wrong offset"),
        (vec![data(1, 1, u64::MAX, b"x")], "data at a wrong offset"),
        (vec![end(0), data(1, 1, 0, b"x")], "data after the end of its stream"),
        (vec![end(0), end(0)], "a second end of a stream"),
        (vec![data(1, 1, 0, b"x"), end(0)], "an end at a wrong offset"),
        (vec![end(u64::MAX)], "an end at a wrong offset"),
    ];
    for (frames, what) in cases {
        let (mut lone, _) = Lone::client_with_job();
        lone.input(&frames.concat());
        assert_failed(&mut lone, what);
    }
    let mut lone = Lone::new(Role::Server);
    lone.input(&crate::rig::lone::open(
        1,
        &samples::spec("without stdin".replace(' ', "_").as_str()),
    ));
    let events = lone.events();
    let [Event::Open { channel, .. }] = events[..] else { panic!("{events:?}") };
    lone.channel(channel).accept(&samples::opened("job"));
    lone.input(&data(1, 0, 0, b"x"));
    assert_failed(&mut lone, "data on a stream that was not announced");
}

/// W-6.8: a stream that is not wanted any more.
#[test]
fn a_stopped_stream_is_told_once_and_reported_no_more() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec_with_stdin("job"));
    let stream = Stream::Stdout;
    pair.client.channel(channel).unwrap().stop(stream);
    pair.client.channel(channel).unwrap().stop(stream);
    let mut server = pair.server.channel(channel).unwrap();
    server.write(stream, 0, Bytes::from_static(b"on its way")).unwrap();
    server.stop(Stream::Stdin);
    pair.drive();
    assert_eq!(pair.server_events(), [Event::Stopped { channel, stream }]);
    assert_eq!(pair.client_events(), [Event::Stopped { channel, stream: Stream::Stdin }]);
}

/// W-6.8: and no more credit is granted for it, whatever is consumed of what had come.
#[test]
fn a_stopped_stream_gets_no_more_credit() {
    let mut lone = Lone::new(Role::Client);
    let channel = lone.connection.open(&samples::spec("job")).unwrap();
    lone.input(&frame(Kind::Opened, 0, 1, &afar_proto::json::to_vec(&samples::opened("job"))));
    for at in 0..16 {
        lone.input(&data(1, 1, at << 16, &[0; 1 << 16]));
    }
    lone.channel(channel).stop(Stream::Stdout);
    lone.sent();
    lone.channel(channel).consume(Stream::Stdout, 16 << 16);
    assert_eq!(lone.sent_kinds(), []);
}

#[test]
fn nothing_is_written_that_is_not_taken() {
    let mut pair = Pair::new();
    let channel = pair.open(&samples::spec("job"));
    let mut client = pair.client.channel(channel).unwrap();
    assert_eq!(client.write(Stream::Stdin, 0, Bytes::new()), Err(WriteError::NotOpen));
    let mut server = pair.server.channel(channel).unwrap();
    let credit = WINDOW_BYTES_INITIAL as usize;
    let blocked = server.write(Stream::Stderr, 0, vec![0; credit + 1].into());
    assert_eq!(blocked, Err(WriteError::Blocked));
    assert_eq!(server.write(Stream::Stderr, 0, vec![0; credit].into()), Ok(()));
    server.finish(Stream::Stderr);
    assert_eq!(server.writable(Stream::Stderr), 0);
    let finished = server.write(Stream::Stderr, 0, Bytes::new());
    assert_eq!(finished, Err(WriteError::NotOpen));
}

/// Before it is answered, a channel takes nothing; the answer wakes who waits.
#[test]
fn output_before_the_answer_is_not_taken() {
    let mut pair = Pair::new();
    let channel = pair.client.open(&samples::spec("job")).unwrap();
    pair.drive();
    let mut server = pair.server.channel(channel).unwrap();
    assert_eq!(server.writable(Stream::Stdout), 0);
    server.accept(&samples::opened("job"));
    pair.drive();
    let last = pair.server_events().pop();
    assert_eq!(last, Some(Event::Writable { channel, stream: Stream::Stdout }));
}

/// W-6.4: who consumes nothing of a stream that was not answered grants nothing either.
#[test]
fn consuming_before_the_answer_grants_nothing() {
    let mut pair = Pair::with(Config::default(), small_window(100));
    let channel = pair.client.open(&samples::spec_with_stdin("job")).unwrap();
    pair.drive();
    let mut server = pair.server.channel(channel).unwrap();
    server.consume(Stream::Stdin, 0);
    server.accept(&samples::opened("job"));
    pair.drive();
    let writable = pair.client.channel(channel).unwrap().writable(Stream::Stdin);
    assert_eq!(writable, 100);
}
