//! What is wrong with a request is refused; the connection and its other jobs go on.

use afar_proto::connection::OpenError;
use afar_proto::frame::{FLAG_MORE, Kind};
use afar_proto::limits::{CONTROL_PAYLOAD_BYTES_MAX, JOB_ID_CHARS_MAX, OPEN_BYTES_MAX};
use afar_proto::message::{Command, JobId, OpenSpec, Refused};
use afar_proto::outcome::{RefusalReason, Started};
use afar_proto::{Event, Misbehaviour, Role, json};

use crate::rig::lone::{Lone, frame};
use crate::rig::pair::Pair;
use crate::rig::samples;

/// The request is refused before anybody was asked, and the next one is taken.
#[track_caller]
fn assert_refused(kind: Kind, body: &[u8]) {
    let mut lone = Lone::new(Role::Server);
    let chunk_max = CONTROL_PAYLOAD_BYTES_MAX as usize;
    let mut rest = body;
    while let Some((chunk, more)) =
        rest.split_at_checked(chunk_max).filter(|(_, more)| !more.is_empty())
    {
        lone.input(&frame(kind, FLAG_MORE, 1, chunk));
        rest = more;
    }
    lone.input(&frame(kind, 0, 1, rest));
    assert_eq!(lone.events(), [], "the application is not asked");
    let sent = lone.sent();
    assert_eq!((sent[0].kind, sent[0].channel), (Kind::Refused, 1));
    let refused: Refused = json::from_slice(&sent[0].payload).unwrap();
    assert_eq!((refused.reason, refused.started), (RefusalReason::Invalid, Started::No));
    lone.input(&crate::rig::lone::open(3, &samples::spec("next")));
    assert!(matches!(lone.events()[..], [Event::Open { .. }]));
}

fn with_field(field: &str) -> Vec<u8> {
    let spec = String::from_utf8(json::to_vec(&samples::spec("job"))).unwrap();
    format!("{{{field},{}", &spec[1..]).into_bytes()
}

