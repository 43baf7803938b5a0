//! The index of the jobs that have ended, in SQLite: what `ps` lists, what a late attachment finds, and
//! the ids that are taken (`J-1.7`, `J-5.10`).
//!
//! It is an index only: no output is in it, and a job is in the journal until it is here, on the disk.
//! What can't be read here any more is told as unknown, never as something else: so each row has a
//! checksum, which SQLite's own files have not.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use afar_core::job::{Digest, JobKey};
use afar_proto::message::{JobId, JobInfo, JobState, Refused};
use afar_proto::outcome::{End, Seal, Started};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::directory::{Directory, Purpose, StoreError};
use super::limits::{INDEX_JOBS_MAX, INDEX_PAGE_JOBS_MAX, TOMBSTONE_LIFETIME};

/// The database.
const NAME: &str = "index.db";

/// What SQLite puts beside it.
const BESIDE: [&str; 3] = ["index.db-wal", SHARED_NAME, "index.db-journal"];

/// Of these, what says nothing once nobody has the index open.
const SHARED_NAME: &str = "index.db-shm";

/// Where one is put that can't be read.
const DAMAGED_NAME: &str = "index.damaged";

/// The form of the tables; another one is not read.
const VERSION: i64 = 1;

/// How long another connection of this process is waited for.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

const TABLES: &str = "
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,
        scope TEXT NOT NULL,
        id TEXT NOT NULL,
        digest BLOB NOT NULL,
        ended_at_us INTEGER NOT NULL,
        keep_until_us INTEGER NOT NULL,
        spool TEXT,
        removed INTEGER NOT NULL,
        told TEXT NOT NULL,
        sum INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX by_id ON jobs (id, scope);
    CREATE INDEX by_scope ON jobs (scope, number);
    CREATE INDEX by_end ON jobs (ended_at_us);
    CREATE INDEX kept ON jobs (keep_until_us) WHERE spool IS NOT NULL;
    PRAGMA user_version = 1;
";

const COLUMNS: &str =
    "number, scope, id, digest, ended_at_us, keep_until_us, spool, removed, told, sum";

/// A job that has ended, and everything that is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedJob {
    /// Which job.
    pub key: JobKey,
    /// Its number, which rises from job to job.
    pub number: u64,
    /// What was asked for.
    pub digest: Digest,
    /// Its end, in microseconds of Unix time.
    pub ended_at_us: u64,
    /// Until when its output is kept, in microseconds of Unix time.
    pub keep_until_us: u64,
    /// The spool that has output of it, if one has.
    pub spool: Option<String>,
    /// Whether its user wants to see no more of it. Its id stays taken.
    pub removed: bool,
    /// What is said of it.
    pub told: Told,
}

/// What is said of a job that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// In a list.
    pub info: JobInfo,
    /// Whether its process was started.
    pub started: Started,
    /// To whoever attaches, if it was sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
    /// To whoever asks for it again, if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

impl EndedJob {
    /// It, with what is told in agreement with what is kept.
    pub(super) fn told_now(&self) -> Self {
        let mut told = self.clone();
        told.settle();
        told
    }

    /// Makes what is told agree with what is kept.
    fn settle(&mut self) {
        let info = &mut self.told.info;
        info.keep_until_us = self.spool.is_some().then_some(self.keep_until_us);
        if self.spool.is_none() {
            for stream in info.streams.values_mut() {
                stream.kept_from = stream.bytes;
            }
        }
    }

    /// A job of which nothing is known but that it was, and has ended.
    fn unreadable(key: JobKey, number: u64, digest: Digest, spool: Option<String>) -> Self {
        let mut info = JobInfo::new(key.job.clone(), JobState::Ended, b"");
        info.end = Some(End::Unknown);
        let told = Told { info, started: Started::Unknown, seal: None, refused: None };
        let (ended_at_us, keep_until_us, removed) = (number, 0, false);
        Self { key, number, digest, ended_at_us, keep_until_us, spool, removed, told }
    }
}

/// Why the index did not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Its files are no database, or a damaged one: it has to be made anew.
    #[error("the index of jobs is damaged: {0}")]
    Damaged(rusqlite::Error),
    /// Its files are of a later version of afar.
    #[error("the index of jobs is of version {0}; this afar knows version {VERSION}")]
    Version(i64),
    /// It is being made anew just now.
    #[error("the index of jobs is being made anew")]
    Remade,
    /// It has to be made anew, or is too large, and the journal goes on vouching for what it has.
    #[error("the journal of jobs can't be told that the index loses some")]
    Vouched,
    /// Whoever has it could not ask it, and has logged why.
    #[error("the index of jobs can't be asked")]
    Unanswered,
    /// The system, or SQLite, refused.
    #[error("the index of jobs: {0}")]
    Sql(rusqlite::Error),
    /// A file of it can't be used.
    #[error("{0}")]
    File(#[from] StoreError),
}

