//! The files of keys: where a user has them, and what they hold.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use afar_core::limits::AUTHORIZED_KEYS_BYTES_MAX;
use afar_net::files::read_checked;
use afar_sys::users::User;

use super::Refusal;

/// A file of keys as it was read, or why it is not believed.
#[derive(Debug)]
pub(crate) struct FileRead {
    pub(crate) path: PathBuf,
    pub(crate) contents: Result<Vec<u8>, Refusal>,
}

impl FileRead {
    /// Blocks on the file system.
    pub(crate) fn read(path: PathBuf, user: &User) -> Self {
        // One byte over the limit, so that the reader says that the file is too large.
        let bytes_max = AUTHORIZED_KEYS_BYTES_MAX as u64 + 1;
        let contents = read_checked(&path, Some(&user.home), user.uid, bytes_max);
        Self { path, contents: contents.map_err(|error| error.to_string()) }
    }
}

/// The path that `AuthorizedKeysFile` (sshd_config(5)) would mean by this: `%h` is the home, `%u`
/// the name, `%%` a percent sign, and what is relative is relative to the home.
pub(super) fn expand(pattern: &str, user: &User) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = pattern.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            path.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'h') => path.extend_from_slice(user.home.as_os_str().as_bytes()),
            Some(b'u') => path.extend_from_slice(user.name.as_bytes()),
            Some(b'%') => path.push(b'%'),
            other => path.extend(std::iter::once(b'%').chain(other)),
        }
    }
    user.home.join(OsStr::from_bytes(&path))
}

/// Whether a pattern for authorized_keys holds only the tokens that are known.
///
/// # Errors
/// The token that is not.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let mut rest = pattern.chars();
    while let Some(character) = rest.next() {
        if character == '%' {
            match rest.next() {
                Some('h' | 'u' | '%') => {}
                Some(other) => return Err(format!("%{other}")),
                None => return Err("%".to_owned()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn patterns_expand_as_in_sshd() {
        let user = User {
            name: "ann".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/ann".into(),
            shell: "/bin/sh".into(),
            gecos: "".into(),
        };
        assert_eq!(
            expand("%h/.ssh/authorized_keys", &user),
            Path::new("/home/ann/.ssh/authorized_keys")
        );
        assert_eq!(expand(".ssh/keys", &user), Path::new("/home/ann/.ssh/keys"));
        assert_eq!(expand("/etc/keys/%u%%", &user), Path::new("/etc/keys/ann%"));
        assert_eq!(check_pattern("%h/%u/%%"), Ok(()));
        assert_eq!(check_pattern("%x"), Err("%x".to_owned()));
        assert_eq!(check_pattern("a%"), Err("%".to_owned()));
    }
}
