//! Refusals: always told, never telling why.

use afar_proto::Instant;
use afar_proto::auth::{AuthError, Initiator, InitiatorEvent, ResponderEvent};
use afar_proto::frame::Kind;
use afar_proto::limits::{AUTH_DEADLINE, REFUSAL_DELAY, REFUSED_DISCARD_BYTES_MAX};
use afar_proto::message::AuthOk;
use std::time::Duration;

use crate::rig::auth_pair::{AuthPair, request};
use crate::rig::lone::open;
use crate::rig::samples;

/// When the refusal of `user` is released, and its bytes, if the listener takes so long to decide.
fn refusal_of(user: &str, thinking: Duration) -> (Instant, Vec<u8>) {
    let (mut pair, _) = AuthPair::attempted(user);
    pair.down.record.clear();
    pair.advance(thinking);
    pair.responder.refuse(pair.now);
    let mut released = None;
    while released.is_none() {
        pair.drive();
        if !pair.down.record.is_empty() {
            released = Some((pair.now, pair.down.record.clone()));
            break;
        }
        pair.advance(Duration::from_micros(1_000));
    }
    assert!(pair.responder.is_refused());
    let event = pair.initiator_events.pop_front();
    assert!(matches!(event, Some(InitiatorEvent::Refused(_))), "{event:?}");
    released.expect("it was released")
}

/// W-4.7, W-9.14: unknown user, wrong key, refused grant: each takes its own time to find out, and
/// none can be told from another.
#[test]
fn fault_75_every_refusal_is_the_same_bytes_at_the_same_deadline() {
    let release = Instant::ZERO.after(REFUSAL_DELAY);
    let unknown_user = refusal_of("nobody-of-that-name", Duration::ZERO);
    let wrong_key = refusal_of("alice", Duration::from_millis(3));
    let refused_grant = refusal_of("bob", REFUSAL_DELAY - Duration::from_millis(1));
    assert_eq!(unknown_user.0, release);
    assert_eq!(unknown_user, wrong_key);
    assert_eq!(unknown_user, refused_grant);
}

/// W-9.14: the deadline itself, to the microsecond.
#[test]
fn fault_75_a_refusal_waits_for_its_deadline_and_no_longer() {
    let (mut pair, _) = AuthPair::attempted("alice");
    pair.responder.refuse(pair.now);
    let release = Instant::ZERO.after(REFUSAL_DELAY);
    assert_eq!(pair.responder.poll_timeout(), Some(release));
    pair.responder.handle_timeout(Instant::from_micros(release.as_micros() - 1));
    assert!(pair.responder.take_transmit().is_empty());
    assert!(!pair.responder.is_refused());
    pair.responder.handle_timeout(release);
    assert_eq!(pair.responder.take_transmit()[0], Kind::AuthRefused.to_byte());
    assert!(pair.responder.is_refused());
}

/// W-4.4, W-9.14: "none of these keys" is a refusal too, and has the same delay.
#[test]
fn fault_75_a_negative_query_has_the_same_deadline() {
    let mut released = Vec::new();
    for thinking in [0, 7, 199] {
        let mut pair = AuthPair::greeted();
        pair.initiator.query("alice", [vec![1], vec![2]]);
        pair.drive();
        assert!(matches!(pair.responder_events.pop_front(), Some(ResponderEvent::Query(_))));
        pair.down.record.clear();
        pair.advance(Duration::from_millis(thinking));
        pair.responder.answer_query(pair.now, None);
        let at = pair.responder.poll_timeout();
        assert_eq!(at, Some(Instant::ZERO.after(REFUSAL_DELAY)));
        pair.advance(REFUSAL_DELAY);
        released.push(pair.down.record.clone());
        let event = pair.initiator_events.pop_front();
        assert_eq!(event, Some(InitiatorEvent::QueryResult(None)));
    }
    assert!(released.iter().all(|bytes| bytes == &released[0]));
}

/// What was pipelined behind a query waits and is read when the answer has left.
#[test]
fn an_auth_behind_a_negative_query_is_read_after_its_delay() {
    let mut pair = AuthPair::greeted();
    pair.initiator.query("alice", [vec![1]]);
    let signed = Initiator::request_bytes(&request("alice"));
    let auth = crate::rig::auth_pair::auth_frame(&signed, b"s");
    let query = pair.initiator.take_transmit();
    pair.up.send(pair.now, &[query, auth].concat());
    pair.drive();
    assert!(matches!(pair.responder_events.pop_front(), Some(ResponderEvent::Query(_))));
    pair.responder.answer_query(pair.now, None);
    assert_eq!(pair.responder.poll_event(), None);
    pair.advance(REFUSAL_DELAY);
    let event = pair.responder_events.pop_front();
    assert!(matches!(event, Some(ResponderEvent::Attempt(_))), "{event:?}");
}

