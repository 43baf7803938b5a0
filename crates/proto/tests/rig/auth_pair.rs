//! A client and a listener that authenticate over one link in memory.

use std::collections::VecDeque;
use std::time::Duration;

use afar_proto::Instant;
use afar_proto::auth::{Attempt, Initiator, InitiatorEvent, Responder, ResponderEvent};
use afar_proto::frame::{Frame, Kind};
use afar_proto::json;
use afar_proto::message::{AuthRequest, Hello};

use super::link::Link;

pub(crate) fn request(user: &str) -> AuthRequest {
    AuthRequest {
        user: user.into(),
        algorithm: "ssh-ed25519".into(),
        public_key: vec![7; 51],
        delegate: None,
    }
}

/// A client's hello as a frame.
pub(crate) fn hello_frame() -> Vec<u8> {
    let hello = Hello {
        version: 1,
        software: "test/1".into(),
        features: Vec::new(),
        host_certificate: None,
    };
    Frame::control(Kind::Hello, json::to_vec(&hello)).to_bytes().to_vec()
}

/// An AUTH as a frame.
pub(crate) fn auth_frame(signed: &[u8], signature: &[u8]) -> Vec<u8> {
    let length = u32::try_from(signed.len()).expect("test payloads are small");
    let payload = [&length.to_be_bytes(), signed, signature].concat();
    Frame::control(Kind::Auth, payload).to_bytes().to_vec()
}

/// Both ends of an authentication.
#[derive(Debug)]
pub(crate) struct AuthPair {
    pub(crate) now: Instant,
    pub(crate) initiator: Initiator,
    pub(crate) responder: Responder,
    pub(crate) up: Link,
    pub(crate) down: Link,
    pub(crate) initiator_events: VecDeque<InitiatorEvent>,
    pub(crate) responder_events: VecDeque<ResponderEvent>,
}

impl AuthPair {
    pub(crate) fn new() -> Self {
        let now = Instant::ZERO;
        Self {
            now,
            initiator: Initiator::new("client/1", now),
            responder: Responder::new("server/1", now),
            up: Link::new(),
            down: Link::new(),
            initiator_events: VecDeque::new(),
            responder_events: VecDeque::new(),
        }
    }

    /// The hellos are exchanged, and the events of that are taken.
    pub(crate) fn greeted() -> Self {
        let mut pair = Self::new();
        pair.drive();
        let event = pair.initiator_events.pop_front();
        assert!(matches!(event, Some(InitiatorEvent::ServerHello(_))), "{event:?}");
        assert_eq!(pair.responder_events.pop_front(), None);
        pair
    }

    /// The client's attempt has reached the listener.
    pub(crate) fn attempted(user: &str) -> (Self, Attempt) {
        let mut pair = Self::greeted();
        let signed = Initiator::request_bytes(&request(user));
        pair.initiator.authenticate(&signed, b"signature");
        pair.drive();
        let Some(ResponderEvent::Attempt(attempt)) = pair.responder_events.pop_front() else {
            panic!("no attempt arrived");
        };
        (pair, *attempt)
    }

    pub(crate) fn drive(&mut self) {
        loop {
            self.up.send(self.now, &self.initiator.take_transmit());
            self.down.send(self.now, &self.responder.take_transmit());
            let to_responder = match self.responder.wants_input() {
                true => self.up.receive(self.now, usize::MAX),
                false => Vec::new(),
            };
            let to_initiator = self.down.receive(self.now, usize::MAX);
            // Nothing is told when nothing has arrived: an end must not live from being prodded.
            if !to_responder.is_empty() {
                self.responder.handle_input(self.now, &to_responder);
            }
            if !to_initiator.is_empty() {
                self.initiator.handle_input(&to_initiator);
            }
            self.collect();
            if to_responder.is_empty() && to_initiator.is_empty() {
                return;
            }
        }
    }

    fn collect(&mut self) {
        self.initiator_events.extend(std::iter::from_fn(|| self.initiator.poll_event()));
        self.responder_events.extend(std::iter::from_fn(|| self.responder.poll_event()));
    }

    pub(crate) fn advance(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        loop {
            let due = [self.initiator.poll_timeout(), self.responder.poll_timeout()];
            let next = due.into_iter().flatten().min().filter(|at| *at <= end);
            self.now = next.unwrap_or(end).max(self.now);
            self.initiator.handle_timeout(self.now);
            self.responder.handle_timeout(self.now);
            self.drive();
            if next.is_none() {
                return;
            }
        }
    }
}
