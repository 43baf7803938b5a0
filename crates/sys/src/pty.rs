//! Pseudo-terminals: a terminal for a child, with us at the keys and the screen.

use crate::errno;
use crate::pipe::set_nonblocking;
use crate::signals::Signal;
use crate::terminal::{WindowSize, set_window_size};
use rustix::fs::{fstat, stat};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr,
    tcsetattr,
};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

/// A terminal that a child can have.
#[derive(Debug)]
pub struct Pty {
    /// Our side, non-blocking: what is written here was typed, what is read here was shown. Once
    /// everybody has closed the other side, it reads what is left and then `EIO`.
    pub controller: OwnedFd,
    /// The other side. To be closed once the child has opened its own, or our side never sees the end.
    pub terminal: OwnedFd,
    /// Where the child opens it, as its controlling terminal
    /// ([`Stdio::Terminal`](crate::spawn::Stdio::Terminal)).
    pub path: CString,
}

impl Pty {
    /// A fresh terminal of this size, with the system's modes but for those that are named; names
    /// that are not known here are left out.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOSPC` (no terminal is left, `/proc/sys/kernel/pty/max`); a `/dev/pts`
    /// that is not the one that the terminal is of.
    pub fn open<'a>(
        size: WindowSize,
        modes: impl IntoIterator<Item = (&'a str, u32)>,
    ) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags)?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        // By the descriptor, so that it is this one whatever the name leads to.
        let terminal = ioctl_tiocgptpeer(&controller, flags)?;
        let path = ptsname(&controller, Vec::new())?;
        let (named, own) = (stat(path.as_c_str())?, fstat(&terminal)?);
        if (named.st_dev, named.st_ino, named.st_rdev) != (own.st_dev, own.st_ino, own.st_rdev) {
            let why = format!("{} is the terminal of another /dev/pts", path.to_string_lossy());
            return Err(io::Error::other(why));
        }
        set_window_size(&terminal, size)?;
        set_modes(&terminal, modes)?;
        set_nonblocking(&controller)?;
        Ok(Self { controller, terminal, path })
    }
}

/// Sends INT, QUIT or TSTP to the processes in the foreground of the terminal whose controlling side
/// this is, as the keys for them do.
///
/// # Errors
/// `EINVAL` for another signal.
pub fn signal_foreground(controller: impl AsFd, signal: Signal) -> Result<(), Errno> {
    let fd = controller.as_fd().as_raw_fd();
    // SAFETY: TIOCSIG takes an integer and touches no memory of ours.
    errno::of_minus_one(unsafe { libc::ioctl(fd, libc::TIOCSIG as _, signal.number()) }).map(|_| ())
}

/// The character that means the end of input on this terminal; `None` while its programs read keys
/// and not lines, or it has none.
#[must_use]
pub fn end_of_input(fd: impl AsFd) -> Option<u8> {
    let modes = tcgetattr(fd).ok()?;
    let code = modes.special_codes[SpecialCodeIndex::VEOF];
    (modes.local_modes.contains(LocalModes::ICANON) && code != 0).then_some(code)
}

/// The modes of a terminal by name: characters by their number, 0 for none; settings 0 or 1.
///
/// # Errors
/// `ENOTTY` for what is no terminal.
pub fn modes(fd: impl AsFd) -> io::Result<Vec<(&'static str, u32)>> {
    let found = tcgetattr(fd)?;
    let characters =
        CHARACTERS.iter().map(|(name, at)| (*name, u32::from(found.special_codes[*at])));
    let settings = SETTINGS.iter().map(|(name, mode)| (*name, u32::from(mode.is_set(&found))));
    Ok(characters.chain(settings).collect())
}

fn set_modes<'a>(fd: impl AsFd, modes: impl IntoIterator<Item = (&'a str, u32)>) -> io::Result<()> {
    let mut set = tcgetattr(&fd)?;
    for (name, value) in modes {
        let character = CHARACTERS.iter().find(|(known, _)| *known == name);
        if let (Some((_, at)), Ok(code)) = (character, u8::try_from(value)) {
            set.special_codes[*at] = code;
        }
        if let Some((_, mode)) = SETTINGS.iter().find(|(known, _)| *known == name) {
            mode.set(&mut set, value != 0);
        }
    }
    Ok(tcsetattr(&fd, OptionalActions::Now, &set)?)
}