impl From<rusqlite::Error> for IndexError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error),
            _ => Self::Sql(error),
        }
    }
}

/// The index, as one connection has it. Its calls block.
#[derive(Debug)]
pub struct Index {
    connection: Connection,
    is_frozen: bool,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The only one that writes, and makes the tables.
    Write,
    /// One that looks up, in little memory.
    Read,
}

impl Index {
    /// Opens the index in a directory.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn open(directory: &Directory, purpose: Use) -> Result<Self, IndexError> {
        match Self::open_shared(directory, purpose) {
            Err(IndexError::Sql(error)) if purpose == Use::Read && is_for_want_of_room(&error) => {
                let frozen = Self::open_frozen(directory)?;
                frozen.ok_or(IndexError::Sql(error))
            }
            opened => opened,
        }
    }

    /// For reading, where there is no room for what SQLite puts beside it: only as long as all of it is
    /// in the one file, and nobody writes it. It is told from others by [`is_frozen`](Self::is_frozen).
    fn open_frozen(directory: &Directory) -> Result<Option<Self>, IndexError> {
        for name in BESIDE {
            let ours = directory.file(name, Purpose::Read)?.map(size).transpose();
            let bytes = ours.map_err(directory.error("look at", name))?.unwrap_or(0);
            if name != SHARED_NAME && bytes > 0 {
                return Ok(None);
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(frozen_uri(&path_of(directory)), flags)?;
        Self { connection, is_frozen: true }.of_known_version().map(Some)
    }

    /// Whether it tells only of the moment in which it was opened.
    pub(super) fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    fn open_shared(directory: &Directory, purpose: Use) -> Result<Self, IndexError> {
        // SQLite opens by path, and follows links. So what is there is looked at first; nobody but
        // this user can put anything there in between.
        for name in BESIDE.into_iter().chain([NAME]) {
            directory.file(name, Purpose::Read)?;
        }
        if purpose == Use::Write && directory.file(NAME, Purpose::Read)?.is_none() {
            // With the mode that it is to have; those beside it get the same.
            directory.existing_file(NAME, Purpose::Create)?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path_of(directory), flags)?;
        connection.busy_timeout(BUSY_PATIENCE)?;
        let index = Self { connection, is_frozen: false };
        match purpose {
            Use::Write => index.prepare_to_write()?,
            Use::Read => index.connection.pragma_update(None, "cache_size", -128)?,
        }
        index.of_known_version()
    }

    fn of_known_version(self) -> Result<Self, IndexError> {
        let version = self.version()?;
        if version == VERSION { Ok(self) } else { Err(IndexError::Version(version)) }
    }

    /// Whether there is an index. An empty file is none: so it begins.
    ///
    /// # Errors
    /// Something else stands in its place.
    pub(super) fn is_there(directory: &Directory) -> Result<bool, StoreError> {
        let Some(file) = directory.file(NAME, Purpose::Read)? else { return Ok(false) };
        Ok(size(file).map_err(directory.error("look at", NAME))? > 0)
    }

    fn prepare_to_write(&self) -> Result<(), IndexError> {
        // What this can't be on a file server is no error: SQLite keeps the mode that it had.
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        // A job leaves the journal when it is here: so it has to be on the disk then.
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.pragma_update(None, "cache_size", -1024)?;
        self.connection.pragma_update(None, "journal_size_limit", 4 * 1024 * 1024)?;
        if self.version()? == 0 {
            self.connection.execute_batch(&format!("BEGIN; {TABLES} COMMIT;"))?;
        }
        Ok(())
    }

    fn version(&self) -> Result<i64, IndexError> {
        Ok(self.connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
    }

    /// Puts a damaged index aside, so that the next [`open`](Self::open) makes a new one.
    ///
    /// # Errors
    /// It can't be renamed.
    pub fn put_aside(directory: &Directory) -> Result<(), StoreError> {
        if directory.file(NAME, Purpose::Read)?.is_some() {
            directory.rename(NAME, DAMAGED_NAME)?;
        }
        BESIDE.into_iter().try_for_each(|name| directory.remove(name))
    }

    /// Adds jobs, or what has changed of them; on the disk when this returns.
    ///
    /// # Errors
    /// See [`IndexError`]; none of them is in then.
    pub fn put(&mut self, jobs: &[EndedJob]) -> Result<(), IndexError> {
        let change = self.connection.transaction()?;
        {
            let mut put = change.prepare_cached(&format!(
                "INSERT OR REPLACE INTO jobs ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            ))?;
            for job in jobs {
                let told = serde_json::to_string(&job.told).unwrap_or_default();
                put.execute(params![
                    signed(job.number),
                    job.key.scope,
                    job.key.job.as_str(),
                    job.digest,
                    signed(job.ended_at_us),
                    signed(job.keep_until_us),
                    job.spool,
                    job.removed,
                    told,
                    checksum(&job.key, job.number, &job.digest, &told),
                ])?;
            }
        }
        Ok(change.commit()?)
    }

    /// The job of this key.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn job(&self, key: &JobKey) -> Result<Option<EndedJob>, IndexError> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ? AND scope = ?");
        let mut statement = self.connection.prepare_cached(&sql)?;
        Ok(statement.query_row(params![key.job.as_str(), key.scope], read).optional()?.flatten())
    }

    /// Tells of the scope and the id of every job.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn each_id(&self, mut tell: impl FnMut(&str, &str)) -> Result<(), IndexError> {
        let mut statement = self.connection.prepare("SELECT scope, id FROM jobs")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            // Of a row whose id can't be read, none is taken.
            if let (Ok(scope), Ok(id)) = (row.get_ref(0)?.as_str(), row.get_ref(1)?.as_str()) {
                tell(scope, id);
            }
        }
        Ok(())
    }

    /// Jobs whose ids begin so, at most `limit`, in the order of their ids; of all scopes unless one is
    /// named.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn with_prefix(
        &self,
        scope: Option<&str>,
        prefix: &str,
        limit: u32,
    ) -> Result<Vec<EndedJob>, IndexError> {
        // Behind every character that an id may have.
        let end = format!("{prefix}\u{7f}");
        let mut statement = self.connection.prepare_cached(&sql_of_prefix())?;
        let found = statement.query_map(params![prefix, end, scope, limit], read)?;
        Ok(found.filter_map(Result::transpose).collect::<Result<_, _>>()?)
    }

    /// The newest jobs whose number is below `before` and whose ids begin so, the newest first, at most
    /// `limit` and [`INDEX_PAGE_JOBS_MAX`]; of all scopes unless one is named.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn page(
        &self,
        scope: Option<&str>,
        prefix: &str,
        before: u64,
        limit: u32,
    ) -> Result<Vec<EndedJob>, IndexError> {
        let sql = sql_of_page(scope.is_some(), !prefix.is_empty());
        let mut statement = self.connection.prepare_cached(&sql)?;
        let (before, limit) = (signed(before), limit.min(INDEX_PAGE_JOBS_MAX));
        let end = format!("{prefix}\u{7f}");
        let found = statement.query_map(params![before, limit, scope, prefix, end], read)?;
        Ok(found.filter_map(Result::transpose).collect::<Result<_, _>>()?)
    }

    /// The highest number of a job, or 0.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn last_number(&self) -> Result<u64, IndexError> {
        let last: Option<i64> =
            self.connection.query_row("SELECT max(number) FROM jobs", [], |row| row.get(0))?;
        Ok(last.map_or(0, unsigned))
    }

    /// Whether a spool of this name has output of a job that is to be kept; `None` if no job has this
    /// number.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn keeps(&self, number: u64, spool: &str) -> Result<Option<bool>, IndexError> {
        let mut statement =
            self.connection.prepare_cached("SELECT spool IS ? FROM jobs WHERE number = ?")?;
        Ok(statement.query_row(params![spool, signed(number)], |row| row.get(0)).optional()?)
    }

    /// The spools whose time is over, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn expired(&self, now_us: u64, limit: u32) -> Result<Vec<(u64, String)>, IndexError> {
        self.spools(
            "SELECT number, spool FROM jobs WHERE spool IS NOT NULL AND keep_until_us <= ?
             ORDER BY keep_until_us LIMIT ?",
            now_us,
            limit,
        )
    }

    /// The spools of the jobs that ended first, at most `limit`.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn oldest_kept(&self, limit: u32) -> Result<Vec<(u64, String)>, IndexError> {
        self.spools(
            "SELECT number, spool FROM jobs WHERE spool IS NOT NULL AND ended_at_us <= ?
             ORDER BY ended_at_us LIMIT ?",
            u64::MAX,
            limit,
        )
    }

    fn spools(
        &self,
        sql: &str,
        until_us: u64,
        limit: u32,
    ) -> Result<Vec<(u64, String)>, IndexError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let found = statement.query_map(params![signed(until_us), limit], |row| {
            Ok((unsigned(row.get(0)?), row.get(1)?))
        })?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    /// The output of this job is not there any more.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn released(&mut self, number: u64) -> Result<(), IndexError> {
        let mut statement =
            self.connection.prepare_cached("UPDATE jobs SET spool = NULL WHERE number = ?")?;
        statement.execute([signed(number)])?;
        Ok(())
    }

    /// Forgets the jobs whose ids need not be remembered any more (`J-1.7`), at most `limit`. Says how
    /// many.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn forget(&mut self, now_us: u64, limit: u32) -> Result<usize, IndexError> {
        let lifetime = u64::try_from(TOMBSTONE_LIFETIME.as_micros()).unwrap_or(u64::MAX);
        let over = now_us.saturating_sub(lifetime);
        let mut statement = self.connection.prepare_cached(
            "DELETE FROM jobs WHERE number IN (
                SELECT number FROM jobs WHERE spool IS NULL AND ended_at_us <= ?
                ORDER BY ended_at_us LIMIT ?)",
        )?;
        Ok(statement.execute(params![signed(over), limit])?)
    }

    /// How many more than [`INDEX_JOBS_MAX`] there are.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn surplus(&self) -> Result<u64, IndexError> {
        let count = self.connection.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))?;
        Ok(unsigned(count).saturating_sub(INDEX_JOBS_MAX))
    }

    /// Forgets those of the [`surplus`](Self::surplus) that ended first, at most `limit`, whose ids were
    /// to be remembered still. Says how many.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn forget_surplus(&mut self, limit: u32) -> Result<usize, IndexError> {
        let surplus = self.surplus()?.min(limit.into());
        let mut statement = self.connection.prepare_cached(
            "DELETE FROM jobs WHERE number IN (
                SELECT number FROM jobs WHERE spool IS NULL ORDER BY ended_at_us LIMIT ?)",
        )?;
        Ok(statement.execute([signed(surplus)])?)
    }
}

