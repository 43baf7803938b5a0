//! TLS as afar uses it: version 1.3 only, host keys as raw public keys, nothing resumed.
//!
//! Both ends get a rustls connection to drive themselves, and beside it a handle on what the
//! handshake establishes. The handle exists because two things must never be forgotten on the
//! way from "the handshake is over" to "the peer is who we think": that the protocol was agreed
//! on, and which key it was that the server proved. Only `established` gives the channel binding
//! that the user's signature needs, and it checks both.

mod verifier;

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, CommonState, ConnectionCommon, ProtocolVersion, ServerConfig,
    ServerConnection, SignatureScheme,
};
use zeroize::Zeroizing;

use crate::host_key::{HostKeys, HostPublicKey};
use crate::public_key::KeyKind;

use verifier::HostKeyVerifier;
pub use verifier::{Shown, Verdict};

/// The name of afar's protocol in ALPN (RFC 7301).
pub const ALPN: &[u8] = b"afar/1";

/// The label of the exporter for channel bindings (RFC 9266 section 2).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// The TLS library refused a configuration. Either a fault of ours, or a host key it cannot use.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct TlsSetupError(#[from] rustls::Error);

/// Why a connection is not, or not yet, one that may be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotEstablished {
    /// The handshake is still going on.
    #[error("the TLS handshake is not complete")]
    Handshaking,
    /// The peer speaks TLS but not afar.
    #[error("the peer did not agree to speak afar")]
    OtherProtocol,
    /// The TLS library has no key or no keying material for a connection that it calls complete.
    #[error("the TLS library has no channel binding")]
    NoBinding,
}

/// 32 bytes that both ends of this very connection know and nobody else (RFC 9266): what ties a
/// user's signature to it. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelBinding([u8; 32]);

impl ChannelBinding {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for ChannelBinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChannelBinding(..)")
    }
}

/// What a complete handshake has established.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    /// The key that the server proved.
    pub host_key: HostPublicKey,
    /// What the user's signature is bound to.
    pub channel_binding: ChannelBinding,
}

/// What a handshake has established but for the verdict on the host's key; of no use without it.
#[derive(Debug)]
pub struct Unsettled(Established);

/// The server's side of TLS, made once a listener and used for each connection.
#[derive(Debug)]
pub struct TlsServer {
    config: ServerConfig,
    keys: Arc<[ServerKey]>,
}

impl TlsServer {
    /// Takes the host keys to serve with.
    ///
    /// # Errors
    /// [`TlsSetupError`] where the library refuses its own algorithms, which is a fault of ours.
    pub fn new(keys: &HostKeys) -> Result<Self, TlsSetupError> {
        let keys: Arc<[ServerKey]> = keys
            .iter()
            .map(|key| {
                let spki = CertificateDer::from(key.public().spki().to_vec());
                let certified = CertifiedKey::new(vec![spki], Arc::clone(key.signing()));
                let certificate = key.certificate().map(|one| one.blob().as_bytes().into());
                ServerKey {
                    public: key.public().clone(),
                    certified: Arc::new(certified),
                    certificate,
                }
            })
            .collect();
        let resolver = Resolver { keys: Arc::clone(&keys), chosen: Chosen::default() };
        let mut config = ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // The hello goes out with the server's first flight, half a round trip early. It is only
        // bound to a live client once the client's signature over it has been verified.
        config.send_half_rtt_data = true;
        // A full handshake costs half a millisecond; a resumed one would skip the host key.
        config.send_tls13_tickets = 0;
        config.max_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        config.enable_secret_extraction = true;
        Ok(Self { config, keys })
    }

    /// A new connection, about to read its ClientHello.
    ///
    /// # Errors
    /// [`TlsSetupError`], never for a reason that lies with the peer.
    pub fn accept(&self) -> Result<(ServerConnection, ServerSide), TlsSetupError> {
        let chosen = Chosen::default();
        let mut config = self.config.clone();
        config.cert_resolver =
            Arc::new(Resolver { keys: Arc::clone(&self.keys), chosen: Arc::clone(&chosen) });
        let secrets = Arc::new(TrafficSecrets::default());
        config.key_log = Arc::<TrafficSecrets>::clone(&secrets);
        let connection = ServerConnection::new(Arc::new(config))?;
        Ok((connection, ServerSide { keys: Arc::clone(&self.keys), chosen, secrets }))
    }
}

