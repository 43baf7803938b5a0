//! The client's side of authentication.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{AuthError, TRANSPORT_VERSION};
use crate::error::Misbehaviour;
use crate::frame::{Frame, FrameReader, Kind, Phase};
use crate::json;
use crate::limits::{AUTH_DEADLINE, PREAUTH_PAYLOAD_BYTES_MAX, QUERIES_MAX, QUERY_KEYS_MAX};
use crate::message::{
    AuthOk, AuthQuery, AuthQueryResult, AuthRefused, AuthRequest, Goodbye, Hello,
};
use crate::time::Instant;

/// What has happened at the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitiatorEvent {
    /// The server's hello: now a key can be asked about, or used.
    ServerHello(Hello),
    /// Index of the first key that would be accepted.
    QueryResult(Option<u32>),
    /// Authenticated; call [`Initiator::into_rest`].
    Accepted(AuthOk),
    /// Refused; the message is for people and must be escaped.
    Refused(String),
    /// It came to no end.
    Failed(AuthError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ExpectHello,
    /// Nothing is under way.
    Idle,
    ExpectQueryResult {
        keys: u32,
    },
    ExpectVerdict,
    Done,
}

/// The client's side of authentication: a state machine that does no I/O.
///
/// Nothing need be flushed before [`Initiator::authenticate`]: the hello waits in the transmit
/// buffer, so that it leaves in one write with TLS's Finished and AUTH (`W-4.3`).
#[derive(Debug)]
pub struct Initiator {
    state: State,
    reader: FrameReader,
    out: Vec<u8>,
    events: VecDeque<InitiatorEvent>,
    client_hello: Bytes,
    server_hello: Bytes,
    queries_left: u32,
    deadline: Instant,
}

impl Initiator {
    /// A client that introduces itself as `software`.
    #[must_use]
    pub fn new(software: &str, now: Instant) -> Self {
        let hello = Hello {
            version: TRANSPORT_VERSION,
            software: software.to_owned(),
            features: Vec::new(),
            host_certificate: None,
        };
        let client_hello = Bytes::from(json::to_vec(&hello));
        let out = Frame::control(Kind::Hello, client_hello.clone()).to_bytes().to_vec();
        Self {
            state: State::ExpectHello,
            reader: FrameReader::new(Phase::Preauth),
            out,
            events: VecDeque::new(),
            client_hello,
            server_hello: Bytes::new(),
            queries_left: QUERIES_MAX,
            deadline: now.after(AUTH_DEADLINE),
        }
    }

    /// Takes bytes from the server, in any split.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        self.reader.push(bytes);
        while self.state != State::Done {
            let handled = match self.reader.next_frame() {
                Ok(Some(frame)) => self.handle_frame(&frame),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = handled {
                self.end(InitiatorEvent::Failed(error));
            }
        }
    }

    /// Takes the end of the server's bytes.
    pub fn handle_eof(&mut self) {
        self.end(InitiatorEvent::Failed(AuthError::Cut));
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.deadline {
            self.end(InitiatorEvent::Failed(AuthError::TimedOut));
        }
    }

    /// Asks which of `keys` would be accepted, and returns how many of them, from the first on,
    /// fit: at most [`QUERY_KEYS_MAX`], and no more than one frame holds. The rest can be asked
    /// about in another query.
    ///
    /// Nothing is sent, and 0 returned, after [`QUERIES_MAX`] queries, before the server's hello,
    /// while something else is under way, or for no keys.
    pub fn query(&mut self, user: &str, keys: impl IntoIterator<Item = Vec<u8>>) -> usize {
        if self.state != State::Idle || self.queries_left == 0 {
            return 0;
        }
        let mut query = AuthQuery::new(user, keys.into_iter().take(QUERY_KEYS_MAX));
        let mut payload = json::to_vec(&query);
        while payload.len() > PREAUTH_PAYLOAD_BYTES_MAX as usize {
            // An RSA key is over half a kilobyte, a certificate over two: 64 of them don't fit.
            if query.keys.pop().is_none() {
                return 0;
            }
            payload = json::to_vec(&query);
        }
        let Some(keys) = u32::try_from(query.keys.len()).ok().filter(|keys| *keys > 0) else {
            return 0;
        };
        self.queries_left = self.queries_left.saturating_sub(1);
        self.push(Kind::AuthQuery, payload);
        self.state = State::ExpectQueryResult { keys };
        query.keys.len()
    }

