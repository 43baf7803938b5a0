//! The listener's last step: bytes between the client's TLS and the user's supervisor.
//!
//! This is the one seam at which the connection could instead be handed off to the supervisor.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use afar_net::transport::{Read, TlsTransport, Transport as _, UnixTransport};
use afar_proto::frame::{Frame, Kind};
use afar_proto::json;
use afar_proto::message::{Goodbye, GoodbyeCode};
use bytes::Bytes;

/// How long one side may take to end after the other one has. By then everything was relayed; a
/// supervisor closes at once, and a client has no reason to wait.
const LINGER: Duration = Duration::from_secs(5);

/// One direction of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    /// The source has ended; the destination has not been told yet.
    Ending,
    /// The destination takes no more. What comes is thrown away, and read all the same: closing
    /// with unread bytes resets the connection, and the last word of the other direction, which
    /// says why, would be lost with it.
    Discarding,
    Ended,
}

struct Relay {
    client: TlsTransport,
    supervisor: UnixTransport,
    /// Bytes for the supervisor.
    up: VecDeque<Bytes>,
    up_flow: Flow,
    down_flow: Flow,
}

/// Relays until both sides have ended. Neither side is read faster than the other one takes it, so
/// at most one read of each is held here.
///
/// `first` goes to the supervisor ahead of everything else. Dropping the future cuts both sides.
///
/// # Errors
/// The client's side broke; the supervisor's is closed, which it sees as a cut.
pub(super) async fn relay(
    client: TlsTransport,
    supervisor: UnixTransport,
    first: impl IntoIterator<Item = Bytes>,
) -> io::Result<()> {
    let up = first.into_iter().filter(|bytes| !bytes.is_empty()).collect();
    let mut relay = Relay { client, supervisor, up, up_flow: Flow::Open, down_flow: Flow::Open };
    poll_fn(|context| relay.poll_until_half_closed(context)).await?;
    let rest = poll_fn(|context| relay.poll_until_closed(context));
    tokio::time::timeout(LINGER, rest).await.unwrap_or(Ok(()))
}

/// Tells an authenticated client that there is no supervisor for it. What it has sent is thrown
/// away: none of it was started.
pub(super) async fn turn_away(mut client: TlsTransport) {
    let goodbye = Goodbye {
        code: GoodbyeCode::Unavailable,
        message: "the server could not start the supervisor; its log says why".to_owned(),
    };
    let frame = Frame::control(Kind::Goodbye, json::to_vec(&goodbye)).to_bytes();
    let told = async {
        client.buffer(&frame)?;
        poll_fn(|context| client.poll_finish(context)).await?;
        // Read to the end, lest a reset overtake the goodbye.
        while poll_fn(|context| client.poll_read(context, &mut |_| {})).await? != Read::End {}
        Ok::<_, io::Error>(())
    };
    let _ = tokio::time::timeout(LINGER, told).await;
}

impl Relay {
    fn poll_until_half_closed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let up = self.poll_up(context)?;
        let down = self.poll_down(context)?;
        if up.is_ready() || down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_until_closed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let up = self.poll_up(context)?;
        let down = self.poll_down(context)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Client to supervisor.
    fn poll_up(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.up_flow {
                Flow::Ended => return Poll::Ready(Ok(())),
                Flow::Discarding => {
                    let read = self.client.poll_read(context, &mut |_| {});
                    if std::task::ready!(read)? == Read::End {
                        self.up_flow = Flow::Ended;
                    }
                }
                _ if !self.up.is_empty() => {
                    let written = self.supervisor.poll_write(context, &mut self.up);
                    if std::task::ready!(written).is_err() {
                        self.discard_up();
                    }
                }
                Flow::Ending => {
                    // A supervisor that has gone away already needs to be told nothing.
                    let _ = std::task::ready!(self.supervisor.poll_finish(context));
                    self.up_flow = Flow::Ended;
                }
                Flow::Open => {
                    let up = &mut self.up;
                    let mut sink = |bytes: &[u8]| up.push_back(Bytes::copy_from_slice(bytes));
                    if std::task::ready!(self.client.poll_read(context, &mut sink))? == Read::End {
                        self.up_flow = Flow::Ending;
                    }
                }
            }
        }
    }

    /// Supervisor to client.
    fn poll_down(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.down_flow != Flow::Ended {
                std::task::ready!(self.client.poll_flush(context))?;
            }
            match self.down_flow {
                Flow::Ended | Flow::Discarding => return Poll::Ready(Ok(())),
                Flow::Ending => {
                    std::task::ready!(self.client.poll_finish(context))?;
                    self.down_flow = Flow::Ended;
                    self.discard_up();
                }
                Flow::Open => {
                    let client = &mut self.client;
                    let mut buffered = Ok(());
                    let mut sink = |bytes: &[u8]| {
                        if buffered.is_ok() {
                            buffered = client.buffer(bytes);
                        }
                    };
                    let read = self.supervisor.poll_read(context, &mut sink);
                    buffered?;
                    // A supervisor that closes with unread bytes, such as those behind a frame that
                    // it objects to, resets its socket; what it said before that has arrived.
                    if !matches!(std::task::ready!(read), Ok(Read::Progress)) {
                        self.down_flow = Flow::Ending;
                    }
                }
            }
        }
    }

    /// The supervisor takes no more, and has nothing to say after what it has said.
    fn discard_up(&mut self) {
        self.up.clear();
        if self.up_flow != Flow::Ended {
            self.up_flow = Flow::Discarding;
        }
    }
}
