//! Pumps a [`Connection`] over a [`Transport`]: the only place where the two meet.

use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use afar_proto::{Connection, Event};
use bytes::Bytes;

use crate::clock::Clock;
use crate::limits::FINISH_TIMEOUT;
use crate::transport::{Read, Transport};

/// Bytes that are taken from the connection at a time. What is taken can't be overtaken any more,
/// so this bounds how long a keystroke waits behind bulk data in this process.
const TRANSMIT_BYTES: usize = 256 * 1024;

/// A connection together with the stream of bytes that it runs over, owned by one task.
///
/// Nothing happens in the background: bytes move while [`Driver::next`] is awaited.
#[derive(Debug)]
pub struct Driver<T> {
    transport: T,
    connection: Connection,
    clock: Clock,
    out: VecDeque<Bytes>,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Whether the transport holds bytes that it has taken and the kernel has not: what is encrypted
    /// already, say. They leave only if the transport is asked again.
    unflushed: bool,
    write_failed: bool,
}

impl<T: Transport> Driver<T> {
    /// Joins the two.
    #[must_use]
    pub fn new(transport: T, connection: Connection, clock: Clock) -> Self {
        Self {
            transport,
            connection,
            clock,
            out: VecDeque::new(),
            timer: None,
            unflushed: false,
            write_failed: false,
        }
    }

