//! The journal's file: one write(2) a record, rewritten when most of it is not needed any more
//! (`J-1.4` to `J-1.6`, `J-5.4`).
//!
//! A disk that is full must not keep anybody from running the command that makes room on it. So a
//! record that can't be written refuses no job: the journal is *disavowed* instead, by a rename, which
//! needs no space. A disavowed journal still tells what it knows, but vouches for nothing, so that no
//! retry is taken for a first try. As soon as the disk takes it again, it is written anew as a whole.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use afar_core::job::{JobKey, Vouch};
use afar_core::journal::{
    Began, Indexed, JOURNAL_MAGIC, JournalRecord, Ledger, RecordError, Replay,
};
use afar_core::record::Salt;
use afar_core::spool::spool_name;
use afar_proto::Instant;
use afar_sys::private_files::try_lock_exclusive;

use super::directory::{Directory, Purpose, StoreError};
use super::disk::{Disk, write_all};
use super::limits::{JOURNAL_BYTES_MAX, JOURNAL_REWRITE_BYTES};
use super::retry::Retry;
use crate::log::Log;

/// The journal.
const NAME: &str = "journal";

/// A journal that is being written anew.
const NEW_NAME: &str = "journal.new";

/// A journal that misses something.
const DISAVOWED_NAME: &str = "journal.disavowed";

/// A copy of one that could not be read as a whole, for whoever wants to know why.
const DAMAGED_NAME: &str = "journal.damaged";

/// Who holds it writes the journal.
const LOCK_NAME: &str = "journal.lock";

/// Who begins, and when.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// This supervisor; `None` to go on as the one that wrote the journal last: after an upgrade in
    /// place, or as its guardian.
    pub incarnation: Option<String>,
    /// The kernel's boot id.
    pub boot: String,
    /// Time since boot, sleep included.
    pub since_boot: Duration,
    /// Wall clock, in microseconds of Unix time.
    pub unix_us: u64,
}

/// Why a job can't be written down, so that it must not be started.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It can neither be written nor be marked as missing something.
    #[error("the journal can't be written: {0}")]
    Stuck(StoreError),
    /// It has [`JOURNAL_BYTES_MAX`] of what can't be let go of.
    #[error("the journal has {JOURNAL_BYTES_MAX} bytes of jobs that are not in the index")]
    Full,
    /// There are no random bytes for the name of its spool.
    #[error("no random bytes: {0}")]
    Random(std::io::Error),
    /// The record itself is none.
    #[error("{0}")]
    Record(#[from] RecordError),
}

/// A journal that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// What of the one before could not be read, if anything: then it vouches for nothing before now.
    pub faults: Vec<String>,
}

/// The journal, as its only writer has it.
#[derive(Debug)]
pub struct Journal {
    directory: Arc<Directory>,
    disk: Arc<dyn Disk>,
    log: Log,
    ledger: Ledger,
    file: OwnedFd,
    /// Where the next record goes.
    length: u64,
    /// What a file with all records would have: `length`, unless some could not be written.
    size: u64,
    /// What the file had when it was written anew last.
    rewritten_length: u64,
    /// Whether the ledger has something that the file has not.
    behind: bool,
    /// Whether whoever reads the file finds that it vouches for nothing.
    disavowed: bool,
    /// Whether it takes no more jobs, though it was written anew to make room.
    full: bool,
    /// When it is tried again to write what could not be.
    retry: Retry,
    last_number: u64,
    /// For the next record; kept for its memory.
    scratch: Vec<u8>,
    _lock: OwnedFd,
}

