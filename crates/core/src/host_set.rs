//! Sets of hosts: `web[01-40,50]`, groups, several by comma; expanded into names.

use std::collections::BTreeSet;

use crate::escape::escape_bounded;
use crate::limits::{HOST_SET_BYTES_MAX, HOST_SET_GROUP_DEPTH_MAX, HOST_SET_NAMES_MAX};

/// Most digits of a number in brackets.
const DIGITS_MAX: usize = 18;

/// Why a set can't be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("host set \"{part}\": {problem}")]
pub struct HostSetError {
    /// The part of the set that is wrong, escaped and bounded.
    pub part: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing stands between two commas, or at all.
    #[error("there is no name")]
    Empty,
    /// A bracket without its other.
    #[error("a bracket is not closed")]
    OpenBracket,
    /// A bracket that closes none.
    #[error("a bracket closes none")]
    ExtraBracket,
    /// Not a number or a range of them.
    #[error("\"{0}\" is not a number or a range such as 01-40")]
    Range(String),
    /// The end is before the start.
    #[error("the range \"{0}\" ends before it starts")]
    Backwards(String),
    /// More names than [`HOST_SET_NAMES_MAX`].
    #[error("more than {HOST_SET_NAMES_MAX} names")]
    TooMany,
    /// More text than [`HOST_SET_BYTES_MAX`].
    #[error("more than {HOST_SET_BYTES_MAX} bytes")]
    TooLong,
    /// No such group.
    #[error("there is no such group")]
    NoGroup,
    /// Groups that contain groups, too deep; maybe each other.
    #[error("groups are nested more than {HOST_SET_GROUP_DEPTH_MAX} deep")]
    TooDeep,
}

/// The names of a set in the order in which they stand, each once.
///
/// A part is a text with any number of brackets, of which every combination is a name, the last
/// bracket counting fastest; a number that starts with 0 has as many digits as are written
/// (`[08-10]` is 08, 09, 10). An IPv6 address in brackets stays as it is. What a name means is
/// for [`crate::target::Target::parse`] to say. `@NAME` is the set that `group` gives for it.
///
/// # Errors
/// The part that is malformed, an unknown group, or a limit exceeded. Nothing is expanded beyond
/// the limit before it is noticed.
pub fn expand(
    set: &str,
    group: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, HostSetError> {
    let mut names = Names::default();
    names.add_set(set, group, 0)?;
    Ok(names.in_order)
}

#[derive(Default)]
struct Names {
    in_order: Vec<String>,
    seen: BTreeSet<String>,
}

impl Names {
    fn add_set(
        &mut self,
        set: &str,
        group: &dyn Fn(&str) -> Option<String>,
        depth: usize,
    ) -> Result<(), HostSetError> {
        let wrong = |part: &str, problem| HostSetError {
            part: escape_bounded(part.as_bytes(), 100),
            problem,
        };
        if set.len() > HOST_SET_BYTES_MAX {
            return Err(wrong(set, Problem::TooLong));
        }
        for part in split_outside_brackets(set) {
            if let Some(name) = part.strip_prefix('@') {
                if depth >= HOST_SET_GROUP_DEPTH_MAX {
                    return Err(wrong(part, Problem::TooDeep));
                }
                let members = group(name).ok_or_else(|| wrong(part, Problem::NoGroup))?;
                self.add_set(&members, group, depth + 1)?;
            } else {
                self.add_part(part).map_err(|problem| wrong(part, problem))?;
            }
        }
        Ok(())
    }

    fn add_part(&mut self, part: &str) -> Result<(), Problem> {
        if part.is_empty() {
            return Err(Problem::Empty);
        }
        let pieces = pieces(part)?;
        let combinations = pieces
            .iter()
            .try_fold(1_usize, |product, piece| product.checked_mul(piece.count()?))
            .filter(|&count| count <= HOST_SET_NAMES_MAX)
            .ok_or(Problem::TooMany)?;
        for index in 0..combinations {
            let name = combination(&pieces, index);
            if self.seen.insert(name.clone()) {
                if self.in_order.len() >= HOST_SET_NAMES_MAX {
                    return Err(Problem::TooMany);
                }
                self.in_order.push(name);
            }
        }
        Ok(())
    }
}

/// A piece of a part.
enum Piece<'a> {
    Text(&'a str),
    Numbers(Vec<Range>),
}

/// A range of numbers, its ends included; `first <= last`.
struct Range {
    first: u64,
    last: u64,
    digits_min: usize,
}

impl Piece<'_> {
    /// How many texts it stands for; `None` if there are too many to count.
    fn count(&self) -> Option<usize> {
        match self {
            Self::Text(_) => Some(1),
            Self::Numbers(ranges) => ranges.iter().try_fold(0_usize, |sum, range| {
                sum.checked_add(usize::try_from(range.last - range.first).ok()?.checked_add(1)?)
            }),
        }
    }
}

