//! The framing of the store's files: records with checksums, and a scanner that finds and names
//! what is damaged (`J-5.2`, `J-5.3`).
//!
//! A file that was being written when the machine or the process died ends in a torn record; a disk
//! that fails flips bits. Neither may pass for data, and neither may hide the good records behind it.
//! So each record's header has a checksum of its own, over its position in the file too, and a
//! scanner that meets something bad looks for the next header from there on.
//!
//! What a job writes stands in records, so it must not be able to forge one that a scanner takes for
//! real when it looks for the next: the checksum begins with the file's *salt*, which a job is not told.

use std::ops::Range;

use crc32c::{crc32c, crc32c_append};

use crate::limits::RECORD_PAYLOAD_BYTES_MAX;

/// Bytes of a record's header (`J-5.2`).
pub const RECORD_HEADER_BYTES: usize = 16;

/// Bytes at the beginning of a file that tell its format (`J-5.1`).
pub const MAGIC_BYTES: usize = 8;

/// What every header begins with.
const MARKER: [u8; 2] = [0xaf, 0xa2];

/// What tells the format of a file (`J-5.1`).
pub type Magic = [u8; MAGIC_BYTES];

/// What makes a file's checksums its own (`J-5.2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Salt(pub u64);

/// The header of a record that stands at `at` in its file and has this payload, which may come in
/// parts so that nobody has to copy them together.
///
/// # Panics
/// If the payload is larger than [`RECORD_PAYLOAD_BYTES_MAX`]: whoever writes keeps to it.
#[must_use]
pub fn header(salt: Salt, at: u64, kind: u8, payload: &[&[u8]]) -> [u8; RECORD_HEADER_BYTES] {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    assert!(length <= RECORD_PAYLOAD_BYTES_MAX, "a record of {length} bytes");
    let length = u32::try_from(length).expect("it is below the limit");
    let sum = payload.iter().fold(0, |sum, part| crc32c_append(sum, part));
    let mut header = [0; RECORD_HEADER_BYTES];
    header[..2].copy_from_slice(&MARKER);
    header[2] = kind;
    header[4..8].copy_from_slice(&length.to_be_bytes());
    header[8..12].copy_from_slice(&sum.to_be_bytes());
    let own = header_sum(salt, at, &header[..12]);
    header[12..].copy_from_slice(&own.to_be_bytes());
    header
}

/// Appends a whole record to `file`, which is the part of the file from `base` on.
pub fn push_record(file: &mut Vec<u8>, base: u64, salt: Salt, kind: u8, payload: &[u8]) {
    let start = file.len();
    begin_record(file);
    file.extend_from_slice(payload);
    end_record(file, start, base, salt, kind);
}

/// Appends what becomes the header of a record; its payload comes behind it, and then
/// [`end_record`].
pub(crate) fn begin_record(file: &mut Vec<u8>) {
    file.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
}

/// Makes everything from `start` on, where [`begin_record`] was called, a record. `file` is the part of
/// the file from `base` on.
pub(crate) fn end_record(file: &mut [u8], start: usize, base: u64, salt: Salt, kind: u8) {
    let at = base + start as u64;
    let (place, payload) = file[start..].split_at_mut(RECORD_HEADER_BYTES);
    place.copy_from_slice(&header(salt, at, kind, &[payload]));
}

/// The checksum of a header: of the salt, of where it stands, and of what it says.
fn header_sum(salt: Salt, at: u64, said: &[u8]) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&salt.0.to_be_bytes());
    place[8..].copy_from_slice(&at.to_be_bytes());
    crc32c_append(crc32c(&place), said)
}

/// A record as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where its header stands in the file.
    pub at: u64,
    /// What it is, by the format of the file.
    pub kind: u8,
    /// What it says.
    pub payload: &'a [u8],
}

impl Record<'_> {
    /// The position behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at + (RECORD_HEADER_BYTES + self.payload.len()) as u64
    }
}

/// Bytes of a file that are no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// From the first bad byte to the next good record, or to the end of the file.
    pub bytes: Range<u64>,
    /// Whether it is what an unfinished write leaves behind: the file ends within a record whose
    /// beginning is good. Then nothing that was ever finished is missing.
    pub torn: bool,
}

/// What comes next in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scanned<'a> {
    /// A record whose checksums are right.
    Record(Record<'a>),
    /// Something else, told once for all neighbouring bytes, before the record behind it.
    Damage(Damage),
    /// Nothing can be said before more bytes of the file are pushed.
    More,
    /// The file has ended, and everything in it was told.
    End,
}

/// Goes through a file, in whatever pieces its bytes come.
///
/// It holds one record and what was pushed last, whatever the lengths in the file claim.
#[derive(Debug)]
pub struct Scanner {
    salt: Salt,
    /// `Some` until the file's first bytes were held against it.
    magic: Option<Magic>,
    buffer: Vec<u8>,
    /// What of `buffer` was told already.
    told: usize,
    /// The position in the file of the first byte that was not told.
    at: u64,
    /// Where the bad bytes began that were not told yet, and whether a torn record began there.
    damage: Option<(u64, bool)>,
    ended: bool,
}

