//! Going on with a job that exists: exactly where it was left, or behind a named gap.

use std::collections::BTreeMap;

use afar_proto::connection::{ResumeStream, Stream, Verdict};
use afar_proto::frame::Kind;
use afar_proto::outcome::RefusalReason;
use afar_proto::seal::Sealer;
use afar_proto::{ChannelId, Config, Event, Misbehaviour, json};
use bytes::Bytes;

use crate::rig::lone::{Lone, data, frame};
use crate::rig::pair::Pair;
use crate::rig::samples;

fn wanted(stdout: (u64, Option<Sealer>), stderr: u64) -> BTreeMap<Stream, ResumeStream> {
    let (offset, sealer) = stdout;
    [
        (Stream::Stdout, ResumeStream { offset, unconsumed: 0, sealer }),
        (Stream::Stderr, ResumeStream::at(stderr)),
    ]
    .into()
}

/// A client that attaches where `seen` ends; the server has got the request.
fn attaching(seen: &[u8], keep: bool) -> (Pair, ChannelId) {
    let mut pair = Pair::new();
    let offset = seen.len() as u64;
    let streams = wanted((offset, keep.then(|| samples::sealer_of(seen))), 0);
    let attach = samples::attach("job", offset, 0);
    let channel = pair.client.attach(&attach, streams).unwrap();
    pair.drive();
    assert_eq!(pair.server_events(), [Event::Attach { channel, attach }]);
    (pair, channel)
}

/// The server goes on at `from`, sends `rest`, and seals `whole`. The client's verdict.
fn go_on(
    pair: &mut Pair,
    channel: ChannelId,
    from: u64,
    rest: &'static [u8],
    whole: &[u8],
) -> Verdict {
    let mut server = pair.server.channel(channel).unwrap();
    server.accept_attach(&samples::attached(from, 0, None));
    server.write(Stream::Stdout, 0, Bytes::from_static(rest)).unwrap();
    server.exit(&samples::exited(0));
    server.seal(&samples::seal(&samples::sealer_of(whole), &Sealer::new()));
    pair.drive();
    let events = pair.client_events();
    let offset = events.iter().find_map(|event| match event {
        Event::Data { offset, bytes, .. } if bytes == rest => Some(*offset),
        _ => None,
    });
    assert_eq!(offset, Some(from));
    let Some(Event::Seal { verdict, .. }) = events.last() else { panic!("{events:?}") };
    *verdict
}

/// W-6.7, W-7.4: a client that kept its hash verifies the whole.
#[test]
fn fault_31_a_resume_goes_on_exactly_where_it_was_left() {
    let (mut pair, channel) = attaching(b"hello ", true);
    assert_eq!(go_on(&mut pair, channel, 6, b"world", b"hello world"), Verdict::Whole);
}

/// W-7.4: one that comes later can only count.
#[test]
fn fault_31_a_late_client_verifies_the_suffix() {
    let (mut pair, channel) = attaching(b"hello ", false);
    assert_eq!(go_on(&mut pair, channel, 6, b"world", b"hello world"), Verdict::Suffix);
}

/// W-6.7: what was trimmed is a gap with a name, and the whole can't be verified any more.
#[test]
fn fault_31_what_is_not_there_any_more_is_a_named_gap() {
    let (mut pair, channel) = attaching(b"he", true);
    assert_eq!(go_on(&mut pair, channel, 6, b"world", b"hello world"), Verdict::Suffix);
}

/// W-7.4: with other bytes before the break, counts agree and hashes do not.
#[test]
fn fault_87_a_resumed_stream_with_other_bytes_is_a_mismatch() {
    let (mut pair, channel) = attaching(b"HELLO ", true);
    let verdict = go_on(&mut pair, channel, 6, b"world", b"hello world");
    assert_eq!(verdict, Verdict::Mismatch(Stream::Stdout));
}

