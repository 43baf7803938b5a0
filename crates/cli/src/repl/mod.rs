//! A prompt for another machine: each line runs in one shell there.
//!
//! One task linearizes everything: lines, the events of the command that runs, signals, and what
//! the editor wants to have completed. The editor blocks, so it has a thread.

mod completion;
mod editor;
mod meta;
mod place;
mod scan;
mod typed;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use afar_client::{
    Client, Command, End, Error, Finished, Job, JobEvent, Outcome, Session, SessionName, Stream,
    Target,
};
use afar_core::escape::escape_for_terminal;
use afar_sys::signals::Signal;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::console::{Verbosity, say, say_failure};
use crate::exit::Exit;
use crate::line_editor::{self, Line};
use crate::prompt;
use crate::run::{Output, Signals, StatusLine, note_line, say_end};
use completion::LISTING_BYTES_MAX;

use editor::{Lookup, Reader, Style};
use meta::{HELP, Meta};
use place::Place;
use scan::is_complete;
use typed::Typed;

/// The session of a prompt that was given no other.
const OWN_SESSION: &str = "repl";

/// A second Ctrl-C within this time ends what the first one has not.
const INSIST_WITHIN: Duration = Duration::from_secs(1);

/// How a prompt is set up.
#[derive(Debug)]
pub(crate) struct ReplOptions {
    /// The session of the user's to run in; one that ends with the prompt without it.
    pub(crate) session: Option<SessionName>,
    /// Variables to set there.
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) history: Option<PathBuf>,
    pub(crate) verbosity: Verbosity,
}

/// Connects, and runs what is typed, or what stdin holds, until its end.
pub(crate) async fn repl(
    client: &Client,
    target: &Target,
    options: ReplOptions,
    mut signals: Signals,
) -> Exit {
    // The editor's thread can't tidy up behind itself when a signal ends us.
    prompt::remember();
    let session = tokio::select! {
        connected = client.connect(target) => match connected {
            Ok(session) => session,
            Err(error) => {
                say_failure(&error, None);
                return Exit::Failed;
            }
        },
        signal = signals.next_ending() => {
            prompt::restore();
            return Exit::Signal(signal);
        }
    };
    let interactive = io::stdin().is_terminal() && io::stderr().is_terminal();
    let color = line_editor::is_usable() && line_editor::is_colored();
    let style = if line_editor::is_usable() {
        Style::Editor { history: options.history.clone() }
    } else {
        Style::Plain { prompt: interactive }
    };
    let name = options.session.is_none().then(|| SessionName::new(OWN_SESSION).ok()).flatten();
    let (reader, lookups) = Reader::start(style);
    let repl = Repl {
        target: target.to_string(),
        session: Some(session),
        // A shell that is begun stands there; one of the user's own may be anywhere.
        place: Place::new(name.is_some()),
        own_session: name,
        timeout: options.timeout,
        timing: interactive && options.verbosity > Verbosity::Quiet,
        options,
        signals,
        output: Output::new(),
        reader,
        lookups,
        interactive,
        color,
        typed: VecDeque::new(),
        shell_pid: None,
        last: None,
        within_line: false,
        told_about_cancel: false,
    };
    let exit = repl.run().await;
    prompt::restore();
    exit
}

struct Repl {
    target: String,
    /// `Some` until the end.
    session: Option<Session>,
    /// Where the session's shell is.
    place: Place,
    /// `Some` iff the session is this prompt's own.
    own_session: Option<SessionName>,
    options: ReplOptions,
    timeout: Option<Duration>,
    timing: bool,
    signals: Signals,
    output: Output,
    reader: Reader,
    lookups: UnboundedReceiver<Lookup>,
    interactive: bool,
    color: bool,
    /// What was typed while a command ran.
    typed: VecDeque<Line>,
    /// The session's shell, whose working directory paths are completed from.
    shell_pid: Option<u32>,
    last: Option<Outcome>,
    /// Whether the command's output on our stdout has ended within a line.
    within_line: bool,
    told_about_cancel: bool,
}

