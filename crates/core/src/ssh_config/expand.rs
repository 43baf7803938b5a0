//! `~`, `%` tokens and `${…}` in the values of ssh_config (ssh_config(5), TOKENS).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::escape::escape_bounded;

/// Longest path after expansion, in bytes (`PATH_MAX` of Linux).
const PATH_BYTES_MAX: usize = 4096;

/// What the tokens stand for.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    /// `~` and `%d`: the local user's home.
    pub home: &'a Path,
    /// `%u`: the local user's name.
    pub local_user: &'a OsStr,
    /// `%i`: the local user's id.
    pub local_uid: u32,
    /// `%r`: the remote user's name.
    pub remote_user: &'a str,
    /// `%h`: the host to connect to.
    pub host: &'a str,
    /// `%n`: the host as the user typed it.
    pub typed_host: &'a str,
    /// `%p`: sshd's port.
    pub port: u16,
    /// `%k`: the `HostKeyAlias`, or else the host as the user typed it.
    pub host_key_alias: &'a str,
    /// `${NAME}`.
    pub variable: &'a dyn Fn(&OsStr) -> Option<OsString>,
}

/// Why a path can't be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A token that is not known here.
    #[error("the path has the unknown token %{0}")]
    Token(String),
    /// The home of another user.
    #[error("the home of another user can't be looked up: \"{0}\"")]
    OtherHome(String),
    /// `${` without a name and `}`.
    #[error("the path has a ${{ that is not closed")]
    OpenVariable,
    /// A variable that is not set, which ssh refuses too.
    #[error("the path needs the variable {0}, which is not set")]
    Unset(String),
    /// The result is too long for a path.
    #[error("the path has more than {PATH_BYTES_MAX} bytes")]
    TooLong,
}

/// The path of an `IdentityFile`, `IdentityAgent` or `UserKnownHostsFile`, expanded once: what a
/// token yields is not expanded again. A relative path stays relative, to the working directory,
/// as in ssh.
///
/// # Errors
/// A token, home or variable that can't be expanded, or a result that is too long.
pub fn expand_path(raw: &Path, tokens: &Tokens<'_>) -> Result<PathBuf, ExpandError> {
    let raw = raw.as_os_str().as_bytes();
    let mut out = Vec::new();
    let mut rest = raw;
    if let Some(after) = raw.strip_prefix(b"~") {
        if !(after.is_empty() || after.starts_with(b"/")) {
            return Err(ExpandError::OtherHome(escape_bounded(raw, 80)));
        }
        out.extend_from_slice(tokens.home.as_os_str().as_bytes());
        rest = after;
    }
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', after) => {
                let (&token, after) =
                    after.split_first().ok_or_else(|| ExpandError::Token(String::new()))?;
                expand_token(token, tokens, &mut out)?;
                after
            }
            (b'$', [b'{', after @ ..]) => expand_variable(after, tokens, &mut out)?,
            _ => {
                out.push(byte);
                after
            }
        };
        if out.len() > PATH_BYTES_MAX {
            return Err(ExpandError::TooLong);
        }
    }
    Ok(PathBuf::from(OsString::from_vec(out)))
}

/// A `HostName`: `%h` is the host as typed, `%%` a percent sign; `None` for any other token.
pub(super) fn expand_host_name(raw: &str, typed_host: &str) -> Option<String> {
    let mut out = String::new();
    let mut characters = raw.chars();
    while let Some(character) = characters.next() {
        match character {
            '%' => match characters.next()? {
                'h' => out.push_str(typed_host),
                '%' => out.push('%'),
                _ => return None,
            },
            _ => out.push(character),
        }
    }
    Some(out)
}

