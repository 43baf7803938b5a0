//! The journal: what is written of each job at each step of its life, and what a supervisor that
//! finds a journal makes of it (`J-1.4`, `J-5.4`).
//!
//! Everything here is pure: records to bytes, bytes to a [`Ledger`]. The file is the server's.

use std::collections::{BTreeMap, BTreeSet};

use afar_proto::Instant;
use afar_proto::json::ByteString;
use afar_proto::message::{JobInfo, JobState, Refused, StreamInfo};
use afar_proto::outcome::{End, Seal, Started as WasStarted, StreamSeal};
use serde::{Deserialize, Serialize};

use crate::job::{Digest, JobKey, Vouch};
use crate::limits::{RECORD_PAYLOAD_BYTES_MAX, REFUSAL_SUMMARY_BYTES_MAX};
use crate::record::{
    Damage, Magic, RECORD_HEADER_BYTES, Record, Salt, Scanned, begin_record, end_record, scan_all,
};

/// What a journal begins with (`J-5.1`).
pub const JOURNAL_MAGIC: Magic = *b"afarjrn1";

/// A journal needs no salt: its records hold JSON, in which no header can stand, because every
/// header has a zero byte.
pub const JOURNAL_SALT: Salt = Salt(0);

/// A digest as base64.
mod digest_base64 {
    use afar_proto::json::base64_bytes;
    use serde::{Deserializer, Serializer};

    use crate::job::Digest;

    pub(super) fn serialize<S: Serializer>(
        digest: &Digest,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        base64_bytes::serialize(digest, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        let bytes = base64_bytes::deserialize(from)?;
        bytes.try_into().map_err(|_| serde::de::Error::custom("a digest has 32 bytes"))
    }
}

/// A supervisor was started anew; what stands before it is from another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Began {
    /// This supervisor; an upgrade does not change it.
    pub incarnation: String,
    /// The kernel's boot id.
    pub boot: String,
    /// Time since boot, sleep included, in microseconds.
    pub boottime_us: u64,
    /// Wall clock, in microseconds of Unix time.
    pub unix_us: u64,
    /// The time since boot from which on every job is in this journal, or was when it ended.
    pub vouched_since_us: u64,
}

/// A job is going to be started: from here on its id is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intended {
    /// Which job.
    pub job: JobKey,
    /// Its number: larger than that of every job before it, and never used again.
    pub number: u64,
    /// When it was asked for, in microseconds of Unix time.
    pub at_us: u64,
    /// What was asked for (`J-1.2`).
    #[serde(with = "digest_base64")]
    pub digest: Digest,
    /// The mark by which its processes are found.
    pub mark: String,
    /// The name of the directory that its output is in, if it gets any: [`spool_name`].
    ///
    /// [`spool_name`]: crate::spool::spool_name
    pub spool: String,
    /// The command, for people.
    #[serde(flatten)]
    pub summary: Summary,
    /// Whether its client left at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
    /// How long its output is kept after its end, in seconds, if its client asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_s: Option<u64>,
}

/// What a request was, cut to a bounded length: to be shown, not to be executed again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The command.
    pub command: ByteString,
    /// Whether some of it was cut off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub command_cut: bool,
    /// The session that it is to be run in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The working directory that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<ByteString>,
}

impl Summary {
    /// What a list says of the request, which is bounded already.
    #[must_use]
    pub fn of(info: &JobInfo) -> Self {
        Self {
            command: info.command.clone(),
            command_cut: info.command_cut,
            session: info.session.clone(),
            cwd: info.cwd.clone(),
        }
    }
}

/// The beginning of a text, without half a character at its end.
fn cut(bytes: &[u8], bytes_max: usize) -> &[u8] {
    let Some(kept) = bytes.get(..bytes_max).filter(|_| bytes.len() > bytes_max) else {
        return bytes;
    };
    match std::str::from_utf8(kept) {
        Err(error) if error.error_len().is_none() => &kept[..error.valid_up_to()],
        _ => kept,
    }
}

