//! The person at our terminal, while the job has one too: raw mode, keys, sizes, escapes.

use std::future::pending;
use std::io;

use afar_client::{Job, Resize, Stdin};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

use super::Runner;
use super::ending::Ending;
use super::escapes::{Escape, EscapeCharacter};
use super::keys::{self, Wish};
use crate::tty::{self, RawTerminal};

/// Said by `~?`; the escape character stands in for each `~`.
const HELP: &str = "\
escapes, at the beginning of a line:
 ~.   leave
 ~d   leave, and let the job go on; `afar attach` returns to it
 ~^Z  stop afar, until its shell continues it
 ~?   this text
 ~~   the character itself";

/// Our terminal as long as it is the job's.
#[derive(Debug)]
pub(super) struct AtTerminal {
    raw: RawTerminal,
    wishes: UnboundedReceiver<Wish>,
    escape: EscapeCharacter,
    resized: Signal,
    continued: Signal,
    /// The size that the job's terminal has been told.
    size: Resize,
}

/// What happens at the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    Wish(Wish),
    Resized,
    Continued,
}

impl AtTerminal {
    /// Takes the terminal over. `told` is the size that the job's terminal was asked for with.
    pub(super) fn begin(stdin: Stdin, escape: EscapeCharacter, told: Resize) -> io::Result<Self> {
        // Before the size is looked at for the first time, so that no change is missed.
        let resized = signal(SignalKind::window_change())?;
        let continued = signal(SignalKind::from_raw(afar_sys::signals::Signal::CONT.number()))?;
        let raw = RawTerminal::enter()?;
        let wishes = keys::pump(stdin, escape)?;
        Ok(Self { raw, wishes, escape, resized, continued, size: told })
    }

    /// What happens next. Cancellation safe.
    pub(super) async fn next(&mut self) -> Happening {
        tokio::select! {
            wish = self.wishes.recv() => match wish {
                Some(wish) => Happening::Wish(wish),
                // It was told that the keys have come to their end.
                None => pending().await,
            },
            Some(()) = self.resized.recv() => Happening::Resized,
            Some(()) = self.continued.recv() => Happening::Continued,
        }
    }

    /// Tells the job's terminal our size, if it has another one.
    pub(super) fn tell_size(&mut self, job: &Job) {
        let size = tty::size();
        if size != self.size {
            self.size = size;
            job.resize(size);
        }
    }

    /// Stops this program until it is continued.
    pub(super) fn suspend(&self) {
        // A terminal that has gone meanwhile says so by its keys.
        let _ = self.raw.suspend();
    }

    /// Somebody has stopped and continued us.
    pub(super) fn enter_again(&self) {
        let _ = self.raw.enter_again();
    }

    /// The text that `~?` asks for.
    pub(super) fn help(&self) -> String {
        let character = match self.escape.0 {
            Some(control) if control.is_ascii_control() => {
                format!("^{}", char::from(control ^ 0x40))
            }
            Some(character) => char::from(character).to_string(),
            None => return String::new(),
        };
        format!("{}\n", HELP.replace('~', &character))
    }
}

/// Nothing happens at a terminal that nobody sits at.
pub(super) async fn next(at_terminal: &mut Option<AtTerminal>) -> Happening {
    match at_terminal {
        Some(at_terminal) => at_terminal.next().await,
        None => pending().await,
    }
}

/// How the person at the terminal leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WayOut {
    /// As was said at the start that the job is to be left.
    Leave,
    /// So that it goes on.
    Detach,
}

impl Runner<'_> {
    /// Our terminal becomes the job's.
    pub(super) fn begin_at_terminal(&mut self) {
        let Some(stdin) = self.job.as_mut().and_then(Job::take_stdin) else { return };
        let told = self.asked_size.unwrap_or_default();
        match AtTerminal::begin(stdin, self.options.escape, told) {
            Ok(mut at_terminal) => {
                if let Some(job) = &self.job {
                    at_terminal.tell_size(job);
                }
                self.status_line.on_screen();
                self.at_terminal = Some(at_terminal);
            }
            Err(error) => {
                self.local_failure = Some(format!("cannot use the terminal: {error}"));
            }
        }
    }

    /// Something happens at our terminal. `Some` if that is the end.
    pub(super) fn happen(&mut self, happening: Happening) -> Option<WayOut> {
        let at_terminal = self.at_terminal.as_mut()?;
        match happening {
            Happening::Resized => {}
            Happening::Continued => at_terminal.enter_again(),
            Happening::Wish(Wish::Escape(Escape::Suspend)) => at_terminal.suspend(),
            Happening::Wish(Wish::Escape(Escape::Help)) => {
                let help = at_terminal.help();
                self.output.push_own(&help, false);
            }
            Happening::Wish(Wish::Escape(Escape::Leave) | Wish::HungUp) => {
                return Some(WayOut::Leave);
            }
            Happening::Wish(Wish::Escape(Escape::Detach)) => return Some(WayOut::Detach),
        }
        if let Some(job) = &self.job {
            at_terminal.tell_size(job);
        }
        None
    }

    /// Leaves a job that is to go on.
    pub(super) fn detach(mut self) -> Ending {
        if let Some(ending) = self.ending.take() {
            return ending;
        }
        self.status_line.clear(self.output);
        let (Some(job), Some(known)) = (self.job.take(), &self.known) else {
            return self.broken_off();
        };
        job.detach();
        let place = (self.options.job_name.0)(&known.job);
        Ending::put_aside(&self.target, known, &place)
    }
}
