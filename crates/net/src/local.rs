//! The way to a supervisor on this machine: its unix socket, without TLS.
//!
//! A listener brings a client's connection and leaves; a local client stays and speaks through the
//! unix socket itself. Either says first whom it brings: the grant (`W-4.8`).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use afar_core::policy::{Grant, GrantError, GrantKind};
use afar_proto::Connection;
use afar_proto::error::Misbehaviour;
use afar_proto::frame::{Frame, FrameReader, Header, Kind, Phase};
use afar_proto::json;
use afar_proto::limits::{FRAME_HEADER_BYTES, HAND_OFF_PLAINTEXT_BYTES_MAX};
use afar_sys::descriptor_passing::{receive_with_descriptor, send_with_descriptor};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use zeroize::{Zeroize as _, Zeroizing};

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::driver::Driver;
use crate::hand_off::{HandOff, MalformedHandOff};
use crate::transport::{AnyTransport, TlsTransport, UnixTransport};

/// Joins a connection to a supervisor's socket, whose owner the caller has checked. The grant goes
/// ahead of everything that `connection` has queued (`W-4.8`).
#[must_use]
pub fn attach_local(
    stream: UnixStream,
    grant: &Grant,
    connection: Connection,
    clock: Clock,
) -> Driver<AnyTransport> {
    let transport = AnyTransport::Unix(UnixTransport::new(stream));
    let mut driver = Driver::new(transport, connection, clock);
    driver.send_ahead(Frame::control(Kind::Grant, grant.encode()).to_bytes());
    driver
}

/// Hands a client's connection to a supervisor, whose owner the caller has checked (`W-4.13`).
/// `rest` is what the client has sent behind its AUTH.
///
/// Not bounded in time; dropping the future before it is ready cuts the client's connection.
///
/// # Errors
/// The connection has ended or failed, or the supervisor went away; the client's connection is cut.
pub async fn hand_off(
    mut stream: UnixStream,
    grant: &Grant,
    transport: TlsTransport,
    rest: &[u8],
) -> io::Result<()> {
    let (socket, state) = transport.into_hand_off()?;
    let plaintext_bytes = u32::try_from(rest.len()).map_err(io::Error::other)?;
    let state = state.with_plaintext(plaintext_bytes).encode();
    let grant = Frame::control(Kind::Grant, grant.encode()).to_bytes();
    let capacity = grant.len() + FRAME_HEADER_BYTES + state.len();
    let mut message = Zeroizing::new(Vec::with_capacity(capacity));
    message.extend_from_slice(&grant);
    let length = u32::try_from(state.len()).map_err(io::Error::other)?;
    let header = Header { kind: Kind::HandOff, flags: 0, channel: 0, length };
    message.extend_from_slice(&header.to_bytes());
    message.extend_from_slice(&state);
    let sent = stream
        .async_io(Interest::WRITABLE, || send_with_descriptor(&stream, &message, socket.as_fd()))
        .await?;
    stream.write_all(message.get(sent..).unwrap_or_default()).await?;
    stream.write_all(rest).await
}

/// What somebody wants who has connected to a supervisor.
#[derive(Debug)]
pub enum Introduction {
    /// To have a client served.
    Client(Box<Introduced>),
    /// That the supervisor goes on as the program that is installed now; here it says what comes of it,
    /// in frames of [`UpgradeNews`] (`W-4.17`).
    Upgrade(UnixStream),
}

/// What comes of an upgrade that was asked for (`W-4.17`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum UpgradeNews {
    /// It will come by itself; nothing more is said.
    Waits {
        /// What it waits for.
        message: String,
    },
    /// The supervisor goes on as another program.
    Done {
        /// That program's version.
        version: String,
    },
    /// Everything goes on as it was.
    Failed {
        /// Why.
        message: String,
    },
}

impl UpgradeNews {
    /// The frame that asks for them.
    #[must_use]
    pub fn wanted() -> Bytes {
        Frame::control(Kind::Upgrade, b"{}".as_slice()).to_bytes()
    }

    /// The frame that tells them.
    #[must_use]
    pub fn to_frame(&self) -> Bytes {
        Frame::control(Kind::Upgrade, json::to_vec(self)).to_bytes()
    }

    /// Reads them from the bytes of frames; `None` while they are not whole.
    ///
    /// # Errors
    /// The bytes are no frames, or not of this kind.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, IntroductionError> {
        let mut reader = FrameReader::new(Phase::Grant);
        reader.push(bytes);
        let Some(frame) = reader.next_frame()? else { return Ok(None) };
        let payload = expect(frame, Kind::Upgrade)?;
        Ok(Some(json::from_slice(&payload).map_err(IntroductionError::News)?))
    }
}

