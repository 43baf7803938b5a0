//! Authentication in order: hellos, queries, what is signed, and what comes behind it.

use std::time::Duration;

use afar_proto::auth::{AuthError, Initiator, InitiatorEvent, Responder, ResponderEvent};
use afar_proto::frame::{Frame, Kind};
use afar_proto::limits::{
    AUTH_DEADLINE, PIPELINED_BYTES_MAX, PREAUTH_PAYLOAD_BYTES_MAX, QUERIES_MAX, QUERY_KEYS_MAX,
};
use afar_proto::message::{AuthOk, AuthQuery, AuthRequest, Delegate, Transcript};
use afar_proto::{Instant, Misbehaviour, json};

use crate::rig::auth_pair::{AuthPair, auth_frame, hello_frame, request};
use crate::rig::lone::{frame, open};
use crate::rig::samples;

fn responder_after(bytes: &[u8]) -> (Responder, Vec<ResponderEvent>) {
    let mut responder = Responder::new("server/1", Instant::ZERO);
    responder.handle_input(Instant::ZERO, bytes);
    let events = std::iter::from_fn(|| responder.poll_event()).collect();
    (responder, events)
}

#[track_caller]
fn assert_fails(bytes: &[u8]) -> Misbehaviour {
    let (mut responder, events) = responder_after(bytes);
    let [ResponderEvent::Failed(AuthError::PeerMisbehaved(misbehaviour))] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(!responder.wants_input());
    assert_eq!(responder.poll_timeout(), None);
    let sent = responder.take_transmit();
    let goodbye = Kind::Goodbye.to_byte();
    assert!(sent.windows(4).any(|header| header == [goodbye, 0, 0, 0]), "it says why");
    misbehaviour.clone()
}

/// W-3.1, W-4.1, W-4.2, W-4.3, W-4.6: the hellos cross, AUTH is answered, jobs follow at once.
#[test]
fn an_accepted_client_goes_on_with_what_it_pipelined() {
    let mut pair = AuthPair::greeted();
    let signed = Initiator::request_bytes(&request("alice"));
    pair.initiator.authenticate(&signed, b"signature");
    let flight = pair.initiator.take_transmit();
    let first_job = open(1, &samples::spec("job"));
    pair.up.send(pair.now, &[flight, first_job.clone()].concat());
    pair.drive();
    let Some(ResponderEvent::Attempt(attempt)) = pair.responder_events.pop_front() else {
        panic!("no attempt")
    };
    assert_eq!(attempt.signed_request, signed);
    assert_eq!(attempt.signature, &b"signature"[..]);
    assert_eq!(attempt.request, request("alice"));
    assert_eq!(pair.initiator.hellos(), pair.responder.hellos());

    let ok = AuthOk { delegate_lifetime_s: Some(60) };
    pair.responder.accept(&ok);
    pair.drive();
    assert_eq!(pair.initiator_events.pop_front(), Some(InitiatorEvent::Accepted(ok)));
    assert_eq!(pair.responder.into_rest(), first_job);
    assert_eq!(pair.initiator.into_rest(), &b""[..]);
}

/// W-4.3: nothing of the client need leave before its AUTH: hello and AUTH are one flight.
#[test]
fn hello_and_auth_leave_in_one_flight() {
    let mut responder = Responder::new("server/1", Instant::ZERO);
    let mut initiator = Initiator::new("client/1", Instant::ZERO);
    initiator.handle_input(&responder.take_transmit());
    initiator.authenticate(b"{}", b"");
    let flight = initiator.take_transmit();
    responder.handle_input(Instant::ZERO, &flight);
    let kinds = [Kind::Hello, Kind::Auth].map(Kind::to_byte);
    assert_eq!(flight[0], kinds[0]);
    assert!(flight.windows(4).any(|header| header == [kinds[1], 0, 0, 0]));
}

/// W-4.5: the bytes that are signed, exactly.
#[test]
fn the_transcript_is_a_label_and_five_parts_behind_their_lengths() {
    let transcript = Transcript {
        exporter: b"E",
        client_hello: b"CH",
        server_hello: b"",
        host_key: b"HK1",
        request: b"R",
    };
    let expected: &[u8] = b"afar-auth-1\0\0\0\0\x01E\0\0\0\x02CH\0\0\0\0\0\0\0\x03HK1\0\0\0\x01R";
    assert_eq!(transcript.to_bytes(), expected);
}

