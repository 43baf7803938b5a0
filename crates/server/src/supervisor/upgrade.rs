//! An upgrade in place: this process becomes another program, and its jobs notice nothing.
//!
//! At SIGHUP the supervisor asks its clients to come again (GOODBYE `restart`, `J-4.3`), has its jobs stand
//! still, and writes everything down into a file in memory. A process of the new program reads it first and
//! says whether it can go on with it. Only then is the new program executed, in this process: children
//! stay children, and descriptors keep their numbers. Whoever connects meanwhile waits in the socket's queue.
//! Whatever fails before that is logged, and everything goes on as it was.
//!
//! Sessions of a user go on with their shells. A command that a session's shell is at work on can't be taken
//! along: an upgrade waits for its end. A session of a connection ends with that.
//!
//! Whoever has asked by a connection (`W-4.17`) is told what has come of it, by the new program if that goes on.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use afar_core::job::{Digest, JobKey, Vouch};
use afar_net::local::UpgradeNews;
use afar_proto::Instant;
use afar_proto::message::{Incarnation, Refused};
use afar_sys::child::{ExitStatus, Session};
use afar_sys::exec::{exec_keeping, take_kept};
use afar_sys::signals::Signal;
use afar_sys::spawn::{SpawnRequest, Stdio, spawn};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};

use super::job::{ToJob, WrittenJob, drain_left_open};
use super::jobs::{Jobs, Life, Remains};
use super::session::{StandStill, WrittenSession};
use super::socket::{Claim, Socket, WrittenSocket};
use super::{Stopping, Supervisor};
use crate::limits::{
    ARCHIVE_DEADLINE, UPGRADE_CHECK_PATIENCE, UPGRADE_FREEZE_PATIENCE, UPGRADE_GOODBYE_PATIENCE,
};

/// What this form of the state is called; another program may know another one, and then says so.
const VERSION: u32 = 2;

/// How long until a job is asked again that could not stand still.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Everything that the next program has to know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    socket: WrittenSocket,
    jobs: WrittenJobs,
    /// The number of connections there were.
    connections: u64,
    open_files_soft: Option<u64>,
    /// Pipes that jobs have left open behind them.
    left_open: Vec<RawFd>,
    sessions: Vec<WrittenSession>,
    /// Who is to be told.
    askers: Vec<RawFd>,
}

/// Whether there is to be an upgrade.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    notify: Notify,
    /// Who has asked for it by a connection, and is told what comes of it.
    askers: RefCell<Vec<UnixStream>>,
}

impl Wanted {
    /// Tells everybody who has asked. Who does not listen any more need not know.
    fn tell(&self, news: &UpgradeNews) {
        for asker in self.askers.take() {
            let _ = asker.try_write(&news.to_frame());
        }
    }
}

/// The program is to be replaced as soon as that is possible.
pub(super) fn want(supervisor: &Supervisor, asker: Option<UnixStream>) {
    supervisor.upgrade.notify.notify_one();
    supervisor.upgrade.askers.borrow_mut().extend(asker);
    let turns = supervisor.busy.borrow().turns;
    if turns > 0 {
        let message = format!("it waits for the end of {turns} commands of sessions");
        supervisor.log.info(&format!("an upgrade: {message}"));
        supervisor.upgrade.tell(&UpgradeNews::Waits { message });
    }
}

/// Resolves when an upgrade is wanted, and no shell of a session is at work. Whoever stops waiting for this
/// must not forget that it was wanted: cancellation safe.
pub(super) async fn due(supervisor: &Supervisor) {
    let wanted = supervisor.upgrade.notify.notified();
    wanted.await;
    let again = NotifyOnDrop(&supervisor.upgrade.notify, true);
    let mut busy = supervisor.busy.subscribe();
    // The sender lives as long as the supervisor.
    let _ = busy.wait_for(|counts| counts.turns == 0).await;
    again.disarm();
}

/// Gives back a notification that was taken, unless it was used.
struct NotifyOnDrop<'a>(&'a Notify, bool);

