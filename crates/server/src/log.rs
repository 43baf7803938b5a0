//! What the server says of itself: one line an event, on stderr, with nothing in it that a peer
//! could use against a terminal.

use std::io::Write as _;
use std::sync::{OnceLock, mpsc};

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
        let line = format!("{now:.3} afar {word}: {message}\n");
        // A log that can't be written must not end what it is about, nor have it wait.
        let _ = match ELSEWHERE.get() {
            Some(lines) => lines.try_send(line).map_err(drop),
            None => std::io::stderr().lock().write_all(line.as_bytes()).map_err(drop),
        };
    }
}

/// Lines that wait for the thread that writes them; more are dropped.
const WAITING_LINES_MAX: usize = 1024;

static ELSEWHERE: OnceLock<mpsc::SyncSender<String>> = OnceLock::new();

/// Has a thread write the lines from here on, for a log on a file server that may not answer. Where none
/// can be had they are written as before.
pub(crate) fn write_elsewhere() {
    let (lines, to_do) = mpsc::sync_channel::<String>(WAITING_LINES_MAX);
    let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || {
        for line in to_do {
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
    });
    if thread.is_ok() {
        let _ = ELSEWHERE.set(lines);
    }
}
