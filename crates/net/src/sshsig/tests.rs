//! SSHSIG against the real ssh-keygen, both ways, and against everything that is nearly right.

use std::path::Path;

use base64ct::{Base64, Encoding as _};

use super::*;
use crate::keygen;
use crate::signature::SignatureError;
use crate::signer::DelegatedKey;

const MESSAGE: &[u8] = b"a transcript\0with any bytes\xff\n";

/// What `ssh-keygen -Y sign` makes of the message, without its armour.
fn sign_with_keygen(key: &Path, namespace: &str, hash: &str) -> Vec<u8> {
    let armoured = keygen::succeed(
        &[
            "-Y",
            "sign",
            "-f",
            key.to_str().unwrap(),
            "-n",
            namespace,
            "-O",
            &format!("hashalg={hash}"),
        ],
        MESSAGE,
    );
    let text = String::from_utf8(armoured).unwrap();
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    Base64::decode_vec(&body).unwrap()
}

fn armour(sig_blob: &[u8]) -> String {
    let body = Base64::encode_string(sig_blob);
    let lines: Vec<&str> =
        body.as_bytes().chunks(70).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"))
}

/// An envelope like [`assemble`]'s with every part free.
fn envelope(version: u32, key: &[u8], texts: [&[u8]; 3], raw: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    ssh_wire::put_u32(&mut out, version);
    ssh_wire::put_string(&mut out, key);
    for text in texts {
        ssh_wire::put_string(&mut out, text);
    }
    ssh_wire::put_string(&mut out, raw);
    out
}

fn raw(algorithm: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    ssh_wire::put_string(&mut out, algorithm);
    ssh_wire::put_string(&mut out, value);
    out
}

/// A key in memory, its blob and a good envelope for the message.
fn signed() -> (Vec<u8>, Vec<u8>) {
    let key = DelegatedKey::generate().unwrap();
    let blob = key.public_blob().to_vec();
    let envelope = assemble(&blob, &key.sign_raw(&signed_data(MESSAGE)).unwrap());
    (blob, envelope)
}

#[test]
fn signatures_of_ssh_keygen_are_verified_for_every_type() {
    let temp = tempfile::tempdir().unwrap();
    for (kind, args) in keygen::KINDS {
        let path = temp.path().join(kind.ssh_name());
        let blob = keygen::generate(&path, args, "a user");
        let sig = sign_with_keygen(&path, NAMESPACE, "sha512");
        let verified = verify(&blob, &sig, MESSAGE).unwrap();
        assert_eq!((verified.kind(), verified.blob().as_bytes()), (*kind, blob.as_slice()));
        let algorithm = if *kind == KeyKind::Rsa { "rsa-sha2-512" } else { kind.ssh_name() };
        assert_eq!(verified.algorithm(), algorithm);
        assert_eq!(verify(&blob, &sig, b"another"), Err(SignatureError::BadSignature.into()));

        // Any one bit of the signature matters, wherever it is.
        for index in (0..sig.len()).step_by(7) {
            let mut bent = sig.clone();
            bent[index] ^= 1;
            assert!(verify(&blob, &bent, MESSAGE).is_err(), "{kind:?}, byte {index}");
        }
    }
}

#[test]
fn ssh_keygen_verifies_ours() {
    let temp = tempfile::tempdir().unwrap();
    let (blob, sig) = signed();
    let (signers, file) = (temp.path().join("signers"), temp.path().join("sig"));
    let line = format!("me ssh-ed25519 {}\n", Base64::encode_string(&blob));
    std::fs::write(&signers, line).unwrap();
    std::fs::write(&file, armour(&sig)).unwrap();
    let verify = |namespace: &str, message: &[u8]| {
        let (signers, file) = (signers.to_str().unwrap(), file.to_str().unwrap());
        let args = ["-Y", "verify", "-f", signers, "-I", "me", "-n", namespace, "-s", file];
        keygen::run(&args, message).status.success()
    };
    assert!(verify(NAMESPACE, MESSAGE));
    assert!(!verify("git", MESSAGE));
    assert!(!verify(NAMESPACE, b"another"));
}

