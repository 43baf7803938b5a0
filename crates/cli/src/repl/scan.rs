//! Whether what was typed is a whole command, or goes on in the next line.
//!
//! Looked at here, because asking the shell there would cost a round trip for each line. It decides
//! about nothing but where a line ends: what is sent too early is an error of the shell's, and what
//! is held too long can be sent as it is (Alt-Enter).

/// What a command that goes on is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Single,
    Double,
    Backquote,
    /// `$((`, `$(` and `(`.
    Paren,
    /// `${`
    Brace,
    /// `{`, `if`, `do`, …: the word that ends it.
    Until(&'static str),
    /// `case`, before its `in`.
    Case,
    /// Between the patterns of a `case` and its `esac`.
    Patterns,
}

/// A here-document that was announced and has not begun.
#[derive(Debug)]
struct HereDocument {
    delimiter: Vec<u8>,
    strips_tabs: bool,
}

/// Deeper nesting than this is no command that somebody types; it is sent as it is.
const DEPTH_MAX: usize = 256;

/// Whether the shell would have something to execute now.
pub(super) fn is_complete(text: &[u8]) -> bool {
    Scanner {
        text,
        at: 0,
        open: Vec::new(),
        here: Vec::new(),
        expects_command: true,
        goes_on: false,
    }
    .run()
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    open: Vec<Open>,
    here: Vec<HereDocument>,
    /// Whether the next word is in the place of a command.
    expects_command: bool,
    /// Behind `|`, `&&`, `||` or a backslash at the end of the line.
    goes_on: bool,
}

