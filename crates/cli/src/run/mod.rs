//! One command from its start to its end, as a person or a script at this end sees it.
//!
//! One task linearizes everything: the job's events, our signals, and what became of our output.
//! Blocking reads and writes of inherited descriptors happen on threads of their own, so that a
//! stopped reader of our stdout stops neither the connection's keepalives nor Ctrl-C.

mod at_terminal;
mod ending;
mod escapes;
mod events;
mod keys;
mod leaving;
mod output;
mod report;
mod result_file;
mod signals;
mod status_line;
mod stdin;

pub(crate) use escapes::EscapeCharacter;
pub(crate) use leaving::Leaving;
pub(crate) use output::Output;
pub(crate) use report::{gap_line, note_line, say_end};
pub(crate) use signals::Signals;
pub(crate) use status_line::StatusLine;

use std::io;
use std::path::{Path, PathBuf};

use afar_client::{
    Attached, Attachment, Client, Command, Error, ExitReport, Job, JobEvent, JobId, Phase, Resize,
    Session, Started, Stream, Target,
};

use afar_sys::signals::Signal;

use crate::console::{self, Verbosity, say};
use crate::exit::Exit;
use crate::prompt;
use crate::tty;
use at_terminal::{AtTerminal, Happening, WayOut};
use ending::{Ending, Remark};
use result_file::ResultFile;
use signals::{Action, ends_a_program};

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
    /// What becomes of the job when the user leaves it.
    pub(crate) leaving: Leaving,
    /// How a job is named for other commands.
    pub(crate) job_name: JobName,
    /// What begins an escape, where the job has a terminal and somebody sits at ours.
    pub(crate) escape: EscapeCharacter,
}

/// Says how a job of this id is named for other commands.
pub(crate) struct JobName(pub(crate) Box<dyn Fn(&JobId) -> String>);

impl JobName {
    /// Its target as it is, and its id.
    pub(crate) fn of(target: &Target) -> Self {
        let target = target.clone();
        Self(Box::new(move |job| format!("{target}/{job}")))
    }
}

impl std::fmt::Debug for JobName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JobName")
    }
}

/// What is run, or gone on with.
#[derive(Debug)]
pub(crate) enum Wanted {
    Start(Box<Command>),
    Attach(Attachment),
}

/// Whether our stdin is worth being sent: what can only say "end" need not be asked.
pub(crate) fn stdin_is_null() -> bool {
    stdin::is_null()
}

/// Runs the command, or goes on with the job, and shows what comes of it. A signal that has come since `signals` were installed
/// counts.
pub(crate) async fn execute(
    client: &Client,
    target: &Target,
    mut wanted: Wanted,
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
    let asked_size = match &wanted {
        Wanted::Start(command) => command.terminal_size(),
        Wanted::Attach(_) => None,
    };
    // What may have been started has a name, even if nobody answers.
    let started_as = match &mut wanted {
        Wanted::Start(command) => match command.settle_id() {
            Ok(id) => Some(id),
            Err(error) => {
                say_local_failure(Phase::Resolve, &error.to_string(), Started::No);
                return Exit::Failed;
            }
        },
        Wanted::Attach(_) => None,
    };
    let started_as = started_as.map(|id| ((options.job_name.0)(&id), id));
    let started_as = started_as.as_ref().map(|(place, id)| (id, place.as_str()));
    if let Target::Ssh(_) = target {
        prompt::remember();
    }
    let ending = tokio::select! {
        begun = begin(client, target, wanted, options.stdin) => match begun {
            Ok((session, job)) => {
                let runner = Runner {
                    session: &session,
                    job: Some(job),
                    output: &mut output,
                    signals: &mut signals,
                    options: &options,
                    target: target.to_string(),
                    known: None,
                    status_line: StatusLine::new(&target.to_string(), options.verbosity),
                    asked_size,
                    at_terminal: None,
                    ending: None,
                    local_failure: None,
                };
                let ending = runner.run().await;
                session.close().await;
                ending
            }
            Err(error) => {
                prompt::restore();
                Ending::early(&target.to_string(), started_as, error)
            }
        },
        signal = signals.next_ending() => {
            prompt::restore();
            Ending::interrupted(client.request_in_flight(), &target.to_string(), started_as, signal)
        }
    };
    conclude(ending, &options, output, result, &mut signals).await
}

