//! The line editor of our prompts: editing, history, and whatever a prompt adds to that.

use std::borrow::Cow;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use reedline::{
    ColumnarMenu, Completer, DefaultHinter, Emacs, FileBackedHistory, KeyCode, KeyModifiers,
    MenuBuilder as _, Prompt, PromptEditMode, PromptHistorySearch, Reedline, ReedlineEvent,
    ReedlineMenu, Signal, Validator, default_emacs_keybindings,
};

/// Lines that the history keeps.
const HISTORY_LINES_MAX: usize = 10_000;

const MENU: &str = "completions";

/// What was read.
#[derive(Debug)]
pub(crate) enum Line {
    Text(Vec<u8>),
    /// Ctrl-C in the editor: the line is given up.
    Interrupted,
    End,
    Failed(String),
}

/// Whether lines can be edited: somebody sits at a terminal that can move its cursor.
pub(crate) fn is_usable() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    io::stdin().is_terminal() && io::stderr().is_terminal() && !dumb
}

/// Whether the person wants to see colours.
pub(crate) fn is_colored() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// An editor at the terminal. Its reads block.
pub(crate) struct LineEditor(Box<Reedline>);

impl LineEditor {
    /// One whose lines are kept in this file, if any can be; without one the history is of this run
    /// alone. A line that begins with a space is never kept.
    pub(crate) fn new(history: Option<&Path>) -> Self {
        let mut editor = Reedline::create()
            .with_ansi_colors(is_colored())
            .with_edit_mode(Box::new(Emacs::new(default_emacs_keybindings())))
            .with_history_exclusion_prefix(Some(" ".to_owned()))
            .use_bracketed_paste(true);
        if is_colored() {
            editor = editor.with_hinter(Box::new(DefaultHinter::default()));
        }
        let kept = history.and_then(|path| {
            make_private(path).ok()?;
            FileBackedHistory::with_file(HISTORY_LINES_MAX, path.to_owned()).ok()
        });
        if let Some(history) = kept {
            editor = editor.with_history(Box::new(history));
        }
        Self(Box::new(editor))
    }

    /// Lines go on until this says that they are whole; Alt-Enter ends one all the same.
    pub(crate) fn with_whole_lines(self, validator: Box<dyn Validator>) -> Self {
        Self(Box::new(self.0.with_validator(validator)))
    }

    /// Tab completes.
    pub(crate) fn with_completions(self, completer: Box<dyn Completer>) -> Self {
        let menu = ColumnarMenu::default().with_name(MENU);
        let mut keys = default_emacs_keybindings();
        let complete = vec![ReedlineEvent::Menu(MENU.to_owned()), ReedlineEvent::MenuNext];
        keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, ReedlineEvent::UntilFound(complete));
        keys.add_binding(KeyModifiers::ALT, KeyCode::Enter, ReedlineEvent::Submit);
        let editor = self.0.with_edit_mode(Box::new(Emacs::new(keys)));
        let editor = editor
            .with_completer(completer)
            .with_quick_completions(true)
            .with_partial_completions(true)
            .with_menu(ReedlineMenu::EngineCompleter(Box::new(menu)));
        Self(Box::new(editor))
    }

    /// The next line, behind this prompt.
    pub(crate) fn read(&mut self, prompt: &str) -> Line {
        let read = self.0.read_line(&Text(prompt));
        // Now, because a thread that reads is not waited for at the end. What can't be kept is lost to
        // the history, and no failure of the line.
        let _ = self.0.sync_history();
        match read {
            Ok(Signal::Success(line)) => Line::Text(line.into_bytes()),
            Ok(Signal::CtrlC) => Line::Interrupted,
            Ok(Signal::CtrlD) => Line::End,
            Err(error) => Line::Failed(error.to_string()),
        }
    }
}

/// Where a prompt keeps its history: in the directory of afar's state.
pub(crate) fn history_file(name: &str) -> Option<PathBuf> {
    let account = crate::commands::account()?;
    Some(afar_server::paths::state_dir(&account.home).join(name))
}

/// What was typed may hold secrets: the file is its user's alone.
fn make_private(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(drop)
}

/// A prompt as it is.
struct Text<'a>(&'a str);

impl Prompt for Text<'_> {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.0)
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("")
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
