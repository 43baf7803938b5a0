//! A client and a server, joined by two links.

use std::collections::VecDeque;
use std::time::Duration;

use afar_proto::message::OpenSpec;
use afar_proto::{ChannelId, Config, Connection, Event, Instant, Role};

use super::link::Link;
use super::samples;

/// Two connections joined in memory.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) client: Connection,
    pub(crate) server: Connection,
    /// Client to server.
    pub(crate) up: Link,
    /// Server to client.
    pub(crate) down: Link,
    pub(crate) client_events: VecDeque<Event>,
    pub(crate) server_events: VecDeque<Event>,
    /// Bytes that a side hands out at a time.
    pub(crate) budget: usize,
}

impl Pair {
    /// Both hellos have arrived, and their events are taken.
    pub(crate) fn new() -> Self {
        Self::with(Config::default(), Config::default())
    }

    pub(crate) fn with(client: Config, server: Config) -> Self {
        let mut pair = Self::silent(client, server);
        pair.drive();
        assert!(matches!(pair.client_events.pop_front(), Some(Event::Ready(_))));
        assert!(matches!(pair.server_events.pop_front(), Some(Event::Ready(_))));
        pair
    }

    /// Nothing was exchanged yet.
    pub(crate) fn silent(client: Config, server: Config) -> Self {
        let now = Instant::ZERO;
        Self {
            now,
            client: Connection::new(Role::Client, client, now),
            server: Connection::new(Role::Server, server, now),
            up: Link::new(),
            down: Link::new(),
            client_events: VecDeque::new(),
            server_events: VecDeque::new(),
            budget: usize::MAX,
        }
    }

    /// Moves bytes until nothing moves any more at this point in time.
    pub(crate) fn drive(&mut self) {
        while self.step() {}
    }

    fn step(&mut self) -> bool {
        let sent =
            self.transmit(Role::Client, self.budget) + self.transmit(Role::Server, self.budget);
        let delivered =
            self.deliver(Role::Server, usize::MAX) + self.deliver(Role::Client, usize::MAX);
        sent + delivered > 0
    }

    /// Moves what `from` has to send onto its link.
    pub(crate) fn transmit(&mut self, from: Role, budget: usize) -> usize {
        let (connection, link) = match from {
            Role::Client => (&mut self.client, &mut self.up),
            Role::Server => (&mut self.server, &mut self.down),
        };
        let mut out = VecDeque::new();
        let told = connection.poll_transmit(&mut out, budget);
        let bytes: Vec<u8> = out.into_iter().flatten().collect();
        assert_eq!(told, bytes.len(), "poll_transmit tells how much it handed out");
        link.send(self.now, &bytes);
        self.collect();
        bytes.len()
    }

    /// Delivers what has arrived at `to`.
    pub(crate) fn deliver(&mut self, to: Role, max: usize) -> usize {
        let (connection, link) = match to {
            Role::Client => (&mut self.client, &mut self.down),
            Role::Server => (&mut self.server, &mut self.up),
        };
        let bytes = link.receive(self.now, max);
        if !bytes.is_empty() {
            connection.handle_input(self.now, &bytes);
        }
        self.collect();
        bytes.len()
    }

    pub(crate) fn collect(&mut self) {
        self.client_events.extend(std::iter::from_fn(|| self.client.poll_event()));
        self.server_events.extend(std::iter::from_fn(|| self.server.poll_event()));
    }

    /// Lets time pass, stopping wherever something is due.
    pub(crate) fn advance(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        self.drive();
        loop {
            let due = [
                self.client.poll_timeout(),
                self.server.poll_timeout(),
                self.up.next_arrival(),
                self.down.next_arrival(),
            ];
            let next = due.into_iter().flatten().min().filter(|at| *at <= end);
            self.now = next.unwrap_or(end).max(self.now);
            self.client.handle_timeout(self.now);
            self.server.handle_timeout(self.now);
            self.collect();
            self.drive();
            if next.is_none() {
                return;
            }
        }
    }

    /// Both ends see the end of the bytes; what was under way is lost.
    pub(crate) fn cut(&mut self) {
        self.up.lose();
        self.down.lose();
        self.client.handle_eof(self.now);
        self.server.handle_eof(self.now);
        self.collect();
    }

    /// A job that both sides have agreed on; the events of that are taken.
    pub(crate) fn open(&mut self, spec: &OpenSpec) -> ChannelId {
        let channel = self.client.open(spec).expect("a channel is free");
        self.drive();
        let event = self.server_events.pop_front();
        assert!(matches!(event, Some(Event::Open { channel: at, .. }) if at == channel));
        let opened = samples::opened(spec.job.as_str());
        self.server.channel(channel).expect("it was opened").accept(&opened);
        self.drive();
        assert_eq!(self.client_events.pop_front(), Some(Event::Opened { channel, opened }));
        channel
    }

    /// The events so far at the client.
    pub(crate) fn client_events(&mut self) -> Vec<Event> {
        self.client_events.drain(..).collect()
    }

    /// The events so far at the server.
    pub(crate) fn server_events(&mut self) -> Vec<Event> {
        self.server_events.drain(..).collect()
    }
}
