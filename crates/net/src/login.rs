//! The client's way in: TCP, TLS, authentication, and the first job in the same flight.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::time::Duration;

use afar_core::certificate::Certificate;
use afar_proto::Connection;
use afar_proto::auth::{AuthError, Initiator, InitiatorEvent};
use afar_proto::message::{AuthOk, AuthRequest, Delegate, Hello, Transcript};
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::driver::Driver;
use crate::host_key::HostPublicKey;
use crate::identity::LockedKey;
use crate::signer::{DelegatedKey, SignError, Signer};
use crate::tls::{ClientSide, Established, Unsettled};
use crate::transport::{
    AnyTransport, Read, TlsHandshake, TlsTransport, Transport as _, breach_of_tls,
};

/// A key that may be tried, in the order in which it stands.
#[derive(Debug)]
pub enum Candidate {
    /// It can sign now, or after a touch of its device.
    Usable(Signer),
    /// It is encrypted: the server is asked about it, and it is unlocked only if it is wanted.
    Locked(LockedKey),
}

impl Candidate {
    /// The public key, or certificate, in SSH's wire encoding.
    #[must_use]
    pub fn public_blob(&self) -> &[u8] {
        match self {
            Self::Usable(signer) => signer.public_blob(),
            Self::Locked(key) => key.public_blob(),
        }
    }

    /// The certificate that the key is offered by.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        match self {
            Self::Usable(signer) => signer.certificate(),
            Self::Locked(key) => key.certificate(),
        }
    }
}

/// Who wants in, and by which keys.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    /// The user to become.
    pub user: &'a str,
    /// The keys, in the order to be tried.
    pub candidates: &'a [Candidate],
    /// A usable candidate that is used without asking first, because it was accepted before. A
    /// single usable candidate is always used so.
    pub pipeline: Option<usize>,
    /// For how long an ephemeral key is asked for that may stand in for this one (`W-4.9`).
    pub delegate_for: Option<Duration>,
    /// Name and version of the software, told to the server.
    pub software: &'a str,
}

/// The client is in.
#[derive(Debug)]
pub struct LoggedIn {
    /// The connection.
    pub driver: Driver<AnyTransport>,
    /// Which candidate was accepted.
    pub key_index: usize,
    /// The host key that the server proved.
    pub host_key: HostPublicKey,
    /// The ephemeral key, and for how long the server takes it.
    pub delegated: Option<(DelegatedKey, Duration)>,
}

/// A host that was not accepted, and what it has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedHost {
    /// The key that it has proved.
    pub key: HostPublicKey,
    /// The certificate of its hello, unread, where that had a say.
    pub certificate: Option<Vec<u8>>,
}

/// Why the client is not in. The connection is closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// The server's host key was proved, and refused by the caller's rule.
    #[error("the host key was not accepted")]
    HostKeyRejected(Box<RejectedHost>),
    /// The server refused the key. The message is the server's: escape it.
    #[error("the server refused the key")]
    Refused {
        /// What the server said.
        message: String,
        /// The candidate that was tried.
        key_index: usize,
    },
    /// The server accepts none of the candidates.
    #[error("the server accepts none of the keys")]
    NoKeyAccepted,
    /// There was no candidate.
    #[error("there is no key to offer")]
    NoCandidates,
    /// The server accepts this candidate, which has to be unlocked first, with no connection open.
    #[error("the key has to be unlocked first")]
    Locked {
        /// The candidate.
        index: usize,
    },
    /// The key could not sign.
    #[error("{0}")]
    Sign(#[from] SignError),
    /// The peer speaks no TLS that afar speaks, or broke it.
    #[error("TLS: {0}")]
    Tls(String),
    /// The link failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer broke off, or broke the protocol.
    #[error("{0}")]
    Auth(AuthError),
}

/// Time within which a key that asks nobody has signed; until then TLS's Finished waits to leave in
/// one write with the signature.
const SIGNED_AT_ONCE: Duration = Duration::from_millis(500);

