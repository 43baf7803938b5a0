//! Which shell a session is held by, from the user's login shell.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How a shell is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Dialect {
    /// dash, and every other shell that is one of POSIX.1 and no more is known of.
    Posix,
    Bash,
    Zsh,
}

/// The shell of a user's sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) dialect: Dialect,
    pub(super) program: PathBuf,
    /// What the user should know about it.
    pub(super) note: Option<String>,
}

/// The shell that stands in for one whose language is another.
const STAND_IN: &str = "/bin/sh";

/// Shells of POSIX.1 by base name.
const POSIX: [&str; 12] = [
    "sh", "dash", "ash", "busybox", "ksh", "ksh93", "mksh", "lksh", "oksh", "loksh", "posh", "yash",
];

/// Shells of another language, whose users may run whatever they like: `/bin/sh` too.
const OTHERS: [&str; 12] =
    ["fish", "csh", "tcsh", "nu", "elvish", "xonsh", "pwsh", "ion", "rc", "es", "oil", "osh"];

/// Chooses by the base name of the login shell.
///
/// A shell that is not known may be there to restrict its user (rbash, git-shell, nologin): no
/// other one is put in its place. The error is for the user.
pub(super) fn choose(login_shell: &Path) -> Result<Choice, String> {
    let name = login_shell.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let own = |dialect| Choice { dialect, program: login_shell.to_owned(), note: None };
    match name {
        "bash" => Ok(own(Dialect::Bash)),
        "zsh" => Ok(own(Dialect::Zsh)),
        name if POSIX.contains(&name) => Ok(own(Dialect::Posix)),
        name if OTHERS.contains(&name) => Ok(Choice {
            dialect: Dialect::Posix,
            program: PathBuf::from(STAND_IN),
            note: Some(format!("{name} can't hold a session, {STAND_IN} does it instead")),
        }),
        _ => Err(format!(
            "the login shell {} can't hold a session; run the command without one",
            login_shell.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_shell_holds_the_session_itself() {
        for (shell, dialect) in [
            ("/bin/sh", Dialect::Posix),
            ("/usr/bin/dash", Dialect::Posix),
            ("/bin/bash", Dialect::Bash),
            ("/usr/local/bin/zsh", Dialect::Zsh),
        ] {
            let program = PathBuf::from(shell);
            assert_eq!(choose(&program), Ok(Choice { dialect, program, note: None }));
        }
    }

    #[test]
    fn a_shell_of_another_language_is_stood_in_for_and_that_is_said() {
        let choice = choose(Path::new("/usr/bin/fish")).unwrap();
        assert_eq!((choice.dialect, choice.program), (Dialect::Posix, PathBuf::from("/bin/sh")));
        assert!(choice.note.unwrap().starts_with("fish can't hold a session, /bin/sh"));
    }

    #[test]
    fn a_shell_that_may_restrict_its_user_is_not_stood_in_for() {
        for shell in ["/usr/sbin/nologin", "/bin/false", "/usr/bin/git-shell", "/bin/rbash", "/"] {
            assert!(choose(Path::new(shell)).unwrap_err().contains("can't hold a session"));
        }
    }
}
