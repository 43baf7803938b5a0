//! Tests of a job as its conversation sees it, with real processes.

use std::rc::Rc;

use afar_core::job::Allowance;
use afar_core::policy::Grant;
use afar_proto::connection::{ChannelId, Config, Role};
use afar_proto::message::{Command, JobId, Terminal};
use afar_proto::outcome::{Seal, SealDetail};
use afar_proto::{Connection, Instant as ProtoInstant};
use bytes::Bytes;

use super::*;
use crate::limits::UNKILLABLE_PATIENCE;
use crate::log::Log;
use crate::supervisor::jobs::tests as archived;
use crate::supervisor::request::prepare;
use crate::supervisor::{Counts, Supervisor};

fn supervisor() -> Rc<Supervisor> {
    let user = afar_sys::users::current_user().unwrap().unwrap();
    Rc::new(Supervisor::new(user, None, Log::default()))
}

/// A job of this script, without stdin.
pub(in super::super) fn script(text: &str) -> OpenSpec {
    let command = Command::Argv(["sh", "-c", text].map(Into::into).into());
    OpenSpec { kill_after_ms: Some(300), ..OpenSpec::new(JobId::new("j").unwrap(), command) }
}

fn stdin_script(text: &str) -> OpenSpec {
    OpenSpec { stdin: true, ..script(text) }
}

/// A job, and what its owner is told.
struct Owned {
    job: Option<Box<Job>>,
    commands: UnboundedSender<ToJob>,
    told: UnboundedReceiver<(ChannelId, FromJob)>,
}

const OWNER: AttachmentId = AttachmentId(7);

fn route(id: AttachmentId, to: UnboundedSender<(ChannelId, FromJob)>) -> Route {
    let mut connection = Connection::new(Role::Client, Config::default(), ProtoInstant::ZERO);
    let channel = connection.open(&script("true")).unwrap();
    Route { id, channel, to }
}

impl Owned {
    /// Starts it, as a conversation does.
    fn start(supervisor: &Rc<Supervisor>, spec: &OpenSpec) -> Self {
        let grant = Grant::local("", supervisor.user.uid);
        let prepared = prepare(spec, &grant, &supervisor.user, 0).unwrap();
        let (to, told) = unbounded_channel();
        let key = JobKey { scope: String::new(), job: spec.job.clone() };
        let opening = Opening {
            spec,
            key: key.clone(),
            info: describe(&key, spec),
            route: route(OWNER, to),
            supervisor,
        };
        let started = start(opening, &prepared).unwrap();
        supervisor.jobs.enter(key, spec.digest(), 1, started.commands.clone());
        Self { job: Some(started.job), commands: started.commands, told }
    }

    fn run(&mut self) -> impl Future<Output = ()> + use<> {
        self.job.take().unwrap().run()
    }

    fn say(&self, said: Said) {
        self.commands.send(ToJob::From(OWNER, said)).unwrap();
    }

    fn allow(&self, bytes: usize) {
        for stream in Stream::OUTPUTS {
            self.say(Said::Allow(stream, Allowance { bytes, pieces: 1024 }));
        }
    }

    /// What it is told up to the last word, which it confirms.
    async fn hear(&mut self) -> Heard {
        let mut heard = Heard::default();
        loop {
            match self.told.recv().await.expect("it goes on").1 {
                FromJob::Told(Told::Data { bytes, .. }) => heard.output.extend_from_slice(&bytes),
                FromJob::Told(Told::Exit(report)) => heard.exit = Some(report.end),
                FromJob::Told(Told::Seal(seal)) => {
                    heard.seal = Some(*seal);
                    self.say(Said::Leave(Leave::Closed));
                }
                FromJob::Gone => return heard,
                _ => {}
            }
        }
    }
}

#[derive(Debug, Default)]
struct Heard {
    output: Vec<u8>,
    exit: Option<End>,
    seal: Option<Seal>,
}

fn pid_in(text: &[u8]) -> String {
    String::from_utf8(text.to_vec()).unwrap().trim().to_owned()
}

