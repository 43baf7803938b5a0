//! Headers: lengths, kinds, flags, and what is not our protocol at all.

use afar_proto::frame::{FrameReader, Kind, Phase};
use afar_proto::limits::{
    CONTROL_PAYLOAD_BYTES_MAX, DATA_BYTES_MAX, DATA_PREFIX_BYTES, GRANT_BYTES_MAX,
    PREAUTH_PAYLOAD_BYTES_MAX,
};
use afar_proto::{Misbehaviour, Role};

use crate::rig::lone::{Lone, frame, header, raw};

fn read(phase: Phase, bytes: &[u8]) -> Result<Option<Kind>, Misbehaviour> {
    let mut reader = FrameReader::new(phase);
    reader.push(bytes);
    reader.next_frame().map(|frame| frame.map(|frame| frame.kind))
}

/// W-1.1, W-2.1, W-2.4: the header is twelve bytes, and every kind has its number.
#[test]
fn every_kind_is_read_as_what_it_is() {
    for kind in Kind::ALL {
        assert_eq!(read(Phase::Jobs, &frame(kind, 0, 0, b"")), Ok(Some(kind)));
        assert_eq!(Kind::from_byte(kind.to_byte()), Some(kind));
    }
}

/// W-2.3: the limit of each phase and kind, and one byte over it.
#[test]
fn fault_02_a_length_over_the_limit_is_refused_by_its_header_alone() {
    let data_max = u32::try_from(DATA_PREFIX_BYTES + DATA_BYTES_MAX).unwrap();
    let limits = [
        (Phase::Preauth, Kind::Hello, PREAUTH_PAYLOAD_BYTES_MAX),
        (Phase::Preauth, Kind::Data, PREAUTH_PAYLOAD_BYTES_MAX),
        (Phase::Grant, Kind::Grant, GRANT_BYTES_MAX),
        (Phase::Jobs, Kind::Open, CONTROL_PAYLOAD_BYTES_MAX),
        (Phase::Jobs, Kind::Ping, CONTROL_PAYLOAD_BYTES_MAX),
        (Phase::Jobs, Kind::Data, data_max),
    ];
    for (phase, kind, limit) in limits {
        assert_eq!(read(phase, &header(kind.to_byte(), 0, 1, limit)), Ok(None));
        let length = limit + 1;
        let error = Misbehaviour::FrameTooLong { kind: kind.to_byte(), length, limit };
        assert_eq!(read(phase, &header(kind.to_byte(), 0, 1, length)), Err(error));
    }
}

#[test]
fn fault_02_a_connection_is_closed_over_a_length_before_any_of_it_came() {
    let mut lone = Lone::server_with_job();
    lone.input(&header(Kind::Data.to_byte(), 0, 1, 1 << 20));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::FrameTooLong { .. }));
}

#[test]
fn fault_03_the_largest_lengths_are_no_reason_to_allocate() {
    for length in [u32::MAX, 1 << 31, (1 << 31) - 1] {
        for phase in [Phase::Preauth, Phase::Grant, Phase::Jobs] {
            for kind in [Kind::Data.to_byte(), Kind::Open.to_byte(), 0xff] {
                assert!(read(phase, &header(kind, 0, 1, length)).is_err());
            }
        }
    }
}

#[test]
fn fault_08_http_and_ssh_and_tls_are_no_frames() {
    let strangers: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
    ];
    for bytes in strangers {
        for phase in [Phase::Preauth, Phase::Grant, Phase::Jobs] {
            let mut padded = bytes.to_vec();
            padded.resize(12.max(bytes.len()), b' ');
            assert!(read(phase, &padded).is_err(), "{}", bytes.escape_ascii());
        }
    }
}

/// W-2.5: what may be ignored is skipped, once there are jobs; anything else unknown is an end.
#[test]
fn fault_09_unknown_kinds_end_the_connection_unless_they_may_be_ignored() {
    for kind in (0..=u8::MAX).filter(|kind| Kind::from_byte(*kind).is_none()) {
        let bytes =
            [raw(kind, 0xff, 9, b"whatever"), frame(Kind::Pong, 0, 0, b"12345678")].concat();
        let in_jobs =
            if kind < 0xc0 { Err(Misbehaviour::UnknownKind(kind)) } else { Ok(Some(Kind::Pong)) };
        assert_eq!(read(Phase::Jobs, &bytes), in_jobs);
        assert_eq!(read(Phase::Preauth, &bytes), Err(Misbehaviour::UnknownKind(kind)));
    }
}

/// W-2.5: an ignorable frame is skipped as it comes, never gathered, and has a limit as well.
#[test]
fn an_ignored_frame_is_not_kept() {
    let mut reader = FrameReader::new(Phase::Jobs);
    reader.push(&header(0xc0, 0, 0, CONTROL_PAYLOAD_BYTES_MAX));
    for _ in 0..CONTROL_PAYLOAD_BYTES_MAX / 1024 {
        reader.push(&[0; 1024]);
        assert_eq!(reader.next_frame(), Ok(None));
        assert_eq!(reader.buffered(), 0);
    }
    reader.push(&frame(Kind::Pong, 0, 0, b"12345678"));
    assert!(matches!(reader.next_frame(), Ok(Some(_))));

    let limit = CONTROL_PAYLOAD_BYTES_MAX;
    let error = Misbehaviour::FrameTooLong { kind: 0xc0, length: limit + 1, limit };
    assert_eq!(read(Phase::Jobs, &header(0xc0, 0, 0, limit + 1)), Err(error));
}

