//! `afar repl`: a prompt for another machine.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use afar_core::escape::escape_bounded;

use crate::args::ReplArgs;
use crate::commands::{launch_supervisor, settle, with_signals};
use crate::console::{say, say_failure};
use crate::exit::Exit;
use crate::line_editor::history_file;
use crate::repl::{ReplOptions, repl};

/// The history, within the directory of afar's state.
const HISTORY_NAME: &str = "repl_history";

/// Runs what is typed until its end, and ends as the last command did.
pub(crate) fn cmd_repl(args: ReplArgs) -> Exit {
    if is_set(&args.target) {
        let set = escape_bounded(args.target.as_bytes(), 64);
        say(&format!("usage: {set} names several hosts; a prompt has one target; see --help"));
        return Exit::Failed;
    }
    let (target, settings) = match settle(&args.target, &args.connect) {
        Ok(settled) => settled,
        Err(error) => {
            say_failure(&error, None);
            return Exit::Failed;
        }
    };
    let client = settings.client().launcher(launch_supervisor).build();
    let configured = settings.env.into_iter().map(|(name, value, _)| (name.into(), value.into()));
    let given = args.env.into_iter().map(|variable| (variable.name, variable.value));
    let options = ReplOptions {
        session: args.session,
        // Those of the command line last: the last value of a name counts.
        env: configured.chain(given).collect(),
        timeout: args.timeout,
        history: history_file(HISTORY_NAME),
        verbosity: args.connect.verbosity(),
    };
    with_signals(async |signals| repl(&client, &target, options, signals).await)
}

/// Whether this would be expanded to several targets.
fn is_set(target: &OsStr) -> bool {
    let bytes = target.as_bytes();
    let in_brackets = bytes.iter().position(|byte| *byte == b'[');
    // An IPv6 address has brackets, too, and colons within.
    let range = in_brackets.is_some_and(|at| !bytes.get(at..).unwrap_or_default().contains(&b':'));
    bytes.contains(&b',') || bytes.starts_with(b"@") || range
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_told_from_a_target() {
        for set in ["a,b", "@group", "web[01-40]", "web[1,2]"] {
            assert!(is_set(OsStr::new(set)), "{set}");
        }
        for target in ["web", "me@web:22", "[::1]:2327", "me@[fe80::1]", "local", "ssh://web"] {
            assert!(!is_set(OsStr::new(target)), "{target}");
        }
    }
}
