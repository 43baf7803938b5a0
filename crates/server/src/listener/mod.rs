//! The listener: lets clients in and hands their connections to the user's supervisor.
//!
//! It can be killed, restarted or upgraded at any moment. It holds no job and parses nothing of
//! one.

mod delegations;
mod door;
mod gate;
mod hand_off;
mod launches;
mod live;
mod ready;
mod reserve;
pub(crate) mod trust;
pub(crate) mod watched_file;

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use afar_core::account::AccountRules;
use afar_core::doorkeeper::DoorRules;
use afar_core::policy::Grant;
use afar_net::accept::{Accepted, accept};
use afar_net::clock::Clock;
use afar_net::files::FileError;
use afar_net::host_key::{HostKeyError, HostPublicKey};
use afar_net::tls::TlsSetupError;
use afar_sys::child::Child;
use afar_sys::socket::{
    Keepalive, listen_tcp, set_tcp_keepalive, set_tcp_nodelay, set_tcp_notsent_lowat,
};
use afar_sys::users::{User, current_user};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

use crate::classic::{self, Classic, ClassicConfig, ClassicError};
use crate::launch::{LaunchError, Launcher};
use crate::limits::LAUNCH_PATIENCE;
use crate::log::Log;
use crate::paths::state_dir;
use door::Door;
use launches::Launches;
use reserve::Reserve;

use live::{Current, Found, Live, Own};

pub use delegations::{
    DELEGATION_LIFETIME_MAX, DELEGATION_PRESENT_LIFETIME_MAX, DELEGATIONS_MAX,
    DELEGATIONS_PER_USER_MAX,
};
pub use live::{Reload, check};

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u16 = 1024;

/// Threads that serve connections; each connection stays on one.
const THREADS_MAX: usize = 4;

/// The kernel gives a connection up whose peer does not acknowledge, or has taken nothing for a
/// minute: the supervisor has given it up by then (`W-9.17`), and nobody else would notice.
const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    probes: 3,
    unacknowledged: Duration::from_secs(60),
};

/// How long to wait after accept(2) failed: the reason (no descriptor, no memory) needs time to go
/// away, and asking again at once would only burn the processor.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// What a listener is to do.
#[derive(Debug)]
pub struct ServeConfig {
    /// Addresses, `HOST:PORT`; port 0 picks a free one.
    pub listen: Vec<String>,
    /// Where the actual addresses are written, a line each, once connections are accepted.
    pub ready_file: Option<PathBuf>,
    /// Host keys; empty: those of sshd where they are readable, else one of our own.
    pub host_keys: Vec<PathBuf>,
    /// Where user's keys are, with `%h` and `%u`.
    pub authorized_keys: Vec<String>,
    /// A file of authorities whose certificates may log in as the users that they name.
    pub trusted_user_ca_keys: Option<PathBuf>,
    /// A file of keys and certificates that must not log in, a KRL or a list.
    pub revoked_keys: Option<PathBuf>,
    /// Which accounts may come in.
    pub accounts: AccountRules,
    /// Where the sockets are of the supervisors that root starts for other users;
    /// [`SOCKET_DIR`](crate::launch::SOCKET_DIR) for all but tests.
    pub socket_dir: PathBuf,
    /// Who may knock, and when (`W-4.11`).
    pub door: DoorRules,
    /// Where and how the classic protocol is served; nowhere if it names no address.
    pub classic: ClassicConfig,
    /// Afar's own program, to start supervisors.
    pub executable: PathBuf,
    /// The log.
    pub log: Log,
}

/// What a listener says once it accepts connections.
#[derive(Debug)]
pub struct Ready {
    /// The actual addresses.
    pub addresses: Vec<SocketAddr>,
    /// Those of the classic protocol.
    pub classic: Vec<SocketAddr>,
    /// The host keys that it proves.
    pub host_keys: Vec<HostPublicKey>,
    /// A host key that was made just now.
    pub created: Option<PathBuf>,
}