fn expand_token(token: u8, tokens: &Tokens<'_>, out: &mut Vec<u8>) -> Result<(), ExpandError> {
    match token {
        b'%' => out.push(b'%'),
        b'd' => out.extend_from_slice(tokens.home.as_os_str().as_bytes()),
        b'u' => out.extend_from_slice(tokens.local_user.as_bytes()),
        b'i' => out.extend_from_slice(tokens.local_uid.to_string().as_bytes()),
        b'r' => out.extend_from_slice(tokens.remote_user.as_bytes()),
        b'h' => out.extend_from_slice(tokens.host.as_bytes()),
        b'n' => out.extend_from_slice(tokens.typed_host.as_bytes()),
        b'p' => out.extend_from_slice(tokens.port.to_string().as_bytes()),
        b'k' => out.extend_from_slice(tokens.host_key_alias.as_bytes()),
        _ => return Err(ExpandError::Token(escape_bounded(&[token], 8))),
    }
    Ok(())
}

fn expand_variable<'a>(
    text: &'a [u8],
    tokens: &Tokens<'_>,
    out: &mut Vec<u8>,
) -> Result<&'a [u8], ExpandError> {
    let end = text.iter().position(|&byte| byte == b'}').ok_or(ExpandError::OpenVariable)?;
    let (name, after) = text.split_at(end);
    if name.is_empty() {
        return Err(ExpandError::OpenVariable);
    }
    let value = (tokens.variable)(OsStr::from_bytes(name))
        .ok_or_else(|| ExpandError::Unset(escape_bounded(name, 80)))?;
    out.extend_from_slice(value.as_bytes());
    Ok(after.get(1..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(raw: &str) -> Result<String, ExpandError> {
        let variable = |name: &OsStr| match name.to_str() {
            Some("KEYS") => Some(OsString::from("/keys/%h")),
            Some("HUGE") => Some(OsString::from("x".repeat(PATH_BYTES_MAX - 1))),
            _ => None,
        };
        let tokens = Tokens {
            home: Path::new("/home/alice"),
            local_user: OsStr::new("alice"),
            local_uid: 1000,
            remote_user: "root",
            host: "192.0.2.1",
            typed_host: "web",
            port: 2222,
            host_key_alias: "webkey",
            variable: &variable,
        };
        expand_path(Path::new(raw), &tokens).map(|path| path.to_str().unwrap().to_owned())
    }

    #[test]
    fn tokens_are_those_of_ssh_config_5() {
        for (raw, expected) in [
            ("~/.ssh/id", "/home/alice/.ssh/id"),
            ("~", "/home/alice"),
            (
                "%d/%u/%i/%r/%h/%n/%p/%k/%%",
                "/home/alice/alice/1000/root/192.0.2.1/web/2222/webkey/%",
            ),
            ("/a~b", "/a~b"),
            ("${KEYS}/x", "/keys/%h/x"),
            ("$KEYS", "$KEYS"),
            ("rel/ative", "rel/ative"),
            ("", ""),
        ] {
            assert_eq!(expand(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn what_cannot_be_expanded_is_named() {
        assert_eq!(expand("%z"), Err(ExpandError::Token("z".into())));
        assert_eq!(expand("%"), Err(ExpandError::Token(String::new())));
        assert_eq!(expand("~bob/x"), Err(ExpandError::OtherHome("~bob/x".into())));
        assert_eq!(expand("${KEYS"), Err(ExpandError::OpenVariable));
        assert_eq!(expand("${}"), Err(ExpandError::OpenVariable));
        assert_eq!(expand("${NO}"), Err(ExpandError::Unset("NO".into())));
    }

    #[test]
    fn the_length_is_bounded() {
        assert_eq!(expand("${HUGE}y").unwrap().len(), PATH_BYTES_MAX);
        assert_eq!(expand("${HUGE}yz"), Err(ExpandError::TooLong));
    }

    #[test]
    fn host_names_have_two_tokens() {
        assert_eq!(expand_host_name("%h.example", "web").as_deref(), Some("web.example"));
        assert_eq!(expand_host_name("100%%", "web").as_deref(), Some("100%"));
        assert_eq!(expand_host_name("%u", "web"), None);
        assert_eq!(expand_host_name("x%", "web"), None);
        assert_eq!(expand_host_name("%h", "%h").as_deref(), Some("%h"));
    }
}