/// What the bytes at a place are.
enum Found {
    Record { kind: u8, length: usize },
    NotYet { header_is_good: bool },
    Nothing,
}

impl Scanner {
    /// A scanner of a file from its beginning.
    #[must_use]
    pub fn new(magic: Magic, salt: Salt) -> Self {
        Self { magic: Some(magic), ..Self::from_record(salt, 0) }
    }

    /// A scanner of a file from a place where a record begins.
    #[must_use]
    pub fn from_record(salt: Salt, at: u64) -> Self {
        Self { salt, magic: None, buffer: Vec::new(), told: 0, at, damage: None, ended: false }
    }

    /// The position in the file of the first byte that was not told of.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Takes the file's next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.told);
        self.told = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// There are no more bytes.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// What comes next.
    #[expect(clippy::should_implement_trait, reason = "an iterator can't lend what it gives")]
    pub fn next(&mut self) -> Scanned<'_> {
        if let Some(magic) = self.magic {
            let read = self.rest().len().min(MAGIC_BYTES);
            if self.rest()[..read] != magic[..read] {
                self.magic = None;
                self.is_bad(false);
            } else if read == MAGIC_BYTES {
                self.magic = None;
                self.tell(MAGIC_BYTES);
            } else if self.ended {
                self.magic = None;
                if read > 0 {
                    self.is_bad(true);
                }
            } else {
                return Scanned::More;
            }
        }
        loop {
            if self.rest().is_empty() {
                return self.told_all();
            }
            match self.find() {
                Found::Record { kind, length } => return self.found(kind, length),
                Found::NotYet { .. } if !self.ended => return Scanned::More,
                Found::NotYet { header_is_good } => {
                    let torn = header_is_good || self.rest().len() < RECORD_HEADER_BYTES;
                    self.is_bad(torn);
                }
                Found::Nothing => self.is_bad(false),
            }
        }
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.told..]
    }

    fn tell(&mut self, bytes: usize) {
        self.told += bytes;
        self.at += bytes as u64;
    }

    /// What begins at the first byte that was not told.
    fn find(&self) -> Found {
        let rest = self.rest();
        let Some((header, behind)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() else {
            let begun = rest.len().min(MARKER.len());
            return if rest[..begun] == MARKER[..begun] {
                Found::NotYet { header_is_good: false }
            } else {
                Found::Nothing
            };
        };
        let number = |from: usize| {
            header[from..from + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
        };
        let length = number(4) as usize;
        let good = header.starts_with(&MARKER)
            && length <= RECORD_PAYLOAD_BYTES_MAX
            && number(12) == header_sum(self.salt, self.at, &header[..12]);
        if !good {
            return Found::Nothing;
        }
        let Some(payload) = behind.get(..length) else {
            return Found::NotYet { header_is_good: true };
        };
        if crc32c(payload) == number(8) {
            Found::Record { kind: header[2], length }
        } else {
            Found::Nothing
        }
    }

    fn found(&mut self, kind: u8, length: usize) -> Scanned<'_> {
        if let Some((from, _)) = self.damage.take() {
            return Scanned::Damage(Damage { bytes: from..self.at, torn: false });
        }
        let at = self.at;
        self.tell(RECORD_HEADER_BYTES + length);
        let payload = &self.buffer[self.told - length..self.told];
        Scanned::Record(Record { at, kind, payload })
    }

    fn told_all(&mut self) -> Scanned<'_> {
        if !self.ended {
            return Scanned::More;
        }
        match self.damage.take() {
            Some((from, torn)) => Scanned::Damage(Damage { bytes: from..self.at, torn }),
            None => Scanned::End,
        }
    }

    /// No record begins here: goes on to the next place where one might.
    fn is_bad(&mut self, torn: bool) {
        self.damage.get_or_insert((self.at, torn));
        let behind = self.rest().get(1..).unwrap_or_default();
        let skipped = behind.iter().position(|byte| *byte == MARKER[0]).unwrap_or(behind.len());
        self.tell((1 + skipped).min(self.rest().len()));
    }
}

/// Goes through a file that is in memory as a whole.
///
/// # Errors
/// Whatever `take` gives; it ends the scan.
pub fn scan_all<E>(
    magic: Magic,
    salt: Salt,
    file: &[u8],
    mut take: impl FnMut(Scanned<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut scanner = Scanner::new(magic, salt);
    scanner.push(file);
    scanner.end();
    loop {
        match scanner.next() {
            Scanned::More | Scanned::End => return Ok(()),
            other => take(other)?,
        }
    }
}

#[cfg(test)]
mod tests;