impl Journal {
    /// Opens the journal in a directory, and writes it anew with what is still needed of it.
    ///
    /// # Errors
    /// Somebody else has it, or it can't be written. Whoever goes on without it has to
    /// [`disavow`](Self::disavow) it.
    pub fn open(
        directory: &Arc<Directory>,
        disk: &Arc<dyn Disk>,
        beginning: &Beginning,
        log: Log,
    ) -> Result<Opened, StoreError> {
        let lock = lock(directory)?;
        let (replay, disavowed) = read(directory)?;
        let mut faults = replay.faults.clone();
        if replay.faults_untold > 0 {
            faults.push(format!("and {} more", replay.faults_untold));
        }
        if !replay.is_good() {
            let kept = if disavowed { DISAVOWED_NAME } else { NAME };
            directory.rename(kept, DAMAGED_NAME)?;
        }
        if disavowed {
            faults.push("it misses what could not be written".to_owned());
        }
        let ledger = begin(replay, disavowed, beginning);
        // So that a number tells which jobs were there before, whatever the clock does later.
        let last_number = ledger.jobs().map(|entry| entry.intended.number).max();
        let last_number = last_number.unwrap_or_default().max(beginning.unix_us);
        let (file, length) = write_anew(directory, disk.as_ref(), &ledger)?;
        directory.remove(DISAVOWED_NAME)?;
        let journal = Self {
            directory: Arc::clone(directory),
            disk: Arc::clone(disk),
            log,
            ledger,
            file,
            length,
            size: length,
            rewritten_length: length,
            behind: false,
            disavowed: false,
            full: false,
            retry: Retry::default(),
            last_number,
            scratch: Vec::new(),
            _lock: lock,
        };
        Ok(Opened { journal, faults })
    }

