//! The supervisor: runs one user's jobs, as that user, for whoever a listener has let in.
//!
//! There is one a user, held by a lock. It is started on demand and ends by itself when it has had
//! nothing to do for a while. Only processes of its own user or of root may connect, and the first
//! frame of each connection is the grant.

mod confine;
mod conversation;
#[cfg(test)]
mod deadlines;
mod environment;
mod job;
mod jobs;
mod listing;
mod request;
mod session;
mod socket;
mod standing;
mod upgrade;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afar_core::journal::Entry;
use afar_net::local::{Introduction, introduced};
use afar_proto::message::Incarnation;
use afar_sys::guard::{Split, split};
use afar_sys::private_files::PrivateDirError;
use afar_sys::socket::peer_credentials;
use afar_sys::users::{User, current_user, effective_uid};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};

use crate::guardian;
use crate::limits::{GRANT_DEADLINE, SOCKET_INTERVAL, STOP_KILL_PATIENCE, STOP_TIMEOUT};
use crate::local_files::are_local;
use crate::log::Log;
use crate::lost_jobs::LostJobs;
use crate::paths::jobs_dir;
use crate::store::{self, Archive, ArchiveConfig, Beginning, OpenedArchive, Quotas, RealDisk};
use conversation::Conversation;
use socket::{Claim, Socket};
use upgrade::Left;

pub use afar_core::job::limits::{DRAIN_MAX, DRAIN_SILENCE};
pub(crate) use environment::{login_variables, shell_of};
pub(crate) use request::MARK_VARIABLE;
pub use session::{SESSION_IDLE_MAX, SESSION_QUEUE_MAX, SESSIONS_MAX};
pub use upgrade::check_state;

/// How long a supervisor without connections and jobs stays.
pub const IDLE_EXIT: Duration = Duration::from_secs(600);

/// How long to wait after accept(2) failed, for whatever is lacking to come back.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The status of a supervisor that was told to end, and leaves jobs that have not ended.
const STATUS_JOBS_LEFT: u8 = 1;

/// The file mode creation mask of jobs, as a login gives it (login.defs(5)).
const UMASK: u32 = 0o022;

/// Threads for what blocks: reading `/proc` when jobs are ended.
const BLOCKING_THREADS: usize = 4;

/// How long they stay once there: for ever. One that is there is needed most when no other can be had,
/// because a job has taken all processes that its user may have: it ends that job.
const BLOCKING_THREADS_KEPT: Duration = Duration::from_secs(u32::MAX as u64);

/// What a supervisor is to do.
#[derive(Clone, Copy, Debug)]
pub struct SupervisorConfig {
    /// How long to stay without anything to do.
    pub idle_exit: Duration,
    /// Whether root has started it, and has passed its socket and its lock on to it.
    pub passed: bool,
    /// The descriptor of what the program before this one has left, in an upgrade.
    pub resume: Option<RawFd>,
    /// The log.
    pub log: Log,
}

impl Default for SupervisorConfig {
    fn default() -> Self {
        Self { idle_exit: IDLE_EXIT, passed: false, resume: None, log: Log::default() }
    }
}

/// Why a supervisor could not run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Its directory can't be used.
    #[error("{0}")]
    Directory(#[from] PrivateDirError),
    /// The user who runs this is in no user database.
    #[error("the user who runs the supervisor (uid {0}) is not in the user database")]
    UnknownUser(u32),
    /// The system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn io_error(action: &'static str) -> impl Fn(io::Error) -> SupervisorError {
    move |source| SupervisorError::Io { action, source }
}

/// What all conversations share. They run on one thread.
struct Supervisor {
    user: User,
    /// The soft limit of open descriptors that jobs start with: the one that this process was
    /// started with, before it raised its own.
    open_files_soft: Option<u64>,
    /// Where the cgroups of its jobs are made.
    cgroups: confine::Cgroups,
    jobs: jobs::Jobs,
    /// How many connections there were, to tell them apart.
    connections: Cell<u64>,
    sessions: session::Sessions,
    /// Whether it is to go on as another program, and who wants to know.
    upgrade: upgrade::Wanted,
    /// What keeps the supervisor from ending for idleness.
    busy: watch::Sender<Counts>,
    /// Whether it was told to end.
    stopping: watch::Sender<Stopping>,
    /// Pipes that jobs have left open behind them, by their descriptors.
    left_open: RefCell<BTreeSet<RawFd>>,
    /// Where its program was found when it was started: that of the next one, after an upgrade.
    executable: PathBuf,
    /// The turn to look at what grants rest on.
    looking: Arc<Semaphore>,
    /// Those of the last grant whose files were found to be on this machine.
    local_files: RefCell<Option<standing::Files>>,
    log: Log,
}

