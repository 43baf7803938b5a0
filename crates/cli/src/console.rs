//! The lines that afar says itself on stderr, and data of the small commands on stdout.

use std::io::{self, Write as _};

use afar_client::{Error, Started};
use afar_sys::signals::Signal;

use crate::exit::Exit;
use crate::tty;

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Only that afar itself failed.
    Quiet,
    /// Also what a user should know.
    #[default]
    Normal,
    /// Also how it went.
    Verbose,
}

/// Says one line, in one write, so that the lines of several processes do not mix. What can't be
/// said is lost: there is nowhere else to say it.
pub(crate) fn say(line: &str) {
    // A terminal in raw mode does nothing by itself.
    let (begin, end) = if tty::is_raw() { ("\r", "\r\n") } else { ("", "\n") };
    let _ = io::stderr().lock().write_all(format!("{begin}afar: {line}{end}").as_bytes());
}

/// Says that afar failed: what, in which phase, whether the command was started, what to do.
/// `hint` stands in for the error's own.
pub(crate) fn say_failure(error: &Error, hint: Option<&str>) {
    say(&failure_line(error, hint));
}

fn failure_line(error: &Error, hint: Option<&str>) -> String {
    let started = started_clause(error.started());
    let mut line = format!("{}: {error}; {started}", error.phase().as_str());
    if let Some(hint) = hint.map(ToOwned::to_owned).or_else(|| error.hint()) {
        line.push_str("; ");
        line.push_str(&hint);
    }
    // Text of the system's can hold anything; a line stays one.
    if line.contains(|c: char| c.is_control()) {
        line = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    }
    line
}

/// Whether the command was started, for a sentence.
pub(crate) fn started_clause(started: Started) -> &'static str {
    match started {
        Started::Yes => "the command was started",
        Started::No => "the command was not started",
        Started::Unknown => "whether the command was started is not known",
    }
}

/// Says that a command other than `run` failed, where nothing was to be started.
pub(crate) fn fail(error: &Error) -> Exit {
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    say(&format!("{}: {error}{hint}", error.phase().as_str()));
    Exit::Failed
}

/// Writes data to stdout. Whoever has closed it ends the program quietly.
pub(crate) fn write_stdout(bytes: &[u8]) -> Exit {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Exit::Status(0),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Signal(Signal::PIPE),
        Err(error) => {
            say(&format!("cannot write to stdout: {error}"));
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_phase_start_and_hint_in_one_line() {
        let source = io::Error::from(io::ErrorKind::ConnectionRefused);
        let error = Error::Connect { host: "web".into(), port: 2327, source };
        assert_eq!(
            failure_line(&error, None),
            "connect: cannot reach web:2327: connection refused; the command was not started; \
             is `afar serve` running there, and listening on port 2327?"
        );
    }

    #[test]
    fn a_failure_stays_one_line_whatever_the_system_says() {
        let source = io::Error::other("a\nb\x1b[2J");
        let error = Error::Resolve { host: "web".into(), source };
        assert!(!failure_line(&error, None).contains(['\n', '\x1b']));
    }
}
