//! What only the inside shows: that nothing is kept which is not needed any more.

use std::collections::BTreeMap;

use super::*;
use crate::message::{Command, JobId, Opened};

fn spec() -> OpenSpec {
    let command = Command::Argv(vec!["true".into()]);
    OpenSpec { stdin: true, ..OpenSpec::new(JobId::new("job").unwrap(), command) }
}

fn frame(kind: Kind, flags: u8, channel: u32, payload: &[u8]) -> Bytes {
    Frame { kind, flags, channel, payload: Bytes::copy_from_slice(payload) }.to_bytes()
}

/// A server that holds something of everything.
fn busy_server() -> Connection {
    let mut server = Connection::new(Role::Server, Config::default(), Instant::ZERO);
    let hello = br#"{"version":1}"#;
    server.handle_input(Instant::ZERO, &frame(Kind::JobHello, 0, 0, hello));
    for channel in [1, 3] {
        let open = frame(Kind::Open, 0, channel, &json::to_vec(&spec()));
        server.handle_input(Instant::ZERO, &open);
        let window = frame(Kind::Window, 1, channel, &[0, 0, 1, 0]);
        server.handle_input(Instant::ZERO, &window);
        let id = ChannelId(channel);
        let job = JobId::new("job").unwrap();
        let opened = Opened { job, pid: 1, started_at_us: 1, note: None };
        server.channel(id).unwrap().accept(&opened);
        server.channel(id).unwrap().write(Stream::Stdout, 0, Bytes::from_static(b"x")).unwrap();
    }
    server.handle_input(Instant::ZERO, &frame(Kind::Close, 0, 3, b""));
    server.handle_input(Instant::ZERO, &frame(Kind::Open, FLAG_MORE, 5, b"{"));
    server.handle_input(Instant::ZERO, b"half a header"[..7].as_ref());
    server
}

/// W-8.4: a connection that was cut, or broken, holds nothing but its last words.
#[test]
fn fault_01_everything_is_freed_when_it_ends() {
    for (input, goodbye) in [(None, false), (Some(&b"\xbf\0\0\0\0"[..]), true)] {
        let mut server = busy_server();
        assert_eq!(server.channels.len(), 1);
        assert_eq!(server.abandoned.len(), 1);
        assert!(server.partial_open.is_some() && server.reader.buffered() == 7);
        match input {
            None => server.handle_eof(Instant::ZERO),
            Some(bytes) => server.handle_input(Instant::ZERO, bytes),
        }
        assert!(server.is_closed());
        assert!(server.channels.is_empty() && server.abandoned.is_empty());
        assert!(server.partial_open.is_none() && server.reader.buffered() == 0);
        let mut out = VecDeque::new();
        server.poll_transmit(&mut out, usize::MAX);
        assert_eq!(out.len(), usize::from(goodbye));
        assert_eq!(server.poll_transmit(&mut out, usize::MAX), 0);
    }
}

/// W-8.3: closing in order frees the rest as soon as it has left.
#[test]
fn what_is_queued_is_freed_as_it_leaves() {
    let mut server = busy_server();
    server.close(GoodbyeCode::Done, "");
    let mut out = VecDeque::new();
    server.poll_transmit(&mut out, usize::MAX);
    assert!(server.channels.values().all(|channel| channel.queue.is_empty()));
    assert_eq!(out.back().and_then(|last| last.first()), Some(&Kind::Goodbye.to_byte()));
}

/// A channel that ends at the client leaves nothing behind in the outbox either.
#[test]
fn a_closed_channel_is_forgotten() {
    let mut client = Connection::new(Role::Client, Config::default(), Instant::ZERO);
    let opened = client.open(&spec()).unwrap();
    let attach = Attach::new(JobId::new("job").unwrap(), BTreeMap::new());
    let attached = client.attach(&attach, BTreeMap::new()).unwrap();
    client.channel(opened).unwrap().close();
    client.channel(attached).unwrap().reset("no");
    client.poll_transmit(&mut VecDeque::new(), usize::MAX);
    assert!(client.channels.is_empty());
    assert_eq!(client.outbox.control_bytes(), 0);
    assert_eq!(client.outbox.pongs(), 0);
}
