//! What to suggest when a program was not found.

use crate::escape::escape_bounded;

/// Longest program that is quoted in a hint, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// Words that a shell knows and for which there is no program, or one that is of no use.
const BUILTINS: [&[u8]; 28] = [
    b".",
    b"alias",
    b"bg",
    b"bind",
    b"builtin",
    b"cd",
    b"declare",
    b"dirs",
    b"disown",
    b"eval",
    b"exec",
    b"exit",
    b"export",
    b"fg",
    b"history",
    b"jobs",
    b"local",
    b"popd",
    b"pushd",
    b"readonly",
    b"return",
    b"set",
    b"shopt",
    b"source",
    b"trap",
    b"ulimit",
    b"umask",
    b"unset",
];

/// One line without its end that tells why the first word of this argv may not have been found,
/// and what to write instead; `None` where there is nothing to suggest but that there is no such
/// program.
///
/// Afar runs exactly the argv it is given, where `ssh` gives its words to a shell: whoever is
/// used to ssh writes `afar run host 'ls | wc'`, and there is no program of that name.
#[must_use]
pub fn not_found_hint(argv: &[&[u8]]) -> Option<String> {
    let (program, arguments) = argv.split_first()?;
    let shown = escape_bounded(program, SHOWN_CHARS_MAX);
    if program.is_empty() {
        return Some("the program's name is empty: is a variable unset?".into());
    }
    if BUILTINS.contains(program) {
        return Some(format!(
            "{shown} is a word of the shell, not a program; for a shell to read it: -c '{shown} …'"
        ));
    }
    if assigns(program) {
        return Some(format!("{shown} is no program; a variable is set with -e {shown}"));
    }
    if program.iter().any(|byte| b" \t\n|&;<>()$`\"'*?~{}!#\\".contains(byte)) {
        let quoted = if program.contains(&b'\'') {
            // Quoting the quotes would make a line that nobody wants to read.
            "-c SCRIPT".to_owned()
        } else {
            format!("-c '{}'", shell_text(program))
        };
        let only = if arguments.is_empty() { "" } else { " as one word" };
        return Some(format!(
            "no shell reads the command, so this is taken for a program's name{only}; for a shell \
             to read it: {quoted}"
        ));
    }
    if let [b'-', ..] = program {
        return Some(format!("{shown} stands where the program should; options come before it"));
    }
    let operator =
        arguments.iter().find(|word| matches!(**word, b"|" | b"||" | b"&&" | b";" | b">"));
    operator.map(|operator| {
        let operator = escape_bounded(operator, 2);
        format!("no shell reads the command, so \"{operator}\" is an argument; see -c")
    })
}

/// `NAME=value`, as before a command in a shell.
fn assigns(word: &[u8]) -> bool {
    let Some(equals) = word.iter().position(|&byte| byte == b'=') else {
        return false;
    };
    let (name, _) = word.split_at(equals);
    name.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && !word.contains(&b' ')
}

/// A script as the user would write it between single quotes; what can't be shown as it is, is
/// escaped as everywhere. A backslash stays one, because the line is to be copied.
fn shell_text(script: &[u8]) -> String {
    escape_bounded(script, SHOWN_CHARS_MAX).replace("\\\\", "\\")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hint(argv: &[&str]) -> Option<String> {
        let argv: Vec<&[u8]> = argv.iter().map(|word| word.as_bytes()).collect();
        not_found_hint(&argv)
    }

    #[test]
    fn shell_syntax_is_told_with_the_line_to_write() {
        assert_eq!(
            hint(&["ls | wc"]).unwrap(),
            "no shell reads the command, so this is taken for a program's name; for a shell to \
             read it: -c 'ls | wc'"
        );
        for script in ["uname -a", "a;b", "x>y", "$HOME/bin/x", "*.sh", "~/x", "a\tb", "`x`"] {
            let hint = hint(&[script]).unwrap();
            assert!(hint.contains("-c '"), "{hint}");
        }
        assert!(hint(&["echo it's"]).unwrap().ends_with("-c SCRIPT"));
        assert!(hint(&["ls -l", "x"]).unwrap().contains("as one word"));
        assert!(hint(&["grep 'a\\.b' x"]).unwrap().ends_with("-c SCRIPT"));
        assert!(hint(&["grep a\\.b x"]).unwrap().ends_with("-c 'grep a\\.b x'"));
    }

    #[test]
    fn words_of_the_shell_assignments_and_options_are_told() {
        assert!(hint(&["cd", "/tmp"]).unwrap().contains("-c 'cd …'"));
        assert!(hint(&["source", "x"]).unwrap().contains("word of the shell"));
        assert!(hint(&["LANG=C", "ls"]).unwrap().contains("-e LANG=C"));
        assert!(hint(&["-v"]).unwrap().contains("options come before it"));
        assert!(hint(&["nosuch", "|", "wc"]).unwrap().contains("\"|\" is an argument"));
        assert!(hint(&["", "x"]).unwrap().contains("empty"));
    }

    #[test]
    fn a_plain_name_needs_no_hint() {
        for argv in [&["nosuch"][..], &["/usr/bin/nosuch", "-l", "a b"], &["a.b-c_d+"], &[]] {
            assert_eq!(hint(argv), None, "{argv:?}");
        }
    }

    proptest! {
        #[test]
        fn fault_85_a_hint_is_one_short_line(
            argv in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 0..3)
        ) {
            let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
            if let Some(hint) = not_found_hint(&argv) {
                prop_assert!(!hint.chars().any(char::is_control));
                prop_assert!(hint.chars().count() < 300);
            }
        }
    }
}
