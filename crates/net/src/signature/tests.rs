//! Signatures of tokens; those of plain keys are tested with [`crate::sshsig`].

use base64ct::{Base64, Encoding as _};

use super::*;
use crate::fido_rig::Token;
use crate::{keygen, sshsig};

const KINDS: [KeyKind; 2] = [KeyKind::SkEd25519, KeyKind::SkEcdsaP256];

#[test]
fn a_token_says_whether_it_was_touched_and_by_whom() {
    for kind in KINDS {
        let token = Token::new(kind);
        let key = PublicKey::from_blob(&token.blob()).unwrap();
        for (flags, user_present, user_verified) in [
            (0, false, false),
            (1, true, false),
            (4, false, true),
            (5, true, true),
            (0xc1, true, false),
        ] {
            let blob = token.sign_raw(b"message", flags, 7);
            let valid = verify(&key, &blob, b"message").unwrap();
            assert_eq!(valid.algorithm, kind.ssh_name());
            assert_eq!(valid.fido, Some(FidoAssertion { user_present, user_verified }));
            assert_eq!(verify(&key, &blob, b"other"), Err(SignatureError::BadSignature));
        }
    }
}

#[test]
fn what_a_token_says_is_signed_too() {
    for kind in KINDS {
        let token = Token::new(kind);
        let key = PublicKey::from_blob(&token.blob()).unwrap();
        let blob = token.sign_raw(b"message", 0, 7);
        let flags_at = blob.len() - 5;
        for at in flags_at..blob.len() {
            let mut bent = blob.clone();
            bent[at] ^= 1;
            assert_eq!(verify(&key, &bent, b"message"), Err(SignatureError::BadSignature), "{at}");
        }
        for cut in 0..blob.len() {
            assert!(verify(&key, &blob[..cut], b"message").is_err(), "{cut}");
        }
        let longer = [&blob[..], &[0]].concat();
        assert_eq!(verify(&key, &longer, b"message"), Err(SignatureError::Malformed));
    }
}

#[test]
fn a_tokens_signature_is_none_of_the_plain_key_nor_of_another_application() {
    for kind in KINDS {
        let (token, other) = (Token::new(kind), Token::new(kind));
        let blob = token.sign_raw(b"message", 1, 1);
        let other = PublicKey::from_blob(&other.blob()).unwrap();
        assert_eq!(verify(&other, &blob, b"message"), Err(SignatureError::BadSignature));
        let key = PublicKey::from_blob(&token.blob()).unwrap();
        let elsewhere = match key.shape().clone() {
            Shape::SkEd25519 { key, .. } => {
                Shape::SkEd25519 { key, application: b"ssh:other".to_vec() }
            }
            Shape::SkEcdsaP256 { point, .. } => {
                Shape::SkEcdsaP256 { point, application: b"ssh:other".to_vec() }
            }
            shape => panic!("{shape:?}"),
        };
        let elsewhere = PublicKey::from_shape(elsewhere);
        assert_eq!(verify(&elsewhere, &blob, b"message"), Err(SignatureError::BadSignature));
        let plain = match key.shape().clone() {
            Shape::SkEd25519 { key, .. } => Shape::Ed25519(key),
            Shape::SkEcdsaP256 { point, .. } => Shape::Ecdsa { kind: KeyKind::EcdsaP256, point },
            shape => panic!("{shape:?}"),
        };
        let plain = PublicKey::from_shape(plain);
        assert_eq!(verify(&plain, &blob, b"message"), Err(SignatureError::Algorithm(plain.kind())));
    }
}

/// OpenSSH as the oracle: what it takes for a token's signature, and what it does not, is the same.
#[test]
fn ssh_keygen_takes_the_same_signatures_of_tokens() {
    let temp = tempfile::tempdir().unwrap();
    let (signers, file) = (temp.path().join("signers"), temp.path().join("sig"));
    for kind in KINDS {
        let token = Token::new(kind);
        let blob = token.blob();
        let line = format!("me {} {}\n", kind.ssh_name(), Base64::encode_string(&blob));
        std::fs::write(&signers, line).unwrap();
        let raw = token.sign_raw(&sshsig::signed_data(b"message"), 1, 0x0102_0304);
        let mut bent = raw.clone();
        let last = bent.len() - 1;
        bent[last] ^= 1;
        for (raw, expected) in [(raw, true), (bent, false)] {
            let envelope = sshsig::assemble(&blob, &raw);
            let body = Base64::encode_string(&envelope);
            let armoured =
                format!("-----BEGIN SSH SIGNATURE-----\n{body}\n-----END SSH SIGNATURE-----\n");
            std::fs::write(&file, armoured).unwrap();
            let (signers, file) = (signers.to_str().unwrap(), file.to_str().unwrap());
            let args = ["-Y", "verify", "-f", signers, "-I", "me", "-n", "afar", "-s", file];
            let output = keygen::run(&args, b"message");
            assert_eq!(output.status.success(), expected, "{output:?}");
            assert_eq!(sshsig::verify(&blob, &envelope, b"message").is_ok(), expected);
        }
    }
}
