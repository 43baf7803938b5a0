//! The rules of `files`, each broken in turn on a real file system.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Barrier;

use super::*;

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A home with a file in a directory, all sound: `home/.ssh/authorized_keys`.
fn home_with_keys() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let home = temp.path().join("home");
    fs::create_dir_all(home.join(".ssh")).unwrap();
    chmod(&home, 0o755);
    chmod(&home.join(".ssh"), 0o700);
    let file = home.join(".ssh/authorized_keys");
    fs::write(&file, b"a key\n").unwrap();
    chmod(&file, 0o644);
    (temp, home, file)
}

#[test]
fn a_sound_file_is_read_whole() {
    let (_temp, home, file) = home_with_keys();
    assert_eq!(read_checked(&file, Some(&home), me(), 6).unwrap(), b"a key\n");
}

#[test]
fn a_byte_over_the_limit_is_too_large() {
    let (_temp, home, file) = home_with_keys();
    let error = read_checked(&file, Some(&home), me(), 5).unwrap_err();
    assert!(matches!(error, FileError::TooLarge { bytes_max: 5, .. }), "{error}");
    assert!(matches!(read_regular(&file, 5), Err(FileError::TooLarge { .. })));
    assert_eq!(read_regular(&file, 6).unwrap(), b"a key\n");
}

#[test]
fn whatever_others_can_write_is_refused_by_name() {
    let (_temp, home, file) = home_with_keys();
    for (path, sound) in [(file.clone(), 0o644), (home.join(".ssh"), 0o700), (home.clone(), 0o755)]
    {
        for bad in [0o020, 0o002] {
            chmod(&path, sound | bad);
            let error = read_checked(&file, Some(&home), me(), 100).unwrap_err();
            assert!(
                matches!(&error, FileError::WritableByOthers { path: named, .. } if *named == path.canonicalize().unwrap()),
                "{error}"
            );
        }
        chmod(&path, sound);
    }
    assert!(read_checked(&file, Some(&home), me(), 100).is_ok());
}

#[test]
fn what_is_above_the_home_does_not_matter_but_outside_of_one_all_does() {
    let (temp, home, file) = home_with_keys();
    chmod(temp.path(), 0o777);
    assert!(read_checked(&file, Some(&home), me(), 100).is_ok());
    let error = read_checked(&file, None, me(), 100).unwrap_err();
    assert!(matches!(error, FileError::WritableByOthers { .. }), "{error}");
}

#[test]
fn fault_83_a_file_of_the_servers_may_lie_where_nobody_else_can_exchange_it() {
    let (temp, _, file) = home_with_keys();
    assert_eq!(read_trusted(&file, me(), 6).unwrap(), b"a key\n");
    chmod(temp.path(), 0o1777);
    assert!(read_trusted(&file, me(), 6).is_ok());
    chmod(temp.path(), 0o777);
    let refused = read_trusted(&file, me(), 6);
    assert!(matches!(refused, Err(FileError::WritableByOthers { .. })));
    chmod(temp.path(), 0o1777);
    chmod(&file, 0o1666);
    let refused = read_trusted(&file, me(), 6);
    assert!(matches!(refused, Err(FileError::WritableByOthers { mode: 0o1666, .. })));
    chmod(&file, 0o600);
    assert!(matches!(read_trusted(&file, me(), 5), Err(FileError::TooLarge { .. })));
    assert!(read_trusted(temp.path(), me(), 5).is_err());
}

#[test]
fn a_file_of_another_user_is_refused() {
    let (_temp, home, file) = home_with_keys();
    // Seen with the eyes of a uid that owns none of it (root's files are believed by everybody).
    if me() == 0 {
        rustix::fs::chown(&file, Some(rustix::fs::Uid::from_raw(12_345)), None).unwrap();
        let error = read_checked(&file, Some(&home), 54_321, 100).unwrap_err();
        assert!(matches!(error, FileError::WrongOwner { owner: 12_345, .. }), "{error}");
        assert!(read_checked(&file, Some(&home), 12_345, 100).is_ok());
    } else {
        let error = read_checked(&file, Some(&home), me() + 1, 100).unwrap_err();
        assert!(matches!(error, FileError::WrongOwner { .. }), "{error}");
    }
}

#[test]
fn a_link_is_followed_to_where_the_rules_are_checked_again() {
    let (temp, home, file) = home_with_keys();
    let open = temp.path().join("open");
    fs::create_dir(&open).unwrap();
    chmod(&open, 0o777);
    fs::write(open.join("keys"), b"planted").unwrap();
    fs::remove_file(&file).unwrap();
    symlink(open.join("keys"), &file).unwrap();
    let error = read_checked(&file, Some(&home), me(), 100).unwrap_err();
    assert!(matches!(error, FileError::WritableByOthers { .. }), "{error}");
}

