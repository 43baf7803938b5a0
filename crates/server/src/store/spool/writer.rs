//! A job's end of its spool: hands pieces over, and hears what became of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};

use afar_proto::connection::Stream;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::layout::{PIECE_COST, RECORD_BYTES, Shared, SpoolFailure, cost_of};
use super::thread::{Order, QueuedPiece};
use super::{Quotas, SpoolReader, may_queue};

/// Whether a piece may be handed over now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// One of so many bytes.
    For(u64),
    /// Not before something was written: [`SpoolEvent::Written`] says when.
    Later,
    /// Not before something was released: the quota of the job or of the user is reached.
    Full,
    /// Never again.
    Failed,
}

/// What became of what was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolEvent {
    /// What stands in front of these offsets of stdout and stderr is on the disk.
    Written {
        /// The offset behind the last byte of each stream.
        to: [u64; 2],
        /// The offset of the first byte of each stream that is still there: it rises when something
        /// is released or dropped.
        kept_from: [u64; 2],
    },
    /// Nothing more will be written. What was not told as written is not; what was may be read.
    Failed(SpoolFailure),
}

/// The spool of a job that runs. Dropping it leaves what is there, and writes what is under way.
#[derive(Debug)]
pub struct SpoolWriter {
    shared: Arc<Shared>,
    /// Until the thread has it.
    meta: Option<Vec<u8>>,
    orders: mpsc::Sender<Order>,
    quotas: Quotas,
    user_used: Arc<AtomicU64>,
    /// The version of the layout that was told last.
    told: u64,
    failure_told: bool,
}

impl SpoolWriter {
    pub(super) fn new(
        shared: Arc<Shared>,
        meta: Vec<u8>,
        orders: mpsc::Sender<Order>,
        quotas: Quotas,
        user_used: Arc<AtomicU64>,
    ) -> Self {
        let told = shared.layout().version;
        Self { shared, meta: Some(meta), orders, quotas, user_used, told, failure_told: false }
    }

    /// Whether a piece may be handed over, and how large it may be.
    #[must_use]
    pub fn room(&self) -> Room {
        if self.shared.layout().failure.is_some() {
            return Room::Failed;
        }
        if !may_queue(self.shared.queued.load(Ordering::Relaxed)) {
            return Room::Later;
        }
        let left =
            |quota: u64, used: &AtomicU64| quota.saturating_sub(used.load(Ordering::Relaxed));
        let job = left(self.quotas.job_bytes, &self.shared.used);
        let user = left(self.quotas.user_bytes, &self.user_used);
        // The beginning of a segment may have to be paid for as well.
        let cost = PIECE_COST + super::layout::SEGMENT_START;
        let room = job.min(user).saturating_sub(cost);
        match room - room / RECORD_BYTES as u64 * PIECE_COST {
            0 => Room::Full,
            room => Room::For(room),
        }
    }

    /// Hands a piece of output over, which may be as large as [`Self::room`] says. Never waits.
    ///
    /// Keep it until [`SpoolEvent::Written`] has passed it.
    pub fn append(&mut self, stream: Stream, offset: u64, clock_us: u64, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let cost = cost_of(bytes.len());
        self.shared.used.fetch_add(cost, Ordering::Relaxed);
        self.shared.queued.fetch_add(cost, Ordering::Relaxed);
        self.user_used.fetch_add(cost, Ordering::Relaxed);
        if let Some(meta) = self.meta.take() {
            self.order(Order::Begin { spool: Arc::clone(&self.shared), meta });
        }
        let piece = QueuedPiece { stream, offset, clock_us, bytes };
        self.order(Order::Piece { spool: Arc::clone(&self.shared), piece });
    }

    /// Says that nothing in front of these offsets of stdout and stderr is needed any more. Whole
    /// segments go, so what is told to be kept may begin before that.
    pub fn release(&mut self, to: [u64; 2]) {
        if self.meta.is_none() {
            self.order(Order::Release { spool: Arc::clone(&self.shared), to });
        }
    }

    /// Drops the oldest output until so many bytes can be appended again (`J-3.2`, `drop`). What is
    /// gone is told by [`SpoolEvent::Written`].
    pub fn drop_oldest(&mut self, bytes: u64) {
        if self.meta.is_none() {
            self.order(Order::DropOldest { spool: Arc::clone(&self.shared), bytes });
        }
    }

    /// What has changed since this was last asked; wakes the task when something does.
    pub fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<SpoolEvent> {
        let mut layout = self.shared.layout();
        if self.told == layout.version {
            layout.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        if let Some(failure) = layout.failure.as_ref().filter(|_| !self.failure_told) {
            self.failure_told = true;
            return Poll::Ready(SpoolEvent::Failed(failure.clone()));
        }
        self.told = layout.version;
        Poll::Ready(SpoolEvent::Written { to: layout.written, kept_from: layout.kept_from })
    }

    /// Bytes that it takes on the disk, with what is on its way there.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// Whether it ever got anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.meta.is_some() && self.shared.layout().segments.is_empty()
    }

    /// A reader of what was written.
    #[must_use]
    pub fn reader(&self, root: &super::Spools) -> SpoolReader {
        SpoolReader::new(Arc::clone(&root.root), Arc::clone(&self.shared))
    }

    /// Ends it: what is under way is written, and its directory says `meta` of the job as well. The
    /// answer says when all of it is on the disk, and whether it is.
    pub fn finish(mut self, meta: Vec<u8>) -> oneshot::Receiver<Result<(), SpoolFailure>> {
        let (done, when_done) = oneshot::channel();
        if self.meta.is_some() {
            // There is nothing to be finished.
            let _ = done.send(Ok(()));
        } else {
            let spool = Arc::clone(&self.shared);
            self.order(Order::Finish { spool, meta, done });
        }
        when_done
    }

    fn order(&mut self, order: Order) {
        // A thread that is gone has said why.
        let _ = self.orders.send(order);
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        if self.meta.is_none() {
            let spool = Arc::clone(&self.shared);
            self.order(Order::Close { spool });
        }
    }
}