#[test]
fn a_signature_for_another_purpose_or_hash_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("key");
    let blob = keygen::generate(&path, &["-t", "ed25519", "-N", ""], "");
    for namespace in ["git", "afar2", "afa"] {
        let sig = sign_with_keygen(&path, namespace, "sha512");
        assert_eq!(verify(&blob, &sig, MESSAGE), Err(VerifyError::Namespace));
    }
    let sig = sign_with_keygen(&path, NAMESPACE, "sha256");
    assert_eq!(verify(&blob, &sig, MESSAGE), Err(VerifyError::Hash));
}

#[test]
fn an_envelope_has_one_form() {
    let (blob, good) = signed();
    assert!(verify(&blob, &good, MESSAGE).is_ok());
    for cut in 0..good.len() {
        assert_eq!(verify(&blob, &good[..cut], MESSAGE), Err(VerifyError::Malformed), "{cut}");
    }
    let longer = [&good[..], &[0]].concat();
    assert_eq!(verify(&blob, &longer, MESSAGE), Err(VerifyError::Malformed));

    let value = good[good.len() - 64..].to_vec();
    let inner = raw(b"ssh-ed25519", &value);
    let texts: [&[u8]; 3] = [b"afar", b"", b"sha512"];
    assert_eq!(envelope(1, &blob, texts, &inner), good);
    let cases = [
        (envelope(2, &blob, texts, &inner), VerifyError::Version(2)),
        (envelope(1, &blob, [b"afar", b"x", b"sha512"], &inner), VerifyError::Malformed),
        (envelope(1, &blob, [b"afar\0", b"", b"sha512"], &inner), VerifyError::Namespace),
        (envelope(1, &blob, [b"afar", b"", b"sha1"], &inner), VerifyError::Hash),
        (
            envelope(1, &blob, texts, &raw(b"ssh-rsa", &value)),
            SignatureError::Algorithm(KeyKind::Ed25519).into(),
        ),
        (envelope(1, &blob, texts, &[&inner[..], &[0]].concat()), SignatureError::Malformed.into()),
        (
            envelope(1, &blob, texts, &raw(b"ssh-ed25519", &value[1..])),
            SignatureError::BadSignature.into(),
        ),
    ];
    for (bad, error) in cases {
        assert_eq!(verify(&blob, &bad, MESSAGE), Err(error));
    }
}

#[test]
fn the_stated_key_must_be_the_one_that_signed() {
    let (_, sig) = signed();
    let (other, _) = signed();
    assert_eq!(verify(&other, &sig, MESSAGE), Err(VerifyError::OtherKey));
}

#[test]
fn small_and_sha1_rsa_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("small");
    let blob = keygen::generate(&path, &["-t", "rsa", "-b", "1024", "-N", ""], "");
    let sig = sign_with_keygen(&path, NAMESPACE, "sha512");
    assert_eq!(verify(&blob, &sig, MESSAGE), Err(SignatureError::RsaTooSmall(1024).into()));

    let path = temp.path().join("fair");
    let blob = keygen::generate(&path, &["-t", "rsa", "-b", "2048", "-N", ""], "");
    let sha1 = assemble(&blob, &raw(b"ssh-rsa", &[1; 256]));
    assert_eq!(verify(&blob, &sha1, MESSAGE), Err(SignatureError::Algorithm(KeyKind::Rsa).into()));
}

#[test]
fn ecdsa_numbers_that_are_too_wide_or_zero_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("key");
    let blob = keygen::generate(&path, &["-t", "ecdsa", "-b", "256", "-N", ""], "");
    let numbers = |r: &[u8], s: &[u8]| {
        let mut out = Vec::new();
        ssh_wire::put_positive_mpint(&mut out, r);
        ssh_wire::put_positive_mpint(&mut out, s);
        assemble(&blob, &raw(b"ecdsa-sha2-nistp256", &out))
    };
    for (r, s) in [(&[1; 33][..], &[1][..]), (&[0], &[1])] {
        let malformed = Err(SignatureError::Malformed.into());
        assert_eq!(verify(&blob, &numbers(r, s), MESSAGE), malformed);
    }
    assert_eq!(
        verify(&blob, &numbers(&[1; 32], &[1]), MESSAGE),
        Err(SignatureError::BadSignature.into())
    );
}
