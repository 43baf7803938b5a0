//! What is shown on stderr while there is no connection.

use std::io::{self, IsTerminal as _};

use super::output::Output;
use crate::console::Verbosity;

/// Columns of a terminal that does not know how many it has.
const COLUMNS: u16 = 80;

/// Columns at the end of a line that stay free: some terminals wrap as soon as the last one is used,
/// and a Ctrl-C is shown as two characters where the cursor is.
const COLUMNS_FREE: usize = 3;

/// Back to the beginning of the line, and nothing on it any more (ECMA-48, EL).
const ERASE: &str = "\r\x1b[K";

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// A line that is taken back when there is a connection again.
    Line,
    /// The lowest line of the screen, which is the job's.
    Screen,
    /// A line for each change.
    Log,
    Nothing,
}

/// One line that says that the connection is away. It stands below what the command has written, and
/// erases nothing of that; what it goes through is the command's output, so that both keep their order.
#[derive(Debug)]
pub(crate) struct StatusLine {
    target: String,
    style: Style,
    /// Why the connection is away, if it is.
    away: Option<String>,
}

impl StatusLine {
    pub(crate) fn new(target: &str, verbosity: Verbosity) -> Self {
        let dumb = || std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let style = match verbosity {
            Verbosity::Quiet => Style::Nothing,
            Verbosity::Verbose => Style::Log,
            Verbosity::Normal if !io::stderr().is_terminal() => Style::Nothing,
            Verbosity::Normal if dumb() => Style::Log,
            Verbosity::Normal => Style::Line,
        };
        Self { target: target.to_owned(), style, away: None }
    }

    /// The screen shows what the job has drawn there, and its cursor.
    pub(super) fn on_screen(&mut self) {
        if self.style == Style::Line {
            self.style = Style::Screen;
        }
    }

    /// Whether there is no connection, as far as was told.
    pub(super) fn is_away(&self) -> bool {
        self.away.is_some()
    }

    /// The connection is away.
    pub(crate) fn show(&mut self, output: &mut Output, cause: &str) {
        self.away = Some(cause.to_owned());
        match self.style {
            Style::Line | Style::Screen => {
                output.push_own(&self.line(), self.style == Style::Screen);
            }
            Style::Log => {
                let line = format!("afar: {}: {cause}; reconnecting\n", self.target);
                output.push_own(&line, false);
            }
            Style::Nothing => {}
        }
    }

    /// There is one again, or none is needed any more.
    pub(crate) fn clear(&mut self, output: &mut Output) {
        if self.away.take().is_none() {
            return;
        }
        match self.style {
            Style::Line => output.push_own(ERASE, true),
            Style::Screen => output.push_own(&at_bottom(""), true),
            Style::Log => {
                output.push_own(&format!("afar: {}: connected again\n", self.target), false);
            }
            Style::Nothing => {}
        }
    }

    /// Says a line that stays, above this one if it is shown.
    pub(crate) fn say(&self, output: &mut Output, line: &str) {
        if self.style == Style::Screen {
            // The lowest line is the only one that can be had without breaking what the job has drawn.
            output.push_own(&at_bottom(&format!("\x1b[7mafar: {line}")), true);
        } else if self.is_away() && self.style == Style::Line {
            output.push_own(&format!("{ERASE}afar: {line}\r\n{}", self.line()), true);
        } else {
            output.push_own(&format!("afar: {line}\n"), false);
        }
    }

    fn line(&self) -> String {
        let cause = self.away.as_deref().unwrap_or_default();
        let columns = afar_sys::terminal::window_size(io::stderr()).map_or(0, |size| size.columns);
        let text = format!("afar: reconnecting to {}: {cause}", self.target);
        match self.style {
            Style::Screen => {
                let text = format!("{text} (~. leaves)");
                at_bottom(&format!("\x1b[7m{}", fitting(&text, columns)))
            }
            _ => format!("{ERASE}{}", fitting(&text, columns)),
        }
    }
}

/// A text in the lowest line of the screen, with the cursor where it was afterwards (DECSC, CUP, EL, SGR,
/// DECRC).
fn at_bottom(text: &str) -> String {
    format!("\x1b7\x1b[999;1H\x1b[0m\x1b[2K{text}\x1b[0m\x1b8")
}

/// As much of a text as fits into one line: what wraps is not erased with its line.
fn fitting(text: &str, columns: u16) -> &str {
    let columns = if columns == 0 { COLUMNS } else { columns };
    let mut room = usize::from(columns).saturating_sub(COLUMNS_FREE);
    for (at, char) in text.char_indices() {
        // No character is wider than two columns.
        let Some(left) = room.checked_sub(if char.is_ascii() { 1 } else { 2 }) else {
            return text.get(..at).unwrap_or_default();
        };
        room = left;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_leaves_its_last_columns_free() {
        assert_eq!(fitting("0123456789", 13), "0123456789");
        assert_eq!(fitting("0123456789", 12), "012345678");
        assert_eq!((fitting("0123456789", 1), fitting("0123456789", 3)), ("", ""));
        assert_eq!(fitting("ab\u{5e83}\u{5c9b}", 9), "ab\u{5e83}\u{5c9b}");
        assert_eq!(fitting("ab\u{5e83}\u{5c9b}", 8), "ab\u{5e83}");
        // One that does not know its width.
        assert_eq!(fitting(&"x".repeat(100), 0).len(), 77);
    }
}