/// What the server knows of one handshake.
#[derive(Debug)]
pub struct ServerSide {
    keys: Arc<[ServerKey]>,
    chosen: Chosen,
    secrets: Arc<TrafficSecrets>,
}

impl ServerSide {
    /// What the connection's data is encrypted with, once there is a handshake.
    #[must_use]
    pub fn traffic_secrets(&self) -> &TrafficSecrets {
        &self.secrets
    }

    /// The host key that this client was answered with; `Some` once its ClientHello is processed.
    #[must_use]
    pub fn host_key(&self) -> Option<&HostPublicKey> {
        let index = *self.chosen.get()?;
        self.keys.get(index).map(|key| &key.public)
    }

    /// The certificate of that key, if it has one.
    #[must_use]
    pub fn host_certificate(&self) -> Option<&[u8]> {
        let index = *self.chosen.get()?;
        self.keys.get(index)?.certificate.as_deref()
    }

    /// What the handshake has established, once the client's Finished has been verified.
    ///
    /// # Errors
    /// [`NotEstablished`]; only [`NotEstablished::Handshaking`] can change by itself.
    pub fn established(
        &self,
        connection: &ServerConnection,
    ) -> Result<Established, NotEstablished> {
        establish(connection, self.host_key().cloned())
    }
}

/// A new client connection that asks `decide` about the host key.
///
/// `preferred` holds the types of key that are known for this host, best first; the server is
/// asked for one of these before any other. `decide` is called once, with a key whose possession
/// the server has proved, inside `process_new_packets`; it must not block, so it cannot ask
/// anybody. Where it rejects, `process_new_packets` fails, an alert is waiting to be written, and
/// [`ClientSide::rejected_key`] has the key, so that somebody can be asked with no connection
/// open, and the next one made with a `decide` that takes this very key.
///
/// No name is sent to the server: a raw public key has none, and SSH does not tell the network
/// which host is meant either.
///
/// # Errors
/// [`TlsSetupError`], never for a reason that lies with the peer.
pub fn connect<F>(
    preferred: &[KeyKind],
    decide: F,
) -> Result<(ClientConnection, ClientSide), TlsSetupError>
where
    F: Fn(&HostPublicKey) -> Verdict + Send + Sync + 'static,
{
    connect_by(preferred, move |key, _| decide(key))
}

