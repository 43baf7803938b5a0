//! One output stream of a job: what it has produced, what of it is still there, and its seal.

use afar_proto::connection::Stream;
use afar_proto::gaps::Gaps;
use afar_proto::message::{AttachStart, StreamInfo};
use afar_proto::outcome::StreamSeal;
use afar_proto::seal::Sealer;
use bytes::Bytes;

use super::held::Held;

/// What was produced on one stream, and what is kept.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) stream: Stream,
    /// Of every byte, whatever became of it (`J-3.7`).
    sealer: Sealer,
    /// What is in memory, up to the last byte that was produced.
    pub(super) held: Held,
    /// What was dropped, in order.
    gaps: Gaps,
    state: State,
    /// Bytes that were in the pipe when the process ended, and have not come since.
    pub(super) owed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing more comes. `complete` iff the stream ended by itself.
    Over {
        complete: bool,
    },
    /// There never was such a stream: it goes where another one goes.
    Absent,
}

impl Source {
    pub(super) fn new(stream: Stream, present: bool) -> Self {
        let state = if present { State::Open } else { State::Absent };
        let (sealer, held) = (Sealer::new(), Held::default());
        Self { stream, sealer, held, gaps: Gaps::new(), state, owed: 0 }
    }

    /// A stream of a job that has ended, of which nothing is there any more.
    pub(super) fn ended(stream: Stream, seal: Option<&StreamSeal>) -> Self {
        let mut source = Self::new(stream, false);
        if let Some(seal) = seal {
            source.held = Held::ending_at(seal.bytes);
            source.gaps.clone_from(&seal.gaps);
            source.state = State::Over { complete: seal.complete };
        }
        source
    }

    /// Bytes that were produced.
    pub(super) fn produced(&self) -> u64 {
        self.held.end()
    }

    /// The first offset that can still be told.
    pub(super) fn kept_from(&self) -> u64 {
        self.held.start()
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether the stream is there: one that is merged into another never is.
    pub(super) fn is_absent(&self) -> bool {
        self.state == State::Absent
    }

    /// Takes what was read next.
    pub(super) fn produce(&mut self, clock_us: u64, bytes: Bytes) {
        self.sealer.update(&bytes);
        self.owed = self.owed.saturating_sub(bytes.len() as u64);
        self.held.push(clock_us, bytes);
    }

    pub(super) fn end(&mut self, complete: bool) {
        if self.is_open() {
            self.state = State::Over { complete };
        }
        self.owed = 0;
    }

    /// Lets go of everything before `to`: it was acknowledged, or nobody wants it.
    pub(super) fn release(&mut self, to: u64) {
        self.held.release(to);
    }

    /// Drops the oldest part until at most `bytes_max` are held, and names the gap.
    pub(super) fn drop_oldest(&mut self, bytes_max: u64) {
        let from = self.kept_from();
        let to = self.held.shorten(bytes_max);
        if to > from {
            self.gaps.add(from..to);
        }
    }

    /// The offset at which what is wanted begins, at or behind `wanted`.
    pub(super) fn start_at(&mut self, wanted: u64, start: Option<AttachStart>) -> u64 {
        let begin = match start {
            None => wanted,
            Some(AttachStart::SinceUs(clock_us)) => self.held.since(clock_us),
            Some(AttachStart::TailLines(lines)) => self.held.tail(lines),
        };
        begin.max(wanted).max(self.kept_from())
    }

    pub(super) fn seal(&self) -> StreamSeal {
        let complete = matches!(self.state, State::Over { complete: true } | State::Absent);
        StreamSeal { gaps: self.gaps.clone(), ..self.sealer.seal(complete) }
    }

    pub(super) fn info(&self) -> StreamInfo {
        let kept_from = self.kept_from();
        StreamInfo { bytes: self.produced(), kept_from, gaps: self.gaps.clone() }
    }
}