/// The characters that mean something, under the names of stty(1).
const CHARACTERS: &[(&str, SpecialCodeIndex)] = &[
    ("intr", SpecialCodeIndex::VINTR),
    ("quit", SpecialCodeIndex::VQUIT),
    ("erase", SpecialCodeIndex::VERASE),
    ("kill", SpecialCodeIndex::VKILL),
    ("eof", SpecialCodeIndex::VEOF),
    ("eol", SpecialCodeIndex::VEOL),
    ("eol2", SpecialCodeIndex::VEOL2),
    ("start", SpecialCodeIndex::VSTART),
    ("stop", SpecialCodeIndex::VSTOP),
    ("susp", SpecialCodeIndex::VSUSP),
    ("rprnt", SpecialCodeIndex::VREPRINT),
    ("werase", SpecialCodeIndex::VWERASE),
    ("lnext", SpecialCodeIndex::VLNEXT),
    ("discard", SpecialCodeIndex::VDISCARD),
];

/// A bit of the modes.
enum Setting {
    Input(InputModes),
    Output(OutputModes),
    Local(LocalModes),
}

impl Setting {
    fn is_set(&self, modes: &Termios) -> bool {
        match self {
            Self::Input(bit) => modes.input_modes.contains(*bit),
            Self::Output(bit) => modes.output_modes.contains(*bit),
            Self::Local(bit) => modes.local_modes.contains(*bit),
        }
    }

    fn set(&self, modes: &mut Termios, on: bool) {
        match self {
            Self::Input(bit) => modes.input_modes.set(*bit, on),
            Self::Output(bit) => modes.output_modes.set(*bit, on),
            Self::Local(bit) => modes.local_modes.set(*bit, on),
        }
    }
}

