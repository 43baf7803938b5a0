//! Output on the disk: a directory a job, in it segments that are only ever appended to, and released
//! as a whole (`J-5.5` to `J-5.9`).
//!
//! One thread writes for all jobs, so that no disk makes a job wait that does not write to it. What a
//! job hands over it keeps until it hears that it was written; so nothing is lost when the disk takes
//! no more, and a job never has more under way than [`SPOOL_QUEUED_BYTES_MAX`].

mod layout;
mod reader;
mod thread;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use afar_core::spool::parse_spool_name;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::directory::{Directory, StoreError};
use super::disk::Disk;
use super::limits::{SPOOL_JOB_BYTES_MAX, SPOOL_QUEUED_BYTES_MAX, SPOOL_USER_BYTES_MAX};
use crate::log::Log;
use layout::{Layout, Shared};
use thread::{Order, SpoolThread};

pub use layout::SpoolFailure;
pub use reader::{ReadPiece, SpoolRead, SpoolReader};
pub use writer::{Room, SpoolEvent, SpoolWriter};

/// The file in a job's directory that says whose output it is, in the form of a journal (`J-5.5`).
const META_NAME: &str = "job";

/// Largest such file, in bytes: two records.
const META_BYTES_MAX: u64 = 512 * 1024;

/// How much output may be kept on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Of one job, in bytes.
    pub job_bytes: u64,
    /// Of all jobs, in bytes.
    pub user_bytes: u64,
    /// Size from which on a segment is followed by the next, in bytes.
    pub segment_bytes: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            job_bytes: SPOOL_JOB_BYTES_MAX,
            user_bytes: SPOOL_USER_BYTES_MAX,
            segment_bytes: super::limits::SPOOL_SEGMENT_BYTES,
        }
    }
}

/// The spools of all jobs of a user.
#[derive(Debug)]
pub struct Spools {
    root: Arc<Directory>,
    disk: Arc<dyn Disk>,
    quotas: Quotas,
    /// Bytes of all jobs: on the disk, and on their way to it.
    used: Arc<AtomicU64>,
    log: Log,
    thread: Mutex<Option<SpoolThread>>,
}

impl Spools {
    /// The spools in this directory.
    ///
    /// # Errors
    /// It can't be made, or is not this user's alone.
    pub fn open(
        path: &Path,
        disk: &Arc<dyn Disk>,
        quotas: Quotas,
        log: Log,
    ) -> Result<Self, StoreError> {
        let root = Arc::new(Directory::open(path)?);
        let disk = Arc::clone(disk);
        let used = Arc::default();
        Ok(Self { root, disk, quotas, used, log, thread: Mutex::default() })
    }

    /// A spool for a job. Nothing is made on the disk before there is output for it.
    ///
    /// `from` is where the output begins that it is going to get: no earlier byte of a stream is ever
    /// in it. `meta` is what its directory says of the job, in the form of a journal.
    #[must_use]
    pub fn create(&self, name: &str, from: [u64; 2], meta: Vec<u8>) -> SpoolWriter {
        let shared = Arc::new(Shared::new(name.to_owned(), Layout::new(from)));
        self.writer(shared, meta)
    }

    /// The spool of a job that goes on in another process: what is there already is what was written.
    ///
    /// # Errors
    /// Its directory can't be read.
    pub fn resume(
        &self,
        name: &str,
        from: [u64; 2],
        meta: Vec<u8>,
    ) -> Result<SpoolWriter, StoreError> {
        let layout = match self.directory_of(name)? {
            Some(directory) => layout::of_directory(&directory, name, Some(from))?,
            None => Layout::new(from),
        };
        Ok(self.writer(Arc::new(Shared::new(name.to_owned(), layout)), meta))
    }

