//! The limits that no other theme holds, each on both of its sides.

use afar_proto::connection::Stream;
use afar_proto::frame::{FrameReader, Kind, Phase};
use afar_proto::limits::{
    CONTROL_PAYLOAD_BYTES_MAX, CONTROL_QUEUE_BYTES_MAX, DATA_BYTES_MAX, DATA_BYTES_SENT_MAX,
    DATA_PREFIX_BYTES, FRAME_HEADER_BYTES, GRANT_BYTES_MAX,
};
use afar_proto::{Event, Misbehaviour};

use crate::rig::lone::{Lone, data, frame, header, window};
use crate::rig::pair::Pair;
use crate::rig::samples;

/// W-2.1: eleven bytes are no header, twelve are.
#[test]
fn a_header_is_twelve_bytes() {
    let bytes = frame(Kind::Close, 0, 1, b"");
    assert_eq!(bytes.len(), FRAME_HEADER_BYTES);
    let mut reader = FrameReader::new(Phase::Jobs);
    reader.push(&bytes[..11]);
    assert_eq!(reader.next_frame(), Ok(None));
    reader.push(&bytes[11..]);
    assert!(matches!(reader.next_frame(), Ok(Some(_))));
}

/// W-6.2: the prefix of a DATA frame is offset and clock, and may be all of it.
#[test]
fn a_data_frame_has_a_prefix() {
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&frame(Kind::Data, 1, 1, &[0; DATA_PREFIX_BYTES]));
    lone.assert_open();
    lone.input(&frame(Kind::Data, 1, 1, &[0; DATA_PREFIX_BYTES - 1]));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }));
}

/// W-9.3: what may be sent in one frame is taken, although we send less.
#[test]
fn the_largest_data_frame_is_taken() {
    let (mut lone, _) = Lone::client_with_job();
    lone.input(&data(1, 1, 0, &vec![7; DATA_BYTES_MAX]));
    let events = lone.events();
    assert!(
        matches!(&events[..], [Event::Data { bytes, .. }] if bytes.len() == DATA_BYTES_MAX),
        "one event, whole"
    );
    lone.input(&data(1, 1, DATA_BYTES_MAX as u64, &vec![7; DATA_BYTES_MAX + 1]));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::FrameTooLong { .. }));
}

/// W-9.3: what this implementation puts into one frame, and a byte more.
#[test]
fn a_long_write_leaves_in_pieces() {
    for (length, frames) in [(DATA_BYTES_SENT_MAX, 1), (DATA_BYTES_SENT_MAX + 1, 2)] {
        let mut pair = Pair::new();
        let channel = pair.open(&samples::spec("job"));
        let mut server = pair.server.channel(channel).unwrap();
        server.write(Stream::Stdout, 0, vec![7; length].into()).unwrap();
        pair.drive();
        let events = pair.client_events();
        assert_eq!(events.len(), frames);
        assert!(events.iter().all(|event| matches!(event, Event::Data { .. })));
    }
}

/// W-9.2, W-9.20: control frames and the grant have their own limits.
#[test]
fn control_frames_and_the_grant_have_limits() {
    let of = |phase, kind: Kind, length| {
        let mut reader = FrameReader::new(phase);
        reader.push(&header(kind.to_byte(), 0, 0, length));
        reader.next_frame().is_ok()
    };
    assert!(of(Phase::Jobs, Kind::Signal, CONTROL_PAYLOAD_BYTES_MAX));
    assert!(!of(Phase::Jobs, Kind::Signal, CONTROL_PAYLOAD_BYTES_MAX + 1));
    assert!(of(Phase::Grant, Kind::Grant, GRANT_BYTES_MAX));
    assert!(!of(Phase::Grant, Kind::Grant, GRANT_BYTES_MAX + 1));
    assert!(of(Phase::Grant, Kind::HandOff, GRANT_BYTES_MAX));
    assert!(!of(Phase::Grant, Kind::HandOff, GRANT_BYTES_MAX + 1));
}

/// W-9.8: up to the limit a peer may leave replies unread; then the next frame is one too many.
#[test]
fn control_bytes_may_wait_up_to_a_limit() {
    let mut lone = Lone::server_with_job();
    let (reset, each) = ("x".repeat(900), 12 + 900 + r#"{"message":""}"#.len());
    let mut channel = 3;
    let mut queued = 0;
    while queued + each <= CONTROL_QUEUE_BYTES_MAX {
        lone.input(&crate::rig::lone::open(channel, &samples::spec("job")));
        let events = lone.events();
        let [Event::Open { channel: id, .. }] = events[..] else { panic!("{events:?}") };
        lone.channel(id).reset(&reset);
        queued += each;
        channel += 2;
    }
    lone.input(&window(1, 1, 1));
    lone.assert_open();
    lone.input(&crate::rig::lone::open(channel, &samples::spec("job")));
    let events = lone.events();
    let [Event::Open { channel: id, .. }] = events[..] else { panic!("{events:?}") };
    lone.channel(id).reset(&reset);
    lone.input(&window(1, 1, 1));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::RepliesUnread);
}
