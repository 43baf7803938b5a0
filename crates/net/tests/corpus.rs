//! Every file of the fuzz corpora about keys, as plain tests: nothing panics, and what a reader
//! promises holds for each of them.

#[cfg(test)]
#[path = "../../../fuzz/corpus.rs"]
mod files;

use std::path::Path;

use afar_net::agent::Agent;
use afar_net::hand_off::HandOff;
use afar_net::host_key::HostKey;
use afar_net::public_key::PublicKey;
use afar_net::sshsig;
use files::for_each_file;

/// Runs a check on every file of a corpus, in the order of the names; those of which it is true.
fn files_where(corpus: &str, check: impl Fn(&str, &[u8]) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for_each_file(corpus, |name, bytes| {
        if check(name, bytes) {
            found.push(name.to_owned());
        }
    });
    found
}

const PLAIN: [&str; 5] = ["ed25519", "p256", "p384", "p521", "rsa"];

#[test]
fn sshsig_envelopes() {
    let verified = files_where("sshsig", |name, bytes| {
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return false };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
        let Some((key, envelope)) = rest.split_at_checked(length) else { return false };
        let Ok(verified) = sshsig::verify(key, envelope, b"message") else { return false };
        assert_eq!(verified.blob().as_bytes(), key, "{name}");
        assert!(sshsig::verify(key, envelope, b"another").is_err(), "{name}");
        true
    });
    let expected: Vec<&str> = ["certificate"].into_iter().chain(PLAIN).collect();
    assert_eq!(verified, expected);
}

#[test]
fn public_keys_of_tls() {
    let read = files_where("spki", |name, bytes| {
        let Ok(key) = PublicKey::from_spki(bytes) else { return false };
        assert_eq!(key.to_spki().as_deref(), Some(bytes), "{name}");
        assert_eq!(PublicKey::from_blob(&key.to_blob()), Ok(key), "{name}");
        true
    });
    assert_eq!(read, PLAIN);
}

#[test]
fn answers_of_agents() {
    let read = files_where("agent", |name, bytes| {
        let Ok(held) = Agent::new(Path::new("/agent")).parse_identities(bytes) else {
            return false;
        };
        for key in &held.keys {
            let blob = key.public_blob();
            assert!(bytes.windows(blob.len()).any(|window| window == blob), "{name}");
        }
        let usable = match name {
            "all" => 5,
            "certificate" | "token" => 1,
            _ => 0,
        };
        assert_eq!(held.keys.len(), usable, "{name}");
        true
    });
    let expected =
        ["all", "certificate", "host-certificate", "none", "rubbish", "small-rsa", "token"];
    assert_eq!(read, expected);
}

#[test]
fn private_key_files() {
    let read = files_where("key_file", |name, bytes| match HostKey::from_openssh(bytes) {
        Ok(_) => true,
        Err(fault) => {
            let said = fault.to_string();
            assert!(!said.is_empty() && !said.chars().any(char::is_control), "{name}: {said}");
            false
        }
    });
    // There is no private key among them.
    assert!(read.is_empty(), "{read:?}");
}

/// W-4.13
#[test]
fn states_of_connections_that_are_handed_off() {
    let read = files_where("hand_off", |name, bytes| {
        let Ok(state) = HandOff::decode(bytes) else { return false };
        assert_eq!(*state.encode(), bytes, "{name}");
        true
    });
    assert_eq!(read, ["aes-128", "aes-256", "chacha", "plaintext", "unopened", "unsent"]);
}