#[tokio::test]
async fn fault_36_a_grace_that_is_cut_short_ends_in_kill() {
    let supervisor = supervisor();
    let local = tokio::task::LocalSet::new();
    let text = "trap '' TERM; echo ready; while :; do sleep 1000; done";
    let spec = OpenSpec { kill_after_ms: Some(3_600_000), ..script(text) };
    local
        .run_until(async {
            let mut owned = Owned::start(&supervisor, &spec);
            tokio::task::spawn_local(owned.run());
            owned.allow(100);
            while !matches!(owned.told.recv().await.unwrap().1, FromJob::Told(Told::Data { .. })) {}
            // Of one that is not being ended there is nothing to be hastened.
            owned.commands.send(ToJob::Hasten).unwrap();
            owned.commands.send(ToJob::End(Cause::Cancelled)).unwrap();
            owned.commands.send(ToJob::Hasten).unwrap();
            assert_eq!(owned.hear().await.exit, Some(End::Cancelled));
        })
        .await;
}

#[tokio::test]
async fn a_process_that_cannot_be_watched_is_killed_with_its_tree_and_its_end_is_lost() {
    // W-5.6. Its child says its pid, and holds the pipe.
    let supervisor = supervisor();
    let spec = script("trap '' TERM; sleep 300 & echo $!; wait");
    let mut owned = Owned::start(&supervisor, &spec);
    owned.allow(1024);
    let job = owned.job.as_mut().unwrap();
    let pid = poll_fn(|context| {
        job.poll_commands(context);
        job.poll_outputs(context);
        job.act();
        owned.told.poll_recv(context)
    });
    let Some((_, FromJob::Told(Told::Data { bytes, .. }))) = pid.await else { panic!("no pid") };
    let Process::Own { watch, .. } = &mut job.process else { panic!("of its own") };
    *watch = process::ExitWatch::Impossible(std::io::ErrorKind::Other.into());
    job.give_up();
    let local = tokio::task::LocalSet::new();
    let (heard, ()) = local
        .run_until(async {
            let run = owned.run();
            tokio::join!(owned.hear(), run)
        })
        .await;
    assert_eq!((heard.exit, heard.seal.unwrap().end), (Some(End::Lost), End::Lost));
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", pid_in(&bytes))).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "its child lives on: {stat}");
    drop(local);
    assert_eq!(*supervisor.busy.borrow(), Counts::default());
}

