//! The floor of bulk transfer: rustls alone on loopback, no protocol of ours, no process.
//!
//! One thread writes zeros into a TLS 1.3 connection, another one reads them; prints `mb_per_s N`
//! (10⁶ bytes). `bare_tls [--bytes N] [--write-bytes N]`, by default 4 GiB in writes of 64 KiB.

use std::error::Error;
use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use ::aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection,
    SignatureScheme, Stream,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What RFC 8410 puts before the 32 bytes of an Ed25519 public key.
const ED25519_SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// As afar reads its socket: rustls alone would take at most 18 KiB a system call.
const SOCKET_BUFFER_BYTES: usize = 256 * 1024;

fn main() -> Outcome<()> {
    let (bytes, write_bytes) = arguments()?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (key, spki) = fresh_key()?;
    let server_config = server_config(&provider, key, &spki)?;
    let client_config = client_config(provider, spki)?;

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let server = std::thread::spawn(move || serve(&listener, server_config, bytes, write_bytes));

    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut connection = ClientConnection::new(client_config, ServerName::from(address.ip()))?;
    let mut socket = Buffered(BufReader::with_capacity(SOCKET_BUFFER_BYTES, socket));
    let mut stream = Stream::new(&mut connection, &mut socket);
    let mut buffer = vec![0; SOCKET_BUFFER_BYTES];
    // The first byte ends the handshake, which is not what is measured here.
    stream.read_exact(&mut [0])?;
    let started = Instant::now();
    let mut received = 1;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => received += count as u64,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    server.join().map_err(|_| "the server thread panicked")??;
    if received != bytes {
        return Err(format!("{received} of {bytes} bytes arrived").into());
    }
    writeln!(io::stdout(), "mb_per_s {:.1}", bytes as f64 / 1e6 / seconds)?;
    Ok(())
}

fn arguments() -> Outcome<(u64, usize)> {
    let (mut bytes, mut write_bytes) = (4 << 30, 64 * 1024);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or("an option lacks its value")?;
        match word.as_str() {
            "--bytes" => bytes = value.parse()?,
            "--write-bytes" => write_bytes = value.parse()?,
            _ => return Err("usage: bare_tls [--bytes N] [--write-bytes N]".into()),
        }
    }
    if bytes == 0 || write_bytes == 0 {
        return Err("nothing to write".into());
    }
    Ok((bytes, write_bytes))
}

fn fresh_key() -> Outcome<(PrivateKeyDer<'static>, SubjectPublicKeyInfoDer<'static>)> {
    let pair = Ed25519KeyPair::generate()?;
    let private = pair.to_pkcs8v1()?.as_ref().to_vec();
    let mut spki = ED25519_SPKI_PREFIX.to_vec();
    spki.extend_from_slice(pair.public_key().as_ref());
    Ok((PrivatePkcs8KeyDer::from(private).into(), spki.into()))
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    key: PrivateKeyDer<'static>,
    spki: &SubjectPublicKeyInfoDer<'static>,
) -> Outcome<Arc<ServerConfig>> {
    let key = provider.key_provider.load_private_key(key)?;
    let certified = CertifiedKey::new(vec![CertificateDer::from(spki.to_vec())], key);
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(certified))));
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn client_config(
    provider: Arc<CryptoProvider>,
    spki: SubjectPublicKeyInfoDer<'static>,
) -> Outcome<Arc<ClientConfig>> {
    let algorithms = provider.signature_verification_algorithms;
    let verifier = ExactKey { spki, algorithms };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn serve(
    listener: &TcpListener,
    config: Arc<ServerConfig>,
    bytes: u64,
    write_bytes: usize,
) -> Outcome<()> {
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let mut connection = ServerConnection::new(config)?;
    // Otherwise rustls would take a part of each write only.
    connection.set_buffer_limit(Some(2 * write_bytes + SOCKET_BUFFER_BYTES));
    let mut stream = Stream::new(&mut connection, &mut socket);
    stream.write_all(&[0])?;
    let chunk = vec![0; write_bytes];
    let mut left = bytes - 1;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        stream.write_all(chunk.get(..length).unwrap_or_default())?;
        left -= length as u64;
    }
    stream.flush()?;
    stream.conn.send_close_notify();
    stream.conn.complete_io(stream.sock)?;
    Ok(())
}

/// A socket that is read in large pieces and written as it comes.
struct Buffered(BufReader<TcpStream>);

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

/// Accepts exactly the key made a moment ago.
#[derive(Debug)]
struct ExactKey {
    spki: SubjectPublicKeyInfoDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ExactKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if end_entity.as_ref() == self.spki.as_ref() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("not the key of this run".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