/// What can be on or off, under the names of stty(1), as far as it is a person's choice and not the
/// line's (RFC 4254 section 8).
const SETTINGS: &[(&str, Setting)] = &[
    ("ignpar", Setting::Input(InputModes::IGNPAR)),
    ("parmrk", Setting::Input(InputModes::PARMRK)),
    ("inpck", Setting::Input(InputModes::INPCK)),
    ("istrip", Setting::Input(InputModes::ISTRIP)),
    ("inlcr", Setting::Input(InputModes::INLCR)),
    ("igncr", Setting::Input(InputModes::IGNCR)),
    ("icrnl", Setting::Input(InputModes::ICRNL)),
    ("iuclc", Setting::Input(InputModes::IUCLC)),
    ("ixon", Setting::Input(InputModes::IXON)),
    ("ixany", Setting::Input(InputModes::IXANY)),
    ("ixoff", Setting::Input(InputModes::IXOFF)),
    ("imaxbel", Setting::Input(InputModes::IMAXBEL)),
    ("iutf8", Setting::Input(InputModes::IUTF8)),
    ("isig", Setting::Local(LocalModes::ISIG)),
    ("icanon", Setting::Local(LocalModes::ICANON)),
    ("xcase", Setting::Local(LocalModes::XCASE)),
    ("echo", Setting::Local(LocalModes::ECHO)),
    ("echoe", Setting::Local(LocalModes::ECHOE)),
    ("echok", Setting::Local(LocalModes::ECHOK)),
    ("echonl", Setting::Local(LocalModes::ECHONL)),
    ("noflsh", Setting::Local(LocalModes::NOFLSH)),
    ("tostop", Setting::Local(LocalModes::TOSTOP)),
    ("iexten", Setting::Local(LocalModes::IEXTEN)),
    ("echoctl", Setting::Local(LocalModes::ECHOCTL)),
    ("echoke", Setting::Local(LocalModes::ECHOKE)),
    ("opost", Setting::Output(OutputModes::OPOST)),
    ("olcuc", Setting::Output(OutputModes::OLCUC)),
    ("onlcr", Setting::Output(OutputModes::ONLCR)),
    ("ocrnl", Setting::Output(OutputModes::OCRNL)),
    ("onocr", Setting::Output(OutputModes::ONOCR)),
    ("onlret", Setting::Output(OutputModes::ONLRET)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::Session;
    use crate::spawn::{SpawnRequest, Stdio, spawn};
    use crate::terminal::window_size;
    use rustix::event::{PollFd, PollFlags, poll};

    const SIZE: WindowSize = WindowSize { rows: 30, columns: 100, width_px: 0, height_px: 0 };

    /// Reads until this is there, or to the end.
    fn read_until(controller: &OwnedFd, wanted: Option<&str>) -> String {
        let mut shown = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&shown).into_owned();
            if wanted.is_some_and(|wanted| text.contains(wanted)) {
                return text;
            }
            poll(&mut [PollFd::new(controller, PollFlags::IN)], None).unwrap();
            let mut buffer = [0; 4096];
            match rustix::io::read(controller, &mut buffer) {
                Ok(count) => shown.extend_from_slice(&buffer[..count]),
                Err(Errno::AGAIN) => {}
                Err(Errno::IO) => return text,
                Err(error) => panic!("{error}, after {text:?}"),
            }
        }
    }

    fn sh(pty: Pty, script: &str) -> (OwnedFd, crate::child::Child) {
        let argv = ["sh", "-c", script].map(|word| CString::new(word).unwrap());
        let child = spawn(&SpawnRequest {
            program: c"/bin/sh",
            argv: &argv,
            env: &[c"PATH=/usr/bin:/bin".to_owned()],
            cwd: None,
            stdio: Stdio::Terminal { path: &pty.path },
            session: Session::New,
            open_files_soft: None,
        });
        (pty.controller, child.unwrap())
    }

    #[test]
    fn a_child_has_it_with_its_size_and_modes_as_controlling_terminal() {
        let pty = Pty::open(SIZE, [("erase", 8), ("ixon", 0), ("iutf8", 1), ("unheard", 1)]);
        let (controller, mut child) = sh(pty.unwrap(), "stty size; stty -a; echo mine >/dev/tty");
        let shown = read_until(&controller, None);
        assert!(shown.starts_with("30 100\r\n"), "{shown}");
        for mode in ["erase = ^H", "-ixon", " iutf8", "mine\r\n"] {
            assert!(shown.contains(mode), "{mode}: {shown}");
        }
        child.wait().unwrap();
    }

    #[test]
    fn the_modes_of_a_terminal_are_those_that_were_set() {
        let set = [("intr", 7), ("echo", 0), ("olcuc", 1)];
        let pty = Pty::open(SIZE, set).unwrap();
        assert_eq!(window_size(&pty.terminal).unwrap(), SIZE);
        let found = modes(&pty.terminal).unwrap();
        assert!(set.iter().all(|mode| found.contains(mode)), "{found:?}");
        assert_eq!(found.len(), CHARACTERS.len() + SETTINGS.len());
        // Of both sides, so that our side can tell what its programs have set.
        assert_eq!(modes(&pty.controller).unwrap(), found);
        // A character has eight bits.
        let pty = Pty::open(SIZE, [("intr", 300)]).unwrap();
        assert!(modes(&pty.terminal).unwrap().contains(&("intr", 3)));
        assert!(modes(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn the_keys_signals_reach_the_foreground_and_no_other_does() {
        let pty = Pty::open(SIZE, []).unwrap();
        let script = "trap 'echo got; exit' INT; echo ready; while :; do read x; done";
        let (controller, mut child) = sh(pty, script);
        read_until(&controller, Some("ready"));
        assert_eq!(signal_foreground(&controller, Signal::HUP), Err(Errno::INVAL));
        signal_foreground(&controller, Signal::INT).unwrap();
        assert!(read_until(&controller, None).contains("got"));
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_input_is_a_character_while_lines_are_read() {
        let cooked = Pty::open(SIZE, [("eof", 5)]).unwrap();
        assert_eq!(end_of_input(&cooked.controller), Some(5));
        let none = Pty::open(SIZE, [("eof", 0)]).unwrap();
        assert_eq!(end_of_input(&none.controller), None);
        let raw = Pty::open(SIZE, [("icanon", 0)]).unwrap();
        assert_eq!(end_of_input(&raw.controller), None);
    }

    /// The end comes behind the last bytes, however short the program was.
    #[test]
    fn fault_53_the_last_bytes_of_a_terminal_come_before_its_end() {
        for round in 0..100 {
            let pty = Pty::open(SIZE, []).unwrap();
            let (controller, mut child) = sh(pty, &format!("echo {round}; exec echo x"));
            child.wait().unwrap();
            assert_eq!(read_until(&controller, None), format!("{round}\r\nx\r\n"));
        }
    }
}
