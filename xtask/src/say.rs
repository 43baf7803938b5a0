//! Output: results on stdout, everything else on stderr.

use std::fmt::Display;
use std::io::Write as _;

/// One line of the result. A closed stdout is not worth failing for: the exit status tells.
pub(crate) fn line(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// One line about what is going on.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
