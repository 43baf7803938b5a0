//! A key that is removed or revoked while its connections live: no new request, and they end.
#![cfg(test)]

use std::path::PathBuf;

use afar_e2e::raw::{End, Key, RawClient, spec};
use afar_e2e::{Home, Host};
use afar_proto::frame::Kind;

fn log_in(host: &Host) -> RawClient {
    let mut client = RawClient::log_in(host.address(), &Key::of_file(&host.key()), host.user());
    client.open(1, &spec("first", &["true"]));
    client.link.expect(Kind::Seal);
    client
}

fn authorized_keys(host: &Host) -> PathBuf {
    host.file("authorized_keys")
}

/// Asks for another job and is told why there is none.
#[track_caller]
fn assert_no_new_request(host: &Host, client: &mut RawClient) {
    let made = host.file("made");
    client.open(3, &spec("second", &["touch", made.to_str().unwrap()]));
    let refused = client.link.expect(Kind::Refused).json();
    assert_eq!(refused["reason"], "denied", "{refused}");
    assert_eq!(refused["started"], "no", "{refused}");
    let (code, message) = client.link.expect_goodbye();
    assert_eq!(code, "revoked", "{message}");
    client.link.finish();
    assert_eq!(client.link.rest().1, End::Closed);
    assert!(!made.exists());
}

#[test]
fn fault_76_a_removed_key_starts_nothing_more_on_a_connection_that_it_has() {
    // W-4.12
    let host = Host::start();
    let lines = std::fs::read_to_string(authorized_keys(&host)).unwrap();
    let mut client = log_in(&host);
    // Another line does not matter.
    std::fs::write(authorized_keys(&host), format!("# a remark\n{lines}")).unwrap();
    client.open(3, &spec("still", &["true"]));
    client.link.expect(Kind::Seal);
    for without in [String::new(), format!("no-pty {lines}")] {
        let mut client = log_in(&host);
        std::fs::write(authorized_keys(&host), without).unwrap();
        assert_no_new_request(&host, &mut client);
        std::fs::write(authorized_keys(&host), &lines).unwrap();
    }
}

#[test]
fn fault_76_a_revoked_key_starts_nothing_more_on_a_connection_that_it_has() {
    let home = Home::for_everybody();
    let revoked = home.file("revoked");
    std::fs::write(&revoked, "").unwrap();
    let host = Host::builder().serve_arg("--revoked-keys").serve_arg(&revoked).start();
    let mut client = log_in(&host);
    std::fs::write(&revoked, Home::public_line(&host.key())).unwrap();
    assert_no_new_request(&host, &mut client);
    host.script("true").output().expect_code(255);
}

#[test]
fn fault_76_a_removed_keys_connection_ends_and_says_why() {
    let host = Host::start();
    let mut run = host.script("echo started; sleep 300; true").spawn();
    assert_eq!(run.line().as_deref(), Some("started"));
    std::fs::write(authorized_keys(&host), "").unwrap();
    let output = run.wait();
    output.expect_code(255);
    assert!(output.error_text().contains("not accepted any more"), "{output:?}");
    // Its job stays: what ends is what the key could do.
    assert_eq!(host.end_jobs(), 2);
}