/// Whether the prompt goes on.
type Flow = Result<(), Exit>;

impl Repl {
    async fn run(mut self) -> Exit {
        let exit = loop {
            let flow = match self.input().await {
                Ok(Some(text)) => self.obey(text).await,
                Ok(None) => break Exit::Status(self.last.as_ref().map_or(0, Outcome::status)),
                Err(exit) => Err(exit),
            };
            if let Err(exit) = flow {
                break exit;
            }
        };
        if let Some(session) = self.session.take() {
            session.close().await;
        }
        exit
    }

    /// The next command, of one line or more; `None` at the end.
    async fn input(&mut self) -> Result<Option<Vec<u8>>, Exit> {
        let mut text: Vec<u8> = Vec::new();
        loop {
            match self.line(text.is_empty()).await? {
                Line::Text(line) => {
                    text.extend(line);
                    if is_complete(&text) {
                        return Ok(Some(text));
                    }
                    text.push(b'\n');
                }
                Line::Interrupted => text.clear(),
                // What is not finished is the shell's to complain about.
                Line::End if !text.is_empty() => return Ok(Some(text)),
                Line::End => return Ok(None),
                Line::Failed(why) => {
                    say(&escape_for_terminal(why.as_bytes()));
                    return Err(Exit::Failed);
                }
            }
        }
    }

    async fn line(&mut self, first: bool) -> Result<Line, Exit> {
        if let Some(line) = self.typed.pop_front() {
            return Ok(line);
        }
        let prompt = if first { self.prompt().await } else { "> ".to_owned() };
        loop {
            tokio::select! {
                line = self.reader.line(&prompt) => return Ok(line),
                Some(lookup) = self.lookups.recv() => self.look_up(lookup),
                signal = self.signals.next_ending() => {
                    if signal == Signal::INT && self.interactive {
                        // A line that is typed without an editor: the terminal has dropped it.
                        let _ = io::stderr().write_all(format!("\n{prompt}").as_bytes());
                        continue;
                    }
                    return Err(Exit::Signal(signal));
                }
            }
        }
    }

    /// The target, and where its shell is, if that is known.
    async fn prompt(&mut self) -> String {
        if self.interactive
            && let Some(session) = &self.session
        {
            self.place.look(session).await;
        }
        match self.place.shown() {
            Some(place) => format!("{}:{place}> ", self.target),
            None => format!("{}> ", self.target),
        }
    }

    /// Has names listed by a command of its own; the session is not disturbed.
    fn look_up(&self, lookup: Lookup) {
        let Lookup { word, reply } = lookup;
        let cwd = self.shell_pid.map_or(".".to_owned(), |pid| format!("/proc/{pid}/cwd"));
        let listing = word.listing(&cwd).map(|command| command.timeout(Duration::from_secs(2)));
        let (Some(command), Some(session)) = (listing, &self.session) else { return };
        let Ok(job) = session.start(command) else {
            return;
        };
        tokio::spawn(async move {
            // Nothing that is to be said: there are no completions.
            if let Ok(listed) = job.output(LISTING_BYTES_MAX).await {
                let _ = reply.send(word.offers(&listed.stdout));
            }
        });
    }

    async fn obey(&mut self, text: Vec<u8>) -> Flow {
        let line = std::str::from_utf8(&text).ok();
        match line.and_then(|line| meta::parse(line, self.timing)) {
            Some(Ok(meta)) => self.obey_meta(&meta),
            Some(Err(why)) => {
                say(&escape_for_terminal(why.as_bytes()));
                Ok(())
            }
            None if text.trim_ascii().is_empty() => Ok(()),
            None => self.execute(text).await,
        }
    }

