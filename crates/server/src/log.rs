//! What the server says of itself: one line an event, on stderr, with nothing in it that a peer
//! could use against a terminal.

use std::io::Write as _;

use afar_core::escape::escape_for_terminal;

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Only what somebody has to do something about.
    Error,
    /// Also who came, who was refused and why.
    #[default]
    Info,
    /// Also every connection and job.
    Debug,
}

/// A log on stderr.
#[derive(Clone, Copy, Debug, Default)]
pub struct Log {
    level: Level,
}

impl Log {
    /// A log of this level.
    #[must_use]
    pub const fn new(level: Level) -> Self {
        Self { level }
    }

    /// Says what somebody has to do something about.
    pub fn error(self, message: &str) {
        self.write(Level::Error, "error", message);
    }

    /// Says who came, who was refused and why.
    pub fn info(self, message: &str) {
        self.write(Level::Info, "info", message);
    }

    /// Says what happens.
    pub fn debug(self, message: &str) {
        self.write(Level::Debug, "debug", message);
    }

    fn write(self, level: Level, word: &str, message: &str) {
        if level > self.level {
            return;
        }
        let now = jiff::Timestamp::now();
        let message = escape_for_terminal(message.as_bytes());
        // A log that can't be written must not end what it is about.
        let _ = writeln!(std::io::stderr().lock(), "{now:.3} afar {word}: {message}");
    }
}
