//! A program of ours whose stdin and stdout are the stream, such as ssh.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::task::{Context, Poll, ready};

use afar_core::escape::escape_bounded;
use afar_sys::child::{Child, ExitStatus, Session};
use afar_sys::signals::Signal;
use afar_sys::spawn::{SpawnError, SpawnRequest, Stdio, spawn};
use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::{Read, Transport, UnixTransport};

/// Longest line of a program's stderr that is kept, in bytes; what is longer is cut.
const LINE_BYTES_MAX: usize = 1024;

/// Most lines that are kept until somebody takes them; the oldest goes first.
const LINES_MAX: usize = 64;

/// What to do with a line of the program's stderr, which is escaped and has no end.
pub type OnLine = dyn FnMut(&str) + Send;

/// A program that was started for its stdin and stdout, which are one socket.
///
/// Dropping it kills the program.
pub struct ChildTransport {
    stream: UnixTransport,
    program: Program,
    on_line: Option<Box<OnLine>>,
}

impl std::fmt::Debug for ChildTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChildTransport").field("program", &self.program).finish_non_exhaustive()
    }
}

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An argument holds a NUL.
    #[error("an argument holds a NUL")]
    Nul,
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The program did not start.
    #[error("{0}")]
    Spawn(#[from] SpawnError),
}

impl ChildTransport {
    /// Starts a program in our session and process group, with our environment. `argv` has its
    /// first word too. Until [`ChildTransport::show`] is called, the lines of its stderr are kept.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(program: &Path, argv: &[OsString]) -> Result<Self, StartError> {
        let (ours, theirs) = StdUnixStream::pair()?;
        // A flag of this end alone: the other one has its own, and stays as programs expect it.
        ours.set_nonblocking(true)?;
        let stderr = afar_sys::pipe::pipe_from_child()?;
        let program = c_string(program.as_os_str())?;
        let argv = argv.iter().map(|word| c_string(word)).collect::<Result<Vec<_>, _>>()?;
        let env = std::env::vars_os().map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            CString::new(entry).map_err(|_| StartError::Nul)
        });
        let child = spawn(&SpawnRequest {
            program: &program,
            argv: &argv,
            env: &env.collect::<Result<Vec<_>, _>>()?,
            cwd: None,
            stdio: Stdio::Descriptors {
                stdin: theirs.as_fd(),
                stdout: theirs.as_fd(),
                stderr: stderr.childs.as_fd(),
            },
            session: Session::Inherited,
            open_files_soft: None,
        })?;
        drop(theirs);
        let program = Program::watch(child, stderr.ours)?;
        let stream = UnixTransport::new(UnixStream::from_std(ours)?);
        Ok(Self { stream, program, on_line: None })
    }

    /// From now on, lines of its stderr go to `on_line`: those that were kept first.
    pub fn show(&mut self, on_line: Box<OnLine>) {
        self.on_line = Some(on_line);
        self.show_lines();
    }

    /// Takes the lines of its stderr that were kept.
    pub fn take_lines(&mut self) -> Vec<String> {
        self.program.lines.kept.drain(..).collect()
    }

    /// Whether there are any.
    #[must_use]
    pub fn has_lines(&self) -> bool {
        !self.program.lines.kept.is_empty()
    }

    /// Waits until the program has ended, with everything that it said read.
    ///
    /// # Errors
    /// Its status can't be obtained.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        poll_fn(|context| self.program.poll_ended(context)).await
    }

    fn show_lines(&mut self) {
        if let Some(on_line) = &mut self.on_line {
            for line in self.program.lines.kept.drain(..) {
                on_line(&line);
            }
        }
    }
}

impl Transport for ChildTransport {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<Read>> {
        self.program.poll_stderr(context);
        self.show_lines();
        self.stream.poll_read(context, sink)
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<io::Result<()>> {
        self.stream.poll_write(context, pieces)
    }

    /// Ready when the program has ended too, so that what was written last has left through it.
    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream.poll_finish(context))?;
        // A program whose output nobody takes would not come to its end.
        while let Poll::Ready(Ok(Read::Progress)) = self.stream.poll_read(context, &mut |_| {}) {}
        let ended = self.program.poll_ended(context);
        self.show_lines();
        ready!(ended).map(|_| ()).into()
    }
}

/// The process, and what it says on stderr.
#[derive(Debug)]
struct Program {
    /// `None` only while it is dropped.
    child: Option<Child>,
    pidfd: AsyncFd<OwnedFd>,
    /// `None` once it has ended.
    stderr: Option<AsyncFd<OwnedFd>>,
    lines: Lines,
}

impl Program {
    fn watch(child: Child, stderr: OwnedFd) -> io::Result<Self> {
        let pidfd =
            afar_sys::readiness::watch(child.pidfd().try_clone_to_owned()?, Interest::READABLE)?;
        let stderr = Some(afar_sys::readiness::watch(stderr, Interest::READABLE)?);
        Ok(Self { child: Some(child), pidfd, stderr, lines: Lines::default() })
    }

