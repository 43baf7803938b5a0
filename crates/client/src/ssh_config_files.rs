//! Reads the user's ssh configuration from disk, with what it includes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use afar_core::limits::{SSH_CONFIG_BYTES_MAX, SSH_CONFIG_FILES_MAX};
use afar_core::ssh_config::{self, ConfigFile, HostSettings};
use afar_net::files;

use crate::error::Error;

/// Which ssh configuration is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SshConfig {
    /// `~/.ssh/config`, if it is there.
    #[default]
    User,
    /// This file, which must be there.
    File(PathBuf),
    /// None.
    None,
}

impl SshConfig {
    /// What the configuration says about a host, as the user typed its name.
    pub(crate) fn resolve(&self, host: &str, home: &Path) -> Result<HostSettings, Error> {
        let (path, required) = match self {
            Self::None => return Ok(HostSettings::default()),
            Self::User => (home.join(".ssh/config"), false),
            Self::File(path) => (path.clone(), true),
        };
        let bytes = match files::read_regular(&path, SSH_CONFIG_BYTES_MAX as u64) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() && !required => return Ok(HostSettings::default()),
            // `-F /dev/null` is how scripts say "none".
            Err(files::FileError::NotRegular { .. }) if path == Path::new("/dev/null") => {
                return Ok(HostSettings::default());
            }
            Err(error) => return Err(error.into()),
        };
        let file = ConfigFile { name: path.to_string_lossy().into_owned(), bytes };
        let mut load = |argument: &str, _from: &str| load_included(argument, home);
        Ok(ssh_config::resolve(host, &[file], &mut load)?)
    }
}

/// The files that the argument of an `Include` names (ssh_config(5)).
fn load_included(argument: &str, home: &Path) -> Result<Vec<ConfigFile>, String> {
    let pattern = match argument.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => home.join(".ssh").join(argument),
    };
    let mut loaded = Vec::new();
    for path in glob(&pattern) {
        match files::read_regular(&path, SSH_CONFIG_BYTES_MAX as u64) {
            Ok(bytes) => {
                loaded.push(ConfigFile { name: path.to_string_lossy().into_owned(), bytes });
            }
            // As in ssh, what is not there or no file is no fault of the one who includes it.
            Err(error) if error.is_not_found() => {}
            Err(files::FileError::NotRegular { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(loaded)
}

/// The paths that match, sorted, at most as many as may be included (glob(7)). Without a wildcard
/// that is the path itself, whether it exists or not.
fn glob(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let name = component.as_os_str();
        if !name.as_bytes().iter().any(|byte| b"*?[".contains(byte)) {
            for path in &mut found {
                path.push(name);
            }
            continue;
        }
        let mut matched: Vec<PathBuf> =
            found.iter().flat_map(|directory| matching(directory, name)).collect();
        matched.sort();
        matched.truncate(SSH_CONFIG_FILES_MAX.saturating_add(1));
        found = matched;
    }
    found
}

fn matching(directory: &Path, pattern: &OsStr) -> Vec<PathBuf> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let pattern = pattern.as_bytes();
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    names
        .filter(|name| {
            let hidden = name.as_bytes().starts_with(b".") && !pattern.starts_with(b".");
            !hidden && matches(name.as_bytes(), pattern)
        })
        .map(|name: OsString| directory.join(OsString::from_vec(name.into_vec())))
        .collect()
}

/// `*`, `?`, `[abc]`, `[a-z]`, `[!a]` and `\` before any of them (glob(7)).
///
/// Linear in the product of the two lengths: only the last star is ever tried again.
fn matches(name: &[u8], pattern: &[u8]) -> bool {
    let (mut name_at, mut pattern_at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = name.get(name_at) {
        let rest = pattern.get(pattern_at..).unwrap_or_default();
        if rest.first() == Some(&b'*') {
            star = Some((pattern_at, name_at));
            pattern_at += 1;
            continue;
        }
        if let Some(used) = match_one(*byte, rest) {
            name_at += 1;
            pattern_at += used;
            continue;
        }
        let Some((star_at, from)) = star else { return false };
        star = Some((star_at, from + 1));
        name_at = from + 1;
        pattern_at = star_at + 1;
    }
    pattern.get(pattern_at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

/// How many bytes of the pattern the byte matches; `None` if it does not.
fn match_one(byte: u8, pattern: &[u8]) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', rest @ ..] => match_class(byte, rest),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// `rest` is what follows the bracket. A bracket that is never closed stands for itself.
fn match_class(byte: u8, rest: &[u8]) -> Option<usize> {
    let negated = matches!(rest, [b'!' | b'^', ..]);
    let start = usize::from(negated);
    let body = rest.get(start..).unwrap_or_default();
    // A closing bracket that comes first is a member.
    let Some(end) = body.iter().skip(1).position(|byte| *byte == b']').map(|at| at + 1) else {
        return (byte == b'[').then_some(1);
    };
    let mut members = body.get(..end).unwrap_or_default();
    let mut found = false;
    while let Some((first, after)) = members.split_first() {
        if let [b'-', last, after @ ..] = after {
            found |= (*first..=*last).contains(&byte);
            members = after;
        } else {
            found |= *first == byte;
            members = after;
        }
    }
    (found != negated).then_some(1 + start + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_as_glob_does() {
        let cases = [
            ("a.conf", "*.conf", true),
            ("a.conf", "*", true),
            ("a.conf", "?.conf", true),
            ("ab.conf", "?.conf", false),
            ("a.confx", "*.conf", false),
            ("b1", "[a-c][!0]", true),
            ("b0", "[a-c][!0]", false),
            ("]", "[]]", true),
            ("a*b", "a\\*b", true),
            ("axb", "a\\*b", false),
            ("[x", "[x", true),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "*a*a*a*a*a*a*a*a*c", false),
            ("", "*", true),
            ("", "?", false),
        ];
        for (name, pattern, expected) in cases {
            assert_eq!(matches(name.as_bytes(), pattern.as_bytes()), expected, "{name} {pattern}");
        }
    }

    #[test]
    fn includes_are_read_in_order_and_hidden_or_missing_files_are_not() {
        let home = tempfile::tempdir().unwrap();
        let ssh = home.path().join(".ssh");
        std::fs::create_dir_all(ssh.join("conf.d")).unwrap();
        std::fs::write(ssh.join("config"), "Include conf.d/* missing\nHost *\n User last\n")
            .unwrap();
        std::fs::write(ssh.join("conf.d/20"), "Host web\n User second\n HostName b\n").unwrap();
        std::fs::write(ssh.join("conf.d/10"), "Host web\n User first\n").unwrap();
        std::fs::write(ssh.join("conf.d/.hidden"), "User hidden\n").unwrap();
        let settings = SshConfig::User.resolve("web", home.path()).unwrap();
        assert_eq!(settings.user.as_deref(), Some("first"));
        assert_eq!(settings.host_name.as_deref(), Some("b"));
        let settings = SshConfig::User.resolve("other", home.path()).unwrap();
        assert_eq!(settings.user.as_deref(), Some("last"));
    }

    #[test]
    fn a_missing_file_is_an_error_only_if_it_was_asked_for() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(SshConfig::User.resolve("h", home.path()).unwrap(), HostSettings::default());
        let missing = SshConfig::File(home.path().join("missing"));
        assert!(missing.resolve("h", home.path()).is_err());
        let null = SshConfig::File("/dev/null".into());
        assert_eq!(null.resolve("h", home.path()).unwrap(), HostSettings::default());
    }
}
