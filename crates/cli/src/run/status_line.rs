//! What is shown on stderr while there is no connection.

use std::io::{self, IsTerminal as _, Write as _};

use afar_client::Target;

use crate::console::{Verbosity, say};

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// A line that is taken back when there is a connection again.
    Line,
    /// A line for each change.
    Log,
    Nothing,
}

/// One line that says that the connection is away.
#[derive(Debug)]
pub(super) struct StatusLine {
    target: String,
    style: Style,
    away: bool,
}

impl StatusLine {
    pub(super) fn new(target: &Target, verbosity: Verbosity) -> Self {
        let dumb = || std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let style = match verbosity {
            Verbosity::Quiet => Style::Nothing,
            Verbosity::Verbose => Style::Log,
            Verbosity::Normal if !io::stderr().is_terminal() => Style::Nothing,
            Verbosity::Normal if dumb() => Style::Log,
            Verbosity::Normal => Style::Line,
        };
        Self { target: target.to_string(), style, away: false }
    }

    /// Whether there is no connection, as far as was told.
    pub(super) fn is_away(&self) -> bool {
        self.away
    }

    /// The connection is away.
    pub(super) fn show(&mut self, cause: &str) {
        self.away = true;
        let target = &self.target;
        match self.style {
            Style::Line => self.write(&format!("\r\x1b[Kafar: {target}: {cause}; reconnecting …")),
            Style::Log => say(&format!("{target}: {cause}; reconnecting")),
            Style::Nothing => {}
        }
    }

    /// There is one again, or none is needed any more.
    pub(super) fn clear(&mut self) {
        if !std::mem::take(&mut self.away) {
            return;
        }
        match self.style {
            Style::Line => self.write("\r\x1b[K"),
            Style::Log => say(&format!("{}: connected again", self.target)),
            Style::Nothing => {}
        }
    }

    fn write(&self, text: &str) {
        // What can't be said is lost: there is nowhere else to say it.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}
