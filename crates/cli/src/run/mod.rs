//! One command from its start to its end, as a person or a script at this end sees it.
//!
//! One task linearizes everything: the job's events, our signals, and what became of our output.
//! Blocking reads and writes of inherited descriptors happen on threads of their own, so that a
//! stopped reader of our stdout stops neither the connection's keepalives nor Ctrl-C.

mod events;
mod output;
mod report;
mod result_file;
mod signals;
mod stdin;

pub(crate) use output::Output;
pub(crate) use report::{say_end, say_note};
pub(crate) use signals::Signals;

use std::io;
use std::path::{Path, PathBuf};

use afar_client::{
    Client, Command, End, Error, Finished, Job, JobEvent, Opened, Outcome, Phase, Started, Stream,
    Target,
};

use crate::console::{self, Verbosity, say};
use crate::exit::Exit;
use crate::prompt;
use result_file::ResultFile;
use signals::Action;

/// How one command is run, on the side of the person or script.
#[derive(Debug)]
pub(crate) struct RunOptions {
    /// Whether our stdin becomes the command's.
    pub(crate) stdin: bool,
    /// Whether events are printed in place of the output.
    pub(crate) json: bool,
    /// Where the outcome is written.
    pub(crate) result: Option<PathBuf>,
    pub(crate) verbosity: Verbosity,
    /// The argv, where no shell reads it: for a hint if the program is not found.
    pub(crate) argv: Vec<Vec<u8>>,
}

/// Whether our stdin is worth being sent: what can only say "end" need not be asked.
pub(crate) fn stdin_is_null() -> bool {
    stdin::is_null()
}

/// Runs the command and shows what comes of it. A signal that has come since `signals` were installed
/// counts.
pub(crate) async fn execute(
    client: &Client,
    target: &Target,
    command: Command,
    options: RunOptions,
    mut signals: Signals,
) -> Exit {
    let mut output = Output::new();
    let result = match options.result.as_deref().map(ResultFile::prepare).transpose() {
        Ok(result) => result,
        Err((path, error)) => {
            say_local_failure(Phase::Resolve, &cannot_write(&path, &error), Started::No);
            return Exit::Failed;
        }
    };
    let command = command.stdin(options.stdin);
    if let Target::Ssh(_) = target {
        prompt::remember();
    }
    let ending = tokio::select! {
        started = client.start(target, command) => match started {
            Ok((session, job)) => {
                let runner = Runner {
                    job: Some(job),
                    output: &mut output,
                    signals: &mut signals,
                    options: &options,
                    target: target.to_string(),
                    started: None,
                    ending: None,
                    local_failure: None,
                };
                let ending = runner.run().await;
                session.close().await;
                ending
            }
            Err(error) => {
                prompt::restore();
                Ending::early(&target.to_string(), error)
            }
        },
        signal = signals.next_ending() => {
            prompt::restore();
            Ending::interrupted(client, target, signal)
        }
    };
    conclude(ending, &options, output, result, &mut signals).await
}

/// How it ended, and what afar ends with for it.
#[derive(Debug)]
struct Ending {
    outcome: Outcome,
    error: Option<Error>,
    exit: Exit,
    /// Said in one line, where there is no error that says it.
    remark: Option<Remark>,
}

/// A line about an end that no error tells of.
#[derive(Debug)]
struct Remark {
    line: String,
    /// The least verbosity at which it is said.
    wanted: Verbosity,
}

impl Ending {
    /// There was no job.
    fn early(target: &str, error: Error) -> Self {
        let (phase, started) = (error.phase(), error.started());
        let mut outcome = Outcome::not_started(target, None, phase, error.reason());
        if started != Started::No {
            outcome.started = started;
            outcome.end = End::Unknown;
        }
        outcome.error = Some(error.to_string());
        Self { outcome, error: Some(error), exit: Exit::Failed, remark: None }
    }

    /// A signal ended us while we were still on the way.
    fn interrupted(client: &Client, target: &Target, signal: afar_sys::signals::Signal) -> Self {
        let mut outcome =
            Outcome::not_started(&target.to_string(), None, Phase::Connect, "cancelled");
        if client.request_in_flight() {
            outcome.phase = Phase::Authenticate;
            outcome.started = Started::Unknown;
            outcome.end = End::Unknown;
        }
        let clause = console::started_clause(outcome.started);
        let line = format!("{}: ended by SIG{signal}; {clause}", outcome.phase.as_str());
        outcome.error = Some(line.clone());
        let remark = Some(Remark { line, wanted: Verbosity::Normal });
        Self { outcome, error: None, exit: Exit::Signal(signal), remark }
    }

