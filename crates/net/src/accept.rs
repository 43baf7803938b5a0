//! The listener's way in: TLS, authentication, and what the client has sent behind it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;

use afar_proto::auth::{Attempt, AuthError, Responder, ResponderEvent};
use afar_proto::message::{AuthOk, AuthQuery, Transcript};
use bytes::Bytes;
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::limits::{GOODBYE_TIMEOUT, TLS_DEADLINE};
use crate::sshsig::{self, VerifiedKey};
use crate::tls::{Established, ServerSide, TlsServer};
use crate::transport::{Read, TlsHandshake, TlsTransport, Transport as _, breach_of_tls};

/// What the listener calls itself in its hello.
const SOFTWARE: &str = concat!("afar/", env!("CARGO_PKG_VERSION"));

/// Decides who may come in. Its futures run on the listener's thread with all other connections, so
/// what blocks, such as a user's home on a server that does not answer, is for another thread.
pub trait Gatekeeper: Sync {
    /// What an accepted login yields.
    type Grant: Send;

    /// The index of the first of `keys` that would be accepted for `user` now. Asked by peers who
    /// have proved nothing, so all keys together should cost about what one does.
    ///
    /// # Errors
    /// There is none, or it could not be found out.
    fn first_accepted(
        &self,
        user: &str,
        keys: &[&[u8]],
        source: SocketAddr,
    ) -> impl Future<Output = Result<usize, Denied>> + Send;

    /// What `key`, whose possession was proved, is granted for `user`.
    ///
    /// # Errors
    /// Nothing is, or it could not be found out.
    fn admit(
        &self,
        login: &ProvedLogin<'_>,
    ) -> impl Future<Output = Result<Admitted<Self::Grant>, Denied>> + Send;
}

/// Why nobody is let in. The client is told the same either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// By the rules: the key is not accepted.
    Refused,
    /// What decides could not be had in time. That is no fault of the client's.
    Unjudged,
}

/// A login whose signature was verified.
#[derive(Debug)]
pub struct ProvedLogin<'a> {
    /// The user to become.
    pub user: &'a str,
    /// The key, proved.
    pub key: &'a VerifiedKey,
    /// Where the client connects from.
    pub source: SocketAddr,
    /// An ephemeral key that is to stand in for this one, and for how many seconds it is wanted.
    pub delegate: Option<(&'a [u8], u32)>,
}

/// An accepted login.
#[derive(Debug)]
pub struct Admitted<G> {
    /// What it may do.
    pub grant: G,
    /// For how many seconds the ephemeral key is taken, if one was asked for and is.
    pub delegate_lifetime_s: Option<u32>,
}

/// A client that is in.
#[derive(Debug)]
pub struct Accepted<G> {
    /// The connection; AUTH_OK is buffered and leaves with the next flush.
    pub transport: TlsTransport,
    /// What it may do.
    pub grant: G,
    /// What the client has sent behind its AUTH, unread: the supervisor's.
    pub rest: Bytes,
}

/// Why a client is not in, for the log. The client has been told what it may know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// It speaks no TLS that afar speaks, broke it, or took too long over it.
    #[error("TLS: {0}")]
    Tls(String),
    /// The link failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It broke off, took too long, or broke the protocol.
    #[error("{0}")]
    Auth(AuthError),
    /// The signature is not of this connection, or not by this key.
    #[error("the signature of {user:?} does not verify: {reason}")]
    BadSignature {
        /// The user that was wanted.
        user: String,
        /// What is wrong with it.
        reason: String,
    },
    /// None of the keys that it asked about is accepted for this user, and it went away.
    #[error("{user:?} was asked for, with no key that is accepted")]
    NoKeyAccepted {
        /// The user that was wanted.
        user: String,
    },
    /// What decides about the user's keys could not be had in time. The gatekeeper has logged why.
    #[error("whether {user:?} may come in could not be found out")]
    Unjudged {
        /// The user that was wanted.
        user: String,
    },
    /// The key is not accepted for this user. The gatekeeper has logged why.
    #[error("{user:?} was refused with the key {fingerprint}")]
    Refused {
        /// The user that was wanted.
        user: String,
        /// The key's fingerprint.
        fingerprint: String,
    },
}

