//! Every kind of frame in every state, for each role: handled as specified, or the end.

use afar_proto::auth::{AuthError, Initiator, InitiatorEvent, Responder, ResponderEvent};
use afar_proto::connection::{ResumeStream, Stream};
use afar_proto::frame::Kind;
use afar_proto::limits::REFUSAL_DELAY;
use afar_proto::message::{
    Attach, AuthOk, AuthQuery, AuthQueryResult, AuthRefused, Goodbye, GoodbyeCode, ListQuery, Query,
};
use afar_proto::outcome::RefusalReason;
use afar_proto::seal::Sealer;
use afar_proto::{Config, ConnectionError, Event, Instant, Role, json};

use crate::rig::auth_pair::{hello_frame, request};
use crate::rig::lone::{Lone, frame};
use crate::rig::samples;

/// A payload that is right for the kind.
fn payload(kind: Kind) -> Vec<u8> {
    let empty = Sealer::new();
    match kind {
        Kind::Hello | Kind::JobHello => json::to_vec(&samples::job_hello()),
        Kind::AuthQuery => json::to_vec(&AuthQuery::new("alice", [vec![1]])),
        Kind::AuthQueryResult => json::to_vec(&AuthQueryResult { accepted: Some(0) }),
        Kind::Auth => {
            let signed = Initiator::request_bytes(&request("alice"));
            let length = u32::try_from(signed.len()).expect("short");
            [&length.to_be_bytes()[..], &signed, b"signature"].concat()
        }
        Kind::AuthOk => json::to_vec(&AuthOk { delegate_lifetime_s: None }),
        Kind::AuthRefused => json::to_vec(&AuthRefused { message: "no".into() }),
        Kind::Goodbye => json::to_vec(&Goodbye { code: GoodbyeCode::Done, message: String::new() }),
        Kind::Upgrade | Kind::HandOff | Kind::Grant | Kind::Stop | Kind::Close | Kind::Detach => {
            Vec::new()
        }
        Kind::Open => json::to_vec(&samples::spec_with_stdin("job")),
        Kind::Opened => json::to_vec(&samples::opened("job")),
        Kind::Refused => json::to_vec(&samples::refused(RefusalReason::Denied)),
        Kind::Data => [&[0; 16][..], b"x"].concat(),
        Kind::End | Kind::Ack => vec![0; 8],
        Kind::Gap => 5_u64.to_be_bytes().to_vec(),
        Kind::Query => br#"{"list":{}}"#.to_vec(),
        Kind::Answer => br#"{"jobs":[],"next":null}"#.to_vec(),
        Kind::Window => vec![0, 0, 0, 9],
        Kind::Signal => br#"{"name":"TERM"}"#.to_vec(),
        Kind::Resize => br#"{"columns":80,"rows":24}"#.to_vec(),
        Kind::Exit => json::to_vec(&samples::exited(0)),
        Kind::Seal => json::to_vec(&samples::seal(&empty, &empty)),
        Kind::Reset => br#"{"message":"why"}"#.to_vec(),
        Kind::Ping | Kind::Pong => b"12345678".to_vec(),
        Kind::Attach => json::to_vec(&samples::attach("job", 0, 0)),
        Kind::Attached => json::to_vec(&samples::attached(0, 0, Some(0))),
    }
}

// Authentication.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    ExpectHello,
    ExpectAuth,
    Querying,
    QueryDelayed,
    Verifying,
    RefusalDelayed,
    Discarding,
    Accepted,
    Done,
}

impl Listening {
    const ALL: [Self; 9] = [
        Self::ExpectHello,
        Self::ExpectAuth,
        Self::Querying,
        Self::QueryDelayed,
        Self::Verifying,
        Self::RefusalDelayed,
        Self::Discarding,
        Self::Accepted,
        Self::Done,
    ];