/// Makes TLS with the server, authenticates, and sends what `connection` has queued in the same
/// write as TLS's Finished and AUTH, where a key can be used without asking.
///
/// Bounded by the protocol's own deadline of a minute (a hardware key may wait to be touched); put
/// a shorter one around it where nobody is asked. Dropping the future closes the connection.
///
/// # Errors
/// See [`LoginError`]. Nothing that was queued has had an effect then: a listener throws it away
/// undecoded unless it accepts the key (`W-4.7`).
pub async fn login(
    tcp: TcpStream,
    tls: rustls::ClientConnection,
    side: ClientSide,
    login: Login<'_>,
    connection: Connection,
    clock: Clock,
) -> Result<LoggedIn, LoginError> {
    let initiator = Initiator::new(login.software, clock.now());
    let deadline = initiator.poll_timeout().map(|at| clock.to_tokio(at));
    let shaken = with_deadline(deadline, shake_hands(tcp, tls, &side)).await;
    let (transport, unsettled) = shaken.unwrap_or(Err(LoginError::Auth(AuthError::TimedOut)))?;
    let mut attempt = LoginAttempt { transport, initiator, clock };
    let hello = attempt.await_hello().await?;
    // Nothing has been said to the server by now but TLS's ClientHello (`W-4.14`).
    let certificate = hello.host_certificate.map(|bytes| bytes.0);
    let established = match side.settle(unsettled, certificate.as_deref()) {
        Ok(established) => established,
        Err(key) => {
            attempt.leave().await;
            let host = RejectedHost { key: *key, certificate };
            return Err(LoginError::HostKeyRejected(Box::new(host)));
        }
    };
    let key_index = attempt.choose(&login).await?;
    let Some(Candidate::Usable(signer)) = login.candidates.get(key_index) else {
        attempt.leave().await;
        return Err(LoginError::Locked { index: key_index });
    };
    let delegate =
        login.delegate_for.map(|lifetime| DelegatedKey::generate().map(|key| (key, lifetime)));
    let delegate = delegate.transpose()?;
    let signed = attempt.sign(&login, signer, &established, delegate.as_ref()).await;
    let (request, signature) = match signed {
        Ok(signed) => signed,
        Err(error) => {
            attempt.leave().await;
            return Err(error);
        }
    };
    attempt.initiator.authenticate(&request, &signature);
    attempt.buffer_transmit()?;
    let mut driver = Driver::new(attempt.transport, connection, clock);
    let mut initiator = attempt.initiator;
    let ok = await_verdict(&mut driver, &mut initiator, key_index).await?;
    driver.feed(&initiator.into_rest());
    let delegated = delegate.and_then(|(key, _)| {
        ok.delegate_lifetime_s.map(|seconds| (key, Duration::from_secs(seconds.into())))
    });
    let driver = driver.map(|transport| AnyTransport::Tls(Box::new(transport)));
    Ok(LoggedIn { driver, key_index, host_key: established.host_key, delegated })
}

/// Sends the flight and waits for the listener's verdict.
///
/// The job part's bytes flow out already, because the first jobs are pipelined; what comes in goes
/// to the authentication part until that has ended.
async fn await_verdict(
    driver: &mut Driver<TlsTransport>,
    initiator: &mut Initiator,
    key_index: usize,
) -> Result<AuthOk, LoginError> {
    loop {
        if let Some(event) = initiator.poll_event() {
            return match event {
                InitiatorEvent::Accepted(ok) => Ok(ok),
                InitiatorEvent::Refused(message) => Err(LoginError::Refused { message, key_index }),
                InitiatorEvent::Failed(error) => Err(LoginError::Auth(error)),
                InitiatorEvent::ServerHello(_) | InitiatorEvent::QueryResult(_) => continue,
            };
        }
        let clock = driver.clock();
        let deadline = initiator.poll_timeout().map(|at| clock.to_tokio(at));
        let read = poll_fn(|context| {
            driver.poll_send(context);
            // What the authentication part has buffered leaves even if no job is queued.
            let flushed = driver.transport().poll_flush(context);
            if let std::task::Poll::Ready(Err(_)) = flushed {
                // The refusal may still be there to be read.
            }
            driver.transport().poll_read(context, &mut |bytes| initiator.handle_input(bytes))
        });
        match with_deadline(deadline, read).await {
            None => initiator.handle_timeout(clock.now()),
            Some(Ok(Read::Progress)) => {}
            Some(Ok(Read::End)) => initiator.handle_eof(),
            Some(Err(error)) => return Err(tls_or_io(error)),
        }
    }
}

async fn with_deadline<T>(
    deadline: Option<tokio::time::Instant>,
    future: impl Future<Output = T>,
) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

fn tls_or_io(error: io::Error) -> LoginError {
    match breach_of_tls(&error) {
        Some(reason) => LoginError::Tls(reason),
        None => LoginError::Io(error),
    }
}

/// TLS's handshake, up to the point where Finished is ready and not sent.
async fn shake_hands(
    tcp: TcpStream,
    tls: rustls::ClientConnection,
    side: &ClientSide,
) -> Result<(TlsTransport, Unsettled), LoginError> {
    let mut handshake = TlsHandshake::new(tcp, tls);
    while handshake.tls().is_handshaking() {
        // The hello, and again where a retry is wanted; Finished waits for AUTH to leave with it.
        poll_fn(|context| handshake.poll_flush(context)).await?;
        match poll_fn(|context| handshake.poll_read(context)).await {
            Ok(Read::Progress) => {}
            Ok(Read::End) => return Err(LoginError::Auth(AuthError::Cut)),
            Err(error) => {
                // The alert that says why is queued in rustls.
                let _ = poll_fn(|context| handshake.poll_flush(context)).await;
                return Err(match side.rejected_key() {
                    Some(key) => {
                        let host = RejectedHost { key: key.clone(), certificate: None };
                        LoginError::HostKeyRejected(Box::new(host))
                    }
                    None => tls_or_io(error),
                });
            }
        }
    }
    let rustls::Connection::Client(tls) = handshake.tls() else {
        return Err(LoginError::Tls("not a client's connection".to_owned()));
    };
    let unsettled = side.unsettled(tls).map_err(|error| LoginError::Tls(error.to_string()))?;
    let transport = handshake.into_transport(side.traffic_secrets());
    Ok((transport.map_err(|error| LoginError::Tls(error.to_string()))?, unsettled))
}

