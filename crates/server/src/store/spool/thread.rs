//! The thread that writes the spools.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use afar_core::record::{RECORD_HEADER_BYTES, header};
use afar_core::spool::{
    PIECE_KIND, PIECE_PREFIX_BYTES, Piece, SEGMENT_MAGIC, SegmentName, output_index,
};
use afar_proto::connection::Stream;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::layout::{
    PIECE_COST, RECORD_BYTES, SEGMENT_START, Segment, Shared, SpoolFailure, cost_of, give_back,
};
use super::{META_NAME, Quotas, path_of};
use crate::log::Log;
use crate::store::directory::{Directory, Purpose, StoreError};
use crate::store::disk::{Disk, write_all};
use crate::store::thread::OwnThread;

/// Most records of one write: each takes two of the parts that writev(2) takes at once.
const BATCH_RECORDS_MAX: usize = 256;

/// A piece of output on its way to the disk.
#[derive(Debug)]
pub(super) struct QueuedPiece {
    pub(super) stream: Stream,
    pub(super) offset: u64,
    pub(super) clock_us: u64,
    pub(super) bytes: Bytes,
}

/// What the thread is told to do.
#[derive(Debug)]
pub(super) enum Order {
    /// The first word of a spool.
    Begin {
        spool: Arc<Shared>,
        meta: Vec<u8>,
    },
    Piece {
        spool: Arc<Shared>,
        piece: QueuedPiece,
    },
    Release {
        spool: Arc<Shared>,
        to: [u64; 2],
    },
    DropOldest {
        spool: Arc<Shared>,
        bytes: u64,
    },
    Finish {
        spool: Arc<Shared>,
        meta: Vec<u8>,
        done: oneshot::Sender<Result<(), SpoolFailure>>,
    },
    /// The last word of a spool.
    Close {
        spool: Arc<Shared>,
    },
}

/// The thread, which ends when nobody can order anything any more.
#[derive(Debug)]
pub(super) struct SpoolThread {
    /// Dropped before it is waited for.
    orders: mpsc::Sender<Order>,
    _thread: OwnThread,
}

impl SpoolThread {
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(
        root: Arc<Directory>,
        disk: Arc<dyn Disk>,
        quotas: Quotas,
        user_used: Arc<AtomicU64>,
        log: Log,
    ) -> io::Result<Self> {
        let (orders, to_do) = mpsc::channel();
        let work = Work { root, disk, quotas, user_used, log, open: HashMap::new() };
        let run = |(work, to_do): (Work, _)| work.run(&to_do);
        let thread = OwnThread::start("spool", (work, to_do), run).map_err(|(error, _)| error)?;
        Ok(Self { orders, _thread: thread })
    }

    pub(super) fn orders(&self) -> mpsc::Sender<Order> {
        self.orders.clone()
    }
}

/// What the thread has.
struct Work {
    root: Arc<Directory>,
    disk: Arc<dyn Disk>,
    quotas: Quotas,
    user_used: Arc<AtomicU64>,
    log: Log,
    /// The spools that are written, by their names.
    open: HashMap<String, Open>,
}

/// A spool that is written.
struct Open {
    directory: Directory,
    /// The segment that is appended to.
    file: Option<OwnedFd>,
}

