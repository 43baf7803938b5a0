//! Both ends of afar's protocol as a peer that keeps no rule: any bytes, in any state, over real TLS.
//!
//! Frames are put together and taken apart here without `afar_proto`'s reader and state machines,
//! so that a test never asks the code that it tests what it should have said.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use afar_core::certificate::Certificate;
use afar_core::key::PublicKeyBlob;
use afar_net::identity::{self, IdentityFile};
use afar_net::signer::{DelegatedKey, Signer};
use afar_net::tls::{self, ClientSide, Verdict};
use afar_proto::frame::Kind;
use afar_proto::json::{self, ByteString};
use afar_proto::message::{
    AuthRequest, Command, Delegate, Hello, JobHello, JobId, OnDisconnect, OpenSpec, Transcript,
};

use crate::deadline::DEADLINE;
use crate::fail;
use crate::host::Host;

mod server;

pub use server::{FakeServer, RawServer};

/// Most plaintext that is given to TLS before its records are written.
const CHUNK_BYTES: usize = 256 * 1024;

/// A frame as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// The kind's number.
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The channel.
    pub channel: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

/// How the peer's bytes ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// In order, by close_notify.
    Closed,
    /// The connection ended without it.
    Cut,
    /// The connection was reset.
    Reset,
    /// By an alert, or by what was no TLS.
    Tls(rustls::Error),
}

/// A frame with any kind, flags and length there can be.
#[must_use]
pub fn frame(kind: u8, flags: u8, channel: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    [header(kind, flags, channel, length).as_slice(), payload].concat()
}

/// A header that may lie about what follows it.
#[must_use]
pub fn header(kind: u8, flags: u8, channel: u32, length: u32) -> Vec<u8> {
    let [c0, c1, c2, c3] = channel.to_be_bytes();
    let [l0, l1, l2, l3] = length.to_be_bytes();
    vec![kind, flags, 0, 0, c0, c1, c2, c3, l0, l1, l2, l3]
}

/// A frame of the connection itself with a message of the protocol.
#[must_use]
pub fn control(kind: Kind, payload: &[u8]) -> Vec<u8> {
    frame(kind.to_byte(), 0, 0, payload)
}

/// The JOB_HELLO of either side.
#[must_use]
pub fn job_hello() -> Vec<u8> {
    let hello =
        JobHello { version: 1, software: "raw".into(), features: Vec::new(), incarnation: None };
    control(Kind::JobHello, &json::to_vec(&hello))
}

/// What asks for this argv, to be ended when the connection is: a peer that keeps no rule says no
/// goodbye either.
#[must_use]
pub fn spec(id: &str, argv: &[&str]) -> OpenSpec {
    let words = argv.iter().map(|word| ByteString::from(*word)).collect();
    let spec = OpenSpec::new(JobId::new(id).expect("the test's ids are ids"), Command::Argv(words));
    OpenSpec { on_disconnect: Some(OnDisconnect::Kill), ..spec }
}

/// An OPEN in as many frames as it takes.
#[must_use]
pub fn open(channel: u32, spec: &OpenSpec) -> Vec<u8> {
    let payload = json::to_vec(spec);
    let mut chunks = payload.chunks(64 * 1024).peekable();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next() {
        let more = u8::from(chunks.peek().is_some());
        bytes.extend(frame(Kind::Open.to_byte(), more, channel, chunk));
    }
    bytes
}

/// Credit for a stream: 0 is stdin, 1 stdout, 2 stderr.
#[must_use]
pub fn window(channel: u32, stream: u8, increment: u32) -> Vec<u8> {
    frame(Kind::Window.to_byte(), stream, channel, &increment.to_be_bytes())
}

/// Data of a stream at an offset.
#[must_use]
pub fn data(channel: u32, stream: u8, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let clock = [0; 8];
    let payload = [offset.to_be_bytes().as_slice(), &clock, bytes].concat();
    frame(Kind::Data.to_byte(), stream, channel, &payload)
}

/// An AUTH of these parts, whatever they are.
#[must_use]
pub fn auth_frame(signed: &[u8], signature: &[u8]) -> Vec<u8> {
    let length = u32::try_from(signed.len()).unwrap_or(u32::MAX);
    control(Kind::Auth, &[length.to_be_bytes().as_slice(), signed, signature].concat())
}

