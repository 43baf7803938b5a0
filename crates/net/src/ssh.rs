//! The way to a host through ssh: `ssh HOST afar stdio`, whose stdin and stdout carry the protocol.
//!
//! ssh proves the host and the user, by its own rules and files. What it prints on stderr may come
//! from the other machine, so it passes through here and is escaped; what it asks it asks at the
//! terminal, which it shares with us.

use std::ffi::{OsStr, OsString};
use std::future::{Future as _, poll_fn};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use afar_core::escape::escape_bounded;
use afar_proto::preamble::{NoPreamble, PreambleReader};
use afar_sys::child::ExitStatus;
use afar_sys::resolve::{SpawnFailure, resolve};
use tokio::time::Sleep;

use crate::transport::{ChildTransport, OnLine, Read, StartError, Transport as _};

/// How long a line of ssh's stderr waits to be shown: the last one before ssh ends is the reason
/// of its end, and told as that.
const HOLD: Duration = Duration::from_millis(500);

/// How long ssh may take to end after it has closed its stdout.
const ENDING: Duration = Duration::from_secs(2);

/// Most characters of what was printed before the preamble that are shown.
const PRINTED_CHARS_MAX: usize = 200;

/// The shell that ssh is executed by. Ctrl-C, and `timeout`, send their signals to the whole process
/// group. Here they are for the command at the other end, so ssh must not die of them; and a group
/// of its own would keep it from asking for passwords at the terminal. ssh leaves an ignored signal
/// ignored.
const IGNORING: &str = r#"trap "" HUP INT QUIT TERM; exec "$0" "$@""#;

/// How ssh is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshCommand {
    /// The program: a path, or a name that is looked up in PATH.
    pub program: OsString,
    /// What goes before the host.
    pub options: Vec<OsString>,
    /// The host as ssh is to be given it.
    pub host: String,
    /// Afar's program over there, as the user wrote it: a path, or a name for PATH there.
    pub remote_afar: String,
}

impl SshCommand {
    /// The words behind the program.
    fn words(&self) -> Vec<OsString> {
        let remote = format!("{} stdio", quote(&self.remote_afar));
        let mut words = self.options.clone();
        words.extend(["--".into(), self.host.clone().into(), remote.into()]);
        words
    }
}

