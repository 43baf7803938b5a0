//! One connection against hand-made bytes: a peer that may do whatever it likes.

use std::collections::VecDeque;

use afar_proto::frame::{Frame, FrameReader, Kind, Phase};
use afar_proto::message::OpenSpec;
use afar_proto::{
    ChannelId, Config, Connection, ConnectionError, Event, Instant, Misbehaviour, Role, json,
};

use super::samples;

/// A frame's bytes, whether the frame makes sense or not.
pub(crate) fn raw(kind: u8, flags: u8, channel: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("test payloads are small");
    let mut bytes = header(kind, flags, channel, length);
    bytes.extend_from_slice(payload);
    bytes
}

/// A header that states any length.
pub(crate) fn header(kind: u8, flags: u8, channel: u32, length: u32) -> Vec<u8> {
    let mut bytes = vec![kind, flags, 0, 0];
    bytes.extend_from_slice(&channel.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

pub(crate) fn frame(kind: Kind, flags: u8, channel: u32, payload: &[u8]) -> Vec<u8> {
    raw(kind.to_byte(), flags, channel, payload)
}

/// A DATA frame of a stream by its number on the wire.
pub(crate) fn data(channel: u32, stream: u8, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut payload = offset.to_be_bytes().to_vec();
    payload.extend_from_slice(&7_u64.to_be_bytes());
    payload.extend_from_slice(bytes);
    frame(Kind::Data, stream, channel, &payload)
}

pub(crate) fn window(channel: u32, stream: u8, increment: u32) -> Vec<u8> {
    frame(Kind::Window, stream, channel, &increment.to_be_bytes())
}

pub(crate) fn open(channel: u32, spec: &OpenSpec) -> Vec<u8> {
    frame(Kind::Open, 0, channel, &json::to_vec(spec))
}

/// A connection whose peer is the test.
#[derive(Debug)]
pub(crate) struct Lone {
    pub(crate) now: Instant,
    pub(crate) connection: Connection,
}

impl Lone {
    /// The peer's hello has arrived, and our own has left.
    pub(crate) fn new(role: Role) -> Self {
        Self::with(role, Config::default())
    }

    pub(crate) fn with(role: Role, config: Config) -> Self {
        let mut lone = Self::silent(role, config);
        lone.input(&frame(Kind::JobHello, 0, 0, &json::to_vec(&samples::job_hello())));
        assert!(matches!(lone.events()[..], [Event::Ready(_)]));
        assert_eq!(lone.sent().len(), 1);
        lone
    }

    pub(crate) fn silent(role: Role, config: Config) -> Self {
        let now = Instant::ZERO;
        Self { now, connection: Connection::new(role, config, now) }
    }

    /// A server with channel 1 open and accepted.
    pub(crate) fn server_with_job() -> Self {
        let mut lone = Self::new(Role::Server);
        lone.accept_job(1);
        lone
    }

    pub(crate) fn accept_job(&mut self, channel: u32) {
        self.input(&open(channel, &samples::spec_with_stdin("job")));
        let events = self.events();
        let [Event::Open { channel, .. }] = events[..] else { panic!("{events:?}") };
        self.channel(channel).accept(&samples::opened("job"));
        self.sent();
    }

    /// A client with channel 1 open and accepted.
    pub(crate) fn client_with_job() -> (Self, ChannelId) {
        let (mut lone, channel) = Self::client_with_open();
        lone.input(&frame(Kind::Opened, 0, 1, &json::to_vec(&samples::opened("job"))));
        assert!(matches!(lone.events()[..], [Event::Opened { .. }]));
        (lone, channel)
    }

    /// A client that has asked for channel 1 and got no answer.
    pub(crate) fn client_with_open() -> (Self, ChannelId) {
        let mut lone = Self::new(Role::Client);
        let spec = samples::spec_with_stdin("job");
        let channel = lone.connection.open(&spec).expect("a channel is free");
        lone.sent();
        (lone, channel)
    }

    pub(crate) fn input(&mut self, bytes: &[u8]) {
        self.connection.handle_input(self.now, bytes);
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.connection.poll_event()).collect()
    }

    pub(crate) fn channel(&mut self, id: ChannelId) -> afar_proto::Channel<'_> {
        self.connection.channel(id).expect("the channel is open")
    }

    /// The frames that leave now.
    pub(crate) fn sent(&mut self) -> Vec<Frame> {
        let mut out = VecDeque::new();
        self.connection.poll_transmit(&mut out, usize::MAX);
        let mut reader = FrameReader::new(Phase::Jobs);
        out.iter().for_each(|bytes| reader.push(bytes));
        let frames =
            std::iter::from_fn(|| reader.next_frame().expect("our own frames are in order"));
        frames.collect()
    }

    /// The kinds of the frames that leave now.
    pub(crate) fn sent_kinds(&mut self) -> Vec<Kind> {
        self.sent().into_iter().map(|frame| frame.kind).collect()
    }

    /// The connection was closed over this, with a goodbye that says so and nothing behind it.
    #[track_caller]
    pub(crate) fn assert_misbehaved(&mut self) -> Misbehaviour {
        let last = self.events().pop();
        let Some(Event::Closed(ConnectionError::PeerMisbehaved(misbehaviour))) = last else {
            panic!("not closed for misbehaviour, the last event is {last:?}")
        };
        let frames = self.sent();
        assert_eq!(frames.last().map(|frame| frame.kind), Some(Kind::Goodbye));
        assert!(self.connection.is_closed());
        assert_eq!(self.connection.channels_open(), 0);
        assert_eq!(self.connection.poll_timeout(), None);
        misbehaviour
    }

    #[track_caller]
    pub(crate) fn assert_open(&mut self) {
        assert!(!self.connection.is_closed(), "{:?}", self.events());
    }
}
