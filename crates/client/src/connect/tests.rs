//! Logging in at a real listener's door, with a gatekeeper that takes the keys that a test names.

mod again;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use afar_net::accept::{Admitted, Denied, Gatekeeper, ProvedLogin, accept};
use afar_net::host_key::{HostKey, HostKeys};
use afar_net::tls::TlsServer;
use afar_net::transport::Transport as _;
use tempfile::TempDir;
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use super::*;
use crate::client::ClientBuilder;
use crate::prompt::Prompt;
use crate::ssh_config_files::SshConfig;

/// A throwaway key, encrypted with the passphrase `secret` in one round.
const LOCKED_KEY: &str = "\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABCHA7wnQi
Lg167hVd91jrIQAAAAAQAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIMPeXnF8LwBHKdA8
WUF0xAwoV4RuXTSWJQ8mAUNCWxc9AAAAkCoS7MU0TZgO/5xVUaxMnp2s6gCnFZ3hUagTRi
nT5x7UC7lzBoowRcbd5BWclh5KNb27TNI8Fyk4MNENfN6SVL8Mlec5YJWW0gfDUUVAza3w
DlApL6cyr552FSBk0251kQtB4TQGhbru6ON7hrzO6RfRvM4KJMTIHuEyCeG1Sn6uWtnSyz
o9FWI8JELqIJZgww==
-----END OPENSSH PRIVATE KEY-----
";

/// Whom the server lets in, and what it has seen.
#[derive(Default)]
struct Door {
    /// Public keys that are let in.
    allowed: Mutex<Vec<Vec<u8>>>,
    /// Ephemeral keys that stand in for one.
    delegated: Mutex<Vec<Vec<u8>>>,
    queries: AtomicUsize,
    /// The fingerprints of the keys that tried to log in, in order.
    attempts: Mutex<Vec<String>>,
    /// Connections that are open now.
    open: AtomicUsize,
}

impl Gatekeeper for Door {
    type Grant = ();

    async fn first_accepted(
        &self,
        _user: &str,
        keys: &[&[u8]],
        _source: SocketAddr,
    ) -> Result<usize, Denied> {
        self.queries.fetch_add(1, Ordering::SeqCst);
        let allowed = self.allowed.lock().unwrap();
        let found = keys.iter().position(|key| allowed.iter().any(|allowed| allowed == key));
        found.ok_or(Denied::Refused)
    }

    async fn admit(&self, login: &ProvedLogin<'_>) -> Result<Admitted<()>, Denied> {
        self.attempts.lock().unwrap().push(login.key.fingerprint());
        let key = login.key.blob().as_bytes();
        let known = |keys: &Mutex<Vec<Vec<u8>>>| keys.lock().unwrap().iter().any(|k| k == key);
        if !known(&self.allowed) && !known(&self.delegated) {
            return Err(Denied::Refused);
        }
        let delegate_lifetime_s = login.delegate.map(|(key, seconds)| {
            self.delegated.lock().unwrap().push(key.to_vec());
            seconds
        });
        Ok(Admitted { grant: (), delegate_lifetime_s })
    }
}

/// A server, a home for its client, and keys.
struct World {
    home: TempDir,
    door: Arc<Door>,
    address: SocketAddr,
    host_key: HostPublicKey,
}

