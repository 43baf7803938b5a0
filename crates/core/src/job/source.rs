//! One output stream of a job: what it has produced, what of it is still there, and its seal.

use std::ops::Range;

use afar_proto::connection::Stream;
use afar_proto::gaps::Gaps;
use afar_proto::message::{AttachStart, StreamInfo};
use afar_proto::outcome::StreamSeal;
use afar_proto::seal::Sealer;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::held::{Held, Piece};

/// What was produced on one stream, and what is kept.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Source {
    #[serde(with = "stream_name")]
    pub(super) stream: Stream,
    /// Of every byte, whatever became of it (`J-3.7`).
    #[serde(with = "sealer_state")]
    sealer: Sealer,
    /// What is in memory, up to the last byte that was produced.
    pub(super) held: Held,
    /// What is in the spool.
    pub(super) spooled: Spooled,
    /// Everything before it was acknowledged, or is wanted by nobody.
    released: u64,
    /// What was dropped, in order.
    gaps: Gaps,
    state: State,
    /// Bytes that were in the pipe when the process ended, and have not come since.
    pub(super) owed: u64,
}

/// What of a stream the spool has: `from..to` can be read there, and what is before `asked` was handed
/// over. `from <= to <= asked`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spooled {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) asked: u64,
}

/// Where a byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Memory,
    Spool,
    /// Nowhere any more: what comes next is at this offset.
    Behind(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
        let spooled = Spooled::default();
        Self { stream, sealer, held, spooled, released: 0, gaps: Gaps::new(), state, owed: 0 }
    }

    /// A stream of a job that has ended, of which there is what the spool has.
    pub(super) fn ended(stream: Stream, seal: Option<&StreamSeal>, spooled: Range<u64>) -> Self {
        let mut source = Self::new(stream, false);
        if let Some(seal) = seal {
            source.held = Held::ending_at(seal.bytes);
            source.gaps.clone_from(&seal.gaps);
            let to = spooled.end.min(seal.bytes);
            source.spooled = Spooled { from: spooled.start.min(to), to, asked: to };
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
        if self.spooled.from < self.spooled.to { self.spooled.from } else { self.held.start() }
    }

    /// Where the next byte is told from that is wanted at `next`.
    pub(super) fn place_of(&self, next: u64) -> Place {
        let Spooled { from, to, .. } = self.spooled;
        if next >= self.held.start() {
            Place::Memory
        } else if (from..to).contains(&next) {
            Place::Spool
        } else if next < from && from < to {
            Place::Behind(from)
        } else {
            Place::Behind(self.held.start())
        }
    }

    /// Whether there is something that was not handed over to the spool.
    pub(super) fn has_for_spool(&self) -> bool {
        self.spooled.asked.max(self.held.start()) < self.held.end()
    }

    /// Whether everything that is kept is on the disk.
    pub(super) fn is_stored(&self) -> bool {
        self.held.bytes() == 0 && self.spooled.asked == self.spooled.to
    }

    /// The next piece for the spool, if there is one that it has not got.
    pub(super) fn next_for_spool(&mut self, bytes_max: usize) -> Option<Piece> {
        let from = self.spooled.asked.max(self.held.start());
        let piece = self.held.piece(from, bytes_max)?;
        if self.spooled.from == self.spooled.asked {
            // The first, or the first since everything before it was released.
            (self.spooled.from, self.spooled.to) = (from, from);
        }
        self.spooled.asked = piece.end();
        Some(piece)
    }

    /// The spool has what is before `to`, and of this what is behind `kept_from`.
    pub(super) fn spool_has(&mut self, to: u64, kept_from: u64) {
        let spooled = &mut self.spooled;
        if spooled.asked == 0 {
            return;
        }
        let was_from = spooled.from;
        spooled.to = spooled.to.max(to.min(spooled.asked));
        spooled.from = spooled.from.max(kept_from).min(spooled.to);
        let (from, dropped_to) = (was_from.max(self.released), spooled.from);
        self.gaps.add(from..dropped_to.max(from));
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
        self.released = self.released.max(to.min(self.produced()));
        self.spooled.from = self.spooled.from.max(to.min(self.spooled.to));
    }

    /// What is before this is needed by nobody any more.
    pub(super) fn released(&self) -> u64 {
        self.released
    }

    /// Drops the oldest part until at most `bytes_max` are held, and names the gap.
    pub(super) fn drop_oldest(&mut self, bytes_max: u64) {
        let from = self.held.start();
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

/// A stream by its name.
mod stream_name {
    use afar_proto::connection::Stream;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        stream: &Stream,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(stream.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Stream, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Stream::OUTPUTS.into_iter().find(|stream| stream.name() == name);
        found.ok_or_else(|| serde::de::Error::custom("no stream of a job has this name"))
    }
}

/// The state of a hash that goes on.
mod sealer_state {
    use afar_proto::json::base64_bytes;
    use afar_proto::seal::Sealer;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        sealer: &Sealer,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        base64_bytes::serialize(&sealer.to_bytes(), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Sealer, D::Error> {
        let state = base64_bytes::deserialize(deserializer)?;
        Sealer::from_bytes(&state).map_err(serde::de::Error::custom)
    }
}
