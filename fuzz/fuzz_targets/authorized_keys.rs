//! The reader of authorized_keys: a line of garbage before others changes no decision.
#![no_main]

use afar_core::authorized_keys::{self, Context, Decision};
use afar_core::key::PublicKeyBlob;

/// One that the corpus is about.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvBLbc4Y8gAXpk7WApR7U1vzJYap3fKZnIw1b6Qwef9";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let context = Context {
        now_s: 1_795_341_600,
        source: Some([192, 0, 2, 7].into()),
        permit_user_environment: true,
        local_time: None,
    };
    let (key, _) = PublicKeyBlob::from_public_line(KEY.as_bytes()).expect("a valid line");
    let lookup = authorized_keys::find(data, &key, context);
    for diagnostic in lookup.diagnostics.kept() {
        assert!(!diagnostic.message.chars().any(char::is_control));
    }
    let shifted = [b"garbage \xff\n", data].concat();
    match (lookup.decision, authorized_keys::find(&shifted, &key, context).decision) {
        (
            Decision::Granted { line, restrictions, .. },
            Decision::Granted { line: shifted, restrictions: same, .. },
        ) => assert_eq!((line + 1, restrictions), (shifted, same)),
        (Decision::Refused(_), Decision::Refused(_)) => {}
        // The garbage can be what takes the file over its limit of bytes.
        (Decision::Granted { .. }, Decision::Refused(_)) => assert!(data.len() > 1 << 16),
        (before, after) => panic!("{before:?} became {after:?}"),
    }
    let _ = authorized_keys::find_authority(data, &key, context);
});
