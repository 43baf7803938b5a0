//! Connecting to a name that has several addresses (RFC 8305, "Happy Eyeballs").

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long an address has for itself before the next one is tried beside it (RFC 8305, section 5).
/// One that answers at all mostly does so in less.
const STAGGER: Duration = Duration::from_millis(250);

/// Unsent bytes that the kernel may hold for a connection before it counts as full. What it holds
/// can't be overtaken by a keystroke; what it lacks leaves a fast link idle.
pub const NOT_SENT_LOW_WATER: u32 = 256 * 1024;

/// Connects to the first address of `host` that answers; one that does not answer delays the others
/// by a moment and no more. TCP_NODELAY is set before anything is sent: Nagle's algorithm against
/// delayed acknowledgements costs 40 ms a round trip.
///
/// Not bounded in time; cancellation safe: dropping the future gives all attempts up.
///
/// # Errors
/// The name has no address, or none answers: the last failure.
pub async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = tokio::net::lookup_host((host, port)).await?;
    let stream = connect_any(interleave(addresses)).await?;
    stream.set_nodelay(true)?;
    afar_sys::socket::set_tcp_notsent_lowat(&stream, NOT_SENT_LOW_WATER)?;
    Ok(stream)
}

/// The addresses by turns of their families, so that a family that does not work here costs one
/// delay and not one for each of its addresses. The resolver's order (RFC 6724) stands otherwise.
fn interleave(addresses: impl Iterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let mut first: VecDeque<SocketAddr> = VecDeque::new();
    let mut second: VecDeque<SocketAddr> = VecDeque::new();
    for address in addresses {
        match first.front() {
            Some(other) if other.is_ipv6() != address.is_ipv6() => second.push_back(address),
            _ => first.push_back(address),
        }
    }
    let mut mixed = VecDeque::new();
    while !first.is_empty() || !second.is_empty() {
        mixed.extend(first.pop_front());
        mixed.extend(second.pop_front());
    }
    mixed
}

async fn connect_any(mut addresses: VecDeque<SocketAddr>) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut attempts = JoinSet::new();
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.spawn(TcpStream::connect(address));
        }
        let more = !addresses.is_empty();
        tokio::select! {
            attempt = attempts.join_next() => match attempt {
                Some(Ok(Ok(stream))) => return Ok(stream),
                // The next one need not wait.
                Some(Ok(Err(error))) => failure = error,
                Some(Err(error)) => failure = io::Error::other(error),
                None => return Err(failure),
            },
            () = tokio::time::sleep(STAGGER), if more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream as StdStream};

    use tokio::time::Instant;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A port where nobody answers: its queue is full, and the kernel drops what comes beyond.
    struct Mute {
        listener: TcpListener,
        _queued: Vec<StdStream>,
    }

    impl Mute {
        fn new() -> Self {
            let listener = afar_sys::socket::listen_tcp(address("127.0.0.1:0"), 0).unwrap();
            let at = listener.local_addr().unwrap();
            let connect = || StdStream::connect_timeout(&at, Duration::from_millis(100)).ok();
            let queued = std::iter::from_fn(connect).collect();
            Self { listener, _queued: queued }
        }

        fn address(&self) -> SocketAddr {
            self.listener.local_addr().unwrap()
        }
    }

    fn refusing() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn families_take_turns_and_the_resolvers_first_goes_first() {
        let all = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"].map(address);
        let mixed: Vec<String> =
            interleave(all.into_iter()).iter().map(ToString::to_string).collect();
        assert_eq!(mixed, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        let same = ["1.1.1.1:1", "2.2.2.2:1"].map(address);
        assert!(interleave(same.into_iter()).into_iter().eq(same));
        assert!(interleave(std::iter::empty()).is_empty());
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_delays_the_next_by_a_moment() {
        let (mute, other) = (Mute::new(), Mute::new());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let started = Instant::now();
        let all = VecDeque::from([mute.address(), other.address(), good]);
        let stream = connect_any(all).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        // A single attempt takes the kernel two minutes.
        assert!(started.elapsed() >= 2 * STAGGER && started.elapsed() < 20 * STAGGER);
    }

    #[tokio::test]
    async fn an_address_that_refuses_delays_nobody_and_the_last_failure_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let stream = connect_any(VecDeque::from([refusing(), refusing(), good])).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        let error = connect_any(VecDeque::from([refusing(), refusing()])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = connect_any(VecDeque::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