impl Supervisor {
    fn new(user: User, open_files_soft: Option<u64>, log: Log) -> Self {
        let incarnation = new_incarnation();
        Self {
            cgroups: confine::Cgroups::default(),
            user,
            open_files_soft,
            jobs: jobs::Jobs::new(incarnation),
            connections: Cell::default(),
            sessions: session::Sessions::default(),
            upgrade: upgrade::Wanted::default(),
            busy: watch::Sender::new(Counts::default()),
            stopping: watch::Sender::new(Stopping::No),
            left_open: RefCell::default(),
            // The name of a program that was replaced since is of no use to anybody.
            executable: std::env::current_exe().unwrap_or_default(),
            looking: Arc::new(Semaphore::new(1)),
            local_files: RefCell::default(),
            log,
        }
    }

    /// A number that no connection has had.
    fn next_connection(&self) -> u64 {
        self.connections.set(self.connections.get() + 1);
        self.connections.get()
    }
}

/// What is known of jobs.
struct Known {
    archive: Rc<RefCell<Archive>>,
    /// Those whose processes may run still, though their supervisor was killed, and its guardian too.
    unended: Vec<Entry>,
}

impl Known {
    /// Does the guardian's work, for want of one, while this supervisor already listens.
    async fn end_unended(self, log: Log) {
        let Self { archive, unended } = self;
        if unended.is_empty() {
            return;
        }
        let ended = tokio::task::spawn_blocking(move || {
            let mut lost = LostJobs::new(unended, None);
            lost.end(std::thread::sleep);
            lost.results(log)
        });
        // A thread that has panicked has said why; the next supervisor tries it again.
        for result in ended.await.unwrap_or_default() {
            archive.borrow_mut().tree_ended(result);
        }
    }
}

/// What is known of the jobs before, and will be of those to come. Without it jobs run all the same,
/// and are forgotten with this process.
fn open_archive(user: &User, incarnation: Option<Incarnation>, log: Log) -> Option<Known> {
    let path = jobs_dir(&user.home);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let opened = afar_sys::boot::boot_id().map_err(|error| error.to_string()).and_then(|boot| {
        let beginning = Beginning {
            incarnation: incarnation.map(|incarnation| incarnation.as_str().to_owned()),
            boot,
            since_boot: afar_sys::boot::since_boot(),
            unix_us: u64::try_from(unix.as_micros()).unwrap_or(u64::MAX),
        };
        let may_hang = !are_local(std::iter::once(path.as_path()));
        if may_hang {
            // The log is beside it.
            crate::log::write_elsewhere();
        }
        let (disk, quotas) = (Arc::new(RealDisk), Quotas::default());
        let config = ArchiveConfig { disk, quotas, may_hang, log };
        Archive::open(&path, &config, &beginning).map_err(|error| error.to_string())
    });
    match opened {
        Ok(OpenedArchive { archive, lost, unended }) => {
            for entry in lost {
                let job = &entry.intended.job.job;
                log.info(&format!("the supervisor of job {job} was killed: its end is not known"));
            }
            Some(Known { archive: Rc::new(RefCell::new(archive)), unended })
        }
        Err(error) => {
            log.error(&format!(
                "jobs are not written down, and forgotten with this process: {error}"
            ));
            if let Err(error) = Archive::disavow(&path) {
                log.error(&format!("and what was written down does not say so: {error}"));
            }
            None
        }
    }
}

/// Which life of a supervisor this is: random, so that no two are taken for one.
fn new_incarnation() -> Incarnation {
    // Without random bytes nothing is started either: then the time since boot tells them apart.
    let random = afar_sys::random::random_bytes::<8>().map(u64::from_be_bytes);
    let since_boot = || u64::try_from(afar_sys::boot::since_boot().as_nanos()).unwrap_or(0);
    let text = format!("{:016x}", random.unwrap_or_else(|_| since_boot()));
    Incarnation::new(&text).expect("hexadecimal digits are allowed in it")
}