/// J-2.8
#[tokio::test]
async fn fault_38_nobody_waits_for_what_was_killed_and_does_not_go() {
    let supervisor = supervisor();
    let mut owned = Owned::start(&supervisor, &script("echo $$; exec sleep 300"));
    owned.allow(1024);
    // A KILL that reaches nobody: what the kernel does with one for a process in its state D.
    owned.job.as_mut().unwrap().ending = Ending::of_nothing(Duration::from_millis(1));
    owned.commands.send(ToJob::End(Cause::Timeout)).unwrap();
    let began = Instant::now();
    let local = tokio::task::LocalSet::new();
    let (heard, ()) = local
        .run_until(async {
            let run = owned.run();
            tokio::join!(owned.hear(), run)
        })
        .await;
    assert!(began.elapsed() >= UNKILLABLE_PATIENCE, "{:?}", began.elapsed());
    let seal = heard.seal.unwrap();
    assert_eq!((&seal.end, seal.detail), (&End::Timeout, Some(SealDetail::Unkillable)));
    assert!(seal.streams_left_open);
    // When it goes after all, nothing is left of it.
    let pid = rustix::process::Pid::from_raw(pid_in(&heard.output).parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let reaped = async {
        while rustix::process::test_kill_process(pid).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    local.run_until(reaped).await;
}

#[tokio::test]
async fn what_a_cancelled_job_still_writes_is_told_to_nobody() {
    // Its conversation may be waiting for a client that does not read, and would find half a
    // gigabyte in its queue after a second.
    let supervisor = supervisor();
    let mut owned = Owned::start(&supervisor, &script("trap '' TERM; exec yes"));
    owned.allow(256 * 1024);
    let run = owned.run();
    let conversation = async {
        let mut bytes_told = 0;
        loop {
            match owned.told.recv().await.unwrap().1 {
                FromJob::Told(Told::Data { bytes, .. }) => {
                    bytes_told += bytes.len();
                    owned.say(Said::Leave(Leave::Closed));
                }
                FromJob::Gone => return bytes_told,
                _ => {}
            }
        }
    };
    let local = tokio::task::LocalSet::new();
    let both = Box::pin(async { tokio::join!(conversation, run) });
    let (bytes_told, ()) = local.run_until(both).await;
    assert!((1..=256 * 1024).contains(&bytes_told), "{bytes_told}");
    assert_eq!(*supervisor.busy.borrow(), Counts::default());
}

#[tokio::test]
async fn an_idle_job_takes_little_memory() {
    let supervisor = supervisor();
    let mut owned = Owned::start(&supervisor, &script("true"));
    assert!(size_of::<Job>() < 2048, "{}", size_of::<Job>());
    let task = owned.run();
    assert!(size_of_val(&task) < 256, "{}", size_of_val(&task));
    owned.say(Said::Leave(Leave::Closed));
    tokio::task::LocalSet::new().run_until(task).await;
}

#[tokio::test]
async fn a_pipe_that_a_daemon_holds_keeps_the_supervisor_and_its_end_lets_it_go() {
    // Who ended for idleness would close the pipe, and the daemon would meet SIGPIPE.
    let supervisor = supervisor();
    let mut owned = Owned::start(&supervisor, &script("sleep 300 2>/dev/null & echo $!"));
    owned.allow(1024);
    let local = tokio::task::LocalSet::new();
    let (heard, ()) = local
        .run_until(async {
            let run = owned.run();
            tokio::join!(owned.hear(), run)
        })
        .await;
    let counts = *supervisor.busy.borrow();
    assert_eq!((counts.jobs, counts.left_open), (0, 1), "its pipe is still drained");
    let pid: i32 = pid_in(&heard.output).parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let mut busy = supervisor.busy.subscribe();
    local.run_until(busy.wait_for(|counts| *counts == Counts::default())).await.unwrap();
}

#[tokio::test]
async fn a_job_outlives_its_owner_and_tells_the_next_one_everything() {
    // J-2.3, J-3.2, J-3.7
    let supervisor = supervisor();
    let mut owned =
        Owned::start(&supervisor, &stdin_script("echo one; read x; echo \"two $x\"; exit 3"));
    let local = tokio::task::LocalSet::new();
    let run = owned.run();
    local
        .run_until(async {
            tokio::task::spawn_local(run);
            owned.say(Said::Leave(Leave::Lost));
            let key = JobKey { scope: String::new(), job: JobId::new("j").unwrap() };
            let (to, told) = unbounded_channel();
            let request = AttachRequest::opening(OWNER);
            let commands = supervisor.attach(&key, request, route(OWNER, to)).unwrap();
            let mut next = Owned { job: None, commands, told };
            next.allow(1024);
            next.say(Said::Input(Bytes::from_static(b"more\n")));
            let heard = next.hear().await;
            assert_eq!(heard.seal.unwrap().end, End::Exited { code: 3 });
            assert_eq!(String::from_utf8(heard.output).unwrap(), "one\ntwo more\n");
            // It is over, and its outcome is known to whoever asks again (J-1.3).
            let mut busy = supervisor.busy.subscribe();
            busy.wait_for(|counts| *counts == Counts::default()).await.unwrap();
            let (to, told) = unbounded_channel();
            let request = AttachRequest::opening(OWNER);
            let commands = supervisor.attach(&key, request, route(OWNER, to)).unwrap();
            let heard = Owned { job: None, commands, told }.hear().await;
            assert_eq!(
                (heard.seal.unwrap().end, &*heard.output),
                (End::Exited { code: 3 }, &b""[..])
            );
            busy.wait_for(|counts| *counts == Counts::default()).await.unwrap();
        })
        .await;
}

/// J-3.2, J-5.10
#[tokio::test]
async fn what_the_owner_of_an_ended_job_has_not_got_is_kept_when_the_journal_knows_it_no_more() {
    let root = tempfile::TempDir::new().unwrap();
    let jobs = archived::open(root.path(), "one");
    let user = afar_sys::users::current_user().unwrap().unwrap();
    let supervisor = Rc::new(Supervisor { jobs, ..Supervisor::new(user, None, Log::default()) });
    let key = JobKey { scope: String::new(), job: JobId::new("j").unwrap() };
    archived::begin(&supervisor.jobs, &key);
    let mut owned = Owned::start(&supervisor, &script("echo kept"));
    let run = owned.run();
    let local = tokio::task::LocalSet::new();
    let test = async {
        tokio::task::spawn_local(run);
        // Its owner is told everything, says of nothing that it has it, and stays until the job is in
        // the index.
        owned.allow(1024);
        while !matches!(owned.told.recv().await.unwrap().1, FromJob::Told(Told::Seal(_))) {}
        archived::indexed(&supervisor.jobs).await;
        assert_eq!(supervisor.jobs.archive().unwrap().entry(&key), None);
        owned.say(Said::Leave(Leave::Lost));
        let mut busy = supervisor.busy.subscribe();
        busy.wait_for(|counts| *counts == Counts::default()).await.unwrap();
        let (to, told) = unbounded_channel();
        let request = AttachRequest::opening(OWNER);
        let commands = supervisor.attach(&key, request, route(OWNER, to)).unwrap();
        let mut next = Owned { job: None, commands, told };
        next.allow(1024);
        let heard = next.hear().await;
        assert_eq!(String::from_utf8(heard.output).unwrap(), "kept\n");
    };
    local.run_until(test).await;
}

/// A job of this script on a terminal.
fn on_terminal(text: &str) -> OpenSpec {
    let size = Resize { columns: 100, rows: 30, ..Resize::default() };
    let terminal = Terminal { name: "vt100".into(), size, modes: BTreeMap::new() };
    OpenSpec { terminal: Some(Box::new(terminal)), ..stdin_script(text) }
}

impl Owned {
    /// Reads what is shown until this is.
    async fn hear_until(&mut self, wanted: &str) -> String {
        let mut shown = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&shown);
            if text.contains(wanted) {
                return text.into_owned();
            }
            match self.told.recv().await.expect("it goes on").1 {
                FromJob::Told(Told::Data { bytes, .. }) => shown.extend_from_slice(&bytes),
                FromJob::Told(Told::Seal(_)) => panic!("{wanted:?} is not in {text:?}"),
                _ => {}
            }
        }
    }
}

