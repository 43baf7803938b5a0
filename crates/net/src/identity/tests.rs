//! Key files that ssh-keygen made, good and bad.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::signer::Signer;
use crate::{keygen, sshsig};

/// A home with an empty `.ssh`.
fn home() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let ssh = temp.path().join(".ssh");
    fs::create_dir(&ssh).unwrap();
    (temp, ssh)
}

fn locked(path: &Path) -> LockedKey {
    match load(path).unwrap() {
        IdentityFile::Locked(key) => key,
        IdentityFile::Ready(_) => panic!("{path:?} should need a passphrase"),
    }
}

async fn assert_signs(key: FileKey, blob: &[u8]) {
    let signer = Signer::File(key);
    assert_eq!(signer.public_blob(), blob);
    let envelope = signer.sign(b"transcript").await.unwrap();
    assert!(sshsig::verify(blob, &envelope, b"transcript").is_ok());
}

#[tokio::test]
async fn a_plain_key_is_ready_and_signs() {
    let (_temp, ssh) = home();
    let path = ssh.join("id_ed25519");
    let blob = keygen::generate(&path, &["-t", "ed25519", "-N", ""], "me@here");
    let IdentityFile::Ready(key) = load(&path).unwrap() else { panic!("not ready") };
    assert_eq!((key.comment(), key.path()), ("me@here", path.as_path()));
    assert!(!format!("{key:?}").contains("pair"));
    assert_signs(key, &blob).await;
}

