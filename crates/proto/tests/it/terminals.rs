//! Jobs with a terminal: what OPEN says of it, and that older servers run nothing without one.

use std::collections::BTreeMap;

use afar_proto::json;
use afar_proto::limits::{TERMINAL_MODES_MAX, TERMINAL_NAME_BYTES_MAX};
use afar_proto::message::{Attached, Command, OpenSpec, Resize, Terminal};

use crate::rig::samples;

fn terminal() -> Terminal {
    Terminal {
        name: "xterm-256color".into(),
        size: Resize { columns: 120, rows: 40, width_px: 960, height_px: 800 },
        modes: BTreeMap::from([("erase".to_owned(), 127), ("ixon".to_owned(), 0)]),
    }
}

fn on(terminal: Terminal) -> OpenSpec {
    let terminal = Some(Box::new(terminal));
    OpenSpec { command: Command::Shell {}, terminal, ..samples::spec("job") }
}

/// W-5.13
#[test]
fn a_terminal_arrives_as_it_was_asked_for() {
    let bare = Terminal { size: Resize::default(), modes: BTreeMap::new(), ..terminal() };
    for terminal in [terminal(), bare] {
        let spec = on(terminal);
        assert_eq!(json::from_slice::<OpenSpec>(&json::to_vec(&spec)).unwrap(), spec);
    }
    // Without a terminal, a login shell reads pipes.
    let piped = OpenSpec { terminal: None, ..on(terminal()) };
    assert_eq!(json::from_slice::<OpenSpec>(&json::to_vec(&piped)).unwrap(), piped);
}

/// W-5.13: whoever does not know of terminals misses the command, and so refuses.
#[test]
fn the_command_of_a_terminal_stands_in_no_other_place() {
    let value: serde_json::Value = serde_json::from_slice(&json::to_vec(&on(terminal()))).unwrap();
    assert!(value.get("command").is_none());
    assert!(value["terminal"]["command"]["shell"].is_object());
    assert_eq!(value["terminal"]["size"]["columns"], 120);
}

/// W-5.13, W-9.28
#[test]
fn a_terminal_that_makes_no_sense_is_refused() {
    let sense = r#"{"job":"j","terminal":{"name":"x","size":{"columns":0,"rows":0},"command":{"argv":["a"]}}}"#;
    assert!(json::from_slice::<OpenSpec>(sense.as_bytes()).is_ok());
    for text in [
        r#"{"job":"j","terminal":{"name":"x","size":{"columns":0,"rows":0}}}"#,
        r#"{"job":"j","terminal":{"name":"","size":{"columns":0,"rows":0},"command":{"argv":["a"]}}}"#,
        r#"{"job":"j","terminal":{"name":"x","command":{"argv":["a"]}}}"#,
        r#"{"job":"j","terminal":{"name":"x","size":{"columns":-1,"rows":0},"command":{"argv":["a"]}}}"#,
        r#"{"job":"j","command":{"argv":["a"]},"terminal":{"name":"x","size":{"columns":0,"rows":0},"command":{"argv":["a"]}}}"#,
        r#"{"job":"j","session":{"name":"s","scope":"user","command":{"argv":["a"]}},"terminal":{"name":"x","size":{"columns":0,"rows":0},"command":{"argv":["a"]}}}"#,
    ] {
        assert!(json::from_slice::<OpenSpec>(text.as_bytes()).is_err(), "{text}");
    }
    let read = |spec: &OpenSpec| json::from_slice::<OpenSpec>(&json::to_vec(spec));
    let named = |bytes| on(Terminal { name: vec![b'x'; bytes].into(), ..terminal() });
    assert!(read(&named(TERMINAL_NAME_BYTES_MAX)).is_ok());
    assert!(read(&named(TERMINAL_NAME_BYTES_MAX + 1)).is_err());
    let moded = |count: usize| {
        let modes = (0..count).map(|number| (format!("m{number}"), 1)).collect();
        on(Terminal { modes, ..terminal() })
    };
    assert!(read(&moded(TERMINAL_MODES_MAX)).is_ok());
    assert!(read(&moded(TERMINAL_MODES_MAX + 1)).is_err());
}

/// J-1.2: asked for from another window, it is the same job; without a terminal it is another one.
#[test]
fn how_the_terminal_looks_is_no_part_of_the_request() {
    let other = Terminal { name: "vt100".into(), size: Resize::default(), modes: BTreeMap::new() };
    assert_eq!(on(terminal()).digest(), on(other).digest());
    let piped = OpenSpec { terminal: None, ..on(terminal()) };
    assert_ne!(on(terminal()).digest(), piped.digest());
    let program = OpenSpec { command: Command::Script("vi".into()), ..on(terminal()) };
    assert_ne!(on(terminal()).digest(), program.digest());
}

/// W-6.7
#[test]
fn who_attaches_learns_that_there_is_a_terminal() {
    let attached = Attached { terminal: true, ..samples::attached(1, 0, Some(2)) };
    let text = json::to_vec(&attached);
    assert!(json::from_slice::<Attached>(&text).unwrap().terminal);
    let without = Attached { terminal: false, ..attached };
    assert!(!String::from_utf8(json::to_vec(&without)).unwrap().contains("terminal"));
}
