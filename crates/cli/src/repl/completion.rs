//! Completion of commands and paths there: which word, what to ask for, and what the answer offers.

use std::collections::BTreeSet;

use afar_client::Command;

/// Names that are asked for at most.
pub(super) const NAMES_MAX: usize = 200;

/// Bytes of their listing that are taken.
pub(super) const LISTING_BYTES_MAX: usize = 64 * 1024;

/// Lists `$3…` in `$2` as seen from `$1`, each with NUL behind it and `/` behind directories. A
/// directory that is not there offers nothing.
const LIST: &str = "cd -- \"$1\" 2>/dev/null; case $2 in '~'/*) d=$HOME/${2#??} ;; *) d=$2 ;; esac; \
    cd -- \"${d:-.}\" 2>/dev/null || exit 0; n=0; for f in \"$3\"*; do \
    if [ -d \"$f\" ]; then printf '%s/\\0' \"$f\"; \
    elif [ -e \"$f\" ] || [ -L \"$f\" ]; then printf '%s\\0' \"$f\"; fi; \
    n=$((n+1)); [ \"$n\" -lt \"$4\" ] || break; done";

/// Lists the programs on the PATH of a command there whose names begin with `$1`, each with NUL behind it.
/// Some are there twice, where one directory is a link to another.
const LIST_COMMANDS: &str = "p=$1 max=$2 n=0; IFS=:; set -f; set -- $PATH; set +f; for d; do \
    cd -- \"${d:-.}\" 2>/dev/null || continue; for f in \"$p\"*; do \
    [ -f \"$f\" ] && [ -x \"$f\" ] || continue; printf '%s\\0' \"$f\"; \
    n=$((n+1)); [ \"$n\" -lt \"$max\" ] || exit 0; done; done";

/// As often a program may be found before its name has been found less than [`NAMES_MAX`] times.
const TIMES_FOUND_MAX: usize = 4;

/// What every shell that holds a session can do without a program.
const BUILTINS: [&str; 24] = [
    "alias", "cd", "command", "eval", "exec", "exit", "export", "getopts", "hash", "read",
    "readonly", "return", "set", "shift", "times", "trap", "type", "ulimit", "umask", "unalias",
    "unset", "wait", "jobs", "local",
];

/// Words behind which a command stands.
const KEYWORDS: [&str; 10] =
    ["!", "{", "if", "then", "elif", "else", "do", "while", "until", "time"];

/// The word before the cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Where it begins in the line.
    pub(super) start: usize,
    /// The quote that it begins with, if any.
    quote: Option<char>,
    /// Up to the last slash, as it means without quotes.
    directory: String,
    /// The rest, in the same way.
    prefix: String,
    /// Whether it stands where a command's name does.
    is_command: bool,
}

/// The word that ends at `cursor`.
pub(super) fn word_at(line: &str, cursor: usize) -> Word {
    let before = line.get(..cursor).unwrap_or(line);
    let (mut start, mut text, mut open) = (0, String::new(), None);
    let mut quote = None;
    let mut place = Place { is_command: true, is_value: false };
    let mut chars = before.char_indices();
    while let Some((at, c)) = chars.next() {
        match (c, open) {
            ('\\', None | Some('"')) => text.extend(chars.next().map(|(_, c)| c)),
            ('\'' | '"', None) => {
                open = Some(c);
                if at == start {
                    quote = Some(c);
                }
            }
            (c, Some(closing)) if c == closing => open = None,
            (' ' | '\t' | '\n' | ';' | '&' | '|' | '<' | '>' | '(' | ')' | '`' | '=', None) => {
                place = place.behind(before.get(start..at).unwrap_or_default(), c);
                start = at + c.len_utf8();
                text.clear();
                quote = None;
            }
            (c, _) => text.push(c),
        }
    }
    let slash = text.rfind('/').map_or(0, |at| at + 1);
    let (directory, prefix) = text.split_at(slash);
    let quote = quote.filter(|_| open.is_some());
    let is_command = place.is_command && directory.is_empty() && quote.is_none();
    Word { start, quote, directory: directory.to_owned(), prefix: prefix.to_owned(), is_command }
}

/// Where a word stands.
#[derive(Clone, Copy)]
struct Place {
    /// Where a command's name does.
    is_command: bool,
    /// Behind the `=` of an assignment, behind which a command may stand.
    is_value: bool,
}

impl Place {
    /// Where the next word stands, behind this one, which ended with `c`.
    fn behind(self, word: &str, c: char) -> Self {
        let is_command = match c {
            ';' | '&' | '|' | '(' | '`' | '\n' => true,
            ' ' | '\t' if self.is_value => true,
            ' ' | '\t' if word.is_empty() => self.is_command,
            ' ' | '\t' => self.is_command && KEYWORDS.contains(&word),
            _ => false,
        };
        Self { is_command, is_value: c == '=' && self.is_command && !word.is_empty() }
    }
}

