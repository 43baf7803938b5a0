//! Both ends of a login over loopback TCP: what leaves together, who gets in, what a refusal is.
#![cfg(test)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Mutex;
use std::time::Duration;

use afar_core::policy::{Basis, Grant, GrantKind};
use afar_net::accept::{AcceptError, Accepted, Admitted, Denied, Gatekeeper, ProvedLogin, accept};
use afar_net::clock::Clock;
use afar_net::dial::connect_tcp;
use afar_net::driver::Driver;
use afar_net::host_key::{HostKey, HostKeys};
use afar_net::local::{self, Introduction, IntroductionError, UpgradeNews, introduced};
use afar_net::login::{Candidate, LoggedIn, Login, LoginError, login};
use afar_net::signer::{DelegatedKey, Signer};
use afar_net::tls::{TlsServer, Verdict, connect};
use afar_net::transport::AnyTransport;
use afar_proto::connection::{Config, Role};
use afar_proto::frame::{Frame, FrameReader, Kind, Phase};
use afar_proto::json::ByteString;
use afar_proto::limits::HAND_OFF_PLAINTEXT_BYTES_MAX;
use afar_proto::message::{Command, JobId, OpenSpec, Refused};
use afar_proto::outcome::{self, RefusalReason, Started};
use afar_proto::{Connection, Event};
use afar_sys::descriptor_passing::send_with_descriptor;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

/// Lets the keys of a list in, and keeps what it was asked.
#[derive(Default)]
struct Keys {
    accepted: Vec<Vec<u8>>,
    delegates: Mutex<BTreeMap<Vec<u8>, u32>>,
    queries: Mutex<usize>,
}

impl Gatekeeper for Keys {
    type Grant = String;

    async fn first_accepted(
        &self,
        _user: &str,
        keys: &[&[u8]],
        _source: SocketAddr,
    ) -> Result<usize, Denied> {
        *self.queries.lock().unwrap() += 1;
        let found = keys.iter().position(|key| self.accepted.iter().any(|known| known == key));
        found.ok_or(Denied::Refused)
    }

    async fn admit(&self, login: &ProvedLogin<'_>) -> Result<Admitted<String>, Denied> {
        let blob = login.key.blob().as_bytes();
        let known = self.accepted.iter().any(|accepted| accepted == blob)
            || self.delegates.lock().unwrap().contains_key(blob);
        let delegate_lifetime_s = login.delegate.map(|(key, seconds)| {
            self.delegates.lock().unwrap().insert(key.to_vec(), seconds);
            seconds
        });
        let admitted = Admitted { grant: login.user.to_owned(), delegate_lifetime_s };
        if known { Ok(admitted) } else { Err(Denied::Refused) }
    }
}

/// A key that signs at once. What kind of key it is makes no difference to the exchange.
fn key() -> (Signer, Vec<u8>) {
    let key = DelegatedKey::generate().unwrap();
    let blob = key.public_blob().to_vec();
    (Signer::Delegated(key), blob)
}

fn connection_with_open(clock: Clock) -> Connection {
    let mut connection = Connection::new(Role::Client, Config::default(), clock.now());
    let command = Command::Argv(vec![ByteString::from("true")]);
    let spec = OpenSpec::new(JobId::new("j").unwrap(), command);
    connection.open(&spec).unwrap();
    connection
}

type Outcome = (Result<Accepted<String>, AcceptError>, Result<LoggedIn, LoginError>);

async fn meet(keys: &Keys, candidates: &[Candidate], how: Login<'_>) -> Outcome {
    let host_keys = HostKeys::new(vec![HostKey::generate().unwrap()]).unwrap();
    let tls = TlsServer::new(&host_keys).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let clock = Clock::new();
    let server = async {
        let (socket, source): (_, SocketAddr) = listener.accept().await.unwrap();
        Box::pin(accept(socket, source, &tls, keys, clock)).await
    };
    let client = async {
        let tcp = connect_tcp("127.0.0.1", port).await.unwrap();
        let (tls, side) = connect(&[], |_| Verdict::Accept).unwrap();
        let how = Login { candidates, ..how };
        Box::pin(login(tcp, tls, side, how, connection_with_open(clock), clock)).await
    };
    let server = async {
        let mut accepted = server.await;
        if let Ok(accepted) = &mut accepted {
            let transport = &mut accepted.transport;
            std::future::poll_fn(|context| transport.poll_flush(context)).await.unwrap();
        }
        accepted
    };
    tokio::join!(server, client)
}

