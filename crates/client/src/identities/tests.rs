//! Which keys are offered, in which order, and which are refused.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// Makes an unencrypted Ed25519 key file; returns its public blob.
fn make_key(path: &Path) -> Vec<u8> {
    let (key, made) = afar_net::host_key::HostKey::load_or_create(path).unwrap();
    assert!(made);
    key.public().blob().to_vec()
}

fn sources(files: &[&Path]) -> IdentitySources {
    IdentitySources {
        files: Some(files.iter().map(|path| path.to_path_buf()).collect()),
        certificates: Vec::new(),
        home: "/nonexistent".into(),
        explicit: true,
        agent: None,
        only_files: false,
    }
}

#[test]
fn files_are_offered_in_order_and_once() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (directory.path().join("one"), directory.path().join("other"));
    let blobs = [make_key(&other), make_key(&one)];
    let sources = sources(&[&other, &one, &other]);
    let candidates = sources.candidates(sources.load_files().unwrap(), Vec::new());
    let offered: Vec<&[u8]> = candidates.iter().map(Candidate::public_blob).collect();
    assert_eq!(offered, blobs);
}

#[test]
fn a_named_file_that_is_missing_is_an_error_and_a_configured_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let mut sources = sources(&[&missing]);
    assert!(matches!(sources.load_files(), Err(Error::Identity(_))));
    sources.explicit = false;
    assert!(sources.load_files().unwrap().identities.is_empty());
}

#[test]
fn fault_83_a_key_that_others_can_read_is_refused_and_said_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    make_key(&path);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut sources = sources(&[&path]);
    let error = sources.load_files().unwrap_err().to_string();
    assert!(error.contains("key") && error.contains("644"), "{error}");
    sources.explicit = false;
    let loaded = sources.load_files().unwrap();
    assert!(loaded.identities.is_empty());
    assert_eq!(loaded.skipped.len(), 1);
}

#[test]
fn a_public_key_that_is_named_may_be_open_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let blob = make_key(&path);
    let line = PublicKeyBlob::from_wire(blob.clone()).unwrap().to_fields();
    let public = directory.path().join("other.pub");
    std::fs::write(&public, line).unwrap();
    std::fs::set_permissions(&public, std::fs::Permissions::from_mode(0o644)).unwrap();
    let loaded = sources(&[&public]).load_files().unwrap();
    assert!(loaded.identities.is_empty());
    assert_eq!(loaded.public, [blob]);
}

#[test]
fn without_named_files_the_defaults_of_the_home_are_offered() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".ssh")).unwrap();
    let blob = make_key(&home.path().join(".ssh/id_ed25519"));
    let mut sources = sources(&[]);
    sources.files = None;
    sources.home = home.path().to_owned();
    let candidates = sources.candidates(sources.load_files().unwrap(), Vec::new());
    let offered: Vec<&[u8]> = candidates.iter().map(Candidate::public_blob).collect();
    assert_eq!(offered, [blob]);
}