/// Connects and asks for the job.
async fn begin(
    client: &Client,
    target: &Target,
    wanted: Wanted,
    stdin: bool,
) -> Result<(Session, Job), Error> {
    match wanted {
        Wanted::Start(command) => client.start(target, command.stdin(stdin)).await,
        Wanted::Attach(attachment) => {
            let session = client.connect(target).await?;
            let job = session.attach(attachment.stdin(stdin));
            Ok((session, job))
        }
    }
}

/// Shows a job that runs.
struct Runner<'a> {
    session: &'a Session,
    job: Option<Job>,
    output: &'a mut Output,
    signals: &'a mut Signals,
    options: &'a RunOptions,
    target: String,
    /// `Some` iff the server said that there is such a job.
    known: Option<Known>,
    status_line: StatusLine,
    /// The size of the terminal that was asked for, if one was.
    asked_size: Option<Resize>,
    /// `Some` while our terminal is the job's.
    at_terminal: Option<AtTerminal>,
    ending: Option<Ending>,
    /// Output that could not be delivered here, for another reason than a reader who went away.
    local_failure: Option<String>,
}

/// A job that the server knows.
#[derive(Debug)]
struct Known {
    job: JobId,
    started_at_us: Option<u64>,
    /// How the process has ended, if it was told.
    exit: Option<ExitReport>,
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
            let away = self.status_line.is_away();
            let Self { job, output, signals, ending, at_terminal, .. } = &mut self;
            let step = match job.as_mut().filter(|_| ending.is_none() && output.has_room()) {
                Some(job) => tokio::select! {
                    event = job.next() => Step::Event(event),
                    action = signals.next(away) => Step::Signal(action),
                    () = output.changed() => Step::Output,
                    happening = at_terminal::next(at_terminal) => Step::AtTerminal(happening),
                },
                None => tokio::select! {
                    action = signals.next(away) => Step::Signal(action),
                    () = output.changed() => Step::Output,
                    happening = at_terminal::next(at_terminal) => Step::AtTerminal(happening),
                },
            };
            match step {
                Step::Event(Some(event)) => self.handle_event(event),
                Step::Event(None) => self.ending = Some(self.broken_off()),
                Step::Signal(Action::Forward(signal) | Action::Keep(signal))
                    if self.options.leaving == Leaving::AtOnce =>
                {
                    return Ending::gone(self.leave().await, signal);
                }
                Step::Signal(Action::Forward(signal)) => self.pass_on(signal),
                Step::Signal(Action::Keep(signal)) => {
                    self.pass_on(signal);
                    self.say_kept(signal);
                }
                Step::Signal(Action::Leave) => return self.leave().await,
                Step::Output => {}
                Step::AtTerminal(happening) => match self.happen(happening) {
                    None => {}
                    Some(WayOut::Leave) => return self.leave().await,
                    Some(WayOut::Detach) => return self.detach(),
                },
            }
        }
    }

    fn pass_on(&self, signal: Signal) {
        if let Some(job) = &self.job {
            job.signal(&signal.name());
        }
    }

    /// Says that a signal has not reached anybody yet.
    fn say_kept(&mut self, signal: Signal) {
        if self.options.verbosity > Verbosity::Quiet {
            let again = if ends_a_program(signal) { "; a second one leaves" } else { "" };
            let line = format!("{signal} is sent as soon as there is a connection again{again}");
            self.status_line.say(self.output, &line);
        }
    }

    fn handle_event(&mut self, event: JobEvent) {
        if self.options.json {
            self.output.push(Stream::Stdout, events::line(&event));
        }
        match event {
            JobEvent::Started(opened) => {
                if self.options.verbosity > Verbosity::Quiet
                    && let Some(line) = note_line(&self.target, &opened)
                {
                    self.status_line.say(self.output, &line);
                }
                let started_at_us = Some(opened.started_at_us);
                let terminal = self.asked_size.is_some();
                self.begin(Known { job: opened.job, started_at_us, exit: None }, terminal);
            }
            JobEvent::Attached(attached) => {
                let Attached { job, started_at_us, terminal, .. } = attached;
                // Whose terminal it was had perhaps another size.
                self.asked_size = None;
                self.begin(Known { job, started_at_us, exit: None }, terminal);
            }
            JobEvent::Output(chunk) if !self.options.json => {
                self.output.push(chunk.stream, chunk.bytes);
            }
            JobEvent::Gap { stream, from, to } if self.options.verbosity > Verbosity::Quiet => {
                self.status_line.say(self.output, &gap_line(&self.target, stream, from, to));
            }
            JobEvent::Disconnected { cause } => self.status_line.show(self.output, &cause),
            JobEvent::Reconnected => {
                self.status_line.clear(self.output);
                self.signals.reconnected();
            }
            JobEvent::Exit(report) => {
                if let Some(known) = &mut self.known {
                    known.exit = Some(report);
                }
            }
            JobEvent::Finished(finished) => {
                self.status_line.clear(self.output);
                self.ending = Some(Ending::finished(*finished));
            }
            JobEvent::Detached => {
                self.status_line.clear(self.output);
                self.ending = Some(self.detached());
            }
            _ => {}
        }
    }

    fn begin(&mut self, known: Known, terminal: bool) {
        self.known = Some(known);
        if terminal && self.options.stdin && !self.options.json && tty::is_at_keys() {
            return self.begin_at_terminal();
        }
        // There is none unless ours is wanted: to drop it would end the job's.
        if let Some(stdin) = self.job.as_mut().and_then(Job::take_stdin) {
            // Not before the command has started: what was read for nothing is lost.
            stdin::pump(stdin);
        }
    }

    /// The job goes on by itself, as was asked for at its start: all that is printed is its name.
    fn detached(&mut self) -> Ending {
        let Some(known) = &self.known else { return self.broken_off() };
        let place = (self.options.job_name.0)(&known.job);
        self.output.push(Stream::Stdout, format!("{place}\n").into());
        Ending::detached(&self.target, &known.job, known.started_at_us)
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
        let started = if self.known.is_some() { Started::Yes } else { Started::Unknown };
        let message = "the connection's task has ended".to_owned();
        let job = match (&self.known, &self.job) {
            (Some(known), _) => Some(&known.job),
            (None, job) => job.as_ref().map(Job::id),
        };
        let job = job.map(|job| (job, (self.options.job_name.0)(job)));
        let job = job.as_ref().map(|(job, place)| (*job, place.as_str()));
        Ending::early(&self.target, job, Error::Broken { phase: Phase::Run, started, message })
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
}

enum Step {
    Event(Option<JobEvent>),
    Signal(Action),
    Output,
    AtTerminal(Happening),
}

/// Says how it ended, writes the outcome where it is wanted, and picks the exit status.
async fn conclude(
    ending: Ending,
    options: &RunOptions,
    mut output: Output,
    result: Option<ResultFile>,
    signals: &mut Signals,
) -> Exit {
    let Ending { outcome, error, mut exit, remark, detached } = ending;
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
        if let Some(Remark { line, wanted }) = &remark
            && options.verbosity >= *wanted
        {
            say(line);
        }
    } else if let Some(Remark { line, wanted }) = &remark {
        if options.verbosity >= *wanted {
            say(line);
        }
    } else if !detached {
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
