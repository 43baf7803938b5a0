//! What a listener does when it has no descriptor left for whoever comes.
//!
//! A connection that can't be accepted stays in the kernel's queue: whoever has made it waits for nothing,
//! and the listener would be told of it again and again. So one descriptor is kept in reserve, and given up
//! for as long as it takes to accept that connection and to close it: its client learns at once that it
//! has to come back.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use afar_sys::Errno;
use tokio::net::TcpListener;

/// One descriptor, if it could be had.
#[derive(Debug)]
pub(super) struct Reserve(Option<File>);

impl Reserve {
    pub(super) fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Whether this is the failure of accept(2) that the reserve is for.
    pub(super) fn is_for(error: &io::Error) -> bool {
        matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
    }

    /// Closes one connection that waits, if one does; tells whether.
    pub(super) async fn turn_one_away(&mut self, listener: &TcpListener) -> bool {
        self.0 = None;
        let waiting = poll_fn(|context| Poll::Ready(listener.poll_accept(context))).await;
        let turned_away = matches!(waiting, Poll::Ready(Ok(_)));
        drop(waiting);
        self.0 = File::open("/dev/null").ok();
        turned_away
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn whoever_waits_is_turned_away_and_nobody_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut reserve = Reserve::new();
        assert!(!reserve.turn_one_away(&listener).await);
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        // The runtime is told of it a moment later.
        while !reserve.turn_one_away(&listener).await {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(reserve.0.is_some());
    }

    #[test]
    fn only_a_lack_of_descriptors_is_what_it_is_for() {
        assert!(Reserve::is_for(&Errno::MFILE.into()) && Reserve::is_for(&Errno::NFILE.into()));
        assert!(!Reserve::is_for(&Errno::CONNABORTED.into()));
        assert!(!Reserve::is_for(&io::Error::other("x")));
    }
}