    fn finished(finished: Finished) -> Self {
        let exit = Exit::Status(finished.outcome.status());
        Self { outcome: finished.outcome, error: finished.error, exit, remark: None }
    }

    /// The user has left, which cancels the job, if there is one: before the server's answer nobody
    /// knows, and an end is not made up.
    fn left(target: &str, job: Option<&str>, opened: Option<&Opened>) -> Self {
        let mut outcome = Outcome::not_started(target, job, Phase::Run, "cancelled");
        outcome.started_at = opened.map(|opened| opened.started_at_us);
        let (did, wanted, exit) = if opened.is_some() {
            outcome.started = Started::Yes;
            outcome.end = End::Cancelled;
            ("left, and the command is cancelled", Verbosity::Normal, Exit::Status(130))
        } else {
            outcome.phase = Phase::Spawn;
            outcome.started = Started::Unknown;
            outcome.end = End::Unknown;
            ("left before the server had answered", Verbosity::Quiet, Exit::Failed)
        };
        let clause = console::started_clause(outcome.started);
        let line = format!("{}: {did}; {clause}", outcome.phase.as_str());
        if outcome.end == End::Unknown {
            outcome.error = Some(line.clone());
        }
        Self { outcome, error: None, exit, remark: Some(Remark { line, wanted }) }
    }
}

/// Shows a job that runs.
struct Runner<'a> {
    job: Option<Job>,
    output: &'a mut Output,
    signals: &'a mut Signals,
    options: &'a RunOptions,
    target: String,
    started: Option<Opened>,
    ending: Option<Ending>,
    /// Output that could not be delivered here, for another reason than a reader who went away.
    local_failure: Option<String>,
}

impl Runner<'_> {
    async fn run(mut self) -> Ending {
        loop {
            while let Some((stream, error)) = self.output.take_failure() {
                self.handle_output_failure(stream, &error);
            }
            if self.output.is_empty()
                && let Some(ending) = self.ending.take()
            {
                return self.with_local_failure(ending);
            }
            let Self { job, output, signals, ending, .. } = &mut self;
            let step = match job.as_mut().filter(|_| ending.is_none() && output.has_room()) {
                Some(job) => tokio::select! {
                    event = job.next() => Step::Event(event),
                    action = signals.next() => Step::Signal(action),
                    () = output.changed() => Step::Output,
                },
                None => tokio::select! {
                    action = signals.next() => Step::Signal(action),
                    () = output.changed() => Step::Output,
                },
            };
            match step {
                Step::Event(Some(event)) => self.handle_event(event),
                Step::Event(None) => self.ending = Some(self.broken_off()),
                Step::Signal(Action::Forward(signal)) => {
                    if let Some(job) = &self.job {
                        job.signal(&signal.name());
                    }
                }
                Step::Signal(Action::Leave) => return self.cancel(),
                Step::Output => {}
            }
        }
    }

    fn handle_event(&mut self, event: JobEvent) {
        if self.options.json {
            self.output.push(Stream::Stdout, events::line(&event));
        }
        match event {
            JobEvent::Started(opened) => {
                if self.options.verbosity > Verbosity::Quiet {
                    say_note(&self.target, &opened);
                }
                self.started = Some(opened);
                if let Some(stdin) = self.job.as_mut().and_then(Job::take_stdin) {
                    // Not before the command has started: what was read for nothing is lost.
                    stdin::pump(stdin);
                }
            }
            JobEvent::Output(chunk) if !self.options.json => {
                self.output.push(chunk.stream, chunk.bytes);
            }
            JobEvent::Finished(finished) => self.ending = Some(Ending::finished(*finished)),
            _ => {}
        }
    }

    /// A reader that went away ends the stream at its source, so that the command meets a closed
    /// pipe as it would here. In JSON all streams go to one descriptor.
    fn handle_output_failure(&mut self, stream: Stream, error: &io::Error) {
        if error.kind() != io::ErrorKind::BrokenPipe && self.local_failure.is_none() {
            self.local_failure = Some(format!("cannot write to {}: {error}", stream.name()));
        }
        let Some(job) = &self.job else { return };
        if self.options.json {
            Stream::OUTPUTS.into_iter().for_each(|stream| job.stop(stream));
        } else {
            job.stop(stream);
        }
    }

    /// The connection's task is gone without a last word, which only a fault of ours can cause.
    fn broken_off(&self) -> Ending {
        let started = if self.started.is_some() { Started::Yes } else { Started::Unknown };
        let message = "the connection's task has ended".to_owned();
        Ending::early(&self.target, Error::Broken { phase: Phase::Run, started, message })
    }

    fn with_local_failure(&self, mut ending: Ending) -> Ending {
        if let Some(failure) = &self.local_failure {
            ending.exit = Exit::Failed;
            let clause = console::started_clause(ending.outcome.started);
            let line = format!("{}: {failure}; {clause}", Phase::Stream.as_str());
            ending.remark = Some(Remark { line, wanted: Verbosity::Quiet });
        }
        ending
    }

    fn cancel(mut self) -> Ending {
        // Whatever has come to an end meanwhile is the truth, even if nobody reads our output.
        if let Some(ending) = self.ending.take() {
            return ending;
        }
        let id = self.job.as_ref().map(|job| job.id().to_string());
        // Dropping the job cancels it.
        drop(self.job.take());
        Ending::left(&self.target, id.as_deref(), self.started.as_ref())
    }
}