    fn obey_meta(&mut self, meta: &Meta) -> Flow {
        match meta {
            Meta::Help => self.tell(HELP),
            Meta::Timing(timing) => self.timing = *timing,
            Meta::Timeout(timeout) => self.timeout = *timeout,
            Meta::Last => {
                match self.last.as_ref().and_then(|last| serde_json::to_string(last).ok()) {
                    Some(json) => self.output.push(Stream::Stdout, format!("{json}\n").into()),
                    None => say("no command has ended yet"),
                }
            }
            Meta::Cancel => say("nothing runs"),
            Meta::Quit => return Err(Exit::Status(self.last.as_ref().map_or(0, Outcome::status))),
        }
        Ok(())
    }

    fn tell(&self, text: &str) {
        let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
    }

    fn command(&self, text: Vec<u8>) -> Command {
        let mut command = Command::script(OsString::from_vec(text));
        for (name, value) in &self.options.env {
            command = command.env(name, value);
        }
        if let Some(timeout) = self.timeout {
            command = command.timeout(timeout);
        }
        match (&self.options.session, &self.own_session) {
            (Some(name), _) => command.session(name.clone()),
            (None, Some(name)) => command.connection_session(name.clone()),
            (None, None) => command,
        }
    }

    /// Runs a command to its end, and shows what comes of it.
    async fn execute(&mut self, text: Vec<u8>) -> Flow {
        let command = self.command(text);
        let Some(session) = &self.session else { return Ok(()) };
        let job = match session.start(command) {
            Ok(job) => job,
            Err(error) => {
                say_failure(&error, None);
                return Ok(());
            }
        };
        let finished = self.follow(job).await?;
        self.flush().await?;
        self.conclude(finished)
    }

    /// Shows a command that runs. `None` if it was given up.
    async fn follow(&mut self, job: Job) -> Result<Option<Finished>, Exit> {
        let mut status_line = StatusLine::new(&self.target, self.options.verbosity);
        let followed = self.follow_with(job, &mut status_line).await;
        status_line.clear(&mut self.output);
        followed
    }

    async fn follow_with(
        &mut self,
        mut job: Job,
        status_line: &mut StatusLine,
    ) -> Result<Option<Finished>, Exit> {
        let typed = Typed::watch(self.interactive);
        let mut interrupted: Option<Instant> = None;
        loop {
            self.report_output()?;
            tokio::select! {
                event = job.next(), if self.output.has_room() => match event {
                    Some(JobEvent::Started(opened)) => {
                        self.shell_pid = Some(opened.pid);
                        if self.options.verbosity > Verbosity::Quiet
                            && let Some(line) = note_line(&self.target, &opened)
                        {
                            say(&line);
                        }
                    }
                    Some(JobEvent::Output(chunk)) => {
                        if chunk.stream == Stream::Stdout {
                            self.within_line = chunk.bytes.last() != Some(&b'\n');
                        }
                        self.output.push(chunk.stream, chunk.bytes);
                    }
                    Some(JobEvent::Disconnected { cause }) => {
                        status_line.show(&mut self.output, &cause);
                    }
                    Some(JobEvent::Reconnected) => status_line.clear(&mut self.output),
                    Some(JobEvent::Finished(finished)) => return Ok(Some(*finished)),
                    Some(_) => {}
                    None => return Ok(None),
                },
                () = self.output.changed() => {}
                Some(lookup) = self.lookups.recv() => self.look_up(lookup),
                line = typed.line() => match line {
                    Line::Text(line) if line.trim_ascii() == b":cancel" => return Ok(None),
                    line => self.typed.push_back(line),
                },
                signal = self.signals.next_ending() => match signal {
                    Signal::INT => {
                        let again = interrupted.replace(Instant::now());
                        if again.is_some_and(|at| at.elapsed() < INSIST_WITHIN) {
                            return Ok(None);
                        }
                        job.signal("INT");
                        if self.interactive && !std::mem::replace(&mut self.told_about_cancel, true) {
                            self.tell("\n(Ctrl-C once more, or :cancel, ends it and its shell)");
                        }
                    }
                    Signal::TERM | Signal::HUP => return Err(Exit::Signal(signal)),
                    signal => job.signal(&signal.name()),
                },
            }
        }
    }