    /// The raw payloads of both hellos, for the transcript.
    #[must_use]
    pub fn hellos(&self) -> (&[u8], &[u8]) {
        (&self.client_hello, &self.server_hello)
    }

    /// Sends AUTH: the signed part exactly as it was signed, and the signature.
    pub fn authenticate(&mut self, signed_request: &[u8], signature: &[u8]) {
        if self.state == State::Idle {
            self.push(Kind::Auth, auth_payload(signed_request, signature));
            self.state = State::ExpectVerdict;
        }
    }

    /// The bytes of the signed part of an AUTH.
    #[must_use]
    pub fn request_bytes(request: &AuthRequest) -> Vec<u8> {
        json::to_vec(request)
    }

    /// Bytes to be sent now.
    pub fn take_transmit(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<InitiatorEvent> {
        self.events.pop_front()
    }

    /// When [`Initiator::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.state != State::Done).then_some(self.deadline)
    }

    /// After [`InitiatorEvent::Accepted`]: the bytes that have arrived behind AUTH_OK and belong to
    /// the job part.
    #[must_use]
    pub fn into_rest(self) -> Bytes {
        self.reader.into_rest()
    }

    fn push(&mut self, kind: Kind, payload: Vec<u8>) {
        self.out.extend_from_slice(&Frame::control(kind, payload).to_bytes());
    }

    fn end(&mut self, event: InitiatorEvent) {
        if self.state != State::Done {
            self.state = State::Done;
            self.events.push_back(event);
        }
    }

    fn handle_frame(&mut self, frame: &Frame) -> Result<(), AuthError> {
        if frame.channel != 0 {
            return Err(Misbehaviour::UnknownChannel(frame.channel).into());
        }
        let json_error = |error| Misbehaviour::MalformedJson { kind: frame.kind, error };
        match (frame.kind, self.state) {
            (Kind::Goodbye, _) => {
                let goodbye: Goodbye = json::from_slice(&frame.payload).map_err(json_error)?;
                return Err(AuthError::PeerClosed(goodbye));
            }
            (Kind::Hello, State::ExpectHello) => {
                let hello: Hello = json::from_slice(&frame.payload).map_err(json_error)?;
                if hello.version == 0 {
                    return Err(AuthError::PeerIncompatible);
                }
                self.server_hello = frame.payload.clone();
                self.state = State::Idle;
                self.events.push_back(InitiatorEvent::ServerHello(hello));
            }
            (Kind::AuthQueryResult, State::ExpectQueryResult { keys }) => {
                let result: AuthQueryResult =
                    json::from_slice(&frame.payload).map_err(json_error)?;
                if result.accepted.is_some_and(|index| index >= keys) {
                    let what = "an index that was not asked about";
                    return Err(Misbehaviour::Malformed { kind: frame.kind, what }.into());
                }
                self.state = State::Idle;
                self.events.push_back(InitiatorEvent::QueryResult(result.accepted));
            }
            (Kind::AuthOk, State::ExpectVerdict) => {
                let ok: AuthOk = json::from_slice(&frame.payload).map_err(json_error)?;
                self.end(InitiatorEvent::Accepted(ok));
            }
            (Kind::AuthRefused, State::ExpectVerdict) => {
                let refused: AuthRefused = json::from_slice(&frame.payload).map_err(json_error)?;
                self.end(InitiatorEvent::Refused(refused.message));
            }
            (kind, _) => return Err(Misbehaviour::UnexpectedFrame(kind).into()),
        }
        Ok(())
    }
}

/// AUTH's payload: the length of the signed part, the signed part, the signature (`W-4.5`).
fn auth_payload(signed_request: &[u8], signature: &[u8]) -> Vec<u8> {
    let length = u32::try_from(signed_request.len()).unwrap_or(u32::MAX);
    let mut payload = length.to_be_bytes().to_vec();
    payload.extend_from_slice(signed_request);
    payload.extend_from_slice(signature);
    payload
}
