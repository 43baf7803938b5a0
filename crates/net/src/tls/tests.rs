//! Whole handshakes in memory, and everything that must not come of one.

use std::io::{Read as _, Write as _};
use std::sync::Mutex;

use rustls::server::Acceptor;
use rustls::{AlertDescription, CertificateError, Error, HandshakeKind, NamedGroup};

use super::*;
use crate::host_key::HostKey;
use crate::keygen;

/// All that a connection has to send, and how many writes it took.
fn drain<Data>(connection: &mut ConnectionCommon<Data>) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    let mut writes = 0;
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
        writes += 1;
    }
    (bytes, writes)
}

/// Gives a connection all these bytes.
fn feed<Data: rustls::SideData>(
    connection: &mut ConnectionCommon<Data>,
    mut bytes: &[u8],
) -> Result<(), Error> {
    while !bytes.is_empty() {
        connection.read_tls(&mut bytes).unwrap();
        connection.process_new_packets()?;
    }
    Ok(())
}

/// What has arrived as application data.
fn plaintext<Data>(connection: &mut ConnectionCommon<Data>) -> Vec<u8> {
    let mut out = Vec::new();
    match connection.reader().read_to_end(&mut out) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        result => {
            result.unwrap();
        }
    }
    out
}

/// A server with freshly made keys of these kinds, in this order.
fn server(kinds: &[KeyKind]) -> (TlsServer, Vec<HostPublicKey>) {
    let temp = tempfile::tempdir().unwrap();
    let keys: Vec<HostKey> = kinds
        .iter()
        .map(|kind| {
            let (_, args) = keygen::KINDS.iter().find(|(each, _)| each == kind).unwrap();
            let path = temp.path().join(kind.ssh_name());
            keygen::generate(&path, args, "");
            HostKey::load(&path).unwrap()
        })
        .collect();
    let publics = keys.iter().map(|key| key.public().clone()).collect();
    (TlsServer::new(&HostKeys::new(keys).unwrap()).unwrap(), publics)
}

fn accept_all(_: &HostPublicKey) -> Verdict {
    Verdict::Accept
}

/// Runs a handshake to its end; returns the error of whichever side refused, client first.
fn shake(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), Error> {
    for _ in 0..10 {
        let (bytes, _) = drain(client);
        let served = feed(server, &bytes);
        let (bytes, _) = drain(server);
        feed(client, &bytes)?;
        served?;
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() {
            return Ok(());
        }
    }
    panic!("the handshake does not end");
}

/// A client that accepts this host key and no other.
fn connect_pinned(pinned: &HostPublicKey) -> Result<(ClientConnection, ClientSide), TlsSetupError> {
    let expected = pinned.clone();
    let decide = move |key: &HostPublicKey| {
        if *key == expected { Verdict::Accept } else { Verdict::Reject }
    };
    connect(&[pinned.kind()], decide)
}

#[test]
fn both_ends_establish_the_same() {
    let (tls, publics) = server(&[KeyKind::Ed25519]);
    let (mut server, server_side) = tls.accept().unwrap();
    let (mut client, client_side) = connect(&[], accept_all).unwrap();
    assert_eq!(client_side.established(&client), Err(NotEstablished::Handshaking));
    assert_eq!(server_side.established(&server), Err(NotEstablished::Handshaking));
    shake(&mut client, &mut server).unwrap();
    let (ours, theirs) =
        (client_side.established(&client).unwrap(), server_side.established(&server).unwrap());
    assert_eq!(ours, theirs);
    assert_eq!(ours.host_key, publics[0]);
    assert_eq!(client_side.rejected_key(), None);

    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
    let group = client.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(server.server_name(), None);
}

#[test]
fn no_two_connections_have_the_same_binding() {
    let (tls, _) = server(&[KeyKind::Ed25519]);
    let binding = || {
        let (mut server, _) = tls.accept().unwrap();
        let (mut client, side) = connect(&[], accept_all).unwrap();
        shake(&mut client, &mut server).unwrap();
        side.established(&client).unwrap().channel_binding
    };
    let (one, other) = (binding(), binding());
    assert_ne!(one, other);
    assert!(!format!("{one:?}").contains(&format!("{}", one.as_bytes()[0])));
}

#[test]
fn every_kind_of_host_key_proves_itself() {
    for (kind, _) in keygen::KINDS {
        let (tls, publics) = server(&[*kind]);
        let (mut server, _) = tls.accept().unwrap();
        let (mut client, side) = connect_pinned(&publics[0]).unwrap();
        shake(&mut client, &mut server).unwrap();
        assert_eq!(side.established(&client).unwrap().host_key, publics[0]);
    }
}

