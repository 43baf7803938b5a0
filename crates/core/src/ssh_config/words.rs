//! Keywords, arguments and quotes on a line of ssh_config.

use crate::text;

/// The keyword and what follows it, without the separator: blanks, or one `=` with blanks around
/// it.
pub(super) fn split_keyword(line: &[u8]) -> (&[u8], &[u8]) {
    let end =
        line.iter().position(|&byte| text::is_blank(byte) || byte == b'=').unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = text::trim_start(rest);
    (keyword, text::trim_start(rest.strip_prefix(b"=").unwrap_or(rest)))
}

/// The words of a text; `None` iff a quote is not closed.
///
/// As in OpenSSH since 8.7: words are separated by blanks; `"` and `'` quote, also within a word;
/// a backslash takes the meaning from a quote, a backslash, and outside quotes from a space, and
/// is itself elsewhere; a word that begins with `#` begins a comment.
pub(super) fn split_arguments(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = text::trim_start(text);
    while rest.first().is_some_and(|&first| first != b'#') {
        let (word, after) = take_word(rest)?;
        words.push(word);
        rest = text::trim_start(after);
    }
    Some(words)
}

fn take_word(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut word = Vec::new();
    let mut quote = None;
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let (taken, after) = match (byte, after) {
            (b'\\', [next, tail @ ..])
                if b"\"'\\".contains(next) || (quote.is_none() && *next == b' ') =>
            {
                (Some(*next), tail)
            }
            _ if quote.is_none() && text::is_blank(byte) => return Some((word, rest)),
            (b'"' | b'\'', _) if quote.is_none() => {
                quote = Some(byte);
                (None, after)
            }
            _ if quote == Some(byte) => {
                quote = None;
                (None, after)
            }
            _ => (Some(byte), after),
        };
        word.extend(taken);
        rest = after;
    }
    quote.is_none().then_some((word, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Option<Vec<String>> {
        split_arguments(text.as_bytes())
            .map(|words| words.into_iter().map(|word| String::from_utf8(word).unwrap()).collect())
    }

    #[test]
    fn keywords_end_at_blanks_or_one_equals_sign() {
        for line in ["Port 22", "Port=22", "Port = 22", "Port\t=\t22", "Port   22", "Port= 22"] {
            assert_eq!(split_keyword(line.as_bytes()), (&b"Port"[..], &b"22"[..]), "{line}");
        }
        assert_eq!(split_keyword(b"Port == 22"), (&b"Port"[..], &b"= 22"[..]));
        assert_eq!(split_keyword(b"Port"), (&b"Port"[..], &b""[..]));
    }

    #[test]
    fn words_are_quoted_as_in_ssh() {
        for (text, expected) in [
            ("a  b\tc", vec!["a", "b", "c"]),
            (r#""a b" c"#, vec!["a b", "c"]),
            (r"'a b' c", vec!["a b", "c"]),
            (r#"x"a b"'c d'y"#, vec!["xa bc dy"]),
            (r#""it's" '"'"#, vec!["it's", "\""]),
            (r#"a\ b \"q\" \\ \n"#, vec!["a b", "\"q\"", "\\", "\\n"]),
            (r#""a\ b" "\"""#, vec!["a\\ b", "\""]),
            ("a # comment", vec!["a"]),
            ("a#b '#'", vec!["a#b", "#"]),
            ("#a", vec![]),
            ("", vec![]),
            (r#""""#, vec![""]),
            ("a\\", vec!["a\\"]),
        ] {
            assert_eq!(arguments(text).unwrap(), expected, "{text}");
        }
        for text in ["\"a", "'a", "a\"", "\"a\\\"", "'a\\'"] {
            assert_eq!(arguments(text), None, "{text}");
        }
    }
}