/// Runs the supervisor of the user who runs this, until it has had nothing to do for
/// [`SupervisorConfig::idle_exit`], or SIGTERM. Returns at once if there is one already.
///
/// A line is written to stdout once it listens, which is then closed.
///
/// This process becomes its guardian, and the supervisor is its child. Returns in both: in the guardian
/// with the status that the supervisor has ended with.
///
/// # Errors
/// See [`SupervisorError`].
pub fn run(config: SupervisorConfig) -> Result<u8, SupervisorError> {
    // Whoever started us may ignore it, and then no child could be waited for.
    afar_sys::signals::default_sigchld();
    if let Some(number) = config.resume {
        return go_on(number, config);
    }
    let claim = if config.passed { Some(Claim::passed()?) } else { Claim::own()? };
    let Some(claim) = claim else { return Ok(0) };
    let user = current_user()
        .map_err(io_error("cannot read the user database"))?
        .ok_or_else(|| SupervisorError::UnknownUser(effective_uid()))?;
    let cgroups = confine::Cgroups::take(&user, config.log);
    // Before there is a thread, and while there is little memory to share.
    match split(c"afar-guardian", c"afar-supervisor") {
        Ok(Split::Guarded) => {}
        Ok(Split::Guardian(guard)) => {
            // Whoever waits for the supervisor to listen waits for it alone.
            close_stdout();
            let lock = claim.into_lock();
            return Ok(guardian::run(guard, lock, Some(&jobs_dir(&user.home)), config.log));
        }
        Err(error) => {
            config.log.error(&format!("no guardian will look after a killed supervisor: {error}"));
        }
    }
    let open_files_soft = match afar_sys::inherit::raise_nofile_limit() {
        Ok(limit) => limit.inherited_soft,
        Err(error) => {
            config.log.info(&format!("the limit of open descriptors stays as it is: {error}"));
            None
        }
    };
    // Whoever happens to be first must not choose it for all later jobs.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
    if let Err(error) = rustix::process::setpriority_process(None, 0) {
        config.log.info(&format!("jobs have the niceness of whoever started the first: {error}"));
    }
    let archive = open_archive(&user, Some(new_incarnation()), config.log);
    let supervisor = Supervisor { cgroups, ..Supervisor::new(user, open_files_soft, config.log) };
    run_here(supervisor, archive, claim, None, config.idle_exit)
}

/// Goes on with what the program before this one has left in this process.
fn go_on(number: RawFd, config: SupervisorConfig) -> Result<u8, SupervisorError> {
    let failed = io_error("cannot go on after an upgrade");
    // Before anything is opened.
    let left = Left::take(number).map_err(&failed)?;
    let claim = left.claim().map_err(&failed)?;
    let user = current_user()
        .map_err(io_error("cannot read the user database"))?
        .ok_or_else(|| SupervisorError::UnknownUser(effective_uid()))?;
    let archive = open_archive(&user, None, config.log);
    let supervisor = Supervisor {
        cgroups: confine::Cgroups::take(&user, config.log),
        jobs: left.jobs(),
        ..Supervisor::new(user, left.open_files_soft(), config.log)
    };
    run_here(supervisor, archive, claim, Some(left), config.idle_exit)
}

fn run_here(
    mut supervisor: Supervisor,
    known: Option<Known>,
    claim: Claim,
    left: Option<Left>,
    idle_exit: Duration,
) -> Result<u8, SupervisorError> {
    let archive = known.as_ref().map(|known| Rc::clone(&known.archive));
    let archived = archive.clone().and_then(jobs::Jobs::archived);
    if let Some(jobs) = archived {
        supervisor.jobs = jobs;
    }
    let supervisor = Rc::new(supervisor);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_THREADS_KEPT)
        .build()
        .map_err(io_error("cannot start the runtime"))?;
    keep_a_thread(&runtime)?;
    let local = tokio::task::LocalSet::new();
    if let Some((known, archive)) = known.zip(archive) {
        local.spawn_local(known.end_unended(supervisor.log));
        local.spawn_local(async move { store::tend(&archive).await });
    }
    local.block_on(&runtime, serve(supervisor, claim, left, idle_exit))
}

/// Has the runtime start one of its threads for what blocks, which it keeps.
fn keep_a_thread(runtime: &tokio::runtime::Runtime) -> Result<(), SupervisorError> {
    // The runtime has no way to say that it can't.
    let probe =
        std::thread::Builder::new().spawn(|| ()).map_err(io_error("cannot have a thread"))?;
    let _ = probe.join();
    runtime.spawn_blocking(|| ());
    Ok(())
}

