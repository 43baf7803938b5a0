//! Frames: the fixed header, and the reader that makes frames of a stream of bytes (`W-1`, `W-2`).

use bytes::{Buf, Bytes, BytesMut};

use crate::error::Misbehaviour;
use crate::limits::{
    CONTROL_PAYLOAD_BYTES_MAX, DATA_BYTES_MAX, DATA_PREFIX_BYTES, FRAME_HEADER_BYTES,
    GRANT_BYTES_MAX, PREAUTH_PAYLOAD_BYTES_MAX,
};

/// What a frame is (`W-2.4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Version, software and features of the transport: the first frame of each side.
    Hello = 0x01,
    /// Which of these public keys would be accepted?
    AuthQuery = 0x02,
    /// The answer to [`Kind::AuthQuery`].
    AuthQueryResult = 0x03,
    /// A signature by a user's key over the handshake.
    Auth = 0x04,
    /// The client is authenticated; jobs follow.
    AuthOk = 0x05,
    /// The client is refused.
    AuthRefused = 0x06,
    /// The last frame of a side that ends the connection in order.
    Goodbye = 0x07,
    /// Asks a supervisor to go on as the program that is installed now, and what comes of it; never on
    /// the network.
    Upgrade = 0x0d,
    /// The state of a connection that goes on in the supervisor, from a listener; never on the
    /// network.
    HandOff = 0x0e,
    /// What authentication yielded, from a listener to a supervisor; never on the network.
    Grant = 0x0f,
    /// Version and features of the job protocol: the first frame of each side in that part.
    JobHello = 0x10,
    /// Opens a channel: a job to start. Continued while the flag [`FLAG_MORE`] is set.
    Open = 0x11,
    /// The job was started.
    Opened = 0x12,
    /// The job was not started.
    Refused = 0x13,
    /// Bytes of a stream, with their offset and the job's clock.
    Data = 0x14,
    /// The end of a stream, with its length.
    End = 0x15,
    /// Credit: the receiver takes this many more bytes of a stream.
    Window = 0x16,
    /// Everything before this offset has reached its destination.
    Ack = 0x17,
    /// The receiver wants no more of a stream.
    Stop = 0x18,
    /// A signal for the job.
    Signal = 0x19,
    /// A new size of the job's terminal.
    Resize = 0x1a,
    /// The process has ended; told at once, before the end of its output.
    Exit = 0x1b,
    /// The outcome and the byte count and hash of each stream: the channel's last word.
    Seal = 0x1c,
    /// The client is done with a channel; a job that still runs is cancelled.
    Close = 0x1d,
    /// The channel is broken off.
    Reset = 0x1e,
    /// Asks for a [`Kind::Pong`] with the same eight bytes.
    Ping = 0x1f,
    /// The answer to [`Kind::Ping`].
    Pong = 0x20,
    /// Asks to go on with a job that exists, at these offsets.
    Attach = 0x21,
    /// The offsets at which the job's streams go on, and the gaps before them.
    Attached = 0x22,
    /// A stream goes on at a later offset: what is between is not there any more.
    Gap = 0x23,
    /// The client leaves a channel; its job goes on.
    Detach = 0x24,
    /// Asks about jobs.
    Query = 0x25,
    /// The answer to a [`Kind::Query`]; the last word of its channel.
    Answer = 0x26,
}

/// Kinds from here on are skipped by who does not know them (`W-2.5`).
pub const KIND_IGNORABLE_FROM: u8 = 0xc0;

/// In OPEN: another chunk of the same specification follows.
pub const FLAG_MORE: u8 = 0x01;

impl Kind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 33] = [
        Self::Hello,
        Self::AuthQuery,
        Self::AuthQueryResult,
        Self::Auth,
        Self::AuthOk,
        Self::AuthRefused,
        Self::Goodbye,
        Self::Upgrade,
        Self::HandOff,
        Self::Grant,
        Self::JobHello,
        Self::Open,
        Self::Opened,
        Self::Refused,
        Self::Data,
        Self::End,
        Self::Window,
        Self::Ack,
        Self::Stop,
        Self::Signal,
        Self::Resize,
        Self::Exit,
        Self::Seal,
        Self::Close,
        Self::Reset,
        Self::Ping,
        Self::Pong,
        Self::Attach,
        Self::Attached,
        Self::Gap,
        Self::Detach,
        Self::Query,
        Self::Answer,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        self as u8
    }

    /// The kind of a number, if there is one.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.to_byte() == byte)
    }

    /// The flags that this kind may carry; all others must be zero (`W-2.2`).
    #[must_use]
    const fn flags_allowed(self) -> u8 {
        match self {
            Self::Data | Self::End | Self::Window | Self::Ack | Self::Stop | Self::Gap => 0x03,
            Self::Open => FLAG_MORE,
            _ => 0,
        }
    }
}