/// Makes TLS with a client and authenticates it.
///
/// Every step has a deadline; dropping the future closes the connection. A refusal is delivered
/// before this returns, or its time is over (`W-4.7`).
///
/// # Errors
/// See [`AcceptError`]; the connection is closed.
pub async fn accept<G: Gatekeeper>(
    socket: TcpStream,
    source: SocketAddr,
    tls: &TlsServer,
    gatekeeper: &G,
    clock: Clock,
) -> Result<Accepted<G::Grant>, AcceptError> {
    let broken = |error: &dyn std::error::Error| AcceptError::Tls(error.to_string());
    let (connection, side) = tls.accept().map_err(|error| broken(&error))?;
    let mut handshake = TlsHandshake::new(socket, connection);
    let mut responder = Responder::new(SOFTWARE, clock.now());
    let deadline = tokio::time::Instant::now() + TLS_DEADLINE;
    tokio::time::timeout_at(deadline, shake_hands(&mut handshake, &mut responder, &side))
        .await
        .map_err(|_| AcceptError::Tls("the handshake took too long".to_owned()))??;
    let established = match handshake.tls() {
        rustls::Connection::Server(tls) => side.established(tls).map_err(|error| broken(&error))?,
        rustls::Connection::Client(_) => return Err(AcceptError::Tls("not a server".to_owned())),
    };
    let transport =
        handshake.into_transport(side.traffic_secrets()).map_err(|error| broken(&error))?;
    let entrance = Entrance { transport, responder, source, clock, refusal: None };
    entrance.authenticate(&established, gatekeeper).await
}

/// TLS's handshake. The listener's hello leaves with its first flight (`W-4.2`).
async fn shake_hands(
    handshake: &mut TlsHandshake,
    responder: &mut Responder,
    side: &ServerSide,
) -> Result<(), AcceptError> {
    let mut greeted = false;
    while handshake.tls().is_handshaking() {
        match poll_fn(|context| handshake.poll_read(context)).await {
            Ok(Read::Progress) => {}
            Ok(Read::End) => return Err(AcceptError::Tls("cut during the handshake".to_owned())),
            Err(error) => {
                // The alert that says why is queued in rustls.
                let flushed = poll_fn(|context| handshake.poll_flush(context));
                let _ = tokio::time::timeout(GOODBYE_TIMEOUT, flushed).await;
                return Err(tls_or_io(error));
            }
        }
        // Half-RTT data can be written once the client's hello is in and keys exist; before that,
        // rustls would keep it as plaintext and send it after the handshake.
        if !greeted && handshake.tls().wants_write() {
            greeted = true;
            if let Some(certificate) = side.host_certificate() {
                responder.present_host_certificate(SOFTWARE, certificate);
            }
            handshake.buffer(&responder.take_transmit())?;
        }
        poll_fn(|context| handshake.poll_flush(context)).await?;
    }
    Ok(())
}

fn tls_or_io(error: io::Error) -> AcceptError {
    match breach_of_tls(&error) {
        Some(reason) => AcceptError::Tls(reason),
        None => AcceptError::Io(error),
    }
}

struct Entrance {
    transport: TlsTransport,
    responder: Responder,
    source: SocketAddr,
    clock: Clock,
    /// Why the client is being refused, once it is.
    refusal: Option<AcceptError>,
}