impl NotifyOnDrop<'_> {
    fn disarm(mut self) {
        self.1 = false;
    }
}

impl Drop for NotifyOnDrop<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.notify_one();
        }
    }
}

/// The table of jobs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WrittenJobs {
    pub(super) incarnation: Incarnation,
    pub(super) began: Instant,
    pub(super) since: Instant,
    /// How many there were.
    pub(super) entered: u64,
    pub(super) attached: u64,
    pub(super) entries: Vec<WrittenEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WrittenEntry {
    pub(super) key: JobKey,
    pub(super) digest: Digest,
    pub(super) at: Instant,
    pub(super) number: u64,
    pub(super) life: WrittenLife,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WrittenLife {
    Live(Box<WrittenJob>),
    Ended(Box<Remains>),
    Removed(Box<Remains>),
    Refused(Box<Refused>),
    Lost(Box<Refused>),
}

impl State {
    /// Reads what another program has written down, and holds it against what can be.
    ///
    /// # Errors
    /// It can't be read, is none, or is of a form that this program does not know.
    fn read(mut file: impl io::Read) -> io::Result<Self> {
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let state: Self = serde_json::from_slice(&text)?;
        if state.version != VERSION {
            let message = format!("a state of form {}, not {VERSION}", state.version);
            return Err(io::Error::other(message));
        }
        Ok(state)
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let jobs = self.jobs.entries.iter().filter_map(|entry| match &entry.life {
            WrittenLife::Live(job) => Some(job.descriptors()),
            _ => None,
        });
        jobs.flatten()
            .chain(self.sessions.iter().flat_map(WrittenSession::descriptors))
            .chain(self.askers.iter().copied())
            .chain(self.left_open.iter().copied())
            .chain(self.socket.descriptors())
            .collect()
    }
}

/// Whether this program can go on with the state that stdin has.
///
/// # Errors
/// It can't, and why.
pub fn check_state() -> io::Result<()> {
    State::read(io::stdin().lock()).map(|_| ())
}

/// What the program before this one has left.
pub(super) struct Left {
    state: State,
}

impl Left {
    /// Takes what was left in the descriptor of this number.
    pub(super) fn take(number: RawFd) -> io::Result<Self> {
        let mut file = File::from(take_kept(number)?);
        file.rewind()?;
        State::read(file).map(|state| Self { state })
    }

    pub(super) fn claim(&self) -> io::Result<Claim> {
        self.state.socket.claim()
    }

    pub(super) fn open_files_soft(&self) -> Option<u64> {
        self.state.open_files_soft
    }

    /// The table, still without its jobs.
    pub(super) fn jobs(&self) -> Jobs {
        let jobs = &self.state.jobs;
        Jobs::written_down(jobs, Vouch { began: jobs.began, since: jobs.since })
    }

    /// Has everything go on; to be called within the runtime.
    pub(super) fn go_on(self, supervisor: &Rc<Supervisor>) {
        let State { jobs, connections, left_open, sessions, askers, .. } = self.state;
        supervisor.connections.set(connections);
        for entry in jobs.entries {
            let WrittenEntry { key, digest, at, number, life } = entry;
            let life = match life {
                WrittenLife::Ended(remains) => Life::Ended(Rc::new(*remains)),
                WrittenLife::Removed(remains) => Life::Removed(Rc::new(*remains)),
                WrittenLife::Refused(refused) => Life::Refused(Rc::new(*refused)),
                WrittenLife::Lost(refused) => Life::Lost(Rc::new(*refused)),
                WrittenLife::Live(job) => match job.go_on(supervisor) {
                    Ok((job, commands)) => {
                        tokio::task::spawn_local(job.run());
                        Life::Live(commands)
                    }
                    Err(error) => {
                        // Nobody knows any more what it is doing, and nobody pretends to.
                        supervisor.log.error(&format!("job {key} is lost in an upgrade: {error}"));
                        continue;
                    }
                },
            };
            supervisor.jobs.enter_written(&key, digest, at, number, life);
        }
        for number in left_open {
            let pipe = take_kept(number)
                .map_err(io::Error::from)
                .and_then(|pipe| afar_sys::readiness::watch(pipe, Interest::READABLE));
            match pipe {
                Ok(pipe) => drain_left_open(pipe, supervisor),
                Err(error) => supervisor.log.error(&format!("a pipe that was left open: {error}")),
            }
        }
        for session in sessions {
            if let Err((name, error)) = session.go_on(supervisor) {
                let line = format!("the shell of session {name} is lost in an upgrade: {error}");
                supervisor.log.error(&line);
            }
        }
        supervisor.log.info("went on after an upgrade");
        let news = UpgradeNews::Done { version: env!("CARGO_PKG_VERSION").to_owned() };
        for asker in askers.into_iter().filter_map(|number| take_kept(number).ok()) {
            let _ = rustix::io::write(asker, &news.to_frame());
        }
    }
}

/// Becomes the new program. Returns only if that was not possible; then everything goes on.
pub(super) async fn upgrade(supervisor: &Rc<Supervisor>, socket: Option<&Socket>) {
    let log = supervisor.log;
    let Some(socket) = socket else {
        let message = "it only waits for its last jobs, and the next one starts anew".to_owned();
        log.info(&format!("not upgraded: {message}"));
        return supervisor.upgrade.tell(&UpgradeNews::Failed { message });
    };
    supervisor.stopping.send_replace(Stopping::ForUpgrade);
    let mut busy = supervisor.busy.subscribe();
    let alone = busy.wait_for(|counts| counts.conversations == 0);
    let told = tokio::time::timeout(UPGRADE_GOODBYE_PATIENCE, alone).await.is_ok();
    // A job that waits to be written down must not be begun in one program and forgotten by the other.
    let turn = Arc::clone(supervisor.jobs.turn()).acquire_owned();
    let turn = tokio::time::timeout(UPGRADE_FREEZE_PATIENCE, turn).await;
    let failed = match (told, &turn) {
        (false, _) => "a client could not be told".to_owned(),
        (true, Err(_)) => "a job waits to be written down".to_owned(),
        (true, Ok(_)) => match freeze(supervisor).await {
            Ok((jobs, sessions)) if is_written(supervisor).await => {
                become_next(supervisor, socket, jobs, sessions.written())
            }
            Ok(_) => "the journal's file server does not answer".to_owned(),
            Err(why) => why,
        },
    };
    log.error(&format!("not upgraded, everything goes on as it was: {failed}"));
    supervisor.jobs.tell_live(|| ToJob::Thaw);
    supervisor.stopping.send_replace(Stopping::No);
    supervisor.upgrade.tell(&UpgradeNews::Failed { message: failed });
}

/// Whether the journal has what it is to have.
async fn is_written(supervisor: &Supervisor) -> bool {
    let settled = supervisor.jobs.archive().map(|archive| archive.settled());
    match settled {
        Some(settled) => tokio::time::timeout(ARCHIVE_DEADLINE, settled).await.is_ok(),
        None => true,
    }
}

/// Has every job and session stand still. A job that is being ended, or whose last output is on its way, is
/// waited for, and so is a session that ends. What is returned of the sessions has them stand still.
async fn freeze(supervisor: &Rc<Supervisor>) -> Result<(WrittenJobs, StandStill), String> {
    let deadline = tokio::time::Instant::now() + UPGRADE_FREEZE_PATIENCE;
    loop {
        let (written, mut moving) = try_freeze(supervisor).await;
        let counts = *supervisor.busy.borrow();
        let mut ending = 0;
        if counts.turns == 0 {
            let sessions = supervisor.sessions.stand_still().await;
            // Those of connections end, and have their shells reaped.
            ending = counts.sessions.saturating_sub(sessions.written().len());
            if moving + ending == 0 {
                return Ok((written, sessions));
            }
        }
        moving = moving.max(counts.turns);
        if tokio::time::Instant::now() >= deadline {
            return Err(format!(
                "{moving} jobs and {ending} sessions are about to end, and do not"
            ));
        }
        supervisor.jobs.tell_live(|| ToJob::Thaw);
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// How many jobs could not stand still, and the table with all others.
async fn try_freeze(supervisor: &Rc<Supervisor>) -> (WrittenJobs, usize) {
    let (mut written, entries) = supervisor.jobs.write_down();
    let mut moving = 0;
    for (key, digest, at, entry) in entries {
        let life = match entry.life {
            Life::Ended(remains) => WrittenLife::Ended(Box::new((*remains).clone())),
            Life::Removed(remains) => WrittenLife::Removed(Box::new((*remains).clone())),
            Life::Refused(refused) => WrittenLife::Refused(Box::new((*refused).clone())),
            Life::Lost(refused) => WrittenLife::Lost(Box::new((*refused).clone())),
            Life::Live(commands) => {
                let (reply, answer) = oneshot::channel();
                let _ = commands.send(ToJob::Freeze(reply));
                match answer.await {
                    Ok(Some(job)) => WrittenLife::Live(job),
                    // It has ended in this moment, or can't stand still.
                    _ => {
                        moving += 1;
                        continue;
                    }
                }
            }
        };
        written.entries.push(WrittenEntry { key, digest, at, number: entry.number, life });
    }
    (written, moving)
}

/// Returns only with a reason why not.
fn become_next(
    supervisor: &Supervisor,
    socket: &Socket,
    jobs: WrittenJobs,
    sessions: &[WrittenSession],
) -> String {
    let askers = supervisor.upgrade.askers.borrow().iter().map(AsRawFd::as_raw_fd).collect();
    let state = State {
        version: VERSION,
        socket: socket.write_down(),
        jobs,
        connections: supervisor.connections.get(),
        open_files_soft: supervisor.open_files_soft,
        left_open: supervisor.left_open.borrow().iter().copied().collect(),
        sessions: sessions.to_vec(),
        askers,
    };
    match try_become_next(supervisor, &state) {
        Ok(never) => match never {},
        Err(error) => error.to_string(),
    }
}

fn try_become_next(supervisor: &Supervisor, state: &State) -> io::Result<std::convert::Infallible> {
    let memory = rustix::fs::memfd_create("afar-state", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    serde_json::to_writer(&mut file, state)?;
    file.flush()?;
    file.rewind()?;
    let program = c_string(&supervisor.executable)?;
    let env: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| {
            CString::new([name.into_vec(), b"=".to_vec(), value.into_vec()].concat()).ok()
        })
        .collect();
    check_with(&program, &env, &file)?;
    file.rewind()?;
    let mut kept = state.descriptors();
    kept.push(file.as_raw_fd());
    let resume = CString::new(format!("--resume={}", file.as_raw_fd()))?;
    let argv = [c"afar".to_owned(), c"supervisor".to_owned(), resume];
    supervisor.log.info("goes on as the new program");
    Err(exec_keeping(&program, &argv, &env, &kept).into())
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Has a process of the new program read the state.
fn check_with(program: &CStr, env: &[CString], state: &File) -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    let argv = [c"afar".to_owned(), c"supervisor".to_owned(), c"--check-state".to_owned()];
    let mut child = spawn(&SpawnRequest {
        program,
        argv: &argv,
        env,
        cwd: Some(c"/"),
        stdio: Stdio::Descriptors {
            stdin: state.as_fd(),
            stdout: null.as_fd(),
            stderr: rustix::stdio::stderr(),
        },
        session: Session::Inherited,
        open_files_soft: None,
    })
    .map_err(io::Error::other)?;
    if !child.wait_for(UPGRADE_CHECK_PATIENCE)? {
        let _ = child.signal(Signal::KILL);
        let _ = child.wait();
        return Err(io::Error::other("the new program does not say whether it can go on"));
    }
    match child.wait()?.status {
        ExitStatus::Exited { code: 0 } => Ok(()),
        _ => Err(io::Error::other("the new program can't go on with this state; see above")),
    }
}
