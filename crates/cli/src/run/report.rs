//! What is said on stderr about a command that has ended.

use afar_client::{End, Error, Opened, Outcome, SealDetail, Stream};
use afar_core::escape::escape_for_terminal;
use afar_core::hints::not_found_hint;
use afar_proto::message::bounded_message;
use afar_sys::signals::Signal;

use crate::console::{Verbosity, fail, say, say_failure};

/// Says that afar failed, or could not start the command: with what to do about it.
pub(super) fn say_error(error: &Error, argv: &[Vec<u8>]) {
    // Nothing was to be started where a job that exists was asked for.
    if let Error::Refused(_) = error {
        fail(error);
        return;
    }
    let not_found = matches!(error, Error::NotStarted(refused)
        if refused.reason.as_str() == "not_found");
    let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
    let hint = if not_found { not_found_hint(&argv) } else { None };
    say_failure(error, hint.as_deref());
}

/// What the server wants a person to know about the start.
pub(crate) fn note_line(target: &str, opened: &Opened) -> Option<String> {
    let note = bounded_message(opened.note.as_deref()?);
    Some(format!("{target}: {}", escape_for_terminal(note.as_bytes())))
}

/// That bytes of the output are not there any more.
pub(crate) fn gap_line(target: &str, stream: Stream, from: u64, to: u64) -> String {
    let last = to.saturating_sub(1);
    format!("{target}: bytes {from} to {last} of {} are not there any more", stream.name())
}

/// Says how a command ended, where its status alone does not.
pub(crate) fn say_end(outcome: &Outcome, verbosity: Verbosity, forwarded: &[Signal]) {
    if let Some((line, wanted)) = end_line(&outcome.end, forwarded)
        && verbosity >= wanted
    {
        let why = match outcome.detail {
            Some(SealDetail::OutputQuota) => {
                ": nobody took its output, and the room for it is used up"
            }
            Some(SealDetail::Unkillable) => {
                ": its process can't be killed, and goes on or waits in the kernel"
            }
            _ => "",
        };
        say(&format!("{line}{why}"));
    }
    if verbosity >= Verbosity::Verbose {
        let job = outcome.job.as_deref().unwrap_or("-");
        let wall_ms = outcome.wall_s.unwrap_or_default() * 1000.0;
        let status = outcome.status();
        say(&format!(
            "{}: job {job} ended with status {status} after {wall_ms:.1} ms",
            outcome.target
        ));
        if outcome.session_restarted {
            say("the session's shell has ended: what earlier commands had set is lost");
        }
        if outcome.streams_left_open == Some(true) {
            say("another process still holds the command's output open");
        }
    }
}

/// A command that dies of a signal that was passed on to it, or of its reader's going away, did
/// what was wanted. An end that nobody knows is a failure of afar's, and always said.
fn end_line(end: &End, forwarded: &[Signal]) -> Option<(String, Verbosity)> {
    let line = match end {
        End::Signaled { name, core, .. } => {
            let signal = Signal::parse(name);
            if signal == Some(Signal::PIPE) || signal.is_some_and(|s| forwarded.contains(&s)) {
                return None;
            }
            let name = escape_for_terminal(name.as_bytes());
            let core = if *core { " (core dumped)" } else { "" };
            format!("the command was ended by {name}{core}")
        }
        End::Timeout => "the command was ended by --timeout".to_owned(),
        End::Oom => "the command was ended for want of memory".to_owned(),
        End::Cancelled => "the command was cancelled".to_owned(),
        End::Lost | End::Unknown => {
            let line = "run: the server can't tell how the command ended; the command was started";
            return Some((line.to_owned(), Verbosity::Quiet));
        }
        End::Exited { .. } | End::NotStarted { .. } => return None,
    };
    Some((line, Verbosity::Normal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signaled(name: &str) -> End {
        End::Signaled { signal: 1, name: name.to_owned(), core: name == "SIGSEGV" }
    }

    #[test]
    fn a_crash_is_said_and_what_was_wanted_is_not() {
        let (said, wanted) = end_line(&signaled("SIGSEGV"), &[]).unwrap();
        assert_eq!(said, "the command was ended by SIGSEGV (core dumped)");
        assert_eq!(wanted, Verbosity::Normal);
        assert!(end_line(&signaled("SIGKILL"), &[Signal::TERM]).is_some());
        assert_eq!(end_line(&signaled("SIGPIPE"), &[]), None);
        assert_eq!(end_line(&signaled("SIGTERM"), &[Signal::TERM]), None);
        assert_eq!(end_line(&End::Exited { code: 3 }, &[]), None);
        assert!(end_line(&End::Timeout, &[]).is_some());
    }

    #[test]
    fn an_end_that_nobody_knows_is_said_even_to_who_wants_to_hear_nothing_else() {
        for end in [End::Lost, End::Unknown] {
            let (said, wanted) = end_line(&end, &[]).unwrap();
            assert!(said.starts_with("run: ") && wanted == Verbosity::Quiet, "{said}");
        }
    }

    #[test]
    fn fault_85_a_signals_name_is_shown_and_not_obeyed() {
        let (said, _) = end_line(&signaled("SIG\x1b[2J"), &[]).unwrap();
        assert!(!said.contains('\x1b'), "{said}");
    }

    #[test]
    fn fault_85_86_a_note_is_one_line_of_bounded_length() {
        let job = afar_client::JobId::new("j").unwrap();
        let note = Some(format!("\x1b[2J\n{}", "x".repeat(1 << 20)));
        let opened = Opened { job, pid: 1, started_at_us: 1, note };
        let line = note_line("web", &opened).unwrap();
        assert!(line.starts_with("web: ") && line.len() < 2048, "{}", line.len());
        assert!(!line.contains(['\x1b', '\n']));
        assert_eq!(note_line("web", &Opened { note: None, ..opened }), None);
    }
}