    /// A listener in this state, its events so far taken.
    fn responder(self) -> Responder {
        let now = Instant::ZERO;
        let mut responder = Responder::new("server/1", now);
        if self == Self::ExpectHello {
            return responder;
        }
        responder.handle_input(now, &hello_frame());
        match self {
            Self::ExpectHello | Self::ExpectAuth => {}
            Self::Querying | Self::QueryDelayed => {
                let bytes = frame(Kind::AuthQuery, 0, 0, &payload(Kind::AuthQuery));
                responder.handle_input(now, &bytes);
                if self == Self::QueryDelayed {
                    responder.answer_query(now, None);
                }
            }
            Self::Verifying | Self::RefusalDelayed | Self::Discarding | Self::Accepted => {
                responder.handle_input(now, &frame(Kind::Auth, 0, 0, &payload(Kind::Auth)));
                match self {
                    Self::Accepted => responder.accept(&AuthOk { delegate_lifetime_s: None }),
                    Self::Verifying => {}
                    _ => responder.refuse(now),
                }
                if self == Self::Discarding {
                    responder.handle_timeout(now.after(REFUSAL_DELAY));
                }
            }
            Self::Done => responder.handle_eof(),
        }
        while responder.poll_event().is_some() {}
        responder
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Asked,
    Attempted,
    Left,
    Misbehaved,
}

fn said_of(events: &[ResponderEvent]) -> Said {
    match events {
        [] => Said::Nothing,
        [ResponderEvent::Query(_)] => Said::Asked,
        [ResponderEvent::Attempt(_)] => Said::Attempted,
        [ResponderEvent::Failed(AuthError::PeerClosed(_))] => Said::Left,
        [ResponderEvent::Failed(AuthError::PeerMisbehaved(_))] => Said::Misbehaved,
        other => panic!("{other:?}"),
    }
}

/// W-3.2, W-4.1 to W-4.7, at the listener. (Fault 11 before authentication.)
#[test]
fn fault_11_every_frame_in_every_state_of_the_listener() {
    for state in Listening::ALL {
        for kind in Kind::ALL {
            let mut responder = state.responder();
            responder.handle_input(Instant::ZERO, &frame(kind, 0, 0, &payload(kind)));
            let events: Vec<_> = std::iter::from_fn(|| responder.poll_event()).collect();
            let expected = match (state, kind) {
                (Listening::ExpectHello, Kind::Hello) => Said::Nothing,
                (Listening::ExpectAuth, Kind::AuthQuery) => Said::Asked,
                (Listening::ExpectAuth, Kind::Auth) => Said::Attempted,
                (Listening::ExpectHello | Listening::ExpectAuth, Kind::Goodbye) => Said::Left,
                (Listening::ExpectHello | Listening::ExpectAuth, _) => Said::Misbehaved,
                // Whatever it is, it waits unread, is thrown away, or has nobody to read it.
                _ => Said::Nothing,
            };
            assert_eq!(said_of(&events), expected, "{kind:?} in {state:?}");
        }
    }
}

/// Without an accepted AUTH nothing of a job is ever looked at, whatever is sent before.
#[test]
fn no_sequence_of_frames_gets_past_the_listener() {
    for first in Kind::ALL {
        for second in Kind::ALL {
            for third in [Kind::Auth, Kind::Open, Kind::Attach, Kind::JobHello, Kind::Data] {
                let kinds = [first, second, third];
                let bytes: Vec<u8> =
                    kinds.iter().flat_map(|kind| frame(*kind, 0, 0, &payload(*kind))).collect();
                let mut responder = Responder::new("server/1", Instant::ZERO);
                responder.handle_input(Instant::ZERO, &bytes);
                let events: Vec<_> = std::iter::from_fn(|| responder.poll_event()).collect();
                let asked = [Kind::Hello, Kind::AuthQuery].as_slice() == &kinds[..2];
                let tried = [Kind::Hello, Kind::Auth].as_slice() == &kinds[..2];
                let said = said_of(&events);
                assert_eq!(said == Said::Attempted, tried, "{kinds:?}");
                assert_eq!(said == Said::Asked, asked, "{kinds:?}");
                let left = kinds[0] == Kind::Goodbye || kinds[..2] == [Kind::Hello, Kind::Goodbye];
                assert_eq!(said == Said::Left, left, "{kinds:?}");
                assert_ne!(said, Said::Nothing, "{kinds:?}");
            }
        }
    }
}

/// W-3.2, at the client.
#[test]
fn fault_11_every_frame_in_every_state_of_the_authenticating_client() {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Asking {
        ExpectHello,
        Idle,
        ExpectQueryResult,
        ExpectVerdict,
        Done,
    }
    let states = [
        Asking::ExpectHello,
        Asking::Idle,
        Asking::ExpectQueryResult,
        Asking::ExpectVerdict,
        Asking::Done,
    ];
    for state in states {
        for kind in Kind::ALL {
            let mut initiator = Initiator::new("client/1", Instant::ZERO);
            if state != Asking::ExpectHello {
                initiator.handle_input(&hello_frame());
            }
            match state {
                Asking::ExpectHello | Asking::Idle => {}
                Asking::ExpectQueryResult => _ = initiator.query("alice", [vec![1]]),
                Asking::ExpectVerdict => initiator.authenticate(b"{}", b"s"),
                Asking::Done => initiator.handle_eof(),
            }
            while initiator.poll_event().is_some() {}
            initiator.handle_input(&frame(kind, 0, 0, &payload(kind)));
            let event = initiator.poll_event();
            let fits = match (state, kind) {
                (Asking::Done, _) => event.is_none(),
                (_, Kind::Goodbye) => {
                    matches!(event, Some(InitiatorEvent::Failed(AuthError::PeerClosed(_))))
                }
                (Asking::ExpectHello, Kind::Hello) => {
                    matches!(event, Some(InitiatorEvent::ServerHello(_)))
                }
                (Asking::ExpectQueryResult, Kind::AuthQueryResult) => {
                    event == Some(InitiatorEvent::QueryResult(Some(0)))
                }
                (Asking::ExpectVerdict, Kind::AuthOk) => {
                    matches!(event, Some(InitiatorEvent::Accepted(_)))
                }
                (Asking::ExpectVerdict, Kind::AuthRefused) => {
                    event == Some(InitiatorEvent::Refused("no".into()))
                }
                _ => matches!(event, Some(InitiatorEvent::Failed(AuthError::PeerMisbehaved(_)))),
            };
            assert!(fits, "{kind:?} in {state:?}: {event:?}");
            assert_eq!(initiator.poll_event(), None);
        }
    }
}

// Jobs.

/// Where channel 1 stands, or the connection if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    NoHello,
    NoChannel,
    Opening,
    Attaching,
    /// Asked for with a QUERY.
    Asking,
    Running,
    /// Attached to, and not to stay.
    Looking,
    Exited,
    /// Sealed and not confirmed; a client has confirmed at once.
    Sealed,
    Gone,
    Closed,
}

