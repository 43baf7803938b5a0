//! The escapes of a terminal: `~` at the beginning of a line, and what it asks for.

/// What the person at the keys asks us for, and not the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Escape {
    /// Leave.
    Leave,
    /// Leave, and let the job go on.
    Detach,
    /// Stop this program, as Ctrl-Z does elsewhere.
    Suspend,
    /// Say which escapes there are.
    Help,
}

/// What was typed, with the escapes in their places.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// For the job.
    Keys(Vec<u8>),
    /// For us.
    Escape(Escape),
}

/// Finds the escapes in what is typed. Any split of the same keys gives the same.
#[derive(Debug)]
pub(super) struct Escapes {
    /// `None` iff there are none.
    character: Option<u8>,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    LineStart,
    WithinLine,
    /// Behind the escape character, which was not passed on yet.
    Escape,
}

impl Escapes {
    pub(super) fn new(EscapeCharacter(character): EscapeCharacter) -> Self {
        Self { character, at: At::LineStart }
    }

    /// Takes what was typed.
    pub(super) fn take(&mut self, typed: &[u8]) -> Vec<Typed> {
        let Some(character) = self.character else { return vec![Typed::Keys(typed.to_vec())] };
        let mut found = Vec::new();
        let mut keys = Vec::with_capacity(typed.len() + 1);
        for &key in typed {
            let line_ends = key == b'\r' || key == b'\n';
            if self.at == At::LineStart && key == character {
                self.at = At::Escape;
                continue;
            }
            if self.at == At::Escape {
                let escape = match key {
                    b'.' => Some(Escape::Leave),
                    b'd' => Some(Escape::Detach),
                    b'?' => Some(Escape::Help),
                    // Ctrl-Z
                    0x1a => Some(Escape::Suspend),
                    _ => None,
                };
                if let Some(escape) = escape {
                    if !keys.is_empty() {
                        found.push(Typed::Keys(std::mem::take(&mut keys)));
                    }
                    found.push(Typed::Escape(escape));
                    self.at = At::LineStart;
                    continue;
                }
                keys.push(character);
                if key == character {
                    // Twice it is once itself.
                    self.at = At::WithinLine;
                    continue;
                }
            }
            keys.push(key);
            self.at = if line_ends { At::LineStart } else { At::WithinLine };
        }
        if !keys.is_empty() {
            found.push(Typed::Keys(keys));
        }
        found
    }
}

/// What begins an escape; nothing, if it is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EscapeCharacter(pub(crate) Option<u8>);

impl EscapeCharacter {
    /// That of ssh.
    pub(crate) const TILDE: Self = Self(Some(b'~'));

    /// As it is given on the command line: one character, `^X`, or `none`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.as_bytes() {
            b"none" => Ok(Self(None)),
            [character] if character.is_ascii() => Ok(Self(Some(*character))),
            [b'^', letter @ (b'@'..=b'_' | b'a'..=b'z')] => {
                Ok(Self(Some(letter.to_ascii_uppercase() & 0x1f)))
            }
            _ => Err("one character is wanted, such as ~ or ^], or none".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(typed: &[&str]) -> Vec<Typed> {
        let mut escapes = Escapes::new(EscapeCharacter::TILDE);
        let mut all: Vec<Typed> = Vec::new();
        for typed in typed.iter().flat_map(|typed| escapes.take(typed.as_bytes())) {
            match (all.last_mut(), typed) {
                (Some(Typed::Keys(before)), Typed::Keys(keys)) => before.extend(keys),
                (_, typed) => all.push(typed),
            }
        }
        all
    }

    fn keys(keys: &str) -> Typed {
        Typed::Keys(keys.as_bytes().to_vec())
    }

    #[test]
    fn escapes_are_found_at_the_beginning_of_a_line_at_any_split() {
        for (typed, expected) in [
            ("~.", vec![Typed::Escape(Escape::Leave)]),
            ("ls\r~d", vec![keys("ls\r"), Typed::Escape(Escape::Detach)]),
            ("a\n~?b", vec![keys("a\n"), Typed::Escape(Escape::Help), keys("b")]),
            ("~\x1als\r", vec![Typed::Escape(Escape::Suspend), keys("ls\r")]),
            ("~?~.", vec![Typed::Escape(Escape::Help), Typed::Escape(Escape::Leave)]),
            ("a~.", vec![keys("a~.")]),
            ("~~.", vec![keys("~.")]),
            ("~x~.", vec![keys("~x~.")]),
            ("~\r~.", vec![keys("~\r"), Typed::Escape(Escape::Leave)]),
            ("\u{e9}~.", vec![keys("\u{e9}~.")]),
        ] {
            assert_eq!(take(&[typed]), expected, "{typed:?}");
            let single: Vec<String> = typed.chars().map(String::from).collect();
            let single: Vec<&str> = single.iter().map(String::as_str).collect();
            assert_eq!(take(&single), expected, "{typed:?}, a key at a time");
        }
    }

    #[test]
    fn without_a_character_there_are_none() {
        let mut escapes = Escapes::new(EscapeCharacter(None));
        assert_eq!(escapes.take(b"~.\r~."), [keys("~.\r~.")]);
    }

    #[test]
    fn the_character_can_be_chosen() {
        for (text, character) in
            [("~", Some(b'~')), ("none", None), ("^]", Some(0x1d)), ("^a", Some(1))]
        {
            assert_eq!(EscapeCharacter::parse(text), Ok(EscapeCharacter(character)), "{text}");
        }
        for text in ["", "~~", "no", "\u{e9}", "^1"] {
            assert!(EscapeCharacter::parse(text).is_err(), "{text}");
        }
    }
}
