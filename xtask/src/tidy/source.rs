//! A source file, and its Rust code told apart from its comments and strings.

use std::ops::Range;

/// A text file of the tree, with views that the rules share.
#[derive(Debug)]
pub(super) struct SourceFile {
    path: String,
    text: String,
    code: String,
    comments: String,
    test_bytes: Vec<Range<usize>>,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    /// Counted from 1.
    pub(super) line: usize,
    /// From the line of `fn` to the line of its closing brace, both counted.
    pub(super) lines: usize,
}

impl SourceFile {
    /// `path` is relative to the root of the workspace, with forward slashes.
    pub(super) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let (code, comments) =
            if path.ends_with(".rs") { mask(&text) } else { (String::new(), String::new()) };
        let test_bytes = test_regions(&path, &code);
        Self { path, text, code, comments, test_bytes }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The text with everything but code blanked: same lines, same columns. Empty if not Rust.
    pub(super) fn code(&self) -> &str {
        &self.code
    }

    /// The text with everything but comments blanked. Empty if not Rust.
    pub(super) fn comments(&self) -> &str {
        &self.comments
    }

    /// Whether the byte at `offset` belongs to code that only tests compile.
    pub(super) fn is_test(&self, offset: usize) -> bool {
        self.test_bytes.iter().any(|range| range.contains(&offset))
    }

    /// The line of a byte, counted from 1.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        let newlines = self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        newlines + 1
    }

    /// The line with this number, counted from 1; empty past the end.
    pub(super) fn line(&self, number: usize) -> &str {
        self.text.lines().nth(number.saturating_sub(1)).unwrap_or_default()
    }

    /// Every function that has a body.
    pub(super) fn functions(&self) -> Vec<Function> {
        let code = self.code.as_bytes();
        let mut functions = Vec::new();
        for start in words(&self.code, "fn") {
            let name = word_at(&self.code, skip_spaces(code, start + 2));
            // `fn(u8) -> u8` is a type.
            if name.is_empty() {
                continue;
            }
            let Some(open) = body_start(code, start) else { continue };
            let end = matching_brace(code, open);
            let line = self.line_of(start);
            let lines = self.line_of(end) - line + 1;
            functions.push(Function { name: name.to_owned(), line, lines });
        }
        functions
    }
}

