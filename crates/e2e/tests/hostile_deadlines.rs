//! Peers that say nothing, or as little as they can for as long as they can. In this process, with
//! real sockets and simulated time: no deadline is waited for.
#![cfg(test)]

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use afar_net::accept::{AcceptError, Accepted, Admitted, Denied, Gatekeeper, ProvedLogin, accept};
use afar_net::agent::Agent;
use afar_net::clock::Clock;
use afar_net::host_key::{HostKey, HostKeys};
use afar_net::limits::TLS_DEADLINE;
use afar_net::login::{Candidate, Login, LoginError, login};
use afar_net::signer::{DelegatedKey, Signer};
use afar_net::tls::{self, ChannelBinding, Established, TlsServer, Verdict};
use afar_net::transport::{Read, TlsHandshake, TlsTransport, Transport as _};
use afar_proto::auth::{AuthError, Initiator, InitiatorEvent};
use afar_proto::frame::{Frame, FrameReader, Kind, Phase};
use afar_proto::json;
use afar_proto::limits::{AUTH_DEADLINE, REFUSAL_DELAY};
use afar_proto::message::{AuthRequest, Hello, Transcript};
use afar_proto::{Config, Connection, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// Simulated time passes in such steps.
const STEP: Duration = Duration::from_millis(10);

/// How often everything that can go on does so before time passes.
const TURNS_A_STEP: u32 = 8;

/// How much later than it is due something may be seen. Who is told why it is closed may listen for
/// a second.
const SLACK: Duration = Duration::from_millis(1100);

/// Lets time pass, for ever, and no faster than the kernel carries bytes. The runtime is never idle
/// meanwhile, and so never skips to its next timer by itself, which it would do although bytes are
/// under way.
async fn pass_time() {
    let mut tracer = Tracer::new();
    loop {
        for _ in 0..TURNS_A_STEP {
            tokio::task::yield_now().await;
        }
        tracer.run();
        tokio::time::advance(STEP).await;
    }
}

/// A byte that goes over loopback behind all others: when it has arrived, they have.
struct Tracer {
    from: std::net::TcpStream,
    to: std::net::TcpStream,
}

impl Tracer {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let from = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        from.set_nodelay(true).unwrap();
        Self { from, to: listener.accept().unwrap().0 }
    }

    fn run(&mut self) {
        self.from.write_all(b"x").unwrap();
        self.to.read_exact(&mut [0]).unwrap();
    }
}

/// Lets nobody in.
struct Nobody;

impl Gatekeeper for Nobody {
    type Grant = ();

    async fn first_accepted(&self, _: &str, _: &[&[u8]], _: SocketAddr) -> Result<usize, Denied> {
        Err(Denied::Refused)
    }

    async fn admit(&self, _: &ProvedLogin<'_>) -> Result<Admitted<()>, Denied> {
        Err(Denied::Refused)
    }
}

/// Serves one connection of a client that does this; how long that took, and how it ended.
async fn serve<F>(client: impl FnOnce(TcpStream) -> F) -> (Duration, AcceptError)
where
    F: Future<Output = ()>,
{
    let keys = HostKeys::new(vec![HostKey::generate().unwrap()]).unwrap();
    let server = TlsServer::new(&keys).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let connecting = TcpStream::connect(address);
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    let ((socket, source), connected) = (accepted.unwrap(), connected.unwrap());
    // As both ends do: waiting for acknowledgements would take real time.
    for end in [&socket, &connected] {
        end.set_nodelay(true).unwrap();
    }
    let started = Instant::now();
    let serving = async {
        let ended = Box::pin(accept(socket, source, &server, &Nobody, Clock::new())).await;
        (started.elapsed(), ended)
    };
    let both = async { tokio::join!(client(connected), serving) };
    let (_, (elapsed, ended)) = tokio::select! {
        ended = both => ended,
        () = pass_time() => unreachable!("time passes for ever"),
    };
    match ended {
        Err(error) => (elapsed, error),
        Ok(Accepted { .. }) => panic!("nobody is let in"),
    }
}

#[track_caller]
fn assert_about(elapsed: Duration, deadline: Duration) {
    assert!(elapsed >= deadline && elapsed <= deadline + SLACK, "{elapsed:?}, not {deadline:?}");
}

