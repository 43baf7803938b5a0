//! Tests of the strict reader, and of bytes in JSON.

use std::collections::BTreeMap;

use super::*;

/// Whether `text` is read; what it says is no matter here.
fn reads(text: &str) -> bool {
    from_slice::<BTreeMap<String, serde_json::Value>>(text.as_bytes()).is_ok()
}

fn nested(depth: usize, open: &str, close: &str) -> String {
    // The object around it is a level of its own.
    let inner = depth.saturating_sub(1);
    format!(r#"{{"a":{}1{}}}"#, open.repeat(inner), close.repeat(inner))
}

/// W-2.7, W-9.5: as deep as may be, and one deeper; and far deeper, without a stack overflow.
#[test]
fn fault_23_nesting_has_a_limit() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        assert!(reads(&nested(JSON_DEPTH_MAX, open, close)));
        assert!(!reads(&nested(JSON_DEPTH_MAX + 1, open, close)));
        assert!(!reads(&nested(100_000, open, close)));
    }
    assert!(!reads(&"[".repeat(100_000)));
}

/// W-2.7: a key twice, at any depth, however it is written.
#[test]
fn fault_24_duplicate_keys_are_refused() {
    assert!(reads(r#"{"a":1,"b":{"a":2},"c":[{"a":3},{"a":4}]}"#));
    for twice in [
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"\u0061":1}"#,
        r#"{"b":{"c":[{"a":1,"x":2,"a":1}]}}"#,
        r#"{"":1,"":1}"#,
    ] {
        assert!(!reads(twice), "{twice}");
    }
}

/// W-2.7, W-9.5: text that is UTF-8, numbers that every reader keeps exact.
#[test]
fn fault_25_text_and_numbers_are_what_every_reader_takes_them_for() {
    for good in ["9007199254740992", "-9007199254740992", "0", "1.5", "1e15", "\"\\ud83d\\ude00\""]
    {
        assert!(reads(&format!(r#"{{"a":{good}}}"#)), "{good}");
    }
    for bad in [
        "9007199254740993",
        "-9007199254740993",
        "18446744073709551616",
        "1e400",
        "-1e400",
        "1e17",
        "NaN",
        "Infinity",
        "00",
        "+1",
        ".5",
        "\"\\ud800\"",
        "\"\\ude00\\ud83d\"",
        "\"\t\"",
        "'a'",
    ] {
        assert!(!reads(&format!(r#"{{"a":{bad}}}"#)), "{bad}");
    }
    assert!(from_slice::<BTreeMap<String, String>>(b"{\"a\":\"\xff\"}").is_err());
    assert!(from_slice::<BTreeMap<String, String>>(b"{\"\xc0\xaf\":\"\"}").is_err());
}

#[test]
fn a_message_is_one_object() {
    assert!(reads(" {} "));
    for other in
        ["", " ", "1", "\"{}\"", "[]", "null", "{}{}", "{} x", "{", "{\"a\":1,}", "\u{feff}{}"]
    {
        assert!(!reads(other), "{other}");
    }
}

/// A message that is all values costs no tree of them: what is unknown is passed over.
#[test]
fn unknown_fields_are_ignored() {
    let text = r#"{"unknown":[1,{"a":null}],"message":"m","other":{}}"#;
    let reset: crate::message::Reset = from_slice(text.as_bytes()).unwrap();
    assert_eq!(reset.message, "m");
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let message = format!(r#"{{"a":{text}}}"#);
    let mut map: BTreeMap<String, ByteString> = from_slice(message.as_bytes()).ok()?;
    map.remove("a").map(|bytes| bytes.0)
}

/// W-2.8: UTF-8 is a string, all else is base64, and nothing has two forms.
#[test]
fn bytes_have_one_form() {
    assert_eq!(bytes_of(r#""a\u0000é""#), Some("a\0é".as_bytes().to_vec()));
    assert_eq!(bytes_of(r#"{"base64":"/w=="}"#), Some(vec![0xff]));
    for bad in [
        r#"{"base64":"YQ=="}"#,
        r#"{"base64":""}"#,
        r#"{"base64":"/w"}"#,
        r#"{"base64":"/x=="}"#,
        r#"{"base64":"_w=="}"#,
        r#"{"base64":" /w=="}"#,
        r#"{"base64":1}"#,
        "[255]",
        "null",
    ] {
        assert_eq!(bytes_of(bad), None, "{bad}");
    }
    for byte in 0..=u8::MAX {
        let bytes = ByteString(vec![b'x', byte]);
        let text = serde_json::to_string(&bytes).unwrap();
        assert_eq!(bytes_of(&text), Some(bytes.0));
    }
}