#[test]
fn the_clients_order_picks_the_host_key() {
    let kinds = [KeyKind::Ed25519, KeyKind::EcdsaP256, KeyKind::Rsa];
    let (tls, publics) = server(&kinds);
    let cases: [(&[KeyKind], KeyKind); 5] = [
        (&[], KeyKind::Ed25519),
        (&[KeyKind::EcdsaP256], KeyKind::EcdsaP256),
        (&[KeyKind::Rsa, KeyKind::Ed25519], KeyKind::Rsa),
        // A type that the server has not is passed over.
        (&[KeyKind::EcdsaP521, KeyKind::EcdsaP256], KeyKind::EcdsaP256),
        (&[KeyKind::EcdsaP521], KeyKind::Ed25519),
    ];
    for (preferred, expected) in cases {
        let (mut server, server_side) = tls.accept().unwrap();
        let (mut client, client_side) = connect(preferred, accept_all).unwrap();
        assert_eq!(server_side.host_key(), None);
        shake(&mut client, &mut server).unwrap();
        let key = publics.iter().find(|key| key.kind() == expected).unwrap();
        assert_eq!(server_side.host_key(), Some(key));
        assert_eq!(client_side.established(&client).unwrap().host_key, *key);
    }
}

#[test]
fn a_rejected_key_ends_the_handshake_with_an_alert_and_is_there_to_be_asked_about() {
    // Fault 81, the transport's part of it.
    let (tls, publics) = server(&[KeyKind::Ed25519]);
    let (mut server, server_side) = tls.accept().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut client, side) = connect(&[], {
        let seen = Arc::clone(&seen);
        move |key| {
            seen.lock().unwrap().push(key.clone());
            Verdict::Reject
        }
    })
    .unwrap();
    let error = shake(&mut client, &mut server).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
    assert_eq!(*seen.lock().unwrap(), publics);
    assert_eq!(side.rejected_key(), Some(&publics[0]));
    assert_eq!(side.established(&client), Err(NotEstablished::Handshaking));
    let (alert, _) = drain(&mut client);
    let error = feed(&mut server, &alert).unwrap_err();
    assert_eq!(error, Error::AlertReceived(AlertDescription::AccessDenied));
    assert_eq!(server_side.established(&server), Err(NotEstablished::Handshaking));

    // Asked and answered: the next connection is pinned to that very key.
    let (mut server, _) = tls.accept().unwrap();
    let (mut client, side) = connect_pinned(&publics[0]).unwrap();
    shake(&mut client, &mut server).unwrap();
    assert!(side.established(&client).is_ok());
}

#[test]
fn a_pinned_client_takes_no_other_key() {
    let (tls, _) = server(&[KeyKind::Ed25519]);
    let (_, others) = server(&[KeyKind::Ed25519]);
    let (mut server, _) = tls.accept().unwrap();
    let (mut client, side) = connect_pinned(&others[0]).unwrap();
    assert!(shake(&mut client, &mut server).is_err());
    assert!(side.rejected_key().is_some_and(|key| *key != others[0]));
}

/// A server that presents one key and signs with another.
#[derive(Debug)]
struct Impostor(Arc<CertifiedKey>);

impl ResolvesServerCert for Impostor {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

#[test]
fn a_key_that_the_server_does_not_hold_is_never_even_decided_on() {
    let (claimed, held) = (HostKey::generate().unwrap(), HostKey::generate().unwrap());
    let spki = CertificateDer::from(claimed.public().spki().to_vec());
    let certified = CertifiedKey::new(vec![spki], Arc::clone(held.signing()));
    let mut config = TlsServer::new(&HostKeys::new(vec![held]).unwrap()).unwrap().config;
    config.cert_resolver = Arc::new(Impostor(Arc::new(certified)));
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    let (mut client, side) = connect(&[], |_| panic!("an unproved key was shown")).unwrap();
    let error = shake(&mut client, &mut server).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::BadSignature));
    assert_eq!(side.rejected_key(), None);
}

#[test]
fn what_is_not_exactly_one_key_is_refused() {
    let held = HostKey::generate().unwrap();
    let sound = CertificateDer::from(held.public().spki().to_vec());
    let padded = CertificateDer::from([held.public().spki(), &[0]].concat());
    for presented in [vec![padded], vec![sound.clone(), sound]] {
        let certified = CertifiedKey::new(presented, Arc::clone(held.signing()));
        let keys = HostKeys::new(vec![held.clone()]).unwrap();
        let mut config = TlsServer::new(&keys).unwrap().config;
        config.cert_resolver = Arc::new(Impostor(Arc::new(certified)));
        let mut server = ServerConnection::new(Arc::new(config)).unwrap();
        let (mut client, side) = connect(&[], |_| panic!("a malformed key was shown")).unwrap();
        let error = shake(&mut client, &mut server).unwrap_err();
        assert_eq!(error, Error::InvalidCertificate(CertificateError::BadEncoding));
        assert_eq!(side.rejected_key(), None);
    }
}