/// Where `word` stands in `code` as a whole word.
pub(super) fn words(code: &str, word: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    code.match_indices(word)
        .map(|(start, _)| start)
        .filter(|start| {
            let before = start.checked_sub(1).and_then(|index| bytes.get(index));
            let after = bytes.get(start + word.len());
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
        .collect()
}

/// The identifier that begins at `start`, empty if none does.
pub(super) fn word_at(code: &str, start: usize) -> &str {
    let rest = code.get(start..).unwrap_or_default();
    let end = rest.bytes().position(|byte| !is_word(&byte)).unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default()
}

fn is_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80
}

fn skip_spaces(code: &[u8], mut at: usize) -> usize {
    while code.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The `{` that opens the item starting at `from`, unless a `;` ends it first. Brackets are
/// skipped, so that `[u8; 4]` in a signature ends nothing.
fn body_start(code: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The `}` that closes the `{` at `open`; the end of the file if it is never closed.
fn matching_brace(code: &[u8], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// The byte ranges that only tests compile: whole files by their place, items by `#[cfg(test)]`.
fn test_regions(path: &str, code: &str) -> Vec<Range<usize>> {
    let in_tests = path.split('/').any(|part| part == "tests" || part == "e2e");
    if in_tests || path.ends_with("/tests.rs") {
        return std::iter::once(0..usize::MAX).collect();
    }
    let bytes = code.as_bytes();
    let attribute = "#[cfg(test)]";
    code.match_indices(attribute)
        .filter_map(|(start, _)| {
            let open = body_start(bytes, start + attribute.len())?;
            Some(start..matching_brace(bytes, open) + 1)
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// Splits Rust text into its code and its comments, each with all else turned into spaces.
fn mask(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut comments = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (kind, end) = lexeme(bytes, at);
        for byte in bytes.get(at..end).unwrap_or_default() {
            let blank = if *byte == b'\n' { b'\n' } else { b' ' };
            code.push(if kind == Kind::Code { *byte } else { blank });
            comments.push(if kind == Kind::Comment { *byte } else { blank });
        }
        at = end;
    }
    // Kinds change at ASCII bytes only, so that no character is cut in two.
    (String::from_utf8_lossy(&code).into_owned(), String::from_utf8_lossy(&comments).into_owned())
}

/// The kind of what begins at `at`, and where it ends (always past `at`).
fn lexeme(bytes: &[u8], at: usize) -> (Kind, usize) {
    let rest = bytes.get(at..).unwrap_or_default();
    let after_word = at.checked_sub(1).and_then(|index| bytes.get(index)).is_some_and(is_word);
    let (kind, length) = if rest.starts_with(b"//") {
        (Kind::Comment, rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()))
    } else if rest.starts_with(b"/*") {
        (Kind::Comment, block_comment(rest))
    } else if let Some(length) = raw_string(rest).filter(|_| !after_word) {
        (Kind::Literal, length)
    } else if rest.first() == Some(&b'"') {
        (Kind::Literal, quoted(rest, b'"'))
    } else if rest.first() == Some(&b'\'') {
        character(rest).map_or((Kind::Code, 1), |length| (Kind::Literal, length))
    } else {
        (Kind::Code, 1)
    };
    (kind, at + length.max(1))
}

fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let here = rest.get(at..).unwrap_or_default();
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of `r"…"`, `r#"…"#`, `br"…"`, `cr"…"` if one begins here.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let prefix = [&b"r"[..], b"br", b"cr"].into_iter().find(|prefix| rest.starts_with(prefix))?;
    let body = rest.get(prefix.len()..)?;
    let hashes = body.iter().take_while(|byte| **byte == b'#').count();
    if body.get(hashes) != Some(&b'"') {
        return None;
    }
    let mut closing = vec![b'"'];
    closing.resize(1 + hashes, b'#');
    let start = prefix.len() + hashes + 1;
    let content = rest.get(start..)?;
    let end = content.windows(closing.len()).position(|window| window == closing);
    Some(end.map_or(rest.len(), |end| start + end + closing.len()))
}

/// The length of a literal that begins with a quote, backslashes respected.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(byte) = rest.get(at) {
        match byte {
            b'\\' => at += 2,
            byte if *byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of a character literal; `None` for a lifetime.
fn character(rest: &[u8]) -> Option<usize> {
    let first = *rest.get(1)?;
    if first == b'\\' {
        return Some(quoted(rest, b'\''));
    }
    let length = match first {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0.. => 4,
    };
    (rest.get(1 + length) == Some(&b'\'')).then_some(length + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        mask(text).0
    }

    #[test]
    fn strings_and_comments_are_no_code() {
        assert_eq!(code("a \"fn {\" b").replace(' ', ""), "ab");
        assert_eq!(code("a r#\"x\" { \"#b").replace(' ', ""), "ab");
        assert_eq!(code("a br\"\\\" b").replace(' ', ""), "ab");
        assert_eq!(code("a \"\\\"{\" b").replace(' ', ""), "ab");
        assert_eq!(code("a /* { /* { */ } */ b // {\nc").replace(' ', ""), "ab\nc");
        assert_eq!(code("a '{' b '\\'' c '\\u{7b}' d 'é' e").replace(' ', ""), "abcde");
    }

    #[test]
    fn lifetimes_and_raw_identifiers_are_code() {
        for text in ["fn f<'a>(x: &'a str) {}", "let r#type = 1;", "for 'x in 'y {}"] {
            assert_eq!(code(text), text);
        }
    }

    #[test]
    fn columns_and_lines_stay() {
        let text = "let a = \"ä\nb\"; // ü\nlet c;";
        let (code, comments) = mask(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(comments.len(), text.len());
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn a_function_is_measured_from_fn_to_its_brace() {
        let text = "trait T { fn a(&self) -> [u8; 2]; }\n\
                    fn b(f: fn(u8) -> u8) -> [u8; 2]\nwhere\n{\n  let s = \"}\";\n}\n";
        let functions = SourceFile::new("x.rs", text).functions();
        assert_eq!(functions, [Function { name: "b".to_owned(), line: 2, lines: 5 }]);
    }

    #[test]
    fn test_code_is_known_by_place_and_by_attribute() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\nfn c() {}";
        let file = SourceFile::new("src/x.rs", text);
        let at = |needle: &str| text.find(needle).unwrap();
        assert!(!file.is_test(at("a()")));
        assert!(file.is_test(at("b()")));
        assert!(!file.is_test(at("c()")));
        assert!(SourceFile::new("crates/x/tests/y.rs", text).is_test(0));
        assert!(SourceFile::new("crates/x/src/y/tests.rs", text).is_test(0));
        // The declaration of a file of tests makes nothing after it a test.
        let declared = "#[cfg(test)]\nmod tests;\nfn c() {}";
        assert!(!SourceFile::new("x.rs", declared).is_test(declared.len() - 1));
    }
}