async fn serve(
    supervisor: Rc<Supervisor>,
    claim: Claim,
    left: Option<Left>,
    idle_exit: Duration,
) -> Result<u8, SupervisorError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).map_err(io_error("cannot handle SIGTERM"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(io_error("cannot handle SIGHUP"))?;
    let mut socket = Some(claim.listen()?);
    if let Some(left) = left {
        left.go_on(&supervisor);
    }
    say_ready();
    let mut look = tokio::time::interval(SOCKET_INTERVAL);
    let mut idling = Box::pin(idle(supervisor.busy.subscribe(), idle_exit));
    loop {
        tokio::select! {
            accepted = accept(socket.as_ref()) => match accepted {
                Ok(stream) => welcome(&supervisor, stream),
                Err(error) => {
                    supervisor.log.error(&format!("cannot accept a connection: {error}"));
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            },
            _ = look.tick() => {
                if let Some(renewed) = renewed(socket.as_ref(), &supervisor.log) {
                    socket = Some(renewed);
                }
            }
            () = &mut idling => {
                idling = Box::pin(idle(supervisor.busy.subscribe(), idle_exit));
                let Some(open) = socket.take() else { return Ok(0) };
                let (late, claim) = open.close()?;
                if late.is_empty() {
                    return Ok(0);
                }
                // Somebody came in at the last moment: stay, under a new socket.
                late.into_iter().for_each(|stream| welcome(&supervisor, stream));
                socket = claim.renewable().map(Claim::listen).transpose()?;
            }
            _ = term.recv() => {
                let all_ended = stop(&supervisor, socket).await;
                return Ok(if all_ended { 0 } else { STATUS_JOBS_LEFT });
            }
            _ = hangup.recv() => upgrade::want(&supervisor, None),
            () = upgrade::due(&supervisor) => upgrade::upgrade(&supervisor, socket.as_ref()).await,
        }
    }
}

/// Another socket, if this one is lost and there can be one. Jobs go on in any case; without one this
/// supervisor ends when it has nothing more to do.
fn renewed(socket: Option<&Socket>, log: &Log) -> Option<Socket> {
    let lost = socket.filter(|socket| socket.is_lost())?;
    match lost.renew() {
        Ok(Some(renewed)) => {
            log.info("the socket was gone; there is a new one");
            Some(renewed)
        }
        Ok(None) => {
            log.debug("the socket is gone, and another supervisor has its place");
            None
        }
        Err(error) => {
            log.debug(&format!("the socket is gone: {error}"));
            None
        }
    }
}

/// The next one who connects, if anybody can.
async fn accept(socket: Option<&Socket>) -> io::Result<UnixStream> {
    match socket {
        Some(socket) => socket.accept().await,
        None => std::future::pending().await,
    }
}

/// Tells whoever started this process that it listens, and needs to be told no more.
fn say_ready() {
    // A starter that has gone away needs to be told nothing.
    let _ = writeln!(io::stdout());
    let _ = io::stdout().flush();
    close_stdout();
}

/// Lets go of what this process was started with.
fn close_stdout() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// Resolves when there was no connection for the whole of `time`.
async fn idle(mut busy: watch::Receiver<Counts>, time: Duration) {
    loop {
        // The sender lives as long as the supervisor.
        let _ = busy.wait_for(|counts| *counts == Counts::default()).await;
        let somebody = busy.wait_for(|counts| *counts != Counts::default());
        if tokio::time::timeout(time, somebody).await.is_err() {
            return;
        }
    }
}

/// What the supervisor is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    No,
    /// It ends, and its jobs do.
    ForGood,
    /// It goes on as another program.
    ForUpgrade,
}

/// Counts a connection for as long as it has something to do.
struct Busy(Rc<Supervisor>);

impl Busy {
    fn new(supervisor: &Rc<Supervisor>) -> Self {
        supervisor.busy.send_modify(|counts| counts.conversations += 1);
        Self(Rc::clone(supervisor))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.send_modify(|counts| counts.conversations -= 1);
    }
}

/// What keeps a supervisor from ending for idleness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    conversations: usize,
    /// Jobs that are not over.
    jobs: usize,
    /// Jobs that are over, and of which somebody may still want something.
    kept: usize,
    /// Pipes that jobs have left open behind them.
    left_open: usize,
    /// Sessions, with a shell or without.
    sessions: usize,
    /// Their commands, those included that wait for their turn.
    turns: usize,
}

