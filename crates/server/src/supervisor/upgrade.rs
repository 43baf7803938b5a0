//! An upgrade in place: this process becomes another program, and its jobs notice nothing.
//!
//! At SIGHUP the supervisor asks its clients to come again (GOODBYE `restart`, `J-4.3`), has its jobs stand
//! still, and writes everything down into a file in memory. A process of the new program reads it first and
//! says whether it can go on with it. Only then is the new program executed, in this process: children
//! stay children, and descriptors keep their numbers. Whoever connects meanwhile waits in the socket's queue.
//! Whatever fails before that is logged, and everything goes on as it was.
//!
//! A session's shell can't be taken along: while there is a session, an upgrade waits.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use afar_core::job::{Digest, JobKey, Vouch};
use afar_proto::Instant;
use afar_proto::message::{Incarnation, Refused};
use afar_sys::child::{ExitStatus, Session};
use afar_sys::exec::{exec_keeping, take_kept};
use afar_sys::signals::Signal;
use afar_sys::spawn::{SpawnRequest, Stdio, spawn};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::oneshot;

use super::job::{ToJob, WrittenJob, drain_left_open};
use super::jobs::{Jobs, Life, Remains};
use super::socket::{Claim, Socket, WrittenSocket};
use super::{Stopping, Supervisor};
use crate::limits::{
    ARCHIVE_DEADLINE, UPGRADE_CHECK_PATIENCE, UPGRADE_FREEZE_PATIENCE, UPGRADE_GOODBYE_PATIENCE,
};

/// What this form of the state is called; another program may know another one, and then says so.
const VERSION: u32 = 1;

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
        let State { jobs, connections, left_open, .. } = self.state;
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
        supervisor.log.info("went on after an upgrade");
    }
}

/// Becomes the new program. Returns only if that was not possible; then everything goes on.
pub(super) async fn upgrade(supervisor: &Rc<Supervisor>, socket: &Socket) {
    let log = supervisor.log;
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
            Ok(jobs) if is_written(supervisor).await => become_next(supervisor, socket, jobs),
            Ok(_) => "the journal's file server does not answer".to_owned(),
            Err(why) => why,
        },
    };
    log.error(&format!("not upgraded, everything goes on as it was: {failed}"));
    supervisor.jobs.tell_live(|| ToJob::Thaw);
    supervisor.stopping.send_replace(Stopping::No);
}

/// Whether the journal has what it is to have.
async fn is_written(supervisor: &Supervisor) -> bool {
    let settled = supervisor.jobs.archive().map(|archive| archive.settled());
    match settled {
        Some(settled) => tokio::time::timeout(ARCHIVE_DEADLINE, settled).await.is_ok(),
        None => true,
    }
}

/// Has every job stand still. A job that is being ended, or whose last output is on its way, is waited for.
async fn freeze(supervisor: &Rc<Supervisor>) -> Result<WrittenJobs, String> {
    let deadline = tokio::time::Instant::now() + UPGRADE_FREEZE_PATIENCE;
    loop {
        let (written, moving) = try_freeze(supervisor).await;
        if moving == 0 {
            return Ok(written);
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(format!("{moving} jobs are about to end, and do not"));
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
fn become_next(supervisor: &Supervisor, socket: &Socket, jobs: WrittenJobs) -> String {
    let state = State {
        version: VERSION,
        socket: socket.write_down(),
        jobs,
        connections: supervisor.connections.get(),
        open_files_soft: supervisor.open_files_soft,
        left_open: supervisor.left_open.borrow().iter().copied().collect(),
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
