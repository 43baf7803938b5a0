//! Patterns of OpenSSH (ssh_config(5), PATTERNS): `*`, `?`, lists with `!`.

/// What a list of patterns says about a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// No pattern matches.
    No,
    /// A pattern matches, and no negated one does.
    Yes,
    /// A negated pattern matches; what else matches does not count.
    Negated,
}

/// Whether letters that differ only in case are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    Exact,
    Ignored,
}

/// Whether the whole text matches, where `*` is any run of bytes and `?` any one byte.
///
/// It goes back to the last `*` only, so its time is at most the product of the two lengths: a
/// pattern such as `*a*a*a*a*b` must not stop a server.
pub(crate) fn matches(text: &[u8], pattern: &[u8], case: Case) -> bool {
    let same = |a: u8, b: u8| match case {
        Case::Exact => a == b,
        Case::Ignored => a.eq_ignore_ascii_case(&b),
    };
    let (mut at, mut next) = (0, 0);
    // The pattern's position after the last star, and how far that star reaches in the text.
    let mut star: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(next), text.get(at)) {
            (Some(b'*'), _) => {
                next += 1;
                star = Some((next, at));
            }
            (Some(&wanted), Some(&byte)) if wanted == b'?' || same(wanted, byte) => {
                next += 1;
                at += 1;
            }
            (None, None) => return true,
            _ => match star {
                Some((after_star, reach)) if reach < text.len() => {
                    star = Some((after_star, reach + 1));
                    next = after_star;
                    at = reach + 1;
                }
                _ => return false,
            },
        }
    }
}

/// What a comma-separated list of patterns says about the text; letters of either case are the
/// same.
pub(crate) fn match_list(text: &[u8], list: &[u8]) -> Listed {
    let mut listed = Listed::No;
    for item in list.split(|&byte| byte == b',') {
        let (pattern, negated) = item.strip_prefix(b"!").map_or((item, false), |item| (item, true));
        if matches(text, pattern, Case::Ignored) {
            if negated {
                return Listed::Negated;
            }
            listed = Listed::Yes;
        }
    }
    listed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition itself: slow, and plainly right.
    fn by_definition(text: &[u8], pattern: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| by_definition(&text[skip..], rest)),
            Some((&wanted, rest)) => text.split_first().is_some_and(|(&byte, tail)| {
                (wanted == b'?' || wanted == byte) && by_definition(tail, rest)
            }),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(text in "[ab]{0,8}", pattern in "[ab*?]{0,8}") {
            prop_assert_eq!(
                matches(text.as_bytes(), pattern.as_bytes(), Case::Exact),
                by_definition(text.as_bytes(), pattern.as_bytes())
            );
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let text = vec![b'a'; 4096];
        let mut pattern = b"*a".repeat(200);
        pattern.push(b'b');
        assert!(!matches(&text, &pattern, Case::Exact));
    }

    #[test]
    fn a_negation_beats_whatever_else_matches() {
        assert_eq!(match_list(b"web1.example", b"*.example,!web1.*"), Listed::Negated);
        assert_eq!(match_list(b"web1.example", b"!web1.*,*.example"), Listed::Negated);
        assert_eq!(match_list(b"WEB2.example", b"!web1.*,*.EXAMPLE"), Listed::Yes);
        assert_eq!(match_list(b"other", b"!web1.*,*.example"), Listed::No);
        assert_eq!(match_list(b"other", b"!web1"), Listed::No);
        assert_eq!(match_list(b"x", b""), Listed::No);
    }

    #[test]
    fn case_matters_only_where_it_is_asked_for() {
        assert!(matches(b"Web", b"w?B", Case::Ignored));
        assert!(!matches(b"Web", b"w?B", Case::Exact));
    }
}