/// A word for the shell over there, whichever it is. A tilde at the front stays one.
fn quote(word: &str) -> String {
    let (home, rest) = match word.strip_prefix("~/") {
        Some(rest) => ("~/", rest),
        None => ("", word),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
    if rest.chars().all(plain) {
        return word.to_owned();
    }
    format!("{home}'{}'", rest.replace('\'', r"'\''"))
}

/// Afar answers at the other end.
#[derive(Debug)]
pub struct SshLink {
    /// The stream.
    pub transport: ChildTransport,
    /// What came behind the preamble already.
    pub rest: Vec<u8>,
    /// What was printed before it, escaped and cut; empty if nothing was.
    pub printed: String,
}

/// Why afar does not answer at the other end. What is quoted is escaped.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// There is no ssh here.
    #[error("{0}")]
    Program(#[from] SpawnFailure),
    /// ssh could not be started.
    #[error("ssh could not be started: {0}")]
    Start(#[from] StartError),
    /// Its pipes broke.
    #[error("ssh: {0}")]
    Io(#[from] io::Error),
    /// It ended before afar had answered.
    #[error("ssh ended before afar had answered")]
    Ended {
        /// Its exit status, which is that of the program over there unless it is 255; `None` if a
        /// signal ended it, or if it closed its stdout and did not end.
        code: Option<u8>,
        /// The last line that it wrote to stderr; those before were shown.
        said: Option<String>,
        /// What came on stdout.
        printed: String,
    },
    /// Something else than afar answers.
    #[error("something else than afar answers")]
    NotAfar {
        /// What it prints.
        printed: String,
    },
}

/// Starts ssh and waits until afar answers at the other end. Lines of ssh's stderr go to `on_line`
/// from now on and for as long as the link lasts.
///
/// Not bounded in time, because ssh may be asking a person. Dropping the future kills ssh.
///
/// # Errors
/// See [`SshError`]. Nothing was sent to the other end.
pub async fn reach(command: &SshCommand, mut on_line: Box<OnLine>) -> Result<SshLink, SshError> {
    let path = std::env::var_os("PATH");
    let path = path.as_deref().map(OsStr::as_bytes);
    let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let program = resolve(command.program.as_bytes(), path, &cwd)?;
    let mut argv: Vec<OsString> = vec!["sh".into(), "-c".into(), IGNORING.into(), program.into()];
    argv.extend(command.words());
    let mut transport = ChildTransport::start(Path::new("/bin/sh"), &argv)?;
    let mut reader = PreambleReader::default();
    let mut shown = None;
    loop {
        match step(&mut transport, &mut reader).await {
            Step::Said => show(&mut transport, &mut on_line, &mut shown),
            Step::Found(rest) => {
                let printed = printed(&reader);
                transport.show(on_line);
                return Ok(SshLink { transport, rest, printed });
            }
            Step::NotAfar => {
                show(&mut transport, &mut on_line, &mut shown);
                return Err(SshError::NotAfar { printed: printed(&reader) });
            }
            Step::Failed(error) => return Err(error.into()),
            Step::End => break,
        }
    }
    let status = tokio::time::timeout(ENDING, transport.ended()).await;
    let mut lines = transport.take_lines();
    let last = lines.pop();
    lines.iter().for_each(|line| on_line(line));
    let said = last.or(shown);
    let code = match status.ok().transpose()? {
        Some(ExitStatus::Exited { code }) => Some(code),
        Some(ExitStatus::Signaled { .. }) | None => None,
    };
    Err(SshError::Ended { code, said, printed: printed(&reader) })
}

fn show(transport: &mut ChildTransport, on_line: &mut Box<OnLine>, shown: &mut Option<String>) {
    for line in transport.take_lines() {
        on_line(&line);
        *shown = Some(line);
    }
}

fn printed(reader: &PreambleReader) -> String {
    let printed = reader.skipped().trim_ascii();
    escape_bounded(printed, PRINTED_CHARS_MAX)
}

enum Step {
    /// There are lines on stderr which have waited long enough.
    Said,
    /// The preamble, and what came behind it.
    Found(Vec<u8>),
    NotAfar,
    End,
    Failed(io::Error),
}

async fn step(transport: &mut ChildTransport, reader: &mut PreambleReader) -> Step {
    let mut hold: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|context| {
        let mut found = Ok(None);
        let read = transport.poll_read(context, &mut |bytes| {
            // One call is one read: what is behind the preamble comes with it.
            found = reader.push(bytes);
        });
        match (read, found) {
            (_, Ok(Some(rest))) => return Poll::Ready(Step::Found(rest)),
            (_, Err(NoPreamble)) => return Poll::Ready(Step::NotAfar),
            (Poll::Ready(Ok(Read::Progress)), Ok(None)) => {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            (Poll::Ready(Ok(Read::End)), Ok(None)) => return Poll::Ready(Step::End),
            (Poll::Ready(Err(error)), Ok(None)) => return Poll::Ready(Step::Failed(error)),
            (Poll::Pending, Ok(None)) => {}
        }
        if transport.has_lines() {
            let hold = hold.get_or_insert_with(|| Box::pin(tokio::time::sleep(HOLD)));
            return hold.as_mut().poll(context).map(|()| Step::Said);
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A program that behaves as this script, whatever it is called with, in place of ssh.
    async fn reach_by(script: &str) -> (Result<SshLink, SshError>, Vec<String>) {
        let command = SshCommand {
            program: "sh".into(),
            options: vec!["-c".into(), script.into()],
            host: "web".into(),
            remote_afar: "afar".into(),
        };
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&said);
        let on_line = Box::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()));
        let result = reach(&command, on_line).await;
        let said = said.lock().unwrap().clone();
        (result, said)
    }

    /// `W-3.3`
    #[tokio::test]
    async fn a_greeting_is_skipped_and_kept() {
        let script = r"printf 'hello\033[2J\n\0AFAR-STDIO/1\nrest'; cat";
        let (result, _) = reach_by(script).await;
        let link = result.unwrap();
        assert_eq!(link.printed, r"hello\x1b[2J");
        assert_eq!(link.rest, b"rest");
    }

    #[tokio::test]
    async fn the_last_line_is_the_reason_and_those_before_are_shown() {
        let (result, said) = reach_by("echo one >&2; echo two >&2; exit 255").await;
        let Err(SshError::Ended { code, said: last, printed }) = result else {
            panic!("{result:?}");
        };
        assert_eq!(code, Some(255));
        assert_eq!((last.as_deref(), printed.as_str()), (Some("two"), ""));
        assert_eq!(said, ["one"]);
    }

    #[tokio::test]
    async fn fault_86_a_program_that_prints_for_ever_is_not_listened_to() {
        let (result, _) = reach_by("yes hello").await;
        let Err(SshError::NotAfar { printed }) = result else { panic!("{result:?}") };
        assert!(printed.starts_with("hello") && printed.len() <= 2 * PRINTED_CHARS_MAX);
    }

    #[tokio::test]
    async fn signals_to_the_whole_group_do_not_reach_it() {
        let script = r"for s in HUP INT QUIT TERM; do kill -$s $$; done; printf '\0AFAR-STDIO/1\n'";
        let (result, _) = reach_by(script).await;
        assert!(result.is_ok(), "{result:?}");
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_named() {
        let command = SshCommand {
            program: "no-such-ssh".into(),
            options: Vec::new(),
            host: "web".into(),
            remote_afar: "afar".into(),
        };
        let error = reach(&command, Box::new(|_| {})).await.unwrap_err();
        assert!(error.to_string().contains("no-such-ssh"), "{error}");
    }

    #[test]
    fn the_other_program_is_one_word_for_any_shell() {
        for (path, expected) in [
            ("afar", "afar"),
            ("/opt/afar-1.2/bin/afar", "/opt/afar-1.2/bin/afar"),
            ("~/bin/afar", "~/bin/afar"),
            ("~/my bin/afar", "~/'my bin/afar'"),
            ("/a b/it's", r"'/a b/it'\''s'"),
            ("$(reboot)", "'$(reboot)'"),
        ] {
            assert_eq!(quote(path), expected);
        }
    }
}