/// As [`connect`], where `decide` may answer [`Verdict::Undecided`]: then it is called once more, by
/// [`ClientSide::settle`], with what the server's hello holds.
///
/// # Errors
/// As [`connect`].
pub fn connect_by<F>(
    preferred: &[KeyKind],
    decide: F,
) -> Result<(ClientConnection, ClientSide), TlsSetupError>
where
    F: Fn(&HostPublicKey, Shown<'_>) -> Verdict + Send + Sync + 'static,
{
    connect_with(crypto_provider(), preferred, decide)
}

/// As [`connect_by`], with these algorithms.
pub(crate) fn connect_with<F>(
    provider: Arc<CryptoProvider>,
    preferred: &[KeyKind],
    decide: F,
) -> Result<(ClientConnection, ClientSide), TlsSetupError>
where
    F: Fn(&HostPublicKey, Shown<'_>) -> Verdict + Send + Sync + 'static,
{
    let verifier = Arc::new(HostKeyVerifier::new(
        schemes(preferred),
        provider.signature_verification_algorithms,
        Box::new(decide),
    ));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<HostKeyVerifier>::clone(&verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.enable_secret_extraction = true;
    let secrets = Arc::new(TrafficSecrets::default());
    config.key_log = Arc::<TrafficSecrets>::clone(&secrets);
    let nobody = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
    let connection = ClientConnection::new(Arc::new(config), nobody)?;
    Ok((connection, ClientSide { verifier, secrets }))
}

/// What the client knows of one handshake.
#[derive(Debug)]
pub struct ClientSide {
    verifier: Arc<HostKeyVerifier>,
    secrets: Arc<TrafficSecrets>,
}

impl ClientSide {
    /// What the connection's data is encrypted with, once there is a handshake.
    #[must_use]
    pub fn traffic_secrets(&self) -> &TrafficSecrets {
        &self.secrets
    }

    /// The key that the server proved and that was rejected; `None` unless that is what ended the
    /// handshake.
    #[must_use]
    pub fn rejected_key(&self) -> Option<&HostPublicKey> {
        match self.verifier.outcome() {
            Some((key, Verdict::Reject)) => Some(key),
            _ => None,
        }
    }

    /// As [`Self::established`], for a key that may have been left undecided until the server's hello
    /// is there, when TLS itself may be gone: [`Self::settle`] makes it an [`Established`].
    ///
    /// # Errors
    /// As [`Self::established`].
    pub fn unsettled(&self, connection: &ClientConnection) -> Result<Unsettled, NotEstablished> {
        let proved = match self.verifier.outcome() {
            Some((key, Verdict::Accept | Verdict::Undecided)) => Some(key.clone()),
            _ => None,
        };
        Ok(Unsettled(establish(connection, proved)?))
    }

    /// Decides by the certificate in the server's hello, where that is still to be done (`W-4.14`).
    ///
    /// # Errors
    /// The key, where it is rejected.
    pub fn settle(
        &self,
        unsettled: Unsettled,
        certificate: Option<&[u8]>,
    ) -> Result<Established, Box<HostPublicKey>> {
        self.verifier.decide_by_hello(certificate);
        match self.verifier.outcome() {
            Some((_, Verdict::Accept)) => Ok(unsettled.0),
            _ => Err(Box::new(unsettled.0.host_key)),
        }
    }

    /// What the handshake has established. This is so as soon as the server's flight has been
    /// processed and before our Finished has been written, so that what is signed over the channel
    /// binding leaves together with it.
    ///
    /// # Errors
    /// [`NotEstablished`]; only [`NotEstablished::Handshaking`] can change by itself.
    pub fn established(
        &self,
        connection: &ClientConnection,
    ) -> Result<Established, NotEstablished> {
        let accepted = match self.verifier.outcome() {
            Some((key, Verdict::Accept)) => Some(key.clone()),
            _ => None,
        };
        establish(connection, accepted)
    }
}

/// The first traffic secrets of one connection, which the TLS library tells its key log: the keys
/// that it hands out for what follows the handshake can't be renewed without them (RFC 8446 section
/// 7.2). `Debug` does not show them.
#[derive(Default)]
pub struct TrafficSecrets(Mutex<(Option<Secret>, Option<Secret>)>);

/// Wiped when it is dropped.
type Secret = Zeroizing<Vec<u8>>;

impl TrafficSecrets {
    /// Those of the client and of the server; `None` before the handshake, and the second time.
    pub(crate) fn take(&self) -> Option<(Secret, Secret)> {
        let mut secrets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.0.take().zip(secrets.1.take())
    }
}

impl std::fmt::Debug for TrafficSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrafficSecrets(..)")
    }
}

impl rustls::KeyLog for TrafficSecrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let mut secrets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let secret = Some(Zeroizing::new(secret.to_vec()));
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => secrets.0 = secret,
            "SERVER_TRAFFIC_SECRET_0" => secrets.1 = secret,
            _ => {}
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label.ends_with("_TRAFFIC_SECRET_0")
    }
}

/// A host key in the form that rustls serves.
#[derive(Debug)]
struct ServerKey {
    public: HostPublicKey,
    certified: Arc<CertifiedKey>,
    /// An OpenSSH certificate of the key, for the hello.
    certificate: Option<Arc<[u8]>>,
}

/// The index of the key that one connection was answered with, once there is one.
type Chosen = Arc<OnceLock<usize>>;