#[test]
fn neither_a_directory_nor_a_pipe_is_read_or_waited_for() {
    let (_temp, home, file) = home_with_keys();
    let pipe = home.join(".ssh/pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::from_raw_mode(0o600)).unwrap();
    for path in [pipe.as_path(), file.parent().unwrap()] {
        assert!(matches!(
            read_checked(path, Some(&home), me(), 100),
            Err(FileError::NotRegular { .. })
        ));
        assert!(matches!(read_regular(path, 100), Err(FileError::NotRegular { .. })));
        assert!(matches!(
            read_private_key(path, PrivateKeyRule::User),
            Err(FileError::NotRegular { .. })
        ));
    }
}

#[test]
fn what_is_missing_says_so() {
    let (_temp, home, _) = home_with_keys();
    let missing = home.join("nothing");
    assert!(read_checked(&missing, Some(&home), me(), 100).unwrap_err().is_not_found());
    assert!(read_regular(&missing, 100).unwrap_err().is_not_found());
}

#[test]
fn private_keys_that_others_can_read_are_refused() {
    // Fault 83.
    let (_temp, _, file) = home_with_keys();
    for mode in [0o640, 0o604, 0o610, 0o601, 0o666] {
        chmod(&file, mode);
        for rule in [PrivateKeyRule::User, PrivateKeyRule::Host] {
            let error = read_private_key(&file, rule).unwrap_err();
            assert!(matches!(error, FileError::KeyTooOpen { mode: m, .. } if m == mode), "{error}");
        }
    }
    for mode in [0o600, 0o400] {
        chmod(&file, mode);
        for rule in [PrivateKeyRule::User, PrivateKeyRule::Host] {
            assert_eq!(read_private_key(&file, rule).unwrap().as_slice(), b"a key\n");
        }
    }
}

#[test]
fn who_may_own_a_private_key_depends_on_whose_it_is() {
    let check = |rule: PrivateKeyRule, owner, mode| {
        rule.check(Path::new("key"), owner, mode, 1000).map_err(|error| error.to_string())
    };
    for owner in [0, 1000] {
        assert_eq!(check(PrivateKeyRule::Host, owner, 0o600), Ok(()));
        assert!(check(PrivateKeyRule::Host, owner, 0o640).is_err());
    }
    assert!(check(PrivateKeyRule::Host, 1001, 0o600).unwrap_err().contains("uid 1001"));
    assert!(check(PrivateKeyRule::User, 1000, 0o644).unwrap_err().contains("mode 0644"));
    // As ssh: what somebody else owns is theirs to protect.
    assert_eq!(check(PrivateKeyRule::User, 0, 0o640), Ok(()));
}

/// Changes the whole file, or its end.
fn replace(path: &Path, contents: &[u8]) -> Result<bool, FileError> {
    update_atomically(path, 1024, |_| Some(contents.to_vec()))
}

fn append(path: &Path, line: &str) {
    let line = format!("{line}\n");
    update_atomically(path, 1024, |old| Some([old, line.as_bytes()].concat())).unwrap();
}

#[test]
fn a_file_that_is_new_is_for_its_owner_only() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("new/known_hosts");
    append(&file, "one");
    assert_eq!(mode_of(&file), 0o600);
    assert_eq!(mode_of(file.parent().unwrap()), 0o700);
    append(&file, "two");
    assert_eq!(fs::read(&file).unwrap(), b"one\ntwo\n");
}

#[test]
fn a_replacement_appears_whole_or_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (path, precious) = (temp.path().join("ready"), temp.path().join("precious"));
    fs::write(&precious, "mine").unwrap();
    // Fault 63: a link is replaced, and not written through.
    symlink(&precious, &path).unwrap();
    drop(Replacement::prepare(&path).unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    Replacement::prepare(&path).unwrap().place(b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert_eq!(fs::read(&precious).unwrap(), b"mine");
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2, "temporary files are left");
    assert!(Replacement::prepare(&temp.path().join("missing/ready")).is_err());
}

#[test]
fn a_link_stays_a_link_even_to_a_file_that_is_not_there_yet() {
    let temp = tempfile::tempdir().unwrap();
    let real = temp.path().join("dotfiles/known_hosts");
    let middle = temp.path().join("middle");
    let link = temp.path().join("known_hosts");
    symlink("dotfiles/known_hosts", &middle).unwrap();
    symlink("middle", &link).unwrap();
    append(&link, "one");
    replace(&link, b"two\n").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&real).unwrap(), b"two\n");

    let ring = temp.path().join("ring");
    symlink("ring", &ring).unwrap();
    assert!(matches!(replace(&ring, b""), Err(FileError::Io { .. })));
}

#[test]
fn an_existing_mode_is_kept_less_what_lets_others_write() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("known_hosts");
    fs::write(&file, b"").unwrap();
    chmod(&file, 0o666);
    replace(&file, b"x").unwrap();
    assert_eq!(mode_of(&file), 0o644);
}

#[test]
fn a_change_that_is_declined_touches_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("known_hosts");
    assert!(
        !update_atomically(&file, 100, |old| {
            assert!(old.is_empty());
            None
        })
        .unwrap()
    );
    assert!(!file.exists());
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn no_line_is_lost_when_many_append_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("known_hosts");
    let (threads, lines) = (8, 5);
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (file, start) = (&file, &start);
            scope.spawn(move || {
                start.wait();
                for line in 0..lines {
                    append(file, &format!("{thread} {line}"));
                }
            });
        }
    });
    let text = fs::read_to_string(&file).unwrap();
    let unique: std::collections::BTreeSet<&str> = text.lines().collect();
    assert_eq!((unique.len(), text.lines().count()), (threads * lines, threads * lines));
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1, "temporary files are left");
}

#[test]
fn of_two_that_create_one_wins_and_the_other_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("state/key");
    let start = Barrier::new(4);
    let made: usize = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..4)
            .map(|thread: u8| {
                let (file, start) = (&file, &start);
                scope.spawn(move || {
                    start.wait();
                    usize::from(create_once(file, &[thread; 1000]).unwrap())
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).sum()
    });
    assert_eq!(made, 1);
    let contents = fs::read(&file).unwrap();
    assert_eq!(contents.len(), 1000);
    assert!(contents.windows(2).all(|pair| pair[0] == pair[1]), "a mixture of two writers");
    assert_eq!(mode_of(&file), 0o600);
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
}