/// W-4.5: whatever differs, a byte of any part or its border, the signed bytes differ. So a
/// signature made for one connection is worth nothing on another.
#[test]
fn fault_74_the_transcript_of_another_connection_is_another() {
    let transcript = Transcript {
        exporter: &[1; 32],
        client_hello: b"{\"version\":1}",
        server_hello: b"{\"version\":1,\"software\":\"s\"}",
        host_key: b"host key",
        request: b"{\"user\":\"alice\"}",
    };
    let others = [
        Transcript { exporter: &[2; 32], ..transcript },
        Transcript { client_hello: b"{\"version\":2}", ..transcript },
        Transcript { server_hello: b"{\"version\":1}", ..transcript },
        Transcript { host_key: b"other key", ..transcript },
        Transcript { request: b"{\"user\":\"root\"}", ..transcript },
        Transcript { host_key: b"host ke", request: b"y{\"user\":\"alice\"}", ..transcript },
    ];
    for other in others {
        assert_ne!(other.to_bytes(), transcript.to_bytes());
    }
}

/// W-4.5: early data would have no exporter of its own; and nothing happens before AUTH anyway.
#[test]
fn fault_30_what_is_replayed_before_auth_causes_nothing() {
    // A whole flight that another connection had recorded, the job's OPEN included.
    let signed = Initiator::request_bytes(&request("alice"));
    let recorded =
        [hello_frame(), auth_frame(&signed, b"old"), open(1, &samples::spec("job"))].concat();
    let (mut responder, events) = responder_after(&recorded);
    let [ResponderEvent::Attempt(_)] = &events[..] else { panic!("{events:?}") };
    // The verifier finds the signature to be of another exporter's transcript.
    responder.refuse(Instant::ZERO);
    assert_eq!(responder.poll_event(), None);
}

