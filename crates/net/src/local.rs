//! The way to a supervisor on this machine: its unix socket, without TLS.

use afar_core::policy::Grant;
use afar_proto::Connection;
use afar_proto::frame::{Frame, Kind};
use tokio::net::UnixStream;

use crate::clock::Clock;
use crate::driver::Driver;
use crate::transport::{AnyTransport, UnixTransport};

/// Joins a connection to a supervisor's socket, whose owner the caller has checked. The grant goes
/// ahead of everything that `connection` has queued (`W-4.8`).
#[must_use]
pub fn attach(
    transport: UnixTransport,
    grant: &Grant,
    connection: Connection,
    clock: Clock,
) -> Driver<UnixTransport> {
    let mut driver = Driver::new(transport, connection, clock);
    driver.send_ahead(Frame::control(Kind::Grant, grant.encode()).to_bytes());
    driver
}

/// [`attach`] for a socket, where other transports are possible too.
#[must_use]
pub fn attach_local(
    stream: UnixStream,
    grant: &Grant,
    connection: Connection,
    clock: Clock,
) -> Driver<AnyTransport> {
    attach(UnixTransport::new(stream), grant, connection, clock).map(AnyTransport::Unix)
}