/// W-2.2: flags that a kind does not have, and the two bytes that are always zero.
#[test]
fn reserved_bits_must_be_zero() {
    for kind in Kind::ALL {
        let allowed = match kind {
            Kind::Data | Kind::End | Kind::Window | Kind::Ack | Kind::Stop | Kind::Gap => 0x03,
            Kind::Open => 0x01,
            _ => 0,
        };
        for flags in 0..=u8::MAX {
            let expected = if flags & !allowed == 0 {
                Ok(Some(kind))
            } else {
                Err(Misbehaviour::ReservedBits(kind.to_byte()))
            };
            assert_eq!(read(Phase::Jobs, &frame(kind, flags, 1, b"")), expected);
        }
        for at in [2, 3] {
            let mut bytes = frame(kind, 0, 1, b"");
            bytes[at] = 1;
            let error = Misbehaviour::ReservedBits(kind.to_byte());
            assert_eq!(read(Phase::Jobs, &bytes), Err(error));
        }
    }
}

/// W-2.6: the frames of the connection name no channel, and those of a channel do.
#[test]
fn a_frame_is_of_the_connection_or_of_a_channel() {
    for kind in [Kind::Ping, Kind::Pong, Kind::Goodbye, Kind::JobHello] {
        let mut lone = Lone::server_with_job();
        lone.input(&frame(kind, 0, 1, b"12345678"));
        assert!(matches!(lone.assert_misbehaved(), Misbehaviour::Malformed { .. }));
    }
    for kind in [Kind::Window, Kind::Close, Kind::Reset, Kind::Signal, Kind::Data] {
        let mut lone = Lone::server_with_job();
        lone.input(&frame(kind, 0, 0, b"1234"));
        assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnknownChannel(0));
    }
}

/// W-2.6: payloads of a fixed form have exactly that form.
#[test]
fn a_payload_of_the_wrong_size_is_malformed() {
    let wrong: [(Kind, &[u8]); 9] = [
        (Kind::Ping, b"1234567"),
        (Kind::Pong, b"123456789"),
        (Kind::Window, b"123"),
        (Kind::Window, b"12345"),
        (Kind::Ack, b"1234567"),
        (Kind::Data, b"123456789012345"),
        (Kind::End, b"1234567"),
        (Kind::Stop, b"1"),
        (Kind::Close, b"1"),
    ];
    for (kind, payload) in wrong {
        let of_connection = matches!(kind, Kind::Ping | Kind::Pong);
        let stream = u8::from(matches!(kind, Kind::Window | Kind::Ack | Kind::Stop));
        let mut lone = Lone::server_with_job();
        lone.input(&frame(kind, stream, u32::from(!of_connection), payload));
        let misbehaviour = lone.assert_misbehaved();
        let expected =
            matches!(misbehaviour, Misbehaviour::Malformed { kind: of, .. } if of == kind);
        assert!(expected, "{kind:?}: {misbehaviour:?}");
    }
}

/// W-6.1: a stream has a direction, and there are three of them.
#[test]
fn fault_11_a_stream_of_the_wrong_direction_ends_the_connection() {
    for stream in [1, 2, 3] {
        for kind in [Kind::Data, Kind::End] {
            let mut lone = Lone::server_with_job();
            lone.input(&frame(kind, stream, 1, &[0; 16]));
            lone.assert_misbehaved();
        }
    }
    for stream in [0, 3] {
        for kind in [Kind::Window, Kind::Ack, Kind::Stop] {
            let mut lone = Lone::server_with_job();
            lone.input(&frame(kind, stream, 1, &[0; 4]));
            lone.assert_misbehaved();
        }
    }
    for (kind, stream) in [(Kind::Data, 0), (Kind::End, 0), (Kind::Window, 1), (Kind::Ack, 2)] {
        let (mut lone, _) = Lone::client_with_job();
        lone.input(&frame(kind, stream, 1, &[0; 16]));
        lone.assert_misbehaved();
    }
}

/// W-1.2: a count that a peer states is bounded by the bytes that are there.
#[test]
fn fault_26_a_stated_count_allocates_nothing() {
    // The only count in a message is AUTH's length of its signed part.
    let mut payload = u32::MAX.to_be_bytes().to_vec();
    payload.extend_from_slice(b"{}");
    let mut lone = Lone::new(Role::Server);
    lone.input(&frame(Kind::Auth, 0, 0, &payload));
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnexpectedFrame(Kind::Auth));

    let mut responder = afar_proto::auth::Responder::new("s", afar_proto::Instant::ZERO);
    let bytes = [crate::rig::auth_pair::hello_frame(), frame(Kind::Auth, 0, 0, &payload)].concat();
    responder.handle_input(afar_proto::Instant::ZERO, &bytes);
    let event = responder.poll_event();
    assert!(matches!(event, Some(afar_proto::auth::ResponderEvent::Failed(_))), "{event:?}");
}

/// W-4.8: the grant goes first on the way to a supervisor, and part 2 begins right behind it.
#[test]
fn what_is_behind_the_grant_is_for_the_connection() {
    let hello = frame(Kind::JobHello, 0, 0, br#"{"version":1}"#);
    let bytes = [frame(Kind::Grant, 0, 0, b"{}"), hello].concat();
    for split in 0..=bytes.len() {
        let (before, after) = bytes.split_at(split);
        let mut reader = FrameReader::new(Phase::Grant);
        let mut rest = Vec::new();
        reader.push(before);
        let mut grant = reader.next_frame().unwrap();
        match grant {
            Some(_) => rest.extend_from_slice(after),
            None => {
                reader.push(after);
                grant = reader.next_frame().unwrap();
            }
        }
        assert_eq!(grant.map(|grant| grant.kind), Some(Kind::Grant));
        let mut lone = Lone::silent(Role::Server, afar_proto::Config::default());
        lone.input(&reader.into_rest());
        lone.input(&rest);
        assert!(matches!(lone.events()[..], [afar_proto::Event::Ready(_)]), "split at {split}");
    }
}