enum Step {
    Event(Option<JobEvent>),
    Signal(Action),
    Output,
}

/// Says how it ended, writes the outcome where it is wanted, and picks the exit status.
async fn conclude(
    ending: Ending,
    options: &RunOptions,
    mut output: Output,
    result: Option<ResultFile>,
    signals: &mut Signals,
) -> Exit {
    let Ending { outcome, error, mut exit, remark } = ending;
    if options.json && !output.has_failed(Stream::Stdout) {
        output.push(Stream::Stdout, events::finished_line(&outcome));
    }
    if let Some(result) = result
        && let Err(failure) = result.write(&outcome, &mut output)
    {
        let path = options.result.as_deref().unwrap_or(Path::new("-"));
        say_local_failure(Phase::Stream, &cannot_write(path, &failure), outcome.started);
        exit = Exit::Failed;
    }
    // A reader that has stopped reading is waited for, but not against the user's will.
    loop {
        while let Some((stream, failure)) = output.take_failure() {
            if failure.kind() != io::ErrorKind::BrokenPipe {
                let failure = format!("cannot write to {}: {failure}", stream.name());
                say_local_failure(Phase::Stream, &failure, outcome.started);
                exit = Exit::Failed;
            }
        }
        if output.is_empty() {
            break;
        }
        tokio::select! {
            () = output.changed() => {}
            _ = signals.next_ending() => break,
        }
    }
    if let Some(error) = &error {
        report::say_error(error, &options.argv);
    } else if let Some(Remark { line, wanted }) = &remark {
        if options.verbosity >= *wanted {
            say(line);
        }
    } else {
        say_end(&outcome, options.verbosity, signals.forwarded());
    }
    exit
}

fn cannot_write(result: &Path, error: &io::Error) -> String {
    format!("cannot write the result to {}: {error}", result.display())
}

/// Says that afar failed at this end: in which phase, what, and whether the command was started.
fn say_local_failure(phase: Phase, failure: &str, started: Started) {
    say(&format!("{}: {failure}; {}", phase.as_str(), console::started_clause(started)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_before_the_answer_is_told_that_nothing_is_known() {
        let ending = Ending::left("host", Some("j"), None);
        assert_eq!(ending.outcome.started, Started::Unknown);
        assert_eq!((&ending.outcome.end, ending.exit), (&End::Unknown, Exit::Failed));
        let remark = ending.remark.unwrap();
        assert!(remark.line.ends_with("whether the command was started is not known"));
        assert_eq!(remark.wanted, Verbosity::Quiet);
    }

    #[test]
    fn who_leaves_a_command_that_runs_has_cancelled_it() {
        let job = afar_client::JobId::new("j").unwrap();
        let opened = Opened { job, pid: 1, started_at_us: 7, note: None };
        let ending = Ending::left("host", Some("j"), Some(&opened));
        assert_eq!(ending.outcome.started, Started::Yes);
        assert_eq!((&ending.outcome.end, ending.exit), (&End::Cancelled, Exit::Status(130)));
        assert_eq!(ending.remark.unwrap().wanted, Verbosity::Normal);
    }
}
