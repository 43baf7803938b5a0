//! What is said on stderr about a command that has ended.

use afar_client::{End, Error, Outcome};
use afar_core::escape::escape_for_terminal;
use afar_core::hints::not_found_hint;
use afar_sys::signals::Signal;

use crate::console::{Verbosity, say, say_failure};

/// Says that afar failed, or could not start the command: with what to do about it.
pub(super) fn say_error(error: &Error, argv: &[Vec<u8>]) {
    let not_found = matches!(error, Error::NotStarted(refused)
        if refused.reason.as_str() == "not_found");
    let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
    let hint = if not_found { not_found_hint(&argv) } else { None };
    say_failure(error, hint.as_deref());
}

/// Says how a command ended, where its status alone does not.
pub(super) fn say_end(outcome: &Outcome, verbosity: Verbosity, forwarded: &[Signal]) {
    if let Some(line) = end_line(&outcome.end, forwarded) {
        say(&line);
    }
    if verbosity >= Verbosity::Verbose {
        let job = outcome.job.as_deref().unwrap_or("-");
        let wall_ms = outcome.wall_s.unwrap_or_default() * 1000.0;
        let status = outcome.status();
        say(&format!(
            "{}: job {job} ended with status {status} after {wall_ms:.1} ms",
            outcome.target
        ));
        if outcome.streams_left_open == Some(true) {
            say("another process still holds the command's output open");
        }
    }
}

/// A command that dies of a signal that was passed on to it, or of its reader's going away, did
/// what was wanted.
fn end_line(end: &End, forwarded: &[Signal]) -> Option<String> {
    match end {
        End::Signaled { name, core, .. } => {
            let signal = Signal::parse(name);
            if signal == Some(Signal::PIPE) || signal.is_some_and(|s| forwarded.contains(&s)) {
                return None;
            }
            let name = escape_for_terminal(name.as_bytes());
            let core = if *core { " (core dumped)" } else { "" };
            Some(format!("the command was ended by {name}{core}"))
        }
        End::Timeout => Some("the command was ended by --timeout".to_owned()),
        End::Oom => Some("the command was ended for want of memory".to_owned()),
        End::Cancelled => Some("the command was cancelled".to_owned()),
        End::Exited { .. } | End::Lost | End::Unknown | End::NotStarted { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signaled(name: &str) -> End {
        End::Signaled { signal: 1, name: name.to_owned(), core: name == "SIGSEGV" }
    }

    #[test]
    fn a_crash_is_said_and_what_was_wanted_is_not() {
        let said = end_line(&signaled("SIGSEGV"), &[]);
        assert_eq!(said.as_deref(), Some("the command was ended by SIGSEGV (core dumped)"));
        assert!(end_line(&signaled("SIGKILL"), &[Signal::TERM]).is_some());
        assert_eq!(end_line(&signaled("SIGPIPE"), &[]), None);
        assert_eq!(end_line(&signaled("SIGTERM"), &[Signal::TERM]), None);
        assert_eq!(end_line(&End::Exited { code: 3 }, &[]), None);
        assert!(end_line(&End::Timeout, &[]).is_some());
    }

    #[test]
    fn fault_85_a_signals_name_is_shown_and_not_obeyed() {
        let said = end_line(&signaled("SIG\x1b[2J"), &[]).unwrap();
        assert!(!said.contains('\x1b'), "{said}");
    }
}
