//! The listener's side of authentication.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{AuthError, TRANSPORT_VERSION};
use crate::error::Misbehaviour;
use crate::frame::{Frame, FrameReader, Kind, Phase};
use crate::json;
use crate::limits::{
    AUTH_DEADLINE, PIPELINED_BYTES_MAX, PREAUTH_PAYLOAD_BYTES_MAX, QUERIES_MAX, QUERY_KEYS_MAX,
    REFUSAL_DELAY, REFUSED_DISCARD_BYTES_MAX,
};
use crate::message::{
    AuthOk, AuthQuery, AuthQueryResult, AuthRefused, AuthRequest, Goodbye, GoodbyeCode, Hello,
    KeyBytes, bounded_message,
};
use crate::time::Instant;

/// What every refusal says, so that no reason can be told from another.
const REFUSAL: &str = "permission denied";

/// A client's attempt to authenticate, to be verified over exactly these bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The signed part, as sent.
    pub signed_request: Bytes,
    /// The signed part, read.
    pub request: AuthRequest,
    /// The signature, as sent.
    pub signature: Bytes,
}

/// What has happened at the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponderEvent {
    /// Which of these keys would be accepted? Answer with [`Responder::answer_query`].
    Query(AuthQuery),
    /// Answer with [`Responder::accept`] or [`Responder::refuse`].
    Attempt(Box<Attempt>),
    /// The refusal was sent, and the client has ended its side or sent more than is worth reading:
    /// close.
    RefusalDelivered,
    /// It came to no end.
    Failed(AuthError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ExpectHello,
    ExpectAuth,
    /// A query is at the application.
    Querying,
    /// An attempt is at the application; what else arrives waits unread (`W-4.6`).
    Verifying,
    /// A negative answer to a query waits for its time.
    QueryDelayed {
        until: Instant,
    },
    /// A refusal waits for its time.
    RefusalDelayed {
        until: Instant,
    },
    /// The refusal has left; what arrives is thrown away undecoded.
    Discarding {
        left: usize,
    },
    Accepted,
    Done,
}

/// The listener's side of authentication: a state machine that does no I/O.
#[derive(Debug)]
pub struct Responder {
    state: State,
    reader: FrameReader,
    out: Vec<u8>,
    events: VecDeque<ResponderEvent>,
    client_hello: Bytes,
    server_hello: Bytes,
    queries_left: u32,
    asked_at: Instant,
    deadline: Instant,
    /// Whether the client ended its side while its refusal was waiting.
    client_ended: bool,
}

impl Responder {
    /// A listener whose hello is ready to be sent, which may be before the client has said
    /// anything (`W-4.2`).
    #[must_use]
    pub fn new(software: &str, now: Instant) -> Self {
        let hello = Hello {
            version: TRANSPORT_VERSION,
            software: software.to_owned(),
            features: Vec::new(),
            host_certificate: None,
        };
        let server_hello = Bytes::from(json::to_vec(&hello));
        let out = Frame::control(Kind::Hello, server_hello.clone()).to_bytes().to_vec();
        Self {
            state: State::ExpectHello,
            reader: FrameReader::new(Phase::Preauth),
            out,
            events: VecDeque::new(),
            client_hello: Bytes::new(),
            server_hello,
            queries_left: QUERIES_MAX,
            asked_at: now,
            deadline: now.after(AUTH_DEADLINE),
            client_ended: false,
        }
    }

    /// Adds the certificate of the host key to a hello that has not left yet (`W-4.14`); afterwards
    /// it does nothing. Of a certificate that makes the hello too large for a frame before
    /// authentication nothing is said.
    pub fn present_host_certificate(&mut self, software: &str, certificate: &[u8]) {
        let hello = Hello {
            version: TRANSPORT_VERSION,
            software: software.to_owned(),
            features: Vec::new(),
            host_certificate: Some(KeyBytes(certificate.to_vec())),
        };
        let server_hello = Bytes::from(json::to_vec(&hello));
        if self.out.is_empty() || server_hello.len() > PREAUTH_PAYLOAD_BYTES_MAX as usize {
            return;
        }
        self.out = Frame::control(Kind::Hello, server_hello.clone()).to_bytes().to_vec();
        self.server_hello = server_hello;
    }