    fn writer(&self, shared: Arc<Shared>, meta: Vec<u8>) -> SpoolWriter {
        let orders = self.orders().unwrap_or_else(|error| {
            // The next job may have one; this one's output is not kept, and it hears so.
            let failure = SpoolFailure {
                action: "start a thread to write",
                path: path_of(&self.root, &shared.name),
                message: error.to_string(),
            };
            self.log.error(&format!("no output of this job is kept on the disk: {failure}"));
            shared.layout().failure = Some(failure);
            mpsc::channel().0
        });
        SpoolWriter::new(shared, meta, orders, self.quotas, Arc::clone(&self.used))
    }

    /// The reader of the spool of a job that has ended; `None` if nothing of it is kept.
    ///
    /// # Errors
    /// Its directory can't be read.
    pub fn reader(&self, name: &str) -> Result<Option<SpoolReader>, StoreError> {
        let Some(directory) = self.directory_of(name)? else { return Ok(None) };
        let layout = layout::of_directory(&directory, name, None)?;
        let shared = Arc::new(Shared::new(name.to_owned(), layout));
        Ok(Some(SpoolReader::new(Arc::clone(&self.root), shared)))
    }

    /// What the directory of a job says of it, in the form of a journal; nothing if it says nothing.
    ///
    /// # Errors
    /// It can't be read.
    pub fn meta(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        match self.directory_of(name)? {
            Some(directory) => directory.read(META_NAME, META_BYTES_MAX),
            None => Ok(Vec::new()),
        }
    }

    /// The names of all spools, by the numbers of their jobs. What is named otherwise is none of ours.
    ///
    /// # Errors
    /// The directory can't be listed.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        let names = self.root.names()?.into_iter().filter_map(|name| name.into_string().ok());
        let mut names: Vec<_> = names.filter(|name| parse_spool_name(name).is_some()).collect();
        names.sort();
        Ok(names)
    }

    /// Bytes that the kept output of a job takes on the disk.
    ///
    /// # Errors
    /// Its directory can't be read.
    pub fn size(&self, name: &str) -> Result<u64, StoreError> {
        match self.directory_of(name)? {
            Some(directory) => Ok(layout::of_directory(&directory, name, None)?.bytes()),
            None => Ok(0),
        }
    }

    /// Counts output that was there before this process.
    pub fn count(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of all jobs, on the disk and on their way to it.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The quotas.
    #[must_use]
    pub fn quotas(&self) -> Quotas {
        self.quotas
    }

    /// Removes all output of a job that nobody writes any more. May take a while.
    ///
    /// # Errors
    /// Something of it can't be removed; it stays then.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let Some(directory) = self.directory_of(name)? else { return Ok(()) };
        let bytes = layout::of_directory(&directory, name, None)?.bytes();
        for file in directory.names()? {
            directory.remove(&file.to_string_lossy())?;
        }
        drop(directory);
        remove_directory(&self.root, name)?;
        layout::give_back(&self.used, bytes);
        Ok(())
    }

    fn directory_of(&self, name: &str) -> Result<Option<Directory>, StoreError> {
        self.root.subdirectory(name, false)
    }

    fn orders(&self) -> io::Result<mpsc::Sender<Order>> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = match &mut *thread {
            Some(thread) => thread,
            none => {
                let (root, disk) = (Arc::clone(&self.root), Arc::clone(&self.disk));
                let (quotas, used) = (self.quotas, Arc::clone(&self.used));
                none.insert(SpoolThread::start(root, disk, quotas, used, self.log)?)
            }
        };
        Ok(thread.orders())
    }
}

fn remove_directory(root: &Directory, name: &str) -> Result<(), StoreError> {
    match rustix::fs::unlinkat(root.descriptor(), name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(root.error("remove", name)(io::Error::from(error))),
    }
}

/// Where a spool is, for messages.
fn path_of(root: &Directory, name: &str) -> PathBuf {
    root.path().join(name)
}

/// Whether so many bytes more may be under way.
fn may_queue(queued: u64) -> bool {
    queued < SPOOL_QUEUED_BYTES_MAX
}

#[cfg(test)]
mod tests;
