//! Which segments a spool has, as its writer and its readers share it.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use afar_core::record::{MAGIC_BYTES, RECORD_HEADER_BYTES, Salt, Scanned, Scanner};
use afar_core::spool::{
    PIECE_KIND, PIECE_PREFIX_BYTES, Piece, SEGMENT_MAGIC, SegmentName, output_index,
    parse_spool_name,
};

use crate::store::directory::{Directory, Purpose, StoreError};

/// What a piece takes on the disk beside its bytes.
pub(super) const PIECE_COST: u64 = (RECORD_HEADER_BYTES + PIECE_PREFIX_BYTES) as u64;

/// Most bytes of output in one record; what came in one piece may take several.
pub(super) const RECORD_BYTES: usize = 64 * 1024;

/// What a piece of so many bytes takes on the disk.
pub(super) fn cost_of(bytes: usize) -> u64 {
    bytes as u64 + bytes.div_ceil(RECORD_BYTES) as u64 * PIECE_COST
}

/// How much of a file is read at once.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// A segment, and what of it is there to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) name: SegmentName,
    pub(super) bytes: u64,
}

/// Why nothing more is written to a spool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{action} {path:?}: {message}")]
pub struct SpoolFailure {
    /// What was tried.
    pub action: &'static str,
    /// With which file.
    pub path: std::path::PathBuf,
    /// What the system said.
    pub message: String,
}

/// The segments of a spool, the oldest first.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) segments: VecDeque<Segment>,
    /// The offset behind the last byte of each stream that was written.
    pub(super) written: [u64; 2],
    /// The offset of the first byte of each stream that may still be there.
    pub(super) kept_from: [u64; 2],
    pub(super) next_sequence: u64,
    pub(super) failure: Option<SpoolFailure>,
    /// Counts what has changed, so that nobody misses it.
    pub(super) version: u64,
    pub(super) waker: Option<Waker>,
}

impl Layout {
    pub(super) fn new(from: [u64; 2]) -> Self {
        Self {
            segments: VecDeque::new(),
            written: from,
            kept_from: from,
            next_sequence: 0,
            failure: None,
            version: 0,
            waker: None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Tells whoever waits that something has changed.
    pub(super) fn changed(&mut self) {
        self.version += 1;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The place of the last segment in which this byte of a stream, or a later one, may begin.
    pub(super) fn segment_of_offset(&self, index: usize, offset: u64) -> usize {
        let after = |segment: &Segment| segment.name.from[index] <= offset;
        self.segments.partition_point(after).saturating_sub(1)
    }
}

/// A spool, as its writer, its readers and the thread share it. The lock is held for moments only.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) salt: Salt,
    layout: Mutex<Layout>,
    /// Bytes of it: on the disk, and on their way to it.
    pub(super) used: AtomicU64,
    /// Bytes on their way to the disk.
    pub(super) queued: AtomicU64,
}

impl Shared {
    pub(super) fn new(name: String, layout: Layout) -> Self {
        let salt = parse_spool_name(&name).map_or(Salt(0), |(_, salt)| salt);
        let used = AtomicU64::new(layout.bytes());
        Self { name, salt, layout: Mutex::new(layout), used, queued: AtomicU64::new(0) }
    }

    pub(super) fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes bytes off what is used, and never below nothing.
pub(super) fn give_back(used: &AtomicU64, bytes: u64) {
    let _ = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
        Some(used.saturating_sub(bytes))
    });
}

/// The layout of a spool that another process wrote. `from` is where its output began, for one that
/// has no segment.
pub(super) fn of_directory(
    directory: &Directory,
    name: &str,
    from: Option<[u64; 2]>,
) -> Result<Layout, StoreError> {
    let mut segments = Vec::new();
    for file in directory.names()? {
        let Some(name) = file.to_str().and_then(SegmentName::parse) else { continue };
        let Some(file) = directory.file(&name.to_string(), Purpose::Read)? else { continue };
        let found = rustix::fs::fstat(&file)
            .map_err(|error| directory.error("look at", &name.to_string())(error.into()))?;
        segments.push(Segment { name, bytes: u64::try_from(found.st_size).unwrap_or(0) });
    }
    segments.sort_by_key(|segment| segment.name.sequence);
    let mut layout = Layout::new(from.unwrap_or_default());
    if let Some(first) = segments.first() {
        layout.kept_from = first.name.from;
    }
    if let Some(last) = segments.last() {
        layout.next_sequence = last.name.sequence + 1;
        let salt = parse_spool_name(name).map_or(Salt(0), |(_, salt)| salt);
        layout.written = ends_of(directory, *last, salt)?;
    }
    layout.segments = segments.into();
    Ok(layout)
}

/// The offsets behind the last good pieces of a segment.
fn ends_of(directory: &Directory, segment: Segment, salt: Salt) -> Result<[u64; 2], StoreError> {
    let name = segment.name.to_string();
    let file = directory.existing_file(&name, Purpose::Read)?;
    let mut ends = segment.name.from;
    let mut scanner = Scanner::new(SEGMENT_MAGIC, salt);
    let mut read = 0;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match scanner.next() {
            Scanned::Record(record) if record.kind == PIECE_KIND => {
                let Some(piece) = Piece::read(record.payload) else { continue };
                if let Some(index) = output_index(piece.stream) {
                    ends[index] = ends[index].max(piece.end());
                }
            }
            Scanned::Record(_) | Scanned::Damage(_) => {}
            Scanned::More => {
                let count = rustix::io::pread(file.as_fd(), &mut buffer, read)
                    .map_err(|error| directory.error("read", &name)(error.into()))?;
                match buffer.get(..count) {
                    Some(bytes) if count > 0 => scanner.push(bytes),
                    _ => scanner.end(),
                }
                read += count as u64;
            }
            Scanned::End => return Ok(ends),
        }
    }
}

/// What an empty segment has.
pub(super) const SEGMENT_START: u64 = MAGIC_BYTES as u64;
