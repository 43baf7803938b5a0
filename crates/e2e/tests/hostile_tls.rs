//! The TLS that anybody may try: version, protocol and key exchange, resumption.
#![cfg(test)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use afar_e2e::raw::{End, Key, Link, RawClient, spec};
use afar_e2e::{Host, Run};
use afar_net::limits::TLS_DEADLINE;
use afar_proto::frame::Kind;
use rustix::process::Signal;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct};

/// Takes any raw public key: only the TLS below is what these tests are about.
#[derive(Debug)]
struct AnyKey(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("version 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A client that speaks what afar's does.
fn config(provider: CryptoProvider) -> ClientConfig {
    let verifier = AnyKey(provider.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"afar/1".to_vec()];
    config
}

/// The end of a handshake by a client that is set up this way.
fn shake_hands(host: &Host, set_up: impl FnOnce(&mut CryptoProvider, &mut Vec<Vec<u8>>)) -> Link {
    let mut provider = provider::default_provider();
    let mut protocols = vec![b"afar/1".to_vec()];
    set_up(&mut provider, &mut protocols);
    let mut config = config(provider);
    config.alpn_protocols = protocols;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut link = Link::new(TcpStream::connect(host.address()).unwrap(), tls);
    link.shake_hands();
    link
}

#[test]
fn fault_78_another_protocol_gets_an_alert() {
    let host = Host::start();
    // This client is one that is let through, but for what is changed.
    let mut link = shake_hands(&host, |_, _| {});
    assert!(link.next_frame().unwrap().is(Kind::Hello));
    for protocols in [vec![b"h2".to_vec(), b"http/1.1".to_vec()], vec![b"afar/2".to_vec()]] {
        let mut link = shake_hands(&host, |_, offered| *offered = protocols);
        let refused = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
        assert_eq!(link.next_frame().unwrap_err(), End::Tls(refused));
    }
    let mut link = shake_hands(&host, |_, offered| offered.clear());
    let end = link.next_frame().unwrap_err();
    assert!(matches!(end, End::Tls(rustls::Error::AlertReceived(_))), "{end:?}");
}

#[test]
fn fault_78_older_versions_get_an_alert() {
    let host = Host::start();
    for (version, alert) in [("-tls1_2", "alert protocol version"), ("-tls1_1", "alert")] {
        let address = host.address().to_string();
        let arguments =
            ["s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-alpn", "afar/1", "-connect"];
        let output = Run::new("openssl", arguments).arg(&address).output();
        assert_ne!(output.code(), 0, "{output:?}");
        assert!(output.error_text().contains(alert), "{output:?}");
    }
}

#[test]
fn fault_30_nothing_can_be_resumed_and_no_early_data_sent() {
    let host = Host::start();
    let key = Key::of_file(&host.key());
    let mut client = RawClient::log_in(host.address(), &key, host.user());
    client.open(1, &spec("tickets", &["true"]));
    client.link.expect(Kind::Seal);
    client.link.finish();
    client.link.rest();
    let rustls::Connection::Client(tls) = client.link.tls() else { panic!("it is a client") };
    // Without a ticket nothing can be resumed, and no early data encrypted.
    assert_eq!(tls.tls13_tickets_received(), 0);
}

#[test]
fn fault_30_data_ahead_of_the_handshake_ends_it() {
    let host = Host::start();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut hello = Vec::new();
    let config = Arc::new(config(provider::default_provider()));
    ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
    // A record of application data, as early data comes in.
    let early = [&[23, 3, 3, 0, 64][..], &[0x5a; 64]].concat();
    let started = Instant::now();
    let mut socket = TcpStream::connect(host.address()).unwrap();
    socket.write_all(&[hello, early].concat()).unwrap();
    // It is no part of what the listener waits for, and nothing to be passed over.
    let _ = socket.read_to_end(&mut Vec::new());
    assert!(started.elapsed() < TLS_DEADLINE / 2, "{:?}", started.elapsed());
    // What it logs is all there once it has ended.
    host.listener().signal(Signal::TERM);
    host.listener().wait();
    assert!(host.log().contains("TLS: "), "{}", host.log());
}

#[test]
fn the_hello_comes_early_after_a_retry_too() {
    // A client whose first guess of a key exchange is not the server's is asked to try again.
    let host = Host::start();
    let mut link = shake_hands(&host, |provider, _| {
        provider.kx_groups = vec![provider::kx_group::MLKEM768, provider::kx_group::X25519];
    });
    let kind = link.tls().handshake_kind();
    assert_eq!(kind, Some(rustls::HandshakeKind::FullWithHelloRetryRequest));
    // Nothing was sent since: it is there although our Finished is not.
    assert!(link.next_frame().unwrap().is(Kind::Hello));
}
