//! Which files are on file systems of this machine, so that looking at them keeps nobody waiting.
//!
//! A file server may not answer, and whoever then looks at a file of its waits for as long: such a
//! look needs a thread of its own. A local file is read in less time than that thread takes to wake.

use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The file systems that need nobody's answer (statfs(2)): bcachefs, btrfs, ext2 to ext4, F2FS, overlayfs,
/// ramfs, squashfs, tmpfs, XFS, ZFS.
const LOCAL_FILE_SYSTEMS: [u32; 10] = [
    0xca45_1a4e,
    0x9123_683e,
    0x0000_ef53,
    0xf2f5_2010,
    0x794c_7630,
    0x8584_58f6,
    0x7371_7368,
    0x0102_1994,
    0x5846_5342,
    0x2fc1_2fc1,
];

/// Whether none of these is reached through a file system that somebody else serves. Blocks on those
/// that are.
pub(crate) fn are_local<'a>(mut paths: impl Iterator<Item = &'a Path>) -> bool {
    paths.all(|path| {
        let real = std::fs::canonicalize(path);
        let real = real.as_deref().unwrap_or(path);
        path.ancestors().chain(real.ancestors()).all(is_local_or_missing)
    })
}

fn is_local_or_missing(path: &Path) -> bool {
    // The last ancestor of a relative path.
    if path.as_os_str().as_bytes().is_empty() {
        return true;
    }
    match rustix::fs::statfs(path) {
        Ok(found) => {
            // The numbers have 32 bits; their type has more, or a sign, on some machines.
            u64::try_from(found.f_type)
                .is_ok_and(|kind| LOCAL_FILE_SYSTEMS.iter().any(|local| u64::from(*local) == kind))
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => true,
        Err(_) => false,
    }
}

/// Whether files are known to be local: until something is mounted or unmounted.
pub(crate) struct KnownLocal {
    /// Whether something was since it was asked last.
    mounts_changed: Box<dyn Fn() -> bool + Send + Sync>,
    knowledge: Mutex<Knowledge>,
}

#[derive(Debug, Default)]
struct Knowledge {
    /// Counts the changes that were seen.
    changes: u64,
    is_local: bool,
}

impl KnownLocal {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        let table = MountTable::open();
        Self::until(move || table.as_ref().is_none_or(MountTable::has_changed))
    }

    fn until(mounts_changed: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { mounts_changed: Box::new(mounts_changed), knowledge: Mutex::default() }
    }

    /// Whether they are known to be local. Costs a system call, and never waits.
    pub(crate) fn get(&self) -> bool {
        self.up_to_date().is_local
    }

    /// Looks whether they are, and remembers it. Blocks on file servers.
    pub(crate) fn learn(&self, look: impl FnOnce() -> bool) {
        let before = self.up_to_date().changes;
        let is_local = look();
        let mut knowledge = self.up_to_date();
        // What was seen before a change says nothing of what is there now.
        knowledge.is_local = is_local && knowledge.changes == before;
    }

    fn up_to_date(&self) -> MutexGuard<'_, Knowledge> {
        // It is whole after every statement, so a panic elsewhere leaves nothing half done.
        let mut knowledge = self.knowledge.lock().unwrap_or_else(PoisonError::into_inner);
        if (self.mounts_changed)() {
            knowledge.changes += 1;
            knowledge.is_local = false;
        }
        knowledge
    }
}

impl fmt::Debug for KnownLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownLocal").field("knowledge", &self.knowledge).finish_non_exhaustive()
    }
}

/// What is mounted where. The kernel tells of a change to whoever polls the file (proc(5),
/// `/proc/PID/mounts`), once for each description of it.
struct MountTable(File);

impl MountTable {
    /// `None` where there is no procfs.
    fn open() -> Option<Self> {
        File::open("/proc/self/mountinfo").ok().map(Self)
    }

    /// Whether it has changed since this was called last, or since it was opened.
    fn has_changed(&self) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::PRI)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&at_once)) != Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn files_of_this_machine_are_told_from_others() {
        let home = tempfile::tempdir().unwrap();
        let (file, link) = (home.path().join("file"), home.path().join("link"));
        std::fs::write(&file, "").unwrap();
        assert!(are_local([file.as_path(), Path::new("/nonexistent/file")].into_iter()));
        // The kernel's own is none that is known to be quick, as is a file server's.
        assert!(!are_local([file.as_path(), Path::new("/proc/self/status")].into_iter()));
        std::os::unix::fs::symlink("/proc/self/status", &link).unwrap();
        assert!(!are_local([link.as_path()].into_iter()));
    }

    #[test]
    fn what_is_known_is_so_until_something_is_mounted() {
        let mounted = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&mounted);
        let known = KnownLocal::until(move || seen.swap(false, Ordering::Relaxed));
        assert!(!known.get());
        known.learn(|| true);
        assert!(known.get() && known.get());
        mounted.store(true, Ordering::Relaxed);
        assert!(!known.get() && !known.get());
        // While somebody looks.
        known.learn(|| {
            mounted.store(true, Ordering::Relaxed);
            true
        });
        assert!(!known.get());
        known.learn(|| true);
        assert!(known.get());
        known.learn(|| false);
        assert!(!known.get());
    }

    #[test]
    fn the_kernels_table_of_mounts_is_quiet_while_nothing_is_mounted() {
        let table = MountTable::open().unwrap();
        // A mount of somebody else's may come in between, but not each time.
        assert!((0..100).any(|_| !table.has_changed()));
    }
}
