//! One run of a program under a watchdog: what it is given, what it says, how it ends.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::deadline::{DEADLINE, Deadline};
use crate::fail;
use crate::flow::{Digest, Digesting, Random, Sink, Source};
use crate::process::{Process, descendants};
use crate::reaper::Prepared;

/// Most bytes of one read of a program's output.
const READ_BYTES: usize = 64 * 1024;

/// A program that is to be run. Dropping it does nothing.
#[derive(Debug)]
pub struct Run {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    stdin: Source,
    stdout: Sink,
    deadline: Duration,
    reaped: bool,
}

/// A program that runs. It is killed when this is dropped before [`Running::wait`].
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    process: Process,
    /// The program below a reaper, if there is one; else `process` is the program.
    inner: Option<Process>,
    started: Instant,
    deadline: Deadline,
    stdin: Option<ChildStdin>,
    feeder: Option<JoinHandle<()>>,
    stdout: Option<ChildStdout>,
    digesting: Option<Digesting>,
    longest_pause: Duration,
    /// What was read of stdout and not yet taken by [`Running::line`].
    unread: Vec<u8>,
    taken: Vec<u8>,
    stderr_pieces: Receiver<Vec<u8>>,
    stderr: Vec<u8>,
}

/// How a program ended, and what it said.
#[derive(Clone)]
pub struct Output {
    /// The command line, for messages.
    pub shown: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its stdout; empty with another sink than [`Sink::Collect`].
    pub stdout: Vec<u8>,
    /// All of its stderr.
    pub stderr: Vec<u8>,
    /// Of its stdout, with [`Sink::Digest`].
    pub digest: Option<Digest>,
    /// From its start to its end.
    pub elapsed: Duration,
    /// The longest wait for a piece of its stdout, or for the end of that. Where bytes flow all the
    /// time, a pause of many seconds is a wake-up that was lost and that a keepalive made up for.
    pub longest_pause: Duration,
}

impl Run {
    /// A program with nothing but these arguments and `PATH`; no stdin; stdout and stderr are
    /// collected.
    pub fn new<I>(program: impl AsRef<OsStr>, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        Self {
            program: program.as_ref().to_owned(),
            arguments: arguments.into_iter().map(|word| word.as_ref().to_owned()).collect(),
            environment: vec![("PATH".into(), path)],
            stdin: Source::Null,
            stdout: Sink::Collect,
            deadline: DEADLINE,
            reaped: false,
        }
    }