impl Counts {
    fn of(&mut self, why: Why) -> &mut usize {
        match why {
            Why::Running => &mut self.jobs,
            Why::Kept => &mut self.kept,
            Why::LeftOpen => &mut self.left_open,
        }
    }
}

/// Why a job keeps the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Running,
    Kept,
    LeftOpen,
}

/// Counts a job for as long as it, or what is left of it, is there.
struct Stay {
    supervisor: Rc<Supervisor>,
    why: Why,
}

impl Stay {
    fn new(supervisor: &Rc<Supervisor>, why: Why) -> Self {
        supervisor.busy.send_modify(|counts| *counts.of(why) += 1);
        Self { supervisor: Rc::clone(supervisor), why }
    }

    /// The job is over, and stays for what somebody may still want of it.
    fn keep(&mut self) {
        *self = Self::new(&self.supervisor, Why::Kept);
    }

    fn is_kept(&self) -> bool {
        self.why == Why::Kept
    }

    fn supervisor(&self) -> &Rc<Supervisor> {
        &self.supervisor
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.supervisor.busy.send_modify(|counts| *counts.of(self.why) -= 1);
    }
}

impl std::fmt::Debug for Stay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stay({:?})", self.why)
    }
}

/// Counts a session for as long as it is there.
struct OpenSession(Rc<Supervisor>);

impl OpenSession {
    fn new(supervisor: &Rc<Supervisor>) -> Self {
        supervisor.busy.send_modify(|counts| counts.sessions += 1);
        Self(Rc::clone(supervisor))
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.busy.send_modify(|counts| counts.sessions -= 1);
    }
}

/// Counts a command of a session until its shell has done with it.
struct AtWork(Rc<Supervisor>);

impl AtWork {
    fn new(supervisor: &Rc<Supervisor>) -> Self {
        supervisor.busy.send_modify(|counts| counts.turns += 1);
        Self(Rc::clone(supervisor))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.busy.send_modify(|counts| counts.turns -= 1);
    }
}

/// Tells every client that this ends, and waits until their jobs have been ended, and the shells of
/// sessions; whoever takes too long is killed. Nobody else can start one before that. False if something is
/// left even so, which the guardian looks after.
async fn stop(supervisor: &Rc<Supervisor>, socket: Option<Socket>) -> bool {
    supervisor.stopping.send_replace(Stopping::ForGood);
    supervisor.jobs.end_all();
    let closed = socket.map(Socket::close).transpose().unwrap_or_else(|error| {
        supervisor.log.error(&format!("who connects now is not heard: {error}"));
        None
    });
    let (late, _claim) = closed.unzip();
    // Who came in at the last moment is told too.
    late.into_iter().flatten().for_each(|stream| welcome(supervisor, stream));
    let mut busy = supervisor.busy.subscribe();
    let gone = |counts: &Counts| counts.conversations + counts.jobs + counts.sessions == 0;
    if tokio::time::timeout(STOP_TIMEOUT, busy.wait_for(gone)).await.is_ok() {
        return true;
    }
    let jobs = busy.borrow().jobs;
    supervisor.log.error(&format!("{jobs} jobs have not ended in time, and are killed"));
    supervisor.jobs.hasten_all();
    tokio::time::timeout(STOP_KILL_PATIENCE, busy.wait_for(gone)).await.is_ok()
}

fn welcome(supervisor: &Rc<Supervisor>, stream: UnixStream) {
    let busy = Busy::new(supervisor);
    let supervisor = Rc::clone(supervisor);
    tokio::task::spawn_local(async move {
        let _busy = busy;
        match admit(&supervisor, stream).await {
            Ok(Introduction::Client(introduced)) => {
                Conversation::new(supervisor, *introduced).run().await;
            }
            Ok(Introduction::Upgrade(asker)) => upgrade::want(&supervisor, Some(asker)),
            Err(reason) => supervisor.log.info(&format!("a connection was refused: {reason}")),
        }
    });
}

