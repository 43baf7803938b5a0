//! Host keys against ssh-keygen's files, and the search for them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::keygen;

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A system directory and a state directory, both empty.
struct Dirs {
    temp: tempfile::TempDir,
    configured: Vec<PathBuf>,
}

impl Dirs {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("ssh")).unwrap();
        Self { temp, configured: Vec::new() }
    }

    fn system(&self) -> PathBuf {
        self.temp.path().join("ssh")
    }

    fn state(&self) -> PathBuf {
        self.temp.path().join("state/afar")
    }

    fn discover(&self) -> Result<Discovered, HostKeyError> {
        discover(&HostKeySearch {
            configured: &self.configured,
            system_dir: &self.system(),
            state_dir: &self.state(),
        })
    }
}

#[test]
fn every_type_that_ssh_keygen_makes_is_read_and_signs() {
    let temp = tempfile::tempdir().unwrap();
    for (kind, args) in keygen::KINDS {
        let path = temp.path().join(kind.ssh_name());
        let blob = keygen::generate(&path, args, "a host");
        let key = HostKey::load(&path).unwrap();
        assert_eq!(key.public().kind(), *kind);
        assert_eq!(key.public().blob(), blob, "{kind:?}");
        assert_eq!(key.comment(), "a host");
        assert_eq!(key.source(), Some(path.as_path()));
        assert_eq!(HostPublicKey::from_spki(key.public().spki()).unwrap(), *key.public());
        assert_eq!(HostPublicKey::from_blob(&blob).unwrap(), *key.public());
    }
}

#[test]
fn an_encrypted_or_small_key_is_no_host_key() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("encrypted");
    keygen::generate(&path, &["-t", "ed25519", "-N", "secret"], "");
    let error = HostKey::load(&path).unwrap_err();
    assert!(matches!(&error, HostKeyError::Key { fault: KeyFault::Encrypted, .. }), "{error}");

    let path = temp.path().join("small");
    keygen::generate(&path, &["-t", "rsa", "-b", "1024", "-N", ""], "");
    let error = HostKey::load(&path).unwrap_err();
    assert!(
        matches!(&error, HostKeyError::Key { fault: KeyFault::RsaSize { bits: 1024 }, .. }),
        "{error}"
    );
}

/// The pair inside the text of an Ed25519 key file.
fn pair_of(text: &str) -> ssh_key::private::Ed25519Keypair {
    let key = ssh_key::PrivateKey::from_openssh(text).unwrap();
    key.key_data().ed25519().unwrap().clone()
}

#[test]
fn a_file_whose_halves_differ_is_refused() {
    let (one, other) =
        (secret_key::generate_ed25519().unwrap(), secret_key::generate_ed25519().unwrap());
    let mixed = ssh_key::private::Ed25519Keypair {
        public: pair_of(&one).public,
        private: pair_of(&other).private,
    };
    let text = ssh_key::PrivateKey::new(ssh_key::private::KeypairData::Ed25519(mixed), "")
        .unwrap()
        .to_openssh(ssh_key::LineEnding::LF)
        .unwrap();
    assert_eq!(HostKey::from_openssh(text.as_bytes()).unwrap_err(), KeyFault::Mismatch);
}

#[test]
fn where_nothing_is_found_one_key_is_made_and_kept() {
    let dirs = Dirs::new();
    let first = dirs.discover().unwrap();
    let path = dirs.state().join("host_ed25519_key");
    assert_eq!(first.created.as_deref(), Some(path.as_path()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(dirs.state()).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::read_dir(dirs.state()).unwrap().count(), 1);

    let again = dirs.discover().unwrap();
    assert_eq!(again.created, None);
    let public = |found: &Discovered| found.keys.iter().next().unwrap().public().clone();
    assert_eq!(public(&first), public(&again));
    // ssh-keygen takes our file for what it is.
    assert_eq!(keygen::public_blob(&path), public(&first).blob());
}

#[test]
fn the_systems_keys_come_before_our_own() {
    let dirs = Dirs::new();
    keygen::generate(
        &dirs.system().join("ssh_host_rsa_key"),
        &["-t", "rsa", "-b", "2048", "-N", ""],
        "",
    );
    keygen::generate(&dirs.system().join("ssh_host_ed25519_key"), &["-t", "ed25519", "-N", ""], "");
    let found = dirs.discover().unwrap();
    let kinds: Vec<KeyKind> = found.keys.iter().map(|key| key.public().kind()).collect();
    assert_eq!(kinds, [KeyKind::Ed25519, KeyKind::Rsa]);
    assert!(found.skipped.is_empty());
    assert!(!dirs.state().exists());
}

#[test]
fn a_system_key_that_others_can_read_is_passed_over_while_another_serves() {
    // Fault 83.
    let dirs = Dirs::new();
    let bad = dirs.system().join("ssh_host_ed25519_key");
    keygen::generate(&bad, &["-t", "ed25519", "-N", ""], "");
    keygen::generate(&dirs.system().join("ssh_host_ecdsa_key"), &["-t", "ecdsa", "-N", ""], "");
    chmod(&bad, 0o644);
    let found = dirs.discover().unwrap();
    assert_eq!(found.keys.iter().next().unwrap().public().kind(), KeyKind::EcdsaP256);
    assert!(matches!(
        found.skipped.as_slice(),
        [HostKeyError::File(FileError::KeyTooOpen { mode: 0o644, .. })]
    ));

    fs::remove_file(dirs.system().join("ssh_host_ecdsa_key")).unwrap();
    let error = dirs.discover().unwrap_err();
    assert!(matches!(error, HostKeyError::File(FileError::KeyTooOpen { .. })), "{error}");
    assert!(!dirs.state().exists(), "the identity must not change because a mode did");
}

#[test]
fn configured_files_are_used_alone_and_must_all_be_sound() {
    let mut dirs = Dirs::new();
    keygen::generate(&dirs.system().join("ssh_host_ed25519_key"), &["-t", "ed25519", "-N", ""], "");
    let own = dirs.temp.path().join("own");
    let blob = keygen::generate(&own, &["-t", "ecdsa", "-b", "384", "-N", ""], "");
    dirs.configured = vec![own.clone()];
    let found = dirs.discover().unwrap();
    let blobs: Vec<&[u8]> = found.keys.iter().map(|key| key.public().blob()).collect();
    assert_eq!(blobs, [blob.as_slice()]);

    dirs.configured.push(dirs.temp.path().join("missing"));
    assert!(matches!(dirs.discover(), Err(HostKeyError::File(error)) if error.is_not_found()));
    dirs.configured = vec![own.clone(), own];
    assert!(matches!(dirs.discover(), Err(HostKeyError::Duplicate { kind: KeyKind::EcdsaP384 })));
}

#[test]
fn debug_shows_no_secret() {
    let text = secret_key::generate_ed25519().unwrap();
    let shown = format!("{:?}", HostKey::from_openssh(text.as_bytes()).unwrap());
    assert!(shown.contains("SHA256:"), "{shown}");
    assert!(!shown.contains("signing"), "{shown}");
}