    /// Says that the journal in this directory misses something, so that it vouches for nothing: for
    /// a supervisor that runs jobs without it.
    ///
    /// # Errors
    /// It can't be renamed. That there is none is none.
    pub fn disavow(directory: &Directory) -> Result<(), StoreError> {
        match directory.rename(NAME, DISAVOWED_NAME) {
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(())
            }
            renamed => renamed,
        }
    }

    /// What it says.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// This supervisor.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        self.ledger.began().map_or("", |began| &began.incarnation)
    }

    /// Since when every job is in the journal, or was until it was in the index, by the clock since
    /// boot (`J-1.6`).
    #[must_use]
    pub fn vouch(&self) -> Vouch {
        vouch_of(&self.ledger)
    }

    /// A number that no job has had: the time in microseconds, or one more than the last.
    #[must_use]
    pub fn next_number(&mut self, unix_us: u64) -> u64 {
        next_number(&mut self.last_number, unix_us)
    }

    /// Gives no number from here on that is not above this one, which is another job's.
    pub fn number_above(&mut self, number: u64) {
        self.last_number = self.last_number.max(number);
    }

    /// The name of the directory for the output of the job of this number.
    ///
    /// # Errors
    /// There are no random bytes.
    pub fn new_spool_name(number: u64) -> std::io::Result<String> {
        let salt = u64::from_be_bytes(afar_sys::random::random_bytes()?);
        Ok(spool_name(number, Salt(salt)))
    }

    /// Writes a record: one write(2), which is not synchronised (`J-1.5`).
    ///
    /// # Errors
    /// Of the intent to start a job: it is forgotten again, and must not be started. Of a later step:
    /// it is remembered, and may be lost with this process.
    pub fn append(&mut self, record: JournalRecord) -> Result<(), JournalError> {
        let new_job = match &record {
            JournalRecord::Intended(intended) => Some(intended.job.clone()),
            _ => None,
        };
        let mut bytes = self.encode(&record)?;
        if new_job.is_some() && self.size + bytes > JOURNAL_BYTES_MAX {
            if !self.makes_room() {
                return Err(JournalError::Full);
            }
            // Its place in the file is another one now, which its checksum is of too.
            bytes = self.encode(&record)?;
        }
        self.ledger.apply(record)?;
        self.size += bytes;
        if self.behind {
            // Writing everything anew for each record would take longer with each of them.
            return self.fell_behind(new_job.as_ref(), None);
        }
        if self.is_rewrite_due() {
            if self.rewrite().is_ok() {
                return Ok(());
            }
            // Not again for each record: when it has doubled once more.
            self.rewritten_length = self.size;
        }
        self.write().or_else(|error| self.fell_behind(new_job.as_ref(), Some(&error)))
    }

    /// Puts into `scratch` what is to be written next, and says how much that is.
    fn encode(&mut self, record: &JournalRecord) -> Result<u64, RecordError> {
        self.scratch.clear();
        record.push_to(&mut self.scratch, self.length)?;
        Ok(self.scratch.len() as u64)
    }

    /// Writes `scratch`, which the ledger has already.
    fn write(&mut self) -> Result<(), StoreError> {
        let parts = &mut [IoSlice::new(&self.scratch)];
        match write_all(self.disk.as_ref(), self.file.as_fd(), parts, self.length) {
            Ok(()) => {
                self.length += self.scratch.len() as u64;
                Ok(())
            }
            Err(error) => {
                // What was written of it must not stay behind the next record if that is shorter.
                // Where even this fails, the journal is damaged, and says so to whoever reads it.
                let _ = rustix::fs::ftruncate(&self.file, self.length);
                Err(self.directory.error("write", NAME)(error))
            }
        }
    }

    /// The last number that a job has had, or could have had before this was opened.
    #[must_use]
    pub fn last_number(&self) -> u64 {
        self.last_number
    }

    /// Something that was to be remembered is lost, or about to be: from here on nothing before now is
    /// vouched for. Says whether that holds for whoever reads the file too.
    pub fn forgot(&mut self, since_boot: Duration) -> bool {
        self.ledger.vouch_from(micros(since_boot));
        self.behind = true;
        if Self::disavow(&self.directory).is_ok() {
            self.disavowed = true;
        }
        let _ = self.make_whole();
        self.disavowed || !self.behind
    }

    /// Says that these jobs are in the index, on the disk.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn forget(&mut self, numbers: Vec<u64>) -> Result<(), JournalError> {
        self.append(JournalRecord::Indexed(Indexed { numbers }))
    }

    /// Whether something is to be written that could not be yet.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind || self.disavowed || self.full
    }

    /// Writes what could not be written, if there is something and the disk takes it now. While it does
    /// not, that is tried less and less often.
    pub fn catch_up(&mut self, since_boot: Duration) {
        if !self.is_behind() || !self.retry.is_due(since_boot) {
            return;
        }
        // If it still can't, that was said when it began.
        let _ = self.make_whole();
        self.full &= self.size >= JOURNAL_BYTES_MAX / 2;
        if self.is_behind() {
            self.retry.failed(since_boot);
        } else {
            self.retry.succeeded();
        }
    }

    /// What is to be done when the disk takes no record, now or since a while ago.
    fn fell_behind(
        &mut self,
        new_job: Option<&JobKey>,
        error: Option<&StoreError>,
    ) -> Result<(), JournalError> {
        if !self.disavowed {
            if let Err(stuck) = Self::disavow(&self.directory) {
                match new_job {
                    Some(job) => {
                        self.ledger.withdraw(job);
                        self.size -= self.scratch.len() as u64;
                    }
                    None => self.behind = true,
                }
                return Err(JournalError::Stuck(stuck));
            }
            let why = error.map_or_else(|| "it is behind".to_owned(), ToString::to_string);
            self.log.error(&format!(
                "{why}; jobs run, but until the journal can be written a retry can't be told from a \
                 first try after this supervisor has ended"
            ));
        }
        self.disavowed = true;
        self.behind = true;
        Ok(())
    }

    fn is_rewrite_due(&self) -> bool {
        self.size > JOURNAL_REWRITE_BYTES.max(self.rewritten_length.saturating_mul(2))
    }

    /// Whether writing it anew makes room for more jobs. Where it did not, [`Self::catch_up`] tries it
    /// again, not each job.
    fn makes_room(&mut self) -> bool {
        self.full = self.full || self.rewrite().is_err() || self.size >= JOURNAL_BYTES_MAX / 2;
        !self.full
    }

    /// Writes everything anew. An error leaves the file, and what is known of it, as it was.
    fn rewrite(&mut self) -> Result<(), StoreError> {
        let (file, length) = write_anew(&self.directory, self.disk.as_ref(), &self.ledger)?;
        self.file = file;
        self.length = length;
        self.size = length;
        self.rewritten_length = length;
        self.behind = false;
        Ok(())
    }

    /// Writes everything anew, and then says that nothing is missing.
    fn make_whole(&mut self) -> Result<(), StoreError> {
        if self.behind || self.full {
            self.rewrite()?;
        }
        if self.disavowed {
            self.directory.remove(DISAVOWED_NAME)?;
            self.disavowed = false;
            self.log.info("the journal can be written again, and is whole");
        }
        Ok(())
    }
}

