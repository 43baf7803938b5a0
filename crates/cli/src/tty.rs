//! Our own terminal in raw mode, which is left whatever ends this program but KILL.

use std::env;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::panic;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use afar_client::{Resize, Terminal};
use afar_sys::pty;
use afar_sys::terminal::{RawMode, window_size};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::isatty;

/// `Some` while the terminal is in raw mode. A panic of any thread has to find it.
static RAW: Mutex<Option<RawMode>> = Mutex::new(None);

fn raw() -> MutexGuard<'static, Option<RawMode>> {
    RAW.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a line that is said has to return the carriage itself.
pub(crate) fn is_raw() -> bool {
    raw().is_some()
}

/// Raw mode for as long as this lives.
#[derive(Debug)]
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Enters it, on the terminal that our stdin is.
    ///
    /// # Errors
    /// stdin is no terminal, or has hung up.
    pub(crate) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let said = panic::take_hook();
            panic::set_hook(Box::new(move |why| {
                leave();
                said(why);
            }));
        });
        enter()?;
        Ok(Self(()))
    }

    /// Stops this program, as Ctrl-Z does where no terminal is raw, until it is continued.
    pub(crate) fn suspend(&self) -> io::Result<()> {
        leave();
        // Whoever ignores it goes on at once.
        let _ = afar_sys::signals::Signal::TSTP.raise();
        enter()
    }

    /// Enters it again: somebody has stopped us, and a shell has changed the terminal meanwhile.
    pub(crate) fn enter_again(&self) -> io::Result<()> {
        leave();
        enter()
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        leave();
    }
}

fn enter() -> io::Result<()> {
    let entered = RawMode::enter(stdin())?;
    *raw() = Some(entered);
    Ok(())
}

fn leave() {
    // Dropping it restores the modes.
    drop(raw().take());
}

/// Whether somebody sits at our stdin.
pub(crate) fn is_at_keys() -> bool {
    isatty(stdin())
}

/// The size of our terminal, whichever of our streams lead to it; unknown if none does.
pub(crate) fn size() -> Resize {
    let streams = [stdout(), stdin(), stderr()];
    let size = streams.into_iter().find_map(|fd| window_size(fd).ok()).unwrap_or_default();
    Resize {
        columns: size.columns.into(),
        rows: size.rows.into(),
        width_px: size.width_px.into(),
        height_px: size.height_px.into(),
    }
}

/// A terminal like ours for a job.
pub(crate) fn like_ours() -> Terminal {
    let name = env::var_os("TERM").filter(|name| !name.is_empty());
    let modes = pty::modes(stdin()).unwrap_or_default();
    Terminal {
        name: name.map_or_else(|| "dumb".into(), |name| name.into_vec().into()),
        size: size(),
        modes: modes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    }
}

/// The variables that say which language and which characters our terminal shows; those that are set.
pub(crate) fn locale() -> impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)> {
    env::vars_os().filter(|(name, _)| {
        name.to_str()
            .is_some_and(|name| name == "LANG" || name == "COLORTERM" || name.starts_with("LC_"))
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, exit};
    use std::thread;

    use afar_sys::terminal::WindowSize;

    use super::*;

    const CHILD: &str = "AFAR_TEST_PANICS_IN_RAW_MODE";

    /// In a child, whose stdin is the terminal: a hook and a static are of the whole process.
    #[test]
    #[expect(clippy::exit, reason = "the child must end without a drop")]
    fn raw_mode_is_left_when_a_thread_panics() {
        if env::var_os(CHILD).is_some() {
            let _raw = RawTerminal::enter().unwrap();
            let was_raw = pty::modes(stdin()).unwrap().contains(&("icanon", 0));
            assert!(thread::spawn(|| panic!("as is wanted")).join().is_err());
            // Without the drop that the end of this function would be.
            exit(if was_raw { 7 } else { 8 });
        }
        let size = WindowSize { rows: 24, columns: 80, ..WindowSize::default() };
        let terminal = pty::Pty::open(size, []).unwrap();
        let before = pty::modes(&terminal.terminal).unwrap();
        let name = "tty::tests::raw_mode_is_left_when_a_thread_panics";
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .stdin(terminal.terminal.try_clone().unwrap())
            .output()
            .unwrap();
        assert_eq!(child.status.code(), Some(7), "{child:?}");
        assert_eq!(pty::modes(&terminal.terminal).unwrap(), before);
    }
}
