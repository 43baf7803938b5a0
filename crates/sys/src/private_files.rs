//! Directories and locks that only this user can touch, planted ones refused.

use rustix::fs::{
    FileType, FlockOperation, Mode, OFlags, Stat, fchmod, flock, fstat, lstat, mkdir, open, stat,
};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use thiserror::Error;

const GROUP_AND_OTHERS: u32 = 0o077;
const WRITABLE_BY_OTHERS: u32 = 0o002;
const WRITABLE_BY_GROUP_AND_OTHERS: u32 = 0o022;
/// What a directory allows that others may walk through, to what they know the name of.
const PASSABLE: Mode = Mode::RWXU.union(Mode::XGRP).union(Mode::XOTH);
const STICKY: u32 = 0o1000;
/// A lock file that is replaced this often while we try to lock it is replaced on purpose.
const LOCK_ATTEMPTS_MAX: usize = 8;

/// Why a directory is not fit to hold sockets and state of this user.
///
/// All but `Io` mean that somebody has put something else there, or has opened it to others.
#[derive(Debug, Error)]
pub enum PrivateDirError {
    /// It is a symbolic link or something else that is no directory.
    #[error("{path:?} is not a directory, or is a symbolic link to one")]
    NotDirectory {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// It belongs to another user.
    #[error("{path:?} belongs to uid {owner}, not to this user")]
    WrongOwner {
        /// The path that was asked for.
        path: PathBuf,
        /// The uid that it belongs to.
        owner: u32,
    },
    /// Its mode allows others something.
    #[error("{path:?} has mode {mode:03o}: others may not have any access")]
    TooOpen {
        /// The path that was asked for.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its mode allows others to change what is in it.
    #[error("{path:?} has mode {mode:03o}: others may not write to it")]
    Writable {
        /// The path that was asked for.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Everybody may rename what is in its parent, so it could be exchanged for another one.
    #[error("everybody may write to {parent:?}, which has no sticky bit")]
    UnsafeParent {
        /// The parent directory.
        parent: PathBuf,
    },
    /// A system call failed.
    #[error("{path:?}: {error}")]
    Io {
        /// The path that was asked for.
        path: PathBuf,
        /// What it gave.
        error: Errno,
    },
}

/// Makes sure that `path` is a directory of this user's that nobody else has access to, and opens it.
///
/// It and its missing parents are created with mode 0700. An existing one is never changed: a
/// directory that was open to others may hold what they put there. Parents may be symbolic links,
/// the directory itself may not.
///
/// # Errors
/// [`PrivateDirError`]; parents that were created stay.
pub fn ensure_private_dir(path: &Path) -> Result<OwnedFd, PrivateDirError> {
    let io_error = |error| PrivateDirError::Io { path: path.to_owned(), error };
    create_with_parents(path).map_err(io_error)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let directory = match open(path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(PrivateDirError::NotDirectory { path: path.to_owned() });
        }
        Err(Errno::ACCESS) => return Err(why_not_opened(path)),
        Err(error) => return Err(io_error(error)),
    };
    check_private(path, &fstat(&directory).map_err(io_error)?)?;
    check_parent(path)?;
    Ok(directory)
}

/// Makes sure that `path` is a directory of this user's through which others may walk, but in which
/// they can neither make nor list nor exchange anything. Its parent must be there; the rest is as with
/// [`ensure_private_dir`].
///
/// # Errors
/// [`PrivateDirError`].
pub fn ensure_passable_dir(path: &Path) -> Result<(), PrivateDirError> {
    let io_error = |error| PrivateDirError::Io { path: path.to_owned(), error };
    let made = match mkdir(path, PASSABLE) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(io_error(error)),
    };
    let directory = open_owned(path, crate::users::effective_uid())?;
    if made {
        // The mask may have taken away what others need.
        fchmod(&directory, PASSABLE).map_err(io_error)?;
    }
    check_parent(path)
}

/// Whether `path` is a directory in which only `owner` can make or exchange anything. `false` if there
/// is nothing.
///
/// # Errors
/// [`PrivateDirError`]: it is another's, or others may write to it.
pub fn is_owned_dir(path: &Path, owner: u32) -> Result<bool, PrivateDirError> {
    match open_owned(path, owner) {
        Ok(_) => Ok(true),
        Err(PrivateDirError::Io { error: Errno::NOENT, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn open_owned(path: &Path, owner: u32) -> Result<OwnedFd, PrivateDirError> {
    // With O_PATH no right to read is needed, which a directory to be walked through does not give.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let read_or_pass =
        if owner == crate::users::effective_uid() { OFlags::RDONLY } else { OFlags::PATH };
    let directory = match open(path, flags | read_or_pass, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(PrivateDirError::NotDirectory { path: path.to_owned() });
        }
        Err(error) => return Err(PrivateDirError::Io { path: path.to_owned(), error }),
    };
    let found =
        fstat(&directory).map_err(|error| PrivateDirError::Io { path: path.to_owned(), error })?;
    if found.st_uid != owner {
        return Err(PrivateDirError::WrongOwner { path: path.to_owned(), owner: found.st_uid });
    }
    let mode = found.st_mode & 0o7777;
    if mode & WRITABLE_BY_GROUP_AND_OTHERS != 0 {
        return Err(PrivateDirError::Writable { path: path.to_owned(), mode });
    }
    Ok(directory)
}

/// Takes the lock of a single instance, or returns `None` when somebody else holds it. Never waits.
///
/// The lock belongs to the returned descriptor: it ends when that is closed, also by a SIGKILL, and
/// survives an exec that keeps it. The file stays; it is created with mode 0600.
///
/// # Errors
/// Those of open(2), `ELOOP` for a symbolic link, `EINVAL` for what is no regular file.
pub fn try_lock_exclusive(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags =
        OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    for _ in 0..LOCK_ATTEMPTS_MAX {
        let file = open(path, flags, Mode::RUSR | Mode::WUSR)?;
        let opened = fstat(&file)?;
        if FileType::from_raw_mode(opened.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        // Somebody may have removed or replaced the file since it was opened, and the next one to
        // come would then lock another file than we have.
        match lstat(path) {
            Ok(found) if (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino) => {
                return Ok(Some(file));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::AGAIN.into())
}

fn create_with_parents(path: &Path) -> Result<(), Errno> {
    match mkdir(path, Mode::RWXU) {
        // What exists already is judged by the caller.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            create_with_parents(parent.ok_or(Errno::NOENT)?)?;
            match mkdir(path, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn check_private(path: &Path, found: &Stat) -> Result<(), PrivateDirError> {
    let path = path.to_owned();
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Err(PrivateDirError::NotDirectory { path });
    }
    if found.st_uid != crate::users::effective_uid() {
        return Err(PrivateDirError::WrongOwner { path, owner: found.st_uid });
    }
    let mode = found.st_mode & 0o7777;
    if mode & GROUP_AND_OTHERS != 0 {
        return Err(PrivateDirError::TooOpen { path, mode });
    }
    Ok(())
}

/// A directory that cannot be opened is usually another user's: that says more than the number.
fn why_not_opened(path: &Path) -> PrivateDirError {
    match lstat(path) {
        Ok(found) => check_private(path, &found).err(),
        Err(_) => None,
    }
    .unwrap_or_else(|| PrivateDirError::Io { path: path.to_owned(), error: Errno::ACCESS })
}

fn check_parent(path: &Path) -> Result<(), PrivateDirError> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    let found =
        stat(parent).map_err(|error| PrivateDirError::Io { path: parent.to_owned(), error })?;
    if found.st_mode & WRITABLE_BY_OTHERS != 0 && found.st_mode & STICKY == 0 {
        return Err(PrivateDirError::UnsafeParent { parent: parent.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_missing_directory_is_created_with_its_parents_for_this_user_only() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("a/b/c");
        ensure_private_dir(&path).unwrap();
        assert_eq!(mode_of(&path), 0o700);
        assert_eq!(mode_of(path.parent().unwrap()), 0o700);
        ensure_private_dir(&path).unwrap();
    }

    #[test]
    fn fault_63_a_planted_symlink_or_file_is_refused() {
        let root = TempDir::new().unwrap();
        fs::create_dir(root.path().join("target")).unwrap();
        fs::set_permissions(root.path().join("target"), Permissions::from_mode(0o700)).unwrap();
        symlink(root.path().join("target"), root.path().join("link")).unwrap();
        symlink(root.path().join("nowhere"), root.path().join("dangling")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        for name in ["link", "dangling", "file"] {
            let refused = ensure_private_dir(&root.path().join(name));
            assert!(matches!(refused, Err(PrivateDirError::NotDirectory { .. })), "{refused:?}");
        }
        assert!(!root.path().join("nowhere").exists());
    }

    #[test]
    fn fault_63_a_directory_that_is_open_to_others_is_refused_and_not_changed() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("open");
        fs::create_dir(&path).unwrap();
        for mode in [0o750, 0o701, 0o1777] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let refused = ensure_private_dir(&path);
            let Err(PrivateDirError::TooOpen { mode: found, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(found, mode);
            assert_eq!(mode_of(&path), mode);
        }
    }

    #[test]
    fn fault_63_a_directory_of_another_user_is_refused() {
        // As root a directory is given away; anybody else finds one of root's.
        let root = TempDir::new().unwrap();
        let (path, owner) = if crate::users::effective_uid() == 0 {
            let path = root.path().join("given");
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            (path, 12345)
        } else {
            (PathBuf::from("/proc"), 0)
        };
        let refused = ensure_private_dir(&path);
        let Err(PrivateDirError::WrongOwner { owner: found, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(found, owner);
    }

    #[test]
    fn fault_63_a_parent_in_which_everybody_can_rename_is_refused() {
        let root = TempDir::new().unwrap();
        let parent = root.path().join("shared");
        fs::create_dir(&parent).unwrap();
        fs::set_permissions(&parent, Permissions::from_mode(0o777)).unwrap();
        let refused = ensure_private_dir(&parent.join("mine"));
        assert!(matches!(refused, Err(PrivateDirError::UnsafeParent { .. })), "{refused:?}");
        fs::set_permissions(&parent, Permissions::from_mode(0o1777)).unwrap();
        ensure_private_dir(&parent.join("mine")).unwrap();
    }

    #[test]
    fn a_passable_directory_is_made_whatever_the_mask_and_can_be_walked_through() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("sockets");
        assert!(!is_owned_dir(&path, crate::users::effective_uid()).unwrap());
        ensure_passable_dir(&path).unwrap();
        assert_eq!(mode_of(&path), 0o711);
        ensure_passable_dir(&path).unwrap();
        assert!(is_owned_dir(&path, crate::users::effective_uid()).unwrap());
        let missing = ensure_passable_dir(&root.path().join("a/b"));
        assert!(matches!(missing, Err(PrivateDirError::Io { error: Errno::NOENT, .. })));
    }

    #[test]
    fn fault_63_a_passable_directory_that_was_planted_or_opened_to_others_is_refused() {
        let own = crate::users::effective_uid();
        let root = TempDir::new().unwrap();
        let path = root.path().join("sockets");
        fs::create_dir(root.path().join("real")).unwrap();
        symlink(root.path().join("real"), &path).unwrap();
        for refused in [ensure_passable_dir(&path), is_owned_dir(&path, own).map(|_| ())] {
            assert!(matches!(refused, Err(PrivateDirError::NotDirectory { .. })), "{refused:?}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        for mode in [0o731, 0o713, 0o1777] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            for refused in [ensure_passable_dir(&path), is_owned_dir(&path, own).map(|_| ())] {
                assert!(matches!(refused, Err(PrivateDirError::Writable { .. })), "{refused:?}");
            }
        }
        fs::set_permissions(&path, Permissions::from_mode(0o711)).unwrap();
        let refused = is_owned_dir(&path, own + 1);
        assert!(matches!(refused, Err(PrivateDirError::WrongOwner { .. })), "{refused:?}");
        if own == 0 {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            let refused = ensure_passable_dir(&path);
            let owner = 12345;
            let Err(PrivateDirError::WrongOwner { owner: found, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(found, owner);
        }
    }

    #[test]
    fn a_lock_has_one_holder_and_ends_with_its_descriptor() {
        // Children of tests in other threads hold our descriptors for the instant before their exec.
        if !crate::rig::alone(
            "private_files::tests::a_lock_has_one_holder_and_ends_with_its_descriptor",
        ) {
            return;
        }
        let root = TempDir::new().unwrap();
        let path = root.path().join("lock");
        let held = try_lock_exclusive(&path).unwrap();
        assert!(held.is_some());
        assert_eq!(mode_of(&path), 0o600);
        assert!(try_lock_exclusive(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock_exclusive(&path).unwrap().is_some());
    }

    #[test]
    fn fault_63_a_lock_file_is_neither_a_symlink_nor_a_fifo() {
        let root = TempDir::new().unwrap();
        symlink(root.path().join("elsewhere"), root.path().join("link")).unwrap();
        assert!(try_lock_exclusive(&root.path().join("link")).is_err());
        assert!(!root.path().join("elsewhere").exists());

        let fifo = root.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        assert!(try_lock_exclusive(&fifo).is_err());
    }
}
