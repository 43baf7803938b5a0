//! Sessions as the wire has them.

use afar_proto::connection::Role;
use afar_proto::frame::Kind;
use afar_proto::json;
use afar_proto::limits::SESSION_NAME_CHARS_MAX;
use afar_proto::message::{
    Command, FEATURE_SESSION, JobHello, OpenSpec, SessionName, SessionRef, SessionScope,
};
use afar_proto::outcome::Seal;

use afar_proto::{Config, Event};

use crate::rig::lone::{Lone, frame};
use crate::rig::pair::Pair;
use crate::rig::samples;

fn in_session(scope: SessionScope) -> OpenSpec {
    let name = SessionName::new("build").unwrap();
    let session = Some(SessionRef { name, scope });
    OpenSpec { command: Command::Script("cd /tmp".into()), session, ..samples::spec("job") }
}

/// W-5.9
#[test]
fn a_command_of_a_session_arrives_with_it() {
    for scope in [SessionScope::User, SessionScope::Connection] {
        let mut pair = Pair::new();
        let spec = in_session(scope);
        pair.client.open(&spec).unwrap();
        pair.drive();
        let events = pair.server_events();
        let Some(Event::Open { spec: seen, .. }) = events.last() else { panic!("{events:?}") };
        assert_eq!(**seen, spec);
    }
}

/// W-5.9: whoever does not know of sessions misses the command, and so refuses.
#[test]
fn the_command_of_a_session_stands_in_no_other_place() {
    let value: serde_json::Value =
        serde_json::from_slice(&json::to_vec(&in_session(SessionScope::User))).unwrap();
    assert_eq!(value.get("command"), None);
    assert_eq!(value["session"]["command"]["script"], "cd /tmp");
    assert_eq!(value["session"]["scope"], "user");
}

/// W-5.9, W-5.4: no command, two, or a session that is none.
#[test]
fn a_session_that_makes_no_sense_is_refused() {
    let requests = [
        r#"{"job":"j"}"#,
        r#"{"job":"j","session":{"name":"s","scope":"user"}}"#,
        r#"{"job":"j","command":{"argv":["a"]},"session":{"name":"s","scope":"user","command":{"argv":["a"]}}}"#,
        r#"{"job":"j","session":{"name":"a b","scope":"user","command":{"argv":["a"]}}}"#,
        r#"{"job":"j","session":{"name":"","scope":"user","command":{"argv":["a"]}}}"#,
        r#"{"job":"j","session":{"name":"s","scope":"world","command":{"argv":["a"]}}}"#,
        r#"{"job":"j","session":{"scope":"user","command":{"argv":["a"]}}}"#,
    ];
    let mut lone = Lone::new(Role::Server);
    for (request, channel) in requests.iter().zip((1..).step_by(2)) {
        lone.input(&frame(Kind::Open, 0, channel, request.as_bytes()));
        assert_eq!(lone.events(), [], "{request}");
        lone.assert_open();
    }
    let sense = r#"{"job":"j","session":{"name":"s","scope":"user","command":{"argv":["a"]}}}"#;
    lone.input(&frame(Kind::Open, 0, 101, sense.as_bytes()));
    assert!(matches!(lone.events()[..], [Event::Open { .. }]));
}

/// W-9.22
#[test]
fn a_name_has_a_length() {
    assert!(SessionName::new(&"n".repeat(SESSION_NAME_CHARS_MAX)).is_ok());
    assert!(SessionName::new(&"n".repeat(SESSION_NAME_CHARS_MAX + 1)).is_err());
    assert!(SessionName::new("a").is_ok());
    for bad in ["", "a b", "a/b", "\u{e9}", "a\n"] {
        assert!(SessionName::new(bad).is_err(), "{bad:?}");
    }
}

/// W-7.6: the word is there when it is true, and nowhere else.
#[test]
fn a_lost_shell_is_told_by_the_seal() {
    let empty = samples::sealer_of(b"");
    let seal = samples::seal(&empty, &empty);
    assert!(!String::from_utf8(json::to_vec(&seal)).unwrap().contains("session"));
    let lost = Seal { session_restarted: true, ..seal };
    let text = json::to_vec(&lost);
    assert!(String::from_utf8(text.clone()).unwrap().contains(r#""session_restarted":true"#));
    assert_eq!(json::from_slice::<Seal>(&text).unwrap(), lost);
}

/// W-5.1: a server tells what it has.
#[test]
fn a_feature_is_told_in_the_hello() {
    let config = Config { features: vec![FEATURE_SESSION.to_owned()], ..Config::default() };
    let mut pair = Pair::silent(Config::default(), config);
    pair.drive();
    let events = pair.client_events();
    let [Event::Ready(JobHello { features, .. })] = &events[..] else { panic!("{events:?}") };
    assert_eq!(features, &["session"]);
}
