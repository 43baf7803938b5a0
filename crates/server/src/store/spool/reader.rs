//! Reading a spool: from an offset on, since a time, or the last lines.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use afar_core::record::{RECORD_HEADER_BYTES, Scanned, Scanner};
use afar_core::spool::{PIECE_KIND, Piece, SEGMENT_MAGIC, output_index};
use afar_proto::connection::Stream;
use bytes::Bytes;

use super::layout::{READ_BYTES, Segment, Shared};
use crate::store::directory::{Directory, Purpose, StoreError};
use crate::store::limits::SPOOL_TAIL_LINES_MAX;

/// A piece of output as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPiece {
    /// Which stream.
    pub stream: Stream,
    /// The offset of its first byte. If it is over what was wanted, the bytes between are not there.
    pub offset: u64,
    /// The job's clock when it was read from the job, in microseconds.
    pub clock_us: u64,
    /// The output.
    pub bytes: Bytes,
}

/// What a spool has from an offset on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolRead {
    /// In the order in which it was written, the streams mixed.
    pub pieces: Vec<ReadPiece>,
    /// The offsets of stdout and stderr to go on with.
    pub next: [u64; 2],
    /// Whether that was all that was written by now.
    pub is_all: bool,
    /// Bytes of the files that were damaged and skipped.
    pub damaged_bytes: u64,
}

/// A reader of one spool. Its calls block: they belong on a thread for that. It remembers where it
/// was, so that reading on costs no search.
#[derive(Debug)]
pub struct SpoolReader {
    root: Arc<Directory>,
    shared: Arc<Shared>,
    /// `Some` once there was something to open.
    directory: Option<Directory>,
    cursor: Option<Cursor>,
}

/// Where a reader is.
#[derive(Debug)]
struct Cursor {
    segment: Segment,
    file: OwnedFd,
    scanner: Scanner,
    /// How much of the file the scanner has.
    pushed: u64,
    /// Whether the scanner was told that there is no more.
    ended: bool,
    /// What was wanted of each stream after what was read last.
    next: [Option<u64>; 2],
}

/// What comes next at a cursor.
enum Step {
    Piece(ReadPiece),
    Damage(u64),
    /// The end of what is there of this segment.
    End,
}

impl SpoolReader {
    pub(super) fn new(root: Arc<Directory>, shared: Arc<Shared>) -> Self {
        Self { root, shared, directory: None, cursor: None }
    }

    /// The offsets of the first bytes that may still be there, and behind the last that were written,
    /// of stdout and stderr.
    #[must_use]
    pub fn bounds(&self) -> ([u64; 2], [u64; 2]) {
        let layout = self.shared.layout();
        (layout.kept_from, layout.written)
    }

    /// Reads on from these offsets of stdout and stderr, `None` for a stream that is not wanted: at
    /// least one piece if there is one, and no further one beyond `bytes_max` bytes.
    ///
    /// # Errors
    /// A file can't be read. What is damaged in it is skipped, and no error.
    pub fn read(
        &mut self,
        from: [Option<u64>; 2],
        bytes_max: usize,
    ) -> Result<SpoolRead, StoreError> {
        let mut next = from;
        let mut read = SpoolRead::default();
        let mut bytes = 0;
        if self.cursor.as_ref().is_none_or(|cursor| cursor.next != from) {
            self.seek(from)?;
        }
        while bytes < bytes_max {
            match self.step()? {
                Some(Step::Piece(piece)) => {
                    let Some(piece) = wanted_part(piece, &mut next) else { continue };
                    bytes += piece.bytes.len();
                    read.pieces.push(piece);
                }
                Some(Step::Damage(bytes)) => read.damaged_bytes += bytes,
                Some(Step::End) => {}
                None => {
                    read.is_all = true;
                    break;
                }
            }
        }
        if let Some(cursor) = &mut self.cursor {
            cursor.next = next;
        }
        read.next = [0, 1].map(|index| next[index].unwrap_or_default());
        Ok(read)
    }