#[test]
fn what_the_server_says_early_arrives_with_its_flight() {
    // Rule 3, the server's half: hello in the first flight.
    let (tls, _) = server(&[KeyKind::Ed25519]);
    let (mut server, server_side) = tls.accept().unwrap();
    let (mut client, client_side) = connect(&[], accept_all).unwrap();
    let (client_hello, writes) = drain(&mut client);
    assert_eq!(writes, 1);
    feed(&mut server, &client_hello).unwrap();
    assert!(server_side.host_key().is_some());
    server.writer().write_all(b"server hello").unwrap();
    let (flight, writes) = drain(&mut server);
    assert_eq!(writes, 1, "one write for the flight and the hello");
    feed(&mut client, &flight).unwrap();
    assert_eq!(plaintext(&mut client), b"server hello");
    assert!(client_side.established(&client).is_ok());
}

#[test]
fn what_the_client_says_leaves_with_its_finished() {
    // Rule 3, the client's half: Finished, hello, AUTH and OPEN in one write, the exporter known.
    let (tls, _) = server(&[KeyKind::Ed25519]);
    let (mut server, server_side) = tls.accept().unwrap();
    let (mut client, client_side) = connect(&[], accept_all).unwrap();
    let (bytes, _) = drain(&mut client);
    feed(&mut server, &bytes).unwrap();
    let (bytes, _) = drain(&mut server);
    feed(&mut client, &bytes).unwrap();

    let ours = client_side.established(&client).unwrap();
    client.writer().write_all(b"hello, auth").unwrap();
    client.writer().write_all(b", open").unwrap();
    let (bytes, writes) = drain(&mut client);
    assert_eq!(writes, 1, "Finished and data in one write");
    feed(&mut server, &bytes).unwrap();
    assert_eq!(plaintext(&mut server), b"hello, auth, open");
    assert_eq!(server_side.established(&server).unwrap(), ours);
}

#[test]
fn after_the_handshake_the_server_sends_nothing_unasked() {
    let (tls, _) = server(&[KeyKind::Ed25519]);
    let (mut server, _) = tls.accept().unwrap();
    let (mut client, _) = connect(&[], accept_all).unwrap();
    let (bytes, _) = drain(&mut client);
    feed(&mut server, &bytes).unwrap();
    let (bytes, _) = drain(&mut server);
    feed(&mut client, &bytes).unwrap();
    let (bytes, _) = drain(&mut client);
    feed(&mut server, &bytes).unwrap();
    assert!(!server.is_handshaking());
    assert!(!server.wants_write(), "a ticket would be waiting here");
    assert_eq!(client.tls13_tickets_received(), 0);
}

/// The alert in a plaintext record.
fn alert_in(record: &[u8]) -> u8 {
    assert_eq!(record[..3], [21, 3, 3], "not an alert record");
    assert_eq!((record[5], record.len()), (2, 7), "not one fatal alert");
    record[6]
}