    /// Takes bytes from the client, in any split.
    pub fn handle_input(&mut self, now: Instant, bytes: &[u8]) {
        match self.state {
            State::Discarding { left } => return self.discard(left, bytes.len()),
            State::Done => return,
            _ => self.reader.push(bytes),
        }
        self.read_frames(now);
    }

    /// Whether more bytes are wanted now: not while an answer is being found, and never more than
    /// [`PIPELINED_BYTES_MAX`] ahead.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        match self.state {
            State::ExpectHello | State::ExpectAuth | State::Discarding { .. } => true,
            State::Accepted | State::Done => false,
            _ => !self.client_ended && self.reader.buffered() < PIPELINED_BYTES_MAX,
        }
    }

    /// Takes the end of the client's bytes; to be told again whenever bytes are wanted.
    pub fn handle_eof(&mut self) {
        match self.state {
            State::Discarding { .. } => self.end(ResponderEvent::RefusalDelivered),
            // Who has said everything still reads: the refusal is owed (`W-4.7`).
            State::RefusalDelayed { .. } => self.client_ended = true,
            _ => self.end(ResponderEvent::Failed(AuthError::Cut)),
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::RefusalDelayed { until } if now >= until => {
                let refused = AuthRefused { message: REFUSAL.to_owned() };
                self.push(Kind::AuthRefused, json::to_vec(&refused));
                // What had arrived behind the AUTH was never decoded, and is dropped here.
                self.reader = FrameReader::new(Phase::Preauth);
                self.state = State::Discarding { left: REFUSED_DISCARD_BYTES_MAX };
            }
            State::QueryDelayed { until } if now >= until => {
                self.push_query_result(None);
                self.read_frames(now);
            }
            State::Discarding { .. } if now >= self.deadline => {
                self.end(ResponderEvent::RefusalDelivered);
            }
            State::Accepted | State::Done => {}
            _ if now >= self.deadline => {
                let message = "authentication took too long".to_owned();
                let goodbye = Goodbye { code: GoodbyeCode::Timeout, message };
                self.push(Kind::Goodbye, json::to_vec(&goodbye));
                self.end(ResponderEvent::Failed(AuthError::TimedOut));
            }
            _ => {}
        }
    }

    /// Answers a query: the index of the first key that would be accepted. A negative answer is
    /// released at the same delay as a refusal (`W-9.14`).
    pub fn answer_query(&mut self, now: Instant, accepted: Option<u32>) {
        if self.state != State::Querying {
            return;
        }
        if accepted.is_none() {
            self.state = State::QueryDelayed { until: self.asked_at.after(REFUSAL_DELAY) };
            self.handle_timeout(now);
            return;
        }
        self.push_query_result(accepted);
        self.read_frames(now);
    }

    /// Accepts the attempt. After that call [`Responder::into_rest`].
    pub fn accept(&mut self, ok: &AuthOk) {
        if self.state == State::Verifying {
            self.push(Kind::AuthOk, json::to_vec(ok));
            self.state = State::Accepted;
        }
    }

    /// Refuses the attempt: the same bytes at the same delay after the AUTH, whatever the reason.
    pub fn refuse(&mut self, now: Instant) {
        if self.state == State::Verifying {
            self.state = State::RefusalDelayed { until: self.asked_at.after(REFUSAL_DELAY) };
            self.handle_timeout(now);
        }
    }

    /// Whether the refusal has left and the sending side can be closed.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.state, State::Discarding { .. })
    }

    /// The raw payloads of both hellos, client's first, for the transcript.
    #[must_use]
    pub fn hellos(&self) -> (&[u8], &[u8]) {
        (&self.client_hello, &self.server_hello)
    }

    /// Bytes to be sent now.
    pub fn take_transmit(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ResponderEvent> {
        self.events.pop_front()
    }

    /// When [`Responder::handle_timeout`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Accepted | State::Done => None,
            State::RefusalDelayed { until } | State::QueryDelayed { until } => {
                Some(until.min(self.deadline))
            }
            _ => Some(self.deadline),
        }
    }

    /// After [`Responder::accept`]: the bytes that have arrived behind AUTH and belong to the
    /// supervisor.
    #[must_use]
    pub fn into_rest(self) -> Bytes {
        self.reader.into_rest()
    }

    fn push(&mut self, kind: Kind, payload: Vec<u8>) {
        self.out.extend_from_slice(&Frame::control(kind, payload).to_bytes());
    }

    fn push_query_result(&mut self, accepted: Option<u32>) {
        self.push(Kind::AuthQueryResult, json::to_vec(&AuthQueryResult { accepted }));
        self.state = State::ExpectAuth;
    }

    fn end(&mut self, event: ResponderEvent) {
        if self.state != State::Done {
            self.state = State::Done;
            self.events.push_back(event);
        }
    }

    fn discard(&mut self, left: usize, bytes: usize) {
        match left.checked_sub(bytes) {
            Some(left) => self.state = State::Discarding { left },
            None => self.end(ResponderEvent::RefusalDelivered),
        }
    }

    fn read_frames(&mut self, now: Instant) {
        while matches!(self.state, State::ExpectHello | State::ExpectAuth) {
            let handled = match self.reader.next_frame() {
                Ok(Some(frame)) => self.handle_frame(now, &frame),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = handled {
                self.fail(error);
            }
        }
    }

    fn fail(&mut self, error: AuthError) {
        let code = match &error {
            AuthError::PeerIncompatible => GoodbyeCode::Incompatible,
            _ => GoodbyeCode::Protocol,
        };
        let goodbye = Goodbye { code, message: bounded_message(&error.to_string()) };
        self.push(Kind::Goodbye, json::to_vec(&goodbye));
        self.end(ResponderEvent::Failed(error));
    }

    fn handle_frame(&mut self, now: Instant, frame: &Frame) -> Result<(), AuthError> {
        if frame.channel != 0 {
            return Err(Misbehaviour::UnknownChannel(frame.channel).into());
        }
        let json_error = |error| Misbehaviour::MalformedJson { kind: frame.kind, error };
        match (frame.kind, self.state) {
            (Kind::Goodbye, _) => {
                let goodbye: Goodbye = json::from_slice(&frame.payload).map_err(json_error)?;
                self.end(ResponderEvent::Failed(AuthError::PeerClosed(goodbye)));
            }
            (Kind::Hello, State::ExpectHello) => {
                let hello: Hello = json::from_slice(&frame.payload).map_err(json_error)?;
                if hello.version == 0 {
                    return Err(AuthError::PeerIncompatible);
                }
                self.client_hello = frame.payload.clone();
                self.state = State::ExpectAuth;
            }
            (Kind::AuthQuery, State::ExpectAuth) => {
                let query: AuthQuery = json::from_slice(&frame.payload).map_err(json_error)?;
                let left = self.queries_left.checked_sub(1);
                let (Some(left), true) = (left, query.keys.len() <= QUERY_KEYS_MAX) else {
                    let what = "too many queries, or too many keys in one";
                    return Err(Misbehaviour::Malformed { kind: frame.kind, what }.into());
                };
                self.queries_left = left;
                self.asked_at = now;
                self.state = State::Querying;
                self.events.push_back(ResponderEvent::Query(query));
            }
            (Kind::Auth, State::ExpectAuth) => {
                let attempt = read_attempt(frame)?;
                self.asked_at = now;
                self.state = State::Verifying;
                self.events.push_back(ResponderEvent::Attempt(Box::new(attempt)));
            }
            (kind, _) => return Err(Misbehaviour::UnexpectedFrame(kind).into()),
        }
        Ok(())
    }
}

fn read_attempt(frame: &Frame) -> Result<Attempt, Misbehaviour> {
    let mut payload = frame.payload.clone();
    let malformed = |what| Misbehaviour::Malformed { kind: frame.kind, what };
    let Some(&length) = payload.first_chunk::<4>() else {
        return Err(malformed("shorter than its prefix"));
    };
    let length = u32::from_be_bytes(length) as usize;
    let mut rest = payload.split_off(4);
    if length > rest.len() {
        return Err(malformed("a signed part longer than the frame"));
    }
    let signature = rest.split_off(length);
    let request = json::from_slice(&rest)
        .map_err(|error| Misbehaviour::MalformedJson { kind: frame.kind, error })?;
    Ok(Attempt { signed_request: rest, request, signature })
}