#[test]
fn a_request_with_an_unknown_field_is_taken() {
    let mut lone = Lone::new(Role::Server);
    lone.input(&frame(Kind::Open, 0, 1, &with_field(r#""later":{"a":[1]}"#)));
    assert!(matches!(lone.events()[..], [Event::Open { .. }]));
}

/// W-5.4
#[test]
fn fault_23_a_deeply_nested_request_is_refused() {
    let deep = 100_000;
    let field = format!(r#""later":{}{}"#, "[".repeat(deep), "]".repeat(deep));
    assert_refused(Kind::Open, &with_field(&field));
    let field = format!(r#""later":{}1{}"#, r#"{"a":"#.repeat(deep), "}".repeat(deep));
    assert_refused(Kind::Open, &with_field(&field));
}

#[test]
fn fault_24_a_request_with_a_duplicate_key_is_refused() {
    assert_refused(Kind::Open, &with_field(r#""job":"other""#));
    assert_refused(Kind::Open, &with_field(r#""later":{"a":1,"\u0061":2}"#));
    let attach = br#"{"job":"j","streams":{"stdout":1,"stdout":2}}"#;
    assert_refused(Kind::Attach, attach);
}

#[test]
fn fault_25_a_request_that_not_every_reader_understands_the_same_is_refused() {
    for value in [
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        "1e400",
        "9007199254740993",
        "-9007199254740993",
        "123456789012345678901234567890",
        "NaN",
        "01",
    ] {
        assert_refused(Kind::Open, &with_field(&format!(r#""later":{value}"#)));
    }
    let mut invalid = with_field(r#""later":"@""#);
    let at = invalid.iter().position(|byte| *byte == b'@').unwrap();
    invalid[at] = 0xff;
    assert_refused(Kind::Open, &invalid);
}

/// W-2.7: before authentication there is nothing to refuse, and elsewhere nobody to tell.
#[test]
fn fault_23_24_25_malformed_json_that_is_no_request_ends_the_connection() {
    let deep = "[".repeat(10_000);
    let bodies = [
        format!(r#"{{"version":1,"x":{deep}"#),
        r#"{"version":1,"version":1}"#.into(),
        r#"{"version":1e400}"#.into(),
    ];
    for body in bodies {
        let mut responder = afar_proto::auth::Responder::new("s", afar_proto::Instant::ZERO);
        responder
            .handle_input(afar_proto::Instant::ZERO, &frame(Kind::Hello, 0, 0, body.as_bytes()));
        let event = responder.poll_event();
        assert!(matches!(event, Some(afar_proto::auth::ResponderEvent::Failed(_))), "{event:?}");

        let mut lone = Lone::silent(Role::Server, afar_proto::Config::default());
        lone.input(&frame(Kind::JobHello, 0, 0, body.as_bytes()));
        assert!(matches!(lone.assert_misbehaved(), Misbehaviour::MalformedJson { .. }));
    }
    let mut lone = Lone::server_with_job();
    lone.input(&frame(Kind::Signal, 0, 1, br#"{"name":"TERM","name":"KILL"}"#));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::MalformedJson { .. }));
}

#[test]
fn a_request_of_the_wrong_form_is_refused() {
    for body in ["", "[]", "null", "{}", r#"{"job":"a b","command":{"argv":["x"]}}"#, "{} {}"] {
        assert_refused(Kind::Open, body.as_bytes());
    }
}

/// W-5.5, W-9.2, W-9.4: a request of the largest size arrives whole, whatever its chunks.
#[test]
fn a_request_of_megabytes_comes_in_chunks() {
    let mut spec = samples::spec("large");
    let padding = OPEN_BYTES_MAX - json::to_vec(&spec_padded(&spec, 0)).len();
    spec = spec_padded(&spec, padding);
    assert_eq!(json::to_vec(&spec).len(), OPEN_BYTES_MAX);
    let mut pair = Pair::new();
    let channel = pair.client.open(&spec).unwrap();
    pair.drive();
    let expected = Event::Open { channel, spec: Box::new(spec.clone()) };
    assert!(pair.server_events() == [expected]);

    let longer = spec_padded(&samples::spec("large"), padding + 1);
    assert_eq!(pair.client.open(&longer), Err(OpenError::TooLong(OPEN_BYTES_MAX + 1)));
}

fn spec_padded(spec: &OpenSpec, padding: usize) -> OpenSpec {
    let script = "x".repeat(padding);
    OpenSpec { command: Command::Script(script.as_str().into()), ..spec.clone() }
}

/// W-9.4: at the server, the largest request, and a byte more.
#[test]
fn a_request_over_the_limit_ends_the_connection() {
    let mut lone = Lone::new(Role::Server);
    let chunk = vec![b' '; CONTROL_PAYLOAD_BYTES_MAX as usize];
    for _ in 0..OPEN_BYTES_MAX / chunk.len() {
        lone.input(&frame(Kind::Open, FLAG_MORE, 1, &chunk));
    }
    lone.assert_open();
    lone.input(&frame(Kind::Open, 0, 1, b" "));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::BadOpen(_)));
}

/// W-5.5: chunks of one request are not mixed with another's; other frames may come between.
#[test]
fn only_one_request_is_under_way() {
    let body = json::to_vec(&samples::spec("job"));
    let (head, tail) = body.split_at(10);
    let mut lone = Lone::server_with_job();
    lone.input(&frame(Kind::Open, FLAG_MORE, 3, head));
    lone.input(&crate::rig::lone::data(1, 0, 0, b"between"));
    lone.input(&frame(Kind::Ping, 0, 0, b"12345678"));
    lone.input(&frame(Kind::Open, 0, 3, tail));
    assert!(matches!(lone.events()[..], [Event::Data { .. }, Event::Open { .. }]));

    for (kind, channel) in [(Kind::Open, 5), (Kind::Attach, 5), (Kind::Attach, 3)] {
        let mut lone = Lone::server_with_job();
        lone.input(&frame(Kind::Open, FLAG_MORE, 3, head));
        lone.input(&frame(kind, 0, channel, tail));
        assert!(matches!(lone.assert_misbehaved(), Misbehaviour::BadOpen(_)));
    }
    let mut lone = Lone::server_with_job();
    lone.input(&frame(Kind::Open, FLAG_MORE, 3, b""));
    assert!(matches!(lone.assert_misbehaved(), Misbehaviour::BadOpen(_)));
}

/// W-9.19: the characters and the length of an id.
#[test]
fn a_job_id_is_short_and_plain() {
    let longest = "x".repeat(JOB_ID_CHARS_MAX);
    for good in ["a", "A.b_c-9", longest.as_str()] {
        assert!(JobId::new(good).is_ok(), "{good}");
    }
    let too_long = "x".repeat(JOB_ID_CHARS_MAX + 1);
    for bad in ["", "a b", "a/b", "é", "a\n", "\0", too_long.as_str()] {
        assert!(JobId::new(bad).is_err(), "{bad}");
    }
}

/// W-2.8: arguments and variables are bytes, every one of them.
#[test]
fn argv_env_and_paths_arrive_as_the_bytes_they_are() {
    let every: Vec<u8> = (0..=u8::MAX).collect();
    let spec = OpenSpec {
        command: Command::Argv(vec![every.clone().into(), "".into(), "$HOME *\n\"q\"".into()]),
        cwd: Some(vec![b'/', 0xff].into()),
        env: vec![(vec![0xfe].into(), every.into()), ("A".into(), "=".into())],
        ..samples::spec("job")
    };
    let mut pair = Pair::new();
    let channel = pair.client.open(&spec).unwrap();
    pair.drive();
    assert_eq!(pair.server_events(), [Event::Open { channel, spec: Box::new(spec) }]);
}