fn sql_of_prefix() -> String {
    format!(
        "SELECT {COLUMNS} FROM jobs INDEXED BY by_id
         WHERE id >= ?1 AND id < ?2 AND (?3 IS NULL OR scope = ?3) AND NOT removed
         ORDER BY id LIMIT ?4"
    )
}

fn sql_of_page(of_scope: bool, of_prefix: bool) -> String {
    let of_scope = if of_scope { "scope = ?3" } else { "?3 IS NULL" };
    // Few begin with what somebody has typed: these are sorted. All of them are in order already.
    let (indexed, of_prefix) =
        if of_prefix { ("INDEXED BY by_id", "id >= ?4 AND id < ?5") } else { ("", "?4 <> ?5") };
    format!(
        "SELECT {COLUMNS} FROM jobs {indexed}
         WHERE number < ?1 AND NOT removed AND {of_scope} AND {of_prefix}
         ORDER BY number DESC LIMIT ?2"
    )
}

/// Whether there may be room enough for looking into it without anything beside it.
fn is_for_want_of_room(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen)
    )
}

/// SQLite's name for a database that nobody writes.
fn frozen_uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri + "?immutable=1"
}

fn size(file: OwnedFd) -> std::io::Result<u64> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

fn path_of(directory: &Directory) -> PathBuf {
    Path::new(directory.path()).join(NAME)
}