/// Checks who connects and reads whom it brings (`W-4.8`).
async fn admit(supervisor: &Supervisor, stream: UnixStream) -> Result<Introduction, String> {
    let own_uid = supervisor.user.uid;
    let peer = peer_credentials(&stream).map_err(|error| error.to_string())?;
    if peer.uid != 0 && peer.uid != own_uid {
        return Err(format!("uid {} may not connect", peer.uid));
    }
    let introduced = tokio::time::timeout(GRANT_DEADLINE, introduced(stream))
        .await
        .map_err(|_| "it sent no grant".to_owned())?
        .map_err(|error| error.to_string())?;
    if let Introduction::Client(client) = &introduced
        && client.grant.uid != own_uid
    {
        let uid = client.grant.uid;
        return Err(format!("its grant is for uid {uid}, this is uid {own_uid}"));
    }
    Ok(introduced)
}

#[cfg(test)]
mod tests {
    use afar_core::policy::Grant;
    use afar_net::clock::Clock;
    use afar_net::local::attach_local;
    use afar_proto::connection::{Event, Role};
    use afar_proto::{Config, Connection};

    use super::*;

    /// W-4.13: it has handed its connection over, and nobody has taken it yet.
    #[tokio::test]
    async fn whoever_connects_just_before_the_end_is_told_of_it_and_nothing_is_started() {
        let user = current_user().unwrap().unwrap();
        let grant = Grant::local(user.name.to_str().unwrap(), user.uid);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("supervisor.sock");
        let bound = afar_sys::socket::bind_unix_for(&path, user.uid).unwrap();
        let lock = directory.path().join("lock");
        let lock = afar_sys::private_files::try_lock_exclusive(&lock).unwrap().unwrap();
        let socket = Claim::of_passed(bound, lock).listen().unwrap();
        let supervisor = Rc::new(Supervisor::new(user, None, Log::default()));

        let stream = UnixStream::connect(&path).await.unwrap();
        let clock = Clock::new();
        let connection = Connection::new(Role::Client, Config::default(), clock.now());
        let mut client = attach_local(stream, &grant, connection, clock);
        let local = tokio::task::LocalSet::new();
        let (told, all_ended) = local
            .run_until(async {
                tokio::join!(
                    async {
                        loop {
                            if let Event::Closed(why) = client.next().await {
                                return why.to_string();
                            }
                        }
                    },
                    stop(&supervisor, Some(socket))
                )
            })
            .await;
        assert!(told.contains("told to end"), "{told}");
        assert!(all_ended);
    }

    /// A supervisor that is told to end, and the job that it has.
    struct Stopped {
        supervisor: Rc<Supervisor>,
        commands: tokio::sync::mpsc::UnboundedReceiver<job::ToJob>,
        stay: Stay,
    }

    fn with_a_job() -> Stopped {
        let user = current_user().unwrap().unwrap();
        let supervisor = Rc::new(Supervisor::new(user, None, Log::default()));
        let (sender, commands) = tokio::sync::mpsc::unbounded_channel();
        let job = afar_proto::message::JobId::new("j").unwrap();
        let key = afar_core::job::JobKey { scope: String::new(), job };
        supervisor.jobs.enter(key, [0; 32], 1, sender);
        let stay = Stay::new(&supervisor, Why::Running);
        Stopped { supervisor, commands, stay }
    }

    #[tokio::test(start_paused = true)]
    async fn fault_36_who_outlives_its_grace_when_the_supervisor_ends_is_killed_in_time() {
        use job::ToJob;
        let Stopped { supervisor, mut commands, stay } = with_a_job();
        let began = tokio::time::Instant::now();
        let job = async move {
            assert!(matches!(commands.recv().await, Some(ToJob::End(_))));
            assert_eq!(began.elapsed(), Duration::ZERO);
            assert!(matches!(commands.recv().await, Some(ToJob::Hasten)));
            assert!(began.elapsed() >= STOP_TIMEOUT);
            drop(stay);
        };
        let (all_ended, ()) = tokio::join!(stop(&supervisor, None), job);
        assert!(all_ended);
        assert!(began.elapsed() < STOP_TIMEOUT + STOP_KILL_PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn fault_38_who_cannot_be_killed_keeps_no_supervisor_and_is_left_to_the_guardian() {
        let stopped = with_a_job();
        let began = tokio::time::Instant::now();
        assert!(!stop(&stopped.supervisor, None).await);
        let waited = began.elapsed();
        assert!(waited >= STOP_TIMEOUT + STOP_KILL_PATIENCE, "{waited:?}");
        assert!(waited < crate::limits::ENDING_PATIENCE, "{waited:?}");
    }
}