impl RawFrame {
    /// Whether it is of this kind.
    #[must_use]
    pub fn is(&self, kind: Kind) -> bool {
        self.kind == kind.to_byte()
    }

    /// Its payload as JSON.
    ///
    /// # Panics
    /// It is none.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.payload) {
            Ok(value) => value,
            Err(error) => fail(&format!("{self:?} is no JSON: {error}")),
        }
    }
}

impl std::fmt::Debug for RawFrame {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = self.payload.get(..200).unwrap_or(&self.payload).escape_ascii();
        let (flags, channel) = (self.flags, self.channel);
        match Kind::from_byte(self.kind) {
            Some(kind) => write!(formatter, "{kind:?}[{flags}]#{channel} {shown}"),
            None => write!(formatter, "{:#04x}[{flags}]#{channel} {shown}", self.kind),
        }
    }
}

/// One side of a TLS connection, and what has come over it.
#[derive(Debug)]
pub struct Link {
    socket: TcpStream,
    tls: rustls::Connection,
    plaintext: Vec<u8>,
    received_bytes: usize,
    end: Option<End>,
}

impl Link {
    /// TLS of any configuration over a socket.
    ///
    /// # Panics
    /// The socket takes no options.
    #[must_use]
    pub fn new(socket: TcpStream, tls: impl Into<rustls::Connection>) -> Self {
        socket.set_nodelay(true).expect("a TCP socket takes the option");
        socket.set_read_timeout(Some(DEADLINE)).expect("a TCP socket takes the option");
        socket.set_write_timeout(Some(DEADLINE)).expect("a TCP socket takes the option");
        let mut tls = tls.into();
        // What is sent is one chunk, whatever rustls would hold by itself.
        tls.set_buffer_limit(None);
        Self { socket, tls, plaintext: Vec::new(), received_bytes: 0, end: None }
    }

    /// The TCP socket.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// How many bytes have come over the socket: what somebody sees who only watches the line.
    #[must_use]
    pub fn received_bytes(&self) -> usize {
        self.received_bytes
    }

    /// The TLS connection.
    #[must_use]
    pub fn tls(&self) -> &rustls::Connection {
        &self.tls
    }

    /// Sends plaintext. False if the peer takes no more.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        bytes
            .chunks(CHUNK_BYTES)
            .all(|chunk| self.tls.writer().write_all(chunk).is_ok() && self.flush())
            && self.flush()
    }

    /// Makes a client's handshake up to its Finished, which leaves with what is sent first, or to
    /// the end that the server puts to it.
    #[track_caller]
    pub fn shake_hands(&mut self) {
        self.flush();
        while self.tls.is_handshaking() && self.end.is_none() {
            self.read();
            if self.tls.is_handshaking() {
                self.flush();
            }
        }
    }

    fn flush(&mut self) -> bool {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut self.socket).is_err() {
                return false;
            }
        }
        true
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub fn finish(&mut self) {
        self.tls.send_close_notify();
        self.flush();
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The next frame, or how the peer's bytes have ended; bytes of a frame that is not whole are
    /// dropped then.
    ///
    /// # Errors
    /// The end.
    ///
    /// # Panics
    /// Nothing comes within the deadline.
    #[track_caller]
    pub fn next_frame(&mut self) -> Result<RawFrame, End> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Ok(frame);
            }
            if let Some(end) = &self.end {
                return Err(end.clone());
            }
            self.read();
        }
    }

    /// Everything until the end.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<RawFrame>, End) {
        let mut frames = Vec::new();
        loop {
            match self.next_frame() {
                Ok(frame) => frames.push(frame),
                Err(end) => return (frames, end),
            }
        }
    }

    /// The next frame of this kind; others before it are passed over.
    ///
    /// # Panics
    /// The bytes end before it.
    #[track_caller]
    pub fn expect(&mut self, kind: Kind) -> RawFrame {
        let mut before = Vec::new();
        loop {
            match self.next_frame() {
                Ok(frame) if frame.is(kind) => return frame,
                Ok(frame) => before.push(frame),
                Err(end) => fail(&format!("{end:?} instead of {kind:?}, after {before:?}")),
            }
        }
    }

    /// The goodbye's code and message; the connection is over after it, in order.
    ///
    /// # Panics
    /// The peer ends otherwise.
    #[track_caller]
    pub fn expect_goodbye(&mut self) -> (String, String) {
        let goodbye = self.expect(Kind::Goodbye).json();
        let (rest, end) = self.rest();
        assert_eq!((rest, end), (Vec::new(), End::Closed), "after {goodbye}");
        let text = |key: &str| goodbye[key].as_str().unwrap_or_default().to_owned();
        (text("code"), text("message"))
    }

    fn take_frame(&mut self) -> Option<RawFrame> {
        let &[kind, flags, _, _, c0, c1, c2, c3, l0, l1, l2, l3] =
            self.plaintext.first_chunk::<12>()?;
        let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).ok()?;
        let payload = self.plaintext.get(12..12 + length)?.to_vec();
        self.plaintext.drain(..12 + length);
        Some(RawFrame { kind, flags, channel: u32::from_be_bytes([c0, c1, c2, c3]), payload })
    }

    #[track_caller]
    fn read(&mut self) {
        let mut buffer = vec![0; CHUNK_BYTES];
        match self.socket.read(&mut buffer) {
            Ok(0) => self.end = Some(End::Cut),
            Ok(count) => {
                self.received_bytes += count;
                self.decrypt(&buffer[..count]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                fail("the peer said nothing for the whole deadline");
            }
            Err(_) => self.end = Some(End::Reset),
        }
    }

    fn decrypt(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.end.is_none() {
            self.tls.read_tls(&mut bytes).expect("reading from memory does not fail");
            match self.tls.process_new_packets() {
                Ok(state) => {
                    let mut plaintext = vec![0; state.plaintext_bytes_to_read()];
                    self.tls.reader().read_exact(&mut plaintext).expect("so many are there");
                    self.plaintext.append(&mut plaintext);
                    if state.peer_has_closed() {
                        self.end = Some(End::Closed);
                    }
                }
                Err(error) => {
                    self.end = Some(End::Tls(error));
                    self.flush();
                }
            }
        }
    }
}

