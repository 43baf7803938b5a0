//! `afar classic`: a prompt that speaks the classic protocol to any server of it.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal as _, Read as _, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use afar_client::{CLASSIC_PORT, CLASSIC_READ_BYTES, ClassicConnection, ClassicError};
use afar_core::escape::escape_for_terminal;
use afar_sys::signals::{Signal, die_of_signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::args::ClassicArgs;
use crate::commands::{block_on, with_port};
use crate::console::{Verbosity, say};
use crate::exit::Exit;
use crate::line_editor::{self, Line, LineEditor, history_file};
use crate::prompt;
use crate::run::Signals;

/// What the scripts of this protocol show; on stderr, because it is no data.
const PROMPT: &str = ">>: ";

/// The history, within the directory of afar's state.
const HISTORY_NAME: &str = "classic_history";

/// How long each address of the server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A line of stdin that is longer than any command, with room to see that it is.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// Runs the command of `-c`, or a command for each line of stdin.
pub(crate) fn cmd_classic(args: ClassicArgs) -> Exit {
    let address = with_port(&args.address, CLASSIC_PORT);
    let mut session = match ClassicConnection::connect(&address, CONNECT_TIMEOUT) {
        Ok(connection) => Session {
            connection,
            output: Output::default(),
            address,
            verbosity: args.verbosity.level(),
            warned: false,
        },
        Err(error) => return failed(&error),
    };
    let ended = match args.command {
        Some(command) => session.one(&command),
        None if line_editor::is_usable() => session.edited_lines(),
        None => session.lines(),
    };
    ended.err().unwrap_or(Exit::Status(0))
}

struct Session {
    connection: ClassicConnection,
    output: Output,
    address: String,
    verbosity: Verbosity,
    /// Whether it was said that long commands are a risk.
    warned: bool,
}

impl Session {
    fn one(&mut self, command: &OsString) -> Result<(), Exit> {
        self.run(command.as_bytes())
    }

    /// A command a line, edited at the terminal.
    fn edited_lines(&mut self) -> Result<(), Exit> {
        tidy_up_on_signals()?;
        let mut editor = LineEditor::new(history_file(HISTORY_NAME).as_deref());
        loop {
            self.end_line();
            match editor.read(PROMPT) {
                // C-3.5: the server would wait for the rest of nothing.
                Line::Text(line) if line.trim_ascii().is_empty() => {}
                Line::Text(line) => self.run(&line)?,
                Line::Interrupted => {}
                Line::End => return Ok(()),
                Line::Failed(why) => {
                    say(&escape_for_terminal(why.as_bytes()));
                    return Err(Exit::Failed);
                }
            }
        }
    }

    /// A command a line, with a prompt if a person types them.
    fn lines(&mut self) -> Result<(), Exit> {
        let mut stdin = io::stdin().lock();
        let interactive = io::stdin().is_terminal();
        let mut line = Vec::new();
        loop {
            if interactive {
                self.prompt();
            }
            line.clear();
            let read = stdin.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            match read {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    say(&format!("cannot read stdin: {error}"));
                    return Err(Exit::Failed);
                }
            }
            let command = line.strip_suffix(b"\n").unwrap_or(&line);
            // C-3.5: the server would wait for the rest of nothing.
            if !command.trim_ascii().is_empty() {
                self.run(command)?;
            }
        }
        if interactive {
            // The shell's own prompt begins a line.
            let _ = io::stderr().write_all(b"\n");
        }
        Ok(())
    }

    fn prompt(&mut self) {
        self.end_line();
        let _ = io::stderr().write_all(PROMPT.as_bytes());
    }

    /// Output that does not end its line is not glued to the prompt.
    fn end_line(&mut self) {
        if std::mem::take(&mut self.output.within_line) {
            let _ = io::stderr().write_all(b"\n");
        }
    }

    fn run(&mut self, command: &[u8]) -> Result<(), Exit> {
        let is_risky = command.len() >= CLASSIC_READ_BYTES && self.verbosity > Verbosity::Quiet;
        if is_risky && !std::mem::replace(&mut self.warned, true) {
            say(&format!(
                "a command of {} bytes: a server that reads {CLASSIC_READ_BYTES} at a time, as \
                 scripts do, takes it for several (afar's does not); -q keeps this quiet",
                command.len()
            ));
        }
        match self.connection.run(command, &mut self.output) {
            Ok(bytes) => {
                if self.verbosity == Verbosity::Verbose {
                    say(&format!("{}: {bytes} bytes", self.address));
                }
                Ok(())
            }
            Err(ClassicError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(Exit::Signal(Signal::PIPE))
            }
            Err(error) => {
                // What is wrong with an answer can quote it.
                let line = format!("{}: {error}", self.address);
                say(&escape_for_terminal(line.as_bytes()));
                Err(Exit::Failed)
            }
        }
    }
}

/// Has a signal that ends us leave the terminal as it was: the editor changes it, and is not unwound.
/// What the protocol does blocks, so a thread waits for the signals.
fn tidy_up_on_signals() -> Result<(), Exit> {
    prompt::remember();
    let (installed, outcome) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        block_on(async {
            let mut signals = match Signals::install() {
                Ok(signals) => signals,
                Err(exit) => {
                    let _ = installed.send(Err(exit));
                    return Exit::Failed;
                }
            };
            let _ = installed.send(Ok(()));
            let signal = signals.next_ending().await;
            prompt::restore();
            die_of_signal(signal)
        })
    });
    // The thread has always sent something, unless it could not be begun.
    outcome.recv().unwrap_or(Err(Exit::Failed))
}

/// Our stdout, and whether what went there ended within a line.
#[derive(Default)]
struct Output {
    within_line: bool,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdout = rustix::stdio::stdout();
        let count = loop {
            match rustix::io::write(stdout, bytes) {
                Ok(count) => break count,
                // Whoever shares the descriptor with us may have made it non-blocking.
                Err(Errno::AGAIN) => wait_until_writable(stdout)?,
                Err(error) => return Err(error.into()),
            }
        };
        if let Some(last) = bytes.get(..count).and_then(<[u8]>::last) {
            self.within_line = *last != b'\n';
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wait_until_writable(stdout: BorrowedFd<'_>) -> io::Result<()> {
    match poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn failed(error: &ClassicError) -> Exit {
    say(&escape_for_terminal(error.to_string().as_bytes()));
    Exit::Failed
}