#[tokio::test]
async fn an_encrypted_key_is_offered_before_its_passphrase_is_known() {
    let (_temp, ssh) = home();
    // Every cipher that ssh-keygen offers and the library knows.
    for cipher in
        ["aes256-ctr", "aes256-cbc", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"]
    {
        let path = ssh.join(cipher);
        let args = ["-t", "ed25519", "-N", "open sesame", "-a", "1", "-Z", cipher];
        let blob = keygen::generate(&path, &args, "me@here");
        let key = locked(&path);
        assert_eq!((key.public_blob(), key.comment()), (blob.as_slice(), "me@here"));
        assert!(
            matches!(key.unlock(b"wrong"), Err(UnlockError::WrongPassphrase { .. })),
            "{cipher}"
        );
        let open = key.unlock(b"open sesame").unwrap();
        assert_eq!(open.comment(), "me@here");
        assert_signs(open, &blob).await;
    }
}

/// Certificates last for hours, and the passphrase of their key for as long as it is remembered.
#[tokio::test]
async fn a_key_that_was_unlocked_opens_its_file_again_by_a_newer_certificate() {
    let (_temp, ssh) = home();
    let (path, authority) = (ssh.join("id_ed25519"), ssh.join("ca"));
    let args = ["-t", "ed25519", "-N", "open sesame", "-a", "1"];
    let blob = keygen::generate(&path, &args, "me");
    keygen::generate(&authority, &["-t", "ed25519", "-N", ""], "ca");
    let open = locked(&path).unlock(b"open sesame").unwrap();
    assert_signs(locked(&path).opened_by(&open).unwrap(), &blob).await;
    let public = path.with_extension("pub");
    let (authority, public) = (authority.to_str().unwrap(), public.to_str().unwrap());
    keygen::succeed(&["-q", "-s", authority, "-I", "id", "-n", "me", public], b"");
    let certificate = Arc::new(load_certificate(&ssh.join("id_ed25519-cert.pub")).unwrap());
    let certified = IdentityFile::Locked(locked(&path)).with_certificate(&certificate);
    let Some(IdentityFile::Locked(certified)) = certified else { panic!("it is of another key") };
    let again = certified.opened_by(&open).unwrap();
    assert_eq!(again.public_blob(), certificate.blob().as_bytes());
    // And without it.
    assert_eq!(locked(&path).opened_by(&again).unwrap().public_blob(), blob);
    let other = ssh.join("other");
    keygen::generate(&other, &args, "me");
    assert!(locked(&other).opened_by(&open).is_none());
}

#[test]
fn without_its_neighbour_only_the_comment_is_missing() {
    let (_temp, ssh) = home();
    let path = ssh.join("id_ed25519");
    let blob = keygen::generate(&path, &["-t", "ed25519", "-N", "secret", "-a", "1"], "me@here");
    // The neighbour of another key must not lend it a name.
    keygen::generate(&ssh.join("other"), &["-t", "ed25519", "-N", ""], "somebody else");
    fs::rename(ssh.join("other.pub"), ssh.join("id_ed25519.pub")).unwrap();
    assert_eq!((locked(&path).public_blob(), locked(&path).comment()), (blob.as_slice(), ""));
    fs::remove_file(ssh.join("id_ed25519.pub")).unwrap();
    assert_eq!((locked(&path).public_blob(), locked(&path).comment()), (blob.as_slice(), ""));
}

#[test]
fn passphrases_are_asked_for_as_often_as_allowed_and_no_oftener() {
    let (_temp, ssh) = home();
    let path = ssh.join("id_ed25519");
    keygen::generate(&path, &["-t", "ed25519", "-N", "third", "-a", "1"], "");
    let key = locked(&path);
    let answers = ["first", "second", "third"];
    let mut asked = Vec::new();
    let mut ask = |_: &LockedKey, attempt: u32| {
        asked.push(attempt);
        let answer = answers[usize::try_from(attempt).unwrap() - 1];
        Some(Zeroizing::new(answer.as_bytes().to_vec()))
    };
    assert!(matches!(key.unlock_with(2, &mut ask), Err(UnlockError::WrongPassphrase { .. })));
    assert!(key.unlock_with(3, &mut ask).is_ok());
    assert_eq!(asked, [1, 2, 1, 2, 3]);

    for empty in [None, Some(Zeroizing::new(Vec::new()))] {
        let mut times = 0;
        let result = key.unlock_with(3, &mut |_, _| {
            times += 1;
            empty.clone()
        });
        assert!(matches!(result, Err(UnlockError::NoPassphrase { .. })));
        assert_eq!(times, 1);
    }
    assert!(matches!(key.unlock_with(0, &mut |_, _| None), Err(UnlockError::NoPassphrase { .. })));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    // Fault 83.
    let (_temp, ssh) = home();
    let path = ssh.join("id_ed25519");
    keygen::generate(&path, &["-t", "ed25519", "-N", ""], "");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = load(&path).unwrap_err();
    assert!(
        matches!(error, IdentityError::File(FileError::KeyTooOpen { mode: 0o644, .. })),
        "{error}"
    );
}

#[test]
fn defaults_come_in_order_with_the_reasons_for_those_left_out() {
    let (temp, ssh) = home();
    assert!(load_defaults(temp.path()).identities.is_empty());
    keygen::generate(&ssh.join("id_rsa"), &["-t", "rsa", "-b", "1024", "-N", ""], "");
    keygen::generate(&ssh.join("id_ecdsa"), &["-t", "ecdsa", "-N", "secret", "-a", "1"], "");
    keygen::generate(&ssh.join("id_ed25519"), &["-t", "ed25519", "-N", ""], "");
    let found = load_defaults(temp.path());
    let paths: Vec<&Path> = found.identities.iter().map(IdentityFile::path).collect();
    assert_eq!(paths, [ssh.join("id_ecdsa"), ssh.join("id_ed25519")]);
    let reasons: Vec<String> = found.skipped.iter().map(ToString::to_string).collect();
    let [reason] = reasons.as_slice() else { panic!("{reasons:?}") };
    assert!(reason.contains("id_rsa") && reason.contains("1024 bits"), "{reason}");
    assert!(!reason.contains('\n'));
}

#[tokio::test]
async fn every_type_of_key_signs_from_every_format_of_file() {
    let (_temp, ssh) = home();
    for (kind, args) in keygen::KINDS {
        for format in ["RFC4716", "PEM", "PKCS8"] {
            // ssh-keygen writes ed25519 in its own format only.
            if *kind == KeyKind::Ed25519 && format != "RFC4716" {
                continue;
            }
            let path = ssh.join(format!("{}-{format}", kind.ssh_name()));
            let args = [*args, &["-m", format]].concat();
            let blob = keygen::generate(&path, &args, "me@here");
            let IdentityFile::Ready(key) = load(&path).unwrap() else { panic!("{path:?}") };
            // Where the file itself has no comment, the one beside it does.
            assert_eq!(key.comment(), "me@here", "{path:?}");
            assert_signs(key, &blob).await;
        }
    }
}

#[tokio::test]
async fn an_ed25519_key_of_openssl_is_read() {
    let (_temp, ssh) = home();
    let path = ssh.join("id_openssl");
    let pkcs8 = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
    let body = Base64::encode_string(pkcs8.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    fs::write(&path, pem).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let IdentityFile::Ready(key) = load(&path).unwrap() else { panic!("not ready") };
    let blob = key.public_blob().to_vec();
    assert_signs(key, &blob).await;
}

#[tokio::test]
async fn every_type_of_key_is_unlocked() {
    let (_temp, ssh) = home();
    for (kind, args) in keygen::KINDS {
        let path = ssh.join(kind.ssh_name());
        let args = [&args[..args.len() - 1], &["open sesame", "-a", "1"]].concat();
        let blob = keygen::generate(&path, &args, "me@here");
        let key = locked(&path);
        assert_eq!(key.public_blob(), blob);
        assert!(matches!(key.unlock(b"wrong"), Err(UnlockError::WrongPassphrase { .. })));
        assert_signs(key.unlock(b"open sesame").unwrap(), &blob).await;
    }
}

#[test]
fn encrypted_pem_says_how_to_convert_it() {
    let (_temp, ssh) = home();
    for format in ["PEM", "PKCS8"] {
        let path = ssh.join(format);
        let args = ["-t", "rsa", "-b", "2048", "-m", format, "-N", "secret"];
        keygen::generate(&path, &args, "");
        let reason = load(&path).unwrap_err().to_string();
        assert!(reason.contains("ssh-keygen -p -f") && !reason.contains('\n'), "{reason}");
    }
}

#[test]
fn an_rsa_key_of_a_size_that_is_not_used_says_so_in_every_format() {
    let (_temp, ssh) = home();
    for format in ["RFC4716", "PEM", "PKCS8"] {
        let path = ssh.join(format);
        keygen::generate(&path, &["-t", "rsa", "-b", "1024", "-m", format, "-N", ""], "");
        let error = load(&path).unwrap_err();
        let fault = KeyFault::RsaSize { bits: 1024 };
        assert!(matches!(&error, IdentityError::Key { fault: f, .. } if *f == fault), "{error}");
    }
    // And before anybody is asked for its passphrase.
    let path = ssh.join("locked");
    keygen::generate(&path, &["-t", "rsa", "-b", "1024", "-a", "1", "-N", "secret"], "");
    assert!(load(&path).unwrap_err().to_string().contains("1024 bits"));
}

#[test]
fn a_damaged_file_is_damaged_wherever_it_was_cut() {
    let (_temp, ssh) = home();
    let path = ssh.join("id_ed25519");
    keygen::generate(&path, &["-t", "ed25519", "-N", ""], "");
    let whole = fs::read(&path).unwrap();
    for cut in (0..whole.len() - 2).step_by(11) {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(matches!(load(&path), Err(IdentityError::Key { .. })), "cut at {cut}");
    }
}

#[test]
fn public_key_files_are_one_line_of_one_key() {
    let (_temp, ssh) = home();
    let path = ssh.join("id_ed25519");
    let blob = keygen::generate(&path, &["-t", "ed25519", "-N", ""], "me, myself @ here");
    let public = ssh.join("id_ed25519.pub");
    assert_eq!(
        load_public(&public).unwrap(),
        PublicIdentity { blob, kind: KeyKind::Ed25519, comment: "me, myself @ here".into() }
    );
    let line = fs::read_to_string(&public).unwrap();
    for bad in ["", "ssh-ed25519", "ssh-ed25519 AAAA", &line.replace("ssh-ed25519", "ssh-rsa")] {
        fs::write(&public, bad).unwrap();
        assert!(matches!(load_public(&public), Err(IdentityError::NotPublic { .. })), "{bad:?}");
    }
    assert!(matches!(load_public(&path), Err(IdentityError::NotPublic { .. })));
}
