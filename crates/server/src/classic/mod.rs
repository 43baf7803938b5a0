//! The classic protocol's server: for existing scripts, on this machine (`docs/spec/classic.md`).
//!
//! It is a listener of another kind over afar's own protocol. A client is let in by its uid, which
//! the kernel tells; each of its commands becomes a job of the user's supervisor, in a session of
//! its own; the output is kept until its size is known.

mod answer;
pub mod limits;
mod peer;
mod shell;

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use afar_core::policy::Grant;
use afar_proto::classic::RequestError;
use afar_proto::classic::limits::REQUEST_BYTES_MAX;
use afar_sys::socket::{Keepalive, set_tcp_keepalive, set_tcp_nodelay};
use afar_sys::tcp_peer::{TcpPeer, is_own_address, tcp_peer, tcp_peers_can_be_told};
use afar_sys::users::{User, user_by_name};
use tokio::net::TcpStream;

use crate::listener::Shared;
use answer::{Answer, Store};
use limits::CONNECTIONS_MAX;
use peer::Peer;
use shell::Shell;

/// When the kernel gives a client up that may be on another machine, which has gone without a word.
/// One that is there and does not read may take its time.
const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    probes: 3,
    unacknowledged: Duration::ZERO,
};

/// What is asked of the classic protocol's server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassicConfig {
    /// Addresses, `HOST:PORT`; port 0 picks a free one.
    pub listen: Vec<String>,
    /// As whom commands are run; needed by root.
    pub user: Option<String>,
    /// Whether other addresses than those of this machine's loopback are allowed, and with them
    /// clients of whom nothing can be known.
    pub dangerously_anywhere: bool,
}