/// The process was spawned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Which job.
    pub job: JobKey,
    /// Its process.
    pub pid: u32,
    /// The start of that process in the kernel's clock ticks, which tells it from a later one of the
    /// same number; 0 where it is not known.
    pub start_ticks: u64,
    /// When, in microseconds of Unix time.
    pub at_us: u64,
}

/// Nothing was spawned, and nothing will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotStarted {
    /// Which job.
    pub job: JobKey,
    /// When, in microseconds of Unix time.
    pub at_us: u64,
    /// What its client was told.
    pub refused: Refused,
}

/// The job's last word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which job.
    pub job: JobKey,
    /// When, in microseconds of Unix time; of a lost job when it was found to be lost.
    pub at_us: u64,
    /// Whether its process was started.
    pub started: WasStarted,
    /// How it ended.
    pub end: End,
    /// What it produced, unless nobody knows: a lost job has no seal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

/// The guardian has ended what a lost job left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEnded {
    /// Which job.
    pub job: JobKey,
    /// When, in microseconds of Unix time.
    pub at_us: u64,
    /// Processes that were ended.
    pub ended: u64,
    /// Processes that are still there, because nothing ends them.
    pub left: u64,
}

/// These jobs are in the index, on the disk: the journal need not remember them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indexed {
    /// Their numbers.
    pub numbers: Vec<u64>,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalRecord {
    /// A supervisor was started anew.
    Began(Began),
    /// Step 1 of a start.
    Intended(Box<Intended>),
    /// Step 3.
    Started(Started),
    /// A start that failed after step 1.
    NotStarted(NotStarted),
    /// Step 5.
    Ended(Box<Ended>),
    /// The guardian's word on a lost job.
    TreeEnded(TreeEnded),
    /// Jobs that need no place here any more.
    Indexed(Indexed),
}

/// Why a record could not be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It says more than a record can hold.
    #[error("a record of {bytes} bytes: {RECORD_PAYLOAD_BYTES_MAX} are the limit")]
    TooLong {
        /// What it would take.
        bytes: usize,
    },
    /// Its checksum is right, and it says nothing that this version knows.
    #[error("a record of kind {kind}: {message}")]
    Unreadable {
        /// The kind in its header.
        kind: u8,
        /// What is wrong.
        message: String,
    },
    /// It is of a job that the journal does not have, or says a step twice.
    #[error("{what} of job {job} where none can be")]
    Misplaced {
        /// The step.
        what: &'static str,
        /// The job.
        job: JobKey,
    },
}