    /// One more argument at the end.
    #[must_use]
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.arguments.push(word.as_ref().to_owned());
        self
    }

    /// More of them.
    #[must_use]
    pub fn args<I>(self, words: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        words.into_iter().fold(self, Self::arg)
    }

    /// One more variable; the last one of a name counts.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Bytes for stdin, then its end.
    #[must_use]
    pub fn stdin(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin_from(Source::Bytes(bytes.into()))
    }

    /// Where stdin comes from.
    #[must_use]
    pub fn stdin_from(mut self, source: Source) -> Self {
        self.stdin = source;
        self
    }

    /// Where stdout goes.
    #[must_use]
    pub fn stdout_to(mut self, sink: Sink) -> Self {
        self.stdout = sink;
        self
    }

    /// When the watchdog ends it and fails the test; [`DEADLINE`] unless this is called.
    #[must_use]
    pub fn within(mut self, time: Duration) -> Self {
        self.deadline = time;
        self
    }

    /// Below a reaper: [`Running::wait`] then also waits for everything that the program leaves
    /// behind, and the test fails if that does not end.
    #[must_use]
    pub fn reaped(mut self) -> Self {
        self.reaped = true;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// It can't be started, or has not ended by the deadline.
    #[track_caller]
    #[must_use]
    pub fn output(self) -> Output {
        self.spawn().wait()
    }

    /// Starts it.
    ///
    /// # Panics
    /// It can't be started.
    #[track_caller]
    #[must_use]
    pub fn spawn(self) -> Running {
        let prepared = self.reaped.then(Prepared::new);
        let mut command = match &prepared {
            Some(prepared) => prepared.command(&self.program),
            None => Command::new(&self.program),
        };
        command.args(&self.arguments).env_clear().envs(self.environment);
        let shown = format!("{:?} {:?}", self.program, self.arguments);
        let (stdin, feed) = match self.stdin {
            Source::Null => (Stdio::null(), None),
            Source::File(file) => (file.into(), None),
            Source::Piped => (Stdio::piped(), None),
            source @ (Source::Bytes(_) | Source::Random { .. }) => (Stdio::piped(), Some(source)),
        };
        let (stdout, digesting) = match self.stdout {
            Sink::Collect => (Stdio::piped(), None),
            Sink::Digest => (Stdio::piped(), Some(Digesting::default())),
            Sink::File(file) => (file.into(), None),
        };
        let started = Instant::now();
        let spawned = command.stdin(stdin).stdout(stdout).stderr(Stdio::piped()).spawn();
        let Ok(mut child) = spawned else {
            fail(&format!("{shown} can't be started: {spawned:?}"))
        };
        let process = Process::open(child.id()).expect("nobody has waited for it yet");
        let inner = prepared.map(|prepared| prepared.program(&process));
        let mut stdin = child.stdin.take();
        let feeder = feed.and_then(|source| Some((source, stdin.take()?)));
        let feeder =
            feeder.map(|(source, stdin)| std::thread::spawn(move || run_feeder(source, stdin)));
        let (to_us, stderr_pieces) = channel();
        let mut stderr = child.stderr.take().expect("it is piped");
        std::thread::spawn(move || {
            let mut buffer = vec![0; READ_BYTES];
            // Ends with the last process that holds the pipe.
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                if to_us.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Running {
            shown,
            stdout: child.stdout.take(),
            child,
            process,
            inner,
            started,
            deadline: Deadline::after(self.deadline),
            stdin,
            feeder,
            digesting,
            longest_pause: Duration::ZERO,
            unread: Vec::new(),
            taken: Vec::new(),
            stderr_pieces,
            stderr: Vec::new(),
        }
    }
}

/// A program that reads no more is no fault of the test: what it did not read is its own matter.
fn run_feeder(source: Source, mut stdin: ChildStdin) {
    let _ = match source {
        Source::Bytes(bytes) => stdin.write_all(&bytes),
        Source::Random { seed, bytes } => {
            let mut random = Random::new(seed).take(bytes);
            let mut buffer = vec![0; READ_BYTES];
            loop {
                match random.read(&mut buffer) {
                    Ok(count @ 1..) => {
                        if stdin.write_all(&buffer[..count]).is_err() {
                            break Ok(());
                        }
                    }
                    _ => break Ok(()),
                }
            }
        }
        Source::Null | Source::File(_) | Source::Piped => Ok(()),
    };
}

impl Running {
    /// The program's process (not the reaper's).
    #[must_use]
    pub fn process(&self) -> &Process {
        self.inner.as_ref().unwrap_or(&self.process)
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Writes to its stdin, which must be [`Source::Piped`] and not closed.
    ///
    /// # Panics
    /// It does not take them.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin is piped and not closed");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("the program reads its stdin");
    }

    /// Ends its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Closes our end of its stdout: what it writes from now on fails.
    pub fn close_stdout(&mut self) {
        self.stdout = None;
    }

    /// The next line of its stdout without the newline; `None` at its end, or if only a part of a
    /// line came before that (which [`Output::stdout`] has).
    ///
    /// # Panics
    /// The deadline passes.
    #[track_caller]
    #[must_use]
    pub fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                self.taken.extend_from_slice(&line);
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.read_stdout() {
                return None;
            }
        }
    }

    /// Exactly so many bytes of its stdout, or what came before its end.
    ///
    /// # Panics
    /// The deadline passes.
    #[track_caller]
    #[must_use]
    pub fn read(&mut self, bytes: usize) -> Vec<u8> {
        while self.unread.len() < bytes && self.read_stdout() {}
        let count = bytes.min(self.unread.len());
        let read: Vec<u8> = self.unread.drain(..count).collect();
        self.taken.extend_from_slice(&read);
        read
    }

    /// With [`Sink::Digest`]: reads until so many bytes have come in all, or stdout has ended.
    ///
    /// # Panics
    /// The deadline passes.
    #[track_caller]
    pub fn digest_until(&mut self, bytes: u64) {
        while self.digesting.as_ref().is_some_and(|digesting| digesting.bytes() < bytes)
            && self.read_stdout()
        {}
    }

    /// Waits until its stderr holds `text`.
    ///
    /// # Panics
    /// Its stderr ends, or the deadline passes, before that.
    #[track_caller]
    pub fn wait_for_stderr(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stderr).contains(text) {
            match self.stderr_pieces.recv_timeout(self.deadline.left()) {
                Ok(piece) => self.stderr.extend(piece),
                Err(RecvTimeoutError::Disconnected) => {
                    self.give_up(&format!("ended before it said {text:?} on stderr"));
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.give_up(&format!("did not say {text:?} on stderr in time"));
                }
            }
        }
    }

    /// Reads its output to the end and waits for its own end; with [`Run::reaped`] also for that of
    /// everything that it has left behind. Its stdin is ended first.
    ///
    /// # Panics
    /// The deadline passes: it is killed.
    #[track_caller]
    #[must_use]
    pub fn wait(mut self) -> Output {
        self.close_stdin();
        while self.read_stdout() {}
        loop {
            match self.stderr_pieces.recv_timeout(self.deadline.left()) {
                Ok(piece) => self.stderr.extend(piece),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => self.give_up("keeps its stderr open"),
            }
        }
        if !self.process.wait_until(self.deadline) {
            self.give_up("did not end in time");
        }
        let status = self.child.wait().expect("it is a child that nobody has waited for");
        let elapsed = self.started.elapsed();
        if let Some(feeder) = self.feeder.take() {
            feeder.join().expect("the feeder does not panic");
        }
        let mut stdout = std::mem::take(&mut self.taken);
        stdout.append(&mut self.unread);
        Output {
            shown: std::mem::take(&mut self.shown),
            status,
            stdout,
            stderr: std::mem::take(&mut self.stderr),
            digest: self.digesting.as_ref().map(Digesting::finish),
            elapsed,
            longest_pause: self.longest_pause,
        }
    }

    /// Reads a piece of stdout; false at its end.
    #[track_caller]
    fn read_stdout(&mut self) -> bool {
        let Some(stdout) = &mut self.stdout else { return false };
        let asked = Instant::now();
        if !self.deadline.readable(&*stdout) {
            self.give_up("keeps its stdout open");
        }
        self.longest_pause = self.longest_pause.max(asked.elapsed());
        let mut buffer = [0; READ_BYTES];
        let count = stdout.read(&mut buffer).expect("a pipe can be read");
        let bytes = &buffer[..count];
        match &mut self.digesting {
            Some(digesting) => digesting.write_all(bytes).expect("hashing does not fail"),
            None => self.unread.extend_from_slice(bytes),
        }
        count > 0
    }

    /// Fails the test with what is known; the drop kills the program.
    #[track_caller]
    fn give_up(&mut self, problem: &str) -> ! {
        while let Ok(piece) = self.stderr_pieces.try_recv() {
            self.stderr.extend(piece);
        }
        let below = descendants(self.process.pid());
        fail(&format!(
            "{} {problem}, after {:?}\nstdout: {}\nstderr: {}\nprocesses below it: {below:?}",
            self.shown,
            self.started.elapsed(),
            shorten(&[self.taken.as_slice(), &self.unread].concat()),
            shorten(&self.stderr),
        ));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if self.inner.is_some() {
            crate::process::kill_descendants(self.process.pid());
        } else {
            self.process.signal(Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Output {
    /// The exit status.
    ///
    /// # Panics
    /// A signal ended the program.
    #[track_caller]
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| fail(&format!("it has no exit status: {self:?}")))
    }

    /// The signal that ended the program, if one did.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Itself, after checking that the status is 0.
    ///
    /// # Panics
    /// It is another.
    #[track_caller]
    pub fn success(&self) -> &Self {
        self.expect_code(0)
    }

    /// Itself, after checking the status.
    ///
    /// # Panics
    /// It is another.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(self.code(), code, "{self:?}");
        self
    }

    /// Its stdout as text.
    ///
    /// # Panics
    /// It is not UTF-8.
    #[track_caller]
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is UTF-8")
    }

    /// Its stderr as text.
    ///
    /// # Panics
    /// It is not UTF-8.
    #[track_caller]
    #[must_use]
    pub fn error_text(&self) -> &str {
        std::str::from_utf8(&self.stderr).expect("stderr is UTF-8")
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}\n{} after {:?}\nstdout: {}\nstderr: {}",
            self.shown,
            self.status,
            self.elapsed,
            shorten(&self.stdout),
            shorten(&self.stderr)
        )
    }
}