/// A frame's header (`W-2.1`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Flags; their meaning depends on the kind.
    pub flags: u8,
    /// The channel, or 0 for the connection itself.
    pub channel: u32,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl Header {
    fn with_payload(self, payload: Bytes) -> Frame {
        let Self { kind, flags, channel, .. } = self;
        Frame { kind, flags, channel, payload }
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; FRAME_HEADER_BYTES] {
        let [c0, c1, c2, c3] = self.channel.to_be_bytes();
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        [self.kind.to_byte(), self.flags, 0, 0, c0, c1, c2, c3, l0, l1, l2, l3]
    }
}

/// One whole frame: all that there is on the wire (`W-1.1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the frame is.
    pub kind: Kind,
    /// Flags; their meaning depends on the kind.
    pub flags: u8,
    /// The channel, or 0 for the connection itself.
    pub channel: u32,
    /// The payload, whole.
    pub payload: Bytes,
}

impl Frame {
    /// A frame of the connection itself, with this payload.
    #[must_use]
    pub fn control(kind: Kind, payload: impl Into<Bytes>) -> Self {
        Self { kind, flags: 0, channel: 0, payload: payload.into() }
    }

    /// The frame's header.
    ///
    /// The payload is what we made ourselves and so within `u32`; a longer one is a fault of ours
    /// that the peer would answer by closing.
    #[must_use]
    pub fn header(&self) -> Header {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        Header { kind: self.kind, flags: self.flags, channel: self.channel, length }
    }

    /// The frame in one piece, for the small ones.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes =
            BytesMut::with_capacity(FRAME_HEADER_BYTES.saturating_add(self.payload.len()));
        bytes.extend_from_slice(&self.header().to_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes.freeze()
    }
}

/// Which limits hold for the frames that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before authentication: every frame is small (`W-9.1`).
    Preauth,
    /// GRANT, HAND_OFF and UPGRADE, between processes of one machine.
    Grant,
    /// Jobs.
    Jobs,
}

impl Phase {
    fn payload_bytes_max(self, kind: Kind) -> u32 {
        match (self, kind) {
            (Self::Preauth, _) => PREAUTH_PAYLOAD_BYTES_MAX,
            (Self::Grant, _) => GRANT_BYTES_MAX,
            (Self::Jobs, Kind::Data) => {
                u32::try_from(DATA_PREFIX_BYTES.saturating_add(DATA_BYTES_MAX)).unwrap_or(u32::MAX)
            }
            (Self::Jobs, _) => CONTROL_PAYLOAD_BYTES_MAX,
        }
    }
}

/// Makes frames of a stream of bytes, however it was split or merged on its way (`W-1.3`).
///
/// It holds at most one frame that is not whole yet, plus what one call of [`FrameReader::push`]
/// brought. A stated length is held against its limit before room is made for it (`W-1.2`).
#[derive(Debug)]
pub struct FrameReader {
    phase: Phase,
    buffer: BytesMut,
    /// A frame whose header is known and whose payload is on its way. While there is one, `buffer`
    /// is empty, unless the payload is whole.
    partial: Option<Partial>,
    /// Payload bytes of an ignorable frame that have still to be skipped.
    skip: usize,
}

/// A frame of which a part has arrived. Its payload is collected in memory of its own size, so that
/// nothing is moved again while the rest comes in.
#[derive(Debug)]
struct Partial {
    header: Header,
    payload: BytesMut,
}

impl Partial {
    fn missing(&self) -> usize {
        (self.header.length as usize).saturating_sub(self.payload.len())
    }
}

impl FrameReader {
    /// A reader with the limits of `phase`.
    #[must_use]
    pub fn new(phase: Phase) -> Self {
        Self { phase, buffer: BytesMut::new(), partial: None, skip: 0 }
    }