/// A row as a job; `None` if not even its id can be read. What was changed behind our back is told as
/// unknown.
fn read(row: &Row<'_>) -> rusqlite::Result<Option<EndedJob>> {
    let number = unsigned(row.get(0)?);
    let Ok(job) = JobId::new(row.get_ref(2)?.as_str().unwrap_or_default()) else { return Ok(None) };
    let key = JobKey { scope: row.get(1)?, job };
    let digest: Digest = row.get(3).unwrap_or_default();
    let spool: Option<String> = row.get(6)?;
    let text = row.get_ref(8)?.as_str().unwrap_or_default();
    let told = serde_json::from_str(text).ok();
    let is_good = row.get::<_, i64>(9)? == checksum(&key, number, &digest, text);
    let Some(told) = told.filter(|_| is_good) else {
        return Ok(Some(EndedJob::unreadable(key, number, digest, spool)));
    };
    let (ended_at_us, keep_until_us) = (unsigned(row.get(4)?), unsigned(row.get(5)?));
    let removed = row.get(7)?;
    let mut job =
        EndedJob { key, number, digest, ended_at_us, keep_until_us, spool, removed, told };
    job.settle();
    Ok(Some(job))
}

/// What is held against what a row says of its job's end.
fn checksum(key: &JobKey, number: u64, digest: &Digest, told: &str) -> i64 {
    let parts: [&[u8]; 5] = [
        &number.to_be_bytes(),
        key.scope.as_bytes(),
        key.job.as_str().as_bytes(),
        digest,
        told.as_bytes(),
    ];
    parts.into_iter().fold(0, crc32c::crc32c_append).into()
}

/// SQLite's integers have a sign; no time and no number of ours comes near it.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests;
