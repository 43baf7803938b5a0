//! The reader of revoked keys: nothing makes it panic, and a key that a list names is revoked.
#![no_main]

use afar_core::key::PublicKeyBlob;
use afar_core::revocation::{Revocation, RevokedKeys};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvBLbc4Y8gAXpk7WApR7U1vzJYap3fKZnIw1b6Qwef9";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (key, _) = PublicKeyBlob::from_public_line(KEY.as_bytes()).expect("a valid line");
    if let Ok(revoked) = RevokedKeys::parse(data) {
        let _ = revoked.find(&key, None);
    }
    if let Ok(revoked) = RevokedKeys::parse(&[data, b"\n", KEY.as_bytes()].concat()) {
        assert_eq!(revoked.find(&key, None), Some(Revocation::Key));
    }
});