/// Holds a connection open until its other end has closed it.
async fn hold(socket: &TcpStream) {
    loop {
        socket.readable().await.unwrap();
        match socket.try_read(&mut [0; 4096]) {
            Ok(0) => return,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

fn client_hello() -> Vec<u8> {
    let (mut tls, _) = tls::connect(&[], |_| Verdict::Accept).unwrap();
    let mut bytes = Vec::new();
    tls.write_tls(&mut bytes).unwrap();
    bytes
}

/// A client whose handshake is over.
struct Client {
    transport: TlsTransport,
    established: Established,
    plaintext: Vec<u8>,
    ended: bool,
}

impl Client {
    async fn connect(socket: TcpStream) -> Self {
        let (tls, side) = tls::connect(&[], |_| Verdict::Accept).unwrap();
        let mut handshake = TlsHandshake::new(socket, tls);
        while handshake.tls().is_handshaking() {
            poll_fn(|context| handshake.poll_flush(context)).await.unwrap();
            let read = poll_fn(|context| handshake.poll_read(context)).await.unwrap();
            assert_eq!(read, Read::Progress, "the server ends the handshake");
        }
        let rustls::Connection::Client(tls) = handshake.tls() else { panic!("a client") };
        let established = side.established(tls).unwrap();
        let transport = handshake.into_transport(side.traffic_secrets()).unwrap();
        let mut client = Self { transport, established, plaintext: Vec::new(), ended: false };
        client.flush().await;
        client
    }

    async fn flush(&mut self) {
        let flushed = poll_fn(|context| self.transport.poll_flush(context)).await;
        // A server that has closed takes no more.
        self.ended |= flushed.is_err();
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.transport.buffer(bytes).unwrap();
        self.flush().await;
    }

    async fn read(&mut self) {
        let Self { transport, plaintext, .. } = self;
        let mut sink = |bytes: &[u8]| plaintext.extend_from_slice(bytes);
        let read = poll_fn(|context| transport.poll_read(context, &mut sink)).await;
        self.ended |= !matches!(read, Ok(Read::Progress));
    }

    /// What the server says until its end.
    async fn rest(mut self) -> Vec<Frame> {
        while !self.ended {
            self.read().await;
        }
        let mut reader = FrameReader::new(Phase::Preauth);
        reader.push(&self.plaintext);
        std::iter::from_fn(|| reader.next_frame().unwrap()).collect()
    }

    fn binding(&mut self) -> (ChannelBinding, Vec<u8>) {
        let Established { channel_binding, host_key } = self.established.clone();
        (channel_binding, host_key.blob().to_vec())
    }
}

fn kinds(frames: &[Frame]) -> Vec<Kind> {
    frames.iter().map(|frame| frame.kind).collect()
}

#[tokio::test(start_paused = true)]
async fn fault_06_a_silent_connection_is_closed_at_the_deadline() {
    let (elapsed, error) = serve(|socket| async move { hold(&socket).await }).await;
    // W-9.24
    assert_about(elapsed, TLS_DEADLINE);
    assert!(matches!(error, AcceptError::Tls(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn fault_07_half_a_client_hello_is_closed_at_the_deadline() {
    let (elapsed, error) = serve(|mut socket| async move {
        let hello = client_hello();
        socket.write_all(&hello[..hello.len() / 2]).await.unwrap();
        hold(&socket).await;
    })
    .await;
    assert_about(elapsed, TLS_DEADLINE);
    assert!(matches!(error, AcceptError::Tls(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn fault_05_no_byte_moves_the_deadline_of_the_handshake() {
    let (elapsed, error) = serve(|mut socket| async move {
        for byte in client_hello() {
            // tidy: in simulated time.
            tokio::time::sleep(Duration::from_millis(300)).await;
            if socket.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    })
    .await;
    assert_about(elapsed, TLS_DEADLINE);
    assert!(matches!(error, AcceptError::Tls(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn fault_06_silence_after_the_handshake_is_closed_at_the_deadline_with_a_reason() {
    let (elapsed, error) = serve(|socket| async move {
        let frames = Client::connect(socket).await.rest().await;
        assert_eq!(kinds(&frames), [Kind::Hello, Kind::Goodbye]);
        let goodbye: serde_json::Value = serde_json::from_slice(&frames[1].payload).unwrap();
        assert_eq!(goodbye["code"], "timeout");
    })
    .await;
    assert_about(elapsed, AUTH_DEADLINE);
    assert!(matches!(error, AcceptError::Auth(AuthError::TimedOut)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn fault_05_no_byte_moves_the_deadline_of_the_login() {
    let (elapsed, error) = serve(|socket| async move {
        let mut client = Client::connect(socket).await;
        let hello = Hello {
            version: 1,
            software: "slow".into(),
            features: Vec::new(),
            host_certificate: None,
        };
        for byte in Frame::control(Kind::Hello, json::to_vec(&hello)).to_bytes() {
            // tidy: in simulated time.
            tokio::time::sleep(Duration::from_secs(4)).await;
            if client.ended {
                break;
            }
            client.send(&[byte]).await;
        }
        client.rest().await;
    })
    .await;
    assert_about(elapsed, AUTH_DEADLINE);
    assert!(matches!(error, AcceptError::Auth(AuthError::TimedOut)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_that_stays_is_closed_at_the_deadline() {
    let (elapsed, error) = serve(|socket| async move {
        // Nothing more is sent, and the client's side does not end before the server's has.
        let _client = refused_after(socket, Duration::ZERO).await;
        // tidy: in simulated time.
        tokio::time::sleep(AUTH_DEADLINE * 2).await;
    })
    .await;
    assert_about(elapsed, AUTH_DEADLINE);
    assert!(matches!(error, AcceptError::BadSignature { .. }), "{error}");
}

/// Attempts to log in after a pause, and reads the refusal, which comes when it is due.
async fn refused_after(socket: TcpStream, pause: Duration) -> Client {
    let mut client = Client::connect(socket).await;
    let signer = Signer::Delegated(DelegatedKey::generate().unwrap());
    let mut initiator = Initiator::new("test", afar_proto::Instant::ZERO);
    while !client.plaintext.ends_with(b"}") {
        client.read().await;
        assert!(!client.ended, "the server ends before its hello");
    }
    initiator.handle_input(&std::mem::take(&mut client.plaintext));
    assert!(matches!(initiator.poll_event(), Some(InitiatorEvent::ServerHello(_))));
    let request = Initiator::request_bytes(&AuthRequest {
        user: "ann".into(),
        algorithm: signer.algorithm().into(),
        public_key: signer.public_blob().to_vec(),
        delegate: None,
    });
    let (binding, host_key) = client.binding();
    let (client_hello, server_hello) = initiator.hellos();
    let transcript = Transcript {
        exporter: binding.as_bytes(),
        client_hello,
        server_hello,
        host_key: &host_key,
        request: &request,
    };
    let mut signature = signer.sign(&transcript.to_bytes()).await.unwrap();
    *signature.last_mut().unwrap() ^= 1;
    initiator.authenticate(&request, &signature);
    // tidy: in simulated time.
    tokio::time::sleep(pause).await;
    let sent = Instant::now();
    client.send(&initiator.take_transmit()).await;
    while client.plaintext.is_empty() {
        client.read().await;
        assert!(!client.ended, "the server ends without a refusal");
    }
    assert_about(sent.elapsed(), REFUSAL_DELAY);
    client
}

#[tokio::test(start_paused = true)]
async fn fault_75_a_refusal_is_as_late_for_a_client_that_took_its_time() {
    for pause in [Duration::ZERO, REFUSAL_DELAY / 2, REFUSAL_DELAY * 2, AUTH_DEADLINE / 2] {
        let (_, error) = serve(|socket| async move {
            drop(refused_after(socket, pause).await);
        })
        .await;
        assert!(matches!(error, AcceptError::BadSignature { .. }), "{error}");
    }
}

/// An agent with one key, which refuses to sign with it after some thought.
async fn serve_agent(listener: tokio::net::UnixListener, blob: Vec<u8>, thought: Duration) {
    let string = |bytes: &[u8]| {
        [u32::try_from(bytes.len()).unwrap().to_be_bytes().as_slice(), bytes].concat()
    };
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut length = [0; 4];
        while stream.read_exact(&mut length).await.is_ok() {
            let mut request = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
            stream.read_exact(&mut request).await.unwrap();
            // SSH_AGENTC_REQUEST_IDENTITIES and its answer; SSH_AGENT_FAILURE to all else.
            let answer = if request == [11] {
                [&[12, 0, 0, 0, 1], string(&blob).as_slice(), &string(b"key")].concat()
            } else {
                // tidy: in simulated time.
                tokio::time::sleep(thought).await;
                vec![5]
            };
            stream.write_all(&string(&answer)).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_waits_to_be_touched_has_longer_than_tls_has() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let blob = DelegatedKey::generate().unwrap().public_blob().to_vec();
    let thought = TLS_DEADLINE * 2;
    tokio::spawn(serve_agent(listener, blob, thought));
    let (elapsed, error) = serve(|socket| async move {
        let agent = Agent::new(&path).with_timeouts(AUTH_DEADLINE, AUTH_DEADLINE);
        let key = agent.identities().await.unwrap().keys.remove(0);
        let candidates = [Candidate::Usable(Signer::Agent(key))];
        let (tls, side) = tls::connect(&[], |_| Verdict::Accept).unwrap();
        let how = Login {
            user: "ann",
            candidates: &candidates,
            pipeline: None,
            delegate_for: None,
            software: "test",
        };
        let clock = Clock::new();
        let connection = Connection::new(Role::Client, Config::default(), clock.now());
        let result = Box::pin(login(socket, tls, side, how, connection, clock)).await;
        assert!(matches!(result, Err(LoginError::Sign(_))), "{result:?}");
    })
    .await;
    assert!(elapsed >= thought, "{elapsed:?}");
    assert!(matches!(error, AcceptError::Auth(AuthError::Cut)), "{error}");
}