/// Whom somebody who has connected to a supervisor brings.
#[derive(Debug)]
pub struct Introduced {
    /// What may be done.
    pub grant: Grant,
    /// The connection to go on with.
    pub transport: AnyTransport,
    /// What has come from it already.
    pub first: Bytes,
}

/// Why somebody who has connected to a supervisor brings nobody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntroductionError {
    /// The bytes are no frames.
    #[error("{0}")]
    Frame(#[from] Misbehaviour),
    /// Another frame than the one that has to come.
    #[error("{found:?} instead of {expected:?}")]
    Unexpected {
        /// What came.
        found: Kind,
        /// What has to come.
        expected: Kind,
    },
    /// The grant is none.
    #[error("{0}")]
    Grant(#[from] GrantError),
    /// What is said of an upgrade is none of its news.
    #[error("{0}")]
    News(#[source] json::JsonError),
    /// The state of the connection is none.
    #[error("{0}")]
    HandOff(#[from] MalformedHandOff),
    /// Only a local client speaks through the unix socket itself.
    #[error("a grant of kind {0:?} without the connection")]
    NoConnection(GrantKind),
    /// More behind the frames than a client can have sent, or than was stated.
    #[error("{0} bytes behind the connection's state")]
    Plaintext(usize),
    /// It ended before it had said all.
    #[error("it ended before its grant")]
    Cut,
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads what a process wants that has connected to the supervisor, and whom it has brought. Who that process is was
/// checked, and the time is bounded, by the caller.
///
/// # Errors
/// See [`IntroductionError`]; both connections are closed.
pub async fn introduced(mut stream: UnixStream) -> Result<Introduction, IntroductionError> {
    let mut reader = FrameReader::new(Phase::Grant);
    let mut buffer = Zeroizing::new(vec![0; 64 * 1024]);
    let mut socket: Option<OwnedFd> = None;
    let grant = loop {
        if let Some(frame) = reader.next_frame()? {
            if frame.kind == Kind::Upgrade && frame.channel == 0 {
                return Ok(Introduction::Upgrade(stream));
            }
            break Grant::decode(&expect(frame, Kind::Grant)?)?;
        }
        let received = stream
            .async_io(Interest::READABLE, || receive_with_descriptor(&stream, &mut buffer))
            .await?;
        match received {
            (0, _) => return Err(IntroductionError::Cut),
            (count, descriptor) => {
                reader.push(buffer.get(..count).unwrap_or_default());
                socket = socket.or(descriptor);
            }
        }
    };
    let Some(socket) = socket else {
        if grant.kind != GrantKind::Local {
            return Err(IntroductionError::NoConnection(grant.kind));
        }
        let transport = AnyTransport::Unix(UnixTransport::new(stream));
        let first = reader.into_rest();
        return Ok(Introduction::Client(Box::new(Introduced { grant, transport, first })));
    };
    let state = loop {
        if let Some(frame) = reader.next_frame()? {
            let payload = expect(frame, Kind::HandOff)?;
            let state = HandOff::decode(&payload)?;
            // The secrets are in there; nobody else has a part of this memory.
            if let Ok(mut payload) = payload.try_into_mut() {
                payload.zeroize();
            }
            break state;
        }
        match stream.read(&mut buffer).await? {
            0 => return Err(IntroductionError::Cut),
            count => reader.push(buffer.get(..count).unwrap_or_default()),
        }
    };
    let mut first = BytesMut::from(reader.into_rest());
    let plaintext_bytes = state.plaintext_bytes();
    if plaintext_bytes > HAND_OFF_PLAINTEXT_BYTES_MAX || first.len() > plaintext_bytes {
        return Err(IntroductionError::Plaintext(plaintext_bytes));
    }
    let read = first.len();
    first.resize(plaintext_bytes, 0);
    stream.read_exact(first.get_mut(read..).unwrap_or_default()).await?;
    let transport = TlsTransport::from_hand_off(socket, state)?;
    let transport = AnyTransport::Tls(Box::new(transport));
    Ok(Introduction::Client(Box::new(Introduced { grant, transport, first: first.freeze() })))
}

fn expect(frame: Frame, expected: Kind) -> Result<Bytes, IntroductionError> {
    if frame.kind == expected && frame.channel == 0 {
        return Ok(frame.payload);
    }
    Err(IntroductionError::Unexpected { found: frame.kind, expected })
}
