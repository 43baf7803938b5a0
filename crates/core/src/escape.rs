//! Showing bytes that someone else chose: they never reach a terminal as control sequences.

use crate::limits::ESCAPED_CHARS_MAX;

/// The text with everything that could steer a terminal or deceive a reader written out.
///
/// Written out are: C0 and C1 controls and DEL (`\n`, `\t`, `\r`, else `\xNN`), the characters
/// that reorder or hide others (bidirectional controls, zero-width and invisible ones, line and
/// paragraph separators: `\u{202e}`), bytes that are not UTF-8 (`\xNN`), and the backslash itself
/// (`\\`), so that no two inputs look the same. What remains is one line.
///
/// At most [`ESCAPED_CHARS_MAX`] characters; a longer text ends with `…`.
#[must_use]
pub fn escape_for_terminal(bytes: &[u8]) -> String {
    escape_bounded(bytes, ESCAPED_CHARS_MAX)
}

/// [`escape_for_terminal`] with another limit, in characters; an escape is never cut in two.
#[must_use]
pub fn escape_bounded(bytes: &[u8], chars_max: usize) -> String {
    let mut out = Bounded { text: String::new(), chars_left: chars_max };
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if !out.push(&escaped(character)) {
                return out.text;
            }
        }
        for byte in chunk.invalid() {
            if !out.push(&format!("\\x{byte:02x}")) {
                return out.text;
            }
        }
    }
    out.text
}

struct Bounded {
    text: String,
    chars_left: usize,
}

impl Bounded {
    /// Appends a piece whole, or the mark of an end and then says no.
    fn push(&mut self, piece: &str) -> bool {
        let chars = piece.chars().count();
        if chars > self.chars_left {
            self.text.push('…');
            return false;
        }
        self.chars_left -= chars;
        self.text.push_str(piece);
        true
    }
}

fn escaped(character: char) -> String {
    match character {
        '\\' => "\\\\".into(),
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        // Written as a byte would be misread for U+0080 to U+009F, which take two bytes in UTF-8.
        '\0'..='\u{1f}' | '\u{7f}' => format!("\\x{:02x}", u32::from(character)),
        _ if character.is_control() || deceives(character) => {
            format!("\\u{{{:x}}}", u32::from(character))
        }
        _ => character.into(),
    }
}

/// Characters of the Unicode category Cf, and others that are not seen or that reorder what is
/// (Unicode Standard Annex 9 and Technical Report 36).
const fn deceives(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fault_85_control_sequences_are_shown_not_obeyed() {
        let cases: [(&[u8], &str); 12] = [
            (b"plain text, 100%", "plain text, 100%"),
            (b"\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
            (b"a\nb\r\tc\0", "a\\nb\\r\\tc\\x00"),
            (b"\x7f", "\\x7f"),
            // CSI as a C1 control, in UTF-8 and as the bare byte of an 8-bit terminal.
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            (b"\x9b31m", "\\x9b31m"),
            ("safe\u{202e}gpj.exe".as_bytes(), "safe\\u{202e}gpj.exe"),
            ("\u{2066}\u{2069}\u{200b}\u{feff}".as_bytes(), "\\u{2066}\\u{2069}\\u{200b}\\u{feff}"),
            ("line\u{2028}break\u{e0041}".as_bytes(), "line\\u{2028}break\\u{e0041}"),
            (b"cut \xe2\x82", "cut \\xe2\\x82"),
            (b"C:\\x1b", "C:\\\\x1b"),
            ("größe 東京 🙂".as_bytes(), "größe 東京 🙂"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(escape_for_terminal(bytes), expected);
        }
    }

    #[test]
    fn the_length_is_bounded_and_no_escape_is_cut() {
        let exact = "x".repeat(ESCAPED_CHARS_MAX);
        assert_eq!(escape_for_terminal(exact.as_bytes()), exact);
        let over = "x".repeat(ESCAPED_CHARS_MAX + 1);
        assert_eq!(escape_for_terminal(over.as_bytes()), format!("{exact}…"));
        assert_eq!(escape_bounded(b"ab\x1b", 5), "ab…");
        assert_eq!(escape_bounded(b"ab\x1b", 6), "ab\\x1b");
        assert_eq!(escape_bounded(b"", 0), "");
        assert_eq!(escape_bounded(b"a", 0), "…");
    }

    /// Reads an escaped text back, to show that nothing was lost and nothing is ambiguous.
    fn unescape(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            rest = &rest[character.len_utf8()..];
            if character != '\\' {
                out.extend(character.to_string().bytes());
                continue;
            }
            let kind = rest.chars().next().unwrap();
            rest = &rest[1..];
            match kind {
                'n' => out.push(b'\n'),
                'r' => out.push(b'\r'),
                't' => out.push(b'\t'),
                '\\' => out.push(b'\\'),
                'x' => {
                    out.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                    rest = &rest[2..];
                }
                'u' => {
                    let end = rest.find('}').unwrap();
                    let code = u32::from_str_radix(&rest[1..end], 16).unwrap();
                    out.extend(char::from_u32(code).unwrap().to_string().bytes());
                    rest = &rest[end + 1..];
                }
                other => panic!("unknown escape {other}"),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn fault_85_nothing_of_a_control_remains_and_nothing_is_lost(
            bytes in proptest::collection::vec(any::<u8>(), 0..100)
        ) {
            let shown = escape_for_terminal(&bytes);
            prop_assert!(!shown.chars().any(|c| c.is_control() || deceives(c)));
            prop_assert_eq!(unescape(&shown), bytes);
        }

        #[test]
        fn fault_85_no_character_deceives(text in "\\PC{0,40}|.{0,40}") {
            let shown = escape_for_terminal(text.as_bytes());
            prop_assert!(!shown.chars().any(|c| c.is_control() || deceives(c)));
            prop_assert_eq!(unescape(&shown), text.as_bytes());
        }

        #[test]
        fn the_bound_holds(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            max in 0_usize..50,
        ) {
            prop_assert!(escape_bounded(&bytes, max).chars().count() <= max + 1);
        }
    }
}