impl Standing {
    const ALL: [Self; 11] = [
        Self::NoHello,
        Self::NoChannel,
        Self::Opening,
        Self::Attaching,
        Self::Asking,
        Self::Running,
        Self::Looking,
        Self::Exited,
        Self::Sealed,
        Self::Gone,
        Self::Closed,
    ];

    fn lone(self, role: Role) -> Lone {
        let mut lone = match (self, role) {
            (Self::NoHello, _) => return Lone::silent(role, Config::default()),
            (Self::NoChannel | Self::Closed, _) => Lone::new(role),
            (Self::Opening, Role::Client) => Lone::client_with_open().0,
            (Self::Opening, Role::Server) => {
                let mut lone = Lone::new(role);
                lone.input(&frame(Kind::Open, 0, 1, &payload(Kind::Open)));
                lone
            }
            (Self::Attaching | Self::Looking, Role::Client) => {
                let mut lone = Lone::new(role);
                let fresh = ResumeStream::at(0);
                let streams = Stream::OUTPUTS.map(|stream| (stream, fresh.clone()));
                let follow = self == Self::Attaching;
                let attach = Attach { follow, ..samples::attach("job", 0, 0) };
                lone.connection.attach(&attach, streams.into()).expect("a channel is free");
                lone
            }
            (Self::Attaching | Self::Looking, Role::Server) => {
                let mut lone = Lone::new(role);
                let follow = self == Self::Attaching;
                let attach = Attach { follow, ..samples::attach("job", 0, 0) };
                lone.input(&frame(Kind::Attach, 0, 1, &json::to_vec(&attach)));
                lone
            }
            (Self::Asking, Role::Client) => {
                let mut lone = Lone::new(role);
                let query = Query::List(ListQuery::default());
                lone.connection.query(&query).expect("a channel is free");
                lone
            }
            (Self::Asking, Role::Server) => {
                let mut lone = Lone::new(role);
                lone.input(&frame(Kind::Query, 0, 1, &payload(Kind::Query)));
                lone
            }
            (_, Role::Client) => Lone::client_with_job().0,
            (_, Role::Server) => Lone::server_with_job(),
        };
        match (self, role) {
            (Self::Looking, Role::Client) => {
                lone.input(&frame(Kind::Attached, 0, 1, &payload(Kind::Attached)));
            }
            (Self::Looking, Role::Server) => {
                let events = lone.events();
                let Some(Event::Attach { channel, .. }) = events.last() else {
                    panic!("{events:?}")
                };
                lone.channel(*channel).accept_attach(&samples::attached(0, 0, Some(0)));
            }
            (Self::Exited | Self::Sealed, Role::Client) => {
                lone.input(&frame(Kind::Exit, 0, 1, &payload(Kind::Exit)));
                if self == Self::Sealed {
                    lone.input(&frame(Kind::End, 1, 1, &payload(Kind::End)));
                    lone.input(&frame(Kind::End, 2, 1, &payload(Kind::End)));
                    lone.input(&frame(Kind::Seal, 0, 1, &payload(Kind::Seal)));
                }
            }
            (Self::Exited | Self::Sealed, Role::Server) => {
                lone.input(&frame(Kind::Signal, 0, 1, &payload(Kind::Signal)));
                let events = lone.events();
                let [Event::Signal { channel, .. }] = events[..] else { panic!("{events:?}") };
                lone.channel(channel).exit(&samples::exited(0));
                if self == Self::Sealed {
                    let empty = Sealer::new();
                    lone.channel(channel).seal(&samples::seal(&empty, &empty));
                }
            }
            (Self::Gone, _) => lone.input(&frame(Kind::Reset, 0, 1, &payload(Kind::Reset))),
            (Self::Closed, _) => lone.connection.handle_eof(Instant::ZERO),
            _ => {}
        }
        lone.events();
        lone.sent();
        lone
    }
}