    /// Reads what there is, and has the task woken when there is more.
    fn poll_stderr(&mut self, context: &mut Context<'_>) {
        while let Some(stderr) = &self.stderr {
            let Poll::Ready(Ok(mut guard)) = stderr.poll_read_ready(context) else { return };
            let mut buffer = [0; 4096];
            let read = guard.try_io(|stderr| Ok(rustix::io::read(stderr.get_ref(), &mut buffer)?));
            match read {
                Ok(Ok(count)) if count > 0 => {
                    self.lines.push(buffer.get(..count).unwrap_or_default());
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_would_block) => {}
                Ok(_) => {
                    self.lines.end();
                    self.stderr = None;
                }
            }
        }
    }

    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<io::Result<ExitStatus>> {
        self.poll_stderr(context);
        let ended = loop {
            let child = self.child.as_mut();
            if let Some(ended) = child.and_then(|child| child.try_wait().transpose()).transpose()? {
                break ended;
            }
            ready!(self.pidfd.poll_read_ready(context))?.clear_ready();
        };
        self.read_last_words();
        Poll::Ready(Ok(ended.status))
    }

    /// What it said last. Whatever else still holds its stderr is not waited for, and neither is the
    /// runtime, which may have heard of its end and not yet of what came before that.
    fn read_last_words(&mut self) {
        let Some(stderr) = self.stderr.take() else { return };
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(stderr.get_ref(), &mut buffer) {
                Ok(count) if count > 0 => {
                    self.lines.push(buffer.get(..count).unwrap_or_default());
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        self.lines.end();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Ok(None) = child.try_wait() {
            let _ = child.signal(Signal::KILL);
            // It ends in a moment, and must not stay a zombie in a process that lives on; but a
            // runtime's thread waits for nothing.
            let reap = move || {
                let _ = child.wait();
            };
            let _ = std::thread::Builder::new().name("reap".to_owned()).spawn(reap);
        }
    }
}

/// Lines of text that another machine may have written.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
    kept: VecDeque<String>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end(),
                _ if self.partial.len() < LINE_BYTES_MAX => self.partial.push(*byte),
                _ => {}
            }
        }
    }

    fn end(&mut self) {
        let line = std::mem::take(&mut self.partial);
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        if self.kept.len() == LINES_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(escape_bounded(line, LINE_BYTES_MAX));
    }
}

fn c_string(text: &OsStr) -> Result<CString, StartError> {
    CString::new(text.as_bytes()).map_err(|_| StartError::Nul)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> ChildTransport {
        let argv = ["sh", "-c", script].map(OsString::from);
        ChildTransport::start(Path::new("/bin/sh"), &argv).unwrap()
    }

    async fn read_all(transport: &mut ChildTransport) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let read = poll_fn(|context| {
                transport.poll_read(context, &mut |bytes| all.extend_from_slice(bytes))
            });
            if read.await.unwrap() == Read::End {
                return all;
            }
        }
    }

    #[tokio::test]
    async fn what_is_written_goes_in_and_what_it_prints_comes_out() {
        let mut transport = start("echo first >&2; tr a-z A-Z; echo last >&2; exit 3");
        let mut pieces = VecDeque::from([Bytes::from_static(b"shout")]);
        poll_fn(|context| transport.poll_write(context, &mut pieces)).await.unwrap();
        let mut finished = false;
        let mut printed = Vec::new();
        while !finished {
            // Its sending side alone: finishing would throw the answer away.
            finished = poll_fn(|context| transport.stream.poll_finish(context)).await.is_ok();
        }
        printed.extend(read_all(&mut transport).await);
        assert_eq!(printed, b"SHOUT");
        assert_eq!(transport.ended().await.unwrap(), ExitStatus::Exited { code: 3 });
        assert_eq!(transport.take_lines(), ["first", "last"]);
    }

    #[tokio::test]
    async fn finishing_ends_its_stdin_and_waits_for_its_end_whatever_it_prints() {
        let mut transport = start("cat >/dev/null; head -c 3000000 /dev/zero; echo bye >&2");
        let said = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let lines = std::sync::Arc::clone(&said);
        transport.show(Box::new(move |line| lines.lock().unwrap().push(line.to_owned())));
        poll_fn(|context| transport.poll_finish(context)).await.unwrap();
        assert_eq!(*said.lock().unwrap(), ["bye"]);
    }

    #[tokio::test]
    async fn its_last_words_are_heard_though_its_end_is_noticed_first() {
        let mut transport = start("echo bye >&2");
        // The runtime hears of nothing while this thread waits.
        let pidfd = transport.program.pidfd.get_ref();
        let mut ended = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, None).unwrap();
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(transport.program.poll_ended(&mut context).is_ready());
        assert_eq!(transport.program.lines.kept, ["bye"]);
    }

    #[tokio::test]
    async fn one_that_is_dropped_is_killed_and_reaped() {
        let mut transport = start("echo up; exec sleep 1000");
        let up = poll_fn(|context| transport.poll_read(context, &mut |_| {})).await;
        assert_eq!(up.unwrap(), Read::Progress);
        let child = transport.program.child.as_ref().unwrap();
        let pidfd = child.pidfd().try_clone_to_owned().unwrap();
        drop(transport);
        let pidfd = afar_sys::readiness::watch(pidfd, Interest::READABLE).unwrap();
        let _ended = pidfd.readable().await.unwrap();
    }

    #[test]
    fn fault_85_86_lines_are_escaped_and_bounded() {
        let mut lines = Lines::default();
        lines.push(b"\x1b[2Jx\r\n\n");
        assert_eq!(lines.kept, [r"\x1b[2Jx"]);
        lines.push(&vec![b'y'; LINE_BYTES_MAX + 1]);
        lines.end();
        assert_eq!(lines.kept[1].len(), LINE_BYTES_MAX);
        for _ in 0..LINES_MAX {
            lines.push(b"z\n");
        }
        assert_eq!(lines.kept.len(), LINES_MAX);
        assert!(lines.kept.iter().all(|line| line == "z"));
    }
}