/// W-4.5: the signed part is handed out as it was sent, not as it would be written again.
#[test]
fn fault_27_a_signed_part_is_verified_over_its_own_bytes() {
    let canonical = json::to_vec(&request("alice"));
    let spaced = String::from_utf8(canonical.clone()).unwrap().replace(':', ": ");
    let (_, events) =
        responder_after(&[hello_frame(), auth_frame(spaced.as_bytes(), b"s")].concat());
    let [ResponderEvent::Attempt(attempt)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(attempt.request, request("alice"), "it says the same");
    assert_eq!(attempt.signed_request, spaced.as_bytes(), "and is not the same");
    assert_ne!(attempt.signed_request, canonical);

    // The hellos too: unknown fields are ignored and yet signed.
    let hello = br#"{"version":1,"software":"x","later":[1,2]}"#;
    let (responder, events) = responder_after(&frame(Kind::Hello, 0, 0, hello));
    assert_eq!(events, []);
    assert_eq!(responder.hellos().0, hello);
}

/// W-9.13: one total deadline, that no byte moves.
#[test]
fn fault_05_06_07_a_slow_or_silent_client_meets_one_deadline() {
    let hello = hello_frame();
    // A header a byte at a time; nothing at all; half a hello and then silence.
    for (sent, every) in
        [(hello.len(), Duration::from_secs(5)), (0, AUTH_DEADLINE), (7, Duration::ZERO)]
    {
        let mut responder = Responder::new("server/1", Instant::ZERO);
        let deadline = Instant::ZERO.after(AUTH_DEADLINE);
        let mut now = Instant::ZERO;
        for byte in &hello[..sent] {
            now = now.after(every);
            if now >= deadline {
                break;
            }
            responder.handle_input(now, &[*byte]);
            responder.handle_timeout(now);
            assert_eq!(responder.poll_timeout(), Some(deadline));
            assert_eq!(responder.poll_event(), None);
        }
        responder.handle_timeout(Instant::from_micros(deadline.as_micros() - 1));
        assert_eq!(responder.poll_event(), None, "a microsecond before");
        responder.handle_timeout(deadline);
        let failed = Some(ResponderEvent::Failed(AuthError::TimedOut));
        assert_eq!(responder.poll_event(), failed);
        assert_eq!(responder.poll_timeout(), None);
    }
    let mut initiator = Initiator::new("client/1", Instant::ZERO);
    initiator.handle_timeout(Instant::ZERO.after(AUTH_DEADLINE));
    assert_eq!(initiator.poll_event(), Some(InitiatorEvent::Failed(AuthError::TimedOut)));
}

/// W-9.1: the largest frame, and a byte more.
#[test]
fn fault_02_before_authentication_frames_are_small() {
    let most = PREAUTH_PAYLOAD_BYTES_MAX as usize;
    let padded = |length: usize| {
        let start = br#"{"version":1,"software":""#;
        let filler = "x".repeat(length - start.len() - 2);
        [&start[..], filler.as_bytes(), b"\"}"].concat()
    };
    let (_, events) = responder_after(&frame(Kind::Hello, 0, 0, &padded(most)));
    assert_eq!(events, []);
    let misbehaviour = assert_fails(&frame(Kind::Hello, 0, 0, &padded(most + 1)));
    assert!(matches!(misbehaviour, Misbehaviour::FrameTooLong { .. }));
}

#[test]
fn fault_10_an_open_before_auth_ends_it_unparsed() {
    for kind in [Kind::Open, Kind::Attach, Kind::JobHello, Kind::Data, Kind::Grant] {
        let bytes = [hello_frame(), frame(kind, 0, 0, b"{{{{")].concat();
        assert_eq!(assert_fails(&bytes), Misbehaviour::UnexpectedFrame(kind));
        let bytes = [hello_frame(), frame(kind, 0, 1, b"{{{{")].concat();
        assert_eq!(assert_fails(&bytes), Misbehaviour::UnknownChannel(1));
    }
}

#[test]
fn fault_12_a_second_hello_ends_it() {
    let misbehaviour = assert_fails(&[hello_frame(), hello_frame()].concat());
    assert_eq!(misbehaviour, Misbehaviour::UnexpectedFrame(Kind::Hello));
    let mut pair = AuthPair::greeted();
    pair.initiator.handle_input(&hello_frame());
    let event = pair.initiator.poll_event();
    let error = AuthError::PeerMisbehaved(Misbehaviour::UnexpectedFrame(Kind::Hello));
    assert_eq!(event, Some(InitiatorEvent::Failed(error)));
}

/// A second AUTH is never verified: it is a job connection's business, which has no such frame.
#[test]
fn fault_12_a_second_auth_is_never_looked_at() {
    let signed = Initiator::request_bytes(&request("alice"));
    let second = auth_frame(&signed, b"second");
    let bytes = [hello_frame(), auth_frame(&signed, b"first"), second.clone()].concat();
    let (mut responder, events) = responder_after(&bytes);
    assert_eq!(events.len(), 1);
    responder.accept(&AuthOk { delegate_lifetime_s: None });
    assert_eq!(responder.poll_event(), None);
    let rest = responder.into_rest();
    assert_eq!(rest, second);

    let config = afar_proto::Config::default();
    let mut lone = crate::rig::lone::Lone::silent(afar_proto::Role::Server, config);
    lone.input(&rest);
    assert_eq!(lone.assert_misbehaved(), Misbehaviour::UnexpectedFrame(Kind::Auth));
}

/// W-4.4, W-9.12: as many keys and queries as there may be, and one more of each.
#[test]
fn queries_are_bounded() {
    let query = |keys: usize| {
        let query = AuthQuery::new("alice", vec![vec![1; 8]; keys]);
        Frame::control(Kind::AuthQuery, json::to_vec(&query)).to_bytes().to_vec()
    };
    let bytes = [hello_frame(), query(QUERY_KEYS_MAX)].concat();
    let (_, events) = responder_after(&bytes);
    assert!(matches!(&events[..], [ResponderEvent::Query(query)] if query.keys.len() == 64));
    let misbehaviour = assert_fails(&[hello_frame(), query(QUERY_KEYS_MAX + 1)].concat());
    assert!(matches!(misbehaviour, Misbehaviour::Malformed { .. }));

    let (mut responder, _) = responder_after(&hello_frame());
    for _ in 0..QUERIES_MAX {
        responder.handle_input(Instant::ZERO, &query(1));
        assert!(matches!(responder.poll_event(), Some(ResponderEvent::Query(_))));
        responder.answer_query(Instant::ZERO, Some(0));
    }
    responder.handle_input(Instant::ZERO, &query(1));
    assert!(matches!(responder.poll_event(), Some(ResponderEvent::Failed(_))));
}

/// W-9.12: a client asks within the limits, and knows how many keys it asked about.
#[test]
fn a_query_takes_as_many_keys_as_fit() {
    let rsa_4096 = vec![1; 535];
    for (keys, expected) in [
        (vec![vec![1; 51]; QUERY_KEYS_MAX + 9], QUERY_KEYS_MAX),
        (vec![rsa_4096; QUERY_KEYS_MAX], 45),
        (vec![vec![1; 30_000]], 0),
        (vec![], 0),
    ] {
        let mut pair = AuthPair::greeted();
        assert_eq!(pair.initiator.query("alice", keys), expected);
        pair.drive();
        let asked = match pair.responder_events.pop_front() {
            Some(ResponderEvent::Query(query)) => query.keys.len(),
            None => 0,
            other => panic!("{other:?}"),
        };
        assert_eq!(asked, expected);
    }
    let mut pair = AuthPair::greeted();
    for _ in 0..QUERIES_MAX {
        assert_eq!(pair.initiator.query("alice", [vec![1]]), 1);
        assert_eq!(pair.initiator.query("alice", [vec![1]]), 0, "one at a time");
        pair.drive();
        pair.responder.answer_query(pair.now, Some(0));
        pair.drive();
        assert_eq!(pair.initiator_events.pop_front(), Some(InitiatorEvent::QueryResult(Some(0))));
    }
    assert_eq!(pair.initiator.query("alice", [vec![1]]), 0);
}

/// W-4.4: an answer about a key that was not asked about is none.
#[test]
fn fault_86_a_query_result_out_of_range_ends_it() {
    for index in ["2", "4294967295", "4294967296", "-1"] {
        let mut pair = AuthPair::greeted();
        pair.initiator.query("alice", [vec![1], vec![2]]);
        let payload = format!(r#"{{"accepted":{index}}}"#);
        pair.initiator.handle_input(&frame(Kind::AuthQueryResult, 0, 0, payload.as_bytes()));
        let event = pair.initiator.poll_event();
        let expected = matches!(
            event,
            Some(InitiatorEvent::Failed(AuthError::PeerMisbehaved(
                Misbehaviour::Malformed { .. } | Misbehaviour::MalformedJson { .. }
            )))
        );
        assert!(expected, "{index}: {event:?}");
    }
}

/// W-9.16: while the listener verifies it wants no more than the limit, and keeps what it has.
#[test]
fn what_is_pipelined_is_bounded_and_kept() {
    let signed = Initiator::request_bytes(&request("alice"));
    let (mut responder, _) = responder_after(&[hello_frame(), auth_frame(&signed, b"s")].concat());
    assert!(responder.wants_input());
    responder.handle_input(Instant::ZERO, &vec![9; PIPELINED_BYTES_MAX - 1]);
    assert!(responder.wants_input());
    responder.handle_input(Instant::ZERO, &[9]);
    assert!(!responder.wants_input());
    responder.accept(&AuthOk { delegate_lifetime_s: None });
    assert_eq!(responder.into_rest().len(), PIPELINED_BYTES_MAX);
}

/// W-4.9: a delegated key stands in the signed part, so that nobody can add one.
#[test]
fn a_delegated_key_is_signed() {
    let delegate = Some(Delegate { public_key: vec![5; 51], lifetime_s: 3_600 });
    let signed = Initiator::request_bytes(&AuthRequest { delegate, ..request("alice") });
    let (_, events) = responder_after(&[hello_frame(), auth_frame(&signed, b"s")].concat());
    let [ResponderEvent::Attempt(attempt)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(attempt.request.delegate.as_ref().map(|delegate| delegate.lifetime_s), Some(3_600));
    let text = String::from_utf8(signed).unwrap();
    assert!(text.contains("delegate"), "{text}");
}

/// W-4.5: AUTH's parts have to be there, as long as they say.
#[test]
fn a_malformed_auth_ends_it() {
    let payloads: [&[u8]; 4] = [b"", b"\0\0\0", b"\0\0\0\x03{}", b"\0\0\0\x02[]"];
    for payload in payloads {
        let misbehaviour =
            assert_fails(&[hello_frame(), frame(Kind::Auth, 0, 0, payload)].concat());
        let expected = matches!(
            misbehaviour,
            Misbehaviour::Malformed { .. } | Misbehaviour::MalformedJson { .. }
        );
        assert!(expected, "{misbehaviour:?}");
    }
}

/// The same at every split, until an answer is needed (fault 32 before authentication).
#[test]
fn fault_32_any_split_of_a_login_gives_the_same_events() {
    let signed = Initiator::request_bytes(&request("alice"));
    let bytes = [hello_frame(), auth_frame(&signed, b"s"), open(1, &samples::spec("job"))].concat();
    let run = |segments: &mut dyn Iterator<Item = &[u8]>| {
        let mut responder = Responder::new("server/1", Instant::ZERO);
        segments.for_each(|segment| responder.handle_input(Instant::ZERO, segment));
        let events: Vec<_> = std::iter::from_fn(|| responder.poll_event()).collect();
        responder.accept(&AuthOk { delegate_lifetime_s: None });
        (events, responder.take_transmit(), responder.into_rest())
    };
    let whole = run(&mut [&bytes[..]].into_iter());
    assert_eq!(whole.0.len(), 1);
    for size in 1..bytes.len() {
        assert_eq!(run(&mut bytes.chunks(size)), whole, "segments of {size}");
    }
}
