//! The client's judgement of a host key, as rustls asks for it.

use std::fmt;
use std::sync::OnceLock;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerIncompatible, PeerMisbehaved,
    SignatureScheme,
};

use crate::host_key::HostPublicKey;

/// Whether a host key is the one that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Accept,
    /// End the handshake with an alert.
    Reject,
    /// Go on to the server's hello, which may hold a certificate of the key, and decide then.
    Undecided,
}

/// What there is to decide by, besides the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown<'a> {
    /// The key alone: nothing else is known during the handshake.
    Key,
    /// The certificate in the server's hello, as it came, if there is one. Nothing has been said to
    /// the server by then. To be undecided still is to reject.
    Certificate(Option<&'a [u8]>),
}

/// How a host key is decided about.
type Decide = Box<dyn Fn(&HostPublicKey, Shown<'_>) -> Verdict + Send + Sync>;

/// Verifies one handshake: it remembers the one key that the server proved, and the verdict on it.
pub(super) struct HostKeyVerifier {
    schemes: Vec<SignatureScheme>,
    algorithms: WebPkiSupportedAlgorithms,
    decide: Decide,
    outcome: OnceLock<(HostPublicKey, Verdict)>,
    /// The verdict after the server's hello, where the first was to wait for it.
    late: OnceLock<Verdict>,
}

impl HostKeyVerifier {
    pub(super) fn new(
        schemes: Vec<SignatureScheme>,
        algorithms: WebPkiSupportedAlgorithms,
        decide: Decide,
    ) -> Self {
        Self { schemes, algorithms, decide, outcome: OnceLock::new(), late: OnceLock::new() }
    }

    /// The key whose possession was proved, and what was decided; `None` until then.
    pub(super) fn outcome(&self) -> Option<(&HostPublicKey, Verdict)> {
        let (key, verdict) = self.outcome.get()?;
        match verdict {
            Verdict::Undecided => Some((key, *self.late.get().unwrap_or(verdict))),
            decided => Some((key, *decided)),
        }
    }

    /// Decides by the server's hello, if that is still to be done.
    pub(super) fn decide_by_hello(&self, certificate: Option<&[u8]>) {
        if let Some((key, Verdict::Undecided)) = self.outcome() {
            self.late.get_or_init(|| match (self.decide)(key, Shown::Certificate(certificate)) {
                Verdict::Accept => Verdict::Accept,
                Verdict::Reject | Verdict::Undecided => Verdict::Reject,
            });
        }
    }
}

impl fmt::Debug for HostKeyVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKeyVerifier").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for HostKeyVerifier {
    /// Only whether it is a key at all: who is shown a key to decide on may rely on the server
    /// having it, and that is not known before the signature.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !intermediates.is_empty() || HostPublicKey::from_spki(end_entity).is_err() {
            return Err(CertificateError::BadEncoding.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // The provider knows more schemes than were offered; what was not asked for is not taken.
        if !self.schemes.contains(&dss.scheme) {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
        let valid = verify_tls13_signature_with_raw_key(message, &spki, dss, &self.algorithms)?;
        let key = HostPublicKey::from_spki(cert).map_err(|_| CertificateError::BadEncoding)?;
        let verdict = (self.decide)(&key, Shown::Key);
        // The first verdict stands; a connection has one handshake and so one key.
        let (_, verdict) = self.outcome.get_or_init(|| (key, verdict));
        match verdict {
            Verdict::Accept | Verdict::Undecided => Ok(valid),
            Verdict::Reject => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