/// Why the classic protocol is not served.
#[derive(Debug, thiserror::Error)]
pub enum ClassicError {
    /// Root has not said as whom.
    #[error("--classic: root has to say as whom commands are run, with --classic-user NAME")]
    UserNeeded,
    /// There is no such user.
    #[error("--classic-user {0:?}: there is no such user")]
    NoSuchUser(String),
    /// Only root could run commands as somebody else.
    #[error(
        "--classic-user {0:?}: commands are run as the user who runs the server, which that is not"
    )]
    OtherUser(String),
    /// An address that others can reach.
    #[error(
        "--classic {0}: this protocol proves nobody and hides nothing, so it is served on loopback \
         only; --dangerously-classic-anywhere lets everybody who reaches {0} run commands"
    )]
    Reachable(SocketAddr),
    /// An address that is none.
    #[error("--classic {address}: {source}")]
    Address {
        /// The address as it was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody could be let in.
    #[error("--classic: this system does not tell whose a connection is (sock_diag(7)): {0}")]
    NoPeers(#[source] io::Error),
    /// The user database could not be read.
    #[error("--classic-user: cannot read the user database: {0}")]
    Users(#[source] io::Error),
}

/// The classic protocol's server.
#[derive(Debug)]
pub(crate) struct Classic {
    store: Arc<Store>,
    grant: Grant,
    /// Who may ask (`C-5.2`).
    uids: [u32; 3],
    anywhere: bool,
    clients: AtomicUsize,
}

impl Classic {
    /// Checks what is asked for. Also gives the addresses to listen on.
    pub(crate) fn new(
        config: &ClassicConfig,
        server: &User,
        state_dir: &Path,
    ) -> Result<(Self, Vec<SocketAddr>), ClassicError> {
        let user = run_as(config, server)?;
        let addresses = addresses(config)?;
        tcp_peers_can_be_told().map_err(ClassicError::NoPeers)?;
        let classic = Self {
            store: Arc::new(Store::new(state_dir.join("classic"))),
            grant: Grant::local(user.name.as_bytes().to_vec(), user.uid),
            uids: [server.uid, user.uid, 0],
            anywhere: config.dangerously_anywhere,
            clients: AtomicUsize::new(0),
        };
        Ok((classic, addresses))
    }

    /// Who a client is, for the log, if it may come in.
    fn admit(&self, socket: &TcpStream, source: SocketAddr) -> Result<String, String> {
        let untold = |error| format!("whose it is can't be told: {error}");
        let peer = tcp_peer(socket).map_err(untold)?;
        let is_own = || is_own_address(source).map_err(untold);
        self.judge(peer, is_own)
    }

    /// `C-5.1`, `C-5.2`, `C-5.3`. `is_own` tells whether the client's address is this machine's.
    fn judge(
        &self,
        peer: TcpPeer,
        is_own: impl FnOnce() -> Result<bool, String>,
    ) -> Result<String, String> {
        match peer {
            TcpPeer::User(uid) if self.uids.contains(&uid) => Ok(format!("uid {uid}")),
            TcpPeer::User(uid) => Err(format!("uid {uid} may not run commands here")),
            TcpPeer::Gone => Err("it has gone, and whose it was can't be told".to_owned()),
            TcpPeer::NotHere if self.anywhere && !is_own()? => Ok("another machine".to_owned()),
            TcpPeer::NotHere => Err("whose it is can't be told".to_owned()),
        }
    }
}

/// As whom commands are run.
fn run_as(config: &ClassicConfig, server: &User) -> Result<User, ClassicError> {
    let Some(name) = &config.user else {
        return if server.uid == 0 { Err(ClassicError::UserNeeded) } else { Ok(server.clone()) };
    };
    let user = user_by_name(OsStr::new(name)).map_err(ClassicError::Users)?;
    let user = user.ok_or_else(|| ClassicError::NoSuchUser(name.clone()))?;
    // Root has a supervisor started for anybody.
    if user.uid == server.uid || server.uid == 0 {
        Ok(user)
    } else {
        Err(ClassicError::OtherUser(name.clone()))
    }
}

/// Where to listen: on loopback, unless everything is allowed (`C-2.1`).
fn addresses(config: &ClassicConfig) -> Result<Vec<SocketAddr>, ClassicError> {
    let mut addresses = Vec::new();
    for address in &config.listen {
        let resolved = address.to_socket_addrs();
        addresses.extend(
            resolved
                .map_err(|source| ClassicError::Address { address: address.clone(), source })?,
        );
    }
    let reachable = |address: &&SocketAddr| !address.ip().to_canonical().is_loopback();
    match addresses.iter().find(reachable) {
        Some(address) if !config.dangerously_anywhere => Err(ClassicError::Reachable(*address)),
        _ => Ok(addresses),
    }
}

/// Counts a client for as long as it is here (`C-6.6`).
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(clients: &'a AtomicUsize) -> Option<Self> {
        let place = Self(clients);
        (clients.fetch_add(1, Ordering::Relaxed) < CONNECTIONS_MAX).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one client to its end.
pub(crate) async fn serve_client(
    shared: Arc<Shared>,
    classic: Arc<Classic>,
    socket: TcpStream,
    source: SocketAddr,
) {
    let log = shared.log();
    let who = match classic.admit(&socket, source) {
        Ok(who) => who,
        Err(reason) => return log.info(&format!("classic: {source}: closed: {reason}")),
    };
    let Some(_place) = Place::take(&classic.clients) else {
        let limit = CONNECTIONS_MAX;
        return log.info(&format!("classic: {source} ({who}): closed: {limit} clients are here"));
    };
    log.debug(&format!("classic: {source} ({who}) is here"));
    // What fails here costs speed, or a dead machine's place for longer.
    let _ = set_tcp_nodelay(&socket);
    let _ = set_tcp_keepalive(&socket, KEEPALIVE);
    let mut shell = Shell::new(shared, Arc::clone(&classic.store), classic.grant.clone());
    let mut peer = Peer::new(socket);
    let ended = converse(&mut peer, &mut shell, &classic.store).await;
    // Said before the client can see that it is over.
    if let Err(error) = ended {
        log.info(&format!("classic: {source} ({who}): closed: {error}"));
    }
    drop(peer);
    shell.end().await;
    log.debug(&format!("classic: {source} ({who}) has gone"));
}

/// Commands and answers in turn (`C-2.2`), until the client goes or sends what is no command.
async fn converse(
    peer: &mut Peer,
    shell: &mut Shell,
    store: &Arc<Store>,
) -> Result<(), RequestError> {
    loop {
        let request = tokio::select! {
            request = peer.request() => request,
            never = shell.attend() => match never {},
        };
        let answer = match request {
            None => return Ok(()),
            Some(Ok(command)) => tokio::select! {
                answer = shell.run(command) => answer,
                () = peer.departure() => return Ok(()),
            },
            Some(Err(error @ RequestError::Foreign { .. })) => return Err(error),
            Some(Err(error @ RequestError::TooLong)) => {
                let text = format!(
                    "the command is longer than {REQUEST_BYTES_MAX} bytes; nothing was run"
                );
                if Answer::line(store, &text).send(peer.socket()).await.is_ok() {
                    peer.linger().await;
                }
                return Err(error);
            }
        };
        let sent = tokio::select! {
            sent = answer.send(peer.socket()) => sent,
            never = shell.attend() => match never {},
        };
        if sent.is_err() {
            // It did not want to read it.
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_sys::users::current_user;

    fn config(listen: &str, user: Option<&str>) -> ClassicConfig {
        ClassicConfig {
            listen: vec![listen.to_owned()],
            user: user.map(ToOwned::to_owned),
            dangerously_anywhere: false,
        }
    }

    fn error(config: &ClassicConfig, server: &User) -> String {
        Classic::new(config, server, Path::new("/nonexistent")).unwrap_err().to_string()
    }

    fn user(name: &str, uid: u32) -> User {
        let here = current_user().unwrap().unwrap();
        User { name: name.into(), uid, ..here }
    }

    #[test]
    fn off_loopback_needs_the_dangerous_flag() {
        // C-2.1.
        let server = user("x", 4_000_000);
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8080", "[::ffff:192.0.2.1]:1"] {
            let mut config = config(address, None);
            let text = error(&config, &server);
            assert!(text.contains("--dangerously-classic-anywhere"), "{text}");
            config.dangerously_anywhere = true;
            assert!(Classic::new(&config, &server, Path::new("/nonexistent")).is_ok());
        }
        for address in ["127.0.0.1:0", "127.1.2.3:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let config = config(address, None);
            let (_, addresses) = Classic::new(&config, &server, Path::new("/nonexistent")).unwrap();
            assert_eq!(addresses.len(), 1, "{address}");
        }
        assert!(error(&config("nonsense", None), &server).contains("--classic nonsense"));
    }

    #[test]
    fn root_says_as_whom() {
        // C-5.2.
        let root = user("root", 0);
        assert!(error(&config("127.0.0.1:0", None), &root).contains("--classic-user NAME"));
        let text = error(&config("127.0.0.1:0", Some("no-such-user-here")), &root);
        assert!(text.contains("there is no such user"), "{text}");
        let other = user("x", 4_000_000);
        assert!(error(&config("127.0.0.1:0", Some("root")), &other).contains("which that is not"));
        let (classic, _) =
            Classic::new(&config("127.0.0.1:0", None), &other, Path::new("/nonexistent")).unwrap();
        assert_eq!(classic.uids, [4_000_000, 4_000_000, 0]);
        assert_eq!(classic.grant.uid, 4_000_000);
    }

    #[tokio::test]
    async fn only_the_users_of_the_server_come_in() {
        // C-5.1, C-5.2.
        let own_uid = afar_sys::users::effective_uid();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, source) = listener.accept().await.unwrap();
        let admit = |uids: [u32; 3]| {
            let config = config("127.0.0.1:0", None);
            let server = user("x", 4_000_000);
            let (classic, _) = Classic::new(&config, &server, Path::new("/nonexistent")).unwrap();
            Classic { uids, ..classic }.admit(&socket, source)
        };
        let others = own_uid.wrapping_add(1);
        for at in 0..3 {
            let mut uids = [others; 3];
            assert!(admit(uids).unwrap_err().contains(&format!("uid {own_uid} may not")));
            uids[at] = own_uid;
            assert_eq!(admit(uids), Ok(format!("uid {own_uid}")));
        }
        drop(client);
        assert!(admit([own_uid; 3]).unwrap_err().contains("can't be told"));
    }

    #[test]
    fn another_machine_comes_in_only_where_all_is_allowed() {
        // C-5.3.
        let server = user("x", 4_000_000);
        let judge = |anywhere: bool, peer: TcpPeer, is_own: Result<bool, String>| {
            let config = config("127.0.0.1:0", None);
            let (classic, _) = Classic::new(&config, &server, Path::new("/nonexistent")).unwrap();
            Classic { anywhere, ..classic }.judge(peer, || is_own).is_ok()
        };
        assert!(judge(true, TcpPeer::NotHere, Ok(false)));
        assert!(!judge(true, TcpPeer::NotHere, Ok(true)));
        assert!(!judge(true, TcpPeer::NotHere, Err("no socket".to_owned())));
        assert!(!judge(false, TcpPeer::NotHere, Ok(false)));
        // Whoever is on this machine is held to its uid there too.
        for anywhere in [false, true] {
            assert!(!judge(anywhere, TcpPeer::User(1), Ok(false)));
            assert!(!judge(anywhere, TcpPeer::Gone, Ok(false)));
            assert!(judge(anywhere, TcpPeer::User(4_000_000), Ok(true)));
        }
    }

    #[test]
    fn places_are_counted() {
        // C-6.6, on both sides.
        let clients = AtomicUsize::new(CONNECTIONS_MAX - 1);
        let place = Place::take(&clients).unwrap();
        assert!(Place::take(&clients).is_none());
        drop(place);
        assert!(Place::take(&clients).is_some());
    }
}