/// What a frame leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing to tell the application.
    Quiet,
    /// An event, and all goes on.
    Event,
    /// The channel is over.
    ChannelEnds,
    /// The connection is closed for misbehaviour.
    Misbehaved,
    /// The peer has said goodbye.
    Left,
}

fn outcome(events: &[Event]) -> Outcome {
    match events.last() {
        None => Outcome::Quiet,
        Some(Event::Closed(ConnectionError::PeerMisbehaved(_))) => Outcome::Misbehaved,
        Some(Event::Closed(ConnectionError::PeerClosed(_))) => Outcome::Left,
        Some(
            Event::Failed { .. }
            | Event::Abandoned { .. }
            | Event::Detached { .. }
            | Event::Confirmed { .. }
            | Event::Answer { .. }
            | Event::Refused { .. }
            | Event::Seal { .. },
        ) => Outcome::ChannelEnds,
        Some(Event::Closed(error)) => panic!("{error:?}"),
        Some(_) => Outcome::Event,
    }
}

/// W-3.2, W-5, W-6, W-7: the table of the specification, at the server.
fn at_server(standing: Standing, kind: Kind) -> Outcome {
    use Standing as S;
    match (standing, kind) {
        (S::Closed, _) => Outcome::Quiet,
        (_, Kind::Goodbye) => Outcome::Left,
        (S::NoHello, Kind::JobHello) => Outcome::Event,
        (S::NoHello, _) => Outcome::Misbehaved,
        (_, Kind::Ping | Kind::Pong) => Outcome::Quiet,
        (S::NoChannel, Kind::Open | Kind::Attach | Kind::Query) => Outcome::Event,
        (S::NoChannel, _) => Outcome::Misbehaved,
        (
            S::Gone,
            Kind::Data
            | Kind::End
            | Kind::Window
            | Kind::Ack
            | Kind::Stop
            | Kind::Reset
            | Kind::Signal
            | Kind::Resize
            | Kind::Close
            | Kind::Detach,
        ) => Outcome::Quiet,
        (S::Asking, Kind::Close | Kind::Reset) => Outcome::ChannelEnds,
        (S::Asking, _) => Outcome::Misbehaved,
        // What the client sent before it had the seal.
        (
            S::Sealed,
            Kind::Data
            | Kind::End
            | Kind::Window
            | Kind::Ack
            | Kind::Stop
            | Kind::Signal
            | Kind::Resize,
        ) => Outcome::Quiet,
        (S::Opening | S::Attaching, Kind::Data | Kind::End) => Outcome::ChannelEnds,
        (_, Kind::Data | Kind::End | Kind::Stop | Kind::Signal | Kind::Resize)
            if standing != S::Gone =>
        {
            Outcome::Event
        }
        // The sample acknowledges nothing, and nobody waits for the credit.
        (_, Kind::Window | Kind::Ack) => Outcome::Quiet,
        (_, Kind::Close | Kind::Detach | Kind::Reset) => Outcome::ChannelEnds,
        _ => Outcome::Misbehaved,
    }
}