/// W-6.7: beyond the end is an error, and another user's job is not there: both are refusals.
#[test]
fn fault_31_beyond_the_end_and_another_users_job_are_refused() {
    for reason in [RefusalReason::BeyondEnd, RefusalReason::NoSuchJob] {
        let (mut pair, channel) = attaching(b"hello ", true);
        let refused = samples::refused(reason);
        pair.server.channel(channel).unwrap().refuse(&refused);
        pair.drive();
        assert_eq!(pair.client_events(), [Event::Refused { channel, refused }]);
        assert_eq!(pair.client.channels_open() + pair.server.channels_open(), 0);
    }
}

/// W-6.7: credit that came with the ATTACH counts from where the stream goes on, early or late.
#[test]
fn credit_moves_with_the_offset() {
    for answer_first in [false, true] {
        let mut pair = Pair::new();
        let streams = wanted((1_000, None), 500);
        let channel = pair.client.attach(&samples::attach("job", 1_000, 500), streams).unwrap();
        if answer_first {
            // Only the ATTACH has arrived, the credit behind it is under way.
            pair.transmit(afar_proto::Role::Client, 1);
            pair.deliver(afar_proto::Role::Server, usize::MAX);
        } else {
            pair.drive();
        }
        let mut server = pair.server.channel(channel).unwrap();
        server.accept_attach(&samples::attached(1_200, 500, None));
        assert_eq!(server.writable(Stream::Stdout) == 0, answer_first);
        pair.drive();
        pair.client_events();
        let mut sent = 0;
        loop {
            let mut server = pair.server.channel(channel).unwrap();
            let writable = server.writable(Stream::Stdout);
            if writable == 0 {
                break;
            }
            server.write(Stream::Stdout, 0, vec![0; writable].into()).unwrap();
            sent += writable as u64;
            pair.drive();
        }
        assert_eq!(sent, u64::from(afar_proto::limits::WINDOW_BYTES_INITIAL));
        let events = pair.client_events();
        assert!(events.iter().all(|event| matches!(event, Event::Data { .. })));
    }
}

/// W-6.7: stdin goes on at the offset that the server wants next.
#[test]
fn stdin_goes_on_where_the_server_wants_it() {
    let (mut pair, channel) = attaching(b"", true);
    let mut server = pair.server.channel(channel).unwrap();
    server.accept_attach(&samples::attached(0, 0, Some(70)));
    pair.drive();
    let mut client = pair.client.channel(channel).unwrap();
    client.write(Stream::Stdin, 0, Bytes::from_static(b"on")).unwrap();
    client.finish(Stream::Stdin);
    pair.drive();
    let events = pair.server_events();
    assert!(
        matches!(&events[..], [Event::Data { offset: 70, bytes, .. }, Event::End { .. }]
            if bytes == &b"on"[..]),
        "{events:?}"
    );
}

/// W-6.7: an answer that goes backwards, or leaves a stream out, is none.
#[test]
fn fault_86_an_attached_that_does_not_fit_ends_the_connection() {
    let answers = [
        samples::attached(4, 7, None),
        samples::attached(5, 0, None),
        afar_proto::message::Attached { streams: BTreeMap::new(), ..samples::attached(5, 7, None) },
    ];
    for attached in answers {
        let mut lone = Lone::new(afar_proto::Role::Client);
        let streams = wanted((5, None), 7);
        lone.connection.attach(&samples::attach("job", 5, 7), streams).unwrap();
        lone.sent();
        lone.input(&frame(Kind::Attached, 0, 1, &json::to_vec(&attached)));
        assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }));
    }
    for kind in [Kind::Opened, Kind::Exit] {
        let mut lone = Lone::new(afar_proto::Role::Client);
        lone.connection.attach(&samples::attach("job", 5, 7), BTreeMap::new()).unwrap();
        lone.input(&frame(kind, 0, 1, &json::to_vec(&samples::opened("job"))));
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnexpectedFrame(kind));
    }
}

/// W-6.7: an offset near the end of all numbers overflows nothing.
#[test]
fn fault_86_absurd_offsets_are_borne() {
    let most = 1 << 53;
    let mut lone = Lone::new(afar_proto::Role::Client);
    let streams = wanted((5, None), 0);
    lone.connection.attach(&samples::attach("job", 5, 0), streams).unwrap();
    let attached = samples::attached(most, most, Some(most));
    lone.input(&frame(Kind::Attached, 0, 1, &json::to_vec(&attached)));
    lone.input(&data(1, 1, most, b"x"));
    let events = lone.events();
    assert!(matches!(events[..], [Event::Attached { .. }, Event::Data { .. }]), "{events:?}");
}

