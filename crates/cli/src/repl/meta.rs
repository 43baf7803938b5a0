//! Lines that begin with a colon: they are the prompt's own, and not the shell's.

use std::time::Duration;

use afar_core::duration;

/// What such a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meta {
    Help,
    /// Whether status and time are shown.
    Timing(bool),
    /// A limit for each command, or none.
    Timeout(Option<Duration>),
    /// The outcome of the last command.
    Last,
    /// End the command that runs.
    Cancel,
    Quit,
}

/// What `:help` says.
pub(super) const HELP: &str = "\
Each line runs in one shell there: cd, variables and functions last. A line that is not
finished (a quote, a here-document, if without fi) goes on in the next.

  :help               this
  :timing [on|off]    show status and time after each line
  :timeout TIME|off   end what runs for longer, such as 30s
  :last               the outcome of the last line, as JSON
  :cancel             while a line runs: end it, and its shell with it
  :quit               leave, as Ctrl-D does

Tab completes commands and paths there. Ctrl-R searches the history. Alt-Enter sends a line
as it is. Ctrl-C interrupts what runs; twice within a second it ends it.";

/// Reads a line. `None`: it is for the shell, to which a colon followed by a space means something.
pub(super) fn parse(line: &str, timing: bool) -> Option<Result<Meta, String>> {
    let rest = line.trim().strip_prefix(':')?;
    if !rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '?') {
        return None;
    }
    let mut words = rest.split_whitespace();
    let name = words.next().unwrap_or_default();
    let argument = words.next();
    if words.next().is_some() {
        return Some(Err(format!(":{name} takes one word at most; see :help")));
    }
    Some(match (name, argument) {
        ("help" | "h" | "?", None) => Ok(Meta::Help),
        ("timing", None) => Ok(Meta::Timing(!timing)),
        ("timing", Some("on")) => Ok(Meta::Timing(true)),
        ("timing", Some("off")) => Ok(Meta::Timing(false)),
        ("timeout", Some("off")) => Ok(Meta::Timeout(None)),
        ("timeout", Some(time)) => match duration::parse(time) {
            Ok(time) => Ok(Meta::Timeout(Some(time))),
            Err(error) => Err(format!(":timeout: {error}")),
        },
        ("timeout", None) => Err(":timeout wants a time such as 30s, or off".to_owned()),
        ("last", None) => Ok(Meta::Last),
        ("cancel", None) => Ok(Meta::Cancel),
        ("quit" | "q" | "exit", None) => Ok(Meta::Quit),
        _ => Err(format!("there is no :{}; see :help", rest.trim())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_and_a_word_are_for_the_prompt() {
        let read = |line: &str| parse(line, true).unwrap();
        assert_eq!(read(":help"), Ok(Meta::Help));
        assert_eq!(read(" :timing "), Ok(Meta::Timing(false)));
        assert_eq!(read(":timing on"), Ok(Meta::Timing(true)));
        assert_eq!(read(":timeout 2m"), Ok(Meta::Timeout(Some(Duration::from_secs(120)))));
        assert_eq!(read(":timeout off"), Ok(Meta::Timeout(None)));
        assert_eq!(read(":q"), Ok(Meta::Quit));
        for bad in [":nonsense", ":timeout", ":timeout soon", ":help me", ":timing 1 2"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn everything_else_is_for_the_shell() {
        for line in ["", "ls", ": ${x:=5}", ":", ":/bin", "echo :help"] {
            assert_eq!(parse(line, true), None, "{line}");
        }
    }
}