    /// A reader that went away ends the prompt as it would end a program; another failure is said.
    fn report_output(&mut self) -> Flow {
        let Some((stream, error)) = self.output.take_failure() else { return Ok(()) };
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Err(Exit::Signal(Signal::PIPE));
        }
        say(&format!("cannot write to {}: {error}", stream.name()));
        Err(Exit::Failed)
    }

    /// Waits until everything is shown.
    async fn flush(&mut self) -> Flow {
        loop {
            self.report_output()?;
            if self.output.is_empty() {
                return Ok(());
            }
            tokio::select! {
                () = self.output.changed() => {}
                signal = self.signals.next_ending() => return Err(Exit::Signal(signal)),
            }
        }
    }

    /// Says how a command ended.
    fn conclude(&mut self, finished: Option<Finished>) -> Flow {
        if std::mem::take(&mut self.within_line) && self.interactive {
            let _ = io::stderr().write_all(b"\n");
        }
        let Some(Finished { outcome, error }) = finished else {
            say("cancelled; the session's shell is ended with it");
            self.last = Some(Outcome::not_started(
                &self.target,
                None,
                afar_client::Phase::Run,
                "cancelled",
            ));
            return Ok(());
        };
        if let Some(error) = &error {
            say_failure(error, None);
            // A refusal is of this line alone; anything else is the end of the connection.
            if !matches!(error, Error::NotStarted(_)) {
                return Err(Exit::Failed);
            }
        } else if self.options.verbosity > Verbosity::Quiet && !self.timing {
            say_end(&outcome, self.options.verbosity, &[]);
        }
        if self.timing {
            let line = summary(&outcome);
            let line =
                if self.color { format!("\x1b[2m[{line}]\x1b[0m") } else { format!("[{line}]") };
            self.tell(&line);
        }
        // A command that is not of a session has a figure there; its shell is no more.
        let in_session = outcome.max_rss_bytes.is_none() && outcome.wall_s.is_some();
        self.place.moved(self.shell_pid.filter(|_| in_session), outcome.session_restarted);
        if outcome.session_restarted && self.options.verbosity > Verbosity::Quiet {
            say("the session's shell has ended; the next line meets a fresh one");
        }
        self.last = Some(outcome);
        Ok(())
    }
}

/// Status and time.
fn summary(outcome: &Outcome) -> String {
    let end = match &outcome.end {
        End::Exited { code } => code.to_string(),
        End::Signaled { name, .. } => escape_for_terminal(name.as_bytes()),
        End::Timeout => "ended by the time limit".to_owned(),
        End::Oom => "out of memory".to_owned(),
        End::Cancelled => "cancelled".to_owned(),
        End::NotStarted { .. } => return "not started".to_owned(),
        End::Lost | End::Unknown => "unknown".to_owned(),
    };
    match outcome.wall_s {
        Some(wall_s) => format!("{end} in {}", time(wall_s)),
        None => end,
    }
}

fn time(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else if seconds < 60.0 {
        format!("{seconds:.2} s")
    } else {
        let minutes = (seconds / 60.0).floor();
        format!("{minutes:.0} min {:.0} s", seconds - minutes * 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_time_are_short() {
        let mut outcome = Outcome::not_started("h", None, afar_client::Phase::Done, "x");
        assert_eq!(summary(&outcome), "not started");
        outcome.end = End::Exited { code: 3 };
        assert_eq!(summary(&outcome), "3");
        for (wall_s, shown) in [(0.0042, "4 ms"), (1.5, "1.50 s"), (125.4, "2 min 5 s")] {
            outcome.wall_s = Some(wall_s);
            assert_eq!(summary(&outcome), format!("3 in {shown}"));
        }
        outcome.end = End::Signaled { signal: 9, name: "SIG\x1b[2J".into(), core: false };
        assert!(!summary(&outcome).contains('\x1b'));
    }
}
