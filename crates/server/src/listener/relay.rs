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
/// The first side to break; the other one is closed, which its peer sees as a cut.
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
                _ if !self.up.is_empty() => {
                    std::task::ready!(self.supervisor.poll_write(context, &mut self.up))?;
                }
                Flow::Ending => {
                    std::task::ready!(self.supervisor.poll_finish(context))?;
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
                Flow::Ended => return Poll::Ready(Ok(())),
                Flow::Ending => {
                    std::task::ready!(self.client.poll_finish(context))?;
                    self.down_flow = Flow::Ended;
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
                    if std::task::ready!(read)? == Read::End {
                        self.down_flow = Flow::Ending;
                    }
                }
            }
        }
    }
}
