//! Which files may be believed, and how the few that afar changes are changed.
//!
//! A file that decides who may run commands is only worth what its permissions are worth. Every
//! check here is made on a descriptor that stays open for the read that follows, so nothing can
//! be exchanged between the look and the use. All functions block on the file system; none may be
//! called from an async task directly.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use zeroize::Zeroizing;

/// The largest private key file that is read. An RSA key of 16,384 bits takes 13 KiB.
pub const PRIVATE_KEY_BYTES_MAX: u64 = 64 * 1024;

/// How many symbolic links in a row are followed to a file that is to be replaced, as the kernel.
const SYMLINKS_MAX: usize = 40;

/// Why a file was not read, not believed, or not written.
///
/// Paths are shown quoted and escaped, so they are safe to print.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file is a directory, a pipe, a device or a socket.
    #[error("{path:?} is not a regular file")]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// The file is larger than afar reads of its sort.
    #[error("{path:?} is larger than {bytes_max} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit it is over.
        bytes_max: u64,
    },
    /// Somebody else owns the file, or a directory above it, and could change it.
    #[error("{path:?} is owned by uid {owner}, which may be neither believed nor used")]
    WrongOwner {
        /// The file or the directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
    },
    /// Others could change the file, or put another in its place.
    #[error("{path:?} can be written by others (mode {mode:04o})")]
    WritableByOthers {
        /// The file or the directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A private key that others can read is no secret.
    #[error("the private key {path:?} is open to others (mode {mode:04o}); chmod 600 it")]
    KeyTooOpen {
        /// The private key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system refused.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FileError {
    /// Whether the file is just not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.is_io(io::ErrorKind::NotFound)
    }

    /// Whether we are not allowed to open the file.
    #[must_use]
    pub fn is_permission_denied(&self) -> bool {
        self.is_io(io::ErrorKind::PermissionDenied)
    }

    fn is_io(&self, kind: io::ErrorKind) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == kind)
    }
}

/// Reads a file that decides on access, under the rules of sshd's `StrictModes` (sshd_config(5)).
///
/// The file must be regular, at most `bytes_max` bytes, owned by `uid` or root and not writable by
/// group or others; so must be every directory above it, up to `home` where the file is inside it,
/// else up to the root. Symbolic links are resolved first, and then every component of what they
/// resolve to is opened in turn without following any, so that a link planted meanwhile is an
/// error and never a detour.
///
/// # Errors
/// A [`FileError`] naming the offending file or directory.
pub fn read_checked(
    path: &Path,
    home: Option<&Path>,
    uid: u32,
    bytes_max: u64,
) -> Result<Vec<u8>, FileError> {
    let real = path.canonicalize().map_err(|source| failed("open", path, source))?;
    let real_home = home.and_then(|home| home.canonicalize().ok());
    let inside_home = real_home.filter(|home| real.starts_with(home) && real != *home);
    read_below(&real, uid, bytes_max, |directory, stat| {
        if inside_home.as_ref().is_none_or(|home| directory.starts_with(home)) {
            check_unwritable(directory, stat, uid)?;
        }
        Ok(())
    })
}

/// Reads a file that an administrator named and that decides on access. As [`read_checked`] without
/// a home, but that a directory above the file may be writable by all if it is sticky, as `/tmp`:
/// nobody but their owner can then exchange what is in it.
///
/// # Errors
/// A [`FileError`] naming the offending file or directory.
pub fn read_trusted(path: &Path, uid: u32, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    let real = path.canonicalize().map_err(|source| failed("open", path, source))?;
    read_below(&real, uid, bytes_max, |directory, stat| {
        match check_unwritable(directory, stat, uid) {
            Err(FileError::WritableByOthers { mode, .. }) if mode & STICKY != 0 => Ok(()),
            checked => checked,
        }
    })
}

/// The bit that lets only its owner remove a file from a directory (inode(7)).
const STICKY: u32 = 0o1000;