/// Runs the job beside this.
async fn beside<T>(mut owned: Owned, does: impl AsyncFnOnce(&mut Owned) -> T) -> T {
    let local = tokio::task::LocalSet::new();
    let run = owned.run();
    local
        .run_until(async {
            let task = tokio::task::spawn_local(run);
            let done = does(&mut owned).await;
            task.await.unwrap();
            done
        })
        .await
}

#[tokio::test]
async fn a_job_on_a_terminal_shows_there_and_is_typed_to() {
    // W-5.13
    let supervisor = supervisor();
    let text = "tty; stty size; echo $TERM >&2; read x; echo \"got $x\"; exit 3";
    let owned = Owned::start(&supervisor, &on_terminal(text));
    let heard = beside(owned, async |owned| {
        owned.allow(4096);
        let shown = owned.hear_until("vt100").await;
        assert!(shown.starts_with("/dev/pts/") && shown.contains("\r\n30 100\r\n"), "{shown}");
        owned.say(Said::Input(Bytes::from_static(b"keys\r")));
        owned.hear().await
    })
    .await;
    assert_eq!(String::from_utf8(heard.output).unwrap(), "keys\r\ngot keys\r\n");
    let seal = heard.seal.unwrap();
    assert_eq!(seal.end, End::Exited { code: 3 });
    // Its end by EIO is the end, and nobody holds it open.
    assert!(seal.streams["stdout"].complete && !seal.streams_left_open);
    assert_eq!(*supervisor.busy.borrow(), Counts::default());
}