/// Why a listener could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address is none, or can't be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address as it was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// No host key can be used.
    #[error("{0}")]
    HostKey(#[from] HostKeyError),
    /// TLS can't be set up with these keys.
    #[error("{0}")]
    Tls(#[from] TlsSetupError),
    /// A file that decides about keys can't be used.
    #[error("{0}")]
    TrustFile(String),
    /// The classic protocol can't be served as it was asked for.
    #[error("{0}")]
    Classic(#[from] ClassicError),
    /// The user who runs this is in no user database.
    #[error("the user who runs the server (uid {0}) is not in the user database")]
    UnknownUser(u32),
    /// The file that tells the addresses can't be written.
    #[error("cannot write the ready file: {0}")]
    ReadyFile(FileError),
    /// The system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What the threads of a listener share.
pub(crate) struct Shared {
    current: Current,
    own: Own,
    log: Log,
    door: Door,
    launches: Launches,
    classic: Option<Arc<Classic>>,
}

impl Shared {
    /// The log.
    pub(crate) fn log(&self) -> Log {
        self.log
    }
}

/// Serves until SIGTERM or SIGINT. `on_ready` is called once, when connections are accepted. At
/// SIGHUP the configuration is taken from `reload`, but for the addresses, and where anything is wrong
/// with it the old one stays. (Where we are in the foreground of a terminal that signal says that the
/// terminal is gone, and ends us.)
///
/// Connections that were handed off go on when it ends, and so do the supervisors and their jobs.
///
/// # Errors
/// See [`ServeError`]; after `on_ready` there is none.
pub fn serve(
    config: ServeConfig,
    reload: impl Fn() -> Result<ServeConfig, String> + Send + Sync + 'static,
    on_ready: impl FnOnce(&Ready),
) -> Result<(), ServeError> {
    let user = serving_user()?;
    // The more connections, the more descriptors; the limit that was set for shells is low.
    let open_files_soft = match afar_sys::inherit::raise_nofile_limit() {
        Ok(limit) => limit.inherited_soft,
        Err(error) => {
            config.log.info(&format!("the limit of open descriptors stays as it is: {error}"));
            None
        }
    };
    let launcher = Launcher {
        executable: config.executable.clone(),
        socket_dir: config.socket_dir.clone(),
        open_files_soft,
    };
    let own = Own { user, launcher };
    let (live, Found { host_keys, created }) = Live::load(&config, &own, None)?;
    let mut entrances = listen(&config.listen, Protocol::Afar)?;
    let (classic, addresses) = classic_of(&config, &own.user)?.unzip();
    entrances.extend(listen(&addresses.unwrap_or_default(), Protocol::Classic)?);
    let shared = Arc::new(Shared {
        current: Current::new(live),
        own,
        log: config.log,
        door: Door::new(config.door),
        launches: Launches::default(),
        classic: classic.map(Arc::new),
    });

    let (stop, stopped) = watch::channel(false);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let mut workers = Vec::new();
    for _ in 1..threads {
        let entrances = clone_all(&entrances)?;
        let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
        workers.push(std::thread::spawn(move || work(&shared, entrances, stopped)));
    }
    let runtime = runtime()?;
    if let Some(hangup) = hangup(&runtime)? {
        let reload: Arc<Reload> = Arc::new(reload);
        let opened = live::Opened { listen: config.listen, classic: config.classic };
        runtime.spawn(live::reload_at(hangup, reload, Arc::clone(&shared), opened));
    }
    let ready = Ready {
        addresses: addresses_of(&entrances, Protocol::Afar),
        classic: addresses_of(&entrances, Protocol::Classic),
        host_keys,
        created,
    };
    ready::announce(&ready, config.ready_file.as_deref())?;
    on_ready(&ready);
    runtime.block_on(async {
        tokio::spawn(async move {
            until_told_to_stop().await;
            let _ = stop.send(true);
        });
    });
    drive(runtime, &shared, entrances, stopped);
    for worker in workers {
        // A worker that has panicked has said so already.
        let _ = worker.join();
    }
    if let Some(path) = &config.ready_file {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// The user who runs this.
fn serving_user() -> Result<User, ServeError> {
    let user = current_user()
        .map_err(|source| ServeError::Io { action: "cannot read the user database", source })?;
    user.ok_or_else(|| ServeError::UnknownUser(afar_sys::users::effective_uid()))
}

/// The server of the classic protocol and its addresses, if it is asked for.
fn classic_of(
    config: &ServeConfig,
    user: &User,
) -> Result<Option<(Classic, Vec<String>)>, ServeError> {
    if config.classic.listen.is_empty() {
        return Ok(None);
    }
    let (classic, addresses) = Classic::new(&config.classic, user, &state_dir(&user.home))?;
    Ok(Some((classic, addresses.iter().map(ToString::to_string).collect())))
}

/// What is spoken at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Afar,
    Classic,
}

/// An address that is listened on.
struct Entrance {
    listener: StdListener,
    address: SocketAddr,
    protocol: Protocol,
}

fn listen(addresses: &[String], protocol: Protocol) -> Result<Vec<Entrance>, ServeError> {
    use std::net::ToSocketAddrs as _;
    let mut entrances = Vec::new();
    for text in addresses {
        let failed = |source| ServeError::Listen { address: text.clone(), source };
        for address in text.to_socket_addrs().map_err(failed)? {
            let listener = listen_tcp(address, BACKLOG).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            entrances.push(Entrance { listener, address, protocol });
        }
    }
    Ok(entrances)
}

fn addresses_of(entrances: &[Entrance], protocol: Protocol) -> Vec<SocketAddr> {
    entrances.iter().filter(|at| at.protocol == protocol).map(|at| at.address).collect()
}

fn clone_all(entrances: &[Entrance]) -> Result<Vec<Entrance>, ServeError> {
    let cloned =
        entrances.iter().map(|at| Ok(Entrance { listener: at.listener.try_clone()?, ..*at }));
    cloned
        .collect::<io::Result<_>>()
        .map_err(|source| ServeError::Io { action: "cannot share a listening socket", source })
}

fn runtime() -> Result<tokio::runtime::Runtime, ServeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ServeError::Io { action: "cannot start the runtime", source })
}

/// SIGHUP, caught before anybody is told that we are ready; `None` where it is a terminal's.
fn hangup(
    runtime: &tokio::runtime::Runtime,
) -> Result<Option<tokio::signal::unix::Signal>, ServeError> {
    use std::io::IsTerminal as _;
    use tokio::signal::unix::{SignalKind, signal};
    if io::stdin().is_terminal() || io::stderr().is_terminal() {
        return Ok(None);
    }
    let _context = runtime.enter();
    let caught = signal(SignalKind::hangup());
    caught.map(Some).map_err(|source| ServeError::Io { action: "cannot catch SIGHUP", source })
}

async fn until_told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// One thread's part of the work.
fn work(shared: &Arc<Shared>, entrances: Vec<Entrance>, stopped: watch::Receiver<bool>) {
    match runtime() {
        Ok(runtime) => drive(runtime, shared, entrances, stopped),
        Err(error) => shared.log.error(&format!("a thread less: {error}")),
    }
}

fn drive(
    runtime: tokio::runtime::Runtime,
    shared: &Arc<Shared>,
    entrances: Vec<Entrance>,
    stopped: watch::Receiver<bool>,
) {
    until_stopped(runtime, stopped, || {
        for Entrance { listener, address, protocol } in entrances {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    tokio::spawn(accept_all(Arc::clone(shared), listener, protocol));
                }
                Err(error) => shared.log.error(&format!("cannot serve {address}: {error}")),
            }
        }
    });
}

