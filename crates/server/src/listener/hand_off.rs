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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use afar_net::hand_off::HandOff;
    use tokio::net::TcpStream;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// As close to the deadline as is tested.
    const MOMENT: Duration = Duration::from_millis(2);

    /// A client's connection, with keys that nobody else has.
    async fn client() -> (TcpStream, TlsTransport) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        let direction = [&[7; 32][..], &1_u64.to_be_bytes()].concat();
        let state = [&0x1301_u16.to_be_bytes()[..], &direction, &direction, &[0; 8]].concat();
        let state = HandOff::decode(&state).unwrap();
        let socket = theirs.into_std().unwrap().into();
        (ours, TlsTransport::from_hand_off(socket, state).unwrap())
    }

    /// W-9.24
    #[tokio::test(start_paused = true)]
    async fn a_supervisor_has_so_long_to_take_a_connection() {
        let grant = Grant::local("ann", 1000);
        for takes_after in [HAND_OFF_DEADLINE - MOMENT, HAND_OFF_DEADLINE + MOMENT] {
            let (_ours, client) = client().await;
            let (listeners, supervisors) = UnixStream::pair().unwrap();
            // Nothing more fits in until the supervisor reads.
            while listeners.try_write(&[0; 4096]).is_ok() {}
            let began = Instant::now();
            let reads = async {
                sleep(takes_after).await;
                let mut buffer = [0; 65536];
                supervisors.readable().await.unwrap();
                while supervisors.try_read(&mut buffer).is_ok_and(|count| count > 0) {}
            };
            let (handed_off, ()) = tokio::join!(hand_off(client, listeners, &grant, b""), reads);
            let waited = began.elapsed();
            let is_in_time = takes_after < HAND_OFF_DEADLINE;
            assert_eq!(handed_off.is_ok(), is_in_time, "{waited:?}: {handed_off:?}");
        }
    }
}
