//! The listener's last step: the client's connection goes to the user's supervisor, or the client is
//! told that it can't.

use std::future::poll_fn;
use std::io;

use afar_core::policy::Grant;
use afar_net::local;
use afar_net::transport::{Read, TlsTransport, Transport as _};
use afar_proto::frame::{Frame, Kind};
use afar_proto::json;
use afar_proto::message::{Goodbye, GoodbyeCode};
use tokio::net::UnixStream;

use crate::limits::{HAND_OFF_DEADLINE, LINGER};

/// Hands the connection over; it is none of the listener's business any more then. `rest` is what
/// the client has sent behind its AUTH.
///
/// # Errors
/// The connection, or the supervisor, is gone; the client's connection is cut.
pub(super) async fn hand_off(
    client: TlsTransport,
    supervisor: UnixStream,
    grant: &Grant,
    rest: &[u8],
) -> io::Result<()> {
    tokio::time::timeout(HAND_OFF_DEADLINE, local::hand_off(supervisor, grant, client, rest))
        .await?
}

/// Tells an authenticated client why there is no supervisor for it. What it has sent is thrown
/// away: none of it was started.
pub(super) async fn turn_away(mut client: TlsTransport, message: String) {
    let goodbye = Goodbye { code: GoodbyeCode::Unavailable, message };
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
