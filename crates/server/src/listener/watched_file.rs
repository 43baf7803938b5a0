//! A file of the server's configuration that is read again when it has changed.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use afar_net::files::read_trusted;

/// For how long after a change a file is read again each time: within the same tick of the file
/// system's clock another change of it could not be told from the first.
pub(crate) const SAME_TIME_MAX: Duration = Duration::from_secs(2);

/// A file, and what it was the last time.
pub(super) struct WatchedFile<T> {
    path: PathBuf,
    bytes_max: u64,
    parse: fn(&[u8]) -> Result<T, String>,
    last: Mutex<Option<(Stamp, Arc<T>)>>,
}

/// What changes with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// Also changes with the mode and the owner.
    changed: (i64, i64),
}

impl Stamp {
    /// `None` where there is no file. Blocks on the file system.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// The stamp that the file would have if it had last been changed so long before.
    #[cfg(test)]
    pub(crate) fn aged(self, seconds: i64) -> Self {
        Self { changed: (self.changed.0 - seconds, self.changed.1), ..self }
    }

    /// Whether the last change is longer ago than this, by the machine's clock.
    pub(crate) fn is_older_than(&self, age: Duration) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(u64::MAX);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        changed.saturating_add(age.as_secs()) < now.as_secs()
    }
}

impl<T> WatchedFile<T> {
    pub(super) fn new(
        path: PathBuf,
        bytes_max: u64,
        parse: fn(&[u8]) -> Result<T, String>,
    ) -> Self {
        Self { path, bytes_max, parse, last: Mutex::new(None) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in the file now, or why it can't be told, in one line that names the file. Blocks on
    /// the file system.
    pub(super) fn load(&self) -> Result<Arc<T>, String> {
        // Before the file is read: what is written meanwhile makes the stamp an old one.
        let stamp = Stamp::of(&self.path);
        let lasting = stamp.filter(|stamp| stamp.is_older_than(SAME_TIME_MAX));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some((then, parsed)), Some(now)) = (&*last, &stamp)
            && then == now
        {
            return Ok(Arc::clone(parsed));
        }
        let uid = afar_sys::users::effective_uid();
        let bytes =
            read_trusted(&self.path, uid, self.bytes_max).map_err(|error| error.to_string())?;
        let parsed = (self.parse)(&bytes).map_err(|error| format!("{:?}: {error}", self.path))?;
        let parsed = Arc::new(parsed);
        *last = lasting.map(|stamp| (stamp, Arc::clone(&parsed)));
        Ok(parsed)
    }
}

impl<T> fmt::Debug for WatchedFile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedFile").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(path: &Path) -> WatchedFile<String> {
        let parse = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| "no text".into());
        WatchedFile::new(path.to_owned(), 100, parse)
    }

    #[test]
    fn what_is_written_is_seen_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let watched = file(&path);
        assert!(watched.load().unwrap_err().contains("file"));
        for text in ["one", "two", "six"] {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(*watched.load().unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(watched.load().is_err());
        std::fs::write(&path, [0xff]).unwrap();
        let error = watched.load().unwrap_err();
        assert!(error.contains("no text") && error.contains("file"), "{error}");
    }

    #[test]
    fn only_a_file_that_has_settled_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "one").unwrap();
        let stamp = Stamp::of(&path).unwrap();
        assert!(!stamp.is_older_than(SAME_TIME_MAX));
        assert!(stamp.aged(4).is_older_than(SAME_TIME_MAX));
        let watched = file(&path);
        assert_eq!(*watched.load().unwrap(), "one");
        assert!(watched.last.lock().unwrap().is_none());
        // Where the stamp is the same, what was read then is what is there.
        let remembered = Arc::new("remembered".to_owned());
        *watched.last.lock().unwrap() = Some((stamp, Arc::clone(&remembered)));
        assert!(Arc::ptr_eq(&watched.load().unwrap(), &remembered));
        std::fs::write(&path, "longer").unwrap();
        assert_eq!(*watched.load().unwrap(), "longer");
    }
}