impl Work {
    fn run(mut self, to_do: &mpsc::Receiver<Order>) {
        let mut left = None;
        while let Some(order) = left.take().or_else(|| to_do.recv().ok()) {
            match order {
                Order::Piece { spool, piece } => {
                    let mut batch = vec![piece];
                    while batch.len() < BATCH_RECORDS_MAX && left.is_none() {
                        match to_do.try_recv() {
                            Ok(Order::Piece { spool: of, piece }) if Arc::ptr_eq(&of, &spool) => {
                                batch.push(piece);
                            }
                            Ok(other) => left = Some(other),
                            Err(_) => break,
                        }
                    }
                    self.write(&spool, &batch);
                }
                other => self.obey(other),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Begin { spool, meta } => {
                if let Err(failure) = self.begin(&spool, &meta) {
                    self.fail(&spool, failure);
                }
            }
            Order::Piece { spool, piece } => self.write(&spool, &[piece]),
            Order::Release { spool, to } => self.release(&spool, to),
            Order::DropOldest { spool, bytes } => self.drop_oldest(&spool, bytes),
            Order::Finish { spool, meta, done } => {
                if let Err(failure) = self.finish(&spool, &meta) {
                    self.fail(&spool, failure);
                }
                let failure = spool.layout().failure.clone();
                // Whoever has gone need not know.
                let _ = done.send(failure.map_or(Ok(()), Err));
            }
            Order::Close { spool } => {
                self.open.remove(&spool.name);
            }
        }
    }

    fn begin(&mut self, spool: &Arc<Shared>, meta: &[u8]) -> Result<(), SpoolFailure> {
        let failed = |error| store_failure(&self.root, spool, "make", &error);
        let directory = self.root.subdirectory(&spool.name, true).map_err(failed)?;
        let Some(directory) = directory else { return Ok(()) };
        let file = directory.existing_file(META_NAME, Purpose::Rewrite).map_err(failed)?;
        write_all(self.disk.as_ref(), file.as_fd(), &mut [IoSlice::new(meta)], 0)
            .map_err(|error| self.failure(spool, "write", META_NAME, &error))?;
        self.open.insert(spool.name.clone(), Open { directory, file: None });
        Ok(())
    }

    /// Writes pieces, all of the same spool, and says how far that is.
    fn write(&mut self, spool: &Arc<Shared>, pieces: &[QueuedPiece]) {
        let cost: u64 = pieces.iter().map(|piece| cost_of(piece.bytes.len())).sum();
        let mut written = 0;
        let done = if spool.layout().failure.is_some() {
            Ok(())
        } else {
            let records: Vec<Piece<'_>> = pieces.iter().flat_map(records_of).collect();
            records
                .chunks(BATCH_RECORDS_MAX)
                .try_for_each(|records| self.write_records(spool, records, &mut written))
        };
        give_back(&spool.queued, cost);
        for used in [&spool.used, &self.user_used] {
            give_back(used, cost - written);
        }
        match done {
            Ok(()) => spool.layout().changed(),
            Err(failure) => self.fail(spool, failure),
        }
    }

    fn write_records(
        &mut self,
        spool: &Arc<Shared>,
        mut records: &[Piece<'_>],
        written: &mut u64,
    ) -> Result<(), SpoolFailure> {
        while let Some(first) = records.first() {
            let mut at = self.segment_for(spool, first)?;
            let start = at;
            let mut heads = Vec::with_capacity(records.len());
            for record in records {
                if at >= self.quotas.segment_bytes && at > start {
                    break;
                }
                let prefix = record.prefix();
                let header = header(spool.salt, at, PIECE_KIND, &[&prefix, record.bytes]);
                let mut head = [0; RECORD_HEADER_BYTES + PIECE_PREFIX_BYTES];
                head[..RECORD_HEADER_BYTES].copy_from_slice(&header);
                head[RECORD_HEADER_BYTES..].copy_from_slice(&prefix);
                heads.push(head);
                at += PIECE_COST + record.bytes.len() as u64;
            }
            let (now, later) = records.split_at(heads.len());
            let mut parts: Vec<IoSlice<'_>> = heads
                .iter()
                .zip(now)
                .flat_map(|(head, record)| [IoSlice::new(head), IoSlice::new(record.bytes)])
                .collect();
            self.append(spool, &mut parts, start)?;
            *written += at - start;
            let mut layout = spool.layout();
            if let Some(segment) = layout.segments.back_mut() {
                segment.bytes = at;
            }
            for record in now {
                if let Some(index) = output_index(record.stream) {
                    layout.written[index] = layout.written[index].max(record.end());
                }
            }
            records = later;
        }
        Ok(())
    }

    fn append(
        &mut self,
        spool: &Arc<Shared>,
        parts: &mut [IoSlice<'_>],
        at: u64,
    ) -> Result<(), SpoolFailure> {
        let file = self.open.get(&spool.name).and_then(|open| open.file.as_ref());
        let written = match file {
            Some(file) => {
                write_all(self.disk.as_ref(), file.as_fd(), parts, at).inspect_err(|_| {
                    // What was written of it is no record. Where this fails too it is a torn one.
                    let _ = rustix::fs::ftruncate(file, at);
                })
            }
            None => Err(io::ErrorKind::NotFound.into()),
        };
        written.map_err(|error| self.failure(spool, "write", "", &error))
    }

    /// Makes sure that there is a segment to append to, and says where in it.
    fn segment_for(&mut self, spool: &Arc<Shared>, first: &Piece<'_>) -> Result<u64, SpoolFailure> {
        let (last, sequence, from) = {
            let layout = spool.layout();
            (layout.segments.back().copied(), layout.next_sequence, layout.written)
        };
        let Some(open) = self.open.get(&spool.name) else {
            return Err(self.failure(spool, "write", "", &io::ErrorKind::NotFound.into()));
        };
        if let (Some(last), Some(file)) = (last, &open.file) {
            if last.bytes < self.quotas.segment_bytes {
                return Ok(last.bytes);
            }
            let synced = self.disk.sync(file.as_fd());
            let name = last.name.to_string();
            synced.map_err(|error| self.failure(spool, "synchronise", &name, &error))?;
        }
        let segment = SegmentName { sequence, from, clock_us: first.clock_us };
        let name = segment.to_string();
        let file = open
            .directory
            .existing_file(&name, Purpose::Create)
            .map_err(|error| store_failure(&self.root, spool, "make", &error))?;
        write_all(self.disk.as_ref(), file.as_fd(), &mut [IoSlice::new(&SEGMENT_MAGIC)], 0)
            .map_err(|error| self.failure(spool, "write", &name, &error))?;
        if let Some(open) = self.open.get_mut(&spool.name) {
            open.file = Some(file);
        }
        spool.used.fetch_add(SEGMENT_START, Ordering::Relaxed);
        self.user_used.fetch_add(SEGMENT_START, Ordering::Relaxed);
        let mut layout = spool.layout();
        layout.next_sequence += 1;
        layout.segments.push_back(Segment { name: segment, bytes: SEGMENT_START });
        Ok(SEGMENT_START)
    }

    fn finish(&mut self, spool: &Arc<Shared>, meta: &[u8]) -> Result<(), SpoolFailure> {
        if spool.layout().failure.is_some() {
            return Ok(());
        }
        let Some(open) = self.open.get(&spool.name) else { return Ok(()) };
        let file = open
            .directory
            .existing_file(META_NAME, Purpose::Rewrite)
            .map_err(|error| store_failure(&self.root, spool, "open", &error))?;
        write_all(self.disk.as_ref(), file.as_fd(), &mut [IoSlice::new(meta)], 0)
            .and_then(|()| self.disk.sync(file.as_fd()))
            .map_err(|error| self.failure(spool, "write", META_NAME, &error))?;
        if let Some(file) = &open.file {
            let synced = self.disk.sync(file.as_fd());
            synced.map_err(|error| self.failure(spool, "synchronise", "", &error))?;
        }
        Ok(())
    }

    /// Removes the segments that hold nothing from these offsets on.
    fn release(&mut self, spool: &Arc<Shared>, to: [u64; 2]) {
        loop {
            let (first, behind) = {
                let layout = spool.layout();
                let behind = layout.segments.get(1).map_or(layout.written, |next| next.name.from);
                (layout.segments.front().copied(), behind)
            };
            let is_needed = (0..2).any(|index| behind[index] > to[index]);
            let Some(first) = first.filter(|_| !is_needed) else { return };
            if !self.remove_first(spool, first, behind) {
                return;
            }
        }
    }

    fn drop_oldest(&mut self, spool: &Arc<Shared>, bytes: u64) {
        let mut freed = 0;
        while freed < bytes.saturating_add(PIECE_COST + SEGMENT_START) {
            let (first, behind) = {
                let layout = spool.layout();
                let behind = layout.segments.get(1).map_or(layout.written, |next| next.name.from);
                (layout.segments.front().copied(), behind)
            };
            let Some(first) = first else { return };
            if !self.remove_first(spool, first, behind) {
                return;
            }
            freed += first.bytes;
        }
    }

    /// Removes the oldest segment; what is left begins at `behind`.
    fn remove_first(&mut self, spool: &Arc<Shared>, first: Segment, behind: [u64; 2]) -> bool {
        let Some(open) = self.open.get_mut(&spool.name) else { return false };
        if let Err(error) = open.directory.remove(&first.name.to_string()) {
            self.log.error(&format!("released output stays on the disk: {error}"));
            return false;
        }
        let mut layout = spool.layout();
        layout.segments.pop_front();
        if layout.segments.is_empty() {
            open.file = None;
        }
        layout.kept_from = behind;
        give_back(&spool.used, first.bytes);
        give_back(&self.user_used, first.bytes);
        layout.changed();
        true
    }

    /// Nothing is written to this spool any more (`J-3.4`).
    fn fail(&mut self, spool: &Arc<Shared>, failure: SpoolFailure) {
        let mut layout = spool.layout();
        if layout.failure.is_some() {
            return;
        }
        self.log.error(&format!("no more output of this job is kept on the disk: {failure}"));
        layout.failure = Some(failure);
        layout.changed();
    }

    fn failure(
        &self,
        spool: &Shared,
        action: &'static str,
        name: &str,
        error: &io::Error,
    ) -> SpoolFailure {
        let path = path_of(&self.root, &spool.name);
        let path = if name.is_empty() { path } else { path.join(name) };
        SpoolFailure { action, path, message: error.to_string() }
    }
}

fn store_failure(
    root: &Directory,
    spool: &Shared,
    action: &'static str,
    error: &StoreError,
) -> SpoolFailure {
    SpoolFailure { action, path: path_of(root, &spool.name), message: error.to_string() }
}

/// The records of a piece.
fn records_of(piece: &QueuedPiece) -> impl Iterator<Item = Piece<'_>> {
    let mut offset = piece.offset;
    piece.bytes.chunks(RECORD_BYTES).map(move |bytes| {
        let record = Piece { stream: piece.stream, offset, clock_us: piece.clock_us, bytes };
        offset = record.end();
        record
    })
}