/// W-6.6, W-6.7: what came on a connection that was cut goes on on the next one: its offset, its
/// hash, and what the application has still to consume of it.
#[test]
fn fault_65_what_came_on_a_lost_connection_is_where_the_next_one_goes_on() {
    let small = || Config { window_bytes: 8, ..Config::default() };
    let mut pair = Pair::with(small(), Config::default());
    let channel = pair.open(&samples::spec("job"));
    let mut server = pair.server.channel(channel).unwrap();
    server.accept(&samples::opened("job"));
    server.write(Stream::Stdout, 0, Bytes::from_static(b"hello ")).unwrap();
    pair.drive();
    assert!(pair.client.resumption(channel).is_none(), "the connection has not ended");
    pair.client.channel(channel).unwrap().consume(Stream::Stdout, 1);
    pair.client.handle_eof(pair.now);
    let streams = pair.client.resumption(channel).unwrap();
    assert!(pair.client.resumption(channel).is_none(), "it is given once");
    let stdout = &streams[&Stream::Stdout];
    assert_eq!((stdout.offset, stdout.unconsumed), (6, 5));
    assert_eq!(streams[&Stream::Stderr].offset, 0);

    let mut pair = Pair::with(small(), Config::default());
    let channel = pair.client.attach(&samples::attach("job", 6, 0), streams).unwrap();
    pair.drive();
    let mut server = pair.server.channel(channel).unwrap();
    server.accept_attach(&samples::attached(6, 0, None));
    // What nobody has consumed still takes its room.
    assert_eq!(server.writable(Stream::Stdout), 3);
    assert_eq!(server.writable(Stream::Stderr), 8);
    pair.drive();
    // It makes room when it is consumed, and is not acknowledged again.
    pair.client.channel(channel).unwrap().consume(Stream::Stdout, 5);
    pair.drive();
    let acks = |events: Vec<Event>| {
        let acked = |event| match event {
            Event::Acked { offset, .. } => Some(offset),
            Event::Failed { message, .. } => panic!("{message}"),
            _ => None,
        };
        events.into_iter().filter_map(acked).collect::<Vec<u64>>()
    };
    assert_eq!(acks(pair.server_events()), [] as [u64; 0]);
    let mut server = pair.server.channel(channel).unwrap();
    assert_eq!(server.writable(Stream::Stdout), 8);
    server.write(Stream::Stdout, 0, Bytes::from_static(b"world")).unwrap();
    pair.drive();
    pair.client.channel(channel).unwrap().consume(Stream::Stdout, 5);
    pair.drive();
    assert_eq!(acks(pair.server_events()), [11]);
    let mut server = pair.server.channel(channel).unwrap();
    server.exit(&samples::exited(0));
    server.seal(&samples::seal(&samples::sealer_of(b"hello world"), &Sealer::new()));
    pair.drive();
    let events = pair.client_events();
    let Some(Event::Seal { verdict, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(*verdict, Verdict::Whole);
}

/// W-6.5: a window that is full of what was not consumed is no credit, and not even none is granted.
#[test]
fn a_full_window_grants_nothing_on_the_next_connection() {
    let mut pair = Pair::with(Config { window_bytes: 8, ..Config::default() }, Config::default());
    let full = ResumeStream { unconsumed: 8, ..ResumeStream::at(9) };
    let streams = [(Stream::Stdout, full), (Stream::Stderr, ResumeStream::at(0))].into();
    let channel = pair.client.attach(&samples::attach("job", 9, 0), streams).unwrap();
    pair.drive();
    let mut server = pair.server.channel(channel).unwrap();
    server.accept_attach(&samples::attached(9, 0, None));
    assert_eq!(server.writable(Stream::Stdout), 0);
    pair.drive();
    assert!(!pair.client.is_closed() && !pair.server.is_closed());
}
