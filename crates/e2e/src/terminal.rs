//! A terminal with nobody but the test at it, for what asks a person.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::Winsize;

use crate::client::Running;
use crate::deadline::{DEADLINE, Deadline};
use crate::fail;
use crate::flow::Source;
use crate::home::Home;

/// What an editor asks the terminal: where the cursor is (ECMA-48, DSR).
const CURSOR_QUERY: &[u8] = b"\x1b[6n";

/// The person's side of a terminal.
#[derive(Debug)]
pub struct Terminal {
    controller: File,
    shown: Vec<u8>,
}

impl Terminal {
    /// Starts afar as the leader of a session on a terminal of its own, which is also its stdin.
    ///
    /// # Panics
    /// There is no terminal to be had, or no setsid(1).
    #[track_caller]
    #[must_use]
    pub fn afar(home: &Home, arguments: &[&str]) -> (Self, Running) {
        let run = home.program("setsid", ["--ctty", "--wait"]).arg(crate::binary::afar());
        Self::start(run, arguments)
    }

    /// The same, with its stdout and stderr on the terminal too: one of 80 columns that knows where
    /// its cursor is.
    ///
    /// # Panics
    /// As there.
    #[track_caller]
    #[must_use]
    pub fn all_of_afar(home: &Home, arguments: &[&str]) -> (Self, Running) {
        let script = "exec \"$0\" \"$@\" >/dev/tty 2>&1";
        let run = home.program("setsid", ["--ctty", "--wait", "sh", "-c", script]);
        Self::start(run.arg(crate::binary::afar()).env("TERM", "xterm"), arguments)
    }

    #[track_caller]
    fn start(run: crate::client::Run, arguments: &[&str]) -> (Self, Running) {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let controller = controller.expect("a terminal can be had");
        grantpt(&controller).and_then(|()| unlockpt(&controller)).expect("it is ours");
        let name = ptsname(&controller, Vec::new()).expect("it has a name");
        let path = PathBuf::from(name.to_str().expect("names of terminals are ASCII"));
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let side = rustix::fs::open(&path, flags, Mode::empty()).expect("it is unlocked");
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&side, size).expect("it is a terminal");
        let run = arguments.iter().fold(run, crate::client::Run::arg);
        let running = run.stdin_from(Source::File(File::from(side))).spawn();
        (Self { controller: File::from(controller), shown: Vec::new() }, running)
    }

    /// Waits until this is shown, behind what was waited for before; returns what is between.
    ///
    /// # Panics
    /// It is not shown.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Deadline::after(DEADLINE);
        loop {
            let shown = self.shown();
            if let Some(at) = shown.find(text) {
                self.shown = shown.as_bytes()[at + text.len()..].to_vec();
                return shown[..at].to_owned();
            }
            if !deadline.readable(&self.controller) {
                fail(&format!("{text:?} is not shown, but {shown:?}"));
            }
            let mut buffer = [0; 4096];
            // EIO once nobody has the other side open any more.
            let count = self.controller.read(&mut buffer).unwrap_or(0);
            if count == 0 {
                fail(&format!("{text:?} was not shown, but {shown:?}"));
            }
            self.shown.extend_from_slice(&buffer[..count]);
            if buffer[..count].windows(CURSOR_QUERY.len()).any(|bytes| bytes == CURSOR_QUERY) {
                self.type_keys("\x1b[1;1R");
            }
        }
    }

    /// Gives it another size.
    ///
    /// # Panics
    /// It is no terminal any more.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.controller, size).expect("it is a terminal");
    }

    /// What was shown behind what was waited for.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// Whether what is typed is shown, as it is unless a program has hidden it.
    ///
    /// # Panics
    /// It does not.
    #[must_use]
    pub fn shows_what_is_typed(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.controller).expect("it is a terminal");
        modes.local_modes.contains(rustix::termios::LocalModes::ECHO)
    }

    /// Types these keys.
    ///
    /// # Panics
    /// Nobody reads them.
    #[track_caller]
    pub fn type_keys(&mut self, keys: &str) {
        self.controller.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Types a line.
    ///
    /// # Panics
    /// Nobody reads it.
    #[track_caller]
    pub fn type_line(&mut self, line: &str) {
        let typed = self.controller.write_all(format!("{line}\n").as_bytes());
        typed.expect("the terminal takes a line");
    }
}