/// Runs what `begin` has spawned. What blocks on a thread then, such as a read from a server that does
/// not answer, is not waited for.
fn until_stopped(
    runtime: tokio::runtime::Runtime,
    mut stopped: watch::Receiver<bool>,
    begin: impl FnOnce(),
) {
    runtime.block_on(async {
        begin();
        let _ = stopped.wait_for(|stop| *stop).await;
    });
    runtime.shutdown_background();
}

async fn accept_all(shared: Arc<Shared>, listener: TcpListener, protocol: Protocol) {
    let mut reserve = Reserve::new();
    let mut failing = false;
    loop {
        let (socket, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Said once, and not for each one who knocks.
                if !failing {
                    shared.log.error(&format!("cannot accept a connection: {error}"));
                }
                failing = true;
                if !(Reserve::is_for(&error) && reserve.turn_one_away(&listener).await) {
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
                continue;
            }
        };
        failing = false;
        let shared = Arc::clone(&shared);
        match (protocol, &shared.classic) {
            (Protocol::Afar, _) => {
                tokio::spawn(serve_connection(shared, socket, source));
            }
            (Protocol::Classic, Some(classic)) => {
                let classic = Arc::clone(classic);
                tokio::spawn(classic::serve_client(shared, classic, socket, source));
            }
            // There is such an entrance only if there is a server for it.
            (Protocol::Classic, None) => {}
        }
    }
}