struct LoginAttempt {
    transport: TlsTransport,
    initiator: Initiator,
    clock: Clock,
}

impl LoginAttempt {
    /// Reads the server's hello, which came with its flight.
    async fn await_hello(&mut self) -> Result<Hello, LoginError> {
        loop {
            self.read_once().await?;
            while let Some(event) = self.initiator.poll_event() {
                match event {
                    InitiatorEvent::ServerHello(hello) => return Ok(hello),
                    InitiatorEvent::Failed(error) => return Err(LoginError::Auth(error)),
                    _ => {}
                }
            }
        }
    }

    async fn read_once(&mut self) -> Result<(), LoginError> {
        let deadline = self.initiator.poll_timeout().map(|at| self.clock.to_tokio(at));
        let Self { transport, initiator, .. } = self;
        let read = poll_fn(|context| {
            transport.poll_read(context, &mut |bytes| initiator.handle_input(bytes))
        });
        match with_deadline(deadline, read).await {
            None => initiator.handle_timeout(self.clock.now()),
            Some(Ok(Read::Progress)) => {}
            Some(Ok(Read::End)) => initiator.handle_eof(),
            Some(Err(error)) => return Err(tls_or_io(error)),
        }
        Ok(())
    }

    /// Which key to use: the pipelined one, the only one, or the first that the server accepts.
    async fn choose(&mut self, login: &Login<'_>) -> Result<usize, LoginError> {
        if login.candidates.is_empty() {
            self.leave().await;
            return Err(LoginError::NoCandidates);
        }
        let usable =
            |index: &usize| matches!(login.candidates.get(*index), Some(Candidate::Usable(_)));
        let only = (login.candidates.len() == 1).then_some(0);
        if let Some(index) = login.pipeline.or(only).filter(usable) {
            return Ok(index);
        }
        let mut asked = 0;
        while let Some(keys) = login.candidates.get(asked..).filter(|keys| !keys.is_empty()) {
            let blobs = keys.iter().map(|key| key.public_blob().to_vec());
            // Fewer than all where they don't fit one frame; none after the last query that the
            // listener answers, and then there is nothing to wait for.
            let count = self.initiator.query(login.user, blobs);
            if count == 0 {
                break;
            }
            self.buffer_transmit()?;
            poll_fn(|context| self.transport.poll_flush(context)).await?;
            if let Some(index) = self.query_result().await? {
                return Ok(asked + index as usize);
            }
            asked += count;
        }
        self.leave().await;
        Err(LoginError::NoKeyAccepted)
    }

    async fn query_result(&mut self) -> Result<Option<u32>, LoginError> {
        loop {
            match self.initiator.poll_event() {
                Some(InitiatorEvent::QueryResult(index)) => return Ok(index),
                Some(InitiatorEvent::Failed(error)) => return Err(LoginError::Auth(error)),
                Some(_) => {}
                None => self.read_once().await?,
            }
        }
    }

    async fn sign(
        &mut self,
        login: &Login<'_>,
        signer: &Signer,
        established: &Established,
        delegate: Option<&(DelegatedKey, Duration)>,
    ) -> Result<(Vec<u8>, Vec<u8>), LoginError> {
        let request = Initiator::request_bytes(&AuthRequest {
            user: login.user.to_owned(),
            algorithm: signer.algorithm().to_owned(),
            public_key: signer.public_blob().to_vec(),
            delegate: delegate.map(|(key, lifetime)| Delegate {
                public_key: key.public_blob().to_vec(),
                lifetime_s: u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX),
            }),
        });
        let (client_hello, server_hello) = self.initiator.hellos();
        let transcript = Transcript {
            exporter: established.channel_binding.as_bytes(),
            client_hello,
            server_hello,
            host_key: established.host_key.blob(),
            request: &request,
        };
        let message = transcript.to_bytes();
        let mut signing = pin!(signer.sign(&message));
        if let Ok(signature) = tokio::time::timeout(SIGNED_AT_ONCE, signing.as_mut()).await {
            return Ok((request, signature?));
        }
        // Somebody has to touch a key, or to say yes. The server, which allows less time for TLS
        // than for that, is told meanwhile that TLS is over.
        self.buffer_transmit()?;
        poll_fn(|context| self.transport.poll_flush(context)).await?;
        let signature = signing.await?;
        Ok((request, signature))
    }

    fn buffer_transmit(&mut self) -> io::Result<()> {
        let bytes = self.initiator.take_transmit();
        self.transport.buffer(&bytes)
    }

    /// Goes away in order, so that the listener logs no cut.
    async fn leave(&mut self) {
        let finished = poll_fn(|context| self.transport.poll_finish(context));
        let _ = tokio::time::timeout(Duration::from_secs(1), finished).await;
    }
}