/// A key of a user's.
#[derive(Clone, Debug)]
pub struct Key(Signer);

impl Key {
    /// That of a private key file without a passphrase.
    ///
    /// # Panics
    /// It can't be read.
    #[track_caller]
    #[must_use]
    pub fn of_file(path: &Path) -> Self {
        match identity::load(path) {
            Ok(IdentityFile::Ready(key)) => Self(Signer::File(key)),
            other => fail(&format!("{}: {other:?}", path.display())),
        }
    }

    /// That of a private key file, offered by the certificate that lies beside it.
    ///
    /// # Panics
    /// One of them can't be read.
    #[track_caller]
    #[must_use]
    pub fn certified(path: &Path) -> Self {
        let identity = identity::load(path).expect("the key can be read");
        let blob = std::fs::read(identity::certificate_beside(path)).expect("there is one");
        let (blob, _) = PublicKeyBlob::from_public_line(&blob).expect("it is one line");
        let certificate = Certificate::parse(&blob).expect("it is a certificate");
        match identity.with_certificate(&Arc::new(certificate)) {
            Some(IdentityFile::Ready(key)) => Self(Signer::File(key)),
            other => fail(&format!("{}: {other:?}", path.display())),
        }
    }

    /// One that nobody has seen yet.
    ///
    /// # Panics
    /// There are no random bytes.
    #[must_use]
    pub fn fresh() -> Self {
        Self(Signer::Delegated(DelegatedKey::generate().expect("there are random bytes")))
    }

    /// Its public half in SSH's wire encoding.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        self.0.public_blob()
    }

    /// A signature over a message. A key in memory signs at once.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let mut signing = pin!(self.0.sign(message));
        match signing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(signature)) => signature,
            other => fail(&format!("the key does not sign: {other:?}")),
        }
    }

    /// The signed part of an AUTH by this key.
    #[must_use]
    pub fn request(&self, user: &str) -> AuthRequest {
        AuthRequest {
            user: user.to_owned(),
            algorithm: self.0.algorithm().to_owned(),
            public_key: self.blob().to_vec(),
            delegate: None,
        }
    }

    /// The same, which vouches for another key.
    #[must_use]
    pub fn request_delegating(&self, user: &str, to: &Self, lifetime_s: u32) -> AuthRequest {
        let delegate = Some(Delegate { public_key: to.blob().to_vec(), lifetime_s });
        AuthRequest { delegate, ..self.request(user) }
    }
}

/// A client.
#[derive(Debug)]
pub struct RawClient {
    /// The connection.
    pub link: Link,
    side: ClientSide,
    hello: Vec<u8>,
    server_hello: Vec<u8>,
}