/// Reads a file by a path that holds no link, which must not be writable by others, nor any
/// directory above it be one that `check` refuses. Every component is opened in turn without
/// following links.
fn read_below(
    real: &Path,
    uid: u32,
    bytes_max: u64,
    check: impl Fn(&Path, &Stat) -> Result<(), FileError>,
) -> Result<Vec<u8>, FileError> {
    let mut at = PathBuf::from("/");
    let mut fd = rustix::fs::open("/", WALK, Mode::empty())
        .map_err(|source| failed("open", &at, source.into()))?;
    let names: Vec<&OsStr> = real.components().filter_map(normal_name).collect();
    let Some((file_name, directories)) = names.split_last() else {
        return Err(FileError::NotRegular { path: real.to_owned() });
    };
    check(&at, &status(&fd, &at)?)?;
    for name in directories {
        at.push(name);
        fd = rustix::fs::openat(&fd, *name, WALK, Mode::empty())
            .map_err(|source| failed("open", &at, source.into()))?;
        check(&at, &status(&fd, &at)?)?;
    }
    let file = rustix::fs::openat(&fd, *file_name, READ | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|source| failed("open", real, source.into()))?;
    let stat = regular(&file, real)?;
    check_unwritable(real, &stat, uid)?;
    // With room for the end, which is a read of its own; what grows meanwhile is read all the same.
    let expected = u64::try_from(stat.st_size).unwrap_or(0).min(bytes_max).saturating_add(32);
    let mut contents = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    read_capped(file, real, bytes_max, &mut contents)?;
    Ok(contents)
}

/// Reads a regular file of at most `bytes_max` bytes, whoever owns it. A pipe is refused at once
/// and never waited for.
///
/// # Errors
/// A [`FileError`] naming the file.
pub fn read_regular(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    let file = rustix::fs::open(path, READ, Mode::empty())
        .map_err(|source| failed("open", path, source.into()))?;
    regular(&file, path)?;
    let mut contents = Vec::new();
    read_capped(file, path, bytes_max, &mut contents)?;
    Ok(contents)
}

/// Whose private key a file holds, which decides how strictly its permissions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrivateKeyRule {
    /// A user's key, as ssh has it: where we own the file, nobody else may have any access. A file
    /// that another uid owns (a mounted secret) is for its owner to protect.
    User,
    /// A host's key: owned by us or root, and nobody else may have any access.
    Host,
}

impl PrivateKeyRule {
    /// Judges a file of this owner and mode, read by a process of uid `ours`.
    fn check(self, path: &Path, owner: u32, mode: u32, ours: u32) -> Result<(), FileError> {
        let judged = match self {
            Self::User => owner == ours,
            Self::Host => true,
        };
        if self == Self::Host && owner != ours && owner != 0 {
            return Err(FileError::WrongOwner { path: path.to_owned(), owner });
        }
        if judged && mode & 0o077 != 0 {
            return Err(FileError::KeyTooOpen { path: path.to_owned(), mode: mode & 0o7777 });
        }
        Ok(())
    }
}

/// Reads a private key file of at most [`PRIVATE_KEY_BYTES_MAX`] bytes under the rule for its sort.
/// The bytes are wiped when dropped.
///
/// # Errors
/// A [`FileError`]; [`FileError::KeyTooOpen`] or [`FileError::WrongOwner`] where the rule is broken.
pub fn read_private_key(
    path: &Path,
    rule: PrivateKeyRule,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = rustix::fs::open(path, READ, Mode::empty())
        .map_err(|source| failed("open", path, source.into()))?;
    let stat = regular(&file, path)?;
    rule.check(path, stat.st_uid, stat.st_mode, rustix::process::geteuid().as_raw())?;
    // Sized before it is filled: a vector that grows leaves copies of the secret behind.
    let expected = usize::try_from(stat.st_size).unwrap_or(0);
    let cap = usize::try_from(PRIVATE_KEY_BYTES_MAX).unwrap_or(usize::MAX);
    let mut contents = Zeroizing::new(Vec::with_capacity(expected.min(cap).saturating_add(64)));
    read_capped(file, path, PRIVATE_KEY_BYTES_MAX, &mut contents)?;
    Ok(contents)
}

/// Reads, changes and replaces a file in one step that no other afar can interleave with.
///
/// `change` is given what the file holds (nothing where it does not exist) and returns what it
/// shall hold, or `None` to leave it alone. The new contents go to a new file beside it, are
/// forced to disk and renamed over it, so a reader sees the old or the new, whole. A symbolic link
/// stays one: what it points to is replaced. A new file has mode 0600 and new directories 0700; an
/// existing mode is kept, less what lets others write.
///
/// Returns whether the file was replaced. Waits for other afar processes that change files in the
/// same directory (an advisory lock on it, so that no lock file is left lying about).
///
/// # Errors
/// A [`FileError`]; the file is then as it was.
pub fn update_atomically<F>(path: &Path, bytes_max: u64, change: F) -> Result<bool, FileError>
where
    F: FnOnce(&[u8]) -> Option<Vec<u8>>,
{
    let target = follow_links(path)?;
    let place = Place::open(&target)?;
    place.lock()?;
    let (old, mode) = match place.read(bytes_max) {
        Ok((old, stat)) => (old, stat.st_mode & 0o644 | 0o600),
        Err(error) if error.is_not_found() => (Vec::new(), 0o600),
        Err(error) => return Err(error),
    };
    let Some(new) = change(&old) else { return Ok(false) };
    let temporary = place.write_temporary(&new, mode)?;
    place.rename_over(&temporary)?;
    Ok(true)
}

