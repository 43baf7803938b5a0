//! Splitting text files into lines and words, on bytes: these files have no encoding.

/// The lines of a file with their numbers from 1, without their ends (`\n` or `\r\n`).
///
/// A file that ends with a line end has no empty last line.
pub(crate) fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    bytes.split_inclusive(|&byte| byte == b'\n').enumerate().map(|(index, line)| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        (index + 1, line.strip_suffix(b"\r").unwrap_or(line))
    })
}

/// Space or tab: what separates fields in OpenSSH's files.
pub(crate) const fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The text without the blanks at its start.
pub(crate) fn trim_start(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|&&byte| is_blank(byte)).count();
    text.get(blanks..).unwrap_or_default()
}

/// The text without the blanks at both ends.
pub(crate) fn trim(text: &[u8]) -> &[u8] {
    let text = trim_start(text);
    let blanks = text.iter().rev().take_while(|&&byte| is_blank(byte)).count();
    text.get(..text.len().saturating_sub(blanks)).unwrap_or_default()
}

/// The first word and what follows it, without the blanks before either. The word is empty iff
/// the text is blank.
pub(crate) fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = trim_start(text);
    let end = text.iter().position(|&byte| is_blank(byte)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    (word, trim_start(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_numbers_and_no_ends() {
        let all: Vec<_> = lines(b"a\n\r\nb\r\n\nc").collect();
        assert_eq!(all, [(1, &b"a"[..]), (2, b""), (3, b"b"), (4, b""), (5, b"c")]);
        assert_eq!(lines(b"").count(), 0);
        assert_eq!(lines(b"a\n").count(), 1);
    }

    #[test]
    fn words_are_split_at_blanks() {
        assert_eq!(split_word(b" \tone \t two three"), (&b"one"[..], &b"two three"[..]));
        assert_eq!(split_word(b"one"), (&b"one"[..], &b""[..]));
        assert_eq!(split_word(b"  "), (&b""[..], &b""[..]));
        assert_eq!(trim(b" a b\t "), b"a b");
        assert_eq!(trim(b" \t"), b"");
    }
}