impl RawClient {
    /// Makes TLS and reads the listener's hello. TLS's Finished leaves with what is sent first.
    ///
    /// # Panics
    /// There is no listener of afar's.
    #[track_caller]
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).expect("the listener accepts connections");
        let (tls, side) = tls::connect(&[], |_| Verdict::Accept).expect("TLS can be set up");
        let mut link = Link::new(socket, tls);
        link.shake_hands();
        let first = link.next_frame();
        let Some(hello) = first.as_ref().ok().filter(|frame| frame.is(Kind::Hello)) else {
            fail(&format!("{first:?} instead of the listener's hello"));
        };
        let server_hello = hello.payload.clone();
        let ours = Hello {
            version: 1,
            software: "raw".into(),
            features: Vec::new(),
            host_certificate: None,
        };
        Self { link, side, hello: json::to_vec(&ours), server_hello }
    }

    /// Our hello as a frame.
    #[must_use]
    pub fn hello(&self) -> Vec<u8> {
        control(Kind::Hello, &self.hello)
    }

    /// A hello of other bytes, which are also those that are signed.
    pub fn set_hello(&mut self, payload: &[u8]) {
        payload.clone_into(&mut self.hello);
    }

    /// What the signature of this connection covers.
    ///
    /// # Panics
    /// TLS has no channel binding.
    #[must_use]
    pub fn transcript(&self, signed: &[u8]) -> Vec<u8> {
        let rustls::Connection::Client(tls) = &self.link.tls else {
            fail("a client has a client's connection");
        };
        let established = self.side.established(tls).expect("the handshake is over");
        let transcript = Transcript {
            exporter: established.channel_binding.as_bytes(),
            client_hello: &self.hello,
            server_hello: &self.server_hello,
            host_key: established.host_key.blob(),
            request: signed,
        };
        transcript.to_bytes()
    }

    /// An AUTH frame with a true signature over this request.
    #[must_use]
    pub fn auth_of(&self, key: &Key, request: &AuthRequest) -> Vec<u8> {
        let signed = json::to_vec(request);
        auth_frame(&signed, &key.sign(&self.transcript(&signed)))
    }

    /// An AUTH frame as an honest client would send it.
    #[must_use]
    pub fn auth(&self, key: &Key, user: &str) -> Vec<u8> {
        self.auth_of(key, &key.request(user))
    }

    /// A client that was let in and has exchanged the hellos of the job part.
    ///
    /// # Panics
    /// It is not let in.
    #[track_caller]
    #[must_use]
    pub fn log_in(address: SocketAddr, key: &Key, user: &str) -> Self {
        let mut client = Self::connect(address);
        let flight = [client.hello(), client.auth(key, user), job_hello()].concat();
        client.link.send(&flight);
        client.link.expect(Kind::AuthOk);
        client.link.expect(Kind::JobHello);
        client
    }

    /// Asks for a job with credit for its output.
    pub fn open(&mut self, channel: u32, spec: &OpenSpec) {
        let credit = [window(channel, 1, 1 << 20), window(channel, 2, 1 << 20)].concat();
        self.link.send(&[open(channel, spec), credit].concat());
    }
}

/// Somebody who was let in, and whose job answers: to see that a connection goes on while others
/// are closed.
#[derive(Debug)]
pub struct Witness {
    client: RawClient,
    offset: u64,
}

impl Witness {
    /// Logs in with the host's key and starts a job.
    ///
    /// # Panics
    /// That is refused.
    #[track_caller]
    #[must_use]
    pub fn new(host: &Host) -> Self {
        let key = Key::of_file(&host.key());
        let mut client = RawClient::log_in(host.address(), &key, host.user());
        client.open(1, &OpenSpec { stdin: true, ..spec("witness", &["cat"]) });
        client.link.expect(Kind::Opened);
        Self { client, offset: 0 }
    }

    /// Sends the job something and waits until it has come back.
    ///
    /// # Panics
    /// It does not come back.
    #[track_caller]
    pub fn assert_served(&mut self) {
        let ping = data(1, 0, self.offset, b"ping");
        assert!(self.client.link.send(&ping), "the connection of another is gone");
        self.offset += 4;
        let echo = self.client.link.expect(Kind::Data);
        assert!(echo.payload.ends_with(b"ping"), "{echo:?}");
    }
}