/// Our client's configuration, to be changed.
fn client_config() -> ClientConfig {
    let provider = crypto_provider();
    let verifier = Arc::new(HostKeyVerifier::new(
        schemes(&[]),
        provider.signature_verification_algorithms,
        Box::new(|_: &HostPublicKey, _: Shown<'_>| Verdict::Accept),
    ));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// A client of another configuration against our server: what each says, the server first.
fn refusal(config: ClientConfig) -> (Error, Error) {
    let (tls, _) = server(&[KeyKind::Ed25519]);
    let (mut server, side) = tls.accept().unwrap();
    let name = ServerName::try_from("host.example").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let (bytes, _) = drain(&mut client);
    let refused = feed(&mut server, &bytes).unwrap_err();
    assert_eq!(side.established(&server), Err(NotEstablished::Handshaking));
    let told = feed(&mut client, &drain(&mut server).0).unwrap_err();
    (refused, told)
}

#[test]
fn another_protocol_or_none_gets_an_alert() {
    // Fault 78.
    for other in [&b"h2"[..], b"afar/2", b"afar/1 "] {
        let mut config = client_config();
        config.alpn_protocols = vec![other.to_vec()];
        let (refused, told) = refusal(config);
        assert_eq!(refused, Error::NoApplicationProtocol);
        assert_eq!(told, Error::AlertReceived(AlertDescription::NoApplicationProtocol));
    }
    let mut config = client_config();
    config.alpn_protocols.clear();
    let (_, told) = refusal(config);
    assert_eq!(told, Error::AlertReceived(AlertDescription::AccessDenied));
}

#[test]
fn nothing_about_the_host_is_sent_in_the_clear() {
    let (mut client, _) = connect(&[], accept_all).unwrap();
    let (bytes, _) = drain(&mut client);
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut bytes.as_slice()).unwrap();
    let accepted = acceptor.accept().unwrap().unwrap();
    assert_eq!(accepted.client_hello().server_name(), None);
}

/// A ClientHello as TLS 1.2 has it: no supported_versions, one suite of its time, our ALPN.
fn tls12_client_hello() -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, body: &[u8]| {
        extensions.extend_from_slice(&kind.to_be_bytes());
        extensions.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        extensions.extend_from_slice(body);
    };
    extension(10, &[0, 2, 0, 0x1d]); // supported_groups: x25519
    extension(13, &[0, 2, 0x08, 0x07]); // signature_algorithms: ed25519
    extension(16, &[&[0, 7, 6][..], ALPN].concat());
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.push(0); // session id
    body.extend_from_slice(&[0, 2, 0xc0, 0x2b]); // ECDHE-ECDSA-AES128-GCM-SHA256
    body.extend_from_slice(&[1, 0]); // no compression
    body.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&extensions);
    let length = u16::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, 1];
    record.extend_from_slice(&(length + 4).to_be_bytes());
    record.extend_from_slice(&[1, 0]);
    record.extend_from_slice(&length.to_be_bytes());
    record.extend_from_slice(&body);
    record
}

#[test]
fn tls_1_2_gets_an_alert() {
    // Fault 78.
    let (tls, _) = server(&[KeyKind::Ed25519]);
    let (mut server, _) = tls.accept().unwrap();
    let error = feed(&mut server, &tls12_client_hello()).unwrap_err();
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");
    let protocol_version = 70;
    assert_eq!(alert_in(&drain(&mut server).0), protocol_version);
}

#[test]
fn a_client_that_wants_certificates_is_refused() {
    // The extension of RFC 7250 is what says that a raw key is understood.
    let mut config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let (refused, told) = refusal(config);
    assert!(matches!(refused, Error::PeerIncompatible(_)), "{refused}");
    assert!(matches!(told, Error::AlertReceived(_)), "{told}");
}

#[test]
fn a_server_without_our_protocol_is_not_established() {
    // A server that ignores ALPN, as RFC 7301 allows: the handshake ends well, and yet.
    let key = HostKey::generate().unwrap();
    let mut config = TlsServer::new(&HostKeys::new(vec![key.clone()]).unwrap()).unwrap().config;
    config.alpn_protocols.clear();
    let spki = CertificateDer::from(key.public().spki().to_vec());
    let certified = CertifiedKey::new(vec![spki], Arc::clone(key.signing()));
    config.cert_resolver = Arc::new(Impostor(Arc::new(certified)));
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    let (mut client, side) = connect(&[], accept_all).unwrap();
    shake(&mut client, &mut server).unwrap();
    assert_eq!(side.established(&client), Err(NotEstablished::OtherProtocol));
}

#[test]
fn bytes_of_another_protocol_are_refused() {
    // Fault 8, the transport's part of it.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.9\r\n", &[0; 64]] {
        let (tls, _) = server(&[KeyKind::Ed25519]);
        let (mut server, _) = tls.accept().unwrap();
        assert!(feed(&mut server, bytes).is_err());
    }
}

#[test]
fn a_handshake_in_single_bytes_is_the_same_handshake() {
    let (tls, _) = server(&[KeyKind::Ed25519]);
    let (mut server, server_side) = tls.accept().unwrap();
    let (mut client, client_side) = connect(&[], accept_all).unwrap();
    let mut turns = 0;
    while client.is_handshaking() || server.is_handshaking() {
        for byte in drain(&mut client).0 {
            feed(&mut server, &[byte]).unwrap();
        }
        for byte in drain(&mut server).0 {
            feed(&mut client, &[byte]).unwrap();
        }
        turns += 1;
        assert!(turns < 10);
    }
    assert_eq!(
        client_side.established(&client).unwrap(),
        server_side.established(&server).unwrap()
    );
}

#[test]
fn the_schemes_of_what_is_known_come_first_and_each_once() {
    let ordered = schemes(&[KeyKind::EcdsaP384, KeyKind::EcdsaP384, KeyKind::Ed25519]);
    assert_eq!(
        ordered[..3],
        [
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::ECDSA_NISTP256_SHA256,
        ]
    );
    assert_eq!(ordered.len(), schemes(&[]).len());
}