impl Word {
    /// What is run there, not in the session, to answer; `None` if nothing has been typed of a command
    /// yet, which would be any. `cwd` is the session's.
    pub(super) fn listing(&self, cwd: &str) -> Option<Command> {
        if self.is_command {
            let max = (NAMES_MAX * TIMES_FOUND_MAX).to_string();
            let listing = Command::argv(["sh", "-c", LIST_COMMANDS, "sh", &self.prefix, &max]);
            return (!self.prefix.is_empty()).then_some(listing);
        }
        let max = NAMES_MAX.to_string();
        Some(Command::argv(["sh", "-c", LIST, "sh", cwd, &self.directory, &self.prefix, &max]))
    }

    /// What stands in the place of the word for each name of a listing. Names that a terminal would
    /// not show as they are, are left out.
    pub(super) fn offers(&self, listing: &[u8]) -> Vec<String> {
        // What has no NUL behind it was cut off.
        let whole = listing.iter().rposition(|byte| *byte == 0).unwrap_or(0);
        let names = listing.get(..whole).unwrap_or_default().split(|byte| *byte == 0);
        let names = names.filter_map(|name| std::str::from_utf8(name).ok());
        let names = names.filter(|name| !name.is_empty() && !name.contains(char::is_control));
        if self.is_command {
            let builtins = BUILTINS.into_iter().filter(|name| name.starts_with(&self.prefix));
            let names: BTreeSet<&str> = names.chain(builtins).collect();
            return names.into_iter().take(NAMES_MAX).map(|name| self.offer(name)).collect();
        }
        names.take(NAMES_MAX).map(|name| self.offer(name)).collect()
    }

    fn offer(&self, name: &str) -> String {
        let path = format!("{}{name}", self.directory);
        match self.quote {
            Some('\'') => format!("'{}", path.replace('\'', "'\\''")),
            Some(quote) => {
                let mut offer = String::from(quote);
                for c in path.chars() {
                    if "\"\\$`".contains(c) {
                        offer.push('\\');
                    }
                    offer.push(c);
                }
                offer
            }
            None => {
                let mut offer = String::new();
                for (at, c) in path.char_indices() {
                    let home = at == 0 && c == '~' && path.starts_with("~/");
                    if " \t\"'\\$`*?[]{}()<>|&;#!~=".contains(c) && !home {
                        offer.push('\\');
                    }
                    offer.push(c);
                }
                offer
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(line: &str) -> (usize, String, String) {
        let Word { start, directory, prefix, .. } = word_at(line, line.len());
        (start, directory, prefix)
    }

    #[test]
    fn the_word_before_the_cursor_is_found_and_unquoted() {
        let expect =
            |start, directory: &str, prefix: &str| (start, directory.to_owned(), prefix.to_owned());
        assert_eq!(word("ls sr"), expect(3, "", "sr"));
        assert_eq!(word("cat a/b\\ c/d"), expect(4, "a/b c/", "d"));
        assert_eq!(word("cat 'a b/c"), expect(4, "a b/", "c"));
        assert_eq!(word("x>/tm"), expect(2, "/", "tm"));
        assert_eq!(word("a; "), expect(3, "", ""));
        assert_eq!(word("dd of=/de"), expect(6, "/", "de"));
        assert_eq!(word_at("ls a b", 4).prefix, "a");
    }

    #[test]
    fn a_command_stands_where_a_shell_looks_for_one() {
        for line in [
            "gr",
            "ls; gr",
            "ls |gr",
            "ls && gr",
            "a=1 b= gr",
            "if gr",
            "x; do gr",
            "(gr",
            "echo $(gr",
            "! gr",
            "  gr",
            "gr",
        ] {
            assert!(word_at(line, line.len()).is_command, "{line:?}");
        }
        for line in [
            "ls gr",
            "ls ./gr",
            "./gr",
            "ls >gr",
            "a=gr",
            "dd of=gr",
            "echo if gr",
            "'gr",
            "ls  gr",
        ] {
            assert!(!word_at(line, line.len()).is_command, "{line:?}");
        }
    }

    #[test]
    fn commands_are_offered_once_and_sorted_with_what_the_shell_has_itself() {
        let word = word_at("ex", 2);
        assert_eq!(
            word.offers(b"expr\0ex\0expr\0expand\0"),
            ["ex", "exec", "exit", "expand", "export", "expr"]
        );
        assert!(word_at("ls; ", 4).listing(".").is_none());
        assert!(word_at("ls ", 3).listing(".").is_some());
    }

    #[test]
    fn offers_are_quoted_as_the_word_is() {
        let listing = b"a b\0it's/\0$x\0\x1b[2J\0\xff\0cut off";
        let offers = |line: &str| word_at(line, line.len()).offers(listing);
        assert_eq!(offers("ls d/"), ["d/a\\ b", "d/it\\'s/", "d/\\$x"]);
        assert_eq!(offers("ls 'd/"), ["'d/a b", "'d/it'\\''s/", "'d/$x"]);
        assert_eq!(offers("ls \"d/"), ["\"d/a b", "\"d/it's/", "\"d/\\$x"]);
        assert_eq!(offers("ls ~/")[0], "~/a\\ b");
        assert!(word_at("ls ", 3).offers(b"").is_empty());
    }

    #[test]
    fn no_more_is_offered_than_was_asked_for() {
        let listing = b"n\0".repeat(NAMES_MAX + 1);
        assert_eq!(word_at("ls ", 3).offers(&listing).len(), NAMES_MAX);
    }
}
