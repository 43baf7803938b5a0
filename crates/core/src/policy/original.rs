//! What a forced command is told about the command that it stands in for.

use afar_proto::json::ByteString;
use afar_proto::message::Command;

/// The value of `SSH_ORIGINAL_COMMAND`.
///
/// ssh sends one string, so for ssh this is that string. Afar sends an argv or a script: a script
/// is the string; an argv is its words joined by single spaces, each quoted where a POSIX shell
/// would read it as anything but itself. So a forced command that gives the value to `sh -c` or
/// to `eval` runs exactly the argv that was asked for, and one that compares it with a plain text
/// such as `git-upload-pack '/srv/x.git'` sees it as a person would write it.
#[must_use]
pub fn original_command(command: &Command) -> Vec<u8> {
    match command {
        Command::Script(script) => script.0.clone(),
        Command::Argv(words) => join(words),
        // A login shell is no command: the variable is not set for one.
        Command::Shell {} => Vec::new(),
    }
}

fn join(words: &[ByteString]) -> Vec<u8> {
    let mut joined = Vec::new();
    for (index, ByteString(word)) in words.iter().enumerate() {
        if index > 0 {
            joined.push(b' ');
        }
        let plain = if index == 0 { is_plain_program(word) } else { is_plain(word) };
        if plain {
            joined.extend_from_slice(word);
        } else {
            quote(word, &mut joined);
        }
    }
    joined
}

/// Whether every POSIX shell takes the word for itself, wherever it stands but first.
fn is_plain(word: &[u8]) -> bool {
    !word.is_empty()
        && word.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&byte))
}

/// The first word must also be neither an assignment nor a reserved word (POSIX, Shell Command
/// Language, section 2.4, and those of bash, ksh and zsh).
fn is_plain_program(word: &[u8]) -> bool {
    const RESERVED: [&[u8]; 22] = [
        b"if",
        b"then",
        b"else",
        b"elif",
        b"fi",
        b"do",
        b"done",
        b"case",
        b"esac",
        b"while",
        b"until",
        b"for",
        b"in",
        b"select",
        b"function",
        b"time",
        b"coproc",
        b"foreach",
        b"repeat",
        b"end",
        b"nocorrect",
        b"namespace",
    ];
    is_plain(word) && !word.contains(&b'=') && !RESERVED.contains(&word)
}

/// In single quotes, where a shell reads everything as itself but the single quote, which stands
/// outside them with a backslash.
fn quote(word: &[u8], out: &mut Vec<u8>) {
    out.push(b'\'');
    for &byte in word {
        if byte == b'\'' {
            out.extend_from_slice(b"'\\''");
        } else {
            out.push(byte);
        }
    }
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn argv(words: &[&[u8]]) -> Command {
        Command::Argv(words.iter().map(|word| ByteString(word.to_vec())).collect())
    }

    #[test]
    fn words_are_quoted_only_where_a_shell_needs_it() {
        let cases: [(&[&[u8]], &[u8]); 12] = [
            (&[b"git-upload-pack", b"/srv/x.git"], b"git-upload-pack /srv/x.git"),
            (&[b"rsync", b"--server", b"-e.LsfxC", b"."], b"rsync --server -e.LsfxC ."),
            (&[b"printf", b"%s", b"a b"], b"printf %s 'a b'"),
            (&[b"echo", b""], b"echo ''"),
            (&[b"echo", b"it's"], b"echo 'it'\\''s'"),
            (&[b"echo", b"$HOME", b"*", b"~", b"#x"], b"echo '$HOME' '*' '~' '#x'"),
            (&[b"A=1", b"B=2"], b"'A=1' B=2"),
            (&[b"if", b"if"], b"'if' if"),
            (&[b"echo", b"\xff\n"], b"echo '\xff\n'"),
            (&["größe".as_bytes()], "'größe'".as_bytes()),
            (&[b"!", b"{", b"[["], b"'!' '{' '[['"),
            (&[], b""),
        ];
        for (words, expected) in cases {
            assert_eq!(original_command(&argv(words)), expected, "{words:?}");
        }
    }

    #[test]
    fn a_script_is_told_verbatim() {
        let script = b"ls | wc; echo \xff 'x'\n".to_vec();
        assert_eq!(original_command(&Command::Script(ByteString(script.clone()))), script);
    }

    /// The quoting rules of POSIX (2.2), for the two forms that are written here.
    fn read_back(text: &[u8]) -> Vec<Vec<u8>> {
        let mut words = Vec::new();
        let mut bytes = text.iter().copied().peekable();
        while bytes.peek().is_some() {
            let mut word = Vec::new();
            while let Some(byte) = bytes.next() {
                match byte {
                    b' ' => break,
                    b'\\' => word.push(bytes.next().unwrap()),
                    b'\'' => word.extend(bytes.by_ref().take_while(|&byte| byte != b'\'')),
                    byte => {
                        assert!(byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&byte));
                        word.push(byte);
                    }
                }
            }
            words.push(word);
        }
        words
    }

    proptest! {
        #[test]
        fn a_shell_would_read_the_argv_back(
            words in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..12), 1..6
            )
        ) {
            let slices: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(read_back(&original_command(&argv(&slices))), words);
        }
    }
}
