//! Where the session's shell is, for the prompt.

use std::time::Duration;

use afar_client::{Command, Session};
use afar_core::escape::escape_for_terminal;

/// The prompt waits no longer for the place: then the last one that is known is shown.
const PATIENCE: Duration = Duration::from_millis(500);

/// Longest answer that is taken: two paths.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Characters of a path that are shown; of a longer one its end.
const SHOWN_CHARS_MAX: usize = 40;

/// Says where the home is, and where the process `$1` is, each with NUL behind it.
const ASK: &str = "printf '%s\\0' \"$HOME\" && printf '%s\\0' \"$(readlink \"/proc/$1/cwd\")\"";

/// What is known of it.
#[derive(Debug)]
pub(super) struct Place {
    /// As it is shown.
    shown: Option<String>,
    /// The shell that may have moved since.
    ask: Option<u32>,
}

impl Place {
    /// That of a shell that is yet to be begun, in the home, or of one that is anywhere.
    pub(super) fn new(is_fresh: bool) -> Self {
        Self { shown: is_fresh.then(|| "~".to_owned()), ask: None }
    }

    pub(super) fn shown(&self) -> Option<&str> {
        self.shown.as_deref()
    }

    /// A command has ended that this shell has run, or none. `restarted`: the shell has ended with it.
    pub(super) fn moved(&mut self, shell: Option<u32>, restarted: bool) {
        *self =
            if restarted { Self::new(true) } else { Self { shown: self.shown.take(), ask: shell } };
    }

    /// Asks where it is, if it may have moved, by a command of its own that leaves the session alone.
    pub(super) async fn look(&mut self, session: &Session) {
        let Some(shell) = self.ask.take() else { return };
        let command = Command::argv(["sh", "-c", ASK, "sh", &shell.to_string()]);
        let Ok(job) = session.start(command.timeout(Duration::from_secs(2))) else { return };
        let answer = tokio::time::timeout(PATIENCE, job.output(ANSWER_BYTES_MAX)).await;
        if let Ok(Ok(answer)) = answer
            && let Some(place) = read(&answer.stdout)
        {
            self.shown = Some(place);
        }
    }
}

/// The place in an answer, as it is shown. A remote name never reaches the terminal as it is.
fn read(answer: &[u8]) -> Option<String> {
    let mut fields = answer.split(|byte| *byte == 0);
    let (home, path) = (fields.next()?, fields.next()?);
    // Behind the second NUL is nothing.
    if fields.next() != Some(b"") || !path.starts_with(b"/") {
        return None;
    }
    let below_home = path.strip_prefix(home).filter(|_| home.starts_with(b"/") && home != b"/");
    let shown = match below_home {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => {
            format!("~{}", escape_for_terminal(rest))
        }
        _ => escape_for_terminal(path),
    };
    let left_out = shown.chars().count().saturating_sub(SHOWN_CHARS_MAX);
    Some(match left_out {
        0 => shown,
        count => format!("\u{2026}{}", shown.chars().skip(count + 1).collect::<String>()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_from_the_home_on_and_not_at_full_length() {
        let shown = |home: &str, path: &str| read(format!("{home}\0{path}\0").as_bytes());
        assert_eq!(shown("/home/ann", "/home/ann").as_deref(), Some("~"));
        assert_eq!(shown("/home/ann", "/home/ann/x y").as_deref(), Some("~/x y"));
        assert_eq!(shown("/home/ann", "/home/anne").as_deref(), Some("/home/anne"));
        assert_eq!(shown("/", "/usr").as_deref(), Some("/usr"));
        assert_eq!(shown("", "/usr").as_deref(), Some("/usr"));
        let long = shown("/root", &format!("/{}", "d/".repeat(40))).unwrap();
        assert!(long.starts_with('\u{2026}') && long.chars().count() == SHOWN_CHARS_MAX, "{long}");
        assert_eq!(shown("/root", &format!("/{}", "d".repeat(39))).unwrap().chars().count(), 40);
        assert!(!shown("/root", "/\x1b[2J").unwrap().contains('\x1b'));
    }

    #[test]
    fn what_is_no_answer_says_nothing() {
        for answer in
            ["", "/root\0", "/root\0/usr", "/root\0\0", "/root\0usr\0", "hello\n", "a\0/b\0c"]
        {
            assert_eq!(read(answer.as_bytes()), None, "{answer:?}");
        }
    }

    #[test]
    fn a_fresh_shell_is_at_home() {
        assert_eq!(Place::new(true).shown(), Some("~"));
        let mut place = Place::new(false);
        assert_eq!(place.shown(), None);
        place.moved(Some(7), false);
        assert_eq!((place.shown(), place.ask), (None, Some(7)));
        place.moved(Some(7), true);
        assert_eq!((place.shown(), place.ask), (Some("~"), None));
    }
}
