//! The real ssh-keygen, for tests: it makes the keys and judges what we make.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64ct::{Base64, Encoding as _};

use crate::public_key::KeyKind;

/// Every kind of key with what makes ssh-keygen generate one without a passphrase.
pub(crate) const KINDS: &[(KeyKind, &[&str])] = &[
    (KeyKind::Ed25519, &["-t", "ed25519", "-N", ""]),
    (KeyKind::EcdsaP256, &["-t", "ecdsa", "-b", "256", "-N", ""]),
    (KeyKind::EcdsaP384, &["-t", "ecdsa", "-b", "384", "-N", ""]),
    (KeyKind::EcdsaP521, &["-t", "ecdsa", "-b", "521", "-N", ""]),
    (KeyKind::Rsa, &["-t", "rsa", "-b", "2048", "-N", ""]),
];

/// Runs ssh-keygen to its end. Where it is missing the test fails and says which package has it.
pub(crate) fn run(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new("ssh-keygen")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ssh-keygen is needed (Debian package openssh-client)");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
    child.wait_with_output().unwrap()
}

/// As [`run`], and it must succeed.
pub(crate) fn succeed(args: &[&str], input: &[u8]) -> Vec<u8> {
    let output = run(args, input);
    assert!(output.status.success(), "ssh-keygen {args:?}: {output:?}");
    output.stdout
}

/// Generates a key pair and returns the wire blob of its public half.
pub(crate) fn generate(path: &Path, args: &[&str], comment: &str) -> Vec<u8> {
    let path = path.to_str().unwrap();
    succeed(&[&["-q", "-C", comment, "-f", path], args].concat(), b"");
    let line = std::fs::read_to_string(format!("{path}.pub")).unwrap();
    blob_of_line(&line)
}

/// The wire blob that ssh-keygen derives from a private key file.
pub(crate) fn public_blob(path: &Path) -> Vec<u8> {
    let line = succeed(&["-y", "-f", path.to_str().unwrap()], b"");
    blob_of_line(std::str::from_utf8(&line).unwrap())
}

fn blob_of_line(line: &str) -> Vec<u8> {
    Base64::decode_vec(line.split(' ').nth(1).unwrap().trim()).unwrap()
}