/// A new file that will take the place of another, whole or not at all: for what others wait for, and
/// need not outlast a crash. It is removed unless it does take its place.
#[derive(Debug)]
pub struct Replacement {
    place: Place,
    temporary: OsString,
    file: File,
    placed: bool,
}

impl Replacement {
    /// Makes the file beside `path`, under a name that nobody can have taken or planted. A link at
    /// `path` will be replaced and not followed. Its mode is what the umask leaves of 0666.
    ///
    /// # Errors
    /// A [`FileError`]; nothing is left behind.
    pub fn prepare(path: &Path) -> Result<Self, FileError> {
        let place = Place::open_in(path)?;
        let (temporary, fd) = place.create_temporary(0o666)?;
        Ok(Self { place, temporary, file: File::from(fd), placed: false })
    }

    /// Writes all of it and puts it in its place.
    ///
    /// # Errors
    /// A [`FileError`]; what was there is left as it was.
    pub fn place(mut self, contents: &[u8]) -> Result<(), FileError> {
        let written = self.file.write_all(contents);
        written.map_err(|source| failed("write", &self.place.path, source))?;
        self.place.rename(&self.temporary)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.placed {
            self.place.discard(&self.temporary);
        }
    }
}

/// Makes a file with mode 0600 that did not exist, whole or not at all.
///
/// Returns whether it was made: `false` says that one was there first, and it is left alone.
/// Directories that are missing are made with mode 0700.
///
/// # Errors
/// A [`FileError`]; nothing is left behind.
pub fn create_once(path: &Path, contents: &[u8]) -> Result<bool, FileError> {
    let place = Place::open(path)?;
    let temporary = place.write_temporary(contents, 0o600)?;
    // link(2), unlike rename(2), fails where the name is taken: of two that race, one wins.
    let linked = rustix::fs::linkat(
        &place.directory,
        &temporary,
        &place.directory,
        &place.name,
        AtFlags::empty(),
    );
    place.discard(&temporary);
    match linked {
        Ok(()) => {
            place.sync();
            Ok(true)
        }
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(source) => Err(failed("create", path, source.into())),
    }
}

/// A directory that is only passed through: no read permission needed, no link followed.
const WALK: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A file that is read: without NONBLOCK the open of a pipe would wait for its writer.
const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

fn failed(action: &'static str, path: &Path, source: io::Error) -> FileError {
    FileError::Io { action, path: path.to_owned(), source }
}

fn normal_name(component: Component<'_>) -> Option<&OsStr> {
    match component {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

fn status(fd: &OwnedFd, path: &Path) -> Result<Stat, FileError> {
    rustix::fs::fstat(fd).map_err(|source| failed("examine", path, source.into()))
}

fn regular(fd: &OwnedFd, path: &Path) -> Result<Stat, FileError> {
    let stat = status(fd, path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        Ok(stat)
    } else {
        Err(FileError::NotRegular { path: path.to_owned() })
    }
}

fn check_unwritable(path: &Path, stat: &Stat, uid: u32) -> Result<(), FileError> {
    if stat.st_uid != uid && stat.st_uid != 0 {
        return Err(FileError::WrongOwner { path: path.to_owned(), owner: stat.st_uid });
    }
    if stat.st_mode & 0o022 != 0 {
        let mode = stat.st_mode & 0o7777;
        return Err(FileError::WritableByOthers { path: path.to_owned(), mode });
    }
    Ok(())
}

fn read_capped(
    fd: OwnedFd,
    path: &Path,
    bytes_max: u64,
    contents: &mut Vec<u8>,
) -> Result<(), FileError> {
    // One byte more than the limit tells "full" from "too large", also while the file grows.
    let read = File::from(fd)
        .take(bytes_max.saturating_add(1))
        .read_to_end(contents)
        .map_err(|source| failed("read", path, source))?;
    if u64::try_from(read).is_ok_and(|read| read <= bytes_max) {
        Ok(())
    } else {
        Err(FileError::TooLarge { path: path.to_owned(), bytes_max })
    }
}

/// Where the file itself is or will be: a link whose target is missing still says where.
fn follow_links(path: &Path) -> Result<PathBuf, FileError> {
    let mut at = path.to_owned();
    for _ in 0..SYMLINKS_MAX {
        match std::fs::read_link(&at) {
            Ok(target) => {
                at.pop();
                at.push(target);
            }
            // Not a link, or not there yet: this is the place.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::NotFound
                ) =>
            {
                return Ok(at);
            }
            Err(source) => return Err(failed("open", &at, source)),
        }
    }
    Err(failed("open", path, rustix::io::Errno::LOOP.into()))
}

/// The directory of a file that is named by its path.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A name in a directory that is held open, so that all steps of a change happen in the same one.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
}