    /// The connection, to give it commands. What they cause to be sent leaves during the next
    /// [`Driver::next`].
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The transport.
    pub fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// The clock that the connection's time is taken from.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Gives the connection bytes that were read before it was driven.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.connection.handle_input(self.clock.now(), bytes);
    }

    /// The next event. Meanwhile, sends what there is to send, reads, and keeps the time.
    ///
    /// Nothing is read while events wait, so a consumer that stops asking stops the peer in the
    /// end. Cancellation safe: a dropped future loses nothing. After [`Event::Closed`] there is
    /// none any more, and this waits for ever.
    pub async fn next(&mut self) -> Event {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`Driver::next`], for callers that wait for several things themselves.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        loop {
            self.poll_send(context);
            if let Some(event) = self.connection.poll_event() {
                return Poll::Ready(event);
            }
            if self.connection.is_closed() {
                return Poll::Pending;
            }
            let read = {
                let Self { transport, connection, clock, .. } = self;
                let now = clock.now();
                transport.poll_read(context, &mut |bytes| connection.handle_input(now, bytes))
            };
            match read {
                Poll::Ready(Ok(Read::Progress)) => continue,
                Poll::Ready(Ok(Read::End) | Err(_)) => {
                    self.connection.handle_eof(self.clock.now());
                    continue;
                }
                Poll::Pending => {}
            }
            if self.poll_timer(context).is_pending() {
                return Poll::Pending;
            }
            self.connection.handle_timeout(self.clock.now());
        }
    }

    /// Sends what there is to send, as far as the stream takes it without waiting.
    pub fn poll_send(&mut self, context: &mut Context<'_>) {
        while !self.write_failed {
            if self.out.is_empty()
                && !self.unflushed
                && self.connection.poll_transmit(&mut self.out, TRANSMIT_BYTES) == 0
            {
                return;
            }
            match self.transport.poll_write(context, &mut self.out) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Pending => {
                    self.unflushed = true;
                    return;
                }
                Poll::Ready(Err(_)) => {
                    // What the peer said before it went away can still be read: its goodbye above
                    // all. So only the sending ends here; the reading side finds the end.
                    self.write_failed = true;
                    self.out.clear();
                }
            }
        }
        self.connection.poll_transmit(&mut VecDeque::new(), usize::MAX);
    }

    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.connection.poll_timeout() else { return Poll::Pending };
        let deadline = self.clock.to_tokio(deadline);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // Moving a timer costs more than letting one fire early now and then: every input moves
        // the keepalive's deadline later, and an early call of handle_timeout does no harm.
        if deadline < timer.deadline() || timer.is_elapsed() {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(context)
    }

    /// Sends what is queued, a goodbye last, ends the sending side, and closes. Gives up after a
    /// second, because a peer that does not read must not hold this process.
    pub async fn finish(mut self) {
        let flushed = tokio::time::timeout(FINISH_TIMEOUT, async {
            poll_fn(|context| {
                self.poll_send(context);
                // What the transport has taken and holds is not gone, and there may be more behind.
                let all_left = self.out.is_empty() && !self.unflushed;
                if all_left || self.write_failed { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            // A failure here means that the peer is gone already, which is what is wanted.
            let _ = poll_fn(|context| self.transport.poll_finish(context)).await;
        });
        let _ = flushed.await;
    }

    /// Sends bytes that are not the connection's, before everything that it has queued. To be
    /// called before anything was sent.
    pub(crate) fn send_ahead(&mut self, bytes: Bytes) {
        self.out.push_front(bytes);
    }

    /// The same driver over another name of its transport.
    #[must_use]
    pub fn map<U: Transport>(self, wrap: impl FnOnce(T) -> U) -> Driver<U> {
        let Self { transport, connection, clock, out, timer, unflushed, write_failed } = self;
        let transport = wrap(transport);
        Driver { transport, connection, clock, out, timer, unflushed, write_failed }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;
    use std::rc::Rc;

    use afar_proto::message::GoodbyeCode;
    use afar_proto::{Config, Role};

    use super::*;

    /// Takes whatever it is given and hands it to the kernel only when it is asked again, as TLS
    /// does with records that the socket has no room for.
    #[derive(Debug, Default)]
    struct Hesitant {
        held_bytes: usize,
        sent_bytes: usize,
        finished: Rc<Cell<Option<usize>>>,
    }

    impl Transport for Hesitant {
        fn poll_read(
            &mut self,
            _context: &mut Context<'_>,
            _sink: &mut dyn FnMut(&[u8]),
        ) -> Poll<io::Result<Read>> {
            Poll::Pending
        }

        fn poll_write(
            &mut self,
            context: &mut Context<'_>,
            pieces: &mut VecDeque<Bytes>,
        ) -> Poll<io::Result<()>> {
            context.waker().wake_by_ref();
            self.sent_bytes += std::mem::take(&mut self.held_bytes);
            self.held_bytes = pieces.drain(..).map(|piece| piece.len()).sum();
            if self.held_bytes == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn poll_finish(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.finished.set(Some(self.sent_bytes));
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn the_goodbye_leaves_though_the_socket_is_full() {
        let clock = Clock::new();
        let connection = Connection::new(Role::Client, Config::default(), clock.now());
        let mut driver = Driver::new(Hesitant::default(), connection, clock);
        // The hello waits in the transport, and the goodbye behind it in the connection.
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(driver.poll_next(&mut context).is_pending());
        let hello_bytes = driver.transport().held_bytes;
        assert!(hello_bytes > 0);
        driver.connection().close(GoodbyeCode::Unavailable, "the last word");
        let finished = Rc::clone(&driver.transport().finished);
        driver.finish().await;
        assert!(finished.get().is_some_and(|sent_bytes| sent_bytes > hello_bytes + 12));
    }

    #[tokio::test]
    async fn what_the_transport_holds_leaves_though_nothing_more_is_to_be_sent() {
        let clock = Clock::new();
        let connection = Connection::new(Role::Client, Config::default(), clock.now());
        let mut driver = Driver::new(Hesitant::default(), connection, clock);
        let mut wake = || {
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(driver.poll_next(&mut context).is_pending());
            (driver.transport().held_bytes, driver.transport().sent_bytes)
        };
        // The hello was taken, and the socket has no room.
        let (held_bytes, sent_bytes) = wake();
        assert!(held_bytes > 0 && sent_bytes == 0);
        // Now it has.
        assert_eq!(wake(), (0, held_bytes));
    }
}