/// W-7.1
#[tokio::test]
async fn fault_52_a_flood_of_sizes_is_one_and_none_is_out_of_range() {
    let supervisor = supervisor();
    let text = "trap 'stty size' WINCH; echo ready; while :; do read x && exit; done";
    let owned = Owned::start(&supervisor, &on_terminal(text));
    beside(owned, async |owned| {
        owned.allow(1 << 20);
        owned.hear_until("ready").await;
        for columns in 0..10_000 {
            owned.say(Said::Resize(Resize { columns, rows: 25, ..Resize::default() }));
        }
        owned.say(Said::Resize(Resize { columns: 65_535, rows: 0, ..Resize::default() }));
        let shown = owned.hear_until("24 4096\r\n").await;
        // Hardly one of the flood had a turn of its own.
        assert!(shown.lines().count() < 200, "{shown}");
        owned.say(Said::Input(Bytes::from_static(b"\r")));
        owned.hear().await;
    })
    .await;
}

/// J-2.3, J-2.9: a shell at a prompt minds no TERM.
#[tokio::test]
async fn fault_51_a_cancelled_job_on_a_terminal_is_hung_up() {
    let supervisor = supervisor();
    let text = "trap '' TERM; trap 'echo hung up; exit' HUP; echo ready; while :; do sleep 1; done";
    let spec = OpenSpec { kill_after_ms: Some(60_000), ..on_terminal(text) };
    let owned = Owned::start(&supervisor, &spec);
    beside(owned, async |owned| {
        owned.allow(4096);
        owned.hear_until("ready").await;
        let (reply, _running) = tokio::sync::oneshot::channel();
        owned.commands.send(ToJob::Kill(None, reply)).unwrap();
        let heard = owned.hear().await;
        assert_eq!(heard.seal.unwrap().end, End::Cancelled);
        assert!(String::from_utf8_lossy(&heard.output).contains("hung up"));
    })
    .await;
}

/// J-2.9
#[tokio::test]
async fn the_keys_signals_go_to_the_foreground_and_others_to_the_leader() {
    let supervisor = supervisor();
    // Job control gives the foreground a group of its own.
    let text = "set -m; trap 'echo leader; exit' USR1; \
                sh -c 'trap \"echo front; exit\" INT; echo ready; while :; do read x; done'; \
                echo back; while :; do read x; done";
    let owned = Owned::start(&supervisor, &on_terminal(text));
    beside(owned, async |owned| {
        owned.allow(4096);
        owned.hear_until("ready").await;
        owned.say(Said::Signal(Signal::INT));
        let shown = owned.hear_until("back").await;
        assert!(shown.contains("front"), "{shown}");
        owned.say(Said::Signal(Signal::USR1));
        let heard = owned.hear().await;
        assert!(String::from_utf8_lossy(&heard.output).contains("leader"));
    })
    .await;
}

/// `AFAR_SOAK=1` makes it 100,000.
#[tokio::test]
async fn fault_53_no_last_bytes_of_a_terminal_are_missing() {
    let rounds = if std::env::var_os("AFAR_SOAK").is_some() { 100_000 } else { 20 };
    let supervisor = supervisor();
    for round in 0..rounds {
        let id = JobId::new(&format!("j{round}")).unwrap();
        let spec = OpenSpec { job: id, ..on_terminal("echo x") };
        let owned = Owned::start(&supervisor, &spec);
        let heard = beside(owned, async |owned| {
            owned.allow(4096);
            owned.hear().await
        })
        .await;
        let seal = heard.seal.unwrap();
        assert_eq!((seal.end, &*heard.output), (End::Exited { code: 0 }, &b"x\r\n"[..]));
        assert!(seal.streams["stdout"].complete);
    }
}

/// As cat(1) closes its streams before it ends.
#[tokio::test]
async fn fault_39_who_leaves_the_terminal_before_the_end_is_not_hung_up() {
    let supervisor = supervisor();
    let text = "exec <&- >&- 2>&-; sleep 0.1; echo back >/dev/tty; exit 44";
    let owned = Owned::start(&supervisor, &on_terminal(text));
    let heard = beside(owned, async |owned| {
        owned.allow(4096);
        owned.hear().await
    })
    .await;
    let seal = heard.seal.unwrap();
    assert_eq!((seal.end, &*heard.output), (End::Exited { code: 44 }, &b"back\r\n"[..]));
    assert!(seal.streams["stdout"].complete);
}
