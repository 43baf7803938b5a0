//! Where the lines come from: an editor at a terminal, or stdin as it is.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use reedline::{Completer, Span, Suggestion, ValidationResult, Validator};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::completion::{Word, word_at};
use super::scan::is_complete;
use crate::line_editor::{Line, LineEditor};

/// A line of stdin that is longer than any request.
const LINE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How long the editor waits for completions.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// How lines are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// With an editor, and this file of history if there is one.
    Editor { history: Option<PathBuf> },
    /// As they come, with a prompt or without.
    Plain { prompt: bool },
}

/// Completions that the editor asks for.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) word: Word,
    pub(super) reply: mpsc::SyncSender<Vec<String>>,
}

/// A thread that reads lines, one for each that is asked for: reading blocks.
#[derive(Debug)]
pub(super) struct Reader {
    asks: mpsc::Sender<String>,
    lines: UnboundedReceiver<Line>,
    /// Whether a line was asked for and has not come.
    asked: bool,
}

impl Reader {
    /// Starts the thread. The receiver gets what its editor wants to have completed.
    pub(super) fn start(style: Style) -> (Self, UnboundedReceiver<Lookup>) {
        let (asks, asked) = mpsc::channel::<String>();
        let (sender, lines) = unbounded_channel();
        let (lookups, looked_up) = unbounded_channel();
        thread::spawn(move || {
            let mut source = Source::new(style, lookups);
            // It ends with the prompt that asks.
            while let Ok(prompt) = asked.recv() {
                if sender.send(source.read(&prompt)).is_err() {
                    break;
                }
            }
        });
        (Self { asks, lines, asked: false }, looked_up)
    }

    /// The next line. Cancellation safe: the next call waits for the same line, whatever its prompt.
    pub(super) async fn line(&mut self, prompt: &str) -> Line {
        if !self.asked {
            let gone = self.asks.send(prompt.to_owned()).is_err();
            if gone {
                return Line::End;
            }
            self.asked = true;
        }
        let line = self.lines.recv().await;
        self.asked = false;
        line.unwrap_or(Line::End)
    }
}

/// The thread's state.
enum Source {
    Editor(LineEditor),
    Plain { prompt: bool },
}

impl Source {
    fn new(style: Style, lookups: UnboundedSender<Lookup>) -> Self {
        match style {
            Style::Editor { history } => Self::Editor(
                LineEditor::new(history.as_deref())
                    .with_whole_lines(Box::new(WholeCommands))
                    .with_completions(Box::new(Names(lookups))),
            ),
            Style::Plain { prompt } => Self::Plain { prompt },
        }
    }

    fn read(&mut self, prompt: &str) -> Line {
        match self {
            Self::Editor(editor) => editor.read(prompt),
            Self::Plain { prompt: wanted } => {
                if *wanted {
                    let _ = io::stderr().write_all(prompt.as_bytes());
                }
                let mut line = Vec::new();
                match io::stdin().lock().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                    Ok(0) => Line::End,
                    Ok(_) if line.ends_with(b"\n") => {
                        line.pop();
                        Line::Text(line)
                    }
                    Ok(count) if count as u64 == LINE_BYTES_MAX => Line::Failed(format!(
                        "a line of stdin is longer than {LINE_BYTES_MAX} bytes"
                    )),
                    Ok(_) => Line::Text(line),
                    Err(error) => Line::Failed(format!("cannot read stdin: {error}")),
                }
            }
        }
    }
}

/// Lines end where a shell would have something to execute.
struct WholeCommands;

impl Validator for WholeCommands {
    fn validate(&self, line: &str) -> ValidationResult {
        if is_complete(line.as_bytes()) {
            ValidationResult::Complete
        } else {
            ValidationResult::Incomplete
        }
    }
}

/// Commands and paths on the target, asked for by the task that has the connection.
struct Names(UnboundedSender<Lookup>);

impl Completer for Names {
    fn complete(&mut self, line: &str, position: usize) -> Vec<Suggestion> {
        let word = word_at(line, position);
        let span = Span::new(word.start, position);
        let (reply, answered) = mpsc::sync_channel(1);
        if self.0.send(Lookup { word, reply }).is_err() {
            return Vec::new();
        }
        let offers = answered.recv_timeout(LOOKUP_TIMEOUT).unwrap_or_default();
        let suggest = |value: String| Suggestion {
            append_whitespace: !value.ends_with('/'),
            value,
            span,
            ..Suggestion::default()
        };
        offers.into_iter().map(suggest).collect()
    }
}
