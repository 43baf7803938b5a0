//! The reader of known_hosts: what was added is known from then on, unless it is revoked.
#![no_main]

use afar_core::key::PublicKeyBlob;
use afar_core::known_hosts::{self, HostKeys, KnownHostsFile, NameKind, Verdict};

/// One that the corpus is about.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvBLbc4Y8gAXpk7WApR7U1vzJYap3fKZnIw1b6Qwef9";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (key, _) = PublicKeyBlob::from_public_line(KEY.as_bytes()).expect("a valid line");
    let names = known_hosts::names("h.example", 2327, Some(2222));
    let collect =
        |bytes: &[u8]| HostKeys::collect(&[KnownHostsFile { name: "known_hosts", bytes }], &names);
    let Ok(hosts) = collect(data) else { return };
    if matches!(hosts.judge(&key), Verdict::Unknown) {
        assert_eq!(hosts.known().count(), 0);
    }
    let Ok(replaced) = known_hosts::replace(data, &names[0].text, &key) else { return };
    let Ok(hosts) = collect(&replaced.bytes) else { return };
    let verdict = hosts.judge(&key);
    let trusted = matches!(&verdict, Verdict::Known(entry) if entry.name.kind == NameKind::Afar);
    assert!(trusted || matches!(verdict, Verdict::Revoked(_)), "{verdict:?}");
});