impl Entrance {
    async fn authenticate<G: Gatekeeper>(
        mut self,
        established: &Established,
        gatekeeper: &G,
    ) -> Result<Accepted<G::Grant>, AcceptError> {
        loop {
            self.buffer_transmit()?;
            match self.responder.poll_event() {
                Some(ResponderEvent::Query(query)) => {
                    let accepted = self.answer(&query, gatekeeper).await;
                    self.refusal = match accepted {
                        Ok(_) => None,
                        Err(Denied::Refused) => {
                            Some(AcceptError::NoKeyAccepted { user: query.user })
                        }
                        Err(Denied::Unjudged) => Some(AcceptError::Unjudged { user: query.user }),
                    };
                    self.responder.answer_query(self.clock.now(), accepted.ok());
                }
                Some(ResponderEvent::Attempt(attempt)) => {
                    match self.judge(&attempt, established, gatekeeper).await {
                        Ok(admitted) => return self.let_in(admitted),
                        Err(refusal) => {
                            self.refusal = Some(refusal);
                            self.responder.refuse(self.clock.now());
                        }
                    }
                }
                Some(ResponderEvent::RefusalDelivered) => {
                    return Err(self.refusal.take().unwrap_or(AcceptError::Auth(AuthError::Cut)));
                }
                Some(ResponderEvent::Failed(error)) => {
                    self.buffer_transmit()?;
                    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.say_goodbye()).await;
                    return Err(match (error, self.refusal.take()) {
                        // It has its answer, and need say nothing more.
                        (AuthError::Cut | AuthError::PeerClosed(_), Some(refusal)) => refusal,
                        (error, _) => AcceptError::Auth(error),
                    });
                }
                None => {
                    if let Err(error) = self.step().await {
                        // A client that hangs up on its refusal was refused all the same.
                        return Err(self.refusal.take().unwrap_or(error));
                    }
                }
            }
        }
    }

    /// Sends the goodbye and reads to the client's end, lest a reset overtake it: closing with
    /// unread bytes resets the connection.
    async fn say_goodbye(&mut self) -> io::Result<()> {
        poll_fn(|context| self.transport.poll_finish(context)).await?;
        while poll_fn(|context| self.transport.poll_read(context, &mut |_| {})).await? != Read::End
        {
        }
        Ok(())
    }

    /// Sends what there is, then waits for the client's bytes, where they are wanted, or the time.
    async fn step(&mut self) -> Result<(), AcceptError> {
        let deadline = self.responder.poll_timeout().map(|at| self.clock.to_tokio(at));
        let Some(deadline) = deadline else { return self.send_and_read().await };
        match tokio::time::timeout_at(deadline, self.send_and_read()).await {
            Ok(done) => done,
            Err(_) => {
                self.responder.handle_timeout(self.clock.now());
                Ok(())
            }
        }
    }

    async fn send_and_read(&mut self) -> Result<(), AcceptError> {
        if self.responder.is_refused() {
            // The refusal has left for rustls; the client reads to the end of our side, and we
            // read to the end of its side before closing, lest a reset overtake the refusal.
            poll_fn(|context| self.transport.poll_finish(context)).await?;
        } else {
            self.flush().await?;
        }
        if self.responder.wants_input() {
            self.read_once().await
        } else {
            std::future::pending().await
        }
    }

    async fn answer<G: Gatekeeper>(
        &self,
        query: &AuthQuery,
        gatekeeper: &G,
    ) -> Result<u32, Denied> {
        let keys: Vec<&[u8]> = query.keys.iter().map(|key| key.0.as_slice()).collect();
        let found = gatekeeper.first_accepted(&query.user, &keys, self.source).await?;
        u32::try_from(found).map_err(|_| Denied::Refused)
    }

    /// Verifies the signature over exactly the bytes that were sent, then asks the gatekeeper.
    async fn judge<G: Gatekeeper>(
        &self,
        attempt: &Attempt,
        established: &Established,
        gatekeeper: &G,
    ) -> Result<Admitted<G::Grant>, AcceptError> {
        let request = &attempt.request;
        let bad_signature =
            |reason: String| AcceptError::BadSignature { user: request.user.clone(), reason };
        let (client_hello, server_hello) = self.responder.hellos();
        let transcript = Transcript {
            exporter: established.channel_binding.as_bytes(),
            client_hello,
            server_hello,
            host_key: established.host_key.blob(),
            request: &attempt.signed_request,
        };
        let key = sshsig::verify(&request.public_key, &attempt.signature, &transcript.to_bytes())
            .map_err(|error| bad_signature(error.to_string()))?;
        if key.algorithm() != request.algorithm {
            return Err(bad_signature("another algorithm than was stated".to_owned()));
        }
        let delegate = request.delegate.as_ref();
        let login = ProvedLogin {
            user: &request.user,
            key: &key,
            source: self.source,
            delegate: delegate.map(|d| (d.public_key.as_slice(), d.lifetime_s)),
        };
        gatekeeper.admit(&login).await.map_err(|denied| {
            let user = request.user.clone();
            match denied {
                Denied::Refused => AcceptError::Refused { user, fingerprint: key.fingerprint() },
                Denied::Unjudged => AcceptError::Unjudged { user },
            }
        })
    }

    fn let_in<G>(mut self, admitted: Admitted<G>) -> Result<Accepted<G>, AcceptError> {
        let Admitted { grant, delegate_lifetime_s } = admitted;
        self.responder.accept(&AuthOk { delegate_lifetime_s });
        self.buffer_transmit()?;
        Ok(Accepted { transport: self.transport, grant, rest: self.responder.into_rest() })
    }

    async fn read_once(&mut self) -> Result<(), AcceptError> {
        let Self { transport, responder, clock, .. } = self;
        let read = poll_fn(|context| {
            // The time of arrival, not that at which the wait began: the delay of a refusal counts
            // from here, and would be over already for a client that took its time.
            let mut sink = |bytes: &[u8]| responder.handle_input(clock.now(), bytes);
            transport.poll_read(context, &mut sink)
        });
        match read.await {
            Ok(Read::Progress) => Ok(()),
            Ok(Read::End) => {
                self.responder.handle_eof();
                Ok(())
            }
            Err(error) => {
                // The alert that says why is queued.
                let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.flush()).await;
                Err(tls_or_io(error))
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|context| self.transport.poll_flush(context)).await
    }

    fn buffer_transmit(&mut self) -> io::Result<()> {
        let bytes = self.responder.take_transmit();
        self.transport.buffer(&bytes)
    }
}