const LOGIN: Login<'_> =
    Login { user: "ann", candidates: &[], pipeline: None, delegate_for: None, software: "test" };

#[tokio::test]
async fn finished_hello_auth_and_open_leave_in_one_write() {
    // W-4.3: the first write is the ClientHello, the second one everything else.
    let (signer, blob) = key();
    let keys = Keys { accepted: vec![blob], ..Keys::default() };
    let (server, client) = meet(&keys, &[Candidate::Usable(signer)], LOGIN).await;
    let mut client = client.unwrap();
    let AnyTransport::Tls(transport) = client.driver.transport() else { panic!("not TLS") };
    assert_eq!(transport.writes(), 2);
    // The listener has not decoded what came behind AUTH: it is all there for the supervisor.
    let mut reader = FrameReader::new(Phase::Jobs);
    reader.push(&server.unwrap().rest);
    let kinds: Vec<Kind> =
        std::iter::from_fn(|| reader.next_frame().unwrap()).map(|frame| frame.kind).collect();
    assert_eq!(kinds, [Kind::JobHello, Kind::Open, Kind::Window, Kind::Window]);
    assert_eq!(*keys.queries.lock().unwrap(), 0);
}

#[tokio::test]
async fn of_several_keys_the_accepted_one_is_found_by_asking() {
    // W-4.4: only public keys are shown until one is known to be accepted.
    let candidates: Vec<(Signer, Vec<u8>)> = (0..5).map(|_| key()).collect();
    let keys = Keys { accepted: vec![candidates[4].1.clone()], ..Keys::default() };
    let candidates: Vec<Candidate> =
        candidates.into_iter().map(|(signer, _)| Candidate::Usable(signer)).collect();
    let (server, client) = meet(&keys, &candidates, LOGIN).await;
    assert_eq!(client.unwrap().key_index, 4);
    assert_eq!(server.unwrap().grant, "ann");
    assert_eq!(*keys.queries.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_remembered_key_is_used_without_asking() {
    let candidates: Vec<(Signer, Vec<u8>)> = (0..3).map(|_| key()).collect();
    let keys = Keys { accepted: vec![candidates[2].1.clone()], ..Keys::default() };
    let candidates: Vec<Candidate> =
        candidates.into_iter().map(|(signer, _)| Candidate::Usable(signer)).collect();
    let (_server, client) = meet(&keys, &candidates, Login { pipeline: Some(2), ..LOGIN }).await;
    assert_eq!(client.unwrap().key_index, 2);
    assert_eq!(*keys.queries.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_refusal_arrives_as_a_refusal_with_an_open_pipelined_behind_the_auth() {
    let (signer, _) = key();
    let keys = Keys::default();
    let (server, client) = meet(&keys, &[Candidate::Usable(signer)], LOGIN).await;
    assert!(matches!(client, Err(LoginError::Refused { .. })), "{client:?}");
    assert!(matches!(server, Err(AcceptError::Refused { .. })));
}

#[tokio::test]
async fn when_no_key_is_accepted_none_is_used() {
    let candidates: Vec<Candidate> = (0..3).map(|_| Candidate::Usable(key().0)).collect();
    let keys = Keys::default();
    let (_server, client) = meet(&keys, &candidates, LOGIN).await;
    assert!(matches!(client, Err(LoginError::NoKeyAccepted)), "{client:?}");
}

#[tokio::test]
async fn keys_that_do_not_fit_one_query_are_asked_about_in_the_next() {
    let candidates: Vec<(Signer, Vec<u8>)> = (0..64).map(|_| key()).collect();
    let keys = Keys { accepted: vec![candidates[63].1.clone()], ..Keys::default() };
    let candidates: Vec<Candidate> =
        candidates.into_iter().map(|(signer, _)| Candidate::Usable(signer)).collect();
    // As good as large keys: the rest of the frame has room for some dozens of small ones.
    let user = "a".repeat(29_000);
    let (_server, client) = meet(&keys, &candidates, Login { user: &user, ..LOGIN }).await;
    assert_eq!(client.unwrap().key_index, 63);
    assert_eq!(*keys.queries.lock().unwrap(), 2);
}

#[tokio::test]
async fn more_keys_than_can_be_asked_about_are_an_end_and_no_wait() {
    let candidates: Vec<Candidate> = (0..300).map(|_| Candidate::Usable(key().0)).collect();
    let keys = Keys::default();
    let before = tokio::time::Instant::now();
    let (_server, client) = meet(&keys, &candidates, LOGIN).await;
    assert!(matches!(client, Err(LoginError::NoKeyAccepted)), "{client:?}");
    assert_eq!(*keys.queries.lock().unwrap(), afar_proto::limits::QUERIES_MAX as usize);
    assert!(before.elapsed() < afar_proto::limits::AUTH_DEADLINE);
}

#[tokio::test]
async fn a_delegated_key_logs_in_where_its_key_has_vouched_for_it() {
    let (signer, blob) = key();
    let keys = Keys { accepted: vec![blob], ..Keys::default() };
    let hour = Some(Duration::from_secs(3600));
    let login = Login { delegate_for: hour, ..LOGIN };
    let (_server, client) = meet(&keys, &[Candidate::Usable(signer)], login).await;
    let (delegated, lifetime) = client.unwrap().delegated.unwrap();
    assert_eq!(Some(lifetime), hour);
    let delegated = [Candidate::Usable(Signer::Delegated(delegated))];
    let (server, client) = meet(&keys, &delegated, LOGIN).await;
    assert!(server.is_ok() && client.is_ok());
}

#[tokio::test]
async fn a_rejected_host_key_reaches_the_caller_and_nothing_was_sent_to_its_server() {
    let host_key = HostKey::generate().unwrap();
    let public = host_key.public().clone();
    let tls = TlsServer::new(&HostKeys::new(vec![host_key]).unwrap()).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let clock = Clock::new();
    let keys = Keys::default();
    let server = async {
        let (socket, source) = listener.accept().await.unwrap();
        Box::pin(accept(socket, source, &tls, &keys, clock)).await
    };
    let client = async {
        let tcp = connect_tcp("127.0.0.1", port).await.unwrap();
        let (tls, side) = connect(&[], |_| Verdict::Reject).unwrap();
        let candidates = [Candidate::Usable(key().0)];
        let how = Login { candidates: &candidates, ..LOGIN };
        Box::pin(login(tcp, tls, side, how, connection_with_open(clock), clock)).await
    };
    let (server, client) = tokio::join!(server, client);
    assert!(matches!(server, Err(AcceptError::Tls(_))));
    match client {
        Err(LoginError::HostKeyRejected(host)) => assert_eq!(host.key, public),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_client_that_only_knows_the_job_part_is_shown_its_goodbye() {
    // The job part's first frame, sent where a hello is due, is of the wrong phase (W-3.2).
    let clock = Clock::new();
    let mut connection = Connection::new(Role::Server, Config::default(), clock.now());
    connection.handle_input(clock.now(), &[0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, b'{', b'}']);
    let last = std::iter::from_fn(|| connection.poll_event()).last();
    assert!(matches!(last, Some(Event::Closed(_))), "{last:?}");
}

/// Whom a listener has let in, and its client.
async fn let_in() -> (Accepted<String>, LoggedIn) {
    let (signer, blob) = key();
    let keys = Keys { accepted: vec![blob], ..Keys::default() };
    let (server, client) = meet(&keys, &[Candidate::Usable(signer)], LOGIN).await;
    (server.unwrap(), client.unwrap())
}

#[tokio::test]
async fn a_connection_that_was_handed_off_goes_on_where_it_was() {
    // W-4.13: the client notices nothing, and what it has pipelined is there.
    let (accepted, mut client) = let_in().await;
    let (listener, supervisor) = tokio::net::UnixStream::pair().unwrap();
    let grant = Grant::local("ann", 7);
    let gone = local::hand_off(listener, &grant, accepted.transport, &accepted.rest);
    let (gone, came) = tokio::join!(gone, introduced(supervisor));
    gone.unwrap();
    let Introduction::Client(came) = came.unwrap() else { panic!() };
    assert_eq!(came.grant, grant);
    let clock = Clock::new();
    let connection = Connection::new(Role::Server, Config::default(), clock.now());
    let mut server = Driver::new(came.transport, connection, clock);
    server.feed(&came.first);
    let channel = loop {
        if let Event::Open { channel, .. } = server.next().await {
            break channel;
        }
    };
    let refused = Refused {
        phase: outcome::Phase::Spawn,
        reason: RefusalReason::NotFound,
        message: "said behind the hand-off".to_owned(),
        started: Started::No,
    };
    server.connection().channel(channel).unwrap().refuse(&refused);
    let told = async {
        loop {
            if let Event::Refused { refused, .. } = client.driver.next().await {
                break refused;
            }
        }
    };
    let told = tokio::select! {
        told = told => told,
        event = server.next() => panic!("{event:?}"),
    };
    assert_eq!(told, refused);
}

/// W-4.17
#[tokio::test]
async fn who_asks_for_an_upgrade_brings_nobody_and_is_told_what_comes_of_it() {
    let (mut ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    ours.write_all(&UpgradeNews::wanted()).await.unwrap();
    let came = introduced(theirs).await.unwrap();
    assert!(matches!(came, Introduction::Upgrade(_)), "{came:?}");
    let news = UpgradeNews::Failed { message: "no".to_owned() };
    let frame = news.to_frame();
    for end in 0..frame.len() {
        assert!(UpgradeNews::read(&frame[..end]).unwrap().is_none());
    }
    assert_eq!(UpgradeNews::read(&frame).unwrap(), Some(news));
    assert!(UpgradeNews::read(&UpgradeNews::wanted()).is_err());
    let grant = Frame::control(Kind::Grant, Grant::local("ann", 7).encode()).to_bytes();
    assert!(UpgradeNews::read(&grant).is_err());
}

#[tokio::test]
async fn what_is_no_introduction_brings_nobody() {
    let grant = Frame::control(Kind::Grant, Grant::local("ann", 7).encode()).to_bytes();
    // Without a socket it is a local client's grant, and part 2 follows.
    let (mut ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    ours.write_all(&[&grant[..], b"part 2"].concat()).await.unwrap();
    let Introduction::Client(came) = introduced(theirs).await.unwrap() else { panic!() };
    assert!(matches!(came.transport, AnyTransport::Unix(_)));
    assert_eq!(&came.first[..], b"part 2");
    // Who was let in by a key comes with the connection, or not at all.
    let by_key = Grant {
        kind: GrantKind::Key,
        key_fingerprint: Some("SHA256:x".to_owned()),
        basis: Some(Basis {
            key: Vec::new(),
            key_files: Vec::new(),
            trusted_authorities: None,
            revoked_keys: None,
        }),
        ..Grant::local("ann", 7)
    };
    let (mut ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    ours.write_all(&Frame::control(Kind::Grant, by_key.encode()).to_bytes()).await.unwrap();
    let error = introduced(theirs).await.unwrap_err();
    assert!(matches!(error, IntroductionError::NoConnection(GrantKind::Key)), "{error}");
    // A grant that is cut, at every byte.
    for end in 0..grant.len() {
        let (mut ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        ours.write_all(&grant[..end]).await.unwrap();
        drop(ours);
        let error = introduced(theirs).await.unwrap_err();
        assert!(matches!(error, IntroductionError::Cut), "{end}: {error}");
    }
    let hello = Frame::control(Kind::JobHello, b"{}".as_slice()).to_bytes();
    let hand_off = |payload: &[u8]| Frame::control(Kind::HandOff, payload.to_vec()).to_bytes();
    // W-9.25
    let plaintext_bytes_max = u32::try_from(HAND_OFF_PLAINTEXT_BYTES_MAX).unwrap();
    let mut much = vec![0x13, 0x01];
    much.extend([1; 80]);
    much.extend((plaintext_bytes_max + 1).to_be_bytes());
    much.extend([0; 4]);
    let mut most = much.clone();
    most[82..86].copy_from_slice(&plaintext_bytes_max.to_be_bytes());
    let cases: [(&str, Vec<u8>); 6] = [
        ("another frame first", [&hello[..], &grant].concat()),
        ("another frame second", [&grant[..], &hello].concat()),
        ("no state", [&grant[..], &hand_off(b"")].concat()),
        ("too much behind it", [&grant[..], &hand_off(&much)].concat()),
        ("what is stated is cut", [&grant[..], &hand_off(&most)].concat()),
        ("no stream socket", [&grant[..], &hand_off(&[&much[..82], &[0; 8]].concat())].concat()),
    ];
    for (what, bytes) in cases {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let pipe = std::io::pipe().unwrap().0;
        send_with_descriptor(&ours, &bytes, pipe.as_fd()).unwrap();
        drop(ours);
        let error = introduced(theirs).await.unwrap_err();
        let expected = match what {
            "another frame first" | "another frame second" => {
                matches!(error, IntroductionError::Unexpected { found: Kind::JobHello, .. })
            }
            "no state" => matches!(error, IntroductionError::HandOff(_)),
            "too much behind it" => matches!(error, IntroductionError::Plaintext(_)),
            _ => matches!(error, IntroductionError::Io(_)),
        };
        assert!(expected, "{what}: {error}");
    }
}