/// The same at the client.
fn at_client(standing: Standing, kind: Kind) -> Outcome {
    use Standing as S;
    match (standing, kind) {
        (S::Closed, _) => Outcome::Quiet,
        (_, Kind::Goodbye) => Outcome::Left,
        (S::NoHello, Kind::JobHello) => Outcome::Event,
        (S::NoHello, _) => Outcome::Misbehaved,
        (_, Kind::Ping | Kind::Pong) => Outcome::Quiet,
        (S::NoChannel, _) => Outcome::Misbehaved,
        (
            S::Gone | S::Sealed,
            Kind::Data
            | Kind::End
            | Kind::Gap
            | Kind::Answer
            | Kind::Window
            | Kind::Ack
            | Kind::Stop
            | Kind::Reset
            | Kind::Opened
            | Kind::Attached
            | Kind::Refused
            | Kind::Exit
            | Kind::Seal,
        ) => Outcome::Quiet,
        // Nothing but its answer comes on the channel of a question.
        (S::Asking, Kind::Answer | Kind::Refused | Kind::Reset) => Outcome::ChannelEnds,
        (S::Asking | S::Sealed | S::Gone, _) => Outcome::Misbehaved,
        (S::Opening, Kind::Opened | Kind::Attached) => Outcome::Event,
        (S::Attaching, Kind::Attached) => Outcome::Event,
        (S::Opening | S::Attaching, Kind::Refused) => Outcome::ChannelEnds,
        (S::Running | S::Looking, Kind::Exit) => Outcome::Event,
        (S::Exited, Kind::Seal) => Outcome::ChannelEnds,
        (S::Running | S::Looking | S::Exited, Kind::Data | Kind::End | Kind::Gap) => Outcome::Event,
        (S::Attaching, Kind::Stop) => Outcome::Quiet,
        (_, Kind::Stop) => Outcome::Event,
        (_, Kind::Window | Kind::Ack) => Outcome::Quiet,
        (_, Kind::Reset) => Outcome::ChannelEnds,
        // That of a look too early, while its streams have not ended, included.
        _ => Outcome::Misbehaved,
    }
}

#[test]
fn fault_11_every_frame_in_every_state_of_a_connection() {
    let of_connection = [Kind::Goodbye, Kind::JobHello, Kind::Ping, Kind::Pong];
    for role in [Role::Client, Role::Server] {
        for standing in Standing::ALL {
            for kind in Kind::ALL {
                let channel = u32::from(!of_connection.contains(&kind));
                // The number of a stream that the frame may be about in this direction.
                let stream = match kind {
                    Kind::Data | Kind::End | Kind::Gap => u8::from(role == Role::Client),
                    Kind::Window | Kind::Ack | Kind::Stop => u8::from(role == Role::Server),
                    _ => 0,
                };
                let mut lone = standing.lone(role);
                lone.input(&frame(kind, stream, channel, &payload(kind)));
                let expected = match role {
                    Role::Client => at_client(standing, kind),
                    Role::Server => at_server(standing, kind),
                };
                let events = lone.events();
                assert_eq!(
                    outcome(&events),
                    expected,
                    "{kind:?} at a {role:?} in {standing:?}: {events:?}"
                );
                let over = matches!(expected, Outcome::Misbehaved | Outcome::Left);
                let closed = over || standing == Standing::Closed;
                assert_eq!(lone.connection.is_closed(), closed, "{kind:?} in {standing:?}");
            }
        }
    }
}
