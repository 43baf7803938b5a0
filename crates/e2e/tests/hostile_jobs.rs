//! What somebody may send who was let in: a rule that is broken ends the connection with a reason,
//! or the job, or the request, and nothing else.
#![cfg(test)]

use std::sync::atomic::{AtomicU64, Ordering};

use afar_e2e::Host;
use afar_e2e::raw::{
    End, Key, RawClient, Witness, control, data, frame, header, job_hello, open, spec, window,
};
use afar_proto::frame::Kind;
use afar_proto::json;
use afar_proto::limits::{
    CONTROL_PAYLOAD_BYTES_MAX, DATA_BYTES_MAX, DATA_PREFIX_BYTES, EMPTY_FRAMES_MAX, OPEN_BYTES_MAX,
    WINDOW_BYTES_INITIAL, WINDOW_BYTES_MAX,
};
use afar_proto::message::OpenSpec;

fn log_in(host: &Host) -> RawClient {
    RawClient::log_in(host.address(), &Key::of_file(&host.key()), host.user())
}

/// An id that no other job has, not even one that is still being ended.
fn fresh_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("job-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// With a job that reads its stdin on channel 1.
fn log_in_with_cat(host: &Host) -> RawClient {
    let mut client = log_in(host);
    client.open(1, &OpenSpec { stdin: true, ..spec(&fresh_id(), &["cat"]) });
    client.link.expect(Kind::Opened);
    client
}

fn of_channel(kind: Kind, flags: u8, channel: u32, payload: &[u8]) -> Vec<u8> {
    frame(kind.to_byte(), flags, channel, payload)
}

/// What is sent, in words and in bytes.
type Sent = (String, Vec<u8>);

fn sent(what: &str, bytes: Vec<u8>) -> Sent {
    (what.to_owned(), bytes)
}

/// Each of these ends a connection that has a job on channel 1.
fn ends() -> Vec<Sent> {
    let data_max = u32::try_from(DATA_PREFIX_BYTES + DATA_BYTES_MAX).unwrap();
    let mut ends = vec![
        sent(
            "fault_02 control",
            header(Kind::Signal.to_byte(), 0, 1, CONTROL_PAYLOAD_BYTES_MAX + 1),
        ),
        sent("fault_02 data", header(Kind::Data.to_byte(), 0, 1, data_max + 1)),
        sent("fault_02 ignorable", header(0xc0, 0, 0, CONTROL_PAYLOAD_BYTES_MAX + 1)),
        sent("fault_03 all bits", header(Kind::Data.to_byte(), 0, 1, u32::MAX)),
        sent("fault_03 sign bit", header(Kind::Open.to_byte(), 0, 3, 1 << 31)),
        sent("fault_04", data(1, 0, 0, b"").repeat(usize::try_from(EMPTY_FRAMES_MAX).unwrap() + 1)),
        sent("fault_09", frame(0x70, 0, 0, b"")),
        sent("fault_09 last", frame(0xbf, 0, 0, b"")),
        sent("fault_12 hello", job_hello()),
        sent("fault_13", data(7, 0, 0, b"x")),
        sent("fault_13 signal", of_channel(Kind::Signal, 0, 7, b"{\"name\":\"TERM\"}")),
        sent("fault_13 close", of_channel(Kind::Close, 0, 7, b"")),
        sent("fault_15 zero", open(0, &spec("x", &["true"]))),
        sent("fault_15 even", open(2, &spec("x", &["true"]))),
        sent("fault_15 again", open(1, &spec("x", &["true"]))),
        sent(
            "fault_15 back",
            [open(5, &spec("x", &["true"])), open(3, &spec("y", &["true"]))].concat(),
        ),
        sent("fault_20 zero", window(1, 1, 0)),
        sent("fault_20 much", [window(1, 1, u32::MAX), window(1, 1, u32::MAX)].concat()),
        sent("fault_20 at once", window(1, 1, u32::try_from(WINDOW_BYTES_MAX).unwrap() + 1)),
        sent("fault_22", control(Kind::Ping, b"12345678").repeat(1 << 16)),
        sent("a short PING", control(Kind::Ping, b"1234567")),
        sent("fault_23", of_channel(Kind::Signal, 0, 1, "[".repeat(60_000).as_bytes())),
        sent("fault_24", of_channel(Kind::Signal, 0, 1, br#"{"name":"A","name":"B"}"#)),
        sent("fault_25", of_channel(Kind::Signal, 0, 1, b"{\"name\":\"\xff\"}")),
        sent("fault_26", of_channel(Kind::Data, 0, 1, &[0; 15])),
        sent("no such stream", of_channel(Kind::Data, 3, 1, &[0; 17])),
        sent("a flag", of_channel(Kind::Close, 1, 1, b"")),
        sent("output of the client's", data(1, 1, 0, b"x")),
        sent("credit for its own stream", window(1, 0, 1)),
        sent("a connection's frame on a channel", of_channel(Kind::Ping, 0, 1, b"12345678")),
    ];
    for kind in [
        Kind::Hello,
        Kind::AuthQuery,
        Kind::AuthQueryResult,
        Kind::Auth,
        Kind::AuthOk,
        Kind::AuthRefused,
        Kind::HandOff,
        Kind::Grant,
        Kind::Opened,
        Kind::Attached,
        Kind::Refused,
        Kind::Exit,
        Kind::Seal,
    ] {
        for channel in [0, 1] {
            let what = format!("fault_11 {kind:?} on {channel}");
            ends.push((what, of_channel(kind, 0, channel, b"{}")));
        }
    }
    let chunk = "x".repeat(60_000);
    let chunks = of_channel(Kind::Open, 1, 3, chunk.as_bytes());
    let two = [chunks.clone(), of_channel(Kind::Open, 1, 5, chunk.as_bytes())].concat();
    ends.push(sent("an OPEN too long", chunks.repeat(OPEN_BYTES_MAX / 60_000 + 1)));
    ends.push(sent("an OPEN within an OPEN", two));
    ends.push(sent("an empty chunk", of_channel(Kind::Open, 1, 3, b"")));
    ends
}

#[test]
fn fault_02_03_04_09_11_12_13_15_20_22_26_a_broken_rule_ends_the_connection_with_a_reason() {
    let host = Host::start();
    let mut witness = Witness::new(&host);
    for (what, bytes) in ends() {
        let mut client = log_in_with_cat(&host);
        client.link.send(&bytes);
        let mut said = Vec::new();
        let end = loop {
            match client.link.next_frame() {
                Ok(frame) => said.push(frame),
                Err(end) => break end,
            }
        };
        let Some(goodbye) = said.last().filter(|frame| frame.is(Kind::Goodbye)) else {
            panic!("{what}: {end:?} without a goodbye");
        };
        assert_eq!(goodbye.json()["code"], "protocol", "{what}: {goodbye:?}");
        assert_eq!(end, End::Closed, "{what}");
        witness.assert_served();
    }
    drop(witness);
    host.wait_until_idle();
}

#[test]
fn fault_12_the_first_frame_of_the_job_part_is_its_hello() {
    let host = Host::start();
    let canary = host.file("canary");
    let key = Key::of_file(&host.key());
    for first in [
        open(1, &spec("x", &["touch", canary.to_str().unwrap()])),
        control(Kind::JobHello, b"{\"version\":0}"),
        control(Kind::Ping, b"12345678"),
        frame(0xbf, 0, 0, b""),
        // A second AUTH behind the first one, and a grant of one's own making.
        control(Kind::Auth, b"\0\0\0\x02{}"),
        control(Kind::Grant, br#"{"kind":"local","user":"root","uid":0}"#),
    ] {
        let mut client = RawClient::connect(host.address());
        let flight = [client.hello(), client.auth(&key, host.user()), first].concat();
        let wanted = [job_hello(), open(1, &spec("y", &["touch", canary.to_str().unwrap()]))];
        client.link.send(&[flight, wanted.concat()].concat());
        client.link.expect(Kind::AuthOk);
        client.link.expect_goodbye();
    }
    assert!(!canary.exists());
}

#[test]
fn a_goodbye_arrives_whatever_is_sent_behind_what_it_is_about() {
    // Far more than the listener and the sockets hold, so that it breaks somewhere on its way.
    let behind = data(1, 0, 0, &vec![0; 64 * 1024]).repeat(64);
    let host = Host::start();
    for _ in 0..50 {
        let mut client = log_in(&host);
        client.link.send(&[frame(0x70, 0, 0, b""), behind.clone()].concat());
        let (code, message) = client.link.expect_goodbye();
        assert_eq!((code.as_str(), message.contains("0x70")), ("protocol", true), "{message}");
    }
}

#[test]
fn fault_23_24_25_a_bad_request_is_refused_and_the_connection_goes_on() {
    let host = Host::start();
    let mut witness = Witness::new(&host);
    let canary = host.file("canary");
    let good = String::from_utf8(json::to_vec(&spec("x", &["touch", canary.to_str().unwrap()])));
    let good = good.unwrap();
    let also = |field: &str| good.replacen('{', &format!("{{{field},"), 1).into_bytes();
    let deep = format!("\"later\":{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let requests: Vec<Vec<u8>> = vec![
        also(&deep),
        also(&format!("\"later\":{}{}", "[".repeat(32), "]".repeat(32))),
        also("\"job\":\"x\""),
        also("\"later\":{\"a\":1,\"a\":1}"),
        also("\"later\":1e400"),
        also("\"later\":9007199254740993"),
        also("\"later\":\"\\ud800\""),
        good.replacen("touch", "t\u{0}ouch", 1).into_bytes(),
        good.replacen("\"x\"", "\"../x\"", 1).into_bytes(),
        good.replacen("argv", "args", 1).into_bytes(),
        [good.as_bytes(), b"\xff"].concat(),
        good.clone().into_bytes()[1..].to_vec(),
        b"{}".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        Vec::new(),
        b"{".repeat(200_000),
    ];
    let mut client = log_in(&host);
    let mut channel = 1;
    for request in requests {
        let mut chunks = request.chunks(64 * 1024).peekable();
        let mut bytes = Vec::new();
        if request.is_empty() {
            bytes = of_channel(Kind::Open, 0, channel, b"");
        }
        while let Some(chunk) = chunks.next() {
            let more = u8::from(chunks.peek().is_some());
            bytes.extend(of_channel(Kind::Open, more, channel, chunk));
        }
        client.link.send(&bytes);
        let refused = client.link.expect(Kind::Refused);
        let shown = request.get(..80).unwrap_or(&request).escape_ascii().to_string();
        assert_eq!(refused.channel, channel, "{shown}");
        let refused = refused.json();
        assert_eq!(refused["reason"], "invalid", "{shown}: {refused}");
        assert_eq!(refused["started"], "no", "{shown}");
        channel += 2;
    }
    assert!(!canary.exists());
    // The same connection still serves.
    client.open(channel, &spec("good", &["true"]));
    assert_eq!(client.link.expect(Kind::Seal).json()["end"]["code"], 0);
    witness.assert_served();
}

#[test]
fn fault_14_19_28_what_breaks_a_stream_ends_its_job_only() {
    let host = Host::start();
    let end = |offset: u64| of_channel(Kind::End, 0, 1, &offset.to_be_bytes());
    let window_bytes = usize::try_from(WINDOW_BYTES_INITIAL).unwrap();
    let beyond: Vec<u8> = (0..=window_bytes / DATA_BYTES_MAX)
        .flat_map(|piece| {
            let offset = u64::try_from(piece * DATA_BYTES_MAX).unwrap();
            data(1, 0, offset, &vec![b'x'; DATA_BYTES_MAX])
        })
        .collect();
    let cases = [
        ("data after the end", [end(0), data(1, 0, 0, b"x")].concat()),
        ("two ends", [end(0), end(0)].concat()),
        ("an end at another offset", end(1)),
        ("data at another offset", data(1, 0, 1, b"x")),
        ("data beyond the window", beyond),
        ("acknowledged what was never sent", of_channel(Kind::Ack, 1, 1, &9_u64.to_be_bytes())),
    ];
    for (what, bytes) in cases {
        let mut client = log_in(&host);
        // It reads nothing, so that no credit is given back.
        client.open(1, &OpenSpec { stdin: true, ..spec(&fresh_id(), &["sleep", "300"]) });
        client.open(3, &OpenSpec { stdin: true, ..spec(&fresh_id(), &["cat"]) });
        client.link.expect(Kind::Opened);
        client.link.expect(Kind::Opened);
        client.link.send(&bytes);
        let reset = client.link.expect(Kind::Reset);
        assert_eq!(reset.channel, 1, "{what}: {reset:?}");
        // What is on its way to a channel that has just closed is passed over.
        client.link.send(&data(1, 0, 0, b"late"));
        client.link.send(&data(3, 0, 0, b"ping"));
        let echo = client.link.expect(Kind::Data);
        assert_eq!((echo.channel, &echo.payload[16..]), (3, b"ping".as_slice()), "{what}");
    }
    host.wait_until_idle();
}

#[test]
fn what_is_ignorable_is_ignored() {
    let host = Host::start();
    let mut client = log_in_with_cat(&host);
    for kind in [0xc0, 0xd7, 0xff] {
        client.link.send(&frame(kind, 0xff, 77, &vec![0xff; 64 * 1024]));
    }
    // A hint that means nothing here (W-7.1).
    client.link.send(&of_channel(Kind::Signal, 0, 1, b"{\"name\":\"NONE\"}"));
    client.link.send(&data(1, 0, 0, b"ping"));
    assert!(client.link.expect(Kind::Data).payload.ends_with(b"ping"));
}
