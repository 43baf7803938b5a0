//! The terminal on our own side: its size, and raw mode that is always undone.

use rustix::io::fcntl_dupfd_cloexec;
use rustix::termios::{
    OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The size of a terminal. Zeroes mean that it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines of text.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
    /// Width in pixels, 0 on most terminals.
    pub width_px: u16,
    /// Height in pixels, 0 on most terminals.
    pub height_px: u16,
}

/// The size of the terminal that `fd` leads to.
///
/// # Errors
/// `ENOTTY` for what is no terminal.
pub fn window_size(fd: impl AsFd) -> io::Result<WindowSize> {
    let size = tcgetwinsize(fd)?;
    Ok(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
        width_px: size.ws_xpixel,
        height_px: size.ws_ypixel,
    })
}

/// Sets the size of a terminal; its foreground processes get SIGWINCH if it is another one.
///
/// # Errors
/// `ENOTTY` for what is no terminal.
pub fn set_window_size(fd: impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: size.width_px,
        ws_ypixel: size.height_px,
    };
    Ok(tcsetwinsize(fd, size)?)
}

/// A terminal in raw mode: every key arrives at once, as it is, and is not echoed.
///
/// Dropping it gives the terminal the modes that it had before. A process that is ended by a signal
/// drops nothing, so whoever holds this catches the signals that it can.
#[derive(Debug)]
pub struct RawMode {
    /// A duplicate, so that the terminal can be restored whatever has become of the original.
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Enters raw mode. What has been written drains first; what was typed ahead is kept.
    ///
    /// # Errors
    /// `ENOTTY` for what is no terminal, `EMFILE`. The terminal is then as before.
    pub fn enter(fd: impl AsFd) -> io::Result<Self> {
        let before = tcgetattr(&fd)?;
        let terminal = fcntl_dupfd_cloexec(fd, 3)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }

    /// Leaves raw mode, and unlike a drop says if that failed.
    ///
    /// # Errors
    /// `EIO` when the terminal has been hung up.
    pub fn leave(self) -> io::Result<()> {
        // The drop then does the same once more, which changes nothing.
        self.restore()
    }

    fn restore(&self) -> io::Result<()> {
        // Without waiting for a drain, which a terminal that was stopped with Ctrl-S never does.
        Ok(tcsetattr(&self.terminal, OptionalActions::Now, &self.before)?)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = self.restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::LocalModes;

    /// Both sides of a pseudo-terminal that is nobody's controlling terminal.
    fn terminal() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let side = ioctl_tiocgptpeer(&master, flags).unwrap();
        (master, side)
    }

    fn echoes(fd: &OwnedFd) -> bool {
        tcgetattr(fd).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    #[test]
    fn raw_mode_is_entered_and_undone_by_both_ways_out() {
        let (_master, terminal) = terminal();
        assert!(echoes(&terminal));
        let raw = RawMode::enter(&terminal).unwrap();
        assert!(!echoes(&terminal));
        raw.leave().unwrap();
        assert!(echoes(&terminal));

        let raw = RawMode::enter(&terminal).unwrap();
        assert!(!echoes(&terminal));
        drop(raw);
        assert!(echoes(&terminal));
    }

    #[test]
    fn a_size_is_seen_from_the_other_side() {
        let (master, terminal) = terminal();
        let size = WindowSize { rows: 24, columns: 80, width_px: 640, height_px: 480 };
        set_window_size(&master, size).unwrap();
        assert_eq!(window_size(&terminal).unwrap(), size);
    }

    #[test]
    fn what_is_no_terminal_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(window_size(&null).is_err());
        assert!(RawMode::enter(&null).is_err());
    }
}
