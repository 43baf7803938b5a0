//! Tests of a job as its conversation sees it, with real processes.

use afar_core::policy::Grant;
use afar_proto::connection::{Config, Role};
use afar_proto::message::{Command, JobId, OpenSpec};
use afar_proto::{Connection, Instant as ProtoInstant};
use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::log::Log;
use crate::supervisor::request::prepare;
use crate::supervisor::{Counts, Supervisor};

fn supervisor() -> std::rc::Rc<Supervisor> {
    let user = afar_sys::users::current_user().unwrap().unwrap();
    std::rc::Rc::new(Supervisor::new(user, None, Log::default()))
}

/// A job of this script, without stdin.
pub(in super::super) fn script(text: &str) -> OpenSpec {
    let command = Command::Argv(["sh", "-c", text].map(Into::into).into());
    OpenSpec { kill_after_ms: Some(300), ..OpenSpec::new(JobId::new("j").unwrap(), command) }
}

/// Starts it, as a conversation does.
fn started(
    supervisor: &std::rc::Rc<Supervisor>,
    spec: &OpenSpec,
) -> (start::Started, UnboundedReceiver<(ChannelId, FromJob)>) {
    let grant = Grant::local("", supervisor.user.uid);
    let prepared = prepare(spec, &grant, &supervisor.user, 0).unwrap();
    let mut connection = Connection::new(Role::Client, Config::default(), ProtoInstant::ZERO);
    let channel = connection.open(spec).unwrap();
    let (events, told) = unbounded_channel();
    (start(spec, &prepared, channel, events, supervisor).unwrap(), told)
}

#[tokio::test]
async fn a_process_that_cannot_be_watched_is_killed_with_its_tree_and_its_end_is_lost() {
    // W-5.6. Its child says its pid, and holds the pipe.
    let supervisor = supervisor();
    let spec = script("trap '' TERM; sleep 300 & echo $!; wait");
    let (mut started, mut told) = started(&supervisor, &spec);
    let allowed = Allowance { bytes: 1024, pieces: 16 };
    started.commands.send(ToJob::Allow(Stream::Stdout, allowed)).unwrap();
    let pid = poll_fn(|context| {
        started.job.poll_commands(context);
        started.job.poll_outputs(context);
        told.poll_recv(context)
    });
    let Some((_, FromJob::Output { bytes, .. })) = pid.await else { panic!("no pid") };
    let Process::Own { watch, .. } = &mut started.job.process else { panic!("of its own") };
    *watch = process::ExitWatch::Impossible(std::io::ErrorKind::Other.into());
    started.job.give_up();
    let local = tokio::task::LocalSet::new();
    local.run_until(started.job.run()).await;
    let mut ends = Vec::new();
    while let Ok((_, event)) = told.try_recv() {
        match event {
            FromJob::Exited(report) => ends.push(report.end),
            FromJob::Sealed(seal) => ends.push(seal.end),
            _ => {}
        }
    }
    assert_eq!(ends, [End::Lost, End::Lost]);
    let pid = String::from_utf8(bytes.to_vec()).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "its child lives on: {stat}");
    drop(local);
    assert_eq!(*supervisor.busy.borrow(), Counts::default());
}

#[tokio::test]
async fn what_a_cancelled_job_still_writes_is_told_to_nobody() {
    // Its conversation may be waiting for a client that does not read, and would find half a
    // gigabyte in its queue after a second.
    let supervisor = supervisor();
    let spec = script("trap '' TERM; exec yes");
    let (started, mut told) = started(&supervisor, &spec);
    let allowed = Allowance { bytes: 256 * 1024, pieces: 256 };
    started.commands.send(ToJob::Allow(Stream::Stdout, allowed)).unwrap();
    let conversation = async {
        let mut bytes_told = 0;
        loop {
            match told.recv().await.unwrap().1 {
                FromJob::Output { bytes, .. } => {
                    bytes_told += bytes.len();
                    started.commands.send(ToJob::Cancel).unwrap();
                }
                FromJob::Gone => return bytes_told,
                _ => {}
            }
        }
    };
    let local = tokio::task::LocalSet::new();
    let both = Box::pin(async { tokio::join!(conversation, started.job.run()) });
    let (bytes_told, ()) = local.run_until(both).await;
    assert!((1..=allowed.bytes).contains(&bytes_told), "{bytes_told}");
    assert_eq!(*supervisor.busy.borrow(), Counts::default());
}

#[tokio::test]
async fn an_idle_job_takes_little_memory() {
    let supervisor = supervisor();
    let (started, _told) = started(&supervisor, &script("true"));
    assert!(size_of::<Job>() < 1024, "{}", size_of::<Job>());
    let task = started.job.run();
    assert!(size_of_val(&task) < 256, "{}", size_of_val(&task));
    tokio::task::LocalSet::new().run_until(task).await;
}

#[tokio::test]
async fn a_pipe_that_a_daemon_holds_keeps_the_supervisor_and_its_end_lets_it_go() {
    // Who ended for idleness would close the pipe, and the daemon would meet SIGPIPE.
    let supervisor = supervisor();
    let spec = script("sleep 300 2>/dev/null & echo $!");
    let (started, mut told) = started(&supervisor, &spec);
    let allowed = Allowance { bytes: 1024, pieces: 16 };
    for stream in Stream::OUTPUTS {
        started.commands.send(ToJob::Allow(stream, allowed)).unwrap();
    }
    let local = tokio::task::LocalSet::new();
    local.run_until(started.job.run()).await;
    assert_eq!(supervisor.busy.borrow().jobs, 1, "its pipe is still drained");
    let mut pid = Vec::new();
    while let Ok((_, event)) = told.try_recv() {
        if let FromJob::Output { bytes, .. } = event {
            pid.extend_from_slice(&bytes);
        }
    }
    let pid: i32 = String::from_utf8(pid).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let mut busy = supervisor.busy.subscribe();
    local.run_until(busy.wait_for(|counts| *counts == Counts::default())).await.unwrap();
}
