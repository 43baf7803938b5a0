//! A real terminal with a person's shell on it: tmux draws what is shown, and its screen is read.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use crate::deadline::{DEADLINE, Deadline};
use crate::fail;
use crate::home::Home;

/// From one look at the screen to the next, while something is waited for: nothing tells when a
/// screen changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The prompt of the shell on this side.
const PROMPT: &str = "here$ ";

/// A terminal of 80 columns and 24 rows, on which a shell of this side runs. Ended when dropped.
#[derive(Debug)]
pub struct Screen {
    socket: PathBuf,
}

impl Screen {
    /// One whose shell has this home, and afar's program as `$AFAR`.
    ///
    /// # Panics
    /// tmux is missing.
    #[track_caller]
    #[must_use]
    pub fn start(home: &Home) -> Self {
        let screen = Self { socket: home.file(format!("tmux-{}", unique())) };
        let mut variables: Vec<OsString> = Vec::new();
        let mut set = |name: &str, value: OsString| {
            let mut entry = OsString::from(name);
            entry.push("=");
            entry.push(value);
            variables.push(entry);
        };
        for (name, value) in home.environment() {
            set(name.to_str().expect("the rig's names are UTF-8"), value);
        }
        set("PS1", PROMPT.into());
        set("AFAR", crate::binary::afar().into());
        set("LANG", "C.UTF-8".into());
        set("PATH", std::env::var_os("PATH").unwrap_or_default());
        let mut start = screen.command();
        start.args(["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "--"]);
        // A shell that leaves the terminal's modes as programs have left them, as few do.
        start.arg("env").arg("-i").args(variables).args(["TERM=tmux-256color", "dash", "-i"]);
        succeed(&start.output().expect("tmux is installed"));
        screen.wait_for_last(PROMPT.trim_end());
        screen
    }

    fn command(&self) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-u").arg("-S").arg(&self.socket).env_remove("TMUX");
        command.env("LANG", "C.UTF-8").env_remove("LC_ALL");
        command
    }

    #[track_caller]
    fn tmux<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String {
        let output = self.command().args(words).output().expect("tmux is installed");
        succeed(&output)
    }

    /// What is on the screen, without the spaces at the ends of lines and the empty lines below.
    #[track_caller]
    #[must_use]
    pub fn shown(&self) -> String {
        self.tmux(["capture-pane", "-p"]).trim_end().to_owned()
    }

    /// Waits until what is on the screen is as wanted.
    ///
    /// # Panics
    /// It does not come to that.
    #[track_caller]
    pub fn wait_until(&self, wanted: &str, is_so: impl Fn(&str) -> bool) -> String {
        let deadline = Deadline::after(DEADLINE);
        loop {
            let shown = self.shown();
            if is_so(&shown) {
                return shown;
            }
            if deadline.left().is_zero() {
                fail(&format!("{wanted:?} is not on the screen:\n{shown}"));
            }
            thread::park_timeout(LOOK_INTERVAL);
        }
    }

    /// Waits until this is on the screen.
    ///
    /// # Panics
    /// As [`Screen::wait_until`].
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_until(text, |shown| shown.contains(text))
    }

    /// Waits until the last line is this.
    ///
    /// # Panics
    /// As [`Screen::wait_until`].
    #[track_caller]
    pub fn wait_for_last(&self, line: &str) -> String {
        let is_last = |shown: &str| shown.lines().last().is_some_and(|last| last == line);
        self.wait_until(line, is_last)
    }

    /// Types this text as it is.
    #[track_caller]
    pub fn text(&self, text: &str) {
        // At the end of a word tmux takes a semicolon for its own.
        let last = text.strip_suffix(';').map(|rest| format!("{rest}\\;"));
        self.tmux(["send-keys", "-l", "--", last.as_deref().unwrap_or(text)]);
    }

    /// Types a line and Enter.
    #[track_caller]
    pub fn line(&self, line: &str) {
        self.text(line);
        self.keys(["Enter"]);
    }

    /// Presses keys by their names in tmux: `C-z`, `Escape`, `Up`.
    #[track_caller]
    pub fn keys<'a>(&self, keys: impl IntoIterator<Item = &'a str>) {
        self.tmux(["send-keys"].into_iter().chain(keys));
    }

    /// Pastes the contents of a file, as it is.
    #[track_caller]
    pub fn paste(&self, file: &std::path::Path) {
        let file = file.to_str().expect("the rig's paths are UTF-8");
        self.tmux(["load-buffer", file]);
        self.tmux(["paste-buffer"]);
    }

    /// Gives the window another size.
    #[track_caller]
    pub fn resize(&self, columns: u16, rows: u16) {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        self.tmux(["resize-window", "-x", &columns, "-y", &rows]);
    }

    /// Whether the terminal on this side is in raw mode: keys are read one by one, and not shown.
    ///
    /// # Panics
    /// There is no stty.
    #[track_caller]
    #[must_use]
    pub fn is_raw(&self) -> bool {
        let device = self.tmux(["display-message", "-p", "#{pane_tty}"]);
        let output = Command::new("stty").args(["-F", device.trim(), "-a"]).output();
        let modes = succeed(&output.expect("stty (coreutils) is installed"));
        let has = |mode| modes.split([' ', ';', '\n']).any(|word| word == mode);
        assert_eq!(has("-icanon"), has("-echo"), "half raw: {modes}");
        has("-icanon")
    }

    /// Waits until the program on this side has ended, and tells with which status. Fails if it has
    /// left the terminal in raw mode.
    ///
    /// # Panics
    /// It does not end.
    #[track_caller]
    pub fn status(&self) -> u8 {
        self.wait_for_last(PROMPT.trim_end());
        assert!(!self.is_raw(), "the terminal was left in raw mode");
        let mark = format!("status-{}=", unique());
        self.line(&format!("echo {mark}$?"));
        let shown = self.wait_until(&mark, |shown| status_in(shown, &mark).is_some());
        status_in(&shown, &mark).unwrap_or_default()
    }
}

fn status_in(shown: &str, mark: &str) -> Option<u8> {
    shown.lines().find_map(|line| line.strip_prefix(mark)?.parse().ok())
}

impl Drop for Screen {
    fn drop(&mut self) {
        // What fails here has ended already.
        let _ = self.command().arg("kill-server").output();
    }
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[track_caller]
fn succeed(output: &Output) -> String {
    if !output.status.success() {
        fail(&format!("{}", String::from_utf8_lossy(&output.stderr)));
    }
    String::from_utf8_lossy(&output.stdout).into_owned()
}