impl Place {
    /// Directories that are missing are made.
    fn open(path: &Path) -> Result<Self, FileError> {
        let parent = parent_of(path);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(|source| failed("create", parent, source))?;
        Self::open_in(path)
    }

    /// In a directory that is there.
    fn open_in(path: &Path) -> Result<Self, FileError> {
        let invalid = || failed("open", path, io::ErrorKind::InvalidInput.into());
        let name = path.file_name().ok_or_else(invalid)?.to_owned();
        let parent = parent_of(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())
            .map_err(|source| failed("open", parent, source.into()))?;
        Ok(Self { path: path.to_owned(), directory, name })
    }

    /// Held until the directory's descriptor is closed with `self`.
    fn lock(&self) -> Result<(), FileError> {
        rustix::io::retry_on_intr(|| {
            rustix::fs::flock(&self.directory, FlockOperation::LockExclusive)
        })
        .map_err(|source| failed("lock the directory of", &self.path, source.into()))
    }

    fn read(&self, bytes_max: u64) -> Result<(Vec<u8>, Stat), FileError> {
        let flags = READ | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty())
            .map_err(|source| failed("open", &self.path, source.into()))?;
        let stat = regular(&file, &self.path)?;
        let mut contents = Vec::new();
        read_capped(file, &self.path, bytes_max, &mut contents)?;
        Ok((contents, stat))
    }

    /// A new file of a name that nobody can guess.
    fn create_temporary(&self, mode: u32) -> Result<(OsString, OwnedFd), FileError> {
        let mut unique = [0_u8; 8];
        aws_lc_rs::rand::fill(&mut unique).map_err(|_| {
            failed("create", &self.path, io::Error::other("no random bytes to be had"))
        })?;
        let name = OsString::from(format!(".afar-{:016x}", u64::from_ne_bytes(unique)));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.directory, &name, flags, Mode::from_raw_mode(mode))
            .map_err(|source| failed("create a file beside", &self.path, source.into()))?;
        Ok((name, fd))
    }

    /// Writes a new file, forced to disk; returns its name.
    fn write_temporary(&self, contents: &[u8], mode: u32) -> Result<OsString, FileError> {
        let (name, fd) = self.create_temporary(0o600)?;
        let written = rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))
            .map_err(io::Error::from)
            .and_then(|()| {
                let mut file = File::from(fd);
                file.write_all(contents)?;
                file.sync_all()
            });
        match written {
            Ok(()) => Ok(name),
            Err(source) => {
                self.discard(&name);
                Err(failed("write", &self.path, source))
            }
        }
    }

    /// Puts a temporary file in its place, so that it stays there whatever happens.
    fn rename_over(&self, temporary: &OsStr) -> Result<(), FileError> {
        let renamed = self.rename(temporary);
        match &renamed {
            Ok(()) => self.sync(),
            Err(_) => self.discard(temporary),
        }
        renamed
    }

    fn rename(&self, temporary: &OsStr) -> Result<(), FileError> {
        rustix::fs::renameat(&self.directory, temporary, &self.directory, &self.name)
            .map_err(|source| failed("replace", &self.path, source.into()))
    }

    /// A temporary file that cannot be removed is litter, not a fault of what was asked for.
    fn discard(&self, temporary: &OsStr) {
        let _ = rustix::fs::unlinkat(&self.directory, temporary, AtFlags::empty());
    }

    /// Some file systems cannot sync a directory; the file itself has been synced by then.
    fn sync(&self) {
        let _ = rustix::fs::fsync(&self.directory);
    }
}

#[cfg(test)]
mod tests;