/// The beginning of some bytes, escaped.
fn shorten(bytes: &[u8]) -> String {
    let shown = bytes.get(..4096).unwrap_or(bytes).escape_ascii();
    if bytes.len() > 4096 {
        format!("{shown}… ({} bytes)", bytes.len())
    } else {
        shown.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_fed_and_heard() {
        let output = Run::new("cat", [] as [&str; 0]).stdin("a\0b").output();
        assert_eq!(output.success().stdout, b"a\0b");
        let output = Run::new("sh", ["-c", "echo err >&2; exit 3"]).output();
        assert_eq!(output.expect_code(3).error_text(), "err\n");
    }

    #[test]
    fn lines_are_read_while_it_runs() {
        let mut cat = Run::new("cat", [] as [&str; 0]).stdin_from(Source::Piped).spawn();
        cat.write(b"one\ntw");
        assert_eq!(cat.line().unwrap(), "one");
        cat.write(b"o\nthree");
        assert_eq!(cat.line().unwrap(), "two");
        cat.close_stdin();
        assert_eq!(cat.line(), None);
        assert_eq!(cat.wait().text(), "one\ntwo\nthree");
    }

    #[test]
    fn the_watchdog_bites() {
        let run = Run::new("sleep", ["300"]).within(Duration::from_millis(1));
        let panic = std::panic::catch_unwind(|| run.output()).unwrap_err();
        assert!(panic.downcast::<String>().unwrap().contains("keeps its stdout open"));
    }

    #[test]
    fn random_bytes_are_digested() {
        let random = Source::Random { seed: 3, bytes: 1_000_000 };
        let output =
            Run::new("cat", [] as [&str; 0]).stdin_from(random).stdout_to(Sink::Digest).output();
        let expected = Digest::read(Random::new(3).take(1_000_000));
        assert_eq!(output.success().digest, Some(expected));
    }
}
