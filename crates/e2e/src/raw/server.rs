//! A server that says whatever a test wants.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use afar_net::host_key::{HostKey, HostKeys};
use afar_net::tls::TlsServer;
use afar_proto::frame::Kind;
use afar_proto::json;
use afar_proto::message::Hello;

use super::{Link, control, frame, job_hello};

/// A server that has made TLS with a client and said hello.
#[derive(Debug)]
pub struct RawServer {
    /// The connection.
    pub link: Link,
}

impl RawServer {
    fn accept(socket: TcpStream, tls: &TlsServer) -> Option<Self> {
        let (connection, _) = tls.accept().ok()?;
        let mut link = Link::new(socket, connection);
        let hello = Hello {
            version: 1,
            software: "raw".into(),
            features: Vec::new(),
            host_certificate: None,
        };
        let mut hello = control(Kind::Hello, &json::to_vec(&hello));
        while link.tls.is_handshaking() && link.end.is_none() {
            link.read();
            if link.tls.wants_write() {
                // Half a round trip early, as a listener does it.
                link.tls.writer().write_all(&hello).ok()?;
                hello.clear();
            }
            link.flush();
        }
        link.end.is_none().then_some(Self { link })
    }

    /// Lets the client in whoever it is, and reads to its first OPEN: its channel.
    ///
    /// # Panics
    /// It asks for nothing.
    #[track_caller]
    pub fn let_in(&mut self) -> u32 {
        self.link.expect(Kind::Auth);
        self.link.send(&[control(Kind::AuthOk, b"{}"), job_hello()].concat());
        self.link.expect(Kind::Open).channel
    }

    /// Says that the job was started.
    pub fn say_opened(&mut self, channel: u32, job: &str) {
        let opened = format!("{{\"job\":\"{job}\",\"pid\":1,\"started_at_us\":1}}");
        self.link.send(&frame(Kind::Opened.to_byte(), 0, channel, opened.as_bytes()));
    }
}

/// A server in this process, of a test's making.
#[derive(Debug)]
pub struct FakeServer {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeServer {
    /// Serves every connection by `script`, one after the other, and closes it then. It proves the
    /// private key in `host_key`.
    ///
    /// # Panics
    /// The key can't be read, or no port is free.
    #[must_use]
    pub fn start(host_key: &Path, script: impl Fn(&mut RawServer) + Send + 'static) -> Self {
        let key = HostKey::load(host_key).expect("the host key can be read");
        let keys = HostKeys::new(vec![key]).expect("one key is enough");
        let tls = TlsServer::new(&keys).expect("TLS can be set up");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                if let Some(mut server) = RawServer::accept(socket, &tls) {
                    script(&mut server);
                    server.link.finish();
                    // To the client's end, lest a reset overtake what was said.
                    server.link.rest();
                }
            }
        });
        Self { address, stopping, thread: Some(thread) }
    }

    /// Where it accepts connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let served = thread.join();
            assert!(served.is_ok() || std::thread::panicking(), "the fake server's script failed");
        }
    }
}