impl World {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let host_key = HostKey::generate().unwrap();
        let public = host_key.public().clone();
        let tls = TlsServer::new(&HostKeys::new(vec![host_key]).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Arc::new(Door::default());
        tokio::spawn(serve(listener, tls, Arc::clone(&door)));
        Self { home, door, address, host_key: public }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A key file, and whether the door takes it.
    fn key(&self, name: &str, allowed: bool) -> PathBuf {
        let path = self.path(name);
        let (key, _) = HostKey::load_or_create(&path).unwrap();
        if allowed {
            self.allow(key.public().blob());
        }
        path
    }

    fn allow(&self, blob: &[u8]) {
        self.door.allowed.lock().unwrap().push(blob.to_vec());
    }

    fn locked_key(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path("locked");
        std::fs::write(&path, LOCKED_KEY).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn known_hosts(&self) -> PathBuf {
        self.path("known_hosts")
    }

    /// Makes a key known under the names that such a line has.
    fn know(&self, marker: &str, name: &str, key: &HostPublicKey) {
        let blob = afar_core::key::PublicKeyBlob::from_wire(key.blob().to_vec()).unwrap();
        let line = format!("{marker}{name} {}\n", blob.to_fields());
        let mut old = std::fs::read_to_string(self.known_hosts()).unwrap_or_default();
        old.push_str(&line);
        std::fs::write(self.known_hosts(), old).unwrap();
    }

    fn name(&self) -> String {
        format!("[127.0.0.1]:{}", self.address.port())
    }

    /// A client that knows the host and has these keys.
    fn builder(&self, keys: &[&Path]) -> ClientBuilder {
        let mut builder = Client::builder()
            .ssh_config(SshConfig::None)
            .user("ann")
            .agent(false)
            .known_hosts(self.known_hosts())
            .delegate_for(None);
        for key in keys {
            builder = builder.identity(*key);
        }
        let home = self.home.path().as_os_str().to_owned();
        builder.options.variable = Arc::new(move |name| (name == "HOME").then(|| home.clone()));
        builder
    }

    fn known(&self) -> &Self {
        self.know("", &self.name(), &self.host_key);
        self
    }

    fn target(&self) -> Target {
        Target::parse(&self.address.to_string()).unwrap()
    }

    async fn connect(&self, client: &Client) -> Result<(), Error> {
        client.connect(&self.target()).await.map(drop)
    }

    fn attempts(&self) -> usize {
        self.door.attempts.lock().unwrap().len()
    }

    fn queries(&self) -> usize {
        self.door.queries.load(Ordering::SeqCst)
    }
}

async fn serve(listener: TcpListener, tls: TlsServer, door: Arc<Door>) {
    let tls = Arc::new(tls);
    loop {
        let (socket, source) = listener.accept().await.unwrap();
        let (door, tls) = (Arc::clone(&door), Arc::clone(&tls));
        tokio::spawn(async move {
            door.open.fetch_add(1, Ordering::SeqCst);
            let accepted = accept(socket, source, &tls, &*door, Clock::new()).await;
            if let Ok(mut accepted) = accepted {
                // Whoever is in is told so, and stays until it goes.
                let transport = &mut accepted.transport;
                let flushed = std::future::poll_fn(|context| transport.poll_flush(context)).await;
                let mut open = flushed.is_ok();
                while open {
                    let read =
                        std::future::poll_fn(|context| transport.poll_read(context, &mut |_| {}));
                    open = matches!(read.await, Ok(afar_net::transport::Read::Progress));
                }
            }
            door.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Answers as it was told, and notes whether a connection was open meanwhile.
struct Scripted {
    door: Arc<Door>,
    host_key: Answer,
    passphrases: Mutex<Vec<&'static str>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn note(&self, question: &str) {
        // The server may take a moment to see that the client has gone.
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while self.door.open.load(Ordering::SeqCst) > 0 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let open = self.door.open.load(Ordering::SeqCst);
        self.asked.lock().unwrap().push(format!("{question}, {open} open"));
    }
}

impl Prompt for Scripted {
    fn host_key(&self, _question: &HostKeyQuestion) -> Answer {
        self.note("host key");
        self.host_key
    }

    fn passphrase(&self, _key: &LockedIdentity<'_>, attempt: u32) -> Option<Zeroizing<Vec<u8>>> {
        self.note(&format!("passphrase {attempt}"));
        let mut passphrases = self.passphrases.lock().unwrap();
        let next = if passphrases.is_empty() { None } else { Some(passphrases.remove(0)) };
        next.map(|passphrase| Zeroizing::new(passphrase.as_bytes().to_vec()))
    }
}

fn scripted(
    world: &World,
    host_key: Answer,
    passphrases: &[&'static str],
) -> (Scripted, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let prompt = Scripted {
        door: Arc::clone(&world.door),
        host_key,
        passphrases: Mutex::new(passphrases.to_vec()),
        asked: Arc::clone(&asked),
    };
    (prompt, asked)
}

// Keys.

#[tokio::test]
async fn a_single_named_key_is_used_without_asking() {
    let world = World::new().await;
    let key = world.key("key", true);
    world.connect(&world.known().builder(&[&key]).build()).await.unwrap();
    assert_eq!((world.queries(), world.attempts()), (0, 1));
    // What is used anyway need not be remembered.
    assert!(!world.path(".local/state/afar/accepted_keys").exists());
}

#[tokio::test]
async fn of_several_keys_the_accepted_one_is_asked_for_and_then_remembered() {
    let world = World::new().await;
    let keys = [world.key("a", false), world.key("b", true), world.key("c", false)];
    let keys: Vec<&Path> = keys.iter().map(PathBuf::as_path).collect();
    let client = world.known().builder(&keys).build();
    world.connect(&client).await.unwrap();
    let asked = world.queries();
    assert_eq!(asked, 1);
    assert_eq!(world.attempts(), 1, "no key was used that would have been refused");
    world.connect(&client).await.unwrap();
    assert_eq!((world.queries(), world.attempts()), (asked, 2), "the second login asks nothing");
}

#[tokio::test]
async fn a_remembered_key_that_is_refused_gives_way_to_the_others() {
    let world = World::new().await;
    let keys = [world.key("a", true), world.key("b", false)];
    let keys: Vec<&Path> = keys.iter().map(PathBuf::as_path).collect();
    let client = world.known().builder(&keys).build();
    world.connect(&client).await.unwrap();
    // The first key is removed from the server, the second one added.
    world.door.allowed.lock().unwrap().clear();
    world.key("b", true);
    world.connect(&client).await.unwrap();
    assert_eq!(world.attempts(), 3);
    world.connect(&client).await.unwrap();
    assert_eq!(world.attempts(), 4, "and then that one is remembered");
}

#[tokio::test]
async fn a_refusal_names_the_keys() {
    let world = World::new().await;
    let keys = [world.key("a", false), world.key("b", false)];
    let keys: Vec<&Path> = keys.iter().map(PathBuf::as_path).collect();
    let error = world.connect(&world.known().builder(&keys).build()).await.unwrap_err();
    assert!(matches!(error, Error::KeysRefused { .. }), "{error}");
    assert_eq!(error.to_string().matches("SHA256:").count(), 2, "{error}");
    assert_eq!((error.phase(), error.started()), (Phase::Authenticate, Started::No));
    let error = world.connect(&world.builder(&[keys[0]]).build()).await.unwrap_err();
    assert!(matches!(error, Error::KeysRefused { .. }), "{error}");
}

#[tokio::test]
async fn a_locked_key_is_unlocked_with_no_connection_open() {
    let world = World::new().await;
    let path = world.locked_key();
    let locked = afar_net::identity::load(&path).unwrap();
    world.allow(locked.public_blob());
    let (prompt, asked) = scripted(&world, Answer::No, &["wrong", "secret"]);
    let client = world.known().builder(&[&path]).prompt(prompt).build();
    world.connect(&client).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), ["passphrase 1, 0 open", "passphrase 2, 0 open"]);
    assert_eq!(world.attempts(), 1);
}

#[tokio::test]
async fn nobody_is_asked_to_unlock_a_key_that_the_server_does_not_want() {
    let world = World::new().await;
    let (locked, plain) = (world.locked_key(), world.key("plain", true));
    let (prompt, asked) = scripted(&world, Answer::No, &[]);
    let client = world.known().builder(&[&locked, &plain]).prompt(prompt).build();
    world.connect(&client).await.unwrap();
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_key_that_stays_locked_is_an_error() {
    let world = World::new().await;
    let path = world.locked_key();
    world.allow(afar_net::identity::load(&path).unwrap().public_blob());
    let error = world.connect(&world.known().builder(&[&path]).build()).await.unwrap_err();
    assert!(matches!(error, Error::Unlock(_)), "{error}");
}

#[tokio::test]
async fn the_delegated_key_stands_in_until_it_is_refused() {
    let world = World::new().await;
    let key = world.key("key", true);
    let own = fingerprint(&world.door.allowed.lock().unwrap()[0]);
    let hour = Some(Duration::from_secs(3600));
    let client = world.known().builder(&[&key]).delegate_for(hour).build();
    for _ in 0..3 {
        world.connect(&client).await.unwrap();
    }
    let attempts = world.door.attempts.lock().unwrap().clone();
    assert_eq!(attempts[0], own);
    assert_ne!(attempts[1], own);
    assert_eq!(attempts[1], attempts[2]);
    // A server that was started anew knows nothing of it.
    world.door.delegated.lock().unwrap().clear();
    world.connect(&client).await.unwrap();
    let attempts = world.door.attempts.lock().unwrap().clone();
    assert_eq!(attempts[3..], [attempts[1].clone(), own]);
}

#[tokio::test]
async fn without_a_key_there_is_nothing_to_try() {
    let world = World::new().await;
    let error = world.connect(&world.known().builder(&[]).build()).await.unwrap_err();
    assert!(matches!(error, Error::NoKeys { .. }), "{error}");
}

// The host.

#[tokio::test]
async fn an_unknown_host_is_asked_about_with_no_connection_open() {
    let world = World::new().await;
    let key = world.key("key", true);
    let error = world.connect(&world.builder(&[&key]).build()).await.unwrap_err();
    let Error::HostKey(problem) = error else { panic!("{error}") };
    assert_eq!(problem.presented().fingerprint, world.host_key.fingerprint());
    assert!(!world.known_hosts().exists());

    let (prompt, asked) = scripted(&world, Answer::Yes, &[]);
    world.connect(&world.builder(&[&key]).prompt(prompt).build()).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), ["host key, 0 open"]);
    let written = std::fs::read_to_string(world.known_hosts()).unwrap();
    assert!(written.starts_with(&format!("{} ssh-ed25519 ", world.name())), "{written}");
    // From now on it is known.
    world.connect(&world.builder(&[&key]).build()).await.unwrap();
}

#[tokio::test]
async fn accept_new_takes_a_host_at_first_sight_and_remembers_it() {
    let world = World::new().await;
    let key = world.key("key", true);
    world.connect(&world.builder(&[&key]).accept_new(true).build()).await.unwrap();
    world.connect(&world.builder(&[&key]).build()).await.unwrap();
}

#[tokio::test]
async fn fault_81_a_changed_host_key_stops_hard_and_both_fingerprints_are_said() {
    let world = World::new().await;
    let key = world.key("key", true);
    let other = HostKey::generate().unwrap();
    world.know("", &world.name(), other.public());
    let (prompt, asked) = scripted(&world, Answer::Yes, &[]);
    let client = world.builder(&[&key]).accept_new(true).prompt(prompt).build();
    let error = world.connect(&client).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&world.host_key.fingerprint()), "{text}");
    assert!(text.contains(&other.public().fingerprint()), "{text}");
    assert!(!text.contains("another user"), "{text}");
    assert!(asked.lock().unwrap().is_empty(), "nobody is asked to wave it through");
    assert_eq!(world.attempts(), 0, "no key was used");
}

#[tokio::test]
async fn where_it_differs_from_sshds_another_users_server_may_be_listening() {
    let world = World::new().await;
    let key = world.key("key", true);
    world.know("", "127.0.0.1", HostKey::generate().unwrap().public());
    let client = world.builder(&[&key]).accept_new(true).build();
    let text = world.connect(&client).await.unwrap_err().to_string();
    assert!(text.contains("another user"), "{text}");
}

#[tokio::test]
async fn sshds_key_is_known_under_the_bare_name() {
    let world = World::new().await;
    let key = world.key("key", true);
    world.know("", "127.0.0.1", &world.host_key.clone());
    world.connect(&world.builder(&[&key]).build()).await.unwrap();
}

#[tokio::test]
async fn a_new_type_is_never_taken_at_first_sight() {
    let world = World::new().await;
    let key = world.key("key", true);
    // A P-256 key, as ssh-keygen made it.
    let line = format!(
        "{} ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBPkkmsmDmDl9B6UHP+\
         912tqTIe2Le2CvS+VuAk1Lp3Go0MIWfmeifCBnZhAcboeiltL28zEgxAuexkMGoCa4SlE=\n",
        world.name()
    );
    std::fs::write(world.known_hosts(), line).unwrap();
    let client = world.builder(&[&key]).accept_new(true).build();
    let error = world.connect(&client).await.unwrap_err();
    let Error::HostKey(problem) = error else { panic!("{error}") };
    let HostKeyProblem::NotConfirmed(question) = *problem else { panic!("{problem}") };
    assert_eq!(question.known.len(), 1);
    let (prompt, asked) = scripted(&world, Answer::Yes, &[]);
    world.connect(&world.builder(&[&key]).prompt(prompt).build()).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_revoked_key_and_a_mere_authority_are_refused() {
    for (marker, expected) in [("@revoked ", "revoked"), ("@cert-authority ", "@cert-authority")] {
        let world = World::new().await;
        let key = world.key("key", true);
        world.know(marker, &world.name(), &world.host_key.clone());
        let (prompt, asked) = scripted(&world, Answer::Yes, &[]);
        let client = world.builder(&[&key]).accept_new(true).prompt(prompt).build();
        let text = world.connect(&client).await.unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
        assert!(asked.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_host_is_inspected_without_logging_in_and_its_key_replaced() {
    let world = World::new().await;
    let other = HostKey::generate().unwrap();
    world.know("", &world.name(), other.public());
    let client = world.builder(&[]).build();
    let seen = client.inspect_host(&world.target()).await.unwrap();
    assert_eq!(seen.presented.fingerprint, world.host_key.fingerprint());
    assert!(matches!(seen.standing, HostStanding::Refused(_)));
    assert_eq!(seen.replace().unwrap(), 1);
    let seen = client.inspect_host(&world.target()).await.unwrap();
    assert_eq!(seen.standing, HostStanding::Trusted);
    assert_eq!(world.attempts(), 0);
}

// The way there.

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for() {
    let world = World::new().await;
    let key = world.key("key", true);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::parse(&silent.local_addr().unwrap().to_string()).unwrap();
    let client = world.builder(&[&key]).connect_timeout(Duration::from_millis(50)).build();
    let error = client.connect(&target).await.unwrap_err();
    let Error::ConnectTimeout { phase, started, .. } = error else { panic!("{error}") };
    assert_eq!((phase, started), (Phase::Authenticate, Started::No));
}

#[tokio::test]
async fn the_limit_is_for_all_connections_together() {
    let world = World::new().await;
    let builder = world.builder(&[]).connect_timeout(Duration::from_secs(10));
    let client = builder.build();
    let route = Route::find(&client.options, &world.target()).unwrap();
    let mut connector = Connector::new(&client, &route, None);
    tokio::time::pause();
    // tidy: in simulated time.
    let seconds = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    assert!(connector.within_limit(seconds(6), Duration::ZERO).await.is_some());
    // What is asked of a person meanwhile takes nothing of it.
    seconds(60).await;
    assert!(connector.within_limit(seconds(5), Duration::ZERO).await.is_none());
    assert!(connector.within_limit(seconds(1), Duration::ZERO).await.is_none());
    // An agent may be asking.
    assert!(connector.within_limit(seconds(30), AUTH_DEADLINE).await.is_some());
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_said() {
    let world = World::new().await;
    let key = world.key("key", true);
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let target = Target::parse(&gone.to_string()).unwrap();
    let error = world.builder(&[&key]).build().connect(&target).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(error.hint().unwrap().contains("afar serve"));
}

#[tokio::test]
async fn what_is_not_there_yet_is_said_in_one_line() {
    let world = World::new().await;
    let client = world.builder(&[]).build();
    for text in ["web[1-3]", "a,b", "@group"] {
        let target = Target::parse(text).unwrap();
        let error = client.connect(&target).await.unwrap_err();
        assert!(error.to_string().contains("not there yet"), "{text}: {error}");
        assert!(!error.to_string().contains('\n'));
    }
    let error = client.connect(&Target::Local).await.unwrap_err();
    assert!(matches!(error, Error::NoLauncher), "{error}");
    // What ssh has keys for and knows, afar is not asked about.
    let error = client.keys(Some(&Target::parse("ssh://web").unwrap())).await.unwrap_err();
    assert!(error.to_string().contains("ssh reaches this host"), "{error}");
}

#[tokio::test]
async fn the_configuration_gives_host_user_and_keys_and_a_proxy_is_refused() {
    let world = World::new().await;
    let key = world.key("key", true);
    world.know("", "the-alias", &world.host_key.clone());
    let config = world.path("config");
    let text = format!(
        "Host web\n HostName 127.0.0.1\n User ann\n Port 22\n IdentityFile {}\n \
         HostKeyAlias the-alias\nHost far\n ProxyJump gate\n",
        key.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut builder = world.builder(&[]).ssh_config(SshConfig::File(config));
    builder.options.user = None;
    let client = builder.port(world.address.port()).build();
    client.connect(&Target::parse("web").unwrap()).await.map(drop).unwrap();
    let error = client.connect(&Target::parse("far").unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("ProxyJump (gate)"), "{error}");
}