/// W-4.7: what follows a refused AUTH is thrown away undecoded, and the refusal arrives.
#[test]
fn fault_10_what_is_pipelined_behind_a_refused_auth_is_never_decoded() {
    let (mut pair, _) = AuthPair::attempted("alice");
    pair.up.send(pair.now, &open(1, &samples::spec("job")));
    pair.drive();
    pair.responder.refuse(pair.now);
    pair.advance(REFUSAL_DELAY);
    assert!(matches!(pair.initiator_events.pop_front(), Some(InitiatorEvent::Refused(_))));
    // Not even a header is looked at: these would each be an end of their own.
    pair.up.send(pair.now, b"GET / HTTP/1.1\r\n\r\n");
    pair.up.send(pair.now, &[0xff; 64]);
    pair.drive();
    assert_eq!(pair.responder_events.pop_front(), None);
    pair.responder.handle_eof();
    assert_eq!(pair.responder.poll_event(), Some(ResponderEvent::RefusalDelivered));
    assert_eq!(pair.responder.poll_event(), None);
}

/// W-9.15: as much as is thrown away, and one byte more.
#[test]
fn a_refused_client_is_read_up_to_a_limit() {
    let (mut pair, _) = AuthPair::attempted("alice");
    pair.responder.refuse(pair.now);
    pair.advance(REFUSAL_DELAY);
    let megabyte = vec![0; 1 << 20];
    for _ in 0..REFUSED_DISCARD_BYTES_MAX >> 20 {
        assert!(pair.responder.wants_input());
        pair.responder.handle_input(pair.now, &megabyte);
    }
    assert_eq!(pair.responder.poll_event(), None);
    pair.responder.handle_input(pair.now, b"x");
    assert_eq!(pair.responder.poll_event(), Some(ResponderEvent::RefusalDelivered));
    assert!(!pair.responder.wants_input());
}

/// W-9.13: a refused client that never leaves meets the same deadline as all.
#[test]
fn a_refused_client_that_stays_meets_the_deadline() {
    let (mut pair, _) = AuthPair::attempted("alice");
    pair.responder.refuse(pair.now);
    pair.advance(AUTH_DEADLINE);
    assert_eq!(pair.responder_events.pop_front(), Some(ResponderEvent::RefusalDelivered));
}

/// A decision is taken once.
#[test]
fn an_answer_out_of_turn_does_nothing() {
    let mut pair = AuthPair::greeted();
    pair.responder.accept(&AuthOk { delegate_lifetime_s: None });
    pair.responder.refuse(pair.now);
    pair.responder.answer_query(pair.now, Some(0));
    assert!(pair.responder.take_transmit().is_empty());

    let (mut pair, _) = AuthPair::attempted("alice");
    pair.responder.refuse(pair.now);
    pair.responder.accept(&AuthOk { delegate_lifetime_s: None });
    pair.advance(REFUSAL_DELAY);
    let event = pair.initiator_events.pop_front();
    assert!(matches!(event, Some(InitiatorEvent::Refused(_))), "{event:?}");
}

/// An end of the bytes before the answer is a cut for both.
#[test]
fn fault_01_the_end_of_input_during_a_login_is_a_cut() {
    let (mut pair, _) = AuthPair::attempted("alice");
    pair.responder.handle_eof();
    let cut = AuthError::Cut;
    assert_eq!(pair.responder.poll_event(), Some(ResponderEvent::Failed(cut.clone())));
    pair.responder.accept(&AuthOk { delegate_lifetime_s: None });
    assert!(pair.responder.take_transmit().is_empty(), "nobody is accepted who has gone");
    pair.initiator.handle_eof();
    assert_eq!(pair.initiator.poll_event(), Some(InitiatorEvent::Failed(cut)));
}

/// W-9.13: the total deadline holds for a refusal too, should its own be later.
#[test]
fn a_refusal_at_the_last_moment_does_not_outlive_the_deadline() {
    let mut pair = AuthPair::greeted();
    pair.now = Instant::ZERO.after(AUTH_DEADLINE - REFUSAL_DELAY / 2);
    pair.initiator.authenticate(&Initiator::request_bytes(&request("alice")), b"signature");
    pair.drive();
    assert!(matches!(pair.responder_events.pop_front(), Some(ResponderEvent::Attempt(_))));
    pair.responder.refuse(pair.now);
    let deadline = Instant::ZERO.after(AUTH_DEADLINE);
    assert_eq!(pair.responder.poll_timeout(), Some(deadline));
    pair.responder.handle_timeout(deadline);
    let timed_out = ResponderEvent::Failed(AuthError::TimedOut);
    assert_eq!(pair.responder.poll_event(), Some(timed_out));
}
