//! The reader of authorized_keys: a line of garbage before others changes no decision.
#![no_main]

use afar_core::authorized_keys::{AuthorizedKeys, Context, Decision, UserEnvironment};
use afar_core::key::PublicKeyBlob;

/// One that the corpus is about.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvBLbc4Y8gAXpk7WApR7U1vzJYap3fKZnIw1b6Qwef9";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let context = Context {
        now_s: 1_795_341_600,
        source: Some([192, 0, 2, 7].into()),
        local_time: None,
    };
    let (key, _) = PublicKeyBlob::from_public_line(KEY.as_bytes()).expect("a valid line");
    let parsed = AuthorizedKeys::parse(data, UserEnvironment::Honoured);
    for diagnostic in parsed.diagnostics().kept() {
        assert!(!diagnostic.message.chars().any(char::is_control));
    }
    let shifted = [b"garbage \xff\n", data].concat();
    let shifted = AuthorizedKeys::parse(&shifted, UserEnvironment::Honoured);
    match (parsed.find(&key, context), shifted.find(&key, context)) {
        (
            Decision::Granted { line, restrictions },
            Decision::Granted { line: shifted, restrictions: same },
        ) => assert_eq!((line + 1, restrictions), (shifted, same)),
        (Decision::Refused(_), Decision::Refused(_)) => {}
        // The garbage can be what takes the file over its limit of bytes.
        (Decision::Granted { .. }, Decision::Refused(_)) => assert!(data.len() > 1 << 16),
        (before, after) => panic!("{before:?} became {after:?}"),
    }
});