/// See [`Journal::vouch`].
pub(super) fn vouch_of(ledger: &Ledger) -> Vouch {
    let never = Instant::from_micros(u64::MAX);
    ledger.vouch().unwrap_or(Vouch { began: never, since: never })
}

/// See [`Journal::next_number`].
pub(super) fn next_number(last_number: &mut u64, unix_us: u64) -> u64 {
    *last_number = unix_us.max(last_number.saturating_add(1));
    *last_number
}

fn lock(directory: &Directory) -> Result<OwnedFd, StoreError> {
    let path = directory.path().join(LOCK_NAME);
    match try_lock_exclusive(&path) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(StoreError::InUse { path }),
        Err(error) => Err(directory.error("lock", LOCK_NAME)(error)),
    }
}

/// Whether a later afar has written it: a guardian that is older than its supervisor, after an upgrade, must
/// not take for damage what it only does not know.
fn is_later(file: &[u8]) -> bool {
    let (Some(form), Some((ours, name))) =
        (file.get(..JOURNAL_MAGIC.len()), JOURNAL_MAGIC.split_last())
    else {
        return false;
    };
    let version = form.strip_prefix(name).and_then(<[u8]>::first);
    version.is_some_and(|version| version.is_ascii_digit() && version > ours)
}

/// The journal that is there, and whether it is a disavowed one.
fn read(directory: &Directory) -> Result<(Replay, bool), StoreError> {
    let read = |name| {
        let file = directory.read(name, JOURNAL_BYTES_MAX * 2)?;
        if is_later(&file) {
            return Err(StoreError::Later { path: directory.path().join(name) });
        }
        Ok(file)
    };
    let disavowed = read(DISAVOWED_NAME)?;
    if disavowed.is_empty() {
        return Ok((Replay::read(&read(NAME)?), false));
    }
    // Between the two steps in which it was made whole again, there are both.
    let whole = read(NAME)?;
    if whole.is_empty() {
        Ok((Replay::read(&disavowed), true))
    } else {
        Ok((Replay::read(&whole), true))
    }
}

/// What a supervisor goes on from.
fn begin(replay: Replay, disavowed: bool, beginning: &Beginning) -> Ledger {
    let boottime_us = micros(beginning.since_boot);
    let since = replay.vouched_since_us(&beginning.boot, boottime_us);
    let vouched_since_us = if disavowed { boottime_us } else { since };
    let mut ledger = replay.ledger;
    let before = ledger.began().cloned();
    let began = match (&beginning.incarnation, before) {
        (None, Some(before)) => Began { vouched_since_us, ..before },
        (incarnation, _) => Began {
            incarnation: incarnation.clone().unwrap_or_default(),
            boot: beginning.boot.clone(),
            boottime_us,
            unix_us: beginning.unix_us,
            vouched_since_us,
        },
    };
    ledger.begin(began);
    ledger
}

/// Writes a journal that says what the ledger says, and puts it in the place of the old one.
fn write_anew(
    directory: &Directory,
    disk: &dyn Disk,
    ledger: &Ledger,
) -> Result<(OwnedFd, u64), StoreError> {
    let bytes = ledger.to_file().map_err(|error| {
        directory.error("write", NEW_NAME)(std::io::Error::other(error.to_string()))
    })?;
    let file = directory.existing_file(NEW_NAME, Purpose::Rewrite)?;
    write_all(disk, file.as_fd(), &mut [IoSlice::new(&bytes)], 0)
        .map_err(directory.error("write", NEW_NAME))?;
    directory.rename(NEW_NAME, NAME)?;
    Ok((file, bytes.len() as u64))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