async fn serve_connection(shared: Arc<Shared>, socket: TcpStream, source: SocketAddr) {
    let newcomer = match shared.door.enter(source).await {
        Ok(newcomer) => newcomer,
        Err(why) => return shared.log.info(&format!("{source}: closed unheard: {why}")),
    };
    // What fails here costs speed, or a dead peer's socket for longer: no reason to turn anybody
    // away.
    let _ = set_tcp_nodelay(&socket);
    let _ = set_tcp_keepalive(&socket, KEEPALIVE);
    let _ = set_tcp_notsent_lowat(&socket, afar_net::dial::NOT_SENT_LOW_WATER);
    let live = shared.current.get();
    let came_in = accept(socket, source, &live.tls, &live.gate, Clock::new()).await;
    let monitor = Arc::clone(&live.monitor);
    drop(live);
    newcomer.leave(&came_in);
    let accepted = match came_in {
        Ok(accepted) => accepted,
        Err(error) => return shared.log.info(&format!("{source}: {error}")),
    };
    if let Some(why) = monitor.closed_for(accepted.grant.uid) {
        shared.log.info(&format!("{source}: turned away: {why}"));
        return hand_off::turn_away(accepted.transport, why).await;
    }
    let supervisor = match connect_supervisor(&shared, &accepted.grant).await {
        Ok(stream) => stream,
        Err(error) => {
            shared.log.error(&format!("{source}: {error}"));
            return hand_off::turn_away(accepted.transport, error.notice()).await;
        }
    };
    let Accepted { transport, grant, rest } = accepted;
    if let Err(error) = hand_off::hand_off(transport, supervisor, &grant, &rest).await {
        shared.log.error(&format!("{source}: the supervisor did not take over: {error}"));
    }
}

/// A connection to the user's supervisor, which is started where there is none.
pub(crate) async fn connect_supervisor(
    shared: &Shared,
    grant: &Grant,
) -> Result<UnixStream, Arc<LaunchError>> {
    let to_tokio = |stream: std::os::unix::net::UnixStream| {
        stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream))
            .map_err(|source| LaunchError::Io { action: "cannot use the socket", source })
    };
    let deadline = Instant::now() + LAUNCH_PATIENCE;
    loop {
        // A running one is connected to at once; only a start, or one that is busy, is worth a thread.
        let monitor = Arc::clone(&shared.current.get().monitor);
        match monitor.running_supervisor(grant.uid) {
            Ok(Some(stream)) => return to_tokio(stream).map_err(Arc::new),
            Ok(None) | Err(LaunchError::Busy) => {}
            Err(error) => return Err(Arc::new(error)),
        }
        if Instant::now() >= deadline {
            return Err(Arc::new(LaunchError::Busy));
        }
        let (name, uid) = (grant.user.clone(), grant.uid);
        let start = move || monitor.supervisor(OsStr::from_bytes(name.as_bytes()), uid);
        let Some(launched) = shared.launches.launch(uid, start).await? else { continue };
        if let Some(child) = launched.started {
            tokio::spawn(reap(child));
        }
        return to_tokio(launched.stream).map_err(Arc::new);
    }
}

/// Waits for a supervisor that is a child of this process, so that it leaves no zombie.
async fn reap(mut child: Child) {
    let Ok(pidfd) = child.pidfd().try_clone_to_owned() else { return };
    let Ok(pidfd) = afar_sys::readiness::watch(pidfd, tokio::io::Interest::READABLE) else {
        return;
    };
    if pidfd.readable().await.is_ok() {
        let _ = child.try_wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_is_told_to_end_waits_for_nothing_that_blocks() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (ended, has_ended) = std::sync::mpsc::channel();
        let (_stop, stopped) = watch::channel(true);
        until_stopped(runtime().unwrap(), stopped, || {
            tokio::task::spawn_blocking(move || {
                let _ = held.recv();
                let _ = ended.send(());
            });
        });
        // Only now: had it been waited for, nothing would ever get here.
        drop(release);
        has_ended.recv().unwrap();
    }
}
