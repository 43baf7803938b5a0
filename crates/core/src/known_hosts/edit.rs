//! Changing a `known_hosts` file: a line to append, and the keys of a name replaced.

use super::{Hosts, Line, Marker, TooLarge, read_line};
use crate::key::PublicKeyBlob;
use crate::limits::{HOST_BYTES_MAX, KNOWN_HOSTS_BYTES_MAX};
use crate::text;

/// A file after [`replace`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Its new contents.
    pub bytes: Vec<u8>,
    /// The lines, by their old numbers, that were removed or lost the name.
    pub changed_lines: Vec<usize>,
    /// Whether the key was there already, so that no line was added.
    pub was_there: bool,
}

/// Why a file can't be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceError {
    /// The name would not be read back as itself.
    #[error("\"{0}\" can't stand in known_hosts")]
    Name(String),
    /// A line with another key of this type matches the name by a pattern, and speaks for other
    /// hosts too.
    #[error("line {line} names this host by a pattern: edit it by hand")]
    Pattern {
        /// The line.
        line: usize,
    },
    /// The file is too large to be read.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// A line, with its end, that makes the key known for the name: to append to a file that is empty
/// or ends with a line end. The name stands in plain text and in lower case.
///
/// # Errors
/// A name that holds blanks, commas, wildcards or the like.
pub fn format_line(name: &str, key: &PublicKeyBlob) -> Result<String, ReplaceError> {
    // Room for brackets and a port around the longest host.
    let valid = !name.is_empty()
        && name.len() <= HOST_BYTES_MAX + "[]:65535".len()
        && !name.starts_with(['@', '|', '#', '!'])
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"*?,\\\"".contains(&byte));
    if !valid {
        return Err(ReplaceError::Name(crate::escape::escape_bounded(name.as_bytes(), 80)));
    }
    Ok(format!("{} {}\n", name.to_ascii_lowercase(), key.to_fields()))
}

/// The file with this key as the name's only one of its type.
///
/// Lines with another key of the type lose the name: from a plain list it is taken out, and a
/// line whose only name it was goes. Keys of other types, lines with a marker, comments and
/// malformed lines stay, byte for byte.
///
/// # Errors
/// A name that can't stand in the file, a line that would have to be split by hand, or a file
/// that is too large.
pub fn replace(file: &[u8], name: &str, key: &PublicKeyBlob) -> Result<Replaced, ReplaceError> {
    let new_line = format_line(name, key)?;
    if file.len() > KNOWN_HOSTS_BYTES_MAX {
        return Err(TooLarge { file: "known_hosts".into() }.into());
    }
    let mut replaced = Replaced {
        bytes: Vec::with_capacity(file.len()),
        changed_lines: Vec::new(),
        was_there: false,
    };
    let whole_lines = file.split_inclusive(|&byte| byte == b'\n');
    for ((number, text), whole) in text::lines(file).zip(whole_lines) {
        match fate(text, name, key) {
            Fate::Stays => replaced.bytes.extend_from_slice(whole),
            Fate::Holds => {
                replaced.was_there = true;
                replaced.bytes.extend_from_slice(whole);
            }
            Fate::Goes => replaced.changed_lines.push(number),
            Fate::Shrinks(hosts) => {
                replaced.changed_lines.push(number);
                let field_end = text.len() - after_hosts(text).len();
                let tail = whole.get(field_end..).unwrap_or_default();
                replaced.bytes.extend_from_slice(&hosts);
                replaced.bytes.extend_from_slice(tail);
            }
            Fate::Undecided => return Err(ReplaceError::Pattern { line: number }),
        }
    }
    if !replaced.was_there {
        if replaced.bytes.last().is_some_and(|&byte| byte != b'\n') {
            replaced.bytes.push(b'\n');
        }
        replaced.bytes.extend_from_slice(new_line.as_bytes());
    }
    Ok(replaced)
}

/// What becomes of a line.
enum Fate {
    Stays,
    /// It makes the key known for the name already.
    Holds,
    Goes,
    /// It keeps these names.
    Shrinks(Vec<u8>),
    Undecided,
}

fn fate(text: &[u8], name: &str, key: &PublicKeyBlob) -> Fate {
    let Ok(Some(line)) = read_line(text) else {
        return Fate::Stays;
    };
    if line.marker != Marker::Host || !line.hosts.matches(name) {
        return Fate::Stays;
    }
    match line.key() {
        Ok(listed) if listed == *key => Fate::Holds,
        Ok(listed) if listed.algorithm() == key.algorithm() => without(&line, name),
        _ => Fate::Stays,
    }
}

/// The line without the name, which it matches.
fn without(line: &Line<'_>, name: &str) -> Fate {
    let Hosts::List(list) = line.hosts else {
        return Fate::Goes;
    };
    let others: Vec<&[u8]> = list
        .split(|&byte| byte == b',')
        .filter(|item| !item.is_empty() && !item.eq_ignore_ascii_case(name.as_bytes()))
        .collect();
    let rest = others.join(&b',');
    // A name that would turn the line into one of another kind when it comes first is nobody's.
    let misread = rest.first().is_some_and(|first| b"@|#".contains(first));
    if misread || Hosts::List(&rest).matches(name) {
        return Fate::Undecided;
    }
    if others.is_empty() { Fate::Goes } else { Fate::Shrinks(rest) }
}

/// What follows the names on a line without a marker.
fn after_hosts(text: &[u8]) -> &[u8] {
    let trimmed = text::trim_start(text);
    let end = trimmed.iter().position(|&byte| text::is_blank(byte)).unwrap_or(trimmed.len());
    trimmed.get(end..).unwrap_or_default()
}
