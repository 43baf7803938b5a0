//! Where the lines come from: an editor at a terminal, or stdin as it is.

use std::borrow::Cow;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use reedline::{
    ColumnarMenu, Completer, DefaultHinter, Emacs, FileBackedHistory, KeyCode, KeyModifiers,
    MenuBuilder as _, Prompt, PromptEditMode, PromptHistorySearch, Reedline, ReedlineEvent,
    ReedlineMenu, Signal, Span, Suggestion, ValidationResult, Validator, default_emacs_keybindings,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::completion::{Word, word_at};
use super::scan::is_complete;

/// Lines that the history keeps.
const HISTORY_LINES_MAX: usize = 10_000;

/// A line of stdin that is longer than any request.
const LINE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How long the editor waits for completions.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

const MENU: &str = "paths";

/// What was read.
#[derive(Debug)]
pub(super) enum Line {
    Text(Vec<u8>),
    /// Ctrl-C in the editor: the line is given up.
    Interrupted,
    End,
    Failed(String),
}

/// How lines are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// With an editor, and this file of history if there is one.
    Editor { history: Option<PathBuf>, color: bool },
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
    Editor(Box<Reedline>),
    Plain { prompt: bool },
}

impl Source {
    fn new(style: Style, lookups: UnboundedSender<Lookup>) -> Self {
        match style {
            Style::Editor { history, color } => {
                Self::Editor(Box::new(editor(history.as_deref(), color, lookups)))
            }
            Style::Plain { prompt } => Self::Plain { prompt },
        }
    }

    fn read(&mut self, prompt: &str) -> Line {
        match self {
            Self::Editor(editor) => {
                let read = editor.read_line(&Target(prompt.to_owned()));
                // Now, because this thread is not waited for at the end. What can't be kept is lost
                // to the history, and no failure of the line.
                let _ = editor.sync_history();
                match read {
                    Ok(Signal::Success(line)) => Line::Text(line.into_bytes()),
                    Ok(Signal::CtrlC) => Line::Interrupted,
                    Ok(Signal::CtrlD) => Line::End,
                    Err(error) => Line::Failed(error.to_string()),
                }
            }
            Self::Plain { prompt: wanted } => {
                if *wanted {
                    let _ = io::stderr().write_all(format!("{prompt}> ").as_bytes());
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

fn editor(history: Option<&Path>, color: bool, lookups: UnboundedSender<Lookup>) -> Reedline {
    let menu = ColumnarMenu::default().with_name(MENU);
    let mut keys = default_emacs_keybindings();
    let complete = vec![ReedlineEvent::Menu(MENU.to_owned()), ReedlineEvent::MenuNext];
    keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, ReedlineEvent::UntilFound(complete));
    keys.add_binding(KeyModifiers::ALT, KeyCode::Enter, ReedlineEvent::Submit);
    let mut editor = Reedline::create()
        .with_ansi_colors(color)
        .with_validator(Box::new(WholeCommands))
        .with_completer(Box::new(Paths(lookups)))
        .with_quick_completions(true)
        .with_partial_completions(true)
        .with_menu(ReedlineMenu::EngineCompleter(Box::new(menu)))
        .with_edit_mode(Box::new(Emacs::new(keys)))
        .with_history_exclusion_prefix(Some(" ".to_owned()))
        .use_bracketed_paste(true);
    if color {
        editor = editor.with_hinter(Box::new(DefaultHinter::default()));
    }
    // Without a file the history is of this run alone.
    let kept = history.and_then(|path| {
        make_private(path).ok()?;
        FileBackedHistory::with_file(HISTORY_LINES_MAX, path.to_owned()).ok()
    });
    if let Some(history) = kept {
        editor = editor.with_history(Box::new(history));
    }
    editor
}

/// What was typed may hold secrets: the file is its user's alone.
fn make_private(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(drop)
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

/// Paths on the target, asked for by the task that has the connection.
struct Paths(UnboundedSender<Lookup>);

impl Completer for Paths {
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

/// The target's name and a `>`.
struct Target(String);

impl Prompt for Target {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed("  ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(history: {}) ", search.term))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_history_is_its_users_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/afar/repl_history");
        make_private(&path).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }
}