    /// The offsets of stdout and stderr from which on everything was read from the job at this time of
    /// its clock or later.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn since(&mut self, clock_us: u64) -> Result<[u64; 2], StoreError> {
        let (start, kept_from, written) = {
            let layout = self.shared.layout();
            let before = |segment: &Segment| segment.name.clock_us < clock_us;
            let start = layout.segments.partition_point(before).saturating_sub(1);
            (layout.segments.get(start).copied(), layout.kept_from, layout.written)
        };
        let mut found = [None; 2];
        self.cursor = None;
        if let Some(start) = start {
            self.open_from(start.name.sequence)?;
        }
        while found.iter().any(Option::is_none) {
            match self.step()? {
                Some(Step::Piece(piece)) if piece.clock_us >= clock_us => {
                    if let Some(index) = output_index(piece.stream) {
                        found[index].get_or_insert(piece.offset);
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        Ok([0, 1].map(|index| found[index].unwrap_or(written[index]).max(kept_from[index])))
    }

    /// The offsets of stdout and stderr from which on there are so many lines, of both together in the
    /// order in which they were written; at most [`SPOOL_TAIL_LINES_MAX`].
    ///
    /// # Errors
    /// A file can't be read.
    pub fn last_lines(&mut self, lines: u64) -> Result<[u64; 2], StoreError> {
        let lines = usize::try_from(lines.min(SPOOL_TAIL_LINES_MAX)).unwrap_or(usize::MAX);
        let (segments, kept_from, written) = {
            let layout = self.shared.layout();
            let segments: Vec<Segment> = layout.segments.iter().copied().collect();
            (segments, layout.kept_from, layout.written)
        };
        if lines == 0 {
            return Ok(written);
        }
        // Positions behind which a line begins; the end of the last line is none.
        let mut missing = lines;
        for (place, segment) in segments.iter().enumerate().rev() {
            let is_last = place + 1 == segments.len();
            let starts = self.line_starts(*segment, missing, is_last)?;
            if starts.len() == missing {
                return Ok(starts.front().copied().unwrap_or(kept_from));
            }
            missing -= starts.len();
        }
        Ok(kept_from)
    }

    /// The last so many positions in a segment at which a line begins, as offsets of both streams.
    fn line_starts(
        &mut self,
        segment: Segment,
        count_max: usize,
        is_last: bool,
    ) -> Result<VecDeque<[u64; 2]>, StoreError> {
        let mut starts = VecDeque::new();
        let mut at = segment.name.from;
        self.open(segment)?;
        while let Some(cursor) = &mut self.cursor {
            let piece = match cursor.step(&self.shared.name, &self.root)? {
                Step::Piece(piece) => piece,
                Step::Damage(_) => continue,
                Step::End => break,
            };
            let Some(index) = output_index(piece.stream) else { continue };
            for (behind, byte) in (piece.offset + 1..).zip(&piece.bytes) {
                at[index] = behind;
                if *byte == b'\n' {
                    if starts.len() > count_max {
                        starts.pop_front();
                    }
                    starts.push_back(at);
                }
            }
        }
        self.cursor = None;
        // Where everything ends with the end of a line, no line begins there.
        if is_last && starts.back() == Some(&at) {
            starts.pop_back();
        }
        while starts.len() > count_max {
            starts.pop_front();
        }
        Ok(starts)
    }

    /// Goes to the first segment that may have something from these offsets on.
    fn seek(&mut self, from: [Option<u64>; 2]) -> Result<(), StoreError> {
        let sequence = {
            let layout = self.shared.layout();
            let place = (0..2)
                .filter_map(|index| Some(layout.segment_of_offset(index, from[index]?)))
                .min();
            place.and_then(|place| layout.segments.get(place)).map(|found| found.name.sequence)
        };
        self.cursor = None;
        sequence.map_or(Ok(()), |sequence| self.open_from(sequence))
    }

    /// Goes to the beginning of this segment, or of the next one that can still be opened.
    fn open_from(&mut self, mut sequence: u64) -> Result<(), StoreError> {
        loop {
            let next = {
                let layout = self.shared.layout();
                let mut segments = layout.segments.iter();
                segments.find(|segment| segment.name.sequence >= sequence).copied()
            };
            let Some(segment) = next else { return Ok(()) };
            self.open(segment)?;
            if self.cursor.is_some() {
                return Ok(());
            }
            sequence = segment.name.sequence + 1;
        }
    }

    /// Goes to the beginning of a segment; where it has been released meanwhile, nowhere.
    fn open(&mut self, segment: Segment) -> Result<(), StoreError> {
        self.cursor = None;
        if self.directory.is_none() {
            self.directory = self.root.subdirectory(&self.shared.name, false)?;
        }
        let Some(directory) = &self.directory else { return Ok(()) };
        let Some(file) = directory.file(&segment.name.to_string(), Purpose::Read)? else {
            return Ok(());
        };
        let scanner = Scanner::new(SEGMENT_MAGIC, self.shared.salt);
        let (pushed, ended, next) = (0, false, [None; 2]);
        self.cursor = Some(Cursor { segment, file, scanner, pushed, ended, next });
        Ok(())
    }

    /// What comes next, over the ends of segments; `None` at the end of what was written.
    fn step(&mut self) -> Result<Option<Step>, StoreError> {
        let Some(cursor) = &mut self.cursor else { return Ok(None) };
        let following = {
            let layout = self.shared.layout();
            let later = |segment: &&Segment| segment.name.sequence > cursor.segment.name.sequence;
            let following = layout.segments.iter().find(later).copied();
            if let Some(now) = layout.segments.iter().find(|now| now.name == cursor.segment.name) {
                cursor.segment.bytes = now.bytes;
            }
            following
        };
        match cursor.step(&self.shared.name, &self.root)? {
            Step::End => {}
            step => return Ok(Some(step)),
        }
        let Some(following) = following else { return Ok(None) };
        if !cursor.ended {
            // It grows no more: what it ends with is told as what it is.
            cursor.scanner.end();
            cursor.ended = true;
            return Ok(Some(Step::End));
        }
        self.open_from(following.name.sequence)?;
        Ok(Some(Step::End))
    }
}

impl Cursor {
    fn step(&mut self, spool: &str, root: &Directory) -> Result<Step, StoreError> {
        let mut buffer = Vec::new();
        loop {
            let clear = match self.scanner.next() {
                Scanned::Record(record) if record.kind == PIECE_KIND => {
                    match Piece::read(record.payload) {
                        Some(piece) => return Ok(Step::Piece(copied(piece))),
                        None => Some((RECORD_HEADER_BYTES + record.payload.len()) as u64),
                    }
                }
                Scanned::Record(record) => {
                    Some((RECORD_HEADER_BYTES + record.payload.len()) as u64)
                }
                Scanned::Damage(damage) => Some(damage.bytes.end - damage.bytes.start),
                Scanned::More => None,
                Scanned::End => return Ok(Step::End),
            };
            if let Some(bytes) = clear {
                return Ok(Step::Damage(bytes));
            }
            // Not further than what was told as written: behind that, something is under way.
            let left = self.segment.bytes.saturating_sub(self.pushed);
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
            buffer.resize(count, 0);
            let read = rustix::io::pread(self.file.as_fd(), &mut buffer, self.pushed);
            let read = read.map_err(|error| {
                let name = format!("{spool}/{}", self.segment.name);
                root.error("read", &name)(io::Error::from(error))
            })?;
            match buffer.get(..read) {
                Some(bytes) if read > 0 => self.scanner.push(bytes),
                _ => return Ok(Step::End),
            }
            self.pushed += read as u64;
        }
    }
}

fn copied(piece: Piece<'_>) -> ReadPiece {
    let Piece { stream, offset, clock_us, bytes } = piece;
    ReadPiece { stream, offset, clock_us, bytes: Bytes::copy_from_slice(bytes) }
}

/// What of a piece is wanted, and then what is wanted next.
fn wanted_part(mut piece: ReadPiece, next: &mut [Option<u64>; 2]) -> Option<ReadPiece> {
    let wanted = next.get_mut(output_index(piece.stream)?)?.as_mut()?;
    let end = piece.offset + piece.bytes.len() as u64;
    let known = usize::try_from(wanted.saturating_sub(piece.offset)).unwrap_or(usize::MAX);
    if known >= piece.bytes.len() {
        return None;
    }
    piece.bytes = piece.bytes.slice(known..);
    piece.offset += known as u64;
    *wanted = end;
    Some(piece)
}
