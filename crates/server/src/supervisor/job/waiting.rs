//! A job that waits for its turn in a session, and becomes one that runs there.

use std::io;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afar_proto::connection::{ChannelId, Stream};
use afar_proto::message::{OpenSpec, Refused};
use afar_proto::outcome::Started as WasStarted;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ending::{Ending, GRACE};
use super::input::Input;
use super::output::Output;
use super::process::Process;
use super::start::{Childs, Ours, Pipes, no_resources};
use super::{FromJob, Job, ToJob};
use crate::supervisor::session::{SessionRequest, Turn, TurnEnd, TurnStarted, TurnStreams, submit};
use crate::supervisor::{Stay, Supervisor};

/// The task's state until the job's turn has come. One task owns it.
#[derive(Debug)]
pub(in crate::supervisor) struct Waiting {
    channel: ChannelId,
    outputs: [Output; 2],
    input: Input,
    timeout: Option<Duration>,
    grace: Duration,
    started: oneshot::Receiver<Result<TurnStarted, Refused>>,
    ended: oneshot::Receiver<TurnEnd>,
    commands: UnboundedReceiver<ToJob>,
    events: UnboundedSender<(ChannelId, FromJob)>,
    stay: Stay,
}

/// Queues what was prepared in its session.
pub(in crate::supervisor) fn start_in_session(
    spec: &OpenSpec,
    request: SessionRequest,
    channel: ChannelId,
    events: UnboundedSender<(ChannelId, FromJob)>,
    supervisor: &Rc<Supervisor>,
) -> Result<(Waiting, UnboundedSender<ToJob>), Refused> {
    let no_room = |error: io::Error| no_resources(&error, WasStarted::No);
    let Pipes { ours, childs } = Pipes::new(spec).map_err(no_room)?;
    let Ours { outputs, input } = ours;
    let Childs { stdin, stdout, stderr } = childs;
    let streams = TurnStreams { stdin: spec.stdin.then_some(stdin), stdout, stderr };
    let (started_sender, started) = oneshot::channel();
    let (ended_sender, ended) = oneshot::channel();
    let SessionRequest { key, environment, text, exports, mark } = request;
    let turn = Turn { text, exports, mark, streams, started: started_sender, ended: ended_sender };
    submit(supervisor, &key, &environment, turn)?;
    let (sender, commands) = unbounded_channel();
    let waiting = Waiting {
        channel,
        outputs,
        input,
        timeout: spec.timeout_ms.map(Duration::from_millis),
        grace: spec.kill_after_ms.map_or(GRACE, Duration::from_millis),
        started,
        ended,
        commands,
        events,
        stay: Stay::new(supervisor),
    };
    Ok((waiting, sender))
}

impl Waiting {
    /// Waits for the turn, then runs as [`Job::run`] does.
    pub(in crate::supervisor) async fn run(mut self) {
        let started = loop {
            tokio::select! {
                // First: a job that has started must be ended, and not just forgotten.
                biased;
                started = &mut self.started => break started,
                command = self.commands.recv() => if !self.obey(command) {
                    return self.tell(FromJob::Gone);
                },
            }
        };
        match started {
            Ok(Ok(started)) => Box::new(self.into_job(started)).run().await,
            Ok(Err(refused)) => {
                self.tell(FromJob::Refused(Box::new(refused)));
                self.tell(FromJob::Gone);
            }
            // The keeper has gone with its runtime.
            Err(_) => self.tell(FromJob::Gone),
        }
    }

    /// Whether it goes on waiting.
    fn obey(&mut self, command: Option<ToJob>) -> bool {
        match command {
            None | Some(ToJob::Cancel) => return false,
            Some(ToJob::Allow(stream, more)) => {
                if let Some(output) = self.output(stream) {
                    output.allow(more);
                }
            }
            Some(ToJob::Stop(stream)) => {
                if let Some(output) = self.output(stream) {
                    output.close();
                }
            }
            Some(ToJob::Input(bytes)) => self.input.push(bytes),
            Some(ToJob::InputEnd) => self.input.end(),
            // There is nothing to signal yet.
            Some(ToJob::Signal(_)) => {}
        }
        true
    }

    fn output(&mut self, stream: Stream) -> Option<&mut Output> {
        self.outputs.iter_mut().find(|output| output.stream() == stream)
    }

    fn into_job(self, started: TurnStarted) -> Job {
        let TurnStarted { root, pid, note } = started;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let started_at_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.tell(FromJob::Started { pid, started_at_us, note });
        let started = Instant::now();
        let timeout_at = self.timeout.and_then(|timeout| started.checked_add(timeout));
        Job {
            channel: self.channel,
            ending: Ending::in_session(root.clone(), timeout_at, self.grace),
            process: Process::in_session(root, self.ended),
            outputs: self.outputs,
            input: self.input,
            started,
            exit: None,
            sealed: false,
            commands: self.commands,
            heard: true,
            wanted: true,
            events: self.events,
            timer: Box::pin(tokio::time::sleep_until(started)),
            stay: self.stay,
        }
    }

    fn tell(&self, event: FromJob) {
        let _ = self.events.send((self.channel, event));
    }
}
