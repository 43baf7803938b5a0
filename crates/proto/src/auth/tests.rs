//! What an answer owes, and what a signed part may hold.

use std::time::Duration;

use super::*;
use crate::Instant;
use crate::frame::{Frame, FrameReader, Kind, Phase};
use crate::json;
use crate::limits::{PREAUTH_PAYLOAD_BYTES_MAX, REFUSAL_DELAY};
use crate::message::{AuthRequest, Hello, KeyBytes};

fn hello_and_auth(signed: &[u8]) -> Vec<u8> {
    let hello =
        Hello { version: 1, software: "test".into(), features: Vec::new(), host_certificate: None };
    let length = u32::try_from(signed.len()).unwrap();
    let auth = [&length.to_be_bytes(), signed, b"signature"].concat();
    let frames = [
        Frame::control(Kind::Hello, json::to_vec(&hello)).to_bytes(),
        Frame::control(Kind::Auth, auth).to_bytes(),
    ];
    frames.concat()
}

fn request() -> AuthRequest {
    AuthRequest {
        user: "ann".into(),
        algorithm: "ssh-ed25519".into(),
        public_key: vec![1; 51],
        delegate: None,
    }
}

/// A client may end its side as soon as it has said everything.
#[test]
fn a_refusal_is_delivered_to_a_client_that_has_ended_its_side() {
    let mut responder = Responder::new("test", Instant::ZERO);
    let mut now = Instant::ZERO;
    responder.handle_input(now, &hello_and_auth(&json::to_vec(&request())));
    assert!(matches!(responder.poll_event(), Some(ResponderEvent::Attempt(_))));
    responder.refuse(now);
    responder.handle_eof();
    assert_eq!(responder.poll_event(), None);
    assert!(!responder.wants_input(), "an end that is told again at once would spin");
    responder.take_transmit();
    now = now.after(REFUSAL_DELAY);
    responder.handle_timeout(now);
    let mut reader = FrameReader::new(Phase::Preauth);
    reader.push(&responder.take_transmit());
    assert_eq!(reader.next_frame().unwrap().unwrap().kind, Kind::AuthRefused);
    assert!(responder.is_refused() && responder.wants_input());
    responder.handle_eof();
    assert_eq!(responder.poll_event(), Some(ResponderEvent::RefusalDelivered));
}

/// The hello that leaves and the one that is signed are the same, with the certificate in it (W-4.14).
#[test]
fn a_host_certificate_is_in_the_hello_that_leaves_and_in_the_transcript() {
    let first_hello = |responder: &mut Responder| {
        let mut reader = FrameReader::new(Phase::Preauth);
        reader.push(&responder.take_transmit());
        reader.next_frame().unwrap().unwrap()
    };
    let mut responder = Responder::new("test", Instant::ZERO);
    responder.present_host_certificate("test", b"a certificate");
    let frame = first_hello(&mut responder);
    assert_eq!(responder.hellos().1, &frame.payload[..]);
    let hello: Hello = json::from_slice(&frame.payload).unwrap();
    assert_eq!(hello.host_certificate, Some(KeyBytes(b"a certificate".to_vec())));
    // One that has left is not changed any more, and none is made that is too large to be sent.
    responder.present_host_certificate("test", b"another");
    assert_eq!(responder.take_transmit(), b"");
    assert_eq!(responder.hellos().1, &frame.payload[..]);
    let mut responder = Responder::new("test", Instant::ZERO);
    responder.present_host_certificate("test", &[7; PREAUTH_PAYLOAD_BYTES_MAX as usize]);
    let hello: Hello = json::from_slice(&first_hello(&mut responder).payload).unwrap();
    assert_eq!(hello.host_certificate, None);
    // A listener without one says nothing of certificates, as before there were any.
    let mut responder = Responder::new("test", Instant::ZERO);
    let text = String::from_utf8(first_hello(&mut responder).payload.to_vec()).unwrap();
    assert!(!text.contains("certificate"), "{text}");
}

/// What a user signs may narrow what is granted; who does not understand it must not grant more.
#[test]
fn a_signed_part_with_an_unknown_field_is_refused() {
    let known = String::from_utf8(json::to_vec(&request())).unwrap();
    let more = known.replacen('{', "{\"only_for\":\"git\",", 1);
    let delegate = "\"delegate\":{\"public_key\":\"AA==\",\"lifetime_s\":1,\"verbs\":[\"logs\"]}}";
    let in_delegate = known.replacen('}', &format!(",{delegate}"), 1);
    for signed in [more, in_delegate] {
        let mut responder = Responder::new("test", Instant::ZERO);
        responder.handle_input(Instant::ZERO, &hello_and_auth(signed.as_bytes()));
        let event = responder.poll_event();
        assert!(matches!(event, Some(ResponderEvent::Failed(_))), "{signed}: {event:?}");
        // It is told so, and at once: nothing about users or keys was looked at.
        responder.handle_timeout(Instant::ZERO.after(Duration::ZERO));
        assert!(!responder.take_transmit().is_empty());
    }
}