/// The name at this index, the last piece counting fastest.
fn combination(pieces: &[Piece<'_>], index: usize) -> String {
    let mut rest = index;
    let mut texts = Vec::with_capacity(pieces.len());
    for piece in pieces.iter().rev() {
        match piece {
            Piece::Text(text) => texts.push((*text).to_owned()),
            Piece::Numbers(ranges) => {
                let count = piece.count().unwrap_or(1).max(1);
                texts.push(number_at(ranges, rest % count));
                rest /= count;
            }
        }
    }
    texts.reverse();
    texts.concat()
}

fn number_at(ranges: &[Range], index: usize) -> String {
    let mut left = u64::try_from(index).unwrap_or(u64::MAX);
    for range in ranges {
        let size = range.last - range.first + 1;
        if left < size {
            return format!("{:0width$}", range.first + left, width = range.digits_min);
        }
        left -= size;
    }
    String::new()
}

/// The parts between commas that are not in brackets.
fn split_outside_brackets(set: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    set.split(|character| {
        match character {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    })
    .collect()
}

fn pieces(part: &str) -> Result<Vec<Piece<'_>>, Problem> {
    let mut pieces = Vec::new();
    let mut rest = part;
    while let Some((text, after)) = rest.split_once('[') {
        let (inside, tail) = after.split_once(']').ok_or(Problem::OpenBracket)?;
        if text.contains(']') {
            return Err(Problem::ExtraBracket);
        }
        if inside.contains(':') {
            // An address: only at the start of a host, where `Target` checks it.
            let bracketed = rest.len() - tail.len();
            let (address, _) = rest.split_at(bracketed);
            pieces.push(Piece::Text(address));
        } else {
            if inside.contains('[') {
                return Err(Problem::OpenBracket);
            }
            pieces.push(Piece::Text(text));
            pieces.push(Piece::Numbers(
                inside.split(',').map(parse_range).collect::<Result<_, _>>()?,
            ));
        }
        rest = tail;
    }
    if rest.contains(']') {
        return Err(Problem::ExtraBracket);
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

fn parse_range(text: &str) -> Result<Range, Problem> {
    let malformed = || Problem::Range(escape_bounded(text.as_bytes(), 50));
    let number = |digits: &str| {
        let valid = !digits.is_empty()
            && digits.len() <= DIGITS_MAX
            && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u64>().ok().filter(|_| valid).ok_or_else(malformed)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = Range {
        first: number(first)?,
        last: number(last)?,
        digits_min: if first.starts_with('0') { first.len() } else { 1 },
    };
    // `[1-05]`: whether 1 has two digits is anybody's guess.
    if last.starts_with('0') && last.len() != first.len() {
        return Err(malformed());
    }
    if range.first > range.last {
        return Err(Problem::Backwards(text.into()));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(set: &str) -> Result<Vec<String>, Problem> {
        let group = |name: &str| match name {
            "web" => Some("web[1-2],@db".to_owned()),
            "db" => Some("db".to_owned()),
            "loop" => Some("@loop".to_owned()),
            "7" => Some("@6".to_owned()),
            "6" => Some("@5".to_owned()),
            "5" => Some("@4".to_owned()),
            "4" => Some("@3".to_owned()),
            "3" => Some("@2".to_owned()),
            "2" => Some("@db".to_owned()),
            _ => None,
        };
        expand(set, &group).map_err(|error| error.problem)
    }

    #[test]
    fn sets_expand_in_order() {
        for (set, expected) in [
            ("web", vec!["web"]),
            ("web[1-3]", vec!["web1", "web2", "web3"]),
            ("web[01-03,50]", vec!["web01", "web02", "web03", "web50"]),
            ("[08-11]", vec!["08", "09", "10", "11"]),
            ("[0-1]", vec!["0", "1"]),
            ("[099-101]", vec!["099", "100", "101"]),
            ("r[1-2]n[1-2].x", vec!["r1n1.x", "r1n2.x", "r2n1.x", "r2n2.x"]),
            ("b,a,b", vec!["b", "a"]),
            ("w[2,1,2]", vec!["w2", "w1"]),
            ("alice@web[1-2]:2327,db", vec!["alice@web1:2327", "alice@web2:2327", "db"]),
            ("[::1],alice@[2001:db8::1]:22", vec!["[::1]", "alice@[2001:db8::1]:22"]),
            ("@web,x", vec!["web1", "web2", "db", "x"]),
            ("@7", vec!["db"]),
        ] {
            assert_eq!(names(set).unwrap(), expected, "{set}");
        }
    }

    #[test]
    fn what_is_no_set_is_told_why() {
        let range = |text: &str| Problem::Range(text.into());
        for (set, expected) in [
            ("", Problem::Empty),
            ("a,", Problem::Empty),
            ("a,,b", Problem::Empty),
            ("web[1-2", Problem::OpenBracket),
            ("web[[1]]", Problem::OpenBracket),
            ("web1]", Problem::ExtraBracket),
            ("a]b[1]", Problem::ExtraBracket),
            ("web[]", range("")),
            ("web[1,]", range("")),
            ("web[a-b]", range("a-b")),
            ("web[1-2-3]", range("1-2-3")),
            ("web[-1]", range("-1")),
            ("web[+1]", range("+1")),
            ("web[1-05]", range("1-05")),
            ("web[1-1000000000000000000]", range("1-1000000000000000000")),
            ("web[3-1]", Problem::Backwards("3-1".into())),
            ("@none", Problem::NoGroup),
            ("@", Problem::NoGroup),
            ("@loop", Problem::TooDeep),
        ] {
            assert_eq!(names(set), Err(expected), "{set}");
        }
        let error = expand("a,web[x],b", &|_| None).unwrap_err().to_string();
        assert_eq!(error, "host set \"web[x]\": \"x\" is not a number or a range such as 01-40");
    }

    #[test]
    fn the_number_of_names_is_bounded_before_they_are_made() {
        assert_eq!(names("[1-65536]").unwrap().len(), HOST_SET_NAMES_MAX);
        assert_eq!(names("[0-65536]"), Err(Problem::TooMany));
        assert_eq!(names("r[1-256]n[1-256]").unwrap().len(), HOST_SET_NAMES_MAX);
        assert_eq!(names("r[1-256]n[0-256]"), Err(Problem::TooMany));
        assert_eq!(names("[1-65536],x"), Err(Problem::TooMany));
        assert_eq!(names("[1-65536],1").unwrap().len(), HOST_SET_NAMES_MAX);
        assert_eq!(names("[0-999999999999999999]"), Err(Problem::TooMany));
        let all = "[0-999999999999999999]".repeat(100);
        assert_eq!(names(&all), Err(Problem::TooMany));
    }

    #[test]
    fn the_text_is_bounded() {
        let text = "a".repeat(HOST_SET_BYTES_MAX);
        assert!(names(&text).is_ok());
        assert_eq!(names(&format!("{text}a")), Err(Problem::TooLong));
    }

    #[test]
    fn groups_nest_up_to_the_limit() {
        let nested = |depth: usize| {
            let group = move |name: &str| {
                let level: usize = name.parse().unwrap();
                Some(if level < depth { format!("@{}", level + 1) } else { "x".to_owned() })
            };
            expand("@1", &group).map_err(|error| error.problem)
        };
        assert_eq!(nested(HOST_SET_GROUP_DEPTH_MAX), Ok(vec!["x".to_owned()]));
        assert_eq!(nested(HOST_SET_GROUP_DEPTH_MAX + 1), Err(Problem::TooDeep));
    }

    proptest! {
        #[test]
        fn no_text_panics(set in "[a-b0-9\\[\\],:@-]{0,16}|.{0,16}") {
            if let Ok(names) = expand(&set, &|_| None) {
                prop_assert!(names.len() <= HOST_SET_NAMES_MAX);
                let distinct: BTreeSet<_> = names.iter().collect();
                prop_assert_eq!(distinct.len(), names.len());
            }
        }

        #[test]
        fn a_range_has_its_numbers(first in 0_u32..3000, size in 0_u32..50, width in 1_usize..6) {
            let start = format!("{first:0width$}");
            let end = format!("{:0w$}", first + size, w = start.len());
            let set = format!("n[{start}-{end}]");
            let expected: Vec<_> = (first..=first + size)
                .map(|number| if start.starts_with('0') {
                    format!("n{number:0width$}", width = start.len())
                } else {
                    format!("n{number}")
                })
                .collect();
            prop_assert_eq!(names(&set), Ok(expected));
        }
    }
}