    /// Appends bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip = self.skip.saturating_sub(skipped);
        let mut bytes = bytes.get(skipped..).unwrap_or_default();
        if let Some(partial) = &mut self.partial {
            let (payload, rest) = bytes.split_at_checked(partial.missing()).unwrap_or((bytes, &[]));
            partial.payload.extend_from_slice(payload);
            bytes = rest;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there. Frames of unknown ignorable kinds are passed over.
    ///
    /// # Errors
    /// A header that breaks a rule. The reader must not be used any more after that.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Misbehaviour> {
        if let Some(partial) = self.partial.take_if(|partial| partial.missing() == 0) {
            return Ok(Some(partial.header.with_payload(partial.payload.freeze())));
        }
        if self.partial.is_some() {
            return Ok(None);
        }
        loop {
            let Some(&header) = self.buffer.first_chunk::<FRAME_HEADER_BYTES>() else {
                return Ok(None);
            };
            let [kind_byte, flags, r0, r1, c0, c1, c2, c3, l0, l1, l2, l3] = header;
            let channel = u32::from_be_bytes([c0, c1, c2, c3]);
            let length = u32::from_be_bytes([l0, l1, l2, l3]);
            let Some(kind) = Kind::from_byte(kind_byte) else {
                self.start_skip(kind_byte, length)?;
                continue;
            };
            let limit = self.phase.payload_bytes_max(kind);
            if length > limit {
                return Err(Misbehaviour::FrameTooLong { kind: kind_byte, length, limit });
            }
            if r0 != 0 || r1 != 0 || flags & !kind.flags_allowed() != 0 {
                return Err(Misbehaviour::ReservedBits(kind_byte));
            }
            let header = Header { kind, flags, channel, length };
            self.buffer.advance(FRAME_HEADER_BYTES);
            if self.buffer.len() >= length as usize {
                let payload = self.buffer.split_to(length as usize).freeze();
                return Ok(Some(header.with_payload(payload)));
            }
            let mut payload = BytesMut::with_capacity(length as usize);
            payload.extend_from_slice(&self.buffer);
            self.buffer.clear();
            self.partial = Some(Partial { header, payload });
            return Ok(None);
        }
    }

    fn start_skip(&mut self, kind_byte: u8, length: u32) -> Result<(), Misbehaviour> {
        if kind_byte < KIND_IGNORABLE_FROM || self.phase != Phase::Jobs {
            return Err(Misbehaviour::UnknownKind(kind_byte));
        }
        if length > CONTROL_PAYLOAD_BYTES_MAX {
            let limit = CONTROL_PAYLOAD_BYTES_MAX;
            return Err(Misbehaviour::FrameTooLong { kind: kind_byte, length, limit });
        }
        self.buffer.advance(FRAME_HEADER_BYTES);
        let here = self.buffer.len().min(length as usize);
        self.buffer.advance(here);
        self.skip = (length as usize).saturating_sub(here);
        Ok(())
    }

    /// Gives the memory back that earlier, larger frames needed. For idle times: a busy reader
    /// would only ask for it again.
    pub fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Bytes that were pushed and belong to no frame that was handed out.
    #[must_use]
    pub fn buffered(&self) -> usize {
        let partial = self
            .partial
            .as_ref()
            .map_or(0, |partial| FRAME_HEADER_BYTES.saturating_add(partial.payload.len()));
        partial.saturating_add(self.buffer.len())
    }

    /// Ends this reader and hands out the bytes that it has not used, for the reader of the next
    /// phase.
    #[must_use]
    pub fn into_rest(self) -> Bytes {
        let Some(Partial { header, payload }) = self.partial else { return self.buffer.freeze() };
        let mut rest = BytesMut::from(header.to_bytes().as_slice());
        rest.extend_from_slice(&payload);
        rest.extend_from_slice(&self.buffer);
        rest.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_reader_holds_no_memory_and_a_busy_one_loses_nothing() {
        let frame = Frame::control(Kind::Open, vec![0; 60_000]).to_bytes();
        let mut reader = FrameReader::new(Phase::Jobs);
        reader.push(&frame);
        assert!(matches!(reader.next_frame(), Ok(Some(_))));
        reader.release();
        assert_eq!(reader.buffer.capacity(), 0);
        let (before, after) = frame.split_at(30_000);
        reader.push(before);
        reader.release();
        reader.push(after);
        assert!(matches!(reader.next_frame(), Ok(Some(_))));
    }
}
