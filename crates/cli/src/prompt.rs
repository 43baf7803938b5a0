//! Asks the person at the terminal, whatever stdin and stdout are connected to.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use afar_client::{Answer, HostKeyQuestion, LockedIdentity, Notice, Prompt};
use afar_core::escape::escape_for_terminal;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::console::{Verbosity, say};

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1024;

/// Longest passphrase that is read.
const PASSPHRASE_BYTES_MAX: usize = 4096;

/// Asks at `/dev/tty`, as ssh does; where there is none, nobody is there.
pub(crate) struct TerminalPrompt {
    verbosity: Verbosity,
    /// Two questions at once would mix.
    one_at_a_time: Mutex<()>,
}

impl TerminalPrompt {
    pub(crate) fn new(verbosity: Verbosity) -> Self {
        Self { verbosity, one_at_a_time: Mutex::new(()) }
    }
}

impl Prompt for TerminalPrompt {
    fn host_key(&self, question: &HostKeyQuestion) -> Answer {
        let _guard = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut terminal) = Terminal::open() else { return Answer::Nobody };
        terminal.ask_host_key(question)
    }

    fn passphrase(&self, key: &LockedIdentity<'_>, attempt: u32) -> Option<Zeroizing<Vec<u8>>> {
        let _guard = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let mut terminal = Terminal::open()?;
        let again = if attempt > 1 { "Wrong passphrase. " } else { "" };
        let text = format!("{again}Passphrase for {}: ", escape_for_terminal(path_bytes(key)));
        terminal.ask_hidden(&text)
    }

    fn notice(&self, notice: &Notice) {
        let wanted = match notice {
            Notice::HostAdded(_) | Notice::Ssh(_) => Verbosity::Normal,
            _ => Verbosity::Verbose,
        };
        if self.verbosity >= wanted {
            say(&notice.to_string());
        }
    }
}

fn path_bytes<'a>(key: &LockedIdentity<'a>) -> &'a [u8] {
    key.path.as_os_str().as_encoded_bytes()
}

/// The controlling terminal.
pub(crate) struct Terminal {
    reader: BufReader<File>,
    writer: File,
}

impl Terminal {
    /// The terminal, if this process has one.
    pub(crate) fn open() -> Option<Self> {
        let writer = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        let reader = BufReader::new(writer.try_clone().ok()?);
        Some(Self { reader, writer })
    }

    /// Asks until the answer is yes, no, or the fingerprint itself.
    pub(crate) fn ask_host_key(&mut self, question: &HostKeyQuestion) -> Answer {
        let mut text = describe(question);
        text.push_str("Trust it from now on (yes, no, or the fingerprint)? ");
        loop {
            if self.writer.write_all(text.as_bytes()).is_err() {
                return Answer::Nobody;
            }
            let mut line = String::new();
            let read = (&mut self.reader).take(ANSWER_BYTES_MAX).read_line(&mut line);
            match (read, decide(line.trim(), &question.fingerprint)) {
                (Err(_) | Ok(0), _) => return Answer::No,
                (Ok(_), Some(answer)) => return answer,
                (Ok(_), None) => "Please say yes, no, or the fingerprint: ".clone_into(&mut text),
            }
        }
    }
}

impl Terminal {
    /// Asks for a line that is not shown. `None` at the end of input, or without a terminal.
    fn ask_hidden(&mut self, text: &str) -> Option<Zeroizing<Vec<u8>>> {
        let shown = tcgetattr(&self.writer).ok()?;
        let mut hidden = shown.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        let saved = Saved { terminal: self.writer.try_clone().ok()?, shown };
        *lock_saved() = Some(saved);
        // What was typed before the question was asked is no answer to it, and thrown away; whoever
        // has read the question may answer at once, so nothing is thrown away or shown after it.
        let asked = tcsetattr(&self.writer, OptionalActions::Flush, &hidden)
            .map_err(io::Error::from)
            .and_then(|()| self.writer.write_all(text.as_bytes()));
        let line = asked.ok().and_then(|()| self.read_line());
        restore();
        line
    }

    /// A line without its end. Read byte by byte, so that no buffer that is not wiped has held it.
    fn read_line(&mut self) -> Option<Zeroizing<Vec<u8>>> {
        let mut line = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX));
        let mut byte = Zeroizing::new([0_u8]);
        while line.len() < PASSPHRASE_BYTES_MAX {
            match self.writer.read(byte.as_mut_slice()) {
                Ok(0) if line.is_empty() => return None,
                Ok(0) => break,
                Ok(_) if *byte == [b'\n'] => break,
                Ok(_) => line.extend_from_slice(byte.as_slice()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(line)
    }
}

/// A terminal that does not show what is typed, and how it was before.
struct Saved {
    terminal: File,
    shown: Termios,
}

/// How the terminal is to be left: `Some` while it does not show what is typed, or while ssh, which
/// is killed when we end, may be asking for a password there. A signal ends the program without
/// unwinding the thread that asks, so whoever handles it has to find this.
static SAVED: Mutex<Option<Saved>> = Mutex::new(None);

fn lock_saved() -> MutexGuard<'static, Option<Saved>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers how the terminal is, for [`restore`], before another program may ask there.
pub(crate) fn remember() {
    let Some(Terminal { writer: terminal, .. }) = Terminal::open() else { return };
    if let Ok(shown) = tcgetattr(&terminal) {
        *lock_saved() = Some(Saved { terminal, shown });
    }
}

/// Lets the terminal show again what is typed, if it does not, from a new line on.
pub(crate) fn restore() {
    if let Some(Saved { mut terminal, shown }) = lock_saved().take() {
        let now = tcgetattr(&terminal).map(|now| now.local_modes);
        if now.is_ok_and(|now| now == shown.local_modes) {
            return;
        }
        // A terminal that has hung up shows nothing anyway.
        let _ = tcsetattr(&terminal, OptionalActions::Now, &shown);
        let _ = terminal.write_all(b"\n");
    }
}

/// What an answer means; a fingerprint that is another one means no.
fn decide(answer: &str, fingerprint: &str) -> Option<Answer> {
    match answer {
        "yes" => Some(Answer::Yes),
        "no" => Some(Answer::No),
        given if given == fingerprint => Some(Answer::Yes),
        given if given.starts_with("SHA256:") => Some(Answer::No),
        _ => None,
    }
}

/// A host's key for a person's eyes, with a line end.
pub(crate) fn describe(question: &HostKeyQuestion) -> String {
    let HostKeyQuestion { name, algorithm, fingerprint, known, .. } = question;
    let mut text = if known.is_empty() {
        format!("Nothing is known of {name} yet. It shows this key:\n")
    } else {
        format!("{name} shows a key of a type that is not known for it:\n")
    };
    text.push_str(&format!("  {algorithm} {fingerprint}\n"));
    if !known.is_empty() {
        text.push_str("Known are:\n");
        for key in known {
            text.push_str(&format!("  {}\n", escape_for_terminal(key.to_string().as_bytes())));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_word_or_the_fingerprint_is_an_answer() {
        let fingerprint = "SHA256:abc";
        let cases = [
            ("yes", Some(Answer::Yes)),
            ("no", Some(Answer::No)),
            ("SHA256:abc", Some(Answer::Yes)),
            ("SHA256:abd", Some(Answer::No)),
            ("y", None),
            ("", None),
            ("Yes please", None),
        ];
        for (answer, expected) in cases {
            assert_eq!(decide(answer, fingerprint), expected, "{answer:?}");
        }
    }
}