impl Scanner<'_> {
    fn run(mut self) -> bool {
        while let Some(byte) = self.next() {
            if self.open.len() > DEPTH_MAX {
                return true;
            }
            match self.open.last() {
                Some(Open::Single) => {
                    if byte == b'\'' {
                        self.open.pop();
                    }
                }
                Some(Open::Double) => self.in_double(byte),
                Some(Open::Backquote) if byte == b'`' => {
                    self.open.pop();
                }
                Some(Open::Brace) if byte == b'}' => {
                    self.open.pop();
                }
                Some(Open::Brace) => self.in_word(byte),
                _ => {
                    if !self.in_command(byte) {
                        return false;
                    }
                }
            }
        }
        self.open.is_empty() && self.here.is_empty() && !self.goes_on
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.text.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn in_double(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.open.pop();
            }
            b'\'' => {}
            _ => self.in_word(byte),
        }
    }

    /// What opens something within a word.
    fn in_word(&mut self, byte: u8) {
        match byte {
            b'\\' => self.escaped(),
            b'\'' => self.open.push(Open::Single),
            b'"' => self.open.push(Open::Double),
            b'`' => self.open.push(Open::Backquote),
            b'$' => match self.peek() {
                Some(b'(') => {
                    self.at += 1;
                    self.open.push(Open::Paren);
                    self.expects_command = true;
                }
                Some(b'{') => {
                    self.at += 1;
                    self.open.push(Open::Brace);
                }
                _ => {}
            },
            _ => {}
        }
    }

    fn escaped(&mut self) {
        if matches!(self.next(), Some(b'\n') | None) {
            self.goes_on = self.at >= self.text.len();
        }
    }

    /// Outside of quotes. False if a here-document has no end.
    fn in_command(&mut self, byte: u8) -> bool {
        match byte {
            b' ' | b'\t' => return true,
            b'\n' => {
                // An empty line ends no command that a `|` has left open.
                self.expects_command = true;
                return self.skip_here_documents();
            }
            b'#' => {
                while self.peek().is_some_and(|byte| byte != b'\n') {
                    self.at += 1;
                }
                return true;
            }
            b';' | b'&' | b'|' => {
                let twice = self.peek() == Some(byte);
                if twice {
                    self.at += 1;
                }
                self.goes_on = byte == b'|' || (byte == b'&' && twice);
                self.expects_command = true;
                return true;
            }
            b'(' => {
                self.open.push(Open::Paren);
                self.expects_command = true;
            }
            b')' => self.close_paren(),
            b'<' if self.peek() == Some(b'<') => self.announce_here_document(),
            b'<' | b'>' => {}
            _ => self.word(byte),
        }
        self.goes_on = self.goes_on && byte == b'\\';
        true
    }

    /// The end of a pattern of `case`, or of what a parenthesis has opened.
    fn close_paren(&mut self) {
        self.expects_command = true;
        if self.open.last() == Some(&Open::Paren) {
            self.open.pop();
            // The body of a function is a command: `f() {`.
            let before = self.at.checked_sub(2).and_then(|at| self.text.get(at));
            self.expects_command = before == Some(&b'(');
        }
    }

    fn word(&mut self, first: u8) {
        let start = self.at - 1;
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./=+,:{}[]!".contains(byte);
        if !plain(&first) {
            self.expects_command = false;
            return self.in_word(first);
        }
        while self.peek().is_some_and(|byte| plain(&byte)) {
            self.at += 1;
        }
        let word = self.text.get(start..self.at).unwrap_or_default();
        let ends = self.peek().is_none_or(|byte| b" \t\n;&|()<>".contains(&byte));
        let was_command = std::mem::replace(&mut self.expects_command, false);
        if ends {
            self.keyword(word, was_command);
        }
    }

    fn keyword(&mut self, word: &[u8], in_command_place: bool) {
        if word == b"in" && self.open.last() == Some(&Open::Case) {
            self.open.pop();
            self.open.push(Open::Patterns);
            self.expects_command = true;
            return;
        }
        if !in_command_place {
            return;
        }
        match (word, self.open.last()) {
            (b"if", _) => self.open.push(Open::Until("fi")),
            (b"while" | b"until" | b"for" | b"select", _) => self.open.push(Open::Until("done")),
            (b"{", _) => self.open.push(Open::Until("}")),
            (b"case", _) => self.open.push(Open::Case),
            (b"esac", Some(Open::Patterns)) => {
                self.open.pop();
            }
            (word, Some(Open::Until(end))) if word == end.as_bytes() => {
                self.open.pop();
            }
            _ => {}
        }
        let leads = [&b"if"[..], b"then", b"else", b"elif", b"do", b"while", b"until", b"{", b"!"];
        // `for` and `case` are followed by words.
        self.expects_command = leads.contains(&word) || word == b"time";
    }

    /// `<<WORD`, `<<-WORD`; `<<<` announces none.
    fn announce_here_document(&mut self) {
        self.at += 1;
        if self.peek() == Some(b'<') {
            self.at += 1;
            return;
        }
        let strips_tabs = self.peek() == Some(b'-');
        self.at += usize::from(strips_tabs);
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
        let mut delimiter = Vec::new();
        let mut quote = None;
        while let Some(byte) = self.peek() {
            if quote.is_none() && b" \t\n;&|()<>".contains(&byte) {
                break;
            }
            self.at += 1;
            match byte {
                b'\'' | b'"' if quote == Some(byte) => quote = None,
                b'\'' | b'"' if quote.is_none() => quote = Some(byte),
                b'\\' if quote.is_none() => delimiter.extend(self.next()),
                _ => delimiter.push(byte),
            }
        }
        self.here.push(HereDocument { delimiter, strips_tabs });
    }

    /// Steps over what was announced in the line that ends here. False if an end is missing.
    fn skip_here_documents(&mut self) -> bool {
        for document in std::mem::take(&mut self.here) {
            loop {
                let rest = self.text.get(self.at..).unwrap_or_default();
                if rest.is_empty() {
                    return false;
                }
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                let line = rest.get(..end).unwrap_or_default();
                self.at += (end + 1).min(rest.len());
                let tabs = line.iter().take_while(|byte| **byte == b'\t').count();
                let skipped = if document.strips_tabs { tabs } else { 0 };
                if line.get(skipped..) == Some(document.delimiter.as_slice()) {
                    break;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_is_sent() {
        for text in [
            "",
            "ls -l",
            "echo 'a b' \"c d\" `e`",
            "echo $(ls $(pwd)) ${x:-\"}\"}",
            "if true; then echo if; fi",
            "for i in 1 2; do echo $i; done",
            "while read x; do echo; done < f",
            "case $x in a) echo a;; b|c) echo b;; esac",
            "case $x in (a) echo a;; esac; echo b",
            "{ echo a; }",
            "(cd /; ls)",
            "f() { echo x; }",
            "cat <<EOF\nit's\nEOF",
            "cat <<-'E F' | wc\n\ttext\n\tE F",
            "cat <<A <<B\na\nA\nb\nB\necho c",
            "cat <<<word",
            "echo a # it's",
            "echo 'it'\\''s'",
            "echo \\'",
            "a && b || c",
            "sleep 1 &",
            "echo if then do case {",
            "echo done",
            "ls | wc -l",
            "echo $((1 + (2 * 3)))",
            "echo \"it's\"",
            "[ -f x ] && echo y",
            "x={a,b}",
            "echo a \\\n b",
            "! true",
            "}",
            "fi",
            ")",
        ] {
            assert!(is_complete(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn what_goes_on_is_waited_for() {
        for text in [
            "echo 'a",
            "echo \"a",
            "echo `a",
            "echo $(a",
            "echo ${a",
            "echo $((1 + ",
            "echo \"$(echo 'a",
            "if true",
            "if true; then echo fi",
            "for i in 1 2",
            "for i in 1 2; do echo done",
            "while true; do",
            "case $x in",
            "case $x in a) echo esac;;",
            "{ echo a",
            "(cd /",
            "f() {",
            "cat <<EOF",
            "cat <<EOF\ntext\nEOFX",
            "a &&",
            "a ||",
            "a |",
            "a \\",
            "if a; then { b; }",
        ] {
            assert!(!is_complete(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn no_bytes_are_too_odd_to_be_looked_at() {
        let bytes: Vec<u8> = (0..=255).collect();
        for start in 0..bytes.len() {
            is_complete(&bytes[start..]);
        }
        is_complete("(".repeat(1 << 20).as_bytes());
    }
}