/// Picks, for one connection, the host key whose scheme the client put first.
#[derive(Debug)]
struct Resolver {
    keys: Arc<[ServerKey]>,
    chosen: Chosen,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls refuses a client that offers other protocols, but lets one pass that offers none
        // at all; that one is not ours either.
        let _offered = hello.alpn()?;
        let index = hello.signature_schemes().iter().find_map(|scheme| {
            self.keys.iter().position(|key| kind_schemes(key.public.kind()).contains(scheme))
        })?;
        // A HelloRetryRequest brings a second ClientHello. The certificate goes with the one that
        // is answered last, and a client must not change its schemes in between (RFC 8446
        // section 4.1.2); one that does gets no certificate.
        if *self.chosen.get_or_init(|| index) != index {
            return None;
        }
        self.keys.get(index).map(|key| Arc::clone(&key.certified))
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

/// The algorithms, in our order of preference. Made once: it is the same for every connection.
fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut chosen = provider::default_provider();
        // AES-128 before AES-256: ten rounds instead of fourteen, and 128 bits are what the host
        // key and the classic half of the key exchange give anyway. Where AES is not in the
        // hardware, ChaCha20 is several times faster than either.
        let aes_first = has_aes_instructions();
        chosen.cipher_suites = if aes_first {
            vec![
                provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
                provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
                provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ]
        } else {
            vec![
                provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
                provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
                provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ]
        };
        // The hybrid exchange first, said here and not left to the library's default: what is
        // recorded today must not be readable in twenty years.
        chosen.kx_groups = vec![
            provider::kx_group::X25519MLKEM768,
            provider::kx_group::X25519,
            provider::kx_group::SECP256R1,
            provider::kx_group::SECP384R1,
        ];
        Arc::new(chosen)
    }))
}

#[cfg(target_arch = "x86_64")]
fn has_aes_instructions() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes_instructions() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes_instructions() -> bool {
    false
}

/// What a key of this kind signs a TLS 1.3 handshake with (RFC 8446 section 4.2.3).
fn kind_schemes(kind: KeyKind) -> &'static [SignatureScheme] {
    match kind {
        KeyKind::Ed25519 => &[SignatureScheme::ED25519],
        KeyKind::EcdsaP256 => &[SignatureScheme::ECDSA_NISTP256_SHA256],
        KeyKind::EcdsaP384 => &[SignatureScheme::ECDSA_NISTP384_SHA384],
        KeyKind::EcdsaP521 => &[SignatureScheme::ECDSA_NISTP521_SHA512],
        KeyKind::Rsa => &[
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA256,
        ],
        // A token signs its own additions with what it is given, which TLS knows nothing of.
        KeyKind::SkEd25519 | KeyKind::SkEcdsaP256 => &[],
    }
}

/// Every scheme, those of the preferred kinds first.
fn schemes(preferred: &[KeyKind]) -> Vec<SignatureScheme> {
    let mut ordered = Vec::new();
    for kind in preferred.iter().chain(&KeyKind::ALL) {
        for scheme in kind_schemes(*kind) {
            if !ordered.contains(scheme) {
                ordered.push(*scheme);
            }
        }
    }
    ordered
}

/// The checks that both ends share, and the exporter.
fn establish<Data>(
    connection: &ConnectionCommon<Data>,
    host_key: Option<HostPublicKey>,
) -> Result<Established, NotEstablished> {
    let state: &CommonState = connection;
    if state.is_handshaking() {
        return Err(NotEstablished::Handshaking);
    }
    if state.alpn_protocol() != Some(ALPN)
        || state.protocol_version() != Some(ProtocolVersion::TLSv1_3)
    {
        return Err(NotEstablished::OtherProtocol);
    }
    let host_key = host_key.ok_or(NotEstablished::NoBinding)?;
    // RFC 9266: the context is empty, and the length 32 bytes.
    let bytes = connection
        .export_keying_material([0_u8; 32], EXPORTER_LABEL, Some(b""))
        .map_err(|_| NotEstablished::NoBinding)?;
    Ok(Established { host_key, channel_binding: ChannelBinding(bytes) })
}

#[cfg(test)]
mod tests;