impl JournalRecord {
    /// The number of its kind in a record's header.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Self::Began(_) => 1,
            Self::Intended(_) => 2,
            Self::Started(_) => 3,
            Self::NotStarted(_) => 4,
            Self::Ended(_) => 5,
            Self::TreeEnded(_) => 6,
            Self::Indexed(_) => 7,
        }
    }

    /// Appends the record to `file`, which is the part of the journal from `base` on.
    ///
    /// # Errors
    /// [`RecordError::TooLong`]; `file` is then as it was.
    pub fn push_to(&self, file: &mut Vec<u8>, base: u64) -> Result<(), RecordError> {
        let start = file.len();
        begin_record(file);
        match self {
            Self::Began(said) => push_json(file, said),
            Self::Intended(said) => push_json(file, said),
            Self::Started(said) => push_json(file, said),
            Self::NotStarted(said) => push_json(file, said),
            Self::Ended(said) => push_json(file, said),
            Self::TreeEnded(said) => push_json(file, said),
            Self::Indexed(said) => push_json(file, said),
        }
        let bytes = file.len() - start - RECORD_HEADER_BYTES;
        if bytes > RECORD_PAYLOAD_BYTES_MAX {
            file.truncate(start);
            return Err(RecordError::TooLong { bytes });
        }
        end_record(file, start, base, JOURNAL_SALT, self.kind());
        Ok(())
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError::Unreadable`].
    pub fn read(record: Record<'_>) -> Result<Self, RecordError> {
        let kind = record.kind;
        let json = record.payload;
        let read = match kind {
            1 => serde_json::from_slice(json).map(Self::Began),
            2 => serde_json::from_slice(json).map(Self::Intended),
            3 => serde_json::from_slice(json).map(Self::Started),
            4 => serde_json::from_slice(json).map(Self::NotStarted),
            5 => serde_json::from_slice(json).map(Self::Ended),
            6 => serde_json::from_slice(json).map(Self::TreeEnded),
            7 => serde_json::from_slice(json).map(Self::Indexed),
            _ => return Err(RecordError::Unreadable { kind, message: "not known".to_owned() }),
        };
        read.map_err(|error| RecordError::Unreadable { kind, message: error.to_string() })
    }
}

fn push_json(file: &mut Vec<u8>, said: &impl Serialize) {
    serde_json::to_writer(file, said).expect("structs of ours with string keys are JSON");
}

/// What the journal says of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Step 1.
    pub intended: Intended,
    /// Step 3.
    pub started: Option<Started>,
    /// What came instead of step 3.
    pub refused: Option<NotStarted>,
    /// Step 5.
    pub ended: Option<Ended>,
    /// The guardian's word.
    pub tree_ended: Option<TreeEnded>,
}

impl Entry {
    /// What a list says of it, as far as the journal knows.
    #[must_use]
    pub fn info(&self) -> JobInfo {
        let Intended { job, summary, detached, .. } = &self.intended;
        let has_ended = !self.is_unfinished();
        let running = if self.started.is_some() { JobState::Running } else { JobState::Waiting };
        let state = if has_ended { JobState::Ended } else { running };
        let mut info = JobInfo::new(job.job.clone(), state, summary.command.as_bytes());
        info.command_cut |= summary.command_cut;
        info.session.clone_from(&summary.session);
        info.cwd.clone_from(&summary.cwd);
        info.detached = *detached;
        info.started_at_us = self.started.as_ref().map(|started| started.at_us);
        info.pid = self.started.as_ref().filter(|_| !has_ended).map(|started| started.pid);
        if let Some(refused) = &self.refused {
            info.ended_at_us = Some(refused.at_us);
            let reason = refused.refused.reason.as_str().to_owned();
            info.end = Some(End::NotStarted { reason });
        }
        if let Some(ended) = &self.ended {
            info.ended_at_us = Some(ended.at_us);
            info.end = Some(ended.end.clone());
            info.receipt = ended.seal.as_ref().map(|seal| seal.receipt);
            let streams = ended.seal.iter().flat_map(|seal| &seal.streams);
            for (name, StreamSeal { bytes, gaps, .. }) in streams {
                // What is kept of it, a journal does not know.
                let told = StreamInfo { bytes: *bytes, kept_from: *bytes, gaps: gaps.clone() };
                info.streams.insert(name.clone(), told);
            }
        }
        info
    }

    /// Whether nobody has said how it ended.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.refused.is_none() && self.ended.is_none()
    }

    /// Whether something of it may run still that its supervisor, which was killed, can't end any more, and
    /// nobody has ended yet.
    #[must_use]
    pub fn has_unended_tree(&self) -> bool {
        // A job that was sealed has ended under the eyes of its supervisor.
        let is_lost = |ended: &Ended| ended.end == End::Lost && ended.seal.is_none();
        self.tree_ended.is_none()
            && self.refused.is_none()
            && self.ended.as_ref().is_none_or(is_lost)
    }

    /// Whether its process was started, as far as can be told (`J-1.4`).
    #[must_use]
    pub fn was_started(&self) -> WasStarted {
        match (&self.ended, &self.started, &self.refused) {
            (Some(ended), _, _) => ended.started,
            (None, Some(_), _) => WasStarted::Yes,
            (None, None, Some(refused)) => refused.refused.started,
            (None, None, None) => WasStarted::Unknown,
        }
    }

    /// A journal of this job alone, as the directory of its output has it (`J-5.5`).
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let mut file = JOURNAL_MAGIC.to_vec();
        for record in self.records() {
            // What is too long for a record was not taken into the journal either.
            let _ = record.push_to(&mut file, 0);
        }
        file
    }

    fn records(&self) -> impl Iterator<Item = JournalRecord> {
        let intended = JournalRecord::Intended(Box::new(self.intended.clone()));
        std::iter::once(intended)
            .chain(self.started.clone().map(JournalRecord::Started))
            .chain(self.refused.clone().map(JournalRecord::NotStarted))
            .chain(self.ended.clone().map(|ended| JournalRecord::Ended(Box::new(ended))))
            .chain(self.tree_ended.clone().map(JournalRecord::TreeEnded))
    }
}

/// What a journal says, as a whole: its records one after the other, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    began: Option<Began>,
    jobs: BTreeMap<JobKey, Entry>,
    is_indexed: bool,
}

impl Ledger {
    /// The last beginning of a supervisor.
    #[must_use]
    pub fn began(&self) -> Option<&Began> {
        self.began.as_ref()
    }

    /// Whether jobs were ever put into the index: where none is found, it was lost.
    #[must_use]
    pub fn is_indexed(&self) -> bool {
        self.is_indexed
    }

    /// What is said of a job.
    #[must_use]
    pub fn job(&self, key: &JobKey) -> Option<&Entry> {
        self.jobs.get(key)
    }

    /// All jobs, by their keys.
    pub fn jobs(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.jobs.values()
    }

    /// Since when every request is remembered, by the clock since boot (`J-1.6`).
    #[must_use]
    pub fn vouch(&self) -> Option<Vouch> {
        let began = self.began.as_ref()?;
        Some(Vouch {
            began: Instant::from_micros(began.boottime_us),
            since: Instant::from_micros(began.vouched_since_us),
        })
    }

    /// A supervisor begins with what is there.
    pub fn begin(&mut self, began: Began) {
        self.began = Some(began);
    }

    /// Vouches for nothing before this time since boot any more.
    pub fn vouch_from(&mut self, boottime_us: u64) {
        if let Some(began) = &mut self.began {
            began.vouched_since_us = began.vouched_since_us.max(boottime_us);
        }
    }

    /// Takes a job back that could not be written down.
    pub fn withdraw(&mut self, key: &JobKey) {
        self.jobs.remove(key);
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// [`RecordError::Misplaced`]; nothing has changed then.
    pub fn apply(&mut self, record: JournalRecord) -> Result<(), RecordError> {
        match record {
            JournalRecord::Began(began) => self.begin(began),
            JournalRecord::Intended(intended) => {
                if self.jobs.contains_key(&intended.job) {
                    return Err(misplaced("a second beginning", intended.job));
                }
                let entry = Entry {
                    intended: *intended,
                    started: None,
                    refused: None,
                    ended: None,
                    tree_ended: None,
                };
                self.jobs.insert(entry.intended.job.clone(), entry);
            }
            JournalRecord::Started(started) => {
                let entry = self.unfinished(&started.job, "a start")?;
                if entry.started.is_some() {
                    return Err(misplaced("a second start", started.job));
                }
                entry.started = Some(started);
            }
            JournalRecord::NotStarted(refused) => {
                let entry = self.unfinished(&refused.job, "a refusal")?;
                if entry.started.is_some() {
                    return Err(misplaced("a refusal after the start", refused.job));
                }
                entry.refused = Some(refused);
            }
            JournalRecord::Ended(ended) => {
                let entry = self.unfinished(&ended.job, "an end")?;
                entry.ended = Some(*ended);
            }
            JournalRecord::TreeEnded(tree) => {
                let Some(entry) = self.jobs.get_mut(&tree.job) else {
                    return Err(misplaced("the end of the tree", tree.job));
                };
                entry.tree_ended = Some(tree);
            }
            JournalRecord::Indexed(Indexed { numbers }) => {
                self.is_indexed = true;
                let numbers: BTreeSet<u64> = numbers.into_iter().collect();
                self.jobs.retain(|_, entry| {
                    entry.is_unfinished() || !numbers.contains(&entry.intended.number)
                });
            }
        }
        Ok(())
    }

    fn unfinished(&mut self, key: &JobKey, what: &'static str) -> Result<&mut Entry, RecordError> {
        let entry = self.jobs.get_mut(key).filter(|entry| entry.is_unfinished());
        entry.ok_or_else(|| misplaced(what, key.clone()))
    }

    /// A journal that says the same and nothing more, by the order of the jobs' numbers.
    ///
    /// # Errors
    /// [`RecordError::TooLong`], which no record gives that was read.
    pub fn to_file(&self) -> Result<Vec<u8>, RecordError> {
        let mut file = JOURNAL_MAGIC.to_vec();
        if let Some(began) = self.began.clone() {
            JournalRecord::Began(began).push_to(&mut file, 0)?;
        }
        if self.is_indexed {
            JournalRecord::Indexed(Indexed { numbers: Vec::new() }).push_to(&mut file, 0)?;
        }
        let mut jobs: Vec<&Entry> = self.jobs.values().collect();
        jobs.sort_by_key(|entry| entry.intended.number);
        for record in jobs.into_iter().flat_map(Entry::records) {
            record.push_to(&mut file, 0)?;
        }
        Ok(file)
    }
}

fn misplaced(what: &'static str, job: JobKey) -> RecordError {
    RecordError::Misplaced { what, job }
}

/// The refusal as a record holds it: its message cut to [`REFUSAL_SUMMARY_BYTES_MAX`].
#[must_use]
pub fn bounded_refusal(refused: &Refused) -> Refused {
    let message = cut(refused.message.as_bytes(), REFUSAL_SUMMARY_BYTES_MAX);
    Refused { message: String::from_utf8_lossy(message).into_owned(), ..refused.clone() }
}

/// What came of reading a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// What it says.
    pub ledger: Ledger,
    /// What is not as it was written, told once each; none of it is for a write that was cut short.
    pub faults: Vec<String>,
    /// More faults than are told.
    pub faults_untold: usize,
    /// Where the last record that was finished ends, if everything before it is good.
    pub good_bytes: u64,
}

/// Most faults of one journal that are told; one is enough not to trust it.
const FAULTS_TOLD_MAX: usize = 8;

impl Replay {
    /// Reads a journal, as far as it can be read. Nothing at all is an empty one.
    #[must_use]
    pub fn read(file: &[u8]) -> Self {
        let mut replay = Self::default();
        let scanned = scan_all(JOURNAL_MAGIC, JOURNAL_SALT, file, |scanned| {
            match scanned {
                Scanned::Record(record) => {
                    if replay.is_good() {
                        replay.good_bytes = record.end();
                    }
                    replay.take(record);
                }
                // What a killed supervisor was writing: its next step was never begun (`J-1.4`).
                Scanned::Damage(Damage { torn: true, .. }) | Scanned::More | Scanned::End => {}
                Scanned::Damage(Damage { bytes, .. }) => {
                    replay.fault(format!("bytes {} to {} are damaged", bytes.start, bytes.end));
                }
            }
            Ok::<(), std::convert::Infallible>(())
        });
        let Ok(()) = scanned;
        replay
    }

    fn take(&mut self, record: Record<'_>) {
        let at = record.at;
        let taken = JournalRecord::read(record).and_then(|record| self.ledger.apply(record));
        if let Err(error) = taken {
            self.fault(format!("at byte {at}: {error}"));
        }
    }

    fn fault(&mut self, fault: String) {
        if self.faults.len() < FAULTS_TOLD_MAX {
            self.faults.push(fault);
        } else {
            self.faults_untold += 1;
        }
    }

    /// Whether everything that was ever finished is there.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
    }

    /// The time since boot from which on every job of this boot is known, for a supervisor that
    /// begins now (`J-1.6`).
    #[must_use]
    pub fn vouched_since_us(&self, boot: &str, boottime_us: u64) -> u64 {
        match self.ledger.began() {
            Some(before) if self.is_good() && before.boot == boot => {
                before.vouched_since_us.min(boottime_us)
            }
            _ => boottime_us,
        }
    }
}

#[cfg(test)]
mod tests;
